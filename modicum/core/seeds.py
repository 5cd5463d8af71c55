"""Randomness as a pure function of (seed, what for, step): nothing to save, nothing global to disturb."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def fold(seed: int, *path: str | int) -> int:
    """A 63-bit seed from `seed` and a path such as ("views", step); BLAKE2b, so neighbouring paths are unrelated."""
    text = "/".join([str(int(seed)), *map(str, path)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *path: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on `device`, seeded by `fold(seed, *path)`."""
    return torch.Generator(device=device).manual_seed(fold(seed, *path))


def numpy(seed: int, *path: str | int) -> np.random.Generator:
    """A numpy generator seeded by `fold(seed, *path)`."""
    return np.random.default_rng(fold(seed, *path))


@contextmanager
def forked(seed: int, *path: str | int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Inside, torch's global randomness is that of (seed, path); outside it is as the caller left it.

    For code that can only draw from the global generator: parameter initialisation and dropout.
    """
    device = torch.device(device)
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    # Seeds every back end that is in use; `default_generator` alone would leave CUDA dropout unseeded.
    torch.default_generator.manual_seed(fold(seed, *path))
    if cuda is not None:
        with torch.cuda.device(device):
            torch.cuda.manual_seed(fold(seed, *path))
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
