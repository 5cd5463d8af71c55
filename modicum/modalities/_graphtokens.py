"""What graphs are to a network: tokens of nodes and features of edges, and features of nodes guessed from tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modicum.core.types import Batch, Edges, Embed, Tokens, Unembed
from modicum.modalities._graphpack import HIDDEN
from modicum.nn.graphs import flatten_edges

Numeric = tuple[tuple[str, float, float], ...]
DENSE = 512
"""Values of all categories, up to which features are one-hot for the sum of their embeddings."""
WIDE = 8
"""From so many numbers a node on, what counts is their direction (GraphMAE), below it their values."""


class Schema(Protocol):
    """What the input spec says of the graphs."""

    nodes: int
    width: int
    hops: int
    numeric: Numeric
    edge_numeric: Numeric

    @property
    def sizes(self) -> tuple[int, ...]: ...

    @property
    def edge_sizes(self) -> tuple[int, ...]: ...


def scaling(columns: Numeric) -> tuple[Tensor, Tensor]:
    """Means and standard deviations (p,)."""
    stats = torch.tensor([(mean, std) for _, mean, std in columns], dtype=torch.float32).view(-1, 2)
    return stats[:, 0].clone(), stats[:, 1].clone()


def starts(sizes: Sequence[int]) -> Tensor:
    """Where the values of each feature begin in a table of all: (m,)."""
    return torch.tensor([0, *np.cumsum(sizes)[:-1]][: len(sizes)], dtype=torch.long)


def summed(index: Tensor, table: Tensor) -> Tensor:
    """The sum of rows `index` (n, m) of a table (v, d): (n, d)."""
    if len(table) > DENSE:
        return F.embedding_bag(index, table, mode="sum")
    # A product with ones and zeros: its gradient is another, where that of a bag adds row by row.
    return table.new_zeros(len(index), len(table)).scatter_(1, index, 1) @ table


class Atoms(Embed):
    """Codes (b, t, m) and numbers (b, t, p) of nodes -> a vector (dim) each: the sum of the features' embeddings.

    The sum is that of OGB's atom encoder (Hu et al. 2020), with a vector for what is hidden; numbers pass a linear
    layer, 0 where missing. Edges carry their categories one-hot and their numbers, so that a trunk's linear layer over
    them is OGB's bond encoder.
    """

    ragged = True
    mean: Tensor
    std: Tensor
    offset: Tensor
    edge_mean: Tensor
    edge_std: Tensor
    edge_offset: Tensor

    def __init__(self, graphs: Schema) -> None:
        super().__init__()
        self.dim, self.grid, self.first = graphs.width, (graphs.nodes,), graphs.hops > 0
        sizes, self.kinds = [s + 1 for s in graphs.sizes], sum(graphs.edge_sizes)
        self.edge_dim = self.kinds + len(graphs.edge_numeric)
        for side, columns, count in (("", graphs.numeric, sizes), ("edge_", graphs.edge_numeric, graphs.edge_sizes)):
            mean, std = scaling(columns)
            for name, value in (("mean", mean), ("std", std), ("offset", starts(count))):
                self.register_buffer(f"{side}{name}", value, persistent=False)
        self.values = nn.Parameter(torch.randn(sum(sizes), self.dim) / max(1, len(sizes)) ** 0.5)
        self.numbers = nn.Linear(len(graphs.numeric), self.dim) if graphs.numeric else None

    def forward(self, batch: Batch) -> Tokens:
        codes = batch["codes"]
        b, t = codes.shape[:2]
        mask = batch["mask"] if "mask" in batch else codes.new_ones((b, t), dtype=torch.bool)
        real, index = mask.flatten().nonzero().squeeze(1), codes.flatten(0, 1)
        x = self.values.new_zeros(len(real), self.dim)
        if len(self.offset):
            x = summed(index.index_select(0, real) + (self.offset + 1), self.values)
        if self.numbers is not None:
            numbers = batch["numeric"].flatten(0, 1).index_select(0, real)
            x = x + self.numbers(((numbers - self.mean) / self.std).nan_to_num())
        x = x.new_zeros(b * t, self.dim).index_copy(0, real, x)
        return Tokens(x.view(b, t, self.dim), mask, (t,), self._edges(batch, t))

    def _edges(self, batch: Batch, t: int) -> Edges | None:
        if "edges" not in batch:
            return None
        mask = batch["edge_mask"]
        edges = flatten_edges(batch["edges"], mask, t)
        if not self.edge_dim:
            return edges
        codes, numbers = batch["edge_codes"][mask], (batch["edge_numeric"][mask] - self.edge_mean) / self.edge_std
        hot = numbers.new_zeros(len(codes), self.kinds)
        hot = hot.scatter_(1, codes.clamp(min=0) + self.edge_offset, (codes >= 0).to(hot.dtype))
        return edges._replace(x=torch.cat([hot, numbers.nan_to_num()], 1) if numbers.shape[1] else hot)


class Guess(Unembed):
    """Tokens -> the features of nodes: the mean cross-entropy of the categorical ones, and the error of the numbers.

    Of fewer than 8 numbers that is their mean squared error in standard deviations; else the scaled cosine error
    (1 - cos)² of GraphMAE (Hou et al. 2022). Features that are missing count 0.
    """

    whole = False
    mean: Tensor
    std: Tensor

    def __init__(self, graphs: Schema) -> None:
        super().__init__()
        self.dim, self.sizes, self.count = graphs.width, list(graphs.sizes), len(graphs.numeric)
        mean, std = scaling(graphs.numeric)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.out = nn.Linear(self.dim, sum(self.sizes) + self.count)

    def loss(self, tokens: Tensor, batch: Batch, where: Tensor | None = None) -> Tensor:
        mask = batch["mask"] if where is None else where
        *logits, numbers = self.out(tokens[:, : mask.shape[1]][mask]).split([*self.sizes, self.count], 1)
        codes = batch["codes"][mask]
        error = numbers.new_zeros(len(codes))
        for j, own in enumerate(logits):
            error = error + F.cross_entropy(own, codes[:, j], reduction="none", ignore_index=HIDDEN) / len(logits)
        if self.count:
            true = (batch["numeric"][mask] - self.mean) / self.std
            numbers, true = torch.where(true.isnan(), 0, numbers), true.nan_to_num()
            squared = (numbers - true).square().mean(1)
            error = error + (squared if self.count < WIDE else (1 - F.cosine_similarity(numbers, true)).square())
        return error if where is not None else error.new_zeros(mask.shape).masked_scatter(mask, error)

    def decode(self, tokens: Tensor) -> Batch:
        *logits, numbers = self.out(tokens).split([*self.sizes, self.count], 2)
        codes = [own.argmax(2) for own in logits]
        empty = torch.empty(*tokens.shape[:2], 0, dtype=torch.long, device=tokens.device)
        return {"codes": torch.stack(codes, 2) if codes else empty, "numeric": numbers * self.std + self.mean}
