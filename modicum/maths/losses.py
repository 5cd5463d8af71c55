"""Losses as pure functions of tensors; every one has a public reference."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def nt_xent(z: Tensor, temperature: float) -> Tensor:
    """NT-Xent over n views of b samples (Chen et al. 2020), averaged over all ordered positive pairs.

    z (n, b, d), not yet normalised. For each anchor and each of its n-1 positives: -log of
    exp(s_pos/T) / (exp(s_pos/T) + sum over the views of OTHER samples), so that positives never compete.
    With n = 2 this is the published loss.
    """
    n, b, _ = z.shape
    flat = F.normalize(z.flatten(0, 1).float(), dim=1)
    logits = (flat / temperature) @ flat.T
    same = logits.view(n, b, n, b).diagonal(dim1=1, dim2=3)  # (n, n, b): view with view, of one sample
    positive = same.clone()
    same.fill_(-torch.inf)
    others = logits.logsumexp(1).view(n, 1, b)
    itself = torch.eye(n, dtype=torch.bool, device=z.device)
    return F.softplus(others - positive)[~itself].mean()


def spread(z: Tensor) -> dict[str, Tensor]:
    """Two measures of collapse of features (b, d): `rank`, the participation ratio (tr C)²/|C|² of their covariance,
    a smooth effective rank, and `spread`, the mean standard deviation over the root mean square.
    """
    z = z.detach().float()
    c = z - z.mean(0)
    deviation = (c.square().sum(0) / max(1, len(c) - 1)).sqrt()  # Tensor.std is ten times slower down a column
    gram = c.T @ c if c.shape[1] <= c.shape[0] else c @ c.T
    rank = gram.diagonal().sum() ** 2 / gram.square().sum().clamp(min=1e-30)
    return {"rank": rank, "spread": deviation.mean() / z.square().mean().sqrt().clamp(min=1e-12)}
