"""CSV a piece at a time: the types of columns are those that all of their cells allow."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from modicum.core.errors import UserError, Warned

NULLS = pa.array(pyarrow.csv.ConvertOptions().null_values)
TRUE, FALSE = ["true", "True", "TRUE"], ["false", "False", "FALSE"]
TYPES: dict[str, pa.DataType] = {
    "int": pa.int64(),
    "bool": pa.bool_(),
    "date": pa.date32(),
    "time": pa.timestamp("us"),
    "zoned": pa.timestamp("us", "UTC"),
    "float": pa.float64(),
}
"""What a column may be, the narrowest first; text otherwise."""
NUMBERS = ("int", "float")
ENOUGH = 1000
"""So many numbers one after the other make a column of numbers, in which a text is a surprise."""


@dataclass(frozen=True)
class Csv:
    """A file with a header, how to open it, its delimiter, where to note ragged rows (None: refuse), bytes a piece."""

    path: Path
    open: Callable[[], IO[bytes]]
    delimiter: str
    ragged: list[str] | None
    piece: int

    def batches(self, types: dict[str, pa.DataType] | None, note: bool) -> Iterator[pa.RecordBatch]:
        """The rows as text, or as `types`; ragged rows are noted once."""
        wrong: list[str] = []
        lost: list[int] = []

        def ragged(row: pyarrow.csv.InvalidRow) -> str:
            words = f"row {row.number} has {row.actual_columns} columns, not {row.expected_columns}: {row.text[:80]!r}"
            wrong.append(words)
            if "\n" in row.text and row.text.count('"') % 2:
                lost.append(row.number)
                return "error"
            if note and self.ragged is not None:
                self.ragged.append(words)
            return "error" if self.ragged is None else "skip"

        names = self.names()
        # Of a single column an empty line is a missing cell, of several it is nothing.
        parse = pyarrow.csv.ParseOptions(
            delimiter=self.delimiter,
            newlines_in_values=True,
            ignore_empty_lines=len(names) > 1,
            invalid_row_handler=ragged,
        )
        # One thread, or pyarrow does not know the numbers of the ragged rows.
        read = pyarrow.csv.ReadOptions(use_threads=False, block_size=self.piece)
        convert: Any = pyarrow.csv.ConvertOptions(
            column_types={n: pa.string() for n in names} if types is None else types,
            strings_can_be_null=False,
            true_values=TRUE,
            false_values=FALSE,
        )
        try:
            with self.open() as file:
                yield from pyarrow.csv.open_csv(file, read, parse, convert)
        except (pa.ArrowInvalid, OSError, EOFError) as error:
            if lost:
                raise self._unclosed(lost[0]) from None
            quote = f" (the header is row 1); quote values that hold '{self.delimiter}'"
            what = f"{wrong[-1]}{quote}" if wrong and self.ragged is None else error
            if "straddling" in str(error):
                what = f"a row has more than {self.piece >> 20} MB: is a quote not closed?"
            raise UserError(f"{self.path}: {what}") from error

    def _unclosed(self, row: int) -> UserError:
        return UserError(f"{self.path}: row {row:,} opens a quote that is never closed, which hides all rows after it")

    def check_end(self, cell: Any, row: int) -> None:
        """Refuse a file whose last cell, in file row `row`, took in all rows after a quote that is never closed."""
        if "\n" not in (cell or ""):
            return
        end = b""
        with self.open() as file:
            while part := file.read(1 << 20):
                end = (end + part).rstrip()[-1:]
        if end != b'"':
            raise self._unclosed(row)

    def names(self) -> list[str]:
        """The columns, by the header."""
        read = pyarrow.csv.ReadOptions(use_threads=False, block_size=self.piece)
        parse = pyarrow.csv.ParseOptions(
            delimiter=self.delimiter, newlines_in_values=True, invalid_row_handler=lambda _: "skip"
        )
        try:
            with self.open() as file:
                return pyarrow.csv.open_csv(file, read, parse).schema.names
        except (pa.ArrowInvalid, OSError, EOFError) as error:
            what = "the file is empty" if "Empty CSV file" in str(error) else error
            raise UserError(f"{self.path}: {what}") from error


def typed(file: Csv) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The columns of a CSV with the types that all cells allow, and its rows as these; the file is read twice."""
    columns = [Column(name) for name in file.names()]
    if len(columns) == 1 and (sign := next((sign for sign in ";\t|" if sign in columns[0].name), None)):
        raise UserError(f"{file.path}: the columns seem to be separated by {sign!r}: save it with {file.delimiter!r}")
    row, last = 2, None
    for batch in file.batches(None, note=True):
        for column, cells in zip(columns, batch.columns, strict=True):
            column.see(cells, row)
        row += batch.num_rows
        last = batch.column(batch.num_columns - 1)[-1].as_py() if batch.num_rows else last
    file.check_end(last, row - 1)
    for column in columns:
        column.warn(file.path)
    schema = pa.schema([(c.name, c.type) for c in columns])
    types = {c.name: c.type for c in columns}
    return schema, (_blanks(batch) for batch in file.batches(types, note=False))


