"""Randomness as a function of (seed, step), the loop against a plain one bit for bit, groups, schedules, batches."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modicum.core import seeds
from modicum.core.types import Batch, Objective
from modicum.testing import equal_bits, leaves_random_alone, same
from modicum.training.batches import Batches
from modicum.training.fit import fit
from modicum.training.optim import adamw, cosine, groups

CONV, DROPPING = "convnet(width=4, stages=2)", "mlp(width=16, dropout=.1)"


# Seeds


def test_fold_is_a_fixed_function() -> None:
    """These numbers are part of the format: with others, runs of older versions would not resume to the same bits."""
    assert seeds.fold(0) == 4246866556266386882
    assert seeds.fold(0, "corrupt", 7) == 3543958031673732829
    assert seeds.fold(1, "corrupt", 7) == 9179731529436540574


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(-(2**63), 2**64), st.lists(st.text(max_size=5) | st.integers(0, 10**9), max_size=3))
def test_fold_is_in_range_and_depends_on_everything(seed: int, path: list[str | int]) -> None:
    value = seeds.fold(seed, *path)
    assert 0 <= value < 2**63
    assert value == seeds.fold(seed, *path)
    assert value != seeds.fold(seed + 1, *path)
    assert value != seeds.fold(seed, *path, 0)


def test_neighbouring_seeds_are_unrelated() -> None:
    draws = torch.stack([torch.randn(500, generator=seeds.generator(0, "x", step)) for step in range(40)])
    correlation = torch.corrcoef(draws).fill_diagonal_(0)
    assert correlation.abs().max() < 5 / math.sqrt(500)
    assert len({seeds.fold(s, w, k) for s in range(20) for w in "ab" for k in range(50)}) == 2000


def test_generators_are_fresh_each_time_and_touch_nothing_global() -> None:
    with leaves_random_alone("generator"):
        a, b = (torch.rand(5, generator=seeds.generator(3, "views", 1)) for _ in range(2))
        c, d = (seeds.numpy(3, "order").random(5) for _ in range(2))
    assert torch.equal(a, b)
    assert (c == d).all()


def test_forked_is_a_function_of_the_seed_inside_and_nothing_outside() -> None:
    def inside(seed: int) -> Tensor:
        with seeds.forked(seed, "dropout", 5):
            return torch.rand(4)

    with leaves_random_alone("forked"):
        first = inside(0)
        torch_state = torch.get_rng_state()
        assert torch.equal(first, inside(0))
        assert not torch.equal(first, inside(1))
        with seeds.forked(7), seeds.forked(8):
            pass
        with pytest.raises(KeyError), seeds.forked(0):
            raise KeyError(torch.rand(3))
        assert torch.equal(torch_state, torch.get_rng_state())
    with seeds.forked(1):
        a = torch.rand(2)
        with seeds.forked(2):
            torch.rand(9)
        b = torch.rand(2)
    with seeds.forked(1):
        assert torch.equal(torch.cat([a, b]), torch.cat([torch.rand(2), torch.rand(2)]))


# The loop


def rate_at(step: int, steps: int) -> float:
    """The schedule's formula, written anew: a tenth of linear rise, then half a cosine to zero."""
    rise = max(1, round(steps / 10))
    if step < rise:
        return (step + 1) / rise
    return (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2


def plain_loop(
    objective: Objective, batches: Callable[[int], Batch], optimizer: torch.optim.Optimizer, steps: int, seed: int
) -> list[float]:
    """What `fit` does, in plain PyTorch."""
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate_at(step, steps)
        objective.train()
        material = objective.corrupt(batches(step), torch.Generator().manual_seed(seeds.fold(seed, "corrupt", step)))
        state = torch.get_rng_state()
        torch.manual_seed(seeds.fold(seed, "dropout", step))
        loss, _ = objective(material)
        torch.set_rng_state(state)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


KINDS: dict[str, Callable[[], Objective]] = {
    "simclr": zoo.objective("simclr(hidden=16, out=8)", CONV, zoo.images),
    "dropout": zoo.objective("autoencoder(code=4, noise=.3)", DROPPING, zoo.tables),
}


def material(kind: str) -> Batches:
    made, _ = zoo.images() if kind == "simclr" else zoo.tables()
    raw = zoo.pictures() if kind == "simclr" else zoo.cases()
    return Batches(made.pack(raw).source, np.arange(12), batch=5, seed=3)


def optimizer_of(objective: Objective) -> torch.optim.AdamW:
    return adamw(groups(objective, lr=4e-3, weight_decay=0.05))


@pytest.mark.parametrize("kind", KINDS)
def test_fit_is_a_plain_loop_bit_for_bit(kind: str) -> None:
    steps, batches = 8, material(kind)
    a, b = KINDS[kind](), KINDS[kind]()
    with leaves_random_alone("fit"):
        losses = [
            step.loss.item()
            for step in fit(a, batches, optimizer_of(a), steps=steps, seed=3, schedule=cosine(steps), clip=1.0)
        ]
    assert losses == plain_loop(b, batches, optimizer_of(b), steps, 3)
    assert same(dict(a.state_dict()), dict(b.state_dict()))
    assert not same(dict(a.state_dict()), dict(KINDS[kind]().state_dict()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_start_at_any_step_continues_bit_for_bit(kind: str, stop: int) -> None:
    steps = 8

    def train(objective: Objective, optimizer: torch.optim.Optimizer, start: int, end: int) -> list[float]:
        found = []
        torch.rand(start + 1)  # the state of the caller's generator must not matter
        for step in fit(
            objective, material(kind), optimizer, steps=steps, seed=3, start=start, schedule=cosine(steps), clip=1.0
        ):
            found.append(step.loss.item())
            if step.number == end:
                break
        return found

    whole, parts = KINDS[kind](), KINDS[kind]()
    losses = train(whole, optimizer_of(whole), 0, steps)
    optimizer = optimizer_of(parts)
    first = train(parts, optimizer, 0, stop)
    again = KINDS[kind]()
    again.load_state_dict(parts.state_dict())
    other = optimizer_of(again)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert first + train(again, other, stop, steps) == losses
    assert same(dict(whole.state_dict()), dict(again.state_dict()))


def test_dropout_differs_from_step_to_step_and_from_seed_to_seed() -> None:
    batch = zoo.tables()[1]

    def losses(seed: int) -> list[float]:
        objective = zoo.objective("autoencoder(code=4)", "mlp(width=16, dropout=.5)", zoo.tables)()
        optimizer = torch.optim.SGD(objective.parameters(), 0.0)
        return [s.loss.item() for s in fit(objective, lambda _: batch, optimizer, steps=5, seed=seed)]

    assert len({*losses(0), *losses(1)}) == 10
    assert losses(0) == losses(0)


class Quadratic(nn.Module):
    """loss = g·w with a known gradient g."""

    def __init__(self, gradient: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros_like(gradient))
        self.gradient, self.seen = gradient, []

    def corrupt(self, batch: Batch, rng: torch.Generator) -> Batch:
        return batch

    def forward(self, corrupted: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return (self.w * self.gradient).sum(), {"mean": self.w.detach().mean()}

    def after_step(self, step: int) -> None:
        self.seen.append(step)


def test_steps_count_rates_follow_the_schedule_and_clipping_bounds_the_gradient() -> None:
    def walk(gradient: Tensor, clip: float | None) -> tuple[list, Quadratic]:
        toy = Quadratic(gradient)
        optimizer = torch.optim.SGD([{"params": [toy.w], "lr": 0.5, "initial_lr": 0.5}])
        options = {"steps": 4, "seed": 0, "start": 1, "clip": clip}
        return list(fit(toy, lambda _: {}, optimizer, schedule=lambda s: 1 / (s + 1), **options)), toy  # type: ignore[arg-type]

    steps, toy = walk(torch.tensor([3.0, 4.0]), 1.0)
    assert [s.number for s in steps] == [2, 3, 4]
    assert [s.rate for s in steps] == [0.5 / 2, 0.5 / 3, 0.5 / 4]
    assert toy.seen == [1, 2, 3]
    assert not steps[0].loss.requires_grad
    moved = 0.5 * (1 / 2 + 1 / 3 + 1 / 4)
    torch.testing.assert_close(toy.w.detach(), -moved * torch.tensor([0.6, 0.8]))
    _, free = walk(torch.tensor([3.0, 4.0]), None)
    torch.testing.assert_close(free.w.detach(), -moved * torch.tensor([3.0, 4.0]))
    _, small = walk(torch.tensor([0.3, 0.4]), 1.0)
    torch.testing.assert_close(small.w.detach(), -moved * torch.tensor([0.3, 0.4]))
    assert list(fit(toy, lambda _: {}, torch.optim.SGD(toy.parameters(), 1.0), steps=3, seed=0, start=3)) == []  # type: ignore[arg-type]


def test_an_error_in_training_leaves_the_global_generator_alone() -> None:
    objective = KINDS["dropout"]()
    broken = {k: v[:, :1] for k, v in zoo.tables()[1].items()}
    with leaves_random_alone("a failing fit"), pytest.raises((RuntimeError, IndexError)):
        list(fit(objective, lambda _: broken, optimizer_of(objective), steps=2, seed=0))


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 100, 1005])
def test_the_schedule(steps: int) -> None:
    factor = cosine(steps)
    values = [factor(s) for s in range(steps)]
    assert values == pytest.approx([rate_at(s, steps) for s in range(steps)])
    assert all(0 < v <= 1 for v in values)
    assert max(values) == 1
    rise = max(1, round(steps / 10))
    assert values[:rise] == sorted(values[:rise])
    assert values[rise:] == sorted(values[rise:], reverse=True)
    assert cosine(100, warmup=0.0)(0) == 1


# Groups


def test_groups_hold_every_parameter_once_with_its_layers_rate() -> None:
    objective = zoo.objective("simclr(hidden=16, out=8)", "convnet(width=4, stages=3)", zoo.images)()
    encoder = objective.encoders()["encoder"]
    made = groups(objective, lr=0.1, weight_decay=0.05, decay=0.5)
    found = {id(p): g for g in made for p in g["params"]}
    assert len(found) == sum(len(g["params"]) for g in made) == len(list(objective.parameters()))
    layers = list(encoder.layers().values())
    assert len(layers) == 4
    for k, parts in enumerate(layers):
        for p in [p for part in parts for p in part.parameters()]:
            assert found[id(p)]["lr"] == found[id(p)]["initial_lr"] == 0.1 * 0.5 ** (4 - k)
    for p in objective.head.parameters():
        assert found[id(p)]["lr"] == 0.1
    for p in objective.parameters():
        assert found[id(p)]["weight_decay"] == (0.05 if p.dim() > 1 else 0.0)


def test_frozen_layers_are_in_no_group_and_thaw_again() -> None:
    objective = zoo.objective("autoencoder(code=4)", "mlp(width=16, depth=3)", zoo.tables)()
    encoder = objective.encoders()["encoder"]
    everything = len(list(objective.parameters()))
    assert list(encoder.layers()) == ["embed", "dense1", "dense2", "dense3"]
    for k in (0, 2, 4, 1, 0):
        held = {id(p) for g in groups(objective, lr=0.1, weight_decay=0.0, freeze=k) for p in g["params"]}
        frozen = [p for parts in list(encoder.layers().values())[:k] for m in parts for p in m.parameters()]
        assert len(held) == everything - len(frozen)
        assert not {id(p) for p in frozen} & held
        assert not any(p.requires_grad for p in frozen)


def test_the_optimizer_is_adamw_as_published() -> None:
    """Loshchilov & Hutter 2019, algorithm 2, by hand in float64."""
    toy = Quadratic(torch.tensor([[0.3, -2.0]]))
    with torch.no_grad():
        toy.w.copy_(torch.tensor([[1.0, -1.0]]))
    w, m, v = toy.w.detach().double(), torch.zeros(1, 2).double(), torch.zeros(1, 2).double()
    optimizer = adamw([{"params": [toy.w], "lr": 0.1, "initial_lr": 0.1, "weight_decay": 0.05}])
    for t, _ in enumerate(fit(toy, lambda _: {}, optimizer, steps=5, seed=0), 1):  # type: ignore[arg-type]
        g = toy.gradient.double()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w * (1 - 0.1 * 0.05) - 0.1 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    torch.testing.assert_close(toy.w.detach().double(), w, rtol=1e-6, atol=1e-6)


# Batches


class Numbers:
    """Row i holds the number i."""

    def __init__(self, size: int) -> None:
        self.size = size

    def rows(self, index: np.ndarray) -> Batch:
        return {"x": torch.from_numpy(np.asarray(index))}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**40))
