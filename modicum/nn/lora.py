"""Low-rank updates of frozen weights, W + (alpha/rank)·B·A (LoRA, Hu et al. 2021), on Linear and Conv2d."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modicum.core.errors import UserError


class LowRank(nn.Module):
    """What an adapted layer has beside its own: `lora_a` (rank, in...), `lora_b` (out, rank, ...) and `scale`.

    The layer stays the same object under the same names, but its weight and bias are buffers: nothing that asks for
    parameters (an optimizer, freezing) can reach them.
    """

    weight: Tensor
    bias: Tensor | None
    base: Tensor | None
    lora_a: nn.Parameter
    lora_b: nn.Parameter
    scale: float

    def delta(self) -> Tensor:
        """What the update adds to the weight, in the weight's shape."""
        return self.scale * (self.lora_b.flatten(1) @ self.lora_a.flatten(1)).view_as(self.weight)


class LowRankLinear(nn.Linear, LowRank):  # type: ignore[misc]
    """x -> x Wᵀ + bias + scale·(x Aᵀ) Bᵀ; A is (rank, in), B is (out, rank)."""

    def forward(self, x: Tensor) -> Tensor:
        out = F.linear(x, self.weight, self.bias)
        return out if self.base is not None else out + self.scale * F.linear(F.linear(x, self.lora_a), self.lora_b)


class LowRankConv2d(nn.Conv2d, LowRank):
    """The convolution by W, and scale times that by A (rank, in, kh, kw) followed by the 1×1 one by B (out, rank)."""

    def forward(self, x: Tensor) -> Tensor:
        out = self._conv_forward(x, self.weight, self.bias)
        if self.base is not None:
            return out
        return out + self.scale * F.conv2d(self._conv_forward(x, self.lora_a, None), self.lora_b)


ADAPTED: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: LowRankLinear, nn.Conv2d: LowRankConv2d}


def lora(
    module: nn.Module,
    rank: int = 8,
    alpha: float | None = None,
    where: Callable[[str, nn.Module], bool] | None = None,
) -> nn.Module:
    """Give the Linear and Conv2d layers of `module` low-rank updates, in place: only these can be trained in them.

    The updates are zero at first, so the output does not change. `alpha` (default `rank`) over `rank` scales them;
    `where(name, layer)` picks layers. Left as they are: grouped convolutions, layers that share a weight with another,
    and subclasses, whose weights others read (as attention reads its output's). Draws from torch's global generator.
    UserError: no layer to adapt, or a rank below 1.
    """
    if rank < 1:
        raise UserError(f"lora wants a rank of at least 1, got {rank}")
    shared = _shared(module)
    chosen = [
        layer
        for name, layer in module.named_modules()
        if type(layer) in ADAPTED and getattr(layer, "groups", 1) == 1 and id(layer.weight) not in shared
        if where is None or where(name, layer)
    ]
    if not chosen:
        raise UserError(f"lora finds no Linear or Conv2d layer to adapt in {type(module).__name__}")
    for layer in chosen:
        _adapt(layer, rank, (rank if alpha is None else alpha) / rank)
    return module


def merge(module: nn.Module) -> nn.Module:
    """Add every update to its weight, so that it costs no time; the weights without it are kept for `unmerge`."""
    for layer in adapted(module):
        if layer.base is None:
            with torch.no_grad():
                layer.base, layer.weight = layer.weight, layer.weight + layer.delta()
    return module


def unmerge(module: nn.Module) -> nn.Module:
    """Undo `merge`: the weights have the bits they had before it."""
    for layer in adapted(module):
        if layer.base is not None:
            layer.weight, layer.base = layer.base, None
    return module


def plain(module: nn.Module) -> nn.Module:
    """Fold every update into its weight for good: layers of their old types, with parameters of the old names."""
    for layer in adapted(merge(module)):
        own: Any = layer
        for name in ("base", "lora_a", "lora_b", "scale"):
            delattr(own, name)
        for name in ("weight", "bias"):
            _move(own, name, nn.Parameter)
        own.__class__ = next(old for old, new in ADAPTED.items() if new is type(own))
    return module


def adapted(module: nn.Module) -> list[LowRank]:
    """The layers of `module` that have low-rank updates."""
    return [layer for layer in module.modules() if isinstance(layer, LowRank)]


def updates(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of all low-rank updates in `module`."""
    return [p for layer in adapted(module) for p in (layer.lora_a, layer.lora_b)]


def _shared(module: nn.Module) -> set[int]:
    """The parameters that more than one module holds."""
    held = [id(p) for one in module.modules() for p in one._parameters.values() if p is not None]
    return {i for i in held if held.count(i) > 1}


def _adapt(layer: Any, rank: int, scale: float) -> None:
    for name in ("weight", "bias"):
        _move(layer, name, torch.Tensor.detach)
    weight = layer.weight
    like = {"dtype": weight.dtype, "device": weight.device}
    layer.lora_a = nn.Parameter(torch.empty(rank, *weight.shape[1:], **like))
    layer.lora_b = nn.Parameter(torch.zeros(len(weight), rank, *[1] * (weight.dim() - 2), **like))
    nn.init.kaiming_uniform_(layer.lora_a, a=math.sqrt(5))  # as torch draws the layers themselves
    if weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        layer.lora_a.data = layer.lora_a.data.contiguous(memory_format=torch.channels_last)
    layer.scale = scale
    layer.register_buffer("base", None, persistent=False)
    layer.__class__ = ADAPTED[type(layer)]


def _move(layer: nn.Module, name: str, to: Callable[[Tensor], Tensor]) -> None:
    """Turn a layer's parameter into a buffer of the same name, or back."""
    value = getattr(layer, name)
    delattr(layer, name)
    if isinstance(value, nn.Parameter):
        layer.register_buffer(name, to(value))
    elif value is not None:
        layer.register_parameter(name, to(value))  # type: ignore[arg-type]
    else:
        layer.register_parameter(name, None)
