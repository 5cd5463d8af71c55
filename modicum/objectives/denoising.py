"""`denoising`: rebuild a row, token after token, from a damaged view of it (BART, Lewis et al. 2020)."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Generator, Tensor, nn

from modicum.core.errors import UserError
from modicum.core.types import Batch, Corrupted, Objective, Tokens
from modicum.maths.losses import spread
from modicum.maths.sampling import likeliest
from modicum.nn.encoder import Encoder


@final
class Denoising(Objective):
    """Mean error of each token, predicted from those before it and, by attention, from the encoder's view of the row.

    The encoder reads a view (`views`: options of the modality's views, such as delete=.3); the decoder is what the
    trunk gives as `seq2seq`: a transformer with cross-attention, or a recurrent net with attention (Bahdanau et al.
    2015).
    """

    def __init__(self, encoder: Encoder, views: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.encoder, self.views = encoder, views or {}
        embed, self.unembed = encoder.embed, encoder.input.unembed()
        self.transform = encoder.input.views(**self.views)
        self.decoder = encoder.trunk.seq2seq(embed.dim)
        self.out = nn.Linear(encoder.trunk.dim_out, self.unembed.dim)
        self.start = nn.Parameter(0.02 * torch.randn(embed.dim))

    def corrupt(self, batch: Batch, rng: Generator) -> Corrupted:
        return {"batch": batch, "view": self.transform(batch, rng)}

    def forward(self, corrupted: Corrupted) -> tuple[Tensor, dict[str, Tensor]]:
        batch, seen = corrupted["batch"], self.encoder(corrupted["view"])
        tokens = self.encoder.embed(batch)
        out = self._decode(tokens, Tokens(seen.tokens, seen.mask, seen.grid))
        where = torch.ones(out.shape[:2], dtype=torch.bool, device=out.device) if tokens.mask is None else tokens.mask
        return self.unembed.loss(out, batch, where).mean(), spread(seen.pooled[:128])

    def _decode(self, tokens: Tokens, memory: Tokens) -> Tensor:
        """What is said of every token, given those before it."""
        x = torch.cat([self.start.expand(len(tokens.x), 1, -1), tokens.x[:, :-1]], 1)
        return self.out(self.decoder(x, memory))

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> tuple[Batch, Tensor]:
        """The rows rebuilt from themselves, each token the likeliest after those before; and their mean errors (b,)."""
        seen = self.encoder(batch)
        memory, tokens = Tokens(seen.tokens, seen.mask, seen.grid), self.encoder.embed(batch)
        error = self.unembed.loss(self._decode(tokens, memory), batch)
        real = torch.ones_like(error) if tokens.mask is None else tokens.mask.to(error.dtype)
        made: Batch | None = None
        x = self.start.expand(len(tokens.x), 1, -1)
        for at in range(tokens.x.shape[1]):
            out = self.out(self.decoder(x, memory))
            made = self.unembed.draw(out[:, -1:], at, made, likeliest)
            x = torch.cat([x, self.encoder.embed(made).x[:, at : at + 1]], 1)
        if made is None:
            raise UserError("there is no token to rebuild")
        return made, (error * real).sum(1) / real.sum(1).clamp(min=1)

    def encoders(self) -> dict[str, Encoder]:
        return {"encoder": self.encoder}
