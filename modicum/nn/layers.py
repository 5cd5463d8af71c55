"""The layers that torch lacks or names differently."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from modicum.core.errors import unknown

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "gelu": nn.GELU,
    "silu": lambda: nn.SiLU(inplace=True),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
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


def norm1d(name: str, width: int) -> nn.Module:
    """Normalisation of (b, d): batch, layer or none."""
    if name == "batch":
        return nn.BatchNorm1d(width)
    if name == "layer":
        return nn.LayerNorm(width)
    if name == "none":
        return nn.Identity()
    raise unknown("norm", name, ["batch", "layer", "none"])


def perceptron(widths: list[int], norm: str = "batch") -> nn.Sequential:
    """Linear, norm, ReLU, ..., Linear through `widths`: projection heads and decoders."""
    parts: list[nn.Module] = []
    for k in range(1, len(widths) - 1):
        parts += [nn.Linear(widths[k - 1], widths[k], bias=norm == "none"), norm1d(norm, widths[k])]
        parts += [nn.ReLU(inplace=True)]
    return nn.Sequential(*parts, nn.Linear(widths[-2], widths[-1]))
