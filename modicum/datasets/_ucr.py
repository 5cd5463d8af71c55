"""Sets of the UCR and UEA archives that ship inside the package aeon, with the archive's own division into train and
test rows."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from modicum.core.errors import UserError
from modicum.core.spec import part
from modicum.datasets.data import Data
from modicum.modalities._seriests import read_ts

LICENCE = "not stated in its files; the archive asks to be cited (Dau et al. 2019); aeon, which has it, is BSD-3-Clause"


def load(name: str, folder: str) -> Data:
    """The set in aeon's `folder`, TRAIN and TEST."""
    found = importlib.util.find_spec("aeon")  # finds the package without importing it
    inside = found.submodule_search_locations if found is not None else None
    path = Path(inside[0]) / "datasets" / "data" / folder if inside else None
    if path is None or not (path / f"{folder}_TRAIN.ts").exists():
        raise UserError(f"{name} is a file of aeon: install it with  pip install 'modicum[series]'")
    raw = read_ts([(path / f"{folder}_{split.upper()}.ts", split) for split in ("train", "test")])
    return Data(
        name,
        part("modality", "series"),
        raw,
        raw.facts,
        {},
        LICENCE,
        f"aeon/datasets/data/{folder} (timeseriesclassification.com)",
    )
