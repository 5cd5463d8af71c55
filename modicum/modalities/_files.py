"""Reading tables from files, and keys of content for the cache: shared by the modalities."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset
import pyarrow.json

from modicum.core.atomic import atomic_write
from modicum.core.errors import UserError

CSV = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
JSON = (".jsonl", ".ndjson", ".json")
PARQUET = (".parquet", ".pq")
TABLES = (*CSV, *JSON, *PARQUET)
BLOCK = 1 << 26  # bytes: one row (a long text) must fit into one block of pyarrow's readers


def table_kind(path: Path) -> str:
    """The extension that says how to read `path`, in lower case, without a final .gz."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def read_table(path: str | Path) -> pa.Table:
    """Read CSV/TSV or JSON lines (.gz or not), or Parquet (one file or a folder of them), as a table.

    Empty strings of a CSV become null; words like NA are null in columns of numbers and text in columns of text.
    UserError: missing or empty file, unknown extension, ragged rows, not UTF-8, a column name used twice.
    """
    path = Path(path)
    kind = table_kind(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_dir():
        table = _read_parquet(
            sorted(p for e in PARQUET for p in path.rglob(f"*{e}") if not p.name.startswith(".")), path
        )
    elif kind not in TABLES:
        raise UserError(
            f"{path}: unknown kind of table '{kind}'; known: {', '.join(TABLES)}, or a folder of Parquet files"
        )
    elif path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty")
    elif kind in PARQUET:
        table = _read_parquet([path], None)
    else:
        _check_encoding(path)
        table = _read_csv(path, CSV[kind]) if kind in CSV else _read_json(path)
    twice = [name for name, count in Counter(table.column_names).items() if count > 1]
    if twice:
        raise UserError(f"{path}: column names used twice: {', '.join(twice)}; rename them")
    if table.num_rows == 0:
        raise UserError(f"{path}: the table has no rows")
    return table


def peek(path: Path) -> pa.Table:
    """The first rows of a table, to see its columns without reading all of it."""
    kind = "csv" if table_kind(path) in CSV else "json" if table_kind(path) in JSON else "parquet"
    try:
        return pyarrow.dataset.dataset(path, format=kind).head(100)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as a table: {error}") from None


def _check_encoding(path: Path) -> None:
    """Raise a UserError naming the first line of `path` that is not UTF-8."""
    try:
        with _opened(path) as file:
            for number, line in enumerate(file, 1):
                if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise UserError(f"{path}: the file is UTF-16; save it as UTF-8")
                if not line.isascii():
                    line.decode()
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise UserError(
            f"{path}, line {number}: not UTF-8 (byte 0x{byte:02x}); save it as UTF-8, "
            f"for example  iconv -f latin1 -t utf-8 {path.name}"
        ) from error
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _read_csv(path: Path, delimiter: str) -> pa.Table:
    ragged: list[str] = []

    def note(row: pyarrow.csv.InvalidRow) -> str:
        ragged.append(
            f"row {row.number} has {row.actual_columns} columns, not {row.expected_columns}: {row.text[:80]!r}"
        )
        return "error"

    parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=note)
    # One thread, or pyarrow does not know the numbers of the ragged rows.
    read = pyarrow.csv.ReadOptions(use_threads=False, block_size=BLOCK)
    try:
        table = pyarrow.csv.read_csv(path, read_options=read, parse_options=parse)
    except pa.ArrowInvalid as error:
        what = f"{ragged[0]} (the header is row 1); quote values that hold '{delimiter}'" if ragged else error
        raise UserError(f"{path}: {what}") from error
    if table.num_columns == 1 and ";" in table.column_names[0]:
        raise UserError(f"{path}: the columns seem to be separated by ';': save it with '{delimiter}'")
    for number, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            column = table.column(number)
            blank = pc.equal(column, "")
            table = table.set_column(number, field.name, pc.if_else(blank, pa.scalar(None, field.type), column))
    return table


def _read_json(path: Path) -> pa.Table:
    try:
        return pyarrow.json.read_json(path, read_options=pyarrow.json.ReadOptions(block_size=BLOCK))
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: not JSON lines, one object a line (rows are counted from 0): {error}") from error


