"""`graph`: message passing along the edges of the tokens, through torch-geometric's convolutions."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn

from modicum.core.errors import UserError, need, unknown
from modicum.core.types import Edges, Layers, Tokens, Trunk
from modicum.nn.graphs import check_edges
from modicum.nn.layers import ACTIVATIONS, activation, norm1d

CONVS = ("gin", "gcn", "gat")
READOUTS = ("wide", "mean", "sum")


class Block(nn.Module):
    """A convolution over the edges, norm, activation, dropout; with `residual` a shortcut around them."""

    def __init__(self, conv: nn.Module, width: int, norm: str, act: str, dropout: float, residual: bool) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm1d(norm, width)
        self.act = activation(act)
        self.dropout = nn.Dropout(dropout)
        self.residual = residual

    def forward(self, x: Tensor, edges: Edges) -> Tensor:
        y = self.conv(x, edges.ends) if edges.x is None else self.conv(x, edges.ends, edges.x)
        y = self.dropout(self.act(self.norm(y)))
        return x + y if self.residual else y


class Nodes(nn.Module):
    """Code (b, code) -> tokens (b, t, dim): a perceptron on the code and each token's learned place."""

    def __init__(self, code: int, width: int, depth: int, tokens: int, dim: int, act: str) -> None:
        super().__init__()
        self.start = nn.Linear(code, width)
        self.place = nn.Parameter(torch.randn(tokens, width))
        hidden = [nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), activation(act)) for _ in range(depth)]
        self.net = nn.Sequential(*hidden, nn.Linear(width, dim))

    def forward(self, code: Tensor) -> Tensor:
        return self.net(self.start(code).unsqueeze(1) + self.place)


def among(real: Tensor, edges: Edges, count: int) -> Edges:
    """The edges of `count` tokens that lie among the tokens `real` (n,), by the numbers 0..n-1 these have there."""
    number = real.new_full((count,), -1).index_copy(0, real, torch.arange(len(real), device=real.device))
    ends = number[edges.ends]
    if not (ends < 0).any():
        return edges._replace(ends=ends)
    kept = (ends >= 0).all(0)
    return Edges(ends[:, kept], None if edges.x is None else edges.x[kept])


