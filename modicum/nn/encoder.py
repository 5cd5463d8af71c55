"""The encoder: embed + trunk + pool, its layers in order, and freezing."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from modicum.core.errors import UserError
from modicum.core.spec import Spec, build
from modicum.core.types import Batch, Features, Input, Layers, Tokens, Trunk


def complete(module: nn.Module, layers: Layers) -> Layers:
    """`layers`, after checking that they hold every parameter of `module` exactly once (tied ones in their first)."""
    seen: dict[int, str] = {}
    for name, parts in layers.items():
        own = {id(p) for part in parts for p in ([part] if isinstance(part, nn.Parameter) else part.parameters())}
        twice = [seen[i] for i in own if i in seen]
        tied = sum(1 for _ in module.named_parameters(remove_duplicate=False)) > sum(1 for _ in module.parameters())
        if twice and not tied:
            raise ValueError(f"layers(): '{name}' and '{twice[0]}' of {type(module).__name__} share a parameter")
        seen.update({i: name for i in own if i not in seen})
    forgotten = [n for n, p in module.named_parameters() if id(p) not in seen]
    if forgotten:
        raise ValueError(f"layers() of {type(module).__name__} forgets {', '.join(forgotten)}")
    return layers


def pool(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the real tokens: (b, t, d), (b, t) -> (b, d)."""
    if mask is None:
        return tokens.mean(1)
    weight = mask.to(tokens.dtype).unsqueeze(-1)
    return (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)


@final
class Encoder(nn.Module):
    """A raw batch -> `Features`: the input's embed, a trunk, and mean pooling over tokens.

    `input` is an Input (what the encoder takes), `trunk` a Trunk built for the embed's dim and grid.
    """

    kind = "encoder"

    def __init__(self, input: Input, trunk: Trunk) -> None:
        super().__init__()
        self.input = input
        self.embed = input.embed()
        self.trunk = trunk
        self.frozen = 0
        self.keep_statistics = False
        if (trunk.dim, tuple(trunk.grid)) != (self.embed.dim, tuple(self.embed.grid)):
            raise ValueError(
                f"the trunk was built for tokens of {trunk.dim} on {trunk.grid}; "
                f"the input gives {self.embed.dim} on {self.embed.grid}"
            )
        complete(self, self.layers())

    @classmethod
    def of(cls, input: Input, trunk: Spec | str) -> Encoder:
        """The encoder of an input and a trunk's spec such as `convnet(width=32)`."""
        embed = input.embed()
        return cls(input, build("trunk", trunk, dim=embed.dim, grid=embed.grid))

    @property
    def dim(self) -> int:
        """Width of the features."""
        return self.trunk.dim_out

    def layers(self) -> Layers:
        """The layers input -> output; the embed is one where it has parameters."""
        own: Layers = {"embed": [self.embed]} if next(self.embed.parameters(), None) is not None else {}
        return {**own, **self.trunk.layers()}

    def forward(
        self, batch: Batch, *, hide: Tensor | None = None, keep: Tensor | None = None, causal: bool = False
    ) -> Features:
        """Features of a batch; `hide` (b, t), on the input's or the trunk's output grid, blanks tokens where True."""
        for name, used in (("keep", keep is not None), ("causal", causal)):
            if used:
                self.require(name)
        tokens = self.embed(batch)
        if hide is not None:
            hidden = hide if hide.shape[1] == tokens.x.shape[1] else spread(hide, self.trunk.grid_out, tokens.grid)
            tokens = tokens._replace(x=tokens.x.masked_fill(hidden.unsqueeze(-1), 0))
        options: dict[str, Any] = {"keep": keep} if keep is not None else {}
        if causal:
            options["causal"] = True
        out: Tokens = self.trunk(tokens, **options)
        return Features(out.x, pool(out.x, out.mask), out.mask, out.grid, out.edges)

    def require(self, capability: str) -> None:
        """Refuse, by name, a trunk that cannot do what an objective needs."""
        if capability not in self.trunk.can:
            can = ", ".join(sorted(self.trunk.can)) or "nothing optional"
            raise UserError(f"trunk '{type(self.trunk).__name__}' lacks '{capability}' (it can: {can})")

    def freeze(self, count: int) -> Encoder:
        """Freeze the first `count` layers: no gradients, no dropout, BatchNorm statistics as they are."""
        layers = list(self.layers().values())
        if not 0 <= count <= len(layers):
            raise UserError(f"cannot freeze {count} layers: the encoder has {len(layers)} ({', '.join(self.layers())})")
        self.frozen = count
        for k, parts in enumerate(layers):
            for part in parts:
                part.requires_grad_(k >= count)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Encoder:
        """Training mode, but for frozen layers, and BatchNorm where `keep_statistics`: they stay in evaluation."""
        super().train(mode)
        if self.keep_statistics:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        for parts in list(self.layers().values())[: self.frozen]:
            for part in parts:
                if isinstance(part, nn.Module):
                    part.eval()
        return self


def spread(hide: Tensor, coarse: tuple[int, ...], fine: tuple[int, ...]) -> Tensor:
    """A mask (b, t) on a coarse grid brought to a finer one by nearest neighbour: (b, t')."""
    if tuple(coarse) == tuple(fine):
        return hide
    if len(coarse) != len(fine):
        raise UserError(f"a mask on grid {tuple(coarse)} cannot hide tokens on grid {tuple(fine)}")
    out = hide.reshape(-1, *coarse)
    for axis, (c, f) in enumerate(zip(coarse, fine, strict=True)):
        index = torch.arange(f, device=hide.device) * c // f
        out = out.index_select(axis + 1, index)
    return out.reshape(hide.shape[0], -1)
