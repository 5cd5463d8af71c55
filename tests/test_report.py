"""The report: what is on the page, what is left out, that nothing can break out of it, and that a browser draws it."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import vl_convert
from PIL import Image

from modicum.core.errors import UserError
from modicum.maths.representation import QUANTILES
from modicum.report import charts
from modicum.report.page import render
from modicum.report.wording import Score

CLASSES = ["Coat", "Shirt", "</script><img src=x onerror=alert(1)>"]
SECTIONS = ("scores", "training", "map", "neighbours", "mistakes", "confusion", "reconstructions", "data", "warnings")


def picture(grey: int) -> str:
    """A small PNG as a data URI."""
    file = io.BytesIO()
    Image.new("L", (8, 8), grey).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def spec(**data: Any) -> dict[str, Any]:
    known = {"name": "toy", "modality": "images", "rows": 60000, "test_rows": 10000, "classes": CLASSES, "size": 8}
    known |= {
        "bad": [[3, "a<b>.png", "not an image"]],
        "warnings": ["two rows are equal"],
        "source": "https://a.example",
    }
    made = {"format": 1, "verb": "finetune", "version": "0.1.0", "created": "2026-11-23T16:00:00Z", "seed": 0}
    made |= {"command": "modicum finetune RUN toy", "history": ["modicum pretrain toy"], "threads": 2}
    return made | {"parts": {"trunk": {"name": "mlp"}}, "versions": {"torch": "2.13.0"}, "data": known | data}


def results() -> dict[str, Any]:
    gain = {"mean": 0.074, "low": 0.051, "high": 0.093, "verdict": "gain"}
    loss = {"mean": -0.039, "low": -0.06, "high": -0.01, "verdict": "loss"}
    rows = [
        {"name": "pixels + 1-NN", "mean": 0.671, "low": 0.65, "high": 0.69, "kind": "baseline", "versus": loss},
        {"name": "lp-ft", "mean": 0.784, "low": 0.761, "high": 0.802, "kind": "pretrained", "versus": gain},
        {"name": "scratch", "mean": 0.71, "low": 0.68, "high": 0.73, "kind": "scratch", "seconds": 200},
        {"name": "broken", "mean": math.nan, "kind": "baseline"},
    ]
    return {
        "score": "accuracy",
        "contestants": rows,
        "reference": "scratch",
        "labels": 100,
        "labels_per_class": 10,
        "verdict": "Pre-training helped.",
        "confusion": {"classes": CLASSES, "counts": [[9, 1, 0], [2, 8, 0], [0, 0, 0]]},
    }


def exhibits() -> dict[str, Any]:
    points: list[dict[str, Any]] = [
        {
            "x": i % 7,
            "y": i % 5,
            "label": CLASSES[i % 3],
            "predicted": CLASSES[i % 2],
            "confidence": 0.97,
            "id": f"n{i}",
        }
        | {"thumb": picture(9 * i), "text": None}
        for i in range(24)
    ]
    points[1] |= {"thumb": "https://tracker.example/a.png", "text": "words <i>instead</i>"}
    return {
        "points": points,
        "map": "t-SNE of 24 test embeddings",
        "neighbours": [{"query": 0, "found": [3, 1, 999]}],
        "mistakes": [2, 1],
        "reconstructions": [{"input": picture(0), "output": picture(99), "error": 0.01, "id": "n0"}],
    }


def write(run: Path, **files: Any) -> Path:
    """A run folder with `files` as JSON."""
    run.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (run / f"{name}.json").write_text(json.dumps(value))
    return run


def metrics(run: Path) -> None:
    """Training metrics with a value that is not finite, a name with odd characters and a torn last line."""
    rows = [{"step": i, "loss": math.nan if i == 5 else 1 / (i + 1), "rank": i, "my/odd.key": i} for i in range(100)]
    rows[50] |= {"knn": 0.71, **{f"deviation_{name}": k for k, name in enumerate(QUANTILES)}}
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 1')


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run that has everything."""
    run = write(tmp_path_factory.mktemp("full"), spec=spec(), results=results(), exhibits=exhibits())
    metrics(run)
    return render(run)


