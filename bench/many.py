"""Claim: many models trained in one pass take a fraction of the time of the plain PyTorch loop, and never more.

Seconds a model and step, `modicum.training.many` (its batches, gradients and optimizer through `fit`) against a warm
plain loop with the same optimizer at its faster thread count: in one process, and as `workers=2` does in two of one
thread each, with the loop divided over 2 processes by joblib beside it. The contestants take turns; medians over
rounds. The trial that chooses the plan is not counted, but printed.
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
from modicum.training.divide import divide
from modicum.training.fit import fit
from modicum.training.plan import choose, made, optimizer_of


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
    norm: str = "group"


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
    Case("16 convnets 28x28 of width 4", 784, [4] * 16, 10, 64, 1, convnet=True),
    Case("4 convnets 28x28 of width 48", 784, [48] * 4, 10, 64, 1, convnet=True),
    Case("16 convnets of widths 13..16, batch norm", 784, [13, 14, 15, 16] * 4, 10, 64, 1, convnet=True, norm="batch"),
    Case("1 of 20-32-2", 20, [32], 2, 64, 1),
    Case("4 of 20-32-2, batches of their own", 20, [32] * 4, 2, 64, 1),
    Case("256 of 20-32-2, batches of their own", 20, [32] * 256, 2, 64, 1),
    Case("128 of 64-64-10, batches of their own", 64, [64] * 128, 10, 128, 1),
    Case("256 of 20-32-2, AdamW", 20, [32] * 256, 2, 64, 50, shared=True, optimizer="adamw"),
]
ROWS = 4096


def convnet(width: int, norm: str) -> str:
    return f"convnet(width={width}, stages=3, norm='{norm}', cells=0)"


class Ours:
    """The members numbered from `first` on, every `each`-th, as stacks that are ready to take steps."""

    def __init__(self, case: Case, x: np.ndarray, y: np.ndarray, seed: int, first: int = 0, each: int = 1) -> None:
        if case.convnet:
            found = many.Work(picture_input(), Pictures(x), y, case.classes, case.optimizer)
        else:
            found = many.Work.of_features(x, y, case.classes, optimizer=case.optimizer)
        rows = np.arange(len(x))
        lr = 1e-2 if case.optimizer == "sgd" else 1e-3
        given = {"batch": case.batch, "steps": 100_000, "lr": lr, "schedule": "constant"}
        members = [
            many.Member(
                rows if case.shared else seeds.numpy(seed, "rows", k).permutation(rows),
                None,
                convnet(w, case.norm) if case.convnet else f"mlp(width={w}, depth=1, norm='none')",
                k,
                0 if case.shared else k,
                **given,
            )
            for k, w in list(enumerate(case.widths))[first::each]
        ]
        self.stacks = []
        for chunk in divide(members, found):
            own = [members[i] for i in chunk.numbers]
            chosen = choose(own, found, chunk, None)
            stack = made(own, found, chunk, chosen["plan"])
            self.stacks.append((stack, optimizer_of(stack), chosen))
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


HALVES: dict[tuple[str, int], Ours] = {}
"""In a process of the pool: its half of a case's members, kept for the next round."""


def half(case: Case, x: np.ndarray, y: np.ndarray, seed: int, first: int, steps: int) -> float:
    """Seconds a step of every second member, with one thread (for `workers=2`)."""
    torch.set_num_threads(1)
    key = case.name, first
    if key not in HALVES:
        HALVES.clear()
        HALVES[key] = Ours(case, x, y, seed, first, 2)
    return HALVES[key].seconds(steps)


def plain_convnet(width: int, norm: str) -> torch.nn.Module:
    """The same network as a module of images (b, 28, 28, 1)."""
    objective = Supervised(tower(picture_input(), convnet(width, norm)), outputs=10)

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
            kinds = sorted(set(case.widths))
            nets = [plain_convnet(w, case.norm) for w in kinds]
            own = [loop(net, Pictures(x).x, true, case.batch, steps, case.optimizer) for net in nets]
            return float(np.mean(own) * len(case.widths))
        # Models of one width take the same time: three of them are timed.
        some = case.widths[:3] if len(set(case.widths)) == 1 else case.widths
        took = [
            loop(perceptron(case.inputs, w, case.classes), given, true, case.batch, steps, case.optimizer) for w in some
        ]
        return float(np.mean(took) * len(case.widths))


def main() -> None:
    bench = _common.Bench("many", rounds=3, only=-1)
    pool = joblib.Parallel(n_jobs=2, max_nbytes=None)
    heads = zip(("modicum", "2 workers", "loop", "joblib 2", "ratio", "workers"), (12, 10, 10, 10, 8, 8), strict=True)
    print(f"{'us a model and step':40}" + "".join(f"{head:>{n}}" for head, n in heads))
    for case in CASES if bench.asked.only < 0 else [CASES[bench.asked.only]]:
        rng = np.random.default_rng(bench.asked.seed)
        x = rng.standard_normal((ROWS, case.inputs)).astype(np.float32)
        y = rng.integers(0, case.classes, ROWS)
        ours = Ours(case, x, y, bench.asked.seed)
        count, steps = len(case.widths), 20 if case.convnet else 100
        names = ("modicum", "workers", "loop, 1 thread", "loop, all threads", "joblib")
        found: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(bench.asked.rounds):
            found["modicum"].append(ours.seconds(max(10, 2 * steps)) / count)
            if count > 1:
                ask = [(case, x, y, bench.asked.seed, k, max(10, 2 * steps)) for k in (0, 1)]
                found["workers"].append(max(pool(joblib.delayed(half)(*a) for a in ask)) / count)
            found["loop, 1 thread"].append(plain(case, x, y, 1, steps) / count)
            found["loop, all threads"].append(plain(case, x, y, bench.asked.threads, steps) / count)
            if not case.convnet and count > 1:
                halves = [case.widths[::2], case.widths[1::2]]
                some = [h if len(set(h)) > 1 else h[:8] for h in halves]
                ask = [(case.inputs, h, case.classes, ROWS, case.batch, steps, case.optimizer) for h in some]
                took = pool(joblib.delayed(loops)(*a) for a in ask)
                found["joblib"].append(
                    max(t / len(h) * len(o) for t, h, o in zip(took, some, halves, strict=True)) / count
                )
        took = {name: float(np.median(v)) if v else float("nan") for name, v in found.items()}
        best = min(took["loop, 1 thread"], took["loop, all threads"])
        ratio, two = best / took["modicum"], best / took["workers"]
        times = "".join(f"{v * 1e6:{n}.2f}" for v, n in zip((took["modicum"], took["workers"]), (12, 10), strict=True))
        times += f"{best * 1e6:10.1f}{took['joblib'] * 1e6:10.1f}{ratio:8.2f}{two:8.2f}"
        low, high = (best / np.max(found["modicum"]), best / np.min(found["modicum"]))
        print(f"{case.name:40}{times}   [{low:.1f}, {high:.1f}] {ours.words}", flush=True)
        _common.verdict(f"times as fast as the loop: {case.name}", ratio, case.target)
        bench.row(case.name, took["modicum"] * 1e6, "us a model and step", ratio)
        if count > 1:
            _common.verdict(f"times as fast as the loop, workers=2: {case.name}", two, case.target)
            bench.row(f"{case.name}, workers=2", took["workers"] * 1e6, "us a model and step", two)
    bench.finish()


if __name__ == "__main__":
    main()
