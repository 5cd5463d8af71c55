"""Bias and variance against closed forms: linear smoothers, Gaussian logits, random-effects grids; and their coverage.

Many rows with one truth are as many experiments at once; where rows differ, experiments are repeated and their mean is
held within four standard errors of the truth.
"""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from modicum.core.errors import UserError
from modicum.maths import decomposition
from modicum.maths.decomposition import LOSSES, Decomposition, Sums


def decomposed(outputs: np.ndarray, targets: np.ndarray, loss: Any, seeds: Any = None) -> Decomposition:
    """Of outputs (blocks, n, c), one model a block; or (blocks, seeds, n, c), every seed in every block."""
    if outputs.ndim == 4:
        blocks, inits = outputs.shape[:2]
        index, seeds = np.repeat(np.arange(blocks), inits), np.tile(np.arange(inits), blocks)
        outputs = outputs.reshape(-1, *outputs.shape[2:])
    else:
        index = np.arange(len(outputs))
    sums = Sums(0 if outputs.shape[-1] == 1 else outputs.shape[-1], limit=99)
    sums.add(outputs, index, seeds)
    return sums.decompose(targets, loss)


def near(found: np.ndarray, truth: float, sigmas: float = 4) -> None:
    """The mean of independent estimates is within so many standard errors of the truth."""
    error = found.std(ddof=1) / math.sqrt(len(found))
    assert abs(found.mean() - truth) < sigmas * error, (found.mean(), truth, error)


def grid(rng: np.random.Generator, shape: tuple[int, int, int], sds: tuple[float, float, float]) -> np.ndarray:
    """Random effects (data, seeds, n) of data, initialisation and interaction with these standard deviations."""
    blocks, seeds, n = shape
    sizes = [(blocks, 1, n), (1, seeds, n), (blocks, seeds, n)]
    return np.asarray(sum(sd * rng.normal(size=size) for sd, size in zip(sds, sizes, strict=True)))


# Exact identities


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", [(3,), (4, 2), (3, 3)])
def test_the_parts_add_up_exactly(shape: tuple[int, ...], loss: str, soft: bool) -> None:
    rng = np.random.default_rng(0)
    z = 3 * rng.normal(size=(*shape, 60, 5))
    y = rng.dirichlet(np.ones(5), 60) if soft else rng.integers(0, 5, 60)
    d = decomposed(z, y, loss)
    assert d.noise + d.bias.mean + d.variance.mean == pytest.approx(d.loss.mean, abs=1e-12)
    assert d.balance.mean == pytest.approx(d.bias.mean - d.variance.mean, abs=1e-12)
    if d.parts:
        assert sum(part.mean for part in d.parts.values()) == pytest.approx(d.variance.mean, abs=1e-12)
    assert set(d.parts) == ({"harm", "help"} if loss == "zero-one" else set() if len(shape) == 1 else
                            {"data", "initialisation", "interaction"})  # fmt: skip
    p = softmax(z.reshape(-1, 60, 5), -1)
    target = y if soft else np.eye(5)[y]
    direct = {
        "squared": ((p - target) ** 2).sum(-1).mean() + (1 - (target**2).sum(-1)).mean(),
        "cross-entropy": -(target * np.log(p)).sum(-1).mean(),
        "zero-one": 1 - (target * np.eye(5)[p.argmax(-1)]).sum(-1).mean(),
    }
    assert d.loss.mean == pytest.approx(direct[loss], abs=1e-12)
    for part in (d.loss, d.bias, d.variance, d.balance, *d.parts.values()):
        assert part.low <= part.mean <= part.high
        assert part.over == "seeds and rows"


