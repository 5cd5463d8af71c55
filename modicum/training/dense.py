"""Multilayer perceptrons side by side, forward and backward by hand: one matrix product a layer for all members.

Hidden units come first (m·w, b), so that a member's units are contiguous rows and the first layer of members that share
their batches is a single product; narrower members are padded with units that are zero on both sides, which gradient
descent keeps zero where the activation of 0 is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from modicum.core.types import Batch
from modicum.nn.trunks.mlp import Mlp
from modicum.objectives.supervised import Supervised
from modicum.training.stack import Stack, gradient
from modicum.training.work import Member, Work

aten = torch.ops.aten

READ = 512
"""Rows that outputs are computed of at a time."""

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
    bare = not trunk.depth or (trunk._used == "none" and not trunk.dropout)
    plain = trunk.over == "sample" and bare and trunk.act in ACTIVATIONS
    return plain and next(encoder.embed.parameters(), None) is None


def pads(model: Supervised) -> bool:
    """Whether units that are zero on both sides stay zero."""
    return ACTIVATIONS[_trunk(model).act][3]


@dataclass
class Product:
    """A layer of members of one width: out = weight @ given + bias, and where gradients go; all are (n, ·, b)."""

    weight: Tensor
    bias: Tensor
    given: Tensor
    out: Tensor
    d_weight: Tensor
    d_bias: Tensor
    d_given: Tensor
    d_out: Tensor

    def forward(self) -> None:
        torch.baddbmm(self.bias, self.weight, self.given, out=self.out)

    def backward(self) -> None:
        torch.bmm(self.d_out, self.given.transpose(1, 2), out=self.d_weight)
        torch.sum(self.d_out, 2, out=self.d_bias)
        torch.bmm(self.weight.transpose(1, 2), self.d_out, out=self.d_given)


class Pass:
    """Forward and backward of the first `count` members of a stack on batches of b rows; all views are made once."""

    def __init__(self, stack: Dense, count: int, b: int, shared: bool) -> None:
        self.key, self.act, self.shared = (count, b, shared), stack.act, shared
        everyone, weights, grads = len(stack.members), [p.data for p in stack.parameters()], stack.grads
        # Members that have finished are the last ones of the last, and then only, part.
        rows = len(weights[0]) if len(stack.parts) > 1 else len(weights[0]) // everyone * count
        self.first, self.d_first = weights[0][:rows], grads[0][:rows]
        self.out = stack.room("out", everyone, stack.classes, b)[:count]
        self.delta = stack.room("delta", everyone, stack.classes, b)[:count]
        units = [len(weights[0]), *(everyone * w.shape[1] for w in weights[1 : 2 * stack.depth - 1 : 2])]
        self.zs, self.hs, self.gs = [], [], []
        for k, most in enumerate(units[: stack.depth]):
            used = most // everyone * count if len(stack.parts) == 1 else most
            self.zs.append(stack.room(("z", k), most, b)[:used])
            self.hs.append(self.zs[k] if stack.act[2] else stack.room(("h", k), most, b)[:used])
            self.gs.append(stack.room(("g", k), most, b)[:used])
        self.top = self.zs[0] if stack.depth else self.out.view(-1, b)
        self.d_top = self.gs[0] if stack.depth else self.delta.view(-1, b)
        self.levels: list[list[Product]] = []
        for k in range(1, stack.depth + 1):
            last, level, start = k == stack.depth, [], 0
            for j, part in enumerate(stack.parts):
                own = slice(part.start, min(part.stop, count))
                n, at = own.stop - own.start, 2 * (k + j) - 1
                below = slice(
                    start, start + len(self.hs[k - 1]) if len(stack.parts) == 1 else start + n * stack.wide[j]
                )
                start = below.stop
                level.append(
                    Product(
                        weights[at][:n],
                        weights[at + 1][:n].unsqueeze(2),
                        self.hs[k - 1][below].view(n, -1, b),
                        self.out[own] if last else self.zs[k].view(n, -1, b),
                        grads[at][:n],
                        grads[at + 1][:n],
                        self.gs[k - 1][below].view(n, -1, b),
                        self.delta[own] if last else self.gs[k].view(n, -1, b),
                    )
                )
            self.levels.append(level)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (m, c, b) on x (b, p) or (m, b, p)."""
        if self.shared:
            torch.mm(self.first, x.t(), out=self.top)
        else:
            m, b, p = x.shape
            torch.bmm(self.first.view(m, -1, p), x.transpose(1, 2), out=self.top.view(m, -1, b))
        for k, level in enumerate(self.levels):
            self.act[0](self.zs[k], self.hs[k])
            for product in level:
                product.forward()
        return self.out

    def backward(self, x: Tensor) -> None:
        """All gradients, from that of the outputs in `delta`."""
        for k in reversed(range(len(self.levels))):
            for product in self.levels[k]:
                product.backward()
            self.act[1](self.gs[k], self.zs[k], self.hs[k])
        if self.shared:
            torch.mm(self.d_top, x, out=self.d_first)
        else:
            m, b, p = x.shape
            torch.bmm(self.d_top.view(m, -1, b), x, out=self.d_first.view(m, -1, p))


