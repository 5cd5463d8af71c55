"""Is there a peak? A test for double descent that can say no.

A mean curve has an interior peak where some i < j < k have mean j above mean i and above mean k. Curves without one are
falling, rising or valleys: they fall to some point v and rise after it. The statistic is the best triple's worse side,
each a paired t over repeats. Under a valley at v a triple with j <= v needs a rise before v, and one with j >= v a fall
after v, where the truth has none: no valley offers more than (P - 1)(P - 2)/2 such pairs of P points, so that the union
bound over that many t's holds the level over the choice of i, j and k, for normal noise of any variances and
correlations between the points. Permutations cannot: four repeats have 16 sign flips and no p below 1/16. Bootstrap
and moderated t's were simulated as well: they exceed 5 % (up to 10 %) where a few points are noisier than others.

Skew remains: means of 4 to 10 heavy-tailed losses are misleading in any test. Give the logarithms of losses that span
orders of magnitude: a peak is then one of geometric means, and its height the logarithm of a ratio.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

from modicum.core.errors import UserError


@dataclass(frozen=True)
class Peak:
    """What the test found: `found` at `level`, the p-value, and the triple `before` < `at` < `after` on the axis.

    `height`: the mean at the peak above the higher of the two others (negative where every point has a lower one
    beside it only); its lower limit is above 0 exactly where a peak was found, and no peak is higher than `high`
    with confidence 1 - level.
    """

    found: bool
    p: float
    before: float
    at: float
    after: float
    height: float
    low: float
    high: float
    level: float

    def __str__(self) -> str:
        size = f"height {self.height:.3g} [{self.low:.3g}, {self.high:.3g}], p = {self.p:.2g}"
        if self.found:
            return f"a peak at {self.at:g} (above {self.before:g} before and {self.after:g} after it: {size})"
        return f"no peak shown (p = {self.p:.2g}; one higher than {max(self.high, 0):.3g} is ruled out)"


@dataclass(frozen=True)
class Rise:
    """Whether the mean curve is somewhere higher than before: `found`, the p-value, the two places, and by how much."""

    found: bool
    p: float
    before: float
    at: float
    height: float


def peak(x: Sequence[float] | np.ndarray, scores: np.ndarray, level: float = 0.05) -> Peak:
    """Test whether the mean of scores (repeats, points) has an interior peak along the increasing axis x (points,).

    Repeats are independent draws (seeds, subsets), points of one repeat may depend on each other; lower is better.
    At least 3 repeats (4 to 10 are usual) and 3 points. See the module for the test and its limits.
    UserError: shapes, an axis that does not increase, a score that is not finite, repeats that are all alike.
    """
    axis, table = checked(x, scores)
    up, error = differences(table)
    repeats, points = table.shape
    t = up / error
    j, i, k = _best(t)
    p = min(1.0, stdtr(repeats - 1, -min(t[i, j], t[k, j])) * (points - 1) * (points - 2) / 2)
    sure = stdtrit(repeats - 1, 1 - level / max((points - 1) * (points - 2) / 2, 1))
    most = stdtrit(repeats - 1, 1 - level / (points * (points - 1)))
    low = min((up - sure * error)[[i, k], j])
    above = up + most * error
    high = max(min(above[:m, m].max(), above[m + 1 :, m].max()) for m in range(1, points - 1))
    before, at, after = (float(axis[m]) for m in (i, j, k))
    height = float(min(up[i, j], up[k, j]))
    return Peak(bool(p <= level), float(p), before, at, after, height, float(low), float(high), level)


def rise(x: Sequence[float] | np.ndarray, scores: np.ndarray, level: float = 0.05) -> Rise:
    """Test whether the mean of scores (repeats, points) rises between any two points of the axis x, as `peak` does.

    The union bound is over all pairs; `rise(x, -scores)` tests for a fall.
    """
    axis, table = checked(x, scores)
    up, error = differences(table)
    repeats, points = table.shape
    t = np.where(np.triu(np.ones_like(up), 1) > 0, up / error, -np.inf)
    i, j = np.unravel_index(int(t.argmax()), t.shape)
    p = min(1.0, stdtr(repeats - 1, -t[i, j]) * points * (points - 1) / 2)
    return Rise(bool(p <= level), float(p), float(axis[i]), float(axis[j]), float(up[i, j]))


def _best(t: np.ndarray) -> tuple[int, int, int]:
    """(j, i, k) of the triple i < j < k whose smaller t, of j above i and of j above k, is the largest."""
    triples = []
    for j in range(1, len(t) - 1):
        i, k = int(t[:j, j].argmax()), j + 1 + int(t[j + 1 :, j].argmax())
        triples.append((min(t[i, j], t[k, j]), j, i, k))
    return max(triples)[1:]


def differences(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of scores (repeats, points): mean j less mean i at [i, j], and its standard error from the paired differences.

    Errors are at least half the median one: scores that count few test rows may differ by the same step in every
    repeat, which is no certainty. A larger error only makes the tests conservative.
    """
    repeats, points = table.shape
    mean = table.mean(0)
    covariance = np.cov(table, rowvar=False)
    own = np.diag(covariance)
    variance = np.maximum(own[:, None] + own[None] - 2 * covariance, 0.0)
    pairs = variance[np.triu_indices(points, 1)]
    if not varies(table):
        raise UserError(
            "all repeats have the same curve (but for a constant): wanted repeats that differ in seed or training "
            "rows, or nothing is known of the noise"
        )
    variance = np.maximum(variance, np.median(pairs[pairs > 1e-9 * pairs.max()]) / 4)
    return mean[None] - mean[:, None], np.sqrt(variance / repeats)


def varies(table: np.ndarray) -> bool:
    """Whether the repeats' curves (repeats, points) differ by more than a constant: else nothing can be tested."""
    shape = table - table.mean(1, keepdims=True)
    return bool(np.abs(shape - shape.mean(0)).max() > 1e-12 * max(float(np.abs(table).max()), 1e-150))


def checked(x: Sequence[float] | np.ndarray, scores: np.ndarray, least: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """The axis and the scores as float64, or what is wrong with them."""
    axis, table = np.asarray(x, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or axis.ndim != 1 or table.shape[1] != len(axis):
        raise UserError(f"scores must be (repeats, points) along an axis (points,): got {table.shape} and {axis.shape}")
    if table.shape[0] < 3 or len(axis) < least:
        raise UserError(
            f"a test of a curve needs at least 3 repeats and {least} points: got {table.shape[0]} and {len(axis)}"
        )
    if not (np.isfinite(axis).all() and (np.diff(axis) > 0).all()):
        raise UserError(f"the axis must increase: got {axis.tolist()}")
    if not np.isfinite(table).all():
        repeat, point = np.argwhere(~np.isfinite(table))[0]
        raise UserError(
            f"the score of repeat {repeat} at {axis[point]:g} is {table[repeat, point]}: wanted finite scores"
        )
    return axis, table
