"""`double-descent`: test error against width, samples, epochs or depth, all from one run matrix; is there a peak?"""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from modicum.core.errors import UserError, unknown
from modicum.diagnostics._feature_curves import find
from modicum.diagnostics._finding import Finding, lines
from modicum.diagnostics._matrix import Cell, Kept, Matrix, noisy, parsed
from modicum.diagnostics._rows import Given, given
from modicum.maths.intervals import crossed
from modicum.maths.peak import Peak, peak

AXES = ("width", "samples", "epochs", "depth")
ENCODERS = {
    "mlp": "mlp(width=64, depth=1, norm='none')",
    "convnet": "convnet(width=64, norm='group', cells=0)",
    "transformer": "transformer(width=64, depth=2, heads=2)",
}
"""The trunks that short names mean; what is varied is set by the matrix."""
WIDTHS = {
    "mlp": (1, 2, 3, 4, 6, 8, 11, 16, 24, 40, 64, 128, 256, 512),
    "convnet": (1, 2, 3, 4, 6, 8, 12, 16, 24, 32),
    "transformer": (4, 8, 12, 16, 24, 32, 48, 64),
}
"""The widths of a trunk of that name; other trunks get those of mlp."""
OPTIONS = {
    "over": "The axis: width, samples, epochs or depth; several with commas between share one run matrix.",
    "encoder": "mlp, convnet, transformer, random-features, or a trunk's spec whose width and depth are varied.",
    "label_noise": "The share of training labels that are redrawn at random.",
    "values": "Places on the (first) axis, such as 1,2,4,8.",
    "width": "The width where it is not the axis; default that of the encoder's spec, 64 of the short names.",
    "draws": "Independent samples of training rows, noise and initialisation.",
    "epochs": "Passes over the largest sample.",
    "limit": "Training rows of a draw.",
}
FITS = 0.01
"""The training error, of numbers as a share of their variance, from which a model is said to interpolate."""


def double_descent(
    data: Any = "digits",
    *,
    over: str = "width",
    encoder: str = "mlp",
    label_noise: float = 0.2,
    values: str | None = None,
    width: int | None = None,
    draws: int = 10,
    epochs: int = 400,
    lr: float = 3e-3,
    batch: int = 128,
    label: str | None = None,
    split: str | None = None,
    group: str | None = None,
    size: int | None = None,
    limit: int | None = 500,
    seed: int = 0,
) -> Finding:
    """Show test loss and error against width, samples, epochs or depth, with bias and variance, and test for a peak.

    `over`: one axis, or several with commas between, from one run matrix; `encoder`: mlp, convnet, transformer,
    random-features or a trunk's spec. Every model is trained on `draws` samples of `limit` rows each, `label_noise` of
    whose labels are redrawn at random (Nakkiran et al. 2020), by AdamW without weight decay at a constant rate.
    Early stopping, chosen on half of the test rows and measured on the other, is drawn beside it.
    """
    began = time.perf_counter()
    axes = [name.strip() for name in over.split(",")]
    for name in axes:
        if name not in AXES:
            raise unknown("--over", name, AXES)
    rows = given(data, label=label, split=split, group=group, size=size, most_tests=5000, seed=seed)
    if encoder == "random-features":
        if axes != ["width"]:
            raise UserError(f"--over {over}: of random features it is the width that is varied; leave --over out")
        for name, value in {"width": width, "epochs": epochs, "lr": lr, "batch": batch}.items():
            if value != inspect.signature(double_descent).parameters[name].default:
                raise UserError(
                    f"--{name} {value}: random features are fitted exactly, at every width up to the largest of "
                    f"--values; leave --{name} out"
                )
        noisy(rows.labels.values[:1], rows.classes, label_noise, 0)
        largest = numbers(values, "width")[-1] if values else None
        return find(
            rows, "relu", min(limit or 500, len(rows.train)), largest, draws, label_noise, 6, seed, "double-descent"
        )
    matrix = plan(rows, axes, encoder, values, width, draws, epochs, label_noise, lr, batch, limit, seed)
    kept = matrix.run(rows, rows.work())
    table = [row for cell in matrix.cells() for row in measured(cell, kept[cell], matrix, rows)]
    drawn: dict[str, Any] = {}
    said = []
    facts: dict[str, Any] = {
        "rows": matrix.samples,
        "draws": draws,
        "label noise": label_noise,
        "test rows": len(rows.test),
    }
    unit = 1.0 if rows.classes else float(rows.labels.values[rows.train].var())
    for axis in axes:
        found = along(axis, matrix, kept, table, rows.classes, unit)
        drawn |= charts(axis, found, matrix, rows)
        said.append(words(axis, found, matrix, rows))
        facts[f"peak over {axis}"] = str(found["peak"])
    facts |= {
        "disjoint draws": matrix.apart(rows),
        "encoder": matrix.encoder,
        "epochs": max(matrix.epochs),
        "steps": max(matrix.epochs) * matrix.per,
    }
    facts["seconds"] = round(time.perf_counter() - began, 1)
    return Finding("double-descent", table, drawn, "\n\n".join(said), facts)


