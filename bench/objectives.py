"""Which objective learns most from images in equal time: Fashion-MNIST, one encoder, every image objective.

Each is trained for the same seconds (its steps are counted beforehand from its own pace) on the 60,000 training images
without labels (`supcon` and `triplet`, marked *, with 100 labels), in a process of its own; then frozen features are
read on the 10,000 test images: k-NN and a linear rule from 10,000 labelled training images, and logistic regression
from 10 labels a class, mean of 5 draws. Mean and range over seeds; beside them raw pixels and the untrained encoder.
Run: python bench/objectives.py [--seconds 40] [--seeds 3] [--record]
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

import numpy as np
import torch
from _common import Bench
from sklearn.linear_model import LogisticRegression

import modicum
from modicum.core import seeds
from modicum.core.spec import build, hinted, parse
from modicum.nn.encoder import tower
from modicum.probes import knn, ridge
from modicum.training.apply import embed
from modicum.training.batches import Batches
from modicum.training.fit import fit
from modicum.training.optim import adamw, cosine, groups
from modicum.training.tuples import labelled

ENCODER, BATCH = "convnet", 256
OBJECTIVES = (
    "simclr()", "simclr(n=4)", "moco()", "vicreg()", "vicreg(n=4)", "barlow()", "byol()", "dino()",
    "lejepa()", "masked()", "latent_masked()", "autoencoder()", "vae()",
    "supcon()", "triplet()",
)  # fmt: skip


def data() -> tuple[modicum.datasets.data.Data, object, np.ndarray, np.ndarray, np.ndarray]:
    """Facts, packed rows, labels, and the numbers of the training and the test rows."""
    found = modicum.open_data("fashion-mnist")
    split = np.array(found.table.column("split").to_pylist())
    train, test = np.flatnonzero(split != "test"), np.flatnonzero(split == "test")
    labels = found.labels()
    assert labels is not None
    return found, found.modality.infer(found.raw, train), labels.values, train, test


def scores(bank: np.ndarray, y: np.ndarray, query: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """What simple rules read off features: accuracies on the query rows."""
    few = []
    for draw in range(5):
        rng = np.random.default_rng(draw)
        rows = np.concatenate([rng.choice(np.flatnonzero(y == c), 10, replace=False) for c in range(10)])
        mean, std = bank[rows].mean(0), bank[rows].std(0)
        scale = std + 0.1 * std.mean() + 1e-9
        rule = LogisticRegression(C=0.01, max_iter=500).fit((bank[rows] - mean) / scale, y[rows])
        few.append((rule.predict((query - mean) / scale) == true).mean())
    found = {"knn": (knn(bank, y, query) == true).mean(), "linear": (ridge(bank, y, query) == true).mean()}
    return {**found, "ten": np.mean(few)}


def every(text: str, asked: list[int]) -> list[dict[str, float]]:
    """Train one objective for about so many seconds with each seed, and read its features."""
    seconds, first, count, threads = asked
    torch.set_num_threads(threads)
    found, input, y, train, test = data()
    packed = input.pack(found.raw)  # type: ignore[attr-defined]
    bank = np.sort(seeds.numpy(0, "bank").choice(train, 10_000, replace=False))
    if text == "raw pixels":
        rows = [np.asarray(input.flat(packed.source.rows(index))) for index in (bank, test)]  # type: ignore[attr-defined]
        return [scores(rows[0], y[bank], rows[1], y[test])]

    def make(seed: int, steps: int) -> torch.nn.Module:
        with seeds.forked(seed, "init"):
            goal = parse("simclr()" if text == "untrained" else text)
            return build("objective", goal, encoder=tower(input, ENCODER), views=hinted(found.views), steps=steps)

    def batches(objective: torch.nn.Module, seed: int) -> object:
        if not objective.uses_labels:
            return Batches(packed.source, train, batch=BATCH, seed=seed)
        rng = np.random.default_rng(seed)
        own = np.concatenate([rng.choice(train[y[train] == c], 10, replace=False) for c in range(10)])
        known = np.isin(np.arange(len(y)), own)
        return labelled(packed.source, train, np.where(known, y, -1), known, BATCH, seed)

    def trained(objective: torch.nn.Module, seed: int, steps: int) -> float:
        optimizer = adamw(groups(objective, lr=4e-3, weight_decay=0.05))
        given, began = batches(objective, seed), time.perf_counter()
        for step in fit(objective, given, optimizer, steps=steps, seed=seed, schedule=cosine(steps), clip=1.0):
            last = step
        last.loss.item()
        return time.perf_counter() - began

    rows = []
    if text != "untrained":
        trained(make(0, 30), 0, 5)  # what is compiled or cached once is not counted
    for seed in range(first, first + count):
        more: dict[str, float] = {}
        if text == "untrained":
            objective = make(seed, 0)
        else:
            steps = max(10, round(seconds / (trained(make(seed, 30), seed, 20) / 20)))
            objective = make(seed, steps)
            took = trained(objective, seed, steps)
            more = {"steps": steps, "took": took, "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}
        encoder = next(iter(objective.encoders().values()))
        z = [embed(encoder, packed.source, index) for index in (bank, test)]
        rows.append(scores(z[0], y[bank], z[1], y[test]) | more)
    return rows


def main() -> None:
    if sys.argv[1:2] == ["every"]:
        print(json.dumps(every(sys.argv[2], [int(v) for v in sys.argv[3:]])))
        return
    bench = Bench("objectives", seconds=40, seeds=3)
    asked = bench.asked
    print(f"{'':26}{'k-NN':>8}{'linear':>9}{'10 labels a class':>24}{'steps/s':>10}{'MB':>7}")
    for text in ("raw pixels", "untrained", *OBJECTIVES):
        numbers = [asked.seconds, asked.seed, asked.seeds, asked.threads]
        ask = [sys.executable, __file__, "every", text, *map(str, numbers)]
        done = subprocess.run(ask, capture_output=True, text=True)
        if done.returncode:
            print(f"{text}: {done.stderr.strip().splitlines()[-1][:150]}")
            continue
        rows = json.loads(done.stdout.splitlines()[-1])
        mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        name = text + ("*" if text.startswith(("supcon", "triplet")) else "")
        span = f"{mean['ten']:.3f} [{min(r['ten'] for r in rows):.3f}, {max(r['ten'] for r in rows):.3f}]"
        pace = f"{mean['steps'] / mean['took']:10.1f}{mean['mb']:7,.0f}" if mean.get("took") else ""
        print(f"{name:26}{mean['knn']:8.3f}{mean['linear']:9.3f}{span:>24}{pace}", flush=True)
        for key, unit in (("knn", "accuracy"), ("linear", "accuracy"), ("ten", "accuracy of 10 labels a class")):
            bench.row(name, mean[key], f"{unit}, {key}" if key != "ten" else unit)
    bench.finish()


if __name__ == "__main__":
    main()
