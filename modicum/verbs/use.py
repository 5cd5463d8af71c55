"""`modicum predict`, `embed` and `reconstruct`: a finished run over new rows, into files."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from modicum.core.atomic import atomic_path
from modicum.core.errors import UserError
from modicum.core.types import Packed
from modicum.datasets.data import Data, open_data
from modicum.model import Model, load
from modicum.training.apply import embed as features
from modicum.training.run import Run, saving
from modicum.verbs._common import bar, in_minutes, pack, say

CHUNK = 2048
"""Rows between two moves of the bar."""


def predict(
    run: str | Path | Run,
    data: Any,
    *,
    output: str | Path,
    skip_bad: bool = False,
    seed: int = 0,
    device: str = "auto",
    force: bool = False,
) -> pa.Table:
    """Predict every row of DATA and write a Parquet table: id, predicted, the probability of every class (`p_CLASS`).

    DATA needs no labels. Returns the table.
    """
    del seed  # nothing here is random; every verb takes the same arguments
    model, given, packed = _open(run, data, output, "predict", skip_bad, device, force)
    out = np.concatenate([model.outputs(packed, rows) for rows in _chunks(packed.source.size, "predict")])
    columns: dict[str, Any] = {"id": given.ids()}
    if model.classes:
        columns["predicted"] = np.array(model.classes)[out.argmax(1)]
        columns |= {f"p_{name}": out[:, k] for k, name in enumerate(model.classes)}
    elif model.tasks:
        columns |= {f"predicted_{name}": out[:, k] for k, name in enumerate(model.tasks)}
    else:
        columns["predicted"] = out
    return write(pa.table(columns), output)


def embed(
    run: str | Path | Run,
    data: Any,
    *,
    output: str | Path,
    skip_bad: bool = False,
    seed: int = 0,
    device: str = "auto",
    force: bool = False,
) -> pa.Table:
    """Embed every row of DATA and write a Parquet table: id and `embedding`, a list of float32 a row.

    Returns the table.
    """
    del seed
    model, given, packed = _open(run, data, output, None, skip_bad, device, force)
    parts = [features(model.encoder, packed.source, rows) for rows in _chunks(packed.source.size, "embed")]
    z = np.concatenate(parts)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(z.ravel()), z.shape[1])
    return write(pa.table({"id": given.ids(), "embedding": lists}), output)


def reconstruct(
    run: str | Path | Run,
    data: Any,
    *,
    output: str | Path,
    skip_bad: bool = False,
    seed: int = 0,
    device: str = "auto",
    force: bool = False,
) -> pa.Table:
    """Rebuild every row of DATA by an autoencoder and write a folder: each input beside its reconstruction, the errors.

    The folder holds errors.parquet (id, error a row; for tables also both rows in words) and, for images, a PNG a row.
    Of texts longer than the encoder takes it is the first window that is rebuilt. Returns the table of errors.
    """
    del seed
    folder = Path(output)
    if folder.is_file():
        raise UserError(f"{folder} is a file, and a folder is written: choose another -o")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise UserError(f"{folder} exists: choose another -o, or --force to write into it")
    model, given, packed = _open(run, data, folder / "errors.parquet", "reconstruct", skip_bad, device, True)
    ids, pair = given.ids(), getattr(model.input, "beside", None)
    columns: dict[str, list[Any]] = {"id": ids, "error": []}
    with saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for rows in _chunks(packed.source.size, "reconstruct"):
            again, errors = model.rebuild(packed, rows)
            columns["error"] += errors.tolist()
            before = packed.source.rows(rows)
            if pair is not None:
                for row, picture in zip(rows, pair(before, again), strict=True):
                    picture.save(folder / f"{row:06d}-{_safe(ids[row])}.png")
            else:  # nothing to draw: the rows in words
                for name, batch in (("input", before), ("output", again)):
                    columns.setdefault(name, []).extend(s["text"] for s in model.input.show(batch))
    return write(pa.table(columns), folder / "errors.parquet")


def _chunks(size: int, words: str) -> Iterator[np.ndarray]:
    """Row numbers in chunks, under a bar; how long the rest takes is said after the first where it is long."""
    began = time.perf_counter()
    with bar(size, words, "rows") as shown:
        for start in range(0, size, CHUNK):
            rows = np.arange(start, min(start + CHUNK, size))
            yield rows
            done = start + len(rows)
            left = (time.perf_counter() - began) * (size - done) / done
            if start == 0 and left > 10:
                say(f"about {in_minutes(left)} to go")
            shown.to(done)


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", Path(name).stem)[:60]


def place(output: str | Path, force: bool) -> Path:
    """The path of a file to write, after making sure that it can be written."""
    path = Path(output)
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the name of a file, such as -o {path / 'out.parquet'}")
    if path.exists() and not force:
        raise UserError(f"{path} exists: choose another -o, or --force to replace it")
    parent = next(p for p in (*path.parents, Path()) if p.exists())
    if not parent.is_dir():
        raise UserError(f"{path} cannot be written: {parent} is a file; choose another -o")
    if not os.access(parent, os.W_OK):
        raise UserError(f"{parent} is not writable: choose another -o")
    return path


def _open(
    run: str | Path | Run, data: Any, output: str | Path, method: str | None, skip_bad: bool, device: str, force: bool
) -> tuple[Model, Data, Packed]:
    """The model and the rows, after making sure that the model can do it and that the result can be written."""
    path = place(output, force)
    model = load(run, device=device)
    if method is not None:
        model.able(method)
    opened = open_data(data, type(model.input))
    beside = path.with_name(f"{path.name}.skipped.csv")
    packed, given = pack(model.input, opened, skip_bad, str(beside))
    if packed.bad:
        table = pa.table({"row": [p for _, p, _ in packed.bad], "why": [w for *_, w in packed.bad]})
        with saving(beside), atomic_path(beside) as temporary:
            pyarrow.csv.write_csv(table, temporary)
        say(f"what was skipped is listed in {beside}")
    say(f"{len(given):,} rows of {given.name} -> {path}")
    return model, given, packed


def write(table: pa.Table, output: str | Path) -> pa.Table:
    with saving(Path(output)), atomic_path(output) as temporary:
        pq.write_table(table, temporary)
    return table
