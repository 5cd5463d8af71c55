"""`autoencoder`: compress a sample into a short code and rebuild it (Hinton & Salakhutdinov 2006)."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Generator, Tensor, nn

from modicum.core.errors import UserError
from modicum.core.types import Batch, Corrupted, Objective
from modicum.maths.losses import spread
from modicum.nn.encoder import Encoder


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
        first = next(iter(batch.values()))
        shape = (len(first), math.prod(self.encoder.embed.grid))
        return {"batch": batch, "hide": torch.rand(shape, generator=rng, device=first.device) < self.noise}

    def forward(self, corrupted: Corrupted) -> tuple[Tensor, dict[str, Tensor]]:
        features = self.encoder(corrupted["batch"], hide=corrupted["hide"])
        tokens = self._decode(features.tokens)
        return self.unembed.loss(tokens, corrupted["batch"]).mean(), spread(features.pooled[:128])

    def _decode(self, tokens: Tensor) -> Tensor:
        return self.out(self.decoder(self.bottleneck(tokens.flatten(1))))

    def reconstruct(self, batch: Batch) -> tuple[Batch, Tensor]:
        """The rebuilt batch in raw units, and the mean error of every row (b,)."""
        tokens = self._decode(self.encoder(batch).tokens)
        return self.unembed.decode(tokens), self.unembed.loss(tokens, batch).mean(1)

    def encoders(self) -> dict[str, Encoder]:
        return {"encoder": self.encoder}
