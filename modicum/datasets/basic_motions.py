"""Accelerometer and gyroscope of a smart watch at standing, walking, running and badminton."""

from __future__ import annotations

from modicum.datasets import _ucr
from modicum.datasets.data import Data


def load() -> Data:
    """80 series of 6 channels and 100 steps, ten a second; 40 of them are for training."""
    return _ucr.load("basic-motions", "BasicMotions")
