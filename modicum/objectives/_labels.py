"""The classes that come with a batch."""

from __future__ import annotations

from torch import Tensor

from modicum.core.errors import UserError
from modicum.core.types import Corrupted


def classes(corrupted: Corrupted, name: str) -> Tensor:
    """The classes (b,) of a batch's rows, -1 where unknown; UserError where it has none."""
    if "target" not in corrupted:
        raise UserError(f"{name} needs classes of at least some rows: name their column with --label")
    target: Tensor = corrupted["target"]
    if target.is_floating_point():
        raise UserError(f"{name} needs classes, and the labels are numbers: --label COLUMN:classes takes them as such")
    return target
