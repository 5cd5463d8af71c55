"""Bias and variance from the outputs of several models: unbiased, from streaming sums, with honest intervals.

Two models are independent when they share neither training data (`block`) nor initialisation (`seed`). The mean product
of independent outputs estimates the squared mean output without bias, and everything follows from such means of pairs:
with N independent models it is the textbook correction (variance N/(N-1) times the plug-in, bias less by variance/N).

- squared loss (softmax probabilities against one-hot classes, Yang et al. 2020): bias is |E f - y|^2;
- cross-entropy (Yang et al. 2020; Gruber & Buettner 2023): bias is that of the averaged logits, variance the Bregman
  information E logsumexp(z) - logsumexp(E z), which is also what averaging the logits of an ensemble gains;
- 0-1 loss has no clean decomposition (Heskes 2025): bias is the error of the majority vote, variance what single models
  add to it, negative on rows where the vote is wrong and some models are right. It adds up, and is plug-in.

Targets may be distributions over classes: their own entropy (impurity, Bayes error) is then the `noise`.

Intervals: pseudo-values of the jackknife that deletes a block, as a table blocks x rows, go to `intervals.crossed`, so
that they cover the choice of training data and seed, with Student's t of the number of blocks, and that of test rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import logsumexp, softmax

from modicum.core.errors import UserError, unknown
from modicum.maths.estimates import FACTORS, Pieces, estimate, losses, pieces
from modicum.maths.intervals import Interval, crossed
from modicum.maths.moments import Stack

Loss = Literal["squared", "cross-entropy", "zero-one"]
LOSSES: tuple[Loss, ...] = ("squared", "cross-entropy", "zero-one")
NUMBERS = 500_000
"""Outputs of all models that are looked at together: the memory that a decomposition takes beside that of its sums."""


@dataclass(frozen=True)
class Decomposition:
    """loss = noise + bias + variance, exactly, each a mean over rows with its 95 % interval.

    `excess` is bias + variance, `balance` bias - variance. `parts` add up to the variance: "data", "initialisation"
    and "interaction" where blocks share seeds, "harm" and "help" for the 0-1 loss. `rows` holds loss, bias and variance
    (n,) of every row. `warning` says what dominates a mean that few rows or models make up; `medians` are then better,
    of the rows' loss, bias and variance and of the models' loss ("model").
    """

    kind: Loss
    models: int
    blocks: int
    noise: float
    loss: Interval
    bias: Interval
    variance: Interval
    excess: Interval
    balance: Interval
    parts: dict[str, Interval]
    rows: dict[str, np.ndarray]
    medians: dict[str, float]
    warning: str = ""


class Spread(NamedTuple):
    """Variance between runs of the test accuracy, as seen on these rows, and as it would be on endlessly many rows."""

    accuracy: float
    naive: float
    true: float


@dataclass
class _Cell:
    """Sums over the models of one block and seed; each array is (n, c), or (n, 1) where it has one value a row.

    Of a model alone its outputs are kept: the rest is found from them.
    """

    count: int = 0
    sums: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, z: np.ndarray, classes: int) -> None:
        self.count += 1
        if self.count == 1:
            self.sums = {"z": z}
            return
        before = _all(self.sums["z"], classes) if self.count == 2 else self.sums
        self.sums = {name: before[name] + values for name, values in _all(z, classes).items()}

    def rows(self, part: slice, classes: int) -> dict[str, np.ndarray]:
        own = {name: values[part] for name, values in self.sums.items()}
        return _all(own["z"], classes) if self.count == 1 else own


def _all(z: np.ndarray, classes: int) -> dict[str, np.ndarray]:
    """What is summed of outputs (n, c)."""
    own = {"z": z, "zz": (z**2).sum(-1, keepdims=True)}
    if not classes:
        return own
    p = softmax(z, axis=-1)
    squares, total = (p**2).sum(-1, keepdims=True), logsumexp(z, axis=-1, keepdims=True)
    return own | {"p": p, "pp": squares, "lse": total, "votes": np.eye(classes)[z.argmax(-1)]}


class Sums:
    """Sums over models of what a decomposition needs: the memory does not grow with the number of models.

    classes: how many, 0 where outputs are numbers. Blocks beyond `limit` are pooled round robin, which costs nothing
    but the parts of the variance; there is one set of sums for every (block, seed) that differs, the least that the
    analysis of variance needs where blocks are left out: of a model alone its outputs. The rest goes piece by piece.
    """

    def __init__(self, classes: int, limit: int = 10) -> None:
        self.classes, self.limit = classes, limit
        self._cells: dict[tuple[int, int], _Cell] = {}
        self._blocks: set[int] = set()
        self._origin: np.ndarray | float = 0.0

    def add(self, outputs: np.ndarray, block: Sequence[int] | np.ndarray, seed: Sequence[int] | None = None) -> None:
        """Take in the outputs (k, n, c) of k models: logits, or numbers with c = 1, on the same n rows every time.

        block (k,): which models share training data; seed (k,): which share an initialisation (default: those of the
        same block at most; give it where blocks share seeds). UserError: other shapes, an output that is not finite.
        """
        outputs = np.asarray(outputs)
        if outputs.ndim != 3 or outputs.shape[2] != max(self.classes, 1) or len(block) != len(outputs):
            raise UserError(
                f"outputs must be (models, rows, {max(self.classes, 1)}) with one block a model: "
                f"got shape {outputs.shape} and {len(block)} block(s)"
            )
        for k, own in enumerate(outputs.astype(np.float64)):
            if not np.isfinite(own).all():
                raise UserError(
                    f"a model of block {block[k]} gives outputs that are not finite: its training diverged "
                    "(lower --lr), or its input holds NaN"
                )
            self._take(own, int(block[k]), None if seed is None else int(seed[k]))

    def _take(self, z: np.ndarray, block: int, seed: int | None) -> None:
        self._blocks.add(block)
        place = block % self.limit
        cell = self._cells.setdefault((place, -1 - place if seed is None else seed), _Cell())
        if not self.classes:
            if not np.ndim(self._origin):
                self._origin = z  # far from 0 the squares of large numbers would cancel
            z = z - self._origin
        else:
            z = z - z.mean(-1, keepdims=True)
        cell.add(z, self.classes)

    @property
    def models(self) -> int:
        """How many models were taken in."""
        return sum(cell.count for cell in self._cells.values())

    def decompose(self, targets: np.ndarray, loss: Loss) -> Decomposition:
        """The decomposition of a loss: unbiased for the squared one, to first order in 1/N for cross-entropy.

        targets: (n,) codes of classes or numbers, or (n, c) distributions over the classes.
        UserError: a loss that does not fit, fewer than two independent models or two rows.
        """
        target, blocks = self._target(targets, loss), np.array(sorted({key[0] for key in self._cells}))
        taken: list[list[Pieces]] = [[] for _ in range(len(blocks) + 1)]
        each = np.zeros(len(self._cells))
        for part in self._parts():
            sums = self._stack(part)
            taken[0].append(pieces(sums, target[part], loss))
            if "noise" not in taken[0][-1]:
                raise UserError(
                    "bias and variance need two independent models, which share neither data nor seed: got "
                    f"{self.models} model(s) in {len(self._blocks)} block(s); ask for more --splits"
                )
            for b, without in zip(blocks, taken[1:], strict=True):
                without.append(pieces(sums.take(sums.blocks != b), target[part], loss))
            each += losses(sums, target[part], loss).sum(1) / sums.counts
        whole, *left = (estimate(parts, loss) for parts in taken)
        if len(self._blocks) > len(blocks):
            whole = {k: v for k, v in whole.items() if k not in FACTORS}
        found = {name: _interval(values, [one.get(name) for one in left]) for name, values in whole.items()}
        parts = {k: found[k] for k in (*FACTORS, "harm", "help") if k in found}
        per_model = each / len(target)
        rows = {k: whole[k] for k in ("loss", "bias", "variance")}
        medians = {k: float(np.median(v)) for k, v in rows.items()} | {"model": float(np.median(per_model))}
        return Decomposition(
            kind=loss,
            models=self.models,
            blocks=len(self._blocks),
            noise=float(whole["noise"].mean()),
            loss=found["loss"],
            bias=found["bias"],
            variance=found["variance"],
            excess=found["excess"],
            balance=found["balance"],
            parts=parts,
            rows=rows,
            medians=medians,
            warning=_dominated(per_model, rows["loss"], loss),
        )

    def spread(self, targets: np.ndarray) -> Spread:
        """How much the accuracy differs between runs, without what only the choice of test rows makes of it.

        Jordan 2023: most of the spread that is seen on few test rows is their noise. Needs one model a (block, seed).
        """
        y = self._target(targets, "zero-one")
        if any(cell.count > 1 for cell in self._cells.values()):
            raise UserError("the spread between runs needs the sums of each run alone: give every model its own block")
        stacks = ((part, self._stack(part)) for part in self._parts())
        hits = np.concatenate([(s.of["votes"] * y[part]).sum(-1, keepdims=True) for part, s in stacks], axis=1)
        sums = self._stack(slice(0, 1))
        n = hits.shape[1]
        over_runs = sums.moments(hits.mean(1, keepdims=True))
        each = sums.moments(hits)
        if over_runs.free is None or each.free is None:
            raise UserError("the spread between runs needs two runs that share neither data nor seed")
        naive = float((over_runs.square - over_runs.free).item())
        noise = float((each.square - each.free).mean())
        return Spread(float(hits.mean()), naive, (n * naive - noise) / (n - 1))

    def _parts(self) -> list[slice]:
        """The rows in pieces of which the sums of all cells take little memory."""
        if not self._cells:
            raise UserError("no model was taken in: nothing to decompose")
        rows = len(next(iter(self._cells.values())).sums["z"])
        step = max(1, NUMBERS // (len(self._cells) * max(self.classes, 1)))
        return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]

    def _stack(self, part: slice) -> Stack:
        blocks, seeds = (np.array([key[i] for key in self._cells]) for i in (0, 1))
        of = [cell.rows(part, self.classes) for cell in self._cells.values()]
        counts = np.array([c.count for c in self._cells.values()])
        return Stack(counts, blocks, seeds, {name: np.stack([own[name] for own in of]) for name in of[0]})

    def _target(self, targets: np.ndarray, loss: Loss) -> np.ndarray:
        """Targets as (n, c): distributions over classes, or numbers from the same origin as the outputs."""
        if loss not in LOSSES:
            raise unknown("loss", loss, LOSSES)
        y = np.asarray(targets)
        if not self.classes:
            if loss != "squared":
                raise UserError(f"--loss {loss} is for classes: numbers have the squared loss")
            return y.reshape(len(y), 1) - self._origin
        return np.eye(self.classes)[y] if y.ndim == 1 else y


def _interval(values: np.ndarray, left: Sequence[np.ndarray | None]) -> Interval:
    """The mean over rows of `values` (n,), with the interval of its jackknife pseudo-values over blocks.

    `left`: the same without each block; where one is missing, blocks say nothing and the interval is over rows alone.
    """
    kept = [one for one in left if one is not None]
    blocks = len(left)
    whole = len(kept) == blocks > 1
    found = crossed(blocks * values - (blocks - 1) * np.stack(kept) if whole else values[None])
    shift = float(values.mean()) - found.mean
    return Interval(found.mean + shift, found.low + shift, found.high + shift, found.over)


def _dominated(models: np.ndarray, rows: np.ndarray, loss: Loss) -> str:
    """What a mean is made of, where that is few models or few rows."""
    worst = float(models.max() / models.sum()) if models.sum() > 0 else 0.0
    if len(models) > 2 and worst > max(0.5, 3 / len(models)):
        return f"one of {len(models)} models makes up {100 * worst:.0f} % of the loss: read the medians"
    few = math.ceil(len(rows) / 100)
    share = float(np.sort(rows)[-few:].sum() / rows.sum()) if rows.sum() > 0 else 0.0
    if loss != "zero-one" and len(rows) >= 50 and share > 0.5:
        return f"{few} of {len(rows)} rows make up {100 * share:.0f} % of the loss: read the medians"
    return ""
