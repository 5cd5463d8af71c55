"""Models of one shape side by side: their batches, their objective for `fit`, and three ways to compute gradients."""

from __future__ import annotations

import copy
import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from modicum.core import seeds
from modicum.core.types import Batch, Corrupted, Objective
from modicum.objectives.supervised import Supervised
from modicum.training.abreast import Abreast, corners, widened
from modicum.training.apply import evaluating
from modicum.training.work import Member, Work

WINDOW = 1 << 18
"""Row numbers of batches that are drawn ahead: few enough to stay in cache."""


class Streams:
    """The rows and targets of every member's batches, as `Batches` of its rows and order would draw them.

    `at(step, active)`: row numbers (a, b) and targets (a, b) of the first `active` members; where all members share
    their rows and their order (`shared`), the row numbers are (b,), and where their targets are `alike` these are too.
    """

    def __init__(self, members: Sequence[Member], work: Work) -> None:
        self.members, self.work = members, work
        self.batch = min(members[0].batch, len(members[0].rows))
        self.shared = len({m.key for m in members}) == 1
        self.targets = [work.targets[m.rows] if m.targets is None else m.targets for m in members]
        self.alike = self.shared and all(
            t is self.targets[0] or np.array_equal(t, self.targets[0]) for t in self.targets
        )
        self.ahead = max(1, min(256, WINDOW // (self.batch * (1 if self.shared else len(members)))))
        self.start, self.rows, self.true = -1, np.empty(0), np.empty(0)
        self.orders: dict[int, tuple[int, np.ndarray]] = {}

    def at(self, step: int, active: int) -> tuple[np.ndarray, np.ndarray]:
        start = step - step % self.ahead
        if start != self.start:
            self.start = start
            self._draw(start)
        k = step - start
        return (self.rows[k] if self.shared else self.rows[k, :active]), (
            self.true[k] if self.alike else self.true[k, :active]
        )

    def _draw(self, start: int) -> None:
        count = len(self.members)
        if self.shared:
            place = self._positions(0, start)
            self.rows = self.members[0].rows[place]
            first = self.targets[0][place]
            self.true = first if self.alike else np.stack([t[place] for t in self.targets], 1)
            return
        if not self.rows.size:
            self.rows = np.empty((self.ahead, count, self.batch), np.int64)
            self.true = np.empty((self.ahead, count, self.batch), self.targets[0].dtype)
        for i, (m, target) in enumerate(zip(self.members, self.targets, strict=True)):
            place = self._positions(i, start)
            np.take(m.rows, place, out=self.rows[:, i])
            np.take(target, place, out=self.true[:, i])

    def _positions(self, member: int, start: int) -> np.ndarray:
        """Places among the member's rows of `ahead` batches from step `start` on: (ahead, b)."""
        own = self.members[member]
        per = len(own.rows) // self.batch
        out = np.empty((self.ahead, self.batch), np.int64)
        k = 0
        while k < self.ahead:
            epoch, turn = divmod(start + k, per)
            kept, order = self.orders.get(member, (-1, np.empty(0)))
            if kept != epoch:
                order = np.arange(len(own.rows), dtype=np.int32)
                seeds.numpy(own.shuffle, "order", epoch).shuffle(order)
                self.orders[member] = epoch, order
            count = min(per - turn, self.ahead - k)
            out[k : k + count] = order[turn * self.batch : (turn + count) * self.batch].reshape(count, self.batch)
            k += count
        return out


class Stack(Objective):
    """Supervised models of one shape as one objective: parameters have the member as their first axis.

    The members come sorted by steps, most first: those that have finished are the last, and take no more part. The loss
    is the sum of the members' losses; gradients are computed with it.
    """

    def __init__(self, members: Sequence[Member], work: Work) -> None:
        super().__init__()
        self.members, self.work = list(members), work
        self.streams = Streams(members, work)
        self.active = len(members)
        self.steps = np.array([m.steps for m in members])
        self.owners: dict[nn.Parameter, np.ndarray] = {}
        self.decayed: dict[nn.Parameter, slice] = {}
        self.anchor = torch.zeros((), requires_grad=True)  # what a backward pass of the loss, long done, ends at

    def own(self, name: str, value: Tensor, owner: np.ndarray, decayed: slice | None) -> nn.Parameter:
        """Register a stacked parameter whose first axis belongs to the members `owner`, and what of its last decays."""
        p = nn.Parameter(value)
        p.grad = torch.zeros_like(value)
        self.register_parameter(name.replace(".", "/"), p)
        self.owners[p] = owner
        if decayed is not None:
            self.decayed[p] = decayed
        return p

    def batches(self, step: int) -> Batch:
        """What the active members see at a step."""
        self.active = int((self.steps > step).sum())
        rows, true = self.streams.at(step, self.active)
        return {**self.read(rows), "target": torch.from_numpy(true).expand(self.active, -1)}

    def read(self, rows: np.ndarray) -> Batch:
        """Raw rows of shape (b,) or (a, b)."""
        batch = self.work.source.rows(rows.ravel())
        return batch if rows.ndim == 1 else {k: v.view(*rows.shape, *v.shape[1:]) for k, v in batch.items()}

    def corrupt(self, batch: Batch, rng: Generator) -> Corrupted:
        return batch

    def forward(self, corrupted: Corrupted) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            losses = self.compute(dict(corrupted))
        return self.anchor + losses.sum(), {"losses": losses}

    @abstractmethod
    def compute(self, batch: Batch) -> Tensor:
        """The active members' losses (a,); their gradients are put into those that the parameters have."""

    @abstractmethod
    def outputs(self, index: np.ndarray) -> Tensor:
        """Logits or numbers (m, n, c) of all members on the same rows."""

    @abstractmethod
    def alone(self, i: int, index: np.ndarray) -> Tensor:
        """Logits or numbers (n, c) of member i on rows."""

    @abstractmethod
    def member(self, i: int) -> Supervised:
        """Member i by itself."""

    def encoders(self) -> dict[str, Any]:
        return {}


@final
class Modules(Stack):
    """Members of any architecture, by one of three plans: vmap, grouped convolution, or the plain loop."""

    def __init__(self, members: Sequence[Member], work: Work, plan: str) -> None:
        super().__init__(members, work)
        self.plan = plan
        self.models = [work.build(m) for m in members]
        self.padded = len({m.encoder for m in members}) > 1
        if self.padded:
            trunks: list[Any] = [model.encoder.trunk for model in self.models]
            wide = self.models[int(np.argmax([t.width for t in trunks]))]
            self.models = [widened(model, wide) for model in self.models]
        self.grads: dict[str, Tensor] = {}
        self.buffers_: dict[str, Tensor] = {}
        everyone = np.arange(len(members))
        parts = [dict(m.named_parameters()) for m in self.models]
        for name, like in parts[0].items():
            value = stacked([p[name].data for p in parts])
            kept = self.own(name, value, everyone, slice(None) if like.dim() > 1 else None)
            self.grads[name] = gradient(kept)
            for i, p in enumerate(parts):  # the members are views: what moves the stack moves them
                p[name].data, p[name].grad = kept.data[i], self.grads[name][i]
        own = [dict(m.named_buffers()) for m in self.models]
        for name in own[0]:
            value = torch.stack([b[name] for b in own])
            self.register_buffer("buffer/" + name.replace(".", "/"), value)
            for i, model in enumerate(self.models):
                place, _, last = name.rpartition(".")
                model.get_submodule(place)._buffers[last] = value[i]
            self.buffers_[name] = value
        self._template = [Plain(copy.deepcopy(self.models[0]))]  # in a list: no child, its tensors are not the stack's
        self._wide: list[Any] = []

    def named(self) -> list[tuple[str, nn.Parameter]]:
        return [(name.replace("/", "."), p) for name, p in self._parameters.items() if p is not None]

    def compute(self, batch: Batch) -> Tensor:
        return {"loop": self._loop, "vmap": self._vmap, "grouped": self._grouped}[self.plan](batch)

    def _one(self, batch: Batch, i: int) -> Batch:
        """Member i's part of a batch."""
        lone = {"target"} if self.streams.shared else set(batch)
        return {k: v[i] if k in lone else v for k, v in batch.items()}

    def _loop(self, batch: Batch) -> Tensor:
        for grad in self.grads.values():
            grad[: self.active].zero_()
        losses = []
        for i in range(self.active):
            with torch.enable_grad():
                loss = plain_loss(self.models[i].train(self.training), self._one(batch, i))
            loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses)

    def _vmap(self, batch: Batch) -> Tensor:
        n = self.active
        with torch.enable_grad():
            params = {f"model.{k}": p.data[:n].detach().requires_grad_() for k, p in self.named()}
            buffers = {f"model.{k}": b[:n] for k, b in self.buffers_.items()}
            axes = {k: 0 if not self.streams.shared or k == "target" else None for k in batch}
            template = self._template[0].train(self.training)

            def one(p: Any, b: Any, rows: Batch) -> Tensor:
                return functional_call(template, (p, b), (rows,))

            with sdpa_kernel(SDPBackend.MATH):  # the fused one has no batching rule: it would loop over members
                losses = vmap(one, (0, 0, axes), randomness="different")(params, buffers, batch)
            found = torch.autograd.grad(losses.sum(), list(params.values()))
        for (name, _), grad in zip(self.named(), found, strict=True):
            self.grads[name][:n] = grad
        return losses.detach()

    def _grouped(self, batch: Batch) -> Tensor:
        n = self.active
        if not self._wide or self._wide[0].count != n:
            self._wide = [Abreast(self.models[0], n)]
        with torch.enable_grad():
            params = {k: p.data[:n].detach().requires_grad_() for k, p in self.named()}
            out = self._wide[0](params, {k: b[:n] for k, b in self.buffers_.items()}, batch, self.streams.shared)
            losses = losses_of(self.models[0], out, batch["target"])
            found = torch.autograd.grad(losses.sum(), list(params.values()))
        for (name, _), grad in zip(self.named(), found, strict=True):
            self.grads[name][:n] = grad
        return losses.detach()

    def outputs(self, index: np.ndarray) -> Tensor:
        return torch.cat([self._heads(self.models, at) for at in np.split(index, range(512, len(index), 512))], 1)

    def alone(self, i: int, index: np.ndarray) -> Tensor:
        return torch.cat([self._heads([self.models[i]], at)[0] for at in np.split(index, range(512, len(index), 512))])

    def _heads(self, models: Sequence[Supervised], index: np.ndarray) -> Tensor:
        """What models say (m, n, c) of a few rows."""
        batch = {k: v.to(self.work.device) for k, v in self.read(index).items()}
        out = []
        for model in models:
            with evaluating(model):
                out.append(model.head(model.encoder(batch).pooled))
        return torch.stack(out)

    def member(self, i: int) -> Supervised:
        if not self.padded:
            return copy.deepcopy(self.models[i])
        made = self.work.build(self.members[i])
        places = corners(made, self.models[i])
        values = dict(self.models[i].named_parameters()) | dict(self.models[i].named_buffers())
        with torch.no_grad():
            for name, x in [*made.named_parameters(), *made.named_buffers()]:
                x.copy_(values[name][places[name]])
        return made


class Plain(nn.Module):
    """A supervised model as a function of a batch to its loss."""

    def __init__(self, model: Supervised) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return plain_loss(self.model, batch)


def plain_loss(model: Supervised, batch: Batch) -> Tensor:
    """The loss of `Supervised` on labelled rows, without its measures."""
    rows = {k: v for k, v in batch.items() if k != "target"}
    out = model.head(model.encoder(rows).pooled)
    target = batch["target"]
    if model.task == "classes":
        return F.cross_entropy(out, target)
    return (out.squeeze(1) - (target - model.shift) / model.scale).square().mean()  # type: ignore[operator]


def losses_of(model: Supervised, out: Tensor, target: Tensor) -> Tensor:
    """Losses (m,) of outputs (m, b, c)."""
    if model.task == "classes":
        return F.cross_entropy(out.flatten(0, 1), target.flatten(), reduction="none").view(len(out), -1).mean(1)
    return (out.squeeze(2) - (target - model.shift) / model.scale).square().mean(1)  # type: ignore[operator]


def gradient(p: nn.Parameter) -> Tensor:
    """The tensor that a parameter's gradient is put into."""
    assert p.grad is not None
    return p.grad


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """Tensors of one shape on a new first axis, each in the memory format of the first."""
    first = parts[0]
    if first.dim() == 4 and first.is_contiguous(memory_format=torch.channels_last) and not first.is_contiguous():
        return torch.stack([p.permute(0, 2, 3, 1) for p in parts]).permute(0, 1, 4, 2, 3)
    return torch.stack(list(parts))


def timed(stack: Stack, optimizer: Any = None, least: float = 0.1) -> float:
    """Seconds that a step takes, without its batch: the best of at least three, after one to warm up.

    `optimizer` must leave the weights as they are: one at a rate of 0.
    """
    batch, best, began = stack.batches(0), float("inf"), time.perf_counter()
    kept = {k: b.clone() for k, b in stack.named_buffers()}
    device = next(stack.parameters()).device
    batch = {k: v.to(device) for k, v in batch.items()}
    stack.train()
    for k in range(100):
        start = time.perf_counter()
        with torch.no_grad():
            stack.compute(batch)
        if optimizer is not None:
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if k:
            best = min(best, time.perf_counter() - start)
        if k >= 3 and time.perf_counter() - began > least:
            break
    for name, b in stack.named_buffers():
        b.copy_(kept[name])
    return best
