"""Models on disjoint splits of the training rows, several initialisations each: their outputs in sums, their losses."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import brentq
from scipy.special import softmax, stdtrit

from modicum.core import seeds
from modicum.core.errors import UserError
from modicum.diagnostics._matrix import noisy
from modicum.diagnostics._polish import evaluations, polished
from modicum.diagnostics._rows import Given
from modicum.maths.decomposition import Loss, Sums
from modicum.maths.intervals import Interval
from modicum.training.many import Member, Reading, train
from modicum.training.rows import codes
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

    `noise` is the variance of the labels of numbers around the targets; `known`: whether a teacher made the targets.
    """

    labels: np.ndarray
    targets: np.ndarray
    noise: float = 0.0
    known: bool = False


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


def disjoint(rows: Given, splits: int, seed: int, group: str | None) -> list[np.ndarray]:
    """The training rows in `splits` parts of one size and the same shares of classes; whole groups where asked.

    Shares of classes are fixed by that: what differs between parts, and makes variance, is which rows of a class.
    UserError: fewer rows, groups or rows of a class than splits, a class that some part would lack.
    """
    pool, rng = rows.train, seeds.numpy(seed, "splits")
    if len(pool) < 2 * splits:
        raise UserError(
            f"{len(pool)} training rows in --splits {splits}: a model needs at least 2 rows; ask for at most "
            f"--splits {len(pool) // 2}, or for overlapping subsamples (--samples)"
        )
    if rows.classes and group is None:
        _enough(rows, splits)
    names = codes(rows.data, group)
    order = rng.permutation(pool)
    if names is not None:
        part = _whole_groups(names[order], splits)
    else:
        if rows.classes:
            order = order[np.argsort(rows.labels.values[order], kind="stable")]
        part = np.arange(len(order)) % splits
    parts = [np.sort(order[part == k]) for k in range(splits)]
    for k, own in enumerate(parts):
        if rows.classes and len(lost := np.setdiff1d(rows.labels.values[pool], rows.labels.values[own])):
            count = int((rows.labels.values[pool] == lost[0]).sum())
            raise UserError(
                f"class {rows.labels.classes[lost[0]]} is missing from split {k + 1} of {splits} (it has {count} "
                "training row(s)): ask for fewer --splits, label more of it, or leave the class out"
            )
    return parts


def _enough(rows: Given, splits: int) -> None:
    """Refuse more splits than the rarest class has training rows, one of which each split gets."""
    counts = np.bincount(rows.labels.values[rows.train], minlength=rows.classes)
    rare = [c for c in np.flatnonzero(counts) if counts[c] < splits]
    if rare:
        least = int(counts[rare].min())
        named = ", ".join(f"{rows.labels.classes[c]} ({counts[c]} training row(s))" for c in rare[:5])
        more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
        fits = f"ask for at most --splits {least}" if least > 1 else "no --splits fit"
        raise UserError(
            f"--splits {splits}: class {named}{more} would be missing from a split: {fits}, label more of it, leave "
            "the class out, or ask for overlapping subsamples (--samples)"
        )


def subsamples(rows: Given, splits: int, samples: int, seed: int, group: str | None) -> list[np.ndarray]:
    """`splits` parts of so many training rows, classes in their shares: disjoint where there are enough of them.

    Else each is drawn without replacement for itself (never a bootstrap), so that parts overlap. UserError: as many as
    there are, which would all be the same; fewer than classes; with groups, which it would divide.
    """
    pool = rows.train
    if group is not None:
        raise UserError(f"--samples {samples} divides the groups of --group {group}: give one of the two")
    if not max(2, rows.classes) <= samples < len(pool):
        raise UserError(
            f"--samples {samples}: wanted at least {max(2, rows.classes)} (a row of every class) and fewer than the "
            f"{len(pool)} training rows, of which all subsamples would be the same"
        )
    apart = samples * splits <= len(pool)
    if apart and rows.classes:
        apart = bool(np.unique(rows.labels.values[pool], return_counts=True)[1].min() >= splits)
    among = disjoint(rows, splits, seed, None) if apart else [pool] * splits
    return [
        few(rows.labels.values, total=samples, kind=rows.labels.kind, seed=seeds.fold(seed, "subsample", k) % 2**31,
            among=own)
        for k, own in enumerate(among)
    ]  # fmt: skip


def overlap(parts: list[np.ndarray]) -> bool:
    """Whether a row is in two parts."""
    return len(np.unique(np.concatenate(parts))) < sum(map(len, parts))


def _whole_groups(names: np.ndarray, splits: int) -> np.ndarray:
    """The part of every row: each group, the largest first, goes to the part that has the fewest rows."""
    _, at = np.unique(names, return_inverse=True)
    sizes = np.bincount(at)
    if len(sizes) < splits:
        raise UserError(f"{len(sizes)} group(s) of training rows for --splits {splits}: ask for fewer splits")
    filled, place = np.zeros(splits), np.empty(len(sizes), int)
    for g in np.argsort(-sizes, kind="stable"):
        place[g] = int(filled.argmin())
        filled[place[g]] += sizes[g]
    return place[at]


def given_labels(rows: Given, share: float, seed: int) -> Truth:
    """The data's own labels; those of a `share` of all rows are redrawn for training."""
    values = rows.labels.values
    return Truth(noisy(values, rows.classes, share, seeds.fold(seed, "label noise")), values)


def taught(rows: Given, work: Work, design: Design, share: float) -> Truth:
    """Labels drawn from a model of the same encoder that is trained on all training rows: the best there can be.

    `share` flattens its probabilities until as many labels differ from the likeliest class as if that share were
    redrawn; numbers get normal noise of that share of their variance. So the truth stays within reach of the encoder.
    """
    own = rows.labels.values
    noisy(own, rows.classes, share, 0)  # refuses a share that is none
    used = np.union1d(rows.train, rows.test)
    teacher = design.member(rows.train, own[rows.train], "teacher", longer=2)
    z = next(iter(train([teacher], work))).outputs(used)[0].astype(np.float64)
    rng, labels = seeds.numpy(design.seed, "taught"), own.copy()
    if not rows.classes:
        targets = own.copy()
        targets[used] = z[:, 0]
        noise = share * float(z.var())
        labels[used] = z[:, 0] + np.sqrt(noise) * rng.normal(size=len(used))
        return Truth(labels, targets, noise, True)
    p = _flattened(z, share * (1 - 1 / rows.classes))
    labels[used] = (p.cumsum(1) < rng.random((len(used), 1))).sum(1).clip(max=rows.classes - 1)
    targets = np.zeros((len(own), rows.classes))
    targets[used] = p
    return Truth(labels, targets, 0.0, True)


def _flattened(z: np.ndarray, error: float) -> np.ndarray:
    """Softmax of logits (n, c) at the temperature of at least 1 where the likeliest class is wrong with this chance."""

    def above(log_heat: float) -> float:
        return float(1 - softmax(z / np.exp(log_heat), axis=1).max(1).mean()) - error

    heat = 0.0 if above(0.0) >= 0 else brentq(above, 0.0, 30.0)
    p: np.ndarray = softmax(z / np.exp(heat), axis=1)
    return p / p.sum(1, keepdims=True)


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
        sizes.append(Size(n, Sums(rows.classes, limit=design.splits), np.zeros((design.splits, count))))
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
