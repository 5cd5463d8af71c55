"""`learning-curve`: error against the number of labels, what more would bring, and what pre-training is worth."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np

from modicum.core.errors import UserError
from modicum.diagnostics._finding import COLOURS, Finding, lines
from modicum.diagnostics._labelled import Curve, baseline, chosen_sizes, fitted, nested, networks, shifts
from modicum.diagnostics._rows import given
from modicum.maths.intervals import crossed
from modicum.maths.power_law import rounded
from modicum.training.run import Run

OPTIONS = {
    "run": "A run of modicum pretrain: how far its frozen encoder moves the curve.",
    "encoder": "The trunk that is trained from scratch on every subset.",
    "sizes": "Numbers of labelled rows, such as 20,50,100; default seven up to half of them.",
    "seeds": "Repeats, each with its own nested subsets and initialisation.",
    "target": "The error whose number of labels is asked for; default half of the lowest measured.",
    "steps": "Updates of every training.",
    "limit": "Use this many training rows only, drawn at random.",
}
PRETRAINED = "pre-trained, frozen"
HEAD = "mlp(depth=0)"
HEAD_RATE = 1e-2
"""A linear model on standardised features is convex: a high rate only shortens it."""
FARTHEST = 8
"""How many times the largest size the fitted law is drawn."""


def learning_curve(
    data: Any = "digits",
    *,
    run: str | Path | Run | None = None,
    encoder: str = "mlp(width=64, depth=1, norm='none')",
    sizes: str | Sequence[int] | None = None,
    seeds: int = 5,
    target: float | None = None,
    label: str | None = None,
    split: str | None = None,
    group: str | None = None,
    limit: int | None = None,
    steps: int = 500,
    seed: int = 0,
) -> Finding:
    """Error against the number of labelled rows, a fitted power law, and how many labels an error needs.

    Each of `seeds` repeats has its own nested, stratified subsets of the training rows, of `sizes` rows ("20,50,100";
    default: seven up to half of them), the same for every method: the encoder from scratch, a linear model on plain
    features, and with `run` a head on its frozen features; the last is read as a shift along the axis: how many labels
    without pre-training reach the same error. Error: the share of mistakes, or of numbers the squared error in units of
    their variance (1 - R²). Curves that no power law describes are said to be so, not fitted.
    """
    began = time.perf_counter()
    check(seeds, steps, target)
    found = given(data, run=run, label=label, split=split, group=group, limit=limit, most_tests=2000, seed=seed)
    at = chosen_sizes(sizes, found)
    subsets = nested(found, at, seeds, seed)
    scratch = replace(found, model=None)
    tables = {f"{encoder.split('(')[0]} from scratch": networks(scratch, scratch.work(), subsets, encoder, steps, seed)}
    tables["logistic regression" if found.classes else "ridge regression"] = baseline(scratch, subsets)
    if found.model is not None:
        tables[PRETRAINED] = networks(found, found.work(), subsets, HEAD, steps, seed, HEAD_RATE)
    curves = [fitted(name, at, scores, seed) for name, scores in tables.items()]
    rows = [row for curve in curves for row in points(curve, at)]
    rival = min(curves[:2], key=lambda c: float(np.log(np.maximum(c.error, 1e-12)).mean()))
    worth = shifts(rival, curves[-1], at, seed) if found.model is not None else []
    charts = {"learning-curve": chart(rows, curves, found.classes > 0)}
    if any(math.isfinite(w["worth"]) and w["worth"] > 0 for w in worth):
        charts["worth"] = chart_of_worth(worth, rival.name)
    best = min(curves, key=lambda c: c.error[-1])
    target = float(best.error[-1]) / 2 if target is None else target
    facts = {
        "data": found.data.name,
        "run": None if run is None else str(getattr(run, "path", run)),
        "sizes": list(at),
        "seeds": seeds,
        "test_rows": len(found.test),
        "pool": len(found.train),
        "laws": {c.name: _law(c, target) for c in curves},
        "worth": [{k: None if math.isinf(v) else v for k, v in w.items()} for w in worth],  # JSON has no infinity
        "target": target,
        "seconds": round(time.perf_counter() - began, 2),
    }
    return Finding("learning-curve", rows, charts, words(curves, worth, rival.name, facts, found.classes > 0), facts)


def check(seeds: int, steps: int, target: float | None) -> None:
    """Refuse numbers that make no learning curve."""
    for name, value, least in (("seeds", seeds, 3), ("steps", steps, 1)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise UserError(f"--{name} {value!r}: wanted a whole number of at least {least}")
    if target is not None and not (isinstance(target, int | float) and math.isfinite(target) and target > 0):
        raise UserError(f"--target {target!r}: wanted an error above 0, such as 0.1")


def points(curve: Curve, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """A row a measured size with its interval, and rows of the fitted law up to some times the largest size."""
    rows = []
    for k, n in enumerate(sizes):
        inside = crossed(curve.scores[:, k])
        rows.append({"curve": curve.name, "kind": "measured", "n": n} | _limits(inside.mean, inside.low, inside.high))
    if curve.law is not None:
        grid = np.geomspace(sizes[0], FARTHEST * sizes[-1], 60)
        rows += [
            {"curve": curve.name, "kind": "fitted", "n": float(n)} | _limits(*values)
            for n, values in zip(grid, curve.law.at(grid), strict=True)
        ]
    return rows


def _limits(error: float, low: float, high: float) -> dict[str, float]:
    return {"error": float(error), "low": float(low), "high": float(high)}


def chart(rows: list[dict[str, Any]], curves: list[Curve], classes: bool) -> Any:
    """Measured errors with their intervals, and the fitted laws as dashed lines with bands."""
    order = [c.name for c in curves]
    title = ("labelled rows", "test error" if classes else "squared error / variance")
    measured = [r for r in rows if r["kind"] == "measured"]
    log = "xy" if all(r["error"] > 0 for r in measured) else "x"
    drawn = lines(
        measured, "n", "error", by="curve", band=("low", "high"), title=title, heading="Learning curves", log=log
    )
    law = [r for r in rows if r["kind"] == "fitted" and r["error"] > 0]
    if not law:
        return drawn
    floor = min(r["error"] for r in rows if r["error"] > 0) / 2
    scale = alt.Scale(domain=order, range=[COLOURS[k % len(COLOURS)] for k in range(len(order))])
    colour = alt.Color("curve:N", scale=scale, sort=order, title=None)
    layers = [drawn]
    for key, dash in (("error", [5, 4]), ("low", [1, 3]), ("high", [1, 3])):
        kept = alt.Chart(alt.InlineData(values=[r for r in law if r[key] > floor]))
        layers.append(kept.mark_line(strokeDash=dash, strokeWidth=1.2).encode(x="n:Q", y=f"{key}:Q", color=colour))
    return alt.layer(*layers)


def chart_of_worth(worth: list[dict[str, Any]], rival: str) -> Any:
    """How many labels without pre-training each number of labels with it is worth."""
    kept = [r for r in worth if 0 < r["worth"] < math.inf]
    most = max(r["n"] for r in worth)
    shown = [
        {
            "n": r["n"],
            "labels": r["worth"],
            "low": max(r["low"], worth[0]["n"]),
            "high": min(r["high"], most),
            "curve": c,
        }
        for r in kept
        for c in ("with pre-training",)
    ]
    equal = [{"n": r["n"], "labels": r["n"], "low": None, "high": None, "curve": "equal"} for r in worth]
    title = ("labels with pre-training", f"labels that {rival} needs")
    heading = "What labels are worth with pre-training"
    return lines(shown + equal, "n", "labels", by="curve", band=("low", "high"), title=title, heading=heading, log="xy")


def _law(curve: Curve, target: float) -> dict[str, Any]:
    """The law of a curve in numbers for `facts`; without one, why."""
    if curve.law is None:
        return {"fitted": False, "why": curve.why}
    law, needed = curve.law, curve.law.needed(target)
    parts = {k: [i.mean, i.low, i.high] for k, i in (("scale", law.scale), ("rate", law.rate), ("offset", law.offset))}
    # JSON has no infinity: None is "more than any".
    needs = [None if math.isinf(v) else v for v in (needed.n, needed.low, needed.high)]
    return {"fitted": True, **parts, "needed": needs, "needed_words": needed.words}


def words(curves: list[Curve], worth: list[dict[str, Any]], rival: str, facts: dict[str, Any], classes: bool) -> str:
    """The paragraph: what was measured, what the best curve says of more labels, and what pre-training is worth."""
    sizes, error = facts["sizes"], "error" if classes else "squared error in units of the variance (1 - R²)"
    text = (
        f"From {sizes[0]} to {sizes[-1]} labelled rows of {facts['data']}, in {facts['seeds']} nested stratified "
        f"subsets each, tested on {facts['test_rows']} rows, the {error} goes "
    )
    said = []
    for c in curves:
        last = crossed(c.scores[:, -1])
        said.append(f"from {c.error[0]:.3g} to {last.mean:.3g} [{last.low:.3g}, {last.high:.3g}] with {c.name}")
    text += "; ".join(said) + ". "
    best = min(curves, key=lambda c: c.error[-1])
    if best.law is not None:
        rate = best.law.rate
        text += (
            f"Of the lowest at {sizes[-1]}, {best.name}, the excess over a floor of {best.law.offset} falls as "
            f"n^-{rate.mean:.2g} (95 % [{rate.low:.2g}, {rate.high:.2g}]): doubling the labels would bring about "
            f"{best.law.at([2 * sizes[-1]])[0, 0]:.3g}; {best.law.needed(facts['target']).words}. "
        )
    for c in curves:
        if c.law is None:
            text += f"No power law is fitted to {c.name}: {c.why}. "
    if worth:
        text += _worth_in_words(worth, sizes, rival)
    share = sizes[-1] / facts["pool"]
    if share > 0.6:
        text += (
            f"The largest subsets hold {share:.0%} of the training rows, so that they hardly differ: the intervals "
            "there leave out most of what another draw of labels would change. "
        )
    return text.strip()


def _worth_in_words(worth: list[dict[str, Any]], sizes: Sequence[int], rival: str) -> str:
    def labels(n: float) -> str:
        if n == 0:
            return f"fewer than {sizes[0]}"
        return f"more than {sizes[-1]}" if math.isinf(n) else rounded(n)

    inside = [w for w in worth if 0 < w["worth"] < math.inf]
    w = inside[len(inside) // 2] if inside else worth[len(worth) // 2]
    text = (
        f"Pre-training moves the curve: {w['n']} labels on the frozen encoder reach what {rival} "
        f"needs {labels(w['worth'])} for (95 % {labels(w['low'])} to {labels(w['high'])})"
    )
    better = [v for v in worth if v["low"] > v["n"]]
    worse = [v for v in worth if v["high"] < v["n"]]
    if better and worse:
        return text + f"; it helps at {_listed(better)} labels and hurts at {_listed(worse)}. "
    if better:
        return text + f"; the gain is beyond noise at {_listed(better)} labels. "
    if worse:
        return text + f"; it is worth less than training from scratch at {_listed(worse)} labels. "
    return text + ", which is no difference beyond noise at any size. "


def _listed(rows: list[dict[str, Any]]) -> str:
    return ", ".join(str(r["n"]) for r in rows)
