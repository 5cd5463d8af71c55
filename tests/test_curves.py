"""Peaks and power laws in curves: no peak is found where there is none, laws are found, and other shapes refused."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from modicum.core.errors import UserError
from modicum.maths.peak import differences, peak, rise
from modicum.maths.power_law import (
    IllBehaved,
    _least_squares,
    equal_size,
    fit,
    plausible,
    rounded,
)

RUNS = 400
SIZES = np.array([10, 20, 40, 80, 160, 320, 640.0])


def worlds(points: int) -> dict[str, tuple[np.ndarray, np.ndarray, bool]]:
    """Curves without a peak: their means, noise at each point, and whether points of a repeat are a random walk.

    A cliff at one end is the least favourable: what is left is flat, and only one side of a triple can fail.
    """
    k = np.arange(points)
    even, middle = np.ones(points), np.where(np.abs(k - points // 2) <= 1, 5.0, 1.0)
    first, last = np.where(k == 0, -100.0, 0), np.where(k == points - 1, -100.0, 0)
    return {
        "flat": (0.0 * k, even, False),
        "falling": (-1.0 * k, even, False),
        "U-shape": (np.abs(k - points / 3) * 2.0, even, False),
        "U-shape, noisy middle": (np.abs(k - points / 3) * 1.0, middle, False),
        "rises once": (first, even, False),
        "rises once, noisy middle": (first, middle, False),
        "falls at the end": (last, even, False),
        "falls at the end, noisy middle": (last, middle, False),
        "random walk": (first, even, True),
    }


def draw(
    world: tuple[np.ndarray, np.ndarray, bool], repeats: int, rng: np.random.Generator, runs: int = RUNS
) -> np.ndarray:
    mean, noise, walk = world
    z = rng.normal(size=(runs, repeats, len(mean)))
    out: np.ndarray = mean + noise * (np.cumsum(z, 2) if walk else z)
    return out


@pytest.mark.parametrize("repeats", [3, 5, 10])
@pytest.mark.parametrize("name", worlds(9))
def test_no_peak_is_found_where_there_is_none(name: str, repeats: int) -> None:
    rng = np.random.default_rng(repeats)
    found = sum(peak(range(9), table).found for table in draw(worlds(9)[name], repeats, rng))
    assert found <= stats.binom.ppf(0.999, RUNS, 0.05), f"{found} of {RUNS} false peaks"


def test_the_level_is_used_up_where_the_truth_is_least_favourable() -> None:
    """A test that never says yes would hold the level as well: at the edge it says so in about 5 %."""
    mean = np.array([-100.0, 0.0, 0.0])
    rng = np.random.default_rng(0)
    found = sum(peak(range(3), t).found for t in draw((mean, np.ones(3), False), 5, rng, 2000))
    assert abs(found / 2000 - 0.05) < 3 * np.sqrt(0.05 * 0.95 / 2000)


@pytest.mark.parametrize(("repeats", "height", "power"), [(4, 12, 0.8), (6, 6, 0.8), (10, 4, 0.8)])
def test_a_real_peak_is_found_with_its_height(repeats: int, height: float, power: float) -> None:
    """A descent with a noisier bump, heights in units of the noise elsewhere."""
    k = np.arange(9)
    mean = -0.3 * k + height * np.exp(-((k - 4) ** 2) / 1.5)
    truth = max(min(mean[j] - mean[:j].min(), mean[j] - mean[j + 1 :].min()) for j in range(1, 8))
    tables = draw((mean, 1 + np.exp(-((k - 4) ** 2) / 2), False), repeats, np.random.default_rng(1), 200)
    results = [peak(k, t) for t in tables]
    assert np.mean([r.found for r in results]) >= power
    assert np.mean([r.low <= truth <= r.high for r in results]) >= 0.95
    assert all(r.found == (r.p <= 0.05) == (r.low > 0) for r in results)
    assert np.mean([abs(r.at - 4) <= 1 for r in results if r.found]) > 0.9


def test_peak_of_three_points_is_the_worse_of_two_paired_t_tests() -> None:
    x = np.random.default_rng(0).normal([0, 2, 0.5], 1, (6, 3))
    ours = peak([1, 2, 4], x)
    sides = [stats.ttest_rel(x[:, 1], x[:, k], alternative="greater").pvalue for k in (0, 2)]
    assert ours.p == pytest.approx(max(sides), rel=1e-10)
    assert (ours.before, ours.at, ours.after) == (1, 2, 4)
    assert ours.height == pytest.approx(x[:, 1].mean() - max(x[:, 0].mean(), x[:, 2].mean()))


def test_rise_is_bonferroni_over_pairs_and_falls_are_rises_of_the_negative() -> None:
    x = np.random.default_rng(3).normal([0, 0.2, 3, 1], 1, (5, 4))
    pairs = [
        (stats.ttest_rel(x[:, j], x[:, i], alternative="greater").pvalue, i, j) for j in range(4) for i in range(j)
    ]
    p, i, j = min(pairs)
    assert (rise(range(4), x).before, rise(range(4), x).at) == (i, j)
    assert rise(range(4), x).p == pytest.approx(min(1, 6 * p), rel=1e-10)
    assert rise(range(4), -x[:, ::-1]).p == pytest.approx(rise(range(4), x).p)


def test_ties_of_counted_mistakes_are_no_certainty() -> None:
    """Errors of few test rows: all repeats may differ by one same step, a t of infinity without the floor."""
    table = np.array([[0.1, 0.2, 0.1, 0.3], [0.2, 0.3, 0.2, 0.1], [0.1, 0.2, 0.1, 0.2]])
    assert np.isfinite(peak(range(4), table).p)
    assert not peak(range(4), table).found
    rng = np.random.default_rng(5)
    flat = rng.binomial(20, 0.1, (RUNS, 4, 8)) / 20
    assert sum(peak(range(8), t).found for t in flat) <= stats.binom.ppf(0.999, RUNS, 0.05)


def test_standard_errors_of_differences_are_paired() -> None:
    x = np.random.default_rng(0).normal(size=(7, 5)) + np.random.default_rng(1).normal(size=(7, 1)) * 10
    up, error = differences(x)
    assert up[1, 3] == pytest.approx((x[:, 3] - x[:, 1]).mean())
    assert error[1, 3] == pytest.approx((x[:, 3] - x[:, 1]).std(ddof=1) / np.sqrt(7))


@pytest.mark.parametrize(
    ("x", "scores", "says"),
    [
        ([1, 2, 3], np.zeros((2, 3)), "at least 3 repeats"),
        ([1, 2], np.zeros((4, 2)), "3 points"),
        ([1, 3, 2], np.zeros((4, 3)), "must increase"),
        ([1, 2, 3], np.zeros(3), r"\(repeats, points\)"),
        ([1, 2, 3], np.array([[1, 2, np.nan]] * 4), "at 3 is nan"),
        ([1, 2, 3], np.ones((4, 3)), "the same curve"),
    ],
)
def test_bad_curves_are_refused(x: list[float], scores: np.ndarray, says: str) -> None:
    with pytest.raises(UserError, match=says):
        peak(x, scores)


def test_a_law_without_noise_is_found_exactly() -> None:
    for a, b, c in ((2, 0.5, 0.1), (1, 0.3, 0.0), (5, 1.2, 0.02)):
        found = _least_squares(SIZES, (a * SIZES**-b + c)[None], np.ones(7), bounded=True, finer=7)[0]
        np.testing.assert_allclose(found, (a, b, c), rtol=1e-4, atol=1e-5)


def noisy(rng: np.random.Generator, repeats: int, offset: float = 0.1) -> np.ndarray:
    out: np.ndarray = 2 * SIZES**-0.5 + offset + 0.05 * (SIZES / 10) ** -0.5 * rng.normal(size=(repeats, 7))
    return out


@pytest.mark.parametrize(("repeats", "offset"), [(4, 0.1), (10, 0.1), (5, 0.0)])
def test_intervals_of_the_law_cover_the_truth(repeats: int, offset: float) -> None:
    rng, hits, runs = np.random.default_rng(0), np.zeros(4), 150
    error = 2 * 2000**-0.5 + offset
    for k in range(runs):
        law = fit(SIZES, noisy(rng, repeats, offset), seed=k)
        needed = law.needed(error)
        triples = ((law.scale, 2), (law.rate, 0.5), (law.offset, offset))
        hits += [i.low <= truth <= i.high for i, truth in triples] + [needed.low <= 2000 <= needed.high]
    assert (hits / runs >= 0.89).all(), hits / runs  # 95 % less three standard errors


def test_needed_says_what_is_not_reachable() -> None:
    law = fit(SIZES, noisy(np.random.default_rng(0), 10))
    far = law.needed(0.05)
    assert np.isinf(far.n)
    assert np.isinf(far.low)
    assert "not reachable with more rows" in far.words
    near = law.needed(law.offset.mean * 1.01)
    assert np.isinf(near.high)
    assert "may not be reachable" in near.words
    inside = law.needed(0.3)
    assert inside.low < 100 < inside.high
    assert "about 99 rows" in inside.words
    assert "extrapolation" in law.needed(0.135).words
    with pytest.raises(UserError, match="above 0"):
        law.needed(0)
    band = law.at([100, 1e6])
    assert (band[:, 1] <= band[:, 0]).all()
    assert (band[:, 0] <= band[:, 2]).all()


@pytest.mark.parametrize(
    ("curve", "says"),
    [
        ([0.5, 0.3, 0.25, 0.6, 0.3, 0.2, 0.15], "a peak at 80"),
        ([0.2, 0.21, 0.23, 0.26, 0.3, 0.33, 0.35], "rises from"),
        ([0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3], "no improvement"),
        ([0.5, 0.5, 0.5, 0.5, 0.2, 0.19, 0.19], "no power law follows"),
    ],
)
def test_ill_behaved_curves_are_refused(curve: list[float], says: str) -> None:
    scores = np.array(curve) + 0.003 * np.random.default_rng(0).normal(size=(5, 7))
    with pytest.raises(IllBehaved, match=says):
        fit(SIZES, scores)


def test_few_sizes_are_refused() -> None:
    with pytest.raises(IllBehaved, match="at least 4"):
        fit(SIZES[:3], noisy(np.random.default_rng(0), 5)[:, :3])
    with pytest.raises(UserError, match="above 0"):
        fit(SIZES - 10, noisy(np.random.default_rng(0), 5))


def test_errors_that_do_not_vary_are_refused() -> None:
    with pytest.raises(IllBehaved, match="the same errors"):
        fit(SIZES, np.zeros((5, 7)))
    with pytest.raises(IllBehaved, match="the same errors"):
        fit(SIZES, noisy(np.random.default_rng(0), 1) + np.arange(4)[:, None] / 7)


def test_well_behaved_curves_are_seldom_refused() -> None:
    rng = np.random.default_rng(2)
    refused = 0
    for _ in range(60):
        try:
            fit(SIZES, noisy(rng, 5))
        except IllBehaved:
            refused += 1
    assert refused <= 6


def test_plausible_curves_have_students_spread_and_the_rows_own() -> None:
    x = np.random.default_rng(0).normal(size=(4, 3)) * [1, 2, 3]
    drawn = plausible(x, count=200_000)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    half = stats.t.ppf(0.975, 3) * x.std(0, ddof=1) / 2
    np.testing.assert_allclose((high - low) / 2, half, rtol=0.03)
    contrast = drawn @ [1, -1, 0.5]
    own = x @ [1, -1, 0.5]
    assert np.ptp(np.quantile(contrast, [0.025, 0.975])) / 2 == pytest.approx(
        stats.t.ppf(0.975, 3) * own.std(ddof=1) / 2, rel=0.03
    )
    rows = np.random.default_rng(1).normal(size=(1, 2, 50)) * [[[1.0], [3.0]]] + np.zeros((4, 1, 1))
    rows = rows + 1e-6 * np.random.default_rng(2).normal(size=(4, 2, 50))
    spread = plausible(rows, count=20_000).std(0)
    np.testing.assert_allclose(spread, rows[0].std(1, ddof=1) / np.sqrt(50), rtol=0.05)


def test_equal_size_reads_between_sizes_on_a_logarithmic_axis() -> None:
    at = np.array([10, 100, 1000.0])
    curves = np.array([[0.4, 0.2, 0.1]] * 4 + [[0.4, 0.5, 0.1]])
    found = equal_size(at, curves, np.array([0.3, 0.1, 0.5, 0.05, 0.25]))
    np.testing.assert_allclose(found, [10**1.5, 1000, 0, np.inf, 10 ** (2 + 0.5)])


def test_numbers_of_rows_are_rounded_for_reading() -> None:
    assert [rounded(v) for v in (7.4, 1234.0, 98765.0, np.inf)] == ["7", "1,200", "99,000", "infinitely many"]