def visible(page: Path) -> str:
    """The page without its scripts and style."""
    return re.sub(r"<(script|style)\b.*?</\1>", "", page.read_text(), flags=re.S)


def drawings(page: Path) -> dict[str, Any]:
    found = re.findall(r'<script type="application/json" id="charts">(.*?)</script>', page.read_text(), re.S)
    return json.loads(found[0]) if found else {}


def test_everything_given_is_shown(full: Path) -> None:
    text = visible(full)
    assert all(f'<section id="{name}">' in text and f'href="#{name}"' in text for name in (*SECTIONS, "reproduce"))
    assert set(re.findall(r'data-chart="([^"]+)"', text)) == set(drawings(full))
    assert {"contestants", "map", "confusion", "curve-loss", "curve-knn", "curve-deviation", "curve-my/odd.key"} <= set(
        drawings(full)
    )
    assert text.index("lp-ft") < text.index("pixels + 1-NN"), "best first"
    said = text.replace("&nbsp;", "\u00a0")
    for words in ("Pre-training helped.", "78.4\u00a0%", "76.1 to 80.2", "+7.4 points", "(+5.1 to +9.3)", "3.3 min"):
        assert words in said, words
    for words in ("−3.9 points", "metrics.jsonl: 1 unreadable line skipped", "a&lt;b&gt;.png", "modicum pretrain toy"):
        assert words in said, words
    assert 'class="tile agree"' in text
    assert 'class="tile differ"' in text
    assert "words &lt;i&gt;instead&lt;/i&gt;" in text, "rows without a picture show their text"


def test_nothing_breaks_out_or_loads(full: Path) -> None:
    page = full.read_text()
    assert page.count("</script>") == page.count("<script") == 3, "charts, bundle, drawing"
    assert "<img src=x" not in page
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//""", visible(full))
    assert "tracker.example" not in page
    assert "default-src 'none'" in page
    assert CLASSES[2] in drawings(full)["confusion"]["layer"][0]["encoding"]["x"]["scale"]["domain"]


