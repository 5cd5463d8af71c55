"""A diagnostic's finding as files: rows in Parquet, charts as PNG and SVG, one HTML page, the words in JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import markupsafe
import pyarrow as pa
import pyarrow.parquet as pq

from modicum.core.atomic import atomic_path, atomic_write
from modicum.core.version import VERSION
from modicum.diagnostics._finding import Finding

from .page import bundle, environment, script_json


def write(finding: Finding, out: Path) -> Path:
    """Write the finding into the folder and return the path of its page.

    rows.parquet, CHART.png and CHART.svg of every chart, finding.json (words and facts), report.html.
    """
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(out / "rows.parquet") as temporary:
        columns = _columns(finding)  # pyarrow takes those of the first row alone
        pq.write_table(pa.table({c: [row.get(c) for row in finding.rows] for c in columns}), temporary)
    for name in finding.charts:
        atomic_write(out / f"{name}.png", finding.png(name))
        atomic_write(out / f"{name}.svg", finding.svg(name).encode())
    facts = {"name": finding.name, "words": finding.words, "facts": finding.facts, "modicum": VERSION}
    atomic_write(out / "finding.json", json.dumps(finite(facts), indent=1).encode())
    atomic_write(out / "report.html", page(finding).encode())
    finding.folder = out
    return out / "report.html"


def finite(value: Any) -> Any:
    """The value as JSON has it: NaN and infinity, which it lacks, are null."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)


def page(finding: Finding) -> str:
    """One self-contained HTML page: the words, the charts, and the rows as a table."""
    columns = _columns(finding)
    text: str = (
        environment()
        .get_template("finding.html")
        .render(
            finding=finding,
            columns=columns,
            cells=[[_cell(row.get(c)) for c in columns] for row in finding.rows[:400]],
            specs=script_json({name: chart.to_dict() for name, chart in finding.charts.items()}),
            bundle=markupsafe.Markup(bundle()),
        )
    )
    return text


def _columns(finding: Finding) -> list[str]:
    """The keys of all rows, in the order in which they first appear."""
    return list(dict.fromkeys(key for row in finding.rows for key in row))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
