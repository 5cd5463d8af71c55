"""Many models at once: members are divided into stacks that fit memory, each trained through `fit` in the fastest way.

`train(members, work)` yields readings of members whose training has come to a step; nothing is kept of a stack when the
next one begins. With a folder, every stack can be continued after a kill, bit for bit.
"""

from __future__ import annotations

import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
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
from modicum.training import states
from modicum.training.divide import Chunk, divide, shared_out
from modicum.training.divide import available as available
from modicum.training.fit import fit
from modicum.training.plan import choose, made, optimizer_of, threads
from modicum.training.run import save_tensors
from modicum.training.stack import Stack
from modicum.training.work import Member as Member
from modicum.training.work import Work as Work

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

    def cut() -> list[Chunk]:
        return shared_out(divide(members, work, (memory or 0.4 * available(work.device)) / workers), members, workers)

    def tell(done: int) -> None:
        if progress:
            progress(done, total)

    place, total = None if folder is None else Path(folder), sum(m.steps for m in members)
    if workers > 1:
        with tempfile.TemporaryDirectory() as own:
            place = place or Path(own)
            chunks = states.claim(place, members, work, at, cut)
            yield from _spread(members, work, chunks, tuple(at), place, workers, plan, tell)
        return
    chunks = cut() if place is None else states.claim(place, members, work, at, cut)
    done = 0
    for k, chunk in enumerate(chunks):
        where = None if place is None else place / f"{k:04d}"
        yield from _chunk(members, work, chunk, tuple(at), where, plan, lambda steps, before=done: tell(before + steps))  # type: ignore[misc]
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


# ---- training one stack ----------------------------------------------------------------------------------------------


def _chunk(
    members: Sequence[Member], work: Work, chunk: Chunk, at: tuple[int, ...], place: Path | None, plan: str | None,
    tell: Callable[[int], None],
) -> Iterator[Reading]:  # fmt: skip
    own = [members[i] for i in chunk.numbers]
    steps = max(m.steps for m in own)
    chosen = states.kept(place) or choose(own, work, chunk, plan)
    if place is not None:
        place.mkdir(parents=True, exist_ok=True)
        atomic_write(place / "plan.json", json.dumps(chosen).encode())
    reads = sorted({s for s in at if 0 < s < steps} | {steps})
    with threads(chosen["threads"]):
        stack = made(own, work, chunk, chosen["plan"])

        def reading(step: int) -> Reading:
            count = sum(m.steps > step for m in own) if step < steps else len(own)
            part = Reading(chunk.numbers[:count], step, step == steps, stack, chosen)
            _check_finite(part)
            return part

        saved = states.state(place)
        start = 0 if saved is None else int(saved[1]["step"])
        for step in [s for s in reads if s <= start]:
            stack.load_state_dict(load_tensors(states.file(place, "read", step))[0])
            yield reading(step)
        if start >= steps:
            return
        optimizer = optimizer_of(stack, start)
        if saved is not None:
            states.restore(stack, optimizer, saved[0])
        last, sums = time.monotonic(), np.cumsum([0, *(sum(m.steps > s for m in own) for s in range(steps))])
        for done in fit(stack, stack.batches, optimizer, steps=steps, seed=own[0].seed, start=start):
            if done.number % 50 == 0 or done.number == steps:
                tell(int(sums[done.number]))
            if done.number in reads:
                if place is not None:
                    save_tensors(states.file(place, "read", done.number), dict(stack.state_dict()))
                yield reading(done.number)
            if place is not None and (done.number == steps or time.monotonic() - last > SAVE_EVERY):
                states.save(place, stack, optimizer, done.number)
                last = time.monotonic()


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


# ---- processes -------------------------------------------------------------------------------------------------------


def _spread(
    members: list[Member], work: Work, chunks: list[Chunk], at: tuple[int, ...], place: Path, workers: int,
    plan: str | None, tell: Callable[[int], None],
) -> Iterator[Reading]:  # fmt: skip
    """The stacks divided among processes; readings come in order, from the files that these write."""
    context = get_context("spawn")
    count, told, done = max(1, torch.get_num_threads() // workers), context.Queue(), [0] * len(chunks)
    pool = ProcessPoolExecutor(workers, context, _begin, (count, told))
    try:
        jobs: list[Future[None]] = [
            pool.submit(_one, members, work, chunk, at, place / f"{k:04d}", plan, k) for k, chunk in enumerate(chunks)
        ]
        for k, (chunk, job) in enumerate(zip(chunks, jobs, strict=True)):
            while not job.done():
                wait([job], timeout=0.2)
                while not told.empty():
                    which, steps = told.get()
                    done[which] = steps
                    tell(sum(done))
            job.result()
            yield from _chunk(members, work, chunk, at, place / f"{k:04d}", plan, lambda _: None)
        tell(sum(m.steps for m in members))
    finally:
        pool.shutdown(cancel_futures=True)


TOLD: list[Any] = []
"""In a process of `_spread`: where it tells how far it is."""


def _begin(count: int, told: Any) -> None:
    torch.set_num_threads(count)
    TOLD.append(told)


def _one(
    members: list[Member], work: Work, chunk: Chunk, at: tuple[int, ...], place: Path, plan: str | None, k: int
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Warned)  # the process that reads the stack says it
        for _ in _chunk(members, work, chunk, at, place, plan, lambda steps: TOLD[0].put((k, steps))):
            pass
