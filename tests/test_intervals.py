"""Intervals against closed forms, and their coverage against a truth that is known exactly.

The simulated world: row i is right for seed s when  mu + seed_s + difficulty_i + noise_is > 0, a probit random-effects
model. Difficulties come from a finite set of values, so expected accuracy is a finite sum. Given its seeds' effects
an experiment's rows are independent draws of one of 2^S patterns of right and wrong, so the counts of patterns are
multinomial and 10,000 rows cost no more than 200.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import ndtr, ndtri, stdtrit
from sklearn.metrics import r2_score

from modicum.core.errors import UserError
from modicum.maths.intervals import (
    Interval,
    MeanSquares,
    bounds,
    crossed,
    difference_bounds,
    gain,
    linearised,
    mean_squares,
    paired,
    repeated,
)

SEEDS = 5
EXPERIMENTS = 4000
SLACK = 3 * math.sqrt(0.05 * 0.95 / EXPERIMENTS)  # three Monte-Carlo standard deviations: 0.0103
ROWS = (200, 10_000)
WORLDS = [(sd, hard, p) for sd in (0.0, 0.01, 0.03) for hard in (0.5, 1.0, 3.0) for p in (0.7, 0.9)]
UNDECIDED = [(-0.1, 0.1), (0.0, 0.1), (-0.1, 0.0)]


def normal_nodes(count: int) -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return nodes, weights / weights.sum()


NODES, WEIGHTS = normal_nodes(21)


def latent(accuracy: float, seed_sd: float, spread: float) -> tuple[float, float]:
    """The threshold and the latent sd between seeds for which accuracies have about this mean and sd."""
    z = ndtri(accuracy)
    sd = seed_sd * math.sqrt(1 + spread**2) / (math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi))
    return z * math.sqrt(1 + spread**2 + sd**2), sd


def joint(p: np.ndarray) -> np.ndarray:
    """Probabilities (..., 2^S) of every pattern of independent right answers, from those of each seed (..., S)."""
    out = np.ones((*p.shape[:-1], 1))
    for s in range(p.shape[-1]):
        out = np.concatenate([out * (1 - p[..., s : s + 1]), out * p[..., s : s + 1]], axis=-1)
    return out


def patterns(seeds: int) -> np.ndarray:
    return (np.arange(2**seeds)[:, None] >> np.arange(seeds) & 1).astype(np.float64)


def draw(rng: np.random.Generator, rows: int, probabilities: np.ndarray) -> np.ndarray:
    return rng.multinomial(rows, probabilities / probabilities.sum(axis=-1, keepdims=True)).astype(np.float64)


def squares_of(counts: np.ndarray, kinds: np.ndarray) -> MeanSquares:
    """Mean squares of many tables at once, from how often each kind (kinds, seeds) of row occurs in each."""
    rows, seeds = counts.sum(axis=1), kinds.shape[1]
    by_seed = counts @ kinds / rows[:, None]
    mean = by_seed.mean(axis=1)
    between_seeds = rows * ((by_seed - mean[:, None]) ** 2).sum(axis=1)
    between_rows = seeds * (counts @ kinds.mean(axis=1) ** 2 - rows * mean**2)
    left = np.maximum(counts @ (kinds**2).sum(axis=1) - rows * seeds * mean**2 - between_seeds - between_rows, 0)
    a, b = seeds - 1, rows - 1
    return MeanSquares(mean, between_seeds / a, between_rows / b, left / (a * b))


def one_method(
    seed: int, rows: int, seed_sd: float, spread: float, accuracy: float, experiments: int = EXPERIMENTS
) -> tuple[np.ndarray, float]:
    """Counts of patterns (experiments, 2^S), and the exact expected accuracy."""
    rng = np.random.default_rng(seed)
    mu, sd = latent(accuracy, seed_sd, spread)
    effects = sd * rng.standard_normal((experiments, 1, SEEDS))
    given_difficulty = joint(ndtr(mu + effects + spread * NODES[:, None]))
    counts = draw(rng, rows, np.einsum("q,eqk->ek", WEIGHTS, given_difficulty))
    return counts, float(WEIGHTS @ ndtr((mu + spread * NODES) / math.sqrt(1 + sd**2)))


def two_methods(
    seed: int, rows: int, seed_sd: float, spread: float, own: float, better: float, experiments: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Counts of (pattern of a, pattern of b) pairs, the pairs' differences (4^S, S), and the exact expected difference.

    Rows have a difficulty shared by both methods and one of a method's `own`; half of the variance between seeds is
    shared (the labelled subset). Accuracies are near 0.8, a's latent score is `better`.
    """
    rng = np.random.default_rng(seed)
    mu, sd = latent(0.8, seed_sd, math.hypot(spread, own))
    shared = rng.standard_normal((experiments, SEEDS))
    nodes, weights = normal_nodes(5)
    given_difficulty, truth = [], []
    for shift in (better, 0.0):
        effects = sd * (shared + rng.standard_normal((experiments, SEEDS))) / math.sqrt(2)
        row = mu + shift + spread * NODES[:, None] + own * nodes
        right = joint(ndtr(row[:, :, None] + effects[:, None, None, :]))
        given_difficulty.append(np.einsum("c,eqck->eqk", weights, right))
        truth.append(WEIGHTS @ ndtr(row / math.sqrt(1 + sd**2)) @ weights)
    both = np.einsum("q,eqi,eqj->eij", WEIGHTS, *given_difficulty, optimize=True).reshape(experiments, -1)
    kinds = patterns(SEEDS)
    return draw(rng, rows, both), (kinds[:, None] - kinds[None]).reshape(-1, SEEDS), float(truth[0] - truth[1])


