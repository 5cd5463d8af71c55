"""Finding series: in arrays, .ts files, long tables, or what a caller holds in memory."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from modicum.core.errors import UserError, Warned
from modicum.modalities import _seriesarrays, _serieslong
from modicum.modalities._files import TABLES, as_table, table_kind
from modicum.modalities._seriesraw import RawSeries
from modicum.modalities._seriests import is_ts, read_ts
from modicum.modalities._tableread import scan as scan_table

WANTED = (
    "an array (n, channels, time) or (n, time) as .npy, .npz or in memory, a .ts file of the UCR and UEA archives, a "
    f"long table with columns id, time and values ({', '.join(TABLES)}), or a list of arrays (channels, time)"
)
LOOK = 8
"""Items of a list that are looked at to tell series from images."""


def claims(path: Path) -> bool:
    """Whether a path holds series, and nothing that is rather images, texts or a plain table."""
    if path.is_dir():
        return bool(_ts_files(path))
    if path.suffix.lower() in (".npy", ".npz"):
        return _seriesarrays.claims(path)
    return is_ts(path) or (table_kind(path) in TABLES and _serieslong.claims(path))


def _ts_files(folder: Path) -> list[tuple[Path, str | None]]:
    """NAME_TRAIN.ts and NAME_TEST.ts of a folder with their splits; none where these are not all of its .ts files."""
    files = sorted(p for p in folder.iterdir() if is_ts(p))
    named = {m[1].lower(): p for p in files if (m := re.search(r"_(TRAIN|TEST)\.ts(\.gz)?$", p.name, re.IGNORECASE))}
    if len(files) != len(named) or "train" not in named:
        return []
    return [(named[split], split) for split in ("train", "test") if split in named]


def scan(path: Path) -> RawSeries:
    """The series at a path, with what is known of each as its `facts`."""
    if path.is_dir():
        return read_ts(_ts_files(path))
    if path.suffix.lower() in (".npy", ".npz"):
        return _seriesarrays.read_numpy(path)
    if table_kind(path) in TABLES:
        with warnings.catch_warnings():
            # A text among numbers is told of with its series, when these are packed.
            warnings.filterwarnings("ignore", ".* is read as text, because", Warned)
            table = scan_table(path, unique=False)
        return _serieslong.read_long(table, str(path))
    return read_ts([(path, None)])


def as_raw(x: Any) -> RawSeries:
    """Series from an array, a long table or DataFrame, or a list of arrays."""
    if isinstance(x, RawSeries):
        return x
    if hasattr(x, "columns") or (isinstance(x, list) and x and all(isinstance(i, dict) for i in x)):
        return _serieslong.read_long(as_table(x), f"the {type(x).__name__}")
    if isinstance(x, np.ndarray) and x.dtype != object:
        return _seriesarrays.from_array(_seriesarrays.checked(x, "the array"))
    if hasattr(x, "numpy"):
        return as_raw(np.asarray(x.detach().cpu() if hasattr(x, "detach") else x.numpy()))
    items = list(x) if isinstance(x, list | tuple | np.ndarray) else []
    if not items or any(isinstance(i, str) for i in items):
        found = f"a {type(x).__name__}" + (" of texts" if items else "")
        raise UserError(f"series are wanted as {WANTED}; got {found}")
    return _seriesarrays.from_list([np.asarray(i.detach().cpu()) if hasattr(i, "detach") else i for i in items])


def likely(x: Any) -> bool:
    """Whether rows in memory, which images or tables may be made of too, are rather series."""
    if isinstance(x, RawSeries):
        return True
    if hasattr(x, "columns"):
        try:
            return _serieslong.is_long(as_table(x.iloc[:100] if hasattr(x, "iloc") else x.slice(0, 100)))
        except (UserError, AttributeError, TypeError):
            return False
    if hasattr(x, "detach"):
        x = x.detach().cpu().numpy()
    if isinstance(x, np.ndarray) and x.dtype != object:
        return _seriesarrays.like_series(x)
    if not isinstance(x, list | tuple | np.ndarray) or not len(x):
        return False
    try:
        some = [np.asarray(item)[None] for item in list(x[:LOOK])]
    except (ValueError, TypeError):
        return False
    return all(_seriesarrays.like_series(item) for item in some)
