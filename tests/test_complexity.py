"""Loss against complexity: exact values of smoothers and min-norm fits, the U-shape, the second descent, refusals."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.svm import SVC, SVR

from modicum.core.errors import UserError
from modicum.diagnostics._classical import (
    Family,
    Parts,
    choose,
    divide,
    estimator,
    least_squares,
    monomials,
)
from modicum.diagnostics._labelled import baseline, nested
from modicum.diagnostics._rows import given
from modicum.diagnostics.complexity import _row, complexity
from modicum.diagnostics.learning_curve import learning_curve


def parts(n: int = 40, columns: int = 3, count: int = 4, tests: int = 200, noise: float = 1.0, seed: int = 0) -> Parts:
    """Disjoint parts of y = sin(2 x₀) + noise, with test rows free of noise."""
    rng = np.random.default_rng(seed)
    x = [rng.normal(size=(n, columns)) for _ in range(count)]
    y = [np.sin(2 * p[:, :1]) + noise * rng.normal(size=(n, 1)) for p in x]
    new = rng.normal(size=(tests, columns))
    none = [np.zeros(n, int)] * count
    return Parts(x, y, none, new, np.sin(2 * new[:, :1]), np.zeros(tests, int), 0, 0)


@pytest.fixture(scope="module")
def default() -> object:
    return complexity()


def test_parts_are_disjoint_stratified_and_cover_the_rows() -> None:
    found = given("digits", limit=400)
    made = divide(found, 8, 0)
    assert sum(map(len, made.x)) == 400
    for codes in made.codes:
        assert set(codes) == set(range(10))
        assert abs(np.bincount(codes) - 5).max() <= 1
    rows = np.concatenate(made.x)
    assert len(np.unique(rows.round(6), axis=0)) == len(np.unique(found.features(found.train).round(4), axis=0))


def test_knn_has_the_variance_of_a_linear_smoother() -> None:
    """O6: on labels of pure noise the variance of k-NN is σ²/k, and n/k is its place on the axis."""
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(100, 2)) for _ in range(40)]
    y = [rng.normal(size=(100, 1)) for _ in range(40)]
    new = rng.normal(size=(300, 2))
    made = Parts(x, y, [np.zeros(100, int)] * 40, new, np.zeros((300, 1)), np.zeros(300, int), 0, 0)
    family = choose("knn", [1, 4, 10], made)
    assert [family.at(v) for v in family.values] == [10, 25, 100]
    for k in (1, 4, 10):
        out = np.stack([family.fit(k, part)[0] for part in range(40)])
        assert out.var(0, ddof=1).mean() == pytest.approx(1 / k, rel=0.12)


def test_least_squares_is_the_minimum_norm_solution_and_interpolates() -> None:
    made = parts()
    family = least_squares(made)
    assert family.threshold == 40
    assert 40 in family.values
    assert family.values[-1] == 640
    below, beyond = family.fit(10, 0)[1], family.fit(640, 0)[1]
    assert np.square(below - made.y[0]).mean() > 0.1
    np.testing.assert_allclose(beyond, made.y[0], atol=1e-8)
    own, new = family.fit(1, 0)[1], family.fit(1, 0)[0]
    np.testing.assert_allclose(own, made.y[0].mean(), atol=1e-12)
    np.testing.assert_allclose(new, made.y[0].mean(), atol=1e-12)


def test_polynomials_of_a_polynomial_are_exact() -> None:
    rng = np.random.default_rng(0)
    x = [rng.uniform(-1, 1, (60, 1)) for _ in range(3)]
    f = [p**3 - p for p in x]
    made = Parts(x, f, [np.zeros(60, int)] * 3, x[0], f[0], np.zeros(60, int), 0, 0)
    family = choose("polynomial", "1,2,3,5", made)
    losses = [np.square(family.fit(v, 1)[0] - f[0]).mean() for v in family.values]
    assert losses[0] > 1e-3
    assert max(losses[2:]) < 1e-20


def test_monomials_are_distinct_and_ordered_by_degree() -> None:
    for variables, count in ((1, 30), (3, 50), (20, 3000), (60, 300)):
        found = monomials(variables, count, np.random.default_rng(0))
        assert len(found) == len(set(found)) == count
        degrees = [len(m) for m in found]
        assert degrees == sorted(degrees)
    assert monomials(2, 6, np.random.default_rng(0))[:3] == [(), (0,), (1,)]


def test_bias_and_variance_of_least_squares_match_closed_forms() -> None:
    """Oracle O1 below the threshold: on pure noise and x ~ N(0, I) the variance is p/(n - p - 1)."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 40, 5)), rng.normal(size=(200, 40, 1))
    new = rng.normal(size=(400, 5))
    truth = rng.normal(size=(400, 1))
    made = Parts(list(x), list(y), [np.zeros(40, int)] * 200, new, truth, np.zeros(400, int), 0, 0)

    def fit(value: float, part: int) -> tuple[np.ndarray, np.ndarray]:
        weight = np.linalg.lstsq(x[part][:, : int(value)], y[part], rcond=None)[0]
        return new[:, : int(value)] @ weight, x[part][:, : int(value)] @ weight

    row = _row("classical", Family("own", "p", (5,), fit), 5, made)
    assert row["variance"] == pytest.approx(5 / 34, rel=0.15)
    assert row["train"] == pytest.approx(35 / 40, rel=0.05)
    noise = float(np.square(truth).mean())
    assert row["bias²"] == pytest.approx(noise, rel=0.05)
    assert row["test"] == pytest.approx(noise + 5 / 34, rel=0.05)


