"""The verbs: which rows train and which test, what is frozen, what is written, and that seeds repeat."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small
import torch
from PIL import Image
from torch import Tensor

import modicum
from modicum import Run, UserError
from modicum.core.errors import Warned
from modicum.core.spec import part
from modicum.datasets.data import Data, Labels, open_data
from modicum.modalities._imagedecode import decode
from modicum.training.contest import Plan
from modicum.training.rows import Ask, for_measuring, for_pretraining, marked
from modicum.training.run import load_tensors
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


# --- which rows train, and which test ---


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
    assert rows.note == f"all rows: none can be held out for testing, because {why}"


def test_a_class_with_a_single_row_trains() -> None:
    rows = for_pretraining(
        data(label=["rare", *("ab"[i % 2] for i in range(ROWS - 1))]),
        label=None, group=None, split=None, test=None, transductive=False, limit=None, seed=0,
    )  # fmt: skip
    assert len(rows.test) == 12
    assert 0 in rows.train


# --- whole verbs ---


def hashes_of(run: Run, images: Path) -> np.ndarray:
    return modicum.load(run).open(images)[1].hashes


def test_what_pretraining_held_out_is_what_finetune_tests_on(pre: Run, tuned: Run, images: Path) -> None:
    own, seen = hashes_of(pre, images), pre.array("seen")
    assert seen is not None
    assert (len(seen), len(own)) == (32, 40)
    assert np.isin(seen, own).all()
    results = tuned.read_json("results.json")
    assert (results["test_rows"], results["labels"], results["seeds"]) == (8, 32, 2)
    assert sum(map(sum, results["confusion"]["counts"])) == 2 * 8
    tested = {point["id"] for point in tuned.read_json("exhibits.json")["points"]}
    ids = np.array(open_data(images).ids())
    assert tested == set(ids[~np.isin(own, seen)])
    assert set(tuned.array("seen").tolist()) == set(seen.tolist()), "a run that goes on from it may not test on them"  # type: ignore[union-attr]
    assert tuned.spec["history"] == [pre.spec["command"]]


@pytest.mark.usefixtures("quick")
def test_going_on_from_a_finetuned_run_tests_on_rows_it_never_saw(tuned: Run, images: Path, tmp_path: Path) -> None:
    again = modicum.finetune(tuned, images, method="probe", out=tmp_path / "again", **small.FEW)
    assert "the rows held out in pre-training: 8" in again.read_json("results.json")["protocol"]


@pytest.mark.usefixtures("quick")
def test_test_rows_elsewhere(images: Path, tmp_path: Path) -> None:
    other = small.folder(tmp_path / "other", 12)
    for k, file in enumerate(sorted(other.rglob("*.png"))):
        Image.fromarray(small.picture(1000 + 2 * k + (file.parent.name == "b"))).save(file)
    with_test = modicum.pretrain(images, test=str(other), out=tmp_path / "pre", **small.TINY)
    assert with_test.spec["data"]["train_rows"] == 40
    run = modicum.finetune(with_test, images, test=other, method="probe", out=tmp_path / "tuned", **small.FEW)
    results = run.read_json("results.json")
    assert (results["labels"], results["test_rows"]) == (40, 12)
    # Pre-training leaves out rows equal to test rows, wherever they are.
    shutil.copytree(images, tmp_path / "both")
    shutil.copy(other / "a" / "000.png", tmp_path / "both" / "a" / "extra.png")
    both = modicum.pretrain(tmp_path / "both", test=str(other), out=tmp_path / "both-run", **small.TINY)
    assert both.spec["data"]["train_rows"] == 40
    assert "1 rows equal to test rows left out" in both.spec["data"]["note"]


def state(run: Run) -> dict[str, Tensor]:
    return {k: v for k, v in load_tensors(run.path / "model.safetensors")[0].items() if k.startswith("encoder.")}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("method", "frozen"), [("probe", 3), ("top:1", 2), ("top:2", 1)])
def test_frozen_layers_keep_their_bits(pre: Run, images: Path, tmp_path: Path, method: str, frozen: int) -> None:
    """Those of the pre-trained run, the statistics of BatchNorm included; the layers above move."""
    run = modicum.finetune(pre, images, method=method, out=tmp_path / "run", **{**small.FEW, "steps": 4})
    names = list(modicum.load(pre).encoder.layers())
    assert len(names) == 3
    stems = ["encoder.trunk.stem.", "encoder.trunk.stage.0.", "encoder.trunk.stage.1."]
    before, after = state(pre), state(run)
    assert before.keys() == after.keys()
    assert any("running_mean" in k for k in before)
    moved = {stem: any(not torch.equal(before[k], after[k]) for k in before if k.startswith(stem)) for stem in stems}
    assert all(k.startswith(tuple(stems)) for k in before)
    assert list(moved.values()) == [False] * frozen + [True] * (3 - frozen)


@pytest.mark.usefixtures("quick")
def test_the_same_seed_gives_the_same_numbers(pre: Run, images: Path, tmp_path: Path) -> None:
    """From Python and for other objects around; another seed gives others."""

    def numbers_of(run: Run) -> Any:
        results = run.read_json("results.json")
        for contestant in results["contestants"]:
            del contestant["seconds"]
        return results

    options: dict[str, Any] = {"method": "lp-ft", "labels_per_class": 4, **small.FEW}
    a = modicum.finetune(pre.path, str(images), out=tmp_path / "a", **options)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    b = modicum.finetune(pre, open_data(images), out=tmp_path / "b", **options)
    c = modicum.finetune(pre, images, out=tmp_path / "c", seed=1, **options)
    assert numbers_of(a) == numbers_of(b)
    assert all(torch.equal(x, y) for x, y in zip(state(a).values(), state(b).values(), strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(state(a).values(), state(c).values(), strict=True))
    first = modicum.pretrain(images, out=tmp_path / "p", **small.TINY)
    assert all(torch.equal(x, y) for x, y in zip(state(first).values(), state(pre).values(), strict=True))


def test_predictions(tuned: Run, images: Path, tmp_path: Path) -> None:
    table = modicum.predict(tuned, images, output=tmp_path / "p.parquet")
    assert pq.read_table(tmp_path / "p.parquet").equals(table)
    assert table.column_names == ["id", "predicted", "p_a", "p_b"]
    assert table.column("id").to_pylist() == open_data(images).ids()
    shares = np.stack([table.column(c).to_numpy() for c in ("p_a", "p_b")], 1)
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    assert table.column("predicted").to_pylist() == ["ab"[k] for k in shares.argmax(1)]
    model = modicum.load(tuned)
    np.testing.assert_array_equal(model.predict_proba(images), shares)
    np.testing.assert_array_equal(model.predict(str(images)), table.column("predicted").to_numpy())


def test_one_model_takes_arrays_lists_and_paths_alike(tuned: Run, images: Path) -> None:
    model, paths = modicum.load(tuned), sorted(str(p) for p in images.rglob("*.png"))
    arrays = [np.asarray(decode(p, 10, 1))[..., 0] for p in paths]
    wanted = model.embed(images)
    assert wanted.dtype == np.float32
    stack, pictures = np.stack(arrays), [Image.fromarray(a) for a in arrays]
    for given in (stack, torch.from_numpy(stack), arrays, pictures, paths, pd.DataFrame({"path": paths})):
        np.testing.assert_array_equal(model.embed(given), wanted)
    assert model.predict(arrays[:1]).shape == (1,)


def test_embeddings(pre: Run, images: Path, tmp_path: Path) -> None:
    table = modicum.embed(pre, images, output=tmp_path / "e.parquet")
    assert table.column_names == ["id", "embedding"]
    vectors = np.stack(table.column("embedding").to_pylist())
    np.testing.assert_array_equal(vectors.astype(np.float32), modicum.load(pre).embed(images))
    assert pq.read_table(tmp_path / "e.parquet").schema.field("embedding").type.list_size == vectors.shape[1]


def test_reconstructions_of_images(rebuilt: Run, images: Path, tmp_path: Path) -> None:
    table = modicum.reconstruct(rebuilt, images, output=tmp_path / "r")
    assert table.column_names == ["id", "error"]
    pictures = sorted((tmp_path / "r").glob("*.png"))
    assert len(pictures) == 40
    assert pictures[0].name == "000000-000.png"
    with Image.open(pictures[0]) as picture:
        assert picture.size == (20, 10), "the input beside its reconstruction"
    batch, errors = modicum.load(rebuilt).reconstruct(images)
    assert batch["image"].shape == (40, 10, 10, 1)
    np.testing.assert_allclose(table.column("error").to_numpy(), errors, rtol=1e-6)


@pytest.mark.usefixtures("quick")
def test_tables_from_end_to_end(table: Path, tmp_path: Path) -> None:
    made = modicum.pretrain(
        table, objective="autoencoder(code=4)", encoder="mlp(width=8)", steps=3, out=tmp_path / "pre", device="cpu"
    )
    cells = modicum.reconstruct(made, table, output=tmp_path / "r")
    assert cells.column_names == ["id", "error", "input", "output"]
    assert "num=" in cells.column("output").to_pylist()[0]
    run = modicum.finetune(made, table, label="label", method="full", out=tmp_path / "tuned", **small.FEW)
    frame = pd.read_csv(table)
    wanted = modicum.load(run).predict(table)
    np.testing.assert_array_equal(modicum.load(run).predict(frame), wanted)
    np.testing.assert_array_equal(modicum.load(run).predict(frame.drop(columns="label")), wanted)
    np.testing.assert_array_equal(modicum.load(run).predict(pa.Table.from_pandas(frame).to_pylist()), wanted)


@pytest.mark.usefixtures("quick")
def test_numbers_are_predicted_in_their_own_units(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=60)
    path = small.csv(tmp_path / "numbers.csv", small.columns(num=x.tolist(), label=(1000 + 100 * x).tolist()))
    run = modicum.finetune("mlp(width=8)", path, out=tmp_path / "run", **{**small.FEW, "steps": 20})
    results = run.read_json("results.json")
    assert results["score"] == "R2"
    out = modicum.predict(run, path, output=tmp_path / "p.parquet")
    assert out.column_names == ["id", "predicted"]
    assert 500 < np.mean(out.column("predicted").to_numpy()) < 1500
    with pytest.raises(UserError, match="predicts numbers; probabilities need"):
        modicum.load(run).predict_proba(path)


def test_one_row_of_a_table_is_as_flat_as_many(table: Path) -> None:
    given = open_data(table)
    input = given.modality.infer(given.raw, np.arange(len(given)), exclude=["label"])
    source = input.pack(given.raw).source
    many = input.flat(source.rows(np.arange(5)))
    np.testing.assert_array_equal(np.concatenate([input.flat(source.rows(np.array([k]))) for k in range(5)]), many)


def test_the_report_can_be_made_again(tuned: Run, tmp_path: Path) -> None:
    copy = shutil.copytree(tuned.path, tmp_path / "copy")
    (copy / "report.html").unlink()
    assert modicum.report(copy) == copy / "report.html"
    assert (copy / "report.html").read_text("utf-8") == (tuned.path / "report.html").read_text("utf-8")
    assert "lp-ft" in (copy / "report.html").read_text("utf-8")


def test_resuming_a_finished_run_changes_nothing(pre: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.read_bytes() for p in pre.path.rglob("*") if p.is_file()}
    modicum.pretrain(resume=pre.path)
    assert "is finished: nothing is left to do" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in pre.path.rglob("*") if p.is_file()} == before


@pytest.mark.usefixtures("quick")
def test_force_replaces_a_run_and_only_then(images: Path, tmp_path: Path) -> None:
    made = modicum.pretrain(images, out=tmp_path / "run", **small.TINY)
    (made.path / "old.txt").write_text("old")
    with pytest.raises(UserError, match="exists: choose another --out, or --force"):
        modicum.pretrain(images, out=made.path, **small.TINY)
    # A mistake is found before the old run is given up.
    with pytest.raises(UserError, match="supervised training needs labels"):
        modicum.pretrain(images, objective="supervised", out=made.path, force=True, **small.TINY)
    assert (made.path / "old.txt").exists()
    modicum.pretrain(images, out=made.path, force=True, **small.TINY)
    assert not (made.path / "old.txt").exists()


@pytest.mark.usefixtures("quick")
def test_rows_in_memory_train_but_do_not_resume(tmp_path: Path) -> None:
    frame = pd.DataFrame(small.columns())
    made = modicum.pretrain(frame, encoder="mlp(width=8)", steps=2, out=tmp_path / "run", device="cpu")
    assert made.spec["data"]["held_out"] == 12
    with pytest.raises(UserError, match="was trained on rows in memory, which are gone"):
        modicum.pretrain(resume=made.path)
    run = modicum.finetune(made, frame, method="probe", out=tmp_path / "tuned", **small.FEW)
    assert run.read_json("results.json")["test_rows"] == 12


def test_specs_are_plain_json(tuned: Run) -> None:
    body = json.loads((tuned.path / "spec.json").read_text())
    assert body["parts"]["objective"]["name"] == "supervised"
    assert body["classes"] == ["a", "b"]
    assert body["method"] == "lp-ft"
