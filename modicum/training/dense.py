"""Multilayer perceptrons side by side, forward and backward by hand: one matrix product a layer for all members.

Hidden units come first (m·w, b), so that a member's units are contiguous rows and the first layer of members that share
their batches is a single product; narrower members are padded with units that are zero on both sides, which gradient
descent keeps zero where the activation of 0 is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from modicum.core.types import Batch
from modicum.nn.trunks.mlp import Mlp
from modicum.objectives.supervised import Supervised
from modicum.training.stack import Stack
from modicum.training.work import Member, Work

aten = torch.ops.aten

Forward = Callable[[Tensor, Tensor], Any]
Backward = Callable[[Tensor, Tensor, Tensor], Any]
ACTIVATIONS: dict[str, tuple[Forward, Backward, bool, bool]] = {
    "relu": (
        lambda z, h: torch.clamp(z, min=0, out=h),
        lambda g, z, h: aten.threshold_backward.grad_input(g, h, 0, grad_input=g),
        True,
        True,
    ),
    "tanh": (
        lambda z, h: torch.tanh(z, out=h),
        lambda g, z, h: aten.tanh_backward.grad_input(g, h, grad_input=g),
        True,
        True,
    ),
    "sigmoid": (
        lambda z, h: torch.sigmoid(z, out=h),
        lambda g, z, h: aten.sigmoid_backward.grad_input(g, h, grad_input=g),
        True,
        False,
    ),
    "gelu": (
        lambda z, h: aten.gelu.out(z, out=h),
        lambda g, z, h: aten.gelu_backward.grad_input(g, z, grad_input=g),
        False,
        True,
    ),
    "silu": (
        lambda z, h: aten.silu.out(z, out=h),
        lambda g, z, h: aten.silu_backward.grad_input(g, z, grad_input=g),
        False,
        True,
    ),
}
"""Forward z -> h and backward (g, z, h) -> g in place, whether h may take z's memory, and whether f(0) = 0."""


def eligible(model: Supervised) -> bool:
    """Whether a model is a plain perceptron on inputs of which nothing is learned."""
    encoder: Any = model.encoder
    trunk = getattr(encoder, "trunk", None)
    if not isinstance(trunk, Mlp) or encoder.pool not in ("own", "mean") or encoder.embed.ragged or encoder.embed.first:
        return False
    plain = trunk.over == "sample" and trunk._used == "none" and not trunk.dropout and trunk.act in ACTIVATIONS
    return plain and next(encoder.embed.parameters(), None) is None


def pads(model: Supervised) -> bool:
    """Whether units that are zero on both sides stay zero."""
    return ACTIVATIONS[_trunk(model).act][3]