@pytest.mark.parametrize("n_models", [2, 3, 7])
def test_independent_models_get_the_textbook_correction(n_models: int) -> None:
    rng = np.random.default_rng(1)
    f, y = rng.normal(size=(n_models, 40, 1)), rng.normal(size=40)
    d = decomposed(f, y, "squared")
    plain = f[..., 0].var(0)
    np.testing.assert_allclose(d.rows["variance"], plain * n_models / (n_models - 1), atol=1e-12)
    mean = f[..., 0].mean(0)
    np.testing.assert_allclose(d.rows["bias"], (mean - y) ** 2 - plain / (n_models - 1), atol=1e-12)

    z, labels = rng.normal(size=(n_models, 40, 3)) * 2, rng.integers(0, 3, 40)
    d = decomposed(z, labels, "cross-entropy")
    plain = logsumexp(z, -1).mean(0) - logsumexp(z.mean(0), -1)
    without = [logsumexp(np.delete(z, k, 0).mean(0), -1) for k in range(n_models)]
    jackknifed = plain + (n_models - 1) * (np.mean(without, 0) - logsumexp(z.mean(0), -1))
    np.testing.assert_allclose(d.rows["variance"], jackknifed, atol=1e-12)
    if n_models == 2:
        np.testing.assert_allclose(jackknifed, 2 * plain, atol=1e-12)
    # Gruber & Buettner: the plug-in is the mean KL from the geometric mean, and what averaging logits gains.
    middle, p = softmax(z.mean(0), -1), softmax(z, -1)
    np.testing.assert_allclose(plain, (middle * np.log(middle / p)).sum(-1).mean(0), atol=1e-12)
    gained = d.rows["loss"] + np.log(middle[np.arange(40), labels])
    np.testing.assert_allclose(gained, plain, atol=1e-12)


def test_a_grid_is_the_two_way_analysis_of_variance() -> None:
    rng = np.random.default_rng(2)
    f = grid(rng, (5, 3, 30), (1.0, 0.7, 1.4))
    d = decomposed(f[..., None], np.zeros(30), "squared")
    blocks, seeds, _ = f.shape
    by_data, by_seed, middle = f.mean(1), f.mean(0), f.mean((0, 1))
    of_data, of_seed = seeds * by_data.var(0, ddof=1), blocks * by_seed.var(0, ddof=1)
    left = f - by_data[:, None] - by_seed + middle
    mixed = (left**2).sum((0, 1)) / ((blocks - 1) * (seeds - 1))
    expected = {"data": (of_data - mixed) / seeds, "initialisation": (of_seed - mixed) / blocks, "interaction": mixed}
    for name, values in expected.items():
        assert d.parts[name].mean == pytest.approx(values.mean(), abs=1e-12)


def test_chunks_and_order_make_no_difference_and_memory_does_not_grow() -> None:
    rng = np.random.default_rng(3)
    z, y = rng.normal(size=(40, 30, 4)).astype(np.float32), rng.integers(0, 4, 30)
    whole, pieces = Sums(4), Sums(4)
    whole.add(z, range(40))
    for start in (32, 0, 17, 3):
        stop = {32: 40, 0: 3, 17: 32, 3: 17}[start]
        pieces.add(z[start:stop], range(start, stop))
    for loss in LOSSES:
        a, b = whole.decompose(y, loss), pieces.decompose(y, loss)
        assert a.variance.mean == pytest.approx(b.variance.mean, abs=1e-12)
        assert a.bias.high == pytest.approx(b.bias.high, abs=1e-9)
        assert (a.models, a.blocks) == (40, 40)
    assert len(whole._cells) == 10


def held_and_more(rows: int) -> tuple[int, int]:
    """Bytes that the sums of 6 blocks x 5 seeds hold, and those that a decomposition takes beside them."""
    rng = np.random.default_rng(0)
    y, sums = rng.integers(0, 4, rows), Sums(4, limit=6)
    tracemalloc.start()
    try:
        for b, j in np.ndindex(6, 5):
            sums.add(rng.normal(size=(1, rows, 4)).astype(np.float32), [b], [j])
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for loss in LOSSES:
            sums.decompose(y, loss)
        sums.spread(y)
        return held, tracemalloc.get_traced_memory()[1] - held
    finally:
        tracemalloc.stop()


def test_memory_is_that_of_the_outputs_of_models_alone() -> None:
    held, more = held_and_more(10_000)
    outputs = 30 * 10_000 * 4 * 8
    assert outputs <= held < 1.05 * outputs
    assert more < 1.5 * held_and_more(5_000)[1], "what comes to it hardly grows with the rows"


