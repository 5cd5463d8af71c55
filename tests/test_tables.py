"""Tables: what becomes of every kind of cell, every message for a bad column, and runs from a CSV to predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from sklearn.datasets import load_diabetes, load_wine

import modicum
from modicum.core import seeds
from modicum.core.errors import UserError, Warned
from modicum.core.spec import build
from modicum.core.types import Batch
from modicum.datasets.data import open_data
from modicum.modalities._tablepack import MISSING, UNSEEN
from modicum.modalities.tables import Tables
from modicum.nn.encoder import Encoder

CSV = """age,colour,sick,code,label
30,red,true,7,a
,blue,false,8,b
50,,true,9,
41.5,red,,7,a
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "people.csv"
    file.write_text(CSV)
    return file


def batch_of(made: Tables, raw: pa.Table) -> Batch:
    return made.pack(raw).source.rows(np.arange(raw.num_rows))


def test_a_csv_with_numbers_categories_and_blanks(path: Path) -> None:
    data = open_data(path)
    assert data.modality is Tables
    made = Tables.infer(data.raw, np.arange(4), exclude=["label"])
    known = np.array([30, 50, 41.5])
    assert made.numeric[0] == ("age", pytest.approx(known.mean()), pytest.approx(known.std()))
    assert [name for name, *_ in made.numeric] == ["age", "code"]
    assert made.categorical == (("colour", ("blue", "red")), ("sick", ("false", "true")))
    batch = batch_of(made, data.raw)
    assert batch["numeric"][:, 0].nan_to_num(-1).tolist() == [30, -1, 50, 41.5]
    assert batch["categorical"].tolist() == [[3, 3], [2, 2], [MISSING, 3], [3, MISSING]]
    labels = data.labels()
    assert labels is not None
    assert (labels.classes, labels.values.tolist()) == (["a", "b"], [0, 1, -1, 0])
    assert made.show(batch)[0]["text"] == "age=30, code=7, colour=red, sick=true"
    assert made.show(batch)[2]["text"] == "age=50, code=9, colour=(missing), sick=true"


def test_unseen_categories_and_missing_cells_have_tokens_of_their_own() -> None:
    made = Tables(numeric=(("x", 0.0, 1.0),), categorical=(("c", ("a", "b")), ("d", ("a",))))
    raw = pa.table({"x": [0.0, None, 1.0], "c": ["z", None, "a"], "d": ["a", "a", "b"]})
    batch = batch_of(made, raw)
    assert batch["categorical"].tolist() == [[UNSEEN, 2], [MISSING, 2], [2, UNSEEN]]
    embed = made.embed()
    x = embed(batch).x
    assert torch.equal(x[1, 0], embed.missing[0])
    assert torch.equal(x[0, 0], embed.bias[0])
    tokens = torch.cat([x[:, 1], x[:, 2]])
    assert len(tokens.unique(dim=0)) == 5  # one a (column, category), and rows 0 and 1 share theirs in d


def test_statistics_come_from_the_given_rows_only() -> None:
    raw = pa.table({"x": [1.0, 3.0, 1e9, None], "c": ["a", "b", "secret", "a"]})
    made = Tables.infer(raw, np.array([0, 1]))
    assert made.numeric == (("x", 2.0, 1.0),)
    assert made.categorical == (("c", ("a", "b")),)
    assert batch_of(made, raw)["categorical"][2].item() == UNSEEN


def test_a_column_may_be_blank_in_every_new_row() -> None:
    made = Tables(numeric=(("x", 0.0, 1.0),), categorical=(("c", ("a",)),))
    batch = batch_of(made, pa.table({"x": [None, None], "c": [None, None]}))
    assert batch["numeric"].isnan().all()
    assert batch["categorical"].tolist() == [[MISSING], [MISSING]]


def test_constant_and_empty_columns_are_left_out_aloud() -> None:
    columns = {"same": [5.0] * 3, "none": pa.array([None] * 3, pa.float64()), "nil": [None] * 3, "word": ["a"] * 3}
    raw = pa.table({**columns, "x": [1.0, 2.0, 3.0], "some": [7.0, None, 7.0]})
    with pytest.warns(Warned) as told:
        made = Tables.infer(raw, np.arange(3))
    words = [str(w.message).split(" in the training rows")[0] for w in told]
    assert words == [
        "column 'same' is 5 everywhere", "column 'none' is empty", "column 'nil' is empty", "column 'word' is 'a'"
    ]  # fmt: skip
    assert made.columns() == ("x", "some")  # being missing may mean something
    kept = Tables.infer(raw, np.arange(3), columns="same:numeric,word:categorical,x:drop,nil:drop,none:drop")
    assert kept.numeric[0] == ("same", 5.0, 1.0)
    assert kept.categorical == (("word", ("a",)),)
    assert kept.embed()(batch_of(kept, raw)).x.isfinite().all()
    assert not kept.flat(batch_of(kept, raw))[:, 0].any()


