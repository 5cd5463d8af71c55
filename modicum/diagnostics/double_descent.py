"""`double-descent`: test error against width, samples, epochs or depth, all from one run matrix; is there a peak?"""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from modicum.core.errors import UserError, unknown
from modicum.diagnostics._descent_charts import charts
from modicum.diagnostics._descent_curves import Curve, along, measured
from modicum.diagnostics._descent_words import words
from modicum.diagnostics._feature_curves import find
from modicum.diagnostics._finding import Finding
from modicum.diagnostics._matrix import Matrix, noisy, parsed
from modicum.diagnostics._rows import Given, given

NAME = "double-descent"
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
        alone(over, {"width": width, "epochs": epochs, "lr": lr, "batch": batch})
        noisy(rows.labels.values[:1], rows.classes, label_noise, 0)
        wide = numbers(values, "width")[-1] if values else None
        return find(rows, "relu", min(limit or 500, len(rows.train)), wide, draws, label_noise, 6, seed, NAME)
    matrix = plan(rows, axes, encoder, values, width, draws, epochs, label_noise, lr, batch, limit, seed)
    kept = matrix.run(rows, rows.work())
    table = [row for cell in matrix.cells() for row in measured(cell, kept[cell], matrix)]
    curves = [along(axis, matrix, kept, table, rows) for axis in axes]
    drawn = {name: chart for curve in curves for name, chart in charts(curve, matrix, rows).items()}
    lost = rows.missing([matrix.drawn(rows, draw)[0] for draw in range(draws)])
    said = "\n\n".join(filter(None, [*(words(curve, matrix, rows) for curve in curves), lost]))
    facts = about(curves, matrix, rows) | {"seconds": round(time.perf_counter() - began, 1)}
    return Finding(NAME, table, drawn, said, facts)


def alone(over: str, options: dict[str, Any]) -> None:
    """Refuse what random features have no use for."""
    if over.strip() != "width":
        raise UserError(f"--over {over}: of random features it is the width that is varied; leave --over out")
    for name, value in options.items():
        if value != inspect.signature(double_descent).parameters[name].default:
            raise UserError(
                f"--{name} {value}: random features are fitted exactly, at every width up to the largest of --values; "
                f"leave --{name} out"
            )


def about(curves: list[Curve], matrix: Matrix, rows: Given) -> dict[str, Any]:
    """Settings, and what belongs to no row."""
    scale = "" if rows.classes else " (of logarithms)"
    return {
        "rows": matrix.samples,
        "draws": matrix.draws,
        "label noise": matrix.noise,
        "test rows": len(rows.test),
        **{f"peak over {curve.axis}": f"{curve.peak}{scale}" for curve in curves},
        "disjoint draws": matrix.apart(rows),
        "largest encoder": matrix.spec(matrix.cells()[-1]),
        "epochs": max(matrix.epochs),
        "steps": max(matrix.epochs) * matrix.per,
    }


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
    size = min(batch, max(samples))
    return Matrix(spec, widths, depths, samples, passes, draws, noise, lr, size, 0.0, seed, "epochs" in axes)


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
