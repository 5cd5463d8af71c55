"""Bias and variance against exact answers, and what the biased plug-in and the bootstrap say instead (O11-O16).

docs/oracles.md lists every oracle with the test that holds it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from estimates import away, decomposed, near
from scipy.special import logsumexp

from modicum.diagnostics.bias_variance import bias_variance
from modicum.maths.decomposition import Sums
from modicum.maths.random_features import Draw, curve
from modicum.training.many import Member, Work, train

# O11-O14, O16: the numbers of the plug-in beside ours


def test_squared_loss_of_four_models() -> None:
    """O11: the plug-in says .152 and .187, we say .09 and .25, which is the truth."""
    rng = np.random.default_rng(0)
    f = 0.3 + 0.5 * rng.normal(size=(4, 20_000))
    d = decomposed(f[..., None], np.zeros(20_000))
    near(d.rows["bias"], 0.09)
    near(d.rows["variance"], 0.25)
    plain = f.mean(0) ** 2, f.var(0)
    near(plain[0], 0.09 + 0.25 / 4)
    near(plain[1], 0.25 * 3 / 4)
    assert min(away(plain[0], 0.09), away(plain[1], 0.25)) > 30


def mean_logsumexp(classes: int, sd: float) -> float:
    """E logsumexp of independent normal logits, by quadrature: E log S = ∫ (e^-t - E e^-tS) dt/t, t = e^u."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    u = np.linspace(-30, 12, 6001)
    laplace = (np.exp(-np.exp(u[:, None] + sd * nodes)) @ weights / weights.sum()) ** classes
    return float(np.trapezoid(np.exp(-np.exp(u)) - laplace, u))


def test_cross_entropy_of_two_models() -> None:
    """O12: of ten logits of sd .7 the information is .215; of two models the plug-in says .106, we .212."""
    truth, n = mean_logsumexp(10, 0.7) - np.log(10), 20_000
    assert truth == pytest.approx(0.2149, abs=1e-4)
    z = 0.7 * np.random.default_rng(1).normal(size=(2, n, 10))
    d = decomposed(z, np.zeros(n, int), "cross-entropy")
    plain = logsumexp(z, -1).mean(0) - logsumexp(z.mean(0), -1)
    assert plain.mean() == pytest.approx(0.106, abs=1.5e-3)
    assert d.variance.mean == pytest.approx(2 * plain.mean(), rel=1e-12)
    assert d.variance.mean == pytest.approx(truth, rel=0.03), "the jackknife leaves what is of second order in 1/N"
    more = decomposed(0.7 * np.random.default_rng(2).normal(size=(6, n, 10)), np.zeros(n, int), "cross-entropy")
    near(more.rows["variance"], truth)
    near(more.rows["bias"], np.log(10))


def test_zero_one_loss_adds_up_row_by_row() -> None:
    """O13: E01 = 1[main != y] + Σ_(main = y) P(err) - Σ_(main != y) P(right), of votes on five classes."""
    rng = np.random.default_rng(3)
    votes, y = rng.choice(5, size=(7, 300), p=[0.5, 0.2, 0.1, 0.1, 0.1]), rng.integers(0, 2, 300)
    main = np.array([np.bincount(v, minlength=5).argmax() for v in votes.T])
    d = decomposed(9.0 * np.eye(5)[votes], y, "zero-one")
    wrong = (votes != y).mean(0)
    harm, helped = wrong * (main == y), (1 - wrong) * (main != y)
    assert d.loss.mean == pytest.approx(wrong.mean(), abs=1e-12)
    assert d.bias.mean == pytest.approx((main != y).mean(), abs=1e-12)
    assert (d.parts["harm"].mean, d.parts["help"].mean) == pytest.approx((harm.mean(), -helped.mean()), abs=1e-12)
    assert wrong == pytest.approx((main != y) + harm - helped, abs=1e-12)


