"""Several tasks at once: label columns with gaps, one shared encoder, a loss over what is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.linear_model import Ridge
from small import FEW, columns
from zoo import tables

import modicum
from modicum.core import seeds
from modicum.core.errors import UserError
from modicum.core.spec import build, spec
from modicum.datasets.data import open_data
from modicum.nn.encoder import tower
from modicum.objectives.supervised import Supervised
from modicum.training import baselines
from modicum.training.transfer import Task, predictions


def rows(n: int = 60) -> pa.Table:
    x = np.random.default_rng(0).normal(size=n)
    a = [None if k % 3 == 0 else 100 + 5 * float(v) + k % 5 / 10 for k, v in enumerate(x)]
    b = [None if k % 4 == 1 else bool(v > 0) for k, v in enumerate(x)]
    kept = columns(n)
    del kept["label"]
    return pa.table({**kept, "num": x, "a": a, "b": b, "id": [f"r{k}" for k in range(n)]})


def test_label_columns_with_commas_are_tasks() -> None:
    data = open_data(rows())
    labels = data.labels("a, b")
    assert labels is not None
    assert (labels.kind, labels.tasks, labels.values.shape) == ("numbers", ["a", "b"], (60, 2))
    assert np.isnan(labels.values[:, 0]).sum() == 20
    assert set(np.unique(labels.values[:, 1][~np.isnan(labels.values[:, 1])])) == {0.0, 1.0}
    assert labels.known.tolist() == [not (k % 3 == 0 and k % 4 == 1) for k in range(60)]
    assert (np.isnan(labels.level) == ~labels.known).all()
    only_a = ~np.isnan(labels.values[:, 0]) & np.isnan(labels.values[:, 1])
    known = labels.values[:, 0][~np.isnan(labels.values[:, 0])]
    assert labels.level[only_a] == pytest.approx((labels.values[only_a, 0] - known.mean()) / known.std())
    assert data.label_columns("a,b") == ["a", "b"]
    odd = open_data(rows().rename_columns([*rows().column_names[:-3], "a,b", "c", "id"]))
    plain = odd.labels("a,b")
    assert plain is not None
    assert plain.values.ndim == 1
    for name, words in (("a,a", "'a' is named twice"), ("a,z", "no label column 'z'"), ("a,cat", "is not numeric")):
        with pytest.raises(UserError, match=words):
            data.labels(name)
    empty = open_data(rows().append_column("e", pa.nulls(60, pa.float64())))
    with pytest.raises(UserError, match="the label column 'e' is empty in every row"):
        empty.labels("a,e")


def test_the_loss_is_the_mean_over_what_is_known_and_predictions_are_in_units() -> None:
    with seeds.forked(0, "init"):
        encoder = tower(tables()[0], "mlp(width=8)")
    made = Supervised(encoder, 2, "numbers", 0.0, (10.0, 0.0), (2.0, 0.5), None, (8.0, -1.0), (12.0, 1.0))
    batch = {k: v[:3] for k, v in tables()[1].items()}
    nan = float("nan")
    target = torch.tensor([[12.0, nan], [nan, 1.0], [14.0, nan]])
    loss, _ = made({**batch, "target": target})
    assert loss.item() == pytest.approx((1 + 4 + 4) / 3)  # a head of zeros says the means
    with torch.no_grad():
        made.head.bias.copy_(torch.tensor([5.0, 1.0]))
    made.eval()
    assert made.predict(batch).tolist() == [[12.0, 0.5]] * 3
    again = build("objective", spec("objective", made))
    assert (again.shift, again.high) == ((10.0, 0.0), (12.0, 1.0))


def test_scores_are_means_over_the_known_tasks() -> None:
    nan = float("nan")
    target = np.array([[0.0, 1.0], [2.0, nan], [4.0, 3.0], [nan, 5.0]])
    task = Task(None, target, "numbers", 2)  # type: ignore[arg-type]
    out, scores = predictions(lambda _: np.array([[1.0, 1.0], [2.0, 0.0], [4.0, 4.0]]), task, np.arange(3))
    a, b = np.var([0, 2, 4]), np.var([1, 3, 5])
    assert scores["R2"] == pytest.approx([((1 - 1 / a) + 1) / 2, 1, (1 + (1 - 1 / b)) / 2])
    assert out.shape == (3, 2)


def test_a_baseline_is_fitted_to_each_task_where_it_is_known() -> None:
    rng = np.random.default_rng(0)
    x, target = rng.normal(size=(30, 4)), rng.normal(size=(30, 2))
    target[::2, 0] = np.nan
    task = Task(None, target, "numbers", 2)  # type: ignore[arg-type]
    predict = baselines._fitted(Ridge(alpha=1.0), x, task, np.arange(30))
    wanted = Ridge(alpha=1.0).fit(x[1::2], target[1::2, 0]).predict(x)
    low, high = target[1::2, 0].min(), target[1::2, 0].max()
    gap = (high - low) / 4
    assert predict(x)[:, 0] == pytest.approx(np.clip(wanted, low - gap, high + gap))


def test_tasks_through_the_verbs(tmp_path: Path) -> None:
    table, tiny = rows(), {"encoder": "mlp(width=8)", "steps": 4, "batch": 16, "device": "cpu"}
    run = modicum.pretrain(table, label="a,b", out=tmp_path / "run", **tiny)
    assert run.spec["input"]["label"] == "a,b"
    options: dict[str, Any] = {**FEW, "method": "lp-ft"}
    tuned = modicum.finetune(run, table, label="a,b", out=tmp_path / "tuned", **options)
    results = tuned.read_json("results.json")
    assert results is not None
    assert results["score"] == "R2"
    assert {"scratch", "probe", "lp-ft", "ridge regression"} <= {row["name"] for row in results["contestants"]}
    assert next(r["mean"] for r in results["contestants"] if r["name"] == "ridge regression") > 0.5
    new = table.drop_columns(["a", "b"])
    out = modicum.predict(tuned, new, output=tmp_path / "p.parquet")
    assert out.column_names == ["id", "predicted_a", "predicted_b"]
    a, b = (out.column(f"predicted_{name}").to_numpy() for name in "ab")
    assert 80 < a.min() < a.max() < 120
    assert -0.5 < b.min() < b.max() < 1.5
    assert modicum.load(tuned).predict(new).shape == (60, 2)
    assert "?, " in (tuned.path / "exhibits.json").read_text()  # a label that is partly known


def test_several_labels_are_no_classes() -> None:
    with pytest.raises(UserError, match="of several labels each is a number; name 'b:classes' alone"):
        open_data(rows()).labels("a,b:classes")


def test_an_encoder_that_takes_a_label_is_refused_with_the_labels_to_pretrain_with(tmp_path: Path) -> None:
    run = modicum.pretrain(rows(), label="a", steps=2, out=tmp_path / "run")
    with pytest.raises(UserError, match=r"takes the label column 'b' as an input.*pre-train again with --label a,b$"):
        modicum.finetune(run, rows(), label="a,b", out=tmp_path / "out")
