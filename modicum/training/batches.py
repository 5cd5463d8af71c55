"""Batches as a pure function of (seed, step): nothing to save, nothing to replay on resume."""

from __future__ import annotations

from typing import Any

import numpy as np

from modicum.core import seeds
from modicum.core.types import Batch, Source


class Batches:
    """`batches(step)`: `batch` rows of `source` out of `index`, each once an epoch in an order drawn from the seed.

    The rows that do not fill a last batch are left to the next epoch's draw. `extra` are arrays aligned with
    `index` (targets), added to the batch by name.
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
            order = seeds.numpy(self.seed, "order", epoch).permutation(len(self.index))
            self._epoch, self._order = epoch, order
        at = self._order[k * self.batch : (k + 1) * self.batch]
        return {**self.source.rows(self.index[at]), **{key: value[at] for key, value in self.extra.items()}}