def test_a_grid_of_data_and_initialisations() -> None:
    """O14: truth 1, .5, 2 on a 4 x 3 grid. The plug-in says 1.25, .67, 1.0; mean squares say the truth."""
    rng = np.random.default_rng(4)
    ours, plain = [], []
    for _ in range(150):
        f = rng.normal(size=(4, 1, 60)) + 0.5**0.5 * rng.normal(size=(1, 3, 60)) + 2**0.5 * rng.normal(size=(4, 3, 60))
        d = decomposed(f[..., None], np.zeros(60), seeds=np.tile(range(3), 4))
        ours.append([d.parts[name].mean for name in ("data", "initialisation", "interaction")])
        data, start = f.mean(1).var(0).mean(), f.mean(0).var(0).mean()
        plain.append([data, start, f.var((0, 1)).mean() - data - start])
    for k, (truth, said) in enumerate(((1.0, 1.25), (0.5, 2 / 3), (2.0, 1.0))):
        near(np.array(ours)[:, k], truth)
        near(np.array(plain)[:, k], said)
        assert away(np.array(plain)[:, k], truth) > 10


def test_most_of_the_spread_between_runs_is_that_of_few_test_rows() -> None:
    """O16 (Jordan 2023): 500 rows show 3.72e-4, of which 1.37e-4 is between runs."""
    rng, sd, n = np.random.default_rng(5), 0.0117, 500
    found = []
    for _ in range(150):
        difficulty = rng.uniform(0.767, 0.953, n)  # so that the variance of a row is .1177 in the mean
        right = rng.random((8, n)) < difficulty + sd * rng.normal(size=(8, 1))
        sums = Sums(2)
        sums.add(np.where(right, 1.0, -1.0)[..., None] * np.array([0.5, -0.5]), range(8))
        found.append(sums.spread(np.zeros(n, int)))
        variance = right.var(0, ddof=1).mean()
        assert found[-1].true == pytest.approx((n * right.mean(1).var(ddof=1) - variance) / (n - 1), rel=1e-9)
    near([s.true for s in found], 1.37e-4)
    near([s.naive for s in found], 3.72e-4)


# O15: bias is not approximation error


def regressions(rng: np.random.Generator, w: np.ndarray, p: int, models: int, n: int = 30) -> tuple[np.ndarray, Any]:
    """Weights (models, d) of least squares on the first p of d isotropic columns, and the rows they were fitted to."""
    d, noise = len(w), 0.5
    x = rng.normal(size=(models, n, d))
    y = x @ w + noise**0.5 * rng.normal(size=(models, n))
    fits = np.zeros((models, d))
    for k in range(models):
        read = curve(x[k][:, :p], y[k][:, None], np.eye(p), np.zeros((p, 1)), at=np.array([p])).outputs[0]
        fits[k, :p] = read[:, 0]
    return fits, (x, y)


@pytest.mark.parametrize("p", [12, 60])
def test_bias_is_approximation_error_and_estimation_bias(p: int) -> None:
    """O15 (Brown & Ali 2024) in closed form: R(w) = |w - w*|², f* has the p weights of w*, and E ŵ is those times
    min(n/p, 1). Below n rows estimation has no bias; above, bias is more than what the columns cannot say.
    """
    n, noise, d = 30, 0.5, 80
    rng = np.random.default_rng(6)
    w = rng.normal(size=d) / d**0.5
    inside, outside = (w[:p] ** 2).sum(), (w[p:] ** 2).sum()
    shrink, left = min(n / p, 1.0), outside + noise
    loss = outside + left * p / (n - p - 1) if p < n else outside + inside * (1 - shrink) + left * n / (p - n - 1)
    approximation, estimation_bias = outside, inside * (1 - shrink) ** 2
    found = [decomposed(d**0.5 * regressions(rng, w, p, 4)[0][..., None], d**0.5 * w) for _ in range(160)]
    near([f.bias.mean for f in found], approximation + estimation_bias)
    near([f.variance.mean for f in found], loss - approximation - estimation_bias)
    if p > n:
        assert away([f.bias.mean for f in found], approximation) > 10


