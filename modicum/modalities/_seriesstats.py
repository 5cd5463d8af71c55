"""What an input of series takes from its training rows: means, deviations and the values that predictions are over."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from modicum.modalities._seriesraw import RawSeries

BINS, FEWEST, OUTPUTS = 32, 8, 4096
"""Bins of a value, the fewest that they are cut to, and how many outputs a patch may have before they are."""
SAMPLE = 1 << 20
"""Values whose quantiles are the bins, at most."""


def statistics(raw: RawSeries, index: np.ndarray, length: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel's known values in the first `length` steps; 1 if it is constant."""
    count, total = np.zeros(raw.channels), np.zeros(raw.channels)
    for some in raw.chunks(index):
        x = raw.read(some, length)
        count, total = count + (~np.isnan(x)).sum((0, 2)), total + np.nansum(x, (0, 2))
    mean = total / count.clip(1)
    square = np.zeros(raw.channels)
    for some in raw.chunks(index):
        square += np.nansum((raw.read(some, length) - mean[:, None]) ** 2, (0, 2))
    std = np.sqrt(square / count.clip(1))
    std = np.where(std > 1e-9 * np.abs(mean).clip(1e-3), std, 1.0)
    return tuple(mean.tolist()), tuple(std.tolist())


def levels(
    raw: RawSeries, index: np.ndarray, length: int, patch: int, scaled: Callable[[np.ndarray], np.ndarray]
) -> tuple[float, ...]:
    """Quantiles of the scaled values, the least and the greatest among them: the bins of all channels."""
    some = index[:: max(1, -(-len(index) * raw.channels * length // SAMPLE))]
    parts = [scaled(raw.read(part, length)) for part in raw.chunks(some)]
    x = np.concatenate([part[~np.isnan(part)] for part in parts])
    count = int(np.clip(OUTPUTS // (patch * raw.channels), FEWEST, BINS))
    found = np.unique(np.quantile(x, np.linspace(0, 1, count)).astype(np.float32)) if len(x) else np.zeros(1)
    if len(found) < 2:
        found = found[0] + np.array([-1.0, 0.0, 1.0])
    return tuple(found.tolist())