@final
class Dense(Stack):
    """Perceptrons of one depth and activation; widths differ between `buckets` of members, and within them by padding.

    Several buckets are for members with one hidden layer that share their batches, and take as many steps.
    """

    def __init__(self, members: Sequence[Member], work: Work, buckets: Sequence[int] | None = None) -> None:
        super().__init__(members, work)
        models = [work.build(m) for m in members]
        self.model = [models[0]]  # in a list: no child
        trunk = _trunk(models[0])
        self.depth, self.act = trunk.depth, ACTIVATIONS[trunk.act]
        self.widths: list[int] = [_trunk(m).width if self.depth else 0 for m in models]
        sizes = list(buckets or [len(members)])
        ends = np.cumsum(sizes).tolist()
        self.parts = [slice(e - s, e) for e, s in zip(ends, sizes, strict=True)]
        assert len(self.parts) == 1 or (self.depth == 1 and self.streams.shared)
        self.wide: list[int] = [max(self.widths[p]) for p in self.parts]
        self.classes = models[0].outputs
        self._stack(models)
        self.grads = [torch.zeros_like(p) for p in self.parameters()]
        self.kept: dict[Any, Tensor] = {}
        self.flat, self.place = self._features()

    def _stack(self, models: list[Supervised]) -> None:
        """The members' weights, padded: of the first layer as (units of all, p), of the others as (m, out, in)."""
        everyone = np.arange(len(models))
        states = [dict(m.named_parameters()) for m in models]
        units = np.concatenate([np.full(p.stop - p.start, w) for p, w in zip(self.parts, self.wide, strict=True)])
        if not self.depth:
            units = np.full(len(models), self.classes)
        names = [f"encoder.trunk.net.{k}.linear" for k in range(self.depth)] + ["head"]
        owner = np.repeat(everyone, units)
        first = [corner(s[f"{names[0]}.weight"], (int(n), -1)) for s, n in zip(states, units, strict=True)]
        self.own("first.weight", torch.cat(first), owner, True)
        bias = [corner(s[f"{names[0]}.bias"], (int(n),)) for s, n in zip(states, units, strict=True)]
        self.own("first.bias", torch.cat(bias), owner, False)
        for k, name in enumerate(names[1:], 1):
            for j, (part, wide) in enumerate(zip(self.parts, self.wide, strict=True)):
                out = wide if k < self.depth else -1
                weight = torch.stack([corner(s[f"{name}.weight"], (out, wide)) for s in states[part]])
                self.own(f"{k}.{j}.weight", weight, everyone[part], True)
                bias = [corner(s[f"{name}.bias"], (out,)) for s in states[part]]
                self.own(f"{k}.{j}.bias", torch.stack(bias), everyone[part], False)

    def _features(self) -> tuple[Tensor, np.ndarray]:
        """The input features of every row that is trained on, read once, and where each is."""
        used = np.unique(np.concatenate([np.unique(m.rows) for m in {m.key[0]: m for m in self.members}.values()]))
        place = np.full(int(used.max()) + 1, -1, np.int64)
        place[used] = np.arange(len(used))
        return torch.cat([self.features(used[i : i + 4096]) for i in range(0, len(used), 4096)]), place

    def features(self, index: np.ndarray) -> Tensor:
        """What the first layer takes of rows: (n, p)."""
        batch = {k: v.to(self.work.device) for k, v in self.work.source.rows(index).items()}
        tokens = self.model[0].encoder.embed(batch)  # type: ignore[operator]
        x = tokens.x if tokens.mask is None else tokens.x.masked_fill(~tokens.mask.unsqueeze(-1), 0)
        return x.flatten(1).to(self.work.dtype)

    def read(self, rows: np.ndarray) -> Batch:
        at = torch.from_numpy(self.place[rows.ravel()]).to(self.flat.device)
        x = self.room("x", len(at), self.flat.shape[1])
        torch.index_select(self.flat, 0, at, out=x)
        return {"x": x.view(*rows.shape, -1)}

    def publish(self) -> None:
        for p, grad in zip(self.parameters(), self.grads, strict=True):
            p.grad = grad

    def room(self, name: Any, *shape: int) -> Tensor:
        """Memory that is kept from step to step."""
        key = (name, *shape)
        if key not in self.kept:
            self.kept[key] = torch.empty(shape, dtype=self.work.dtype, device=self.work.device)
        return self.kept[key]

    def run(self, x: Tensor, count: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Outputs (m, c, b) of the first `count` members on x (b, p) or (m, b, p), and what each layer made."""
        weights = [p.data for p in self.parameters()]
        b = x.shape[-2]
        per = weights[0].shape[0] // len(self.members) if len(self.parts) == 1 else 0
        rows = per * count if per else len(weights[0])
        w0, b0 = weights[0][:rows], weights[1][:rows].unsqueeze(1)
        z = self.room("z0", rows, b)
        if x.dim() == 2:
            torch.addmm(b0, w0, x.t(), out=z)
        else:
            torch.baddbmm(b0.view(count, per, 1), w0.view(count, per, -1), x.transpose(1, 2), out=z.view(count, per, b))
        if not self.depth:
            return z.view(count, self.classes, b), [], []
        zs, hs = [z], [self._activate(z, 0)]
        for k in range(1, self.depth):
            w, bias = weights[2 * k][:count], weights[2 * k + 1][:count].unsqueeze(2)
            z = self.room(("z", k), count, w.shape[1], b)
            torch.baddbmm(bias, w, hs[-1].view(count, -1, b), out=z)
            zs.append(z)
            hs.append(self._activate(z, k))
        out = self.room("out", count, self.classes, b)
        for j, (own, units) in enumerate(self._segments(count)):
            w, bias = weights[2 * (self.depth + j)], weights[2 * (self.depth + j) + 1]
            n = own.stop - own.start
            h = hs[-1].view(-1, b)[units].view(n, -1, b)
            torch.baddbmm(bias[:n].unsqueeze(2), w[:n], h, out=out[own])
        return out, zs, hs

    def _segments(self, count: int) -> list[tuple[slice, slice]]:
        """Of every bucket its members and its units of the last hidden layer."""
        found, start = [], 0
        for part, wide in zip(self.parts, self.wide, strict=True):
            own = slice(part.start, min(part.stop, count))
            units = wide * (own.stop - own.start)
            found.append((own, slice(start, start + units)))
            start += units
        return found

    def _activate(self, z: Tensor, k: int) -> Tensor:
        h = z if self.act[2] else self.room(("h", k), *z.shape)
        self.act[0](z, h)
        return h

    def compute(self, batch: Batch) -> Tensor:
        x, target, count = batch["x"], batch["target"], self.active
        out, zs, hs = self.run(x, count)
        losses, delta = self._loss(out, target)
        b = x.shape[-2]
        grads = self.grads
        if self.depth:
            weights = [p.data for p in self.parameters()]
            g = self.room(("g", self.depth), *hs[-1].shape)
            for j, (own, units) in enumerate(self._segments(count)):
                at, n = 2 * (self.depth + j), own.stop - own.start
                d, h = delta[own], hs[-1].view(-1, b)[units].view(n, -1, b)
                torch.bmm(d, h.transpose(1, 2), out=grads[at][:n])
                torch.sum(d, 2, out=grads[at + 1][:n])
                torch.bmm(weights[at][:n].transpose(1, 2), d, out=g.view(-1, b)[units].view(n, -1, b))
            self.act[1](g, zs[-1], hs[-1])
            for k in range(self.depth - 1, 0, -1):
                wide = g.view(count, -1, b)
                torch.bmm(wide, hs[k - 1].view(count, -1, b).transpose(1, 2), out=grads[2 * k][:count])
                torch.sum(wide, 2, out=grads[2 * k + 1][:count])
                before = self.room(("g", k), *hs[k - 1].shape)
                torch.bmm(weights[2 * k][:count].transpose(1, 2), wide, out=before.view(count, -1, b))
                self.act[1](before, zs[k - 1], hs[k - 1])
                g = before
        else:
            g = delta
        first = g.reshape(-1, b)
        rows = len(first)
        if x.dim() == 2:
            torch.mm(first, x, out=grads[0][:rows])
        else:
            torch.bmm(first.view(count, -1, b), x, out=grads[0][:rows].view(count, -1, x.shape[2]))
        torch.sum(first, 1, out=grads[1][:rows])
        return losses

    def _loss(self, out: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (m,) of outputs (m, c, b) and their gradient by the outputs."""
        b = out.shape[2]
        model = self.model[0]
        if model.task == "classes":
            delta, at = torch.softmax(out, 1), target.unsqueeze(1)
            # Of probabilities, so that a loss beyond 87 is told as 87: what is told alone, the gradient is exact.
            losses = -delta.gather(1, at).clamp_(min=torch.finfo(torch.float32).tiny).log_().sum((1, 2)) / b
            delta.scatter_add_(1, at, delta.new_full((1, 1, 1), -1.0).expand(at.shape))
            return losses, delta.mul_(1 / b)
        away = out - ((target - model.shift) / model.scale).to(out.dtype).unsqueeze(1)  # type: ignore[operator]
        return away.square().sum((1, 2)) / b, away.mul(2 / b)

    def outputs(self, index: np.ndarray) -> Tensor:
        parts = []
        with torch.no_grad():
            for start in range(0, len(index), 512):
                out, *_ = self.run(self.features(index[start : start + 512]), len(self.members))
                parts.append(out.transpose(1, 2).clone())
        return torch.cat(parts, 1)

    def alone(self, i: int, index: np.ndarray) -> Tensor:
        model = self.member(i)
        parts = [index[k : k + 512] for k in range(0, len(index), 512)]
        with torch.no_grad():
            return torch.cat([model.head(model.encoder.trunk.net(self.features(at))) for at in parts])  # type: ignore

    def member(self, i: int) -> Supervised:
        made = self.work.build(self.members[i])
        values = dict(zip([n for n, _ in self.named_parameters()], self.parameters(), strict=True))
        names = [f"encoder.trunk.net.{k}.linear" for k in range(self.depth)] + ["head"]
        part = next(j for j, p in enumerate(self.parts) if p.start <= i < p.stop)
        units = self.owners[values["first/weight"]] == i
        with torch.no_grad():
            for k, name in enumerate(names):
                for kind in ("weight", "bias"):
                    own = made.get_parameter(f"{name}.{kind}")
                    if k == 0:
                        value = values[f"first/{kind}"][torch.from_numpy(units)]
                    else:
                        value = values[f"{k}/{part}/{kind}"][i - self.parts[part].start]
                    own.copy_(value[tuple(slice(s) for s in own.shape)])
        return made


def _trunk(model: Supervised) -> Any:
    return model.encoder.trunk


def corner(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """x in the first corner of zeros of `shape` (-1: as it is)."""
    sizes = [n if n > 0 else own for n, own in zip(shape, x.shape, strict=True)]
    out = x.detach().new_zeros(sizes)
    out[tuple(slice(n) for n in x.shape)] = x.detach()
    return out
