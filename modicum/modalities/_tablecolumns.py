"""What a column of a table is: numbers, a date, a category, or nothing to learn from; and its cells as such."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import ndtri

from modicum.core.errors import UserError, Warned, unknown

KINDS = ("numeric", "quantile", "zscore", "categorical", "date", "drop")
"""What --columns may say of a column; quantile and zscore are numeric ones with that scaling."""
PIECE = 1 << 20
"""Rows of a column that are in memory at a time."""
FEW, COMMON, MOST = 100, 5, 1000
"""Categories up to FEW are all kept; beyond, those with COMMON rows or more are, at most MOST of them."""
KNOTS = 33

Numeric = tuple[str, float, float]
Knots = tuple[tuple[float, float], ...]


class Found(NamedTuple):
    """The columns of a table that are input: see `Tables`."""

    numeric: tuple[Numeric, ...]
    categorical: tuple[tuple[str, tuple[str, ...]], ...]
    dates: tuple[str, ...]
    knots: tuple[Knots, ...]


def asked_kinds(given: str | Mapping[str, str] | None, names: Sequence[str]) -> dict[str, str]:
    """What the user says of columns, as `age:numeric,zip:categorical` or a dict; UserError on unknown ones."""
    if not given:
        return {}
    if isinstance(given, str):
        pairs = [item.rpartition(":") for item in given.split(",")]
        if bad := next((item for item, (name, _, _) in zip(given.split(","), pairs, strict=True) if not name), None):
            raise UserError(f"--columns '{bad}': wanted NAME:KIND, with KIND one of {', '.join(KINDS)}")
        given = {name.strip(): kind.strip() for name, _, kind in pairs}
    for name, kind in given.items():
        if name not in names:
            raise unknown("column in --columns", name, names)
        if kind not in KINDS:
            raise unknown(f"kind of column '{name}' in --columns", kind, KINDS)
    return dict(given)


def find(table: pa.Table, index: np.ndarray, exclude: Sequence[str], asked: Mapping[str, str], scaling: str) -> Found:
    """The input columns of a table as rows `index` show them; those with nothing to learn from are left out aloud."""
    numeric, categorical, dates, knots = [], [], [], []
    for name in (n for n in table.column_names if n not in exclude and asked.get(n) != "drop"):
        column = table.column(name)
        kind = asked.get(name) or kind_of(column)
        if kind == "categorical":
            if (values := _categories(name, column, index, name in asked)) is not None:
                categorical.append((name, values))
            continue
        found = _statistics(name, column, index, kind == "date", name in asked)
        if found is None:
            continue
        numeric.append(found)
        quantiles = kind == "quantile" or (kind in ("numeric", "date") and scaling == "quantile")
        knots.append(_knots(found, column, index, kind == "date") if quantiles else ())
        if kind == "date":
            dates.append(name)
    return Found(tuple(numeric), tuple(categorical), tuple(dates), tuple(knots) if any(knots) else ())


def kind_of(column: pa.ChunkedArray) -> str:
    """numeric, date or categorical, by the type of the column, or where it is text, by whether all of it is dates."""
    kind = column.type
    if is_number(kind) or pa.types.is_null(kind):
        return "numeric"
    if is_time(kind):
        return "date"
    return "date" if is_text(kind) and _all_dates(column) else "categorical"


def is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def is_time(kind: pa.DataType) -> bool:
    return pa.types.is_temporal(kind) and not pa.types.is_interval(kind)


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _all_dates(column: pa.ChunkedArray) -> bool:
    """Whether every text is an ISO 8601 date, and one is there; text that is none is mostly found out at once."""
    some = column.slice(0, 100).drop_null()
    if len(some) and as_timestamps(some) is None:
        return False
    pieces = (as_timestamps(column.slice(i, PIECE)) for i in range(0, len(column), PIECE))
    return column.null_count < len(column) and all(p is not None for p in pieces)


def as_timestamps(text: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """ISO 8601 texts as timestamps, those with a zone in UTC; None where one of them is none."""
    for kind in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            return pc.cast(text, kind)
        except pa.ArrowException:
            continue
    return None


def pieces(column: pa.ChunkedArray, index: np.ndarray) -> Iterator[pa.ChunkedArray]:
    """Rows `index` of a column, PIECE at a time."""
    every = len(index) == len(column) and bool((np.diff(index) == 1).all())
    for start in range(0, len(index), PIECE):
        yield column.slice(start, PIECE) if every else column.take(pa.array(index[start : start + PIECE]))


def numbers(column: pa.ChunkedArray, date: bool = False) -> np.ndarray:
    """The column as float64 (n,), NaN where missing; times in seconds (since 1970), text where it is a number."""
    kind = column.type
    if date and is_text(kind):
        stamps = as_timestamps(column)
        if stamps is None:
            raise UserError("holds text that is no ISO 8601 date such as 2026-01-31")
        column, kind = stamps, stamps.type
    if is_time(kind):
        unit, whole = _seconds(kind)
        found = pc.cast(pc.cast(column, whole), pa.float64(), safe=False)
        return np.asarray(found.to_numpy(), np.float64) * unit
    if is_text(kind):
        return _parsed(column)
    return np.asarray(pc.cast(column, pa.float64(), safe=False).to_numpy(), np.float64)


def _seconds(kind: pa.DataType) -> tuple[float, pa.DataType]:
    """Seconds that one unit of a type of times is, and the whole numbers that hold it."""
    if pa.types.is_date32(kind):
        return 86400.0, pa.int32()
    if pa.types.is_date64(kind):
        return 1e-3, pa.int64()
    return {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}[kind.unit], pa.int32() if kind.bit_width == 32 else pa.int64()


def _parsed(text: pa.ChunkedArray) -> np.ndarray:
    """Texts as numbers, NaN where they are none."""
    text = pc.utf8_trim_whitespace(pc.cast(text, pa.large_string()))
    number = pc.match_substring_regex(text, r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$")
    clean = pc.if_else(pc.fill_null(number, False), text, pa.scalar(None, pa.large_string()))
    return np.asarray(pc.cast(clean, pa.float64()).to_numpy(), np.float64)


def strings(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column as text, null where missing or empty."""
    try:
        text = pc.cast(column, pa.string())
    except pa.ArrowException:
        raise UserError(
            f"a column of type {column.type} cannot be a category; use text, whole numbers or true/false"
        ) from None
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def _left_out(name: str, why: str) -> None:
    words = f"column '{name}' {why} in the training rows and is left out (--columns {name}:KIND keeps it)"
    warnings.warn(words, Warned, stacklevel=6)


