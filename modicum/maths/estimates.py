"""Loss, noise, bias and variance of every row, from sums over models: row by row, then what holds for all rows."""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp, softmax, xlogy

from modicum.maths.moments import Moments, Stack

FACTORS = ("data", "initialisation", "interaction")
Pieces = dict[str, np.ndarray]
"""What a decomposition is made of by name, each (n,), so that pieces of the rows may be taken one after another."""


def losses(sums: Stack, y: np.ndarray, loss: str) -> np.ndarray:
    """The summed loss (cells, n) of each cell's models."""
    of, counts = sums.of, sums.counts[:, None]
    if loss == "cross-entropy":
        return of["lse"][..., 0] - (of["z"] * y).sum(-1)
    if loss == "zero-one":
        return counts - (of["votes"] * y).sum(-1)
    # The mean of |one-hot - f|^2 over a distribution y of classes, whose one-hots have length 1.
    values, squares, own = ("p", "pp", 1.0) if "p" in of else ("z", "zz", (y**2).sum(-1))
    return of[squares][..., 0] - 2 * (of[values] * y).sum(-1) + counts * own


def pieces(sums: Stack, y: np.ndarray, loss: str) -> Pieces:
    """What is of each row alone, targets y (n, c); without independent pairs that is the loss."""
    total = losses(sums, y, loss).sum(0) / max(sums.counts.sum(), 1)
    name = "p" if loss == "squared" and "p" in sums.of else "z"
    moments = sums.moments(sums.of[name], sums.of[name * 2])
    if moments.free is None:
        return {"loss": total}
    if loss == "squared":
        noise = 1 - (y**2).sum(-1) if name == "p" else np.zeros(len(y))
        own = {"variance": moments.square - moments.free, **_factors(sums, moments)}
    elif loss == "cross-entropy":
        noise = -xlogy(y, y).sum(-1)
        own = _information(sums, moments) | _curved_factors(sums)
    else:
        noise = 1 - y.max(-1)
        votes = sums.mean("votes")
        main = (votes + 1e-9 * sums.mean("p")).argmax(-1)  # a tie goes to the higher mean probability
        variance = y[np.arange(len(y)), main] - (votes * y).sum(-1)
        own = {"variance": variance, "harm": variance.clip(min=0), "help": variance.clip(max=0)}
    return {"loss": total, "noise": noise} | own


def estimate(parts: list[Pieces], loss: str) -> Pieces:
    """All that a decomposition has a mean of, from the pieces of all rows; the loss alone without independent pairs."""
    of = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if "noise" not in of:
        return of
    if loss == "cross-entropy":
        of = _scaled(of)
    bias = of["loss"] - of["noise"] - of["variance"]
    return of | {"bias": bias, "excess": bias + of["variance"], "balance": bias - of["variance"]}


def _information(sums: Stack, moments: Moments) -> Pieces:
    """Bregman information (n,) of the logits: mean logsumexp less that of the mean logits, by a jackknife over blocks.

    "above" is what the jackknife adds. What it takes for the variance of the mean logits ("seen") is to be scaled to
    what it is by independent pairs ("true"): with independent models that factor is 1; initialisations that blocks
    share make it larger.
    """
    z, blocks = sums.of["z"], np.unique(sums.blocks)
    whole, count = z.sum(0), len(blocks)
    mean, models = whole / sums.counts.sum(), sums.counts.sum()
    middle = logsumexp(mean, axis=-1)
    seen, left = np.zeros(len(mean)), np.zeros(len(mean))
    for b in blocks:
        own = sums.blocks == b
        without = (whole - z[own].sum(0)) / (models - sums.counts[own].sum())
        seen += np.square(without - mean).sum(-1)
        left += logsumexp(without, axis=-1)
    above = (count - 1) * (left / count - middle)
    variance = sums.mean("lse")[:, 0] - middle
    free = moments.plain if moments.free is None else moments.free
    rest = {"seen": (count - 1) / count * seen, "true": moments.plain - free, "square": moments.square}
    return {"variance": variance, "above": above, **rest}


def _scaled(of: Pieces) -> Pieces:
    """Cross-entropy's variance by the scale of all rows, and its parts so that their means add up to it."""
    seen, true, square, above = (of[name] for name in ("seen", "true", "square", "above"))
    scale = float(true.sum()) / float(seen.sum()) if seen.sum() > 1e-12 * float(square.sum()) else 1.0
    variance = of["variance"] + scale * above
    spread = float(sum(of[k].sum() for k in FACTORS if k in of))
    parts = {k: of[k] * (variance.sum() / spread) for k in FACTORS if k in of and spread > 0}
    return {"loss": of["loss"], "noise": of["noise"], "variance": variance, **parts}


def _factors(sums: Stack, moments: Moments) -> dict[str, np.ndarray]:
    """Data x initialisation analysis of variance, where models share blocks and seeds."""
    if (sums.counts > 1).any() or moments.free is None or moments.data is None or moments.seed is None:
        return {}
    data, seed = moments.data - moments.free, moments.seed - moments.free
    return dict(zip(FACTORS, (data, seed, moments.square - moments.free - data - seed), strict=True))


def _curved_factors(sums: Stack) -> Pieces:
    """The same for cross-entropy, whose variance is to second order that of the logits in the curvature of softmax.

    To be scaled so that their means over rows add up to that of the variance, which their rows do not.
    """
    middle = softmax(sums.mean("z"), axis=-1)
    z = sums.of["z"]
    bent = np.sqrt(middle) * (z - (z * middle).sum(-1, keepdims=True))
    return _factors(sums, sums.moments(bent))
