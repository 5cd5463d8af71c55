"""Claim: packing and pre-training on 1,000,000 images of 28×28 takes less than 1 GB of memory that is not file cache.

A subprocess runs `modicum.pretrain` on an .npy of random bytes (0.8 GB, in a temporary folder, deleted afterwards),
the whole verb: scan, statistics, hashes, training steps, saving, report. RssAnon of /proc is sampled: pages of the
memory-mapped file are the kernel's to take back, and shown beside it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _common
import numpy as np

CODE = "import sys, modicum; modicum.pretrain(sys.argv[1], out=sys.argv[2], steps=int(sys.argv[3]), device='cpu')"


def write(path: Path, rows: int, seed: int) -> None:
    """Random uint8 images (rows, 28, 28), written in pieces."""
    rng = np.random.default_rng(seed)
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(rows, 28, 28))
    for at in range(0, rows, 50_000):
        piece = images[at : at + 50_000]
        piece[:] = np.frombuffer(rng.bytes(piece.size), np.uint8).reshape(piece.shape)
    images.flush()


def resident(pid: int) -> dict[str, float]:
    """MB of anonymous and of file memory; empty when the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {k: int(s.split()[1]) / 1e3 for s in lines for k in ("RssAnon", "RssFile") if s.startswith(k + ":")}


def peaks(command: list[str], env: dict[str, str], folder: str) -> tuple[dict[str, float], float, float]:
    """The most MB of anonymous and of file memory that a command takes, when, and its seconds."""
    began, at, peak = time.perf_counter(), 0.0, {"RssAnon": 0.0, "RssFile": 0.0}
    child = subprocess.Popen(command, env=env, cwd=folder)
    while child.poll() is None:
        found = resident(child.pid)
        if found.get("RssAnon", 0) > peak["RssAnon"]:
            at = time.perf_counter() - began
        peak = {k: max(v, found.get(k, 0)) for k, v in peak.items()}
        time.sleep(0.02)
    if child.returncode:
        sys.exit(f"pretrain failed ({child.returncode})")
    return peak, at, time.perf_counter() - began


def main() -> None:
    bench = _common.Bench("memory", rows=1_000_000, steps=20)
    if not Path("/proc/self/status").exists():
        sys.exit("bench/memory.py reads /proc: it needs Linux")
    with tempfile.TemporaryDirectory(prefix="modicum-bench-") as folder:
        data = Path(folder) / "images.npy"
        write(data, bench.asked.rows, bench.asked.seed)
        size = data.stat().st_size / 1e6
        print(f"   {bench.asked.rows:,} random images of 28×28: {size:,.0f} MB")
        env = {**os.environ, "MODICUM_CACHE": f"{folder}/cache", "OMP_NUM_THREADS": str(bench.asked.threads)}
        command = [sys.executable, "-c", CODE, str(data), f"{folder}/run", str(bench.asked.steps)]
        peak, at, took = peaks(command, env, folder)
    base = subprocess.run(
        [sys.executable, "-c", "import modicum; print(open('/proc/self/status').read())"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    empty = next(int(s.split()[1]) / 1e3 for s in base.splitlines() if s.startswith("RssAnon:"))
    print(f"\npeak RssAnon   {peak['RssAnon']:8,.0f} MB   (after {at:.0f} of {took:.0f} s; {empty:,.0f} MB on import)")
    print(f"peak RssFile   {peak['RssFile']:8,.0f} MB   (libraries and the mapped images)")
    bench.row("peak RssAnon", peak["RssAnon"], "MB", 1000 / peak["RssAnon"])
    bench.row("seconds", took, "s")
    _common.verdict("peak anonymous memory, GB", peak["RssAnon"] / 1e3, 1, most=True)
    bench.finish()


if __name__ == "__main__":
    main()
