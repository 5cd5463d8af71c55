"""Images that come as arrays: IDX-ubyte, .npy and .npz files, and the rules for their shapes and ranges."""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa

from modicum.core.errors import UserError

IDX_IMAGES, IDX_LABELS = 0x803, 0x801
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test", "t10k": "test"}
SPLITS |= {"val": "val", "valid": "val", "validation": "val"}
IMAGE_KEYS, LABEL_KEYS = ("images", "x", "X", "data", "arr_0"), ("labels", "y", "label", "Y", "targets", "arr_1")


class Part(NamedTuple):
    """Images (n, h, w[, c]) with their labels (n,) and the split they belong to, where known."""

    images: np.ndarray
    labels: np.ndarray | None = None
    split: str | None = None


def checked(array: np.ndarray, name: str) -> np.ndarray:
    """The array as (n, h, w) or (n, h, w, c), c of 1 to 4; (n, c, h, w) is moved when nothing else fits.

    UserError: other shapes, or values that are no numbers.
    """
    shape = array.shape
    if array.dtype.kind not in "buif":
        raise UserError(f"{name}: images must be numbers, not {array.dtype}")
    if 0 in shape or not shape:
        raise UserError(f"{name}: the array of shape {shape} holds no images")
    if len(shape) == 4 and shape[3] not in (1, 2, 3, 4) and shape[1] in (1, 2, 3, 4):
        return np.moveaxis(array, 1, 3)
    if (len(shape) == 3 and shape[2] > 4) or (len(shape) == 4 and shape[3] <= 4):
        return array
    hint = "; one image needs a first axis of 1" if len(shape) == 3 else ""
    hint = "; flat rows need a reshape to (n, h, w)" if len(shape) == 2 else hint
    raise UserError(f"{name}: images must be (n, h, w) or (n, h, w, c) with at most 4 channels, not {shape}{hint}")


def span(array: np.ndarray) -> tuple[float, float]:
    """Least and greatest finite value; (0, 0) when none is finite. Reads a memory map in pieces."""
    low, high = math.inf, -math.inf
    step = max(1, (1 << 24) // max(1, array[0].nbytes))
    for start in range(0, len(array), step):
        piece = array[start : start + step]
        finite = np.isfinite(piece)
        if finite.any():
            low = min(low, float(piece.min(where=finite, initial=np.inf) if piece.dtype.kind == "f" else piece.min()))
            high = max(
                high, float(piece.max(where=finite, initial=-np.inf) if piece.dtype.kind == "f" else piece.max())
            )
    return (low, high) if low <= high else (0.0, 0.0)


def factor(dtype: np.dtype, low: float, high: float) -> float:
    """What values of `dtype` in [low, high] are multiplied with to fill 0..255.

    uint8 and other integers in 0..255 stay; booleans times 255; uint16 over 257; floats in [0, 1] times 255, in
    [0, 255] as they are. ValueError otherwise.
    """
    if dtype.kind == "b":
        return 255.0
    if dtype == np.uint8:
        return 1.0
    if dtype.kind == "u" and dtype.itemsize == 2:
        return 1 / 257
    if dtype.kind == "f" and low >= 0 and high <= 1:
        return 255.0
    if low >= 0 and high <= 255:
        return 1.0
    wanted = "in [0, 1] or [0, 255]" if dtype.kind == "f" else "in 0..255, or uint16 in 0..65535"
    raise ValueError(f"{dtype.name} values from {low:g} to {high:g}: images must be {wanted}; rescale them")


def is_idx(path: Path) -> bool:
    """Whether the file is called, or begins, like IDX-ubyte images."""
    if re.search(r"idx\d?-?ubyte|-ubyte|\.idx", path.name.lower()):
        return True
    try:
        with _opened(path) as file:
            return file.read(4) == struct.pack(">I", IDX_IMAGES)
    except (OSError, EOFError, zlib.error):
        return False


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _read_idx(path: Path, magic: int) -> np.ndarray:
    """The values of an IDX file: memory-mapped, or in memory when it is gzipped."""
    rank = magic & 0xFF
    try:
        with _opened(path) as file:
            head = file.read(4 + 4 * rank)
            if len(head) < 4 + 4 * rank or struct.unpack(">I", head[:4])[0] != magic:
                kind = "labels" if head[:4] == struct.pack(">I", IDX_LABELS) else f"magic 0x{head[:4].hex() or '0'}"
                raise UserError(f"{path}: wanted IDX-ubyte with magic 0x{magic:x}, found {kind}; give the images file")
            shape = struct.unpack(f">{rank}I", head[4:])
            wanted = math.prod(shape)
            if path.suffix != ".gz":
                if path.stat().st_size < len(head) + wanted:
                    raise EOFError(f"{path.stat().st_size} bytes")
                return np.memmap(path, np.uint8, "r", len(head), shape)
            values = np.empty(shape, np.uint8)
            view, at = memoryview(values.data).cast("B"), 0
            while at < wanted:
                read = file.readinto(view[at : at + (1 << 22)])  # type: ignore[attr-defined]
                if not read:
                    raise EOFError(f"{at} bytes of values")
                at += read
            return values
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path}: the IDX file is cut short or damaged: {error}") from error


