"""Which rows may train and which may test: the rules of pre-training and of measuring."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from modicum import UserError
from modicum.core.errors import Warned
from modicum.core.spec import part
from modicum.datasets.data import Data, Labels
from modicum.training.contest import Plan
from modicum.training.rows import ALL_SEEN, Ask, for_measuring, for_pretraining, marked
from modicum.training.splits import Split

ROWS = 60


def data(**columns: Any) -> Data:
    """A table of 60 rows with the given columns, of which only names and labels matter here."""
    table = pa.table({"label": ["ab"[i % 2] for i in range(ROWS)], **columns})
    return Data("table", part("modality", "tables"), table, table)


def labels_of(given: Data) -> Labels:
    found = given.labels()
    assert found is not None
    return found


HASHES = np.arange(ROWS, dtype=np.uint64)


def plan(
    given: Data | None = None, seen: Any = None, fixed: Split | None = None, hashes: np.ndarray = HASHES, **ask: Any
) -> Plan:
    given = given or data()
    seen = None if seen is None else hashes[np.asarray(seen)]
    return for_measuring(given, labels_of(given), hashes, seen, fixed, Ask(**{"repeats": 3, **ask}))


def numbers(index: np.ndarray) -> set[int]:
    return set(index.tolist())


def test_an_untrained_encoder_is_measured_on_random_splits() -> None:
    made = plan()
    assert not made.crossed
    assert len({tuple(r.test) for r in made.repeats}) == 3, "every repeat has its own split"
    for repeat in made.repeats:
        assert numbers(repeat.test).isdisjoint(numbers(repeat.given))
        assert len(repeat.test) == 12
        assert len(repeat.given) == 48
        fit, held = repeat.choose
        assert numbers(fit) | numbers(held) == numbers(repeat.given)
        assert numbers(fit).isdisjoint(numbers(held))
    assert "3 random splits (all given labels, each a new seed), each tested on its own 12 rows" in made.protocol


def test_the_split_column_decides() -> None:
    given = data(split=["test" if i < 10 else "valid" if i < 20 else None for i in range(ROWS)])
    made = plan(given, fixed=marked(given, None))
    assert made.crossed
    for repeat in made.repeats:
        assert repeat.test.tolist() == list(range(10))
        assert repeat.given.tolist() == list(range(10, ROWS)), "rows marked valid are given ones"
    assert "all tested on the given test rows: 10" in made.protocol


def test_rows_held_out_in_pretraining_are_the_test_rows() -> None:
    held = list(range(0, ROWS, 5)) + list(range(1, ROWS, 30))
    seen = [i for i in range(ROWS) if i not in held]
    made = plan(seen=seen)
    assert made.crossed
    for repeat in made.repeats:
        assert repeat.test.tolist() == sorted(held)
        assert repeat.given.tolist() == seen
    assert "the rows held out in pre-training: 14" in made.protocol


def test_other_data_with_a_few_seen_rows_is_split_at_random_and_tested_on_unseen_rows() -> None:
    seen = [3, 4, 5]
    made = plan(seen=seen)
    assert not made.crossed
    for repeat in made.repeats:
        assert numbers(repeat.test).isdisjoint(seen)
        assert numbers(repeat.given) >= set(seen)
        assert len(repeat.given) + len(repeat.test) == ROWS


def test_data_that_was_seen_altogether_cannot_test() -> None:
    with pytest.raises(UserError, match="trained on every labelled row of table, so none can test it: give --test"):
        plan(seen=range(ROWS))
    fixed = Split(np.arange(40), np.arange(40, ROWS), np.empty(0, int))
    with pytest.raises(UserError, match="20 of 20 test rows were seen in training the encoder"):
        plan(seen=range(ROWS), fixed=fixed)
    with pytest.warns(Warned, match=r"1 test row\(s\) equal to a row seen in pre-training are left out"):
        assert plan(seen=[40], fixed=fixed).repeats[0].test.tolist() == list(range(41, ROWS))


def test_transductive_is_allowed_and_said() -> None:
    made = plan(seen=range(ROWS), transductive=True)
    assert made.protocol.endswith("TRANSDUCTIVE: pre-training saw the test rows, without labels.")
    assert "TRANSDUCTIVE" not in plan(transductive=True).protocol, "nothing was pre-trained"


def test_groups_never_straddle() -> None:
    patients = [f"p{i // 4}" for i in range(ROWS)]
    given = data(patient=patients)
    own = np.array(patients)
    for repeat in plan(given, group="patient").repeats:
        assert not set(own[repeat.test]) & set(own[repeat.given])
        fit, held = repeat.choose
        assert not set(own[fit]) & set(own[held])
    fixed = Split(np.arange(18, ROWS), np.arange(18), np.empty(0, int))
    with pytest.warns(Warned, match="2 of 42 labelled training rows are of a test row's group and are left out"):
        made = plan(given, fixed=fixed, group="patient")
    assert not set(own[made.repeats[0].test]) & set(own[made.repeats[0].given])
    rows = for_pretraining(
        given, label=None, group="patient", split=None, test=None, transductive=False, limit=None, seed=0
    )
    assert len(rows.test)
    assert not set(own[rows.test]) & set(own[rows.train])
    assert rows.special == ["patient", "label"], "groups and labels are no features"


def test_training_rows_equal_to_a_test_row_are_left_out() -> None:
    hashes = HASHES.copy()
    hashes[30] = hashes[2]
    fixed = Split(np.arange(10, ROWS), np.arange(10), np.empty(0, int))
    with pytest.warns(Warned, match="1 of 50 labelled training rows equal a test row and are left out"):
        made = plan(fixed=fixed, hashes=hashes)
    assert 30 not in made.repeats[0].given


def test_unlabelled_rows_neither_train_nor_test() -> None:
    given = data(label=[None if i % 3 == 0 else "ab"[i % 2] for i in range(ROWS)])
    for repeat in plan(given).repeats:
        assert all(i % 3 for i in [*repeat.test, *repeat.given])


@pytest.mark.parametrize("ask", [{"per_class": 3}, {"total": 6}])
def test_few_labels_are_drawn_anew_in_every_repeat(ask: dict[str, int]) -> None:
    made = plan(seen=range(48), **ask)
    assert len({tuple(r.given) for r in made.repeats}) == 3
    for repeat in made.repeats:
        assert np.bincount(labels_of(data()).values[repeat.given]).tolist() == [3, 3]
        assert repeat.test.tolist() == list(range(48, ROWS))
    assert "labelled subset" in made.protocol


@pytest.mark.parametrize("total", [2, 3, 4, 5])
def test_very_few_numbers_are_all_fitted(total: int) -> None:
    given = data(label=np.linspace(0, 1, ROWS))
    for repeat in plan(given, total=total).repeats:
        assert len(repeat.given) == total
        assert len(repeat.choose[0]) >= min(total, 4)


def test_pretraining_holds_a_fifth_of_the_labelled_rows_out() -> None:
    ask: dict[str, Any] = {"label": None, "group": None, "split": None, "test": None, "limit": None, "seed": 0}
    rows = for_pretraining(data(), transductive=False, **ask)
    assert (len(rows.train), len(rows.test)) == (48, 12)
    assert numbers(rows.train).isdisjoint(numbers(rows.test))
    every = for_pretraining(data(), transductive=True, **ask)
    assert len(every.train) == ROWS
    assert "transductive" in every.note
    assert every.note.endswith(ALL_SEEN)
    assert ALL_SEEN not in rows.note
    halves: dict[str, Any] = {"split": ["train", "test"] * 30, "label": ["a", None, "b", None] * 15}
    blank = for_pretraining(data(**halves), transductive=False, **ask)
    assert (len(blank.train), blank.note.endswith(ALL_SEEN)) == (30, True), "no row for testing has a label"
    elsewhere = for_pretraining(data(), transductive=False, **{**ask, "test": "other.csv"})
    assert (len(elsewhere.train), ALL_SEEN in elsewhere.note) == (ROWS, False)
    few = for_pretraining(data(), transductive=False, **{**ask, "limit": 7})
    assert len(few.train) == 7
    assert numbers(few.train) <= numbers(rows.train)
    assert "7 of 48 drawn" in few.note


@pytest.mark.parametrize(
    ("label", "why"),
    [
        (["a"] * ROWS, "all labelled rows are of class 'a'"),
        ([f"c{i}" for i in range(ROWS)], "no class has 2 labelled rows"),
        (["a"] + [None] * (ROWS - 1), "no class has 2 labelled rows"),
    ],
)
def test_labels_that_cannot_be_divided_do_not_stop_pretraining(label: list[Any], why: str) -> None:
    rows = for_pretraining(
        data(label=label), label=None, group=None, split=None, test=None, transductive=False, limit=None, seed=0
    )
    assert len(rows.train) == ROWS
    assert rows.note == f"all rows: none can be held out for testing, because {why}; {ALL_SEEN}"


def test_a_class_with_a_single_row_trains() -> None:
    rows = for_pretraining(
        data(label=["rare", *("ab"[i % 2] for i in range(ROWS - 1))]),
        label=None, group=None, split=None, test=None, transductive=False, limit=None, seed=0,
    )  # fmt: skip
    assert len(rows.test) == 12
    assert 0 in rows.train