def _categories(name: str, column: pa.ChunkedArray, index: np.ndarray, asked: bool) -> tuple[str, ...] | None:
    """The categories of a column that get a token of their own, sorted; None where it is left out."""
    counts: Counter[str] = Counter()
    for piece in pieces(column, index):
        for entry in pc.value_counts(strings(piece).combine_chunks()).to_pylist():
            counts[entry["values"]] += entry["counts"]
    missing = counts.pop(None, 0)  # type: ignore[call-overload]
    if not asked and len(counts) < 2 and (not counts or not missing):
        _left_out(name, f"is '{next(iter(counts))}'" if counts else "is empty")
        return None
    if not asked and len(counts) > max(20, len(index) // 2):
        _left_out(name, f"has {len(counts):,} different texts in {len(index):,} rows (an id or free text?)")
        return None
    values = sorted(counts)
    if len(values) > FEW:
        values = sorted(v for v, count in counts.most_common(MOST) if count >= COMMON)
        if len(values) < len(counts):
            words = f"column '{name}': {len(counts) - len(values):,} of {len(counts):,} categories are rare"
            warnings.warn(f"{words} and share the token of unseen ones", Warned, stacklevel=5)
    return tuple(values)


def _statistics(name: str, column: pa.ChunkedArray, index: np.ndarray, date: bool, asked: bool) -> Numeric | None:
    """Name, mean and standard deviation of the known finite cells; None where the column is left out."""
    known = total = infinite = 0.0
    for x in _present(name, column, index, date):
        finite = x[np.isfinite(x)]
        known, total, infinite = known + len(finite), total + float(finite.sum()), infinite + len(x) - len(finite)
    mean = total / known if known else 0.0
    square = sum(float(np.square(x[np.isfinite(x)] - mean).sum()) for x in _present(name, column, index, date))
    std = (square / known) ** 0.5 if known else 0.0
    if std > 1e-12 * max(1.0, abs(mean)):
        return name, mean, std
    if not asked and not infinite and known in (0, len(index)):
        _left_out(name, f"is {mean:g} everywhere" if known else "is empty")
        return None
    return name, mean, 1.0


def _present(name: str, column: pa.ChunkedArray, index: np.ndarray, date: bool) -> Iterator[np.ndarray]:
    for piece in pieces(column, index):
        try:
            x = numbers(piece, date)
        except UserError as error:
            raise UserError(f"column '{name}' {error}") from None
        except pa.ArrowException:
            raise UserError(f"column '{name}' holds {column.type}, which is no number: --columns {name}:drop") from None
        yield x[~np.isnan(x)]


def _knots(found: Numeric, column: pa.ChunkedArray, index: np.ndarray, date: bool) -> Knots:
    """Points (standardised number, normal score) of the column's quantiles; none where there are fewer than two."""
    name, mean, std = found
    x = np.concatenate([*_present(name, column, index[:: max(1, len(index) // 200_000)], date)])
    x = x[np.isfinite(x)]
    if not len(x):
        return ()
    share = (np.arange(KNOTS) + 0.5) / KNOTS
    at = (np.quantile(x, share) - mean) / std  # exact: where one cell is huge, all others are close together
    where, back, count = np.unique(at, return_inverse=True, return_counts=True)
    score = np.bincount(back, ndtri(share)) / count
    return tuple(zip(where.tolist(), score.round(6).tolist(), strict=True)) if len(where) > 1 else ()


def in_words(numeric: Sequence[Numeric], categorical: Sequence[tuple[str, Any]], dates: Sequence[str]) -> str:
    """The columns as one sentence: `age numeric, city categorical (12), joined date`."""
    kinds = [f"{name} {'date' if name in dates else 'numeric'}" for name, *_ in numeric]
    kinds += [f"{name} categorical ({len(values)})" for name, values in categorical]
    more = f", and {len(kinds) - 30} more" if len(kinds) > 30 else ""
    return ", ".join(kinds[:30]) + more
