"""`byol`: predict what a slowly moving teacher makes of another view (Grill et al. 2020)."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor, nn
from torch.nn import functional as F

from modicum.core.types import Corrupted
from modicum.maths.losses import widened
from modicum.nn.encoder import Tower
from modicum.nn.layers import perceptron
from modicum.objectives._joint import Taught


@final
class BYOL(Taught):
    """2 - 2 cos between the student's prediction of one view and the teacher's projection of the other, both ways.

    The teacher is the moving average of encoder and projection head `hidden` -> `out`; its `momentum` rises to 1 along
    a cosine over the `steps` of the training (0: it stays). `views`: options of the modality's views.
    """

    def __init__(
        self,
        encoder: Tower,
        momentum: float | None = None,
        hidden: int = 256,
        out: int = 128,
        views: dict[str, Any] | None = None,
        steps: int = 0,
    ) -> None:
        super().__init__(encoder, 2, hidden, out, views, momentum, steps)
        self.predictor = perceptron([out, hidden, out])
        self.teacher = self.follow(self.head)

    def loss(self, z: Tensor, corrupted: Corrupted) -> Tensor:
        wanted = self.taught(self.teacher, corrupted["views"]).view_as(z).flip(0)
        found = self.predictor(z.flatten(0, 1)).view_as(z)
        return 2 - 2 * F.cosine_similarity(widened(found), widened(wanted), dim=2).mean()

    def after_step(self, step: int) -> None:
        self.teacher.update(nn.ModuleList([self.encoder, self.head]), step)
