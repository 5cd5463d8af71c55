"""The laws of objectives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from modicum.core import seeds
from modicum.core.types import Batch, Objective
from modicum.nn.encoder import Tower, complete
from modicum.testing.tools import (
    MakeObjective,
    check_freezing,
    check_gradients,
    check_spec,
    equal_bits,
    leaves_random_alone,
    near,
    pick,
    same,
    stirred,
    tensors,
)
from modicum.training.fit import fit
from modicum.training.optim import adamw, cosine, groups


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
        assert isinstance(tower, Tower), f"encoders()['{name}'] is a {type(tower).__name__}, not a Tower"
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

    def build_one() -> tuple[nn.Module, dict[str, Tower], Callable[[int], Any]]:
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
    """Thirty steps on one batch lower the loss on a fixed corruption of it; the global generators are left alone.

    What is not trained but follows, such as a teacher and its queue, is held still: else the aim moves.
    """
    objective = make()
    fixed = corrupted(objective, batch, seed=1)
    objective.after_step = lambda step: None  # type: ignore[method-assign]

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
