"""Claim: contrastive losses on this CPU take < 1/60 of the textbook's extra memory, and are at least 2.5 times as fast.

Forward and backward at a matrix of B rows: image-text pairs both ways (at a scale of 14.3 and CLIP's 100) against the
faster textbook form, of two products; two views (NT-Xent) against one product with a masked diagonal, lightly and
pytorch-metric-learning. Each runs in a process of its own, in changing order; the extra memory is its peak above what
it held before. What would not fit in memory is not run, and printed so.
Run: python bench/contrastive.py [--least 1024] [--most 65536] [--rounds 3]
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import _common
import numpy as np
from _contrastive import LOSSES

ROWS = [2**k for k in range(10, 17)]
DIMS = [128, 768]
# Bytes at the peak, measured at small B: a pair of rows, or for NTXent, which compares all pairs with all, a triple.
PAIR = {"textbook": 20, "lightly": 24, "pytorch-metric-learning SupCon": 60}
TRIPLE = {"pytorch-metric-learning NTXent": 24}
AT, TARGETS = 16384, {14.3: 2.5, 100.0: 2.0}


def wanted(name: str, rows: int) -> float:
    """The GB a contestant will take, about."""
    return (PAIR.get(name, 0) * rows**2 + TRIPLE.get(name, 0) * rows**3) / 1e9


def free() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(s.split()[1]) for s in lines if s.startswith("MemAvailable:")) / 1e6


def one(bench: _common.Bench, kind: str, name: str, rows: int, dim: int, scale: float) -> dict[str, float] | str:
    """Median seconds elapsed and of the processor, extra MB and the loss; or why there are none."""
    if wanted(name, rows) > 0.8 * free():
        return f"does not fit in memory: about {wanted(name, rows):,.0f} GB"
    # A call of more than some seconds is timed once.
    rounds = bench.asked.rounds if rows <= AT else 1
    numbers = [rows, dim, scale, rounds, bench.asked.threads, bench.asked.seed]
    ask = [sys.executable, str(Path(__file__).parent / "_contrastive.py"), kind, name, *map(str, numbers)]
    done = subprocess.run(ask, capture_output=True, text=True)
    if done.returncode:
        return f"failed ({done.returncode}): {(done.stderr.strip().splitlines() or ['killed'])[-1][:90]}"
    found = json.loads(done.stdout.splitlines()[-1])
    elapsed, used = np.median(np.array(found["took"]), 0)
    return {"elapsed": elapsed, "processor": used, "extra": found["extra"], "loss": found["loss"]}


def table(bench: _common.Bench, kind: str, dim: int, scale: float) -> None:
    title = f"{kind}, D={dim}, scale {scale:g}"
    print(f"\n{title}\n{'B':>6}  {'':31}{'seconds':>9}{'extra MB':>10}{'loss':>9}   modicum is    and takes")
    for k, rows in enumerate(r for r in ROWS if bench.asked.least <= r <= bench.asked.most):
        names = list(LOSSES[kind])
        order = names[k % len(names) :] + names[: k % len(names)]
        results = {name: one(bench, kind, name, rows, dim, scale) for name in order}
        ours = results["modicum"]
        for name in names:
            found = results[name]
            if isinstance(found, str):
                print(f"{rows:6}  {name:31}{found}")
                continue
            against = ""
            if name != "modicum" and not isinstance(ours, str):
                ratios = {key: found[key] / ours[key] for key in ("elapsed", "processor", "extra")}
                against = f"   {ratios['elapsed']:5.2f}× as fast, 1/{ratios['extra']:.0f} of its memory"
                if name == "textbook" and (rows, dim, kind) == (AT, 128, "pairs"):
                    claims(scale, ratios)
                bench.row(f"{title}, B={rows}: {name}, memory", found["extra"], "MB", ratios["extra"])
                bench.row(f"{title}, B={rows}: {name}", found["elapsed"], "s", ratios["elapsed"])
            else:
                bench.row(f"{title}, B={rows}: modicum, memory", found["extra"], "MB")
                bench.row(f"{title}, B={rows}: modicum", found["elapsed"], "s")
            print(f"{rows:6}  {name:31}{found['elapsed']:9.3f}{found['extra']:10,.0f}{found['loss']:9.4f}{against}")


def claims(scale: float, ratios: dict[str, float]) -> None:
    _common.verdict(
        f"times as fast as the textbook, pairs, B={AT}, D=128, scale {scale:g}",
        ratios["elapsed"],
        TARGETS[scale],
        processor=ratios["processor"],
    )
    _common.verdict(f"times less extra memory, scale {scale:g}", ratios["extra"], 60)


def main() -> None:
    bench = _common.Bench("contrastive", least=ROWS[0], most=ROWS[-1], rounds=3)
    if not Path("/proc/self/clear_refs").exists():
        sys.exit("bench/contrastive.py reads /proc: it needs Linux")
    for dim in DIMS:
        for scale in TARGETS:
            table(bench, "pairs", dim, scale)
        table(bench, "views", dim, 14.3)
    bench.finish()


if __name__ == "__main__":
    main()