def test_numbers_far_from_zero_keep_their_digits() -> None:
    """Seconds since 1970 that differ by a minute: float32 has steps of 128 s there."""
    times = 1.7e9 + 60.0 * np.arange(10)
    raw = pa.table({"time": times})
    made = Tables.infer(raw, np.arange(10))
    batch = batch_of(made, raw)
    wanted = (times - times.mean()) / times.std()
    np.testing.assert_allclose(made.flat(batch)[:, 0], wanted, rtol=1e-5, atol=1e-6)
    assert len(made.embed()(batch).x.unique(dim=0)) == 10
    unembed = made.unembed()
    with torch.no_grad():
        unembed.numbers.fill_(1 / made.width)
    tokens = torch.from_numpy(wanted).float().view(10, 1, 1).expand(10, 1, made.width)
    with torch.no_grad():
        decoded, loss = unembed.decode(tokens)["numeric"], unembed.loss(tokens, batch)
    np.testing.assert_allclose(decoded[:, 0], times, atol=0.01, rtol=0)
    assert loss.max() < 1e-9


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint16(), pa.int64(), pa.float32(), pa.decimal128(9, 2)])
def test_every_kind_of_number_is_a_number(kind: pa.DataType) -> None:
    small = pa.array([1, 2, None, 4], pa.int16())
    raw = pa.table({"x": small.cast(kind)})
    made = Tables.infer(raw, np.arange(4))
    assert made.numeric[0][1] == pytest.approx(7 / 3)
    assert batch_of(made, raw)["numeric"].nan_to_num(-1).flatten().tolist() == [1, 2, -1, 4]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_every_kind_of_text_is_a_category(kind: pa.DataType) -> None:
    raw = pa.table({"c": pa.array(["b", "a", None, "b"]).cast(kind)})
    made = Tables.infer(raw, np.arange(4))
    assert made.categorical == (("c", ("a", "b")),)
    assert batch_of(made, raw)["categorical"].flatten().tolist() == [3, 2, MISSING, 3]


