"""Kinds of table files, and keys of content for the cache: shared by the modalities."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pyarrow.json

from modicum.core.atomic import atomic_write
from modicum.core.errors import UserError

CSV = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
JSON = (".jsonl", ".ndjson", ".json")
PARQUET = (".parquet", ".pq")
PLAIN = (".txt", ".text")
TABLES = (*CSV, *JSON, *PARQUET)


def table_kind(path: Path) -> str:
    """The extension that says how to read `path`, in lower case, without a final .gz."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def peek(path: Path) -> pa.Table:
    """The first rows of a table, to see its columns without reading all of it."""
    kind = table_kind(path)
    read: Any = "json" if kind in JSON else thrifty()
    if kind in CSV:
        parse = pyarrow.csv.ParseOptions(
            delimiter=CSV[kind], newlines_in_values=True, invalid_row_handler=lambda _: "skip"
        )
        read = pyarrow.dataset.CsvFileFormat(parse)
    try:
        table = pyarrow.dataset.dataset(path, format=read).scanner(**ONE_BY_ONE).head(100)
        assert table.column_names is not None  # decodes them
        return table
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a table: {error}") from None
    finally:
        pa.default_memory_pool().release_unused()  # what decoding needed is not kept


ONE_BY_ONE: dict[str, Any] = {
    "batch_size": 1 << 14,
    "batch_readahead": 1,
    "fragment_readahead": 1,
    "use_threads": False,
}
"""How to scan a data set without many of its rows in memory."""


def thrifty() -> pyarrow.dataset.ParquetFileFormat:
    """Parquet read page by page: whole row groups may be large."""
    options = pyarrow.dataset.ParquetFragmentScanOptions(use_buffered_stream=True, pre_buffer=False)
    return pyarrow.dataset.ParquetFileFormat(default_fragment_scan_options=options)


def check_encoding(path: Path) -> None:
    """Raise a UserError naming the first line of `path` that is not UTF-8."""
    try:
        with opened(path) as file:
            for number, line in enumerate(file, 1):
                if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise UserError(f"{path}: the file is UTF-16; save it as UTF-8")
                if not line.isascii():
                    line.decode()
                if b"\0" in line:
                    raise UserError(
                        f"{path}, line {number}: holds a NUL byte, which no text does (is it UTF-16, or damaged?); "
                        f"save it as UTF-8, for example  iconv -f utf-16le -t utf-8 {path.name}"
                    )
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise UserError(
            f"{path}, line {number}: not UTF-8 (byte 0x{byte:02x}); save it as UTF-8, "
            f"for example  iconv -f latin1 -t utf-8 {path.name}"
        ) from error
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error


def opened(path: Path) -> IO[bytes]:
    """The bytes of a file, unpacked where it ends in .gz."""
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


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


def tenth(texts: Iterable[str]) -> list[bool]:
    """True for the tenth of the texts whose hash says so: equal texts fall on one side, on every machine."""
    return [hashlib.blake2b(text.encode(), digest_size=8).digest()[0] * 10 < 256 for text in texts]


def as_table(x: Any) -> pa.Table:
    """A DataFrame, a list of dicts, a mapping of columns or an Arrow table as an Arrow table."""
    if isinstance(x, pa.Table):
        return x
    try:
        if isinstance(x, Sequence):
            return pa.Table.from_pylist(list(x))
        return pa.Table.from_pandas(x, preserve_index=False) if hasattr(x, "iloc") else pa.table(x)
    except (pa.ArrowException, ValueError, TypeError) as error:  # mixed types in a column, a column twice
        raise UserError(f"the {type(x).__name__} cannot be read as a table: {error}") from None
