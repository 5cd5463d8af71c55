"""`next_token`: predict every token from those before it (GPT, Radford et al. 2018)."""

from __future__ import annotations

from typing import final

import torch
from torch import Generator, Tensor, nn

from modicum.core.errors import UserError
from modicum.core.types import Batch, Corrupted, Objective
from modicum.maths.losses import spread
from modicum.nn.encoder import Encoder


@final
class NextToken(Objective):
    """Mean error of each token's prediction from the tokens before it, by a trunk that is `causal`.

    The first is predicted from a learned start, unless every row begins with the same token (<bos>). `tie` gives the
    output the weights of the input's embedding, where the modality can (GPT-2 does).
    """

    def __init__(self, encoder: Encoder, tie: bool = True) -> None:
        super().__init__()
        encoder.require("causal")
        trunk, embed = encoder.trunk, encoder.embed
        if tuple(trunk.grid_out) != tuple(embed.grid):
            raise UserError(
                f"next_token predicts every token on the grid {tuple(embed.grid)}; the trunk gives "
                f"{tuple(trunk.grid_out)}: use one that keeps the tokens apart (patch=1)"
            )
        self.encoder, self.tie = encoder, tie
        self.unembed = encoder.input.unembed()
        dim = self.unembed.dim
        self.out = nn.Identity() if trunk.dim_out == dim else nn.Linear(trunk.dim_out, dim)
        if tie:
            self.unembed.tie(embed)
        self.start = None if embed.begins else nn.Parameter(0.02 * torch.randn(embed.dim))

    def corrupt(self, batch: Batch, rng: Generator) -> Corrupted:
        del rng  # nothing is random
        return batch

    def forward(self, corrupted: Corrupted) -> tuple[Tensor, dict[str, Tensor]]:
        batch = dict(corrupted)
        tokens = self.encoder.embed(batch)
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

    def encoders(self) -> dict[str, Encoder]:
        return {"encoder": self.encoder}
