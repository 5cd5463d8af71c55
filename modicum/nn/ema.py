"""An exponential moving average of a module's weights: the teacher or the averaged model of a training."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

MOMENTUM, SHARE = 0.99, 20


class Ema(nn.Module):
    """A copy of `module`, in evaluation and without gradients, that follows it: θ' <- m·θ' + (1 - m)·θ.

    In training a `teacher` takes batch norms' statistics from its batch, as the student does: the student's running
    ones do not fit other weights, and would make the rows alike. Dropout stays off. `momentum` m is a
    number or a function of the step (BYOL, Grill et al. 2020, raises it to 1 along a cosine).
    """

    def __init__(
        self, module: nn.Module, momentum: float | Callable[[int], float] = 0.999, teacher: bool = False
    ) -> None:
        super().__init__()
        self.momentum, self.teacher = momentum, teacher
        self.module = copy.deepcopy(module).requires_grad_(False)
        self.eval()

    def forward(self, *args: object, **options: object) -> object:
        """What the averaged copy makes of the arguments."""
        with torch.no_grad():
            return self.module(*args, **options)

    @torch.no_grad()
    def update(self, module: nn.Module, step: int = 0) -> None:
        """Follow `module` after step `step`: parameters are averaged, buffers (batch statistics, counts) copied."""
        momentum = self.momentum(step) if callable(self.momentum) else self.momentum
        mine, theirs = list[Tensor](self.module.parameters()), list[Tensor](module.parameters())
        if mine:
            torch._foreach_lerp_(mine, theirs, 1 - momentum)
        kept, now = list[Tensor](self.module.buffers()), list[Tensor](module.buffers())
        if kept:
            torch._foreach_copy_(kept, now)

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation, whatever the mode of the model around it, but for a teacher's batch norms."""
        super().train(False)
        for module in self.modules() if mode and self.teacher else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.training = True
        return self


def rising(momentum: float | None, steps: int) -> Callable[[int], float]:
    """`momentum` at step 0, rising to 1 along a cosine over `steps` (BYOL, Grill et al. 2020); constant where 0.

    None is .99, or 1 - 20 / steps in a training so short that this is lower: a teacher that remembers more than a
    twentieth of the training would still be half the random network it began as.
    """
    first = MOMENTUM if momentum is None else momentum
    if not steps:
        return lambda step: first
    if momentum is None:
        first = max(0.0, min(first, 1 - SHARE / steps))
    return lambda step: 1 - (1 - first) * (math.cos(math.pi * min(step, steps) / steps) + 1) / 2
