"""What objectives on several views of a sample share: the views, one encoder, and a projection head."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Generator, Tensor, nn

from modicum.core.errors import UserError
from modicum.core.types import Batch, Corrupted, Objective
from modicum.maths.losses import spread
from modicum.nn.ema import Ema, rising
from modicum.nn.encoder import Tower
from modicum.nn.layers import perceptron


class Joint(Objective):
    """`n` views a sample through one encoder and a projection head `hidden` -> `out`; subclasses give the loss."""

    def __init__(self, encoder: Tower, n: int, hidden: int, out: int, views: dict[str, Any] | None) -> None:
        super().__init__()
        if n < 2 or min(hidden, out) < 1:
            raise UserError(
                f"{type(self).__name__.lower()} wants n >= 2 views, hidden and out of at least 1; got "
                f"{n=}, {hidden=}, {out=}"
            )
        self.encoder, self.n, self.hidden, self.out, self.views = encoder, n, hidden, out, views or {}
        self.transform = encoder.input.views(**self.views)
        self.head = perceptron([encoder.dim, hidden, out])

    def corrupt(self, batch: Batch, rng: Generator) -> Corrupted:
        rows = {key: torch.cat([x] * self.n) for key, x in batch.items() if key != "target"}
        out: dict[str, Any] = {"views": self.transform(rows, rng)}
        return out | ({"target": batch["target"].repeat(self.n)} if "target" in batch else {})

    def forward(self, corrupted: Corrupted) -> tuple[Tensor, dict[str, Tensor]]:
        pooled = self.encoder(corrupted["views"]).pooled
        z = self.head(pooled)
        metrics = {**spread(pooled[:128]), "projected": spread(z[:128])["spread"]}
        return self.loss(z.view(self.n, -1, self.out), corrupted), metrics

    @abstractmethod
    def loss(self, z: Tensor, corrupted: Corrupted) -> Tensor:
        """The loss of the projections z (n, b, out)."""

    def encoders(self) -> dict[str, Tower]:
        return {"encoder": self.encoder}


class Taught(Joint):
    """`Joint` with a teacher: the moving average of the encoder and of what `online` puts on it.

    Its `momentum` (None: .99, or lower where the training is short) rises to 1 along a cosine over the `steps` of the
    training (0: it stays as it is).
    """

    def __init__(
        self,
        encoder: Tower,
        n: int,
        hidden: int,
        out: int,
        views: dict[str, Any] | None,
        momentum: float | None,
        steps: int,
    ) -> None:
        super().__init__(encoder, n, hidden, out, views)
        if not 0 <= (momentum or 0) < 1 or steps < 0:
            raise UserError(
                f"{type(self).__name__.lower()} wants 0 <= momentum < 1 and steps >= 0; got {momentum=}, {steps=}"
            )
        self.momentum, self.steps = momentum, steps

    def follow(self, *online: nn.Module) -> Ema:
        """The teacher of the encoder and the modules after it."""
        return Ema(nn.ModuleList([self.encoder, *online]), rising(self.momentum, self.steps), teacher=True)

    @torch.no_grad()
    def taught(self, teacher: Ema, batch: Batch) -> Tensor:
        """What the teacher makes of a batch."""
        parts = list(teacher.module.children())
        x: Tensor = parts[0](batch).pooled
        for module in parts[1:]:
            x = module(x)
        return x
