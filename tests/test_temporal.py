"""`temporal`: what it pools, against the same sums written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from modicum.core import seeds
from modicum.nn.trunks.temporal import PARTS, pyramid


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=seeds.generator(seed, "x"))


def whole(x: Tensor) -> Tensor:
    """Mean, maximum and share of tokens (t, d): (3, d)."""
    return torch.stack([x.mean(0), x.amax(0), torch.sigmoid(8 * x).mean(0)])


def test_every_part_half_and_all_are_pooled() -> None:
    x = drawn(2, 16, 3)
    out, at = pyramid(x, None), 0
    for parts in (8, 4, 2, 1):
        own = out[:, at : at + 9 * parts].view(2, 3, parts, 3)
        for row in range(2):
            wanted = torch.stack([whole(part) for part in x[row].chunk(parts)], 1)
            assert torch.allclose(own[row], wanted, rtol=1e-12)
        at += 9 * parts
    assert out.shape == (2, at)


@pytest.mark.parametrize("size", [1, 5, 11, 16])
def test_parts_are_those_of_the_real_tokens_wherever_they_stand(size: int) -> None:
    x = drawn(1, size, 3)
    place = torch.randperm(20, generator=seeds.generator(1, "place"))[:size].sort().values
    padded, mask = drawn(1, 20, 3, seed=1), torch.zeros(1, 20, dtype=torch.bool)
    padded[:, place], mask[:, place] = x, True
    assert torch.allclose(pyramid(padded, mask), pyramid(x, None), rtol=1e-12)
    # The first part is not empty where there are fewer tokens than parts, and reaches to the next whole token.
    first = pyramid(x, None)[0, : 3 * PARTS * 3].view(3, PARTS, 3)[:, 0]
    assert torch.allclose(first, whole(x[0, : math.ceil(size / PARTS)]), rtol=1e-12)


def test_a_row_without_tokens_is_finite() -> None:
    x = drawn(2, 4, 3).requires_grad_()
    out = pyramid(x, torch.tensor([[True] * 4, [False] * 4]))
    assert not out[1].any()
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert not x.grad[1].any()
