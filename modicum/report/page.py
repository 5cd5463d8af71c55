"""`render(run)`: one self-contained HTML page about a run folder, made only from the files in that folder.

Nothing is trained, loaded or downloaded, so the page can be made again at any time. Sections whose file or key is
missing are absent. The charts' JavaScript (Vega, Vega-Lite, vega-embed) is put in once; a content policy in the page
forbids every network request.
"""

from __future__ import annotations

import contextlib
import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import altair
import jinja2
import markupsafe
import vl_convert

from ..core.atomic import atomic_write
from ..core.errors import UserError
from ..modalities._files import cache_dir
from . import charts, wording
from .wording import finite

FORMAT = 1
PICTURE = re.compile(r"data:image/(png|jpeg|gif|webp|svg\+xml);base64,[A-Za-z0-9+/=]+")
CURVES = {  # metric: its title and what it means to a newcomer; those a run does not log are absent
    "loss": ("Loss", "What training makes smaller. It should fall, then level out."),
    "accuracy": ("Training accuracy", "Share of the current mini-batch that is answered right."),
    "knn": ("Online probe", "Accuracy of a nearest-neighbour vote on the features so far: is what is learned useful?"),
    "ridge": (
        "Linear probe",
        "Accuracy of a linear rule on the features so far, on training rows that the rule has not seen.",
    ),
    "rank_me": ("RankMe", "Directions in use, by the entropy of the singular values. It should not fall."),
    "alignment": ("Alignment", "Squared distance of two views of a row on the unit sphere: lower is closer."),
    "uniformity": ("Uniformity", "How evenly rows cover the unit sphere: lower is more even, 0 is one point."),
    "unused": ("Unused dimensions", "Share of dimensions that hardly vary."),
    "deviation": (
        "Deviation of dimensions",
        "Standard deviation of the dimensions: their median (line), 10 % quantile (dashes), and range (band). "
        "A dimension at 0 says nothing of a row.",
    ),
    "error": ("Reconstruction error", "Mean error of a token that is rebuilt from the row's code."),
    "kl": ("KL divergence", "Nats that a row's code says beyond what is drawn at random. Near 0, it is not used."),
    "triplets": ("Triplets", "Share of the labelled rows that have a triplet to learn from."),
    "rank": ("Effective rank", "How many directions the features really use. Near 1, the encoder has collapsed."),
    "spread": ("Spread", "How far apart features of different samples lie. Near 0, the encoder has collapsed."),
    "projected": ("Spread of projections", "How far apart the projection head puts samples. Near 0, it has collapsed."),
    "lr": ("Learning rate", "The size of the steps, set by the schedule."),
}
PROBES = {"knn", "ridge"}
SEEN = "The encoder has seen labels of training rows, on which this is measured: it is optimistic."
PERCENT = {"accuracy", "knn", "ridge", "unused", "triplets"}
QUIET = {"step", "seconds", "rate", "epoch"}  # logged numbers that tell a reader nothing as a curve


def render(run: Path) -> Path:
    """Write `report.html` into the run folder and return its path.

    Errors: `UserError` when spec.json is missing, is no JSON object or has a newer format, or when another of the
    run's JSON files cannot be read.
    """
    run = Path(run)
    spec = _spec(run)
    results, exhibits = _read(run / "results.json"), _read(run / "exhibits.json")
    metrics, torn = _metrics(run / "metrics.jsonl")
    data = spec.get("data") or {}
    points = [_point(point) for point in _targets(exhibits.get("points") or [], data)]
    curves, drawings = _curve_keys(metrics), _drawings(results, metrics, points)
    page = (
        environment()
        .get_template("page.html")
        .render(
            spec=spec,
            data=data,
            results=results,
            exhibits=exhibits,
            score=wording.score_of(results),
            lead=wording.lead(spec, results, metrics),
            tiles=wording.tiles(results, metrics, data),
            contestants=wording.ranked(results),
            curves=[(key, *_words(key, data)) for key in curves],
            drawings=drawings,
            points=points,
            targets=any(point["target"] for point in points),
            neighbours=_neighbours(exhibits, points),
            mistakes=_at(points, exhibits.get("mistakes")),
            reconstructions=_reconstructions(exhibits),
            confused=wording.confused(results.get("confusion") or {}),
            facts=wording.facts(data),
            bad=data.get("bad") or [],
            warnings=_warnings(data, torn),
            commands=[*(spec.get("history") or []), *filter(None, [spec.get("command")])],
            pixelated=finite(data.get("size")) and data["size"] <= 48,
            specs=script_json(drawings),
            bundle=markupsafe.Markup(bundle()),
        )
    )
    target = run / "report.html"
    atomic_write(target, page.encode("utf-8", errors="replace"))  # a lone surrogate in a file name is no reason to fail
    return target


# ---- reading ---------------------------------------------------------------------------------------------------------


def _spec(run: Path) -> dict[str, Any]:
    """The run's spec.json, which alone must be there."""
    path = run / "spec.json"
    if not path.is_file():
        raise UserError(f"{run} is no run folder: it has no spec.json; give a folder that a modicum command wrote")
    spec = _read(path)
    if finite(spec.get("format")) and spec["format"] > FORMAT:
        raise UserError(f"{path} has format {spec['format']}, this modicum reads up to {FORMAT}: upgrade modicum")
    return spec


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): restore the file, or run the command again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a JSON {type(found).__name__}, wanted an object: run the command again")
    return found