def plan(
    rows: Given, axes: list[str], encoder: str, values: str | None, width: int | None, draws: int, epochs: int,
    noise: float, lr: float, batch: int, limit: int | None, seed: int,
) -> Matrix:  # fmt: skip
    """The run matrix that the axes need."""
    if draws < 2:
        raise UserError(f"--draws {draws}: bias, variance and intervals need at least 2")
    if min(epochs, batch) < 1 or (limit is not None and limit < 2):
        raise UserError(f"--epochs {epochs}, --batch {batch}, --limit {limit}: wanted at least 1, 1 and 2")
    most = min(limit or len(rows.train), len(rows.train))
    asked = {axes[0]: numbers(values, axes[0])} if values else {}
    if width is not None and (width < 1 or "width" in axes):
        why = "the widths of the axis are --values" if "width" in axes else "wanted at least 1"
        raise UserError(f"--width {width}: {why}")
    spec = ENCODERS.get(encoder, encoder)
    name, own = parsed(spec)["name"], parsed(spec)["args"].get("width")
    several = asked.get("width") or list(WIDTHS.get(name, WIDTHS["mlp"]))
    widths: Sequence[int | None] = several if "width" in axes else [width or own]
    depths: Sequence[int | None] = asked.get("depth") or ([1, 2, 3, 4, 6] if "depth" in axes else [None])
    least = max(2 * max(rows.classes, 1), 10)
    samples = asked.get("samples") or (geometric(least, most, 10) if "samples" in axes else [most])
    if max(samples) > len(rows.train):
        raise UserError(
            f"{max(samples):,} samples were asked for; {rows.data.name} has {len(rows.train):,} to train on"
        )
    passes = asked.get("epochs") or geometric(1, epochs, 14)
    return Matrix(spec, widths, depths, samples, passes, draws, noise, lr, min(batch, max(samples)), 0.0, seed)


def numbers(text: str, axis: str) -> list[int]:
    """Whole numbers of at least 1, ascending, from words with commas between."""
    try:
        found = [int(part) for part in str(text).strip("()[] ").split(",") if part.strip()]
    except ValueError:
        found = []
    if not found or min(found) < 1 or sorted(set(found)) != found:
        raise UserError(f"--values {text}: wanted whole numbers of at least 1 that rise, such as 1,2,4,8 (of {axis})")
    return found


def geometric(low: int, high: int, count: int) -> list[int]:
    """About `count` whole numbers from low to high, evenly spaced in their logarithm."""
    if high <= low:
        return [high]
    return sorted({int(v) for v in np.geomspace(low, high, count).round()})


def measured(cell: Cell, own: Kept, matrix: Matrix, rows: Given) -> list[dict[str, Any]]:
    """A row for every epoch at which the cell was read; the last has bias, variance and the weights' measures."""
    y, out = rows.labels.values[rows.test], []
    for epoch in matrix.epochs:
        row: dict[str, Any] = {**cell._asdict(), "epoch": epoch, "step": epoch * matrix.per}
        for name, scores in (("test loss", own.loss[epoch]), ("test error", own.error[epoch])):
            interval = crossed(scores)
            row |= {name: interval.mean, f"{name} low": interval.low, f"{name} high": interval.high}
        row |= {"train loss": own.train_loss[epoch].mean(), "train error": own.train_error[epoch].mean()}
        if epoch == matrix.epochs[-1] and own.sums is not None:
            row |= {"parameters": own.parameters, "weight norm": own.norm.mean()}
            row["effective parameters"] = own.effective.mean()
            for kind in ("squared", "cross-entropy") if rows.classes else ("squared",):
                part = own.sums.decompose(y, kind)
                for name, value in (("bias", part.bias), ("variance", part.variance)):
                    row |= {f"{kind} {name}": value.mean, f"{kind} {name} low": value.low}
                    row[f"{kind} {name} high"] = value.high
            row["early stopping"] = stopped(own, matrix)[1]
        out.append({k: float(v) if isinstance(v, np.floating) else v for k, v in row.items()})
    return out


