"""mlxtend's bias_variance_decomp beside ours where the truth is known: bootstrap and plug-in are both biased."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from estimates import away, decomposed, near
from peers import installed

from modicum.maths.random_features import curve

N, ROUNDS, SD = 20, 40, 0.8


@pytest.fixture(scope="module")
def theirs() -> Iterator[Callable[..., tuple[float, float, float]]]:
    """The function without its siblings, one of which imports matplotlib."""
    root = installed("mlxtend")
    package = ModuleType("mlxtend.evaluate")
    package.__path__ = [str(root / "evaluate")]
    sys.modules["mlxtend.evaluate"] = package
    yield importlib.import_module("mlxtend.evaluate.bias_variance_decomp").bias_variance_decomp
    for name in [n for n in sys.modules if n.startswith("mlxtend")]:
        del sys.modules[name]


class Nearest:
    """The label of the nearest training row, of inputs (n, 1); remembers every prediction."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def fit(self, x: np.ndarray, y: np.ndarray) -> Nearest:
        self.x, self.y = x[:, 0], y
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        self.seen.append(self.y[np.abs(self.x - x).argmin(1)])
        return self.seen[-1]


class Columns:
    """Least squares of least norm."""

    def fit(self, x: np.ndarray, y: np.ndarray) -> Columns:
        self.x, self.y = x, y
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        goal, at = np.zeros((len(x), 1)), np.array([x.shape[1]])
        return curve(self.x, self.y[:, None], x, goal, at=at).outputs[0][:, 0]


def noise(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs (n, 1) and labels of noise around 0, and test inputs. One nearest neighbour: bias 0, variance σ² (O6)."""
    return rng.random((N, 1)), SD * rng.normal(size=N), rng.random((15, 1))


def test_its_numbers_are_the_plug_in_of_bootstrap_samples(theirs: Any) -> None:
    """From the same predictions, to 1e-9: its variance is ours times (1 - 1/N), its bias ours and variance/N more."""
    rng = np.random.default_rng(0)
    x, y, test = noise(rng)
    target, model = 0.3 * rng.normal(size=15), Nearest()
    said = theirs(model, x, y, test, target, loss="mse", num_rounds=ROUNDS, random_seed=3)
    again, draws = Nearest(), np.random.RandomState(3)
    for _ in range(ROUNDS):
        own = draws.choice(np.arange(N), size=N, replace=True)
        again.fit(x[own], y[own]).predict(test)
    np.testing.assert_array_equal(again.seen, model.seen)
    d = decomposed(np.stack(again.seen)[..., None], target)
    plain = d.loss.mean, d.bias.mean + d.variance.mean / ROUNDS, d.variance.mean * (1 - 1 / ROUNDS)
    assert said == pytest.approx(plain, rel=1e-9)


def test_where_the_truth_is_known_it_is_far_off_and_we_are_not(theirs: Any) -> None:
    """One nearest neighbour of pure noise: bias² 0 and variance σ² = .64. In a bootstrap sample of n rows the j-th
    nearest is the nearest with p_j = (1-(j-1)/n)^n - (1-j/n)^n; so mlxtend expects of itself the variance
    σ²(1-Σp²)(1-1/N), about half, and calls the rest bias: σ²Σp² and σ²(1-Σp²)/N more.
    """
    rng = np.random.default_rng(1)
    j = np.arange(1, N + 1)
    same = float((((1 - (j - 1) / N) ** N - (1 - j / N) ** N) ** 2).sum())
    ours, said = [], []
    for k in range(150):
        x, y, test = noise(rng)
        said.append(theirs(Nearest(), x, y, test, np.zeros(15), loss="mse", num_rounds=ROUNDS, random_seed=k)[1:])
        fits = [Nearest().fit(*noise(rng)[:2]).predict(test) for _ in range(4)]
        d = decomposed(np.stack(fits)[..., None], np.zeros(15))
        ours.append((d.bias.mean, d.variance.mean))
    for found, truth, biased in zip(
        (0, 1),
        (0.0, SD**2),
        (SD**2 * (same + (1 - same) / ROUNDS), SD**2 * (1 - same) * (1 - 1 / ROUNDS)),
        strict=True,
    ):
        near(np.array(ours)[:, found], truth)
        near(np.array(said)[:, found], biased)
        assert away(np.array(said)[:, found], truth) > 10
    assert np.mean(said, 0) == pytest.approx([0.31, 0.33], abs=0.03)


def test_it_decomposes_another_n(theirs: Any) -> None:
    """Least squares on 40 rows: the variance is largest at width 40; mlxtend's is at the 25 rows a bootstrap keeps."""
    rng, n, widths = np.random.default_rng(2), 40, (15, 25, 40)
    said, ours = [], []
    for k in range(12):
        w, test = rng.normal(size=60) / 60**0.5, rng.normal(size=(30, 60))
        sets = [rng.normal(size=(n, 60)) for _ in range(4)]
        labels = [x @ w + 0.7 * rng.normal(size=n) for x in sets]
        row = []
        for p in widths:
            more = {"loss": "mse", "num_rounds": 20, "random_seed": k}
            row.append(theirs(Columns(), sets[0][:, :p], labels[0], test[:, :p], test @ w, **more)[2])
        said.append(row)
        fits = [
            [Columns().fit(x[:, :p], y).predict(test[:, :p]) for x, y in zip(sets, labels, strict=True)] for p in widths
        ]
        ours.append([decomposed(np.stack(f)[..., None], test @ w).variance.mean for f in fits])
    theirs_by_width, ours_by_width = np.median(said, 0), np.median(ours, 0)
    assert theirs_by_width.argmax() == 1
    assert ours_by_width.argmax() == 2
    assert theirs_by_width[1] > 3 * ours_by_width[1], "at 25 columns it reports the instability of 25 rows, not of 40"


def test_its_zero_one_terms_do_not_add_up(theirs: Any) -> None:
    """Its bias is 1[main != y], its variance P(prediction != main); ours, of the same votes, adds up (O13)."""
    rng = np.random.default_rng(3)
    x, y = rng.random((N, 1)), rng.integers(0, 3, N)
    test, target, model = rng.random((40, 1)), rng.integers(0, 3, 40), Nearest()
    loss, bias, variance = theirs(model, x, y, test, target, num_rounds=ROUNDS, random_seed=0)
    votes = np.stack(model.seen)
    d = decomposed(9.0 * np.eye(3)[votes], target, "zero-one")
    main = np.array([np.bincount(v, minlength=3).argmax() for v in votes.T])
    assert (loss, bias) == pytest.approx((d.loss.mean, d.bias.mean), abs=1e-12)
    assert variance == pytest.approx((votes != main).mean(), abs=1e-12)
    assert abs(bias + variance - loss) > 0.1
    assert d.bias.mean + d.variance.mean == pytest.approx(loss, abs=1e-12)
