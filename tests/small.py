"""Small data on disk for the tests of the verbs: folders of images and tables that train in a moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from PIL import Image

TINY: dict[str, Any] = {"encoder": "convnet(width=8, stages=2)", "steps": 4, "batch": 16, "device": "cpu"}
FEW: dict[str, Any] = {"steps": 2, "seeds": 2, "device": "cpu"}


def picture(k: int, side: int = 10) -> np.ndarray:
    """A noisy square whose upper (k even) or left (k odd) half is bright."""
    x = np.random.default_rng(k).integers(0, 90, (side, side)).astype(np.uint8)
    x[(slice(None), slice(side // 2)) if k % 2 else slice(side // 2)] += 120
    return x


def folder(path: Path, n: int = 40, classes: tuple[str, ...] = ("a", "b")) -> Path:
    """n PNG files in turn in the subfolders `classes`; '.' is the folder itself."""
    for k in range(n):
        own = path / classes[k % len(classes)]
        own.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(k)).save(own / f"{k:03d}.png")
    return path


def cut(path: Path) -> Path:
    """Truncate a file, as a failed copy would."""
    path.write_bytes(path.read_bytes()[:60])
    return path


def columns(n: int = 60, **more: Any) -> dict[str, Any]:
    """Columns of a table: numeric and categorical with blanks, whole, true/false, and a label of two classes."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=n)
    return {
        "num": [None if i % 7 == 3 else float(v) for i, v in enumerate(x)],
        "whole": rng.integers(0, 9, n).tolist(),
        "cat": [None if i % 9 == 5 else "uvw"[k] for i, k in enumerate(rng.integers(0, 3, n))],
        "flag": (rng.random(n) > 0.5).tolist(),
        "label": np.where(x > 0, "pos", "neg").tolist(),
        **more,
    }


def csv(path: Path, table: dict[str, Any], drop: tuple[str, ...] = ()) -> Path:
    pyarrow.csv.write_csv(pa.table({k: v for k, v in table.items() if k not in drop}), path)
    return path
