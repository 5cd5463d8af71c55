"""What every diagnostic returns, and how its charts are drawn."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

Row = Mapping[str, Any]
COLOURS = ("#3f7fdb", "#dd8a2e", "#3a9d6b", "#b3476f", "#8a63d2", "#8b919c", "#7a5a2e", "#2aa5b8")


@dataclass
class Finding:
    """A diagnostic's answer: plain `rows` (one a point), `charts` by name, the paragraph `words`, and `facts` about it.

    `facts` hold the settings, the seconds it took, and numbers that belong to no row; `folder` is where it was written,
    if it was. In a notebook it shows itself.
    """

    name: str
    rows: list[dict[str, Any]]
    charts: dict[str, Any]
    words: str
    facts: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    def png(self, chart: str) -> bytes:
        """The chart of that name as a PNG, at twice its nominal resolution."""
        return vl_convert.vegalite_to_png(self.charts[chart].to_dict(), scale=2)

    def svg(self, chart: str) -> str:
        """The chart of that name as SVG."""
        return vl_convert.vegalite_to_svg(self.charts[chart].to_dict())

    def _repr_html_(self) -> str:
        shown = (base64.b64encode(self.png(name)).decode() for name in self.charts)
        pictures = "".join(f'<img style="max-width:100%;width:640px" src="data:image/png;base64,{p}">' for p in shown)
        return f"<div><p>{html.escape(self.words)}</p>{pictures}</div>"


def lines(
    rows: Sequence[Row],
    x: str,
    y: str,
    *,
    by: str | None = None,
    band: tuple[str, str] | None = None,
    title: tuple[str, str] = ("", ""),
    heading: str = "",
    log: str = "",
    rules: Mapping[str, float] | None = None,
    top: float | None = None,
    dots: bool = True,
) -> Any:
    """Curves of y against x, a colour each value of `by` in the order of the rows, with a shaded `band` (low, high).

    `log` names the axes on a logarithmic scale, "x", "y" or "xy" (points that are not positive there are left out);
    `rules` are vertical lines with their words; values above `top` are drawn at the edge. NaN and infinite are gaps.
    """
    keys = list(dict.fromkeys([x, y, *(band or ()), *([by] if by else [])]))
    kept = _kept(rows, keys, x, y, by, band or (), log, top)
    base = alt.Chart(alt.InlineData(values=kept), width=560, height=320)
    if heading:
        base = base.properties(title=heading)
    scale = {axis: alt.Scale(type="log" if axis in log else "linear", zero=False, nice=False) for axis in "xy"}
    at = alt.X(f"{x}:Q", title=title[0] or x, scale=scale["x"], axis=alt.Axis(grid=False, format="~s", tickCount=8))
    value = alt.Y(f"{y}:Q", title=title[1] or y, scale=scale["y"], axis=alt.Axis(format=".3~g"))
    colour = _colour(kept, by) if by else {}
    tip = [alt.Tooltip(f"{k}:N" if k == by else f"{k}:Q", format="" if k == by else ".4~g") for k in keys]
    layers = []
    if band:
        low = value.copy()
        low.shorthand = f"{band[0]}:Q"
        layers.append(base.mark_area(opacity=0.18).encode(x=at, y=low, y2=f"{band[1]}:Q", **colour))
    curves = base.mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=22) if dots else False)
    layers.append(curves.encode(x=at, y=value, tooltip=tip, **colour))
    for words, place in (rules or {}).items():
        mark = alt.Chart(alt.InlineData(values=[{x: place, "words": words}]))
        text = mark.mark_text(align="left", dx=-2, y=-7, color="#6b717c", fontSize=11)
        layers += [mark.mark_rule(strokeDash=[4, 4], color="#8b919c").encode(x=at)]
        layers += [text.encode(x=at, text="words:N")]
    return alt.layer(*layers)


def _kept(
    rows: Sequence[Row], keys: Sequence[str], x: str, y: str, by: str | None, band: Sequence[str], log: str,
    top: float | None,
) -> list[dict[str, Any]]:  # fmt: skip
    """What is drawn of the rows, as plain numbers: points that can be drawn, and bands that end at the chart's edge."""
    kept: list[dict[str, Any]] = [{k: row.get(k) for k in keys} for row in rows]
    kept = [r for r in kept if all(_drawable(r[k], k == x and "x" in log) for k in (x, y))]
    if "y" in log:
        kept = [r for r in kept if r[y] > 0]
    for row in kept:
        for key in keys:
            if key == by:
                continue
            row[key] = float(row[key]) if _drawable(row[key], False) else None
            if key != x and top is not None and row[key] is not None:
                row[key] = min(row[key], top)
        for key in band:  # on a logarithmic axis a band that reaches below 0 ends at the edge of the chart
            if "y" in log and row[key] is not None and row[key] <= 0:
                row[key] = min(r[y] for r in kept) / 2
    return kept


def _colour(kept: Sequence[Row], by: str) -> dict[str, Any]:
    """A colour each value of `by`, in the order of the rows."""
    order = list(dict.fromkeys(row[by] for row in kept))
    domain = alt.Scale(domain=order, range=[COLOURS[k % len(COLOURS)] for k in range(len(order))])
    return {"color": alt.Color(f"{by}:N", scale=domain, sort=order, title=None, legend=alt.Legend(symbolOpacity=1))}


def _drawable(value: Any, positive: bool) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return number and (not positive or value > 0)
