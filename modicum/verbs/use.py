"""`modicum predict`, `embed` and `reconstruct`: a finished run over new rows, into files."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from modicum.core.atomic import atomic_path
from modicum.core.errors import UserError, Warned
from modicum.core.types import Packed
from modicum.datasets.data import Data
from modicum.model import Model, load
from modicum.training.apply import embed as features
from modicum.training.run import Run, saving
from modicum.verbs._common import choose_device, say


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
    """Write a Parquet table: id, predicted, and the probability of every class (`p_CLASS`); returns it too."""
    del seed  # nothing here is random; every verb takes the same arguments
    model, given, packed = _open(run, data, output, skip_bad, device, force)
    out = model.outputs(packed)
    columns: dict[str, Any] = {"id": given.ids()}
    if model.classes:
        columns["predicted"] = np.array(model.classes)[out.argmax(1)]
        columns |= {f"p_{name}": out[:, k] for k, name in enumerate(model.classes)}
    else:
        columns["predicted"] = out
    return _write(pa.table(columns), output)


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
    """Write a Parquet table: id and `embedding`, a list of float32 a row; returns it too."""
    del seed
    model, given, packed = _open(run, data, output, skip_bad, device, force)
    z = features(model.encoder, packed.source, np.arange(packed.source.size))
    lists = pa.FixedSizeListArray.from_arrays(pa.array(z.ravel()), z.shape[1])
    return _write(pa.table({"id": given.ids(), "embedding": lists}), output)


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
    """Write a folder: errors.parquet (id, error a row) and, for images, each input beside its reconstruction as PNG."""
    del seed
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not force:
        raise UserError(f"{folder} exists: choose another -o, or --force to write into it")
    model, given, packed = _open(run, data, folder / "errors.parquet", skip_bad, device, True)
    again, errors = model.rebuild(packed)
    pair = getattr(model.input, "beside", None)
    table: pa.Table = pa.table({"id": given.ids(), "error": errors})
    with saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if pair is not None:
            for start in range(0, packed.source.size, 1024):
                index = np.arange(start, min(start + 1024, packed.source.size))
                pictures = pair(packed.source.rows(index), {k: v[index] for k, v in again.items()})
                for row, picture in zip(index, pictures, strict=True):
                    picture.save(folder / f"{row:06d}-{_safe(given.ids()[row])}.png")
        else:
            table = _with_cells(table, model, packed, again)
    return _write(table, folder / "errors.parquet")


def _with_cells(table: pa.Table, model: Model, packed: Packed, again: dict[str, Any]) -> pa.Table:
    """The rows in words beside their reconstructions, where there is nothing to draw."""
    rows = packed.source.rows(np.arange(packed.source.size))
    for name, batch in (("input", rows), ("output", again)):
        table = table.append_column(name, pa.array([s["text"] for s in model.input.show(batch)]))
    return table


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", Path(name).stem)[:60]


def _open(
    run: str | Path | Run, data: Any, output: str | Path, skip_bad: bool, device: str, force: bool
) -> tuple[Model, Data, Packed]:
    """The model and the rows, after making sure that the result can be written."""
    path = Path(output)
    if path.exists() and not force:
        raise UserError(f"{path} exists: choose another -o, or --force to replace it")
    parent = next(p for p in (path.parent, *path.parent.parents) if p.exists())
    if not os.access(parent, os.W_OK):
        raise UserError(f"{parent} is not writable: choose another -o")
    model = load(run, device=choose_device(device))
    given, packed = model.open(data, skip_bad=skip_bad)
    if packed.bad:
        words = ", ".join(f"{name} ({why})" for _, name, why in packed.bad[:10])
        warnings.warn(f"left out {len(packed.bad)} bad row(s): {words}", Warned, stacklevel=3)
    say(f"{len(given):,} rows of {given.name} -> {path}")
    return model, given, packed


def _write(table: pa.Table, output: str | Path) -> pa.Table:
    with saving(Path(output)), atomic_path(output) as temporary:
        pq.write_table(table, temporary)
    return table
