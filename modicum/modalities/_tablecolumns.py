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
LARGEST = 1e150
"""Numbers beyond have no square; they are treated as infinite ones are."""
NUMBER_IN_WORDS = r"^[+-]?[$€£¥]? ?([0-9]{1,3}([ ,.'\x{00a0}\x{202f}][0-9]{3})+|[0-9]+)([.,][0-9]+)? ?[%$€£¥]?$"
"""Numbers with thousands separators, a decimal comma, a currency or a percentage."""
DATE = (
    r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
    r"([ T][0-2][0-9](:[0-5][0-9](:[0-5][0-9](\.[0-9]+)?)?)?(Z|[+-][0-9]{2}(:?[0-9]{2})?)?)?$"
)
OTHER_DATE = r"^([0-9]{1,2}[./-][0-9]{1,2}[./-][0-9]{2,4}|[0-9]{4}[./][0-9]{1,2}[./][0-9]{1,2})([ T].*)?$"
SOME = 10_000
"""Rows that are looked at to say what texts look like, or whether a column says the same as the label."""
LEAST = 20
"""Rows that must agree for that."""

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
        if not name.strip():
            number = table.column_names.index(name) + 1
            words = f"column {number} has no name (an index that pandas wrote?) and is left out: name it to keep it"
            warnings.warn(words, Warned, stacklevel=4)
            continue
        if kind == "categorical":
            if name not in asked and is_text(column.type):
                _check_texts(name, column, index)
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
    names = [str(name) for name, *_ in (*numeric, *categorical)]
    for answer in exclude:
        if answer in table.column_names and answer not in ("id", "split"):
            _check_leaks(table, index, names, answer)
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
            fits = pc.fill_null(pc.match_substring_regex(column, DATE), False)
            stamps = as_timestamps(pc.if_else(fits, column, pa.scalar(None, kind)))
        if stamps is None:
            raise UserError("holds texts that are no days, or some with a time zone and some without")
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


def strings(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """The column as text, null where missing or empty."""
    try:
        text = pc.cast(column, pa.string())
    except pa.ArrowException:
        raise UserError(
            f"column '{name}' holds {column.type}, which cannot be a category: leave it out (--columns {name}:drop), "
            "or make it text, whole numbers or true/false"
        ) from None
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def _left_out(name: str, why: str) -> None:
    words = f"column '{name}' {why} in the training rows and is left out (--columns {name}:KIND keeps it)"
    warnings.warn(words, Warned, stacklevel=6)


def _check_texts(name: str, column: pa.ChunkedArray, index: np.ndarray) -> None:
    """Warn of a column of texts that most likely are numbers or dates, by some of its rows."""
    texts = pc.utf8_trim_whitespace(_some(column, index)).drop_null()
    texts = texts.filter(pc.not_equal(texts, ""))
    number, date = (pc.match_substring_regex(texts, pattern) for pattern in (NUMBER_IN_WORDS, DATE))
    signed = texts.filter(number).filter(pc.match_substring_regex(texts.filter(number), "[^0-9.+-]"))
    if len(signed) and pc.sum(number).as_py() >= 0.9 * len(texts):
        words = f"holds numbers with signs in them, such as '{signed[0]}', and is read as text: write 1234.5 instead"
    elif (count := pc.sum(date).as_py() or 0) >= max(1, len(texts) / 4):
        odd = texts.filter(pc.invert(date))
        others = f"others are not, such as '{str(odd[0])[:40]}'" if len(odd) else "some with a time zone, some without"
        words = f"is read as text, for {count:,} of {len(texts):,} cells looked at are ISO 8601 dates, {others}"
        words += f": write all as dates, or --columns {name}:date takes what is none as missing"
    elif len(texts) and pc.all(pc.match_substring_regex(texts, OTHER_DATE)).as_py():
        words = f"holds dates such as '{texts[0]}', which may mean two days, and is read as text: write 2026-01-31"
    else:
        return
    warnings.warn(f"column '{name}' {words}", Warned, stacklevel=5)


def _some(column: pa.ChunkedArray, index: np.ndarray) -> pa.ChunkedArray:
    return column.take(pa.array(index[:: max(1, len(index) // SOME)]))


def _check_leaks(table: pa.Table, index: np.ndarray, names: Sequence[str], answer: str) -> None:
    """Warn of columns that say the same as one that is no input, such as the label: one to one, or on a line."""
    known = _some(table.column(answer), index)
    rows = np.flatnonzero(pc.is_valid(known).to_numpy())
    if len(rows) < LEAST or (codes := _coded(known, rows)) is None:
        return
    for name in names:
        column = _some(table.column(name), index)
        if (own := _coded(column, rows)) is None:
            continue
        kinds = len(np.unique(codes))
        one_to_one = len(np.unique(own)) == kinds == len(np.unique(own * (codes.max() + 1) + codes))
        same = one_to_one and 1 < kinds <= len(rows) / 2
        if is_number(known.type) and is_number(column.type):
            x = np.stack([numbers(known)[rows], numbers(column)[rows]])
            x = x[:, (np.abs(x) <= LARGEST).all(0)]
            same |= x.shape[1] >= LEAST and (x.std(1) > 0).all() and abs(np.corrcoef(x)[0, 1]) > 1 - 1e-9
        if same:
            words = f"column '{name}' says the same as '{answer}' in {len(rows):,} rows looked at"
            what = f"if it is not known beforehand, leave it out (--columns {name}:drop)"
            warnings.warn(f"{words}, so the answer may be among the input: {what}", Warned, stacklevel=5)


def _coded(column: pa.ChunkedArray, rows: np.ndarray) -> np.ndarray | None:
    """The values of some rows as numbers from 1, 0 where missing; None where they cannot be compared."""
    try:
        codes = pc.dictionary_encode(column.combine_chunks())
    except pa.ArrowException:
        return None
    return 1 + np.asarray(pc.fill_null(codes.indices, -1).to_numpy(zero_copy_only=False), np.int64)[rows]


def _categories(name: str, column: pa.ChunkedArray, index: np.ndarray, asked: bool) -> tuple[str, ...] | None:
    """The categories of a column that get a token of their own, sorted; None where it is left out."""
    counts: Counter[str] = Counter()
    for piece in pieces(column, index):
        for entry in pc.value_counts(strings(piece, name).combine_chunks()).to_pylist():
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
        finite = x[np.abs(x) <= LARGEST]
        known, total, infinite = known + len(finite), total + float(finite.sum()), infinite + len(x) - len(finite)
    if date and not known and is_text(column.type) and pc.any(pc.not_equal(column, "")).as_py():
        raise UserError(f"column '{name}' holds text that is no ISO 8601 date such as 2026-01-31")
    mean = total / known if known else 0.0
    square = sum(float(np.square(x[np.abs(x) <= LARGEST] - mean).sum()) for x in _present(name, column, index, date))
    std = (square / known) ** 0.5 if known else 0.0
    if std > max(1e-12 * abs(mean), 1 / LARGEST):
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
    x = x[np.abs(x) <= LARGEST]
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
