"""Batches whose rows have different lengths, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from modicum.core.types import Batch


def join(batches: Sequence[Batch]) -> Batch:
    """The rows of all batches; values of which one batch's rows are longer are padded with 0, as sources pad them."""
    return {key: join_values([batch[key] for batch in batches]) for key in batches[0]}


def join_values(values: Sequence[Tensor]) -> Tensor:
    """Tensors (b_i, ...) one after the other: (sum of b_i, ...) in the largest size that any has in every axis."""
    shapes = [value.shape[1:] for value in values]
    if len(set(shapes)) == 1:
        return torch.cat(list(values))
    size = [max(axis) for axis in zip(*shapes, strict=True)]
    out = values[0].new_zeros((sum(map(len, values)), *size))
    start = 0
    for value in values:
        out[(slice(start, start + len(value)), *(slice(s) for s in value.shape[1:]))] = value
        start += len(value)
    return out
