"""Run a model over the rows of a source, in batches, without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from modicum.core.types import Batch, Source
from modicum.nn.encoder import Tower


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


def over(module: nn.Module, function: Callable[[Batch], Tensor], source: Source, index: np.ndarray) -> np.ndarray:
    """`function` of every row `index` of the source, concatenated on the CPU as float32 or integers."""
    device, lengths = next(module.parameters()).device, getattr(source, "lengths", None)
    order = np.arange(len(index)) if lengths is None else np.argsort(lengths[index], kind="stable")
    with evaluating(module):
        parts = [function(batch).cpu().numpy() for batch in batches_of(source, index[order], device)]
    out = np.concatenate(parts)
    if lengths is not None:  # rows of about one length ran together, with little padding: back to their places
        out[order] = out.copy()
    return out


def embed(encoder: Tower, source: Source, index: np.ndarray) -> np.ndarray:
    """Pooled features (n, d) of the rows `index`."""
    return over(encoder, lambda batch: encoder(batch).pooled.float(), source, index)
