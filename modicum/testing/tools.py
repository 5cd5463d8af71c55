"""What the laws share: comparing bits, watching the global randomness, freezing, specs."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modicum.core import seeds
from modicum.core.spec import arguments, build, parse, spec, text_of
from modicum.core.types import Batch, Layers, Objective, Trunk
from modicum.nn.ema import Ema
from modicum.nn.encoder import Tower

CAPABILITIES = {"keep", "causal", "padding", "edges", "any_length", "stack", "pad_width"}

MakeTrunk = Callable[[], Trunk]
MakeObjective = Callable[[], Objective]


def call_order(module: nn.Module, layers: Layers, run: Callable[[], Any]) -> list[str]:
    """The names of `layers` in the order in which `run()` first calls into them."""
    called: list[str] = []
    handles = []
    for name, parts in layers.items():
        for part in parts:
            inside = part.modules() if isinstance(part, nn.Module) else []
            handles += [m.register_forward_pre_hook(lambda *_, name=name: called.append(name)) for m in inside]
    run()
    for handle in handles:
        handle.remove()
    return list(dict.fromkeys(called))


def tensors(value: Any, at: str = "") -> dict[str, Tensor]:
    """Every tensor inside nested mappings, lists and tuples, by its path."""
    if isinstance(value, Tensor):
        return {at: value}
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else []
    return {k: v for key, one in inner for k, v in tensors(one, f"{at}/{key}").items()}


def same(a: Any, b: Any) -> bool:
    """Whether two nested values hold the same tensors, bit for bit."""
    x, y = tensors(a), tensors(b)
    return x.keys() == y.keys() and all(x[k].dtype == y[k].dtype and equal_bits(x[k], y[k]) for k in x)


def equal_bits(a: Tensor, b: Tensor) -> bool:
    """Equal shapes and values; NaN equals NaN."""
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


@contextmanager
def leaves_random_alone(what: str) -> Iterator[None]:
    """Assert that a block draws nothing from the global generators of torch, numpy and Python."""

    def state() -> tuple[Any, ...]:
        kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - that nobody touches it is the point
        return (torch.get_rng_state().tolist(), kind, list(keys), rest, random.getstate())

    before = state()
    yield
    assert state() == before, f"{what} draws from a global random generator; use the one it is given"


def stirred(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with noise on all parameters and batch statistics: away from zeros and other special points."""
    rng = seeds.generator(seed, "stir")
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point() and tensor.numel():
                tensor.add_(0.1 * torch.rand(tensor.shape, generator=rng))
    return module


def pick(batch: Batch, index: Any) -> Batch:
    """Rows of a batch."""
    return {key: value[index] for key, value in batch.items()}


def refusal(kind: type[Exception], function: Callable[[], Any]) -> str:
    """The words of the error of that kind which the call raises, or nothing."""
    try:
        function()
    except kind as error:
        return str(error)
    return ""


def near(a: Tensor, b: Tensor) -> bool:
    """Equal up to the rounding of float32 sums in another order."""
    a, b = a.detach().double(), b.detach().double()
    return bool(torch.allclose(a, b, rtol=1e-4, atol=1e-5 * max(1.0, float(b.abs().max()))))


def check_gradients(module: nn.Module, loss: Tensor) -> None:
    """Assert that the loss's gradient reaches every parameter of the module but those of teachers, which get none."""
    loss.backward()
    taught = {id(p) for m in module.modules() if isinstance(m, Ema) for p in m.parameters()}
    parameters = [(n, p) for n, p in module.named_parameters() if p.numel()]
    graded = [n for n, p in parameters if id(p) in taught and p.grad is not None]
    assert not graded, f"a gradient reaches the teacher's {', '.join(graded)}"
    bare = [n for n, p in parameters if id(p) not in taught and (p.grad is None or not p.grad.any())]
    assert not bare, f"no gradient reaches {', '.join(bare)} of {type(module).__name__}"


def check_spec(kind: str, obj: Any, **given: Any) -> Any:
    """Assert that the spec of a part, through JSON, builds an equal part; returns that."""
    for key in arguments(type(obj)):
        assert hasattr(obj, key), f"argument {key} of {type(obj).__name__} is no attribute of the same name"
    written = spec(kind, obj)
    read = json.loads(json.dumps(written))
    again = build(kind, read)
    assert type(again) is type(obj), f"{written} builds a {type(again).__name__}"
    twice = json.dumps(spec(kind, again))
    assert twice == json.dumps(written), f"a spec changes when it is built: {json.dumps(written)} -> {twice}"
    if given:
        text = text_of({**read, "args": {k: v for k, v in read["args"].items() if k not in given}})
        assert json.dumps(spec(kind, build(kind, parse(text), **given))) == twice, f"{text} builds something else"
    if isinstance(obj, nn.Module):
        again.load_state_dict(obj.state_dict())
    return again


def check_freezing(build_one: Callable[[], tuple[nn.Module, dict[str, Tower], Callable[[int], Any]]]) -> None:
    """Assert for every k that training with k frozen layers moves exactly what lies outside them.

    `build_one()` gives a fresh module, its encoders, and a function that freezes k layers and trains for three steps.
    """
    count = min(len(e.layers()) for e in build_one()[1].values())
    for k in range(count + 1):
        module, encoders, train = build_one()
        before = {n: t.clone() for n, t in state(module).items()}
        train(k)
        after = state(module)
        kept = {n for e in encoders.values() for n in _frozen(module, e, k)}
        moved = [n for n in kept if not equal_bits(before[n], after[n])]
        assert not moved, f"freezing {k} layers does not keep {', '.join(sorted(moved))}"
        still = [n for n in after.keys() - kept - _constant(module) if equal_bits(before[n], after[n])]
        assert not still, f"with {k} layers frozen, training leaves {', '.join(sorted(still))} as it was"


def state(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _frozen(module: nn.Module, encoder: Tower, count: int) -> set[str]:
    layers = encoder.layers()
    if count == len(layers):
        layers = {"all": [encoder]}  # nothing is left outside, buffers of no layer included
    own = set()
    for parts in list(layers.values())[:count]:
        for part in parts:
            own |= {id(t) for t in ([part] if isinstance(part, nn.Parameter) else state(part).values())}
    return {n for n, t in state(module).items() if id(t) in own}


def _constant(module: nn.Module) -> set[str]:
    """Tensors that training need not move: buffers other than running statistics, empty and fixed parameters."""
    fixed = {n for n, p in module.named_parameters() if not p.numel() or not p.requires_grad}
    return fixed | {n for n, _ in module.named_buffers() if not n.endswith(("running_mean", "running_var"))}
