"""`next_token`: predict every token from those before it (GPT, Radford et al. 2018)."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Generator, Tensor, nn

from modicum.core.errors import UserError
from modicum.core.types import Batch, Choose, Corrupted, Objective, Tokens, Unembed
from modicum.maths.losses import spread
from modicum.nn.encoder import Encoder
from modicum.nn.patches import outwards


@final
class NextToken(Objective):
    """Mean error of each token's prediction from the tokens before it, by a trunk that is `causal`.

    Where the trunk joins tokens to patches, each patch is predicted from those before it, row after row (AIM, El-Nouby
    et al. 2024). The first is predicted from a learned start, unless every row begins with the same token (<bos>).
    `tie` gives the output the weights of the input's embedding, where the modality can (GPT-2 does).
    """

    def __init__(self, encoder: Encoder, tie: bool = True) -> None:
        super().__init__()
        encoder.require("causal")
        trunk, embed = encoder.trunk, encoder.embed
        coarse, fine = tuple(trunk.grid_out), tuple(embed.grid)
        self.encoder, self.tie, self.patched = encoder, tie, coarse != fine
        self.unembed = encoder.input.unembed()
        out = outwards(trunk.dim_out, coarse, fine, self.unembed.dim)
        if out is None:
            raise UserError(
                f"next_token predicts every token on the grid {fine}; the trunk gives {coarse}: use one that keeps "
                "tokens apart (patch=1), or patches that divide the grid"
            )
        if self.patched and embed.ragged:
            raise UserError(f"next_token on {encoder.input.modality} wants a trunk that keeps tokens apart (patch=1)")
        self.out = out
        if tie:
            self.unembed.tie(embed)
        width = trunk.dim_out if self.patched else embed.dim
        self.start = None if embed.begins else nn.Parameter(0.02 * torch.randn(width))

    def corrupt(self, batch: Batch, rng: Generator) -> Corrupted:
        del rng  # nothing is random
        return batch

    def forward(self, corrupted: Corrupted) -> tuple[Tensor, dict[str, Tensor]]:
        batch = dict(corrupted)
        tokens = self.encoder.embed(batch)
        if self.patched:
            return self._patches(tokens, batch)
        x = tokens.x
        if self.start is not None:
            x = torch.cat([self.start.expand(len(x), 1, -1), x[:, :-1]], 1)
        seen = self.encoder.run(tokens._replace(x=x), causal=True)
        out = self.out(seen.tokens)
        where = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if tokens.mask is None else tokens.mask
        if self.start is None:  # what comes out at a token predicts the next; the first one is always the same
            out = torch.cat([out[:, :1], out[:, :-1]], 1)
            where = where.index_fill(1, torch.zeros(1, dtype=torch.long, device=x.device), False)
        return self.unembed.loss(out, batch, where).mean(), spread(seen.pooled[:128])

    def _patches(self, tokens: Tokens, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """What comes out at a patch predicts the next one; the first is predicted from the start alone."""
        seen, start = self.encoder.run(tokens, causal=True), self.start
        assert start is not None
        x = torch.cat([start.expand(len(seen.tokens), 1, -1), seen.tokens[:, :-1]], 1)
        return self.unembed.loss(self.out(x), batch).mean(), spread(seen.pooled[:128])

    def note(self) -> str:
        if type(self.unembed).draw is not Unembed.draw:
            return ""
        kind = self.encoder.input.modality
        return (
            f"next_token learns features of {kind}, but predicts their values: generate cannot draw any from this run"
        )

    @torch.no_grad()
    def sample(self, n: int, choose: Choose, prompt: Batch | None = None, length: int | None = None) -> Batch:
        """`n` new rows, or one for each row of `prompt`, of at most `length` tokens; in raw units.

        The state of the tokens before is kept (a transformer's keys and values), so that each new one is one step.
        """
        if note := self.note():
            raise UserError(note)
        embed, trunk = self.encoder.embed, self.encoder.trunk
        batch, state, device = prompt, None, next(self.parameters()).device
        most = length or math.prod(embed.grid)
        x = torch.empty(n, 0, embed.dim, device=device) if batch is None else embed(batch).x
        at = x.shape[1]
        if at >= most:
            raise UserError(f"the start has {at} tokens already, of at most {most}: shorten the prompt or raise length")
        if self.start is not None:
            x = torch.cat([self.start.expand(len(x), 1, -1), x], 1)
        while at < most:
            seen, state = trunk.step(Tokens(x, None, (x.shape[1],)), state)
            batch = self.unembed.draw(self.out(seen.x[:, -1:]), at, batch, choose)
            if embed.ragged and not batch["mask"][:, -1].any():
                break
            x = embed(batch).x[:, at : at + 1]
            at += 1
        if batch is None:
            raise UserError(f"nothing to generate in {most} tokens")
        return batch

    def encoders(self) -> dict[str, Encoder]:
        return {"encoder": self.encoder}