def test_rows_taken_in_pieces_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    z, y = rng.normal(size=(4, 3, 53, 5)), rng.integers(0, 5, 53)
    whole = [decomposed(z, y, loss) for loss in LOSSES]
    monkeypatch.setattr(decomposition, "NUMBERS", 4 * 3 * 5 * 10)
    for loss, one in zip(LOSSES, whole, strict=True):
        cut = decomposed(z, y, loss)
        for name in ("bias", "variance", "balance"):
            a, b = getattr(one, name), getattr(cut, name)
            assert (a.low, a.mean, a.high) == pytest.approx((b.low, b.mean, b.high), abs=1e-12)
        assert {k: v.mean for k, v in one.parts.items()} == pytest.approx({k: v.mean for k, v in cut.parts.items()})
        assert one.medians == pytest.approx(cut.medians)


def test_numbers_far_from_zero_lose_no_digits() -> None:
    f = np.random.default_rng(4).normal(size=(6, 50, 1))
    near_zero, far = decomposed(f, np.zeros(50), "squared"), decomposed(f + 1e8, np.full(50, 1e8), "squared")
    assert far.variance.mean == pytest.approx(near_zero.variance.mean, rel=1e-6)
    assert far.bias.mean == pytest.approx(near_zero.bias.mean, rel=1e-6)


# Closed-form truth


def smoothed(smoother: np.ndarray, f: np.ndarray, at: np.ndarray, sd: float, models: int) -> list[Decomposition]:
    """200 experiments: models of a linear smoother (m, n) on fresh noise, against the noiseless truth `at` (m,)."""
    rng = np.random.default_rng(5)
    y = f + sd * rng.normal(size=(200, models, len(f)))
    return [decomposed((own @ smoother.T)[..., None], at, "squared") for own in y]


def hold(found: list[Decomposition], bias: float, variance: float) -> None:
    near(np.array([d.bias.mean for d in found]), bias)
    near(np.array([d.variance.mean for d in found]), variance)


def test_ridge_regression() -> None:
    rng = np.random.default_rng(6)
    n, p, ridge, sd = 300, 150, 0.2, 1.0
    x, w, new = rng.normal(size=(n, p)), rng.normal(size=p) / math.sqrt(p), rng.normal(size=(400, p))
    smoother = new @ np.linalg.solve(x.T @ x / n + ridge * np.eye(p), x.T / n)
    bias, variance = ((smoother @ x @ w - new @ w) ** 2).mean(), sd**2 * (smoother**2).sum(1).mean()
    left = ridge * np.linalg.inv(x.T @ x / n + ridge * np.eye(p))
    hold(smoothed(smoother, x @ w, new @ w, sd, 3), bias, variance)
    # That truth, averaged over directions of w, is near the limit of large n and p (Dobriban & Wager 2018).
    phi = p / n
    v = (-(phi + ridge - 1) + math.sqrt((phi + ridge - 1) ** 2 + 4 * ridge)) / (2 * ridge)
    t = (phi / (1 + v) ** 2) / (1 / v**2 - phi / (1 + v) ** 2)
    assert (left**2).sum() / p == pytest.approx((1 + t) / (1 + v) ** 2, rel=0.05)
    assert variance == pytest.approx(sd**2 * t, rel=0.1)


def test_nearest_neighbours_and_the_biased_plug_in_of_mlxtend() -> None:
    """mlxtend 0.23's bias_variance_decomp, its formula for mse written anew: the mean prediction stands for the truth.

    Its variance is low by (1 - 1/N), and its bias high by the same: here with N = 3 a third of the variance.
    """
    x = np.linspace(0, 1, 60)
    f = np.sin(6 * x)
    neighbours = np.argsort(np.abs(x[:, None] - x), 1, kind="stable")[:, :5]
    smoother = np.zeros((60, 60))
    np.put_along_axis(smoother, neighbours, 1 / 5, 1)
    bias, variance = ((smoother @ f - f) ** 2).mean(), 0.8**2 / 5
    hold(smoothed(smoother, f, f, 0.8, 3), bias, variance)

    rng = np.random.default_rng(7)
    predictions = (f + 0.8 * rng.normal(size=(2000, 3, 60))) @ smoother.T
    main = predictions.mean(1, keepdims=True)
    theirs = ((predictions - main) ** 2).mean((1, 2)), ((main[:, 0] - f) ** 2).mean(1)
    near(theirs[0], variance * 2 / 3)
    near(theirs[1], bias + variance / 3)
    with pytest.raises(AssertionError):
        near(theirs[0], variance, 10)


