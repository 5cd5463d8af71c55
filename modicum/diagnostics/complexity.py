"""`complexity`: loss of classical models against their complexity: the U-shape and the second descent side by side."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from modicum.diagnostics._classical import POWERS, Family, Parts, choose, divide, least_squares
from modicum.diagnostics._finding import Finding, lines
from modicum.diagnostics._rows import given
from modicum.maths.intervals import crossed, linearised
from modicum.maths.peak import Peak, peak, rise, varies

OPTIONS = {
    "model": "tree (leaves), depth, knn, forest, boosting, polynomial, or a scikit-learn estimator such as "
    "sklearn.svm.SVC.",
    "over": "Values of its complexity such as 1,2,5, or PARAMETER=VALUES for an estimator of scikit-learn.",
    "seeds": "Disjoint parts of the training rows, each with its own models.",
}
TEXTBOOK, BEYOND = "classical", "second descent"


def complexity(
    data: Any = "digits",
    *,
    model: str = "tree",
    over: str | Sequence[float] | None = None,
    seeds: int = 8,
    label: str | None = None,
    split: str | None = None,
    group: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Finding:
    """Train and test loss against the complexity of a classical model, and of least squares beyond interpolation.

    `model`: tree (leaves), depth, knn, forest, boosting, polynomial, or an estimator of scikit-learn by name such as
    sklearn.svm.SVC with over="C=0.1,1,10". `over`: values, PARAMETER or PARAMETER=VALUES. The second panel is always
    minimum-norm least squares on more and more Legendre polynomials of the principal components.

    The training rows are divided into `seeds` disjoint parts, so that models are independent: variance is unbiased, of
    the n rows of a part, and bias² (with label noise in it) is the loss less the variance. Loss: squared error, of
    classes that of the probabilities (Brier), of numbers in units of their variance.
    """
    began = time.perf_counter()
    found = given(data, label=label, split=split, group=group, limit=limit, most_tests=2000, seed=seed)
    parts = divide(found, seeds, seed)
    family = choose(model, over, parts)
    rows = [_row(TEXTBOOK, family, v, parts) for v in family.values]
    beyond = least_squares(parts)
    rows += [_row(BEYOND, beyond, v, parts) for v in beyond.values]
    tables = {panel: np.stack([r.pop("curve") for r in rows if r["panel"] == panel], 1) for panel in (TEXTBOOK, BEYOND)}
    shapes = {panel: _shape([r for r in rows if r["panel"] == panel], t) for panel, t in tables.items()}
    charts = {
        "complexity": _panels(rows, family, beyond, ("test", "train")),
        "bias-variance": _panels(rows, family, beyond, ("test", "bias²", "variance")),
    }
    facts = {
        "data": found.data.name,
        "model": family.name,
        "seeds": seeds,
        "rows": parts.rows,
        "second_rows": int(beyond.threshold),
        "test_rows": len(parts.test_x),
        "peak": {panel: None if s is None else vars(s) for panel, s in shapes.items()},
        "seconds": round(time.perf_counter() - began, 2),
    }
    return Finding("complexity", rows, charts, _words(rows, tables, shapes, family, facts, parts), facts)


def _row(panel: str, family: Family, value: float, parts: Parts) -> dict[str, Any]:
    """Train and test loss of one complexity over the parts, with the test losses of each part as `curve`."""
    outputs, own = [], []
    for k, y in enumerate(parts.y):
        tested, fitted = family.fit(value, k)
        outputs.append(tested)
        own.append(float(np.square(fitted - y[: len(fitted)]).sum(1).mean()))
    out = np.stack(outputs)
    loss = np.square(out - parts.test_y).sum(2)
    curve = loss.mean(1)
    variance = float(out.var(0, ddof=1).sum(1).mean())
    row = {"panel": panel, "model": family.name, "complexity": family.at(value), "value": float(value)}
    if panel == BEYOND:  # losses near the threshold have no mean: the geometric one over the parts
        inside = crossed(linearised(lambda mean: np.log(np.maximum(mean, 1e-300)), loss))
        row |= dict(zip(("test", "low", "high"), np.exp([inside.mean, inside.low, inside.high]).tolist(), strict=True))
    else:
        inside = crossed(loss)
        row |= {"test": inside.mean, "low": inside.low, "high": inside.high}
    row |= {"mean": float(curve.mean()), "train": float(np.mean(own))}
    row |= {"variance": variance, "bias²": float(curve.mean()) - variance}
    if parts.classes:
        row["error"] = float((out.argmax(2) != parts.test_codes).mean())
    return row | {"curve": curve}


def _shape(rows: list[dict[str, Any]], curves: np.ndarray) -> Peak | None:
    """Whether the test loss has a peak, on its logarithm: losses near the threshold span orders of magnitude."""
    at = [r["complexity"] for r in rows]
    logs = np.log(np.maximum(curves, 1e-300))
    return peak(at, logs) if len(at) > 2 and varies(logs) else None


def _panels(rows: list[dict[str, Any]], family: Family, beyond: Family, curves: tuple[str, ...]) -> Any:
    """The two panels side by side: the chosen family, and least squares through and beyond interpolation."""
    charts = []
    for panel, own in ((TEXTBOOK, family), (BEYOND, beyond)):
        mine = [r for r in rows if r["panel"] == panel]
        steep = max(r["test"] for r in mine) > 30 * max(min(r["test"] for r in mine), 1e-300)
        tall = panel == BEYOND or (steep and all(r["test"] > 0 for r in mine))
        floor = min(r["low"] if r["low"] > 0 else r["test"] for r in mine) / 4 if tall else -math.inf
        points = []
        for curve in curves:
            # Gaps where a curve is below the floor: train losses of 1e-28 would rule the logarithmic axis.
            kept = [r for r in mine if r[curve] > floor]
            for r in kept:
                band = (r["low"], r["high"]) if curve == "test" else (r[curve], r[curve])
                points.append({"x": r["complexity"], "loss": r[curve], "low": band[0], "high": band[1], "curve": curve})
        spread = mine[-1]["complexity"] / max(mine[0]["complexity"], 1e-9) > 30 and mine[0]["complexity"] > 0
        log = ("x" if spread or panel == BEYOND else "") + ("y" if tall else "")
        rules = {"D = n": own.threshold} if panel == BEYOND else None
        heading = (
            f"{family.name}: the classical picture" if panel == TEXTBOOK else "least squares: beyond interpolation"
        )
        band_names, title = ("low", "high"), (own.axis, "squared loss")
        chart = lines(
            points, "x", "loss", by="curve", band=band_names, title=title, heading=heading, log=log, rules=rules
        )
        charts.append(chart)
    return alt.hconcat(*charts)


def _words(
    rows: list[dict[str, Any]],
    tables: dict[str, np.ndarray],
    shapes: dict[str, Peak | None],
    family: Family,
    facts: dict[str, Any],
    parts: Parts,
) -> str:
    left, right = ([r for r in rows if r["panel"] == panel] for panel in (TEXTBOOK, BEYOND))
    best, last = min(left, key=lambda r: r["test"]), left[-1]
    what = "squared loss of the probabilities" if parts.classes else "squared error in units of the labels' variance"
    text = (
        f"Each of {facts['seeds']} disjoint parts of {facts['rows']} training rows of {facts['data']} trained a model "
        f"of every complexity; all were tested on {facts['test_rows']} rows ({what}; 95 % intervals over "
        f"parts and test rows). {family.name}: the test loss is lowest, {best['test']:.3g} "
        f"[{best['low']:.3g}, {best['high']:.3g}], at {_at(family, best)}"
    )
    text += _textbook(left, best, last, tables[TEXTBOOK], shapes[TEXTBOOK], family)
    first = min((r for r in right if r["complexity"] < 0.8 * facts["second_rows"]), key=lambda r: r["test"])
    after = min((r for r in right if r["complexity"] > facts["second_rows"]), key=lambda r: r["test"])
    shape = shapes[BEYOND]
    text += (
        f" Least squares on D polynomial features (n = {facts['second_rows']}): lowest below interpolation at "
        f"D = {first['complexity']:g} with {first['test']:.3g} [{first['low']:.3g}, {first['high']:.3g}]; "
    )
    if shape is not None and shape.found:
        between = [r for r in right if first["complexity"] < r["complexity"] < after["complexity"]]
        top = max(between, key=lambda r: r["test"])
        text += f"then a peak of {top['test']:.3g} at D = {top['complexity']:g} (p = {shape.p:.2g}), and "
        text += "a second descent to "
    else:
        text += "no peak is shown there; beyond interpolation the lowest is "
    text += f"{after['test']:.3g} [{after['low']:.3g}, {after['high']:.3g}] at D = {after['complexity']:g}. "
    what = "The second descent" if shape is not None and shape.found else "The curve beyond interpolation"
    if after["high"] < first["low"]:
        text += f"{what} ends below the first minimum: here more features than rows are the better choice."
    elif after["low"] > first["high"]:
        text += f"{what} stays above the first minimum: here few features, or a penalty, are the better choice."
    else:
        text += "Which of the two minima is lower is not decided by this many rows."
    text += " Near D = n losses have heavy tails: the second panel shows geometric means over the parts."
    return text


def _textbook(
    left: list[dict[str, Any]],
    best: dict[str, Any],
    last: dict[str, Any],
    curves: np.ndarray,
    shape: Peak | None,
    family: Family,
) -> str:
    """What the first panel shows: a U, a peak, or only a fall."""
    if len(left) < 3 or shape is None:
        return f"; {len(left)} values are too few, or vary too little, to tell a shape."
    if shape.found:
        return (
            f", but there is a peak at {shape.at:g}: {math.exp(shape.height):.3g} times the loss before and after it "
            f"[{math.exp(shape.low):.3g}, {math.exp(shape.high):.3g}] (p = {shape.p:.2g})."
        )
    up = rise([r["complexity"] for r in left], curves)
    train = f"while the training loss goes from {left[0]['train']:.3g} to {last['train']:.3g}"
    if up.found:
        share = (last["variance"] - best["variance"]) / max(last["test"] - best["test"], 1e-12)
        blame = " (variance, which grows, is why)" if share > 0.5 else ""
        name = "nothing but a rise, which" if best is left[0] else "the U-shape, with a rise that"
        return (
            f", and rises from there to {last['test']:.3g} at {_at(family, last)} {train}: {name} is beyond noise "
            f"(p = {up.p:.2g}){blame}."
        )
    return (
        f"; no rise after it is beyond noise (p = {up.p:.2g}), {train}: more complexity has not measurably hurt here."
    )


def _at(family: Family, row: dict[str, Any]) -> str:
    name = {"knn": "k", POWERS: "degree", "depth": "depth"}.get(family.name, "")
    return f"{name} {row['value']:g}" if name else f"{row['value']:g} {family.axis.split(' of ')[0]}"