def summary(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean, maximum and sum over the root of the number of real tokens (b, t, d), side by side: (b, 3·d).

    Padded tokens are 0; of a row without real ones all is 0.
    """
    real = x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    count, total = real.sum(1, keepdim=True).clamp(min=1), x.sum(1)
    most = x.masked_fill(~real.unsqueeze(2), -torch.inf).amax(1) if x.shape[1] else total
    return torch.cat([total / count, most.masked_fill(most == -torch.inf, 0), total / count.sqrt()], 1)


@final
class Graph(Trunk):
    """A linear layer and `depth` rounds of message passing along `Tokens.edges`, in memory linear in their number.

    conv: "gin" (Xu et al. 2019; with edge features GINE, Hu et al. 2020), "gcn" (Kipf & Welling 2017) or "gat" (GATv2,
    Brody et al. 2022, with `heads` heads). An edge carries a message from its first end to its second; edges at padded
    tokens carry none, and batch norm counts real tokens only. `edge_dim`, from the data (`Embed.edge_dim`), is the
    width of the edges' features, which "gin" and "gat" read; with 0 they read none. jump="cat" gives the tokens of all
    rounds side by side (Xu et al. 2018). readout "wide" pools every round's tokens by their mean, maximum and sum over
    the root of their number, side by side: that sum tells sizes apart and grows less than a sum does; "mean" and "sum"
    pool the output alone.
    UserError where the data has no edges, or edges of tokens that are not there.
    """

    can = frozenset({"edges", "padding", "any_length"})

    def __init__(
        self,
        dim: int,
        grid: tuple[int, ...],
        conv: str = "gin",
        width: int = 64,
        depth: int = 3,
        heads: int = 4,
        norm: str = "layer",
        act: str = "relu",
        dropout: float = 0.0,
        residual: bool = True,
        jump: str = "last",
        readout: str = "wide",
        edge_dim: int = 0,
    ) -> None:
        super().__init__()
        scalar = [a for a in ACTIVATIONS if a != "swiglu"]
        choices = {"conv": (conv, CONVS), "jump": (jump, ("last", "cat")), "readout": (readout, READOUTS)}
        for what, (name, valid) in {**choices, "act": (act, scalar)}.items():
            if name not in valid:
                raise unknown(f"graph {what}", name, valid)
        if min(width, depth, heads) < 1 or not 0 <= dropout < 1 or edge_dim < 0:
            raise UserError(
                "graph wants width, depth and heads of at least 1, 0 <= dropout < 1 and edge_dim >= 0; "
                f"got {width=}, {depth=}, {heads=}, {dropout=}, {edge_dim=}"
            )
        if conv == "gat" and width % heads:
            raise UserError(f"graph(conv='gat') wants a width that is a multiple of heads; got {width=}, {heads=}")
        self.dim, self.grid, self.conv, self.width, self.depth = dim, tuple(grid), conv, width, depth
        self.heads, self.norm, self.act, self.dropout = heads, norm, act, dropout
        self.residual, self.jump, self.readout, self.edge_dim = residual, jump, readout, edge_dim
        self.project = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(
            Block(self._convolution(), width, norm, act, dropout, residual) for _ in range(depth)
        )
        self.dim_out, self.grid_out = width * (depth if jump == "cat" else 1), self.grid

    def _convolution(self) -> nn.Module:
        lib, wide, edge_dim = need("torch_geometric.nn", "graphs"), self.width, self.edge_dim or None
        if self.conv == "gcn":
            return lib.GCNConv(wide, wide, normalize=False)
        if self.conv == "gat":
            return lib.GATv2Conv(wide, wide // self.heads, self.heads, dropout=self.dropout, edge_dim=edge_dim)
        net = nn.Sequential(nn.Linear(wide, wide), activation(self.act), nn.Linear(wide, wide))
        return lib.GINEConv(net, edge_dim=edge_dim) if edge_dim else lib.GINConv(net)

    def forward(self, tokens: Tokens) -> Tokens:
        edges, x = self._edges(tokens), tokens.x.flatten(0, 1)
        real = None if tokens.mask is None else tokens.mask.flatten().nonzero().squeeze(1)
        if real is not None:
            edges, x = among(real, edges, len(x)), x.index_select(0, real)
        if self.conv == "gcn":  # the weights are the same in every round
            norm = need("torch_geometric.nn.conv.gcn_conv", "graphs").gcn_norm
            edges = Edges(*norm(edges.ends, None, len(x), dtype=x.dtype))
        x = self.project(x)
        rounds = []
        for block in self.blocks:
            x = block(x, edges)
            rounds.append(x)
        b, t = tokens.x.shape[:2]
        every = rounds if self.jump == "cat" or self.readout == "wide" else rounds[-1:]
        wide = torch.cat(every, 1)
        if real is not None:
            wide = wide.new_zeros(b * t, wide.shape[1]).index_copy(0, real, wide)
        wide = wide.view(b, t, wide.shape[1])
        pooled = None if self.readout == "mean" else wide.sum(1)
        if self.readout == "wide":
            pooled = summary(wide, tokens.mask)
        return tokens._replace(x=wide[..., -self.dim_out :], pooled=pooled)

    @property
    def dim_pooled(self) -> int:
        return 3 * self.width * self.depth if self.readout == "wide" else self.dim_out

    def _edges(self, tokens: Tokens) -> Edges:
        edges = tokens.edges
        if edges is None:
            raise UserError(
                "graph wants edges between the tokens; this data has none: use mlp(over='set') or transformer"
            )
        check_edges(edges, tokens.x.shape[0] * tokens.x.shape[1])
        if not self.edge_dim or self.conv == "gcn":
            return Edges(edges.ends)
        width = 0 if edges.x is None else edges.x.shape[1]
        if width != self.edge_dim:
            raise UserError(
                f"graph was built for edges with {self.edge_dim} features; these have {width}: "
                f"build it with edge_dim={width}"
            )
        return edges

    def layers(self) -> Layers:
        return {"project": [self.project], **{f"conv{k + 1}": [block] for k, block in enumerate(self.blocks)}}

    def decoder(self, code: int) -> nn.Module:
        return Nodes(code, self.width, self.depth, math.prod(self.grid), self.dim, self.act)
