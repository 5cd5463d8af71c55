"""Finding images: in folders, tables of paths, array files, or what a caller holds in memory."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from modicum.core.errors import UserError, Warned
from modicum.modalities._files import PARQUET, TABLES, content_key, table_kind
from modicum.modalities._folders import meaning, name_of, walk
from modicum.modalities._imagearrays import checked, idx_sets, is_idx, merged, read_idx, read_numpy
from modicum.modalities._tableread import place_of, read_table

EXTENSIONS = {
    ".png",
    ".apng",
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".mpo",
    ".bmp",
    ".dib",
    ".gif",
    ".tif",
    ".tiff",
    ".webp",
}
EXTENSIONS |= {".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".j2k", ".avif"}
PATH_COLUMNS = ["path", "file", "filename", "file_name", "filepath", "file_path"]
PATH_COLUMNS += ["image", "image_path", "image_file", "img", "img_path"]
WANTED = (
    "a folder of images, an image, .npy, .npz, IDX-ubyte, or a table with a column of image paths "
    f"({', '.join(TABLES)}, or a folder of Parquet files)"
)


@dataclass(frozen=True, eq=False)
class RawImages:
    """Images not yet decoded: `paths` of files, or an `array` (n, h, w[, c]), or opened `images`: one of the three.

    `rows` picks rows of the array without reading it; `files` are the files that hold the array, if any.
    """

    paths: tuple[str, ...] | None = None
    array: np.ndarray | None = None
    images: tuple[Image.Image, ...] | None = None
    rows: np.ndarray | None = None
    files: tuple[str, ...] = ()

    def __len__(self) -> int:
        held: Any = next(h for h in (self.rows, self.paths, self.images, self.array) if h is not None)
        return len(held)

    def take(self, index: Sequence[int] | np.ndarray) -> RawImages:
        """The images at `index` (positions, or a mask of booleans), in its order, without reading any."""
        rows = np.arange(len(self))[np.asarray(index) if len(index) else slice(0)]
        if self.array is not None:
            return RawImages(array=self.array, rows=rows if self.rows is None else self.rows[rows], files=self.files)
        if self.paths is not None:
            return RawImages(paths=tuple(self.paths[i] for i in rows))
        return RawImages(images=tuple((self.images or ())[i] for i in rows))

    def name(self, row: int) -> str:
        """What messages call the image: its path, or its row."""
        return self.paths[row] if self.paths is not None else f"image {row if self.rows is None else self.rows[row]}"

    def content_key(self) -> str:
        """A key of the content and order of the images, whatever their names."""
        if self.paths is not None:
            return content_key(self.paths)
        digest = hashlib.blake2b(digest_size=16)
        if self.rows is not None:
            digest.update(self.rows.tobytes())
        if self.files:
            digest.update(content_key(self.files).encode())
        elif self.array is not None:
            digest.update(f"{self.array.shape}{self.array.dtype.str}".encode())
            for start in range(0, len(self.array), 1024):
                digest.update(self.array[start : start + 1024].tobytes())
        for image in self.images or ():
            digest.update(f"{image.mode}{image.size}{image.info.get('transparency')}{image.getpalette()}".encode())
            digest.update(image.tobytes())
        return digest.hexdigest()


def scan(path: str | Path) -> tuple[RawImages, pa.Table]:
    """Find the images at `path` and what is known of each, decoding none.

    The table has one row an image: `id` (path from the folder or table, or row number; a table's own column `id` is
    kept) and, where known, `label` (null: unlabelled), `split`, and every other column. WANTED lists the inputs.
    UserError: nothing there, no images in it, no column of paths, missing image files, damaged arrays.
    Warned: files of a folder that are no images.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; wanted {WANTED}")
    if path.is_dir():
        return _scan_folder(path)
    if path.suffix.lower() in EXTENSIONS:
        return RawImages(paths=(str(path),)), pa.table({"id": [name_of(path.name)]})
    if table_kind(path) in TABLES:
        return _scan_table(read_table(path), path.parent, str(path))
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty")
    if path.suffix in (".npy", ".npz"):
        images, table = merged(read_numpy(path), path)
    elif is_idx(path):
        images, table = merged(read_idx(path), path)
    else:
        raise UserError(f"{path}: unknown kind of file; wanted {WANTED}")
    return RawImages(array=images, files=(str(path),)), table


def _scan_folder(folder: Path) -> tuple[RawImages, pa.Table]:
    images: list[tuple[str, ...]] = []
    others: list[str] = []
    for parts in walk(folder):
        if os.path.splitext(parts[-1])[1].lower() in EXTENSIONS:
            images.append(parts)
        else:
            others.append("/".join(parts))
    images.sort()
    others.sort()
    if not images:
        if sets := idx_sets(folder):
            array, table = merged(read_idx(folder), folder)
            return RawImages(array=array, files=tuple(str(p) for p in sets.values())), table
        if any(name.lower().endswith(PARQUET) for name in others):
            return _scan_table(read_table(folder), folder, str(folder))
        rest = f"{len(others)} other files, such as {', '.join(others[:3])}"
        found = f"no images in the folder, only {rest}" if others else "the folder is empty"
        raise UserError(f"{folder}: {found}; wanted {WANTED}")
    if others:
        warnings.warn(
            Warned(f"{folder}: {len(others)} files are not images and were left out: {', '.join(others[:3])}, ..."),
            stacklevel=3,
        )
    columns: dict[str, Any] = {"id": [name_of("/".join(parts)) for parts in images]}
    labels, splits = meaning(images, folder)
    for name, values in (("label", labels), ("split", splits)):
        if any(values):
            columns[name] = pa.array(values, pa.string())
    return RawImages(paths=tuple(os.path.join(folder, *parts) for parts in images)), pa.table(columns)


