"""Diamonds: weight, cut, colour, clarity and size against the price (ggplot2's table; the copy in plotnine)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from modicum.core.errors import UserError
from modicum.core.spec import part
from modicum.datasets.data import Data
from modicum.modalities._tableread import read_table

NAMES = {"price": "target", "x": "length", "y": "width", "z": "height"}


def load() -> Data:
    """53,940 rows of 6 numbers and 3 categories; the target is the price in US dollars."""
    found = importlib.util.find_spec("plotnine")  # finds the package without importing it
    folders = found.submodule_search_locations if found is not None else None
    path = Path(folders[0]) / "data" / "diamonds.csv" if folders else None
    if path is None or not path.exists():
        raise UserError("diamonds is a file of plotnine: install it with  pip install --no-deps plotnine")
    table = read_table(path)
    table = table.rename_columns([NAMES.get(name, name) for name in table.column_names])
    return Data("diamonds", part("modality", "tables"), table, table, {}, "MIT", "plotnine/data/diamonds.csv (ggplot2)")
