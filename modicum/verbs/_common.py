"""What the verbs share: words to the user, the device, data cards, and the rows a run may see."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from modicum.core.errors import UserError, unknown
from modicum.core.types import Input, Packed
from modicum.datasets.data import Data, Labels

console = Console(stderr=True, highlight=False, soft_wrap=True)


def at_least(least: int, **options: int | None) -> None:
    """Refuse options below `least`, by name."""
    for name, value in options.items():
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} {value}: wanted at least {least}")


def say(text: str) -> None:
    """Tell the user, on stderr."""
    console.print(text, markup=False)


def choose_device(name: str) -> torch.device:
    """auto is cuda where there is one, with deterministic algorithms switched on so that runs resume exactly."""
    if name not in ("auto", "cpu", "cuda"):
        raise unknown("device", name, ["auto", "cpu", "cuda"])
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    return torch.device("cuda")


def precision(device: torch.device) -> torch.dtype | None:
    """bfloat16 on CUDA; float32 on the CPU, where bfloat16 is many times slower."""
    return torch.bfloat16 if device.type == "cuda" else None


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


def in_minutes(seconds: float) -> str:
    """A duration in words."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} minutes"


def in_bytes(count: float) -> str:
    """A number of bytes in words."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


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


def pack(input: Input, data: Data, skip_bad: bool) -> tuple[Packed, Data]:
    """The packed rows, and the data without those that were skipped as bad."""
    packed = input.pack(data.raw, skip_bad=skip_bad, progress=packing(data))
    if packed.bad:
        names = ", ".join(f"{path} ({why})" for _, path, why in packed.bad[:5])
        warnings.warn(f"skipped {len(packed.bad)} bad row(s) of {data.name}: {names}", stacklevel=2)
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
    import hashlib

    return hashlib.blake2b(np.ascontiguousarray(hashes).tobytes(), digest_size=12).hexdigest()


@contextmanager
def heard() -> Iterator[list[str]]:
    """Collect the warnings of a block for the report, showing each once."""
    found: list[str] = []
    show = warnings.showwarning

    def note(message: Warning | str, *rest: Any, **more: Any) -> None:
        found.append(str(message))
        show(message, *rest, **more)

    warnings.showwarning = note
    try:
        yield found
    finally:
        warnings.showwarning = show
        sys.stderr.flush()