def _strings(table: pa.Table) -> dict[str, Any]:
    """The columns that hold text, in order; dictionaries of text count."""
    out = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if str(kind) in ("string", "large_string", "string_view"):
            out[name] = column
    return out


def _path_column(table: pa.Table, base: Path, where: str) -> str:
    columns = _strings(table)
    named = sorted((n for n in columns if n.lower() in PATH_COLUMNS), key=lambda n: PATH_COLUMNS.index(n.lower()))
    for name in (*named, *(n for n in columns if n not in named)):
        first: str = next((v for v in columns[name].slice(0, 100).to_pylist() if v), "")
        named_so = first and os.path.splitext(first)[1].lower() in EXTENSIONS | {""}
        if named_so and os.path.isfile(os.path.join(base, first)):  # False of texts that are too long to be names
            return name
    if named:
        return named[0]
    raise UserError(
        f"{where}: no column of image paths; its columns are {', '.join(table.column_names)}. "
        f"Name one of them path, with files relative to {base or 'the working folder'} or absolute"
    )


def _scan_table(table: pa.Table, base: Path, where: str) -> tuple[RawImages, pa.Table]:
    name = _path_column(table, base, where)
    values = table.column(name).to_pylist()
    paths = [os.path.join(base, v) if v else "" for v in values]
    missing = [row for row, path in enumerate(paths) if not os.path.isfile(path)]
    if missing:
        named = [(place_of(table, row).rpartition(", ")[2], values[row] or "(blank)") for row in missing[:5]]
        some = ", ".join(f"{place}: {value}" for place, value in named)
        raise UserError(f"{where}: {len(missing)} of {len(paths)} images in column '{name}' are missing: {some}")
    if "label" in table.column_names and "label" in _strings(table):
        label = table.column("label").cast(pa.string())
        blank = pc.equal(pc.utf8_trim_whitespace(label), "")
        label = pc.if_else(blank, pa.scalar(None, pa.string()), label)
        table = table.set_column(table.column_names.index("label"), "label", label)
    if "id" not in table.column_names:
        root = os.path.abspath(base) + os.sep
        ids = [os.path.abspath(p).removeprefix(root).replace(os.sep, "/") for p in paths]
        table = table.add_column(0, "id", pa.array(ids, pa.string()))
    return RawImages(paths=tuple(paths)), table


def as_raw(x: Any) -> RawImages:
    """Images from a path, array, tensor, table with a column of paths, or list of arrays, PIL images or paths.

    Arrays and tensors are (n, h, w[, c]) or (n, c, h, w). UserError: anything else, empty or mixed lists, missing
    files.
    """
    if isinstance(x, RawImages):
        return x
    if isinstance(x, str | Path):
        return scan(x)[0]
    if hasattr(x, "__arrow_c_stream__") and hasattr(x, "columns"):  # pyarrow, pandas, polars
        try:
            table = pa.table(x)
        except (pa.ArrowException, ValueError, TypeError) as error:  # mixed types in a column, a column twice
            raise UserError(f"the {type(x).__name__} cannot be read as a table: {error}") from None
        return _scan_table(table, Path(), "the table")[0]
    if hasattr(x, "numpy") or isinstance(x, np.ndarray):
        return RawImages(array=checked(_array(x), "the array"))
    items = list(x.to_list() if hasattr(x, "to_list") else x) if hasattr(x, "__iter__") else []
    if not items:
        raise UserError(f"no images in a {type(x).__name__}; wanted a path, array, table, or list of them")
    if all(isinstance(i, str | Path) for i in items):
        if missing := [str(i) for i in items if not os.path.isfile(i)]:
            raise UserError(f"{len(missing)} of {len(items)} image files are missing: {', '.join(missing[:5])}")
        return RawImages(paths=tuple(str(i) for i in items))
    if all(isinstance(i, Image.Image) for i in items):
        return RawImages(images=tuple(items))
    if all(isinstance(i, np.ndarray) or hasattr(i, "numpy") for i in items):
        return _from_arrays([_array(i) for i in items])
    kinds = sorted({type(i).__name__ for i in items})
    raise UserError(f"a list of {', '.join(kinds)} is not a list of arrays, of PIL images or of paths")


def _array(x: Any) -> np.ndarray:
    return np.asanyarray(x.detach().cpu().numpy() if hasattr(x, "detach") else x)


def _from_arrays(arrays: list[np.ndarray]) -> RawImages:
    """A list of images (h, w[, c]), stacked when their shapes agree."""
    if len({(a.shape, a.dtype) for a in arrays}) == 1:
        return RawImages(array=checked(np.stack(arrays), "the list"))
    if any(a.dtype != np.uint8 or a.ndim not in (2, 3) for a in arrays):
        raise UserError("arrays of different shapes in a list must each be one uint8 image (h, w) or (h, w, c)")
    return RawImages(images=tuple(Image.fromarray(checked(a[None], "the list")[0].squeeze()) for a in arrays))