def covered(low: np.ndarray, high: np.ndarray, truth: float) -> float:
    return float(np.mean((low <= truth) & (truth <= high)))


@pytest.mark.parametrize("rows", ROWS)
def test_coverage_is_93_to_97_percent_in_every_world(rows: int) -> None:
    rates = {}
    for k, world in enumerate(WORLDS):
        counts, truth = one_method(k, rows, *world)
        limits = bounds(squares_of(counts, patterns(SEEDS)), SEEDS, rows, 0.95, binary=True)
        rates[world] = covered(*limits, truth)
    assert min(rates.values()) > 0.93 - SLACK, rates
    assert max(rates.values()) < 0.97 + SLACK, rates
    assert 0.945 < np.mean(list(rates.values())) < 0.967, rates


@pytest.mark.parametrize("rows", ROWS)
def test_thousand_whole_tables_through_the_public_function(rows: int) -> None:
    counts, truth = one_method(7, rows, 0.01, 1.0, 0.8, experiments=1000)
    kinds = patterns(SEEDS).T
    found = [crossed(np.repeat(kinds, c, axis=1)) for c in counts.astype(int)]
    low, high = np.array([(i.low, i.high) for i in found]).T
    assert 0.93 <= covered(low, high, truth) <= 0.975
    expected = bounds(squares_of(counts, patterns(SEEDS)), SEEDS, rows, 0.95, binary=True)
    np.testing.assert_allclose([low, high], expected, rtol=1e-9)


