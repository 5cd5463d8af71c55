"""AdamW and SGD for stacked models: every member has its own rate, schedule, weight decay and clipping."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

BETAS, EPS = (0.9, 0.999), 1e-8
SLOTS = {"adamw": 2, "sgd": 1}
"""Tensors of the size of the parameters that an optimizer keeps."""


class Each(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019) or SGD with momentum on parameters whose rows belong to members.

    `owners[p]`: for each index of p's first axis the member (ascending) that it belongs to. `rates` and `decays` (m,)
    are those of the members, `factors[i](step)` member i's schedule; matrices alone are decayed, as in `groups` of
    training/optim.py. `clip` bounds the norm of each member's own gradient. Only the first `active()` members
    move.
    """

    def __init__(
        self,
        owners: dict[nn.Parameter, np.ndarray],
        matrices: set[nn.Parameter],
        active: Callable[[], int],
        *,
        kind: str,
        rates: np.ndarray,
        decays: np.ndarray,
        factors: Sequence[Callable[[int], float]],
        momentum: float = 0.9,
        clip: float | None = None,
    ) -> None:
        super().__init__([{"params": list(owners), "lr": 1.0, "initial_lr": 1.0}], {})
        self.owners, self.matrices, self.kind, self.momentum, self.clip = owners, matrices, kind, momentum, clip
        self.rates, self.decays, self.factors = rates, decays, factors
        self.active, self.now = active, 0
        self._distinct = list(dict.fromkeys(factors))
        self._which = np.array([self._distinct.index(f) for f in factors])
        self._kept: dict[Any, Tensor] = {}
        self._leads: tuple[int, dict[nn.Parameter, int]] = (-1, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move the active members; `now` counts the steps taken."""
        del closure
        n = self.active()
        factor = np.array([f(self.now) for f in self._distinct])[self._which[:n]]
        rates = self.rates[:n] * factor
        if n != self._leads[0]:
            self._leads = n, {p: int(np.searchsorted(own, n)) for p, own in self.owners.items()}
        lead = {p: count for p, count in self._leads[1].items() if p.grad is not None}
        if self.clip is not None:
            self._clip(lead, n, self.clip)
        decays, none = self.decays[:n], np.zeros(n)
        kinds: Any = ((True, decays), (False, none)) if decays.any() else ((None, none),)
        for decayed, decay in kinds:
            some = [p for p in lead if decayed is None or (p in self.matrices) is decayed]
            if some:
                self._move(some, [lead[p] for p in some], rates, decay)
        self.now += 1

    def _move(self, params: list[nn.Parameter], counts: list[int], rates: np.ndarray, decays: np.ndarray) -> None:
        names = ("exp_avg", "exp_avg_sq") if self.kind == "adamw" else ("momentum_buffer",)
        for p in params:
            if not self.state[p]:
                self.state[p].update({name: torch.zeros_like(p) for name in names})
                self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
        xs = [p.data[:c] for p, c in zip(params, counts, strict=True)]
        gs = [_grad(p, c) for p, c in zip(params, counts, strict=True)]
        slots = [[self.state[p][name][:c] for p, c in zip(params, counts, strict=True)] for name in names]
        steps = [self.state[p]["step"] for p in params]
        alike = bool((rates == rates[0]).all() and (decays == decays[0]).all())
        rate, decay = float(rates[0]), float(decays[0])
        if self.kind == "sgd":
            for step in steps:
                step += 1
            if alike:
                given: dict[str, Any] = {
                    "momentum": self.momentum,
                    "dampening": 0.0,
                    "nesterov": False,
                    "maximize": False,
                }
                sgd(xs, gs, slots[0], fused=True, lr=rate, weight_decay=decay, **given)
                return
            for p, x, g, buffer in zip(params, xs, gs, slots[0], strict=True):
                buffer.mul_(self.momentum).add_(g)
                if decays.any():
                    buffer.addcmul_(x, self._rows(p, decays, x))
                x.addcmul_(buffer, self._rows(p, rates, x), value=-1)
            return
        given = {"beta1": BETAS[0], "beta2": BETAS[1], "eps": EPS, "amsgrad": False, "maximize": False}
        if alike:
            adamw(xs, gs, slots[0], slots[1], [], steps, fused=True, lr=rate, weight_decay=decay, **given)
            return
        # One fused pass at rate 1 from zero gives the direction; the members' own rates scale it.
        ways = [self._scratch(p, len(x)).zero_() for p, x in zip(params, xs, strict=True)]
        adamw(ways, gs, slots[0], slots[1], [], steps, fused=True, lr=1.0, weight_decay=0.0, **given)
        for p, x, way in zip(params, xs, ways, strict=True):
            if decays.any():
                x.mul_(self._rows(p, 1 - rates * decays, x))
            x.addcmul_(way, self._rows(p, rates, x))

    def _rows(self, p: nn.Parameter, values: np.ndarray, like: Tensor) -> Tensor:
        """The members' values for each index of the first axis, to multiply `like` with."""
        own = self.owners[p][: len(like)]
        return torch.from_numpy(values[own]).to(like).view(-1, *[1] * (like.dim() - 1))

    def _scratch(self, p: nn.Parameter, count: int) -> Tensor:
        if p not in self._kept:
            self._kept[p] = torch.empty_like(p)
        return self._kept[p][:count]

    def _clip(self, lead: dict[nn.Parameter, int], n: int, limit: float) -> None:
        """Scale each member's gradient to a norm of at most `limit`."""
        first = next(iter(lead))
        square = torch.zeros(n, dtype=first.dtype, device=first.device)
        owners = {p: torch.from_numpy(self.owners[p][:count]).to(p.device) for p, count in lead.items()}
        for p, count in lead.items():
            square.index_add_(0, owners[p], _grad(p, count).reshape(count, -1).square().sum(1))
        scale = (limit / (square.sqrt() + 1e-6)).clamp(max=1.0)
        for p, count in lead.items():
            _grad(p, count).mul_(scale[owners[p]].view(-1, *[1] * (p.dim() - 1)))


def _grad(p: nn.Parameter, count: int) -> Tensor:
    assert p.grad is not None
    return p.grad[:count]
