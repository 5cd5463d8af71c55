"""The encoder: embed + trunk + pool, its layers in order, and freezing."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from modicum.core.errors import UserError, unknown
from modicum.core.spec import Make, Spec, build, names, parse, part
from modicum.core.types import Batch, Features, Input, Layers, Tokens, Trunk
from modicum.nn.layers import AttentionPool


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


POOLS = ("own", "mean", "max", "attention")


class Tower(nn.Module, ABC):
    """What turns raw batches into features: `input`, `dim` (width of the pooled features), layers, freezing."""

    kind = "encoder"
    input: Input

    def __init__(self) -> None:
        super().__init__()
        self.frozen = 0
        self.keep_statistics = False

    @property
    @abstractmethod
    def dim(self) -> int: ...

    @abstractmethod
    def forward(
        self, batch: Batch, *, hide: Tensor | None = None, keep: Tensor | None = None, causal: bool = False
    ) -> Features: ...

    @abstractmethod
    def layers(self) -> Layers: ...

    @classmethod
    @abstractmethod
    def of(cls, input: Input, spec: Spec | str) -> Tower: ...

    def freeze(self, count: int) -> Self:
        """Freeze the first `count` layers: no gradients, no dropout, BatchNorm statistics as they are."""
        layers = list(self.layers().values())
        if not 0 <= count <= len(layers):
            raise UserError(f"cannot freeze {count} layers: the encoder has {len(layers)} ({', '.join(self.layers())})")
        self.frozen = count
        for k, parts in reversed(list(enumerate(layers))):  # a parameter tied across layers belongs to the first
            for own in parts:
                own.requires_grad_(k >= count)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Training mode, but for frozen layers, and BatchNorm where `keep_statistics`: they stay in evaluation."""
        super().train(mode)
        if self.keep_statistics:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        for parts in list(self.layers().values())[: self.frozen]:
            for own in parts:
                if isinstance(own, nn.Module):
                    own.eval()
        return self


def tower(input: Input, spec: Spec | str) -> Tower:
    """The encoder of an input and a spec: a trunk's such as `convnet(width=32)`, or one of kind encoder."""
    if isinstance(spec, str):
        spec = parse(spec, "encoder")
    kind: type[Tower] = part("encoder", spec["name"]) if spec.get("name") in names("encoder") else Encoder
    return kind.of(input, spec)


