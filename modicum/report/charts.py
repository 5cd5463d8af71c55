"""The report's charts: each a pure function from plain rows to one altair chart.

No chart fixes a colour for text, grid or background: the page gives Vega a theme made of its own CSS variables, so the
same specification is right in light and in dark. Every chart is a single or layered view of width "container", the
only kinds that Vega-Lite can stretch to the page.
"""

from __future__ import annotations

import colorsys
import math
import textwrap
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

import altair as alt

from ..maths.representation import QUANTILES
from .wording import Score, finite, shown

Row = Mapping[str, Any]
COLOURS = {"pretrained": "#3f7fdb", "scratch": "#dd8a2e", "baseline": "#8b919c"}
DEVIATIONS = tuple(f"deviation_{name}" for name in QUANTILES)  # as the probes log them
BLANK = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"  # one transparent pixel


def thin(rows: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` points: each block's last step with the block's mean, so that long runs stay small."""
    size = max(1, math.ceil(len(rows) / most))
    blocks = (rows[i : i + size] for i in range(0, len(rows), size))
    return [(block[-1][0], fmean(value for _, value in block)) for block in blocks]


def palette(classes: int) -> list[str] | None:
    """Colours for many classes, by golden-angle hues; None up to ten, where the theme's own palette is clearer."""
    if classes <= 10:
        return None
    colours = []
    for i in range(classes):
        rgb = colorsys.hls_to_rgb(i * 0.618034 % 1, (0.45, 0.58, 0.66)[i % 3], (0.62, 0.7, 0.5)[i // 3 % 3])
        colours.append("#" + "".join(f"{round(255 * channel):02x}" for channel in rgb))
    return colours


def _chart(rows: Sequence[Row], height: int | str, description: str) -> Any:
    """A chart on inline rows that fills its box; `description` becomes the drawing's accessible name."""
    data = alt.InlineData(values=list(rows))
    fit = alt.AutoSizeParams(type="fit" if height == "container" else "fit-x", contains="padding")
    return alt.Chart(data, width="container", height=height, description=description, autosize=fit)


def _layer(base: Any, *layers: Any) -> Any:
    """`layers` over one another with `base`'s data, size and description, which altair would leave on the parts."""
    top = {key: getattr(base, key) for key in ("data", "width", "height", "description", "autosize")}
    for layer in layers:
        for key in top:
            if getattr(layer, key) is top[key]:
                setattr(layer, key, alt.Undefined)
    return alt.layer(*layers, **top)


def curve(metrics: Sequence[Row], key: str, title: str, *, percent: bool = False) -> Any | None:
    """One metric against the step; None when no row has a finite value of it.

    Beyond 60 logged steps a rolling mean is drawn over the faint raw line, since mini-batch metrics are noisy.
    """
    pairs = [(row["step"], row[key]) for row in metrics if finite(row.get("step")) and finite(row.get(key))]
    if not pairs:
        return None
    pairs = thin(pairs, 400)
    reach = len(pairs) // 40 if len(pairs) > 60 and key != "lr" else 0
    rows = []
    for i, (step, value) in enumerate(pairs):
        near = min(reach, i)  # narrow at the steep start, so that it is not flattened
        mean = fmean(v for _, v in pairs[i - near : i + near + 1])
        rows.append({"step": step, "value": value, "smooth": mean})
    form = ".1%" if percent else ".3~g"
    base = _chart(rows, 170, f"{title} against training step")
    x, y = _axes("value", ".1~%" if percent else ".4~g")
    dots = _dots(base, x, y, [alt.Tooltip("value:Q", title=title, format=form)], len(rows))
    if not reach:
        return _layer(base, base.mark_line(strokeWidth=2).encode(x=x, y=y), dots)
    raw = base.mark_line(strokeWidth=1, opacity=0.3).encode(x=x, y=y)
    return _layer(base, raw, base.mark_line(strokeWidth=2).encode(x=x, y="smooth:Q"), dots)


def deviations(metrics: Sequence[Row], title: str) -> Any | None:
    """Quantiles of the deviations of the features' dimensions against the step: the median, the 10 % one, and a band
    from the lowest to the highest; None when no row has all four.
    """
    known = [row for row in metrics if all(finite(row.get(key)) for key in ("step", *DEVIATIONS))]
    if not known:
        return None
    thinned = [thin([(row["step"], row[key]) for row in known], 400) for key in DEVIATIONS]
    rows = [
        {"step": at[0][0], **{key: value for key, (_, value) in zip(DEVIATIONS, at, strict=True)}}
        for at in zip(*thinned, strict=True)
    ]
    base = _chart(rows, 170, f"{title} against training step")
    low, tenth, middle, high = DEVIATIONS
    x, y = _axes(high, ".4~g")
    tip = [alt.Tooltip(f"{key}:Q", title=name, format=".3~g") for key, name in zip(DEVIATIONS, QUANTILES, strict=True)]
    band = base.mark_area(opacity=0.15).encode(x=x, y=y, y2=f"{low}:Q")
    dashes = base.mark_line(strokeWidth=1.5, strokeDash=[4, 3]).encode(x=x, y=f"{tenth}:Q")
    line = base.mark_line(strokeWidth=2).encode(x=x, y=f"{middle}:Q")
    return _layer(base, band, dashes, line, _dots(base, x, f"{middle}:Q", tip, len(rows)))


def _axes(key: str, form: str) -> tuple[Any, Any]:
    """The axes of a measure against the step."""
    x = alt.X("step:Q", title="step", axis=alt.Axis(tickCount=4, format="~s", grid=False), scale=alt.Scale(nice=False))
    axis = alt.Axis(format=form, tickCount=4)
    return x, alt.Y(f"{key}:Q", title=None, axis=axis, scale=alt.Scale(zero=False, nice=True))


def _dots(base: Any, x: Any, y: Any, tip: list[Any], count: int) -> Any:
    """Dots that say their values; of more than 30, only the one pointed at is seen."""
    at = alt.selection_point(on="pointerover", nearest=True, fields=["step"], empty=False, clear="pointerout")
    faint = alt.value(0.9) if count <= 30 else alt.condition(at, alt.value(1), alt.value(0))
    tip = [alt.Tooltip("step:Q", format=","), *tip]
    return base.mark_point(filled=True, size=32).encode(x=x, y=y, opacity=faint, tooltip=tip).add_params(at)


def contestants(rows: Sequence[Row], score: Score, *, reference: str | None = None) -> Any | None:
    """Every contestant's mean as a dot on its 95 % interval, coloured by kind; `rows` come best first and stay so.

    The dashed line is the reference's mean; the verdict on the difference is in the tooltip.
    """
    rows = [row for row in rows if finite(row.get("mean"))]
    if not rows:
        return None
    drawn = [_contestant(row, score, reference) for row in rows]
    step = 42 if any("\n" in row["lines"] for row in drawn) else 34
    base = _chart(drawn, step * len(drawn) + 12, f"{score.name} of {len(drawn)} contestants with 95 % intervals")
    axis = alt.Axis(format=".0%" if score.percent else ".4~g", tickCount=5)
    title = f"{score.name} ({score.unit})" if score.unit and not score.percent else score.name
    x = alt.X("low:Q", title=title, axis=axis, scale=alt.Scale(zero=False, nice=True, padding=8))
    order = list(dict.fromkeys(row["lines"] for row in drawn))
    lines = alt.Axis(grid=False, labelLimit=170, ticks=False, domain=False, labelExpr="split(datum.label, '\\n')")
    y = alt.Y("lines:N", sort=order, title=None, axis=lines)
    seen = [kind for kind in COLOURS if any(row["kind"] == kind for row in drawn)]
    extra = sorted({row["kind"] for row in drawn} - set(COLOURS))
    scale = alt.Scale(domain=seen + extra, range=[COLOURS.get(kind, "#8a63d2") for kind in seen + extra])
    colour = alt.Color("kind:N", scale=scale, legend=None)
    names = ("name", score.name, "95 % interval", "difference", "verdict", "settings")
    tip = [alt.Tooltip(f"tip{i}:N", title=name) for i, name in enumerate(names)]
    bars = base.mark_rule(strokeWidth=3, opacity=0.45, strokeCap="round")
    dots = base.mark_point(filled=True, size=110, opacity=1)
    layers = [
        bars.encode(x=x, x2="high:Q", y=y, color=colour, tooltip=tip),
        dots.encode(x="mean:Q", y=y, color=colour, tooltip=tip),
    ]
    if any(row["reference"] for row in drawn):
        line = base.mark_rule(strokeDash=[4, 4], style="faint").transform_filter("datum.reference")
        layers.insert(0, line.encode(x="mean:Q"))
    return _layer(base, *layers)


def _contestant(row: Row, score: Score, reference: str | None) -> dict[str, Any]:
    """One contestant as drawn: numbers for the marks, finished strings for the tooltip."""
    mean, versus = row["mean"], row.get("versus") or {}
    low, high = (row[key] if finite(row.get(key)) else mean for key in ("low", "high"))
    bounds = f"{score.difference(versus.get('mean'))} ({score.interval(versus.get('low'), versus.get('high'), '+')})"
    name = str(row.get("name", "?"))
    tips = (
        name,
        score.text(mean),
        score.interval(row.get("low"), row.get("high")),
        bounds if versus else "is the reference" if name == reference else "–",
        str(versus.get("verdict", "–")),
        str(row.get("settings") or "–"),
    )
    kind = str(row.get("kind") or "other")
    drawn = {
        "lines": textwrap.fill(name, 20),
        "kind": kind,
        "mean": mean,
        "low": low,
        "high": high,
        "reference": name == reference,
    }
    return drawn | {f"tip{i}": tip for i, tip in enumerate(tips)}


def confusion(classes: Sequence[str], counts: Sequence[Sequence[float]]) -> Any:
    """The row-normalised confusion matrix: right answers on the diagonal in one hue, mistakes in another.

    `counts[i][j]` rows of true class i were read as class j. Two hues with two scales, because mistakes of a few per
    cent, the ones worth seeing, vanish on one scale shared with the diagonal. Above 25 classes empty cells are left
    out and labels that would collide are hidden (the tooltip has them).
    """
    names, many = [str(name) for name in classes], len(classes) > 25
    cells = _cells(names, counts, keep_empty=not many)
    worst = max([cell["share"] for cell in cells if not cell["right"]], default=0.0)
    step = {True: 64, len(names) > 4: 38, len(names) > 12: 22, many: max(6, 620 // len(names))}[True]
    base = _chart(cells, step * len(names), f"confusion matrix of {len(names)} classes, a row the true class")
    axis = {
        "grid": False,
        "ticks": False,
        "domain": False,
        "labelLimit": 110,
        "labelOverlap": "greedy" if many else False,
    }
    x = alt.X("read:N", sort=None, scale=alt.Scale(domain=names), title="read as").axis(
        labelAngle=0 if len(names) <= 4 else -45, **axis
    )
    y = alt.Y("true:N", sort=None, scale=alt.Scale(domain=names), title="truth").axis(**axis)
    tip = [
        alt.Tooltip("true:N", title="truth"),
        alt.Tooltip("read:N", title="read as"),
        alt.Tooltip("share:Q", title="share of the row", format=".1%"),
        alt.Tooltip("count:Q", format=","),
    ]

    def shade(right: bool, top: float, ramp: str) -> Any:
        scale = alt.Scale(domain=[0, top], range=ramp, interpolate="rgb", clamp=True)
        rects = base.mark_rect(cornerRadius=0 if many else 3, style="dense" if many else "heat").transform_filter(
            "datum.right" if right else "!datum.right"
        )
        return rects.encode(x=x, y=y, color=alt.Color("share:Q", scale=scale, legend=None), tooltip=tip)

    layers = [shade(True, 1.0, "heatmap"), shade(False, max(0.1, worst), "ramp")]
    if len(names) <= 12:
        text = alt.Text("written:N")
        for style, rule in (("strong", "datum.right && datum.share >= 0.8"), ("plain", "datum.count > 0")):
            part = base.mark_text(style=style).transform_filter(
                rule if style == "strong" else f"{rule} && !(datum.right && datum.share >= 0.8)"
            )
            layers.append(part.encode(x=x, y=y, text=text, tooltip=tip))
    return _layer(base, *layers).resolve_scale(color="independent")


def _cells(names: Sequence[str], counts: Sequence[Sequence[float]], keep_empty: bool) -> list[dict[str, Any]]:
    """The matrix as one row a cell, with the share of its row's total."""
    cells = []
    for i, (true, row) in enumerate(zip(names, counts, strict=True)):
        total = sum(row) or 1
        for j, (read, count) in enumerate(zip(names, row, strict=True)):
            if count or keep_empty:
                share = count / total
                cell = {"true": true, "read": read, "count": count, "share": share, "right": i == j}
                cells.append(cell | {"written": f"{100 * share:.0f}" if share >= 0.005 else "<1"})
    return cells


def embedding_map(points: Sequence[Row]) -> Any | None:
    """Every embedded sample as a dot coloured by its label; wrong predictions are outlined diamonds.

    Pointing at a dot shows its picture: `image` is the key that vega-tooltip renders as an <img>. Up to 20 classes
    are named on the map itself, at the median of their dots, which reads faster than a legend and needs no colour
    vision. A click keeps one class and fades the others; a double click brings them back.
    """
    rows = [_dot(point) for point in points if finite(point.get("x")) and finite(point.get("y"))]
    if not rows:
        return None
    labels = sorted({row["label"] for row in rows if row["label"] and row["value"] is None})
    base = _chart(rows, "container", f"map of {len(rows)} embedded samples coloured by label")
    x = alt.X("x:Q", axis=None, scale=alt.Scale(zero=False, nice=False, padding=20))
    y = alt.Y("y:Q", axis=None, scale=alt.Scale(zero=False, nice=False, padding=20))
    keys = [key for key in ("label", "predicted", "confidence", "text", "id") if any(row[key] for row in rows)]
    tip = [alt.Tooltip(f"{key}:N", title={"predicted": "read as"}.get(key, key)) for key in keys]
    if any(row["image"] != BLANK for row in rows):
        tip.insert(0, alt.Tooltip("image:N"))
    pick = alt.selection_point(fields=["label"], on="click", clear="dblclick")
    seen = alt.condition(pick, alt.value(0.85), alt.value(0.08))
    given = {"x": x, "y": y, "tooltip": tip, "opacity": seen}
    colours = palette(len(labels))
    if labels:
        scale = alt.Scale(domain=labels, range=colours) if colours else alt.Scale(domain=labels)
        given["color"] = alt.Color("label:N", scale=scale, legend=None)
    elif any(row["value"] is not None for row in rows):
        given["color"] = alt.Color("value:Q", scale=alt.Scale(scheme="viridis"), legend=alt.Legend(title="label"))
    right = base.mark_point(filled=True, size=34, shape="circle").transform_filter("!datum.wrong")
    wrong = base.mark_point(filled=True, size=95, shape="diamond", style="outlined").transform_filter("datum.wrong")
    layers = [right.encode(**given).add_params(pick)]
    if any(row["wrong"] for row in rows):
        layers.append(wrong.encode(**given))
    if 0 < len(labels) <= 20:
        at = [(name, [row for row in rows if row["label"] == name]) for name in labels]
        spots = [{"label": n, "x": median(r["x"] for r in g), "y": median(r["y"] for r in g)} for n, g in at]
        names = alt.Chart(alt.InlineData(values=spots))
        layers += [names.mark_text(style=s).encode(x=x, y=y, text="label:N") for s in ("halo", "name")]
    return _layer(base, *layers)


def is_target(label: Any) -> bool:
    """Whether a label is a regression's number rather than a class."""
    return isinstance(label, float)


def is_wrong(point: Row) -> bool:
    """Whether a class was predicted and it is not the label; numbers of a regression are never just wrong."""
    label, predicted = point.get("label"), point.get("predicted")
    return not (label is None or predicted is None or is_target(label)) and str(label) != str(predicted)


def _dot(point: Row) -> dict[str, Any]:
    """One point of the map: every field present, so that no tooltip says "undefined"."""
    label, confidence = point.get("label"), point.get("confidence")
    text = {key: shown(point.get(key)) for key in ("label", "predicted", "id", "text")}
    sure = Score(percent=True).text(confidence, 0) if finite(confidence) else ""
    return text | {
        "x": point["x"],
        "y": point["y"],
        "wrong": is_wrong(point),
        "value": label if is_target(label) and finite(label) else None,
        "confidence": sure,
        "image": point.get("thumb") or BLANK,
    }


def scatter(pairs: Sequence[Sequence[float]], unit: str = "") -> Any | None:
    """Prediction against truth for regression, with the line on which a perfect model's dots lie."""
    rows = [{"truth": pair[0], "prediction": pair[1]} for pair in pairs if finite(pair[0]) and finite(pair[1])]
    if not rows:
        return None
    rows = rows[:: math.ceil(len(rows) / 3000)]
    values = [value for row in rows for value in row.values()]
    ends = [{"truth": end, "prediction": end} for end in (min(values), max(values))]
    base = _chart(rows, "container", f"prediction against truth of {len(rows)} test rows")
    suffix, scale = (
        f" ({unit})" if unit else "",
        alt.Scale(zero=False, domain=[min(values), max(values)], nice=False, padding=10),
    )
    x, y = (alt.X("truth:Q", title=f"truth{suffix}"), alt.Y("prediction:Q", title=f"prediction{suffix}"))
    x, y = x.scale(scale).axis(tickCount=5), y.scale(scale).axis(tickCount=5)
    line = alt.Chart(alt.InlineData(values=ends)).mark_line(strokeDash=[4, 4], style="faint").encode(x=x, y=y)
    tip = [alt.Tooltip("truth:Q", format=".4~g"), alt.Tooltip("prediction:Q", format=".4~g")]
    dots = base.mark_point(filled=True, size=30, opacity=0.55).encode(x=x, y=y, tooltip=tip)
    return _layer(base, line, dots)
