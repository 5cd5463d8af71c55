"""The contract every part keeps, as plain functions: `check_trunk`, `check_objective`, `check_modality`.

For third parties too: register the part as an entry point, then call its check in a test. A law that does not hold
raises an AssertionError which says what was found. `TRUNK`, `OBJECTIVE` and `MODALITY` hold the single laws by name.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from modicum.core import seeds
from modicum.core.errors import UserError
from modicum.core.spec import arguments, build, names, parse, spec, text_of
from modicum.core.types import Batch, Embed, Input, Layers, Objective, Tokens, Trunk
from modicum.nn.encoder import Encoder, complete
from modicum.training.fit import fit
from modicum.training.optim import adamw, cosine, groups

CAPABILITIES = {"keep", "causal", "padding", "edges", "any_length", "stack", "pad_width"}

MakeTrunk = Callable[[], Trunk]
MakeObjective = Callable[[], Objective]


def check_trunk(make: MakeTrunk) -> None:
    """Put the trunk that `make()` builds afresh through every law of trunks."""
    for law in TRUNK.values():
        law(make)


def check_objective(make: MakeObjective, batch: Batch) -> None:
    """Put the objective that `make()` builds afresh through every law of objectives, on a batch of at least 8 rows."""
    for law in OBJECTIVE.values():
        law(make, batch)


def check_modality(kind: type[Input], raw: Any) -> None:
    """Put a modality through every law of modalities, on at least 8 different raw rows, as `kind.as_raw` gives them."""
    for law in MODALITY.values():
        law(kind, raw)


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
    """Assert that the loss's gradient reaches every parameter of the module."""
    loss.backward()
    bare = [n for n, p in module.named_parameters() if p.numel() and (p.grad is None or not p.grad.any())]
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


def check_freezing(build_one: Callable[[], tuple[nn.Module, dict[str, Encoder], Callable[[int], Any]]]) -> None:
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


def _frozen(module: nn.Module, encoder: Encoder, count: int) -> set[str]:
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


# Trunks


