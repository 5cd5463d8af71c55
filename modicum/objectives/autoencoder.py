"""`autoencoder`: compress a sample into a short code and rebuild it (Hinton & Salakhutdinov 2006)."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Generator, Tensor

from modicum.core.errors import UserError
from modicum.core.types import Batch, Corrupted, Objective
from modicum.maths.losses import spread
from modicum.nn.encoder import Encoder
from modicum.nn.mirror import Mirror, real_tokens, rebuilt


@final
class Autoencoder(Objective):
    """Encoder, a linear code of `code` numbers, and the trunk's mirror as decoder; mean error over tokens.

    `noise` > 0 makes it denoising: that share of input tokens is blanked and the whole is to be rebuilt
    (masking noise, Vincent et al. 2008).
    """

    def __init__(self, encoder: Encoder, code: int = 32, noise: float = 0.0) -> None:
        super().__init__()
        if not 0 <= noise < 1:
            raise UserError(f"autoencoder wants 0 <= noise < 1; got noise={noise}")
        self.encoder, self.code, self.noise = encoder, code, noise
        self.unembed = encoder.input.unembed()
        self.mirror = Mirror(encoder, code, code, self.unembed.dim)

    def corrupt(self, batch: Batch, rng: Generator) -> Corrupted:
        if not self.noise:
            return {"batch": batch, "hide": None}
        first, real = next(iter(batch.values())), real_tokens(self.encoder, batch)
        shape = (len(first), math.prod(self.encoder.embed.grid) if real is None else real.shape[1])
        return {"batch": batch, "hide": torch.rand(shape, generator=rng, device=first.device) < self.noise}

    def forward(self, corrupted: Corrupted) -> tuple[Tensor, dict[str, Tensor]]:
        batch, features = corrupted["batch"], self.encoder(corrupted["batch"], hide=corrupted["hide"])
        tokens = self.mirror.grow(self.mirror.squeeze(features))
        error = self.unembed.loss(tokens, batch, real_tokens(self.encoder, batch))
        return error.mean(), spread(features.pooled[:128])

    def reconstruct(self, batch: Batch) -> tuple[Batch, Tensor]:
        """The rebuilt batch in raw units, and the mean error of every row (b,)."""
        return rebuilt(self.unembed, self.mirror.grow(self.mirror.squeeze(self.encoder(batch))), batch, self.encoder)

    def note(self) -> str:
        inputs = self.encoder.embed.inputs
        if self.noise or not 0 < inputs <= self.code:
            return ""
        return (
            f"autoencoder(code={self.code}) is not undercomplete: a row has {inputs} inputs, which so long a code can "
            "copy without learning anything of them; take a shorter code, or blank inputs with noise=.3"
        )

    def encoders(self) -> dict[str, Encoder]:
        return {"encoder": self.encoder}
