"""Errors a user can act on, and the one place where optional libraries are imported."""

from __future__ import annotations

import difflib
import importlib
import warnings
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """A mistake in what the user gave: one message saying what was given, what was wanted and what to do.

    The command line prints it without a traceback and exits with 2.
    """


class Warned(UserWarning):
    """A named, counted problem that does not stop the work."""


def nearest(name: str, valid: Iterable[str]) -> list[str]:
    """All of `valid`, those most like `name` first."""
    return sorted(valid, key=lambda v: -difflib.SequenceMatcher(None, name.lower(), v.lower()).ratio())


def unknown(what: str, name: str, valid: Iterable[str]) -> UserError:
    """The error for an unknown `name`, listing the valid ones, nearest first."""
    return UserError(f"unknown {what} '{name}'; valid: {', '.join(nearest(name, valid)) or '(none)'}")


def need(module: str, extra: str) -> Any:
    """Import an optional library, or say which extra of modicum installs it."""
    try:
        with warnings.catch_warnings():
            # Nobody here can act on what a library uses inside itself: torch-geometric scripts a class on import.
            warnings.simplefilter("ignore", DeprecationWarning)
            return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"this needs {module}: install it with  pip install 'modicum[{extra}]'  ({error})") from error
