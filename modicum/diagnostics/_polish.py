"""Has a training converged? The full-batch training loss of a copy, lowered further by L-BFGS with a line search."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional as F

from modicum.objectives.supervised import Supervised
from modicum.training.apply import batches_of, over
from modicum.training.work import Member, Work

EVALUATIONS = (20, 100)
"""Full-batch gradients that a polish takes: as many passes as twice the training, within these bounds."""


def evaluations(member: Member) -> int:
    """Full-batch gradients to polish a member by."""
    return min(max(2 * member.steps * member.batch // len(member.rows), EVALUATIONS[0]), EVALUATIONS[1])


def polished(model: Supervised, work: Work, rows: np.ndarray, targets: np.ndarray, most: int) -> float:
    """The mean loss over `rows` after L-BFGS has gone on from `model`, which is changed; NaN where it strays.

    targets (rows,) codes of classes, or (rows, classes) probabilities, or numbers. Units are those of `Reading.own`:
    mean cross-entropy, or the mean squared error in the targets' units. It is the model as it predicts: dropout is off
    and batch norms keep their statistics. `most`: gradients that are taken.
    """
    target = torch.as_tensor(np.asarray(targets))
    whole = work.classes and target.ndim == 1
    target = target.to(work.device) if whole else target.to(work.device, work.dtype)
    model.eval()
    for p in model.parameters():  # L-BFGS views gradients as vectors, which channels-last ones refuse
        p.data = p.data.contiguous()
    shift, scale = work.scale
    lowest = math.inf
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=most, max_eval=most, tolerance_grad=1e-9, tolerance_change=1e-12,
        history_size=20, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> float:
        nonlocal lowest
        optimizer.zero_grad()
        total, start = 0.0, 0
        for batch in batches_of(work.source, rows, work.device):
            z = model.head(model.encoder(batch).pooled)
            own = target[start : start + len(z)]
            loss = (
                F.cross_entropy(z, own, reduction="sum")
                if work.classes
                else (z[:, 0] - (own - shift) / scale).square().sum()
            ) / len(rows)
            loss.backward()
            total, start = total + loss.item(), start + len(z)
        lowest = float(np.minimum(lowest, total)) if math.isfinite(total) else math.nan  # NaN stays
        return total

    optimizer.step(closure)
    return lowest * (1.0 if work.classes else scale**2)


def predicted(model: Supervised, work: Work, index: np.ndarray) -> np.ndarray:
    """Logits (n, c) of the rows `index`, or numbers (n, 1) in the targets' units."""
    z = over(model, lambda batch: model.head(model.encoder(batch).pooled), work.source, index)
    shift, scale = work.scale
    return z if work.classes else z * scale + shift
