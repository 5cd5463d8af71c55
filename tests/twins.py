"""Reference networks of timm, and what compares with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from modicum.core import seeds
from modicum.core.types import Tokens
from modicum.nn.foreign import library


def timm_model(name: str, **options: Any) -> nn.Module:
    """A network of timm with random weights and no classifier."""
    with seeds.forked(0, "init"):
        made: nn.Module = library("timm").create_model(name, pretrained=False, num_classes=0, **options)
    return made


def shaken(module: nn.Module) -> nn.Module:
    """The module with random scales, shifts and statistics in its norms, so that none is at zero or one."""
    rng = seeds.generator(0, "shaken")
    spans = {"weight": (0.5, 1.0), "bias": (-0.2, 0.2), "running_mean": (-0.2, 0.2), "running_var": (0.5, 1.5)}
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d | nn.LayerNorm):
            for name, tensor in part.state_dict().items():
                if name in spans:
                    tensor.uniform_(*spans[name], generator=rng)
    return module


def images(b: int, side: int, channels: int = 3) -> tuple[Tensor, Tokens]:
    """The same random images as (b, c, h, w) and as tokens."""
    x = torch.randn((b, channels, side, side), generator=seeds.generator(0, "images"))
    return x, Tokens(x.permute(0, 2, 3, 1).reshape(b, side * side, channels), None, (side, side))


def far(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value of `b`."""
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / b.abs().max())
