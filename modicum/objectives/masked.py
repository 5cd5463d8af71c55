"""`masked`: hide tokens and predict them from the others (BERT, Devlin et al. 2019; MAE, He et al. 2022)."""

from __future__ import annotations

import math
from typing import final

from torch import Generator, Tensor, nn

from modicum.core.errors import UserError
from modicum.core.types import Batch, Corrupted, Objective
from modicum.maths.losses import spread
from modicum.nn.encoder import Encoder
from modicum.nn.hiding import Hiding
from modicum.nn.patches import outwards


@final
class Masked(Objective):
    """Predict a share `ratio` of each row's tokens, hidden on the trunk's output grid; mean error over them.

    Where the trunk can run on the visible tokens alone (`keep`) and rows are not ragged, it does, and a transformer of
    `depth` blocks (1), half as wide, rebuilds the hidden ones, as in MAE. Elsewhere hidden tokens are replaced: by one
    learned vector (a text's own mask token), but a share `swap` of them by other real tokens of the batch and a share
    `same` not at all (BERT: ratio=.15, swap=.1, same=.1), and every token is predicted from its own place. With
    `normalise` what is predicted of each hidden cell has mean 0 and variance 1 within it, as MAE's patches may; only
    where tokens are values on a grid.
    """

    def __init__(
        self,
        encoder: Encoder,
        ratio: float = 0.5,
        swap: float = 0.0,
        same: float = 0.0,
        depth: int | None = None,
        normalise: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.ratio, self.swap, self.same, self.depth = encoder, ratio, swap, same, depth
        self.normalise = normalise
        self.unembed = encoder.input.unembed()
        self.hiding = Hiding(encoder, ratio, depth, swap, same)
        if normalise and not hasattr(self.unembed, "normalise"):
            raise UserError(f"masked(normalise=True) is for images: {encoder.input.modality} have no values on a grid")
        if normalise:
            self.unembed.normalise(self.hiding.grid)  # type: ignore[operator]
        width = self.hiding.width
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.out = self._out(width)

    def _out(self, width: int) -> nn.Module:
        """From tokens on the trunk's output grid to tokens of the unembed on the input's."""
        trunk, fine = self.encoder.trunk, tuple(self.encoder.embed.grid)
        coarse, dim = tuple(trunk.grid_out), self.unembed.dim
        if (found := outwards(width, coarse, fine, dim)) is not None:
            return found
        code = width * math.prod(coarse)
        last = nn.Identity() if trunk.dim == dim else nn.Linear(trunk.dim, dim)
        return nn.Sequential(nn.Flatten(1), trunk.decoder(code), last)

    def corrupt(self, batch: Batch, rng: Generator) -> Corrupted:
        return self.hiding.corrupt(batch, rng)

    def forward(self, corrupted: Corrupted) -> tuple[Tensor, dict[str, Tensor]]:
        seen, x = self.hiding(self.encoder, corrupted)
        loss = self.unembed.loss(self.out(self.head(x)), corrupted["batch"], self.hiding.hidden(corrupted)).mean()
        return loss, spread(seen.pooled[:128])

    def encoders(self) -> dict[str, Encoder]:
        return {"encoder": self.encoder}
