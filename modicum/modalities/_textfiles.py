"""Finding texts: in plain files, in a column of a table, or in what a caller holds in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modicum.core.errors import UserError
from modicum.modalities._files import PARQUET, TABLES, check_encoding, opened, peek, table_kind
from modicum.modalities._tableread import read_table

PLAIN = (".txt", ".text")
COLUMNS = ["text", "sentence", "review", "document", "content", "body", "comment", "tweet", "message", "abstract"]
COLUMNS += ["description", "gloss", "question", "article", "post", "quote", "title", "headline"]
"""What columns of text are called, the likeliest first."""
FACTS = ("id", "split", "label", "class", "target", "y", "group")
"""Columns that are no input even where they hold long texts."""
STEP = 8192
"""Rows that are in memory as Python strings at a time."""
WANTED = f"a .txt file, a table with a column of free text ({', '.join(TABLES)}), or a list of texts"


@dataclass(frozen=True, eq=False)
class RawTexts:
    """Columns of text by name, the likeliest first, `rows` of them, and the `facts` beside them.

    `named` where the columns were named by the user, and not by us.
    """

    columns: dict[str, pa.ChunkedArray]
    facts: pa.Table
    named: bool = True
    rows: np.ndarray | None = None
    _hashes: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.facts.num_rows if self.rows is None else len(self.rows)

    def take(self, index: Sequence[int] | np.ndarray) -> RawTexts:
        """The rows `index`, without reading any."""
        rows = np.arange(len(self))[np.asarray(index) if len(index) else slice(0)]
        return replace(self, rows=rows if self.rows is None else self.rows[rows], _hashes={})

    def choose(self, name: str | None, exclude: Sequence[str] = ()) -> str:
        """The column of that name, else the likeliest that is not excluded."""
        if name in self.columns:
            return str(name)
        if name is not None and self.named:
            have = ", ".join(self.facts.column_names)
            raise UserError(f"there is no column '{name}' of text; the table has {have}")
        found = [n for n in self.columns if n not in exclude]
        if not found:
            raise UserError(
                f"no column of text is left as input besides {', '.join(exclude)}: the label cannot be the text too"
            )
        return found[0]

    def read(self, name: str, index: np.ndarray | None = None) -> Iterator[list[str]]:
        """The stripped texts of a column, `STEP` at a time: all, or the rows `index`; "" where there is none."""
        column = self.columns[name]
        if index is not None and self.rows is not None:
            index = self.rows[index]
        index = self.rows if index is None else index
        count = len(column) if index is None else len(index)
        for start in range(0, count, STEP):
            part = column.slice(start, STEP) if index is None else column.take(pa.array(index[start : start + STEP]))
            yield [(text or "").strip() for text in part.to_pylist()]

    def hashes(self, name: str) -> np.ndarray:
        """A 64-bit hash (n,) of every text of a column."""
        if name not in self._hashes:
            parts = [
                np.frombuffer(b"".join(hashlib.blake2b(t.encode(), digest_size=8).digest() for t in texts), "<u8")
                for texts in self.read(name)
            ]
            self._hashes[name] = np.concatenate([np.empty(0, np.uint64), *parts])
        return self._hashes[name]

    def place(self, row: int) -> str:
        """What messages call a row: its id in the file, else its number."""
        own = row if self.rows is None else int(self.rows[row])
        return f"row {self.facts.column('id')[own]}" if "id" in self.facts.column_names else f"row {own}"


def scan(path: Path) -> tuple[RawTexts, pa.Table]:
    """The texts at a path, and all that is known of each row."""
    raw = _plain(path) if table_kind(path) in PLAIN else from_table(read_table(path), str(path))
    return raw, raw.facts


def claims(path: Path) -> bool:
    """Plain text files, and tables with a column of free text."""
    kind = table_kind(path)
    if kind in PLAIN:
        return path.is_file()
    if kind not in TABLES and not (path.is_dir() and any(p for e in PARQUET for p in path.rglob(f"*{e}"))):
        return False
    try:
        return bool(text_columns(peek(path)))
    except UserError:
        return False


def as_raw(x: Any) -> RawTexts:
    """Texts from a table or DataFrame with a column of free text, or a list, array or column of strings."""
    if isinstance(x, RawTexts):
        return x
    if hasattr(x, "columns"):
        return from_table(_as_table(x), f"the {type(x).__name__}")
    items = list(x.tolist() if hasattr(x, "tolist") else x) if hasattr(x, "__iter__") and not isinstance(x, str) else []
    if items and all(isinstance(i, dict) for i in items):
        return from_table(_as_table(items), "the list")
    if not items or not all(isinstance(i, str) or i is None for i in items):
        kinds = ", ".join(sorted({type(i).__name__ for i in items})[:5])
        found = f"a {type(x).__name__}" + (f" of {kinds}" if items else "")
        raise UserError(f"texts are wanted as {WANTED}; got {found}")
    try:
        column = pa.chunked_array([pa.array([None if i is None else str(i) for i in items], pa.large_string())])
    except UnicodeEncodeError as error:
        row = next(k for k, i in enumerate(items) if i is not None and not _encodes(i))
        raise UserError(f"text {row} is not valid Unicode: {error.reason}; repair or drop it") from None
    return RawTexts({"text": column}, pa.table({"id": np.arange(len(items)).astype(str)}), named=False)


def _as_table(x: Any) -> pa.Table:
    try:
        if isinstance(x, list):
            return pa.Table.from_pylist(x)
        return pa.Table.from_pandas(x, preserve_index=False) if hasattr(x, "iloc") else pa.table(x)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise UserError(f"the {type(x).__name__} cannot be read as a table: {error}") from None


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def from_table(table: pa.Table, where: str) -> RawTexts:
    """The columns of a table that hold free text, with all of its columns as facts."""
    found = text_columns(table)
    if not found:
        raise UserError(
            f"{where}: no column of free text; its columns are {', '.join(table.column_names)}. "
            f"Name the one that holds it 'text'"
        )
    columns = {name: table.column(name) for name in found}
    coded = {n: c.cast(c.type.value_type) for n, c in columns.items() if pa.types.is_dictionary(c.type)}
    return RawTexts({**columns, **coded}, table)


def text_columns(table: pa.Table) -> list[str]:
    """The columns that hold free text, the likeliest first.

    A column called one of COLUMNS, unless it looks like categories; else, in a table with at most two columns of
    numbers, those with six words or more a row, the longest first.
    """
    kinds = dict(zip(table.column_names, table.schema.types, strict=True))
    numeric = [n for n, t in kinds.items() if _is_number(t) and n.lower() not in FACTS]
    named, free = [], []
    for name, kind in kinds.items():
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        if str(value) not in ("string", "large_string", "string_view") or name.lower() in FACTS:
            continue
        some = [str(v) for v in table.column(name).slice(0, 200).to_pylist() if v]
        if not some:
            continue
        words = float(np.mean([len(v.split()) for v in some]))
        size = float(np.mean([len(v.encode()) for v in some]))
        distinct = len(set(some)) / len(some)
        if name.lower() in COLUMNS and (distinct > 0.5 or size >= 20):
            named.append((COLUMNS.index(name.lower()), name))
        elif distinct > 0.5 and (words >= 6 or (size >= 40 and not any(v.isascii() for v in some))):
            free.append((-size, name))
    return [name for _, name in sorted(named)] + [name for _, name in sorted(free) if named or len(numeric) <= 2]


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _plain(path: Path) -> RawTexts:
    """A plain text file: a line a row, or a paragraph a row; `id` is the number of a row's first line.

    Rows are paragraphs where blank lines part blocks of which one has several lines at least, and no block has more
    than 100 lines: a stray blank line in a list of sentences does not make it two paragraphs.
    """
    check_encoding(path)
    try:
        with opened(path) as file:
            lines = file.read().decode("utf-8-sig").splitlines()
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    full = np.array([bool(line.strip()) for line in lines], bool)
    if not full.any():
        raise UserError(f"{path}: the file holds no text")
    first = np.flatnonzero(full & ~np.concatenate([[False], full[:-1]]))
    last = np.flatnonzero(full & ~np.concatenate([full[1:], [False]])) + 1
    if len(first) < 2 or not 1 < (last - first).max() <= 100:
        first = np.flatnonzero(full)
        last = first + 1
    column = pa.array(["\n".join(lines[a:b]) for a, b in zip(first, last, strict=True)], pa.large_string())
    return RawTexts(
        {"text": pa.chunked_array([column])}, pa.table({"id": (first + 1).astype(str), "text": column}), named=False
    )


def lengths_in_bytes(raw: RawTexts, name: str, index: np.ndarray) -> np.ndarray:
    """The size (n,) of the texts `index` of a column in bytes, 0 where there is none."""
    rows = index if raw.rows is None else raw.rows[index]
    sizes = [
        pc.fill_null(pc.binary_length(raw.columns[name].take(pa.array(rows[i : i + STEP]))), 0).to_numpy()
        for i in range(0, len(rows), STEP)
    ]
    return np.concatenate([np.empty(0, np.int64), *sizes])
