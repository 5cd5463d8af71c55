"""Claim: many models trained in one pass take a fraction of the time of the plain PyTorch loop, and never more.

Seconds a model and step, `modicum.training.many` (its batches, gradients and optimizer through `fit`) against a warm
plain loop with the same optimizer at its faster thread count, and beside it the loop divided over 2 processes by
joblib. The contestants take turns; medians over rounds. The trial that chooses the plan is not counted, but printed.
Run: python bench/many.py [--rounds 3] [--record]
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import _common
import joblib
import numpy as np
import torch
from _loops import loop, loops, perceptron

from modicum.core import seeds
from modicum.nn.encoder import tower
from modicum.objectives.supervised import Supervised
from modicum.training import many
from modicum.training.fit import fit


@dataclass(frozen=True)
class Case:
    """Models of one kind: inputs, widths, classes, how many rows a batch, and what is claimed."""

    name: str
    inputs: int
    widths: list[int]
    classes: int
    batch: int
    target: float
    shared: bool = False
    convnet: bool = False
    optimizer: str = "sgd"


WIDTHS = np.geomspace(1, 512, 60).round().astype(int).tolist()
"""Evenly spaced in their logarithm, as curves against width have them; the narrowest occur several times."""
CASES = [
    Case("256 of 20-32-2", 20, [32] * 256, 2, 64, 50, shared=True),
    Case("128 of 64-64-10", 64, [64] * 128, 10, 128, 12, shared=True),
    Case("64 of 784-64-10, one order of batches", 784, [64] * 64, 10, 128, 3.5, shared=True),
    Case("64 of 784-64-10, batches of their own", 784, [64] * 64, 10, 128, 3),
    Case("60 widths 1..512 of 784-w-10", 784, WIDTHS, 10, 128, 2.3, shared=True),
    Case("60 widths 1..512 of 64-w-10", 64, WIDTHS, 10, 128, 5, shared=True),
    Case("16 convnets 28x28, group norm", 784, [16] * 16, 10, 64, 1.1, convnet=True),
    Case("256 of 20-32-2, batches of their own", 20, [32] * 256, 2, 64, 1),
    Case("128 of 64-64-10, batches of their own", 64, [64] * 128, 10, 128, 1),
    Case("256 of 20-32-2, AdamW", 20, [32] * 256, 2, 64, 50, shared=True, optimizer="adamw"),
]
ROWS = 4096


def convnet(width: int) -> str:
    return f"convnet(width={width}, stages=3, norm='group', cells=0)"


class Ours:
    """The members as stacks, each ready to take steps."""

    def __init__(self, case: Case, x: np.ndarray, y: np.ndarray, seed: int) -> None:
        rng = seeds.numpy(seed, "rows")
        if case.convnet:
            found = many.Work(picture_input(), Pictures(x), y, case.classes, case.optimizer)
            spec = convnet
        else:
            found = many.Work.of_features(x, y, case.classes, optimizer=case.optimizer)
            spec = "mlp(width={}, depth=1, norm='none')".format
        rows = np.arange(len(x))
        lr = 1e-2 if case.optimizer == "sgd" else 1e-3
        given = {"batch": case.batch, "steps": 100_000, "lr": lr, "schedule": "constant"}
        members = [
            many.Member(
                rows if case.shared else rng.permutation(rows), None, spec(w), k, 0 if case.shared else k, **given
            )
            for k, w in enumerate(case.widths)
        ]
        self.stacks = []
        for chunk in many.divide(members, found):
            own = [members[i] for i in chunk.numbers]
            chosen = many._choose(own, found, chunk, None)
            stack = many._made(own, found, chunk, chosen["plan"])
            self.stacks.append((stack, many.optimizer_of(stack), chosen))
        self.words = ", ".join(f"{s[2]['plan']} with {s[2]['threads']} thread(s)" for s in self.stacks[:3])

    def seconds(self, steps: int) -> float:
        """Seconds a step of all members."""
        total = 0.0
        for stack, optimizer, chosen in self.stacks:
            with many.threads(chosen["threads"]):
                start = optimizer.now
                for step in fit(stack, stack.batches, optimizer, steps=start + 5 + steps, seed=0, start=start):
                    if step.number == start + 5:
                        began = time.perf_counter()
                total += (time.perf_counter() - began) / steps
        return total


def picture_input() -> object:
    from modicum.core.spec import part

    return part("modality", "images")(28, 1, (0.5,), (0.25,))


class Pictures:
    """Pixels (n, 784) as rows of grey images."""

    def __init__(self, x: np.ndarray) -> None:
        self.x, self.size = torch.from_numpy((x * 40 + 128).clip(0, 255).astype(np.uint8)).view(-1, 28, 28, 1), len(x)

    def rows(self, index: np.ndarray) -> dict[str, torch.Tensor]:
        return {"image": self.x[torch.from_numpy(np.ascontiguousarray(index))]}


def plain_convnet(width: int) -> torch.nn.Module:
    """The same network as a module of images (b, 28, 28, 1)."""
    objective = Supervised(tower(picture_input(), convnet(width)), outputs=10)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = objective

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net.head(self.net.encoder({"image": x}).pooled)

    return Net()


def plain(case: Case, x: np.ndarray, y: np.ndarray, threads: int, steps: int) -> float:
    """Seconds a step of one model of each width, summed over the widths, by the plain loop."""
    given, true = torch.from_numpy(x), torch.from_numpy(y)
    with many.threads(threads):
        if case.convnet:
            own = loop(plain_convnet(case.widths[0]), Pictures(x).x, true, case.batch, steps, case.optimizer)
            return own * len(case.widths)
        # Models of one width take the same time: three of them are timed.
        some = case.widths[:3] if len(set(case.widths)) == 1 else case.widths
        took = [
            loop(perceptron(case.inputs, w, case.classes), given, true, case.batch, steps, case.optimizer) for w in some
        ]
        return float(np.mean(took) * len(case.widths))


def main() -> None:
    bench = _common.Bench("many", rounds=3, only=-1)
    pool = joblib.Parallel(n_jobs=2)
    print(f"{'':40}{'modicum':>12}{'loop':>10}{'joblib 2':>10}{'ratio':>8}{'of joblib':>10}   us a model and step")
    for case in CASES if bench.asked.only < 0 else [CASES[bench.asked.only]]:
        rng = np.random.default_rng(bench.asked.seed)
        x = rng.standard_normal((ROWS, case.inputs)).astype(np.float32)
        y = rng.integers(0, case.classes, ROWS)
        ours = Ours(case, x, y, bench.asked.seed)
        count, steps = len(case.widths), 20 if case.convnet else 100
        found: dict[str, list[float]] = {"modicum": [], "loop, 1 thread": [], "loop, all threads": [], "joblib": []}
        for _ in range(bench.asked.rounds):
            found["modicum"].append(ours.seconds(max(10, min(200, steps))) / count)
            found["loop, 1 thread"].append(plain(case, x, y, 1, steps) / count)
            found["loop, all threads"].append(plain(case, x, y, bench.asked.threads, steps) / count)
            if not case.convnet:
                halves = [case.widths[::2], case.widths[1::2]]
                some = [h if len(set(h)) > 1 else h[:8] for h in halves]
                ask = [(case.inputs, h, case.classes, ROWS, case.batch, steps, case.optimizer) for h in some]
                took = pool(joblib.delayed(loops)(*a) for a in ask)
                found["joblib"].append(
                    max(t / len(h) * len(o) for t, h, o in zip(took, some, halves, strict=True)) / count
                )
        took = {name: float(np.median(v)) for name, v in found.items() if v}
        best = min(took["loop, 1 thread"], took["loop, all threads"])
        ratio = best / took["modicum"]
        beside = took.get("joblib", float("nan"))
        times = f"{took['modicum'] * 1e6:12.2f}{best * 1e6:10.1f}{beside * 1e6:10.1f}"
        low, high = (best / np.max(found["modicum"]), best / np.min(found["modicum"]))
        print(
            f"{case.name:40}{times}{ratio:8.2f}{beside / took['modicum']:10.2f}   [{low:.1f}, {high:.1f}] {ours.words}"
        )
        _common.verdict(f"times as fast as the loop: {case.name}", ratio, case.target)
        bench.row(case.name, took["modicum"] * 1e6, "us a model and step", ratio)
    bench.finish()


if __name__ == "__main__":
    main()
