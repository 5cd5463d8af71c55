"""The path of a hand that draws a gun (1) or points (2), as filmed (Ratanamahatana & Keogh 2004)."""

from __future__ import annotations

from modicum.datasets import _ucr
from modicum.datasets.data import Data


def load() -> Data:
    """200 series of 150 frames; 50 of them are for training."""
    return _ucr.load("gun-point", "GunPoint")
