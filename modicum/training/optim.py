"""Parameter groups read from `layers()`, and schedules as functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from modicum.core.types import Objective


def groups(
    objective: Objective, *, lr: float, weight_decay: float, decay: float = 1.0, freeze: int = 0
) -> list[dict[str, Any]]:
    """AdamW parameter groups: layer j of L has rate lr·decay^(L-j); the first `freeze` layers have none.

    Everything outside the encoders (heads, decoders) has rate lr. Vectors (biases, norms) are not decayed.
    """
    out: list[dict[str, Any]] = []
    taken: set[int] = set()
    for tower in objective.encoders().values():
        tower.freeze(freeze)
        layers = list(tower.layers().values())
        for k, parts in enumerate(layers):
            own = [p for part in parts for p in ([part] if isinstance(part, nn.Parameter) else part.parameters())]
            own = [p for p in own if id(p) not in taken]
            taken.update(map(id, own))
            if k >= freeze:
                out += _split(own, lr * decay ** (len(layers) - k), weight_decay)
    return out + _split([p for p in objective.parameters() if id(p) not in taken], lr, weight_decay)


def _split(parameters: list[nn.Parameter], lr: float, weight_decay: float) -> list[dict[str, Any]]:
    matrices = [p for p in parameters if p.requires_grad and p.dim() > 1]
    vectors = [p for p in parameters if p.requires_grad and p.dim() <= 1]
    both = [(matrices, weight_decay), (vectors, 0.0)]
    return [{"params": own, "lr": lr, "initial_lr": lr, "weight_decay": wd} for own, wd in both if own]


def adamw(parameter_groups: list[dict[str, Any]]) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) over groups, fused: one pass over memory a step."""
    return torch.optim.AdamW(parameter_groups, fused=True)


def cosine(steps: int, warmup: float = 0.1) -> Callable[[int], float]:
    """Factor of the rate at step 0..steps-1: linear over the first `warmup` share, then half a cosine down to 0."""
    rise = max(1, round(steps * warmup))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    return factor
