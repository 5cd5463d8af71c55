"""Rows and charts of a decomposition into bias and variance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
from scipy.special import xlogy

from modicum.diagnostics import _decompose_words as words
from modicum.diagnostics._decompose import Size, Truth
from modicum.diagnostics._finding import COLOURS, lines
from modicum.diagnostics._rows import Given
from modicum.diagnostics._teach import Reach
from modicum.maths.decomposition import Decomposition

NAMES = {
    "data": "variance: which rows",
    "initialisation": "variance: which start",
    "interaction": "variance: both together",
    "harm": "variance: where the vote is right",
    "help": "variance: where it is wrong",
}


def _shown(d: Decomposition) -> list[tuple[str, str, Any]]:
    """What a decomposition is drawn as: words, the colour's group, an interval or the noise as a number."""
    noise = [("noise", "noise", d.noise)] if d.noise else []
    parts = [(NAMES[name], "part of the variance", value) for name, value in d.parts.items()]
    return [("loss", "loss", d.loss), *noise, ("bias", "bias", d.bias), ("variance", "variance", d.variance), *parts]


def table(d: Decomposition, n: int) -> list[dict[str, Any]]:
    out = []
    for part, _, value in _shown(d):
        mean, low, high = (value, value, value) if isinstance(value, float) else (value.mean, value.low, value.high)
        covers = "" if isinstance(value, float) else value.over
        out.append({"loss": d.kind, "part": part, "n": n, "value": mean, "low": low, "high": high, "covers": covers})
    return out


def ends(size: Size, rows: Given) -> list[dict[str, Any]]:
    """The ends of the bracket: mean training loss, where training has converged, and test loss."""
    name = "cross-entropy" if rows.classes else "squared"
    given = [("training loss", size.train)] if size.converged else [("training loss, not converged", size.train)]
    return [
        {"loss": name, "part": part, "n": size.n, "value": i.mean, "low": i.low, "high": i.high, "covers": i.over}
        for part, i in (*given, ("test loss", size.test))
    ]


def dots(found: Sequence[Decomposition], rows: Given, n: int) -> Any:
    """Bars with intervals, a panel a loss."""
    colours = {"loss": COLOURS[5], "noise": "#c3c7ce", "bias": COLOURS[0], "variance": COLOURS[1]}
    colours["part of the variance"] = "#eec08d"
    panels = []
    for d in found:
        values = [{**row, "group": group} for row, (_, group, _) in zip(table(d, n), _shown(d), strict=True)]
        order = [row["part"] for row in values]
        base = alt.Chart(alt.InlineData(values=values), width=440, height=34 * len(values))
        base = base.properties(title=f"{rows.data.name}: {words.TITLE[d.kind]} of models trained on n = {n:,} rows")
        y = alt.Y("part:N", sort=order, title=None, axis=alt.Axis(labelLimit=260))
        fill = alt.Color("group:N", scale=alt.Scale(domain=list(colours), range=list(colours.values())), legend=None)
        title = f"{words.TITLE[d.kind]}, with 95 % intervals"
        bar = base.mark_bar(height=16).encode(
            y=y, x=alt.X("value:Q", title=title, axis=alt.Axis(format=".3~g")), color=fill
        )
        rule = base.mark_rule(strokeWidth=2, color="#333b46").encode(y=y, x="low:Q", x2="high:Q")
        panels.append(alt.layer(bar, rule))
    return alt.vconcat(*panels) if len(panels) > 1 else panels[0]


def bounds(reach: Reach, n: int, rows: Given) -> list[dict[str, Any]]:
    """The bounds of approximation and estimation error where a teacher of another kind made the labels."""
    name = "cross-entropy" if rows.classes else "squared"
    given = [("approximation error, at most", reach.most), ("estimation error, at least", reach.estimation)]
    given += [("approximation error, at least", reach.least)] if reach.least else []
    return [
        {"loss": name, "part": part, "n": n, "value": i.mean, "low": i.low, "high": i.high, "covers": i.over}
        for part, i in given
    ]


def curve(sizes: Sequence[Size], truth: Truth, rows: Given, spec: str, reach: Reach | None) -> Any:
    """Training and test loss against the number of training rows; the best in reach is between them."""
    points = []
    for name in ("test", "training"):
        for size in sizes:
            i = size.test if name == "test" else size.train
            of = f"{name} loss" + ("" if name == "test" or size.converged else ", not converged")
            points.append({"n": size.n, "loss": i.mean, "low": max(i.low, 0.0), "high": i.high, "of": of})
    for of, best in _known(truth, rows, reach).items():
        points += [{"n": s.n, "loss": best, "low": best, "high": best, "of": of} for s in sizes]
    name = "cross-entropy" if rows.classes else "squared loss"
    both = "between test and training loss" if any(s.converged for s in sizes) else "at most its test loss"
    both = both if reach is None else "known within bounds" if reach.least else "at most the bound"
    heading = f"{rows.data.name}: the best of {spec} is {both}"
    title = ("training rows", name)
    return lines(points, "n", "loss", by="of", band=("low", "high"), title=title, heading=heading, log="x")


def _known(truth: Truth, rows: Given, reach: Reach | None) -> dict[str, float]:
    """The loss of the teacher itself, on the labels drawn from it, and bounds of that of the best student."""
    if not truth.teacher:
        return {}
    noise = truth.noise
    if rows.classes:
        p = truth.targets[rows.test]
        noise = float(-xlogy(p, p).sum(1).mean())
    if reach is None:
        return {"best there can be (known)": noise}
    known = {"best student, at most": noise + reach.most.mean}
    known |= {"best student, at least": noise + reach.least.mean} if reach.least else {}
    return known | {"teacher (known)": noise}
