"""Many models in one pass equal separately trained twins; any plan, any mix of settings, after any kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from modicum.core.errors import UserError, Warned
from modicum.diagnostics._rows import Given, given
from modicum.objectives.supervised import Supervised
from modicum.training import many, states
from modicum.training.batches import Batches
from modicum.training.divide import WASTE, divide, shared_out
from modicum.training.fit import fit
from modicum.training.many import Member, Work, train
from modicum.training.optim import adamw, groups
from modicum.training.plan import made
from modicum.training.stack import plain_loss

PLAIN = "mlp(width={}, depth={}, norm='none', act='{}')"
CONV = "convnet(width={}, stages=2)"
WIDTHS = (32, 30, 9, 31, 8, 12)
STACKS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "relu": ([PLAIN.format(32, 1, "relu")] * 5, {}),
    "gelu, mixed widths, sgd": ([PLAIN.format(w, 1, "gelu") for w in WIDTHS], {"optimizer": "sgd"}),
    "mixed widths on shared batches, clipped": (
        [PLAIN.format(w, 1, "relu") for w in WIDTHS],
        {"shared": True, "clip": 0.5},
    ),
    "two layers, tanh, shared": ([PLAIN.format(w, 2, "tanh") for w in WIDTHS], {"shared": True}),
    "sigmoid is not padded": ([PLAIN.format(w, 2, "sigmoid") for w in (32, 32, 9, 9)], {"optimizer": "sgd"}),
    "silu, three layers": ([PLAIN.format(7, 3, "silu")] * 3, {}),
    "linear": (["mlp(depth=0)"] * 4, {"optimizer": "sgd", "clip": 0.1}),
    "linear, shared": (["mlp(depth=0)"] * 4, {"shared": True}),
    "batch norm, loop": (["mlp(width=16)"] * 3, {"plan": "loop", "calm": 0.1}),
    "batch norm, vmap": (["mlp(width=16)"] * 3, {"plan": "vmap", "calm": 0.1}),
    "group-norm convnet, loop": (["convnet(width=8, stages=2, norm='group')"] * 3, {"plan": "loop"}),
    "group-norm convnet, grouped": (["convnet(width=8, stages=2, norm='group')"] * 3, {"plan": "grouped"}),
    "batch-norm convnet, grouped": (["convnet(width=8, stages=2)"] * 3, {"plan": "grouped", "shared": True}),
    "convnet without cells, grouped": (["convnet(width=8, stages=2, cells=0)"] * 3, {"plan": "grouped"}),
    "batch-norm convnets of mixed widths": ([CONV.format(w) for w in (8, 7, 8, 6)], {"plan": "grouped"}),
    "group-norm convnets of mixed widths": (
        [f"convnet(width={w}, stages=2, norm='group')" for w in (32, 32, 16, 32)],
        {"plan": "grouped", "shared": True, "optimizer": "sgd"},
    ),
    "transformer, vmap": (["transformer(width=8, depth=1, heads=2)"] * 2, {"plan": "vmap"}),
    "transformer, vmap, sgd": (["transformer(width=8, depth=1, heads=2)"] * 2, {"plan": "vmap", "optimizer": "sgd"}),
    "mixer, chosen by trial": (["mixer(width=8, depth=1)"] * 2, {"calm": 0.1}),
    "mixer, vmap, sgd": (["mixer(width=8, depth=1)"] * 2, {"plan": "vmap", "optimizer": "sgd", "calm": 0.1}),
    "resnet, loop, sgd": (["resnet(10, width=4)"] * 2, {"plan": "loop", "optimizer": "sgd"}),
    "resnet, vmap": (["resnet(10, width=4)"] * 2, {"plan": "vmap"}),
    "recurrent, loop": (["recurrent(width=8, depth=1)"] * 2, {"plan": "loop"}),
    "recurrent, loop, sgd": (["recurrent(width=8, depth=1)"] * 2, {"plan": "loop", "optimizer": "sgd"}),
}


@cache
def digits() -> Given:
    return given("digits")


def cohort(specs: list[str], work: Work, shared: bool, steps: tuple[int, ...]) -> list[Member]:
    """Members with rates, decays, label noise, rows and numbers of steps of their own."""
    rng, rows = np.random.default_rng(0), digits().train
    lr = 1e-3 if work.optimizer == "adamw" else 1e-2
    out = []
    for k, spec in enumerate(specs):
        own = rows[:200] if shared else rng.choice(rows, 200, replace=False)
        y = work.targets[own].copy()
        hit = rng.random(200) < 0.2
        y[hit] = rng.integers(0, 10, hit.sum())
        more = {"lr": lr * (1 + k), "weight_decay": 0.1 * k, "batch": 64, "steps": steps[k % len(steps)]}
        out.append(Member(own, y, spec, seed=k, order=7 if shared else None, **more))
    return out


def twin(m: Member, work: Work) -> Supervised:
    """The member trained alone, by the ordinary loop, batches and optimizer."""
    objective = work.build(m)
    target = torch.as_tensor(work.targets[m.rows] if m.targets is None else m.targets)
    batches = Batches(work.source, m.rows, batch=m.batch, seed=m.shuffle, extra={"target": target})
    own = groups(objective, lr=m.lr, weight_decay=m.weight_decay)
    sgd = work.optimizer == "sgd"
    optimizer: Any = torch.optim.SGD(own, lr=m.lr, momentum=work.momentum) if sgd else adamw(own)
    schedule = work.factor(m)
    for _ in fit(objective, batches, optimizer, steps=m.steps, seed=m.seed, schedule=schedule, clip=work.clip):
        pass
    return objective


def apart(a: nn.Module, b: nn.Module) -> float:
    """The largest difference of two modules' parameters and statistics, in units of each one's largest value."""
    theirs = {**dict(b.named_parameters()), **dict(b.named_buffers())}
    own = {**dict(a.named_parameters()), **dict(a.named_buffers())}
    assert own.keys() == theirs.keys()
    gaps = [(v - theirs[k]).abs().max() / v.abs().max().clamp(min=1e-3) for k, v in own.items()]
    return float(torch.stack([g.detach().double() for g in gaps]).max())


@pytest.mark.parametrize("name", STACKS)
def test_members_equal_their_separately_trained_twins(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modicum.training.divide.timed", lambda stack: 1.0)  # together is the faster
    specs, options = STACKS[name]
    options = dict(options)
    plan, shared, calm = options.pop("plan", None), options.pop("shared", False), options.pop("calm", 1.0)
    work = digits().work(dtype=torch.float64, **options)
    members = cohort(specs, work, shared, (200, 200, 120))
    batch = 64 if "mlp" in specs[0] else 16
    # Of perceptrons one has batches of another size, and every second a constant rate.
    changes = [{"batch": 40 if "mlp" in m.encoder and not shared and k == 2 else batch} for k, m in enumerate(members)]
    members = [
        replace(m, lr=calm * m.lr, schedule=("cosine", "constant")[k % 2], **more)
        for k, (m, more) in enumerate(zip(members, changes, strict=True))
    ]
    seen = []
    for reading in train(members, work, plan=plan):
        assert reading.last
        assert getattr(reading.stack, "padded", False) == ("convnets of mixed" in name)
        assert (reading.plan["plan"] == "dense") == (not plan and "mixer" not in name)
        seen += reading.numbers
        for k, number in enumerate(reading.numbers):
            assert apart(reading.member(k), twin(members[number], work)) < 1e-9, (number, reading.plan)
    assert sorted(seen) == list(range(len(specs)))


@pytest.mark.parametrize("name", [name for name in STACKS if not name.endswith("sgd")])
def test_gradients_in_float32_equal_the_twins(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modicum.training.divide.timed", lambda stack: 1.0)
    specs, options = STACKS[name]
    work = digits().work()
    members = cohort(specs, work, options.get("shared", False), (1,))
    for chunk in divide(members, work):
        own = [members[i] for i in chunk.numbers]
        plan = options.get("plan", "dense" if chunk.dense else "loop")
        stack = made(own, work, chunk, plan)
        with torch.no_grad():
            losses = stack.compute(stack.batches(0))
        for p in stack.parameters():
            p.data.copy_(p.grad)  # a member of the stack is then its gradients
        for i, m in enumerate(own):
            target = torch.as_tensor(m.targets)
            batch = Batches(work.source, m.rows, batch=m.batch, seed=m.shuffle, extra={"target": target})(0)
            model = work.build(m).train()
            loss = plain_loss(model, batch)
            loss.backward()
            assert losses[i].item() == pytest.approx(loss.item(), rel=1e-5)
            largest = max(float(p.grad.abs().max()) for p in model.parameters())
            for (key, p), found in zip(model.named_parameters(), stack.member(i).parameters(), strict=True):
                gap = (p.grad - found.data).abs().max()
                # Of a parameter without influence, such as a bias before a norm, the gradient is rounding alone.
                assert gap <= 1e-5 * p.grad.abs().max() + 1e-6 * largest, key


def test_padding_stays_zero_and_wastes_little() -> None:
    work = digits().work()
    rows = digits().train[:128]
    members = [
        Member(rows, None, PLAIN.format(w, 1, "relu"), w, 0, steps=3) for w in np.linspace(1, 120, 40).astype(int)
    ]
    (chunk,) = divide(members, work)
    assert chunk.buckets is not None
    assert sum(chunk.buckets) == 40
    assert len(chunk.buckets) < 20
    for reading in train(members, work):
        stack: Any = reading.stack
        padded = sum(w * (p.stop - p.start) for p, w in zip(stack.parts, stack.wide, strict=True))
        assert 1 - sum(stack.widths) / padded < WASTE
        for k, width in enumerate(stack.widths):
            weight = stack.get_parameter("first")
            first = weight[torch.from_numpy(stack.owners[weight] == k)]
            assert first[:width].abs().sum() > 0
            assert (first[width:] == 0).all()


def test_outputs_and_own_scores_are_those_of_the_members() -> None:
    work, rows = digits().work(), digits()
    members = cohort([PLAIN.format(w, 1, "relu") for w in WIDTHS], work, True, (40,))
    index = rows.test[:50]
    for reading in train(members, work):
        z, (loss, error) = reading.outputs(index), reading.own()
        assert z.shape == (len(reading.numbers), 50, 10)
        assert z.dtype == np.float32
        for k, number in enumerate(reading.numbers):
            model, m = reading.member(k).eval(), members[number]
            with torch.no_grad():
                alone = model.head(model.encoder(work.source.rows(index)).pooled)
                own = model.head(model.encoder(work.source.rows(m.rows)).pooled)
            np.testing.assert_allclose(z[k], alone.numpy(), atol=1e-5)
            true = torch.from_numpy(np.asarray(m.targets))
            assert loss[k] == pytest.approx(nn.functional.cross_entropy(own, true).item(), rel=1e-4)
            assert error[k] == pytest.approx((own.argmax(1) != true).float().mean().item(), abs=1e-6)


def test_numbers_are_predicted_in_their_units() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 4)).astype(np.float32)
    y = 100 + 7 * x @ np.array([1.0, -2.0, 0.5, 0.0])
    work = Work.of_features(x, y, 0)
    member = Member(np.arange(250), None, "mlp(depth=0)", lr=0.03, steps=400, batch=50)
    (reading,) = train([member], work)
    out = reading.outputs(np.arange(250, 300))
    np.testing.assert_allclose(out[0, :, 0], y[250:], atol=0.3)
    own = np.square(reading.outputs(np.arange(250))[0, :, 0] - y[:250]).mean()
    assert reading.own()[0][0] == pytest.approx(own, abs=1e-9)


def test_readings_on_the_way_are_of_members_that_go_on() -> None:
    work = digits().work()
    members = cohort([PLAIN.format(16, 1, "relu")] * 3, work, False, (30, 10, 20))
    found = [(r.step, sorted(r.numbers), r.last) for r in train(members, work, at=(5, 15, 100))]
    assert found == [(5, [0, 1, 2], False), (15, [0, 2], False), (30, [0, 1, 2], True)]


class Stop(Exception):
    pass


@pytest.mark.parametrize("plan", ["dense", "vmap", "loop"])
def test_a_stack_goes_on_bit_for_bit_after_a_stop(plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = digits().work()
    members = cohort([PLAIN.format(16, 1, "relu")] * 3, work, False, (30, 20))
    monkeypatch.setattr(many, "SAVE_EVERY", 0.0)
    whole = weights(members, work, plan, None)
    calls = 0

    def stop(done: int, total: int) -> None:
        raise Stop

    original = states.save

    def save(place: Path, stack: Any, optimizer: Any, step: int) -> None:
        nonlocal calls
        original(place, stack, optimizer, step)
        calls += 1
        if calls == 17:
            raise Stop

    monkeypatch.setattr(states, "save", save)
    with pytest.raises(Stop):
        weights(members, work, plan, tmp_path / "m")
    again = weights(members, work, plan, tmp_path / "m")
    third = weights(members, work, plan, tmp_path / "m")  # nothing is trained any more
    assert calls > 17
    assert json.loads((tmp_path / "m/0000/plan.json").read_text())["plan"] == plan
    for other in (again, third):
        assert whole.keys() == other.keys()
        assert all(torch.equal(whole[k], other[k]) for k in whole)


def weights(members: list[Member], work: Work, plan: str, folder: Path | None) -> dict[str, torch.Tensor]:
    out = {}
    for reading in train(members, work, at=(10, 500), plan=plan, folder=folder):
        for k, number in enumerate(reading.numbers):
            state = reading.member(k).state_dict()
            out |= {f"{reading.step} {number} {key}": value.clone() for key, value in state.items()}
    return out


def test_processes_share_the_stacks(tmp_path: Path) -> None:
    work = digits().work()
    members = cohort([PLAIN.format(w, 1, "relu") for w in (32, 4)], work, False, (20,))
    with many.threads(1):
        alone = weights(members, work, "dense", None)
        spread = {}
        for reading in train(members, work, workers=2, plan="dense", at=(10,)):
            for k, number in enumerate(reading.numbers):
                state = reading.member(k).state_dict()
                spread |= {f"{reading.step} {number} {key}": value.clone() for key, value in state.items()}
    assert alone.keys() == spread.keys()
    assert all(torch.equal(alone[k], spread[k]) for k in alone)


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_many import small_cohort
from modicum.training.many import train

if __name__ == "__main__":
    for reading in train(*small_cohort(), at=(10, 500), folder=Path(sys.argv[1]), workers=2):
        pass
"""


