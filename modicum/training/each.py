"""AdamW and SGD for stacked models: every member has its own rate, schedule, weight decay and clipping."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

BETAS, EPS = (0.9, 0.999), 1e-8
SLOTS = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}
"""What an optimizer keeps of each parameter, of its size."""


@dataclass
class Lead:
    """The parameters' rows of the first `count` members, views made once, and their rates where all have one course."""

    count: int
    rows: dict[nn.Parameter, int]
    values: list[Tensor]
    slots: list[list[Tensor]]
    steps: list[Tensor]
    alike: bool
    decays: bool


class Each(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019) or SGD with momentum on parameters whose rows belong to members.

    `owners[p]`: for each index of p's first axis the member (ascending) that it belongs to. `rates` and `decays` (m,)
    are those of the members, `factors[i](step)` member i's schedule; of a parameter, its last axis' part `decayed[p]`
    is decayed: matrices, as in `groups` of training/optim.py. `clip` bounds the norm of each member's own gradient.
    Only the first `active()` members move.
    """

    def __init__(
        self,
        owners: dict[nn.Parameter, np.ndarray],
        decayed: dict[nn.Parameter, slice],
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
        self.owners, self.decayed, self.kind, self.momentum, self.clip = owners, decayed, kind, momentum, clip
        self.rates, self.decays, self.factors = rates, decays, factors
        self.active, self.now = active, 0
        self._distinct = list(dict.fromkeys(factors))
        self._which = np.array([self._distinct.index(f) for f in factors])
        self._kept: dict[Any, Tensor] = {}
        self._lead: Lead | None = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing: a stack computes its gradients anew, into the same tensors, before this is called."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move the active members; `now` counts the steps taken."""
        del closure
        n = self.active()
        if self._lead is None or self._lead.count != n:
            self._lead = self._prepare(n)
        lead = self._lead
        if self.clip is not None:
            self._clip(lead.rows, n, self.clip)
        grads = [_grad(p, c) for p, c in lead.rows.items()]
        factors = [f(self.now) for f in self._distinct]
        self.now += 1
        if lead.alike:
            self._together(lead, grads, float(self.rates[0]) * factors[0], float(self.decays[0]))
        else:
            self._apart(lead, grads, self.rates[:n] * np.array(factors)[self._which[:n]], self.decays[:n])

    step.hooked = True  # type: ignore[attr-defined] # torch's hooks around a step cost as much as a small stack's step

    def _prepare(self, n: int) -> Lead:
        names = SLOTS[self.kind]
        for p in self.owners:
            if not self.state[p]:
                self.state[p].update({name: torch.zeros_like(p) for name in names})
                if self.kind == "adamw":
                    self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
        rows = {p: int(np.searchsorted(own, n)) for p, own in self.owners.items()}
        same = len(set(self.rates[:n])) == len(set(self.decays[:n])) == len(set(self._which[:n])) == 1
        return Lead(
            n,
            rows,
            [p.data[:c] for p, c in rows.items()],
            [[self.state[p][name][:c] for p, c in rows.items()] for name in names],
            [self.state[p]["step"] for p in rows if self.kind == "adamw"],
            bool(same and self._which[0] == 0),
            bool(self.decays[:n].any()),
        )

    def _together(self, lead: Lead, grads: list[Tensor], rate: float, decay: float) -> None:
        """All members by one rate and decay."""
        if decay:
            for p, x, g in zip(lead.rows, lead.values, grads, strict=True):
                if p not in self.decayed:
                    continue
                own = x[..., self.decayed[p]]
                if self.kind == "sgd":
                    g[..., self.decayed[p]].add_(own, alpha=decay)
                else:
                    own.mul_(1 - rate * decay)
        self._fused(lead.values, grads, lead, rate)

    def _apart(self, lead: Lead, grads: list[Tensor], rates: np.ndarray, decays: np.ndarray) -> None:
        """Each member by its own: one fused pass at rate 1 from zero gives the direction, which its rate scales."""
        for p, x, g in zip(lead.rows, lead.values, grads, strict=True):
            if lead.decays and p in self.decayed:
                own = x[..., self.decayed[p]]
                if self.kind == "sgd":
                    g[..., self.decayed[p]].addcmul_(own, self._rows(p, decays, x))
                else:
                    own.mul_(self._rows(p, 1 - rates * decays, x))
        if self.kind == "sgd":
            for p, x, g, buffer in zip(lead.rows, lead.values, grads, lead.slots[0], strict=True):
                buffer.mul_(self.momentum).add_(g)
                x.addcmul_(buffer, self._rows(p, rates, x), value=-1)
            return
        ways = [self._scratch(p, len(x)).zero_() for p, x in zip(lead.rows, lead.values, strict=True)]
        self._fused(ways, grads, lead, 1.0)
        for p, x, way in zip(lead.rows, lead.values, ways, strict=True):
            x.addcmul_(way, self._rows(p, rates, x))

    def _fused(self, values: list[Tensor], grads: list[Tensor], lead: Lead, rate: float) -> None:
        given: dict[str, Any] = {"fused": True, "lr": rate, "weight_decay": 0.0, "maximize": False}
        if self.kind == "sgd":
            sgd(values, grads, [*lead.slots[0]], momentum=self.momentum, dampening=0.0, nesterov=False, **given)
        else:
            more: dict[str, Any] = {"beta1": BETAS[0], "beta2": BETAS[1], "eps": EPS, "amsgrad": False}
            adamw(values, grads, lead.slots[0], lead.slots[1], [], lead.steps, **given, **more)

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
