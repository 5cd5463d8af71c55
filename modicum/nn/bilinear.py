"""The multiplicative layer xᵀWz of two vectors, with full or low-rank W."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modicum.core.errors import UserError


class Bilinear(nn.Module):
    """x (..., dx), z (..., dz) -> (..., out): output k is xᵀ W_k z + bias_k.

    rank=None: `w` is (out, dx, dz), and no (b, dx·dz) products are made. With a rank r, W_k = U_kᵀ V_k of `u`
    (out, r, dx) and `v` (out, r, dz): xᵀ W_k z = Σ_r (U_k x)_r (V_k z)_r (Pirsiavash et al. 2009). rank=1 is the
    elementwise product of two linear maps, (Ux)∘(Vz).
    """

    def __init__(self, left: int, right: int, out: int, rank: int | None = None, bias: bool = True) -> None:
        super().__init__()
        if min(left, right, out, 1 if rank is None else rank) < 1:
            raise UserError(f"bilinear wants widths and rank of at least 1; got {left=}, {right=}, {out=}, {rank=}")
        self.left, self.right, self.out, self.rank = left, right, out, rank
        # Outputs of unit variance for x and z of unit variance.
        if rank is None:
            self.w = nn.Parameter(torch.randn(out, left, right) / (left * right) ** 0.5)
        else:
            self.u = nn.Parameter(torch.randn(out, rank, left) / (left * rank**0.5) ** 0.5)
            self.v = nn.Parameter(torch.randn(out, rank, right) / (right * rank**0.5) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(out)) if bias else None

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        for side, wide, given in (("left", self.left, x), ("right", self.right, z)):
            if given.shape[-1] != wide:
                raise UserError(f"bilinear was made for a {side} of width {wide}; got {tuple(given.shape)}")
        if self.rank is None:
            y = (x @ self.w.movedim(1, 0).flatten(1)).unflatten(-1, (self.out, self.right))
            y = (y @ z.unsqueeze(-1)).squeeze(-1)
        else:
            y = (x @ self.u.flatten(0, 1).T) * (z @ self.v.flatten(0, 1).T)
            y = y if self.rank == 1 else y.unflatten(-1, (self.out, self.rank)).sum(-1)
        return y if self.bias is None else y + self.bias