class Given(Embed):
    """Tokens that are given as they are: {"x", "mask" where there is one}."""

    def __init__(self, dim: int, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.dim, self.grid = dim, grid

    def forward(self, batch: Batch) -> Tokens:
        return Tokens(batch["x"], batch.get("mask"), self.grid)


def encoder_of(trunk: Trunk) -> Encoder:
    """An encoder whose batch is {"x": tokens}."""
    given = SimpleNamespace(embed=lambda: Given(trunk.dim, tuple(trunk.grid)))
    return Encoder(cast(Input, given), trunk)


def tokens_for(trunk: Trunk, b: int = 8, seed: int = 0) -> Tensor:
    """Random tokens (b, t, dim) for the trunk."""
    shape = (b, int(np.prod(trunk.grid)), trunk.dim)
    return torch.randn(shape, generator=seeds.generator(seed, "tokens"))


def run(trunk: Trunk, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """The output tokens, in evaluation mode, without gradients."""
    with torch.no_grad():
        return trunk.eval()(Tokens(x, mask, tuple(trunk.grid))).x


def trunk_shapes(make: MakeTrunk) -> None:
    """Output tokens lie on `grid_out` with width `dim_out`; capabilities have known names."""
    trunk = make().eval()
    unknown = trunk.can - CAPABILITIES
    assert not unknown, f"unknown capabilities {sorted(unknown)}; known: {sorted(CAPABILITIES)}"
    out = trunk(Tokens(tokens_for(trunk), None, tuple(trunk.grid)))
    wanted = (8, int(np.prod(trunk.grid_out)), trunk.dim_out)
    assert out.x.shape == wanted, f"grid_out and dim_out promise {wanted}; the output is {tuple(out.x.shape)}"
    assert tuple(out.grid) == tuple(trunk.grid_out), f"output grid {out.grid}; promised {trunk.grid_out}"
    assert out.x.isfinite().all(), "the output is not finite"


def trunk_layers(make: MakeTrunk) -> None:
    """`layers()` is an ordered, complete partition of the parameters, and `complete` names what is forgotten."""
    trunk = make().eval()
    layers = complete(trunk, trunk.layers())
    assert list(trunk.layers()) == list(layers), "layers() is not the same twice"
    for name, parts in layers.items():
        rest = {k: v for k, v in layers.items() if k != name}
        own = {id(p) for part in parts for p in ([part] if isinstance(part, nn.Parameter) else part.parameters())}
        forgotten = [n for n, p in trunk.named_parameters() if id(p) in own]
        assert forgotten, f"layer {name} has no parameters"
        words = refusal(ValueError, partial(complete, trunk, rest))
        assert words, f"without layer {name} the layers still pass for complete"
        assert all(n in words for n in forgotten), f"the error names not all of {forgotten}: {words}"
    modules = {k: v for k, v in layers.items() if any(isinstance(p, nn.Module) for p in v)}
    order = call_order(trunk, modules, lambda: run(trunk, tokens_for(trunk)))
    assert order == [n for n in modules if n in order], f"layers() says {list(modules)}; they run as {order}"


def trunk_spec(make: MakeTrunk) -> None:
    """The spec, through JSON and through text, builds a trunk that gives the same bits with the same weights."""
    trunk = make()
    stirred(trunk)
    again = check_spec("trunk", trunk, dim=trunk.dim, grid=tuple(trunk.grid))
    x = tokens_for(trunk)
    assert equal_bits(run(trunk, x), run(again, x)), "a trunk built from its spec gives another output"


def trunk_freezing(make: MakeTrunk) -> None:
    """Freezing the first k layers keeps exactly their parameters and buffers, bit for bit."""

    def build_one() -> tuple[nn.Module, dict[str, Encoder], Callable[[int], Any]]:
        encoder = encoder_of(make())
        stirred(encoder)
        x = tokens_for(encoder.trunk)

        def train(k: int) -> None:
            encoder.freeze(k).train()
            left = [p for p in encoder.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(left, 1e-2) if left else None
            for _ in range(3):
                loss = weighted(encoder({"x": x}).pooled)
                if optimizer:
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()

        return encoder, {"encoder": encoder}, train

    check_freezing(build_one)


def weighted(z: Tensor) -> Tensor:
    """A scalar to which every element of z matters differently."""
    weight = torch.randn(z.shape, generator=seeds.generator(0, "weight"))
    return (weight * z).sum() + (weight.flip(0) * z.square()).sum()


def trunk_gradients(make: MakeTrunk) -> None:
    """The gradient reaches every parameter."""
    trunk = make().eval()
    stirred(trunk)
    check_gradients(trunk, weighted(trunk(Tokens(tokens_for(trunk, 16), None, tuple(trunk.grid))).x))


def trunk_samples(make: MakeTrunk) -> None:
    """In evaluation a sample's output is its own: whatever its place in the batch, whoever the others are."""
    trunk = make()
    stirred(trunk)
    x = tokens_for(trunk)
    out, order = run(trunk, x), torch.randperm(8, generator=seeds.generator(0, "order"))
    assert near(run(trunk, x[order]), out[order]), "permuting the samples does not permute the output"
    assert near(run(trunk, x[:3]), out[:3]), "a sample's output depends on which others are in the batch"
    assert near(run(trunk, x[5:6]), out[5:6]), "a sample alone gets another output"


def trunk_deterministic(make: MakeTrunk) -> None:
    """Evaluation gives the same bits twice, draws nothing and leaves input, parameters and buffers as they were."""
    trunk = make()
    x = tokens_for(trunk)
    given, before = x.clone(), {k: v.clone() for k, v in trunk.state_dict().items()}
    with leaves_random_alone("evaluation of the trunk"):
        first, second = run(trunk, x), run(trunk, x)
    assert equal_bits(first, second), "evaluation gives two different outputs for one input"
    assert equal_bits(x, given), "the trunk changes its input"
    assert same(before, dict(trunk.state_dict())), "evaluation changes the trunk's state"


def trunk_refusals(make: MakeTrunk) -> None:
    """A capability that is absent is refused by name."""
    encoder = encoder_of(make()).eval()
    x = tokens_for(encoder.trunk)
    options: dict[str, Any] = {"keep": torch.zeros(8, 1, dtype=torch.long), "causal": True}
    for name, value in options.items():
        if name in encoder.trunk.can:
            continue
        words = refusal(UserError, partial(encoder, {"x": x}, **{name: value}))
        assert words, f"the trunk declares no '{name}', yet is run with it"
        assert f"'{name}'" in words, f"the refusal of '{name}' does not name it: {words}"


def trunk_padding(make: MakeTrunk) -> None:
    """Where `padding` is declared, what stands in padded tokens changes no real token and no pooled feature."""
    encoder = encoder_of(make()).eval()
    if "padding" not in encoder.trunk.can:
        return
    stirred(encoder)
    x = tokens_for(encoder.trunk)
    mask = torch.rand(x.shape[:2], generator=seeds.generator(0, "mask")) < 0.6
    mask[:, 0] = True
    other = torch.where(mask.unsqueeze(2), x, 100 * tokens_for(encoder.trunk, seed=1))
    with torch.no_grad():
        a, b = encoder({"x": x, "mask": mask}), encoder({"x": other, "mask": mask})
    assert a.mask is not None, "the output lost the mask"
    assert equal_bits(a.mask, mask), "the output changed the mask"
    assert equal_bits(a.tokens[mask], b.tokens[mask]), "padded tokens change real ones"
    assert near(a.pooled, b.pooled), "padded tokens change the pooled features"


def trunk_lengths(make: MakeTrunk) -> None:
    """Where `any_length` is declared, other numbers of tokens run."""
    trunk = make().eval()
    if "any_length" in trunk.can:
        for t in (1, 5, 33):
            out = run(trunk, torch.randn((2, t, trunk.dim), generator=seeds.generator(t)))
            assert out.shape[0] == 2, f"{t} tokens give {tuple(out.shape)}"
            assert out.shape[2] == trunk.dim_out, f"{t} tokens give {tuple(out.shape)}"


def trunk_causal(make: MakeTrunk) -> None:
    """Where `causal` is declared, a token does not see later ones."""
    encoder = encoder_of(make()).eval()
    if "causal" not in encoder.trunk.can:
        return
    x = tokens_for(encoder.trunk)
    cut = x.shape[1] // 2
    other = torch.cat([x[:, :cut], tokens_for(encoder.trunk, seed=1)[:, cut:]], 1)
    with torch.no_grad():
        a, b = encoder({"x": x}, causal=True).tokens, encoder({"x": other}, causal=True).tokens
    assert near(a[:, :cut], b[:, :cut]), "an earlier token sees later ones"


def trunk_decoder(make: MakeTrunk) -> None:
    """The decoder mirrors a code back onto the input grid; it is trainable throughout."""
    trunk = make()
    decoder = trunk.decoder(5).eval()
    stirred(decoder)
    code = torch.randn((8, 5), generator=seeds.generator(0, "code"))
    out = decoder(code)
    wanted = (8, int(np.prod(trunk.grid)), trunk.dim)
    assert out.shape == wanted, f"the decoder gives {tuple(out.shape)}; the input grid wants {wanted}"
    assert not equal_bits(out[0], out[1]), "the decoder ignores the code"
    assert near(decoder(code[:2]), out[:2]), "a decoded sample depends on which others are in the batch"
    check_gradients(decoder, weighted(out))


TRUNK: dict[str, Callable[[MakeTrunk], None]] = {
    "shapes": trunk_shapes,
    "layers": trunk_layers,
    "spec": trunk_spec,
    "freezing": trunk_freezing,
    "gradients": trunk_gradients,
    "samples": trunk_samples,
    "deterministic": trunk_deterministic,
    "refusals": trunk_refusals,
    "padding": trunk_padding,
    "lengths": trunk_lengths,
    "causal": trunk_causal,
    "decoder": trunk_decoder,
}


# Objectives


def corrupted(objective: Objective, batch: Batch, seed: int = 0) -> Any:
    """The batch as `corrupt` gives it for a seed."""
    with torch.no_grad():
        return objective.corrupt(batch, seeds.generator(seed, "corrupt"))


def objective_encoders(make: MakeObjective, batch: Batch) -> None:
    """`encoders()` names towers that are modules of the objective, with complete layers."""
    objective = make()
    towers = objective.encoders()
    assert towers, "encoders() is empty"
    inside = {id(m) for m in objective.modules()}
    for name, tower in towers.items():
        assert isinstance(tower, Encoder), f"encoders()['{name}'] is a {type(tower).__name__}, not an Encoder"
        assert id(tower) in inside, f"encoders()['{name}'] is no module of the objective"
        complete(tower, tower.layers())


def objective_spec(make: MakeObjective, batch: Batch) -> None:
    """The spec, through JSON, builds an objective that gives the same loss with the same weights."""
    objective = make()
    stirred(objective)
    again = check_spec("objective", objective)
    a, b = (o.eval()(corrupted(o, batch))[0] for o in (objective, again))
    assert equal_bits(a, b), f"an objective built from its spec has loss {b.item()} instead of {a.item()}"


def objective_corrupt(make: MakeObjective, batch: Batch) -> None:
    """`corrupt` is a pure function of (batch, generator): no parameters, no global randomness, input unchanged."""
    objective = make()
    given = {k: v.clone() for k, v in batch.items()}
    with leaves_random_alone("corrupt"):
        first = corrupted(objective, batch)
    assert same(batch, given), "corrupt changes the batch it is given"
    assert same(first, corrupted(objective, batch)), "corrupt gives two results for one (batch, seed)"
    stirred(objective)
    assert same(first, corrupted(objective, batch)), "corrupt depends on parameters"
    bound = [k for k, v in tensors(first).items() if v.requires_grad]
    assert not bound, f"corrupt gives tensors with gradients: {bound}"


def objective_forward(make: MakeObjective, batch: Batch) -> None:
    """`forward` draws nothing (dropout in training excepted), and gives a finite scalar and detached scalar metrics."""
    objective = make().eval()
    stirred(objective)
    material = corrupted(objective, batch)
    given = copy.deepcopy(material)
    with leaves_random_alone("forward"):
        loss, metrics = objective(material)
        again = objective(material)[0]
    assert equal_bits(loss, again), "forward gives two losses for one corrupted batch"
    assert same(material, given), "forward changes the corrupted batch"
    assert loss.shape == (), f"the loss has shape {tuple(loss.shape)}; wanted one number"
    assert loss.isfinite(), f"the loss is {loss.item()}"
    for name, value in metrics.items():
        assert value.shape == () and not value.requires_grad, f"metric {name} is no detached number"  # noqa: PT018
    if not any(isinstance(m, nn.Dropout) and m.p for m in objective.modules()):
        a, b = (copy.deepcopy(objective).train()(material)[0] for _ in range(2))
        assert equal_bits(a, b), "forward in training draws random numbers without dropout"


def objective_gradients(make: MakeObjective, batch: Batch) -> None:
    """The gradient reaches every parameter."""
    objective = make().eval()
    stirred(objective)
    check_gradients(objective, objective(corrupted(objective, batch))[0])


def objective_freezing(make: MakeObjective, batch: Batch) -> None:
    """`groups(freeze=k)` and `fit` keep exactly the first k layers' parameters and buffers, bit for bit."""

    def build_one() -> tuple[nn.Module, dict[str, Encoder], Callable[[int], Any]]:
        objective = make()
        stirred(objective)

        def train(k: int) -> None:
            optimizer = adamw(groups(objective, lr=1e-2, weight_decay=0.1, freeze=k))
            for _ in fit(objective, lambda step: batch, optimizer, steps=3, seed=0):
                pass

        return objective, objective.encoders(), train

    check_freezing(build_one)


def objective_groups(make: MakeObjective, batch: Batch) -> None:
    """Every trainable parameter is in exactly one group."""
    objective = make()
    own = [id(p) for g in groups(objective, lr=1.0, weight_decay=0.1, decay=0.5) for p in g["params"]]
    assert len(own) == len(set(own)), "a parameter is in two groups"
    left = [n for n, p in objective.named_parameters() if p.requires_grad and id(p) not in set(own)]
    assert not left, f"no group holds {', '.join(left)}"


def objective_learns(make: MakeObjective, batch: Batch) -> None:
    """Thirty steps on one batch lower the loss on a fixed corruption of it; the global generators are left alone."""
    objective = make()
    fixed = corrupted(objective, batch, seed=1)

    def loss() -> float:
        with torch.no_grad():
            return copy.deepcopy(objective).train()(fixed)[0].item()

    before = loss()
    optimizer = adamw(groups(objective, lr=3e-3, weight_decay=0.0))
    with leaves_random_alone("training"):
        for _ in fit(objective, lambda step: batch, optimizer, steps=30, seed=0, schedule=cosine(30), clip=1.0):
            pass
    assert loss() < before, f"training does not lower the loss: {before:.4f} -> {loss():.4f}"


def objective_rows(make: MakeObjective, batch: Batch) -> None:
    """In evaluation, features and predictions of a row are its own, in any order and company."""
    objective = make().eval()
    stirred(objective)
    size = len(next(iter(batch.values())))
    order = torch.randperm(size, generator=seeds.generator(0, "order"))
    functions: dict[str, Callable[[Batch], Tensor]] = {}
    for name, tower in objective.encoders().items():
        functions[f"features of '{name}'"] = lambda b, tower=tower: tower(b).pooled  # type: ignore[misc]
    for name, get in (("predict", lambda out: out), ("reconstruct", lambda out: out[1])):
        method = getattr(objective, name, None)
        if method is not None:
            functions[name] = lambda b, method=method, get=get: get(method(b))  # type: ignore[misc]
    for name, function in functions.items():
        with torch.no_grad(), leaves_random_alone(name):
            out = function(batch)
            assert len(out) == size, f"{name}: {len(out)} for {size} rows"
            assert near(function(pick(batch, order)), out[order]), f"{name}: permuting the rows changes them"
            assert near(function(pick(batch, slice(2, 5))), out[2:5]), f"{name}: a row depends on the others"


OBJECTIVE: dict[str, Callable[[MakeObjective, Batch], None]] = {
    "encoders": objective_encoders,
    "spec": objective_spec,
    "corrupt": objective_corrupt,
    "forward": objective_forward,
    "gradients": objective_gradients,
    "freezing": objective_freezing,
    "groups": objective_groups,
    "learns": objective_learns,
    "rows": objective_rows,
}


# Modalities


def rows_of(kind: type[Input], raw: Any) -> int:
    """How many raw rows there are."""
    return raw.num_rows if isinstance(raw, pa.Table) else len(raw)


def taken(raw: Any, index: np.ndarray) -> Any:
    """Raw rows `index`."""
    return raw.take(pa.array(index)) if isinstance(raw, pa.Table) else raw.take(index)


def fitted(kind: type[Input], raw: Any) -> tuple[Input, Batch]:
    """The input inferred from all rows, and all rows as a batch."""
    every = np.arange(rows_of(kind, raw))
    made = kind.infer(raw, every)
    return made, made.pack(raw).source.rows(every)


def modality_names(kind: type[Input], raw: Any) -> None:
    """The class names its modality, defaults that exist, and baselines."""
    assert kind.modality in names("modality"), f"modality '{kind.modality}' is not among {names('modality')}"
    assert kind.default_trunk in names("trunk"), f"default_trunk '{kind.default_trunk}' is not among {names('trunk')}"
    known = names("objective")
    assert kind.default_objective in known, f"default_objective '{kind.default_objective}' is not among {known}"
    assert kind.baselines, "there is no simple baseline"


def modality_spec(kind: type[Input], raw: Any) -> None:
    """An inferred input, through JSON, builds one that embeds to the same bits with the same weights."""
    made, batch = fitted(kind, raw)
    again = check_spec("modality", made)
    a, b = made.embed(), again.embed()
    b.load_state_dict(a.state_dict())
    with torch.no_grad():
        assert equal_bits(a(batch).x, b(batch).x), "an input built from its spec embeds differently"
        rebuilt = again.pack(raw).source.rows(np.arange(rows_of(kind, raw)))
    assert same(batch, rebuilt), "an input built from its spec packs differently"


def modality_infer(kind: type[Input], raw: Any) -> None:
    """Statistics come from the given rows only: those of a subset equal those of the subset alone."""
    index = np.arange(rows_of(kind, raw))[::2]
    with leaves_random_alone("infer"):
        a, b = kind.infer(raw, index), kind.infer(taken(raw, index), np.arange(len(index)))
    assert spec("modality", a) == spec("modality", b), "infer looks at rows that it was not given"


def modality_source(kind: type[Input], raw: Any) -> None:
    """A source reads rows by number, in any order, repeated or alone, and what is done to them stays outside."""
    size = rows_of(kind, raw)
    packed = kind.infer(raw, np.arange(size)).pack(raw)
    source = packed.source
    assert source.size == size == len(packed.keep), f"{size} rows pack to {source.size}, keep {len(packed.keep)}"
    assert not packed.bad, f"good rows are reported as bad: {packed.bad}"
    assert packed.hashes.dtype == np.uint64, f"hashes are {packed.hashes.dtype}; wanted uint64"
    assert len(np.unique(packed.hashes)) == len(packed.hashes) == size, (
        "rows that differ share a hash, or some have none"
    )
    every = source.rows(np.arange(size))
    assert all(len(v) == size for v in every.values()), "a value of the batch is not one a row"
    for index in (np.array([size - 1, 0, 3, 3]), np.array([2]), np.arange(size)[::-1]):
        assert same(source.rows(index), pick(every, index.copy())), f"rows({index}) differ from those rows of all"
    kept = {k: v.clone() for k, v in every.items()}
    for value in source.rows(np.arange(size)).values():
        value.zero_()
    assert same(source.rows(np.arange(size)), kept), "changing a batch changes its source"
    order = np.arange(size)[::-1].copy()
    turned = kind.infer(raw, np.arange(size)).pack(taken(raw, order))
    assert (turned.hashes == packed.hashes[order]).all(), "a row's hash depends on its place"


def modality_embed(kind: type[Input], raw: Any) -> None:
    """`embed` gives finite float tokens of `dim` on `grid`, each sample for itself, and trains throughout."""
    made, batch = fitted(kind, raw)
    embed = made.embed()
    out = embed(batch)
    wanted = (rows_of(kind, raw), int(np.prod(embed.grid)), embed.dim)
    assert out.x.shape == wanted, f"dim and grid promise {wanted}; the tokens are {tuple(out.x.shape)}"
    assert tuple(out.grid) == tuple(embed.grid), f"tokens on grid {out.grid}; promised {embed.grid}"
    assert out.x.dtype == torch.float32, f"tokens are {out.x.dtype}"
    assert out.x.isfinite().all(), "tokens are not finite"
    assert near(embed(pick(batch, slice(2, 5))).x, out.x[2:5]), "a sample's tokens depend on the others"
    if next(embed.parameters(), None) is not None:
        check_gradients(embed, weighted(out.x))


def modality_unembed(kind: type[Input], raw: Any) -> None:
    """`unembed` says of tokens how far each is from the truth, and decodes them to a batch that embeds again."""
    made, batch = fitted(kind, raw)
    embed, unembed = made.embed(), made.unembed()
    size, t = rows_of(kind, raw), int(np.prod(embed.grid))
    x = torch.randn((size, t, unembed.dim), generator=seeds.generator(0, "tokens"), requires_grad=True)
    loss = unembed.loss(x, batch)
    assert loss.shape == (size, t), f"loss of tokens is {tuple(loss.shape)}; wanted one a token {(size, t)}"
    assert loss.isfinite().all(), "the loss is not finite"
    assert (loss >= 0).all(), "the loss is negative"
    check_gradients(unembed, loss.sum())
    assert x.grad is not None and x.grad.any(), "the loss does not depend on the tokens"  # noqa: PT018
    with torch.no_grad():
        out = unembed.decode(x)
        assert out.keys() <= batch.keys(), f"decode gives {sorted(out)}; a batch has {sorted(batch)}"
        assert embed(out).x.shape == (size, t, embed.dim), "decoded rows do not embed"


def modality_views(kind: type[Input], raw: Any) -> None:
    """Views are pure functions of (batch, generator) that keep keys, number of rows and what can be embedded."""
    made, batch = fitted(kind, raw)
    views, embed = made.views(), made.embed()
    given = {k: v.clone() for k, v in batch.items()}
    with leaves_random_alone("a view"):
        first, other = views(batch, seeds.generator(0)), views(batch, seeds.generator(1))
    assert same(batch, given), "a view changes the batch it is given"
    assert same(first, views(batch, seeds.generator(0))), "a view is not a function of its generator"
    assert not same(first, other), "two generators give one view"
    assert first.keys() == batch.keys(), f"a view turns {sorted(batch)} into {sorted(first)}"
    assert embed(first).x.shape == embed(batch).x.shape, "a view embeds to another shape"
    extra = torch.arange(rows_of(kind, raw))
    carried = views({**batch, "target": extra}, seeds.generator(0))
    assert same({**first, "target": extra}, carried), "a view does not hand on what it does not know"
    words = refusal(UserError, lambda: made.views(no_such_option=1))
    assert words, "an unknown option of views is accepted"
    assert "no_such_option" in words, f"the refusal does not name the option: {words}"


def modality_flat(kind: type[Input], raw: Any) -> None:
    """`flat` gives every row the same number of finite float32 features, whatever rows are asked."""
    made, batch = fitted(kind, raw)
    flat = made.flat(batch)
    assert flat.ndim == 2, f"flat has shape {flat.shape}; wanted (rows, features)"
    assert len(flat) == rows_of(kind, raw), f"flat has {len(flat)} rows"
    assert flat.dtype == np.float32, f"flat is {flat.dtype}; wanted float32"
    assert np.isfinite(flat).all(), "flat is not finite"
    assert (made.flat(pick(batch, slice(2, 5))) == flat[2:5]).all(), "flat features depend on the other rows"


def modality_show(kind: type[Input], raw: Any) -> None:
    """`show` gives every row a thumb or a text."""
    made, batch = fitted(kind, raw)
    shown = made.show(batch)
    assert len(shown) == rows_of(kind, raw), f"{len(shown)} rows shown of {rows_of(kind, raw)}"
    assert all(row.keys() & {"thumb", "text"} and all(isinstance(v, str) for v in row.values()) for row in shown), (
        shown[0]
    )


def modality_trunk(kind: type[Input], raw: Any) -> None:
    """The default trunk takes the modality's tokens; the encoder's own spec builds it again."""
    made, batch = fitted(kind, raw)
    encoder = Encoder.of(made, kind.default_trunk).eval()
    again = check_spec("encoder", encoder).eval()
    with torch.no_grad():
        a, b = encoder(batch).pooled, again(batch).pooled
    assert a.shape == (rows_of(kind, raw), encoder.dim), f"pooled features are {tuple(a.shape)}"
    assert equal_bits(a, b), "an encoder built from its spec gives other features"


MODALITY: dict[str, Callable[[type[Input], Any], None]] = {
    "names": modality_names,
    "spec": modality_spec,
    "infer": modality_infer,
    "source": modality_source,
    "embed": modality_embed,
    "unembed": modality_unembed,
    "views": modality_views,
    "flat": modality_flat,
    "show": modality_show,
    "trunk": modality_trunk,
}
