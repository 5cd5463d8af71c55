"""Diagnostics: one question a file, each a function that returns a `Finding`: rows, charts and what they mean."""

from modicum.diagnostics._finding import Finding
from modicum.diagnostics._rows import Given, given

__all__ = ["Finding", "Given", "given"]
