"""`simclr`: views of one sample attract, views of others repel (Chen et al. 2020)."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from modicum.core.errors import UserError
from modicum.core.types import Corrupted
from modicum.maths.contrastive import nt_xent
from modicum.nn.encoder import Tower
from modicum.objectives._joint import Joint


@final
class SimCLR(Joint):
    """NT-Xent at `temperature` between `n` views a sample, through a projection head `hidden` -> `out`.

    `views`: options of the modality's views, such as crop=(.3, 1).
    """

    def __init__(
        self,
        encoder: Tower,
        n: int = 2,
        temperature: float = 0.5,
        hidden: int = 256,
        out: int = 128,
        views: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(encoder, n, hidden, out, views)
        if temperature <= 0:
            raise UserError(f"simclr wants a temperature above 0; got {temperature}")
        self.temperature = temperature

    def loss(self, z: Tensor, corrupted: Corrupted) -> Tensor:
        return nt_xent(z, self.temperature)
