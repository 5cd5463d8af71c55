"""A run matrix: models of every width, depth and number of samples, several draws each, read as they train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from modicum.core import seeds
from modicum.core.errors import UserError
from modicum.core.spec import Spec, arguments, parse, part, text_of
from modicum.diagnostics._point import Point
from modicum.diagnostics._rows import Given
from modicum.training.apply import batches_of, evaluating
from modicum.training.many import Member, Reading, train
from modicum.training.splits import few
from modicum.training.work import Work


class Cell(NamedTuple):
    """What the models of one place of the matrix have in common; a width or depth of None is the spec's own."""

    width: int | None
    depth: int | None
    samples: int


Kept = dict[int, Point]
"""What is kept of a cell: a point at every epoch that is read."""


@dataclass(frozen=True)
class Matrix:
    """Every combination of widths, depths and samples, with the settings that all have in common.

    `encoder` is the spec of a trunk, without what is varied; `epochs` are those at which models are read, the last of
    them the end, in passes over the largest sample: all models take as many steps. `noise` is the share of labels
    redrawn uniformly over all classes, in every draw anew. Bias, variance and weights are measured at the end, and with
    `throughout` at all epochs of the largest cell.
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
    throughout: bool = False

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
        kept: dict[Cell, Kept] = {cell: {} for cell in cells}
        for reading in train(members, work, at=[e * self.per for e in self.epochs]):
            self._read(reading, rows, places, kept)
        return kept

    def apart(self, rows: Given) -> bool:
        """Whether no training row is in two draws."""
        return rows.apart(max(self.samples), self.draws)

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
        epoch, largest = reading.step // self.per, self.cells()[-1]
        for k, number in enumerate(reading.numbers):
            cell, draw = places[number]
            point = kept[cell].setdefault(epoch, Point(self.draws))
            point.read(draw, z[k], y, rows.classes)
            point.train_loss[draw], point.train_error[draw] = loss[k], error[k]
            if epoch == max(self.epochs) or (self.throughout and cell == largest):
                point.decompose(draw, z[k], y, rows.classes)
                model, own = reading.member(k), reading.stack.members[k]
                point.parameters = sum(p.numel() for p in model.parameters())
                squares = [p.detach().square().sum() for p in model.parameters()]
                point.norm[draw] = float(torch.stack(squares).sum().sqrt())
                point.effective[draw] = effective(model, reading.stack.work, own.rows[:1000])


def parsed(encoder: str) -> Spec:
    """The spec of a trunk with its arguments by name; UserError where it is none, or a sum."""
    made = parse(encoder, "encoder")
    if "sum" in made:
        raise UserError(f"--encoder '{encoder}': wanted one trunk, such as mlp or convnet(norm='batch')")
    names = [k for k in arguments(part("trunk", made["name"])) if k not in ("dim", "grid")]
    args = {names[int(k)] if k.isdecimal() and int(k) < len(names) else k: v for k, v in made["args"].items()}
    return {**made, "args": args}


def effective(model: Any, work: Work, rows: np.ndarray) -> float:
    """Effective dimensionality of the last layer's squared loss (MacKay 1992; Maddox et al. 2020).

    Outputs times the sum of l/(l + a) over the eigenvalues l of the features' mean outer product; a is a thousandth of
    their sum, so that it does not depend on the features' scale.
    """
    with evaluating(model):
        parts = [model.encoder(batch).pooled for batch in batches_of(work.source, rows, work.device)]
    z = torch.cat(parts).double()
    product = z @ z.T if len(z) < z.shape[1] else z.T @ z  # the same eigenvalues, but for some that are 0
    values = torch.linalg.eigvalsh(product).clamp(min=0) / len(z)
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
