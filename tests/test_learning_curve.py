"""The learning curve on data whose curve is known, on a run, and its refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from modicum import Run
from modicum.core.errors import UserError
from modicum.diagnostics._labelled import Curve, baseline, nested, networks, score, shifts
from modicum.diagnostics._rows import given
from modicum.diagnostics.learning_curve import learning_curve
from modicum.maths.intervals import crossed


def linear(path: Path, rows: int = 2000, columns: int = 8, noise: float = 0.5) -> Path:
    """y = x·1 + noise: least squares has squared error noise² (1 + p / (n - p - 1))."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, columns))
    y = x.sum(1) + noise * rng.normal(size=rows)
    lines = [",".join([*(f"x{k}" for k in range(columns)), "label"])]
    lines += [",".join(f"{v:.6f}" for v in [*a, b]) for a, b in zip(x, y, strict=True)]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return linear(tmp_path_factory.mktemp("data") / "linear.csv")


def test_subsets_are_nested_and_hold_every_class() -> None:
    found = given("digits", limit=300)
    for own in nested(found, [10, 30, 100], 3, 0):
        assert [len(rows) for rows in own] == [10, 30, 100]
        assert set(own[0]) < set(own[1]) < set(own[2]) <= set(found.train)
        assert len(np.unique(found.labels.values[own[0]])) == 10


def test_scores_are_mistakes_or_shares_of_the_variance(numbers: Path) -> None:
    found = given("digits", limit=100)
    right = np.eye(10)[found.labels.values[found.test]]
    assert score(right, found).mean() == 0
    assert score(np.roll(right, 1, axis=1), found).mean() == 1
    found = given(str(numbers), label="label")
    true = found.labels.values[found.test]
    assert score(np.full((len(true), 1), true.mean()), found).mean() == pytest.approx(1)
    assert score(true[:, None], found).mean() == 0


def test_the_baseline_follows_the_curve_of_least_squares(numbers: Path) -> None:
    """Ridge with a hardly needed penalty, against the exact risk of least squares (oracle O1)."""
    found = given(str(numbers), label="label")
    sizes = [40, 80, 160]
    error = baseline(found, nested(found, sizes, 6, 0)).mean((0, 2))
    true = found.labels.values[found.test]
    risk = np.array([0.25 * (1 + 9 / (n - 10)) for n in sizes]) / true.var()
    np.testing.assert_allclose(error, risk, rtol=0.15)


def test_networks_are_scored_where_they_belong() -> None:
    """A network on 200 digits beats one on 20 for every seed: members come back in their own places."""
    found = given("digits", limit=400)
    subsets = nested(found, [20, 200], 3, 0)
    scores = networks(found, found.work(), subsets, "mlp(width=16, depth=1, norm='none')", 150, 0)
    assert scores.shape == (3, 2, len(found.test))
    assert (scores.mean(2)[:, 1] + 0.05 < scores.mean(2)[:, 0]).all()


def test_a_shift_of_the_axis_is_measured() -> None:
    """A second curve that is the first one at three times as many labels, with its own noise, is worth three times."""
    rng = np.random.default_rng(0)
    sizes = [10, 20, 40, 80, 160, 320]
    at = np.array(sizes, dtype=float)
    first, second = (
        (factor * at) ** -0.5 + 0.002 * rng.normal(size=(5, 6)) + np.zeros((40, 1, 1)) for factor in (1, 3)
    )
    first, second = (c.transpose(1, 2, 0) + 1e-6 * rng.normal(size=(5, 6, 40)) for c in (first, second))
    rows = shifts(Curve("a", first, None, ""), Curve("b", second, None, ""), sizes, 0)
    for row in rows[:4]:
        assert row["worth"] == pytest.approx(3 * row["n"], rel=0.1)
        assert row["low"] <= 3 * row["n"] <= row["high"]
    assert rows[-1]["worth"] == np.inf


def test_the_finding_holds_measured_errors_and_says_what_it_found(numbers: Path) -> None:
    found = learning_curve(str(numbers), label="label", sizes="20,40,80,160", seeds=3, steps=60, target=0.2)
    measured = [r for r in found.rows if r["kind"] == "measured"]
    assert [r["n"] for r in measured] == [20, 40, 80, 160] * 2
    assert all(r["low"] <= r["error"] <= r["high"] for r in found.rows)
    assert {r["curve"] for r in measured} == {"mlp from scratch", "ridge regression"}
    assert "1 - R²" in found.words
    assert "160 labelled rows of linear" in found.words
    for name, law in found.facts["laws"].items():
        said = f"No power law is fitted to {name}"
        assert law["fitted"] == (said not in found.words)
    assert found.png("learning-curve")[:4] == b"\x89PNG"


def test_digits_at_three_sizes_are_measured_but_not_fitted() -> None:
    found = learning_curve("digits", sizes=[20, 60, 200], seeds=3, steps=40, limit=400)
    assert all(not law["fitted"] and "at least 4" in law["why"] for law in found.facts["laws"].values())
    assert "No power law is fitted" in found.words
    own = given("digits", limit=400, most_tests=2000)
    scores = baseline(own, nested(own, [20, 60, 200], 3, 0))
    row = next(r for r in found.rows if r["curve"] == "logistic regression" and r["n"] == 60)
    inside = crossed(scores[:, 1])
    assert (row["error"], row["low"], row["high"]) == pytest.approx((inside.mean, inside.low, inside.high))


def test_large_shares_of_the_rows_are_told() -> None:
    found = learning_curve("digits", sizes=[20, 90], seeds=3, steps=5, limit=100)
    assert "hold 90% of the training rows" in found.words


def test_a_run_adds_its_frozen_features(pre: Run, images: Path) -> None:
    found = learning_curve(str(images), run=pre, sizes=[4, 12], seeds=3, steps=20)
    assert {r["curve"] for r in found.rows} == {"mlp from scratch", "logistic regression", "pre-trained, frozen"}
    assert [w["n"] for w in found.facts["worth"]] == [4, 12]
    assert "Pre-training" in found.words
    assert found.facts["run"] == str(pre.path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sizes": "50,20"}, "increasing order"),
        ({"sizes": "50"}, "at least two sizes"),
        ({"sizes": "5,20"}, "each of the 10 classes"),
        ({"sizes": "20,5000"}, "has 100 labelled training rows"),
        ({"sizes": "20,many"}, "whole numbers such as"),
        ({"seeds": 2}, "--seeds 2: wanted a whole number of at least 3"),
        ({"steps": 0}, "--steps 0"),
        ({"target": -1.0}, "--target -1.0: wanted an error above 0"),
        ({"limit": 60}, "needs 80; give more rows, or --sizes"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        learning_curve("digits", **{"limit": 100, **options})  # type: ignore[arg-type]


def test_frozen_features_are_standardised_over_the_training_rows(pre: Run, images: Path) -> None:
    """So that a head's rate suits every run; test rows have no part in it, and the device is that of the work."""
    found = given(str(images), run=pre)
    work = found.work(device=torch.device("meta"))
    assert work.device == torch.device("meta")
    x = found.work().source.rows(found.train)["x"].numpy()
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
    assert (x.std(0) < 1).all()
    fewer = replace(found, test=found.test[:1])
    np.testing.assert_allclose(fewer.work().source.rows(found.train)["x"].numpy(), x, atol=1e-6)
