"""The code in docs/ runs, and does what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from modicum.probes import knn
from modicum.training.apply import embed

DOCS = sorted((Path(__file__).parent.parent / "docs").glob("*.md"))


def code(page: Path) -> str:
    return "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S))


def test_simclr_in_thirty_lines(capsys: pytest.CaptureFixture[str]) -> None:
    page = next(page for page in DOCS if page.name == "simclr.md")
    source = code(page)
    lines = [line for line in source.splitlines() if line.strip() and not line.startswith(("import ", "from "))]
    assert len(lines) <= 30, len(lines)
    room: dict[str, Any] = {}
    exec(compile(source, str(page), "exec"), room)
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert losses[-1] < losses[0]
    labels = room["data"].labels().values
    z = embed(room["objective"].encoder, room["batches"].source, room["rows"])
    assert (knn(z[:1200], labels[:1200], z[1200:]) == labels[1200:]).mean() > 0.9


def test_many_models_as_the_page_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    page = next(page for page in DOCS if page.name == "diagnostics.md")
    exec(compile(code(page), str(page), "exec"), {})
    found = [float(v) for v in re.findall(r": ([\d.]+)", capsys.readouterr().out)]
    assert len(found) == 3
    assert min(found) < 0.15
    assert max(found) > 2 * min(found)