def test_seeds_alone_and_a_percentile_bootstrap_under_cover() -> None:
    """The contrast that decides for this interval: at 200 rows seeds know nothing of which rows were drawn."""
    counts, truth = one_method(11, 200, 0.01, 3.0, 0.8)
    by_seed = counts @ patterns(SEEDS) / 200
    mean, error = by_seed.mean(axis=1), by_seed.std(axis=1, ddof=1) / math.sqrt(SEEDS)
    assert covered(mean - 1.96 * error, mean + 1.96 * error, truth) < 0.5
    student = stdtrit(SEEDS - 1, 0.975) * error
    assert covered(mean - student, mean + student, truth) < 0.65

    counts, truth = one_method(12, 10_000, 0.03, 1.0, 0.8, experiments=300)
    rng = np.random.default_rng(0)
    low, high = np.empty(300), np.empty(300)
    for k, count in enumerate(counts):
        row_weights = rng.multinomial(10_000, count / 10_000, size=400) / 10_000
        seed_weights = rng.multinomial(SEEDS, np.full(SEEDS, 1 / SEEDS), size=400) / SEEDS
        low[k], high[k] = np.quantile(((row_weights @ patterns(SEEDS)) * seed_weights).sum(axis=1), [0.025, 0.975])
    assert covered(low, high, truth) < 0.9
    ours = bounds(squares_of(counts, patterns(SEEDS)), SEEDS, 10_000, 0.95, binary=True)
    assert covered(*ours, truth) > 0.92


@pytest.mark.parametrize("rows", ROWS)
def test_null_comparison_rarely_says_gain(rows: int) -> None:
    experiments = 1000
    gains, either = [], []
    for k, (seed_sd, spread, own) in enumerate(
        [(0, 1, 0.5), (0.01, 1, 0.5), (0.03, 1, 1), (0.01, 3, 0.3), (0.03, 3, 1)]
    ):
        counts, kinds, truth = two_methods(k, rows, seed_sd, spread, own, 0.0, experiments)
        assert truth == 0
        low, high = difference_bounds(squares_of(counts, kinds), SEEDS, rows, 0.95, binary=True)
        gains.append(np.mean(low > 0))
        either.append(np.mean((low > 0) | (high < 0)))
    assert max(gains) <= 0.05, gains
    assert max(either) <= 0.07, either
    assert np.mean(either) > 0.02, "so conservative that it would find nothing"


@pytest.mark.parametrize("rows", ROWS)
def test_true_differences_are_covered_and_found(rows: int) -> None:
    rates = []
    for k, (seed_sd, spread, own) in enumerate([(0, 1, 0.5), (0.01, 3, 0.5), (0.03, 1, 1)]):
        counts, kinds, truth = two_methods(20 + k, rows, seed_sd, spread, own, 0.3, 500)
        assert truth > 0.02
        limits = difference_bounds(squares_of(counts, kinds), SEEDS, rows, 0.95, binary=True)
        rates.append(covered(*limits, truth))
        if seed_sd <= 0.01 and rows == 10_000:
            assert np.mean(limits[0] > 0) > 0.95
    assert min(rates) > 0.92, rates
    assert max(rates) < 0.99, rates


def test_paired_is_what_its_sufficient_statistics_say() -> None:
    counts, kinds, _ = two_methods(3, 200, 0.01, 1, 0.5, 0.2, 20)
    low, high = difference_bounds(squares_of(counts, kinds), SEEDS, 200, 0.95, binary=True)
    right = patterns(SEEDS)
    pairs = np.repeat(right, 32, axis=0), np.tile(right, (32, 1))
    for k, count in enumerate(counts.astype(int)):
        found = paired(np.repeat(pairs[0].T, count, axis=1), np.repeat(pairs[1].T, count, axis=1))
        np.testing.assert_allclose([found.low, found.high], [low[k], high[k]], atol=1e-12)


@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_losses_are_covered_for_other_numbers_of_seeds(seeds: int) -> None:
    """Normal seed, row and interaction effects; two seeds are covered too, at the price of a wide interval."""
    rng = np.random.default_rng(seeds)
    for seed_sd, row_sd in [(0.0, 1.0), (0.05, 1.0), (0.3, 1.0)]:
        tables = seed_sd * rng.standard_normal((800, seeds, 1)) + row_sd * rng.standard_normal((800, 1, 200))
        tables += 5 + rng.standard_normal((800, seeds, 200))
        found = [crossed(t) for t in tables]
        rate = np.mean([i.low <= 5 <= i.high for i in found])
        assert rate > 0.925, (seed_sd, rate)


