"""Many models at once: members are divided into stacks that fit memory, each trained through `fit` in the fastest way.

`train(members, work)` yields readings of members whose training has come to a step; nothing is kept of a stack when the
next one begins. With a folder, every stack can be continued after a kill, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modicum.core.atomic import atomic_write
from modicum.core.errors import UserError, Warned
from modicum.core.tensors import load_tensors
from modicum.objectives.supervised import Supervised
from modicum.training.abreast import Abreast
from modicum.training.dense import Dense, eligible, pads
from modicum.training.each import SLOTS, Each
from modicum.training.fit import fit
from modicum.training.run import save_tensors
from modicum.training.stack import Modules, Stack, timed
from modicum.training.work import Member as Member
from modicum.training.work import Work as Work

WASTE = 0.25
"""The share of a stack's units that may be padding."""
BUCKET = 4e6
"""Multiplications that take about as long as it takes to start the products of one more bucket."""
HEAVY = 2e7
"""Multiplications of a member's step from which the plain loop may be as fast as one product."""
SAVE_EVERY = 30.0
"""Seconds between two states from which a stack continues."""


@dataclass
class Around:
    """What holds for every `train` inside `around`: its folder (numbered in turn), processes, progress and device."""

    folder: Path | None = None
    workers: int = 1
    progress: Callable[[int, int], None] | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    calls: int = 0


AROUND: ContextVar[Around | None] = ContextVar("AROUND", default=None)


@contextmanager
def around(setting: Around) -> Iterator[None]:
    """Inside, trainings keep in its folder what they need to go on, use its processes and tell how far they are."""
    token = AROUND.set(setting)
    try:
        yield
    finally:
        AROUND.reset(token)


def device() -> torch.device:
    """Where to train, by what holds around: the processor where nothing does."""
    return (AROUND.get() or Around()).device


@dataclass(frozen=True)
class Chunk:
    """The numbers of members that are trained as one stack, and how many of them each bucket of widths has."""

    numbers: list[int]
    buckets: list[int] | None = None
    dense: bool = False


