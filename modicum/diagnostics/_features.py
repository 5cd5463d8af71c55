"""The fits of `random-features`: several draws of rows and features, each at every width and with several ridges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import binom

from modicum.core import seeds
from modicum.core.errors import UserError
from modicum.diagnostics._matrix import noisy
from modicum.diagnostics._rows import Given
from modicum.maths.feature_theory import kernel, theory
from modicum.maths.intervals import Interval, crossed
from modicum.maths.random_features import Curve, Draw, Kind, curve, needed
from modicum.training.many import available

SHARES = (1e-4, 10.0)
"""The least and the largest ridge tried, as shares of the mean squared length of a feature."""
POPULATION = 2000
"""Rows at most from which the theory takes the kernel's eigenvalues and the target."""


@dataclass(frozen=True)
class Plan:
    rows: Given
    features: Kind
    n: int
    wide: int
    draws: int
    noise: float
    ridges: int  # how many are tried
    at: np.ndarray  # the widths (a,) with bias and variance, ridge and theory
    seed: int

    @property
    def apart(self) -> bool:
        """Whether no training row is in two draws."""
        return self.rows.apart(self.n, self.draws)

    def train(self, draw: int) -> np.ndarray:
        """Numbers of the draw's training rows."""
        return self.rows.drawn(self.n, self.draws, draw, self.seed)


@dataclass(frozen=True)
class Kept:
    """Every draw's curve, and at the plan's widths the best ridge's loss, error and share, each (draws, a)."""

    curves: list[Curve]
    ridge: dict[str, np.ndarray]


