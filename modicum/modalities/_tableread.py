"""Reading tables from files a piece at a time: what is large becomes an Arrow file in the cache, memory-mapped."""

from __future__ import annotations

import hashlib
import json
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.json

from modicum.core.atomic import atomic_path
from modicum.core.errors import UserError, Warned
from modicum.modalities._csv import Csv, typed
from modicum.modalities._files import (
    CSV,
    ONE_BY_ONE,
    PARQUET,
    TABLES,
    cache_dir,
    check_encoding,
    content_key,
    opened,
    table_kind,
    thrifty,
)

FORMAT = 1  # of the cached files: raise it when their content would differ
IN_MEMORY = 64 << 20  # bytes: files up to this size are read into memory
PIECE = 1 << 24  # bytes of text that are parsed at a time; one row must fit

Bad = list[tuple[int, str, str]]


class Known(NamedTuple):
    """Of a table that was read: its path, the key of its content where cached, and what is wrong with ragged rows.

    Rows of the file count from 1, a CSV's header among them; `lines` are their numbers where these do not follow.
    """

    path: Path | None = None
    key: str | None = None
    ragged: tuple[str, ...] = ()
    lines: tuple[int, ...] = ()


_known: dict[int, Known] = {}
"""Of the tables that are in use."""


def _remember(table: pa.Table, **more: Any) -> None:
    if id(table) not in _known:
        weakref.finalize(table, _known.pop, id(table), None)
    _known[id(table)] = _of(table)._replace(**more)


def _of(table: pa.Table) -> Known:
    return _known.get(id(table), Known())


def placed(table: pa.Table, path: Path, lines: Sequence[int] = ()) -> pa.Table:
    """The table, remembered as that of a file; `lines` as in `Known`."""
    _remember(table, path=path, lines=tuple(lines))
    return table


def like(table: pa.Table, other: pa.Table) -> pa.Table:
    """The table, remembered as having the rows of the `other`."""
    _remember(table, **_of(other)._asdict())
    return table


def key_of(table: pa.Table) -> str | None:
    """The key of the content of the files that a table is, as it was read; None of any other."""
    return _of(table).key


def bad_rows(table: pa.Table) -> Bad:
    """The ragged rows that `scan` left out of a table."""
    known = _of(table)
    return [(-1, str(known.path), why) for why in known.ragged]


def _number(why: str) -> int:
    """The row of the file that `why` begins with: `row 5 has 3 columns`."""
    return int(why.split()[1])


def place_of(table: pa.Table, row: int) -> str:
    """Where row `row` (from 0) of a table is: its file and row there; its number alone where no file is behind it."""
    known = _of(table)
    if known.path is None:
        return f"row {row}"
    if known.lines:
        return f"{known.path}, row {known.lines[row]:,}"
    if known.path.is_dir():
        return f"{known.path}, row {row + 1:,}"
    place = row + 1 + (table_kind(known.path) in CSV)
    for own in sorted(map(_number, known.ragged)):
        place += own <= place
    return f"{known.path}, row {place:,}"


def scan(path: Path, unique: bool = True) -> pa.Table:
    """`read_table`, with ragged rows left for `bad_rows`."""
    ragged: list[str] = []
    table = read_table(path, ragged, unique)
    _remember(table, ragged=tuple(ragged))
    return table


def _check_ids(path: Path, table: pa.Table) -> None:
    """Warn where an id is used twice."""
    if "id" not in table.column_names or pa.types.is_nested(table.column("id").type):
        return
    ids = table.column("id")
    twice = len(ids) - ids.null_count - pc.count_distinct(ids, mode="only_valid").as_py()
    if twice:
        counts = pc.value_counts(ids.drop_null().combine_chunks())
        first = counts.field("values").filter(pc.greater(counts.field("counts"), 1))[0]
        warnings.warn(
            f"{path}: {twice:,} row(s) have an id that an earlier row has, such as '{first}'; all rows are used, and "
            "equal ones may be on both sides of a split (--group id keeps them together)",
            Warned,
            stacklevel=4,
        )


