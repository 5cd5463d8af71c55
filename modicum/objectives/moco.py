"""`moco`: find the teacher's view of oneself among a queue of views seen before (He et al. 2020)."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modicum.core.errors import UserError
from modicum.core.types import Corrupted
from modicum.maths.contrastive import info_nce_queue
from modicum.nn.encoder import Tower
from modicum.objectives._joint import Taught


@final
class MoCo(Taught):
    """InfoNCE at `temperature` of each of two views against the teacher's other one and the last `queue` before it.

    Many negatives at a small batch. The teacher is the moving average of encoder and projection head `hidden` -> `out`;
    its `momentum` rises to 1 over `steps`. The queue begins with random directions. `views`: options of the modality's
    views.
    """

    keys: Tensor

    def __init__(
        self,
        encoder: Tower,
        queue: int = 4096,
        temperature: float = 0.2,
        momentum: float | None = None,
        hidden: int = 256,
        out: int = 128,
        views: dict[str, Any] | None = None,
        steps: int = 0,
    ) -> None:
        super().__init__(encoder, 2, hidden, out, views, momentum, steps)
        if queue < 1 or temperature <= 0:
            raise UserError(f"moco wants queue >= 1 and a temperature above 0; got {queue=}, {temperature=}")
        self.queue, self.temperature = queue, temperature
        self.teacher = self.follow(self.head)
        self.register_buffer("keys", F.normalize(torch.randn(queue, out), dim=1))
        self.fresh: Tensor | None = None

    def loss(self, z: Tensor, corrupted: Corrupted) -> Tensor:
        wanted = self.taught(self.teacher, corrupted["views"]).view_as(z).float()
        self.fresh = wanted.flatten(0, 1)
        return info_nce_queue(z.flatten(0, 1), wanted.flip(0).flatten(0, 1), self.keys, 1 / self.temperature)

    def after_step(self, step: int) -> None:
        self.teacher.update(nn.ModuleList([self.encoder, self.head]), step)
        if self.fresh is not None:  # the newest first
            self.keys = torch.cat([F.normalize(self.fresh, dim=1), self.keys])[: self.queue]
            self.fresh = None
