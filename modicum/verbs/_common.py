"""What the verbs share: words to the user, the device, data cards, and the rows a run may see."""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from torch import nn

from modicum.core.errors import UserError, Warned
from modicum.core.types import Input, Packed
from modicum.datasets.data import Data, Labels

console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)

MOST = 2**31
"""Seeds below this, plus a few for the repeats, suit every library's generator."""


def command() -> str:
    """The command line of this process, as the user typed it."""
    return " ".join(["modicum", *sys.argv[1:]]) if Path(sys.argv[0]).name == "modicum" else "python API"


def at_least(least: int, **options: Any) -> None:
    """Refuse options that are no whole numbers, or below `least`, by name."""
    for name, value in options.items():
        if value is not None and (not isinstance(value, int | np.integer) or isinstance(value, bool)):
            raise UserError(f"--{name.replace('_', '-')} {value!r}: wanted a whole number")
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} {value}: wanted at least {least}")


def check_seed(seed: int) -> None:
    """Refuse seeds that not every library takes."""
    at_least(0, seed=seed)
    if seed >= MOST:
        raise UserError(f"--seed {seed}: wanted less than {MOST:,}")


def check_memory(make: Callable[[], nn.Module]) -> None:
    """Refuse a network whose training needs more memory than the machine has, before any of it is taken."""
    try:
        with torch.device("meta"):  # tensors without storage
            weights = sum(p.numel() for p in make().parameters())
    except (RuntimeError, OverflowError) as error:
        raise UserError(f"the network cannot be made with these settings: {error}") from None
    need = 16 * weights  # bytes in float32: the weight, its gradient, and AdamW's two moments
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
    if need > have:
        raise UserError(
            f"the network has {weights:,} weights and needs {need / 1e9:,.0f} GB to train; this machine has "
            f"{have / 1e9:,.0f} GB: lower its width, depth or stages"
        )


def check_input(input: Input, data: Data, given: Mapping[str, Any], what: str, whose: str) -> None:
    """Refuse data of another modality than the encoder of `what` takes, and options (size, columns) that it has set."""
    if data.modality is not type(input):
        raise UserError(f"{what} takes {input.modality}; {data.name} holds {data.modality.modality}")
    for key, value in given.items():
        own = getattr(input, key, None)
        if value is not None and value != own:
            is_own = str(own() if callable(own) else own or "none")
            raise UserError(f"--{key} {value}: the {key} is {whose}" + (f", {is_own}" if len(is_own) < 200 else ""))


def infer(data: Data, index: np.ndarray, exclude: Sequence[str], **given: Any) -> Input:
    """The input that fits rows `index` of the data, under the user's options (size, columns) where they are given."""
    asked = {key: value for key, value in given.items() if value is not None}
    for key, value in asked.items():
        if not data.modality.takes(key):
            raise UserError(f"--{key} {value}: {data.name} holds {data.modality.modality}, which have no {key}")
    return data.modality.infer(data.raw, index, exclude=exclude, progress=packing(data), **asked)


def say(text: str) -> None:
    """Tell the user, on stderr."""
    console.print(text)


class Bar:
    """A progress bar with rate and remaining time, on a terminal only."""

    def __init__(self, progress: Progress | None, total: int, words: str, unit: str) -> None:
        self.progress, self.unit, self.began, self.first = progress, unit, time.perf_counter(), 0
        self.task = progress.add_task(words, total=total, rate="") if progress else None

    def to(self, done: int, note: str = "", weight: float = 1.0) -> None:
        """Move to `done`; the rate shown is in units, of which one step has `weight`."""
        if self.progress is None or self.task is None:
            return
        rate = done * weight / max(1e-9, time.perf_counter() - self.began)
        self.progress.update(self.task, completed=done, rate=f"{rate:,.0f} {self.unit}/s  {note}")

    def of(self, done: int, total: int) -> None:
        """Move to `done` of `total`, where that is known only now."""
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, total=total)
        self.to(done)


@contextmanager
def bar(total: int, words: str, unit: str) -> Iterator[Bar]:
    """A bar of `total` steps; silent where stderr is no terminal."""
    if not console.is_terminal:
        yield Bar(None, total, words, unit)
        return
    columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    with Progress(
        *columns, TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), console=console, transient=True
    ) as p:
        yield Bar(p, total, words, unit)


def spare() -> None:
    """Give freed memory back to the system, where the allocator (glibc's) keeps it: much is freed before training."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def in_minutes(seconds: float) -> str:
    """A duration in words."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} minutes"


def packing(data: Data) -> Callable[[int, int, str], None]:
    """Progress of packing: what it takes is said before it starts, and how far it is every few seconds."""
    last = time.perf_counter()

    def tell(done: int, total: int, words: str) -> None:
        nonlocal last
        if not done:
            say(f"packing {total:,} rows of {data.name} into {words}")
        elif time.perf_counter() - last > 5:
            last = time.perf_counter()
            say(f"  packed {done:,} of {total:,}")

    return tell


def pack(input: Input, data: Data, skip_bad: bool, listed: str = "the report") -> tuple[Packed, Data]:
    """The packed rows, and the data without those that were skipped as bad; `listed` is where a reader finds these."""
    packed = input.pack(data.raw, skip_bad=skip_bad, progress=packing(data))
    if (windows := getattr(packed.source, "windows", None)) is not None:
        starts, step = windows.starts, 1 << 20  # rows at a time: there may be many
        long = sum(int((np.diff(starts[i : i + step + 1]) > 1).sum()) for i in range(0, len(starts) - 1, step))
        say(
            f"{long:,} of {packed.source.size:,} rows are longer than the encoder takes: "
            f"the rows are read as {windows.parts.size:,} windows"
        )
    if packed.bad:
        names = ", ".join(f"{path} ({why})" for _, path, why in packed.bad[:5])
        more = f", and {len(packed.bad) - 5:,} more, all listed in {listed}" if len(packed.bad) > 5 else ""
        warnings.warn(f"skipped {len(packed.bad):,} bad row(s) of {data.name}: {names}{more}", Warned, stacklevel=2)
        data = data.take(packed.keep)
    return packed, data


def card(data: Data, labels: Labels | None, packed: Packed, input: Input, **more: Any) -> dict[str, Any]:
    """The data card of a report."""
    out: dict[str, Any] = {"name": data.name, "modality": data.modality.modality, "rows": packed.source.size}
    out |= {"licence": data.licence, "source": data.origin, "bad": [list(b) for b in packed.bad]}
    out |= {k: v for k, v in vars(input).items() if isinstance(v, int)}
    if labels is not None:
        out |= {"labelled": int(labels.known.sum()), "classes": labels.classes}
    return out | more


def digest(hashes: np.ndarray) -> str:
    """A short fingerprint of packed rows in their order."""
    return hashlib.blake2b(np.ascontiguousarray(hashes).data, digest_size=12).hexdigest()


@contextmanager
def heard() -> Iterator[list[str]]:
    """Collect the warnings of a block for the report, showing each once."""
    found: list[str] = []
    show = warnings.showwarning

    def note(message: Warning | str, *rest: Any, **more: Any) -> None:
        if str(message) in found:
            return
        found.append(str(message))
        show(message, *rest, **more)

    warnings.showwarning = note
    try:
        yield found
    finally:
        warnings.showwarning = show
        sys.stderr.flush()
