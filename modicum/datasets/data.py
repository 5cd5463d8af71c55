"""`open_data`: a built-in name, a path or an object in memory becomes `Data`: raw rows and a table about them."""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from modicum.core.errors import UserError, Warned, nearest
from modicum.core.ragged import join
from modicum.core.spec import names, part
from modicum.core.types import Batch, Input, Source, Windows
from modicum.datasets._remote import fetch, is_url
from modicum.modalities._tableread import place_of

LABELS = ("label", "class", "target", "y")
BLANK = ("nan", "na", "n/a", "null", "none", "?", "nat", "<na>")
"""Words that some write where a label is missing."""


@dataclass
class Labels:
    """Targets of rows: `kind` "classes" with codes into `classes` (-1 unlabelled), or "numbers" (NaN unlabelled).

    Numbers of several `tasks` are (n, tasks): a row is labelled where one of them is known.
    """

    kind: str
    values: np.ndarray
    classes: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)

    @property
    def known(self) -> np.ndarray:
        """True where a row is labelled."""
        if self.tasks:
            return ~np.isnan(self.values).all(1)
        return self.values >= 0 if self.kind == "classes" else ~np.isnan(self.values)

    @property
    def level(self) -> np.ndarray:
        """One value a row (n,), by which rows are divided: of several tasks the mean of those known, standardised."""
        if not self.tasks:
            return self.values
        there = ~np.isnan(self.values)
        x = np.where(there, self.values, 0)
        count = there.sum(0).clip(1)
        gap = np.where(there, x - x.sum(0) / count, 0)
        scaled = gap / np.sqrt((gap**2).sum(0) / count).clip(1e-12)
        return np.where(there.any(1), scaled.sum(1) / there.sum(1).clip(1), np.nan)

    def take(self, index: np.ndarray) -> Labels:
        return Labels(self.kind, self.values[index], self.classes, self.tasks)


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
    kept: np.ndarray | None = None
    """The numbers (n,) that the rows had when the data was opened, where some were left out since."""

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
        """The id or path of every row, or of `rows`, else its number in the data as it was opened."""
        column, index = self.column(None, default=["id"]), np.arange(len(self)) if rows is None else rows
        if column is None:
            return [str(v) for v in (index if self.kept is None else self.kept[index])]
        return [str(v) for v in column.take(pa.array(index)).to_pylist()]

    def label_columns(self, name: str | None = None) -> list[str]:
        """The columns that `labels(name)` reads: those named, else the first of `LABELS` that there is."""
        if name:
            return [one.partition(":")[0] for one in self._tasks(name) or [name]]
        return [n for n in LABELS if n in self.table.column_names][:1]

    def _tasks(self, name: str | None) -> list[str]:
        """The label columns of several tasks that are named, with commas between; none where one column is named."""
        head, _, kind = (name or "").partition(":")
        one = "," not in (name or "") or (head in self.table.column_names and "," not in kind)
        return [] if one else [part.strip() for part in str(name).split(",")]

    def labels(self, name: str | None = None, classes: Sequence[str] | None = None) -> Labels | None:
        """The label column (a blank is unlabelled); None where there is none.

        Text, true/false and whole numbers with at most 100 different values are classes; other numbers are numbers
        (`NAME:numbers` or `NAME:classes` decides otherwise). With `classes` given, a class outside them is an error.
        Several columns, with commas between, are tasks: numbers each, true/false as 1 and 0.
        """
        if tasks := self._tasks(name):
            if twice := [t for k, t in enumerate(tasks) if t in tasks[:k]]:
                raise UserError(f"--label {name}: '{twice[0]}' is named twice")
            if named := [t for t in tasks if t.endswith(":classes")]:
                raise UserError(f"--label {name}: of several labels each is a number; name '{named[0]}' alone")
            columns = [self.labels(f"{task.partition(':')[0]}:numbers") for task in tasks]
            values = np.stack([own.values for own in columns if own is not None], 1)
            if empty := [task for task, own in zip(tasks, values.T, strict=True) if np.isnan(own).all()]:
                raise UserError(f"{self.name}: the label column '{empty[0]}' is empty in every row: leave it out")
            return Labels("numbers", values, [], [task.partition(":")[0] for task in tasks])
        name, _, kind = (name or "").partition(":")
        column = self.column(name or None, default=LABELS, what="label column")
        if column is None:
            return None
        if kind not in ("", "classes", "numbers"):
            raise UserError(f"--label {name}:{kind}: after the colon comes classes or numbers")
        if not kind:
            whole = pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)
            number = pa.types.is_floating(column.type) or pa.types.is_decimal(column.type)
            many = whole and len(pc.unique(column)) > 100
            kind = "numbers" if number or many else "classes"
        if kind == "numbers":
            try:
                values = np.asarray(pc.cast(column, pa.float64()).to_numpy(), np.float64)
            except pa.ArrowException as error:
                raise UserError(f"label column '{name}' of {self.name} is not numeric: {error}") from None
            if len(infinite := np.flatnonzero(np.isinf(values))):
                where = f"{len(infinite):,} row(s), first {place_of(self.table, int(infinite[0]))}"
                raise UserError(f"{self.name}: the label is infinite in {where}: blank them")
            return Labels(kind, values)
        return self._classes(column, classes)

    def _classes(self, column: pa.ChunkedArray, classes: Sequence[str] | None) -> Labels:
        try:
            text = pc.cast(column, pa.string())
        except pa.ArrowException:
            raise UserError(f"{self.name}: the label column holds {column.type}, wanted text or numbers") from None
        text = pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)
        found = [v for v in pc.unique(text).to_pylist() if v is not None]
        found.sort(key=lambda v: (0, int(v), v) if v.isdecimal() else (1, 0, v))
        if classes is not None and (new := [v for v in found if v not in classes]):
            raise UserError(
                f"{self.name} has the class(es) {', '.join(new[:10])}, never seen in training; "
                f"known: {', '.join(classes)}"
            )
        if doubtful := [v for v in found if v.strip().lower() in BLANK]:
            count = pc.sum(pc.is_in(text, value_set=pa.array(doubtful))).as_py()
            words = f"{count:,} label(s) of {self.name} are {' or '.join(map(repr, doubtful))}, taken as a class"
            warnings.warn(f"{words}: leave them empty where they mean unlabelled", Warned, stacklevel=4)
        known = list(classes) if classes is not None else found
        codes = pc.fill_null(pc.index_in(text, value_set=pa.array(known, pa.string())), -1)
        return Labels("classes", codes.to_numpy().astype(np.int64), known)

    def take(self, index: np.ndarray) -> Data:
        """The rows `index`, of facts and raw alike."""
        rows = pa.array(index)
        raw = self.raw.take(rows) if isinstance(self.raw, pa.Table) else self.raw.take(index)
        kept = np.asarray(index) if self.kept is None else self.kept[index]
        return replace(self, raw=raw, table=self.table.take(rows), kept=kept)

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
        self.windows = _chained(first, second)

    def rows(self, index: np.ndarray) -> Batch:
        late = index >= self.first.size
        if not late.any():
            return self.first.rows(index)
        a, b = self.first.rows(index[~late]), self.second.rows(index[late] - self.first.size)
        back = torch.from_numpy(np.argsort(np.concatenate([np.flatnonzero(~late), np.flatnonzero(late)])))
        return {key: value[back] for key, value in join([a, b]).items()}


