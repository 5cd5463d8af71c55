"""`open_data`: a built-in name, a path or an object in memory becomes `Data`: raw rows and a table about them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from modicum.core.errors import UserError, nearest
from modicum.core.ragged import join
from modicum.core.spec import names, part
from modicum.core.types import Batch, Input, Source
from modicum.datasets._remote import fetch, is_url

LABELS = ("label", "class", "target", "y")


@dataclass
class Labels:
    """Targets of rows: `kind` "classes" with codes into `classes` (-1 unlabelled), or "numbers" (NaN unlabelled)."""

    kind: str
    values: np.ndarray
    classes: list[str] = field(default_factory=list)

    @property
    def known(self) -> np.ndarray:
        """True where a row is labelled."""
        return self.values >= 0 if self.kind == "classes" else ~np.isnan(self.values)

    def take(self, index: np.ndarray) -> Labels:
        return Labels(self.kind, self.values[index], self.classes)


@dataclass
class Data:
    """Raw rows of one modality and `table`, a row of facts about each: id, label, split, group, ...

    `views` are hints for the modality's views (digits must not be flipped); `licence` and `origin` go to the data card.
    """

    name: str
    modality: type[Input]
    raw: Any
    table: pa.Table
    views: dict[str, Any] = field(default_factory=dict)
    licence: str = ""
    origin: str = ""

    def __len__(self) -> int:
        return self.table.num_rows

    def column(self, name: str | None, *, default: Sequence[str] = (), what: str = "column") -> pa.ChunkedArray | None:
        """The named column, or the first of the `default` names there is; UserError where a given name is not there."""
        if name is not None and name not in self.table.column_names:
            have = ", ".join(nearest(name, self.table.column_names))
            raise UserError(f"{self.name} has no {what} '{name}'; its columns: {have}")
        found = name or next((d for d in default if d in self.table.column_names), None)
        return None if found is None else self.table.column(found)

    def ids(self, rows: np.ndarray | None = None) -> list[str]:
        """The id or path of every row, or of `rows`, else its number."""
        column, index = self.column(None, default=["id"]), np.arange(len(self)) if rows is None else rows
        return [str(v) for v in (index if column is None else column.take(pa.array(index)).to_pylist())]

    def label_column(self, name: str | None = None) -> str | None:
        """The column that `labels(name)` reads: the one named, else the first of `LABELS` that there is."""
        named = (name or "").partition(":")[0]
        return named or next((n for n in LABELS if n in self.table.column_names), None)

    def labels(self, name: str | None = None, classes: Sequence[str] | None = None) -> Labels | None:
        """The label column (a blank is unlabelled); None where there is none.

        Text, true/false and whole numbers with at most 100 different values are classes; other numbers are numbers
        (`NAME:numbers` or `NAME:classes` decides otherwise). With `classes` given, a class outside them is an error.
        """
        name, _, kind = (name or "").partition(":")
        column = self.column(name or None, default=LABELS, what="label column")
        if column is None:
            return None
        if kind not in ("", "classes", "numbers"):
            raise UserError(f"--label {name}:{kind}: after the colon comes classes or numbers")
        if not kind:
            whole = pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)
            number = pa.types.is_floating(column.type) or pa.types.is_decimal(column.type)
            few = len(pc.unique(column)) <= 100
            kind = "numbers" if number or (whole and not few) else "classes"
        if kind == "numbers":
            try:
                values = np.asarray(pc.cast(column, pa.float64()).to_numpy(), np.float64)
            except pa.ArrowException as error:
                raise UserError(f"label column '{name}' of {self.name} is not numeric: {error}") from None
            if len(infinite := np.flatnonzero(np.isinf(values))):
                where = f"{len(infinite)} row(s), first row {infinite[0]}"
                raise UserError(f"{self.name}: the label is infinite in {where}: blank them")
            return Labels(kind, values)
        return self._classes(column, classes)

    def _classes(self, column: pa.ChunkedArray, classes: Sequence[str] | None) -> Labels:
        text = pc.cast(column, pa.string())
        text = pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)
        found = [v for v in pc.unique(text).to_pylist() if v is not None]
        found.sort(key=lambda v: (0, int(v), v) if v.isdecimal() else (1, 0, v))
        if classes is not None and (new := [v for v in found if v not in classes]):
            raise UserError(
                f"{self.name} has the class(es) {', '.join(new[:10])}, never seen in training; "
                f"known: {', '.join(classes)}"
            )
        known = list(classes) if classes is not None else found
        codes = pc.fill_null(pc.index_in(text, value_set=pa.array(known, pa.string())), -1)
        return Labels("classes", codes.to_numpy().astype(np.int64), known)

    def take(self, index: np.ndarray) -> Data:
        """The rows `index`, of facts and raw alike."""
        rows = pa.array(index)
        raw = self.raw.take(rows) if isinstance(self.raw, pa.Table) else self.raw.take(index)
        return replace(self, raw=raw, table=self.table.take(rows))

    def join(self, other: Data) -> Data:
        """The facts of both, ids first; `raw` stays this one's."""
        ids = pa.array([*self.ids(), *(f"{other.name}:{i}" for i in other.ids())])
        mine, theirs = (d.table.drop_columns([c for c in ["id"] if c in d.table.column_names]) for d in (self, other))
        both = pa.concat_tables([mine, theirs], promote_options="permissive")
        return replace(self, table=both.append_column("id", ids))