def test_mlxtend_zero_one_terms_do_not_add_up_and_ours_do() -> None:
    """Its bias is 1[main != y] and its variance P(prediction != main): on rows where main is wrong that adds twice."""
    votes = np.array([[0, 0, 1], [1, 1, 0], [1, 2, 1], [0, 0, 0]])  # rows x models, of three classes; truth 0
    y = np.zeros(4, int)
    main = np.array([0, 1, 1, 0])
    loss, bias, variance = (votes != 0).mean(), (main != y).mean(), (votes != main[:, None]).mean()
    assert (loss, bias, variance) == (0.5, 0.5, 0.25)
    d = decomposed(np.moveaxis(5.0 * np.eye(3)[votes], 1, 0), y, "zero-one")
    assert (d.loss.mean, d.bias.mean, d.variance.mean) == pytest.approx((0.5, 0.5, 0.0))
    assert (d.parts["harm"].mean, d.parts["help"].mean) == pytest.approx((1 / 12, -1 / 12))


NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(80)


def information(mean: float, sd: float) -> float:
    """E logsumexp - logsumexp of the mean, of two classes' logits (d/2, -d/2), d normal: by quadrature."""

    def sums(d: np.ndarray | float) -> np.ndarray:
        return np.logaddexp(np.divide(d, 2), -np.divide(d, 2))

    return float((WEIGHTS * sums(mean + sd * NODES)).sum() / WEIGHTS.sum() - sums(mean))


def logits(d: np.ndarray) -> np.ndarray:
    return np.stack([d / 2, -d / 2], -1)


def test_cross_entropy_of_gaussian_logits() -> None:
    rng = np.random.default_rng(8)
    truth, n = information(1.0, 1.5), 20_000
    d = decomposed(logits(1.0 + 1.5 * rng.normal(size=(8, n))), np.zeros(n, int), "cross-entropy")
    near(d.rows["variance"], truth)
    near(d.rows["bias"], math.log1p(math.exp(-1.0)))
    with pytest.raises(AssertionError):
        near(d.rows["variance"] * 7 / 8, truth, 8)
    few = decomposed(logits(1.0 + 1.5 * rng.normal(size=(2, n))), np.zeros(n, int), "cross-entropy")
    assert 0.9 * truth < few.variance.mean < truth, "two models leave something, yet far less than their plug-in"
    assert few.loss.mean - few.bias.mean == pytest.approx(few.variance.mean)


CYCLE = [(b, (b + j) % 4) for b in range(4) for j in range(2)]
"""Four data sets with two initialisations each, of which neighbours share one: no full grid."""


@pytest.mark.parametrize("cyclic", [False, True])
def test_data_and_initialisation_of_random_effects(cyclic: bool) -> None:
    rng = np.random.default_rng(9)
    found = []
    for _ in range(150):
        f = 0.5 + grid(rng, (4, 4 if cyclic else 2, 60), (1.0, math.sqrt(0.5), math.sqrt(2)))
        sums = Sums(0)
        cells = CYCLE if cyclic else [(b, j) for b in range(4) for j in range(2)]
        sums.add(np.stack([f[c] for c in cells])[..., None], *zip(*cells, strict=True))
        found.append(sums.decompose(np.zeros(60), "squared"))
    for name, truth in {"data": 1.0, "initialisation": 0.5, "interaction": 2.0}.items():
        near(np.array([d.parts[name].mean for d in found]), truth)
    hold(found, 0.25, 3.5)


