"""Triplet losses, and one mined triplet an anchor in O(n) memory: distances are made in blocks and never kept."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from modicum.core.errors import UserError, unknown
from modicum.maths.losses import full, widened

HOW = ("random", "semi-hard", "hard")


def triplet(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float | None = 0.2) -> Tensor:
    """Triplet loss of rows (m, d) that belong together: mean of max(0, |a-p| - |a-n| + margin), 0 of no triplets.

    Margin None is the soft margin, log(1 + exp(|a-p| - |a-n|)). Schroff et al. 2015; Hermans et al. 2017. Distances are
    Euclidean, not squared, and nothing is normalised.
    """
    a, p, n = widened(anchor), widened(positive), widened(negative)
    gap = torch.linalg.vector_norm(a - p, dim=1) - torch.linalg.vector_norm(a - n, dim=1)
    loss = F.softplus(gap) if margin is None else F.relu(gap + margin)
    return loss.sum() / max(1, len(loss))


class Mined(NamedTuple):
    """Row numbers (m,) of triplets, at most one an anchor."""

    anchor: Tensor
    positive: Tensor
    negative: Tensor


@torch.no_grad()
@full
def mine(z: Tensor, labels: Tensor, how: str, u: Tensor) -> Mined:
    """A triplet for each row of z (n, d) by labels (n,), where the labels allow one.

    random: a random positive and negative (O(n)). semi-hard: a random positive, and the nearest of the negatives that
    are farther away than it (Schroff et al. 2015); anchors without one are left out. hard: the farthest positive and
    the nearest negative (batch-hard, Hermans et al. 2017). u (n, 2): numbers drawn from [0, 1).
    """
    if how not in HOW:
        raise unknown("miner", how, HOW)
    if labels.shape != z.shape[:1] or u.shape != (len(z), 2):
        raise UserError(
            f"mining wants one label and two numbers a row; got {tuple(labels.shape)} and {tuple(u.shape)} for "
            f"{tuple(z.shape)}"
        )
    z = widened(z.detach())
    has, positive, negative = _random(labels, u)
    rows = torch.arange(len(z), device=z.device)
    if how == "hard":
        positive, negative = _extremes(z, labels, None)
    elif how == "semi-hard":
        beyond = torch.linalg.vector_norm(z - z[positive], dim=1)
        _, negative = _extremes(z, labels, beyond)
        has = has & (negative >= 0)
    return Mined(rows[has], positive[has], negative[has])


def _random(labels: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which rows have both, and a random positive and negative of each, by its place among the sorted labels."""
    order = labels.argsort(stable=True)
    _, group, count = torch.unique_consecutive(labels[order], return_inverse=True, return_counts=True)
    own, total = count[group], len(labels)
    first = (count.cumsum(0) - count)[group]
    place = torch.arange(total, device=labels.device)
    step = (u[order].double() * torch.stack([own - 1, total - own], 1)).long()  # in float64 u·n stays below n
    positive = first + (place - first + 1 + step[:, 0]) % own
    negative = (first + own + step[:, 1]) % total
    back = order.argsort()
    return ((own > 1) & (own < total))[back], order[positive[back]], order[negative[back]]


def _extremes(z: Tensor, labels: Tensor, beyond: Tensor | None) -> tuple[Tensor, Tensor]:
    """The farthest positive and the nearest negative of each row, of those farther than `beyond`; -1 where none is."""
    side = 512 if z.device.type == "cpu" else 4096
    z = z - z.mean(0)  # distances from products lose what the lengths have in common
    squares = z.square().sum(1)
    far, near = z.new_full((len(z),), -torch.inf), z.new_full((len(z),), torch.inf)
    positive, negative = (torch.full_like(labels, -1, dtype=torch.long) for _ in range(2))
    for i in range(0, len(z), side):
        rows = slice(i, i + side)
        for j in range(0, len(z), side):
            columns = slice(j, j + side)
            apart = torch.addmm(squares[columns], z[rows], z[columns].T, alpha=-2).add_(squares[rows, None])
            same = labels[rows, None] == labels[columns]
            if beyond is None:
                itself = same & (
                    torch.arange(i, i + len(same), device=z.device)[:, None]
                    == torch.arange(j, j + same.shape[1], device=z.device)
                )
                value, at = apart.masked_fill(~same | itself, -torch.inf).max(1)
                positive[rows] = torch.where(value > far[rows], at + j, positive[rows])
                far[rows] = torch.maximum(value, far[rows])
            else:
                same |= apart <= beyond[rows, None].square()
            value, at = apart.masked_fill_(same, torch.inf).min(1)
            negative[rows] = torch.where(value < near[rows], at + j, negative[rows])
            near[rows] = torch.minimum(value, near[rows])
    return positive, negative
