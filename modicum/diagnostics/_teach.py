"""The labels that models are trained on: the data's own or a teacher's, and how near to it students can come."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq
from scipy.special import logsumexp, softmax, xlogy

from modicum.core import seeds
from modicum.core.spec import parse
from modicum.diagnostics._decompose import STILL, Design, Truth
from modicum.diagnostics._matrix import noisy
from modicum.diagnostics._polish import evaluations, polished, predicted
from modicum.diagnostics._rows import Given
from modicum.maths.decomposition import Decomposition
from modicum.maths.intervals import Interval, crossed
from modicum.training.many import train
from modicum.training.work import Work

ROUNDS = 5
"""Polishes of the best student, at most: each goes on where the last one stopped."""


def given_labels(rows: Given, share: float, seed: int) -> Truth:
    """The data's own labels; those of a `share` of all rows are redrawn for training."""
    values = rows.labels.values
    return Truth(noisy(values, rows.classes, share, seeds.fold(seed, "label noise")), values)


def taught(rows: Given, work: Work, design: Design, share: float, teacher: str) -> Truth:
    """Labels drawn from a model of the encoder `teacher` that is trained on all training rows.

    `share` flattens its probabilities until as many labels differ from the likeliest class as if that share were
    redrawn; numbers get normal noise of that share of their variance. So a student of the same encoder can be right.
    """
    own = rows.labels.values
    noisy(own, rows.classes, share, 0)  # refuses a share that is none
    used = np.union1d(rows.train, rows.test)
    member = replace(design.member(rows.train, own[rows.train], "teacher", longer=2), encoder=teacher)
    z = next(iter(train([member], work))).outputs(used)[0].astype(np.float64)
    rng, labels = seeds.numpy(design.seed, "taught"), own.copy()
    if not rows.classes:
        targets = own.copy()
        targets[used] = z[:, 0]
        noise = share * float(z.var())
        labels[used] = z[:, 0] + np.sqrt(noise) * rng.normal(size=len(used))
        return Truth(labels, targets, noise, teacher)
    p = _flattened(z, share * (1 - 1 / rows.classes))
    labels[used] = (p.cumsum(1) < rng.random((len(used), 1))).sum(1).clip(max=rows.classes - 1)
    targets = np.zeros((len(own), rows.classes))
    targets[used] = p
    return Truth(labels, targets, 0.0, teacher)


def _flattened(z: np.ndarray, error: float) -> np.ndarray:
    """Softmax of logits (n, c) at the temperature of at least 1 where the likeliest class is wrong with this chance."""

    def above(log_heat: float) -> float:
        return float(1 - softmax(z / np.exp(log_heat), axis=1).max(1).mean()) - error

    heat = 0.0 if above(0.0) >= 0 else brentq(above, 0.0, 30.0)
    p: np.ndarray = softmax(z / np.exp(heat), axis=1)
    return p / p.sum(1, keepdims=True)


@dataclass(frozen=True)
class Reach:
    """Bounds of the approximation error, the loss above a teacher's that no student of an encoder can do without.

    `most`: the test loss above the teacher's of one student. `least`: the same once it is fitted to the test rows,
    where the best of all loses no less; None where that has not converged. `estimation`: what models lose above the
    first student on the same test rows. Intervals are over rows alone.
    """

    most: Interval
    least: Interval | None
    estimation: Interval


def same(teacher: str, spec: str) -> bool:
    """Whether the teacher is a model of the students' own kind."""
    return teacher == "same" or parse(teacher, "teacher") == parse(spec, "encoder")


def approximation(rows: Given, work: Work, truth: Truth, design: Design, found: Decomposition) -> Reach:
    """Train a student on all training rows, then by L-BFGS on the teacher's own probabilities or noiseless numbers.

    Fitting these instead of labels drawn from them leaves no noise to fit, so that both bounds are near each other. The
    lower one is fitted to the test rows, as the teacher knows the training rows better than others. `found`: the
    students' own decomposition, of the loss that they are trained by.
    """
    member = design.member(rows.train, truth.labels[rows.train], "best", longer=2)
    model = next(iter(train([member], work))).member(0)
    target = truth.targets[rows.test]

    def above(index: np.ndarray) -> tuple[np.ndarray, float]:
        """The loss above the teacher's of the test rows, once fitted to `index`, and what the last round gained."""
        gain, before = np.inf, np.inf
        for _ in range(ROUNDS):
            lowest = polished(model, work, index, truth.targets[index], evaluations(member))
            gain, before = before - lowest, lowest
            if gain <= STILL * max(before - _least(truth.targets[index]), 1e-3 * _spread(target)):
                break
        return _excess(predicted(model, work, rows.test), target), gain

    new, _ = above(rows.train)
    most, (own, gain) = crossed(new[None]), above(rows.test)
    least = None
    if gain <= STILL * max(most.mean, 1e-3 * _spread(target)):
        end = crossed(own[None])
        low, mean, high = (max(v - max(gain, 0.0), 0.0) for v in (end.low, end.mean, end.high))
        least = Interval(mean, low, high, "rows")
    models = found.rows["bias"] + found.rows["variance"]
    return Reach(most, least, crossed((models - new)[None]))


def _least(target: np.ndarray) -> float:
    """The loss of the targets themselves: 0 of numbers."""
    return 0.0 if target.ndim == 1 else -float(xlogy(target, target).sum(1).mean())


def _excess(z: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The loss (n,) of outputs (n, c) above that of the targets: (n, c) probabilities, or numbers (n,)."""
    z = z.astype(np.float64)
    if target.ndim == 1:
        return np.asarray(np.square(z[:, 0] - target))
    return np.asarray(logsumexp(z, axis=1) - (target * z).sum(1) + xlogy(target, target).sum(1))


def _spread(target: np.ndarray) -> float:
    """The loss above the targets' own of the best constant."""
    if target.ndim == 1:
        return float(target.var())
    mean = target.mean(0)
    return -float(xlogy(mean, mean).sum()) - _least(target)