def test_r_squared_is_covered() -> None:
    rng = np.random.default_rng(5)
    hits = []
    for _ in range(400):
        x, noise = rng.standard_normal((2, 150))
        target = x + 0.5 * noise
        prediction = (1 + 0.1 * rng.standard_normal((SEEDS, 1))) * x
        interval = crossed(linearised(r_squared, (target - prediction) ** 2, target, target**2))
        hits.append(interval.low <= 1 - (0.25 + 0.01) / 1.25 <= interval.high)
    assert 0.915 < np.mean(hits) < 0.985


def test_repeated_splits_are_covered_and_uncorrected_are_not() -> None:
    """The mean of a normal as the learner: expected squared error is 1 + 1/labels, whatever the data set."""
    rng = np.random.default_rng(6)
    rows, test, labels, splits = 200, 40, 10, 5
    ours, plain = [], []
    for _ in range(800):
        y = rng.standard_normal(rows)
        orders = [rng.permutation(rows) for _ in range(splits)]
        scores = [float(((y[o[:test]] - y[o[test : test + labels]].mean()) ** 2).mean()) for o in orders]
        interval = repeated(scores, rows - test, test)
        ours.append(interval.low <= 1 + 1 / labels <= interval.high)
        half = stdtrit(splits - 1, 0.975) * np.std(scores, ddof=1) / math.sqrt(splits)
        plain.append(abs(np.mean(scores) - 1 - 1 / labels) <= half)
    assert 0.92 < np.mean(ours) < 0.975
    assert np.mean(plain) < 0.91


def r_squared(error: np.ndarray, target: np.ndarray, square: np.ndarray) -> np.ndarray:
    return 1 - error / (square - target**2)


# Closed forms and laws.


