"""`barlow`: dimensions correlate with themselves across two views, and with no other (Zbontar et al. 2021)."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from modicum.core.errors import UserError
from modicum.core.types import Corrupted
from modicum.maths.losses import barlow
from modicum.nn.encoder import Tower
from modicum.objectives._joint import Joint


@final
class Barlow(Joint):
    """Barlow Twins' loss times `scale`, through a projection head `hidden` -> `out`; two views a sample.

    `off_diagonal` weighs the correlations between different dimensions. `views`: options of the modality's views.
    """

    def __init__(
        self,
        encoder: Tower,
        off_diagonal: float = 5e-3,
        scale: float = 0.1,
        hidden: int = 256,
        out: int = 256,
        views: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(encoder, 2, hidden, out, views)
        if off_diagonal < 0 or scale <= 0:
            raise UserError(f"barlow wants off_diagonal >= 0 and scale > 0; got {off_diagonal=}, {scale=}")
        self.off_diagonal, self.scale = off_diagonal, scale

    def loss(self, z: Tensor, corrupted: Corrupted) -> Tensor:
        return self.scale * barlow(z[0], z[1], self.off_diagonal)
