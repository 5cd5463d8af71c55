"""A run matrix: models of every width, depth and number of samples, several draws each, read as they train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import logsumexp

from modicum.core import seeds
from modicum.core.errors import UserError
from modicum.core.spec import Spec, arguments, parse, part, text_of
from modicum.diagnostics._rows import Given
from modicum.maths.decomposition import Sums
from modicum.training.apply import batches_of, evaluating
from modicum.training.many import Member, Reading, train
from modicum.training.splits import few
from modicum.training.work import Work


class Cell(NamedTuple):
    """What the models of one place of the matrix have in common; a width or depth of None is the spec's own."""

    width: int | None
    depth: int | None
    samples: int


@dataclass
class Kept:
    """What is kept of a cell: scores by epoch and draw, (draws, rows) each; sums of its final outputs; its weights."""

    loss: dict[int, np.ndarray] = field(default_factory=dict)
    error: dict[int, np.ndarray] = field(default_factory=dict)
    train_loss: dict[int, np.ndarray] = field(default_factory=dict)
    train_error: dict[int, np.ndarray] = field(default_factory=dict)
    sums: Sums | None = None
    parameters: int = 0
    norm: np.ndarray = field(default_factory=lambda: np.empty(0))
    effective: np.ndarray = field(default_factory=lambda: np.empty(0))


