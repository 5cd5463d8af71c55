"""The built-in data sets: what they hold, and what is said where one cannot be had."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from peers import absent

from modicum import UserError, open_data
from modicum.datasets import fashion_mnist
from modicum.training.rows import marked


def test_digits() -> None:
    data = open_data("digits")
    labels, split = data.labels(), marked(data, None)
    assert labels is not None
    assert split is not None
    assert len(data) == 1797
    assert labels.classes == [str(k) for k in range(10)]
    assert len(split.test) == 540
    counts = np.bincount(labels.values[split.test])
    assert counts.max() - counts.min() <= 3, "the test rows are stratified"


@pytest.mark.parametrize(
    ("name", "rows", "classes", "numbers", "categories"),
    [
        ("breast-cancer", 569, 2, 30, 0),
        ("wine", 178, 3, 13, 0),
        ("diabetes", 442, 0, 9, 1),
        ("diamonds", 53940, 0, 6, 3),
    ],
)
def test_tables(name: str, rows: int, classes: int, numbers: int, categories: int) -> None:
    data = open_data(name)
    labels = data.labels()
    assert labels is not None
    assert (len(data), len(labels.classes), labels.known.all()) == (rows, classes, True)
    made = data.modality.infer(data.raw, np.arange(rows), exclude=data.label_columns())
    kinds = made.note()
    assert (kinds.count(" numeric"), kinds.count(" categorical")) == (numbers, categories), kinds


@pytest.mark.parametrize(
    ("name", "rows", "train", "classes", "channels", "steps"),
    [
        ("italy-power-demand", 1096, 67, 2, 1, (24, 24)),
        ("gun-point", 200, 50, 2, 1, (150, 150)),
        ("arrow-head", 211, 36, 3, 1, (251, 251)),
        ("basic-motions", 80, 40, 4, 6, (100, 100)),
        ("osu-leaf", 442, 200, 6, 1, (427, 427)),
        ("japanese-vowels", 640, 270, 9, 12, (7, 29)),
    ],
)
def test_series(name: str, rows: int, train: int, classes: int, channels: int, steps: tuple[int, int]) -> None:
    data = open_data(name)
    labels, split = data.labels(), marked(data, None)
    assert labels is not None
    assert split is not None
    assert (len(data), len(split.train), len(labels.classes), labels.known.all()) == (rows, train, classes, True)
    sizes = data.raw.survey.sizes
    assert (data.raw.channels, sizes.min(), sizes.max()) == (channels, *steps)
    made = data.modality.infer(data.raw, np.arange(rows))
    assert len(made.pack(data.raw).keep) == rows


def test_fashion_mnist() -> None:
    if not (fashion_mnist.DEBIAN / "train-images-idx3-ubyte.gz").exists():
        absent("Fashion-MNIST", "scripts/get-data")
    data = open_data("fashion-mnist")
    labels, split = data.labels(), marked(data, None)
    assert labels is not None
    assert split is not None
    assert (len(split.train), len(split.test)) == (60000, 10000)
    assert sorted(labels.classes) == sorted(fashion_mnist.CLASSES)
    assert (np.bincount(labels.values[split.test]) == 1000).all()
    first = data.modality.infer(data.raw.take(np.arange(10)), np.arange(10)).pack(data.raw.take(np.arange(1)))
    assert first.source.rows(np.array([0]))["image"].shape == (1, 28, 28, 1)
    assert labels.classes[labels.values[0]] == "Ankle boot", "the first training image, as published"


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "none")
    monkeypatch.setenv("MODICUM_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("nowhere")
def test_without_a_network_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(fashion_mnist.urllib.request, "urlopen", refuse)
    with pytest.raises(UserError, match=r"no route to host.*apt-get install dataset-fashion-mnist"):
        open_data("fashion-mnist")


@pytest.mark.usefixtures("nowhere")
def test_a_damaged_download_is_refused_and_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fashion_mnist.urllib.request, "urlopen", lambda *_, **__: io.BytesIO(b"not it"))
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte.gz .* has MD5 .*, wanted 8d4fb7e6"):
        open_data("fashion-mnist")
    assert not list((tmp_path / "cache").rglob("*.gz"))


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(UserError, match="built in: fashion-mnist, "):
        open_data("fashion-mnst")


def test_rows_keep_the_numbers_they_were_opened_with() -> None:
    data = open_data(pa.table({"a": [1.0, 2.0, 3.0, 4.0], "b": ["x", "y", "x", "y"]}))
    some = data.take(np.array([0, 2, 3])).take(np.array([1, 2]))
    assert some.ids() == ["2", "3"]
    assert some.ids(np.array([1])) == ["3"]
