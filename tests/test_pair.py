"""Pairs: tables of two samples a row, and the encoder that multiplies their features."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
import zoo
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn

import modicum
from modicum import testing
from modicum.core import seeds
from modicum.core.errors import UserError, Warned
from modicum.core.spec import build, spec
from modicum.datasets.data import open_data
from modicum.modalities.images import Images
from modicum.modalities.pairs import Pairs, sided
from modicum.modalities.tables import Tables
from modicum.nn.encoder import Encoder, complete, tower
from modicum.nn.pair import Pair, half
from modicum.testing.tools import check_freezing, check_spec, pick, stirred
from modicum.training import transfer
from modicum.training.apply import over
from modicum.training.batches import Batches
from modicum.training.fit import fit
from modicum.training.optim import adamw, groups
from modicum.training.transfer import Task

SMALL = "pair(left=mlp(width=16), right=mlp(width=16), rank=8)"


def made(input: Any, text: str) -> Any:
    with seeds.forked(0, "made"):
        return tower(input, text)


def digits(n: int, seed: int, items: slice) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Pairs of digits, half of one class, as columns of pixels; whether they match, and the rows of each side."""
    x, y = load_digits(return_X_y=True)
    keep = x.std(0) > 2
    x, y, rng = x[items], y[items], np.random.default_rng(seed)
    i, j = rng.integers(0, len(y), (2, n))
    for k in range(0, n, 2):
        j[k] = rng.choice(np.flatnonzero(y == y[i[k]]))
    sides = {f"{s}.p{c}": x[rows, c] for s, rows in (("left", i), ("right", j)) for c in np.flatnonzero(keep)}
    more = {"match": np.where(y[i] == y[j], "yes", "no"), "sum": (y[i] + y[j]).astype(float)}
    return pd.DataFrame({**sides, **more}), i, j


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty pairs: a digit as a file and its pixel sums as columns, match where both are of one digit."""
    path = tmp_path_factory.mktemp("mixed")
    data = load_digits()
    (path / "img").mkdir()
    rng = np.random.default_rng(0)
    for k in range(12):
        Image.fromarray((data.images[k] * 15).astype(np.uint8)).save(path / "img" / f"{k}.png")
    for name, first in (("pairs.csv", 0), ("more.csv", 12)):
        left, right = rng.integers(0, 12, 60), rng.integers(first, first + 12, 60)
        table = {
            "left.file": [f"img/{k}.png" for k in left],
            "right.sum": data.images[right].sum((1, 2)),
            "right.kind": [f"k{v}" for v in data.target[right] % 3],
            "rating": [None if k % 9 == 4 else float(a + b) for k, (a, b) in enumerate(zip(left, right, strict=True))],
            "match": np.where(data.target[left] % 3 == data.target[right] % 3, "yes", "no"),
        }
        pyarrow.csv.write_csv(pa.table(table), path / name)
    return path


# The modality


def test_columns_have_sides() -> None:
    names = ["left.a", "right_b.c", "left", "right", "leftover", "lefty.a", "label", "left."]
    wanted = [("left", "a"), ("right", "b.c"), ("left", "value"), ("right", "value"), None, None, None, None]
    assert [sided(n) for n in names] == wanted


@pytest.mark.parametrize(
    ("columns", "claimed"),
    [
        (["left.a", "right.b", "x", "y", "z"], True),
        (["left_a", "right_a", "match"], True),
        (["left_a", "right_a", "match", "id", "split", "label"], True),
        (["left", "right"], True),
        (["left_arm", "right_arm", "age", "sex"], False),
        (["left_a", "match"], False),
        (["lefty.a", "right"], False),
        (["a", "b", "label"], False),
    ],
)
def test_only_tables_of_pairs_are_claimed(columns: list[str], claimed: bool, tmp_path: Path) -> None:
    table = pa.table({c: [1.0, 2.0, 3.0, 5.0] for c in columns})
    path = tmp_path / "t.csv"
    pyarrow.csv.write_csv(table, path)
    wanted = "pairs" if claimed else "tables"
    for given in (path, table.to_pandas(), table.to_pylist()):
        assert open_data(given if given is not path else str(path)).modality.modality == wanted
    assert not Pairs.claims(tmp_path)


def test_files_and_columns_make_pairs_of_images_and_tables(folder: Path) -> None:
    data = open_data(folder / "pairs.csv")
    input = Pairs.infer(data.raw, np.arange(60), exclude=["match", "rating"])
    assert data.modality is Pairs
    assert (type(input.left), type(input.right)) == (Images, Tables)
    assert input.columns() == ("right.sum", "right.kind")
    assert input.baselines == ("logistic regression", "SVM", "1-NN")
    packed: Any = input.pack(data.raw)
    images = [int(Path(p).stem) for p in data.raw.column("left.file").to_pylist()]
    batch = packed.source.rows(np.array([7, 3, 7]))
    assert batch.keys() == {"left.image", "right.numeric", "right.categorical"}
    wanted = (load_digits().images[[images[k] for k in (7, 3, 7)]] * 15).astype(np.uint8)
    assert (batch["left.image"].squeeze(-1).numpy() == wanted).all()
    assert packed.source.sources["left"].size == len(set(images)), "a picture that recurs is packed once"
    assert (batch["right.numeric"][:, 0].numpy() == data.raw.column("right.sum").to_numpy()[[7, 3, 7]]).all()
    shown = input.show(batch)
    assert shown[0]["thumb"].startswith("data:image/png")
    assert "kind=" in shown[0]["text"]


def test_the_contract_holds_for_images_beside_tables_and_images(folder: Path) -> None:
    data = open_data(folder / "pairs.csv")
    table = data.raw.select(["left.file", "right.sum", "right.kind"]).slice(0, 20)
    k = pa.array([str(folder / "img" / f"{i}.png") for i in (*range(1, 12), 0, *range(1, 9))])
    own = pa.array([str(folder / "img" / f"{i % 12}.png") for i in range(20)])
    rows = np.arange(12)
    sums = pa.array([None, None, *table.column("right.sum").to_pylist()[2:]])
    table = table.set_column(0, "left.file", own).set_column(1, "right.sum", sums)
    testing.check_modality(Pairs, table.take(pa.array(rows)))
    both = Pairs.as_raw(pa.table({"left": own, "right": k}).take(pa.array(rows)))
    testing.MODALITY["source"](Pairs, both)
    input = Pairs.infer(both, rows)
    thumb = input.show(input.pack(both).source.rows(rows))[0]["thumb"]
    assert thumb.startswith("data:image/png")


@pytest.mark.parametrize("words", ["left.text,right.text", "left.size,right.text"])
def test_finetune_measures_pairs_with_texts(words: str, tmp_path: Path) -> None:
    rows = [f"{k if 'size' in words else f'the cat {k}'},a dog ran {k} times,{'no' if k % 2 else 'yes'}"
            for k in range(40)]  # fmt: skip
    (tmp_path / "pairs.csv").write_text("\n".join([f"{words},label", *rows]))
    options: dict[str, Any] = {"steps": 2, "seeds": 2, "labels_per_class": 8, "device": "cpu"}
    run = modicum.finetune("mlp(width=8)", tmp_path / "pairs.csv", out=tmp_path / "run", **options)
    assert modicum.predict(run.path, tmp_path / "pairs.csv", output=tmp_path / "p.parquet").num_rows == 40


def test_a_bad_row_on_either_side_is_left_out(folder: Path, tmp_path: Path) -> None:
    names = []
    for k in range(10):
        names.append(str(tmp_path / f"{k}.png"))
        (tmp_path / f"{k}.png").write_bytes((folder / "img" / f"{k}.png").read_bytes()[: 60 if k == 4 else None])
    table = Pairs.as_raw(pa.table({"left": names, "right": names[3:] + names[:3]}))
    input = Pairs.infer(table, np.array([0, 2, 5]))
    with pytest.raises(UserError, match=r"the left side: (?s:.*)4.png"):
        input.pack(table)
    packed = input.pack(table, skip_bad=True)
    assert packed.keep.tolist() == [0, 2, 3, 5, 6, 7, 8, 9]
    assert [b[0] for b in packed.bad] == [1, 4]
    assert all("4.png" in b[1] for b in packed.bad)
    assert packed.source.size == 8 == len(packed.hashes)
    rows = packed.source.rows(np.arange(8))
    right = np.roll(np.arange(10), -3)[packed.keep]
    assert (rows["right.image"][..., 0].numpy() == (load_digits().images[right] * 15).astype(np.uint8)).all()


def test_bad_tables_say_what_is_wanted(folder: Path, tmp_path: Path) -> None:
    def file(**columns: Any) -> Path:
        pyarrow.csv.write_csv(pa.table({k.replace("__", "."): v for k, v in columns.items()}), tmp_path / "bad.csv")
        return tmp_path / "bad.csv"

    four = [1.0, 2.0, 3.0, 5.0]
    with pytest.raises(UserError, match=r"has no column right.NAME: a table of pairs has columns left.NAME and right"):
        open_data(file(left__a=four, match=["a", "b", "a", "b"]))
    with pytest.raises(UserError, match=r"both left_NAME and left.NAME: left.a; drop one"):
        open_data(file(left__a=four, left_a=four, right__a=four))
    with pytest.raises(UserError, match=r"a table of pairs has columns .*; here they are a"):
        open_data([{"a": 1}], Pairs)
    data = open_data(file(left__a=four, right__a=four, label=["a", "b", "a", "b"]))
    input = Pairs.infer(data.raw, np.arange(4), exclude=["label"])
    with pytest.raises(UserError, match=r"the right side: .*lacks the column\(s\) a; it has b"):
        input.pack(Pairs.as_raw(pa.table({"left.a": four, "right.b": four})))
    with pytest.raises(UserError, match="unknown pair view 'crop'; valid: right, left"):
        input.views(crop=1)
    with pytest.raises(UserError, match=r"pair takes pairs: .*; this data holds tables"):
        Pair.of(input.left, "pair")
    missing = Pairs.as_raw(pa.table({"left": [str(folder / "img" / "0.png"), "no.png"] * 2, "right.a": four}))
    with pytest.raises(UserError, match=r"the left side: .*missing"):
        Pairs.infer(missing, np.arange(4))


# The encoder


def test_a_head_on_pooled_features_is_the_bilinear_model() -> None:
    input, batch = zoo.pairs()
    for rank in (None, 5):
        encoder = made(input, f"pair(left=mlp(width=6), right=mlp(width=4), rank={rank}, linear=False)").double().eval()
        with torch.no_grad():
            x, z = (
                nn.functional.layer_norm(getattr(encoder, s)(half(batch, s)).pooled, (w,))
                for s, w in (("left", 6), ("right", 4))
            )
            pooled = encoder(batch).pooled
            head = torch.randn(3, pooled.shape[1], generator=seeds.generator(0), dtype=torch.float64)
            if rank is None:
                weight = head.view(3, 6, 4)
            else:
                weight = torch.einsum("kr,ri,rj->kij", head, encoder.product.u[:, 0], encoder.product.v[:, 0])
            torch.testing.assert_close(pooled @ head.T, torch.einsum("bi,kij,bj->bk", x, weight, z))
        assert encoder.dim == pooled.shape[1] == (24 if rank is None else 5)
    alone = made(input, "pair(left=mlp(width=6), right=mlp(width=4), rank=5)").eval()
    assert alone.dim == 15
    assert alone(batch).tokens.shape == (12, 1, 15)


def test_the_spec_of_a_pair_builds_it_again() -> None:
    input, batch = zoo.pairs()
    encoder = made(input, "pair(right=encoder(mlp(width=6, over='set'), pool='max'), rank=3)").eval()
    assert (type(encoder.left), encoder.right.pool) == (Encoder, "max")
    assert encoder.left.trunk.width == 256, "the left trunk is the default"
    again = check_spec("encoder", encoder).eval()
    assert torch.equal(encoder(batch).pooled, again(batch).pooled)
    assert json.loads(json.dumps(spec("encoder", encoder)))["name"] == "pair"
    assert spec("modality", again.input) == spec("modality", input)


def test_layers_freeze_from_left_to_right() -> None:
    input, batch = zoo.pairs()
    encoder = made(input, SMALL)
    names = ["left.embed", "left.dense1", "left.dense2", "right.embed", "right.dense1", "right.dense2", "product"]
    assert list(complete(encoder, encoder.layers())) == names

    def build_one() -> tuple[nn.Module, dict[str, Any], Callable[[int], None]]:
        own = made(input, SMALL)
        stirred(own)

        def train(k: int) -> None:
            left = [p for p in own.freeze(k).train().parameters() if p.requires_grad]
            loss = testing.trunks.weighted(own(batch).pooled)
            if left:
                loss.backward()
                torch.optim.AdamW(left, 1e-2).step()

        return own, {"encoder": own}, train

    check_freezing(build_one)
    with torch.no_grad():
        out = encoder.eval()(batch).pooled
        torch.testing.assert_close(encoder(pick(batch, slice(2, 5))).pooled, out[2:5], rtol=1e-4, atol=1e-5)


def test_what_needs_one_trunk_refuses_a_pair_by_name() -> None:
    encoder = made(zoo.pairs()[0], SMALL)
    with pytest.raises(UserError, match=r"objective 'autoencoder' needs an encoder of one trunk.*'pair' is none"):
        build("objective", "autoencoder", encoder=encoder)
    for option in ({"keep": torch.zeros(12, 1).long()}, {"causal": True}, {"hide": torch.zeros(12, 1).bool()}):
        with pytest.raises(UserError, match=f"encoder 'pair' lacks '{next(iter(option))}'"):
            encoder(zoo.pairs()[1], **option)
    with pytest.raises(UserError, match="rank of at least 1, or None"):
        made(zoo.pairs()[0], "pair(rank=0)")


# Learning what no linear model can, and the verbs


def test_pair_learns_whether_two_digits_are_the_same() -> None:
    """Unseen digits; a linear model of both sides' pixels is at chance, whatever its weights."""
    (train, *_), (test, *_) = digits(1500, 0, slice(0, 1200)), digits(600, 1, slice(1200, None))
    data, other = open_data(train), open_data(test)
    input = data.modality.infer(data.raw, np.arange(len(train)), exclude=["match", "sum"])
    packed, new = input.pack(data.raw), input.pack(other.raw).source
    every, rows = np.arange(len(train)), np.arange(len(test))
    y, true = (np.asarray(frame["match"] == "yes").astype(int) for frame in (train, test))
    plain = LogisticRegression(max_iter=200).fit(input.flat(packed.source.rows(every)), y)
    chance = (plain.predict(input.flat(new.rows(rows))) == true).mean()
    assert 0.42 < chance < 0.58
    encoder = made(input, "pair(left=mlp(width=64), right=mlp(width=64))")
    task = Task(packed.source, y, "classes", 2, 200)
    objective = transfer._once(encoder, "scratch", task, every, 4e-3)
    accuracy = (over(objective, objective.predict, new, rows).argmax(1) == true).mean()
    assert accuracy > 0.78, (accuracy, chance)