def small_cohort() -> tuple[list[Member], Work]:
    rng = np.random.default_rng(0)
    work = Work.of_features(rng.standard_normal((400, 12)).astype(np.float32), rng.integers(0, 3, 400), 3)
    specs = [PLAIN.format(w, 1, "relu") for w in (32, 3, 20)]
    return [Member(np.arange(300), None, s, k, lr=1e-2, steps=2000, batch=32) for k, s in enumerate(specs)], work


def test_processes_killed_by_sigkill_are_taken_over_bit_for_bit(tmp_path: Path) -> None:
    script, cut, whole = tmp_path / "killed.py", tmp_path / "cut", tmp_path / "whole"
    script.write_text(KILLED)
    ask = [sys.executable, str(script), str(cut), str(Path(__file__).parent)]
    begun, until = subprocess.Popen(ask, start_new_session=True), time.monotonic() + 60
    while not list(cut.glob("*/read-*500.*")) and time.monotonic() < until:
        time.sleep(0.01)
    os.killpg(begun.pid, signal.SIGKILL)
    begun.wait()
    assert list(cut.glob("*/read-*"))
    whole.mkdir()
    (whole / "members.json").write_bytes((cut / "members.json").read_bytes())  # so that both are divided alike
    members, work = small_cohort()
    with many.threads(1):
        expected = weights(members, work, "dense", whole)
        again = weights(members, work, "dense", cut)
    assert len(list(cut.glob("000*"))) == 2
    assert expected.keys() == again.keys()
    assert all(torch.equal(expected[k], again[k]) for k in expected)


