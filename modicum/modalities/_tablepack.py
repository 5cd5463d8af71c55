"""Packing a table's columns into rows of numbers and codes: in memory, or memory-mapped in the cache where large."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from modicum.core.atomic import atomic_path
from modicum.core.errors import UserError, Warned
from modicum.core.types import Batch, Packed, Progress
from modicum.modalities._files import cache_dir, row_hashes
from modicum.modalities._tablecolumns import LARGEST, is_number, is_text, is_time, numbers, strings
from modicum.modalities._tableread import bad_rows, key_of, place_of

FORMAT = 1  # of the cached files: raise it when their bytes would differ
IN_MEMORY = 64 << 20  # bytes: tables packed to less than this, and those that no file is behind, stay in memory
MISSING, UNSEEN = 0, 1
"""Codes of a category that is missing, or was not in the training rows (or rare there); known ones follow."""
PIECE = 1 << 16

Bad = list[tuple[int, str, str]]


class Cases:
    """Rows (n, 8·columns + 4·categories) of bytes as a Source of {"numeric" float64, "categorical" long}."""

    def __init__(self, data: np.ndarray, columns: int) -> None:
        self.data, self.split, self.size = data, 8 * columns, len(data)

    def rows(self, index: np.ndarray) -> Batch:
        own = np.asarray(self.data[index])
        numeric = own[:, : self.split].copy().view(np.float64)
        codes = own[:, self.split :].copy().view(np.int32)
        return {"numeric": torch.from_numpy(numeric), "categorical": torch.from_numpy(codes.astype(np.int64))}


class Plan:
    """How the columns of an input are read: `numeric` names (`dates` among them) and `categorical` (name, values)."""

    def __init__(self, numeric: Sequence[str], dates: Sequence[str], categorical: Sequence[tuple[str, Any]]) -> None:
        self.numeric, self.dates, self.categorical = [*numeric], {*dates}, [*categorical]
        self.values = [pa.array(values, pa.string()) for _, values in categorical]
        self.width = 8 * len(self.numeric) + 4 * len(self.categorical)

    def key(self, raw: pa.Table) -> str | None:
        """What the packed rows of a table that was read from files are called in the cache."""
        if (own := key_of(raw)) is None or raw.num_rows * self.width < IN_MEMORY:
            return None
        plan = json.dumps([FORMAT, own, self.numeric, sorted(self.dates), self.categorical])
        return hashlib.blake2b(plan.encode(), digest_size=16).hexdigest()

    def check(self, raw: pa.Table) -> None:
        """Refuse a table without one of the columns, or with one of another kind."""
        names = [*self.numeric, *(name for name, _ in self.categorical)]
        absent = [name for name in names if name not in raw.column_names]
        if absent:
            raise UserError(f"the table lacks the column(s) {', '.join(absent)}; it has {', '.join(raw.column_names)}")
        for name in self.numeric:
            kind, date = raw.column(name).type, name in self.dates
            if is_time(kind) or pa.types.is_null(kind) or (is_number(kind) and not date):
                continue
            what = "date" if date else "number"
            count, found, first = self._lost(raw.column(name), name, date) if is_text(kind) else (1, 0, "")
            if count and not found:
                raise UserError(f"column '{name}' was {'a date' if date else 'numeric'} in training; here it is {kind}")
            if count:
                words = f"column '{name}': {count:,} text(s) that are no {what}, such as '{first[:40]}', are missing"
                warnings.warn(words, Warned, stacklevel=4)

    @staticmethod
    def _lost(column: pa.ChunkedArray, name: str, date: bool) -> tuple[int, int, str]:
        """How many texts of a column are no number (or date), how many are, and the first that is none."""
        count, found, first = 0, 0, ""
        for start in range(0, len(column), PIECE):
            part = column.slice(start, PIECE)
            none = np.isnan(_numbers(part, name, date))
            odd = np.flatnonzero(none & pc.is_valid(strings(part, name)).to_numpy())
            first = first or (part[int(odd[0])].as_py() if len(odd) else "")
            count, found = count + len(odd), found + int((~none).sum())
        return count, found, first

    def read(self, part: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """Numbers (n, columns) float64 and codes (n, categories) int64 of a piece of the table."""
        x = np.empty((part.num_rows, len(self.numeric)))
        for j, name in enumerate(self.numeric):
            x[:, j] = _numbers(part.column(name), name, name in self.dates)
        codes = np.empty((part.num_rows, len(self.categorical)), np.int64)
        for j, (name, _) in enumerate(self.categorical):
            text = strings(part.column(name), name)
            code = pc.fill_null(pc.index_in(text, value_set=self.values[j]), -1).to_numpy()
            codes[:, j] = np.where(pc.is_null(text).to_numpy(), MISSING, np.where(code < 0, UNSEEN, code + 2))
        return x, codes


def _numbers(column: pa.ChunkedArray, name: str, date: bool) -> np.ndarray:
    try:
        return numbers(column, date)
    except UserError as error:
        raise UserError(f"column '{name}' {error}") from None


def pack(raw: pa.Table, plan: Plan, skip_bad: bool, progress: Progress | None) -> Packed:
    """The rows as `plan` reads them; rows with an infinite number, and ragged ones of the file, are bad."""
    plan.check(raw)
    key = plan.key(raw)
    target = None if key is None else cache_dir() / "tables" / f"{key}.npy"
    if target is not None and (found := _load(target, plan)) is not None:
        made = found
    elif target is None:
        data: list[np.ndarray] = []
        hashes, keep, bad = _make(raw, plan, data.append, None)
        rows = np.concatenate([np.empty((0, plan.width), np.uint8), *data])
        made = Packed(Cases(rows, len(plan.numeric)), keep, bad, hashes)
    else:
        _write(target, raw, plan, progress)
        again = _load(target, plan)
        assert again is not None, target
        made = again
    bad = [*bad_rows(raw), *((row, place_of(raw, row), why) for row, _, why in made.bad)]
    if bad and not skip_bad:
        shown = "\n  ".join(f"{place}: {why}" for _, place, why in bad[:10])
        more = f"\n  and {len(bad) - 10:,} more" if len(bad) > 10 else ""
        what = f"{len(bad):,} row(s) of {raw.num_rows + len(bad_rows(raw)):,} cannot be used"
        raise UserError(f"{what}:\n  {shown}{more}\nuse --skip-bad to go on without them")
    return made._replace(bad=bad)


def _make(
    raw: pa.Table, plan: Plan, write: Callable[[np.ndarray], Any], progress: Progress | None
) -> tuple[np.ndarray, np.ndarray, Bad]:
    """Give the good rows to `write`, a piece at a time; their hashes, their numbers in the table, and the bad ones."""
    hashes, keep, bad = [np.empty(0, np.uint64)], [np.empty(0, np.int64)], Bad()
    words = f"{raw.num_rows * plan.width / 1e6:,.0f} MB of numbers and codes"
    for start in range(0, raw.num_rows, PIECE):
        if progress:
            progress(start, raw.num_rows, words)
        x, codes = plan.read(raw.slice(start, PIECE))
        infinite = np.abs(x) > LARGEST
        good = ~infinite.any(1)
        for row in np.flatnonzero(~good).tolist():
            names = ", ".join(f"'{plan.numeric[j]}'" for j in np.flatnonzero(infinite[row]))
            what = "infinite" if np.isinf(x[row]).any() else f"beyond ±{LARGEST:g}"
            bad.append((start + row, "", f"column {names} is {what}: blank it"))
        x, codes = x[good], codes[good]
        hashes.append(row_hashes(np.concatenate([x.view(np.uint8), codes.view(np.uint8)], 1)))
        keep.append(start + np.flatnonzero(good))
        write(np.concatenate([x.view(np.uint8), codes.astype(np.int32).view(np.uint8)], 1))
    return np.concatenate(hashes), np.concatenate(keep), bad


def _write(target: Any, raw: pa.Table, plan: Plan, progress: Progress | None) -> None:
    """Pack to `target`, and what goes with it to an .npz beside."""

    def head(file: Any, count: int) -> None:
        shape = {"descr": "|u1", "fortran_order": False, "shape": (count, plan.width)}
        np.lib.format.write_array_header_1_0(file, shape)

    try:
        with atomic_path(target) as temporary:
            with temporary.open("wb") as file:  # written, not memory-mapped: a full disk is an error and no SIGBUS
                head(file, raw.num_rows)
                hashes, keep, bad = _make(raw, plan, lambda rows: file.write(rows.tobytes()), progress)
                file.seek(0)
                head(file, len(keep))
            with atomic_path(target.with_suffix(".npz")) as beside:
                np.savez(beside, keep=keep, hashes=hashes, bad=np.array(json.dumps(bad)))
    except OSError as error:
        need = raw.num_rows * plan.width / 1e9
        raise UserError(
            f"cannot write {need:,.1f} GB to {target.parent}: {error}; free some space or set MODICUM_CACHE"
        ) from error


def _load(target: Any, plan: Plan) -> Packed | None:
    try:
        data = np.load(target, mmap_mode="r", allow_pickle=False)
        with np.load(target.with_suffix(".npz"), allow_pickle=False) as beside:
            keep, hashes, bad = beside["keep"], beside["hashes"], json.loads(str(beside["bad"]))
    except (OSError, ValueError, KeyError, EOFError):
        return None
    if not len(data) == len(keep) == len(hashes):
        return None
    return Packed(Cases(data, len(plan.numeric)), keep, [(row, place, why) for row, place, why in bad], hashes)
