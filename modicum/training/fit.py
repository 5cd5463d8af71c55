"""The training loop, a generator: the caller owns every `if` (log, evaluate, save, stop)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from modicum.core import seeds
from modicum.core.types import Batch, Objective, Step


def fit(
    objective: Objective,
    batches: Callable[[int], Batch],
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    seed: int,
    start: int = 0,
    schedule: Callable[[int], float] | None = None,
    clip: float | None = None,
    precision: torch.dtype | None = None,
) -> Iterator[Step]:
    """Train from step `start` to `steps`, yielding a `Step` after each update.

    All randomness is a function of (seed, step), so that a start at any step continues bit-identically.
    `schedule(step)` scales every group's initial_lr; `clip` bounds the gradient's norm; `precision` is the autocast
    dtype. Nothing is copied off the device here.
    """
    device = next(objective.parameters()).device
    base = [g.get("initial_lr", g["lr"]) for g in optimizer.param_groups]
    cast = torch.autocast(device.type, dtype=precision, enabled=precision is not None)
    for step in range(start, steps):
        factor = schedule(step) if schedule else 1.0
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate * factor
        objective.train()
        batch = {k: v.to(device, non_blocking=True) for k, v in batches(step).items()}
        with torch.no_grad():
            corrupted = objective.corrupt(batch, seeds.generator(seed, "corrupt", step, device=device))
        with seeds.forked(seed, "dropout", step, device=device), cast:
            loss, metrics = objective(corrupted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(objective.parameters(), clip)
        optimizer.step()
        objective.after_step(step)
        yield Step(step + 1, loss.detach(), metrics, max(base) * factor)
