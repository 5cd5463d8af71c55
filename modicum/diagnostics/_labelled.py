"""Scores of methods on nested subsets of labelled rows, and the laws fitted to them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeCV

from modicum.core.errors import UserError
from modicum.diagnostics._rows import Given
from modicum.maths.power_law import IllBehaved, PowerLaw, equal_size, fit, plausible
from modicum.training import splits
from modicum.training.baselines import tfidf
from modicum.training.many import Member, Work, train
from modicum.training.transfer import logistic, scaled

BATCH = 32
"""Members whose batches are of one size train as one product: subsets of at least this many rows do."""


@dataclass(frozen=True)
class Curve:
    """Errors of one method: `scores` (seeds, sizes, test rows), its fitted law, or why there is none."""

    name: str
    scores: np.ndarray
    law: PowerLaw | None
    why: str

    @property
    def error(self) -> np.ndarray:
        """The mean error at every size."""
        out: np.ndarray = self.scores.mean((0, 2))
        return out


def chosen_sizes(sizes: str | Sequence[int] | None, found: Given) -> list[int]:
    """The numbers of training rows: increasing, at least one a class, at most all."""
    pool = len(found.train)
    codes = found.labels.values[found.train]
    if not found.classes and np.ptp(codes) == 0:
        raise UserError(f"{found.data.name}: every training label is {codes[0]:g}; wanted labels that differ")
    least = max(2, len(np.unique(codes)) if found.classes else 2)
    if sizes is None:
        low = max(2 * least, 10)
        if pool < 4 * low:
            raise UserError(
                f"{found.data.name} has {pool} labelled training rows: a learning curve from {low} rows to half of all "
                f"needs {4 * low}; give more rows, or --sizes"
            )
        return np.unique(np.round(np.geomspace(low, pool / 2, 7)).astype(int)).tolist()
    try:
        read = [int(v) for v in (sizes.split(",") if isinstance(sizes, str) else sizes)]
    except (TypeError, ValueError):
        raise UserError(f"--sizes {sizes}: wanted whole numbers such as 20,50,100") from None
    if len(read) < 2 or any(b <= a for a, b in pairwise(read)):
        raise UserError(f"--sizes {','.join(map(str, read))}: wanted at least two sizes in increasing order")
    if read[0] < least:
        raise UserError(
            f"--sizes {read[0]}: the smallest needs a row of each of the {least} classes, so at least {least}"
        )
    if read[-1] > pool:
        raise UserError(f"--sizes {read[-1]}: {found.data.name} has {pool} labelled training rows")
    return read


def nested(found: Given, sizes: Sequence[int], seeds: int, seed: int) -> list[list[np.ndarray]]:
    """For each of `seeds` repeats the subsets of its sizes, each within the next, stratified by class."""
    labels = found.labels
    return [
        [splits.few(labels.values, total=n, kind=labels.kind, seed=seed + s, among=found.train) for n in sizes]
        for s in range(seeds)
    ]


def networks(
    found: Given,
    work: Work,
    subsets: list[list[np.ndarray]],
    encoder: str,
    steps: int,
    seed: int,
    rate: float = 3e-3,
) -> np.ndarray:
    """Scores (seeds, sizes, test rows) of networks trained on every subset, all at once."""
    where = [(s, k) for s, own in enumerate(subsets) for k in range(len(own))]
    made: dict[str, Any] = {"encoder": encoder, "lr": rate, "steps": steps, "batch": BATCH}
    members = [Member(subsets[s][k], seed=seed + s, **made) for s, k in where]
    out = np.full((len(subsets), len(subsets[0]), len(found.test)), np.nan)
    for reading in train(members, work):
        outputs = reading.outputs(found.test)
        for j, number in enumerate(reading.numbers):
            out[where[number]] = score(outputs[j], found)
    if not np.isfinite(out).all():
        raise UserError(f"training {encoder} diverged on some subset: its outputs are not finite; try another encoder")
    return out


def baseline(found: Given, subsets: list[list[np.ndarray]]) -> np.ndarray:
    """Scores (seeds, sizes, test rows) of logistic or ridge regression on plain features.

    They are standardised by each subset's own rows; of text they are words, weighted by those rows.
    """
    plain, test = found.plain(found.train), found.plain(found.test)
    out = np.empty((len(subsets), len(subsets[0]), len(found.test)))
    for s, own in enumerate(subsets):
        for k, rows in enumerate(own):
            x, y = plain[np.searchsorted(found.train, rows)], found.labels.values[rows]
            out[s, k] = score((_of_words if sparse.issparse(x) else _linear)(x, y, test, found.classes), found)
    return out


def _linear(x: np.ndarray, y: np.ndarray, test: np.ndarray, classes: int) -> np.ndarray:
    """Outputs (rows, k) for test rows of a linear model on standardised features."""
    x, mean, std = scaled(x)
    new = (test - mean) / std
    if not classes:
        return np.asarray(RidgeCV(np.logspace(-3, 4, 15)).fit(x, y).predict(new))[:, None]
    weight, bias = logistic(x, y, classes, 1.0)
    return np.asarray(new @ weight.T + bias)


def _of_words(x: Any, y: np.ndarray, test: Any, classes: int) -> np.ndarray:
    """The same on sparse counts of words, by TF-IDF: rows have length 1, so that less penalty is wanted."""
    if not classes:
        return np.asarray(tfidf(RidgeCV(np.logspace(-3, 2, 11))).fit(x, y).predict(test))[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = tfidf(LogisticRegression(C=10.0, max_iter=500)).fit(x, y)
    out = np.zeros((test.shape[0], classes))
    out[:, model.classes_] = model.predict_proba(test)
    return out


def score(outputs: np.ndarray, found: Given) -> np.ndarray:
    """The error of each test row: a mistake, or the squared error in units of the variance of the test labels."""
    true = found.labels.values[found.test]
    if found.classes:
        wrong: np.ndarray = np.where(np.isfinite(outputs).all(1), outputs.argmax(1) != true, np.nan)
        return wrong
    error: np.ndarray = (outputs[:, 0] - true) ** 2 / max(float(true.var()), 1e-12)
    return error


def fitted(name: str, sizes: Sequence[int], scores: np.ndarray, seed: int) -> Curve:
    """The curve with its law, or with the reason why it has none."""
    try:
        return Curve(name, scores, fit(sizes, scores, seed=seed), "")
    except IllBehaved as error:
        return Curve(name, scores, None, str(error))


def shifts(scratch: Curve, pretrained: Curve, sizes: Sequence[int], seed: int) -> list[dict[str, Any]]:
    """For every size of the pre-trained curve, the size at which the other is as good.

    0: fewer rows than the smallest size; infinite: more than the largest. Both curves are drawn together, as they share
    subsets and test rows.
    """
    count = len(sizes)
    drawn = plausible(np.concatenate([scratch.scores, pretrained.scores], 1), seed=seed)
    at = np.asarray(sizes, dtype=np.float64)
    rows = []
    for k, n in enumerate(sizes):
        here = equal_size(at, scratch.error[None], pretrained.error[k : k + 1])[0]
        spread = np.sort(equal_size(at, drawn[:, :count], drawn[:, count + k]))
        low, high = spread[int(0.025 * len(spread))], spread[int(0.975 * len(spread))]
        rows.append({"n": n, "worth": float(here), "low": float(min(low, here)), "high": float(max(high, here))})
    return rows
