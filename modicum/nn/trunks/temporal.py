"""`temporal`: dilated residual convolutions along a sequence (temporal convolutional network, Bai et al. 2018)."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modicum.core.errors import UserError
from modicum.core.types import Layers, Tokens, Trunk
from modicum.nn.layers import activation

PARTS = 8
"""Parts of the time, a power of 2, that are pooled by themselves, and their unions by twos."""


class Block(nn.Module):
    """Norm, activation, a dilated convolution, and the same again without dilation; residual. Tokens (b, t, width)."""

    def __init__(self, width: int, kernel: int, dilation: int, causal: bool, act: str, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv1d(width, width, kernel, dilation=d) for d in (dilation, 1))
        self.act, self.dropout, self.causal = activation(act), nn.Dropout(dropout), causal

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        out = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            out = self._convolved(self.act(norm(out)), conv, mask)
        return x + self.dropout(out)

    def _convolved(self, x: Tensor, conv: nn.Module, mask: Tensor | None) -> Tensor:
        """Every token from those around it, or before it; what is padded counts as what is outside: zero."""
        assert isinstance(conv, nn.Conv1d)
        reach = (conv.kernel_size[0] - 1) * conv.dilation[0]
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(2), 0)
        before = reach if self.causal else reach // 2
        return conv(F.pad(x.transpose(1, 2), (before, reach - before))).transpose(1, 2)


class Grow(nn.Module):
    """Code (b, code) -> tokens (b, t, dim): a linear map to t tokens, blocks, a linear map of each."""

    def __init__(self, code: int, tokens: int, width: int, dim: int, blocks: list[Block]) -> None:
        super().__init__()
        self.start, self.tokens = nn.Linear(code, tokens * width), tokens
        self.block, self.out = nn.ModuleList(blocks), nn.Linear(width, dim)

    def forward(self, code: Tensor) -> Tensor:
        x = self.start(code).view(len(code), self.tokens, -1)
        for block in self.block:
            x = block(x, None)
        return self.out(x)


def pyramid(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean, maximum and share above 0 of tokens (b, t, d) over eighths of the real ones, ..., all: (b, 45·d).

    Eighths overlap by a token where they would divide one, so that none is empty.
    """
    b, t, _ = x.shape
    mask = x.new_ones((b, t), dtype=torch.bool) if mask is None else mask
    size, order = mask.sum(1), (~mask).byte().argsort(dim=1, stable=True)
    part = torch.arange(PARTS, device=x.device)
    low, high = part * size.unsqueeze(1) // PARTS, ((part + 1) * size.unsqueeze(1) + PARTS - 1) // PARTS
    place = low.unsqueeze(2) + torch.arange(-(-t // PARTS) + 1, device=x.device)
    real = (place < high.unsqueeze(2)).unsqueeze(3)
    at = order.gather(1, place.clamp(max=t - 1).flatten(1)) + t * torch.arange(b, device=x.device).unsqueeze(1)
    own = x.flatten(0, 1).index_select(0, at.flatten()).view(*place.shape, -1)
    count = real.sum(2).clamp(min=1)
    mean, most = (own * real).sum(2) / count, own.masked_fill(~real, -torch.inf).amax(2)
    most = most.masked_fill(most == -torch.inf, 0)
    # The share above 0 has no gradient; a steep sigmoid has, and is near it.
    share = (torch.sigmoid(8 * own) * real).sum(2) / count
    out = []
    while True:
        out += [mean.flatten(1), most.flatten(1), share.flatten(1)]
        if mean.shape[1] == 1:
            return torch.cat(out, 1)
        mean, most, share = (y.unflatten(1, (-1, 2)) for y in (mean, most, share))
        mean, most, share = mean.mean(2), most.amax(2), share.mean(2)


@final
class Temporal(Trunk):
    """`depth` residual blocks of two convolutions over `kernel` tokens, the first of each dilated by 1, 2, 4, ...

    The pooled features are the mean, the maximum and the share of positive values (Dempster et al. 2020) of every unit
    of every block, over the real tokens, each half, quarter and eighth of them, side by side (a pyramid: He et al.
    2014): what a linear model reads of short and long patterns, and of when they come. With `causal` no token sees a
    later one.
    """

    def __init__(
        self,
        dim: int,
        grid: tuple[int, ...],
        width: int = 64,
        depth: int = 3,
        kernel: int = 3,
        causal: bool = False,
        act: str = "gelu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(grid) != 1:
            raise UserError(f"temporal wants tokens in a line, such as time steps; this data has grid {tuple(grid)}")
        if min(width, depth, kernel) < 1 or not 0 <= dropout < 1:
            raise UserError(
                "temporal wants width, depth and kernel of at least 1 and 0 <= dropout < 1; got "
                f"{width=}, {depth=}, {kernel=}, {dropout=}"
            )
        self.dim, self.grid, self.width, self.depth, self.kernel = dim, tuple(grid), width, depth, kernel
        self.causal, self.act, self.dropout = causal, act, dropout
        self.can = frozenset({"padding", "any_length"} | ({"causal"} if causal else set()))
        self.stem = nn.Linear(dim, width)
        self.block = nn.ModuleList(self._blocks())
        self.norm = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.dim_out, self.grid_out = width, self.grid

    def _blocks(self) -> list[Block]:
        own = (self.kernel, self.causal, self.act, self.dropout)
        return [Block(self.width, own[0], 2**k, *own[1:]) for k in range(self.depth)]

    @property
    def dim_pooled(self) -> int:
        return 3 * (2 * PARTS - 1) * self.width * self.depth

    def forward(self, tokens: Tokens, causal: bool = False) -> Tokens:
        del causal  # a trunk that is causal always is
        x, seen = self.stem(tokens.x), []
        for block, norm in zip(self.block, self.norm, strict=True):
            x = block(x, tokens.mask)
            seen.append(norm(x))
        return tokens._replace(x=seen[-1], pooled=pyramid(torch.cat(seen, 2), tokens.mask))

    def layers(self) -> Layers:
        both = zip(self.block, self.norm, strict=True)
        return {"stem": [self.stem], **{f"block{k + 1}": [block, norm] for k, (block, norm) in enumerate(both)}}

    def decoder(self, code: int) -> nn.Module:
        return Grow(code, self.grid[0], self.width, self.dim, self._blocks())
