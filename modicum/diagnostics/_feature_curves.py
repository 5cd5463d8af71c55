"""The curves of random features as rows, charts and words, for `random-features` and `double-descent`."""

from __future__ import annotations

import math
import time
from typing import Any

import altair as alt
import numpy as np

from modicum.core.errors import UserError
from modicum.diagnostics._features import (
    Kept,
    Plan,
    check_memory,
    count,
    grid,
    inputs,
    measure,
    middle,
    parts,
    predicted,
)
from modicum.diagnostics._finding import Finding, lines
from modicum.diagnostics._rows import Given
from modicum.maths.peak import Peak, peak
from modicum.maths.random_features import Kind

GAP = 0.1
"""What is nearer to the threshold than this share of it is left out of how far theory and measurement are apart."""


def find(
    rows: Given, features: Kind, limit: int | None, widths: int | None, draws: int, label_noise: float, ridges: int,
    seed: int, name: str = "random-features",
) -> Finding:  # fmt: skip
    """Fit every draw at every width, and say what came of it; the arguments are those of `random-features`."""
    began = time.perf_counter()
    if draws < 3:
        raise UserError(f"--draws {draws}: bias, variance and their intervals need at least 3")
    n = count(rows, limit, draws)
    wide = widths or 4 * n
    plan = Plan(rows, features, n, wide, draws, label_noise, ridges, grid(n, wide), seed)
    check_memory(plan)
    x = inputs(plan)
    kept = measure(plan, x)
    table = summary(plan, kept, predicted(plan, x, kept.curves))
    tested = test_peak(plan, kept)
    facts = about(plan, kept, table, tested) | {"seconds": round(time.perf_counter() - began, 1)}
    return Finding(name, table, charts(plan, table, facts), words(plan, kept, table, tested, facts), facts)


def summary(plan: Plan, kept: Kept, expected: np.ndarray) -> list[dict[str, Any]]:
    """A row for every width: medians over draws with their intervals; bias, variance, ridge and theory at plan.at."""
    measured = {"loss": "test loss", "error": "test error", "train": "train loss"}
    measured |= {"norm": "weight norm", "effective": "effective parameters"}
    table: list[dict[str, Any]] = [{"width": w} for w in range(1, plan.wide + 1)]
    for key, name in measured.items():
        if key == "error" and not plan.rows.classes:
            continue
        median, low, high, _ = middle(np.stack([getattr(c, key) for c in kept.curves]))
        for row, *three in zip(table, median, low, high, strict=True):
            row |= zip((name, f"{name} low", f"{name} high"), map(float, three), strict=True)
    worst = np.stack([c.loss for c in kept.curves]).max(0)
    for row, value in zip(table, worst, strict=True):
        row["worst test loss"] = float(value)
    targets = plan.rows.targets(plan.rows.test)
    for a, wide in enumerate(plan.at.tolist()):
        row = table[wide - 1]
        both = parts(np.stack([c.outputs[a] for c in kept.curves]), targets)
        for name, one in zip(("bias²", "variance"), both, strict=True):
            row |= {name: one.mean, f"{name} low": one.low, f"{name} high": one.high}
        row["theory"] = float(expected[a]) if math.isfinite(expected[a]) else None
        for key, values in kept.ridge.items():
            if key != "error" or plan.rows.classes:
                found = map(float, middle(values[:, a])[:3])
                row |= zip((f"best ridge {key}", f"best ridge {key} low", f"best ridge {key} high"), found, strict=True)
    return table


def test_peak(plan: Plan, kept: Kept) -> Peak | str:
    """Whether there is a peak, of test errors (log losses of numbers) at six widths that were fixed before."""
    widths = sorted({int(v) for v in plan.n * np.array([1 / 8, 1 / 4, 1 / 2, 1, 2, 4]) if 1 <= v <= plan.wide})
    if len(widths) < 3 or widths[-1] <= plan.n:
        return "the widths end before twice the training rows"
    at = np.array(widths) - 1
    scores = np.stack([c.error[at] if plan.rows.classes else np.log(c.loss[at]) for c in kept.curves])
    try:
        return peak(np.array(widths, float), scores)
    except UserError as error:  # few test rows, on which all draws do the same
        return str(error)