def test_every_row_at_most_once_an_epoch(rows: int, batch: int, seed: int) -> None:
    index = np.arange(100, 100 + 2 * rows, 2)
    batches = Batches(Numbers(1000), index, batch=batch, seed=seed, extra={"target": torch.from_numpy(index * 10)})
    size = min(batch, rows)
    assert (batches.batch, batches.per_epoch) == (size, rows // size)
    for epoch in range(2):
        steps = range(epoch * batches.per_epoch, (epoch + 1) * batches.per_epoch)
        drawn = [batches(s) for s in steps]
        seen = torch.cat([b["x"] for b in drawn])
        assert len(seen) == len(set(seen.tolist())) == size * batches.per_epoch
        assert set(seen.tolist()) <= set(index.tolist())
        assert all(torch.equal(b["target"], 10 * b["x"]) for b in drawn)


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    def make(seed: int) -> Batches:
        return Batches(Numbers(100), np.arange(100), batch=7, seed=seed)

    forward, backward = make(5), make(5)
    with leaves_random_alone("Batches"):
        a = [forward(s)["x"] for s in range(60)]
        b = [backward(s)["x"] for s in reversed(range(60))][::-1]
    assert all(equal_bits(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(a[0], make(6)(0)["x"])
    epochs = [torch.cat([forward(s)["x"] for s in range(e * 14, e * 14 + 14)]) for e in range(2)]
    assert not torch.equal(*epochs)
    left = [set(range(100)) - set(e.tolist()) for e in epochs]
    assert left[0] != left[1]
    assert [len(x) for x in left] == [2, 2]
