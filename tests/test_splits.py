"""Splits: laws that hold for any labels and groups (hypothesis), and every message for input that cannot be split."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modicum.core.errors import UserError
from modicum.training.splits import Split, by_column, few, hold_out, validation

NAN = float("nan")
some = settings(max_examples=80, deadline=None, derandomize=True)


@st.composite
def classes(draw: st.DrawFn, least: int = 2) -> np.ndarray:
    """Labels of 2 to 5 classes with at least `least` rows each, unlabelled rows among them, in any order."""
    counts = draw(st.lists(st.integers(least, 40), min_size=2, max_size=5))
    labels = np.repeat([*range(len(counts)), -1], [*counts, draw(st.integers(0, 30))])
    return np.random.default_rng(draw(st.integers(0, 10**6))).permutation(labels)


@st.composite
def numbers(draw: st.DrawFn) -> np.ndarray:
    """Continuous or heavily tied numbers, with unlabelled rows."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    values = rng.standard_normal(draw(st.integers(2, 150))) * draw(st.sampled_from([0.0, 1.0, 1e3]))
    values = np.concatenate(
        [np.round(values) if draw(st.booleans()) else values, np.full(draw(st.integers(0, 20)), NAN)]
    )
    return rng.permutation(values)


seeds = st.integers(0, 10**6)
fractions = st.floats(0.05, 0.9)


def check_partition(split: Split, rows: int) -> None:
    parts = [split.train, split.test, split.excluded, split.valid]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(rows))
    for part in parts:
        assert part.dtype.kind == "i"
        assert (np.diff(part) > 0).all()


def counts_of(labels: np.ndarray, rows: np.ndarray, size: int) -> np.ndarray:
    return np.bincount(labels[rows][labels[rows] >= 0], minlength=size)


def grouping(labels: np.ndarray, seed: int, count: int) -> np.ndarray:
    """Random groups of very unequal sizes in which every class has two groups or more."""
    rng = np.random.default_rng(seed)
    groups = (rng.random(len(labels)) ** 2 * count).astype(int)
    for c in np.unique(labels[labels >= 0]):
        groups[np.flatnonzero(labels == c)[:2]] = [0, 1]
    return groups


@some
@given(classes(), fractions, seeds)
def test_hold_out_of_classes_is_a_stratified_partition(labels: np.ndarray, fraction: float, seed: int) -> None:
    split = hold_out(labels, None, fraction=fraction, seed=seed, kind="classes")
    check_partition(split, len(labels))
    assert len(split.excluded) == 0
    assert (labels[split.test] >= 0).all()
    every, size = np.bincount(labels[labels >= 0]), labels.max() + 1
    test = counts_of(labels, split.test, size)
    assert (test >= 1).all()
    assert (every - test >= 1).all()
    wanted = np.clip(round(fraction * every.sum()), size, every.sum() - size)
    assert test.sum() == wanted
    if wanted == round(fraction * every.sum()):
        # A class is off its share by its own rounding, and by rows that others need to be on both sides.
        assert np.abs(test - fraction * every).max() <= 1 + size


def test_hold_out_matches_the_shares_of_large_classes() -> None:
    labels = np.repeat([0, 1, 2], [700, 200, 100])
    split = hold_out(labels, None, fraction=0.2, seed=3, kind="classes")
    np.testing.assert_allclose(np.bincount(labels[split.test]), [140, 40, 20], atol=1)


@some
@given(numbers(), fractions, seeds)
def test_hold_out_of_numbers_is_a_partition(values: np.ndarray, fraction: float, seed: int) -> None:
    split = hold_out(values, None, fraction=fraction, seed=seed, kind="numbers")
    check_partition(split, len(values))
    labelled = int((~np.isnan(values)).sum())
    assert not np.isnan(values[split.test]).any()
    assert 1 <= len(split.test) <= labelled - 1
    assert abs(len(split.test) - fraction * labelled) <= 1


@pytest.mark.parametrize("seed", range(5))
def test_hold_out_of_numbers_has_every_tenth_of_the_range(seed: int) -> None:
    values = np.random.default_rng(seed).permutation(np.arange(1000.0)) ** 3
    split = hold_out(values, None, fraction=0.1, seed=seed, kind="numbers")
    tenth = np.searchsorted(np.quantile(values, np.linspace(0, 1, 11))[1:-1], values[split.test])
    np.testing.assert_array_equal(np.bincount(tenth), np.full(10, 10))