MESSAGES: dict[str, tuple[dict[str, Any], str]] = {
    "missing column": ({"y": [1.0]}, r"the table lacks the column\(s\) x, c; it has y"),
    "type changed": ({"x": ["one"], "c": ["a"]}, "column 'x' was numeric in training; here it is string"),
    "infinite": (
        {"x": [0.0, np.inf, -np.inf], "c": ["a"] * 3},
        r"2 row\(s\) of 3 cannot be used:\n  row 1: column 'x' is infinite: blank it\n  row 2",
    ),
    "list": (
        {"x": [1.0], "c": [["a"]]},
        r"column 'c' holds list<.*>, which cannot be a category: leave it out \(--columns c:drop\)",
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_bad_columns_are_named(name: str) -> None:
    columns, words = MESSAGES[name]
    made = Tables(numeric=(("x", 0.0, 1.0),), categorical=(("c", ("a",)),))
    with pytest.raises(UserError, match=words):
        made.pack(pa.table(columns))


def test_columns_that_cannot_be_features_are_refused() -> None:
    rows = 300
    ids = pa.table({"name": [f"n{i}" for i in range(rows)], "x": np.arange(rows)})
    with pytest.warns(Warned, match=r"'name' has 300 different texts in 300 rows \(an id or free text\?\)"):
        assert Tables.infer(ids, np.arange(rows)).columns() == ("x",)
    with pytest.raises(UserError, match="needs at least one numeric or categorical column besides the label"):
        Tables.infer(pa.table({"label": [1, 2]}), np.arange(2), exclude=["label"])
    with pytest.raises(UserError, match="unknown table view 'crop'; valid: "):
        Tables(numeric=(("x", 0.0, 1.0),)).views(crop=1)
    with pytest.raises(UserError, match="wanted 0 <= corrupt < 1, got 1"):
        Tables(numeric=(("x", 0.0, 1.0),)).views(corrupt=1)
    with pytest.raises(UserError, match="wanted 0 <= corrupt < 1, got 'much'"):
        Tables(numeric=(("x", 0.0, 1.0),)).views(corrupt="much")
    for thing in (5, "text", [], [1, 2], np.zeros((2, 2))):
        with pytest.raises(UserError, match="a table wants a DataFrame, an Arrow table, a list of dicts or a path"):
            Tables.as_raw(thing)


def test_rows_in_memory_of_every_kind() -> None:
    rows = [{"x": 1.0, "c": "a"}, {"x": None, "c": "b"}]
    wanted = pa.table({"x": [1.0, None], "c": ["a", "b"]})
    assert Tables.as_raw(rows).equals(wanted)
    assert Tables.as_raw(wanted) is wanted
    frame = Tables.as_raw(pd.DataFrame(rows))
    made = Tables.infer(wanted, np.arange(2))
    for raw in (wanted, Tables.as_raw(rows), frame):
        batch = batch_of(made, raw)
        assert batch["numeric"].nan_to_num(-1).tolist() == [[1], [-1]]
        assert batch["categorical"].tolist() == [[2], [3]]


def test_the_simple_features() -> None:
    made = Tables(numeric=(("x", 2.0, 4.0),), categorical=(("c", ("a", "b")),))
    flat = made.flat(batch_of(made, pa.table({"x": [6.0, None], "c": ["b", None]})))
    assert flat.tolist() == [[1, 0, 0, 0, 0, 1], [0, 1, 1, 0, 0, 0]]


# SCARF's corruption


def test_scarf_draws_cells_from_the_marginal_of_their_column() -> None:
    n = 20000
    rng = seeds.numpy(0, "scarf")
    numeric = np.stack([rng.standard_normal(n), 100 + rng.exponential(size=n)], 1)
    numeric[: n // 10, 0] = np.nan
    batch = {
        "numeric": torch.from_numpy(numeric),
        "categorical": torch.from_numpy(rng.choice(4, (n, 1), p=[0.1, 0, 0.6, 0.3])),
    }
    made = Tables(numeric=(("x", 0.0, 1.0), ("y", 100.0, 1.0)), categorical=(("c", ("a", "b")),))
    out = made.views(corrupt=0.4)(batch, seeds.generator(0))
    changed = (out["numeric"] != batch["numeric"]) & ~(out["numeric"].isnan() & batch["numeric"].isnan())
    assert changed[:, 1].double().mean().item() == pytest.approx(0.4, abs=0.02)
    both = changed.double().prod(1).mean().item()
    assert both == pytest.approx(0.4 * 0.4 * (1 - 0.1**2), abs=0.02)  # columns are drawn one by one
    for j in range(2):
        assert set(out["numeric"][:, j].nan_to_num(-7).tolist()) <= set(batch["numeric"][:, j].nan_to_num(-7).tolist())
    assert out["numeric"][:, 0].isnan().double().mean().item() == pytest.approx(0.1, abs=0.02)
    assert out["numeric"][:, 1].mean().item() == pytest.approx(101, abs=0.05)
    shares = out["categorical"].flatten().bincount(minlength=4) / n
    torch.testing.assert_close(shares, torch.tensor([0.1, 0, 0.6, 0.3]), atol=0.02, rtol=0)
    swapped = changed[:, 1]
    x = torch.stack([out["numeric"][swapped, 1], batch["numeric"][swapped, 1]])
    assert abs(torch.corrcoef(x)[0, 1].item()) < 0.05  # a swapped cell knows nothing of what it was
    same = made.views(corrupt=0)(batch, seeds.generator(0))
    assert torch.equal(same["categorical"], batch["categorical"])
    assert torch.equal(same["numeric"].nan_to_num(-7), batch["numeric"].nan_to_num(-7))


def test_scarf_breaks_the_ties_between_columns() -> None:
    x = torch.randn((20000, 1), generator=seeds.generator(1)).double()
    batch = {"numeric": torch.cat([x, 2 * x], 1), "categorical": torch.empty(20000, 0, dtype=torch.long)}
    out = Tables(numeric=(("x", 0.0, 1.0), ("y", 0.0, 2.0))).views(corrupt=0.6)(batch, seeds.generator(0))["numeric"]
    both = (out != batch["numeric"]).all(1)
    assert both.double().mean().item() == pytest.approx(0.36, abs=0.02)
    assert abs(torch.corrcoef(out[both].T)[0, 1].item()) < 0.06


def test_missing_cells_cost_nothing_to_rebuild() -> None:
    made = Tables(numeric=(("x", 0.0, 1.0),), categorical=(("c", ("a", "b")),))
    batch = batch_of(made, pa.table({"x": [None, 3.0], "c": ["a", None]}))
    with seeds.forked(0, "init"):
        unembed = made.unembed()
    tokens = torch.randn((2, 2, made.width), generator=seeds.generator(0))
    loss = unembed.loss(tokens, batch)
    assert loss[0, 0] == loss[1, 1] == 0
    assert loss[0, 1] > 0
    assert loss[1, 0] > 0
    decoded = unembed.decode(tokens)
    assert decoded["numeric"].isfinite().all()
    assert (decoded["categorical"] >= 2).all()  # never "missing" or "unseen"
    logits = unembed._cells(tokens)[1][0]
    wanted = torch.nn.functional.cross_entropy(logits[:1], torch.tensor([2]))
    torch.testing.assert_close(loss[0, 1], wanted)


def test_sets_of_columns_train_too() -> None:
    made = Tables(numeric=(("x", 0.0, 1.0),), categorical=(("c", ("a", "b")),))
    encoder = Encoder.of(made, "mlp(width=8, over='set')")
    assert list(encoder.layers()) == ["embed", "dense1", "dense2"]
    out = build("objective", "simclr(hidden=8, out=4)", encoder=encoder)
    rows = batch_of(made, pa.table({"x": [0.0, 1.0, None, 2.0], "c": ["a", "b", "b", None]}))
    loss, _ = out(out.corrupt(rows, seeds.generator(0)))
    assert loss.isfinite()


# From a file to predictions


def runs(tmp_path: Path, frame: pd.DataFrame, label: str) -> tuple[modicum.Run, modicum.Run]:
    """A tiny pre-training and finetuning of a CSV file."""
    file = tmp_path / "data.csv"
    frame.to_csv(file, index=False)
    few: dict[str, Any] = {"label": label, "device": "cpu"}
    first = modicum.pretrain(file, steps=20, batch=32, encoder="mlp(width=32)", out=tmp_path / "pre", **few)
    last = modicum.finetune(first.path, file, steps=20, seeds=2, method="probe", out=tmp_path / "fine", **few)
    return first, last


@pytest.mark.filterwarnings("default::modicum.core.errors.Warned")
def test_classes_from_a_csv_to_predictions(tmp_path: Path) -> None:
    x, y = load_wine(return_X_y=True, as_frame=True)
    frame = x.iloc[:, :6].assign(colour=np.where(x["hue"] > 1, "dark", "light"), kind=y.map({0: "A", 1: "B", 2: "C"}))
    frame.loc[::17, "alcohol"] = np.nan
    first, last = runs(tmp_path, frame, "kind")
    results = last.read_json("results.json")
    assert results["score"] == "accuracy"
    assert {"scratch", "probe", "logistic regression", "gradient boosting"} <= {
        c["name"] for c in results["contestants"]
    }
    for row in results["contestants"]:
        assert row["low"] <= row["mean"] <= row["high"]
        assert row["mean"] > 0.4
        assert ("versus" in row) == (row["name"] != results["reference"])
    assert np.sum(results["confusion"]["counts"]) == results["test_rows"] * results["seeds"]
    model = modicum.load(last.path)
    assert model.classes == ["A", "B", "C"]
    rows = frame.drop(columns="kind")
    found = model.predict(rows)
    assert (found == frame["kind"]).mean() > 0.7
    proba = model.predict_proba(rows)
    np.testing.assert_allclose(proba.sum(1), 1, rtol=1e-5)
    assert (np.array(model.classes)[proba.argmax(1)] == found).all()
    assert (model.predict(rows.iloc[5:9].to_dict("records")) == found[5:9]).all()
    assert (model.predict(rows[rows.columns[::-1]]) == found).all()
    assert model.embed(rows).shape == (178, 32)
    strange = rows.iloc[:2].assign(colour="pink", alcohol=None)
    assert set(model.predict(strange)) <= {"A", "B", "C"}
    with pytest.raises(UserError, match=r"lacks the column\(s\) colour; it has"):
        model.predict(rows.drop(columns="colour"))
    with pytest.raises(UserError, match="column 'ash' was numeric in training"):
        model.predict(rows.assign(ash="a lot"))
    with pytest.raises(UserError, match="predicts nothing"):
        modicum.load(first.path).predict(rows)


@pytest.mark.filterwarnings("default::modicum.core.errors.Warned")
def test_numbers_from_a_csv_to_predictions(tmp_path: Path) -> None:
    frame = load_diabetes(as_frame=True).frame.rename(columns={"target": "y"})
    _, last = runs(tmp_path, frame, "y:numbers")
    results = last.read_json("results.json")
    assert results["score"] == "R2"
    assert 30 < results["mae"] < 75
    assert all(row["low"] <= row["mean"] <= row["high"] for row in results["contestants"])
    model = modicum.load(last.path)
    found = model.predict(frame.drop(columns="y"))
    assert found.shape == (442,)
    assert np.corrcoef(found, frame["y"])[0, 1] > 0.5
    assert abs(found.mean() - frame["y"].mean()) < 30  # in the label's own units
    with pytest.raises(UserError, match="predicts numbers; probabilities need a run of finetune on classes"):
        model.predict_proba(frame)
