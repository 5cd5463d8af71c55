"""`modicum diagnose`: every diagnostic from the command line and from Python, with its files, page and refusals."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import modicum
from modicum.cli import app
from modicum.core.errors import UserError
from modicum.diagnostics._finding import Finding, lines
from modicum.report.finding import page
from modicum.training import many, states
from modicum.verbs.diagnose import diagnostics

QUICK = {
    "bias-variance": ["--limit", "120", "--steps", "20", "--splits", "3", "--seeds", "1"],
    "complexity": ["--seeds", "3", "--over", "2,4", "--limit", "150"],
    "double-descent": ["--limit", "60", "--draws", "3", "--epochs", "3", "--values", "2,8,16"],
    "learning-curve": ["--sizes", "20,40,60,80", "--seeds", "3", "--steps", "20"],
    "random-features": ["--limit", "40", "--draws", "4", "--widths", "60"],
}


def test_every_diagnostic_has_a_row_here() -> None:
    assert sorted(QUICK) == sorted(diagnostics())


@pytest.mark.parametrize("name", QUICK)
def test_a_diagnostic_writes_rows_charts_words_and_a_page(name: str, tmp_path: Path) -> None:
    out = tmp_path / "found"
    done = CliRunner().invoke(app, ["diagnose", name, "digits", *QUICK[name], "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["name"] == name
    written = pq.read_table(out / "rows.parquet")
    assert len(told["rows"]) == written.num_rows > 0
    assert set(written.column_names) == {key for row in told["rows"] for key in row}
    for key in written.column_names:
        assert written[key].null_count == sum(row.get(key) is None for row in told["rows"])
    kept = json.loads((out / "finding.json").read_text())
    assert kept["words"] == told["words"]
    assert len(kept["words"].split()) > 20
    charts = sorted(p.stem for p in out.glob("*.png"))
    assert charts
    assert charts == sorted(p.stem for p in out.glob("*.svg"))
    html = (out / "report.html").read_text()
    assert "vegaEmbed" in html
    assert "http-equiv" in html
    again = CliRunner().invoke(app, ["diagnose", name, "digits", *QUICK[name], "--out", str(out)])
    assert again.exit_code == 2
    assert "--force to replace it" in again.output


@pytest.mark.parametrize("name", diagnostics())
def test_every_option_has_words(name: str) -> None:
    shown = CliRunner().invoke(app, ["diagnose", name, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    for key in [*inspect.signature(diagnostics()[name]).parameters, "workers", "device", "out", "force"]:
        assert key == "data" or "--" + key.replace("_", "-") in shown.output


def test_python_returns_a_finding_that_shows_itself(tmp_path: Path) -> None:
    found = modicum.diagnose("random-features", "digits", limit=40, draws=4, widths=60, out=tmp_path / "f")
    assert isinstance(found, Finding)
    assert found.folder == tmp_path / "f"
    assert found._repr_html_().count("data:image/png;base64,") == len(found.charts)
    assert found.svg(next(iter(found.charts))).startswith("<svg")


class Stop(Exception):
    pass


def test_a_killed_diagnosis_goes_on_and_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = {"limit": 60, "draws": 3, "epochs": 30, "values": "2,16", "lr": 1e-2}
    whole = modicum.diagnose("double-descent", "digits", **ask)
    monkeypatch.setattr(many, "SAVE_EVERY", 0.0)
    original, calls = states.save, []

    def save(*given: object) -> None:
        original(*given)  # type: ignore[arg-type]
        calls.append(1)
        if len(calls) == 40:
            raise Stop

    monkeypatch.setattr(states, "save", save)
    with pytest.raises(Stop):
        modicum.diagnose("double-descent", "digits", out=tmp_path / "o", **ask)
    with pytest.raises(UserError, match="holds other members than these"):
        modicum.diagnose("double-descent", "digits", out=tmp_path / "o", **{**ask, "lr": 1e-3})
    again = modicum.diagnose("double-descent", "digits", out=tmp_path / "o", **ask)
    assert len(calls) < 2 * 90
    assert again.rows == whole.rows
    assert not (tmp_path / "o" / "members").exists()


@pytest.mark.parametrize("left", [["members"], ["finding.json", "members"], ["finding.json", "rows.parquet"]])
def test_force_starts_anew_whatever_an_earlier_run_left(left: list[str], tmp_path: Path) -> None:
    for name in left:
        (tmp_path / name).mkdir() if name == "members" else (tmp_path / name).write_text("{}")
    if "members" in left:
        (tmp_path / "members" / "01").mkdir()
        (tmp_path / "members" / "01" / "members.json").write_text('{"digest": "of others", "members": 1, "torch": "0"}')
    ask = {"limit": 60, "draws": 3, "epochs": 2, "values": "2,4"}
    with pytest.raises(UserError, match="start anew with --force" if "members" in left else "--force to replace it"):
        modicum.diagnose("double-descent", out=tmp_path, **ask)
    modicum.diagnose("double-descent", out=tmp_path, force=True, **ask)
    assert not (tmp_path / "members").exists()
    assert (tmp_path / "rows.parquet").stat().st_size > 100


def test_bad_asks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"diagnostic 'double-decent'.*double-descent"):
        modicum.diagnose("double-decent")
    with pytest.raises(UserError, match="option of diagnose complexity 'depth'"):
        modicum.diagnose("complexity", depth=3)
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match="it is no finding of modicum diagnose"):
        modicum.diagnose("random-features", out=tmp_path, force=True)
    assert (tmp_path / "mine.txt").read_text() == "kept"


def test_a_page_escapes_what_it_shows_and_says_how_much_is_left_out() -> None:
    rows = [{"x": float(k), "y": k / 2, "of": "<script>alert(1)</script>"} for k in range(500)]
    chart = lines(rows, "x", "y", by="of", heading="</script><b>")
    text = page(Finding("a", rows, {"c": chart}, "<b>words</b>", {"seconds": 1.0}))
    assert "<script>alert" not in text
    assert "<b>words" not in text
    assert "the first 400; all are in rows.parquet" in text


def test_lines_leave_gaps_for_what_cannot_be_drawn() -> None:
    rows = [{"x": 1, "y": 2.0}, {"x": 2, "y": float("nan")}, {"x": 3, "y": float("inf")}, {"x": 4, "y": -1.0}]
    (kept,) = lines(rows, "x", "y", log="y").to_dict()["datasets"].values()
    assert [r["x"] for r in kept] == [1]


def test_diagnose_runs_as_a_program(tmp_path: Path) -> None:
    ask = [sys.executable, "-m", "modicum", "diagnose", "double-descent", "--help"]
    done = subprocess.run(ask, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0
    assert "interpol" in done.stdout or "width" in done.stdout
