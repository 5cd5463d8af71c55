"""Hashes of rows, which may be many and memory-mapped, as a safetensors file."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

from modicum.core.atomic import atomic_path

PIECE = 1 << 20
"""Hashes that are copied at a time."""


def write_hashes(path: Path, name: str, hashes: np.ndarray) -> None:
    """Write hashes (n,) uint64 as the tensor `name`: what safetensors would, without a copy in memory."""
    facts = {name: {"dtype": "U64", "shape": [len(hashes)], "data_offsets": [0, 8 * len(hashes)]}}
    header = json.dumps(facts, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for start in range(0, len(hashes), PIECE):
            file.write(hashes[start : start + PIECE].astype("<u8").data)
