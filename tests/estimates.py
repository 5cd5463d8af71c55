"""What the tests of estimators share: means against their truth, and the decomposition of outputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from modicum.maths.decomposition import Decomposition, Loss, Sums


def away(found: Any, truth: float) -> float:
    """How many standard errors the mean of independent estimates is away from the truth."""
    found = np.asarray(found)
    return float(abs(found.mean() - truth) / (found.std(ddof=1) / len(found) ** 0.5))


def near(found: Any, truth: float, sigmas: float = 4) -> None:
    """The mean of independent estimates is within so many standard errors of the truth."""
    assert away(found, truth) < sigmas, (np.mean(found), truth)


def decomposed(outputs: np.ndarray, targets: np.ndarray, loss: Loss = "squared", seeds: Any = None) -> Decomposition:
    """Of outputs (models, n, c), each on training rows of its own; with `seeds`, (blocks, seeds, n, c)."""
    blocks: Any = range(len(outputs))
    if outputs.ndim == 4:
        blocks = np.repeat(blocks, outputs.shape[1])
        outputs = outputs.reshape(-1, *outputs.shape[2:])
    sums = Sums(0 if outputs.shape[-1] == 1 else outputs.shape[-1], limit=len(outputs))
    sums.add(outputs, blocks, seeds)
    return sums.decompose(targets, loss)
