"""What the benches of few labels share: pre-train, fine-tune against the simple baselines, print, record, judge."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from _common import Bench, verdict

import modicum


def measure(bench: Bench, data: str, few: dict[str, int], *, unlabelled: Any = None, **pretrain: Any) -> None:
    """One data set, pre-trained on itself or `unlabelled` rows: lp-ft must reach the best baseline's lower bound."""
    start, folder = time.perf_counter(), Path("runs") / f"{bench.name}-{data}"
    run = modicum.pretrain(
        data if unlabelled is None else unlabelled, seed=bench.asked.seed, out=folder, force=True, **pretrain
    )
    out = folder.with_name(f"{folder.name}-finetune")
    tuned = modicum.finetune(run, data, seeds=bench.asked.seeds, seed=bench.asked.seed, out=out, force=True, **few)
    results = tuned.read_json("results.json") or {}
    rows = {row["name"]: row for row in results["contestants"]}
    print(f"\n{data}: {results['score']}, {results['labels']} labels, {time.perf_counter() - start:.0f} s")
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["mean"]):
        error = f"  MAE {row['mae']:.4g}" if "mae" in row else ""
        print(f"  {name:28} {row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]{error}  {row['seconds']:.0f} s")
        bench.row(f"{data}: {name}", row["mean"], results["score"])
    best = max((row for row in rows.values() if row["kind"] == "baseline"), key=lambda row: row["mean"])
    verdict(f"lp-ft against {best['name']}'s lower bound", rows["lp-ft"]["mean"], best["low"])
