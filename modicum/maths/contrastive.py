"""Contrastive losses in bounded memory: the matrix of similarities is never whole (see blockwise.py).

All normalise what they are given, compute in float32 (float64 stays), and are differentiable once in the embeddings
and in the scale or temperature, which may be tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modicum.core.errors import UserError
from modicum.maths.blockwise import log_sums, softplus_sum


def nt_xent(z: Tensor, temperature: float | Tensor) -> Tensor:
    """NT-Xent over n views of b samples (Chen et al. 2020), averaged over all ordered positive pairs.

    z (n, b, d). For each anchor and each of its n-1 positives: -log of exp(s_pos/T) / (exp(s_pos/T) + sum over the
    views of OTHER samples), so that positives never compete. With n = 2 this is the published loss.
    """
    n, b, _ = z.shape
    # Sample after sample: the pairs to leave out lie along the diagonal.
    unit, scale = _unit(z.transpose(0, 1)), 1 / _scalar(temperature, z)
    sample = torch.arange(b, device=z.device).repeat_interleave(n)
    others, _, pulled = log_sums(unit.flatten(0, 1), None, scale, (sample, sample), pull=n == 2)
    if n == 2:  # the one positive of each row
        return _loss(pulled, others).mean().to(unit.dtype)
    positive = scale * torch.einsum("bvd,bwd->bvw", unit, unit).double()
    itself = torch.eye(n, dtype=torch.bool, device=z.device)
    return _loss(positive, others.view(b, n, 1))[:, ~itself].mean().to(unit.dtype)


def info_nce(x: Tensor, y: Tensor, scale: float | Tensor, *, both: bool = True) -> Tensor:
    """InfoNCE of pairs (van den Oord et al. 2018): row i of x and of y (b, d) belong together, all other rows not.

    Cross-entropy of softmax(scale · x yᵀ) to the diagonal, from x to y; with `both` the mean of that and from y to x
    (CLIP, Radford et al. 2021). `scale` is 1/temperature.
    """
    _paired(x, y)
    x, y, factor = _unit(x), _unit(y), _scalar(scale, x)
    row = torch.arange(len(x), device=x.device)
    to_y, to_x, positive = log_sums(x, y, factor, (row, row), both=both, pull=True)
    loss = _loss(positive, to_y)
    if both:
        loss = (loss + _loss(positive, to_x)) / 2
    return loss.mean().to(x.dtype)


def info_nce_queue(x: Tensor, y: Tensor, queue: Tensor, scale: float | Tensor) -> Tensor:
    """InfoNCE of pairs x, y (b, d) against the negatives of a queue (k, d) alone (MoCo, He et al. 2020)."""
    _paired(x, y)
    x, y, factor = _unit(x), _unit(y), _scalar(scale, x)
    negative = log_sums(x, _unit(queue), factor, None)[0]
    return _loss(factor * (x * y).sum(1).double(), negative).mean().to(x.dtype)


def supcon(z: Tensor, labels: Tensor, temperature: float | Tensor) -> Tensor:
    """Supervised contrastive loss, the sum over positives outside the logarithm (Khosla et al. 2020, L_out).

    z (n, d), labels (n,) long. The mean over anchors that have another row of their label, 0 if none has.
    """
    if labels.shape != z.shape[:1] or not len(z):
        raise UserError(f"supcon wants rows with one label each; got {tuple(labels.shape)} labels for {tuple(z.shape)}")
    labels, order = labels.sort(stable=True)
    _, group, count = torch.unique_consecutive(labels, return_inverse=True, return_counts=True)
    positives = count[group] - 1
    unit, scale = _unit(z)[order], 1 / _scalar(temperature, z)
    all_others, _, pulled = log_sums(unit, None, scale, (group, group), pull=True, rivals=True)
    has = positives > 0
    loss = torch.where(has, all_others - pulled / positives.clamp(min=1), 0)
    return (loss.sum() / has.sum().clamp(min=1)).to(unit.dtype)


def sigmoid_pairs(x: Tensor, y: Tensor, scale: float | Tensor, bias: float | Tensor) -> Tensor:
    """SigLIP's loss of pairs (Zhai et al. 2023): row i of x and of y (b, d) belong together, all other rows not.

    Binary cross-entropy of sigmoid(scale · x yᵀ + bias) to the identity, summed over all pairs, divided by b.
    """
    _paired(x, y)
    x, y, factor, shift = _unit(x), _unit(y), _scalar(scale, x), _double(bias, x)
    positive = factor * (x * y).sum(1).double() + shift
    loss = (softplus_sum(x, y, factor, shift) - F.logsigmoid(positive).sum()) / len(x)
    return loss.to(x.dtype)


def _unit(z: Tensor) -> Tensor:
    """Rows of length 1, in float32 or float64 whatever autocast is on."""
    unit: Tensor = _Unit.apply(z if z.dtype == torch.float64 else z.float())[0]
    return unit


class _Unit(torch.autograd.Function):
    """torch's normalize in half its memory, which would be most of what these losses need."""

    @staticmethod
    def forward(z: Tensor) -> tuple[Tensor, Tensor]:
        length = torch.linalg.vector_norm(z, dim=-1, keepdim=True).clamp_min_(1e-12)
        return z / length, length

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.save_for_backward(*output)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Tensor) -> Tensor:
        unit, length = ctx.saved_tensors
        along = (g * unit).sum(-1, keepdim=True)
        return torch.addcmul(g, unit, along, value=-1).div_(length)


def _loss(positive: Tensor, others: Tensor) -> Tensor:
    """-log of exp(positive) / (exp(positive) + exp(others)), to full precision however small it is."""
    return -F.logsigmoid(positive - others)


def _scalar(value: float | Tensor, like: Tensor) -> Tensor:
    """In float64: the gradient to it is a small difference of large sums, from positives and from others.

    A plain number must be above 0 and finite; a tensor is not looked at, which would wait for the device.
    """
    if not isinstance(value, Tensor) and not 0 < value < float("inf"):
        raise UserError(f"a temperature or scale must be above 0 and finite; got {value}")
    return _double(value, like)


def _double(value: float | Tensor, like: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64, device=like.device)


def _paired(x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or x.shape != y.shape or not len(x):
        raise UserError(
            f"pairs are rows, at least one, of two matrices of one shape; got {tuple(x.shape)} and {tuple(y.shape)}"
        )
