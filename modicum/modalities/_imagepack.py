"""Packing images of any kind into one memory-mapped uint8 array, decoded once and kept in the cache."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import warnings
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from modicum.core.atomic import atomic_path
from modicum.core.errors import UserError, Warned
from modicum.modalities._files import cache_dir, row_hashes
from modicum.modalities._imagearrays import factor, span
from modicum.modalities._imagedecode import decode, header, reason
from modicum.modalities._imagefiles import RawImages

FORMAT = 1  # of the cached files: raise it when their bytes would differ
IN_MEMORY = 256 << 20  # bytes: arrays packed to less than this never touch the disk
CHUNK = (
    1 << 22
)  # bytes a task: enough for the threads not to wait for each other, little enough for the processor's cache
GREY = ("L", "1", "LA", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
SIDE_ROOM = 1.15  # packed short side over size: crops have room

Bad = list[tuple[int, str, str]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Packed:
    """Packed `images` (n, s, s, c) uint8, read-only; `keep` (n,): their rows in the raw data.

    `bad`: (row, path, reason) of images left out; `hashes` (n,) uint64: equal for equal images of one packing size.
    """

    images: np.ndarray
    keep: np.ndarray
    bad: Bad
    hashes: np.ndarray


class Chunk(NamedTuple):
    images: np.ndarray
    keep: np.ndarray
    bad: Bad
    hashes: np.ndarray
    done: int


def survey(raw: RawImages) -> tuple[int, int]:
    """The (size, channels) that fit the data.

    Size: the median short side, at most 224; channels: 1 if all are grey, else 3.
    Reads up to 1,000 headers only. UserError when none of them can be opened.
    """
    if raw.array is not None:
        height, width, *channels = raw.array.shape[1:]
        return min(height, width, 224), 1 if not channels or channels[0] <= 2 else 3
    rows = np.unique(np.linspace(0, len(raw) - 1, min(len(raw), 1000)).astype(int))
    heads = [h for row in rows if (h := _header(raw, row))]
    if not heads:
        problem = _decoded(raw, [int(rows[0])], 8, 3, None).bad[0][2]
        raise UserError(f"none of {len(rows)} images can be opened; the first, {raw.name(int(rows[0]))}: {problem}")
    size = int(np.median([min(h[:2]) for h in heads]))
    return min(size, 224), 1 if all(h[2] in GREY for h in heads) else 3


def _header(raw: RawImages, row: int) -> tuple[int, int, str] | None:
    if raw.paths is not None:
        return header(raw.paths[row])
    image = (raw.images or ())[row]
    return (*image.size, image.mode)


def _side(raw: RawImages, size: int) -> int:
    if raw.array is not None:
        exact = raw.array.shape[1:3] == (size, size)
    else:
        heads = (_header(raw, row) for row in range(len(raw)))
        exact = all(h[:2] == (size, size) for h in heads if h)
    return size if exact else round(SIDE_ROOM * size)


def _in_place(raw: RawImages, side: int, channels: int) -> np.ndarray | None:
    """The array itself, when it is already what packing would make."""
    array = raw.array
    if array is None or array.dtype != np.uint8 or not array.flags.c_contiguous:
        return None
    if raw.rows is not None:
        first, last = raw.rows[0], raw.rows[-1]
        if last - first + 1 != len(raw.rows) or (np.diff(raw.rows) != 1).any():
            return None
        array = array[first : last + 1]
    array = array if array.ndim == 4 else array[..., None]
    return array if array.shape[1:] == (side, side, channels) else None


def bytes_needed(raw: RawImages, size: int, channels: int) -> int:
    """Bytes that packing writes when nothing is cached: 0 for an array used in place."""
    side = _side(raw, size)
    return 0 if _in_place(raw, side, channels) is not None else len(raw) * side * side * channels


def pack(
    raw: RawImages, *, size: int, channels: int, skip_bad: bool = False, progress: Progress | None = None
) -> Packed:
    """Decode images to uint8 (n, s, s, channels) once: short side to s, centre cropped.

    s is `size` when every image is size x size already, else 1.15 times that.
    Arrays that need no change are used in place; small results from arrays stay in memory; everything else is written
    to the cache, keyed by content, and memory-mapped. `progress(done, total)` is called with 0 and after each chunk.
    UserError: no images, bad images (all are listed; `skip_bad` leaves them out), values out of range, a cache that
    cannot be written.
    """
    if channels not in (1, 3) or size < 1:
        raise UserError(f"images are packed with 1 or 3 channels and a size of at least 1, not {channels} and {size}")
    if len(raw) == 0:
        raise UserError("there are no images to pack")
    if raw.paths is not None:
        return _pack_cached(raw, size, channels, skip_bad, progress)
    side = _side(raw, size)
    if (array := _in_place(raw, side, channels)) is not None:
        array = array[:]
        array.flags.writeable = False
        return Packed(array, np.arange(len(array)), [], row_hashes(array))
    if raw.array is not None and len(raw) * side * side * channels > IN_MEMORY:
        return _pack_cached(raw, size, channels, skip_bad, progress)
    pieces: list[np.ndarray] = []
    keep, bad, hashes = _decode_all(raw, side, channels, skip_bad, pieces.append, progress)
    images = np.concatenate(pieces)
    images.flags.writeable = False
    return Packed(images, keep, bad, hashes)


def _pack_cached(raw: RawImages, size: int, channels: int, skip_bad: bool, progress: Progress | None) -> Packed:
    folder = cache_dir() / "images"
    target = folder / f"{raw.content_key()}-{size}-{channels}-{FORMAT}.npy"
    if (packed := _load(target, raw)) is None:
        side = _side(raw, size)
        needed = len(raw) * side * side * channels
        try:
            _make_room(folder, needed)
            _write(target, raw, side, channels, skip_bad, progress)
        except OSError as error:
            raise UserError(
                f"{folder}: the packed images cannot be written here ({error.strerror or error}); "
                f"{needed / 1e6:,.1f} MB are needed: free some space or set MODICUM_CACHE to a folder with room"
            ) from error
        packed = _load(target, raw)
        assert packed is not None, target
    if packed.bad and not skip_bad:
        _refuse(packed.bad, len(raw))
    return packed


def _make_room(folder: Path, needed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".tmp-*"):  # by a process that was killed; a living one writes all the time
        if time.time() - left.stat().st_mtime > 86400:
            left.unlink(missing_ok=True)
    if (free := shutil.disk_usage(folder).free) < needed:
        raise OSError(errno.ENOSPC, f"only {free / 1e6:,.1f} MB are free")


def _write(target: Path, raw: RawImages, side: int, channels: int, skip_bad: bool, progress: Progress | None) -> None:
    """Pack to `target`, and what goes with it to an .npz beside, in place before the images appear."""

    def head(file: Any, count: int) -> None:
        shape = (count, side, side, channels)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})

    with atomic_path(target) as temporary:
        # Written, not memory-mapped: a full disk is then an error and not a SIGBUS.
        with temporary.open("wb") as file:
            head(file, len(raw))
            start = file.tell()
            keep, bad, hashes = _decode_all(raw, side, channels, skip_bad, file.write, progress)
            file.seek(0)
            head(file, len(keep))
            assert file.tell() == start, "numpy leaves room in the header for a changed count"
        with atomic_path(target.with_suffix(".npz")) as beside:
            np.savez(beside, keep=keep, hashes=hashes, bad=np.array(json.dumps([(row, why) for row, _, why in bad])))


def _load(target: Path, raw: RawImages) -> Packed | None:
    try:
        images = np.load(target, mmap_mode="r", allow_pickle=False)
        with np.load(target.with_suffix(".npz"), allow_pickle=False) as beside:
            keep, hashes, bad = beside["keep"], beside["hashes"], json.loads(str(beside["bad"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if not len(images) == len(keep) == len(hashes):
        return None
    return Packed(images, keep, [(row, raw.name(row), why) for row, why in bad], hashes)


def _decode_all(
    raw: RawImages, side: int, channels: int, skip_bad: bool, write: Callable[[Any], Any], progress: Progress | None
) -> tuple[np.ndarray, Bad, np.ndarray]:
    """Decode every image, giving the good ones to `write` in order; (keep, bad, hashes)."""
    scale = _scale(raw)
    step = max(1, CHUNK // (side * side * channels))
    jobs = (range(at, min(at + step, len(raw))) for at in range(0, len(raw), step))
    keep, hashes, bad, done = [], [], Bad(), 0
    if progress:
        progress(0, len(raw))
    for chunk in _in_order(lambda rows: _decoded(raw, rows, side, channels, scale), jobs):
        bad += chunk.bad
        if skip_bad or not bad:
            write(chunk.images)
            keep.append(chunk.keep)
            hashes.append(chunk.hashes)
        done += chunk.done
        if progress:
            progress(done, len(raw))
    if bad and (not skip_bad or len(bad) == len(raw)):
        _refuse(bad, len(raw))
    return np.concatenate(keep), bad, np.concatenate(hashes)


def _refuse(bad: Bad, total: int) -> NoReturn:
    listed = "".join(f"\n  {path}: {why}" for _, path, why in bad[:10])
    more = f"\n  and {len(bad) - 10} more" if len(bad) > 10 else ""
    todo = "none is left" if len(bad) == total else "use --skip-bad to go on without them"
    raise UserError(f"{len(bad)} of {total} images cannot be read:{listed}{more}\n{todo}")


def _scale(raw: RawImages) -> float | None:
    """The factor of all values of an array: found once for all of it, so that no chunk is scaled unlike the others."""
    if raw.array is None:
        return None
    low, high = (0.0, 0.0) if raw.array.dtype in (np.uint8, np.bool_) else span(raw.array)
    if raw.array.dtype == np.uint16 and 0 < high < 4096:
        warnings.warn(
            Warned(
                f"16-bit images reach only {high:g} of 65535 and will be dark: rescale them if they hold fewer bits"
            ),
            stacklevel=5,
        )
    try:
        return factor(raw.array.dtype, low, high)
    except ValueError as error:
        raise UserError(f"the images are {error}") from error


def _in_order(work: Callable[[range], Chunk], jobs: Iterable[range]) -> Iterator[Chunk]:
    """The results of `work` in order, a bounded number ahead; threads, as Pillow and numpy release the lock."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[Chunk]] = deque()
        for job in jobs:
            ahead.append(pool.submit(work, job))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _decoded(raw: RawImages, rows: Iterable[int], side: int, channels: int, scale: float | None) -> Chunk:
    rows = np.asarray(rows)
    good = np.ones(len(rows), bool)
    bad: Bad = []
    sources: Any
    if raw.array is not None:
        taken = raw.array[rows[0] : rows[-1] + 1] if raw.rows is None else raw.array[raw.rows[rows]]
        if taken.dtype.kind == "f":
            good = np.isfinite(taken).all(tuple(range(1, taken.ndim)))
            bad = [(int(row), raw.name(int(row)), "NaN or infinite values") for row in rows[~good]]
            taken = np.where(good.reshape(-1, *[1] * (taken.ndim - 1)), taken, 0)
        sources = (
            taken if scale == 1 and taken.dtype == np.uint8 else np.rint(taken * np.float32(scale)).astype(np.uint8)
        )
        sources = sources if sources.ndim == 4 else sources[..., None]
        if sources.shape[1:3] == (side, side) and sources.shape[3] in (1, channels):
            images = np.ascontiguousarray(np.repeat(sources, channels // sources.shape[3], 3)[good])
            return Chunk(images, rows[good], bad, row_hashes(images), len(rows))
    else:
        held: Any = raw.paths if raw.paths is not None else raw.images
        sources = [held[row] for row in rows]
    images = np.empty((len(rows), side, side, channels), np.uint8)
    for at in np.flatnonzero(good):
        try:
            images[at] = decode(sources[at], side, channels)
        except MemoryError:
            raise
        except Exception as error:  # Pillow's readers raise anything at all on damaged files
            good[at] = False
            bad.append((int(rows[at]), raw.name(int(rows[at])), reason(error, sources[at])))
    images = images if good.all() else images[good]
    return Chunk(images, rows[good], sorted(bad), row_hashes(images), len(rows))