def test_stacks_fit_the_memory_given() -> None:
    work = digits().work()
    members = cohort([PLAIN.format(64, 1, "relu")] * 12, work, False, (5,))
    assert len(divide(members, work)) == 1
    chunks = divide(members, work, memory=2e6)
    assert len(chunks) > 3
    assert sorted(i for c in chunks for i in c.numbers) == list(range(12))
    with pytest.raises(UserError, match=r"takes about .* GB and .* GB may be used: lower its width"):
        divide(members, work, memory=1e4)


def test_a_member_that_diverges_is_told() -> None:
    work = digits().work(optimizer="sgd")
    members = [Member(digits().train[:100], None, PLAIN.format(8, 1, "relu"), lr=lr, steps=60) for lr in (1e30, 1e-3)]
    with pytest.warns(Warned, match=r"1 of 2 members diverged \(number 0\)"):
        list(train(members, work))


def test_the_folder_remembers_how_it_was_divided(tmp_path: Path) -> None:
    work = digits().work()
    members = cohort([PLAIN.format(16, 1, "relu")] * 6, work, False, (5,))
    most = divide(members, work)
    parts = divide(members, work, memory=8e5)
    assert len(parts) > len(most)
    list(train(members, work, folder=tmp_path, memory=8e5))
    assert [r.numbers for r in train(members, work, folder=tmp_path)] == [c.numbers for c in parts]