@some
@given(classes(), st.integers(2, 25), fractions, seeds)
def test_groups_never_straddle(labels: np.ndarray, count: int, fraction: float, seed: int) -> None:
    groups = grouping(labels, seed, count)
    split = hold_out(labels, groups, fraction=fraction, seed=seed, kind="classes")
    check_partition(split, len(labels))
    assert len(split.test)
    assert not set(groups[split.test]) & set(groups[split.train])
    assert (labels[split.test] >= 0).all()
    assert (labels[split.excluded] == -1).all()
    assert set(groups[split.excluded]) <= set(groups[split.test])
    assert (counts_of(labels, split.train, labels.max() + 1) >= 1).all()
    fit, val = validation(labels, groups, kind="classes", seed=seed, fraction=fraction)
    assert len(val)
    assert not set(groups[fit]) & set(groups[val])
    assert set(labels[val]) <= set(labels[fit])


@some
@given(numbers(), st.integers(2, 25), fractions, seeds)
def test_groups_of_numbers_never_straddle(values: np.ndarray, count: int, fraction: float, seed: int) -> None:
    groups = (np.random.default_rng(seed).random(len(values)) * count).astype(int)
    groups[np.flatnonzero(~np.isnan(values))[:2]] = [0, 1]
    split = hold_out(values, groups.astype(str), fraction=fraction, seed=seed, kind="numbers")
    check_partition(split, len(values))
    assert len(split.test)
    assert not set(groups[split.test]) & set(groups[split.train])
    assert not np.isnan(values[split.train]).all()


def test_many_small_groups_give_the_fraction_and_the_shares() -> None:
    rng = np.random.default_rng(0)
    labels, groups = rng.choice(3, 3000, p=[0.6, 0.3, 0.1]), rng.integers(0, 600, 3000)
    for seed in range(5):
        test = hold_out(labels, groups, fraction=0.2, seed=seed, kind="classes").test
        assert len(test) == pytest.approx(600, abs=10)
        np.testing.assert_allclose(np.bincount(labels[test]) / len(test), [0.6, 0.3, 0.1], atol=0.06)


def test_rare_classes_in_few_groups_all_keep_training_rows() -> None:
    labels = np.repeat(np.arange(200), 2)
    groups = np.arange(400) % 371
    for seed in range(5):
        split = hold_out(labels, groups, fraction=0.3, seed=seed, kind="classes")
        assert set(labels[split.train]) == set(range(200))
        assert len(split.test) > 60


