"""`latent_masked`: predict what a teacher that sees everything makes of hidden tokens (data2vec, I-JEPA)."""

from __future__ import annotations

from typing import final

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from modicum.core.errors import UserError
from modicum.core.types import Batch, Corrupted, Objective
from modicum.maths.losses import spread, widened
from modicum.nn.ema import Ema, rising
from modicum.nn.encoder import Encoder
from modicum.nn.hiding import Hiding
from modicum.nn.layers import perceptron


@final
class LatentMasked(Objective):
    """Smooth L1 distance to the teacher's tokens, each of mean 0 and variance 1, where a share `ratio` was hidden.

    What is hidden and how is as in `masked`: on visible tokens alone and a predictor of `depth` blocks where the trunk
    can (I-JEPA, Assran et al. 2023, here with single cells instead of blocks), else in place (data2vec, Baevski et al.
    2022, which takes the mean of the teacher's last blocks, where here its output is the target). A trunk
    that gives one token a row predicts that. The teacher is the encoder's moving average; its `momentum` (None: .99, or
    lower where the training is short) rises to 1 along a cosine over the `steps` of the training (0: it stays).
    """

    def __init__(
        self,
        encoder: Encoder,
        ratio: float = 0.5,
        depth: int | None = None,
        momentum: float | None = None,
        steps: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= (momentum or 0) < 1 or steps < 0:
            raise UserError(f"latent_masked wants 0 <= momentum < 1 and steps >= 0; got {momentum=}, {steps=}")
        self.encoder, self.ratio, self.depth, self.momentum, self.steps = encoder, ratio, depth, momentum, steps
        self.hiding = Hiding(encoder, ratio, depth, name="latent_masked")
        self.predictor = perceptron([self.hiding.width, 2 * self.hiding.width, encoder.trunk.dim_out], norm="none")
        self.teacher = Ema(encoder, rising(momentum, steps), teacher=True)

    def corrupt(self, batch: Batch, rng: Generator) -> Corrupted:
        return self.hiding.corrupt(batch, rng)

    def forward(self, corrupted: Corrupted) -> tuple[Tensor, dict[str, Tensor]]:
        seen, x = self.hiding(self.encoder, corrupted)
        with torch.no_grad():
            taught = self.teacher.module(corrupted["batch"])
            wanted = F.layer_norm(widened(taught.tokens), taught.tokens.shape[-1:])
        found, hide = widened(self.predictor(x)), corrupted["hide"]
        if hide.shape == found.shape[:2]:
            found, wanted = found[hide], wanted[hide]
        elif taught.mask is not None:  # padding is no token to predict
            found, wanted = found[taught.mask], wanted[taught.mask]
        return F.smooth_l1_loss(found, wanted), spread(seen.pooled[:128])

    def after_step(self, step: int) -> None:
        self.teacher.update(self.encoder, step)

    def encoders(self) -> dict[str, Encoder]:
        return {"encoder": self.encoder}