class Chain:
    """Two sources of the same kind, one after the other."""

    def __init__(self, first: Source, second: Source) -> None:
        self.first, self.second, self.size = first, second, first.size + second.size
        lengths: list[Any] = [getattr(source, "lengths", None) for source in (first, second)]
        self.lengths = None if any(own is None for own in lengths) else np.concatenate(lengths)

    def rows(self, index: np.ndarray) -> Batch:
        late = index >= self.first.size
        if not late.any():
            return self.first.rows(index)
        a, b = self.first.rows(index[~late]), self.second.rows(index[late] - self.first.size)
        back = torch.from_numpy(np.argsort(np.concatenate([np.flatnonzero(~late), np.flatnonzero(late)])))
        return {key: value[back] for key, value in join([a, b]).items()}


def builtin() -> list[str]:
    """The built-in data sets, in kebab case."""
    import modicum.datasets as folder

    found = [m.name for m in pkgutil.iter_modules(folder.__path__) if m.name != "data" and not m.name.startswith("_")]
    return sorted(name.replace("_", "-") for name in found)


def address(data: Any) -> str | None:
    """What finds the data again from any folder: a built-in name or a full path; None for rows in memory."""
    if not isinstance(data, str | Path):
        return None
    return str(data) if str(data) in builtin() or is_url(data) else str(Path(data).resolve())


def modalities() -> list[type[Input]]:
    """Every modality: pairs first, whose columns may be of any other, those that read a plain table last."""
    found = [part("modality", name) for name in names("modality")]
    return sorted(found, key=lambda m: {"pairs": 0, "tables": 2}.get(m.modality, 1))


def open_data(data: Any, modality: type[Input] | None = None) -> Data:
    """Open a built-in name, a path, or an object in memory (of `modality`, else the first that takes it)."""
    kinds = [modality] if modality else modalities()
    if isinstance(data, Data):
        if data.modality not in kinds:
            raise UserError(f"{data.name} holds {data.modality.modality}; wanted {kinds[0].modality}")
        return data
    if isinstance(data, str | Path):
        return _open_path(str(data), kinds)
    refused = []
    for kind in kinds:
        try:
            raw = kind.as_raw(data)
        except UserError as error:
            refused.append(f"{kind.modality}: {error}")
            continue
        table = raw if isinstance(raw, pa.Table) else getattr(raw, "facts", None)
        if table is None:
            table = pa.table({"id": [str(i) for i in range(len(raw))]})
        if not len(table):
            raise UserError(f"the {type(data).__name__} has no rows")
        return Data(f"{type(data).__name__} in memory", kind, raw, table)
    raise UserError("; ".join(refused))


def _open_path(data: str, kinds: list[type[Input]]) -> Data:
    if data in builtin():
        found: Data = importlib.import_module(f"modicum.datasets.{data.replace('-', '_')}").load()
        if found.modality not in kinds:
            raise UserError(f"{data} holds {found.modality.modality}; wanted {kinds[0].modality}")
        return found
    path = fetch(data) if is_url(data) else Path(data)
    if not path.exists():
        known = ", ".join(nearest(data, builtin()))
        raise UserError(f"'{data}' is neither a path that exists nor a built-in data set; built in: {known}")
    for kind in kinds:
        if kind.claims(path):
            raw, table = kind.scan(path)
            return Data(path.name, kind, raw, table, origin=data if is_url(data) else str(path))
    others = [kind.modality for kind in modalities() if kind not in kinds and kind.claims(path)]
    if others:
        raise UserError(f"{path} holds {others[0]}; wanted {kinds[0].modality}")
    wanted = "images in a folder, .npy/.npz, IDX, a .txt file, or a CSV, JSON lines or Parquet table"
    raise UserError(f"{path}: nothing to read there; wanted {wanted}")