def stopped(own: Kept, matrix: Matrix) -> tuple[float, float]:
    """The mean epoch chosen by the loss on one half of the test rows, and the error there on the other half."""
    losses = np.stack([own.loss[e] for e in matrix.epochs])  # (epochs, draws, rows)
    errors = np.stack([own.error[e] for e in matrix.epochs])
    half = np.arange(losses.shape[2]) % 2 == 0
    epochs, found = [], []
    for choose, read in ((half, ~half), (~half, half)):
        best = losses[:, :, choose].mean(2).argmin(0)
        epochs += [matrix.epochs[b] for b in best]
        found += [errors[b, d, read].mean() for d, b in enumerate(best)]
    return float(np.mean(epochs)), float(np.mean(found))


def along(
    axis: str, matrix: Matrix, kept: dict[Cell, Kept], table: list[dict[str, Any]], classes: int, unit: float
) -> dict[str, Any]:
    """The curve along an axis, the others at their largest: its rows, the threshold, the peak.

    `unit`: the variance of numbers to predict, else 1. The peak is one of test errors, or of numbers of the logarithms
    of squared errors, which may span orders of magnitude.
    """
    last = {"width": matrix.widths[-1], "depth": matrix.depths[-1], "samples": matrix.samples[-1]}
    last |= {"epoch": matrix.epochs[-1]}
    key = "epoch" if axis == "epochs" else axis
    fixed = {k: v for k, v in last.items() if k != key}
    rows = [row for row in table if all(row[k] == v for k, v in fixed.items())]
    rows.sort(key=lambda row: row[key])
    cells = [kept[Cell(row["width"], row["depth"], row["samples"])] for row in rows]
    scores = np.stack([c.error[row["epoch"]].mean(1) for c, row in zip(cells, rows, strict=True)], 1)
    fitted = [row[key] for row in rows if row["train error"] <= FITS * unit]
    fits = None if not fitted else fitted[-1] if axis == "samples" else fitted[0]  # the largest sample still fitted
    tested = test_peak(np.array([row[key] for row in rows], float), scores if classes else np.log(scores))
    return {"key": key, "rows": rows, "threshold": fits, "peak": tested}


def test_peak(x: np.ndarray, scores: np.ndarray) -> Peak | str:
    """Whether scores (draws, points) have a peak along x, or why that cannot be tested."""
    if len(x) < 3 or len(scores) < 3:
        return "it needs at least 3 points and 3 draws"
    try:
        return peak(x, scores)
    except UserError as error:  # few test rows, on which all draws do the same
        return str(error)


