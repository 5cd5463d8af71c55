"""A short code of every row and the trunk's mirror as its decoder: what autoencoders share."""

from __future__ import annotations

import math

from torch import Tensor, nn

from modicum.core.errors import UserError
from modicum.core.types import Batch, Features, Tokens, Unembed
from modicum.nn.encoder import Encoder
from modicum.nn.layers import filled


class Mirror(nn.Module):
    """Features -> `width` numbers a row (`squeeze`), and a code of `code` numbers -> tokens of the unembed (`grow`)."""

    def __init__(self, encoder: Encoder, code: int, width: int, dim: int) -> None:
        super().__init__()
        trunk = encoder.trunk
        if code < 1:
            raise UserError(f"a code wants at least 1 number; got code={code}")
        self.grid = trunk.grid_out
        self.bottleneck = nn.Linear(trunk.dim_out * math.prod(trunk.grid_out), width)
        self.decoder = trunk.decoder(code)
        self.out = nn.Identity() if trunk.dim == dim else nn.Linear(trunk.dim, dim)

    def squeeze(self, seen: Features) -> Tensor:
        x = seen.tokens if seen.mask is None else seen.tokens.masked_fill(~seen.mask.unsqueeze(-1), 0)
        return self.bottleneck(filled(Tokens(x, seen.mask, seen.grid), self.grid).x.flatten(1))

    def grow(self, code: Tensor) -> Tensor:
        return self.out(self.decoder(code))


def real_tokens(encoder: Encoder, batch: Batch) -> Tensor | None:
    """Which tokens are no padding (b, t), where rows are ragged."""
    return batch["mask"] if encoder.embed.ragged else None


def rebuilt(unembed: Unembed, tokens: Tensor, batch: Batch, encoder: Encoder) -> tuple[Batch, Tensor]:
    """The batch with what `tokens` say of it, in raw units, and the mean error of every row's real tokens (b,)."""
    real = real_tokens(encoder, batch)
    if real is None:
        return {**batch, **unembed.decode(tokens)}, unembed.loss(tokens, batch).mean(1)
    tokens = tokens[:, : real.shape[1]]  # the mirror gives as many as the longest row has
    error = unembed.loss(tokens, batch).sum(1) / real.sum(1).clamp(min=1)
    return {**batch, **unembed.decode(tokens)}, error
