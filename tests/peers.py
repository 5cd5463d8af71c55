"""Libraries that tests compare with, which a developer may lack but CI must have."""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path
from typing import Any, NoReturn

import pytest


def absent(what: str, get: str = "make setup") -> NoReturn:
    """Skip the test, or fail it in CI, where everything was to be installed; `get` is the command that installs it."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is not installed: {get} installs it", pytrace=False)
    pytest.skip(f"{what} is not installed: run {get}")


def peer(name: str) -> Any:
    """The module `name`; without it the test is skipped, and fails in CI."""
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        absent(name)
    return importlib.import_module(name)


def installed(name: str) -> Path:
    """The folder of an installed package that is not imported; without it the test is skipped, and fails in CI."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        absent(name)
    return Path(found.origin).parent