def test_cross_entropy_where_models_share_initialisations() -> None:
    """The correction is not that of eight independent models, nor are its parts those of the plug-in."""
    rng = np.random.default_rng(10)
    n = 40_000
    d = 0.5 + grid(rng, (4, 4, n), (0.5, 0.8, 0.6))
    truth = information(0.5, math.sqrt(0.25 + 0.64 + 0.36))
    sums = Sums(2)
    sums.add(np.stack([logits(d[c]) for c in CYCLE]), *zip(*CYCLE, strict=True))
    found = sums.decompose(np.zeros(n, int), "cross-entropy")
    plain = logsumexp(logits(np.stack([d[c] for c in CYCLE])), -1).mean(0)
    plain = plain - logsumexp(logits(np.stack([d[c] for c in CYCLE])).mean(0), -1)
    assert found.variance.mean == pytest.approx(truth, rel=0.01)
    assert plain.mean() * 8 / 7 < 0.97 * truth
    shares = {k: v.mean / found.variance.mean for k, v in found.parts.items()}
    assert shares == pytest.approx({"data": 0.2, "initialisation": 0.512, "interaction": 0.288}, abs=0.02)


def test_soft_targets_have_their_noise_apart() -> None:
    rng = np.random.default_rng(11)
    pi = np.array([0.7, 0.2, 0.1])
    z = np.broadcast_to(np.log(pi), (5, 30, 3)) + 1e-9 * rng.normal(size=(5, 30, 3))
    y = np.broadcast_to(pi, (30, 3))
    noise = {"cross-entropy": -(pi * np.log(pi)).sum(), "squared": 1 - (pi**2).sum(), "zero-one": 0.3}
    for loss, expected in noise.items():
        d = decomposed(z, y, loss)
        assert (d.noise, d.bias.mean, d.variance.mean) == pytest.approx((expected, 0, 0), abs=1e-8)


def test_the_spread_between_runs_is_less_than_what_few_test_rows_show() -> None:
    rng = np.random.default_rng(12)
    sd, found = 0.0117, []
    for _ in range(120):
        difficulty = rng.uniform(0.6, 0.95, 500)
        runs = difficulty + sd * rng.normal(size=(8, 1))
        right = rng.random((8, 500)) < runs
        sums = Sums(2)
        sums.add(logits(np.where(right, 1.0, -1.0)), range(8))
        found.append(sums.spread(np.zeros(500, int)))
        assert found[-1].naive == pytest.approx(right.mean(1).var(ddof=1))
    near(np.array([s.true for s in found]), sd**2)
    assert np.mean([s.naive for s in found]) > 2.5 * sd**2


# Intervals


@pytest.mark.parametrize(("blocks", "rows"), [(3, 200), (4, 60), (4, 500), (8, 200)])
def test_coverage(blocks: int, rows: int) -> None:
    """Models differ on all rows alike (sd 0.25) and on each row; 300 experiments have a standard error of 1.3 %."""
    rng = np.random.default_rng(blocks * rows)
    truth = {"bias": 1.0, "variance": math.exp(0.18) * (1 + 0.25**2)}
    truth["loss"], truth["balance"] = truth["bias"] + truth["variance"], truth["bias"] - truth["variance"]
    held = dict.fromkeys(truth, 0)
    for _ in range(300):
        middle, sd = rng.normal(size=rows), np.exp(0.3 * rng.normal(size=rows))
        f = middle + sd * (0.25 * rng.normal(size=(blocks, 1)) + rng.normal(size=(blocks, rows)))
        d = decomposed(f[..., None], np.zeros(rows), "squared")
        for name, value in truth.items():
            interval = getattr(d, name)
            held[name] += interval.low <= value <= interval.high
    assert all(count >= 0.91 * 300 for count in held.values()), held


