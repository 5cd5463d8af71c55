"""Multi-head attention, rotary positions, biases from edges, and the transformer block (Vaswani et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modicum.core.errors import UserError, unknown
from modicum.core.types import Edges
from modicum.nn.graphs import check_edges
from modicum.nn.layers import DropPath, FeedForward, norm1d

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines of the angles of every token, (t, pairs) or (b, 1, t, pairs)."""


class Visible:
    """Which keys each query sees, in the cheapest form that scaled_dot_product_attention takes.

    `mask` (b, keys) is True where a key is real; a row of none sees all, so that nothing is ever NaN. `causal`: query i
    of the last `queries` tokens sees keys up to its own number. `bias` (b, h, queries, keys) is added to the scores.
    """

    def __init__(
        self,
        mask: Tensor | None = None,
        causal: bool = False,
        bias: Tensor | None = None,
        queries: int | None = None,
        keys: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.causal = causal and mask is None and bias is None and queries == keys
        seen = None if mask is None else mask[:, None, None]
        if causal and not self.causal and queries != 1:
            assert queries is not None
            assert keys is not None
            before = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
            seen = before if seen is None else seen & before
        if mask is not None and seen is not None:
            seen = seen | ~seen.any(-1, keepdim=True)
        self.mask = seen
        if bias is not None:
            # Half of the least number: a sum with any score stays finite.
            self.mask = bias if seen is None else bias.masked_fill(~seen, torch.finfo(bias.dtype).min / 2)


ALL = Visible()


class Cache:
    """The keys and values (b, h, t, d) of the tokens so far."""

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None) -> None:
        self.keys, self.values = keys, values

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Those so far with new ones behind them."""
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)
        self.keys, self.values = keys, values
        return keys, values


def angles(grid: tuple[int, ...], pairs: int, device: torch.device | None = None) -> Tensor:
    """The places of a grid's tokens times falling frequencies, an equal share an axis: (t, pairs)."""
    each = pairs // len(grid)
    frequency = 10000.0 ** (-torch.arange(each, dtype=torch.float32, device=device) / each)
    axes = [torch.arange(side, dtype=torch.float32, device=device) for side in grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(-1, len(grid), 1)
    return (places * frequency).flatten(1)


def rotated(x: Tensor, rotary: Rotary) -> Tensor:
    """Each pair (i, i + d/2) of the last axis turned by its token's angle (RoFormer, Su et al. 2021), as in Llama."""
    cos, sin = rotary
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Attention(nn.Module):
    """Multi-head attention (b, t, dim) -> (b, t, dim) of tokens to each other or, with `memory`, to tokens that wide.

    Queries, keys and values are one linear map (keys and values one, with `memory`). `dropout` falls on the weights and
    on the output.
    """

    def __init__(self, dim: int, heads: int, memory: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise UserError(f"attention wants a width that is a multiple of its heads; got width {dim}, {heads} heads")
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim) if memory is None else None
        self.q = None if memory is None else nn.Linear(dim, dim)
        self.kv = None if memory is None else nn.Linear(memory, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.drop = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        visible: Visible = ALL,
        memory: Tensor | None = None,
        rotary: Rotary | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        q, k, v = self._project(x, memory)
        if rotary is not None:
            q, k = rotated(q, rotary), rotated(k, rotary)
        if cache is not None:
            k, v = cache.extend(k, v)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, visible.mask, dropout, visible.causal)
        return self.drop(self.out(y.transpose(1, 2).flatten(2)))

    def _project(self, x: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (b, heads, tokens, dim / heads)."""
        if self.qkv is not None:
            q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
            return q, k, v
        assert self.q is not None
        assert self.kv is not None
        if memory is None:
            raise UserError("attention to a memory wants its tokens (b, t, d); got none")
        k, v = self.kv(memory).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2), k, v


class EdgeBias(nn.Module):
    """Edges of b samples of t tokens -> (b, heads, t, t), added to the score of an edge's second end for its first.

    A learned number a head (as in Graphormer, Ying et al. 2021) and, with `edge_dim`, a linear map of the edge's
    features; parallel edges add up. UserError for edges to tokens that are not there or between samples.
    """

    def __init__(self, heads: int, edge_dim: int = 0) -> None:
        super().__init__()
        self.edge_dim = edge_dim
        self.weight = nn.Parameter(torch.zeros(heads))
        self.features = nn.Parameter(torch.zeros(edge_dim, heads)) if edge_dim else None

    def forward(self, edges: Edges, b: int, t: int) -> Tensor:
        check_edges(edges, b * t)
        first, second = edges.ends
        if (first // max(t, 1) != second // max(t, 1)).any():
            raise UserError(f"an edge goes from one sample to another: each has {t} tokens, counted on from the last")
        value = self.weight.unsqueeze(1).expand(-1, len(first))
        if self.features is not None:
            if edges.x is None or edges.x.shape[1] != self.edge_dim:
                found = 0 if edges.x is None else edges.x.shape[1]
                raise UserError(f"the network was built for edges with {self.edge_dim} features; these have {found}")
            value = value + (edges.x @ self.features).T
        flat = value.new_zeros(len(value), b * t * t).index_add(1, second * t + first % max(t, 1), value)
        return flat.view(-1, b, t, t).transpose(0, 1)


class Block(nn.Module):
    """Attention, attention to a memory of width `memory` where there is one, and a perceptron, all residual.

    `prenorm` normalises what enters each of them, else what leaves the sum. `drop_path`: rate of stochastic depth.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        norm: str = "layer",
        eps: float = 1e-6,
        prenorm: bool = True,
        act: str = "gelu",
        dropout: float = 0.0,
        drop_path: float = 0.0,
        memory: int | None = None,
    ) -> None:
        super().__init__()
        if norm not in ("layer", "rms"):
            raise unknown("transformer norm", norm, ["layer", "rms"])
        self.prenorm = prenorm
        self.norm1, self.attention = norm1d(norm, width, eps), Attention(width, heads, None, dropout)
        self.norm_memory = None if memory is None else norm1d(norm, width, eps)
        self.look_up = None if memory is None else Attention(width, heads, memory, dropout)
        self.norm2, self.mlp = norm1d(norm, width, eps), FeedForward(width, hidden, act, dropout)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Tensor,
        visible: Visible = ALL,
        rotary: Rotary | None = None,
        cache: Cache | None = None,
        memory: Tensor | None = None,
        memory_visible: Visible = ALL,
    ) -> Tensor:
        y = self.attention(self.norm1(x) if self.prenorm else x, visible, rotary=rotary, cache=cache)
        x = self._join(x, y, self.norm1)
        if self.look_up is not None and self.norm_memory is not None:
            y = self.look_up(self.norm_memory(x) if self.prenorm else x, memory_visible, memory)
            x = self._join(x, y, self.norm_memory)
        return self._join(x, self.mlp(self.norm2(x) if self.prenorm else x), self.norm2)

    def _join(self, x: Tensor, y: Tensor, norm: nn.Module) -> Tensor:
        x = x + self.drop_path(y)
        return x if self.prenorm else norm(x)
