"""Outlines of leaves of six species of maple and oak (Gandhi 2002)."""

from __future__ import annotations

from modicum.datasets import _ucr
from modicum.datasets.data import Data


def load() -> Data:
    """442 series of 427 angles; 200 of them are for training."""
    return _ucr.load("osu-leaf", "OSULeaf")
