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

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move the active members; `now` counts the steps taken."""
        del closure
        n = self.active()
        factor = np.array([f(self.now) for f in self._distinct])[self._which[:n]]
        rates, decays = self.rates[:n] * factor, self.decays[:n]
        lead = {p: int(np.searchsorted(own, n)) for p, own in self.owners.items() if p.grad is not None}
        if self.clip is not None:
            self._clip(lead, n)
        for p, count in lead.items():
            wd = decays if p in self.matrices else np.zeros(n)
            self._move(p, count, rates, wd)
        self.now += 1

    def _move(self, p: nn.Parameter, count: int, rates: np.ndarray, decays: np.ndarray) -> None:
        x, g = p.data[:count], p.grad[:count]  # type: ignore[index]
        state = self.state[p]
        if not state:
            names = ("exp_avg", "exp_avg_sq") if self.kind == "adamw" else ("momentum_buffer",)
            state.update({name: torch.zeros_like(p) for name in names})
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
        alike = bool((rates == rates[0]).all() and (decays == decays[0]).all())
        if self.kind == "adamw":
            self._adamw(p, x, g, state, rates, decays, alike)
        else:
            self._sgd(p, x, g, state["momentum_buffer"][:count], rates, decays, alike)
            state["step"] += 1

    def _adamw(self, p: nn.Parameter, x: Tensor, g: Tensor, state: Any, rates: Any, decays: Any, alike: bool) -> None:
        first, second = state["exp_avg"][: len(x)], state["exp_avg_sq"][: len(x)]
        given: dict[str, Any] = {"beta1": BETAS[0], "beta2": BETAS[1], "eps": EPS, "amsgrad": False, "maximize": False}
        if alike:
            rate, decay = float(rates[0]), float(decays[0])
            adamw([x], [g], [first], [second], [], [state["step"]], fused=True, lr=rate, weight_decay=decay, **given)
            return
        # One fused pass at rate 1 from zero gives the direction; the members' own rates scale it.
        way = self._scratch(p, len(x)).zero_()
        adamw([way], [g], [first], [second], [], [state["step"]], fused=True, lr=1.0, weight_decay=0.0, **given)
        if decays.any():
            x.mul_(self._rows(p, 1 - rates * decays, x))
        x.addcmul_(way, self._rows(p, rates, x))

    def _sgd(self, p: nn.Parameter, x: Tensor, g: Tensor, buffer: Tensor, rates: Any, decays: Any, alike: bool) -> None:
        if alike:
            rate, decay = float(rates[0]), float(decays[0])
            given = {"momentum": self.momentum, "dampening": 0.0, "nesterov": False, "maximize": False}
            sgd([x], [g], [buffer], fused=True, lr=rate, weight_decay=decay, **given)
            return
        buffer.mul_(self.momentum).add_(g)
        if decays.any():
            buffer.addcmul_(x, self._rows(p, decays, x))
        x.addcmul_(buffer, self._rows(p, rates, x), value=-1)

    def _rows(self, p: nn.Parameter, values: np.ndarray, like: Tensor) -> Tensor:
        """The members' values for each index of the first axis, to multiply `like` with."""
        own = self.owners[p][: len(like)]
        return torch.from_numpy(values[own]).to(like).view(-1, *[1] * (like.dim() - 1))

    def _scratch(self, p: nn.Parameter, count: int) -> Tensor:
        if p not in self._kept:
            self._kept[p] = torch.empty_like(p)
        return self._kept[p][:count]

    def _clip(self, lead: dict[nn.Parameter, int], n: int) -> None:
        """Scale each member's gradient to a norm of at most `clip`."""
        square = torch.zeros(n, dtype=next(iter(lead)).dtype, device=next(iter(lead)).device)
        for p, count in lead.items():
            own = torch.from_numpy(self.owners[p][:count]).to(p.device)
            square.index_add_(0, own, p.grad[:count].flatten(1).square().sum(1) if p.dim() > 1 else p.grad[:count] ** 2)  # type: ignore[index]
        scale = (self.clip / (square.sqrt() + 1e-6)).clamp(max=1.0)  # type: ignore[operator]
        for p, count in lead.items():
            own = torch.from_numpy(self.owners[p][:count]).to(p.device)
            p.grad[:count].mul_(scale[own].view(-1, *[1] * (p.dim() - 1)))  # type: ignore[index]
