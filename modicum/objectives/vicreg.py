"""`vicreg`: views agree, while every dimension varies and no two vary together (Bardes et al. 2022)."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from modicum.core.errors import UserError
from modicum.core.types import Corrupted
from modicum.maths.losses import vicreg
from modicum.nn.encoder import Tower
from modicum.objectives._joint import Joint


@final
class VICReg(Joint):
    """Weights of invariance, variance and covariance, over `n` views, through a projection head `hidden` -> `out`.

    No negatives and no teacher. With more than two views all pairs of them agree; EMP-SSL (Tong et al. 2023), also of
    many views, has the total coding rate in place of variance and covariance. `views`: options of the modality's views.
    """

    def __init__(
        self,
        encoder: Tower,
        n: int = 2,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        hidden: int = 256,
        out: int = 256,
        views: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(encoder, n, hidden, out, views)
        if min(invariance, variance, covariance) < 0:
            raise UserError(f"vicreg wants weights of at least 0; got {invariance=}, {variance=}, {covariance=}")
        self.invariance, self.variance, self.covariance = invariance, variance, covariance

    def loss(self, z: Tensor, corrupted: Corrupted) -> Tensor:
        return vicreg(z, self.invariance, self.variance, self.covariance)
