"""Intervals for every number shown: they cover the choice of labels and seed AND the choice of test rows.

A table of per-row scores, seeds x rows, has a two-way random-effects model: score = mean + seed + row + noise, and the
mean has variance  V = seed/S + row/n + noise/(S n).  Owen's pigeonhole bootstrap (2007), which resamples seeds and rows
at once, estimates that V; with five seeds its percentiles are far too narrow, as nothing in them knows that a variance
was learned from five numbers. So V is taken in closed form from the mean squares of the analysis of variance, and each
part gets Student's t of its own degrees of freedom: the squared half-width is the sum of t² x part (Banerjee 1960),
which never under-covers two independent normal parts. One t by Satterthwaite (1946) does: 87 % with two seeds.
`tests/test_intervals.py` holds the coverage.

Scores are oriented by the caller: for `gain` to mean better, higher must be better (give losses with a minus sign).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.special import stdtrit

from modicum.core.errors import UserError

Over = Literal["seeds and rows", "rows", "splits"]


@dataclass(frozen=True)
class Interval:
    """A mean with its interval, in the units of the scores; `over` says which variation the interval covers.

    `over="rows"` is what one seed alone can give: the next seed or labelled subset may well fall outside.
    """

    mean: float
    low: float
    high: float
    over: Over = "seeds and rows"

    def __str__(self) -> str:
        """`0.871 [0.842, 0.897]`: the width with two significant digits."""
        width = self.high - self.low
        digits = 3 if width <= 0 else min(max(1 - math.floor(math.log10(width)), 0), 12)
        note = " (rows only)" if self.over == "rows" else ""
        return f"{self.mean:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]{note}"


class MeanSquares(NamedTuple):
    """The mean of a seeds x rows table and its mean squares between seeds, between rows and of what is left.

    Each is a number, or an array over many tables.
    """

    mean: Any
    seeds: Any
    rows: Any
    noise: Any


def crossed(scores: np.ndarray, level: float = 0.95) -> Interval:
    """Interval for the expected score over both populations: labelled subsets with seeds, and test rows.

    scores: (seeds, rows), one score a row (1/0 for right/wrong, or a loss), the same rows for every seed.
    0/1 scores get Wilson's form (1927) of the interval at the effective sample size p(1-p)/V, so that it stays inside
    [0, 1] and all-right scores get Wilson's lower limit n/(n + t²) instead of a width of 0. Other scores have no known
    range: where they are all equal the width is 0. One seed gives an interval over rows only (`over="rows"`).
    UserError: not two axes, fewer than 2 rows, a score that is not finite, a level outside (0, 1).
    """
    table = _table(scores, "scores")
    seeds, rows = table.shape
    squares = mean_squares(table)
    low, high = bounds(squares, seeds, rows, level, binary=_is_binary(table))
    return Interval(float(squares.mean), float(low), float(high), _over(seeds))


def paired(a: np.ndarray, b: np.ndarray, level: float = 0.95) -> Interval:
    """Interval for the expected difference a - b of two methods on the same seeds and rows, as `crossed` for one.

    a, b: (seeds, rows). Pairing narrows the interval where seed s of both has the same labelled subset; the interval
    holds either way.
    For 0/1 scores Agresti & Min's pseudo-rows (2005: one half for each outcome of a pair) keep the width above 0
    where the methods agree, or differ, on every row; other scores with a constant difference have width 0.
    UserError: shapes that differ, and those of `crossed`.
    """
    first, second = _table(a, "a"), _table(b, "b")
    if first.shape != second.shape:
        raise UserError(f"a paired difference needs the same seeds and rows: got {first.shape} and {second.shape}")
    seeds, rows = first.shape
    squares = mean_squares(first - second)
    binary = _is_binary(first) and _is_binary(second)
    low, high = difference_bounds(squares, seeds, rows, level, binary=binary)
    return Interval(float(squares.mean), float(low), float(high), _over(seeds))


def repeated(scores: Sequence[float], n_train: int, n_test: int, level: float = 0.95) -> Interval:
    """Nadeau & Bengio's corrected resampled t (2003) for one score a random split of one data set.

    scores: one a split, in any unit; differences of two methods on the same splits give a paired interval.
    n_train, n_test: rows on each side of a split (where only a few of the n_train keep their labels, still all of them:
    the ratio stands for how much the splits overlap). The variance of the mean over J splits is
    s² (1/J + n_test/n_train), t has J - 1 degrees of freedom. Equal scores in [-1, 1] (accuracies of 1, methods that
    agree) carry no spread to estimate from: they get the half-width z²/(n_test + z²) of Wilson's limit at 0 errors.
    UserError: fewer than 2 splits, a score that is not finite, a side without rows.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise UserError(f"repeated splits need a list of at least 2 scores, one a split: got shape {values.shape}")
    if not np.isfinite(values).all():
        raise UserError("the score of a split is not a finite number: look at the split where training failed")
    if n_train < 1 or n_test < 1:
        raise UserError(f"a split needs at least 1 row on each side: got n_train={n_train}, n_test={n_test}")
    count = len(values)
    mean, spread = float(values.mean()), float(values.std(ddof=1))
    half = _quantile(count - 1, level) * spread * math.sqrt(1 / count + n_test / n_train)
    if np.ptp(values) == 0 and abs(mean) <= 1:
        z2 = _quantile(np.inf, level) ** 2
        half = z2 / (n_test + z2)
        return Interval(mean, max(mean - half, -1.0), min(mean + half, 1.0), "splits")
    return Interval(mean, mean - half, mean + half, "splits")


