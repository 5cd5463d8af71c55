"""Edges: from padded batches to the flattened tokens, checked."""

from __future__ import annotations

import torch
from torch import Tensor

from modicum.core.errors import UserError
from modicum.core.types import Edges


def flatten_edges(edges: Tensor, mask: Tensor, t: int, x: Tensor | None = None) -> Edges:
    """Padded edges (b, e, 2) of samples of t tokens, with mask (b, e), True where real, as `Edges` over b·t tokens.

    An edge (i, j) brings token i's message to token j: an undirected graph gives both (i, j) and (j, i). `x` (b, e, d)
    are features of the edges. UserError where a real edge has an end outside 0..t-1; padded edges may hold anything.
    """
    if edges.dim() != 3 or edges.shape[2] != 2 or edges.dtype.is_floating_point or mask.shape != edges.shape[:2]:
        raise UserError(
            "edges are whole numbers (b, e, 2) with a mask (b, e); "
            f"got {tuple(edges.shape)} of {edges.dtype} with a mask {tuple(mask.shape)}"
        )
    outside = mask & ((edges < 0) | (edges >= t)).any(2)
    if outside.any():
        row, edge = outside.nonzero()[0].tolist()
        i, j = edges[row, edge].tolist()
        raise UserError(f"edge {edge} of row {row} goes from token {i} to token {j}; wanted 0 to {t - 1}: {_count(t)}")
    first = torch.arange(len(edges), device=edges.device).mul(t).view(-1, 1, 1)
    return Edges((edges.long() + first)[mask].T.contiguous(), None if x is None else x[mask])


def check_edges(edges: Edges, count: int) -> None:
    """UserError where `edges` are not (2, E) long numbers of `count` tokens, with features (E, d) or None."""
    ends, x = edges
    if ends.dim() != 2 or len(ends) != 2 or ends.dtype != torch.long:
        raise UserError(f"the ends of edges are (2, E) of torch.int64; got {tuple(ends.shape)} of {ends.dtype}")
    if x is not None and (x.dim() != 2 or len(x) != ends.shape[1]):
        raise UserError(f"{ends.shape[1]} edges want features ({ends.shape[1]}, d); got {tuple(x.shape)}")
    if not ends.numel():
        return
    low, high = ends.aminmax()
    if low < 0 or high >= count:
        edge = int(((ends < 0) | (ends >= count)).any(0).nonzero()[0])
        i, j = ends[:, edge].tolist()
        raise UserError(f"edge {edge} goes from token {i} to token {j}; wanted 0 to {count - 1}: {_count(count)}")


def _count(t: int) -> str:
    return f"there {'is 1 token' if t == 1 else f'are {t} tokens'}"
