"""`mixer`: multilayer perceptrons in turn over tokens and over channels (MLP-Mixer, Tolstikhin et al. 2021)."""

from __future__ import annotations

import math
import re
from typing import final

from torch import Tensor, nn

from modicum.core.errors import UserError, unknown
from modicum.core.types import Layers, Tokens, Trunk
from modicum.nn.keymap import translated
from modicum.nn.layers import DropPath, FeedForward, rising
from modicum.nn.patches import Patches, Unpatch, default_patch

SIZES = {"tiny": (128, 4), "small": (512, 8), "base": (768, 12), "large": (1024, 24)}
"""Width and depth."""


class Block(nn.Module):
    """One perceptron along the tokens of each channel, one along the channels of each token, both residual."""

    def __init__(
        self, tokens: int, width: int, ratio: tuple[float, float], act: str, dropout: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, 1e-6)
        self.tokens = FeedForward(tokens, int(ratio[0] * width), act, dropout)
        self.norm2 = nn.LayerNorm(width, 1e-6)
        self.channels = FeedForward(width, int(ratio[1] * width), act, dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2))
        return x + self.drop_path(self.channels(self.norm2(x)))


class Unmix(nn.Module):
    """Code (b, code) -> tokens (b, t, dim): a linear map to patches, mixer blocks, a linear map out of each patch."""

    def __init__(self, code: int, patches: Patches, blocks: list[Block]) -> None:
        super().__init__()
        self.start = nn.Linear(code, math.prod(patches.grid_out) * patches.width)
        self.block = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(patches.width, 1e-6)
        self.out = Unpatch(patches.width, patches.grid, patches.patch, patches.dim)

    def forward(self, code: Tensor) -> Tensor:
        x = self.start(code).view(len(code), -1, self.out.width)
        for block in self.block:
            x = block(x)
        return self.out(self.norm(x))


@final
class Mixer(Trunk):
    """Patches, then `depth` blocks that mix tokens and channels, then layer norm; it runs on its own grid only.

    `size` sets width and depth: tiny (for a CPU), small, base, large (the published S, B, L); `width` and `depth`
    overrule it. `patch` is the side of a patch in tokens: 1 for a sequence, for an image the smallest that leaves at
    most 64 patches, powers of two first. `ratio`: the hidden widths of token and channel mixing, as parts of `width`.
    Padded tokens are read as zeros; with patch=1 the mask is kept, else a patch is real where any of its tokens is.
    `drop_path` is the stochastic depth of the last block, rising linearly from none at the first.
    """

    def __init__(
        self,
        dim: int,
        grid: tuple[int, ...],
        size: str = "tiny",
        width: int | None = None,
        depth: int | None = None,
        patch: int | None = None,
        ratio: tuple[float, float] = (0.5, 4.0),
        act: str = "gelu",
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise unknown("mixer size", size, SIZES)
        wide, deep = SIZES[size][0] if width is None else width, SIZES[size][1] if depth is None else depth
        if (
            min(wide, deep) < 1
            or min(int(r * wide) for r in ratio) < 1
            or not (0 <= dropout < 1 and 0 <= drop_path < 1)
        ):
            raise UserError(
                "mixer wants width, depth and ratio·width of at least 1, and 0 <= dropout, drop_path < 1; got "
                f"width={wide}, depth={deep}, {ratio=}, {dropout=}, {drop_path=}"
            )
        self.dim, self.grid, self.size, self.width, self.depth = dim, tuple(grid), size, width, depth
        self.patch, self.ratio, self.act, self.dropout, self.drop_path = patch, ratio, act, dropout, drop_path
        self.patches = Patches(dim, self.grid, default_patch(self.grid) if patch is None else patch, wide)
        self.block = nn.ModuleList(self._blocks(wide, deep))
        self.norm = nn.LayerNorm(wide, 1e-6)
        self.dim_out, self.grid_out = wide, self.patches.grid_out
        self.can = frozenset({"stack"} | ({"padding"} if self.patches.patch == 1 else set()))
        _start(self)

    def _blocks(self, width: int, depth: int) -> list[Block]:
        tokens = math.prod(self.patches.grid_out)
        return [
            Block(tokens, width, self.ratio, self.act, self.dropout, rate) for rate in rising(self.drop_path, depth)
        ]

    def forward(self, tokens: Tokens) -> Tokens:
        x, mask = tokens.x, tokens.mask
        x = self.patches(x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0))
        for block in self.block:
            x = block(x)
        return Tokens(self.norm(x), None if mask is None else self.patches.real(mask), self.grid_out)

    def layers(self) -> Layers:
        blocks: Layers = {f"block{k}": [block] for k, block in enumerate(self.block, 1)}
        return {"patches": [self.patches], **blocks, "norm": [self.norm]}

    def decoder(self, code: int) -> nn.Module:
        return _start(Unmix(code, self.patches, self._blocks(self.dim_out, len(self.block))))

    def translate(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A timm mixer's state under this trunk's names, without its classifier `head`.

        UserError where it is no mixer of this width, depth, patch, grid and number of channels.
        """

        def rename(key: str) -> str | None:
            if key.startswith("head."):
                return None
            key = re.sub(r"^blocks\.", "block.", re.sub(r"^stem\.proj\.", "patches.linear.", key))
            key = re.sub(r"\.mlp_(tokens|channels)\.fc1\.", r".\1.up.", key)
            return re.sub(r"\.mlp_(tokens|channels)\.fc2\.", r".\1.down.", key)

        flat = {k: Patches.from_conv(v) if k == "stem.proj.weight" else v for k, v in tensors.items()}
        return translated(self, flat, rename, "timm mixer")


def _start(module: nn.Module) -> nn.Module:
    """Xavier weights and no biases, as the paper's code starts."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
    return module