def read_table(path: str | Path, ragged: list[str] | None = None, unique: bool = True) -> pa.Table:
    """Read CSV/TSV or JSON lines (.gz or not), or Parquet (one file or a folder of them), as a table.

    Empty strings of a CSV become null; words like NA are null in columns of numbers and text in columns of text; whole
    numbers with leading zeros are text. `ragged` collects what is wrong with rows that have too many or few columns;
    with `unique` an id that is used twice is warned of.
    UserError: missing or empty file, unknown extension, ragged rows where they are not collected, not UTF-8, a column
    name used twice, a column that changes its type.
    """
    path = Path(path)
    kind = table_kind(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_dir():
        files = sorted(p for e in PARQUET for p in path.rglob(f"*{e}") if not p.name.startswith("."))
        if not files:
            raise UserError(f"{path}: holds no Parquet files (*{', *'.join(PARQUET)})")
    elif kind not in TABLES:
        raise UserError(
            f"{path}: unknown kind of table '{kind}'; known: {', '.join(TABLES)}, or a folder of Parquet files"
        )
    elif path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty")
    else:
        files = [path]
    large = sum(f.stat().st_size for f in files) * (10 if path.suffix.lower() == ".gz" else 1) > IN_MEMORY
    table = _cached(path, files, ragged) if large else _assembled(*_pieces(path, files, ragged))
    twice = [name for name, count in Counter(table.column_names).items() if count > 1]
    if twice:
        raise UserError(
            f"{path}: column names used twice: {', '.join(twice)}; rename them (is the first row a header?)"
        )
    if table.num_rows == 0:
        raise UserError(f"{path}: the table has no rows")
    if unique:
        _check_ids(path, table)
    _remember(table, path=path)
    return table


Pieces = tuple[pa.Schema, Iterator[pa.RecordBatch]]


def _pieces(path: Path, files: Sequence[Path], ragged: list[str] | None) -> Pieces:
    """The columns of a table, and its rows in record batches."""
    kind = table_kind(path)
    if path.is_dir() or kind in PARQUET:
        return _parquet(files, path if path.is_dir() else None)
    check_encoding(path)
    if kind in CSV:
        return typed(Csv(path, lambda: opened(path), CSV[kind], ragged, PIECE))
    return _json(path)


def _assembled(schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> pa.Table:
    return pa.Table.from_batches(batches, schema)


def _cached(path: Path, files: Sequence[Path], ragged: list[str] | None) -> pa.Table:
    """The table as a memory-mapped Arrow file in the cache, made there where the same content was not before."""
    names = json.dumps([FORMAT, table_kind(path), [str(f.relative_to(path)) for f in files] if path.is_dir() else ""])
    key = hashlib.blake2b(f"{content_key(files)}{names}".encode(), digest_size=16).hexdigest()
    target = _place(key)
    if target.exists():
        if ragged is not None and target.with_suffix(".json").exists():
            ragged += json.loads(target.with_suffix(".json").read_text())
        return stored(path, key, None)
    found: list[str] = [] if ragged is None else ragged
    table = stored(path, key, lambda: _pieces(path, files, None if ragged is None else found))
    if found:
        target.with_suffix(".json").write_text(json.dumps(found))
    return table


def _place(key: str) -> Path:
    return cache_dir() / "tables" / f"{key}.arrow"


def stored(path: Path, key: str, pieces: Callable[[], Pieces] | None) -> pa.Table:
    """The memory-mapped table of that key in the cache, written there from its `pieces` where it is not yet."""
    target = _place(key)
    if pieces is not None and not target.exists():
        schema, batches = pieces()
        try:
            with atomic_path(target) as temporary, pa.OSFile(str(temporary), "wb") as file:
                meta = schema.with_metadata({})
                with pa.ipc.new_file(file, meta) as writer:
                    for batch in batches:
                        writer.write_batch(batch)
        except OSError as error:
            raise UserError(
                f"{path} is large and is put into {target.parent}: {error}; free some space or set MODICUM_CACHE"
            ) from error
        pa.default_memory_pool().release_unused()
    table = pa.ipc.open_file(pa.memory_map(str(target))).read_all()
    _remember(table, key=key)
    return table


def _parquet(files: Sequence[Path], folder: Path | None) -> Pieces:
    options: dict[str, Any] = {"format": thrifty()}
    if folder:
        options |= {"partitioning": pyarrow.dataset.partitioning(flavor="hive"), "partition_base_dir": str(folder)}
    names = [str(f) for f in files]
    try:
        data = pyarrow.dataset.dataset(names, **options)
        # The data set alone would take the first file's columns and drop every other.
        own = ((Path(part.path), part.physical_schema) for part in data.get_fragments())
        schema = _common([(files[0], data.schema), *own])
        scanner = pyarrow.dataset.dataset(names, schema=schema, **options).scanner(**ONE_BY_ONE)
        return schema, _guarded(scanner.to_batches(), folder or files[0], "cannot be read as Parquet")
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{folder or files[0]}: cannot be read as Parquet: {error}") from error


def _common(schemas: Sequence[tuple[Path, pa.Schema]]) -> pa.Schema:
    """One schema for all files; UserError naming the file and column whose type has nothing in common with others."""
    out = schemas[0][1]
    for file, schema in schemas[1:]:
        try:
            out = pa.unify_schemas([out, schema], promote_options="permissive")
        except pa.ArrowException:
            for field in schema:
                known = out.field(field.name).type if field.name in out.names else field.type
                if not _together(known, field.type):
                    raise UserError(
                        f"{file}: column '{field.name}' is {field.type} here and {known} before: make it one type"
                    ) from None
            raise
    return out


def _guarded(batches: Iterator[pa.RecordBatch], path: Path, what: str) -> Iterator[pa.RecordBatch]:
    try:
        yield from batches
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: {what}: {error}") from error


def _json(path: Path) -> Pieces:
    """JSON lines, read twice: what types all rows have in common, and the rows as these."""
    out: pa.Schema | None = None
    for first, table in _json_pieces(path, None):
        known = table.schema if out is None else out
        for field in table.schema:
            old = known.field(field.name).type if field.name in known.names else field.type
            if not _together(old, field.type):
                if not {pa.string()} <= {old, field.type} or not any(map(pa.types.is_timestamp, (old, field.type))):
                    row = first + _first(table.column(field.name))
                    raise _changed(path, field.name, row, old, field.type)
                # Texts of which some pieces hold dates alone.
                text = pa.field(field.name, pa.string())
                known = known.set(known.get_field_index(field.name), text)
                table = table.set_column(
                    table.column_names.index(field.name), text, pa.nulls(table.num_rows, pa.string())
                )
        out = pa.unify_schemas([known, table.schema], promote_options="permissive")
    if out is None:
        raise UserError(f"{path}: the table has no rows")
    schema: pa.Schema = out
    return schema, chain.from_iterable(t.cast(schema).to_batches() for _, t in _json_pieces(path, schema))


def _together(a: pa.DataType, b: pa.DataType) -> bool:
    try:
        pa.unify_schemas([pa.schema([("x", a)]), pa.schema([("x", b)])], promote_options="permissive")
    except pa.ArrowException:
        return False
    return True


def _first(column: pa.ChunkedArray) -> int:
    """The first row with a value."""
    return int(pc.index(pc.is_valid(column), True).as_py())


def _changed(path: Path, name: str, row: int, old: Any, new: Any) -> UserError:
    return UserError(
        f"{path}, row {row}: column '{name}' is {new} here and {old} before: make it one type, such as text in quotes"
    )


def _json_pieces(path: Path, schema: pa.Schema | None) -> Iterator[tuple[int, pa.Table]]:
    """The number of a piece's first row (from 1) and its table; only columns that it holds where `schema` is given."""
    first = 1
    options = pyarrow.json.ParseOptions(explicit_schema=schema) if schema else None
    with opened(path) as file:
        while lines := file.readlines(PIECE):
            if not any(line.strip() for line in lines):
                continue
            try:
                block = pa.BufferReader(b"".join(lines))
                read = pyarrow.json.ReadOptions(block_size=2 * max(PIECE, block.size()), use_threads=False)
                table = pyarrow.json.read_json(block, read, options)
            except pa.ArrowInvalid as error:
                raise _json_error(path, lines, first, error) from error
            yield first, table
            first += table.num_rows


def _json_error(path: Path, lines: Sequence[bytes], first: int, error: Exception) -> UserError:
    """What is wrong with JSON lines, by the first one that is no object or has a value of another type."""
    kinds: dict[str, type] = {}
    for row, line in enumerate((line for line in lines if line.strip()), first):
        try:
            found = json.loads(line)
        except ValueError as bad:
            return UserError(f"{path}, row {row}: not JSON lines, one object a line: {bad}")
        if not isinstance(found, dict):
            return UserError(f"{path}, row {row}: not JSON lines, one object a line: a {type(found).__name__}")
        for name, value in found.items():
            kind = float if type(value) is int else type(value)
            if value is not None and kinds.setdefault(name, kind) is not kind:
                words = {float: "a number", str: "text", bool: "true or false", list: "a list", dict: "an object"}
                return _changed(path, name, row, words.get(kinds[name], kinds[name]), words.get(kind, kind))
    return UserError(f"{path}, rows from {first}: not JSON lines, one object a line: {error}")
