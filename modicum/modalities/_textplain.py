"""Plain text files, and folders of them, as tables of texts: read a piece at a time, however large."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from modicum.core.errors import UserError, Warned
from modicum.modalities._files import PLAIN, check_encoding, content_key, opened, table_kind
from modicum.modalities._folders import meaning, name_of, walk
from modicum.modalities._tableread import IN_MEMORY, PIECE, Pieces, stored

FORMAT = 1  # of the cached tables: raise it when their content would differ
PARAGRAPH = 100
"""Lines of a paragraph, at most."""
LONG = 1000
"""Characters of a file's only line that is hardly meant to be one text."""
ROWS = 1 << 14
"""Rows of a record batch."""


def read(path: Path) -> pa.Table:
    """The texts of a file or folder as a table with columns `id` and `text`; of a folder also `label` and `split`.

    What is large becomes a memory-mapped file in the cache.
    """
    files: list[tuple[str, ...]] = texts_in(path) if path.is_dir() else [()]
    if not files:
        raise UserError(f"{path}: holds no text files (*{', *'.join(PLAIN)})")
    paths = [path.joinpath(*parts) for parts in files]

    def pieces() -> Pieces:
        return _documents(path, files) if path.is_dir() else _rows(path)

    if sum(p.stat().st_size * (10 if p.suffix.lower() == ".gz" else 1) for p in paths) <= IN_MEMORY:
        schema, batches = pieces()
        return pa.Table.from_batches(batches, schema)
    names = json.dumps(["text", FORMAT, [name_of("/".join(parts)) for parts in files]])
    key = hashlib.blake2b(f"{content_key(paths)}{names}".encode(), digest_size=16).hexdigest()
    return stored(path, key, pieces)


def texts_in(folder: Path) -> list[tuple[str, ...]]:
    """The text files below a folder as parts of their relative paths, in order; a warning counts what else is there."""
    found = sorted(walk(folder))
    texts = [parts for parts in found if table_kind(Path(parts[-1])) in PLAIN]
    if texts and len(texts) < len(found):
        others = ["/".join(parts) for parts in found if table_kind(Path(parts[-1])) not in PLAIN]
        words = f"{folder}: {len(others)} files are not texts and were left out: {', '.join(others[:3])}, ..."
        warnings.warn(words, Warned, stacklevel=5)
    return texts


def _documents(folder: Path, files: list[tuple[str, ...]]) -> Pieces:
    """A file a row; classes and splits are the names of folders, as those of images are."""
    labels, splits = meaning(files, folder)
    facts: dict[str, list[Any]] = {"id": [name_of("/".join(parts)) for parts in files]}
    facts |= {name: own for name, own in (("label", labels), ("split", splits)) if any(own)}
    schema = pa.schema([*((name, pa.string()) for name in facts), ("text", pa.large_string())])

    def batches() -> Iterator[pa.RecordBatch]:
        texts: list[str] = []
        held = 0
        for row, parts in enumerate(files, 1):
            texts.append(_whole(folder.joinpath(*parts)))
            held += len(texts[-1])
            if row == len(files) or len(texts) == ROWS or held > PIECE:
                own = {name: values[row - len(texts) : row] for name, values in facts.items()}
                yield pa.RecordBatch.from_pydict({**own, "text": texts}, schema)
                texts, held = [], 0

    return schema, batches()


def _whole(path: Path) -> str:
    check_encoding(path)
    with opened(path) as file:
        return file.read().decode("utf-8-sig")


def _rows(path: Path) -> Pieces:
    """A line a row, or a paragraph a row; `id` is the number of a row's first line.

    Rows are paragraphs where blank lines part blocks of which one has several lines at least, and no block has more
    than PARAGRAPH lines: a stray blank line in a list of sentences does not make it two paragraphs.
    """
    check_encoding(path)
    blocks = most = last = 0
    for lines in (lines for full, lines in _runs(path) if full):
        size = 0
        for _, line in lines:
            size, last = size + 1, len(line)
        blocks, most = blocks + 1, max(most, size)
    if not blocks:
        raise UserError(f"{path}: the file holds no text")
    if (blocks, most) == (1, 1) and last > LONG:
        words = f"{path}: all of it is one line of {last:,} characters, and so a single text; wanted one text a line"
        warnings.warn(
            f"{words}, or texts with blank lines between: break the line where texts end", Warned, stacklevel=5
        )
    paragraphs = blocks > 1 and 1 < most <= PARAGRAPH
    schema = pa.schema([("id", pa.string()), ("text", pa.large_string())])

    def rows() -> Iterator[tuple[int, str]]:
        for full, lines in _runs(path):
            if full and paragraphs:
                block = list(lines)
                yield block[0][0], "\n".join(line for _, line in block)
            elif full:
                yield from lines

    return schema, _batches(rows, schema)


def _batches(rows: Callable[[], Iterator[tuple[int, str]]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    ids: list[str] = []
    texts: list[str] = []
    held = 0
    for number, text in rows():
        ids.append(str(number))
        texts.append(text)
        held += len(text)
        if len(ids) == ROWS or held > PIECE:
            yield pa.RecordBatch.from_pydict({"id": ids, "text": texts}, schema)
            ids, texts, held = [], [], 0
    if ids:
        yield pa.RecordBatch.from_pydict({"id": ids, "text": texts}, schema)


def _runs(path: Path) -> Iterator[tuple[bool, Iterator[tuple[int, str]]]]:
    """Runs of lines with text, and of blank ones: (whether there is text, the lines with their numbers)."""
    return groupby(_lines(path), lambda line: bool(line[1].strip()))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    number = 1
    try:
        with opened(path) as file:
            while piece := file.readlines(PIECE):
                lines = b"".join(piece).decode("utf-8-sig" if number == 1 else "utf-8").splitlines()
                yield from enumerate(lines, number)
                number += len(lines)
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
