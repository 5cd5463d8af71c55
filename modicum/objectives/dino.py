"""`dino`: predict the teacher's sharpened choice among prototypes for another view (Caron et al. 2021)."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modicum.core.errors import UserError
from modicum.core.types import Corrupted
from modicum.maths.losses import dino
from modicum.nn.encoder import Tower
from modicum.objectives._joint import Taught


class Prototypes(nn.Module):
    """Cosines of x (b, d) with `count` directions."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=-1))


@final
class DINO(Taught):
    """Cross-entropy of every view's choice among `prototypes` with the teacher's of the first two of `n` views.

    The teacher's logits are centred by their running mean (`centring` of it is kept each step) and sharpened by
    `temperature`, the student's divided by `student_temperature`. Projection head `hidden` -> `out`; the teacher is the
    moving average of encoder, head and prototypes, its `momentum` rises to 1 over `steps`. `views`: options of the
    modality's views.
    """

    centre: Tensor

    def __init__(
        self,
        encoder: Tower,
        n: int = 2,
        prototypes: int = 1024,
        student_temperature: float = 0.1,
        temperature: float = 0.04,
        centring: float = 0.9,
        momentum: float | None = None,
        hidden: int = 256,
        out: int = 128,
        views: dict[str, Any] | None = None,
        steps: int = 0,
    ) -> None:
        super().__init__(encoder, n, hidden, out, views, momentum, steps)
        if prototypes < 2 or min(student_temperature, temperature) <= 0 or not 0 <= centring < 1:
            raise UserError(
                "dino wants prototypes >= 2, temperatures above 0 and 0 <= centring < 1; got "
                f"{prototypes=}, {student_temperature=}, {temperature=}, {centring=}"
            )
        self.prototypes, self.centring = prototypes, centring
        self.student_temperature, self.temperature = student_temperature, temperature
        self.choose = Prototypes(out, prototypes)
        self.teacher = self.follow(self.head, self.choose)
        self.register_buffer("centre", torch.zeros(prototypes))
        self.fresh: Tensor | None = None

    def loss(self, z: Tensor, corrupted: Corrupted) -> Tensor:
        # Views lie one after the other: the first two of every sample are the first rows.
        first = {key: x[: len(x) * 2 // self.n] for key, x in corrupted["views"].items()}
        teacher = self.taught(self.teacher, first).float().view(2, z.shape[1], -1)
        self.fresh = teacher.mean((0, 1))
        return dino(self.choose(z), teacher, self.centre, self.student_temperature, self.temperature)

    def after_step(self, step: int) -> None:
        self.teacher.update(nn.ModuleList([self.encoder, self.head, self.choose]), step)
        if self.fresh is not None:
            self.centre.lerp_(self.fresh, 1 - self.centring)
            self.fresh = None
