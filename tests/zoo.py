"""One instance of every part, for the laws in test_contracts.py: a new part is one file and one row here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from sklearn.datasets import load_digits

from modicum.core import seeds
from modicum.core.spec import build, part
from modicum.core.types import Batch, Input, Objective, Trunk
from modicum.nn.encoder import Encoder


@dataclass(frozen=True)
class Row:
    """A part by its `name`, which instance of it this is, and how it is made."""

    name: str
    which: str
    make: Callable[[], Any]
    batch: Callable[[], Batch] | None = None

    def __str__(self) -> str:
        return f"{self.name}-{self.which}"


def kind(modality: str) -> type[Input]:
    return part("modality", modality)


@cache
def pictures() -> Any:
    """Twelve real grey digits as raw rows."""
    x = load_digits().images[:12]
    return kind("images").as_raw((x * (255 / 16)).round().astype(np.uint8))


@cache
def colours() -> Any:
    """Twelve random colour images, not square, so that crops have room."""
    return kind("images").as_raw(np.random.default_rng(0).integers(0, 256, (12, 15, 11, 3), np.uint8))


@cache
def cases(numeric: bool = True, categorical: bool = True) -> pa.Table:
    """Twelve rows of numbers (a date in seconds among them), texts and truths, with missing cells."""
    rng = np.random.default_rng(1)
    date = [1.7e9 + 10 * v for v in rng.standard_normal(12)]
    # Even and odd rows both hold a missing cell of every column: half of the rows must do to see everything.
    columns: dict[str, Any] = {
        "length": [None, None, *rng.standard_normal(10).tolist()],
        "date": [*date[:10], None, None],
        "count": [3, 5, None, None, 1, 2, 8, 9, 4, 4, 2, 7],
    }
    texts: dict[str, Any] = {
        "colour": ["red", "red", "blue", "blue", None, None, "green", "green", "red", "blue", "red", "green"],
        "sick": [True, True, False, False, None, None, True, False, True, True, False, False],
        "code": list("abcabcabcabc"),
    }
    return pa.table({**(columns if numeric else {}), **(texts if categorical else {})})


def all_rows(modality: str, raw: Any) -> tuple[Input, Batch]:
    size = raw.num_rows if isinstance(raw, pa.Table) else len(raw)
    made = kind(modality).infer(raw, np.arange(size))
    return made, made.pack(raw).source.rows(np.arange(size))


@cache
def images() -> tuple[Input, Batch]:
    return all_rows("images", pictures())


@cache
def tables() -> tuple[Input, Batch]:
    return all_rows("tables", cases())


def trunk(text: str, dim: int = 3, grid: tuple[int, ...] = (8, 8)) -> Callable[[], Trunk]:
    def make() -> Trunk:
        with seeds.forked(0, "init"):
            return build("trunk", text, dim=dim, grid=grid)

    return make


def objective(text: str, encoder: str, given: Callable[[], tuple[Input, Batch]]) -> Callable[[], Objective]:
    def make() -> Objective:
        with seeds.forked(0, "init"):
            return build("objective", text, encoder=Encoder.of(given()[0], encoder))

    return make


def with_target(given: Callable[[], tuple[Input, Batch]], numbers: bool) -> Callable[[], Batch]:
    def batch() -> Batch:
        rows = given()[1]
        target = torch.arange(len(next(iter(rows.values())))) % 3
        return {**rows, "target": 5 + 2.5 * target.float() if numbers else target}

    return batch


TRUNKS = [
    Row("convnet", "batch", trunk("convnet(width=4, stages=2)")),
    Row("convnet", "group", trunk("convnet(width=4, stages=3, blocks=2, norm='group', kernel=3, stride=1)")),
    Row("convnet", "odd", trunk("convnet(width=4, stages=2)", dim=1, grid=(9, 7))),
    Row("convnet", "tokens", trunk("convnet(width=4, stages=2, cells=0)")),
    Row("convnet", "large", trunk("convnet(width=2, stages=5)", dim=1, grid=(97, 96))),
    Row("mlp", "sample", trunk("mlp(width=16, depth=3)", dim=4, grid=(6,))),
    Row("mlp", "sample-layer", trunk("mlp(width=16, norm='layer', act='gelu')", dim=4, grid=(6,))),
    Row("mlp", "sample-none", trunk("mlp(width=16, norm='none', act='tanh')", dim=1, grid=(3, 2))),
    Row("mlp", "sample-dropout", trunk("mlp(width=16, dropout=.3, act='silu')", dim=4, grid=(6,))),
    Row("mlp", "set", trunk("mlp(width=16, over='set')", dim=4, grid=(6,))),
    Row("mlp", "set-none", trunk("mlp(width=16, over='set', norm='none', act='sigmoid', depth=1)", dim=4, grid=(2, 3))),
]

CONV, MLP, SET = "convnet(width=4, stages=2)", "mlp(width=16)", "mlp(width=16, over='set')"

OBJECTIVES = [
    Row("simclr", "images", objective("simclr(hidden=16, out=8)", CONV, images), lambda: images()[1]),
    Row("simclr", "images-n4", objective("simclr(n=4, hidden=16, out=8)", CONV, images), lambda: images()[1]),
    Row("simclr", "tables", objective("simclr(hidden=16, out=8)", MLP, tables), lambda: tables()[1]),
    Row("autoencoder", "images", objective("autoencoder(code=6)", CONV, images), lambda: images()[1]),
    Row("autoencoder", "denoising", objective("autoencoder(code=6, noise=.5)", CONV, images), lambda: images()[1]),
    Row("autoencoder", "tables", objective("autoencoder(code=6, noise=.2)", MLP, tables), lambda: tables()[1]),
    Row("autoencoder", "tables-set", objective("autoencoder(code=6)", SET, tables), lambda: tables()[1]),
    Row("masked", "images", objective("masked(ratio=.4)", CONV, images), lambda: images()[1]),
    Row("masked", "images-mlp", objective("masked(swap=.2, same=.2)", MLP, images), lambda: images()[1]),
    Row("masked", "tables", objective("masked(ratio=.3)", MLP, tables), lambda: tables()[1]),
    Row("supervised", "classes", objective("supervised(3, smoothing=.1)", CONV, images), with_target(images, False)),
    Row(
        "supervised",
        "numbers",
        objective("supervised(1, task='numbers', shift=7.5, scale=2.)", MLP, tables),
        with_target(tables, True),
    ),
    Row(
        "supervised",
        "views",
        objective("supervised(3, views={'crop': (.5, 1.), 'flip': 0.})", CONV, images),
        with_target(images, False),
    ),
]

MODALITIES = [
    Row("images", "grey", pictures),
    Row("images", "colour", colours),
    Row("tables", "mixed", cases),
    Row("tables", "numeric", lambda: cases(categorical=False)),
    Row("tables", "categorical", lambda: cases(numeric=False)),
]
