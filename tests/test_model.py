"""`modicum.load(run)`: runs that were tampered with, and rows in memory of every kind, fitting and not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small
import torch
from PIL import Image

import modicum
from modicum import Run, UserError
from modicum.modalities._imagedecode import decode
from modicum.training.run import _checksum


def test_one_model_takes_arrays_lists_and_paths_alike(tuned: Run, images: Path) -> None:
    model, paths = modicum.load(tuned), sorted(str(p) for p in images.rglob("*.png"))
    arrays = [np.asarray(decode(p, 10, 1))[..., 0] for p in paths]
    wanted = model.embed(images)
    assert wanted.dtype == np.float32
    stack, pictures = np.stack(arrays), [Image.fromarray(a) for a in arrays]
    for given in (stack, torch.from_numpy(stack), arrays, pictures, paths, pd.DataFrame({"path": paths})):
        np.testing.assert_array_equal(model.embed(given), wanted)
    assert model.predict(arrays[:1]).shape == (1,)


def edited(change: Callable[[dict[str, Any]], Any], *, sign: bool) -> Callable[[Path], None]:
    """A change of spec.json, with its checksum made right again, or not."""

    def tamper(path: Path) -> None:
        body = json.loads((path / "spec.json").read_text())
        change(body)
        if sign:
            body.pop("checksum")
            body["checksum"] = _checksum(body)
        (path / "spec.json").write_text(json.dumps(body))

    return tamper


def rename(body: dict[str, Any]) -> None:
    body["parts"]["objective"]["args"]["encoder"]["args"]["trunk"]["name"] = "os.system"


TAMPERED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "changed": (edited(lambda s: s.update(seed=9), sign=False), "was changed after it was written"),
    "newer": (edited(lambda s: s.update(format=99), sign=False), "has format 99; modicum .* reads up to 1: upgrade"),
    "no number": (edited(lambda s: s.update(format="x"), sign=False), "spec.json is damaged"),
    "no checksum": (edited(lambda s: s.pop("checksum"), sign=False), "spec.json is damaged"),
    "no JSON": (lambda p: (p / "spec.json").write_text("{"), "spec.json is damaged"),
    "a list": (lambda p: (p / "spec.json").write_text("[]"), "spec.json is damaged"),
    "binary": (lambda p: (p / "spec.json").write_bytes(b"\xff\xfe"), "spec.json is damaged"),
    "code": (edited(rename, sign=True), "unknown trunk 'os.system'; valid: "),
    "no parts": (edited(lambda s: s.update(parts={}), sign=True), "records no model"),
    "no model": (lambda p: (p / "model.safetensors").unlink(), "was not finished; run modicum finetune again"),
    "half a model": (
        lambda p: (p / "model.safetensors").write_bytes((p / "model.safetensors").read_bytes()[:-9]),
        "does not read as safetensors",
    ),
    "another model": (
        lambda p: shutil.copy(p.parent / "other" / "model.safetensors", p),
        "does not fit the run's spec: .* the folder mixes two runs",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERED)
def test_a_run_that_was_tampered_with(name: str, tmp_path: Path, pre: Run, tuned: Run) -> None:
    tamper, words = TAMPERED[name]
    shutil.copytree(tuned.path, tmp_path / "run")
    shutil.copytree(pre.path, tmp_path / "other")
    tamper(tmp_path / "run")
    with pytest.raises(UserError, match=words):
        modicum.load(tmp_path / "run")


def x(n: int = 4) -> np.ndarray:
    return np.stack([small.picture(k) for k in range(n)])


ARRAYS: dict[str, tuple[Any, str]] = {
    "one image": (x()[0], "one image needs a first axis of 1|flat rows need a reshape"),
    "no images": (x()[:0], "holds no images"),
    "empty list": ([], "no images in a list"),
    "None": (None, "no images in a NoneType"),
    "text": (np.array(["a"]), "images must be numbers"),
    "negative": (x() - 300.0, "images must be in"),
    "NaN": (np.full((2, 8, 8), np.nan), "NaN or infinite values"),
    "mixed": ([x()[0], "a.png"], "is not a list of arrays, of PIL images or of paths"),
    "no file": (["nosuch.png"], "1 of 1 image files are missing: nosuch.png"),
    "table": (pd.DataFrame({"x": [1]}), "no column of image paths"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_rows_in_memory_that_are_no_images(name: str, tuned: Run) -> None:
    given, words = ARRAYS[name]
    with pytest.raises(UserError, match=words):
        modicum.load(tuned).predict(given)


FRAMES: dict[str, tuple[Callable[[pd.DataFrame], Any], str]] = {
    "lacks": (lambda d: d.drop(columns="whole"), r"lacks the column\(s\) whole"),
    "no rows": (lambda d: d[:0], "has no rows"),
    "words": (lambda d: d.assign(num="a"), "column 'num' was numeric in training"),
    "mixed": (lambda d: d.assign(num=[1, "a"] * 30), "cannot be read as a table"),
    "twice": (lambda d: pd.concat([d, d], axis=1), "cannot be read as a table: Duplicate column names"),
    "infinite": (lambda d: d.assign(num=np.inf), "column 'num' is infinite"),
    "array": (lambda _: x(), "a table wants a DataFrame"),
}


@pytest.mark.parametrize("name", FRAMES)
def test_rows_in_memory_that_are_no_fitting_table(name: str, table: Path, table_run: Run) -> None:
    change, words = FRAMES[name]
    with pytest.raises(UserError, match=words):
        modicum.load(table_run).predict(change(pd.read_csv(table)))
