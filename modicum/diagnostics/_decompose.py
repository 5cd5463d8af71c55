"""Models on disjoint splits of the training rows, several initialisations each: their outputs in sums, their losses."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.special import stdtrit

from modicum.core import seeds
from modicum.core.errors import UserError
from modicum.diagnostics._polish import evaluations, polished
from modicum.diagnostics._rows import Given
from modicum.maths.decomposition import Loss, Sums
from modicum.maths.intervals import Interval
from modicum.training.many import Member, Reading, train
from modicum.training.splits import few
from modicum.training.work import Work

STILL = 0.02
"""The share of the test loss that full-batch L-BFGS may lower the training loss by where training has converged."""
POLISHED = 2
"""Models of a size that it is tried on."""


@dataclass(frozen=True)
class Design:
    """`splits` of the training rows x `seeds` initialisations, and the settings that all models have in common."""

    encoder: str
    splits: int
    seeds: int
    steps: int
    batch: int
    lr: float
    seed: int

    def __post_init__(self) -> None:
        if self.splits < 2:
            raise UserError(
                f"--splits {self.splits}: bias and variance need models on at least 2 sets of training rows"
            )
        if self.seeds < 1 or self.steps < 2:
            raise UserError(f"--seeds {self.seeds}, --steps {self.steps}: wanted at least 1 and 2")

    def member(self, rows: np.ndarray, targets: np.ndarray, initial: int | str, longer: int = 1) -> Member:
        """A model on these rows with their targets."""
        seed = seeds.fold(self.seed, "initialisation", initial)
        return Member(rows, targets, self.encoder, seed, lr=self.lr, batch=self.batch, steps=longer * self.steps)


@dataclass(frozen=True)
class Truth:
    """Labels (rows,) that models are trained on, and what they are compared with: targets (rows,) or (rows, classes).

    `noise` is the variance of the labels of numbers around the targets; `teacher`: the spec of the model that made the
    targets, "" where they are the data's own.
    """

    labels: np.ndarray
    targets: np.ndarray
    noise: float = 0.0
    teacher: str = ""


@dataclass
class Size:
    """Models on n rows of a split each: training loss by split (splits, seeds), test sums.

    `polished` (k, 2): training loss of some of the models, as trained and as L-BFGS lowers it (NaN: it failed).
    """

    n: int
    sums: Sums
    end: np.ndarray
    polished: list[tuple[float, float]] = field(default_factory=list)
    test: Interval = field(init=False)

    @property
    def train(self) -> Interval:
        """The mean training loss with its interval over splits; where it has converged, less what L-BFGS still gained.

        Without that what is tolerated as converged could lie above the loss that it is to be a lower bound of.
        """
        each = self.end.mean(1)
        each = np.maximum(each - self.left, 0.0) if self.converged else each
        width = float(stdtrit(len(each) - 1, 0.975)) * each.std(ddof=1) / np.sqrt(len(each))
        return Interval(float(each.mean()), float(each.mean() - width), float(each.mean() + width), "splits")

    @property
    def left(self) -> float:
        """How far the training loss is above the lowest that was found."""
        trained, lower = np.mean(self.polished, axis=0)
        return float(trained - lower)

    @property
    def converged(self) -> bool:
        """Whether L-BFGS gains next to nothing; not so where it fails, which says nothing."""
        return self.left <= STILL * self.test.mean


def run(rows: Given, work: Work, truth: Truth, design: Design, parts: list[np.ndarray]) -> list[Size]:
    """Train models on whole splits (the last size) and, with one seed, on a quarter and a half of each.

    Sizes of fewer than two rows, or fewer than two a class, are left out.
    """
    whole = min(map(len, parts))
    least = 2 * max(rows.classes, 1)
    ns = [n for n in (whole // 4, whole // 2) if n >= least]
    members, places = [], []
    sizes = []
    for i, n in enumerate([*ns, whole]):
        last = i == len(ns)
        count = design.seeds if last else 1
        # Only the whole splits are decomposed by what models share; of smaller ones the loss is wanted alone.
        sums = Sums(rows.classes, limit=design.splits) if last else Sums(rows.classes)
        sizes.append(Size(n, sums, np.zeros((design.splits, count))))
        for split, part in enumerate(parts):
            own = part if last else few(
                rows.labels.values, total=n, kind=rows.labels.kind, seed=design.seed, among=part
            )  # fmt: skip
            for k in range(count):
                initial = k if count > 1 else split  # a grid shares its initialisations; without one each has its own
                members.append(design.member(own, truth.labels[own], initial))
                places.append((sizes[-1], split, k, initial))
    for reading in train(members, work):
        _read(reading, rows.test, places)
    loss: Loss = "cross-entropy" if rows.classes else "squared"
    for size in sizes:
        size.test = size.sums.decompose(truth.labels[rows.test], loss).loss
    return sizes


def _read(reading: Reading, test: np.ndarray, places: list[tuple[Size, int, int, int]]) -> None:
    loss, _ = reading.own()
    z = reading.outputs(test)
    for i, number in enumerate(reading.numbers):
        size, split, k, initial = places[number]
        size.end[split, k] = loss[i]
        size.sums.add(z[i : i + 1], [split], [initial])
        if len(size.polished) < POLISHED and k == 0:
            work, own = reading.stack.work, reading.stack.members[i]
            targets = work.targets[own.rows] if own.targets is None else own.targets
            lower = polished(reading.member(i), work, own.rows, targets, evaluations(own))
            size.polished.append((loss[i], float(np.minimum(loss[i], lower))))
