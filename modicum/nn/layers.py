"""The layers that torch lacks or names differently, and the names of those it has."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modicum.core.errors import UserError, unknown
from modicum.core.types import Tokens


class SwiGLU(nn.Module):
    """silu(a)·b of the two halves of the last axis (Shazeer 2020): it halves the width."""

    def forward(self, x: Tensor) -> Tensor:
        gate, value = x.chunk(2, -1)
        return F.silu(gate) * value


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": lambda: nn.SiLU(inplace=True),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "swiglu": SwiGLU,
}


def activation(name: str) -> nn.Module:
    """The activation of that name."""
    if name not in ACTIVATIONS:
        raise unknown("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]()


def norm2d(name: str, channels: int) -> nn.Module:
    """Normalisation of (b, c, h, w): batch, or group with 16 channels a group (8 or all where c is smaller)."""
    if name == "batch":
        return nn.BatchNorm2d(channels)
    if name == "group":
        size = next(s for s in (16, 8, channels) if channels % s == 0)
        return nn.GroupNorm(channels // size, channels)
    raise unknown("norm", name, ["batch", "group"])


def norm1d(name: str, width: int, eps: float = 1e-5) -> nn.Module:
    """Normalisation of the last axis: batch (of (b, d) only), layer, rms or none."""
    if name == "batch":
        return nn.BatchNorm1d(width, eps)
    if name == "layer":
        return nn.LayerNorm(width, eps)
    if name == "rms":
        return nn.RMSNorm(width, eps)
    if name == "none":
        return nn.Identity()
    raise unknown("norm", name, ["batch", "layer", "rms", "none"])


def as_image(x: Tensor, grid: tuple[int, ...], dim: int) -> Tensor:
    """Tokens (b, h·w, dim) -> a channels-last image (b, dim, h, w), a view; UserError for those of another grid."""
    if x.shape[1:] != (grid[0] * grid[1], dim):
        raise UserError(
            f"wanted tokens (b, {grid[0] * grid[1]}, {dim}) on grid {tuple(grid)}, as the network was built for; "
            f"got {tuple(x.shape)}"
        )
    return x.reshape(-1, grid[0], grid[1], dim).permute(0, 3, 1, 2)


def as_tokens(x: Tensor) -> Tensor:
    """An image (b, c, h, w) -> tokens (b, h·w, c), a view where it is channels-last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def perceptron(widths: list[int], norm: str = "batch") -> nn.Sequential:
    """Linear, norm, ReLU, ..., Linear through `widths`: projection heads and decoders."""
    parts: list[nn.Module] = []
    for k in range(1, len(widths) - 1):
        parts += [nn.Linear(widths[k - 1], widths[k], bias=norm == "none"), norm1d(norm, widths[k])]
        parts += [nn.ReLU(inplace=True)]
    return nn.Sequential(*parts, nn.Linear(widths[-2], widths[-1]))


class FeedForward(nn.Module):
    """Linear, activation, dropout, Linear, dropout on the last axis; with "swiglu" the first is twice as wide."""

    def __init__(self, dim: int, hidden: int, act: str = "gelu", dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        self.up = nn.Linear(dim, 2 * hidden if act == "swiglu" else hidden, bias)
        self.act = activation(act)
        self.down = nn.Linear(hidden, dim, bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.down(self.dropout(self.act(self.up(x)))))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training a sample's branch is dropped with probability `rate`."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return x
        kept = torch.empty((len(x), *[1] * (x.dim() - 1)), dtype=x.dtype, device=x.device).bernoulli_(1 - self.rate)
        return x * kept.div_(1 - self.rate)


def rising(rate: float, blocks: int) -> list[float]:
    """The stochastic depth of each block: none in the first, rising linearly to `rate` in the last."""
    return [rate * k / max(1, blocks - 1) for k in range(blocks)]


class AttentionPool(nn.Module):
    """Tokens (b, t, d), mask (b, t) -> (b, d): their mean, weighted by the softmax of a learned query's products."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1, bias=False)  # softmax is blind to a bias

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        score = self.score(x)
        if mask is not None:
            score = score.masked_fill(~mask.unsqueeze(-1), torch.finfo(score.dtype).min)
        return (score.softmax(1) * x).sum(1)


def filled(tokens: Tokens, grid: tuple[int, ...]) -> Tokens:
    """Tokens of rows in a line, padded to the length of `grid` where they are fewer."""
    missing = math.prod(grid) - tokens.x.shape[1]
    if len(grid) != 1 or missing <= 0:
        return tokens
    mask = tokens.x.new_ones(tokens.x.shape[:2], dtype=torch.bool) if tokens.mask is None else tokens.mask
    x, mask = F.pad(tokens.x, (0, 0, 0, missing)), F.pad(mask, (0, missing))
    return tokens._replace(x=x, mask=mask, grid=tuple(grid))


def spread(hide: Tensor, coarse: tuple[int, ...], fine: tuple[int, ...]) -> Tensor:
    """A mask (b, t) on a coarse grid brought to a finer one by nearest neighbour: (b, t')."""
    if tuple(coarse) == tuple(fine):
        return hide
    if len(coarse) != len(fine):
        raise UserError(f"a mask on grid {tuple(coarse)} cannot hide tokens on grid {tuple(fine)}")
    out = hide.reshape(-1, *coarse)
    for axis, (c, f) in enumerate(zip(coarse, fine, strict=True)):
        index = torch.arange(f, device=hide.device) * c // f
        out = out.index_select(axis + 1, index)
    return out.reshape(hide.shape[0], -1)
