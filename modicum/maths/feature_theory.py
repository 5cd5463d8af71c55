"""What theory says of random features: their kernels, and the expected test loss of ridge regression on them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from modicum.maths.random_features import Kind


def kernel(kind: Kind, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """E φ(x)φ(z) over the features of `Draw`, (n, m): the arc-cosine kernel (Cho & Saul 2009) or the Gaussian one."""
    x, z = np.asarray(x, np.float64), np.asarray(z, np.float64)
    p, inner = x.shape[1], x @ z.T
    squares = (x**2).sum(1)[:, None], (z**2).sum(1)
    if kind == "cosine":
        return np.exp((2 * inner - squares[0] - squares[1]).clip(max=0) / (2 * p))
    lengths = np.sqrt(squares[0] * squares[1])
    angle = np.arccos((inner / np.where(lengths > 0, lengths, 1)).clip(-1, 1))
    return lengths * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi * p)


class Theory(NamedTuple):
    """Expected test loss at a width, and the share `learned` (N,) of every eigenfunction's coefficient."""

    loss: float
    learned: np.ndarray


def theory(eigenvalues: np.ndarray, power: np.ndarray, n: int, width: float, ridge: float, noise: float) -> Theory:
    """The deterministic equivalent of the test loss of ridge regression on `width` random features of a kernel.

    eigenvalues (N,) of the kernel over the population, `power` (N,) the squared coefficients of the target in its
    eigenfunctions, n training rows, `ridge` on |w|² for features as `Draw` makes them, `noise` the variance of the
    training targets around the target function. Simon et al. 2023 ("More is better"), over the draw of rows and
    features; at width inf (ridge: of the kernel) that of kernel regression. The loss is infinite at width = n without
    ridge, and NaN where n or the width reach N.
    """

    def fitted(gamma: float) -> float:
        return float((eigenvalues / (eigenvalues + gamma)).sum())

    def excess(log: float) -> float:  # falls with gamma
        gamma = float(np.exp(log))
        z = fitted(gamma)
        if ridge == 0:
            return z - min(n, width)
        return np.inf if z >= width else z + delta / (gamma * (1 - z / width)) - n

    delta = ridge if width == np.inf else ridge / width
    if ridge == 0 and min(n, width) >= np.count_nonzero(eigenvalues):
        return Theory(float("nan"), np.ones(len(eigenvalues)))
    low, high = -100.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    gamma = float(np.exp(high))
    learned = eigenvalues / (eigenvalues + gamma)
    z, q = float(learned.sum()), float((learned**2).sum())
    if width == np.inf:
        kappa, spread, share = gamma, 1 - q / n, 1.0
    else:
        kappa, share = gamma * max(1 - z / width, 0.0), width / (width - q)
        spread = 1 - (q * (width - 2 * z) + z * z) / (n * (width - q))
    if ridge == 0 and width == n:
        return Theory(float("inf"), learned)
    missed = (gamma / (eigenvalues + gamma) - kappa * eigenvalues / (eigenvalues + gamma) ** 2 * share) * power
    return Theory(float((missed.sum() + noise) / spread), learned)
