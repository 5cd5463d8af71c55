"""Run a model over the rows of a source, in batches, without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modicum.core.types import Batch, Source, Windows
from modicum.nn.encoder import Tower

PIECE = 8192
"""Windows whose features are in memory at a time."""


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Inside, the module is in evaluation mode and no gradients are kept; the mode is restored after."""
    mode = module.training
    module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        module.train(mode)


def batches_of(source: Source, index: np.ndarray, device: torch.device, batch: int = 512) -> Iterator[Batch]:
    """The rows `index` in order, `batch` at a time, on the device."""
    for start in range(0, len(index), batch):
        yield {k: v.to(device) for k, v in source.rows(index[start : start + batch]).items()}


def over(
    module: nn.Module, function: Callable[[Batch], Tensor], source: Source, index: np.ndarray, batch: int = 512
) -> np.ndarray:
    """`function` of every row `index` of the source, concatenated on the CPU as float32 or integers.

    Where rows have several windows: the mean (n, d) of what it is of them, weighted by their real tokens.
    """
    windows: Windows | None = getattr(source, "windows", None)
    if windows is not None:
        return _averaged(module, function, windows, index)
    device, lengths = next(module.parameters()).device, getattr(source, "lengths", None)
    order = np.arange(len(index)) if lengths is None else np.argsort(lengths[index], kind="stable")
    with evaluating(module):
        parts = [function(some).cpu().numpy() for some in batches_of(source, index[order], device, batch)]
    out = np.concatenate(parts)
    if lengths is not None:  # rows of about one length ran together, with little padding: back to their places
        out[order] = out.copy()
    return out


def _averaged(
    module: nn.Module, function: Callable[[Batch], Tensor], windows: Windows, index: np.ndarray
) -> np.ndarray:
    parts, place = windows.of(index)
    lengths: np.ndarray = windows.parts.lengths  # type: ignore[attr-defined]
    size = lengths[parts].astype(np.float64)
    share = size / np.bincount(place, size, len(index))[place]
    out = np.empty(0)
    # A piece at a time: the windows of few rows may be more than fit into memory.
    for start in range(0, len(parts), PIECE):
        some = slice(start, start + PIECE)
        values = over(module, function, windows.parts, parts[some], batch=128)
        if not start:
            out = np.zeros((len(index), *values.shape[1:]))
        np.add.at(out, place[some], values * share[some].reshape(-1, *[1] * (values.ndim - 1)))
    return out.astype(np.float32)


def predict(objective: Any, source: Source, index: np.ndarray) -> np.ndarray:
    """What a supervised objective says of the rows `index`; of rows with several windows, by their mean features."""
    if getattr(source, "windows", None) is None:
        return over(objective, objective.predict, source, index)
    pooled = torch.from_numpy(embed(next(iter(objective.encoders().values())), source, index))
    with evaluating(objective):
        out: np.ndarray = objective.decide(pooled.to(next(objective.parameters()).device)).cpu().numpy()
    return out


def embed(encoder: Tower, source: Source, index: np.ndarray) -> np.ndarray:
    """Pooled features (n, d) of the rows `index`; those of a row's windows are averaged by their real tokens."""
    return over(encoder, lambda batch: encoder(batch).pooled.float(), source, index)
