"""What the report says in words: how numbers are written, the first sentence, the key numbers, the data card."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Json = Mapping[str, Any]
Tile = tuple[str, str, str]  # what, value, note
KINDS = {"pretrained": "pre-trained", "scratch": "from-scratch", "baseline": "baseline"}
SHARES = ("accuracy", "f1", "recall", "precision")
FACTS = {
    "name": "Name",
    "modality": "Modality",
    "rows": "Training rows",
    "labelled": "Labelled rows",
    "test_rows": "Test rows",
    "licence": "Licence",
    "source": "Source",
}


class Score(NamedTuple):
    """How a score is written: accuracies as per cent, anything else with three decimals and its unit."""

    name: str = "score"
    percent: bool = False
    unit: str = ""

    def text(self, value: Any, digits: int = 1) -> str:
        """`value` for a reader; a dash where it is no finite number."""
        if not finite(value):
            return "–"
        return tidy(f"{100 * value:.{digits}f} %" if self.percent else f"{value:.3f} {self.unit}".strip())

    def interval(self, low: Any, high: Any, sign: str = "") -> str:
        """The bounds of a 95 % interval, in the unit of `text`, each with its sign when `sign` is "+"."""
        if not (finite(low) and finite(high)):
            return "–"
        factor, digits = (100, 1) if self.percent else (1, 3)
        return tidy(f"{factor * low:{sign}.{digits}f} to {factor * high:{sign}.{digits}f}")

    def difference(self, value: Any) -> str:
        """A signed difference; between percentages these are points, not per cent."""
        if not finite(value):
            return "–"
        return tidy(f"{100 * value:+.1f} points" if self.percent else f"{value:+.3f} {self.unit}".strip())


def finite(value: Any) -> bool:
    """Whether `value` is a number that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def shown(value: Any) -> str:
    """A label or an id for a reader: nothing for None, four digits for a regression's number."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def tidy(text: str) -> str:
    """`text` with true minus signs before digits and no line break between a number and its per cent sign."""
    if text.startswith("-"):
        text = "−" + text[1:]
    return text.replace(" -", " −").replace(" %", "\u00a0%") if any(c.isdigit() for c in text) else text


def seconds(value: Any) -> str:
    """A duration in the unit that suits it."""
    if not finite(value):
        return "–"
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def score_of(results: Json) -> Score:
    """How this run's score is written: known shares between 0 and 1 as per cent.

    R2 has no unit; where it is the score, `unit` is the target's and belongs to the mean absolute error.
    """
    name, unit = str(results.get("score") or "score"), str(results.get("unit") or "")
    means = [row["mean"] for row in results.get("contestants") or [] if finite(row.get("mean"))]
    share = any(word in name.lower() for word in SHARES) and all(0 <= mean <= 1 for mean in means)
    return Score(name, share and not unit, "" if name.upper() in ("R2", "R²") else unit)


def ranked(results: Json) -> list[Json]:
    """The contestants, best first; those without a score last."""
    rows = results.get("contestants") or []
    sign = 1 if results.get("higher_is_better") is False else -1
    return sorted(rows, key=lambda row: sign * row["mean"] if finite(row.get("mean")) else math.inf)


def last(metrics: Sequence[Json], key: str) -> Any:
    """The last finite value that was logged under `key`, or None."""
    return next((row[key] for row in reversed(metrics) if finite(row.get(key))), None)


def lead(spec: Json, results: Json, metrics: Sequence[Json]) -> str:
    """The first sentence: the measured verdict, or what was done."""
    if results.get("verdict"):
        return str(results["verdict"])
    data, verb = spec.get("data") or {}, str(spec.get("verb"))
    count = data.get("train_rows") or data.get("rows")
    rows = f"{count:,} rows of {data.get('name', 'data')}" if finite(count) else "this data"
    how = f"with the labels of {data['labels_used']:,}" if data.get("labels_used") else "without labels"
    did = {"pretrain": f"Pre-trained, {how}, on", "finetune": "Fine-tuned on"}.get(verb, "Run on")
    step, probe = last(metrics, "step"), last(metrics, "knn")
    steps = f" for {step:,} steps" if finite(step) else ""
    read = f"; a nearest-neighbour vote on its features is right {100 * probe:.0f} % of the time" if probe else ""
    read += ", which is optimistic, as the encoder has seen labels" if probe and data.get("labels_used") else ""
    return f"{did} {rows}{steps}{read}."


def tiles(results: Json, metrics: Sequence[Json], data: Json) -> list[Tile]:
    """The key numbers under the title, at most seven."""
    score, rows = score_of(results), [row for row in ranked(results) if finite(row.get("mean"))]
    if not rows:
        return _training_tiles(metrics, data)
    found = []
    for kind, what in KINDS.items():
        group = [row for row in rows if row.get("kind") == kind]
        if group:
            top, what = group[0], f"{'Best ' if len(group) > 1 else ''}{what} {score.name}"
            note = f"{top.get('name', '')} · {score.interval(top.get('low'), top.get('high'))}"
            found.append((what, score.text(top["mean"]), note))
    if finite(results.get("mae")):
        found.append(("Mean absolute error", f"{results['mae']:.4g}", str(results.get("unit") or "")))
    if finite(results.get("labels")):
        each = results.get("labels_per_class")
        found.append(("Labels used", f"{results['labels']:,}", f"{each} a class" if each else ""))
    if finite(results.get("test_rows")):
        seeds = results.get("seeds")
        found.append(("Test rows", f"{results['test_rows']:,}", f"repeated with {seeds} seeds" if seeds else ""))
    return found


def percent(share: Any) -> Any:
    """A share in per cent; None stays None."""
    return 100 * share if finite(share) else None


def _training_tiles(metrics: Sequence[Json], data: Json) -> list[Tile]:
    """The key numbers of a run that measured no contestants."""
    first = next((row["loss"] for row in metrics if finite(row.get("loss"))), None)
    probe = "nearest-neighbour accuracy" + (", optimistic: labels were seen" if data.get("labels_used") else "")
    shown = [
        ("Training rows", data.get("rows"), "{:,}", str(data.get("modality") or "")),
        ("Steps", last(metrics, "step"), "{:,}", ""),
        ("Final loss", last(metrics, "loss"), "{:.4g}", "" if first is None else f"from {first:.4g}"),
        ("Online probe", percent(last(metrics, "knn")), "{:.1f} %", probe),
        ("Effective rank", last(metrics, "rank"), "{:.1f}", "directions in use"),
        ("Speed", last(metrics, "rate"), "{:,.0f}", "rows a second"),
    ]
    return [(what, tidy(form.format(value)), note) for what, value, form, note in shown if finite(value)]


def confused(matrix: Json) -> list[tuple[str, str, int, float]]:
    """The ten most frequent mistakes: (truth, read as, count, share of the true class)."""
    names, counts = matrix.get("classes") or [], matrix.get("counts") or []
    cells = [(count, i, j) for i, row in enumerate(counts) for j, count in enumerate(row) if count and i != j]
    top = sorted(cells, key=lambda cell: -cell[0])[:10]
    return [(names[i], names[j], count, count / sum(counts[i])) for count, i, j in top]


def facts(data: Json) -> list[tuple[str, str]]:
    """The data card's lines."""
    known = {what: data[key] for key, what in FACTS.items() if data.get(key) not in (None, "")}
    found = [(what, f"{value:,}" if finite(value) else str(value)) for what, value in known.items()]
    if finite(data.get("size")) and data.get("modality") == "images":
        channels = {1: ", grey", 3: ", colour"}.get(data.get("channels", 0), "")
        found.append(("Picture size", f"{data['size']} × {data['size']} pixels{channels}"))
    if finite(data.get("bytes")):
        size = data["bytes"]
        found.append(("In memory", f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"))
    names = [str(name) for name in data.get("classes") or []]
    if names:
        more = f", and {len(names) - 40} more" if len(names) > 40 else ""
        found.append((f"{len(names)} classes", ", ".join(names[:40]) + more))
    return found