def test_losses_split_into_bias_and_variance_without_bias() -> None:
    """Loss, bias² and variance add up; deeper trees vary more and fit their own rows better."""
    found = complexity("diabetes", model="depth", over="1,3,8", seeds=6)
    for r in found.rows:
        assert r["bias²"] + r["variance"] == pytest.approx(r["mean"])
    classical = [r for r in found.rows if r["panel"] == "classical"]
    assert [r["complexity"] for r in classical] == [1, 3, 8]
    assert np.all(np.diff([r["variance"] for r in classical]) > 0)
    assert np.all(np.diff([r["train"] for r in classical]) < 0)


def test_the_first_figure_shows_a_u_and_a_second_descent(default: object) -> None:
    found = default
    beyond = [r for r in found.rows if r["panel"] == "second descent"]  # type: ignore[attr-defined]
    facts = found.facts  # type: ignore[attr-defined]
    top = max(beyond, key=lambda r: r["test"])
    assert top["complexity"] == facts["second_rows"]
    assert facts["peak"]["second descent"]["found"]
    assert beyond[-1]["test"] < min(r["test"] for r in beyond if r["complexity"] < 0.8 * facts["second_rows"])
    assert "U-shape" in found.words  # type: ignore[attr-defined]
    assert "ends below the first minimum" in found.words  # type: ignore[attr-defined]
    assert beyond[-1]["train"] < 1e-12
    for chart in ("complexity", "bias-variance"):
        assert found.png(chart)[:4] == b"\x89PNG"  # type: ignore[attr-defined]


def test_a_curve_without_a_rise_is_not_called_a_u() -> None:
    found = complexity("digits", model="forest", over="1,4,16", limit=400)
    assert "U-shape" not in found.words
    assert "no rise after it is beyond noise" in found.words


