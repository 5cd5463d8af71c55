"""Series in a long table: a row a time step, with the id of its series, its time, and columns of values."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset

from modicum.core.errors import UserError, Warned
from modicum.modalities._files import CSV, JSON, ONE_BY_ONE, peek, table_kind, thrifty
from modicum.modalities._seriesraw import RawSeries
from modicum.modalities._tablecolumns import as_timestamps, is_number, is_text, is_time, numbers
from modicum.modalities._tableread import bad_rows, place_of

IDS = ("id", "series", "series_id", "seriesid", "unique_id", "sample_id")
TIMES = ("time", "t", "timestamp", "step", "datetime", "time_step", "timestep")
LABELS = ("label", "class", "target")
FACTS = (*LABELS, "split", "group", "fold")
"""Columns that are never values of a series."""
MANY = 20_000
"""Rows whose ids are read to see whether any is used twice."""
GAPS = ("", "?", "NaN", "nan", "NA", "null")
"""What is written where a value is missing."""
LEAST, SLIPS = 8, 100
"""A column of LEAST texts or more is one of numbers with slips where one of SLIPS, or one at all, is none at most."""
CLOCK = 2
"""Rows are put on a regular clock where that gives at most so many steps a row."""


class Names(NamedTuple):
    """The columns of series ids, of times, and those that may hold values."""

    id: str
    time: str
    values: tuple[str, ...]


def _find(schema: pa.Schema) -> Names | None:
    """The columns by their names and types; None where the table is no long one."""
    lower = {name.lower(): name for name in schema.names}
    own = next((lower[n] for n in IDS if n in lower), None)
    time = next((lower[n] for n in TIMES if n in lower), None)
    if own is None or time is None or len(set(schema.names)) < len(schema.names):
        return None
    values = [f.name for f in schema if f.name not in (own, time) and f.name.lower() not in FACTS]
    return Names(own, time, tuple(v for v in values if _may(schema.field(v).type)))


def _may(kind: pa.DataType) -> bool:
    return is_number(kind) or is_text(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)


def is_long(table: pa.Table, more: pa.Table | None = None) -> bool:
    """Whether the first rows of a table are those of a long one: ids come again, and beside them are numbers only.

    `more` has the ids and texts of more rows.

    A text may say something of a series, and is then the same in all of its rows, or be a slip among numbers, which
    is told of when the series are packed: a table with other texts is no table of series.
    """
    names = _find(table.schema)
    if names is None:
        return False
    rows = table if more is None else more
    ids = rows.column(names.id)
    if len(pc.unique(ids)) > len(ids) / 2:
        return False
    varying = [n for n in _texts(table, names) if _varies(rows.column(n), _codes(ids))]
    some = any(is_number(table.schema.field(n).type) for n in names.values)
    return (some or bool(varying)) and all(_slips(rows.column(n)) for n in varying)


def _texts(table: pa.Table, names: Names) -> list[str]:
    return [n for n in names.values if is_text(table.schema.field(n).type)]


def _slips(column: pa.ChunkedArray) -> bool:
    """Whether a column of texts is one of numbers, but for a few cells."""
    wrong, known = _odd(column)
    return known >= LEAST and len(wrong) <= max(1, known // SLIPS)


def claims(path: Path) -> bool:
    """Tables whose first rows are those of a long one, or have other ids each, which come again later."""
    try:
        head = peek(path)
        names = _find(head.schema)
        if names is None:
            return False
        texts = _texts(head, names)
        apart = len(pc.unique(head.column(names.id))) > len(head) / 2  # time by time, not series by series
        return is_long(head, _rows(path, [names.id, *texts]) if len(head) >= 100 and (apart or texts) else None)
    except UserError:
        return False


def _rows(path: Path, names: Sequence[str]) -> pa.Table:
    """Columns of the first rows of a table's file; those of a CSV as text."""
    kind = table_kind(path)
    read: Any = "json" if kind in JSON else thrifty()
    if kind in CSV:
        read = pyarrow.dataset.CsvFileFormat(
            pyarrow.csv.ParseOptions(
                delimiter=CSV[kind], newlines_in_values=True, invalid_row_handler=lambda _: "skip"
            ),
            convert_options=pyarrow.csv.ConvertOptions(column_types={name: pa.string() for name in names}),
        )
    try:
        return pyarrow.dataset.dataset(path, format=read).scanner(columns=[*names], **ONE_BY_ONE).head(MANY)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as a table: {error}") from None


