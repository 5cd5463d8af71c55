"""Learning curves: error(n) = a n^-b + c with c >= 0, only where the curve behaves like one.

Plausible mean curves are drawn from the repeats (and test rows) that were measured, and the law is fitted to each: the
spread of what follows from the fits (b, c, "labels needed") is its interval. A draw is the mean plus a random
combination of the repeats' deviations scaled to a multivariate t, so that the interval of any linear function of the
curve is exactly Student's, with the repeats' few degrees of freedom; percentiles of five resampled repeats would be far
too narrow. Curves that rise, peak, do not improve or do not follow the law are refused: extrapolating them is
meaningless (Viering & Loog 2022, "The shape of learning curves"; Mohr, Viering, Loog & van Rijn 2022, "LCDB 1.0").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from modicum.core import seeds
from modicum.core.errors import UserError
from modicum.maths.intervals import Interval, Over, mean_squares
from modicum.maths.peak import checked, peak, rise, varies

LEAST = 4
"""Sizes a fit of three parameters needs."""
COUNT = 1000
RATES = (0.02, 4.0)


class IllBehaved(UserError):
    """A curve that no power law is fitted to; the message says why."""


@dataclass(frozen=True)
class Needed:
    """How many rows an error needs: infinite where the offset lies above the error; `words` say so.

    `n` is the fit's own answer, [low, high] hold 95 % of the plausible curves.
    """

    error: float
    n: float
    low: float
    high: float
    words: str


@dataclass(frozen=True)
class PowerLaw:
    """error(n) = scale n^-rate + offset, with intervals; `draws` (count, 3) are plausible (scale, rate, offset)."""

    sizes: np.ndarray
    scale: Interval
    rate: Interval
    offset: Interval
    draws: np.ndarray

    def at(self, n: Sequence[float] | np.ndarray) -> np.ndarray:
        """The fitted error at sizes n with its 95 % interval: (len(n), 3) as value, low, high."""
        at = np.asarray(n, dtype=np.float64)
        a, b, c = (v[:, None] for v in self.draws.T)
        low, high = np.maximum(np.quantile(a * at**-b + c, (0.025, 0.975), axis=0), 0.0)
        value = self.scale.mean * at**-self.rate.mean + self.offset.mean
        return np.stack([value, np.minimum(low, value), np.maximum(high, value)], 1)

    def needed(self, error: float) -> Needed:
        """How many rows bring the error down to `error`, with its interval."""
        if not (math.isfinite(error) and error > 0):
            raise UserError(f"target {error}: wanted an error above 0")
        best = np.array([[self.scale.mean, self.rate.mean, self.offset.mean]])
        n = float(_reach(best, error)[0])
        reached = np.sort(_reach(self.draws, error))
        # Not np.quantile, which would interpolate between a number and infinity.
        low, high = reached[int(0.025 * len(reached))], reached[min(int(0.975 * len(reached)), len(reached) - 1)]
        low, high = float(min(low, n)), float(max(high, n))
        return Needed(error, n, low, high, _in_words(error, n, low, high, float(self.sizes[-1]), self.offset))


def _in_words(error: float, n: float, low: float, high: float, last: float, offset: Interval) -> str:
    floor = f"the curve levels off at {offset.mean:.3g} [{offset.low:.3g}, {offset.high:.3g}]"
    if math.isinf(low):
        return f"an error of {error:g} is not reachable with more rows like these: {floor}"
    if math.isinf(high):
        best = "more rows than any" if math.isinf(n) else f"about {rounded(n)} rows"
        return (
            f"an error of {error:.3g} needs {best} by the fit, at least {rounded(low)}, "
            f"and may not be reachable at all: {floor}"
        )
    words = f"an error of {error:.3g} needs about {rounded(n)} rows [{rounded(low)}, {rounded(high)}]"
    if n > 4 * last:
        words += f", {n / last:.0f} times as many as were measured: an extrapolation to check on the way"
    return words


def rounded(n: float) -> str:
    """A number of rows with two or three significant digits."""
    if math.isinf(n):
        return "infinitely many"
    digits = max(0, math.floor(math.log10(max(n, 1))) - 1)
    return f"{int(round(n, -digits)):,}" if n < 1e15 else f"{n:.1e}"


def fit(sizes: Sequence[float] | np.ndarray, scores: np.ndarray, *, seed: int = 0) -> PowerLaw:
    """Fit a power law with offset to scores (repeats, sizes), or (repeats, sizes, test rows): errors, lower is better.

    Least squares weighted by the repeats' variances, which are smoothed along the sizes. With test rows the intervals
    also cover the choice of those. UserError: what `plausible` refuses. IllBehaved: fewer than 4 sizes, a peak, a
    rise, no improvement from the first size to the last, points that miss the fitted law beyond noise.
    """
    n, table = check_sizes(sizes, scores)
    curves = table.mean(2) if table.ndim == 3 else table
    if found := problem(n, curves):
        raise IllBehaved(found)
    weights = 1 / _smoothed(n, curves)
    best = _least_squares(n, curves.mean(0)[None], weights, bounded=True, finer=7)
    if found := _missed(n, curves, best[0]):
        raise IllBehaved(found)
    # The offset of a draw may be below 0: a bound would push the other two to one side of the truth, and their
    # intervals off it (82 instead of 95 % for the rate, at an offset of 0).
    draws = _least_squares(n, plausible(table, seed=seed), weights, bounded=False, finer=3)
    over: Over = "seeds and rows" if table.ndim == 3 else "splits"
    low, high = np.quantile(draws, (0.025, 0.975), axis=0)

    def interval(k: int) -> Interval:
        value = float(best[0, k])
        return Interval(value, min(float(low[k]), value), max(float(high[k]), value), over)

    offset = interval(2)
    offset = Interval(offset.mean, max(offset.low, 0.0), max(offset.high, 0.0), over)
    return PowerLaw(n, interval(0), interval(1), offset, draws)


def check_sizes(sizes: Sequence[float] | np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sizes and scores as float64, or what is wrong with them."""
    table = np.asarray(scores, dtype=np.float64)
    n, _ = checked(sizes, table.mean(2) if table.ndim == 3 else table, least=1)
    if n[0] <= 0:
        raise UserError(f"sizes must be above 0: got {n[0]:g}")
    return n, table


