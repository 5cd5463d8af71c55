"""Finding texts: in plain files, in a column of a table, or in what a caller holds in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modicum.core.errors import UserError
from modicum.modalities import _textplain
from modicum.modalities._files import PARQUET, PLAIN, TABLES, as_table, peek, table_kind
from modicum.modalities._folders import walk
from modicum.modalities._tableread import key_of, place_of, read_table

COLUMNS = ["text", "sentence", "review", "document", "content", "body", "comment", "tweet", "message", "abstract"]
COLUMNS += ["description", "gloss", "question", "article", "post", "quote", "title", "headline"]
"""What columns of text are called, the likeliest first."""
FACTS = ("id", "split", "label", "class", "target", "y", "group")
"""Columns that are no input even where they hold long texts."""
STEP, PIECE = 8192, 1 << 20
"""Rows, and bytes, that are in memory as Python strings at a time; one row must fit."""
WANTED = (
    f"a .txt file or a folder of them, a table with a column of free text ({', '.join(TABLES)}), or a list of texts"
)


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

    def pieces(self, name: str, index: np.ndarray | None = None) -> Iterator[pa.Array]:
        """The texts of a column, at most `STEP` at a time, unread: all, or the rows `index`."""
        column = self.columns[name]
        if index is not None and self.rows is not None:
            index = self.rows[index]
        index = self.rows if index is None else index
        if index is None:
            for chunk in column.chunks:
                yield from (chunk.slice(start, STEP) for start in range(0, len(chunk), STEP))
            return
        ends = np.cumsum([len(chunk) for chunk in column.chunks])
        step = int(np.clip(16 * PIECE * len(column) // max(1, column.nbytes), 1, STEP))  # what is taken is copied
        for start in range(0, len(index), step):
            yield _taken(column, ends, index[start : start + step])

    def read(self, name: str, index: np.ndarray | None = None) -> Iterator[list[str]]:
        """The stripped texts of a column, some at a time: all, or the rows `index`; "" where there is none."""
        for part in self.pieces(name, index):
            for own in _light(part):
                yield [(text or "").strip() for text in own.to_pylist()]

    def sizes(self, name: str, index: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """The sizes of the texts of a column in bytes, at most `STEP` at a time; 0 where there is none."""
        for part in self.pieces(name, index):
            yield _sizes(part)

    def key(self, name: str) -> str:
        """A key of the texts of a column and their order: of the files they are from, else of the texts themselves."""
        digest = hashlib.blake2b(f"{key_of(self.facts)}/{name}".encode(), digest_size=16)
        if key_of(self.facts) is None:
            digest.update(np.ascontiguousarray(self.hashes(name)).data)
        elif self.rows is not None:
            digest.update(np.ascontiguousarray(self.rows).data)
        return digest.hexdigest()

    def hashes(self, name: str) -> np.ndarray:
        """A 64-bit hash (n,) of every text of a column."""
        if name not in self._hashes:
            parts = [hashes_of(texts) for texts in self.read(name)]
            self._hashes[name] = np.concatenate([np.empty(0, np.uint64), *parts])
        return self._hashes[name]

    def place(self, row: int) -> str:
        """What messages call a row: its place in the file of a table and its id, or one of them."""
        own = row if self.rows is None else int(self.rows[row])
        name = str(self.facts.column("id")[own]) if "id" in self.facts.column_names else ""
        place = place_of(self.facts, own)
        if place == f"row {own}":  # of no table: the id of a text is its line or its file
            return f"row {name or own}"
        return f"{place} ({name})" if name else place


def hashes_of(texts: list[str]) -> np.ndarray:
    """A 64-bit hash (n,) of every text."""
    return np.frombuffer(b"".join(hashlib.blake2b(t.encode(), digest_size=8).digest() for t in texts), "<u8")


def _sizes(part: pa.Array) -> np.ndarray:
    sizes: np.ndarray = pc.fill_null(pc.binary_length(part), 0).to_numpy(zero_copy_only=False)
    return sizes.astype(np.int64)


def _light(part: pa.Array) -> Iterator[pa.Array]:
    """Slices of an array of texts with about PIECE bytes at most."""
    piece = np.cumsum(_sizes(part)) // PIECE
    cuts = [0, *(np.flatnonzero(np.diff(piece)) + 1).tolist(), len(part)]
    yield from (part.slice(a, b - a) for a, b in pairwise(cuts) if b > a)


def _taken(column: pa.ChunkedArray, ends: np.ndarray, rows: np.ndarray) -> pa.Array:
    """The rows of a column in their order. Its own `take` would first copy all of it."""
    order = np.argsort(rows, kind="stable")
    which = np.searchsorted(ends, rows[order], "right")
    parts = [
        column.chunk(int(k)).take(pa.array(rows[own] - (ends[k - 1] if k else 0)))
        for k, own in ((which[at[0]], order[at]) for at in np.split(np.arange(len(rows)), _changes(which)) if len(at))
    ]
    back = np.empty(len(rows), np.int64)
    back[order] = np.arange(len(rows))
    return pa.concat_arrays(parts).take(pa.array(back))


def _changes(values: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.diff(values)) + 1


def scan(path: Path) -> tuple[RawTexts, pa.Table]:
    """The texts at a path, and all that is known of each row."""
    if table_kind(path) in PLAIN or not _is_table(path):
        table = _textplain.read(path)
        raw = RawTexts({"text": table.column("text")}, table, named=False)
    else:
        raw = from_table(read_table(path), str(path))
    return raw, raw.facts


def _is_table(path: Path) -> bool:
    """Whether the path is a table by its name, or a folder with Parquet files."""
    return table_kind(path) in TABLES or (path.is_dir() and any(p for e in PARQUET for p in path.rglob(f"*{e}")))


def claims(path: Path) -> bool:
    """Plain text files and folders of them, and tables with a column of free text."""
    if table_kind(path) in PLAIN and path.is_file():
        return True
    if not _is_table(path):
        return path.is_dir() and any(table_kind(Path(parts[-1])) in PLAIN for parts in walk(path))
    try:
        return bool(text_columns(peek(path)))
    except UserError:
        return False


def as_raw(x: Any) -> RawTexts:
    """Texts from a table or DataFrame with a column of free text, or a list, array or column of strings."""
    if isinstance(x, RawTexts):
        return x
    if hasattr(x, "columns"):
        return from_table(as_table(x), f"the {type(x).__name__}")
    items = list(x.tolist() if hasattr(x, "tolist") else x) if hasattr(x, "__iter__") and not isinstance(x, str) else []
    if items and all(isinstance(i, dict) for i in items):
        return from_table(as_table(items), "the list")
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
