"""Batches as a pure function of (seed, step): nothing to save, nothing to replay on resume."""

from __future__ import annotations

from typing import Any

import numpy as np

from modicum.core import seeds
from modicum.core.types import Batch, Source, Windows

POOL = 128
"""Batches whose rows are sorted by length together."""


class Batches:
    """`batches(step)`: `batch` rows of `source` out of `index`, each once an epoch in an order drawn from the seed.

    The rows that do not fill a last batch are left to the next epoch's draw. `extra` are arrays aligned with
    `index` (targets), added to the batch by name. Where the source has `lengths`, the rows of a batch are of about one
    length: POOL batches at a time are sorted by it and cut anew, and the batches of the epoch are shuffled. Where rows
    have several windows, each of these is a row, with its row's extras.
    """

    def __init__(
        self, source: Source, index: np.ndarray, *, batch: int, seed: int, extra: dict[str, Any] | None = None
    ) -> None:
        self.source, self.seed, self.extra, self.size = source, seed, extra or {}, len(index)
        self.index: np.ndarray | None = index
        windows: Windows | None = getattr(source, "windows", None)
        if windows is not None and not self.extra and len(index) == source.size:  # all: no need for their numbers
            self.source, self.index, self.size = windows.parts, None, windows.parts.size
        elif windows is not None:
            self.source, (self.index, place) = windows.parts, windows.of(index)
            self.size, self.extra = len(place), {key: value[place] for key, value in self.extra.items()}
        self.batch = min(batch, self.size)
        self.per_epoch = self.size // self.batch
        self._epoch, self._order, self._turn = -1, np.empty(0, int), np.empty(0, int)

    def _numbers(self, at: np.ndarray) -> np.ndarray:
        """The rows of the source at positions of the index."""
        return at if self.index is None else self.index[at]

    def __call__(self, step: int) -> Batch:
        epoch, k = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._order = np.empty(0, int)  # freed first: it may be large
            self._epoch, (self._order, self._turn) = epoch, self._draw(seeds.numpy(self.seed, "order", epoch))
        start = int(self._turn[k]) * self.batch
        at = self._order[start : start + self.batch].astype(np.int64)
        rows = self.source.rows(self._numbers(at).astype(np.int64))
        return {**rows, **{key: value[at] for key, value in self.extra.items()}}

    def _draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Positions in `index`, batch after batch, of one epoch, and the order of the batches."""
        # The bits of `permutation`, in a quarter of its memory.
        order = np.arange(self.size, dtype=np.int32 if self.size < 1 << 31 else np.int64)
        rng.shuffle(order)
        lengths = getattr(self.source, "lengths", None)
        if lengths is None:
            return order, np.arange(self.per_epoch)
        order = order[: self.per_epoch * self.batch]
        for start in range(0, len(order), POOL * self.batch):
            pool = order[start : start + POOL * self.batch]
            pool[:] = pool[np.argsort(lengths[self._numbers(pool)], kind="stable")]
        return order, rng.permutation(self.per_epoch)
