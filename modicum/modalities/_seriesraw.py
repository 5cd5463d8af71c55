"""Series as they were given: of equal lengths in one array, memory-mapped if it is a file, or one after the other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from modicum.core.errors import UserError

CELLS = 1 << 22
"""Values that are in memory at a time while all series are looked through."""


class Survey(NamedTuple):
    """Of every series: steps up to its last known one, how many values are known, how many are infinite, and a hash."""

    sizes: np.ndarray
    known: np.ndarray
    infinite: np.ndarray
    hashes: np.ndarray


@dataclass(frozen=True, eq=False)
class RawSeries:
    """Series of `values` (n, channels, time), or (steps, channels) with every series' first step and number of steps.

    NaN is a missing value; steps after the last known value are no part of a series. `names` are the columns that the
    channels were, of a table; `faults` say why series cannot be used; `lost` are (place, why) of what belongs to none.
    `times` (steps,) are those of every step, where known, in seconds where they are dates of the type `stamp`.
    """

    values: np.ndarray
    facts: pa.Table
    starts: np.ndarray | None = None
    steps: np.ndarray | None = None
    names: tuple[str, ...] = ()
    faults: dict[int, str] = field(default_factory=dict)
    lost: tuple[tuple[str, str], ...] = ()
    index: np.ndarray | None = None
    times: np.ndarray | None = None
    stamp: pa.DataType | None = None

    def __len__(self) -> int:
        if self.index is not None:
            return len(self.index)
        return len(self.values if self.starts is None else self.starts)

    @property
    def channels(self) -> int:
        return int(self.values.shape[1])

    def take(self, index: Sequence[int] | np.ndarray) -> RawSeries:
        """The series `index`, without reading any; `lost` is told of once."""
        rows = np.arange(len(self))[np.asarray(index) if len(index) else slice(0)]
        return replace(self, index=rows if self.index is None else self.index[rows], lost=())

    def place(self, row: int) -> str:
        """What messages call a series."""
        own = row if self.index is None else int(self.index[row])
        return f"series '{self.facts.column('id')[own]}'" if "id" in self.facts.column_names else f"series {own}"

    def fault(self, row: int) -> str | None:
        return self.faults.get(row if self.index is None else int(self.index[row]))

    def most(self, index: np.ndarray) -> int:
        """The most steps that one of the series `index` was given with."""
        if self.steps is None:
            return int(self.values.shape[2])
        return int(self.steps[index if self.index is None else self.index[index]].max(initial=0))

    def read(self, index: np.ndarray, most: int | None = None) -> np.ndarray:
        """The series `index` as float64 (b, channels, t), NaN after their ends; at most `most` steps of them."""
        own = np.asarray(index if self.index is None else self.index[index])
        if self.starts is None or self.steps is None:
            return np.asarray(self.values[own][:, :, :most], np.float64)
        sizes = self.steps[own] if most is None else np.minimum(self.steps[own], most)
        place = np.arange(int(sizes.max(initial=0)))
        real = place < sizes[:, None]
        out = np.full((*real.shape, self.channels), np.nan)
        out[real] = self.values[(self.starts[own][:, None] + place)[real]]
        return out.transpose(0, 2, 1)

    def part(self, first: np.ndarray, count: int) -> RawSeries:
        """Of every series the `count` steps from its step `first` (n,) on, which it must have, in memory."""
        own = np.arange(len(self))
        place = (first[:, None] + np.arange(count))[:, None]
        values = np.take_along_axis(self.read(own), np.broadcast_to(place, (len(own), self.channels, count)), 2)
        facts = self.facts.take(pa.array(own if self.index is None else self.index))
        return RawSeries(values, facts, names=self.names)

    def time(self, row: int, first: int, count: int) -> np.ndarray:
        """The times (count,) of a series from its step `first` on, going on by its usual gap after its end."""
        if self.times is None or self.starts is None or self.steps is None:
            return np.arange(first, first + count, dtype=np.float64)
        own = row if self.index is None else int(self.index[row])
        known = self.times[self.starts[own] : self.starts[own] + self.steps[own]]
        gap = float(np.median(np.diff(known))) if len(known) > 1 else 1.0
        more = known[-1] + gap * np.arange(1, max(0, first + count - len(known)) + 1)
        return np.concatenate([known, more])[first : first + count]

    def chunks(self, index: np.ndarray) -> list[np.ndarray]:
        """The series `index` in parts of about `CELLS` values."""
        step = max(1, CELLS // max(1, self.most(index) * self.channels))
        return [index[start : start + step] for start in range(0, len(index), step)]

    @cached_property
    def survey(self) -> Survey:
        """What packing needs to know of every series; reads all of them once."""
        parts = [self._survey(self.read(some)) for some in self.chunks(np.arange(len(self)))]
        none = Survey(*(np.empty(0, kind) for kind in (np.int64, np.int64, np.int64, np.uint64)))
        return Survey(*map(np.concatenate, zip(none, *parts, strict=True)))

    def _survey(self, x: np.ndarray) -> Survey:
        known = ~np.isnan(x)
        steps = known.any(1)
        sizes = (
            np.where(steps.any(1), x.shape[2] - steps[:, ::-1].argmax(1), 0) if x.shape[2] else np.zeros(len(x), int)
        )
        with np.errstate(over="ignore"):  # what is too large for float32 hashes as infinite
            small = np.where(known, x, np.nan).astype(np.float32) + np.float32(0)  # no sign of 0 or NaN
        rows = (row[:, :size].tobytes() + bytes(str(size), "ascii") for row, size in zip(small, sizes, strict=True))
        hashes = [hashlib.blake2b(row, digest_size=8).digest() for row in rows]
        return Survey(sizes, known.sum((1, 2)), np.isinf(small).sum((1, 2)), np.frombuffer(b"".join(hashes), "<u8"))

    def picked(self, names: Sequence[str], channels: int) -> RawSeries:
        """The channels of these names, where they have any, else all of them, which must be `channels`."""
        if not names or not self.names:
            if self.channels != channels:
                raise UserError(f"series of {channels} channel(s) are wanted; these have {self.channels}")
            return self
        if missing := [name for name in names if name not in self.names]:
            have = ", ".join(self.names)
            raise UserError(
                f"the table has no column of numbers '{missing[0]}', a channel of the series; it has {have}"
            )
        if tuple(names) == self.names:
            return self
        return replace(self, values=self.values[:, [self.names.index(n) for n in names]], names=tuple(names))

    def bad(self) -> list[tuple[int, str, str]]:
        """The series that cannot be used, and why; what belongs to none has the number -1."""
        out = [(-1, place, why) for place, why in self.lost]
        look = self.survey
        for row in range(len(self)):
            why = self.fault(row)
            if why is None and not look.known[row]:
                why = "no value is known"
            elif why is None and look.infinite[row]:
                why = f"{look.infinite[row]} value(s) are infinite, or too large: blank them"
            elif why is None and look.sizes[row] < 2:
                why = "it has one time step; at least two are needed"
            if why is not None:
                out.append((row, self.place(row), why))
        return out


def joined(parts: Sequence[np.ndarray | None], facts: pa.Table, faults: dict[int, str]) -> RawSeries:
    """Series (channels, t) each, one after the other; None where there is none, and `faults` says why.

    Those of another number of channels than most are faulty.
    """
    counts = [part.shape[0] for part in parts if part is not None]
    channels = max(sorted(set(counts)), key=counts.count) if counts else 1
    faults = dict(faults)
    for row, part in enumerate(parts):
        if part is not None and part.shape[0] != channels:
            faults[row] = f"it has {part.shape[0]} channel(s), others {channels}"
    empty = np.empty((channels, 0))
    kept = [empty if part is None or row in faults else part for row, part in enumerate(parts)]
    steps = np.array([part.shape[1] for part in kept], np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(steps)])[: len(steps)]
    values = np.concatenate([np.empty((0, channels)), *(part.T for part in kept)])
    return RawSeries(values, facts, starts, steps, faults=faults)