def problem(sizes: np.ndarray, curves: np.ndarray) -> str:
    """Why the mean of curves (repeats, sizes) is no learning curve that a power law describes; "" where it may be."""
    if len(sizes) < LEAST:
        return f"{len(sizes)} sizes: a power law with offset needs at least {LEAST}"
    if not varies(curves):
        return "all repeats have the same errors: nothing is known of the noise"
    if (found := peak(sizes, curves)).found:
        return f"the curve has {found}: more rows first hurt (double descent), which a power law cannot follow"
    if (up := rise(sizes, curves)).found:
        return f"the error rises from {up.before:g} to {up.at:g} rows by {up.height:.3g} (p = {up.p:.2g})"
    gain = curves[:, 0] - curves[:, -1]
    error = gain.std(ddof=1) / math.sqrt(len(gain))
    if gain.mean() <= stdtrit(len(gain) - 1, 0.95) * error:
        return (
            f"no improvement from {sizes[0]:g} to {sizes[-1]:g} rows beyond noise (the error falls by "
            f"{gain.mean():.2g} with a standard error of {error:.2g})"
        )
    return ""


def _missed(n: np.ndarray, curves: np.ndarray, law: np.ndarray) -> str:
    """What is said where a mean misses the fitted law by more than its noise (a union bound over the sizes)."""
    repeats, points = curves.shape
    error = np.sqrt(np.maximum(curves.var(0, ddof=1), _smoothed(n, curves)) / repeats)
    off = np.abs(curves.mean(0) - law[0] * n ** -law[1] - law[2])
    worst = int((off / error).argmax())
    if off[worst] <= stdtrit(repeats - 1, 1 - 0.025 / points) * error[worst]:
        return ""
    return f"no power law follows the curve: the best one misses the error at {n[worst]:g} rows by {off[worst]:.2g}"


def plausible(scores: np.ndarray, *, count: int = COUNT, seed: int = 0) -> np.ndarray:
    """Plausible mean curves (count, points) given scores (repeats, points) or (repeats, points, test rows).

    Curves of several methods measured on the same repeats and rows belong side by side on the points' axis: their draws
    then share what the repeats and rows have in common. The spread over rows is what all repeats share (`crossed`).
    """
    table = np.asarray(scores, dtype=np.float64)
    curves = table.mean(2) if table.ndim == 3 else table
    repeats = len(curves)
    if repeats < 2:
        raise UserError("plausible curves need at least 2 repeats")
    rng = seeds.numpy(seed, "plausible curves")
    mean = curves.mean(0)
    freedom = repeats - 1
    stretch = np.sqrt(freedom / rng.chisquare(freedom, (count, 1)))
    out: np.ndarray = mean + stretch * (rng.normal(size=(count, repeats)) @ (curves - mean)) / math.sqrt(
        repeats * freedom
    )
    if table.ndim == 3:
        rows = table.shape[2]
        away = table.mean(0) - mean[:, None]
        squares = [mean_squares(table[:, p]) for p in range(table.shape[1])]
        shared = np.array([max(s.rows - s.noise, 0.0) / s.rows if s.rows > 0 else 0.0 for s in squares])
        out = out + rng.normal(size=(count, rows)) @ (away.T * np.sqrt(shared)) / math.sqrt(rows * (rows - 1))
    return out


