"""Pre-training on the user's pairs and triplets, on labels of some rows, and on sums of objectives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import small
import torch
from sklearn.datasets import load_digits

import modicum
from modicum.core.errors import UserError, Warned
from modicum.datasets.data import open_data
from modicum.probes import knn
from modicum.training.tuples import Mixed, labelled, read_tuples

ROWS = [{"id": f"r{i}", "x": float(i % 7), "z": float(i % 5)} for i in range(30)]
TINY: dict[str, Any] = {"encoder": "mlp(width=16)", "steps": 3, "batch": 8, "device": "cpu"}


def file(path: Path, rows: list[dict[str, Any]]) -> Path:
    return small.csv(path, {key: [row.get(key) for row in rows] for key in rows[0]})


def pairs(path: Path, **changed: Any) -> Path:
    rows = [{"a": f"r{i}", "b": f"r{i + 10}", "similar": i % 2} for i in range(10)]
    rows[3] |= changed
    return file(path, rows)


class Numbers:
    """A source whose rows hold their own numbers."""

    size = 30

    def rows(self, index: np.ndarray) -> dict[str, torch.Tensor]:
        return {"n": torch.from_numpy(index)}


def read(path: Path, roles: tuple[str, ...] = ("a", "b"), train: np.ndarray | None = None, skip: bool = False) -> Any:
    data = open_data(ROWS)
    return read_tuples(path, roles, data, Numbers(), np.arange(30) if train is None else train, skip)


def test_rows_of_a_role_follow_those_of_the_one_before(tmp_path: Path) -> None:
    found = read(pairs(tmp_path / "p.csv"))
    batch = found.rows(np.array([4, 7]))
    assert batch["n"].tolist() == [4, 7, 14, 17]
    assert batch["similar"].tolist() == [0, 1, 0, 1]
    rows = [{"anchor": f"r{i}", "positive": f"r{i + 1}", "negative": f"r{i + 2}"} for i in range(5)]
    three = read(file(tmp_path / "t.csv", rows), ("anchor", "positive", "negative"))
    assert three.rows(np.array([2, 0]))["n"].tolist() == [2, 0, 3, 1, 4, 2]
    assert three.size == 5


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"a": "r99"}, "row 4: a 'r99' is no id of"),
        ({"a": None}, "row 4: a '' is no id of"),
        ({"b": "r3"}, "row 4: a and b are the same row"),
        ({"similar": 2}, "row 4: similar is '2', neither 1 nor 0"),
    ],
)
def test_a_bad_pair_is_named_and_left_out_on_request(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    path = pairs(tmp_path / "p.csv", **changed)
    with pytest.raises(UserError, match=rf"1 row\(s\) cannot be used \({words}"):
        read(path)
    with pytest.warns(Warned, match=rf"1 row\(s\) left out \({words}"):
        assert read(path, skip=True).size == 9


def test_rows_that_say_the_opposite_of_earlier_ones_are_named(tmp_path: Path) -> None:
    rows = [{"a": f"r{i}", "b": f"r{i + 10}", "similar": i % 2} for i in range(10)]
    with pytest.raises(UserError, match=r"row 11: similar is 1, and 0 of the same pair in row 1\)"):
        read(file(tmp_path / "p.csv", [*rows, {"a": "r10", "b": "r0", "similar": 1}]))
    assert read(file(tmp_path / "q.csv", [*rows, {"a": "r10", "b": "r0", "similar": 0}])).size == 11


def test_a_positive_that_is_the_negative_is_named(tmp_path: Path) -> None:
    rows = [{"anchor": f"r{i}", "positive": f"r{i + 1}", "negative": f"r{i + 2}"} for i in range(5)]
    rows[2]["negative"] = "r3"
    with pytest.raises(UserError, match=r"row 3: positive and negative are the same row"):
        read(file(tmp_path / "t.csv", rows), ("anchor", "positive", "negative"))


def test_pairs_with_test_rows_are_left_out_aloud(tmp_path: Path) -> None:
    with pytest.warns(Warned, match="2 of 10 rows of .* name rows that are not trained on"):
        assert read(pairs(tmp_path / "p.csv"), train=np.setdiff1d(np.arange(30), [3, 15])).size == 8


def test_files_that_cannot_be_learned_from(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no column similar; wanted a, b, similar, found a, b"):
        read(file(tmp_path / "1.csv", [{"a": "r0", "b": "r1"}]))
    with pytest.raises(UserError, match="every pair is similar; both kinds are needed"):
        read(file(tmp_path / "2.csv", [{"a": f"r{i}", "b": "r9", "similar": 1} for i in range(3)]))
    with pytest.raises(UserError, match="leaves 1 triplets: at least 2"):
        read(
            file(tmp_path / "3.csv", [{"anchor": "r0", "positive": "r1", "negative": "r2"}]),
            ("anchor", "positive", "negative"),
        )
    twice = open_data([*ROWS, ROWS[0]])
    with pytest.raises(UserError, match="a 'r0' is the id of several rows"):
        read_tuples(pairs(tmp_path / "4.csv"), ("a", "b"), twice, Numbers(), np.arange(31), False)


def test_a_quarter_more_rows_are_labelled_where_few_are() -> None:
    target = np.where(np.arange(30) < 4, np.arange(30) % 2, -1)
    mixed = labelled(Numbers(), np.arange(30), target, target >= 0, 8, 0)
    assert isinstance(mixed, Mixed)
    assert mixed.batch == 10
    assert sorted(torch.cat([mixed(step)["n"][:8] for step in range(3)]).tolist())[-1] <= 29
    for step in range(20):
        batch = mixed(step)
        assert (batch["target"][8:] >= 0).all()
        assert torch.equal(batch["target"], torch.from_numpy(target)[batch["n"]])
    plain = labelled(Numbers(), np.arange(30), np.zeros(30, int), np.ones(30, bool), 8, 0)
    assert not isinstance(plain, Mixed)


@pytest.mark.parametrize("objective", [None, "pairs(margin=.5)"])
def test_pretraining_on_pairs_resumes_to_the_same_bits(tmp_path: Path, objective: str | None) -> None:
    path = pairs(tmp_path / "p.csv")
    data = file(tmp_path / "rows.csv", ROWS)
    whole = modicum.pretrain(data, objective=objective, pairs=path, out=tmp_path / "a", **TINY)
    assert whole.spec["parts"]["objective"]["name"] == "pairs"
    assert whole.spec["data"]["tuples"] == 10
    part = modicum.pretrain(data, objective=objective, pairs=path, out=tmp_path / "b", save_every=1, **TINY)
    for name in ("model.safetensors", "state/000000003.safetensors"):
        (part.path / name).unlink()
    again = modicum.pretrain(resume=part.path)
    assert (again.path / "model.safetensors").read_bytes() == (whole.path / "model.safetensors").read_bytes()
    (part.path / "model.safetensors").unlink()
    pairs(path, similar=0)
    with pytest.raises(UserError, match=r"p.csv has changed since"):
        modicum.pretrain(resume=part.path)


def test_options_that_do_not_fit_together(tmp_path: Path) -> None:
    path = pairs(tmp_path / "p.csv")
    for given, words in (
        ({"objective": "pairs"}, "--objective pairs needs --pairs FILE"),
        ({"objective": "simclr", "pairs": path}, "--pairs FILE is for --objective pairs; this one is simclr"),
        ({"pairs": path, "triplets": path}, "give --pairs or --triplets, not both"),
        ({"objective": "supcon", "label": "x:classes", "transductive": True}, "would learn theirs"),
        ({"objective": "supcon"}, "supcon.* needs labels of at least some rows: name their column with --label"),
        ({"objective": "triplet"}, "triplet.* needs labels .* with --label, or give --triplets FILE"),
        ({"objective": "simclr() + triplet()"}, "needs labels of at least some rows"),
        ({"objective": "simclr() + .1*pairs()"}, "pairs and given triplets have batches of their own"),
        ({"objective": "supervised() + 0*simclr()", "label": "x:classes"}, "a sum wants weights above 0"),
    ):
        with pytest.raises(UserError, match=words):
            modicum.pretrain(ROWS, out=tmp_path / "out", **TINY, **given)


USED = [k for k in range(64) if load_digits().data[:1000, k].std() > 0.5]


def test_labels_that_changed_are_no_continuation(tmp_path: Path) -> None:
    rows = [{**row, "label": "ab"[i % 2]} for i, row in enumerate(ROWS)]
    data = file(tmp_path / "rows.csv", rows)
    run = modicum.pretrain(data, objective="supcon", save_every=1, out=tmp_path / "r", **TINY)
    later = modicum.pretrain(data, objective="simclr", encoder=run, out=tmp_path / "s", steps=2, batch=8)
    assert later.spec["data"]["labels_used"] == run.spec["data"]["labels_used"] == 24
    (run.path / "model.safetensors").unlink()
    file(data, [{**row, "label": "ab"[i % 3 % 2]} for i, row in enumerate(ROWS)])
    with pytest.raises(UserError, match=r"the labels of .*rows.csv have changed"):
        modicum.pretrain(resume=run.path)


def digits(known: int) -> pa.Table:
    """1,000 digits as rows of numbers; the first `known` of them have a label."""
    x, y = load_digits(return_X_y=True)
    columns: dict[str, Any] = {f"p{k}": x[:1000, k] for k in USED}
    return pa.table(columns | {"label": [str(v) if i < known else None for i, v in enumerate(y[:1000])]})


@pytest.mark.parametrize(
    "objective", ["supcon()", "triplet(mining='semi-hard')", "simclr(views=views(corrupt=.3)) + supervised()"]
)
def test_labels_of_some_rows_teach_the_features(tmp_path: Path, objective: str) -> None:
    """Neighbours of the unlabelled rows are of their class clearly more often than on the untrained encoder's."""
    given: dict[str, Any] = {"objective": objective, "encoder": "mlp(width=64, depth=2)", "batch": 128}
    run = modicum.pretrain(digits(400), steps=150, out=tmp_path / "run", **given)
    start = modicum.pretrain(digits(400), steps=1, lr=1e-9, out=tmp_path / "start", **given)
    assert run.spec["data"]["labels_used"] == 320
    x, y = load_digits(return_X_y=True)
    rows = pa.table({f"p{k}": x[:, k] for k in USED})
    found = []
    for own in (start, run):
        z = modicum.load(own).embed(rows)
        found.append((knn(z[:400], y[:400], z[1000:]) == y[1000:]).mean())
    assert found[1] > found[0] + 0.03
    with pytest.warns(Warned, match="was pre-trained with the labels of 320 rows"):
        modicum.finetune(run, digits(400), method="probe", labels=50, seeds=2, steps=1, out=tmp_path / "tuned")
    spec = json.loads((run.path / "spec.json").read_text())
    assert modicum.load(run.path).run.spec["parts"] == spec["parts"]


def test_numbers_of_some_rows_teach_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3))
    y = np.where(np.arange(400) < 200, 5 + 2 * x[:, 0] + 0.1 * x[:, 1] ** 2, np.nan)
    table = pa.table({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "y": y})
    run = modicum.pretrain(
        table, objective="masked() + supervised()", label="y", encoder="mlp(width=32)", steps=100, batch=64,
        out=tmp_path / "run",
    )  # fmt: skip
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert np.mean([row["supervised loss"] for row in rows[-10:]]) < 0.7  # 1 at the start: the head is zero
    with pytest.raises(UserError, match="supcon needs classes, and the labels are numbers"):
        modicum.pretrain(table, objective="supcon", label="y", out=tmp_path / "no", **TINY)
