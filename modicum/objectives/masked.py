"""`masked`: hide tokens and predict them from the others (BERT, Devlin et al. 2019; MAE, He et al. 2022)."""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Generator, Tensor, nn

from modicum.core.errors import UserError
from modicum.core.spec import build
from modicum.core.types import Batch, Corrupted, Features, Objective, Tokens
from modicum.maths.losses import spread as spread_of
from modicum.nn.encoder import Encoder, spread
from modicum.nn.patches import Unpatch


@final
class Masked(Objective):
    """Predict a share `ratio` of each row's tokens, hidden on the trunk's output grid; mean error over them.

    Where the trunk can run on the visible tokens alone (`keep`) and rows are not ragged, it does, and a transformer of
    `depth` blocks, half as wide, rebuilds the hidden ones, as in MAE. Elsewhere hidden tokens are replaced: by one
    learned vector (a text's own mask token), but a share `swap` of them by other real tokens of the batch and a share
    `same` not at all (BERT: ratio=.15, swap=.1, same=.1), and every token is predicted from its own place.
    """

    def __init__(
        self, encoder: Encoder, ratio: float = 0.5, swap: float = 0.0, same: float = 0.0, depth: int = 1
    ) -> None:
        super().__init__()
        if not 0 < ratio < 1 or min(swap, same) < 0 or swap + same > 1 or depth < 1:
            raise UserError(
                "masked wants 0 < ratio < 1, swap and same of at least 0 and together at most 1, depth >= 1; got "
                f"{ratio=}, {swap=}, {same=}, {depth=}"
            )
        self.encoder, self.ratio, self.swap, self.same, self.depth = encoder, ratio, swap, same, depth
        trunk, embed = encoder.trunk, encoder.embed
        self.unembed = encoder.input.unembed()
        self.visible_only = "keep" in trunk.can and not embed.ragged and not swap and not same
        # What is hidden is one cell of the coarsest grid on which there is more than one.
        self.grid = tuple(trunk.grid_out if math.prod(trunk.grid_out) > 1 else embed.grid)
        if not embed.ragged and math.prod(self.grid) < 2:
            raise UserError("masked needs rows of at least two tokens: one is hidden and predicted from the others")
        width = trunk.dim_out
        if self.visible_only:
            width = max(32, trunk.dim_out // 2)
            options = {"width": width, "depth": depth, "patch": 1}
            self.decoder = build("trunk", {"name": "transformer", "args": options}, dim=width, grid=self.grid)
            self.enter = nn.Linear(trunk.dim_out, width)
        self.blank: Any = None
        if self.visible_only or embed.blank() is None:
            self.blank = nn.Parameter(0.02 * torch.randn(width if self.visible_only else embed.dim))
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.out = self._out(width)

    def _out(self, width: int) -> nn.Module:
        """From tokens on the trunk's output grid to tokens of the unembed on the input's."""
        trunk, fine = self.encoder.trunk, tuple(self.encoder.embed.grid)
        coarse, dim = tuple(trunk.grid_out), self.unembed.dim
        if coarse == fine:
            return nn.Identity() if width == dim else nn.Linear(width, dim)
        sides = {f // c if not f % c else 0 for f, c in zip(fine, coarse, strict=False)}
        if len(coarse) == len(fine) and len(sides) == 1 and 0 not in sides and math.prod(coarse) > 1:
            return Unpatch(width, fine, sides.pop(), dim)
        code = width * math.prod(coarse)
        last = nn.Identity() if trunk.dim == dim else nn.Linear(trunk.dim, dim)
        return nn.Sequential(nn.Flatten(1), trunk.decoder(code), last)

    def corrupt(self, batch: Batch, rng: Generator) -> Corrupted:
        first, mask = next(iter(batch.values())), batch["mask"] if self.encoder.embed.ragged else None
        shape = (len(first), math.prod(self.grid) if mask is None else mask.shape[1])
        score = torch.rand(shape, generator=rng, device=first.device)
        if mask is None:
            order, count = score.argsort(1), min(shape[1] - 1, max(1, round(self.ratio * shape[1])))
            hide = torch.zeros_like(score, dtype=torch.bool).scatter(1, order[:, :count], True)
            out: dict[str, object] = {"batch": batch, "hide": hide, "keep": order[:, count:].sort(1).values}
        else:  # at least one a row, and as many of its real tokens as the ratio says
            rank = score.masked_fill(~mask, 2).argsort(1).argsort(1)
            out = {"batch": batch, "hide": rank < (self.ratio * mask.sum(1, keepdim=True)).round().clamp(min=1)}
        if self.swap or self.same:
            fine = (len(first), math.prod(self.encoder.embed.grid)) if mask is None else shape
            out["fate"] = torch.rand(fine, generator=rng, device=first.device)
            out["donor"] = self._donors(fine, mask, rng, first.device)
        return out

    @staticmethod
    def _donors(shape: tuple[int, int], mask: Tensor | None, rng: Generator, device: torch.device) -> Tensor:
        """For each place (b, t) a token of the batch, by its number among b*t: a real one, never padding."""
        if mask is None:
            return torch.randint(math.prod(shape), shape, generator=rng, device=device)
        real = mask.flatten().cumsum(0)
        one = (torch.rand(shape, generator=rng, device=device) * real[-1]).long()
        return torch.searchsorted(real, torch.minimum(one, real[-1] - 1), right=True)

    def forward(self, corrupted: Corrupted) -> tuple[Tensor, dict[str, Tensor]]:
        hide = corrupted["hide"]
        fine = hide if self.encoder.embed.ragged else spread(hide, self.grid, tuple(self.encoder.embed.grid))
        seen, x = self._from_visible(corrupted) if self.visible_only else self._in_place(corrupted, fine)
        loss = self.unembed.loss(self.out(self.head(x)), corrupted["batch"], fine).mean()
        return loss, spread_of(seen.pooled[:128])

    def _from_visible(self, corrupted: Corrupted) -> tuple[Features, Tensor]:
        """Features of the visible tokens, and tokens of the whole grid rebuilt from them."""
        keep = corrupted["keep"]
        seen = self.encoder(corrupted["batch"], keep=keep)
        inside = self.enter(seen.tokens)
        x = self.blank.to(inside.dtype).expand(len(keep), math.prod(self.grid), -1)
        x = x.scatter(1, keep.unsqueeze(2).expand_as(inside), inside)
        return seen, self.decoder(Tokens(x, None, self.grid)).x

    def _in_place(self, corrupted: Corrupted, hide: Tensor) -> tuple[Features, Tensor]:
        """Features of the row with hidden tokens replaced, and its tokens."""
        tokens = self.encoder.embed(corrupted["batch"])
        x, blank = tokens.x, self.encoder.embed.blank() if self.blank is None else self.blank
        assert blank is not None
        if "fate" in corrupted:
            fate = corrupted["fate"]
            swapped = hide & (fate < self.swap)
            x = torch.where(swapped.unsqueeze(2), tokens.x.flatten(0, 1)[corrupted["donor"]], x)
            hide = hide & (fate >= self.swap + self.same)
        seen = self.encoder.run(tokens._replace(x=torch.where(hide.unsqueeze(2), blank, x)))
        return seen, seen.tokens

    def encoders(self) -> dict[str, Encoder]:
        return {"encoder": self.encoder}
