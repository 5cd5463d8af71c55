"""`supcon`: rows of one class attract, all others repel (supervised contrastive learning, Khosla et al. 2020)."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from modicum.core.errors import UserError
from modicum.core.types import Corrupted
from modicum.maths.contrastive import supcon
from modicum.nn.encoder import Tower
from modicum.objectives._joint import Joint
from modicum.objectives._labels import classes


@final
class SupCon(Joint):
    """The loss at `temperature` between `n` views a sample, through a projection head `hidden` -> `out`.

    Classes come with the batch, `target` (b,) long; a row without one (-1) is a class of its own, so that its views
    still belong together. `views`: options of the modality's views.
    """

    uses_labels = True

    def __init__(
        self,
        encoder: Tower,
        n: int = 2,
        temperature: float = 0.1,
        hidden: int = 256,
        out: int = 128,
        views: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(encoder, n, hidden, out, views)
        if temperature <= 0:
            raise UserError(f"supcon wants a temperature above 0; got {temperature}")
        self.temperature = temperature

    def loss(self, z: Tensor, corrupted: Corrupted) -> Tensor:
        target = classes(corrupted, "supcon")
        alone = -1 - torch.arange(z.shape[1], device=z.device).repeat(self.n)
        return supcon(z.flatten(0, 1), torch.where(target < 0, alone, target), self.temperature)