def test_estimators_of_scikit_learn_by_name() -> None:
    assert estimator("sklearn.svm.SVC", True) is SVC
    assert estimator("SVR", False) is SVR
    assert estimator("sklearn.ensemble.HistGradientBoostingClassifier", True).__name__.startswith("Hist")
    found = complexity("digits", model="sklearn.svm.SVC", over="C=0.001,0.1,10", limit=400)
    losses = [r["error"] for r in found.rows if r["panel"] == "classical"]
    assert losses[0] > losses[-1] + 0.05


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": "treee"}, "unknown model 'treee'; valid: tree"),
        ({"model": "os.system", "over": "x=1,2"}, "unknown model 'os.system'"),
        ({"model": "sklearn.evil.SVC", "over": "C=1,2"}, "unknown model"),
        ({"model": "SVR", "over": "C=1,2"}, "wanted a classifier"),
        ({"model": "SVC"}, "name the parameter"),
        ({"model": "SVC", "over": "D=1,2"}, "unknown parameter of SVC 'D'"),
        ({"model": "SVC", "over": "C=-1,2"}, "does not train on this data"),
        ({"model": "VotingClassifier", "over": "weights=1,2"}, "cannot be made without more"),
        ({"model": "tree", "over": "max_depth=1,2"}, "its complexity is max_leaf_nodes"),
        ({"over": "8,4"}, "increasing order"),
        ({"over": "4"}, "at least two values"),
        ({"over": 4}, "at least two values"),
        ({"over": "0,4"}, "whole numbers of at least 1"),
        ({"over": "2,4.5"}, "whole numbers"),
        ({"over": "2,x"}, "wanted values such as"),
        ({"over": "2,'x'"}, "wanted numbers"),
        ({"model": "knn", "over": "1,500"}, "at most the .* training rows of a part"),
        ({"seeds": 2}, "--seeds 2: wanted at least 3"),
        ({"seeds": 100}, "need 1000; give more rows or fewer"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        complexity("digits", **{"limit": 200, **options})  # type: ignore[arg-type]


def test_a_class_that_would_miss_from_a_part_is_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [f"{a:.4f},{'rare' if k < 6 else 'ab'[k % 2]}" for k, a in enumerate(rng.normal(size=200))]
    path = tmp_path / "rare.csv"
    path.write_text("\n".join(["x,label", *rows]))
    with pytest.raises(UserError, match="class rare has fewer than 8 training rows"):
        complexity(str(path), label="label")


def test_labels_that_are_all_alike_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "same.csv"
    path.write_text("\n".join(["x,label", *(f"{a:.3f},3.5" for a in np.random.default_rng(0).normal(size=120))]))
    for diagnostic in (complexity, learning_curve):
        with pytest.raises(UserError, match=r"every training label is 3\.5"):
            diagnostic(str(path), label="label:numbers")


def test_labels_of_noise_only_rise(tmp_path: Path) -> None:
    path = tmp_path / "noise.csv"
    rows = np.random.default_rng(0).normal(size=(300, 3))
    path.write_text("\n".join(["x,z,label", *(f"{a:.3f},{b:.3f},{c:.3f}" for a, b, c in rows)]))
    found = complexity(str(path), label="label")
    assert "nothing but a rise" in found.words
    assert "U-shape" not in found.words
    assert "ends below the first minimum" not in found.words


def test_features_that_are_not_finite_are_refused() -> None:
    found = given("digits", limit=100)

    class Holed(type(found.input)):  # type: ignore[misc]
        def flat(self, batch: Any) -> np.ndarray:
            out = np.array(super().flat(batch), np.float32)
            out[2, 7] = np.inf
            return out

    holed = copy.copy(found.input)
    holed.__class__ = Holed
    broken = replace(found, input=holed)
    row = broken.train[2]
    with pytest.raises(UserError, match=f"feature 7 of row {row} is inf: wanted finite features"):
        broken.features(broken.train)
    with pytest.raises(UserError, match=r"feature 7 of row \d+ is inf: wanted finite features"):
        divide(broken, 3, 0)
    with pytest.raises(UserError, match=f"feature 7 of row {row} is inf: wanted finite features"):
        baseline(broken, nested(broken, [20, 40], 3, 0))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 short texts, whose label is told by one word among many that are told by none."""
    rng = np.random.default_rng(0)
    lines = ["text,label"]
    for k in range(2000):
        words = [f"word{w}" for w in rng.zipf(1.3, 12) % 3000]
        words.insert(int(rng.integers(12)), rng.choice(("good", "fine") if k % 2 else ("bad", "poor")))
        lines.append(f"{' '.join(words)},{'pos' if k % 2 else 'neg'}")
    path = tmp_path_factory.mktemp("texts") / "texts.csv"
    path.write_text("\n".join(lines))
    return path


def test_two_thousand_texts_take_seconds(texts: Path) -> None:
    found = given(str(texts), label="label")
    assert len(found.train) == 1600
    began = time.perf_counter()
    error = baseline(found, nested(found, [50, 200, 800], 3, 0)).mean((0, 2))
    made = divide(found, 8, 0)
    assert time.perf_counter() - began < 5
    assert error[2] < error[1] < error[0]
    assert error[2] < 0.02
    assert made.test_x.shape == (400, 100)
    row = _row("classical", choose("knn", [5, 10], made), 10, made)
    assert row["error"] < 0.45


def test_directions_of_texts_are_of_the_training_rows_alone(texts: Path) -> None:
    """Other test texts, same features of the training texts; other training texts of the same number, others."""
    found = given(str(texts), label="label", limit=100, most_tests=50)
    few, other = replace(found, test=found.test[:3]), replace(found, train=found.train[::-1][:60])
    same = replace(found, train=found.train[:60])
    np.testing.assert_array_equal(found.features(found.train), few.features(found.train))
    assert not np.allclose(same.features(found.test), other.features(found.test))
