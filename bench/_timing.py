"""Timing of contestants that take turns."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


def interleaved(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each call, (rounds, 2) a contestant: elapsed, and of processor time, workers included.

    All take turns, in changing order, after a turn to warm up. On a machine that is not idle processor time is the
    fairer of the two: it does not count the waiting for a core.
    """
    seconds: dict[str, list[np.ndarray]] = {name: [] for name in contestants}
    for k in range(rounds + 1):
        order = list(contestants)
        for name in order[k % len(order) :] + order[: k % len(order)]:
            began = np.array([time.perf_counter(), processor()])
            contestants[name]()
            if k:
                seconds[name].append(np.array([time.perf_counter(), processor()]) - began)
    return {name: np.array(values) for name, values in seconds.items()}


def processor() -> float:
    """Processor seconds of this process and of the workers that it has."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        stat = Path(f"/proc/{child.pid}/stat")
        if stat.exists():
            user, system = stat.read_text().rpartition(")")[2].split()[11:13]
            total += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return total
