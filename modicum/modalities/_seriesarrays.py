"""Series that come as arrays: .npy and .npz files, arrays in memory, and lists of arrays of several lengths."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from modicum.core.errors import UserError
from modicum.modalities._seriesraw import RawSeries, joined

OWN_KEYS = ("series", "values")
"""What arrays of series are called in an .npz, and those of images are not."""
KEYS = (*OWN_KEYS, "x", "X", "data", "arr_0")
LABEL_KEYS = ("labels", "label", "y", "Y", "targets", "target", "arr_1")
SPLITS = ("train", "val", "test")
LOOK = 64
"""Rows that are looked at to tell series from images."""


def checked(array: np.ndarray, name: str) -> np.ndarray:
    """The array as (n, channels, time); UserError for other shapes, or values that are no numbers."""
    shape = array.shape
    if array.dtype.kind not in "buif":
        raise UserError(f"{name}: series must be numbers, not {array.dtype}")
    if len(shape) not in (2, 3):
        hint = "; one series needs a first axis of 1" if len(shape) == 1 else ""
        raise UserError(f"{name}: series must be (n, channels, time) or (n, time), not {shape}{hint}")
    if 0 in shape:
        raise UserError(f"{name}: the array of shape {shape} holds no series")
    return array[:, None] if len(shape) == 2 else array


def like_series(array: np.ndarray) -> bool:
    """Whether an array is rather of series than of grey images (n, h, w).

    It is where rows are lines, or at least 8 times as wide as high, or hold what no pixel is: NaN, or a value outside
    0..255.
    """
    if array.dtype.kind not in "buif" or array.ndim not in (2, 3) or 0 in array.shape:
        return False
    if array.ndim == 2 or array.shape[2] >= 8 * array.shape[1]:
        return True
    x = np.asarray(array[:LOOK], np.float64)
    return bool((~((x >= 0) & (x <= 255))).any())


def claims(path: Path) -> bool:
    """An .npy or .npz file of arrays that are like series, or are called so."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(found, np.ndarray):
            return like_series(found)
        with found:
            name = next((name for name, _, _ in _parts([*found.keys()])), None)
            return name is not None and (any(k in name for k in OWN_KEYS) or like_series(found[name]))
    except (ValueError, OSError, EOFError, zlib.error):
        return False


def _parts(keys: list[str]) -> list[tuple[str, str | None, str | None]]:
    """(name of values, name of labels, split) of every part that an .npz holds."""
    if (name := next((k for k in KEYS if k in keys), None)) is not None:
        return [(name, next((k for k in LABEL_KEYS if k in keys), None), None)]
    out: list[tuple[str, str | None, str | None]] = []
    for split in SPLITS:
        found = [
            next((n for k in some for n in (f"{split}_{k}", f"{k}_{split}") if n in keys), None)
            for some in (KEYS, LABEL_KEYS)
        ]
        if found[0] is not None:
            out.append((found[0], found[1], split))
    return out


def read_numpy(path: Path) -> RawSeries:
    """The series of an .npy (memory-mapped) or .npz file, which may hold labels, or parts such as X_train, y_train."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(found, np.ndarray):
            return from_array(checked(found, str(path)))
        with found:
            parts = _parts([*found.keys()])
            if not parts:
                names = f"{', '.join(KEYS)} or X_train, ...; it holds {', '.join(found.keys()) or 'nothing'}"
                raise UserError(f"{path}: no series under the names {names}")
            arrays = [checked(found[name], f"{path}, {name}") for name, _, _ in parts]
            labels = [None if name is None else found[name] for _, name, _ in parts]
    except UserError:
        raise
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read as numbers by numpy: {error}") from error
    if len({a.shape[1:] for a in arrays}) > 1:
        raise UserError(f"{path}: its parts hold series of different shapes: {', '.join(str(a.shape) for a in arrays)}")
    columns: dict[str, Any] = {}
    if any(own is not None for own in labels):
        columns["label"] = pa.concat_arrays(
            [_labels(own, len(a), path) for own, a in zip(labels, arrays, strict=True)]
        )  # fmt: skip
    if parts[0][2] is not None:
        columns["split"] = [split for (_, _, split), a in zip(parts, arrays, strict=True) for _ in range(len(a))]
    return from_array(arrays[0] if len(arrays) == 1 else np.concatenate(arrays), columns)


def _labels(given: np.ndarray | None, count: int, path: Path) -> pa.Array:
    if given is None:
        raise UserError(f"{path}: one of its parts has no labels, another has")
    if given.size != count or len(given) != count:
        raise UserError(f"{path}: {count} series but labels of shape {given.shape}; wanted one a series")
    values = given.reshape(-1)
    if values.dtype.kind not in "buifUS":
        raise UserError(f"{path}: labels must be numbers or text, not {values.dtype}")
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8")
    return pa.array(values.astype(np.int64) if values.dtype.kind in "ui" else values)


def from_array(array: np.ndarray, columns: dict[str, Any] | None = None) -> RawSeries:
    """Series of an array (n, channels, time), with columns of facts."""
    return RawSeries(array, pa.table({"id": np.arange(len(array)).astype(str), **(columns or {})}))


def from_list(items: list[Any]) -> RawSeries:
    """Series of a list of arrays (channels, time) or (time,), of several lengths; what reads as none is a fault."""
    parts: list[np.ndarray | None] = []
    faults = {}
    for row, item in enumerate(items):
        try:
            array = np.asarray(item)
        except ValueError:  # lists of several lengths
            array = np.empty(0, object)
        if array.dtype.kind not in "buif":
            faults[row] = "it holds something that is no number"
        elif array.ndim not in (1, 2):
            faults[row] = f"it has the shape {array.shape}; wanted (channels, time) or (time,)"
        parts.append(None if row in faults else np.atleast_2d(array).astype(np.float64))
    if len(faults) == len(items):
        raise UserError(
            f"none of {len(items)} items is a series (channels, time): {faults[0]}" if items else "no series"
        )
    return joined(parts, pa.table({"id": np.arange(len(items)).astype(str)}), faults)
