"""Claim: on tables, pre-training then fine-tuning on few labels is at least at the lower bound of the best baseline.

Four real tables (`breast-cancer`, `wine`, `diabetes`, `diamonds`), the defaults of `modicum pretrain` and `finetune`:
10 labels a class, or 100 labelled rows for numbers; scratch, logistic or ridge regression, SVM, gradient boosting and
1-NN beside it with the same validation rows and number of trials; intervals over labelled subsets, seeds and test rows.
Run: python bench/tables.py [--steps 500] [--seeds 5] [--record]
"""

from __future__ import annotations

import time
from pathlib import Path

from _common import Bench, verdict

import modicum

FEW: dict[str, dict[str, int]] = {
    "breast-cancer": {"labels_per_class": 10},
    "wine": {"labels_per_class": 10},
    "diabetes": {"labels": 100},
    "diamonds": {"labels": 100},
}


def main() -> None:
    bench = Bench("tables", steps=500, seeds=5)
    asked = bench.asked
    for data, few in FEW.items():
        start, folder = time.perf_counter(), Path("runs") / f"tables-{data}"
        run = modicum.pretrain(data, steps=asked.steps, seed=asked.seed, out=folder, force=True)
        out = folder.with_name(f"{folder.name}-finetune")
        tuned = modicum.finetune(run, data, seeds=asked.seeds, seed=asked.seed, out=out, force=True, **few)
        results = tuned.read_json("results.json") or {}
        rows = {row["name"]: row for row in results["contestants"]}
        print(f"\n{data}: {results['score']}, {results['labels']} labels, {time.perf_counter() - start:.0f} s")
        for name, row in sorted(rows.items(), key=lambda item: -item[1]["mean"]):
            error = f"  MAE {row['mae']:.4g}" if "mae" in row else ""
            print(f"  {name:20} {row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]{error}")
            bench.row(f"{data}: {name}", row["mean"], results["score"])
        best = max((row for row in rows.values() if row["kind"] == "baseline"), key=lambda row: row["mean"])
        verdict(f"lp-ft against {best['name']}'s lower bound", rows["lp-ft"]["mean"], best["low"])
    bench.finish()


if __name__ == "__main__":
    main()
