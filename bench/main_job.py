"""The main job on Fashion-MNIST, whole: no labels in, a classifier from 10 labels a class out, in under 20 minutes.

Claim: lp-ft beats scratch, scratch with twice the budget, and raw pixels + logistic regression, each by a paired
difference whose 95 % interval (seeds and test rows) excludes zero; same optimiser, schedule, trials and views.
Run: python bench/main_job.py [--epochs 8] [--seeds 5] [--scratch_steps 200] [--record]
"""

from __future__ import annotations

import time
from pathlib import Path

from _common import Bench

import modicum
from modicum.maths.intervals import gain, paired
from modicum.training.run import load_tensors

OBJECTIVE, ENCODER, BATCH = "simclr(n=4)", "convnet(cells=7)", 128


def main() -> None:
    bench = Bench("main_job", epochs=8, seeds=5, scratch_steps=200)
    asked, folder = bench.asked, Path("runs/fashion")
    start = time.perf_counter()
    options = {"seed": asked.seed, "force": True}
    encoder = modicum.pretrain(
        "fashion-mnist", objective=OBJECTIVE, encoder=ENCODER, epochs=asked.epochs, batch=BATCH, out=folder, **options
    )
    print(f"pre-training: {time.perf_counter() - start:.0f} s")
    few: dict = {"labels_per_class": 10, "seeds": asked.seeds, **options}
    tuned = modicum.finetune(
        encoder, "fashion-mnist", method="lp-ft,propagate", out=folder.with_name("fashion-finetune"), **few
    )
    whole = time.perf_counter() - start
    print(f"pre-training and fine-tuning: {whole / 60:.1f} minutes")
    longer = modicum.finetune(
        ENCODER, "fashion-mnist", steps=asked.scratch_steps, out=folder.with_name("fashion-scratch"), **few
    )
    print(f"with scratch at {asked.scratch_steps} steps: {(time.perf_counter() - start) / 60:.1f} minutes")
    for row in tuned.read_json("results.json")["contestants"]:
        print(f"  {row['name']:22} {row['mean']:.4f} [{row['low']:.4f}, {row['high']:.4f}]  {row['seconds']:.1f} s")
        bench.row(row["name"], row["mean"], "accuracy")
    scores = {k: v.numpy() for k, v in load_tensors(tuned.path / "scores.safetensors")[0].items()}
    twice = load_tensors(longer.path / "scores.safetensors")[0]["scratch"].numpy()
    print(f"  scratch, {asked.scratch_steps} steps     {twice.mean():.4f}")
    bench.row(f"scratch, {asked.scratch_steps} steps", float(twice.mean()), "accuracy")
    others = {
        "scratch": scores["scratch"],
        "scratch, twice the budget": twice,
        **{k: scores[k] for k in ("logistic regression", "SVM", "1-NN")},
    }
    for ours in ("lp-ft", "probe", "propagate"):
        for name, other in others.items():
            difference = paired(scores[ours], other)
            print(f"  {ours} - {name:26} {difference}  {gain(difference)}")
            bench.row(f"{ours} - {name}", difference.mean, f"accuracy [{difference.low:.4f}, {difference.high:.4f}]")
    bench.row("pre-training and fine-tuning", whole / 60, "minutes")
    bench.finish()


if __name__ == "__main__":
    main()
