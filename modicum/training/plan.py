"""How a stack is trained: side by side by hand, by grouped convolutions, under vmap, or in the plain loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from modicum.core.errors import UserError
from modicum.training.abreast import Abreast
from modicum.training.dense import Dense
from modicum.training.divide import HEAVY, Chunk, inputs
from modicum.training.each import Each
from modicum.training.stack import Modules, Stack, timed
from modicum.training.work import Member, Work


def made(own: Sequence[Member], work: Work, chunk: Chunk, plan: str) -> Stack:
    return Dense(own, work, chunk.buckets) if plan == "dense" else Modules(own, work, plan)


def optimizer_of(stack: Stack, start: int = 0, share: float = 1.0) -> Each:
    """The optimizer of a stack's members, at the step `start`, and a `share` of their rates."""
    own, work = stack.members, stack.work
    optimizer = Each(
        stack.owners,
        stack.decayed,
        lambda: stack.active,
        kind=work.optimizer,
        rates=share * np.array([m.lr for m in own]),
        decays=share * np.array([m.weight_decay for m in own]),
        factors=[work.factor(m) for m in own],
        momentum=work.momentum,
        clip=work.clip,
    )
    optimizer.now = start
    return optimizer


def choose(own: list[Member], work: Work, chunk: Chunk, plan: str | None) -> dict[str, Any]:
    """The plan and the number of threads that were fastest in a short trial of every candidate."""
    model = work.build(own[0])
    if chunk.dense:
        trunk: Any = model.encoder.trunk
        light = own[0].batch * inputs(model) * max(1, trunk.width) <= HEAVY
        one = len({m.encoder for m in own}) == 1
        plans = ["dense", "loop"] if one and not light else ["dense"]
        others = ["loop", "vmap"] if one else []
    elif len({m.encoder for m in own}) > 1:
        plans, others = ["grouped"], []
    else:
        plans = ["loop", *(["vmap"] if work.source.rows(own[0].rows[:1]) else [])]
        plans += ["grouped"] if Abreast.can(model) else []
        others = ["loop", "vmap"]
    if plan is not None:
        if plan not in {*plans, *others}:
            what = "" if others else " and members of other widths"
            raise UserError(f"plan '{plan}' cannot train '{own[0].encoder}'{what}; it can: {', '.join(plans)}")
        plans = [plan]
    now = torch.get_num_threads()
    counts = [now] if now == 1 or work.device.type != "cpu" else [now, 1]
    if len(plans) == len(counts) == 1:
        return {"plan": plans[0], "threads": now}
    found: dict[str, Any] = {}
    for name in plans:
        try:
            stack = made(own, work, chunk, name)
        except NotImplementedError:
            continue
        for count in counts:
            with threads(count):
                try:
                    took = timed(stack, optimizer_of(stack, share=0.0))
                    found[f"{name}, {count} threads"] = took, name, count
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
