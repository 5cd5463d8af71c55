"""Networks of other libraries, and of users, as trunks: their layers in order, their sizes, their decoders."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from modicum.core import seeds
from modicum.core.errors import UserError, need
from modicum.core.types import Input, Layers, Tokens, Trunk
from modicum.nn.decoders import Upsample
from modicum.nn.layers import as_image, as_tokens

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Brought(NamedTuple):
    """What a network that is adopted brings: its input, the arguments of its trunk, and its checkpoint, if any."""

    input: Input
    args: dict[str, Any]
    tensors: dict[str, Tensor] | None = None


class Foreign(Trunk):
    """A trunk around a `module` written elsewhere. Subclasses set their attributes, then call `settle(module)`.

    Widths, grids and layers are found by one run on zeros.
    """

    module: Any

    @classmethod
    def bring(cls, trained: bool, **args: Any) -> Brought:
        """What the network of these arguments brings; its weights are fetched only where `trained`."""
        raise UserError(f"trunk '{cls.__name__.lower()}' cannot be adopted: it brings no input of its own")

    def settle(self, module: nn.Module) -> None:
        """Take in the module, and find what it puts out and in which order its parameters are used."""
        self.module = module
        zeros = torch.zeros(2, math.prod(self.grid), self.dim)
        self.eval()
        try:
            with torch.no_grad(), seeds.forked(0, "trial"), Uses() as uses:
                out = self(Tokens(zeros, None, tuple(self.grid)))
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, AssertionError) as error:
            if isinstance(error, UserError):
                raise
            shape = (2, self.dim, *self.grid) if len(self.grid) == 2 else tuple(zeros.shape)
            reason = str(error) or type(error).__name__
            raise UserError(
                f"{type(module).__name__} does not run on what the input gives, {shape}: {reason}"
            ) from error
        self.train()
        self.dim_out, self.grid_out = out.x.shape[2], tuple(out.grid)
        self.pooled = None if out.pooled is None else out.pooled.shape[1]
        self.paths = plan(module, uses.order)

    @property
    def dim_pooled(self) -> int:
        return self.pooled or self.dim_out

    def layers(self) -> Layers:
        return {name: [_at(self.module, path) for path in paths] for name, paths in self.paths.items()}

    def decoder(self, code: int) -> nn.Module:
        """For images nearest-neighbour doublings with convolutions; else every token from the code and its place."""
        if len(self.grid) != 2:
            return Places(code, math.prod(self.grid), self.dim)
        sizes = [(self.grid[0], self.grid[1])]
        while min(sizes[0]) > 7:
            sizes.insert(0, (math.ceil(sizes[0][0] / 2), math.ceil(sizes[0][1] / 2)))
        widths = [min(256, 16 * 2**k) for k in range(len(sizes))][::-1]
        return Upsample(
            code, widths[: len(sizes) - 1] or [16], sizes if len(sizes) > 1 else sizes * 2, self.dim, "batch"
        )

    def as_image(self, tokens: Tokens) -> Tensor:
        """Tokens (b, h·w, c) as a channels-last image (b, c, h, w)."""
        return as_image(tokens.x, self.grid, self.dim)


class Places(nn.Module):
    """Code (b, code) -> tokens (b, t, dim), each from the code and a learned vector of its place."""

    def __init__(self, code: int, tokens: int, dim: int, hidden: int = 128) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(tokens, hidden))
        self.start = nn.Linear(code, hidden)
        self.rest = nn.Sequential(nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, code: Tensor) -> Tensor:
        return self.rest(self.start(code).unsqueeze(1) + self.place)


class Wrapped(Foreign):
    """A user's module: (b, c, h, w) on a 2-d grid, else tokens (b, t, d) -> (b, d), (b, t, d) or (b, c, h, w)."""

    def __init__(self, dim: int, grid: tuple[int, ...], module: nn.Module, names: list[str] | None = None) -> None:
        super().__init__()
        self.dim, self.grid = dim, tuple(grid)
        training = module.training
        self.settle(module)
        self.train(training)
        if names is not None:
            self.paths = _named(module, names)

    def forward(self, tokens: Tokens) -> Tokens:
        out = self.module(self.as_image(tokens) if len(self.grid) == 2 else tokens.x)
        if not isinstance(out, Tensor) or out.dim() not in (2, 3, 4) or len(out) != len(tokens.x):
            given = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise UserError(
                f"{type(self.module).__name__} gives {given} for {len(tokens.x)} samples; wanted a tensor (b, d), "
                "(b, t, d) or (b, c, h, w)"
            )
        if out.dim() == 4:
            return Tokens(as_tokens(out), None, tuple(out.shape[2:]))
        if out.dim() == 2:
            return Tokens(out.unsqueeze(1), None, (1,))
        kept = out.shape[1] == tokens.x.shape[1]
        return Tokens(out, tokens.mask if kept else None, tokens.grid if kept else (out.shape[1],))


