"""The verbs: which rows train and which test, what is frozen, what is written, and that seeds repeat."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
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
from modicum.datasets.data import open_data
from modicum.modalities.tables import Tables
from modicum.training import contest
from modicum.training.run import load_tensors
from modicum.verbs.finetune import verdict


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
    path = small.csv(
        tmp_path / "numbers.csv", small.columns(num=x.tolist(), label=(1000 + 100 * x + np.arange(60) % 3).tolist())
    )
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
    with pytest.raises(UserError, match="pairs needs --pairs FILE"):
        modicum.pretrain(images, objective="pairs", out=made.path, force=True, **small.TINY)
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


@pytest.mark.usefixtures("quick")
def test_images_of_every_mode_go_through(tmp_path: Path) -> None:
    """Grey, RGB, RGBA, palette, 16-bit and rotated images of different sizes, from pre-training to predictions."""
    data = tmp_path / "mixed"
    for k in range(24):
        (data / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        image, path = Image.fromarray(small.picture(k, 10 + k)), data / "ab"[k % 2] / f"{k:02d}"
        turned = Image.Exif()
        turned[0x0112] = 6
        match k // 2 % 6:
            case 0:
                image.save(path.with_suffix(".png"))
            case 1:
                image.convert("RGB").save(path.with_suffix(".jpg"))
            case 2:
                image.convert("RGBA").save(path.with_suffix(".png"))
            case 3:
                image.convert("RGB").quantize(8).save(path.with_suffix(".png"))
            case 4:
                Image.fromarray(np.asarray(image).astype(np.uint16) * 257).save(path.with_suffix(".png"))
            case 5:
                image.convert("RGB").save(path.with_suffix(".jpg"), exif=turned)
    made = modicum.pretrain(data, out=tmp_path / "pre", **small.TINY)
    assert modicum.load(made).input.channels == 3  # type: ignore[attr-defined]
    run = modicum.finetune(made, data, method="probe", out=tmp_path / "tuned", **small.FEW)
    assert modicum.load(run).predict(data).shape == (24,)


def test_a_fresh_encoder_is_scaled_by_the_training_rows_of_each_split(tmp_path: Path, monkeypatch: Any) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=60), "label": ["x", "y"] * 30})
    frame.to_csv(tmp_path / "t.csv", index=False)
    used = []
    infer = Tables.infer.__func__

    def noted(cls: type[Tables], raw: Any, index: np.ndarray, **options: Any) -> Tables:
        used.append(np.sort(index))
        return infer(cls, raw, index, **options)

    monkeypatch.setattr(Tables, "infer", classmethod(noted))
    plans: list[Any] = []
    whole = contest.hold
    monkeypatch.setattr(
        sys.modules["modicum.verbs.finetune"], "hold", lambda c, plan, task: plans.append(plan) or whole(c, plan, task)
    )
    run = modicum.finetune("mlp(width=4)", tmp_path / "t.csv", seeds=2, steps=2, out=tmp_path / "run")
    for repeat in plans[0].repeats:
        assert any(np.array_equal(index, np.sort(repeat.pool)) for index in used)
        assert not np.intersect1d(repeat.pool, repeat.test).size
    assert len(modicum.load(run).predict(frame)) == 60


def test_methods_after_commas_are_measured_beside_the_first(pre: Run, images: Path, tmp_path: Path) -> None:
    run = modicum.finetune(pre, images, method="probe,propagate", seeds=2, steps=2, out=tmp_path / "run")
    names = [row["name"] for row in run.read_json("results.json")["contestants"]]
    assert names[:3] == ["scratch", "probe", "propagate"]
    assert run.spec["method"] == "probe"
    with pytest.raises(UserError, match="unknown method 'prob'; valid: probe"):
        modicum.finetune(pre, images, method="probe,prob", out=tmp_path / "new")


@pytest.mark.usefixtures("quick")
def test_an_unfinished_finetune_is_replaced_and_nothing_else(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"

    def again(path: Path = out) -> Run:
        return modicum.finetune("mlp(width=8)", table, out=path, **small.FEW)

    with monkeypatch.context() as patch:
        patch.setattr(
            sys.modules["modicum.verbs.finetune"], "_hold", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            again()
    assert [p.name for p in out.iterdir()] == ["spec.json"]
    spec = Run.open(out).spec
    for file in ("notes.txt", "results.json"):  # somebody's own, or results: a folder to keep
        kept = shutil.copytree(out, tmp_path / file.partition(".")[0])
        (kept / file).write_text("{}")
        with pytest.raises(UserError, match="exists: choose another --out, or --force"):
            again(kept)
        assert (kept / file).exists()
    alive = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with alive:
        for process in ([platform.node(), alive.pid], ["another machine", 1], None):
            Run(out, {**spec, "process": process}).save_spec()
            with pytest.raises(UserError, match="exists: choose another --out, or --force"):
                again()  # another process may be at work on it
        Run(out, {**spec, "process": [platform.node(), alive.pid]}).save_spec()
        alive.communicate()
    (out / ".tmp-0.json").write_text("half")
    assert again().finished or (out / "results.json").is_file()
    assert not (out / ".tmp-0.json").exists()
    with pytest.raises(UserError, match="exists: choose another --out, or --force"):
        again()


@pytest.mark.filterwarnings("ignore::modicum.core.errors.Warned")
@pytest.mark.usefixtures("quick")
def test_next_token_on_values_is_said_to_learn_features_only(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trunk = "transformer(width=8, depth=1, patch=1, causal=True)"
    run = modicum.pretrain(images, objective="next_token", out=tmp_path / "run", **{**small.TINY, "encoder": trunk})
    words = "next_token learns features of images, but predicts their values: generate cannot draw any from this run"
    assert f"note: {words}" in capsys.readouterr().err
    with pytest.raises(UserError, match=words):
        modicum.generate(run)


def test_a_score_below_that_of_the_mean_is_said_to_be_of_no_use() -> None:
    rows: list[dict[str, Any]] = [
        {"name": "scratch", "mean": -0.5, "low": -0.9, "high": -0.1},
        {"name": "probe", "mean": -0.2, "low": -0.4, "high": 0.0},
    ]
    rows[1]["versus"] = {"mean": 0.3, "low": 0.1, "high": 0.5, "verdict": "gain"}
    assert verdict(rows, "probe").endswith("worse than predicting the mean: none of these is of use.")
    rows[1]["mean"] = 0.1
    assert "predicting the mean" not in verdict(rows, "probe")
