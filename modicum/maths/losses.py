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
    logits = flat @ flat.T / temperature
    sample = torch.arange(b, device=z.device).repeat(n)
    same = sample[:, None] == sample[None, :]
    positive = logits[same].view(n * b, n)
    others = logits.masked_fill(same, -torch.inf).logsumexp(1, keepdim=True)
    itself = torch.eye(n, dtype=torch.bool, device=z.device).repeat_interleave(b, 0)
    return (torch.logaddexp(others, positive) - positive)[~itself].mean()


def spread(z: Tensor) -> dict[str, Tensor]:
    """Two measures of collapse of features (b, d): `rank`, the participation ratio (tr C)²/|C|² of their covariance,
    between 1 and d (a smooth effective rank), and `spread`, the mean standard deviation over the root mean square.
    """
    z = z.detach().float()
    c = z - z.mean(0)
    gram = c.T @ c if c.shape[1] <= c.shape[0] else c @ c.T
    rank = gram.diagonal().sum() ** 2 / gram.square().sum().clamp(min=1e-30)
    return {"rank": rank, "spread": c.std(0).mean() / z.square().mean().sqrt().clamp(min=1e-12)}
