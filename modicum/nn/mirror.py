"""A short code of every row and the trunk's mirror as its decoder: what autoencoders share."""

from __future__ import annotations

import math

from torch import Tensor, nn

from modicum.core.errors import UserError
from modicum.core.types import Batch, Features, Tokens
from modicum.nn.encoder import Encoder, filled


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


def mean_error(error: Tensor, real: Tensor | None) -> Tensor:
    """The mean over real tokens of errors (b, t): (b,)."""
    return error.mean(1) if real is None else error.sum(1) / real.sum(1).clamp(min=1)
