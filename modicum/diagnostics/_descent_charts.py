"""The charts of `double-descent`: error, loss, bias beside variance, and weights, against each axis."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from modicum.diagnostics._descent_curves import FITS, Curve, unit
from modicum.diagnostics._feature_curves import symmetric
from modicum.diagnostics._finding import lines
from modicum.diagnostics._matrix import Matrix
from modicum.diagnostics._rows import Given


def charts(curve: Curve, matrix: Matrix, rows: Given) -> dict[str, Any]:
    """The axis' charts by name."""
    axis, name = curve.axis, rows.data.name
    if axis != "samples":
        where = f"n = {matrix.samples[-1]:,}"
    else:
        where = matrix.encoder if matrix.widths[-1] is None else f"width {matrix.widths[-1]}"
    setting = f"against {axis} ({where}, {matrix.noise:.0%} label noise, {matrix.draws} draws)"
    errors = {"test": "test error", "training": "train error"}
    if axis != "epochs":
        errors["test, stopped early"] = "early stopping"
    out = {}
    if rows.classes:
        out["error"] = _drawn(curve, errors, "error", f"{name}: error {setting}")
        losses = {"test": "test loss", "training": "train loss"}
        out["loss"] = _drawn(curve, losses, "cross-entropy", f"{name}: cross-entropy {setting}")
    else:
        # Training errors that are all but 0 would take up most of a logarithmic axis: they are drawn at its edge.
        least = 0.1 * FITS
        seen = [r | {"train error": max(r["train error"], least * unit(rows))} for r in curve.rows]
        errors = {f"training (from {least:.1%} of variance)" if k == "training" else k: v for k, v in errors.items()}
        shown = replace(curve, rows=seen)
        out["error"] = _drawn(shown, errors, "squared error", f"{name}: squared error {setting}", "xy")
    heading = f"{name}: unbiased bias² and variance of the {'probabilities' if rows.classes else 'numbers'}"
    both = _drawn(curve, {"bias²": "squared bias", "variance": "squared variance"}, "squared loss", heading)
    out["bias-variance"] = both if rows.classes else symmetric(both, 0.01 * unit(rows))
    weights = {"effective parameters": "effective parameters", "weight norm": "weight norm"}
    heading = f"{name}: weights {setting}"
    out["weights"] = _drawn(curve, weights, "mean over draws", heading, "xy")
    return {f"{axis}-{chart}": drawn for chart, drawn in out.items()}


def _drawn(curve: Curve, columns: dict[str, str], title: str, heading: str, log: str = "x") -> Any:
    """Columns of the curve's rows by the words for them, with their intervals where they have one."""
    key = curve.key
    points = [
        {key: r[key], "value": r[c], "low": r.get(f"{c} low", r[c]), "high": r.get(f"{c} high", r[c]), "of": of}
        for of, c in columns.items()
        for r in curve.rows
        if r.get(c) is not None
    ]
    rules = {} if curve.threshold is None else {"fits the training labels": curve.threshold}
    names = (key, title)
    return lines(
        points, key, "value", by="of", band=("low", "high"), title=names, heading=heading, log=log, rules=rules
    )