def read_long(table: pa.Table, where: str) -> RawSeries:
    """The series of a long table, in the order in which they begin, each sorted by time.

    Where all times are those of a regular clock, times that are left out are missing values; else rows are steps.
    Columns that are the same in all rows of every series are facts about it. Rows without an id or a time are `lost`;
    a time that is there twice, a text among numbers and a label that changes are faults of their series.
    """
    names = _find(table.schema)
    if names is None:
        have = ", ".join(table.column_names)
        raise UserError(
            f"{where}: a long table of series has a column of ids ({', '.join(IDS[:3])}), one of times "
            f"({', '.join(TIMES[:4])}) and columns of numbers; its columns are {have}"
        )
    if not table.num_rows:
        raise UserError(f"{where}: the table has no rows")
    given, table = table, table.combine_chunks()
    codes, (time, stamp) = _codes(table.column(names.id)), _times(table.column(names.time), where)
    lost = [(place, why) for _, place, why in bad_rows(given)]
    lost += [(place_of(given, row), f"its {names.id} is empty") for row in np.flatnonzero(codes < 0).tolist()]
    lost += [
        (place_of(given, row), f"its {names.time} is empty or no time")
        for row in np.flatnonzero((codes >= 0) & np.isnan(time)).tolist()
    ]  # fmt: skip
    kept = np.flatnonzero((codes >= 0) & ~np.isnan(time))
    if not len(kept):
        raise UserError(f"{where}: no row has both a {names.id} and a {names.time}")
    table, time = table.take(pa.array(kept)), time[kept]
    codes = _codes(table.column(names.id))
    facts, faults = _facts(table, names, codes)
    order = np.lexsort((time, codes))
    _tell_unsorted(codes, time, facts, where)
    values, channels = _values(table, names, codes, where, lambda row: place_of(given, int(kept[row])), faults)
    codes, time = codes[order], time[order]
    for row in np.flatnonzero((np.diff(codes) == 0) & (np.diff(time) == 0)).tolist():
        told, again = table.column(names.time)[int(order[row])], place_of(given, int(kept[order[row + 1]]))
        faults.setdefault(int(codes[row]), f"{names.time} {told} is there twice, again in {again}")
    made = _assembled(values[order], codes, time, facts, channels, faults, tuple(lost))
    return replace(made, stamp=stamp)


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """The number (n,) of each id in the order of their first rows; -1 where it is empty."""
    if is_text(column.type):
        column = pc.if_else(pc.equal(pc.utf8_trim_whitespace(column), ""), pa.scalar(None, column.type), column)
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    known = pc.unique(column.drop_null())
    return pc.fill_null(pc.index_in(column, value_set=known), -1).to_numpy().astype(np.int64)


def _times(column: pa.ChunkedArray, where: str) -> tuple[np.ndarray, pa.DataType | None]:
    """Times as numbers (n,), NaN where empty or no time, and their type if they are dates; UserError where none is."""
    kind, stamps = column.type, as_timestamps(column) if is_text(column.type) else None
    if stamps is not None:
        time, kind = numbers(stamps), stamps.type
    elif is_time(kind) or is_number(kind) or is_text(kind):
        time = numbers(column)
    else:
        raise UserError(f"{where}: times are numbers, dates or ISO 8601 texts; the column holds {kind}")
    dates = pa.types.is_timestamp(kind) or pa.types.is_date(kind)
    stamp = pa.timestamp("us", getattr(kind, "tz", None)) if dates else None
    return np.where(np.isfinite(time), time, np.nan), stamp


def _varies(column: pa.ChunkedArray, codes: np.ndarray) -> bool:
    return bool(len(_changing(column, codes)))


def _changing(column: pa.ChunkedArray, codes: np.ndarray) -> np.ndarray:
    """The series in which a column has two different values; empty cells have none."""
    cells = _codes(column)
    real = np.flatnonzero((cells >= 0) & (codes >= 0))
    own, first = np.unique(codes[real], return_index=True)
    start = np.full(codes.max(initial=-1) + 1, -1)
    start[own] = cells[real[first]]
    return np.unique(codes[real][cells[real] != start[codes[real]]])


