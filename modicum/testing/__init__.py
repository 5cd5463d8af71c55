"""The contract every part keeps, as plain functions: `check_trunk`, `check_objective`, `check_modality`.

For third parties too: register the part as an entry point, then call its check in a test. A law that does not hold
raises an AssertionError which says what was found. `TRUNK`, `OBJECTIVE` and `MODALITY` hold the single laws by name.
"""

from __future__ import annotations

from typing import Any

from modicum.core.types import Batch, Input
from modicum.testing.modalities import MODALITY
from modicum.testing.objectives import OBJECTIVE
from modicum.testing.tools import MakeObjective, MakeTrunk, equal_bits, leaves_random_alone, same
from modicum.testing.trunks import TRUNK, encoder_of, run, tokens_for, trunk_freezing, trunk_layers

__all__ = [
    "MODALITY",
    "OBJECTIVE",
    "TRUNK",
    "check_modality",
    "check_objective",
    "check_trunk",
    "encoder_of",
    "equal_bits",
    "leaves_random_alone",
    "run",
    "same",
    "tokens_for",
    "trunk_freezing",
    "trunk_layers",
]


def check_trunk(make: MakeTrunk) -> None:
    """Put the trunk that `make()` builds afresh through every law of trunks."""
    for law in TRUNK.values():
        law(make)


def check_objective(make: MakeObjective, batch: Batch) -> None:
    """Put the objective that `make()` builds afresh through every law of objectives, on a batch of at least 8 rows."""
    for law in OBJECTIVE.values():
        law(make, batch)


def check_modality(kind: type[Input], raw: Any) -> None:
    """Put a modality through every law of modalities, on at least 8 different raw rows, as `kind.as_raw` gives them."""
    for law in MODALITY.values():
        law(kind, raw)
