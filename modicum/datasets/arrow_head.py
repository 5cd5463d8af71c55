"""Outlines of arrowheads of three kinds: Avonlea (0), Clovis (1) and Mix (2) (Ye & Keogh 2009)."""

from __future__ import annotations

from modicum.datasets import _ucr
from modicum.datasets.data import Data


def load() -> Data:
    """211 series of 251 angles; 36 of them are for training."""
    return _ucr.load("arrow-head", "ArrowHead")