def count(rows: Given, limit: int | None, draws: int) -> int:
    """Training rows of a draw."""
    if limit is not None and not 2 <= limit <= len(rows.train):
        raise UserError(f"--limit {limit}: wanted 2 to {len(rows.train):,}, the rows of {rows.data.name} to train on")
    n = limit or min(500, len(rows.train) // draws)
    if n < 2:
        raise UserError(
            f"{draws} disjoint draws of {len(rows.train)} training rows are fewer than 2 rows each: lower --draws, "
            "or give --limit for draws that overlap"
        )
    return n


def grid(n: int, wide: int) -> np.ndarray:
    """About 50 of the widths 1..wide: evenly spaced in their logarithm, and closely around n."""
    near = n * np.array([1 / 8, 1 / 4, 1 / 2, 0.8, 0.9, 0.95, 0.98, 0.99, 1, 1.01, 1.02, 1.05, 1.1, 1.2, 1.35, 2, 4])
    found = {int(v) for v in [*np.geomspace(1, wide, 40).round(), *near.round(), n - 1, n + 1]}
    return np.array(sorted(v for v in found if 1 <= v <= wide))


def check_memory(plan: Plan) -> None:
    """Refuse widths for which the memory that is free does not suffice, with those that would fit."""
    m, k, a = len(plan.rows.test), max(plan.rows.classes, 1), len(plan.at)
    free = 0.8 * available(torch.device("cpu"))

    def need(wide: int) -> float:
        return needed(plan.n, wide, m, k, at=a * (plan.draws + 1 + 3 * plan.ridges)) + 32 * POPULATION**2

    if need(plan.wide) <= free:
        return
    fits = plan.wide
    while fits and need(fits) > free:
        fits = fits * 9 // 10
    asked = (
        f"{plan.n:,} training rows, {m:,} test rows and {plan.wide:,} features need {need(plan.wide) / 2**30:.3g} GiB"
    )
    what = f"--widths {fits} would fit" if fits else f"lower --limit from {plan.n} as well"
    raise UserError(f"{asked}; {free / 2**30:.3g} GiB may be used: {what}")


def inputs(plan: Plan) -> dict[int, np.ndarray]:
    """Inputs of the rows read, by row number: pixels from -1 to 1, a run's features standardised, else as they are."""
    rows = plan.rows
    own = np.unique(np.concatenate([plan.train(d) for d in range(plan.draws)]))
    others = np.setdiff1d(np.concatenate([rows.train, rows.test]), np.union1d(own, rows.test))
    room = max(POPULATION - len(own) - len(rows.test), 0)
    more = seeds.numpy(plan.seed, "population").permutation(others)[:room]
    index = np.concatenate([own, rows.test, more])
    x = rows.features(index).astype(np.float64)
    if rows.model is not None:
        x = (x - x[: len(own)].mean(0)) / np.maximum(x[: len(own)].std(0), 1e-6)
    elif rows.input.modality == "images":
        x = (x - 0.5) / 0.5
    return dict(zip(index.tolist(), x, strict=True))


def measure(plan: Plan, x: dict[int, np.ndarray]) -> Kept:
    """Fit every draw at every width, and with every ridge."""
    rows, curves, best = plan.rows, [], []
    targets, test = rows.targets(rows.test), np.stack([x[i] for i in rows.test.tolist()])
    half, shares = np.arange(len(test)) % 2 == 0, np.geomspace(*SHARES, plan.ridges)
    for d in range(plan.draws):
        own = plan.train(d)
        y = labels(plan, own, d)
        draw = Draw(plan.features, test.shape[1], plan.wide, seeds.fold(plan.seed, "features", d))
        phi, psi = draw(np.stack([x[i] for i in own.tolist()])), draw(test)
        curves.append(curve(phi, y, psi, targets, at=plan.at))
        if plan.ridges:
            unit = float((phi**2).sum(0).mean())
            tried = [curve(phi, y, psi, targets, ridge=s * unit, at=plan.at).outputs for s in shares if unit > 0]
            best.append(chosen(np.stack(tried), shares, targets, half) if tried else np.full((3, len(plan.at)), np.nan))
    names = ("loss", "error", "share")
    return Kept(curves, {name: np.stack([b[k] for b in best]) for k, name in enumerate(names)} if best else {})


def labels(plan: Plan, own: np.ndarray, draw: int) -> np.ndarray:
    """Targets (n, k) of a draw's rows, some of them redrawn."""
    rows = plan.rows
    if not plan.noise:
        return rows.targets(own)
    fresh = noisy(rows.labels.values[own], rows.classes, plan.noise, seeds.fold(plan.seed, "noise", draw))
    if rows.classes:
        return np.eye(rows.classes)[fresh]
    every = rows.labels.values[rows.train]
    return ((fresh - every.mean()) / max(every.std(), 1e-12))[:, None]


def chosen(outputs: np.ndarray, shares: np.ndarray, targets: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Loss, error and share (3, a) of the ridge that has the least loss on one half of the test rows, on the other."""
    loss = ((outputs - targets) ** 2).sum(-1)  # (ridges, a, m)
    error = (outputs.argmax(-1) != targets.argmax(-1)).astype(float)
    out = np.zeros((3, outputs.shape[1]))
    for one, other in ((half, ~half), (~half, half)):
        k = loss[:, :, one].mean(2).argmin(0)
        places = np.arange(outputs.shape[1])
        weight = other.mean()
        out[0] += weight * loss[:, :, other].mean(2)[k, places]
        out[1] += weight * error[:, :, other].mean(2)[k, places]
        out[2] += np.log(shares[k]) / 2
    out[2] = np.exp(out[2])
    return out


def middle(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Median over draws (draws, ...), and the two draws that hold it with the probability given, 95 % if draws can."""
    ordered, count = np.sort(values, 0), len(values)
    skip = 0
    while 2 * (skip + 1) < count and 1 - 2 * binom.cdf(skip + 1, count, 0.5) >= 0.95:
        skip += 1
    sure = 1 - 2 * binom.cdf(skip, count, 0.5)
    return np.median(values, 0), ordered[skip], ordered[-1 - skip], float(sure)


def parts(outputs: np.ndarray, targets: np.ndarray) -> tuple[Interval, Interval]:
    """Unbiased bias² and variance, from outputs (draws, m, k): intervals over draws (jackknife) and test rows."""
    count = len(outputs)

    def of(f: np.ndarray) -> np.ndarray:
        variance = f.var(0, ddof=1).sum(-1)
        return np.stack([((f.mean(0) - targets) ** 2).sum(-1) - variance / len(f), variance])

    left = np.stack([of(np.delete(outputs, d, 0)) for d in range(count)])
    pseudo = count * of(outputs) - (count - 1) * left  # (draws, 2, m)
    return crossed(pseudo[:, 0]), crossed(pseudo[:, 1])


def predicted(plan: Plan, x: dict[int, np.ndarray], curves: list[Curve]) -> np.ndarray:
    """What theory expects of the test loss at the plan's widths (a,), from the kernel over all rows that were read.

    Nothing is taken from the fits but how many features are not 0 on all training rows.
    """
    rows = plan.rows
    index = seeds.numpy(plan.seed, "theory").permutation(np.array(list(x)))[:POPULATION]
    every = np.stack([x[i] for i in index.tolist()])
    y = rows.targets(index)
    values, vectors = np.linalg.eigh(kernel(plan.features, every, every) / len(index))
    values = np.maximum(values, 0)
    # Redrawn labels move the mean target towards that of a random label, and are noise around it.
    random = np.full(y.shape[1], 1 / y.shape[1]) if rows.classes else np.zeros(1)
    mean = (1 - plan.noise) * y + plan.noise * random
    noise = float((y**2).sum(1).mean() - (mean**2).sum(1).mean()) if plan.noise else 0.0
    own, moved = (vectors.T @ t / len(index) ** 0.5 for t in (mean, y - mean))
    away = float((moved**2).sum())
    ridge = float(np.median([c.ridge for c in curves]))
    share, out = min(plan.n / len(index), 1.0), []
    for wide in np.median([c.used[plan.at - 1] for c in curves], 0).clip(min=1).tolist():
        loss, learned = theory(values, (own**2).sum(1), plan.n, wide, ridge, noise)
        # The test labels are clean: |f - y|² = |f - mean|² + 2 (f - mean)(mean - y) + |mean - y|².
        clean = loss - noise + 2 * float(((1 - learned) * (own * moved).sum(1)).sum()) + away
        # Theory's test rows are any of the population: a share are training rows, whose residual is `left` of others'.
        left = 1 - min(float(learned.sum()) / plan.n, 1.0)
        out.append((clean - share * (1 - left) ** 2 * (noise + away)) / (1 - share + share * left**2))
    return np.array(out)