def test_processes_get_chunks_of_about_the_same_work() -> None:
    work = digits().work()
    for specs, shared in ((["mlp(width=8)"] * 5, False), ([PLAIN.format(w, 1, "relu") for w in range(3, 20)], True)):
        members = cohort(specs, work, shared, (9,))
        chunks = shared_out(divide(members, work), members, 2)
        assert sorted(i for c in chunks for i in c.numbers) == list(range(len(specs)))
        assert abs(len(chunks[0].numbers) - len(chunks[1].numbers)) <= len(chunks[0].buckets or [1])
        assert all(c.buckets is None or sum(c.buckets) == len(c.numbers) for c in chunks)
    lone = members[:1]
    assert len(shared_out(divide(lone, work), lone, 2)) == 1


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "no members": (lambda: list(train([], digits().work())), "no members to train"),
    "no rows": (lambda: Member(np.empty(0, int)), "at least one row"),
    "steps": (lambda: Member(np.arange(3), steps=0), "steps of at least 1"),
    "targets": (lambda: Member(np.arange(3), np.arange(2)), "3 rows and 2 targets"),
    "schedule": (lambda: Member(np.arange(3), schedule="step"), "schedule 'step'"),
    "optimizer": (lambda: digits().work(optimizer="lion"), "optimizer 'lion'"),
    "plan": (lambda: list(train([Member(np.arange(9))], digits().work(), plan="grouped")), "plan 'grouped' cannot"),
    "width": (
        lambda: list(train([Member(np.arange(9), None, "mlp(width=0)")], digits().work())),
        "width of at least 1",
    ),
    "loop of mixed widths": (
        lambda: list(
            train(
                cohort([PLAIN.format(w, 1, "relu") for w in WIDTHS], digits().work(), True, (1,)),
                digits().work(),
                plan="loop",
            )
        ),
        "plan 'loop' cannot train .* and members of other widths; it can: dense",
    ),
    "unlabelled": (
        lambda: list(train([Member(np.arange(3), np.array([0, -1, 2]))], digits().work())),
        "member 0: the target of its row 1 is -1; wanted 0 to 9",
    ),
    "no such row": (
        lambda: list(train([Member(np.array([1, 5000]))], digits().work())),
        "member 0 trains on row 5000; there are 1,797 rows",
    ),
    "NaN": (lambda: Work.of_features(np.array([[0.0], [np.nan]]), np.arange(2), 2), "feature 0 of row 1 is nan"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_asks_are_refused_by_name(name: str) -> None:
    call, words = BAD[name]
    with pytest.raises(UserError, match=words):
        call()


@pytest.mark.parametrize("change", ["members", "features", "targets"])
def test_another_ask_does_not_go_on_in_the_same_folder(change: str, tmp_path: Path) -> None:
    x, y, rows = np.eye(8, dtype=np.float32), np.arange(8), np.arange(8)
    members = [Member(rows, None, PLAIN.format(4, 1, "relu"), seed, steps=3) for seed in (0, 1)]
    list(train(members, Work.of_features(x, y, 8), folder=tmp_path))
    list(train(members, Work.of_features(x, y, 8), folder=tmp_path))
    asks = {
        "members": (members[:1], Work.of_features(x, y, 8)),
        "features": (members, Work.of_features(x[::-1], y, 8)),
        "targets": (members, Work.of_features(x, y[::-1].copy(), 8)),
    }
    with pytest.raises(UserError, match="holds other members than these"):
        list(train(*asks[change], folder=tmp_path))


def test_another_torch_is_told(tmp_path: Path) -> None:
    work = Work.of_features(np.eye(8, dtype=np.float32), np.arange(8), 8)
    members = [Member(np.arange(8), None, PLAIN.format(4, 1, "relu"), steps=3)]
    list(train(members, work, folder=tmp_path))
    file = tmp_path / "members.json"
    file.write_text(file.read_text().replace(torch.__version__, "2.0.0"))
    with pytest.warns(Warned, match=r"was begun with torch 2\.0\.0"):
        list(train(members, work, folder=tmp_path))