def test_bundle_is_there_once_and_kept(full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert full.read_text().count("window.vegaEmbed=") == 1
    monkeypatch.setenv("MODICUM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("vl_convert.javascript_bundle", lambda *_: "var a='</SCRIPT><!--'")
    run = write(tmp_path / "run", spec=spec(), exhibits=exhibits())
    assert "var a='\\x3c/SCRIPT>\\x3c!--'" in render(run).read_text()
    monkeypatch.setattr("vl_convert.javascript_bundle", lambda *_: pytest.fail("the kept bundle was not used"))
    assert "var a=" in render(run).read_text()


def test_spec_alone_makes_a_page(tmp_path: Path) -> None:
    page = render(write(tmp_path, spec={"verb": "pretrain"}))
    text = page.read_text()
    assert not drawings(page)
    assert not re.search(r"<section|<script|undefined|None|nan", text)


@pytest.mark.parametrize("gone", ["points", "mistakes", "neighbours", "reconstructions", "map"])
def test_missing_keys_leave_their_section_out(tmp_path: Path, gone: str) -> None:
    shown = exhibits()
    del shown[gone]
    text = visible(render(write(tmp_path, spec=spec(bad=[], warnings=[]), exhibits=shown)))
    absent = {"points": ("map", "mistakes", "neighbours"), "map": ()}.get(gone, (gone,))
    for name in (*absent, "scores", "training", "warnings"):
        assert f'id="{name}"' not in text
        assert f'href="#{name}"' not in text


def test_regression_page(tmp_path: Path) -> None:
    rows = [{"name": "lp-ft", "mean": 0.52, "low": 0.44, "high": 0.58, "kind": "pretrained", "mae": 44.1}]
    found = {
        "score": "R2",
        "unit": "mg/dl",
        "mae": 44.1,
        "scatter": [[1, 2.0], [3, 2.5], [None, 1]],
        "contestants": rows,
    }
    points = [{"x": i, "y": 1, "label": f"{i / 3:.4g}", "predicted": "0.1", "text": f"age {i}"} for i in range(25)]
    shown = {"points": points, "neighbours": [{"query": 1, "found": [1, 2]}], "mistakes": [24]}
    shown["reconstructions"] = [{"input": "age 3", "output": "age <4>", "error": 1.0, "id": "n3"}]
    page = render(write(tmp_path, spec=spec(modality="tables", classes=None), results=found, exhibits=shown))
    text = visible(page)
    assert set(drawings(page)) == {"contestants", "scatter", "map"}
    for words in ("0.520", "mg/dl", "Largest errors", "is 8<", "age &lt;4&gt;"):
        assert words in text, words
    assert "viridis" in json.dumps(drawings(page)["map"]), "numbers are coloured along a scale"
    assert 'id="confusion"' not in text
    assert "0.3333" in text
    assert "tile differ" not in text, "two numbers of a regression are not right or wrong neighbours"
    assert len(next(iter(drawings(page)["scatter"]["datasets"].values()))) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no run folder"),
        ("{", "not valid JSON"),
        ("[]", "wanted an object"),
        ('{"format": 9}', "upgrade modicum"),
    ],
)
def test_bad_spec_is_a_user_error(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "spec.json").write_text(content)
    with pytest.raises(UserError, match=message):
        render(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("classes", [2, 12, 40, 100])
def test_confusion_of_any_size(classes: int) -> None:
    names = [f"c{i}" for i in range(classes)]
    counts = [[3 if i == j else int(j == 0) for j in range(classes)] for i in range(classes)]
    drawn = charts.confusion(names, counts).to_dict()
    (rows,) = drawn["datasets"].values()
    assert len(rows) == (classes**2 if classes <= 25 else 2 * classes - 1)
    assert {row["share"] for row in rows if row["true"] == "c1"} - {0} == {0.75, 0.25}
    assert 100 < drawn["height"] < 900


def test_curve_is_thinned_and_smoothed_without_inventing_values() -> None:
    rows = [{"step": i, "loss": float(i % 2)} for i in range(4000)]
    (drawn,) = charts.curve(rows, "loss", "Loss").to_dict()["datasets"].values()
    assert len(drawn) == 400
    assert drawn[-1]["step"] == 3999
    assert {row["value"] for row in drawn} == {0.5}
    assert charts.curve([{"step": 1, "loss": math.inf}], "loss", "Loss") is None


def test_probes_of_an_encoder_that_has_seen_labels_are_called_optimistic(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0, "knn": 0.9, "ridge": 0.9}')
    for used, places in ((0, 0), (20, 4)):  # the first sentence, the key number, and both curves
        text = visible(render(write(tmp_path, spec=spec(labels_used=used) | {"verb": "pretrain"})))
        assert text.count("optimistic") == places


def test_ticks_of_a_share_that_hardly_changes_differ() -> None:
    rows = [{"step": k, "knn": 0.98 + k / 1000} for k in range(12)]
    drawn = charts.curve(rows, "knn", "Probe", percent=True).to_dict() | {"width": 300}
    ticks = re.findall(r">([\d.]+%)<", vl_convert.vegalite_to_svg(drawn))
    assert len(ticks) == len(set(ticks)) > 2


def test_deviations_are_one_chart_of_all_four() -> None:
    values = {"lowest": 0.1, "tenth": 0.2, "median": 0.4, "highest": 0.9}
    rows = [{"step": k} | {f"deviation_{name}": k * v for name, v in values.items()} for k in range(900)]
    torn = [{"step": 900, "deviation_lowest": 0.0}]
    (drawn,) = charts.deviations([*rows, *torn], "Deviation").to_dict()["datasets"].values()
    assert drawn[-1]["step"] == 899
    assert len(drawn) <= 400
    last = [drawn[-1][f"deviation_{name}"] for name in values]
    assert [v / last[2] for v in last] == pytest.approx([v / 0.4 for v in values.values()])
    assert charts.deviations(torn, "Deviation") is None


def test_numbers_as_written() -> None:
    share, plain = Score("accuracy", percent=True), Score("MAE", unit="mm")
    assert (share.text(0.5), share.difference(-0.01)) == ("50.0\u00a0%", "−1.0 points")
    assert (plain.text(-2.0), plain.text(None), plain.text(math.nan)) == ("−2.000 mm", "–", "–")
    assert share.interval(-0.1, 0.2, "+") == "−10.0 to +20.0"


# A page that holds the report at two widths and reads what each says of itself; srcdoc shares this page's origin, so it
# may look inside. It points at the first dot of the map, whose tooltip must show the picture.
WRAPPER = """<!doctype html><body><style>iframe {{ border: 0; height: 900px; }}</style>
<iframe id="narrow" width="400" srcdoc="{page}"></iframe><iframe id="wide" width="1280" srcdoc="{page}"></iframe>
<pre id="found"></pre><script>
const look = async id => {{
  const inside = document.getElementById(id).contentDocument, root = inside.documentElement;
  for (let i = 0; i < 300 && !root.dataset.ready; i++) await new Promise(done => setTimeout(done, 50));
  const boxes = [...inside.querySelectorAll("[data-chart]")];
  const dot = inside.querySelector('[data-chart="map"] .mark-symbol path');
  const at = dot.getBoundingClientRect();
  const where = {{bubbles: true, clientX: at.x + at.width / 2, clientY: at.y + at.height / 2}};
  for (const kind of ["pointerover", "pointermove", "mousemove"]) dot.dispatchEvent(new PointerEvent(kind, where));
  await new Promise(done => setTimeout(done, 200));
  const shown = inside.querySelector("#vg-tooltip-element img");
  return {{...root.dataset, drawn: Object.fromEntries(boxes.map(box => [box.dataset.chart,
    box.querySelectorAll("canvas, .mark-line path, .mark-symbol path, .mark-rect path, .mark-rule line").length])),
    errors: inside.querySelectorAll(".chart-error").length, scroll: root.scrollWidth,
    image: shown && shown.src.slice(0, 22), pixels: shown && shown.naturalWidth}};
}};
onload = async () => {{
  try {{ found.textContent = JSON.stringify({{narrow: await look("narrow"), wide: await look("wide")}}); }}
  catch (error) {{ found.textContent = JSON.stringify({{error: String(error)}}); }}
}};
</script>"""


def test_browser_draws_every_chart_at_both_widths(full: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        if "CI" in os.environ:  # not an assert: pytest would print the whole environment
            pytest.fail("chromium is missing, and CI must run this test", pytrace=False)
        pytest.skip("chromium is not installed: the page was not looked at in a browser")
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(WRAPPER.format(page=html.escape(full.read_text())))
    quiet = ["gpu", "quic", "background-networking", "component-update", "sync"]
    options = ["--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{what}" for what in quiet)]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1200", "--virtual-time-budget=20000"]
    done = subprocess.run(
        [browser, *options, "--dump-dom", wrapper.as_uri()], capture_output=True, text=True, timeout=90, check=True
    )
    text = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
    assert text, done.stderr[-2000:]
    found = json.loads(html.unescape(text[1]))
    assert set(found) == {"narrow", "wide"}, found
    for name, width in (("narrow", 400), ("wide", 1280)):
        seen = found[name]
        assert seen["width"] == str(width)
        assert (seen["failed"], seen["errors"], seen["overflow"]) == ("0", 0, "false"), seen
        assert seen["scroll"] <= width, seen
        assert set(seen["drawn"]) == set(drawings(full))
        assert all(seen["drawn"].values()), seen["drawn"]
        assert (seen["image"], seen["pixels"]) == ("data:image/png;base64,", 8), "the tooltip shows the picture"
