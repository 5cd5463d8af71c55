"""Probes of frozen features: how well do simple rules read the labels off them?"""

from __future__ import annotations

import numpy as np

from modicum.core import seeds
from modicum.core.types import Source
from modicum.datasets.data import Labels
from modicum.nn.encoder import Tower
from modicum.training.apply import embed


def knn(bank: np.ndarray, labels: np.ndarray, query: np.ndarray, k: int = 20, temperature: float = 0.07) -> np.ndarray:
    """Weighted k-nearest-neighbour classes (n,) of `query` (n, d) by cosine similarity (Wu et al. 2018).

    bank (m, d) with codes `labels` (m,); each neighbour votes with weight exp(similarity / temperature).
    """
    bank, query = unit(bank), unit(query)
    k = min(k, len(bank))
    votes = np.zeros((len(query), int(labels.max()) + 1), np.float32)
    for start in range(0, len(query), 1024):
        near = query[start : start + 1024] @ bank.T
        found = np.argpartition(near, -k, axis=1)[:, -k:]
        weight = np.exp((np.take_along_axis(near, found, 1) - 1) / temperature)
        rows = np.arange(start, start + len(near))[:, None]
        np.add.at(votes, (rows, labels[found]), weight)
    return votes.argmax(1)


def unit(x: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1."""
    return x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12)


def neighbours(x: np.ndarray, query: np.ndarray, k: int) -> np.ndarray:
    """The k rows of x (n, d) nearest to each row x[query] by cosine, nearest first, without itself: (q, k)."""
    near = unit(x)[query] @ unit(x).T
    near[np.arange(len(query)), query] = -np.inf
    return np.argsort(-near, axis=1, kind="stable")[:, :k]


class Probe:
    """The online probe: k-NN accuracy of labelled training rows among other labelled training rows, never test rows.

    At most 4,000 rows are searched for 1,000 others; nothing where rows have no classes.
    """

    def __init__(self, encoder: Tower, source: Source, train: np.ndarray, labels: Labels | None) -> None:
        self.encoder, self.source, self.labels = encoder, source, labels
        self.bank = self.query = np.empty(0, int)
        if labels is not None and labels.kind == "classes":
            known = seeds.numpy(0, "probe").permutation(train[labels.known[train]])[:5000]
            self.bank, self.query = np.split(known, [int(0.8 * len(known))])

    def __call__(self) -> dict[str, float]:
        if self.labels is None or not len(self.query) or not len(self.bank):
            return {}
        bank, query = (embed(self.encoder, self.source, index) for index in (self.bank, self.query))
        found = knn(bank, self.labels.values[self.bank], query)
        return {"knn": float((found == self.labels.values[self.query]).mean())}
