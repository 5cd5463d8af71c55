"""Sums over all pairs of rows of two matrices without the matrix of pairs, forward and backward.

Products of rows are made block by block in one buffer, and made again in backward (Gao et al. 2021; Cheng et al. 2024
for contrastive losses): memory is O(rows · d), not O(rows²). Gradients come from the log-sum-exps of rows and columns,
and what belongs to a positive pair is dropped or added INSIDE its block: subtracting two nearly equal sums afterwards
would lose the gradient to cancellation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modicum.maths.blocks import LOW, Blocked, Blocks, Final, fit
from modicum.maths.kernels import log_sums as fused


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
    """log sum_j exp(s_ij) for every row i of x and, with `both`, log sum_i exp(s_ij) for every row j of y.

    s = scale · x yᵀ for x (n, d) and y (m, d), in float32 or float64; y None means x itself, at half the work. `groups`
    are sorted long numbers of the rows of x and of y: pairs of one group are left out, or with `rivals` (and y None)
    only those of a row with itself. With `pull` the third result is sum_j s_ij over the pairs of i's group, a row with
    itself not counted: summed here, these share the rounding of the others, and their gradients a block. Returns (n,),
    (m,) and (n,) in float64, as gradients are small differences of them; what was not asked for is empty. -inf where
    nothing is summed. Differentiable once in x, y and scale.
    """
    with torch.autocast(x.device.type, enabled=False):
        if fused.usable(x, y):
            return fused.log_sums(x, y, scale, groups, both=both, pull=pull, rivals=rivals)
        blocks = Blocks(x, y, groups, rivals).within(scale)
        rows, columns, pulled = _LogSums.apply(x, y, scale, blocks, both, pull)
    return rows, columns, pulled


def softplus_sum(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The sum of log(1 + exp(scale · x_i·y_j + bias)) over all i != j, for x and y (n, d); differentiable once."""
    with torch.autocast(x.device.type, enabled=False):
        total: Tensor = _SoftplusSum.apply(x, y, scale, bias, Blocks(x, y))
    return total


