"""Convolutional networks side by side: one of m times the channels, whose convolutions are grouped by member."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from modicum.core.types import Batch
from modicum.nn.trunks.convnet import ConvNet
from modicum.objectives.supervised import Supervised


class Abreast:
    """`count` copies of a model on a `convnet` as one pass of grouped convolutions and norms."""

    def __init__(self, model: Supervised, count: int) -> None:
        self.count, self.encoder = count, model.encoder
        self.trunk: ConvNet = copy.deepcopy(model.encoder.trunk)  # type: ignore[assignment]
        self.trunk.abreast = count
        self.trunk.dim *= count
        for module in list(self.trunk.modules()):
            for name, child in module.named_children():
                if (wide := _wider(child, count)) is not None:
                    setattr(module, name, wide)

    @staticmethod
    def can(model: Supervised) -> bool:
        """Whether the model is one that can stand side by side."""
        encoder: Any = model.encoder
        plain = isinstance(getattr(encoder, "trunk", None), ConvNet) and encoder.pool == "own"
        return plain and next(encoder.embed.parameters(), None) is None

    @staticmethod
    def kind(model: Supervised) -> tuple[Any, ...]:
        """What models have in common of which the narrower is the wider one with channels that are and stay zero.

        That holds where norms are of single channels, or of groups of as many channels in both.
        """
        t: Any = model.encoder.trunk
        groups = tuple(m.num_channels // m.num_groups for m in t.modules() if isinstance(m, nn.GroupNorm))
        return t.stages, t.blocks, t.kernel, t.stride, t.norm, t.cells, groups

    def __call__(self, params: dict[str, Tensor], buffers: dict[str, Tensor], batch: Batch, shared: bool) -> Tensor:
        """Outputs (m, b, c) of stacked parameters on rows (b, ...), or of each member's own (m, b, ...)."""
        m = self.count
        rows = {k: v if shared else v.flatten(0, 1) for k, v in batch.items() if k != "target"}
        tokens = self.encoder.embed(rows)  # type: ignore[operator]
        x = tokens.x
        b, (t, c) = len(x) if shared else len(x) // m, x.shape[1:]
        if shared:
            x = x.unsqueeze(2).expand(b, t, m, c)
        else:
            x = x.view(m, b, t, c).permute(1, 2, 0, 3)
        own = "encoder.trunk."
        flat = {k.removeprefix(own): v.flatten(0, 1) for k, v in params.items() if k.startswith(own)}
        kept = {
            k.removeprefix(own): v.flatten(0, 1)
            for k, v in buffers.items()
            if k.startswith(own) and not k.endswith("num_batches_tracked")
        }
        out = functional_call(self.trunk, (flat, kept), (tokens._replace(x=x.reshape(b, t, m * c)),))
        for k, v in buffers.items():
            if k.endswith("num_batches_tracked"):
                v.add_(1)
        pooled = out.pooled if out.pooled is not None else out.x.mean(1)
        z = pooled.view(b, m, -1).transpose(0, 1)
        return torch.baddbmm(params["head.bias"].unsqueeze(1), z, params["head.weight"].transpose(1, 2))


def corners(narrow: Supervised, wide: Supervised) -> dict[str, tuple[Any, ...]]:
    """Where in the wider model's parameters and statistics those of the narrower one are."""
    trunks: list[Any] = [m.encoder.trunk for m in (narrow, wide)]
    own, other = trunks[0].parts, trunks[1].parts
    starts = [sum(other[:k]) for k in range(len(other))]
    columns = torch.cat([torch.arange(n) + start for n, start in zip(own, starts, strict=True)])
    tensors = dict(narrow.named_parameters()) | dict(narrow.named_buffers())
    out: dict[str, tuple[Any, ...]] = {name: tuple(slice(n) for n in x.shape) for name, x in tensors.items()}
    return out | {"head.weight": (slice(None), columns)}


def widened(narrow: Supervised, wide: Supervised) -> Supervised:
    """The narrower model with the wider one's channels, those that it has not being zero."""
    made, tensors = copy.deepcopy(wide), dict(narrow.named_parameters()) | dict(narrow.named_buffers())
    with torch.no_grad():
        for p in made.parameters():
            p.zero_()
        places = corners(narrow, wide)
        for name, x in [*made.named_parameters(), *made.named_buffers()]:
            x[places[name]] = tensors[name]
    return made


def _wider(child: nn.Module, m: int) -> nn.Module | None:
    """The layer for m members' channels, without values of its own."""
    with torch.device("meta"):
        if isinstance(child, nn.Conv2d):
            sizes: Any = {k: getattr(child, k) for k in ("kernel_size", "stride", "padding")}
            bias = child.bias is not None
            return nn.Conv2d(child.in_channels * m, child.out_channels * m, groups=m, bias=bias, **sizes)
        if isinstance(child, nn.BatchNorm2d):
            return nn.BatchNorm2d(child.num_features * m, child.eps, child.momentum)
        if isinstance(child, nn.GroupNorm):
            return nn.GroupNorm(child.num_groups * m, child.num_channels * m, child.eps)
    return None
