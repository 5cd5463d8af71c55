"""Views of graphs: nodes and edges dropped, features hidden, a connected part kept; all samples at once."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from modicum.core.errors import UserError
from modicum.core.types import Batch
from modicum.modalities._graphpack import HIDDEN

FAR = 1 << 20


class Perturb:
    """A connected part of a share `subgraph` of the nodes, less shares of its `nodes`, `edges` and nodes' `features`.

    The drops of GraphCL (You et al. 2020). Never the last node goes, nor node 0 where rows are about it (`first`); both
    directions of an edge go together.
    """

    def __init__(self, subgraph: float, nodes: float, edges: float, features: float, first: bool = False) -> None:
        for name, share in (("nodes", nodes), ("edges", edges), ("features", features)):
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
                raise UserError(f"views: wanted 0 <= {name} < 1, got {share!r}")
        if isinstance(subgraph, bool) or not isinstance(subgraph, int | float) or not 0 < subgraph <= 1:
            raise UserError(f"views: wanted 0 < subgraph <= 1, got {subgraph!r}")
        self.subgraph, self.nodes, self.edges, self.features, self.first = subgraph, nodes, edges, features, first

    def __call__(self, batch: Batch, rng: Generator) -> Batch:
        mask, edges, real = batch["mask"], batch["edges"], batch["edge_mask"]
        if self.subgraph < 1:
            mask = part(mask, edges, real, self.subgraph, rng, self.first)
        if self.nodes:
            mask = self._fewer(mask, rng)
        if self.edges:
            # The sum of two ends' numbers, modulo 1: uniform, independent from edge to edge, the same both ways round.
            own = torch.rand(mask.shape, generator=rng, device=mask.device)
            real = real & (both(own, edges).sum(2) % 1 >= self.edges)
        real = real & both(mask, edges).all(2)
        codes, numeric = batch["codes"], batch["numeric"]
        if self.features:
            hidden = torch.rand(mask.shape, generator=rng, device=mask.device) < self.features
            codes = codes.masked_fill((hidden & mask).unsqueeze(2), HIDDEN)
            numeric = numeric.masked_fill((hidden & mask).unsqueeze(2), torch.nan)
        gone = (~mask).unsqueeze(2)
        out = {"codes": codes.masked_fill(gone, 0), "numeric": numeric.masked_fill(gone, 0)}
        return {**batch, **out, "mask": mask, "edge_mask": real}

    def _fewer(self, mask: Tensor, rng: Generator) -> Tensor:
        score = torch.rand(mask.shape, generator=rng, device=mask.device).masked_fill(~mask, -1)
        spared = torch.zeros_like(mask).scatter(1, score.argmax(1, keepdim=True), True)
        if self.first:
            spared[:, 0] = True
        return mask & ((score >= self.nodes) | spared)


def both(values: Tensor, edges: Tensor) -> Tensor:
    """Values of nodes (b, t) at both ends of edges (b, e, 2)."""
    return values.gather(1, edges.flatten(1)).view(edges.shape)


def part(mask: Tensor, edges: Tensor, real: Tensor, share: float, rng: Generator, first: bool = False) -> Tensor:
    """The ceil(share·n) nodes of each sample that a search from a random one (or node 0) reaches first, in breadth.

    mask (b, t), edges (b, e, 2), real (b, e) -> mask (b, t). Where the search ends, nodes of other components follow.
    """
    score = torch.rand(mask.shape, generator=rng, device=mask.device)
    wanted = (share * mask.sum(1, keepdim=True)).ceil().clamp(min=1)
    start = score.masked_fill(~mask, -1).argmax(1, keepdim=True)
    reached = torch.zeros_like(mask).scatter(1, torch.zeros_like(start) if first else start, True) & mask
    distance = torch.where(reached, 0, FAR)
    for step in range(1, mask.shape[1]):
        if (reached.sum(1, keepdim=True) >= wanted).all():
            break
        heads = reached.gather(1, edges[..., 0]) & real
        more = torch.zeros(mask.shape, dtype=torch.int32, device=mask.device)
        more = more.scatter_add(1, edges[..., 1], heads.int()).bool() & ~reached
        if not more.any():
            break
        distance, reached = distance.masked_fill(more, step), reached | more
    order = (distance + score).masked_fill(~mask, 2 * FAR).argsort(1).argsort(1)
    return mask & (order < wanted)
