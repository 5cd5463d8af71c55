"""kill -9 in the middle of training and of a write: the resumed run ends in the same bits as one that never stopped."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import modicum
from modicum.testing import same
from modicum.training.run import Run

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")

STEPS = 90
ARGUMENTS = {"steps": STEPS, "batch": 64, "encoder": "convnet:width=8", "save_every": 3, "limit": 400, "seed": 5}
COMMAND = [text for k, v in ARGUMENTS.items() for text in (f"--{k.replace('_', '-')}", str(v))]

KILLED_WHILE_WRITING = """
import os, signal, sys
import safetensors.torch
from modicum.training import run

calls = 0

def save_file(tensors, path, metadata=None):
    global calls
    calls += 1
    data = safetensors.torch.save(tensors, metadata)
    whole = calls < 3
    with open(path, "wb") as file:
        file.write(data if whole else data[: len(data) // 2])
        file.flush()
        os.fsync(file.fileno())
    if not whole:
        os.kill(os.getpid(), signal.SIGKILL)

run.save_file = save_file
sys.argv = ["modicum", *sys.argv[1:]]
from modicum.cli import main
main()
"""


def finished(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The final weights, and the metrics without the clock's."""
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return load_file(path / "model.safetensors"), [
        {k: v for k, v in r.items() if k not in ("seconds", "rate")} for r in rows
    ]


def no_report(patch: pytest.MonkeyPatch) -> None:
    """Runs within this process make no report."""
    for name, stub in (("render", lambda *_: None), ("exhibits", lambda *_, **__: {})):
        patch.setattr(f"modicum.verbs.pretrain.{name}", stub, raising=False)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A run that nothing disturbs."""
    path = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        no_report(patch)
        modicum.pretrain("digits", out=path, device="cpu", **ARGUMENTS)  # type: ignore[arg-type]
    return finished(path)


def modicum_command(*arguments: str, code: str | None = None) -> list[str]:
    return [sys.executable, *(["-c", code] if code else ["-m", "modicum"]), "pretrain", "--device", "cpu", *arguments]


def start(command: list[str], errors: Path) -> subprocess.Popen[bytes]:
    with errors.open("wb") as file:
        return subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )


def killed_at(process: subprocess.Popen[bytes], run: Path, lines: int, errors: Path) -> None:
    """Kill -9 as soon as metrics.jsonl has that many lines."""
    file, deadline = run / "metrics.jsonl", time.monotonic() + 180
    first = file.read_bytes().count(b"\n") if file.exists() else 0
    assert first < lines
    while not file.exists() or file.read_bytes().count(b"\n") < lines:
        assert process.poll() is None, f"ended by itself before line {lines}: {errors.read_text()}"
        assert time.monotonic() < deadline, f"no line {lines} in three minutes: {errors.read_text()}"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (run / "model.safetensors").exists(), "the run was over before it was killed"


def resumed_at(errors: Path) -> int:
    """The step at which a resumed run says that it goes on."""
    words = errors.read_text()
    assert "resuming at step" in words, words
    assert "warning" not in words.lower(), words
    return int(words.split("resuming at step ")[1].split()[0].replace(",", ""))


def test_killed_again_and_again_the_run_ends_in_the_same_bits(tmp_path: Path, reference: Any) -> None:
    seed = random.SystemRandom().randrange(10**6)
    rng, run, errors = random.Random(seed), tmp_path / "run", tmp_path / "errors"
    print("random points from seed", seed)
    target = rng.randint(6, 20)
    killed_at(start(modicum_command("digits", "--out", str(run), *COMMAND), errors), run, target, errors)
    assert Run.open(run).spec["train"]["steps"] == STEPS
    for _ in range(2):
        before, target = target, target + rng.randint(6, 20)
        killed_at(start(modicum_command("--resume", str(run)), errors), run, target, errors)
        assert 0 < before - 5 <= resumed_at(errors) < target
    writer = subprocess.run(
        modicum_command("--resume", str(run), code=KILLED_WHILE_WRITING),
        stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert writer.returncode == -signal.SIGKILL, writer.stderr
    assert [p for p in (run / "state").glob(".tmp*") if p.stat().st_size], "the write was not cut off"
    assert not (run / "model.safetensors").exists()
    last = start(modicum_command("--resume", str(run)), errors)
    assert last.wait(timeout=300) == 0, errors.read_text()
    assert target - 5 <= resumed_at(errors) < STEPS
    tensors, rows = finished(run)
    assert same(tensors, reference[0]), "the weights differ"
    assert rows == reference[1], "the metrics differ"
    assert [r["step"] for r in rows] == list(range(1, STEPS + 1))
    assert not list((run / "state").glob(".tmp*"))
    assert (run / "report.html").exists()


def test_killed_before_anything_was_saved_it_starts_again_to_the_same_bits(
    tmp_path: Path, reference: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_report(monkeypatch)
    log = Run.log

    def stop(self: Run, row: dict[str, Any]) -> None:
        if row["step"] == 4:
            raise KeyboardInterrupt
        log(self, row)

    monkeypatch.setattr(Run, "log", stop)
    with pytest.raises(KeyboardInterrupt):
        modicum.pretrain("digits", out=tmp_path / "run", device="cpu", **{**ARGUMENTS, "save_every": 1000})  # type: ignore[arg-type]
    assert len(Run.open(tmp_path / "run").metrics()) == 3
    monkeypatch.setattr(Run, "log", log)
    capsys.readouterr()
    modicum.pretrain(resume=tmp_path / "run", device="cpu")
    assert "nothing was saved yet, starting at step 0" in capsys.readouterr().err
    tensors, rows = finished(tmp_path / "run")
    assert [r["step"] for r in rows] == list(range(1, STEPS + 1))
    assert rows == reference[1], "a run resumed at step 0 starts from other weights"
    assert same(tensors, reference[0])