def about(plan: Plan, kept: Kept, table: list[dict[str, Any]], tested: Peak | str) -> dict[str, Any]:
    """Settings, and what belongs to no width."""
    at = [table[w - 1] for w in plan.at.tolist()]
    fits = sorted(plan.wide + 1 if c.threshold is None else c.threshold for c in kept.curves)
    rank = fits[plan.draws // 2]  # more than half of the draws are fitted there, and so is their median
    off = [
        (abs(row["theory"] / row["test loss"] - 1), row["width"])
        for row in at
        if row["theory"] is not None and abs(row["width"] / rank - 1) > GAP and row["test loss"] > 0
    ]
    heavy = [r["width"] for r in at if r["worst test loss"] > 3 * r["test loss"] > 0]
    ridges = sorted({c.ridge for c in kept.curves if c.ridge})
    return {
        "rows": plan.n,
        "draws": plan.draws,
        "disjoint draws": plan.apart,
        "test rows": len(plan.rows.test),
        "features": plan.features,
        "inputs": "plain" if plan.rows.model is None else "frozen",
        "label noise": plan.noise,
        "ridges": plan.ridges,
        "largest width": plan.wide,
        "threshold": rank if rank <= plan.wide else None,
        "confidence of the intervals of medians": round(middle(np.zeros(plan.draws))[3], 3),
        "peak": str(tested),
        "heavy tails at widths": heavy,
        "negative bias² at widths": [row["width"] for row in at if row["bias²"] < 0],
        "theory off, median": round(float(np.median([o for o, _ in off])), 3) if off else None,
        "theory off, most": round(max(off)[0], 3) if off else None,
        "theory off most at": max(off)[1] if off else None,
        "ridge of dependent draws": ridges[-1] if ridges else 0.0,
        "dependent draws": sum(c.ridge > 0 for c in kept.curves),
    }


def charts(plan: Plan, table: list[dict[str, Any]], facts: dict[str, Any]) -> dict[str, Any]:
    """Error, loss with theory, and bias beside variance, against the width."""
    at = [table[w - 1] for w in plan.at.tolist()]
    rules = {"all rows fitted": facts["threshold"]} if facts["threshold"] else {}
    noise = f", {plan.noise:.0%} label noise" if plan.noise else ""
    heading = f"{plan.rows.data.name}: {plan.features} features, n = {plan.n:,}{noise}, medians of {plan.draws} draws"

    def drawn(columns: dict[str, str], rows: list[dict[str, Any]], title: str, **more: Any) -> Any:
        points = [
            {
                "width": r["width"],
                "value": r[c],
                "low": r.get(f"{c} low", r[c]),
                "high": r.get(f"{c} high", r[c]),
                "of": of,
            }
            for of, c in columns.items()
            for r in rows
            if r.get(c) is not None
        ]
        names = ("random features (width)", title)
        return lines(points, "width", "value", by="of", band=("low", "high"), title=names, rules=rules, **more)

    ridge = "test, best ridge"
    out = {}
    if plan.rows.classes:
        shown = {"test, no ridge": "test error", ridge: "best ridge error"}
        out["error"] = drawn(shown, at, "test error", heading=heading, log="x", dots=False)
    shown = {"test, no ridge": "test loss", ridge: "best ridge loss", "training, no ridge": "train loss"}
    fits = [r | {"train loss": None} if r["train loss"] < 1e-4 * at[0]["train loss"] else r for r in at]
    shown["theory, no ridge"] = "theory"
    out["loss"] = drawn(shown, fits, "squared loss", heading=heading, log="xy", dots=False)
    title = f"{plan.rows.data.name}: unbiased bias² and variance over draws of rows and features"
    chart = drawn({"bias²": "bias²", "variance": "variance"}, at, "squared loss", heading=title, log="x")
    out["bias-variance"] = symmetric(chart)
    return out


def symmetric(chart: Any, linear: float = 0.1) -> Any:
    """The chart with a vertical axis that is logarithmic on both sides of 0, for estimates that may be negative.

    Values below `linear` are about on a linear scale.
    """
    first = math.floor(math.log10(linear))
    for layer in chart.layer:
        y = layer.encoding.y
        if not isinstance(y, alt.utils.schemapi.UndefinedType):
            y.scale = alt.Scale(type="symlog", constant=linear)
            ticks = [s * 10.0**e for e in range(first, first + 10) for s in (-1, 1)]
            y.axis = alt.Axis(format=".3~g", values=[*ticks, 0])
    return chart


def words(plan: Plan, kept: Kept, table: list[dict[str, Any]], tested: Peak | str, facts: dict[str, Any]) -> str:
    """What was measured and what it means, for a newcomer."""
    return " ".join([*_what(plan, facts), *_curve(plan, table, tested, facts), *_means(plan, table, facts)])


def _what(plan: Plan, facts: dict[str, Any]) -> list[str]:
    noise = f", {plan.noise:.0%} of whose labels were redrawn at random," if plan.noise else ""
    what = "plain inputs" if plan.rows.model is None else "the run's frozen features"
    overlap = (
        f" Draws overlap: any two share about {plan.n / len(plan.rows.train):.0%} of their rows, so that they differ "
        "less than new samples would, and the variance, the bands and p are too small."
    )
    sure = facts["confidence of the intervals of medians"]
    said = [
        f"Least squares on 1 to {plan.wide:,} random {plan.features} features of {what} was fitted to {plan.draws} "
        f"draws of {plan.n:,} training rows{noise} and tested on {len(plan.rows.test):,} other rows. Numbers are "
        f"medians over draws; bands hold the median with {sure:.0%} confidence over draws, for these rows."
        + ("" if plan.apart else overlap)
    ]
    if facts["dependent draws"]:
        said.append(
            f"In {facts['dependent draws']} of the draws features depend on each other to the precision of float64: a "
            f"ridge of {facts['ridge of dependent draws']:.2g} stands for none there."
        )
    return [*said, *filter(None, [plan.rows.missing([plan.train(k) for k in range(plan.draws)])])]


def _curve(plan: Plan, table: list[dict[str, Any]], tested: Peak | str, facts: dict[str, Any]) -> list[str]:
    name, rank = ("test error" if plan.rows.classes else "test loss"), facts["threshold"]
    low = min(table[: max((rank or plan.wide + 1) - 1, 1)], key=lambda r: r[name])
    last = table[-1]
    if rank is None:
        return [
            f"The {name} is lowest, {low[name]:.3g}, at width {low['width']:,}; the training rows are not yet fitted "
            "exactly at the largest width: give more --widths to see what comes after."
        ]
    said = [
        f"With fewer features than rows the {name} is at best {low[name]:.3g} (width {low['width']:,}); where all rows "
        f"are first fitted exactly (width {rank:,}) it is {table[rank - 1][name]:.3g}, and {last[name]:.3g} at width "
        f"{last['width']:,}."
    ]
    if isinstance(tested, str):
        said.append(f"Whether there is a peak was not tested: {tested}.")
    elif tested.found:
        said.append(
            f"This is double descent: the peak is real (p = {tested.p:.2g} over draws, at six widths, for these test "
            "rows)."
        )
    else:
        said.append(f"No peak can be shown (p = {tested.p:.2g} over draws, at six widths, for these test rows).")
    if facts["heavy tails at widths"]:
        wide = facts["heavy tails at widths"]
        said.append(
            f"At {len(wide)} of {len(plan.at)} widths looked at, from {wide[0]:,} to {wide[-1]:,}, some draws are more "
            "than 3 times as bad as the median: tails are heavy, and means over draws say little there."
        )
    return said


def _means(plan: Plan, table: list[dict[str, Any]], facts: dict[str, Any]) -> list[str]:
    name, rank = ("error" if plan.rows.classes else "loss"), facts["threshold"]
    at = [table[w - 1] for w in plan.at.tolist()]
    top, last = max(at, key=lambda r: r["variance"]), at[-1]
    said = [
        f"Variance is largest, {top['variance']:.3g}, at width {top['width']:,} and {last['variance']:.2g} at the end, "
        f"where bias² is {last['bias²']:.2g}: mostly {'variance' if last['variance'] > last['bias²'] else 'bias²'}."
    ]
    if facts["negative bias² at widths"]:
        shown = ", ".join(f"{w:,}" for w in facts["negative bias² at widths"][:5])
        said.append(
            f"The unbiased bias² is negative at width {shown}: the variance there is too large to tell a bias from 0."
        )
    if f"best ridge {name}" in last:
        best = min(at, key=lambda r: r[f"best ridge {name}"])
        plain = min(table, key=lambda r: r[f"test {name}"])
        a, b = best[f"best ridge {name}"], plain[f"test {name}"]
        place = min(at, key=lambda r: abs(r["width"] - (rank or plan.wide)))
        said.append(
            f"With the best of {plan.ridges} ridges, chosen on half of the test rows and measured on the other, the "
            f"test {name} at width {place['width']:,} is {place[f'best ridge {name}']:.3g} and the lowest is {a:.3g} "
            f"(width {best['width']:,}), against {b:.3g} without (width {plain['width']:,})."
        )
        if last[f"best ridge {name}"] < 0.95 * last[f"test {name}"] or a < 0.95 * b:
            said.append("What to do: regularise; how many features there are then matters little once they are many.")
        elif rank and plain["width"] > rank:
            said.append("What to do: take many features, well past the threshold; ridge adds little to that.")
        else:
            said.append(f"What to do: stay below the threshold, near width {plain['width']:,}; ridge adds little.")
    if facts["theory off, median"] is not None:
        said.append(
            f"Theory for these inputs and labels (no fit involved) is within {facts['theory off, median']:.1%} of "
            f"the measured loss at half of the widths, and off by {facts['theory off, most']:.0%} at most (width "
            f"{facts['theory off most at']:,}; widths within {GAP:.0%} of the threshold left out)."
        )
    else:
        said.append("Theory has no answer here: there are too few rows to know the eigenvalues from.")
    return said
