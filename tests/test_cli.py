"""The command line: what goes to stdout and what to stderr, exit codes, help, lists, and words before long work."""

from __future__ import annotations

import inspect
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import small
import typer.main
from typer.testing import CliRunner

import modicum
from modicum import Run
from modicum.cli import VERBS, app
from modicum.verbs._common import bar, console


def run(*arguments: object, code: int = 0) -> Any:
    """The result of a command in this process; its exit code is checked."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def process(*arguments: object, code: str | None = None) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own; `code` runs before it."""
    start = "import sys; from modicum.cli import main; sys.argv[0] = 'modicum'"
    command = [
        sys.executable,
        *(["-c", f"{start}\n{code}\nmain()"] if code else ["-m", "modicum"]),
        *map(str, arguments),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_no_arguments_show_the_help() -> None:
    words = run().stdout
    for name in VERBS:
        assert name in words
    assert run("--help").stdout == words


def test_version() -> None:
    assert run("--version").stdout.strip() == modicum.__version__


def test_an_unknown_command_is_the_users_mistake() -> None:
    assert "No such command" in run("pretain", code=2).stderr


@pytest.mark.parametrize("name", VERBS)
def test_help_describes_every_option(name: str) -> None:
    words = run(name, "--help").stdout
    first = (inspect.getdoc(VERBS[name]) or "").split("\n")[0]
    assert first in words
    for parameter in COMMANDS[name].params:
        assert parameter.help, parameter.name
        if parameter.opts[0].startswith("-"):
            assert parameter.opts[-1] in words


@pytest.mark.parametrize("name", VERBS)
def test_a_command_takes_what_its_function_takes(name: str) -> None:
    """Same names, same defaults, and --json besides."""
    own = {p.name: p for p in COMMANDS[name].params}
    assert own.pop("as_json").opts == ["--json"]
    parameters = inspect.signature(VERBS[name]).parameters
    assert list(own) == list(parameters)
    for key, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty:
            assert own[key].required
        else:
            assert own[key].default == (parameter.default if parameter.default is not None else None)
    assert {"seed", "device", "force"} <= set(own)


def test_lists_show_names_arguments_and_defaults() -> None:
    words = run("list").stdout
    for name in ("simclr", "autoencoder", "supervised", "convnet", "mlp", "digits", "fashion-mnist", "lp-ft", "top:K"):
        assert name in words
    encoders = {row["name"]: row for row in json.loads(run("list", "encoders", "--json").stdout)["items"]}
    assert "width=32" in encoders["convnet"]["arguments"]
    assert "norm='batch'" in encoders["convnet"]["arguments"]
    assert "grid" not in encoders["convnet"]["arguments"]
    assert all(row["what"] for row in encoders.values())
    assert "unknown list 'encoder'; valid: encoders, " in run("list", "encoder", code=2).stderr


def test_pretrain_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One JSON object is all of stdout; the words, a bad image among them, go to stderr and to the report."""
    monkeypatch.setenv("MODICUM_CACHE", str(tmp_path / "cache"))  # nothing is packed before
    data = small.folder(tmp_path / "unicode né", classes=("été", "日本"))
    small.cut(data / "été" / "000.png")
    options = ("--encoder", "convnet:width=8,stages=2", "--steps", 3, "--batch", 8, "--device", "cpu")
    done = process("pretrain", data, *options, "--out", tmp_path / "rün", "--skip-bad", "--json")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1
    found = json.loads(lines[0])
    assert found["run"] == str(tmp_path / "rün")
    assert found["metrics"]["step"] == 3
    assert "warning: skipped 1 bad row(s) of unicode né" in done.stderr
    assert "into 0.0 MB of 10×10 pixels" in done.stderr, "the bytes are said before packing"
    assert re.search(r"on 31 rows .*: 3 steps of 8 rows, about \d+ s on cpu", done.stderr)
    page = Path(found["report"]).read_text("utf-8")
    assert "000.png" in page
    assert "image file is truncated" in page


def test_a_users_mistake_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = process("pretrain", tmp_path / "nothing", "--json")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: '{tmp_path / 'nothing'}' is neither a path that exists nor a built-in")
    assert "Traceback" not in done.stderr


def test_a_mistake_of_ours_exits_with_1_and_says_where(tmp_path: Path) -> None:
    broken = "import modicum.verbs.pretrain as p\ndef no(*_): raise RuntimeError('ours')\np.open_data = no"
    done = process("pretrain", tmp_path, code=broken)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "RuntimeError: ours" in done.stderr


def test_ctrl_c_says_how_to_go_on(images: Path, tmp_path: Path) -> None:
    stop = "from modicum import Run\ndef no(*_): raise KeyboardInterrupt\nRun.log = no"
    options = ("--encoder", "convnet(width=8)", "--steps", 3, "--out", tmp_path / "run", "--device", "cpu")
    done = process("pretrain", images, *options, code=stop)
    assert done.returncode == 130
    assert f"stopped; modicum pretrain --resume {tmp_path / 'run'}" in done.stderr
    assert "Traceback" not in done.stderr
    assert Run.open(tmp_path / "run").spec["command"].startswith("modicum pretrain ")


@pytest.mark.usefixtures("quick")
def test_finetune_says_what_it_does_and_prints_a_table(pre: Run, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    done = run("finetune", pre.path, images, "--method", "probe", "--steps", 2, "--seeds", 2, "--out", out)
    assert "finetune on 32 labelled rows, 2 repeats, 8 test rows: scratch, probe, logistic regression" in done.stderr
    assert re.search(r"scratch took \d+ s: at most about \d+ s to go", done.stderr)
    for words in (
        "contestant",
        "95 % interval",
        "scratch",
        "probe",
        "SVM",
        "1-NN",
        "2 repeats",
        str(out / "report.html"),
    ):
        assert words in done.stdout
    again = ("--method", "probe", "--steps", 2, "--seeds", 2, "--out", out, "--force", "--json")
    as_json = run("finetune", pre.path, images, *again)
    results = json.loads(as_json.stdout)["results"]
    assert [c["name"] for c in results["contestants"]][:2] == ["scratch", "probe"]
    assert results["test_rows"] == 8


def test_using_a_run(tuned: Run, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "p.parquet"
    done = run("predict", tuned.path, images, "-o", out)
    assert done.stdout.strip() == str(out)
    assert "40 rows of images -> " in done.stderr
    found = json.loads(run("predict", tuned.path, images, "-o", out, "--force", "--json").stdout)
    assert found == {"output": str(out), "rows": 40, "columns": pq.read_table(out).column_names}
    assert run("embed", tuned.path, images, "-o", tmp_path / "e.parquet").exit_code == 0
    assert run("report", tuned.path).stdout.strip() == str(tuned.path / "report.html")
    assert json.loads(run("report", tuned.path, "--json").stdout) == {"output": str(tuned.path / "report.html")}


def test_names_are_printed_as_they_are(tmp_path: Path, table: Path) -> None:
    """:x: is no emoji and [red] no colour."""
    odd = tmp_path / "[red]:x:.csv"
    shutil.copy(table, odd)
    assert "[red]:x:.csv has no label column 'n'" in run("pretrain", odd, "--label", "n", code=2).stderr


def test_a_terminal_shows_a_bar_with_rate_and_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    master, worker = pty.openpty()
    with os.fdopen(worker, "w") as terminal:
        monkeypatch.setattr(console, "_file", terminal)
        monkeypatch.setattr(console, "is_interactive", True)  # decided when the console was made
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "120")
        assert console.is_terminal
        with bar(10, "pretrain", "rows") as shown:
            shown.to(4, "loss 1.5", 256)
            assert shown.progress is not None
            shown.progress.refresh()
        seen = ""
        while select.select([master], [], [], 0.2)[0]:
            seen += os.read(master, 1 << 16).decode()
    os.close(master)
    assert "4/10" in seen
    assert re.search(r"[\d,]+ rows/s  loss 1.5", seen)
    assert re.search(r"[\d-]:[\d-]{2}:[\d-]{2}", seen), "the remaining time, once it is known"


def test_no_terminal_shows_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with bar(10, "pretrain", "rows") as shown:
        shown.to(4, "loss 1.5", 256)
    assert capsys.readouterr() == ("", "")
