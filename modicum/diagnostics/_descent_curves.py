"""The curves of `double-descent`: rows of a run matrix, the curve along each axis, its threshold and its peak."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from modicum.core.errors import UserError
from modicum.diagnostics._matrix import Cell, Kept, Matrix
from modicum.diagnostics._rows import Given
from modicum.maths.peak import Peak, peak

FITS = 0.01
"""The training error, of numbers as a share of their variance, from which a model is said to interpolate."""


@dataclass(frozen=True)
class Curve:
    """Rows along an `axis`, whose column is `key`; where training labels are fitted (None: nowhere); is there a peak?

    `peak` is of test errors, or of numbers of the logarithms of squared errors, which may span orders of magnitude;
    words where it was not tested.
    """

    axis: str
    key: str
    rows: list[dict[str, Any]]
    threshold: int | None
    peak: Peak | str


def measured(cell: Cell, own: Kept, matrix: Matrix) -> list[dict[str, Any]]:
    """A row for every epoch at which the cell was read; where they were measured with bias, variance and weights."""
    out = []
    for epoch in matrix.epochs:
        point = own[epoch]
        row: dict[str, Any] = {**cell._asdict(), "epoch": epoch, "step": epoch * matrix.per}
        for name, of in (("test loss", point.loss.interval), ("test error", point.error.interval)):
            row |= {name: of.mean, f"{name} low": of.low, f"{name} high": of.high}
        row |= {"train loss": point.train_loss.mean(), "train error": point.train_error.mean()}
        if point.parts:
            row |= {"parameters": point.parameters, "weight norm": point.norm.mean()}
            row["effective parameters"] = point.effective.mean()
        for kind, part in point.parts.items():
            for name, of in (("bias", part.bias), ("variance", part.variance)):
                row |= {f"{kind} {name}": of.mean, f"{kind} {name} low": of.low, f"{kind} {name} high": of.high}
                row[f"{kind} {name} median"] = part.medians[name]
            row |= {f"{kind} loss median": part.medians["model"], f"{kind} warning": part.warning or None}
        if epoch == matrix.epochs[-1]:
            row["early stopping"] = stopped(own)[1]
        out.append({k: float(v) if isinstance(v, np.floating) else v for k, v in row.items()})
    return out


def stopped(own: Kept) -> tuple[float, float]:
    """The mean epoch chosen by the loss on one half of the test rows, and the error there on the other half."""
    epochs = sorted(own)
    losses, errors = (np.stack([getattr(own[e], k).halves for e in epochs]) for k in ("loss", "error"))
    best = losses.argmin(0)  # (draws, halves), of (epochs, draws, halves)
    found = np.take_along_axis(errors, best[None, :, ::-1], 0)
    return float(np.array(epochs)[best].mean()), float(found.mean())


def along(axis: str, matrix: Matrix, kept: dict[Cell, Kept], table: list[dict[str, Any]], rows: Given) -> Curve:
    """The curve along an axis, the others at their largest."""
    last = {"width": matrix.widths[-1], "depth": matrix.depths[-1], "samples": matrix.samples[-1]}
    last |= {"epoch": matrix.epochs[-1]}
    key = "epoch" if axis == "epochs" else axis
    fixed = {k: v for k, v in last.items() if k != key}
    own = sorted((row for row in table if all(row[k] == v for k, v in fixed.items())), key=lambda row: row[key])
    points = [kept[Cell(row["width"], row["depth"], row["samples"])][row["epoch"]] for row in own]
    scores = np.stack([p.error.means for p in points], 1)
    fitted = [row[key] for row in own if row["train error"] <= FITS * unit(rows)]
    fits = None if not fitted else fitted[-1] if axis == "samples" else fitted[0]  # the largest sample still fitted
    x = np.array([row[key] for row in own], float)
    return Curve(axis, key, own, fits, test_peak(x, scores if rows.classes else np.log(scores)))


def unit(rows: Given) -> float:
    """What squared errors are measured by: the variance of the numbers to predict; 1 for classes."""
    return 1.0 if rows.classes else float(rows.labels.values[rows.train].var())


def test_peak(x: np.ndarray, scores: np.ndarray) -> Peak | str:
    """Whether scores (draws, points) have a peak along x, or why that cannot be tested."""
    if len(x) < 3 or len(scores) < 3:
        return "it needs at least 3 points and 3 draws"
    try:
        return peak(x, scores)
    except UserError as error:  # few test rows, on which all draws do the same
        return str(error)