@dataclass(frozen=True)
class Matrix:
    """Every combination of widths, depths and samples, with the settings that all have in common.

    `encoder` is the spec of a trunk, without what is varied; `epochs` are those at which models are read, the last of
    them the end, in passes over the largest sample: all models take as many steps. `noise` is the share of labels
    redrawn uniformly over all classes, in every draw anew.
    """

    encoder: str
    widths: Sequence[int | None]
    depths: Sequence[int | None]
    samples: Sequence[int]
    epochs: Sequence[int]
    draws: int
    noise: float
    lr: float
    batch: int
    weight_decay: float
    seed: int

    def cells(self) -> list[Cell]:
        return [Cell(w, d, n) for n in self.samples for d in self.depths for w in self.widths]

    def spec(self, cell: Cell) -> str:
        """The trunk of a cell."""
        made = parsed(self.encoder)
        known = arguments(part("trunk", made["name"]))
        varied: dict[str, int] = {} if cell.width is None else {"width": cell.width}
        if cell.depth is not None:
            varied["depth" if "depth" in known else "blocks"] = cell.depth
        for key in varied:
            if key not in known:
                what = "width" if key == "width" else "depth"
                raise UserError(f"'{self.encoder}' has no {key}, so its {what} cannot be varied; mlp, convnet have one")
        return text_of({**made, "args": {**made["args"], **varied}})

    def run(self, rows: Given, work: Work) -> dict[Cell, Kept]:
        """Train everything and keep the scores."""
        cells, members, places = self.cells(), [], []
        given = {"lr": self.lr, "batch": self.batch, "weight_decay": self.weight_decay, "schedule": "constant"}
        for draw in range(self.draws):
            order, labels = self.drawn(rows, draw)
            for cell in cells:
                own = order[: cell.samples]
                steps = max(self.epochs) * self.per
                # One order of batches a draw: the models of all widths are then one product.
                initial, shuffle = seeds.fold(self.seed, "init", draw), seeds.fold(self.seed, "order", draw)
                members.append(Member(own, labels[own], self.spec(cell), initial, shuffle, steps=steps, **given))  # type: ignore[arg-type]
                places.append((cell, draw))
        kept = {cell: Kept() for cell in cells}
        for reading in train(members, work, at=[e * self.per for e in self.epochs]):
            self._read(reading, rows, places, kept)
        return kept

    def apart(self, rows: Given) -> bool:
        """Whether no training row is in two draws."""
        return max(self.samples) * self.draws <= len(rows.train)

    def drawn(self, rows: Given, draw: int) -> tuple[np.ndarray, np.ndarray]:
        """A draw's training rows in an order whose prefixes are its samples, and all rows' labels, noisy for it.

        Draws share no rows where there are enough of them.
        """
        most, pool = max(self.samples), rows.train
        if self.apart(rows):
            pool = np.sort(seeds.numpy(self.seed, "draws").permutation(pool)[draw * most : (draw + 1) * most])
        kind = rows.labels.kind
        if most < len(pool):
            pool = few(
                rows.labels.values, total=most, kind=kind, seed=seeds.fold(self.seed, "draw", draw) % 2**31, among=pool
            )
        order = seeds.numpy(self.seed, "rows", draw).permutation(pool)
        return order, noisy(rows.labels.values, rows.classes, self.noise, seeds.fold(self.seed, "noise", draw))

    @property
    def per(self) -> int:
        """Steps of an epoch of the largest sample."""
        return max(1, max(self.samples) // self.batch)

    def _read(self, reading: Reading, rows: Given, places: list[Any], kept: dict[Cell, Kept]) -> None:
        z = reading.outputs(rows.test)
        loss, error = reading.own()
        y = rows.labels.values[rows.test]
        epoch = reading.step // self.per
        for k, number in enumerate(reading.numbers):
            cell, draw = places[number]
            own = kept[cell]
            losses, errors = scores(z[k], y, rows.classes)
            for store, value in ((own.loss, losses), (own.error, errors)):
                store.setdefault(epoch, np.zeros((self.draws, len(y)), np.float32))[draw] = value
            for store, mean in ((own.train_loss, loss[k]), (own.train_error, error[k])):
                store.setdefault(epoch, np.zeros(self.draws))[draw] = mean
            if epoch == max(self.epochs):
                self._finish(own, reading, k, draw, z[k])

    def _finish(self, own: Kept, reading: Reading, k: int, draw: int, z: np.ndarray) -> None:
        own.sums = own.sums or Sums(reading.stack.work.classes)
        own.sums.add(z[None], [draw])
        model = reading.member(k)
        if not len(own.norm):
            own.norm, own.effective = np.zeros(self.draws), np.zeros(self.draws)
        own.parameters = sum(p.numel() for p in model.parameters())
        own.norm[draw] = float(torch.stack([p.detach().square().sum() for p in model.parameters()]).sum().sqrt())
        member = reading.stack.members[k]
        own.effective[draw] = effective(model, reading.stack.work, member.rows[:1000])


def parsed(encoder: str) -> Spec:
    """The spec of a trunk with its arguments by name; UserError where it is none, or a sum."""
    made = parse(encoder, "encoder")
    if "sum" in made:
        raise UserError(f"--encoder '{encoder}': wanted one trunk, such as mlp or convnet(norm='batch')")
    names = [k for k in arguments(part("trunk", made["name"])) if k not in ("dim", "grid")]
    args = {names[int(k)] if k.isdecimal() and int(k) < len(names) else k: v for k, v in made["args"].items()}
    return {**made, "args": args}


def scores(z: np.ndarray, y: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Loss and error (n,) of logits (n, c), or twice the squared error of numbers (n, 1)."""
    if not classes:
        square = np.square(z[:, 0].astype(np.float64) - y)
        return square, square
    z = z.astype(np.float64)
    return logsumexp(z, axis=1) - z[np.arange(len(z)), y], (z.argmax(1) != y).astype(np.float64)


def effective(model: Any, work: Work, rows: np.ndarray) -> float:
    """Effective dimensionality of the last layer's squared loss (MacKay 1992; Maddox et al. 2020).

    Outputs times the sum of l/(l + a) over the eigenvalues l of the features' mean outer product; a is a thousandth of
    their sum, so that it does not depend on the features' scale.
    """
    with evaluating(model):
        parts = [model.encoder(batch).pooled for batch in batches_of(work.source, rows, work.device)]
    z = torch.cat(parts).double()
    values = torch.linalg.svdvals(z).square() / len(z)
    return float(model.outputs * (values / (values + 1e-3 * values.sum() + 1e-300)).sum())


def noisy(labels: np.ndarray, classes: int, share: float, seed: int) -> np.ndarray:
    """Labels of which a `share` is redrawn: classes uniformly over all, numbers from the labels there are."""
    if not 0 <= share < 1:
        raise UserError(f"--label-noise {share}: wanted a share of the labels from 0 to below 1")
    out, rng = labels.copy(), np.random.default_rng(seed)
    hit = rng.random(len(labels)) < share
    known = labels[labels >= 0] if classes else labels[~np.isnan(labels)]
    new = rng.integers(0, classes, len(labels)) if classes else rng.choice(known, len(labels))
    hit &= labels >= 0 if classes else ~np.isnan(labels)
    out[hit] = new[hit]
    return out