def test_coverage_of_a_grid_that_shares_its_initialisations() -> None:
    """Only the splits are jackknifed: what two initialisations do to all rows alike must be small, as it is of nets."""
    rng = np.random.default_rng(18)
    sds, alike = (0.8, 0.2, 0.5), (0.25, 0.05, 0.1)
    truth = {"bias": 1.0, "variance": sum(s**2 for s in (*sds, *alike)), "data": 0.8**2 + 0.25**2}
    held = dict.fromkeys(truth, 0)
    for _ in range(300):
        f = rng.normal(size=100) + grid(rng, (4, 2, 100), sds) + grid(rng, (4, 2, 1), alike)
        d = decomposed(f[..., None], np.zeros(100), "squared")
        for name, interval in {"bias": d.bias, "variance": d.variance, "data": d.parts["data"]}.items():
            held[name] += interval.low <= truth[name] <= interval.high
    assert all(count >= 0.91 * 300 for count in held.values()), held


def test_two_blocks_give_an_interval_of_the_loss_but_only_rows_for_bias() -> None:
    d = decomposed(np.random.default_rng(13).normal(size=(2, 50, 1)), np.zeros(50), "squared")
    assert (d.loss.over, d.bias.over, d.variance.over) == ("seeds and rows", "rows", "rows")


# Heavy tails, negative estimates, bad input


def test_unbiased_estimates_may_be_negative_and_are_shown() -> None:
    rng = np.random.default_rng(14)
    found = [decomposed(rng.normal(size=(3, 20, 1)), np.zeros(20), "squared").bias.mean for _ in range(50)]
    assert min(found) < 0 < max(found)


def test_few_models_or_rows_that_make_up_the_mean_are_said() -> None:
    rng = np.random.default_rng(15)
    f = rng.normal(size=(5, 200, 1))
    assert decomposed(f, np.zeros(200), "squared").warning == ""
    wild = f.copy()
    wild[2] *= 100
    d = decomposed(wild, np.zeros(200), "squared")
    assert "one of 5 models makes up 100 %" in d.warning
    assert d.medians["model"] < 2 < d.loss.mean
    rows = f.copy()
    rows[:, 7] *= 1000
    d = decomposed(rows, np.zeros(200), "squared")
    assert "2 of 200 rows make up 100 %" in d.warning
    assert d.medians["loss"] < 3 < d.loss.mean


def test_models_that_agree_have_no_variance() -> None:
    z = np.random.default_rng(16).normal(size=(1, 30, 3)).repeat(4, 0)
    for loss in LOSSES:
        d = decomposed(z, np.zeros(30, int), loss)
        assert d.variance.mean == pytest.approx(0, abs=1e-12)


def test_bad_input() -> None:
    y = np.zeros(20, int)
    z = np.random.default_rng(17).normal(size=(3, 20, 2))
    with pytest.raises(UserError, match=r"\(models, rows, 2\).*got shape \(3, 20, 3\) and 3 block"):
        Sums(2).add(np.zeros((3, 20, 3)), range(3))
    with pytest.raises(UserError, match=r"got shape \(3, 20, 2\) and 2 block"):
        Sums(2).add(z, range(2))
    with pytest.raises(UserError, match="nothing to decompose"):
        Sums(2).decompose(y, "squared")
    broken = z.copy()
    broken[1, 3, 0] = np.nan
    with pytest.raises(UserError, match=r"a model of block 1 gives outputs that are not finite: .*--lr.*NaN"):
        Sums(2).add(broken, range(3))
    one = Sums(2)
    one.add(z, [0, 0, 0])
    with pytest.raises(
        UserError, match=r"two independent models.*got 3 model\(s\) in 1 block\(s\); ask for more --splits"
    ):
        one.decompose(y, "squared")
    with pytest.raises(UserError, match="give every model its own block"):
        one.spread(y)
    same = Sums(2)
    same.add(z, range(3), [0, 0, 0])
    with pytest.raises(UserError, match="neither data nor seed"):
        same.decompose(y, "squared")
    with pytest.raises(UserError, match="neither data nor seed"):
        same.spread(y)
    with pytest.raises(UserError, match="unknown loss 'hinge'; valid: "):
        decomposed(z, y, "hinge")
    with pytest.raises(UserError, match="--loss zero-one is for classes"):
        decomposed(z[..., :1], y, "zero-one")