def test_a_group_too_large_to_test_trains() -> None:
    labels = np.tile([0, 1], 50)
    groups = np.where(np.arange(100) < 80, 0, np.arange(100) // 4)
    for seed in range(10):
        split = hold_out(labels, groups, fraction=0.2, seed=seed, kind="classes")
        assert 0 in groups[split.train]
        assert 4 <= len(split.test) <= 20


def test_repeats_of_few_groups_differ() -> None:
    """The best of many draws would be the same one for every seed, and repeats would show no variation."""
    labels, groups = np.tile([0, 1], 50), np.arange(100) // 20
    tests = {tuple(hold_out(labels, groups, fraction=0.2, seed=s, kind="classes").test) for s in range(40)}
    assert len(tests) == 5


@some
@given(classes(least=1), st.floats(0.05, 0.5), seeds)
def test_validation_divides_the_given_labels(labels: np.ndarray, fraction: float, seed: int) -> None:
    every, size = np.bincount(labels[labels >= 0]), labels.max() + 1
    if every.max() < 2:
        return
    fit, val = validation(labels, None, kind="classes", seed=seed, fraction=fraction)
    np.testing.assert_array_equal(np.sort(np.concatenate([fit, val])), np.flatnonzero(labels >= 0))
    assert (np.diff(fit) > 0).all()
    assert (np.diff(val) > 0).all()
    held = counts_of(labels, val, size)
    assert (held[every >= 2] >= 1).all()
    assert (every - held >= 1).all()


@some
@given(numbers(), seeds)
def test_validation_of_numbers_divides_the_given_labels(values: np.ndarray, seed: int) -> None:
    fit, val = validation(values, None, kind="numbers", seed=seed)
    np.testing.assert_array_equal(np.sort(np.concatenate([fit, val])), np.flatnonzero(~np.isnan(values)))
    assert len(fit)
    assert len(val)


@some
@given(classes(), seeds, st.data())
def test_few_per_class_is_nested(labels: np.ndarray, seed: int, data: st.DataObject) -> None:
    smallest = int(np.bincount(labels[labels >= 0]).min())
    large = data.draw(st.integers(1, smallest))
    small = data.draw(st.integers(1, large))
    more, fewer = (few(labels, per_class=k, kind="classes", seed=seed) for k in (large, small))
    assert set(fewer) <= set(more)
    np.testing.assert_array_equal(np.bincount(labels[more]), np.full(labels.max() + 1, large))
    assert (np.diff(more) > 0).all()


@some
@given(classes(least=1), seeds, st.data())
def test_few_in_total_is_nested_and_proportional(labels: np.ndarray, seed: int, data: st.DataObject) -> None:
    every = np.bincount(labels[labels >= 0])
    large = data.draw(st.integers(1, int(every.sum())))
    small = data.draw(st.integers(1, large))
    more, fewer = (few(labels, total=k, kind="classes", seed=seed) for k in (large, small))
    assert set(fewer) <= set(more)
    assert len(more) == large
    counts = counts_of(labels, more, len(every))
    if large >= len(every):
        assert (counts >= 1).all()
    assert np.abs(counts - large * every / every.sum()).max() <= 1 + len(every)


@some
@given(numbers(), seeds, st.data())
def test_few_numbers_are_nested(values: np.ndarray, seed: int, data: st.DataObject) -> None:
    large = data.draw(st.integers(1, int((~np.isnan(values)).sum())))
    more = few(values, total=large, kind="numbers", seed=seed)
    assert set(few(values, total=data.draw(st.integers(1, large)), kind="numbers", seed=seed)) <= set(more)
    assert len(more) == large
    assert not np.isnan(values[more]).any()


def test_few_chooses_among_the_given_rows_only() -> None:
    labels = np.tile([0, 1, -1], 50)
    among = np.arange(40, 120)[::-1]
    chosen = few(labels, per_class=20, kind="classes", seed=0, among=among)
    assert set(chosen) <= set(among)
    assert set(chosen) == set(few(labels, per_class=20, kind="classes", seed=0, among=np.sort(among)))


def test_every_row_is_as_likely_to_be_chosen() -> None:
    labels = np.repeat([0, 1], [30, 10])
    hits = np.zeros((2, 40))
    for seed in range(600):
        hits[0, hold_out(labels, None, fraction=0.25, seed=seed, kind="classes").test] += 1 / 600
        hits[1, few(labels, total=8, kind="classes", seed=seed)] += 1 / 600
    np.testing.assert_allclose(hits[0], 0.25, atol=0.08)
    np.testing.assert_allclose(hits[1], 0.2, atol=0.08)


def test_seeds_decide_and_the_global_state_is_left_alone() -> None:
    labels, groups = np.tile([0, 1, 2, -1], 50), np.arange(200) // 5
    before = repr(np.random.get_state())  # noqa: NPY002
    calls = [
        lambda s: hold_out(labels, None, fraction=0.2, seed=s, kind="classes").test,
        lambda s: hold_out(labels, groups, fraction=0.2, seed=s, kind="classes").test,
        lambda s: validation(labels, None, kind="classes", seed=s)[1],
        lambda s: validation(labels, groups, kind="classes", seed=s)[1],
        lambda s: few(labels, per_class=5, kind="classes", seed=s),
        lambda s: few(labels, total=20, kind="classes", seed=s),
    ]
    for call in calls:
        np.testing.assert_array_equal(call(1), call(1))
        assert set(call(1)) != set(call(2))
    assert repr(np.random.get_state()) == before  # noqa: NPY002


def test_group_names_do_not_matter() -> None:
    labels, groups = np.tile([0, 1], 50), np.arange(100) // 5 + 100
    named = np.array([f"patient {g}" for g in groups], dtype=object)
    one, two = (hold_out(labels, g, fraction=0.2, seed=4, kind="classes") for g in (groups, named))
    np.testing.assert_array_equal(one.test, two.test)


def test_by_column_reads_the_usual_words() -> None:
    split = by_column(["train", "TEST", "", " Testing ", None, NAN, "Training", "valid", "val", "dev", "Validation"])
    check_partition(split, 11)
    assert split.train.tolist() == [0, 2, 4, 5, 6]
    assert split.test.tolist() == [1, 3]
    assert split.valid.tolist() == [7, 8, 9, 10]
    assert by_column(np.array(["test", "train"])).test.tolist() == [0]


TWO = np.array([0, 0, 1, 1])


def halve(labels: np.ndarray, groups: np.ndarray | None = None, kind: str = "classes") -> Split:
    return hold_out(labels, groups, fraction=0.5, seed=0, kind=kind)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hold_out(TWO, None, fraction=0.0, seed=0, kind="classes"), "between 0 and 1, such as 0.2: got 0.0"),
        (lambda: hold_out(TWO, None, fraction=1.0, seed=0, kind="classes"), "got 1.0"),
        (lambda: validation(TWO, None, fraction=1.5, seed=0, kind="classes"), "got 1.5"),
        (lambda: halve(np.zeros(5, int)), "all 5 labelled rows are of class 0"),
        (lambda: halve(np.array([0, 0, 1])), "class 1 has only 1 labelled row"),
        (lambda: halve(TWO, np.array([0, 1, 2, 2])), "class 1 has labelled rows in one group"),
        (lambda: halve(TWO, np.full(4, "a")), "all labelled rows are in group 'a'"),
        (lambda: validation(TWO, np.zeros(4), seed=0, kind="classes"), "all labelled rows are in group '0.0'"),
        (lambda: validation(TWO, np.array([0, 0, 1, 1]), seed=0, kind="classes"), "every group is the only one"),
        (lambda: validation(np.arange(4), None, seed=0, kind="classes"), "no class has two labelled rows"),
        (lambda: halve(TWO, np.zeros(3)), r"one value a row: got shape \(3,\) for 4 rows"),
        (lambda: halve(TWO, np.array(["a", "", "b", ""])), "row 1 has no group: 2 of 4"),
        (lambda: halve(TWO, np.array(["a", "b", None, "b"])), "row 2 has no group"),
        (lambda: halve(TWO, np.array([0, 1, 0, NAN])), "row 3 has no group"),
        (lambda: halve(TWO * 1.0), "got float64 of shape .* for kind 'classes'"),
        (lambda: halve(TWO, kind="numbers"), "got int64 of shape .* for kind 'numbers'"),
        (lambda: halve(TWO, kind="ranks"), "for kind 'ranks'"),
        (lambda: halve(TWO[None]), r"shape \(1, 4\)"),
        (lambda: halve(TWO - 3), "the label of row 0 is -3: .* or -1 for none"),
        (lambda: halve(np.array([0.0, np.inf]), kind="numbers"), "the label of row 1 is inf"),
        (lambda: halve(np.array([NAN, 1.0]), kind="numbers"), "1 rows are labelled"),
        (lambda: halve(np.full(9, -1)), "0 rows are labelled"),
        (lambda: few(TWO, kind="classes", seed=0), "one of the two"),
        (lambda: few(TWO, per_class=1, total=1, kind="classes", seed=0), "one of the two"),
        (lambda: few(TWO, per_class=0, kind="classes", seed=0), "at least 1 row: got 0"),
        (
            lambda: few(TWO[:3] * 7, per_class=2, kind="classes", seed=0),
            "2 labels per .* class 7 has 1: ask for at most 1",
        ),
        (lambda: few(TWO, total=5, kind="classes", seed=0), "5 labels were asked for, but only 4"),
        (lambda: few(TWO, total=1, kind="classes", seed=0, among=TWO), "all 2 labelled rows are of class 0"),
        (lambda: few(TWO * 1.0, per_class=1, kind="numbers", seed=0), "numbers have no classes"),
        (lambda: by_column(["train", "test", "fold1", "Fold2"]), "holds 'fold1', 'fold2'; valid: train, test, valid"),
        (lambda: by_column([*map(str, range(8))]), "'4' and 3 more"),
        (lambda: by_column(["test", "test"]), "names no train row"),
        (lambda: by_column(["", "train", "valid"]), "names no test row"),
    ],
)
def test_mistakes_are_named(call: object, message: str) -> None:
    with pytest.raises(UserError) as caught:
        call()  # type: ignore[operator]
    assert re.search(message, str(caught.value)), caught.value
