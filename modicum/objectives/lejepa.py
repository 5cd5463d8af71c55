"""`lejepa`: views predict their mean, and the features are an isotropic Gaussian (Balestriero and LeCun 2025)."""

from __future__ import annotations

from typing import Any, final

from torch import Generator, Tensor

from modicum.core.errors import UserError
from modicum.core.types import Batch, Corrupted
from modicum.maths.losses import sigreg, slices
from modicum.nn.encoder import Tower
from modicum.objectives._joint import Joint


@final
class LeJEPA(Joint):
    """(1 - weight) · the squared distance of views from their mean + weight · SIGReg of each view.

    All views are of one distribution, so the mean is over all of them, as the paper's is over its global crops. Through
    a projection head `hidden` -> `out`; `count` fresh directions a step. One trade-off, no teacher, no
    negatives. `views`: options of the modality's views.
    """

    def __init__(
        self,
        encoder: Tower,
        n: int = 4,
        weight: float = 0.05,
        count: int = 256,
        hidden: int = 256,
        out: int = 64,
        views: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(encoder, n, hidden, out, views)
        if not 0 < weight < 1 or count < 1:
            raise UserError(f"lejepa wants 0 < weight < 1 and count >= 1; got {weight=}, {count=}")
        self.weight, self.count = weight, count

    def corrupt(self, batch: Batch, rng: Generator) -> Corrupted:
        device = next(iter(batch.values())).device
        return {**super().corrupt(batch, rng), "drawn": slices(self.out, self.count, rng, device)}

    def loss(self, z: Tensor, corrupted: Corrupted) -> Tensor:
        apart = (z - z.mean(0)).square().mean()
        gauss = sum(sigreg(view, corrupted["drawn"]) for view in z) / self.n
        return (1 - self.weight) * apart + self.weight * gauss
