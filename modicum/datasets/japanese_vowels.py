"""Nine men say two Japanese vowels: 12 coefficients of linear prediction a step (Kudo et al. 1999)."""

from __future__ import annotations

from modicum.datasets import _ucr
from modicum.datasets.data import Data


def load() -> Data:
    """640 series of 12 channels and 7 to 29 steps; 270 of them are for training."""
    return _ucr.load("japanese-vowels", "JapaneseVowels")
