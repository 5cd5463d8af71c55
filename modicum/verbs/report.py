"""`modicum report`: the page of a run, made again from the run's own files."""

from __future__ import annotations

from pathlib import Path

from modicum.report.page import render
from modicum.training.run import Run


def report(run: str | Path | Run, *, seed: int = 0, device: str = "auto", force: bool = False) -> Path:
    """Write the page RUN/report.html again, from the run's own files.

    It replaces only the page, which holds nothing of its own. Returns its path.
    """
    del seed, device, force  # the page is a function of the run's files; every verb takes the same arguments
    opened = run if isinstance(run, Run) else Run.open(run)
    return render(opened.path)
