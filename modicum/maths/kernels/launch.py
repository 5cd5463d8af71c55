"""Runs the programs of tiles.py as operators of torch: these are given tensors with storage, not those of torch.func.

Only log_sums.py imports this, where Triton is installed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from modicum.maths.kernels import tiles

TILE = {"BM": 64, "BN": 32, "BK": 16}
OPTIONS = {"num_warps": 8, "num_stages": 2, "enable_fp_fusion": True}
PROGRAMS = 256
"""So many keep a GPU busy, also where there are few rows."""


@torch.library.custom_op("modicum::sums", mutates_args=())
def sums(
    a: Tensor, b: Tensor, factor: Tensor, a_groups: Tensor, b_groups: Tensor, symmetric: bool, rivals: bool
) -> Tensor:
    """Maximum, sum of exp(s - maximum) and sum of the pulled for each part of the columns: (3, parts, n)."""
    (n, d), m = a.shape, len(b)
    rows, parts, part = _divided(n, m)
    results = a.new_empty(3, parts, n, dtype=torch.float32)
    given = (a, b, a_groups.contiguous(), b_groups.contiguous(), factor, results)
    with torch.cuda.device_of(a):
        tiles.sums[rows, parts](*given, n, m, d, part, symmetric, rivals, _precision(a), **TILE, **OPTIONS)
    return results


@torch.library.custom_op("modicum::gradients", mutates_args=())
def gradients(
    a: Tensor,
    b: Tensor,
    values: Tensor,
    factor: Tensor,
    a_groups: Tensor,
    b_groups: Tensor,
    a_stats: Tensor,
    b_stats: Tensor,
    symmetric: bool,
    rivals: bool,
) -> Tensor:
    """The gradient to s times the values, in float32."""
    (n, d), m = a.shape, len(b)
    rows, parts, part = _divided(n, m)
    results = a.new_empty(parts, n, d, dtype=torch.float32)
    given = (a, b, values.contiguous(), a_groups.contiguous(), b_groups.contiguous(), a_stats, b_stats, factor, results)
    sizes = {**TILE, "BD": max(16, tiles.triton.next_power_of_2(d))}
    with torch.cuda.device_of(a):
        tiles.gradients[rows, parts](*given, n, m, d, part, symmetric, rivals, _precision(a), **sizes, **OPTIONS)
    return results.sum(0)


def _divided(n: int, m: int) -> tuple[int, int, int]:
    """How many programs share the rows, how many the columns, and how many columns one has."""
    rows, columns = -(-n // TILE["BM"]), -(-m // TILE["BN"])
    share = -(-columns // min(columns, -(-PROGRAMS // rows)))
    return rows, -(-columns // share), share * TILE["BN"]


def _precision(a: Tensor) -> str:
    """Tensor cores hold 16 bits exactly in TF32; of float32 they would drop 13 bits."""
    return "ieee" if a.dtype == torch.float32 else "tf32"