@final
class Dense(Stack):
    """Perceptrons of one depth and activation; widths differ between `buckets` of members, and within them by padding.

    Several buckets are for members with one hidden layer that share their batches, and take as many steps. The bias of
    the first layer is the last column of its weights, whose input is 1: no pass over the units adds or sums it.
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
        self.grads = [gradient(p) for p in self.parameters()]
        self.kept: dict[Any, Tensor] = {}
        self.eye = torch.eye(self.classes, dtype=work.dtype, device=work.device)
        self.minus = torch.full((1, 1, 1), -1.0, dtype=work.dtype, device=work.device)
        self.passes: dict[str, Pass] = {}
        self.flat, self.place = self._features()

    def _stack(self, models: list[Supervised]) -> None:
        """The members' weights, padded: of the first layer as (units of all, p + 1), of the others as (m, out, in)."""
        everyone = np.arange(len(models))
        states = [dict(m.named_parameters()) for m in models]
        units = np.concatenate([np.full(p.stop - p.start, w) for p, w in zip(self.parts, self.wide, strict=True)])
        if not self.depth:
            units = np.full(len(models), self.classes)
        names = self._names()
        joint = [torch.cat([s[f"{names[0]}.weight"], s[f"{names[0]}.bias"].unsqueeze(1)], 1) for s in states]
        first = [corner(x, (int(n), -1)) for x, n in zip(joint, units, strict=True)]
        self.own("first", torch.cat(first), np.repeat(everyone, units), slice(-1))
        for k, name in enumerate(names[1:], 1):
            for j, (part, wide) in enumerate(zip(self.parts, self.wide, strict=True)):
                out = wide if k < self.depth else -1
                weight = torch.stack([corner(s[f"{name}.weight"], (out, wide)) for s in states[part]])
                self.own(f"{k}.{j}.weight", weight, everyone[part], slice(None))
                bias = [corner(s[f"{name}.bias"], (out,)) for s in states[part]]
                self.own(f"{k}.{j}.bias", torch.stack(bias), everyone[part], None)

    def _names(self) -> list[str]:
        return [f"encoder.trunk.net.{k}.linear" for k in range(self.depth)] + ["head"]

    def _features(self) -> tuple[Tensor, np.ndarray]:
        """The input features of every row that is trained on, read once, and where each is."""
        used = np.unique(np.concatenate([np.unique(m.rows) for m in {m.key[0]: m for m in self.members}.values()]))
        place = np.full(int(used.max()) + 1, -1, np.int64)
        place[used] = np.arange(len(used))
        return torch.cat([self.features(used[i : i + 4096]) for i in range(0, len(used), 4096)]), place

    def features(self, index: np.ndarray) -> Tensor:
        """What the first layer takes of rows: (n, p + 1), the last column of ones."""
        batch = {k: v.to(self.work.device) for k, v in self.work.source.rows(index).items()}
        tokens = self.model[0].encoder.embed(batch)  # type: ignore[operator]
        x = tokens.x if tokens.mask is None else tokens.x.masked_fill(~tokens.mask.unsqueeze(-1), 0)
        return F.pad(x.flatten(1).to(self.work.dtype), (0, 1), value=1.0)

    def read(self, rows: np.ndarray) -> Batch:
        at = torch.from_numpy(self.place[rows.ravel()]).to(self.flat.device)
        x = self.room("x", rows.size, self.flat.shape[1])
        torch.index_select(self.flat, 0, at, out=x)
        return {"x": x.view(*rows.shape, -1)}

    def room(self, name: Any, *shape: int) -> Tensor:
        """Memory that is kept from step to step, of the last shape asked for and its batch size."""
        key = (name, shape[-1])
        if key not in self.kept or self.kept[key].shape != shape:
            self.kept[key] = torch.empty(shape, dtype=self.work.dtype, device=self.work.device)
        return self.kept[key]

    def run(self, use: str, x: Tensor, count: int) -> Pass:
        """Forward on x (b, p) or (m, b, p); what is prepared for a `use` is kept until its sizes change."""
        key = count, x.shape[-2], x.dim() == 2
        if use not in self.passes or self.passes[use].key != key:
            self.passes[use] = Pass(self, *key)
        self.passes[use].forward(x)
        return self.passes[use]

    def compute(self, batch: Batch) -> Tensor:
        x = batch["x"]
        made = self.run("train", x, self.active)
        losses = self._loss(made.out, batch["target"], made.delta)
        made.backward(x)
        return losses

    def _loss(self, out: Tensor, target: Tensor, delta: Tensor) -> Tensor:
        """Losses (m,) of outputs (m, c, b); their gradient by the outputs is put into `delta`."""
        b = out.shape[2]
        model = self.model[0]
        if model.task == "classes":
            torch.softmax(out, 1, out=delta)
            if target.stride(0) == 0:  # one for all members: its matrix of ones is a few columns
                ones = self.eye.index_select(1, target[0])
                own = torch.mul(delta, ones).sum(1)
                delta.sub_(ones)
            else:
                at = target.unsqueeze(1)
                own = delta.gather(1, at).squeeze(1)
                delta.scatter_add_(1, at, self.minus.expand(at.shape))
            delta.mul_(1 / b)
            # Of probabilities, so that a loss beyond 87 is told as 87: what is told alone, the gradient is exact.
            return own.clamp_(min=torch.finfo(torch.float32).tiny).log_().sum(1).mul_(-1 / b)
        torch.sub(out, ((target - model.shift) / model.scale).to(out.dtype).unsqueeze(1), out=delta)  # type: ignore[operator]
        losses = delta.square().sum((1, 2)).mul_(1 / b)
        delta.mul_(2 / b)
        return losses

    def outputs(self, index: np.ndarray) -> Tensor:
        parts = []
        with torch.no_grad():
            for start in range(0, len(index), READ):
                made = self.run("read", self.features(index[start : start + READ]), len(self.members))
                parts.append(made.out.transpose(1, 2).clone())
        return torch.cat(parts, 1)

    def alone(self, i: int, index: np.ndarray) -> Tensor:
        model = self.member(i)
        parts = [index[k : k + READ] for k in range(0, len(index), READ)]
        with torch.no_grad():
            net: Any = _trunk(model).net
            return torch.cat([model.head(net(self.features(at)[:, :-1])) for at in parts])

    def member(self, i: int) -> Supervised:
        made = self.work.build(self.members[i])
        values = {name: p.data for name, p in self.named_parameters()}
        first = values["first"][torch.from_numpy(self.owners[self.get_parameter("first")] == i)]
        part = next(j for j, p in enumerate(self.parts) if p.start <= i < p.stop)
        for k, name in enumerate(self._names()):
            for kind in ("weight", "bias"):
                if k == 0:
                    value = first[:, :-1] if kind == "weight" else first[:, -1]
                else:
                    value = values[f"{k}/{part}/{kind}"][i - self.parts[part].start]
                own = made.get_parameter(f"{name}.{kind}").data
                own.copy_(value[tuple(slice(n) for n in own.shape)])
        return made


def _trunk(model: Supervised) -> Any:
    return model.encoder.trunk


def corner(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """x in the first corner of zeros of `shape` (-1: as it is)."""
    sizes = [n if n > 0 else own for n, own in zip(shape, x.shape, strict=True)]
    out = x.detach().new_zeros(sizes)
    out[tuple(slice(n) for n in x.shape)] = x.detach()
    return out
