"""`pair`: two encoders and the products of their features, on which a linear head is the bilinear model xᵀWz."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from modicum.core.errors import UserError
from modicum.core.spec import Make, Spec, build, parse, part
from modicum.core.types import Batch, Features, Input, Layers
from modicum.nn.bilinear import Bilinear
from modicum.nn.encoder import Tower, complete, tower

SIDES = ("left", "right")


def half(batch: Batch, side: str) -> Batch:
    """The entries "SIDE.KEY" of a batch of pairs, as KEY."""
    start = f"{side}."
    return {key.removeprefix(start): value for key, value in batch.items() if key.startswith(start)}


@final
class Pair(Tower):
    """Two encoders, `left` and `right`, of the two halves of a pair, and the products of their features x and z.

    `rank` r: pooled holds (Ux)∘(Vz) (r numbers; MLB, Kim et al. 2017); rank=None: the whole outer product x zᵀ
    (left.dim·right.dim numbers). With `linear`, x and z stand beside it: a head then adds what each side says alone
    (as a rating, or a sum, needs; for match or no match it does no harm).
    """

    def __init__(self, left: Tower, right: Tower, rank: int | None = 32, linear: bool = True) -> None:
        super().__init__()
        if rank is not None and rank < 1:
            raise UserError(f"pair wants a rank of at least 1, or None for the whole outer product; got {rank}")
        self.left, self.right, self.rank, self.linear = left, right, rank, linear
        self.input: Input = part("modality", "pairs")(left.input, right.input)
        self.product = None if rank is None else Bilinear(left.dim, right.dim, rank, rank=1, bias=False)
        # The features of both sides on one scale, whatever their encoders: their product is of the same.
        self.norms = nn.ModuleList(nn.LayerNorm(side.dim, elementwise_affine=False) for side in (left, right))
        complete(self, self.layers())

    @classmethod
    def of(cls, input: Input, spec: Spec | str) -> Pair:
        """The pair whose `left` and `right` are trunks' specs (default: those of their modalities)."""
        if isinstance(spec, str):
            spec = parse(spec, "encoder")
        if input.modality != "pairs":
            raise UserError(
                f"pair takes pairs: a table with columns left.NAME and right.NAME; this data holds {input.modality}"
            )

        def side(name: str) -> Make:
            own: Input = getattr(input, name)
            return Make(lambda given: tower(own, given or own.default_trunk))

        made: Pair = build("encoder", spec, left=side("left"), right=side("right"))
        return made

    @property
    def dim(self) -> int:
        """Width of the pooled features."""
        alone = self.left.dim + self.right.dim if self.linear else 0
        return alone + (self.left.dim * self.right.dim if self.rank is None else self.rank)

    def layers(self) -> Layers:
        """The layers of the left encoder, then the right one's, then the maps U and V."""
        out = {f"{side}.{name}": parts for side in SIDES for name, parts in getattr(self, side).layers().items()}
        return out if self.product is None else {**out, "product": [self.product]}

    def forward(
        self, batch: Batch, *, hide: Tensor | None = None, keep: Tensor | None = None, causal: bool = False
    ) -> Features:
        """Features of a batch of pairs: one token a pair, the pooled features themselves."""
        for name, used in (("hide", hide is not None), ("keep", keep is not None), ("causal", causal)):
            if used:
                raise UserError(f"encoder 'pair' lacks '{name}': its two sides have tokens of their own")
        x, z = (norm(getattr(self, s)(half(batch, s)).pooled) for s, norm in zip(SIDES, self.norms, strict=True))
        if self.product is None:
            both = (x.unsqueeze(2) * z.unsqueeze(1)).flatten(1)
        else:
            both = self.product(x, z)
        pooled = torch.cat([both, x, z], 1) if self.linear else both
        return Features(pooled.unsqueeze(1), pooled, None, (1,))