def _facts(table: pa.Table, names: Names, codes: np.ndarray) -> tuple[pa.Table, dict[int, str]]:
    """A row of facts a series, and the series whose label changes."""
    count, faults = int(codes.max()) + 1, dict[int, str]()
    first = np.unique(codes, return_index=True)[1]
    columns = {"id": pc.cast(table.column(names.id).take(pa.array(first)), pa.string())}
    for name in table.column_names:
        if name in (names.id, names.time, "id"):
            continue
        column = table.column(name)
        changing = _changing(column, codes)
        if len(changing) and name.lower() not in FACTS:
            continue
        faults |= {int(row): f"its {name} is not the same in all of its rows" for row in changing}
        cells = np.flatnonzero(_codes(column) >= 0)
        own, place = np.unique(codes[cells], return_index=True)
        where = np.full(count, -1)
        where[own] = cells[place]
        columns[name] = column.take(pa.array(np.where(where < 0, 0, where), mask=where < 0))
    return pa.table(columns), faults


def _tell_unsorted(codes: np.ndarray, time: np.ndarray, facts: pa.Table, where: str) -> None:
    order = np.argsort(codes, kind="stable")
    own, t = codes[order], time[order]
    back = np.unique(own[1:][(np.diff(own) == 0) & (np.diff(t) < 0)])
    if len(back):
        some = ", ".join(str(facts.column("id")[int(row)]) for row in back[:5]) + (", ..." if len(back) > 5 else "")
        words = (
            f"{where}: {len(back):,} of {len(facts):,} series are not in the order of time ({some}): they are sorted"
        )
        warnings.warn(words, Warned, stacklevel=4)


def _values(
    table: pa.Table, names: Names, codes: np.ndarray, where: str, place: Callable[[int], str], faults: dict[int, str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The columns of values as float64 (rows, channels), and their names; texts among numbers go to `faults`.

    `place` says where a row is.
    """
    found: dict[str, np.ndarray] = {}
    for name in names.values:
        column = table.column(name)
        if pa.types.is_null(column.type):
            found[name] = np.full(len(codes), np.nan)
            continue
        x = numbers(column)
        if is_text(column.type):
            if not _varies(column, codes):
                continue
            wrong, known = _odd(column)
            if 2 * len(wrong) > known:
                words = f"{where}: column '{name}' holds text that changes within series and is left out"
                warnings.warn(words, Warned, stacklevel=4)
                continue
            for row in wrong[::-1].tolist():
                cell = str(column[row]).strip()[:40]
                faults[int(codes[row])] = f"{place(row)}: column '{name}' holds '{cell}', which is no number"
        found[name] = x
    if not found:
        raise UserError(f"{where}: no column of numbers is left besides {names.id} and {names.time}")
    return np.stack([*found.values()], 1), tuple(found)


def _odd(column: pa.ChunkedArray) -> tuple[np.ndarray, int]:
    """The rows in which a column of texts holds what is no number, and how many hold anything."""
    text = pc.fill_null(pc.utf8_trim_whitespace(column), "")
    gap = pc.is_in(text, value_set=pa.array(GAPS, text.type)).to_numpy()
    return np.flatnonzero(np.isnan(numbers(column)) & ~gap), int((~gap).sum())


def _assembled(
    values: np.ndarray,
    codes: np.ndarray,
    time: np.ndarray,
    facts: pa.Table,
    channels: tuple[str, ...],
    faults: dict[int, str],
    lost: Sequence[tuple[str, str]],
) -> RawSeries:
    """Sorted rows as series, on a regular clock where all times are those of one."""
    steps = np.bincount(codes, minlength=len(facts))
    starts = np.cumsum(steps) - steps
    clock = _clock(time, codes, starts)
    if clock is not None:
        place, gap = clock
        begin, steps = time[starts], np.zeros(len(facts), np.int64)
        np.maximum.at(steps, codes, place + 1)
        starts = np.cumsum(steps) - steps
        full = np.full((int(steps.sum()), values.shape[1]), np.nan)
        full[starts[codes] + place] = values
        values = full
        time = np.repeat(begin, steps) + gap * (np.arange(len(full)) - np.repeat(starts, steps))
    return RawSeries(values, facts, starts, steps, channels, faults, tuple(lost), times=time)


def _clock(time: np.ndarray, codes: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, float] | None:
    """The step (n,) of every row on the clock of the usual time between two, and that; None where there is none."""
    gaps = np.diff(time)[np.diff(codes) == 0]
    if not (gaps > 0).any() or (gaps == gaps.max()).all():
        return None
    gap = float(np.median(gaps[gaps > 0]))
    exact = (time - time[starts][codes]) / gap
    place = np.rint(exact)
    if (np.abs(exact - place) > 1e-3).any():
        return None
    ends = np.append(starts[1:], len(codes)) - 1
    return (place.astype(np.int64), gap) if (place[ends] + 1).sum() <= CLOCK * len(codes) else None