def _named(module: nn.Module, names: list[str]) -> dict[str, list[str]]:
    """The layers that a user names by their paths; UserError where one is not there."""
    for name in names:
        try:
            _at(module, name)
        except AttributeError:
            there = ", ".join(n for n, _ in module.named_children())
            raise UserError(f"{type(module).__name__} has no layer '{name}'; it has {there}") from None
    return {name: [name] for name in names}


def _at(module: nn.Module, path: str) -> nn.Module | nn.Parameter:
    owner, _, name = path.rpartition(".")
    found: nn.Module | nn.Parameter = getattr(module.get_submodule(owner), name)
    return found


class Uses(TorchFunctionMode):
    """The order in which parameters are first used by functions of torch: id -> rank."""

    def __init__(self) -> None:
        super().__init__()
        self.order: dict[int, int] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") != "__get__":  # reading a shape or dtype is no use
            for value in _flat([*args, *(kwargs or {}).values()]):
                if isinstance(value, nn.Parameter):
                    self.order.setdefault(id(value), len(self.order))
        return func(*args, **(kwargs or {}))


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


class Unit(NamedTuple):
    path: str
    block: bool
    parameters: list[nn.Parameter]


def plan(module: nn.Module, order: Mapping[int, int]) -> dict[str, list[str]]:
    """Layers of a module by the paths of their parts, in the order in which `order` says their parameters are used.

    Every block of a list of blocks is a layer, stages taken apart; what is used before the first block is "stem", what
    is used after the last "top", and what stands between two belongs to the second. Without blocks, every child is
    a layer. What shares all its parameters with an earlier one is left out.
    """
    units, rank, last = list(_units(module)), {}, -1
    for k, unit in enumerate(units):
        last = min((order[id(p)] for p in unit.parameters if id(p) in order), default=last)
        rank[k] = last
    out: dict[str, list[str]] = {}
    waiting: list[str] = []
    seen: set[int] = set()
    blocks = any(unit.block for unit in units)
    for k in sorted(rank, key=lambda k: rank[k]):
        unit = units[k]
        if seen.issuperset(map(id, unit.parameters)):
            continue
        seen.update(map(id, unit.parameters))
        if not blocks:
            out[unit.path] = [unit.path]
        elif not unit.block:
            waiting.append(unit.path)
        else:
            if not out and waiting:
                out["stem"], waiting = waiting, []
            out[unit.path] = [*waiting, unit.path]
            waiting = []
    return {**out, "top": waiting} if waiting else out


def _units(module: nn.Module, path: str = "") -> Iterator[Unit]:
    """The parts that layers are made of: blocks, and what stands beside lists of blocks; they hold every parameter."""
    for name, parameter in module.named_parameters(recurse=False):
        yield Unit(path + name, False, [parameter])
    for name, child in module.named_children():
        own = list(child.parameters())
        if own and _has_blocks(child):
            yield from _units(child, f"{path}{name}.")
        elif own:
            yield Unit(path + name, isinstance(module, CONTAINERS) and _composite(child), own)


def _has_blocks(module: nn.Module) -> bool:
    return any(isinstance(m, CONTAINERS) and any(map(_composite, m.children())) for m in module.modules())


def _composite(module: nn.Module) -> bool:
    return any(next(child.parameters(), None) is not None for child in module.children())


class _Anything(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


class _Absent(ModuleType):
    """A module of names that stand for nothing."""

    __path__: list[str] = []  # noqa: RUF012 - what makes a module a package

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return sys.modules.get(f"{self.__name__}.{name}") or _Anything(name, (), {})


_VISION = ("", ".ops", ".ops.misc", ".transforms", ".transforms.functional", ".datasets")


def library(name: str) -> ModuleType:
    """timm, transformers or open_clip, which is slow to import; UserError where it is not installed.

    timm and open_clip import torchvision for what is not used here (its image readers, and a type that they compare
    with). Where it is not installed, as beside a CPU build of torch, empty modules stand in for it meanwhile.
    """
    if name == "open_clip":
        need("transformers", "hub")  # it looks for torchvision too, and is to see that it is not there
    if name in sys.modules or name == "transformers" or importlib.util.find_spec("torchvision"):
        found: ModuleType = need(name, "hub")
        return found
    stand_in = [f"torchvision{part}" for part in _VISION]
    sys.modules.update({key: _Absent(key) for key in stand_in})
    try:
        found = need(name, "hub")
    finally:
        for key in stand_in:
            sys.modules.pop(key, None)
    return found
