"""`convnet`: a small strided residual network for images (He et al. 2016), channels-last."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modicum.core.errors import UserError
from modicum.core.types import Layers, Tokens, Trunk
from modicum.nn.decoders import Upsample
from modicum.nn.layers import as_image, as_tokens, norm2d


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut; a 1×1 projection where width or resolution changes."""

    def __init__(self, dim: int, width: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, width, 3, stride, 1, bias=False)
        self.norm1 = norm2d(norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = norm2d(norm, width)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or dim != width:
            self.shortcut = nn.Sequential(nn.Conv2d(dim, width, 1, stride, bias=False), norm2d(norm, width))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(x), inplace=True)


@final
class ConvNet(Trunk):
    """A strided stem and `stages` of `blocks` residual blocks, each stage half as fine and twice as wide.

    The tokens are the last stage's map. The pooled features are a spatial pyramid (Lazebnik et al. 2006): every stage's
    map, averaged down to at most cells×cells, side by side, so that a linear probe sees what is where at every scale;
    with `cells=0` they are the mean of the tokens. `stride` of the stem defaults to 4 (2 below 24 pixels). `norm`:
    batch, or group (exact in Many, no batch statistics). Tokens (b, h·w, c) enter as channels-last without a copy.
    """

    def __init__(
        self,
        dim: int,
        grid: tuple[int, ...],
        width: int = 32,
        stages: int = 3,
        blocks: int = 1,
        kernel: int = 5,
        stride: int | None = None,
        norm: str = "batch",
        cells: int = 4,
    ) -> None:
        super().__init__()
        if len(grid) != 2:
            raise UserError(
                f"convnet wants tokens on a 2-d grid such as pixels; this data has grid {tuple(grid)}: use mlp"
            )
        wrong = kernel % 2 == 0 or cells < 0 or (stride is not None and stride < 1)
        if min(width, stages, blocks, kernel) < 1 or wrong:
            raise UserError(
                "convnet wants width, stages, blocks and stride of at least 1, an odd kernel and cells >= 0; got "
                f"{width=}, {stages=}, {blocks=}, {stride=}, {kernel=}, {cells=}"
            )
        self.dim, self.grid, self.width, self.stages, self.blocks = dim, tuple(grid), width, stages, blocks
        self.kernel, self.stride, self.norm, self.cells = kernel, stride, norm, cells
        self.abreast = 1  # networks side by side in one of as many times the channels: training/abreast.py
        self.can = frozenset({"stack"} | ({"pad_width"} if norm == "batch" else set()))
        first = stride or (4 if min(grid) >= 24 else 2)
        self.stem = nn.Sequential(
            nn.Conv2d(dim, width, kernel, first, kernel // 2, bias=False), norm2d(norm, width), nn.ReLU(inplace=True)
        )
        self.widths = [width * 2**k for k in range(stages)]
        self.sizes = [(math.ceil(grid[0] / (first * 2**k)), math.ceil(grid[1] / (first * 2**k))) for k in range(stages)]
        self.stage = nn.ModuleList()
        for k, wide in enumerate(self.widths):
            for j in range(blocks):
                before = wide if j or not k else wide // 2
                self.stage.append(Block(before, wide, 2 if k and not j else 1, norm))
        self.dim_out, self.grid_out = self.widths[-1], self.sizes[-1]
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def parts(self) -> list[int]:
        """The sizes of the pooled features' parts, in each of which a narrower net's come first."""
        kept = [w * min(self.cells, a) * min(self.cells, b) for w, (a, b) in zip(self.widths, self.sizes, strict=True)]
        return kept if self.cells else [self.dim_out]

    @property
    def dim_pooled(self) -> int:
        return sum(self.parts)

    def forward(self, tokens: Tokens) -> Tokens:
        x = self.stem(as_image(tokens.x, self.grid, self.dim))
        scales = []
        for k, block in enumerate(self.stage, 1):
            x = block(x)
            if self.cells and k % self.blocks == 0:
                scales.append(self._cells(x))
        pooled = torch.cat([s.unflatten(1, (self.abreast, -1)) for s in scales], 2).flatten(1) if scales else None
        return Tokens(as_tokens(x), None, self.grid_out, pooled=pooled)

    def _cells(self, x: Tensor) -> Tensor:
        """A map (b, c, h, w) averaged down to at most cells×cells, flattened."""
        size = (min(self.cells, x.shape[2]), min(self.cells, x.shape[3]))
        return (x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size)).flatten(1)

    def layers(self) -> Layers:
        names = [f"stage{k + 1}.block{j + 1}" for k in range(self.stages) for j in range(self.blocks)]
        return {"stem": [self.stem], **{n: [b] for n, b in zip(names, self.stage, strict=True)}}

    def decoder(self, code: int) -> nn.Module:
        grid = (self.grid[0], self.grid[1])
        return Upsample(code, self.widths[::-1], [*self.sizes[::-1], grid], self.dim, self.norm)
