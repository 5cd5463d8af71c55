"""Decoders that several trunks share: a code back to the tokens of an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modicum.nn.layers import activation, as_tokens, norm2d


class Upsample(nn.Module):
    """Code (b, code) -> image tokens (b, h·w, dim), one doubling a stage: nearest neighbour, 3×3 convolution, norm."""

    def __init__(
        self, code: int, widths: list[int], sizes: list[tuple[int, int]], dim: int, norm: str, act: str = "relu"
    ) -> None:
        super().__init__()
        self.sizes = sizes
        self.start = nn.Linear(code, widths[0] * sizes[0][0] * sizes[0][1])
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 1, 1, bias=False), norm2d(norm, b), activation(act))
            for a, b in zip(widths, [*widths[1:], widths[-1]], strict=True)
        )
        self.out = nn.Conv2d(widths[-1], dim, 3, 1, 1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, code: Tensor) -> Tensor:
        h, w = self.sizes[0]
        x = self.start(code).view(len(code), h, w, -1).permute(0, 3, 1, 2)
        for conv, size in zip(self.convs, self.sizes[1:], strict=True):
            x = conv(x if x.shape[2:] == size else F.interpolate(x, size))
        return as_tokens(self.out(x))
