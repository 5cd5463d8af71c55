"""Electrical power demand of Italy, a day a series: from October to March (1) or from April to September (2)."""

from __future__ import annotations

from modicum.datasets import _ucr
from modicum.datasets.data import Data


def load() -> Data:
    """1,096 series of 24 hours; 67 of them are for training."""
    return _ucr.load("italy-power-demand", "ItalyPowerDemand")
