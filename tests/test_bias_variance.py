"""`diagnose bias-variance`: what a convex model must show, a known truth, the bracket, disjoint splits, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small

from modicum import Run
from modicum.core.errors import UserError, Warned
from modicum.diagnostics import _decompose_words as words
from modicum.diagnostics._decompose import Design, Size
from modicum.diagnostics._finding import Finding
from modicum.diagnostics._parts import disjoint, overlap, subsamples
from modicum.diagnostics._rows import given
from modicum.diagnostics._teach import approximation, taught
from modicum.diagnostics.bias_variance import bias_variance
from modicum.maths.decomposition import Sums
from modicum.maths.intervals import Interval
from modicum.verbs.diagnose import diagnose

LINEAR: dict[str, Any] = {"encoder": "mlp(depth=0)", "batch": 400, "lr": 0.1}


def values(found: Finding, loss: str) -> dict[str, float]:
    """Values of the decomposition of a loss by the words of its parts."""
    ends = ("training loss", "test loss")
    return {r["part"]: r["value"] for r in found.rows if r["loss"] == loss and not r["part"].startswith(ends)}


def bracket(found: Finding, end: str) -> dict[int, float]:
    return {r["n"]: r["value"] for r in found.rows if r["part"] == end}


def table(path: Path, n: int = 120, **more: Any) -> Path:
    return small.csv(path, small.columns(n, **more))


@pytest.fixture(scope="module")
def digits() -> Finding:
    return bias_variance("digits", loss="all", limit=240, splits=3, steps=120)


def test_every_loss_adds_up_and_says_the_n_that_is_decomposed(digits: Finding) -> None:
    for loss in ("squared", "cross-entropy", "zero-one"):
        own = values(digits, loss)
        assert own["bias"] + own["variance"] == pytest.approx(own["loss"], abs=1e-12)
        assert sum(v for k, v in own.items() if k.startswith("variance:")) == pytest.approx(own["variance"], abs=1e-12)
        assert own["loss"] > 0.01
    assert {r["n"] for r in digits.rows if r["part"] == "bias"} == {80} == {digits.facts["n"]}
    assert "3 disjoint parts of the 240 training rows of digits, the same 2 initialisations" in digits.words
    assert "trained on n = 80 rows" in digits.words
    assert "Every part has the classes in their shares" in digits.words
    accuracy = digits.facts["spread of accuracy"]["accuracy"]
    assert values(digits, "zero-one")["loss"] == pytest.approx(1 - accuracy)
    assert all(r["low"] <= r["value"] <= r["high"] for r in digits.rows)
    assert set(digits.charts) == {"decomposition", "bracket"}
    assert all(digits.png(name).startswith(b"\x89PNG") for name in digits.charts)


def test_it_is_a_function_of_its_seed() -> None:
    one, same, other = (bias_variance("digits", limit=60, splits=2, seeds=1, steps=5, seed=s) for s in (0, 0, 1))
    assert [r["value"] for r in one.rows] == pytest.approx([r["value"] for r in same.rows], rel=1e-3)
    assert values(one, "cross-entropy")["loss"] != pytest.approx(values(other, "cross-entropy")["loss"], rel=1e-3)


def test_a_convex_model_owes_nothing_to_its_initialisation() -> None:
    found = bias_variance("diabetes", splits=3, steps=250, **LINEAR)
    own = values(found, "squared")
    assert own["variance: which rows"] == pytest.approx(own["variance"], rel=1e-3)
    assert abs(own["variance: which start"]) < 1e-3 * own["variance"]
    assert abs(own["variance: both together"]) < 1e-3 * own["variance"]
    assert "Less than a twentieth comes from which start they had and from both together" in found.words
    # Least squares on each split, which the models must have come to.
    rows = given("diabetes")
    x = np.c_[rows.features(np.arange(len(rows.labels.values))), np.ones(len(rows.labels.values))].astype(float)
    losses = []
    for part in disjoint(rows, 3, 0, None):
        w = np.linalg.lstsq(x[part], rows.labels.values[part], rcond=None)[0]
        losses.append(np.square(x[part] @ w - rows.labels.values[part]).mean())
    assert bracket(found, "training loss")[found.facts["n"]] == pytest.approx(np.mean(losses), rel=1e-3)
    assert "The lower end takes it" not in found.words, "the lowest loss of a convex model is found"


def test_the_bracket_holds_a_truth_that_is_known() -> None:
    found = bias_variance("digits", teacher="same", label_noise=0.3, limit=600, splits=3, seeds=1, steps=250, **LINEAR)
    own = values(found, "cross-entropy")
    assert own["noise"] + own["bias"] + own["variance"] == pytest.approx(own["loss"], abs=1e-12)
    low, high = bracket(found, "training loss"), bracket(found, "test loss")
    assert list(low) == list(high) == [50, 100, 200]
    for n in low:
        assert low[n] < own["noise"] < high[n]
    excess = own["loss"] - own["noise"]
    assert f"whose own cross-entropy is {own['noise']:.3g}, all noise" in found.words
    said = float(found.words.rpartition("estimation error: ")[2].split()[0])
    assert said == pytest.approx(excess, abs=0.06)
    clean = bias_variance("digits", teacher="same", limit=600, splits=3, seeds=1, steps=60, loss="all", **LINEAR)
    assert values(clean, "zero-one").get("noise", 0) < 0.05 < 0.25 < own["noise"]


def test_a_teacher_of_numbers_has_the_noise_asked_for() -> None:
    found = bias_variance("diabetes", teacher="same", label_noise=0.5, splits=3, seeds=1, steps=120, **LINEAR)
    low, high = bracket(found, "training loss"), bracket(found, "test loss")
    n = found.facts["n"]
    noise = float(found.words.partition("whose own squared loss is ")[2].partition(",")[0])
    assert low[n] < noise < high[n]
    assert values(found, "squared")["loss"] < high[n] - 0.5 * noise, "the decomposition is against the truth without it"


def bounds(found: Finding) -> dict[str, float]:
    return {r["part"]: r["value"] for r in found.rows if "error, at" in r["part"]}


@pytest.mark.parametrize("data", ["digits", "diabetes"])
def test_a_linear_student_cannot_come_near_a_nonlinear_teacher(data: str) -> None:
    how: dict[str, Any] = {"label_noise": 0.1, "splits": 2, "seeds": 1, "limit": 600, "steps": 300, **LINEAR}
    found = bias_variance(data, teacher="mlp(width=32, depth=2, norm='none')", **how)
    own = bounds(found)
    least, most = own["approximation error, at least"], own["approximation error, at most"]
    excess = bracket(found, "bias")[found.facts["n"]] + bracket(found, "variance")[found.facts["n"]]
    assert 0 < least < most < excess
    assert own["estimation error, at least"] == pytest.approx(excess - most, rel=1e-6)
    assert least > 0.01 * excess
    assert "is at most" in found.words
    assert "at least" in found.words
    assert "which more rows lower, and at most" in found.words
    assert "another kind, mlp(width=32, depth=2, norm='none')" in found.words
    assert "best student, at least" in str(found.charts["bracket"].to_dict())


def test_the_best_linear_student_of_a_linear_teacher_has_no_approximation_error() -> None:
    """Written in another way, so that it is measured; the same encoder is 0 by construction."""
    how: dict[str, Any] = {"label_noise": 0.5, "splits": 3, "seeds": 1, "steps": 120, **LINEAR}
    found = bias_variance("diabetes", teacher="mlp(depth=0, width=7)", **how)
    own, excess = bounds(found), values(found, "squared")["loss"]
    assert own["approximation error, at least"] == pytest.approx(0, abs=1e-3 * excess)
    assert own["approximation error, at most"] == pytest.approx(0, abs=1e-3 * excess)
    assert own["estimation error, at least"] == pytest.approx(excess, rel=1e-3)
    same = bias_variance("diabetes", teacher="mlp:depth=0", **how)
    assert not bounds(same)
    assert "Approximation error is exactly 0" in same.words


def test_the_bounds_are_those_of_least_squares() -> None:
    rows, design = given("diabetes", seed=0), Design("mlp(depth=0)", 2, 1, 200, 400, 0.1, 0)
    work = rows.work()
    truth = taught(rows, work, design, 0.1, "mlp(width=32, depth=2, norm='none')")
    y, z = truth.targets, np.random.default_rng(0).normal(size=(3, len(rows.test), 1))
    sums = Sums(0)
    sums.add(y[rows.test][:, None] + z, range(3))
    found = approximation(rows, work, truth, design, sums.decompose(y[rows.test], "squared"))

    def loss(of: np.ndarray) -> float:
        x = np.c_[rows.features(np.arange(len(y))), np.ones(len(y))].astype(float)
        w = np.linalg.lstsq(x[of], y[of], rcond=None)[0]
        return float(np.square(x[rows.test] @ w - y[rows.test]).mean())

    assert found.most.mean == pytest.approx(loss(rows.train), rel=0.01)
    assert found.least is not None
    assert found.least.mean == pytest.approx(loss(rows.test), rel=0.01)


def test_the_lower_end_is_refused_where_training_has_not_converged() -> None:
    found = bias_variance("digits", limit=400, splits=2, seeds=1, steps=30, **{**LINEAR, "lr": 0.003})
    assert not bracket(found, "training loss")
    assert len(bracket(found, "training loss, not converged")) == 3
    assert "no lower end to" in found.words
    assert "at most its test loss" in str(found.charts["bracket"].to_dict())
    assert "raise --steps" in found.words
    assert "With 2 splits the intervals of bias and variance are over test rows only" in found.words


def test_untrained_models_have_no_lower_end_however_still_they_are() -> None:
    """At a tiny rate the loss midway is that at the end, though nothing was learned."""
    for data, encoder in (("digits", "mlp(depth=0)"), ("diabetes", "mlp(depth=0)"), ("digits", "mlp(width=8)")):
        found = bias_variance(data, encoder=encoder, limit=200, splits=2, seeds=1, steps=20, lr=1e-6)
        assert not bracket(found, "training loss")
        assert "full-batch L-BFGS" in found.words


def test_a_converged_linear_model_has_the_loss_of_least_squares_as_its_lower_end() -> None:
    found = bias_variance("diabetes", splits=2, seeds=1, steps=400, **LINEAR)
    low = bracket(found, "training loss")
    assert len(low) == 3
    rows = given("diabetes")
    parts = disjoint(rows, 2, 0, None)
    exact = []
    for part in parts:
        x = np.c_[rows.features(part), np.ones(len(part))]
        y = rows.labels.values[part]
        exact.append(np.square(x @ np.linalg.lstsq(x, y, rcond=None)[0] - y).mean())
    assert low[found.facts["n"]] == pytest.approx(np.mean(exact), rel=1e-2)


def size(trained: float, lower: float, test: float) -> Size:
    made = Size(50, Sums(3), np.full((2, 1), trained), [(trained, lower)])
    made.test = Interval(test, test, test)
    return made


def test_what_is_tolerated_as_converged_is_taken_off_the_lower_end() -> None:
    """Where test loss is large, two per cent of it may be more than the best there is."""
    assert size(0.05, 0.0, 3.0).converged
    assert size(0.05, 0.0, 3.0).train.mean == 0
    assert not size(0.05, 0.0, 2.0).converged
    assert size(0.05, 0.0, 2.0).train.mean == 0.05


def test_a_polish_that_fails_is_no_proof_of_convergence() -> None:
    failed = size(0.05, float("nan"), 3.0)
    assert not failed.converged
    assert "strays to a loss that is not finite at n = 50" in words.reach([failed], given("digits"), "mlp()", 0.0)


def test_linear_models_are_known_however_they_are_written() -> None:
    assert all(map(words.convex, ("mlp(depth=0)", "mlp:depth=0", "mlp(norm='none', depth=0)")))
    assert not any(map(words.convex, ("mlp(depth=1)", "mlp()", "convnet(width=8)")))


def test_noisy_labels_cost_but_are_not_what_is_tested_on() -> None:
    how: dict[str, Any] = {"limit": 240, "splits": 3, "seeds": 1, "steps": 120}
    clean, noisy = bias_variance("digits", **how), bias_variance("digits", label_noise=0.4, **how)
    n = clean.facts["n"]
    assert values(noisy, "cross-entropy")["variance"] > 2 * values(clean, "cross-entropy")["variance"]
    assert bracket(clean, "test loss")[n] == pytest.approx(values(clean, "cross-entropy")["loss"])
    assert bracket(noisy, "test loss")[n] > values(noisy, "cross-entropy")["loss"]
    assert "40% of the labels were redrawn" in noisy.words


def test_a_head_on_the_frozen_features_of_a_run(images: Path, pre: Run) -> None:
    found = bias_variance(images, run=pre, splits=2, steps=20)
    assert found.facts["encoder"] == "mlp(depth=0)"
    assert "a head on a run's frozen features" in found.words


def test_other_encoders(images: Path) -> None:
    found = bias_variance(images, encoder="convnet(width=8, stages=1)", splits=2, seeds=1, steps=4, batch=8)
    assert np.isfinite([r["value"] for r in found.rows]).all()


def test_from_the_verb_with_files(tmp_path: Path) -> None:
    found = diagnose("bias-variance", table(tmp_path / "t.csv"), out=tmp_path / "out", splits=3, seeds=1, steps=10)
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"rows.parquet", "bracket.svg", "decomposition.png"}
    assert found.facts["splits"] == 3


def test_splits_are_disjoint_and_stratified_and_keep_groups_whole(tmp_path: Path) -> None:
    rows = given("digits")
    parts = disjoint(rows, 4, 0, None)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.sort(rows.train))
    counts = np.array([np.bincount(rows.labels.values[p], minlength=10) for p in parts])
    assert np.ptp(counts, 0).max() <= 1
    assert np.ptp(list(map(len, parts))) <= 1
    assert not np.array_equal(parts[0], disjoint(rows, 4, 1, None)[0])
    patients = [f"p{k % 17}" for k in range(120)]
    rows = given(table(tmp_path / "t.csv", patient=patients), group="patient")
    parts = disjoint(rows, 3, 0, "patient")
    owners = [{patients[i] for i in part} for part in parts]
    assert not owners[0] & owners[1]
    assert not owners[0] & owners[2]
    assert not owners[1] & owners[2]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.sort(rows.train))


def test_subsamples_are_disjoint_where_they_can_be_and_hold_every_class() -> None:
    rows = given("digits")
    for samples, shared in ((200, False), (900, True)):
        parts = subsamples(rows, 4, samples, 0, None)
        assert [len(np.unique(p)) for p in parts] == [samples] * 4, "no row twice: no bootstrap"
        assert overlap(parts) == shared
        counts = np.array([np.bincount(rows.labels.values[p], minlength=10) for p in parts])
        assert counts.min() > 0
        assert np.ptp(counts, 0).max() <= 1
    assert not np.array_equal(parts[0], parts[1])


def test_overlapping_subsamples_say_that_variance_is_understated() -> None:
    how: dict[str, Any] = {"limit": 110, "splits": 2, "seeds": 1, "steps": 4}
    apart, shared = (bias_variance("digits", samples=n, **how) for n in (50, 60))
    assert "2 disjoint parts of the 110" in apart.words
    assert apart.facts["disjoint"]
    assert "2 subsamples of the 110" in shared.words
    assert "trained on n = 60 rows" in shared.words
    assert "understated, by about 55% of itself" in shared.words
    assert (shared.facts["disjoint"], shared.facts["n"]) == (False, 60)


def test_bad_input(tmp_path: Path) -> None:
    def error(message: str, data: Any = "digits", **how: Any) -> None:
        with pytest.raises(UserError, match=message):
            bias_variance(data, **{"steps": 4, **how})

    error("--splits 1: .* at least 2 sets of training rows", splits=1)
    error("--seeds 0, --steps 4: wanted at least 1 and 2", seeds=0)
    error("--steps 1:", steps=1)
    error(
        "1257 training rows in --splits 1000: a model needs at least 2 rows; ask for at most --splits 628, or",
        splits=1000,
    )
    error("--label-noise 1.5", label_noise=1.5)
    error("--label-noise -1", label_noise=-1, teacher="same")
    error("unknown --loss 'hinge'; valid: ", loss="hinge")
    error("--loss zero-one is for classes; the label of diabetes is a number", "diabetes", loss="zero-one")
    error("unknown trunk 'mlpp'", teacher="mlpp()")
    error("unknown trunk 'mlpp'", encoder="mlpp()")
    labels = ["rare"] * 3 + ["a"] * 60 + ["b"] * 57
    path = table(tmp_path / "rare.csv", label=labels)
    error(
        r"--splits 4: class rare \(2 training row\(s\)\) would be missing .*: ask for at most --splits 2, label", path
    )
    patients = ["r", "s", "s", *(f"p{k % 9}" for k in range(117))]
    path = table(tmp_path / "g.csv", label=labels, patient=patients)
    error(r"class rare is missing from split \d of 2 ", path, group="patient", splits=2)
    error("--samples 50 divides the groups of --group patient", path, group="patient", samples=50)
    error("--samples 5000: wanted at least 10 .* fewer than the 1257 training rows", samples=5000)
    error("--samples 0: wanted at least 10", samples=0)
    error("--samples 9: wanted at least 10", samples=9)
    path = table(tmp_path / "groups.csv", patient=[k % 3 for k in range(120)])
    error("2 group.s. of training rows for --splits 4", path, group="patient")
    path = table(tmp_path / "infinite.csv", num=[float("inf") if k == 7 else float(k) for k in range(120)])
    error("column 'num' is infinite", path)


def test_training_that_diverges_is_an_error() -> None:
    with pytest.raises(UserError, match=r"not finite: its training diverged \(lower --lr\)"), pytest.warns(Warned):
        bias_variance("diabetes", lr=1e12, steps=10, splits=2)