def _smoothed(n: np.ndarray, curves: np.ndarray) -> np.ndarray:
    """The variance over repeats along the sizes: a straight line between logarithms, as a few repeats tell little."""
    own = curves.var(0, ddof=1)
    if not (own > 0).any():
        return np.ones(len(n))
    own = np.maximum(own, np.median(own[own > 0]) / 100)
    slope, level = np.polyfit(np.log(n), np.log(own), 1)
    out: np.ndarray = np.exp(level + slope * np.log(n))
    return out


def _least_squares(n: np.ndarray, curves: np.ndarray, weights: np.ndarray, *, bounded: bool, finer: int) -> np.ndarray:
    """Least squares' (scale, rate, offset) (count, 3) over curves (count, sizes); scale >= 0, offset too if bounded.

    For a rate the other two are linear: the rate is searched on a grid, that is made ten times finer `finer` times.
    """
    w = weights / weights.sum()
    centre = math.exp(float(w @ np.log(n)))  # sizes in units of it, so that both columns are of like size at any rate
    row = np.arange(len(curves))
    grid = np.geomspace(*RATES, 81)[None]
    for level in range(finer + 1):
        x = np.exp(-grid[..., None] * np.log(n / centre))
        loss, scale, offset = _two(x, curves, w, bounded)
        k = loss.argmin(1)
        grid = np.broadcast_to(grid, loss.shape)
        rate = grid[row, k]
        if level < finer:
            grid = np.geomspace(
                grid[row, np.maximum(k - 1, 0)], grid[row, np.minimum(k + 1, grid.shape[1] - 1)], 21, axis=1
            )
    return np.stack([scale[row, k] * centre**rate, rate, offset[row, k]], 1)


def _two(x: np.ndarray, y: np.ndarray, w: np.ndarray, bounded: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least squares of y (count, sizes) = scale x + offset, with x (count or 1, grid, sizes).

    Returns loss, scale and offset, each (count, grid).
    """
    sx, sxx = x @ w, x**2 @ w
    sy, syy = (y @ w)[:, None], (y**2 @ w)[:, None]
    sxy = np.matmul(x, (y * w)[:, :, None])[..., 0] if len(x) > 1 else (y * w) @ x[0].T
    scale = np.maximum((sxy - sx * sy) / np.maximum(sxx - sx**2, 1e-300), 0.0)
    offset = sy - scale * sx
    if bounded:
        through = np.maximum(sxy / sxx, 0.0)
        scale, offset = np.where(offset < 0, through, scale), np.maximum(offset, 0.0)
    loss = syy + scale**2 * sxx + offset**2 - 2 * (scale * sxy + offset * sy - scale * offset * sx)
    return loss, scale, offset


def _reach(laws: np.ndarray, error: float) -> np.ndarray:
    """The size at which each law (count, 3) comes down to the error; infinite where its offset is not below it."""
    scale, rate, offset = laws.T
    room = error - offset
    with np.errstate(over="ignore", divide="ignore"):
        n = np.where(room > 0, (scale / np.where(room > 0, room, 1.0)) ** (1 / rate), np.inf)
    return np.maximum(n, 1.0)


def equal_size(sizes: np.ndarray, curves: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """The size (count,) at which each of curves (count, sizes) first comes down to its error (count,).

    Between measured sizes along straight lines of log n through the curve's lowest error so far; 0 where the first
    size already does better (fewer rows than measured suffice) and infinite where the last does not.
    """
    best = np.minimum.accumulate(curves, 1)
    below = best <= errors[:, None]
    k = below.argmax(1)
    row, x = np.arange(len(curves)), np.log(np.asarray(sizes, dtype=np.float64))
    before = np.maximum(k - 1, 0)
    drop = best[row, before] - best[row, k]
    share = np.where(drop > 0, (best[row, before] - errors) / np.where(drop > 0, drop, 1.0), 0.0)
    n = np.exp(x[before] + share * (x[k] - x[before]))
    return np.where(below.any(1), np.where(k == 0, 0.0, n), np.inf)