def gain(interval: Interval) -> Literal["gain", "loss", "no measurable difference"]:
    """The words for the interval of a difference whose positive side is better."""
    if interval.low > 0:
        return "gain"
    return "loss" if interval.high < 0 else "no measurable difference"


def linearised(fn: Callable[..., Any], *columns: np.ndarray) -> np.ndarray:
    """Per-row scores (seeds, rows) of a statistic that is a smooth function of means, for `crossed` and `paired`.

    fn takes one array of means a column (any shape, elementwise) and returns the statistic; columns are (seeds, rows),
    or (rows,) where every seed shares them. R² is
    `linearised(lambda e, y, yy: 1 - e / (yy - y**2), (target - prediction)**2, target, target**2)`,
    RMSE is `linearised(np.sqrt, (target - prediction)**2)`. The mean over rows is each seed's statistic; deviations
    follow the infinitesimal jackknife (delta method, Efron 1982).
    UserError: columns whose shapes do not agree, a statistic that is not finite at the means.
    """
    try:
        tables = np.broadcast_arrays(*(np.atleast_2d(np.asarray(c, dtype=np.float64)) for c in columns))
    except ValueError as error:
        raise UserError(f"columns need the same seeds and rows: got {[np.shape(c) for c in columns]}") from error
    means = [t.mean(axis=1) for t in tables]
    value = np.asarray(fn(*means), dtype=np.float64)
    scores = np.repeat(value[:, None], tables[0].shape[1], axis=1)
    for k, table in enumerate(tables):
        # Central differences lose the fewest digits at the cube root of the precision, in the column's own scale.
        step = np.cbrt(np.finfo(np.float64).eps) * np.maximum(np.abs(means[k]), table.std(axis=1))
        step = np.where(step > 0, step, 1e-6)
        up, down = ([*means[:k], means[k] + d, *means[k + 1 :]] for d in (step, -step))
        slope = (fn(*up) - fn(*down)) / (2 * step)
        scores += slope[:, None] * (table - means[k][:, None])
    if not np.isfinite(scores).all():
        raise UserError(
            f"the statistic is not finite at the means {[m.tolist() for m in means]}: its ratio or root fails"
        )
    return scores


def mean_squares(table: np.ndarray) -> MeanSquares:
    """Two-way analysis of variance without replication of a (seeds, rows) table; a lone seed has no seed part."""
    seeds, rows = table.shape
    mean = table.mean()
    between_seeds = rows * ((table.mean(axis=1) - mean) ** 2).sum()
    between_rows = seeds * ((table.mean(axis=0) - mean) ** 2).sum()
    left = max(((table - mean) ** 2).sum() - between_seeds - between_rows, 0.0)
    if seeds == 1:
        return MeanSquares(mean, 0.0, between_rows / (rows - 1), 0.0)
    return MeanSquares(mean, between_seeds / (seeds - 1), between_rows / (rows - 1), left / ((seeds - 1) * (rows - 1)))