def charts(axis: str, found: dict[str, Any], matrix: Matrix, rows: Given) -> dict[str, Any]:
    """The axis' charts: error, loss, and bias beside variance where models end."""
    key, table = found["key"], found["rows"]
    rules = {"fits the training labels": found["threshold"]} if found["threshold"] is not None else {}
    n = f"n = {matrix.samples[-1]:,}" if axis != "samples" else f"width {matrix.widths[-1] or 'of the spec'}"
    what = "error" if rows.classes else "squared error"
    kinds = {"error": [("test", "test error"), ("training", "train error")]}
    kinds["loss"] = [("test", "test loss"), ("training", "train loss")]
    title = {"epoch": "epoch"}.get(key, key)
    out = {}
    for name, pairs in kinds.items():
        if name == "loss" and not rows.classes:
            continue
        points = []
        for words_, column in pairs:
            low, high = (f"{column} low", f"{column} high") if column.startswith("test") else (column, column)
            points += [{key: r[key], "value": r[column], "low": r[low], "high": r[high], "of": words_} for r in table]
        if name == "error" and axis != "epochs" and rows.classes:
            stop = [r for r in table if "early stopping" in r]
            points += [
                {key: r[key], "value": v, "low": v, "high": v, "of": "test, stopped early"}
                for r in stop
                for v in [r["early stopping"]]
            ]
        label = what if name == "error" else "cross-entropy"
        heading = (
            f"{rows.data.name}: {label} against {axis} ({n}, {matrix.noise:.0%} label noise, {matrix.draws} draws)"
        )
        out[f"{axis}-{name}"] = lines(
            points,
            key,
            "value",
            by="of",
            band=("low", "high"),
            title=(title, label),
            heading=heading,
            log="x",
            rules=rules,
        )
    if axis != "epochs":
        points = [
            {key: r[key], "value": r[f"squared {part}"], "low": r[f"squared {part} low"],
             "high": r[f"squared {part} high"], "of": {"bias": "bias²"}.get(part, part)}
            for part in ("bias", "variance")
            for r in table
        ]  # fmt: skip
        heading = (
            f"{rows.data.name}: unbiased bias² and variance of the {'probabilities' if rows.classes else 'numbers'}"
        )
        given: dict[str, Any] = {
            "band": ("low", "high"),
            "title": (title, "squared loss"),
            "heading": heading,
            "rules": rules,
        }
        out[f"{axis}-bias-variance"] = lines(points, key, "value", by="of", log="x", **given)
    return out


def words(axis: str, found: dict[str, Any], matrix: Matrix, rows: Given) -> str:
    """What the curve shows, for a newcomer."""
    table, key, tested = found["rows"], found["key"], found["peak"]
    best = min(table, key=lambda r: r["test error"])
    worst = max(table, key=lambda r: r["test error"])
    what = "test error" if rows.classes else "squared test error"
    interval = f"[{best['test error low']:.3g}, {best['test error high']:.3g}]"
    said = [
        f"Over {axis}, with {matrix.draws} draws of {matrix.samples[-1]:,} training rows and {matrix.noise:.0%} of the "
        f"labels redrawn at random: {what} is lowest, {best['test error']:.3g} {interval}, at {key} {best[key]:,}."
    ]
    if not matrix.apart(rows):
        said[-1] += " The draws share rows, so that what varies between them is understated."
    if found["threshold"] is not None:
        said.append(
            f"The training labels, noise included, are fitted to {FITS:.0%} {'error' if rows.classes else 'of their '}"
            f"{'' if rows.classes else 'variance'} from {key} {found['threshold']:,} on."
        )
        if axis == "samples":
            said[-1] = f"Up to {found['threshold']:,} samples the training labels, noise included, are fitted."
    else:
        said.append("No model fits the training labels, so there is no interpolation threshold in this range.")
    if isinstance(tested, str):
        said.append(f"Whether there is a peak was not tested: {tested}.")
    elif tested.found:
        top = max((r for r in table if tested.before < r[key] < tested.after), key=lambda r: r["test error"])
        size, low, high = (v if rows.classes else np.exp(v) for v in (tested.height, tested.low, tested.high))
        said.append(
            f"There is a peak, highest at {key} {top[key]:,} (p = {tested.p:.2g}, {size:.3g} [{low:.3g}, {high:.3g}] "
            f"{'above' if rows.classes else 'times'} both sides): error falls, rises, and falls again, which is "
            "double descent. Near it models are worse than smaller and than larger ones: go past it, stop early, or "
            "regularise."
        )
    else:
        most = max(tested.high, 0)
        size = f"higher than {most:.3g}" if rows.classes else f"of more than {np.exp(most):.3g} times both sides"
        said.append(
            f"No peak is shown (p = {tested.p:.2f}; one {size} is ruled out): the curve "
            f"may just fall, or fall and rise once. Its highest point, at {key} {worst[key]:,}, is "
            f"{worst['test error']:.3g}."
        )
    if axis != "epochs" and rows.classes:
        early = min((r for r in table if "early stopping" in r), key=lambda r: r["early stopping"])
        said.append(f"With early stopping the lowest error is {early['early stopping']:.3g}, at {key} {early[key]:,}.")
    return " ".join(said)
