"""The baselines of series: MiniRocket with a ridge, and the nearest neighbour under dynamic time warping."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from modicum.core import seeds
from modicum.core.errors import need
from modicum.maths.dtw import dtw

LEAST = 9
"""Steps that a kernel of MiniRocket has: shorter series are stretched."""
TRAINED, CHUNK = 5000, 1000
"""Rows that the ridge is fitted to, at most, and rows whose 10,000 features are in memory at a time."""
STEPS, KNOWN = 256, 500
"""Steps that series are averaged down to for dynamic time warping, and training rows to compare with, at most."""


@contextmanager
def own_threads() -> Iterator[None]:
    """Inside, other libraries may set the number of OpenMP's threads, which is torch's too; it is restored after.

    aeon does so in each call: what was trained afterwards ran on all cores, with other rounding, and ten times slower
    where these were busy.
    """
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def as_series(x: np.ndarray, channels: int) -> np.ndarray:
    """Rows of plain features as series (n, channels, t)."""
    return x.reshape(len(x), channels, -1)


def drawn(count: int, most: int, seed: int) -> np.ndarray:
    """At most `most` of `count` rows."""
    return np.sort(seeds.numpy(seed, "baseline").permutation(count)[:most])


class Rocket(BaseEstimator):
    """aeon's MiniRocket (Dempster et al. 2021; 10,000 features), standardised, and a ridge of penalty `alpha`."""

    def __init__(self, alpha: float, channels: int, classes: bool, seed: int) -> None:
        self.alpha, self.channels, self.classes, self.seed = alpha, channels, classes, seed

    def fit(self, x: np.ndarray, y: np.ndarray) -> Rocket:
        module = need("aeon.transformations.collection.convolution_based", "series")
        rows = drawn(len(x), TRAINED, self.seed)
        ridge = RidgeClassifier(self.alpha) if self.classes else Ridge(self.alpha)
        self.rocket_: Any = module.MiniRocket(random_state=self.seed)
        series = self._series(x[rows])
        with warnings.catch_warnings(), own_threads():
            warnings.simplefilter("ignore")  # numba's, about how it compiles
            features = self.rocket_.fit(series).transform(series)
        self.model_ = make_pipeline(StandardScaler(with_mean=False), ridge).fit(features, y[rows])
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        parts = [x[start : start + CHUNK] for start in range(0, len(x), CHUNK)]
        with own_threads():
            return np.concatenate([self.model_.predict(self.rocket_.transform(self._series(part))) for part in parts])

    def _series(self, x: np.ndarray) -> np.ndarray:
        series = as_series(x, self.channels)
        return np.repeat(series, -(-LEAST // series.shape[2]), 2)


class Warped(BaseEstimator):
    """The label of the nearest series under dynamic time warping with a window, a share of the length.

    Series of more than 256 steps are averaged down to that; of more than 500 training rows that many are drawn.
    """

    def __init__(self, window: float, channels: int, seed: int) -> None:
        self.window, self.channels, self.seed = window, channels, seed

    def fit(self, x: np.ndarray, y: np.ndarray) -> Warped:
        rows = drawn(len(x), KNOWN, self.seed)
        self.x_, self.y_ = self._series(x[rows]), y[rows]
        steps = x.shape[1] // self.channels
        cut = [f"{k} of {n} {what}" for k, n, what in ((self.x_.shape[2], steps, "steps"), (len(rows), len(x), "rows"))
               if k < n]  # fmt: skip
        self.note = ", ".join([f"window={self.window:g}", *cut])
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        nearest = dtw(self._series(x), self.x_, self.window).argmin(1)
        return np.asarray(self.y_[nearest.numpy()])

    def _series(self, x: np.ndarray) -> torch.Tensor:
        series = torch.from_numpy(as_series(x, self.channels))
        return F.adaptive_avg_pool1d(series, STEPS) if series.shape[2] > STEPS else series
