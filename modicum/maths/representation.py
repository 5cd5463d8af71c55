"""Measures of features as a whole: how many directions they use, and how views and rows lie on the sphere."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from modicum.maths.losses import widened

BLOCK = 1024


def rank_me(z: Tensor) -> Tensor:
    """RankMe of features (n, d): exp of the entropy of their singular values' shares (Garrido et al. 2023).

    Between 1 (all along one direction) and min(n, d). Features are not centred, as published.
    """
    values = torch.linalg.svdvals(widened(z))
    share = values / values.sum().clamp(min=1e-30) + 1e-7
    return (-(share * share.log()).sum()).exp()


def alignment(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared distance of two views (n, d) of the same rows on the unit sphere (Wang and Isola 2020)."""
    return (F.normalize(widened(x), dim=1) - F.normalize(widened(y), dim=1)).square().sum(1).mean()


def uniformity(z: Tensor, t: float = 2.0) -> Tensor:
    """log of the mean over pairs of rows of exp(-t·squared distance) on the unit sphere (Wang and Isola 2020).

    0 where all rows of z (n, d) are equal, -2t at most as all are uniform in many dimensions. In blocks of pairs.
    """
    z = F.normalize(widened(z), dim=1)
    n = len(z)
    total = z.new_zeros((), dtype=torch.float64)
    for start in range(0, n, BLOCK):
        near = z[start : start + BLOCK] @ z.T
        total += torch.exp(2 * t * (near.double() - 1)).sum()
    return ((total - n).clamp(min=1e-300) / max(1, n * (n - 1))).log().to(z.dtype)


QUANTILES = {"lowest": 0.0, "tenth": 0.1, "median": 0.5, "highest": 1.0}


def deviations(z: Tensor) -> dict[str, Tensor]:
    """QUANTILES, over the dimensions of features (n, d), of a dimension's standard deviation over rows."""
    deviation = widened(z).std(0, correction=0)
    at = torch.tensor(list(QUANTILES.values()), dtype=deviation.dtype, device=deviation.device)
    return dict(zip(QUANTILES, deviation.quantile(at), strict=True))


def unused(z: Tensor) -> Tensor:
    """The share of the dimensions of features (n, d) whose deviation is below a hundredth of the largest one."""
    deviation = widened(z).std(0, correction=0)
    return (deviation <= 0.01 * deviation.max()).float().mean()