def _read_parquet(files: Sequence[Path], folder: Path | None) -> pa.Table:
    if not files:
        raise UserError(f"{folder}: holds no Parquet files (*{', *'.join(PARQUET)})")
    options: dict[str, Any] = {"format": "parquet"}
    if folder:
        options |= {"partitioning": pyarrow.dataset.partitioning(flavor="hive"), "partition_base_dir": str(folder)}
    names = [str(f) for f in files]
    try:
        data = pyarrow.dataset.dataset(names, **options)
        # The data set alone would take the first file's columns and drop every other.
        schemas = [data.schema, *(part.physical_schema for part in data.get_fragments())]
        schema = pa.unify_schemas(schemas, promote_options="permissive")
        return pyarrow.dataset.dataset(names, schema=schema, **options).to_table()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{folder or files[0]}: cannot be read as Parquet: {error}") from error


def cache_dir() -> Path:
    """The folder of packed data: $MODICUM_CACHE, else `modicum` in the XDG cache folder (~/.cache)."""
    if own := os.environ.get("MODICUM_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modicum"


Entry = tuple[int, int, str]  # bytes, mtime in ns, digest


def content_key(paths: Iterable[str | Path]) -> str:
    """A key (32 hex digits) of the bytes of the files in their order, whatever their names.

    Digests are remembered in the cache folder by (absolute path, size, mtime), so unchanged files are not read again.
    A file that cannot be read counts as a content of its own, so that the reader of the data can report it.
    """
    names = [os.path.abspath(p) for p in paths]
    index = cache_dir() / "index" / f"{_digest(os.fsencode(chr(0).join(names)))}.json"
    known = _load_index(index, len(names))
    starts = range(0, len(names), 256)
    with ThreadPoolExecutor() as pool:
        parts = pool.map(lambda i: [*map(_entry, names[i : i + 256], known[i : i + 256])], starts)
        entries = [entry for part in parts for entry in part]
    if entries != known:
        # A file changed within the clock's grain of being read could keep its size and time: do not trust its digest.
        settled = time.time_ns() - 2_000_000_000
        kept = [e if e and e[1] < settled else None for e in entries]
        with suppress(OSError):  # the index only saves time
            atomic_write(index, json.dumps(kept).encode())
    return _digest("".join(e[2] if e else "unreadable" for e in entries).encode())


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _load_index(index: Path, count: int) -> list[Entry | None]:
    with suppress(OSError, ValueError, TypeError):
        entries = json.loads(index.read_bytes())
        if len(entries) == count:
            return [(int(e[0]), int(e[1]), str(e[2])) if e else None for e in entries]
    return [None] * count


def _entry(name: str, known: Entry | None) -> Entry | None:
    try:
        stat = os.stat(name)
        if known and known[:2] == (stat.st_size, stat.st_mtime_ns):
            return known
        with open(name, "rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        return stat.st_size, stat.st_mtime_ns, digest
    except OSError:
        return None


def row_hashes(array: np.ndarray) -> np.ndarray:
    """A 64-bit hash (n,) of the bytes of every row of `array` (n, ...), any dtype; equal rows of one type hash equally.

    The sum over the row's little-endian words w of k2·(m ^ m >> 32), m = k1·w, with fixed random odd k1, k2 a word.
    """
    flat = (
        np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8) if array.size else np.zeros((len(array), 1))
    )
    words = -(-flat.shape[1] // 8)
    keys = np.random.PCG64(20).random_raw(2 * words).reshape(2, words) | np.uint64(1)
    out = np.empty(len(flat), np.uint64)
    step = max(1, (1 << 22) // (8 * words))  # stays in the processor's cache
    for start in range(0, len(flat), step):
        rows = flat[start : start + step].astype(np.uint8, copy=False)
        if rows.shape[1] % 8:
            rows = np.pad(rows, ((0, 0), (0, 8 * words - rows.shape[1])))
        mixed = rows.view("<u8") * keys[0]
        mixed ^= mixed >> np.uint64(32)
        mixed *= keys[1]
        out[start : start + step] = mixed.sum(1, dtype=np.uint64)
    return out
