"""log_sums of blockwise.py on a GPU, by the Triton programs of tiles.py, where these can be run.

Tiles are made in forward and again in backward, and never leave the chip: memory is O(rows · d). Every row keeps its
own maximum, so that no range of s needs another way. Columns are the rows of the transposed product, in a second pass
instead of sums by several programs at once, the order of which would not be the same in every run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from modicum.core.errors import need
from modicum.maths.blocks import Final

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDEST = 256
"""A program holds the gradient to its rows: for longer ones every tile would be made more than once."""


def usable(x: Tensor, y: Tensor | None) -> bool:
    """Whether the kernels can be run for these rows: on CUDA, short, of at most 32 bits, and with Triton at work."""
    other = x if y is None else y
    alike = (x.device, x.dtype, x.shape[1]) == (other.device, other.dtype, other.shape[1])
    fits = 0 < x.shape[1] <= WIDEST and len(x) > 0 and len(other) > 0
    return x.is_cuda and x.dtype in DTYPES and alike and fits and works()


@cache
def works() -> bool:
    """Whether Triton is installed and finds CUDA, and the C compiler that it needs on its first use."""
    if find_spec("triton") is None:
        return False
    try:
        target = need("triton", "test-reference").runtime.driver.active.get_current_target()
    except Exception:  # it has no one error for what is missing, and the blocks need nothing of it
        return False
    return bool(target.backend == "cuda")


def log_sums(
    x: Tensor,
    y: Tensor | None,
    scale: Tensor,
    groups: tuple[Tensor, Tensor] | None,
    *,
    both: bool = False,
    pull: bool = False,
    rivals: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """As log_sums of blockwise.py; products of float32 are those of float32, not of TF32."""
    if groups is None:  # numbers that are never the same
        groups = (x.new_zeros(len(x), dtype=torch.long), x.new_ones(len(x if y is None else y), dtype=torch.long))
    rows, columns, pulled = _LogSums.apply(x, y, scale, _Pairs(*groups, y is None, rivals, both, pull))
    return rows, columns, pulled


@dataclass(frozen=True)
class _Pairs:
    """Which pairs are summed, and what for."""

    x: Tensor
    y: Tensor
    symmetric: bool
    rivals: bool
    both: bool
    pull: bool


class _LogSums(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, y: Tensor | None, scale: Tensor, pairs: _Pairs) -> tuple[Tensor, Tensor, Tensor]:
        a, b, factor = _operands(x, y, scale)
        rows, pulled = _sums(a, b, factor, pairs.x, pairs.y, pairs)
        none = rows.new_empty(0)
        columns = _sums(b, a, factor, pairs.y, pairs.x, pairs)[0] if pairs.both and not pairs.symmetric else none
        return rows, columns, pulled if pairs.pull else none.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, y, scale, ctx.pairs = inputs
        ctx.save_for_backward(x, y, scale, output[0], output[1])

    @staticmethod
    def backward(ctx: Any, g_rows: Tensor, g_columns: Tensor, g_pulled: Tensor) -> tuple[Tensor | None, ...]:
        from modicum.maths.kernels import launch

        x, y, scale, rows, columns = ctx.saved_tensors
        pairs, dy = ctx.pairs, None
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            a, b, factor = _operands(x, y, scale)
            over_rows = over_columns = _stats(rows, g_rows, g_pulled if pairs.pull else None)
            if y is not None:
                over_columns = _stats(columns, g_columns, None) if pairs.both else _nothing(y)
            values, kind = x if y is None else y, (pairs.symmetric, pairs.rivals)
            dx = launch.gradients(a, b, values, factor, pairs.x, pairs.y, over_rows, over_columns, *kind)
            d_scale = (dx * x).sum(1).double().sum() / (2 if y is None else 1)
            dx = dx.mul_(scale).to(x.dtype)
            if y is not None and ctx.needs_input_grad[1]:
                dy = launch.gradients(b, a, x, factor, pairs.y, pairs.x, over_columns, over_rows, *kind)
                dy = dy.mul_(scale).to(y.dtype)
        of = (x, scale, g_rows, g_columns, g_pulled, *(() if y is None else (y,)))
        return *Final.all((dx, dy, d_scale), of), None


def _operands(x: Tensor, y: Tensor | None, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What is multiplied, and the factor of the products."""
    other = x if y is None else y
    if x.dtype != torch.float32:  # the scale would be rounded with the rows
        return x.contiguous(), other.contiguous(), scale.to(x.device, torch.float32).view(1)
    # Scaled before the product, as in Blocks.
    one = x.new_ones(1)
    if y is None:
        x = (x * scale.sqrt()).contiguous()
        return x, x, one
    return (x * scale).contiguous(), y.contiguous(), one


def _stats(total: Tensor, gradient: Tensor, pull: Tensor | None) -> Tensor:
    """Log-sum-exps as rounded to float32, the gradients to them made up for the rounding, and those to the pulled."""
    near = total.float()
    weight = (gradient * (near.double() - total).exp()).float()
    empty = near == -torch.inf  # its gradient is nowhere, and not a number
    pulled = torch.zeros_like(near) if pull is None else pull.float()
    return torch.stack([near.masked_fill(empty, 0), weight.masked_fill(empty, 0), pulled])


def _nothing(y: Tensor) -> Tensor:
    """The stats of what was not asked for: each exponential is 0."""
    stats = y.new_zeros(3, len(y), dtype=torch.float32)
    stats[0] = torch.inf
    return stats


def _sums(
    a: Tensor, b: Tensor, factor: Tensor, a_groups: Tensor, b_groups: Tensor, pairs: _Pairs
) -> tuple[Tensor, Tensor]:
    """The log-sum-exps of all rows, and the sums over their pulled pairs, in float64."""
    from modicum.maths.kernels import launch

    highest, total, pulled = launch.sums(a, b, factor, a_groups, b_groups, pairs.symmetric, pairs.rivals).double()
    return (highest + total.log()).logsumexp(0), pulled.sum(0)