@final
class Encoder(Tower):
    """A raw batch -> `Features`: the input's embed, a trunk, and pooling over tokens.

    `input` is an Input (what the encoder takes), `trunk` a Trunk built for the embed's dim and grid. `pool`: "own" is
    the first token of rows that are about it, else the trunk's own summary, or where it makes none the mean; "mean",
    "max", or "attention" (a learned query).
    """

    def __init__(self, input: Input, trunk: Trunk, pool: str = "own") -> None:
        super().__init__()
        if pool not in POOLS:
            raise unknown("pool", pool, POOLS)
        self.input, self.pool = input, pool
        self.embed = input.embed()
        self.trunk = trunk
        self.pooling = AttentionPool(trunk.dim_out) if pool == "attention" else None
        if (trunk.dim, tuple(trunk.grid)) != (self.embed.dim, tuple(self.embed.grid)):
            raise ValueError(
                f"the trunk was built for tokens of {trunk.dim} on {trunk.grid}; "
                f"the input gives {self.embed.dim} on {self.embed.grid}"
            )
        complete(self, self.layers())

    @classmethod
    def of(cls, input: Input, spec: Spec | str) -> Encoder:
        """The encoder of an input and the spec of a trunk, or encoder(trunk, pool=...)."""
        if isinstance(spec, str):
            spec = parse(spec, "encoder")
        embed = input.embed()

        def trunk(given: Spec | None) -> Trunk:
            decided = {"dim": embed.dim, "grid": embed.grid, "edge_dim": embed.edge_dim}
            made: Trunk = build("trunk", given or input.default_trunk, **decided)
            return made

        if spec.get("name") == "encoder":
            made: Encoder = build("encoder", spec, input=input, trunk=Make(trunk))
            return made
        return cls(input, trunk(spec))

    @classmethod
    def wrap(
        cls, module: nn.Module, input: Input, dim: int | None = None, layers: list[str] | None = None, pool: str = "own"
    ) -> Encoder:
        """An encoder around any module of your own, for use in Python; a run cannot record it.

        On a 2-d grid of tokens, such as pixels, it is given (b, c, h, w), else tokens (b, t, d); it returns (b, d),
        (b, t, d) or (b, c, h, w). `dim`: the width that is expected of its output; `layers`: paths of its children in
        order, where those found are not right. UserError where it does not run, or gives something else.
        """
        from modicum.nn.foreign import Wrapped

        embed = input.embed()
        made = cls(input, Wrapped(embed.dim, tuple(embed.grid), module, layers), pool)
        if dim is not None and made.dim != dim:
            raise UserError(f"{type(module).__name__} gives features of width {made.dim}, not {dim}")
        return made

    @property
    def dim(self) -> int:
        """Width of the pooled features."""
        return self.trunk.dim_pooled if self.pool == "own" and not self.embed.first else self.trunk.dim_out

    def layers(self) -> Layers:
        """The layers input -> output; embed and pooling are layers where they have parameters."""
        first: Layers = {"embed": [self.embed]} if next(self.embed.parameters(), None) is not None else {}
        last: Layers = {"pool": [self.pooling]} if self.pooling is not None else {}
        return {**first, **self.trunk.layers(), **last}

    def forward(
        self, batch: Batch, *, hide: Tensor | None = None, keep: Tensor | None = None, causal: bool = False
    ) -> Features:
        """Features of a batch.

        `hide` (b, t), on the input's or the trunk's output grid, blanks tokens where True; `keep` (b, k) are the
        numbers of the only tokens the trunk is to see; `causal`: tokens do not see later ones.
        """
        tokens = self.embed(batch)
        if hide is not None:
            hidden = hide if hide.shape[1] == tokens.x.shape[1] else spread(hide, self.trunk.grid_out, tokens.grid)
            tokens = tokens._replace(x=tokens.x.masked_fill(hidden.unsqueeze(-1), 0))
        return self.run(tokens, keep=keep, causal=causal)

    def run(self, tokens: Tokens, *, keep: Tensor | None = None, causal: bool = False) -> Features:
        """Features of tokens that are embedded already."""
        for name, used in (("keep", keep is not None), ("causal", causal)):
            if used:
                self.require(name)
        count = tokens.x.shape[1]
        if "any_length" not in self.trunk.can:
            tokens = filled(tokens, self.trunk.grid)
        options: dict[str, Any] = {"keep": keep} if keep is not None else {}
        if causal:
            options["causal"] = True
        out: Tokens = self.trunk(tokens, **options)
        if count < tokens.x.shape[1] == out.x.shape[1]:  # what was filled in is no token of the batch
            kept, mask = out.x[:, :count], None if out.mask is None else out.mask[:, :count]
            out = out._replace(x=kept, mask=mask, grid=(count,))
        return Features(out.x, self._pooled(out), out.mask, out.grid, out.edges)

    def _pooled(self, out: Tokens) -> Tensor:
        if self.pooling is not None:
            return self.pooling(out.x, out.mask)
        if self.pool == "max":
            x = out.x if out.mask is None else out.x.masked_fill(~out.mask.unsqueeze(-1), -math.inf)
            return x.amax(1)
        if self.pool == "own" and self.embed.first:
            return out.x[:, 0]
        return pool(out.x, out.mask) if out.pooled is None or self.pool == "mean" else out.pooled

    def require(self, capability: str) -> None:
        """Refuse, by name, a trunk that cannot do what an objective needs."""
        if capability not in self.trunk.can:
            can = ", ".join(sorted(self.trunk.can)) or "nothing optional"
            how = f"give it {capability}=True" if capability in vars(self.trunk) else "see modicum list encoders"
            raise UserError(f"trunk '{type(self.trunk).__name__}' lacks '{capability}' (it can: {can}): {how}")


def filled(tokens: Tokens, grid: tuple[int, ...]) -> Tokens:
    """Tokens of rows in a line, padded to the length of `grid` where they are fewer."""
    missing = math.prod(grid) - tokens.x.shape[1]
    if len(grid) != 1 or missing <= 0:
        return tokens
    mask = tokens.x.new_ones(tokens.x.shape[:2], dtype=torch.bool) if tokens.mask is None else tokens.mask
    x, mask = nn.functional.pad(tokens.x, (0, 0, 0, missing)), nn.functional.pad(mask, (0, missing))
    return tokens._replace(x=x, mask=mask, grid=tuple(grid))


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