def _chained(first: Source, second: Source) -> Windows | None:
    """The windows of two sources one after the other; rows of a source without are one window each."""
    own = [getattr(source, "windows", None) for source in (first, second)]
    if not any(own):
        return None
    a, b = (w or Windows(s, np.arange(s.size + 1), s) for w, s in zip(own, (first, second), strict=True))
    starts = np.concatenate([a.starts, a.parts.size + b.starts[1:]])
    return Windows(Chain(a.parts, b.parts), starts, Chain(a.whole, b.whole))


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
    """Every modality: pairs first, whose columns may be of any other, series before images, which some of their arrays
    could be too, those that read a plain table last."""
    found = [part("modality", name) for name in names("modality")]
    return sorted(found, key=lambda m: {"pairs": 0, "graphs": 1, "series": 1, "tables": 3}.get(m.modality, 2))


def open_data(data: Any, modality: type[Input] | None = None) -> Data:
    """Open a built-in name, a path, or an object in memory (of `modality`, else the first that takes it)."""
    kinds = [modality] if modality else modalities()
    if isinstance(data, Data):
        if data.modality not in kinds:
            raise UserError(f"{data.name} holds {data.modality.modality}; wanted {kinds[0].modality}")
        return data
    if isinstance(data, str | Path):
        return _open_path(str(data), kinds)
    refused: list[tuple[str, str]] = []
    for kind in kinds:
        if modality is None and not kind.likely(data):
            continue
        try:
            raw = kind.as_raw(data)
        except UserError as error:
            refused.append((kind.modality, str(error)))
            continue
        table = raw if isinstance(raw, pa.Table) else getattr(raw, "facts", None)
        if table is None:
            table = pa.table({"id": [str(i) for i in range(len(raw))]})
        if not len(table):
            raise UserError(f"the {type(data).__name__} has no rows")
        return Data(f"{type(data).__name__} in memory", kind, raw, table)
    if len({why for _, why in refused}) == 1:
        raise UserError(refused[0][1])
    raise UserError("; ".join(f"{name}: {why}" for name, why in refused))


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
    wanted = (
        "images in a folder, .npy/.npz, IDX, series in a .ts file, a .txt file, or a CSV, JSON lines or Parquet table"
    )
    raise UserError(f"{path}: nothing to read there; wanted {wanted}")
