"""Batches as a pure function of (seed, step): nothing to save, nothing to replay on resume."""

from __future__ import annotations

from typing import Any

import numpy as np

from modicum.core import seeds
from modicum.core.types import Batch, Source

POOL = 128
"""Batches whose rows are sorted by length together."""


class Batches:
    """`batches(step)`: `batch` rows of `source` out of `index`, each once an epoch in an order drawn from the seed.

    The rows that do not fill a last batch are left to the next epoch's draw. `extra` are arrays aligned with
    `index` (targets), added to the batch by name. Where the source has `lengths`, the rows of a batch are of about one
    length: POOL batches at a time are sorted by it and cut anew, and the batches of the epoch are shuffled.
    """

    def __init__(
        self, source: Source, index: np.ndarray, *, batch: int, seed: int, extra: dict[str, Any] | None = None
    ) -> None:
        self.source, self.index, self.seed, self.extra = source, index, seed, extra or {}
        self.batch = min(batch, len(index))
        self.per_epoch = len(index) // self.batch
        self._epoch, self._order = -1, np.empty(0, int)

    def __call__(self, step: int) -> Batch:
        epoch, k = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._draw(seeds.numpy(self.seed, "order", epoch))
        at = self._order[k * self.batch : (k + 1) * self.batch]
        return {**self.source.rows(self.index[at]), **{key: value[at] for key, value in self.extra.items()}}

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        """Positions in `index`, batch after batch, of one epoch."""
        order = rng.permutation(len(self.index))
        lengths = getattr(self.source, "lengths", None)
        if lengths is None:
            return order
        order = order[: self.per_epoch * self.batch]
        size = lengths[self.index[order]]
        pool = np.arange(len(order)) // (POOL * self.batch)
        batches = order[np.lexsort((size, pool))].reshape(self.per_epoch, self.batch)
        return batches[rng.permutation(self.per_epoch)].ravel()