def bounds(squares: MeanSquares, seeds: int, rows: int, level: float, *, binary: bool) -> tuple[Any, Any]:
    """The limits of `crossed` from its sufficient statistics, elementwise over many tables."""
    mean, half = squares.mean, np.sqrt(_half_squared(squares, seeds, rows, level))
    if not binary:
        return mean - half, mean + half
    spread = mean * (1 - mean)
    # t² over the effective sample size; where every score is equal nothing is known beyond the number of rows.
    pull = np.where(spread > 0, half**2 / np.where(spread > 0, spread, 1), _quantile(rows - 1, level) ** 2 / rows)
    centre = (mean + pull / 2) / (1 + pull)
    width = np.sqrt(half**2 + pull**2 / 4) / (1 + pull)
    return np.minimum(np.maximum(centre - width, 0.0), mean), np.maximum(np.minimum(centre + width, 1.0), mean)


def difference_bounds(squares: MeanSquares, seeds: int, rows: int, level: float, *, binary: bool) -> tuple[Any, Any]:
    """The limits of `paired` from its sufficient statistics, elementwise over many tables."""
    if not binary:
        return bounds(squares, seeds, rows, level, binary=False)
    mean = squares.mean
    # Two pseudo-rows: a difference of 1 and of -1 with weight one half, and one of 0 with weight one.
    pseudo = _quantile(rows - 1, level) ** 2 * (1 + 2 * mean**2) / (rows + 2) ** 2
    half = np.sqrt(_half_squared(squares, seeds, rows, level) + pseudo)
    centre = mean * rows / (rows + 2)
    return np.maximum(centre - half, -1.0), np.minimum(centre + half, 1.0)


def _half_squared(squares: MeanSquares, seeds: int, rows: int, level: float) -> Any:
    """Banerjee's squared half-width: t²(S-1) on what the seeds' means show, t²(n-1) on what rows share across seeds.

    The seeds' mean square already holds the noise, and is not truncated from below at it: truncation over-covers where
    seeds do not differ. Only the shared row part, which cannot be negative, is truncated.
    """
    shared = np.maximum(squares.rows - squares.noise, 0.0)
    if seeds == 1:
        return _quantile(rows - 1, level) ** 2 * shared / rows
    # Seeds that tie exactly, on rows that share nothing, would claim certainty: the noise is then all that is known.
    shared = np.where(squares.seeds + shared > 0, shared, squares.noise)
    weighted = _quantile(seeds - 1, level) ** 2 * squares.seeds + _quantile(rows - 1, level) ** 2 * shared
    return weighted / (seeds * rows)


def _quantile(freedom: float, level: float) -> float:
    """Student's two-sided t at `level`; an infinite number of degrees of freedom is the normal."""
    if not 0 < level < 1:
        raise UserError(f"level is a probability between 0 and 1, such as 0.95: got {level}")
    return float(stdtrit(freedom, (1 + level) / 2))


def _table(scores: np.ndarray, name: str) -> np.ndarray:
    """Scores as a float table, or what is wrong with them."""
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2:
        raise UserError(f"{name} must be (seeds, rows), one score a row: got shape {table.shape}")
    if table.shape[0] < 1 or table.shape[1] < 2:
        raise UserError(f"{name} need at least 1 seed and 2 test rows: got shape {table.shape}")
    if not np.isfinite(table).all():
        seed, row = np.argwhere(~np.isfinite(table))[0]
        raise UserError(f"{name} at seed {seed}, row {row} is {table[seed, row]}: every score must be finite")
    return table


def _is_binary(table: np.ndarray) -> bool:
    return bool(((table == 0) | (table == 1)).all())


def _over(seeds: int) -> Over:
    return "rows" if seeds == 1 else "seeds and rows"