def test_variance_is_optimisation_error_and_estimation_variance() -> None:
    """O15 for descent that stops early: its optimisation error over test rows is negative, as it may be; and it adds
    estimation bias, where the minimiser has none.
    """
    n, p, rng, models = 30, 20, np.random.default_rng(7), 60
    w = rng.normal(size=40) / 40**0.5
    minimisers, (x, y) = regressions(rng, w, p, models)
    flat = x.reshape(-1, 40)[:, :p]
    work = Work.of_features(flat, y.ravel(), 0, optimizer="sgd", momentum=0.0, dtype=torch.float64)
    own: dict[str, Any] = {"encoder": "mlp(depth=0, norm='none')", "batch": n, "lr": 0.1, "schedule": "constant"}
    members = [Member(np.arange(k * n, (k + 1) * n), steps=3, seed=k, **own) for k in range(models)]
    stopped = np.zeros((models, 40))
    for reading in train(members, work):
        for k, number in enumerate(reading.numbers):
            head: Any = reading.member(k).head
            stopped[number, :p] = head.weight.detach().numpy()[0] * work.scale[1]

    def risk(weights: np.ndarray) -> float:
        return float(((weights - w) ** 2).sum(-1).mean())

    best = np.where(np.arange(40) < p, w, 0)
    parts = {k: decomposed(40**0.5 * f[..., None], 40**0.5 * w) for k, f in (("erm", minimisers), ("gd", stopped))}
    for name, f in (("erm", minimisers), ("gd", stopped)):
        d = parts[name]
        correction = d.variance.mean / models  # of the mean model's own risk, which is not that of infinitely many
        approximation, estimation_bias = risk(best), risk(f.mean(0)) - correction - risk(best)
        optimisation = risk(f) - risk(minimisers)
        estimation_variance = risk(minimisers) - (risk(f.mean(0)) - correction)
        assert d.bias.mean == pytest.approx(approximation + estimation_bias, rel=1e-9)
        assert d.variance.mean == pytest.approx(optimisation + estimation_variance, rel=1e-9)
    assert parts["erm"].bias.low < risk(best) < parts["erm"].bias.high
    assert parts["gd"].bias.mean > 1.1 * risk(best)
    assert risk(stopped) < risk(minimisers)


def test_a_teacher_within_reach_leaves_no_approximation_error() -> None:
    """O15 as `bias-variance --teacher` says it: bias and variance together are then the estimation error."""
    how: dict[str, Any] = {"encoder": "mlp(depth=0)", "batch": 400, "lr": 0.1, "steps": 120}
    found = bias_variance("diabetes", teacher="same", label_noise=0.5, splits=4, seeds=1, **how)
    own = {r["part"]: r for r in found.rows if r["part"] in ("bias", "variance", "loss")}
    total = own["bias"]["value"] + own["variance"]["value"]
    assert total == pytest.approx(own["loss"]["value"], rel=1e-9)
    assert own["bias"]["low"] < 0 < own["bias"]["high"], "least squares of the right columns has no bias"
    said = float(found.words.partition("bias and variance together are estimation error: ")[2].split()[0])
    assert said == pytest.approx(total, rel=5e-3)
    assert "Approximation error is exactly 0" in found.words


# The bootstrap


def test_the_bootstrap_moves_the_peak() -> None:
    """n = 400: the losses of our draws peak at width 400; those of bootstrap samples where their distinct rows are
    fitted, at 253 of 400 rows in the mean (1 - 1/e).
    """
    n, wide, rng = 400, 440, np.random.default_rng(8)
    peaks: dict[bool, list[int]] = {False: [], True: []}
    for k in range(5):
        x = rng.normal(size=(n + 100, 30))
        y = (x @ rng.normal(size=30) + rng.normal(size=n + 100))[:, None]
        features = Draw("relu", 30, wide, k)(x)
        for again in peaks:
            own = rng.choice(n, n) if again else np.arange(n)
            found = curve(features[own], y[own], features[n:], y[n:])
            assert found.threshold == found.rank == len(np.unique(own))
            peaks[again].append(int(found.loss.argmax()) + 1)
    assert np.median(peaks[False]) == pytest.approx(n, abs=3)
    assert np.median(peaks[True]) == pytest.approx(n * (1 - np.exp(-1)), abs=10)