def _metrics(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The logged steps, and how many lines could not be read (a killed run may leave half a last line)."""
    rows, torn = [], 0
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for line in filter(str.strip, lines):
        row = None
        with contextlib.suppress(ValueError):
            row = json.loads(line)
        if isinstance(row, dict):
            rows.append(row)
        else:
            torn += 1
    return rows, torn


def _picture(uri: Any) -> str | None:
    """`uri` if it is an inline picture; anything else could load from a network or break out of the markup."""
    return uri if isinstance(uri, str) and PICTURE.fullmatch(uri) else None


def _targets(points: list[dict[str, Any]], data: dict[str, Any]) -> list[dict[str, Any]]:
    """The points with a regression's labels as numbers: where no classes are known and over 20 numbers occur."""
    labels = {point["label"] for point in points if point.get("label") is not None}
    if data.get("classes") or len(labels) <= 20:
        return points
    try:
        return [p | {k: float(p[k]) for k in ("label", "predicted") if p.get(k) is not None} for p in points]
    except ValueError:  # words: classes after all
        return points


def _point(point: dict[str, Any]) -> dict[str, Any]:
    """One exhibit with every field present, its picture checked."""
    names = ("x", "y", "label", "predicted", "confidence", "id", "text")
    found = {name: point.get(name) for name in names}
    label, wrong = found["label"], charts.is_wrong(point)
    checked = {"thumb": _picture(point.get("thumb")), "wrong": wrong, "target": charts.is_target(label)}
    return found | checked | {"shown": wording.shown(label)}


def _at(points: list[Any], indices: Any) -> list[Any]:
    """The points at `indices`; those outside are left out."""
    return [points[i] for i in indices or [] if 0 <= i < len(points)]


def _neighbours(exhibits: dict[str, Any], points: list[Any]) -> list[tuple[Any, list[Any]]]:
    """(query, its neighbours) of every row of the strip."""
    rows = exhibits.get("neighbours") or []
    return [(query, _at(points, row.get("found"))) for row in rows for query in _at(points, [row.get("query", -1)])]


def _reconstructions(exhibits: dict[str, Any]) -> list[dict[str, Any]]:
    """Inputs and outputs as pictures or, where they are none, as words."""

    def side(value: Any) -> dict[str, Any]:
        picture = _picture(value)
        return {"thumb": picture, "text": None if picture else str(value)}

    rows = [row for row in exhibits.get("reconstructions") or [] if row.get("input") and row.get("output")]
    return [row | {key: {"id": row.get("id")} | side(row[key]) for key in ("input", "output")} for row in rows]


def _warnings(data: dict[str, Any], torn: int) -> list[str]:
    found = list(data.get("warnings") or [])
    return [*found, f"metrics.jsonl: {torn} unreadable line{'s' if torn > 1 else ''} skipped"] if torn else found


# ---- drawing and writing ---------------------------------------------------------------------------------------------


def _curve_keys(metrics: list[dict[str, Any]]) -> list[str]:
    """The metrics to draw: the known ones first, then up to six of the objective's own."""
    logged = {key for row in metrics if finite(row.get("step")) for key, value in row.items() if finite(value)}
    if not logged.isdisjoint(charts.DEVIATIONS):
        logged = logged - set(charts.DEVIATIONS) | {"deviation"}  # one chart
    own = sorted(logged - set(CURVES) - QUIET)
    return [key for key in CURVES if key in logged] + own[:6]


def _words(key: str, data: dict[str, Any]) -> tuple[str, str]:
    """The title of a metric's chart and the words under it."""
    title, note = CURVES.get(key, (key, ""))
    return title, f"{note} {SEEN}" if key in PROBES and data.get("labels_used") else note


def _drawings(results: dict[str, Any], metrics: list[Any], points: list[Any]) -> dict[str, Any]:
    """Every chart of the page as Vega-Lite, by the id of its box."""
    score, matrix = wording.score_of(results), results.get("confusion") or {}
    found = {
        f"curve-{key}": charts.curve(metrics, key, CURVES.get(key, (key,))[0], percent=key in PERCENT)
        for key in _curve_keys(metrics)
    }
    found["curve-deviation"] = charts.deviations(metrics, CURVES["deviation"][0])
    found["contestants"] = charts.contestants(wording.ranked(results), score, reference=results.get("reference"))
    found["map"] = charts.embedding_map(points)
    found["scatter"] = charts.scatter(results.get("scatter") or [], str(results.get("unit") or ""))
    if matrix.get("classes") and matrix.get("counts"):
        found["confusion"] = charts.confusion(matrix["classes"], matrix["counts"])
    return {key: chart.to_dict() for key, chart in found.items() if chart is not None}


def bundle() -> str:
    """The charts' JavaScript. Bundling takes seconds, so it is kept in the user's cache, a file a version."""
    language = ".".join(altair.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    known = language in vl_convert.get_vegalite_versions()
    kept = cache_dir() / f"charts-{version('vl-convert-python')}-{language if known else 'default'}.js"
    with contextlib.suppress(OSError):
        if text := kept.read_text(encoding="utf-8"):
            return text
    text = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", language if known else None)
    text = re.sub(r"<(?=/script|script|!--)", r"\\x3c", text, flags=re.IGNORECASE)  # would end the <script> element
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not the report
        atomic_write(kept, text.encode())
    return text


def script_json(value: Any) -> markupsafe.Markup:
    """JSON that is safe inside <script>: no "</script>" or "<!--" in a class name can end or change the element."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return markupsafe.Markup(text)


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def environment() -> jinja2.Environment:
    """The templates of this folder, escaped."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    env = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    env.filters |= {"seconds": wording.seconds, "tidy": wording.tidy, "shown": wording.shown, "pretty": _pretty}
    return env