def test_mean_squares_are_the_textbook_sums() -> None:
    table = np.random.default_rng(0).standard_normal((4, 30))
    found = mean_squares(table)
    rows, seeds = table.mean(0), table.mean(1)
    residual = table - rows - seeds[:, None] + table.mean()
    expected = [table.mean(), 30 * seeds.var(ddof=1), 4 * rows.var(ddof=1), (residual**2).sum() / (3 * 29)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_one_seed_is_students_t_over_rows_and_says_so() -> None:
    losses = np.random.default_rng(1).exponential(size=(1, 50))
    found = crossed(losses)
    expected = stats.ttest_1samp(losses[0], 0).confidence_interval(0.95)
    np.testing.assert_allclose([found.low, found.high], [expected.low, expected.high], rtol=1e-12)
    assert found.over == "rows"
    assert "(rows only)" in str(found)
    assert crossed(np.repeat(losses, 2, axis=0)).over == "seeds and rows"


def test_one_seed_of_right_and_wrong_is_wilson() -> None:
    right = (np.arange(10_000) < 9_000).astype(float)[None]
    expected = stats.binomtest(9_000, 10_000).proportion_ci(0.95, method="wilson")
    found = crossed(right)
    np.testing.assert_allclose([found.low, found.high], [expected.low, expected.high], atol=2e-6)


def test_seed_effects_alone_are_students_t_over_seeds() -> None:
    means = np.array([0.1, 0.5, 0.2, 0.9])
    found = crossed(np.repeat(means[:, None], 100, axis=1))
    expected = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    np.testing.assert_allclose([found.low, found.high], [expected.low, expected.high], rtol=1e-9)


@pytest.mark.parametrize("seeds", [1, 2, 5, 30])
@pytest.mark.parametrize("rows", [2, 200, 10_000])
def test_all_right_or_all_wrong_has_wilsons_width(seeds: int, rows: int) -> None:
    t2 = stdtrit(rows - 1, 0.975) ** 2
    right, wrong = crossed(np.ones((seeds, rows))), crossed(np.zeros((seeds, rows), dtype=bool))
    assert (right.mean, right.high) == (1, 1)
    assert right.low == pytest.approx(rows / (rows + t2))
    assert (wrong.mean, wrong.low) == (0, 0)
    assert wrong.high == pytest.approx(t2 / (rows + t2))


def test_methods_that_agree_everywhere_differ_by_no_more_than_unseen_rows_allow() -> None:
    right = (np.random.default_rng(2).random((5, 200)) < 0.8).astype(float)
    same = paired(right, right)
    assert same.mean == 0
    assert same.high == pytest.approx(stdtrit(199, 0.975) / 202)
    assert same.low == -same.high
    assert gain(same) == "no measurable difference"
    opposite = paired(np.ones((5, 200)), np.zeros((5, 200)))
    assert opposite.mean == opposite.high == 1
    assert 0.96 < opposite.low < 0.99
    assert gain(opposite) == "gain"


def test_constant_differences_of_losses_have_no_width() -> None:
    losses = np.random.default_rng(3).random((5, 64))
    assert paired(losses, losses) == Interval(0.0, 0.0, 0.0)
    better = paired(losses + 0.25, losses)
    assert better.low == pytest.approx(0.25)
    assert better.high == pytest.approx(0.25)
    assert gain(better) == "gain"


def test_seeds_that_tie_on_unrelated_rows_still_have_a_width() -> None:
    found = crossed(np.array([[1, 0, 1, 0.0], [0, 1, 0, 1]]))
    assert found.low < 0.3
    assert found.high > 0.7


@pytest.mark.parametrize("binary", [True, False])
def test_interval_laws(binary: bool) -> None:
    rng = np.random.default_rng(4)
    a, b = rng.random((2, 6, 120))
    a, b = (a < 0.9, b < 0.8) if binary else (a, b)
    once, pair = crossed(a), paired(a, b)
    shuffled = np.asarray(a)[rng.permutation(6)][:, rng.permutation(120)]
    np.testing.assert_allclose(ends(crossed(shuffled)), ends(once), rtol=1e-9)
    np.testing.assert_allclose(ends(crossed(1.0 - a)), 1 - ends(once)[[0, 2, 1]], rtol=1e-9)
    np.testing.assert_allclose(ends(paired(b, a)), -ends(pair)[[0, 2, 1]], rtol=1e-9)
    assert crossed(a, 0.5).high < once.high < crossed(a, 0.99).high
    assert crossed(a) == once
    if not binary:
        np.testing.assert_allclose(ends(crossed(3 * a + 7)), 3 * ends(once) + 7, rtol=1e-9)
        np.testing.assert_allclose(ends(crossed(a - b)), ends(pair), rtol=1e-9)


def ends(interval: Interval) -> np.ndarray:
    return np.array([interval.mean, interval.low, interval.high])


@given(st.integers(1, 30), st.integers(2, 40), st.floats(0, 1), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_right_and_wrong_stay_in_range_with_a_width(seeds: int, rows: int, p: float, seed: int) -> None:
    a, b = np.random.default_rng(seed).random((2, seeds, rows)) < p
    one, two = crossed(a), paired(a, b)
    assert 0 <= one.low <= one.mean <= one.high <= 1
    assert -1 <= two.low <= two.mean <= two.high <= 1
    assert one.high > one.low
    assert two.high > two.low


def test_linearised_is_exact_for_means_and_matches_the_jackknife() -> None:
    rng = np.random.default_rng(8)
    target = 3 + rng.standard_normal(80)
    prediction = target + 0.5 * rng.standard_normal((4, 80))
    columns = (target - prediction) ** 2, target, target**2
    np.testing.assert_allclose(linearised(lambda e: e, columns[0]), columns[0], atol=1e-9)
    scores = linearised(r_squared, *columns)
    np.testing.assert_allclose(scores.mean(1), [r2_score(target, p) for p in prediction], rtol=1e-9)
    kept = [np.delete(np.arange(80), i) for i in range(80)]
    left_out = np.array([r2_score(target[k], prediction[0, k]) for k in kept])
    jackknife = math.sqrt(79 / 80 * ((left_out - left_out.mean()) ** 2).sum())
    assert scores[0].std(ddof=1) / math.sqrt(80) == pytest.approx(jackknife, rel=0.05)
    rmse = linearised(np.sqrt, columns[0])
    np.testing.assert_allclose(rmse.mean(1), np.sqrt(columns[0].mean(1)), rtol=1e-9)
    slope = (columns[0] - columns[0].mean(1, keepdims=True)) / (2 * np.sqrt(columns[0].mean(1, keepdims=True)))
    np.testing.assert_allclose(rmse - rmse.mean(1, keepdims=True), slope, atol=1e-7)


def test_repeated_is_nadeau_and_bengios_formula() -> None:
    scores = [0.8, 0.84, 0.79, 0.86, 0.81]
    found = repeated(scores, n_train=90, n_test=10)
    half = stats.t.ppf(0.975, 4) * math.sqrt((1 / 5 + 1 / 9) * np.var(scores, ddof=1))
    assert found == Interval(found.mean, found.mean - half, found.mean + half, "splits")
    assert found.mean == pytest.approx(0.82)


def test_equal_splits_keep_a_width_where_the_range_is_known() -> None:
    z2 = 1.959964**2
    perfect = repeated([1.0, 1.0, 1.0], 80, 20)
    assert perfect.high == 1
    assert perfect.low == pytest.approx(1 - z2 / (20 + z2), rel=1e-6)
    assert gain(repeated([0.0] * 5, 80, 20)) == "no measurable difference"
    assert repeated([7.5, 7.5], 80, 20) == Interval(7.5, 7.5, 7.5, "splits")


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(0.01, 0.2, "gain"), (-0.2, -0.01, "loss"), *((a, b, "no measurable difference") for a, b in UNDECIDED)],
)
def test_gain_needs_zero_outside(low: float, high: float, word: str) -> None:
    assert gain(Interval((low + high) / 2, low, high)) == word


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(0.87123, 0.8421, 0.8971), "0.871 [0.842, 0.897]"),
        (Interval(0.5, 0.49991, 0.50009), "0.50000 [0.49991, 0.50009]"),
        (Interval(1234.5, 1034.5, 1434.5), "1234 [1034, 1434]"),
        (Interval(0.5, 0.5, 0.5), "0.500 [0.500, 0.500]"),
    ],
)
def test_text_has_two_digits_of_width(interval: Interval, text: str) -> None:
    assert str(interval) == text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: crossed(np.ones(5)), r"scores must be \(seeds, rows\).*got shape \(5,\)"),
        (lambda: crossed(np.ones((5, 1))), "at least 1 seed and 2 test rows"),
        (lambda: crossed(np.ones((0, 9))), "at least 1 seed and 2 test rows"),
        (lambda: crossed(np.array([[0, 1.0], [0, np.nan]])), "seed 1, row 1 is nan"),
        (lambda: crossed(np.eye(3), level=95), "between 0 and 1, such as 0.95: got 95"),
        (lambda: paired(np.ones((5, 4)), np.ones((5, 6))), r"same seeds and rows: got \(5, 4\) and \(5, 6\)"),
        (lambda: paired(np.ones((2, 4)), np.full((2, 4), np.inf)), "b at seed 0, row 0 is inf"),
        (lambda: repeated([0.5], 80, 20), "at least 2 scores"),
        (lambda: repeated([0.5, np.nan], 80, 20), "not a finite number"),
        (lambda: repeated([0.5, 0.6], 80, 0), "n_test=0"),
        (lambda: repeated([0.5, 0.6], 80, 20, level=1.0), "got 1.0"),
        (lambda: linearised(r_squared, np.ones((2, 5)), np.ones(5), np.ones(4)), "columns need the same"),
        (lambda: linearised(lambda x: x / (x - x), np.ones((2, 5))), "statistic is not finite"),
    ],
)
def test_mistakes_are_named(call: object, message: str) -> None:
    with np.errstate(all="ignore"), pytest.raises(UserError, match=message):
        call()  # type: ignore[operator]
