"""Series that are to be forecast: what of them is gone on from, and the ids and times of what comes after."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from modicum.core.errors import UserError, Warned
from modicum.core.types import Batch
from modicum.modalities._seriesraw import RawSeries

ROOM = 4
"""Where a prompt fills the model, one of so many tokens is left for the forecast."""


def begun(raw: RawSeries, patch: int, tokens: int, length: int | None, where: str) -> tuple[RawSeries, Batch]:
    """What of the series is gone on from, and for each its "row" in the prompt and its "first" step there.

    That is their whole patches or, where these leave no room among `length` tokens (by default the `tokens` of the
    training series), the last ones of them.
    """
    sizes, most = raw.survey.sizes, length or tokens
    whole = int(sizes.max(initial=0)) // patch
    if not whole:
        raise UserError(f"--prompt {where}: a patch has {patch} steps; the series have fewer")
    keep = min(whole, tokens, most if whole < most else most - max(1, most // ROOM))
    if keep < 1:
        raise UserError(f"--prompt {where}: {most} token(s) of {patch} steps leave no room: raise --length")
    if (sizes // patch < keep).any():
        raise UserError(f"--prompt {where}: series of one length are forecast together; these have several")
    used, first = keep * patch, np.zeros(len(raw), np.int64)
    if keep < whole:
        first = sizes - used
        words = f"the prompt has up to {sizes.max():,} steps and the model goes on from the last {used:,} of them"
        warnings.warn(f"{words}; it takes {most * patch:,} with the forecast", Warned, stacklevel=3)
    elif left := int(sizes.max()) - used:
        warnings.warn(f"the last {left} steps of the prompt fill no patch and are left out", Warned, stacklevel=3)
    return raw.part(first, used), {"row": torch.arange(len(raw)), "first": torch.from_numpy(first)}


def tell_far(z: Tensor, bins: Sequence[float], mean: Sequence[float], std: Sequence[float], where: str) -> None:
    """Warn of scaled values (b, c, t) that are further than half the range in training (the `bins`) beyond its ends."""
    low, high = bins[0], bins[-1]
    far = (z - (low + high) / 2).abs() > high - low
    if far.any():
        c = int(far.sum((0, 2)).argmax())
        known = z[:, c][~z[:, c].isnan()]
        seen, own = (f"{a * std[c] + mean[c]:,.4g} to {b * std[c] + mean[c]:,.4g}" for a, b in (
            (low, high), (float(known.min()), float(known.max()))
        ))  # fmt: skip
        share = 100 * far.sum() / (~z.isnan()).sum()
        words = f"--prompt {where}: {share:.3g} % of the values lie far outside those of training"
        channel = f" in channel {c}" if len(mean) > 1 else ""
        warnings.warn(
            f"{words} ({own}{channel}; in training {seen}): do not trust the forecast; is it the same unit?",
            Warned,
            stacklevel=3,
        )


def named(raw: RawSeries, batch: Batch, steps: Sequence[int]) -> dict[str, Any]:
    """Columns `id`, `time` and, where a prompt was gone on from more than once, `draw` of the steps of every row."""
    rows, first = batch["row"].tolist(), batch["first"].tolist()
    ids = raw.facts.column("id").to_pylist() if "id" in raw.facts.column_names else range(len(raw))
    times = [raw.time(row, start, count) for row, start, count in zip(rows, first, steps, strict=True)]
    columns: dict[str, Any] = {"id": np.repeat([str(ids[row]) for row in rows], steps)}
    columns["time"] = _written(np.concatenate(times), raw.stamp)
    if len(set(rows)) < len(rows):
        columns["draw"] = np.repeat(np.arange(len(rows)) - np.searchsorted(rows, rows), steps)
    return columns


def _written(time: np.ndarray, stamp: pa.DataType | None) -> pa.Array:
    """Times (n,) as the prompt had them: of the type `stamp`, in seconds; else whole numbers where all are."""
    if stamp is not None:
        return pa.array(np.rint(time * 1e6).astype(np.int64)).cast(pa.timestamp("us", stamp.tz))
    return pa.array(time.astype(np.int64) if (time == np.rint(time)).all() else time)
