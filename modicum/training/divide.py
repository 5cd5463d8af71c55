"""How members are divided into stacks: of one shape and batch, in buckets of width, and such that each fits memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modicum.core.errors import UserError
from modicum.objectives.supervised import Supervised
from modicum.training.abreast import Abreast
from modicum.training.dense import READ, eligible, pads
from modicum.training.each import SLOTS
from modicum.training.stack import Modules, timed
from modicum.training.work import Member, Work

WASTE = 0.25
"""The share of a stack's units that may be padding."""
BUCKET = 4e6
"""Multiplications that take about as long as it takes to start the products of one more bucket."""
HEAVY = 2e7
"""Multiplications of a member's step from which the plain loop may be as fast as one product."""


@dataclass(frozen=True)
class Chunk:
    """The numbers of members that are trained as one stack, and how many of them each bucket of widths has."""

    numbers: list[int]
    buckets: list[int] | None = None
    dense: bool = False

    def halves(self) -> list[Chunk]:
        """Two chunks of about the same work, each sorted as this one; itself where there is one member."""
        if len(self.numbers) < 2:
            return [self]
        ends = np.cumsum(self.buckets or [len(self.numbers)]).tolist()
        parts = [self.numbers[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        out = []
        for k in (0, 1):
            own = [own for j, p in enumerate(parts) if (own := p[(k + j) % 2 :: 2])]
            out.append(Chunk([i for p in own for i in p], [len(p) for p in own] if self.buckets else None, self.dense))
        return [c for c in out if c.numbers]

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


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
        elif Abreast.can(model):
            groups.setdefault(("abreast", batch, Abreast.kind(model)), []).append(i)
        else:
            groups.setdefault(("modules", batch, m.encoder), []).append(i)
    out: list[Chunk] = []
    for key, numbers in groups.items():
        if key[0] == "modules":
            out += _fitting(Chunk(sorted(numbers, key=lambda i: -members[i].steps)), members, shapes, work, free)
            continue
        if key[0] == "abreast":
            trunks: dict[int, Any] = {i: shapes[members[i].encoder].encoder.trunk for i in numbers}
            widths = {i: int(t.width) for i, t in trunks.items()}
            for bucket in _buckets(numbers, widths, members):
                for chunk in _fitting(Chunk(bucket), members, shapes, work, free):
                    out += _together(chunk, members, work)
            continue
        for chunk in _dense(numbers, members, shapes, key):
            out += _fitting(chunk, members, shapes, work, free)
    return out


def _together(chunk: Chunk, members: Sequence[Member], work: Work) -> list[Chunk]:
    """Convolutional nets of several widths as one stack, or as one a width where a short trial finds that faster."""
    specs: dict[str, list[int]] = {}
    for i in chunk.numbers:
        specs.setdefault(members[i].encoder, []).append(i)
    if len(specs) == 1:
        return [chunk]
    plans = ("loop", "grouped")
    alone = [min(timed(Modules([members[i] for i in own], work, p)) for p in plans) for own in specs.values()]
    if timed(Modules([members[i] for i in chunk.numbers], work, "grouped")) < sum(alone):
        return [chunk]
    return [Chunk(own) for own in specs.values()]


def shared_out(chunks: list[Chunk], members: Sequence[Member], workers: int) -> list[Chunk]:
    """At least as many chunks as there are processes, where there are as many members: the largest are halved."""
    chunks = list(chunks)
    while len(chunks) < workers:
        most = max(chunks, key=lambda c: (len(c.numbers) > 1, sum(members[i].steps for i in c.numbers)))
        if len(most.numbers) < 2:
            break
        at = chunks.index(most)
        chunks[at : at + 1] = most.halves()
    return chunks


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
            work = inputs(shapes[members[same[0]].encoder]) * key[1]
            buckets = _buckets(same, widths, members, most=BUCKET / work if key[2] == 1 else math.inf)
            if key[2] == 1:
                out.append(Chunk([i for b in buckets for i in b], [len(b) for b in buckets], True))
            else:
                out += [Chunk(b, None, True) for b in buckets]
    heavy = any(members[i].batch * inputs(shapes[members[i].encoder]) * widths[i] > HEAVY for i in rest)
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


def inputs(model: Supervised) -> int:
    embed: Any = model.encoder.embed
    return int(np.prod(embed.grid)) * int(embed.dim)


def _fitting(chunk: Chunk, members: Sequence[Member], shapes: dict[str, Any], work: Work, free: float) -> list[Chunk]:
    """The chunk in parts that fit memory."""
    if chunk.dense:  # the features of all rows that are trained on, once for all
        rows = len(np.unique(np.concatenate([members[i].rows for i in chunk.numbers])))
        one = members[chunk.numbers[0]].encoder
        free = max(
            free - rows * (inputs(shapes[one]) + 1) * torch.empty((), dtype=work.dtype).element_size(), 0.1 * free
        )
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
        hidden, rest = trunk.depth * trunk.width, 4 * model.outputs + inputs(model)
        values = batch * (3 * hidden + rest) + READ * (3 * hidden + model.outputs)
    else:
        values = 4 * _activations(model, member, work)
    return each * (weights * (3 + len(SLOTS[work.optimizer])) + values)


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