def idx_sets(folder: Path) -> dict[str, Path]:
    """The IDX images in a folder by the names of their sets (train, t10k, ...); a file beside its .gz counts once."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):  # the plain file sorts before its .gz
        if (match := re.fullmatch(r"(.*?)-?images[-.]idx3-ubyte(\.gz)?", path.name)) and not path.name.startswith("."):
            found.setdefault(match[1], path)
    return found


def _idx_labels(path: Path) -> np.ndarray | None:
    name = path.name.replace("images", "labels").replace("idx3", "idx1")
    for other in (name, name.removesuffix(".gz"), name + ".gz"):
        if other != path.name and (labels := path.with_name(other)).exists():
            return _read_idx(labels, IDX_LABELS)
    return None


def read_idx(path: Path) -> tuple[Part, ...]:
    """One IDX file of images, or a folder of MNIST-named ones, with the labels found beside them."""
    if path.is_file():
        return (Part(_read_idx(path, IDX_IMAGES), _idx_labels(path)),)
    sets = idx_sets(path)
    splits = [next((SPLITS[w] for w in re.split(r"[-_.]", name.lower()) if w in SPLITS), "train") for name in sets]
    if len(set(splits)) < len(splits):
        raise UserError(f"{path}: several IDX sets for one split: {', '.join(sets)}; give one file of images")
    parts = [Part(_read_idx(p, IDX_IMAGES), _idx_labels(p), s) for p, s in zip(sets.values(), splits, strict=True)]
    return tuple(parts)


def read_numpy(path: Path) -> tuple[Part, ...]:
    """The images of a .npy (memory-mapped) or .npz file, which may hold parts such as x_train, train_labels."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(found, np.ndarray):
            return (Part(checked(found, str(path))),)
        with found:
            return _npz_parts(path, dict(found))
    except UserError:
        raise
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read as numbers by numpy: {error}") from error


def _npz_parts(path: Path, arrays: dict[str, np.ndarray]) -> tuple[Part, ...]:
    if image := next((k for k in IMAGE_KEYS if k in arrays), None):
        label = next((k for k in LABEL_KEYS if k in arrays), None)
        return (Part(checked(arrays[image], f"{path}, {image}"), arrays[label] if label else None),)
    parts = []
    for split in ("train", "val", "test"):
        names = {k: [f"{split}_{k}", f"{k}_{split}"] for k in (*IMAGE_KEYS, *LABEL_KEYS)}
        image = next((n for k in IMAGE_KEYS for n in names[k] if n in arrays), None)
        label = next((n for k in LABEL_KEYS for n in names[k] if n in arrays), None)
        if image:
            parts.append(Part(checked(arrays[image], f"{path}, {image}"), arrays[label] if label else None, split))
    if not parts:
        raise UserError(
            f"{path}: no images under the names {', '.join(IMAGE_KEYS)} or x_train, train_images, ...; "
            f"it holds {', '.join(arrays) or 'nothing'}"
        )
    return tuple(parts)


def merged(parts: tuple[Part, ...], path: Path) -> tuple[np.ndarray, pa.Table]:
    """The parts as one array and one table of `id` (row number) and, where known, `label` and `split`."""
    shapes = {part.images.shape[1:] for part in parts}
    if len(shapes) > 1 or len({part.images.dtype for part in parts}) > 1:
        raise UserError(f"{path}: its parts hold images of different shapes or types: {sorted(map(str, shapes))}")
    images = parts[0].images if len(parts) == 1 else np.concatenate([part.images for part in parts])
    columns: dict[str, Any] = {"id": pa.array(np.arange(len(images)))}
    if any(part.labels is not None for part in parts):
        columns["label"] = pa.concat_arrays([_labels(part, path) for part in parts])
    if any(part.split for part in parts):
        columns["split"] = pa.array([part.split for part in parts for _ in range(len(part.images))], pa.string())
    return images, pa.table(columns)


def _labels(part: Part, path: Path) -> pa.Array:
    if part.labels is None:
        return pa.nulls(len(part.images), pa.int64())
    labels = part.labels.reshape(len(part.labels), -1)
    if len(labels) != len(part.images) or labels.shape[1] != 1:
        raise UserError(f"{path}: {len(part.images)} images but labels of shape {part.labels.shape}; wanted one a row")
    values = labels[:, 0]
    return pa.array(values.astype(np.int64) if values.dtype.kind in "ui" else values)