@dataclass(frozen=True)
class Reading:
    """Members `numbers` when their stack had taken `step` steps; `last` where they have finished."""

    numbers: list[int]
    step: int
    last: bool
    stack: Stack
    plan: dict[str, Any]

    def outputs(self, index: np.ndarray) -> np.ndarray:
        """Logits (k, n, c) float32 of the rows `index`, or numbers (k, n, 1) in the targets' units."""
        return self._in_units(self.stack.outputs(np.asarray(index))[self._places()])

    def own(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean loss (k,) and error (k,) over the rows and targets that each member is trained on.

        Of numbers both are the mean squared error, in the targets' units squared.
        """
        loss, error = np.empty(len(self.numbers)), np.empty(len(self.numbers))
        for k, i in enumerate(self._places()):
            own = self.stack.members[i]
            true = self.stack.streams.targets[i]
            z = self._in_units(self.stack.alone(i, own.rows))
            if not self.stack.work.classes:
                loss[k] = error[k] = np.square(z[:, 0].astype(np.float64) - true).mean()
                continue
            z = z.astype(np.float64)
            top = z.max(1, keepdims=True)
            total = np.log(np.exp(z - top).sum(1)) + top[:, 0]
            loss[k] = (total - z[np.arange(len(z)), true]).mean()
            error[k] = (z.argmax(1) != true).mean()
        return loss, error

    def member(self, k: int) -> Supervised:
        """The k-th of these members by itself, as an objective."""
        return self.stack.member(self._places()[k])

    def _places(self) -> list[int]:
        return list(range(len(self.numbers)))

    def _in_units(self, z: torch.Tensor) -> np.ndarray:
        shift, scale = self.stack.work.scale
        out: np.ndarray = (z if self.stack.work.classes else z * scale + shift).float().cpu().numpy()
        return out


def train(
    members: Sequence[Member],
    work: Work,
    *,
    at: Sequence[int] = (),
    folder: str | Path | None = None,
    workers: int | None = None,
    plan: str | None = None,
    memory: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Reading]:
    """Train all members and yield readings, stack after stack: at the steps `at`, and when a stack has finished.

    A reading at a step is of the members that take more steps. `folder` keeps what is needed to go on after a kill;
    `workers` processes share the stacks; `plan` (dense, vmap, grouped, loop) is else chosen by a short trial and kept
    in the folder; `memory` in bytes bounds a stack (default: two fifths of what is free); `progress(done, all)` counts
    members' steps. What is not given is taken from `around`. UserError where one member alone does not fit.
    """
    members = list(members)
    if not members:
        raise UserError("there are no members to train: give at least one")
    for i, m in enumerate(members):
        _check(i, m, work)
    given = AROUND.get() or Around()
    given.calls += 1
    if folder is None and given.folder is not None:
        folder = given.folder / f"{given.calls:02d}"
    workers, progress = workers or given.workers, progress or given.progress
    chunks = divide(members, work, memory)
    if workers > 1:
        yield from _spread(members, work, chunks, tuple(at), folder, workers, plan)
        return
    place = None if folder is None else Path(folder)
    if place is not None:
        _claim(place, members, work, at)
    done, total = 0, sum(m.steps for m in members)
    for k, chunk in enumerate(chunks):

        def tell(steps: int, before: int = done) -> None:
            if progress:
                progress(before + steps, total)

        yield from _chunk(members, work, chunk, tuple(at), None if place is None else place / f"{k:04d}", plan, tell)
        done += sum(members[i].steps for i in chunk.numbers)


def _check(i: int, member: Member, work: Work) -> None:
    """Refuse rows that are not there, and rows without a target."""
    rows = member.rows
    if rows.min() < 0 or rows.max() >= len(work.targets):
        raise UserError(
            f"member {i} trains on row {rows.min() if rows.min() < 0 else rows.max()}; there are "
            f"{len(work.targets):,} rows"
        )
    y = work.targets[rows] if member.targets is None else member.targets
    bad = (y < 0) | (y >= work.classes) if work.classes else ~np.isfinite(y)
    if bad.any():
        row, wanted = int(np.flatnonzero(bad)[0]), f"0 to {work.classes - 1}" if work.classes else "a finite number"
        raise UserError(
            f"member {i}: the target of its row {rows[row]} is {y[row]}; wanted {wanted}: leave the row out"
        )


# ---- dividing --------------------------------------------------------------------------------------------------------


def divide(members: Sequence[Member], work: Work, memory: float | None = None) -> list[Chunk]:
    """The stacks: of one shape and batch each, perceptrons of several widths together where padding wastes little."""
    free = memory if memory is not None else 0.4 * available(work.device)
    shapes = {spec: work.build(next(m for m in members if m.encoder == spec)) for spec in {m.encoder for m in members}}
    groups: dict[Any, list[int]] = {}
    for i, m in enumerate(members):
        model, batch = shapes[m.encoder], m.key[2]
        if eligible(model):
            trunk: Any = model.encoder.trunk
            width = 0 if pads(model) and trunk.depth else trunk.width
            groups.setdefault(("dense", batch, trunk.depth, trunk.act, width), []).append(i)
        else:
            groups.setdefault(("modules", batch, m.encoder), []).append(i)
    out: list[Chunk] = []
    for key, numbers in groups.items():
        if key[0] == "modules":
            out += _fitting(Chunk(sorted(numbers, key=lambda i: -members[i].steps)), members, shapes, work, free)
            continue
        for chunk in _dense(numbers, members, shapes, key):
            out += _fitting(chunk, members, shapes, work, free)
    return out


def _dense(numbers: list[int], members: Sequence[Member], shapes: dict[str, Any], key: Any) -> list[Chunk]:
    """Perceptrons of one depth: those that share their batches as one product, the others in buckets of width."""
    by_data: dict[Any, list[int]] = {}
    for i in numbers:
        by_data.setdefault(members[i].key, []).append(i)
    widths = {i: shapes[members[i].encoder].encoder.trunk.width for i in numbers}
    out, rest = [], []
    for own in by_data.values():
        if len(own) < 4 and len(by_data) > 1:
            rest += own
            continue
        by_steps: dict[Any, list[int]] = {}
        for i in own:
            by_steps.setdefault(members[i].steps if key[2] == 1 else 0, []).append(i)
        for same in by_steps.values():
            inputs = _inputs(shapes[members[same[0]].encoder]) * key[1]
            buckets = _buckets(same, widths, members, most=BUCKET / inputs if key[2] == 1 else math.inf)
            if key[2] == 1:
                out.append(Chunk([i for b in buckets for i in b], [len(b) for b in buckets], True))
            else:
                out += [Chunk(b, None, True) for b in buckets]
    heavy = any(members[i].batch * _inputs(shapes[members[i].encoder]) * widths[i] > HEAVY for i in rest)
    return out + [Chunk(b, None, True) for b in _buckets(rest, widths, members, most=0 if heavy else math.inf)]


def _buckets(
    numbers: list[int], widths: dict[int, int], members: Sequence[Member], most: float = math.inf
) -> list[list[int]]:
    """Members in buckets whose padding wastes less than WASTE and `most` units, each by steps, most first."""
    out: list[list[int]] = []
    for i in sorted(numbers, key=lambda i: -widths[i]):
        if out:
            wide, own = widths[out[-1][0]], [*out[-1], i]
            padding = wide * len(own) - sum(widths[j] for j in own)
            if padding < WASTE * wide * len(own) and padding <= most:
                out[-1].append(i)
                continue
        out.append([i])
    return [sorted(b, key=lambda i: -members[i].steps) for b in out]


def _inputs(model: Supervised) -> int:
    embed: Any = model.encoder.embed
    return int(np.prod(embed.grid)) * int(embed.dim)


def _fitting(chunk: Chunk, members: Sequence[Member], shapes: dict[str, Any], work: Work, free: float) -> list[Chunk]:
    """The chunk in parts that fit memory."""
    need = {spec: _bytes(shapes[spec], members[chunk.numbers[0]], work, chunk.dense) for spec in shapes}
    sizes = [need[members[i].encoder] for i in chunk.numbers]
    worst = int(np.argmax(sizes))
    if sizes[worst] > free:
        name = members[chunk.numbers[worst]].encoder
        raise UserError(
            f"training '{name}' takes about {sizes[worst] / 1e9:.1f} GB and {free / 1e9:.1f} GB may be used: lower its "
            "width or depth, or the batch"
        )
    if sum(sizes) <= free:
        return [chunk]
    parts = -(-int(sum(sizes)) // int(free))
    if chunk.buckets and len(chunk.buckets) > 1:  # bucket by bucket: each is a chunk that may be divided further
        ends = np.cumsum(chunk.buckets).tolist()
        own = [Chunk(chunk.numbers[e - n : e], [n], True) for e, n in zip(ends, chunk.buckets, strict=True)]
        return [part for one in own for part in _fitting(one, members, shapes, work, free)]
    size = max(1, len(chunk.numbers) // (parts + 1))
    cuts = [chunk.numbers[i : i + size] for i in range(0, len(chunk.numbers), size)]
    return [Chunk(cut, None, chunk.dense) for cut in cuts]


def _bytes(model: Supervised, member: Member, work: Work, dense: bool) -> float:
    """The memory that training a member takes, about."""
    weights = sum(p.numel() for p in model.parameters())
    each = torch.empty((), dtype=work.dtype).element_size()
    batch = member.key[2]
    if dense:
        trunk: Any = model.encoder.trunk
        units = 2 * trunk.depth * trunk.width + 4 * model.outputs + _inputs(model)
    else:
        units = 4 * _activations(model, member, work) / batch
    return each * (weights * (3 + len(SLOTS[work.optimizer])) + batch * units)


def _activations(model: Supervised, member: Member, work: Work) -> int:
    """Numbers that the layers without parts put out for one batch."""
    count = 0

    def add(module: Any, given: Any, out: Any) -> None:
        nonlocal count
        count += out.numel() if isinstance(out, torch.Tensor) else 0

    leaves = [m for m in model.modules() if next(m.children(), None) is None]
    hooks = [m.register_forward_hook(add) for m in leaves]
    rows = work.source.rows(member.rows[: member.key[2]])
    with torch.no_grad():
        model.eval().encoder({k: v.to(work.device) for k, v in rows.items()})
    for hook in hooks:
        hook.remove()
    return count


def available(device: torch.device) -> float:
    """Bytes of memory that are free on a device."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    lines = Path("/proc/meminfo")
    if lines.is_file():
        free = next((s for s in lines.read_text().splitlines() if s.startswith("MemAvailable:")), None)
        if free:
            return float(free.split()[1]) * 1024
    return 4e9


# ---- training one stack ----------------------------------------------------------------------------------------------


def _chunk(
    members: Sequence[Member], work: Work, chunk: Chunk, at: tuple[int, ...], place: Path | None, plan: str | None,
    tell: Callable[[int], None],
) -> Iterator[Reading]:  # fmt: skip
    own = [members[i] for i in chunk.numbers]
    steps = max(m.steps for m in own)
    chosen = _kept(place) or _choose(own, work, chunk, plan)
    if place is not None:
        place.mkdir(parents=True, exist_ok=True)
        atomic_write(place / "plan.json", json.dumps(chosen).encode())
    reads = sorted({s for s in at if 0 < s < steps} | {steps})
    with threads(chosen["threads"]):
        stack = _made(own, work, chunk, chosen["plan"])

        def reading(step: int) -> Reading:
            count = sum(m.steps > step for m in own) if step < steps else len(own)
            part = Reading(chunk.numbers[:count], step, step == steps, stack, chosen)
            _check_finite(part)
            return part

        saved = _state(place)
        start = 0 if saved is None else int(saved[1]["step"])
        for step in [s for s in reads if s <= start]:
            stack.load_state_dict(load_tensors(_file(place, "read", step))[0])
            yield reading(step)
        if start >= steps:
            return
        optimizer = optimizer_of(stack, start)
        if saved is not None:
            _restore(stack, optimizer, saved[0])
        last, sums = time.monotonic(), np.cumsum([0, *(sum(m.steps > s for m in own) for s in range(steps))])
        for done in fit(stack, stack.batches, optimizer, steps=steps, seed=own[0].seed, start=start):
            if done.number % 50 == 0 or done.number == steps:
                tell(int(sums[done.number]))
            if done.number in reads:
                if place is not None:
                    save_tensors(_file(place, "read", done.number), dict(stack.state_dict()))
                yield reading(done.number)
            if place is not None and (done.number == steps or time.monotonic() - last > SAVE_EVERY):
                _save(place, stack, optimizer, done.number)
                last = time.monotonic()


def _made(own: Sequence[Member], work: Work, chunk: Chunk, plan: str) -> Stack:
    return Dense(own, work, chunk.buckets) if plan == "dense" else Modules(own, work, plan)


def optimizer_of(stack: Stack, start: int = 0) -> Each:
    """The optimizer of a stack's members, at the step `start`."""
    own, work = stack.members, stack.work
    optimizer = Each(
        stack.owners,
        stack.decayed,
        lambda: stack.active,
        kind=work.optimizer,
        rates=np.array([m.lr for m in own]),
        decays=np.array([m.weight_decay for m in own]),
        factors=[work.factor(m) for m in own],
        momentum=work.momentum,
        clip=work.clip,
    )
    optimizer.now = start
    return optimizer


def _choose(own: list[Member], work: Work, chunk: Chunk, plan: str | None) -> dict[str, Any]:
    """The plan and the number of threads that were fastest in a short trial of every candidate."""
    model = work.build(own[0])
    if chunk.dense:
        trunk: Any = model.encoder.trunk
        light = own[0].batch * _inputs(model) * max(1, trunk.width) <= HEAVY
        one = len({m.encoder for m in own}) == 1
        plans = ["dense", "loop"] if one and not light else ["dense"]
    else:
        plans = ["loop", *(["vmap"] if work.source.rows(own[0].rows[:1]) else [])]
        plans += ["grouped"] if Abreast.can(model) else []
    if plan is not None:
        if plan not in {*plans, "loop", "vmap"}:
            raise UserError(f"plan '{plan}' cannot train '{own[0].encoder}'; it can: {', '.join(plans)}")
        plans = [plan]
    now = torch.get_num_threads()
    counts = [now] if now == 1 or work.device.type != "cpu" else [now, 1]
    if len(plans) == len(counts) == 1:
        return {"plan": plans[0], "threads": now}
    found: dict[str, Any] = {}
    for name in plans:
        try:
            stack = _made(own, work, chunk, name)
        except NotImplementedError:
            continue
        for count in counts:
            with threads(count):
                try:
                    found[f"{name}, {count} threads"] = timed(stack), name, count
                except RuntimeError as error:  # an operation without a batching rule
                    if name == "loop" or plan is not None:
                        raise
                    found[f"{name} cannot: {str(error).splitlines()[0][:80]}"] = float("inf"), name, count
                    break
    best = min(found.values())
    return {"plan": best[1], "threads": best[2], "trial": {k: v[0] for k, v in found.items() if np.isfinite(v[0])}}


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside, torch computes with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_finite(reading: Reading) -> None:
    """Tell of members whose weights are no numbers any more."""
    bad: set[int] = set()
    for p, owner in reading.stack.owners.items():
        wrong = ~torch.isfinite(p.data.flatten(1) if p.dim() > 1 else p.data.unsqueeze(1)).all(1)
        bad |= set(owner[wrong.cpu().numpy()].tolist())
    lost = sorted(reading.numbers[i] for i in bad if i < len(reading.numbers))
    if lost:
        some = ", ".join(map(str, lost[:5]))
        warnings.warn(
            f"{len(lost)} of {len(reading.numbers)} members diverged (number {some}): their weights are not finite; "
            "lower the learning rate, or set a clip",
            Warned,
            stacklevel=3,
        )


# ---- files -----------------------------------------------------------------------------------------------------------


def _file(place: Path | None, kind: str, step: int) -> Path:
    assert place is not None
    return place / f"{kind}-{step:09d}.safetensors"


def _claim(place: Path, members: Sequence[Member], work: Work, at: Sequence[int]) -> None:
    """Make the folder one of these members, or refuse one of others."""
    parts = [(m.key, m.targets, m.encoder, m.seed, m.lr, m.weight_decay, m.steps, m.schedule) for m in members]
    digest = hashlib.blake2b(digest_size=16)
    for key, targets, *rest in parts:
        digest.update(
            repr((key, rest)).encode() + (b"" if targets is None else np.ascontiguousarray(targets).tobytes())
        )
    digest.update(np.ascontiguousarray(work.targets).tobytes())
    digest.update(repr((work.classes, work.optimizer, work.momentum, work.clip, str(work.dtype), list(at))).encode())
    file, name = place / "members.json", digest.hexdigest()
    if file.is_file() and json.loads(file.read_text())["digest"] != name:
        raise UserError(f"{place} holds other members than these: choose another folder, or ask as before to go on")
    place.mkdir(parents=True, exist_ok=True)
    atomic_write(file, json.dumps({"digest": name, "members": len(members), "torch": torch.__version__}).encode())


def _kept(place: Path | None) -> dict[str, Any] | None:
    file = None if place is None else place / "plan.json"
    return json.loads(file.read_text()) if file is not None and file.is_file() else None


def _state(place: Path | None) -> tuple[dict[str, torch.Tensor], dict[str, str]] | None:
    """The newest state that reads."""
    for file in sorted(place.glob("state-*.safetensors"), reverse=True) if place is not None else []:
        try:
            return load_tensors(file)
        except UserError as error:
            warnings.warn(f"{error}; taking the state before it", Warned, stacklevel=2)
    return None


def _save(place: Path, stack: Stack, optimizer: Each, step: int) -> None:
    tensors = {f"model|{k}": v for k, v in stack.state_dict().items()}
    for name, p in stack.named_parameters():
        tensors |= {f"optim|{name}|{slot}": v for slot, v in optimizer.state[p].items()}
    save_tensors(_file(place, "state", step), tensors, {"step": str(step)})
    for old in sorted(place.glob("state-*.safetensors"))[:-2]:
        old.unlink()


def _restore(stack: Stack, optimizer: Each, tensors: dict[str, torch.Tensor]) -> None:
    stack.load_state_dict({k.split("|")[1]: v for k, v in tensors.items() if k.startswith("model|")})
    named = dict(stack.named_parameters())
    for key, value in tensors.items():
        if key.startswith("optim|"):
            _, name, slot = key.split("|")
            like = named[name]
            # With the memory format of the parameter, on which rounding depends.
            optimizer.state[like][slot] = torch.empty_like(like).copy_(value) if value.shape == like.shape else value


# ---- processes -------------------------------------------------------------------------------------------------------


def _spread(
    members: list[Member], work: Work, chunks: list[Chunk], at: tuple[int, ...], folder: str | Path | None,
    workers: int, plan: str | None,
) -> Iterator[Reading]:  # fmt: skip
    """The stacks divided among processes; readings come in order, from the files that these write."""
    with tempfile.TemporaryDirectory() as made:
        place = Path(folder or made)
        _claim(place, members, work, at)
        count = max(1, torch.get_num_threads() // workers)
        with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (count,)) as pool:
            jobs: list[Future[None]] = [
                pool.submit(_one, members, work, chunk, at, place / f"{k:04d}", plan) for k, chunk in enumerate(chunks)
            ]
            for k, (chunk, job) in enumerate(zip(chunks, jobs, strict=True)):
                job.result()
                yield from _chunk(members, work, chunk, at, place / f"{k:04d}", plan, lambda _: None)


def _one(members: list[Member], work: Work, chunk: Chunk, at: tuple[int, ...], place: Path, plan: str | None) -> None:
    for _ in _chunk(members, work, chunk, at, place, plan, lambda _: None):
        pass
