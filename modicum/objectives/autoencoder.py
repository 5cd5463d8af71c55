"""`autoencoder`: compress a sample into a short code and rebuild it (Hinton & Salakhutdinov 2006)."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Generator, Tensor, nn

from modicum.core.errors import UserError
from modicum.core.types import Batch, Corrupted, Features, Objective, Tokens
from modicum.maths.losses import spread
from modicum.nn.encoder import Encoder, filled


@final
class Autoencoder(Objective):
    """Encoder, a linear code of `code` numbers, and the trunk's mirror as decoder; mean error over tokens.

    `noise` > 0 makes it denoising: that share of input tokens is blanked and the whole is to be rebuilt
    (masking noise, Vincent et al. 2008).
    """

    def __init__(self, encoder: Encoder, code: int = 32, noise: float = 0.0) -> None:
        super().__init__()
        if code < 1 or not 0 <= noise < 1:
            raise UserError(f"autoencoder wants code >= 1 and 0 <= noise < 1; got code={code}, noise={noise}")
        self.encoder, self.code, self.noise = encoder, code, noise
        self.unembed = encoder.input.unembed()
        self.bottleneck = nn.Linear(encoder.trunk.dim_out * math.prod(encoder.trunk.grid_out), code)
        self.decoder = encoder.trunk.decoder(code)
        self.out = (
            nn.Identity() if encoder.trunk.dim == self.unembed.dim else nn.Linear(encoder.trunk.dim, self.unembed.dim)
        )

    def corrupt(self, batch: Batch, rng: Generator) -> Corrupted:
        if not self.noise:
            return {"batch": batch, "hide": None}
        first, real = next(iter(batch.values())), self._real(batch)
        shape = (len(first), math.prod(self.encoder.embed.grid) if real is None else real.shape[1])
        return {"batch": batch, "hide": torch.rand(shape, generator=rng, device=first.device) < self.noise}

    def forward(self, corrupted: Corrupted) -> tuple[Tensor, dict[str, Tensor]]:
        features = self.encoder(corrupted["batch"], hide=corrupted["hide"])
        error = self.unembed.loss(self._decode(features), corrupted["batch"], self._real(corrupted["batch"]))
        return error.mean(), spread(features.pooled[:128])

    def _real(self, batch: Batch) -> Tensor | None:
        """Which tokens are no padding (b, t), where rows are ragged."""
        return batch["mask"] if self.encoder.embed.ragged else None

    def _decode(self, seen: Features) -> Tensor:
        x = seen.tokens if seen.mask is None else seen.tokens.masked_fill(~seen.mask.unsqueeze(-1), 0)
        x = filled(Tokens(x, seen.mask, seen.grid), self.encoder.trunk.grid_out).x
        return self.out(self.decoder(self.bottleneck(x.flatten(1))))

    def reconstruct(self, batch: Batch) -> tuple[Batch, Tensor]:
        """The rebuilt batch in raw units, and the mean error of every row (b,)."""
        tokens, real = self._decode(self.encoder(batch)), self._real(batch)
        error = self.unembed.loss(tokens, batch)
        return {**batch, **self.unembed.decode(tokens)}, error.mean(1) if real is None else error.sum(1) / real.sum(1)

    def encoders(self) -> dict[str, Encoder]:
        return {"encoder": self.encoder}