def _blanks(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Empty texts become null."""
    arrays = [
        pc.if_else(pc.equal(a, ""), pa.scalar(None, a.type), a) if pa.types.is_string(a.type) else a
        for a in batch.columns
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=batch.schema)


class Column:
    """What the cells of a column seen so far may be."""

    def __init__(self, name: str) -> None:
        self.name, self.may, self.seen = name, list(TYPES), False
        self.numbers = 0
        """Cells that were numbers before the first that is none (`odd`: its row and text)."""
        self.odd: tuple[int, str] | None = None
        self.rest = [0, 0]
        """How many of the cells from `odd` on are numbers, and how many there are."""
        self.codes = False
        """Whether a whole number begins with a zero or is longer than any: then they are codes, and stay text."""

    @property
    def type(self) -> pa.DataType:
        if not self.seen:
            return pa.null()
        return TYPES[self.may[0]] if self.may else pa.string()

    def see(self, cells: pa.Array, row: int) -> None:
        """Take note of more cells, the first of them in file row `row`."""
        null = pc.is_in(cells, value_set=NULLS)
        known = cells.filter(pc.invert(null))
        if len(known) == 0:
            return
        self.seen = True
        text = pc.utf8_trim_whitespace(known)
        was_number = self.odd is None and any(k in self.may for k in NUMBERS)
        if was_number and not self.codes:
            self.codes = _codes(text)
        may: list[str] = []
        for kind in self.may:
            # A date is a time, and a whole number is a number.
            wider = {"time": "date", "float": "int"}.get(kind) in may
            if not (self.codes and kind in NUMBERS) and (wider or _fits(text, kind)):
                may.append(kind)
        self.may = may
        if was_number and not self.codes:
            self._count(cells, null, text, row)
        elif self.odd is not None:
            number = pc.match_substring_regex(text, NUMBER)
            self.rest = [self.rest[0] + pc.sum(number).as_py(), self.rest[1] + len(text)]

    def _count(self, cells: pa.Array, null: pa.Array, text: pa.Array, row: int) -> None:
        """How many numbers came before a first text, and where it is."""
        if any(k in self.may for k in NUMBERS):
            self.numbers += len(text)
            return
        number = pc.match_substring_regex(text, NUMBER)
        first = pc.index(number, False).as_py()
        if first < 0:
            return
        self.numbers += first
        place = pc.indices_nonzero(pc.invert(null))[first].as_py()
        self.odd = (row + place, text[first].as_py())
        self.rest = [pc.sum(number).as_py() - first, len(text) - first]

    def warn(self, path: Path) -> None:
        """Tell of a column that is text by a few cells only, or from some row on."""
        if self.odd is None or not self.numbers + self.rest[0]:
            return
        share = (self.numbers + self.rest[0]) / (self.numbers + self.rest[1])
        if share >= 0.9 or self.numbers >= ENOUGH:
            row, text = self.odd
            warnings.warn(
                f"{path}: column '{self.name}' is read as text, because row {row:,} holds '{text[:40]}' after "
                f"{self.numbers:,} numbers (--columns {self.name}:numeric takes what is no number as missing, "
                f"{self.name}:categorical keeps it)",
                Warned,
                stacklevel=4,
            )


NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$|^[+-]?(inf|nan|Inf|NaN|INF|infinity|Infinity)$"


def _codes(text: pa.Array) -> bool:
    """Whether some of the texts are digits that a number would not keep: a leading zero, or too many for 64 bits."""
    zeros = text.filter(pc.starts_with(text, "0"))
    long = text.filter(pc.greater(pc.binary_length(text), 18))
    long = long.filter(pc.ascii_is_decimal(long))
    return bool(pc.any(pc.match_substring_regex(zeros, r"^0[0-9]+$")).as_py()) or not _fits(long, "int")


def _fits(text: pa.Array, kind: str) -> bool:
    """Whether all texts are of the kind."""
    if kind == "bool":
        return bool(pc.all(pc.is_in(text, value_set=pa.array(TRUE + FALSE))).as_py())
    if kind == "int" and pc.any(pc.starts_with(text, "0x")).as_py():  # hexadecimal to the cast, but no number here
        return False
    try:
        for part in (text.slice(0, 100), text):  # a cast that fails is slow, and mostly fails at once
            pc.cast(part, TYPES[kind])
    except pa.ArrowException:
        return False
    return True
