"""Hide tokens of every row and say something of each of them from the others: what masked objectives share."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor, nn

from modicum.core.errors import UserError
from modicum.core.spec import build
from modicum.core.types import Batch, Corrupted, Features, Tokens
from modicum.nn.encoder import Encoder, spread


class Hiding(nn.Module):
    """Hides a share `ratio` of each row's tokens, on `grid`; `forward` gives a vector of `width` for every token.

    Where the trunk can run on the visible tokens alone (`keep`) and rows are not ragged, it does, and a transformer of
    `depth` blocks, half as wide, fills in the hidden ones (MAE, He et al. 2022). Elsewhere hidden tokens are replaced:
    by one learned vector (a text's own mask token), but a share `swap` of them by other real tokens of the batch and a
    share `same` not at all (BERT, Devlin et al. 2019).
    """

    def __init__(
        self,
        encoder: Encoder,
        ratio: float,
        depth: int | None = None,
        swap: float = 0.0,
        same: float = 0.0,
        name: str = "masked",
    ) -> None:
        super().__init__()
        trunk, embed = encoder.trunk, encoder.embed
        if not 0 < ratio < 1 or min(swap, same) < 0 or swap + same > 1 or (depth is not None and depth < 1):
            raise UserError(
                f"{name} wants 0 < ratio < 1, swap and same of at least 0 and together at most 1, depth >= 1; got "
                f"{ratio=}, {swap=}, {same=}, {depth=}"
            )
        self.ratio, self.swap, self.same, self.ragged, self.fine = ratio, swap, same, embed.ragged, tuple(embed.grid)
        self.visible_only = "keep" in trunk.can and not embed.ragged and not swap and not same
        if depth is not None and not self.visible_only:
            raise UserError(
                f"{name}(depth={depth}) is of the decoder that fills in hidden tokens where the trunk runs on the "
                "visible ones alone, which it does not here: leave it out"
            )
        # What is hidden is one cell of the coarsest grid on which there is more than one.
        self.grid = tuple(trunk.grid_out if math.prod(trunk.grid_out) > 1 else embed.grid)
        if not embed.ragged and math.prod(self.grid) < 2:
            raise UserError(f"{name} needs rows of at least two tokens: one is hidden and predicted from the others")
        self.width = max(32, trunk.dim_out // 2) if self.visible_only else trunk.dim_out
        if self.visible_only:
            options = {"width": self.width, "depth": depth or 1, "patch": 1}
            self.decoder = build("trunk", {"name": "transformer", "args": options}, dim=self.width, grid=self.grid)
            self.enter = nn.Linear(trunk.dim_out, self.width)
        self.blank: Any = None
        if self.visible_only or embed.blank() is None:
            self.blank = nn.Parameter(0.02 * torch.randn(self.width if self.visible_only else embed.dim))

    def corrupt(self, batch: Batch, rng: Generator) -> Corrupted:
        """The batch, which of its tokens are hidden (`hide`, b × t on `grid`), and what else was drawn."""
        first, mask = next(iter(batch.values())), batch["mask"] if self.ragged else None
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
            fine = (len(first), math.prod(self.fine)) if mask is None else shape
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

    def hidden(self, corrupted: Corrupted) -> Tensor:
        """Which tokens are hidden, on the input's grid: (b, t)."""
        hide: Tensor = corrupted["hide"]
        return hide if self.ragged else spread(hide, self.grid, self.fine)

    def forward(self, encoder: Encoder, corrupted: Corrupted) -> tuple[Features, Tensor]:
        """Features of what is visible, and a vector (b, t, width) for every token, on the trunk's output grid."""
        return self._from_visible(encoder, corrupted) if self.visible_only else self._in_place(encoder, corrupted)

    def _from_visible(self, encoder: Encoder, corrupted: Corrupted) -> tuple[Features, Tensor]:
        keep = corrupted["keep"]
        seen = encoder(corrupted["batch"], keep=keep)
        inside = self.enter(seen.tokens)
        x = self.blank.to(inside.dtype).expand(len(keep), math.prod(self.grid), -1)
        x = x.scatter(1, keep.unsqueeze(2).expand_as(inside), inside)
        return seen, self.decoder(Tokens(x, None, self.grid)).x

    def _in_place(self, encoder: Encoder, corrupted: Corrupted) -> tuple[Features, Tensor]:
        tokens, hide = encoder.embed(corrupted["batch"]), self.hidden(corrupted)
        x, blank = tokens.x, encoder.embed.blank() if self.blank is None else self.blank
        assert blank is not None
        if "fate" in corrupted:
            fate = corrupted["fate"]
            swapped = hide & (fate < self.swap)
            x = torch.where(swapped.unsqueeze(2), tokens.x.flatten(0, 1)[corrupted["donor"]], x)
            hide = hide & (fate >= self.swap + self.same)
        seen = encoder.run(tokens._replace(x=torch.where(hide.unsqueeze(2), blank, x)))
        return seen, seen.tokens