OPTIONS: dict[str, Any] = {"steps": 4, "seeds": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def tuned(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> modicum.Run:
    text = "pair(left=convnet(width=4, stages=2), right=mlp(width=8), rank=4)"
    out = tmp_path_factory.mktemp("run") / "r"
    return modicum.finetune(text, folder / "pairs.csv", label="match", out=out, **OPTIONS)


def test_finetune_predict_and_embed(tuned: modicum.Run, folder: Path, tmp_path: Path) -> None:
    names = [c["name"] for c in tuned.read_json("results.json")["contestants"]]
    assert names == ["scratch", "logistic regression", "SVM", "1-NN"]
    page = (tuned.path / "report.html").read_text("utf-8")
    assert "pairs" in page
    new = pyarrow.csv.read_csv(folder / "pairs.csv").drop_columns(["match", "rating"]).slice(0, 7)
    new = new.set_column(0, "left.file", pa.array([str(folder / p) for p in new.column(0).to_pylist()]))
    pq.write_table(new, tmp_path / "new.parquet")
    table = modicum.predict(tuned.path, tmp_path / "new.parquet", output=tmp_path / "p.parquet", device="cpu")
    assert table.column_names == ["id", "predicted", "p_no", "p_yes"]
    model = modicum.load(tuned.path)
    np.testing.assert_allclose(model.predict_proba(new.to_pandas())[:, 1], table.column("p_yes").to_numpy(), rtol=1e-5)
    z = modicum.embed(tuned.path, tmp_path / "new.parquet", output=tmp_path / "z.parquet", device="cpu")
    assert len(z.column("embedding")[0]) == model.encoder.dim
    pq.write_table(new.drop_columns(["left.file"]), tmp_path / "half.parquet")
    with pytest.raises(UserError, match=r"has no column left.NAME"):
        modicum.predict(tuned.path, tmp_path / "half.parquet", output=tmp_path / "q.parquet", device="cpu")


def test_every_method_goes_on_from_a_pair(tuned: modicum.Run, folder: Path, tmp_path: Path) -> None:
    """On a rating whose empty labels are unlabelled rows."""
    options: dict[str, Any] = {**OPTIONS, "label": "rating:numbers", "force": True}
    methods = "lora:2,lp-ft"
    made = modicum.finetune(tuned.path, folder / "more.csv", method=methods, out=tmp_path / "r", **options)
    results = made.read_json("results.json")
    assert {c["name"] for c in results["contestants"]} >= {"scratch", "probe", "lora:2", "lp-ft", "SVM"}
    assert results["score"] == "R2"
    assert results["labels"] + results["test_rows"] == 53
    blank = pyarrow.csv.read_csv(folder / "pairs.csv").to_pandas().assign(rating=np.nan)
    with pytest.raises(UserError, match="label column is empty in every row"):
        modicum.finetune(
            "pair",
            blank.assign(**{"left.file": [str(folder / f) for f in blank["left.file"]]}),
            out=tmp_path / "n",
            **options,
        )
    with pytest.raises(UserError, match="this data holds images"):
        modicum.finetune("pair", "digits", out=tmp_path / "n", **OPTIONS)


def test_pairs_pretrain_without_labels(tmp_path: Path) -> None:
    frame = digits(80, 0, slice(0, 300))[0].drop(columns=["match", "sum"])
    options: dict[str, Any] = {"steps": 2, "batch": 16, "device": "cpu"}
    run = modicum.pretrain(frame, encoder=SMALL, out=tmp_path / "p", **options)
    assert modicum.load(run.path).embed(frame).shape == (80, 40)
    run = modicum.pretrain(frame, encoder="mlp(width=8)", objective="autoencoder", out=tmp_path / "a", **options)
    again, _ = modicum.load(run.path).reconstruct(frame.head(5))
    assert again.keys() == {f"{s}.{k}" for s in ("left", "right") for k in ("numeric", "categorical")}


def captions(n: int = 40) -> pa.Table:
    """Pairs of texts of several lengths, the left ones short and the right ones long."""
    rng = np.random.default_rng(0)
    words = ["cat", "dog", "owl", "fox"]
    return pa.table(
        {
            "left.text": [f"{' '.join(rng.choice(words, 1 + k % 4))} {k}" for k in range(n)],
            "right.text": [f"{k} {' '.join(rng.choice(words, 1 + int(rng.integers(20))))} {k}" for k in range(n)],
        }
    )


def test_pairs_of_texts_are_ragged_and_batched_by_the_longer_side() -> None:
    raw = Pairs.as_raw(captions())
    input = Pairs.infer(raw, np.arange(40))
    source: Any = input.pack(raw).source
    every = source.rows(np.arange(40))
    counts = np.stack([every[f"{side}.mask"].sum(1).numpy() for side in ("left", "right")])
    assert (source.lengths == counts.max(0)).all()
    batches = Batches(source, np.arange(40), batch=4, seed=0)
    for step in range(batches.per_epoch):
        longest = [int(batches(step)[f"{side}.mask"].sum(1).max()) for side in ("left", "right")]
        assert batches(step)["left.ids"].shape[1] == longest[0]
        assert batches(step)["right.ids"].shape[1] == longest[1]
    for text in (
        "pair(left=mlp(width=8), right=mlp(width=8), rank=4)",
        "mlp(width=8)",
        "transformer(width=8, depth=1)",
    ):
        encoder = made(input, text).eval()
        with torch.no_grad():
            alone = torch.cat([encoder(source.rows(np.array([k]))).pooled for k in range(40)])
            torch.testing.assert_close(encoder(every).pooled, alone)


@pytest.mark.parametrize("text", ["masked(ratio=.4)", "simclr(hidden=8, out=8)", "autoencoder(code=4)"])
def test_objectives_train_on_pairs_of_texts(text: str) -> None:
    raw = Pairs.as_raw(captions())
    input = Pairs.infer(raw, np.arange(40))
    source = input.pack(raw).source
    objective = build("objective", text, encoder=made(input, "transformer(width=16, depth=1)"))
    optimizer = adamw(groups(objective, lr=1e-2, weight_decay=0.0))
    losses = [
        float(s.loss)
        for s in fit(objective, Batches(source, np.arange(40), batch=8, seed=0), optimizer, steps=30, seed=0)
    ]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_padding_of_either_side_costs_nothing() -> None:
    raw = Pairs.as_raw(captions())
    input = Pairs.infer(raw, np.arange(40))
    batch = input.pack(raw).source.rows(np.arange(3))
    embed, unembed = input.embed(), input.unembed()
    tokens = torch.randn(3, embed.grid[0], unembed.dim, generator=seeds.generator(0))
    loss = unembed.loss(tokens, batch)
    assert loss.shape == (3, *embed.grid)
    real = embed(batch).mask
    assert real is not None
    assert ((loss > 0) == real).all()
    where = torch.zeros_like(real).index_fill(1, torch.tensor([1, embed.count + 1]), True)
    torch.testing.assert_close(unembed.loss(tokens, batch, where), loss[where])


def test_a_text_of_a_pair_that_is_too_long_is_cut_aloud() -> None:
    raw = Pairs.as_raw(captions())
    with pytest.warns(Warned, match=r"the right side: \d+ of 40 rows are longer than it takes; they are cut"):
        rows = Pairs.infer(raw, np.arange(40), size=12).pack(raw).source.rows(np.arange(40))
    assert rows["right.ids"].shape[1] == 12
