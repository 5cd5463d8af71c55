"""`simclr`: views of one sample attract, views of others repel (Chen et al. 2020)."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Generator, Tensor

from modicum.core.errors import UserError
from modicum.core.types import Batch, Corrupted, Objective
from modicum.maths.contrastive import nt_xent
from modicum.maths.losses import spread
from modicum.nn.encoder import Tower
from modicum.nn.layers import perceptron


@final
class SimCLR(Objective):
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
        super().__init__()
        if n < 2 or temperature <= 0 or min(hidden, out) < 1:
            raise UserError(
                "simclr wants n >= 2 views, temperature > 0, hidden and out of at least 1; got "
                f"{n=}, {temperature=}, {hidden=}, {out=}"
            )
        self.encoder, self.n, self.temperature, self.hidden, self.out = encoder, n, temperature, hidden, out
        self.views = views or {}
        self.transform = encoder.input.views(**self.views)
        self.head = perceptron([encoder.dim, hidden, out])

    def corrupt(self, batch: Batch, rng: Generator) -> Corrupted:
        return dict(self.transform({key: torch.cat([x] * self.n) for key, x in batch.items()}, rng))

    def forward(self, corrupted: Corrupted) -> tuple[Tensor, dict[str, Tensor]]:
        pooled = self.encoder(dict(corrupted)).pooled
        z = self.head(pooled)
        return nt_xent(z.view(self.n, -1, self.out), self.temperature), spread(pooled[:128])

    def encoders(self) -> dict[str, Tower]:
        return {"encoder": self.encoder}