class _LogSums(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, y: Tensor | None, scale: Tensor, blocks: Blocks, both: bool, pull: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        other = x if y is None else y
        results = _shifted(blocks, x, other, scale, both, pull)
        if not blocks.safe:
            least = blocks.shift + LOW
            blocks.exact = not all(bool((sums >= least).all()) for sums in results[:2])
        return _exact(blocks, x, other, scale, both, pull) if blocks.exact else results

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, y, scale, ctx.blocks, ctx.both, ctx.pull = inputs
        ctx.save_for_backward(x, y, scale, output[0], output[1])

    @staticmethod
    def backward(ctx: Any, g_rows: Tensor, g_columns: Tensor, g_pulled: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale, rows, columns = ctx.saved_tensors
        over_rows = (rows, g_rows)
        over_columns = over_rows if y is None else (columns, g_columns) if ctx.both else None
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            other, pull = x if y is None else y, g_pulled if ctx.pull else None
            weights = _weights(ctx.blocks, x, other, scale, over_rows, over_columns, pull)
            dx, dy, d_scale = _gradients(ctx.blocks, weights, x, y, scale, ctx.needs_input_grad[1])
        of = (x, scale, g_rows, g_columns, g_pulled, *(() if y is None else (y,)))
        return *Final.all((dx, dy, d_scale), of), None, None, None


def _shifted(
    blocks: Blocks, x: Tensor, y: Tensor, scale: Tensor, both: bool, pull: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The three results with one exponential a pair, of s minus one number for all."""
    rows, pulled = x.new_zeros(len(x)), x.new_zeros(len(x) if pull else 0)
    columns = rows if blocks.symmetric else y.new_zeros(len(y) if both else 0)
    for i, j, s in blocks.products(x, y, scale):
        drop, which = blocks.masks(i, j)
        if pull and which is not None:
            _pull(blocks, pulled, i, j, s, which)
        if blocks.shift:
            s.sub_(blocks.shift)
        s.exp_()
        if drop is not None:
            s.masked_fill_(drop, 0)
        rows[i] += s.sum(1)
        if len(columns) and blocks.counts_columns(i, j):
            columns[j] += s.sum(0)
    if blocks.symmetric:
        columns = rows.new_empty(0)
    return rows.double().log() + blocks.shift, columns.double().log() + blocks.shift, pulled.double()


def _exact(
    blocks: Blocks, x: Tensor, y: Tensor, scale: Tensor, both: bool, pull: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The three results whatever the range of s, by the maximum of each row and column of a block."""
    rows, pulled = x.new_full((len(x),), -torch.inf).double(), x.new_zeros(len(x) if pull else 0)
    columns = rows if blocks.symmetric else y.new_full((len(y) if both else 0,), -torch.inf).double()
    for i, j, s in blocks.products(x, y, scale):
        drop, which = blocks.masks(i, j)
        if pull and which is not None:
            _pull(blocks, pulled, i, j, s, which)
        if drop is not None:
            s.masked_fill_(drop, -torch.inf)
        rows[i] = torch.logaddexp(rows[i], s.logsumexp(1))
        if len(columns) and blocks.counts_columns(i, j):
            columns[j] = torch.logaddexp(columns[j], s.logsumexp(0))
    return rows, rows.new_empty(0) if blocks.symmetric else columns, pulled.double()


def _pull(blocks: Blocks, pulled: Tensor, i: slice, j: slice, s: Tensor, which: Tensor) -> None:
    """Add the sums over those pairs of a block."""
    positive = s.masked_fill(~which, 0)
    pulled[i] += positive.sum(1)
    if blocks.symmetric and i != j:
        pulled[j] += positive.sum(0)


def _weights(
    blocks: Blocks,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    rows: tuple[Tensor, Tensor],
    columns: tuple[Tensor, Tensor] | None,
    pulled: Tensor | None,
) -> Blocked:
    """Blocks of the gradient to s, and to sᵀ where y is x, from log-sum-exps with their gradients."""
    near, a = _reciprocal(blocks, *rows, x.dtype)
    near_columns, b = _reciprocal(blocks, *(columns or rows), x.dtype)
    pull, room = None if pulled is None else pulled.to(x.dtype), x.new_empty(blocks.room)
    for i, j, s in blocks.products(x, y, scale):
        if blocks.exact:
            right = (s - near_columns[j]).exp_().mul_(b[j]) if columns else 0
            s.sub_(near[i, None]).exp_().mul_(a[i, None]).add_(right)
        else:
            if blocks.shift:
                s.sub_(blocks.shift)
            s.exp_().mul_(torch.add(a[i, None], b[j], out=fit(room, i, j)) if columns else a[i, None])
        # After the product: where nothing was summed it is infinity times zero.
        drop, which = blocks.masks(i, j)
        if drop is not None:
            s.masked_fill_(drop, 0)
        if pull is not None and which is not None:
            s += which * (pull[i, None] + pull[j] if blocks.symmetric else pull[i, None])
        yield i, j, s


def _reciprocal(blocks: Blocks, total: Tensor, gradient: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What is subtracted from s in the exact way, and the gradient over the sum of the exponentials as they are taken.

    In float32 a log-sum-exp of 100 is off by 4e-6, which all the weights of its row would share.
    """
    near = total.to(dtype)
    taken = near.double() if blocks.exact else blocks.shift
    return near, (gradient * (taken - total).exp()).to(dtype)


def _gradients(
    blocks: Blocks, weights: Blocked, x: Tensor, y: Tensor | None, scale: Tensor, to_y: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Gradients to x, y and the scale from blocks of those to s."""
    other, dx = x if y is None else y, torch.zeros_like(x)
    dy = dx if y is None else torch.zeros_like(y) if to_y else None
    for i, j, weight in weights:
        dx[i].addmm_(weight, other[j])
        if dy is not None and blocks.counts_columns(i, j):
            dy[j].addmm_(weight.T, x[i])
    d_scale = torch.stack([(dx[i] * x[i]).sum(1).double().sum() for i in blocks.rows]).sum()
    dx.mul_(scale)
    if y is None:
        return dx, None, d_scale / 2
    return dx, None if dy is None else dy.mul_(scale), d_scale


class _SoftplusSum(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, blocks: Blocks) -> Tensor:
        total = x.new_zeros(len(x))
        for i, j, s in blocks.products(x, y, scale):
            losses = F.softplus(s.add_(bias), threshold=40)  # exact in float64 too
            if i == j:
                losses.fill_diagonal_(0)
            total[i] += losses.sum(1)
        return total.double().sum()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *tensors, ctx.blocks = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale, bias = ctx.saved_tensors
        d_bias = x.new_zeros(len(x))

        def weights() -> Blocked:
            for i, j, s in ctx.blocks.products(x, y, scale):
                s.add_(bias).sigmoid_()
                if i == j:
                    s.fill_diagonal_(0)
                d_bias[i] += s.sum(1)
                yield i, j, s

        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            dx, dy, d_scale = _gradients(ctx.blocks, weights(), x, y, scale, ctx.needs_input_grad[1])
            found = [None if v is None else g * v for v in (dx, dy, d_scale, d_bias.double().sum())]
        return *Final.all(found, (x, y, scale, bias, g)), None
