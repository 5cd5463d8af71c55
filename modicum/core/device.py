"""Where to compute, and how precisely."""

from __future__ import annotations

import os

import torch

from modicum.core.errors import UserError, unknown


def choose_device(name: str | torch.device) -> torch.device:
    """auto is cuda where there is one, with deterministic algorithms switched on so that runs resume exactly."""
    if isinstance(name, torch.device):
        return name
    if name not in ("auto", "cpu", "cuda"):
        raise unknown("device", str(name), ["auto", "cpu", "cuda"])
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    return torch.device("cuda")


def precision(device: torch.device) -> torch.dtype | None:
    """bfloat16 on CUDA; float32 on the CPU, where bfloat16 is many times slower."""
    return torch.bfloat16 if device.type == "cuda" else None
