"""`resnet`: residual networks of the usual depths (He et al. 2016), channels-last, equal to timm's."""

from __future__ import annotations

import math
import re
from typing import final

import torch
from torch import Tensor, nn

from modicum.core.errors import UserError, unknown
from modicum.core.types import Layers, Tokens, Trunk
from modicum.nn.decoders import Upsample
from modicum.nn.keymap import translated
from modicum.nn.layers import DropPath, activation, as_image, as_tokens, norm2d, rising

DEPTHS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
STEMS = ("small", "imagenet")
ACTS = {"relu": True, "gelu": True, "gelu_tanh": True, "silu": True, "tanh": True, "sigmoid": False}
"""Activations of single numbers, and whether they leave zero as it is."""


class Block(nn.Module):
    """Convolutions 3×3, 3×3, or 1×1, 3×3, 1×1 to four times the width (`bottleneck`), and a shortcut.

    The last norm starts at zero, so that a block starts as its shortcut (Goyal et al. 2017).
    """

    def __init__(
        self, dim: int, width: int, stride: int, bottleneck: bool, norm: str, act: str, drop_path: float
    ) -> None:
        super().__init__()
        wide = 4 * width if bottleneck else width
        basic = [(3, width, stride), (3, width, 1)]
        parts: list[nn.Module] = []
        before = dim
        for kernel, after, step in [(1, width, 1), (3, width, stride), (1, wide, 1)] if bottleneck else basic:
            parts += [nn.Conv2d(before, after, kernel, step, kernel // 2, bias=False), norm2d(norm, after)]
            parts += [activation(act)]
            before = after
        *body, last, self.act = parts
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        self.body = nn.Sequential(*body, last)
        self.drop_path = DropPath(drop_path)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or dim != wide:
            self.shortcut = nn.Sequential(nn.Conv2d(dim, wide, 1, stride, bias=False), norm2d(norm, wide))

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop_path(self.body(x)).add_(self.shortcut(x)))


@final
class Resnet(Trunk):
    """ResNet-10, -18, -34 or -50: a stem and four stages of residual blocks, each half as fine and twice as wide.

    The tokens are the last stage's map; pooled by their mean they are timm's features. `width` is that of the first
    stage: 64 is the published size, the default suits a CPU. `stem`: "small" keeps every pixel (3×3), "imagenet" gives
    a quarter a side (7×7 at stride 2, then 3×3 max pooling at stride 2), the default from 64 pixels. `norm`: batch, or
    group. `drop_path` is the stochastic depth of the last block, rising linearly from none at the first.
    """

    def __init__(
        self,
        dim: int,
        grid: tuple[int, ...],
        depth: int = 18,
        width: int = 16,
        stem: str | None = None,
        norm: str = "batch",
        act: str = "relu",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        _check(grid, depth, width, stem, act, drop_path)
        self.dim, self.grid, self.depth, self.width, self.stem = dim, tuple(grid), depth, width, stem
        self.norm, self.act, self.drop_path = norm, act, drop_path
        self.can = frozenset({"stack"} | ({"pad_width"} if norm == "batch" and ACTS[act] else set()))
        self._large = (stem or ("imagenet" if min(grid) >= 64 else "small")) == "imagenet"
        kernel, stride = (7, 2) if self._large else (3, 1)
        first: list[nn.Module] = [nn.Conv2d(dim, width, kernel, stride, kernel // 2, bias=False)]
        first += [norm2d(norm, width), activation(act)]
        self.first = nn.Sequential(*first, *([nn.MaxPool2d(3, 2, 1)] if self._large else []))
        self.stage = nn.ModuleList()
        before, rates = width, rising(drop_path, sum(DEPTHS[depth]))
        for k, blocks in enumerate(DEPTHS[depth]):
            for j in range(blocks):
                rate = rates[len(self.stage)]
                self.stage.append(Block(before, width * 2**k, 2 if k and not j else 1, depth == 50, norm, act, rate))
                before = width * 2**k * (4 if depth == 50 else 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.dim_out, self.grid_out = before, self._size(8 * (4 if self._large else 1))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _size(self, stride: int) -> tuple[int, int]:
        return math.ceil(self.grid[0] / stride), math.ceil(self.grid[1] / stride)

    def forward(self, tokens: Tokens) -> Tokens:
        x = self.first(as_image(tokens.x, self.grid, self.dim))
        for block in self.stage:
            x = block(x)
        return Tokens(as_tokens(x), None, self.grid_out)

    def layers(self) -> Layers:
        names = [f"stage{k}.block{j + 1}" for k, blocks in enumerate(DEPTHS[self.depth], 1) for j in range(blocks)]
        return {"stem": [self.first], **{n: [b] for n, b in zip(names, self.stage, strict=True)}}

    def decoder(self, code: int) -> nn.Module:
        strides = [32, 16, 8, 4, 2, 1] if self._large else [8, 4, 2, 1, 1]
        widths = [self.width * k for k in ([8, 4, 2, 1, 1] if self._large else [8, 4, 2, 1])]
        return Upsample(code, widths, [self._size(s) for s in strides], self.dim, self.norm, self.act)

    def translate(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A timm (or torchvision) resnet's state under this trunk's names, without its classifier `fc`.

        UserError where it is no resnet of this depth, width, stem and number of channels.
        """
        first = {1: 0}
        for k, blocks in enumerate(DEPTHS[self.depth], 1):
            first[k + 1] = first[k] + blocks

        def rename(key: str) -> str | None:
            if key.startswith("fc."):
                return None
            key = re.sub(r"^conv1\.", "first.0.", re.sub(r"^bn1\.", "first.1.", key))
            key = re.sub(r"^layer([1-4])\.(\d+)\.", lambda m: f"stage.{first[int(m[1])] + int(m[2])}.", key)
            key = re.sub(r"\.conv([123])\.", lambda m: f".body.{3 * int(m[1]) - 3}.", key)
            key = re.sub(r"\.bn([123])\.", lambda m: f".body.{3 * int(m[1]) - 2}.", key)
            return key.replace(".downsample.", ".shortcut.")

        return translated(self, tensors, rename, f"timm resnet{self.depth}")


def _check(grid: tuple[int, ...], depth: int, width: int, stem: str | None, act: str, drop_path: float) -> None:
    """Refuse what no network can be built from."""
    if len(grid) != 2:
        raise UserError(f"resnet wants tokens on a 2-d grid such as pixels; this data has grid {tuple(grid)}: use mlp")
    if depth not in DEPTHS:
        raise unknown("resnet depth", str(depth), map(str, DEPTHS))
    if stem is not None and stem not in STEMS:
        raise unknown("resnet stem", stem, STEMS)
    if act not in ACTS:
        raise unknown("resnet act", act, ACTS)
    if width < 1 or not 0 <= drop_path < 1:
        raise UserError(f"resnet wants width of at least 1 and 0 <= drop_path < 1; got {width=}, {drop_path=}")
