"""Means of products of pairs of models' outputs, by what the two share: data, initialisation, neither.

Pairs that share nothing estimate the squared mean output without bias (a U-statistic); on a full grid of data sets and
initialisations the differences between such means are the variance components of the two-way analysis of variance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Moments(NamedTuple):
    """Means (n,) of products of two outputs: of a model with itself, any pair, pairs that share nothing, data, a seed.

    None where there is no such pair.
    """

    square: np.ndarray
    plain: np.ndarray
    free: np.ndarray | None
    data: np.ndarray | None
    seed: np.ndarray | None


@dataclass(frozen=True)
class Stack:
    """The sums of all cells: counts, blocks and seeds (cells,), arrays (cells, n, c)."""

    counts: np.ndarray
    blocks: np.ndarray
    seeds: np.ndarray
    of: dict[str, np.ndarray]

    def take(self, keep: np.ndarray) -> Stack:
        return Stack(self.counts[keep], self.blocks[keep], self.seeds[keep], {k: v[keep] for k, v in self.of.items()})

    def mean(self, name: str) -> np.ndarray:
        return self.of[name].sum(0) / self.counts.sum()

    def moments(self, values: np.ndarray, squares: np.ndarray | None = None) -> Moments:
        """Of the cells' sums of outputs and of their squares; without the latter, a cell is one model."""
        squares = (values**2).sum(-1, keepdims=True) if squares is None else squares

        def pooled(groups: np.ndarray) -> tuple[np.ndarray, float]:
            members = [groups == g for g in np.unique(groups)]
            product = sum((np.square(values[m].sum(0)).sum(-1) for m in members), np.zeros(values.shape[1]))
            return product, float(sum(self.counts[m].sum() ** 2 for m in members))

        every, block, seed, cell = map(pooled, (self.counts * 0, self.blocks, self.seeds, np.arange(len(values))))

        def mean(*signed: tuple[int, tuple[np.ndarray, float]]) -> np.ndarray | None:
            pairs = sum(sign * count for sign, (_, count) in signed)
            return np.asarray(sum(sign * total for sign, (total, _) in signed)) / pairs if pairs > 0 else None

        free = mean((1, every), (-1, block), (-1, seed), (1, cell))
        square = squares.sum((0, -1)) / self.counts.sum()
        return Moments(square, every[0] / every[1], free, mean((1, block), (-1, cell)), mean((1, seed), (-1, cell)))
