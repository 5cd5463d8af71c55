"""What the benches share: options, the machine in words, interleaved timing, tables, and rows of records.csv."""

from __future__ import annotations

import argparse
import csv
import os
import platform
import subprocess
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import PIL
import torch
from _timing import interleaved

import modicum

RECORDS = Path(__file__).parent / "records.csv"
COLUMNS = ["date", "bench", "what", "value", "unit", "ratio", "machine", "commit", "settings"]


class Bench:
    """A run of one bench: its options, seed and threads; prints the header; collects rows; writes them on --record."""

    def __init__(self, name: str, **options: int) -> None:
        parser = argparse.ArgumentParser(prog=f"bench/{name}.py")
        parser.add_argument("--record", action="store_true", help="append the results to bench/records.csv")
        parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
        parser.add_argument("--seed", type=int, default=0)
        for key, value in options.items():
            parser.add_argument(f"--{key}", type=int, default=value)
        self.name, self.asked, self.rows = name, parser.parse_args(), []
        torch.set_num_threads(self.asked.threads)
        torch.manual_seed(self.asked.seed)
        self.load = os.getloadavg()[0]
        print(f"== {name}: {machine()}, {self.asked.threads} torch thread(s)")
        print(
            f"   python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}, "
            f"pillow {PIL.__version__}, modicum {modicum.__version__}; seed {self.asked.seed}; "
            f"load average before: {self.load:.1f}"
        )
        if self.load > 0.5:
            print("   the machine is not idle: believe ratios more than rates, and processor time more than elapsed")

    def row(self, what: str, value: float, unit: str, ratio: float | None = None) -> None:
        """A result to record; `ratio` is ours over the peer's (above 1: we are faster)."""
        self.rows.append(
            {"what": what, "value": f"{value:.6g}", "unit": unit, "ratio": f"{ratio:.3g}" if ratio else ""}
        )

    def finish(self) -> None:
        """Append the rows to records.csv, if asked to."""
        if not self.asked.record:
            return
        given = {k: v for k, v in vars(self.asked).items() if k != "record"}
        settings = " ".join(f"{k}={v}" for k, v in given.items()) + f" load={self.load:.1f} torch={torch.__version__}"
        append([{"bench": self.name, "settings": settings, **row} for row in self.rows])
        print(f"   {len(self.rows)} rows appended to bench/records.csv")


def append(rows: list[dict[str, str]]) -> None:
    """Append rows to records.csv; date, machine and commit are filled in."""
    fresh = not RECORDS.exists()
    with RECORDS.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if fresh:
            writer.writeheader()
        for row in rows:
            writer.writerow({"date": date.today().isoformat(), "machine": machine(), "commit": commit(), **row})


def machine() -> str:
    """The processor and how many cores this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((s.partition(":")[2].strip() for s in lines if s.startswith("model name")), platform.machine())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores of {model}"


def commit() -> str:
    """The short commit, with + where files differ from it; empty outside a repository."""
    try:
        ask = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def pictures(limit: int) -> tuple[np.ndarray, str]:
    """Up to `limit` 28×28 grey uint8 images (n, 28, 28, 1), and what they are."""
    try:
        data, words = modicum.open_data("fashion-mnist"), "Fashion-MNIST"
        images = np.asarray(data.raw.array[:limit])
    except modicum.UserError:
        images = np.random.default_rng(0).integers(0, 256, (limit, 28, 28), dtype=np.uint8)
        words = "random bytes (Fashion-MNIST is not on this machine: run scripts/get-data)"
    return np.ascontiguousarray(images.reshape(-1, 28, 28, 1)), f"{len(images):,} images of {words}"


def contest(
    bench: Bench, title: str, contestants: dict[str, Callable[[], object]], images: dict[str, int]
) -> tuple[dict[str, float], dict[str, float]]:
    """Let all run; print and record images/s (`images`: of one call) and how many times as fast the first is.

    Returns these ratios, medians over rounds, by elapsed and by processor time.
    """
    took = interleaved(contestants, bench.asked.rounds)
    rates = {name: images[name] / seconds for name, seconds in took.items()}
    ours, width = next(iter(rates)), max(map(len, rates))
    ratios = {name: np.median(rates[ours] / rate, 0) for name, rate in rates.items()}
    print(f"\n{title}\n{'':{width}}  {'images/s':>9}  {'quartiles':>17}  {ours} is    by processor time")
    for name, rate in rates.items():
        low, mid, high = np.percentile(rate[:, 0], [25, 50, 75])
        against = "" if name == ours else "".join(f"{r:{n}.2f}×" for r, n in zip(ratios[name], (9, 15), strict=True))
        print(f"{name:{width}}  {mid:9,.0f}  {low:8,.0f} {high:8,.0f}  {against}")
        bench.row(f"{title}: {name}", float(mid), "images/s", float(ratios[name][0]))
        bench.row(f"{title}: {name}", float(np.median(rate[:, 1])), "images/processor second", float(ratios[name][1]))
    peers = [name for name in rates if name != ours]
    return {n: float(ratios[n][0]) for n in peers}, {n: float(ratios[n][1]) for n in peers}


def verdict(claim: str, value: float, target: float, *, most: bool = False, processor: float | None = None) -> None:
    """Print whether a number meets its target, at least (or at most) so much; beside it, the one by processor time."""
    met = value <= target if most else value >= target
    beside = "" if processor is None else f"; by processor time {processor:.3g}"
    print(f"{'met' if met else 'MISSED'}: {claim}: {value:.3g} (target {'<=' if most else '>='} {target:g}{beside})")
