"""A run's folder: what opens, what is refused and with which words, and that what was saved survives every accident."""

from __future__ import annotations

import errno
import json
import os
import stat
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from safetensors import SafetensorError, safe_open
from torch import nn

from modicum.core import atomic
from modicum.core.atomic import atomic_path, atomic_write
from modicum.core.errors import UserError, Warned
from modicum.core.types import Objective
from modicum.core.version import VERSION
from modicum.testing import same
from modicum.training import run as runs
from modicum.training.fit import fit
from modicum.training.optim import adamw, groups
from modicum.training.run import FORMAT, Run

Pair = tuple[Objective, torch.optim.Optimizer]


def start(text: str = "simclr(hidden=16, out=8)") -> Pair:
    objective = zoo.objective(text, "convnet(width=4, stages=2)", zoo.images)()
    return objective, adamw(groups(objective, lr=4e-3, weight_decay=0.05))


def train(pair: Pair, first: int, last: int) -> None:
    for _ in fit(pair[0], lambda _: zoo.images()[1], pair[1], steps=last, seed=0, start=first):
        pass


def states(run: Run) -> list[str]:
    return sorted(p.name for p in (run.path / "state").iterdir())


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", {"verb": "pretrain", "seed": 0, "tuple": (1, 2)})


# Making and opening


def test_what_is_created_opens(run: Run) -> None:
    opened = Run.open(run.path)
    assert opened.spec["verb"] == "pretrain"
    assert opened.spec["tuple"] == [1, 2]
    assert opened.spec["format"] == FORMAT
    assert opened.spec["versions"] == {**opened.spec["versions"], "modicum": VERSION, "torch": torch.__version__}
    assert opened.spec["threads"] == 1
    assert opened.spec["created"].endswith("+00:00")
    opened.spec["seconds"] = 1.5
    opened.save_spec()
    assert Run.open(run.path).spec == opened.spec
    assert os.listdir(run.path) == ["spec.json"]


def test_an_empty_folder_becomes_a_run_and_parents_are_made(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert Run.open(Run.create(tmp_path / "empty", {}).path)
    assert Run.open(Run.create(tmp_path / "a" / "b" / "c", {}).path)


def test_a_run_is_replaced_by_force_only(run: Run) -> None:
    run.log({"step": 1})
    with pytest.raises(UserError, match=r"run exists: choose another --out, or --force to replace it"):
        Run.create(run.path, {})
    assert run.metrics() == [{"step": 1}]
    Run.create(run.path, {"verb": "finetune"}, force=True)
    assert Run.open(run.path).spec["verb"] == "finetune"
    assert run.metrics() == []


def test_force_never_replaces_what_is_not_a_run(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"x")
    (tmp_path / "file").write_bytes(b"x")
    for name in ("photos", "file"):
        with pytest.raises(UserError, match=f"{name} exists: choose another --out"):
            Run.create(tmp_path / name, {})
        with pytest.raises(UserError, match="is not a modicum run, so --force does not replace it"):
            Run.create(tmp_path / name, {}, force=True)
    assert (tmp_path / "photos" / "cat.png").read_bytes() == (tmp_path / "file").read_bytes() == b"x"


def test_not_a_run(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("{}")
    for name, words in (
        ("folder", "it has no spec.json"),
        ("file", "it is not a folder"),
        ("nowhere", "it does not exist"),
    ):
        with pytest.raises(UserError, match=f"{name} is not a modicum run: {words}"):
            Run.open(tmp_path / name)


DAMAGED = [b"", b"{", b"[]", b"5", b"null", b'"x"', b"\xff\xfe", b'{"format": 1}', b'{"checksum": "x"}']
DAMAGED += [b'{"checksum": "x", "format": "new"}', b'{"checksum": "x", "format": null}', b'{"format": 1, "checksum']


@pytest.mark.parametrize("data", DAMAGED)
def test_a_damaged_spec(run: Run, data: bytes) -> None:
    (run.path / "spec.json").write_bytes(data)
    with pytest.raises(UserError, match=r"spec\.json is damaged: .*; restore it or make the run again"):
        Run.open(run.path)


def rewrite(run: Run, **changes: Any) -> None:
    file = run.path / "spec.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_newer_format_says_to_upgrade(run: Run) -> None:
    rewrite(run, format=FORMAT + 1)
    with pytest.raises(UserError, match=f"has format {FORMAT + 1}; modicum {VERSION} reads up to {FORMAT}: upgrade"):
        Run.open(run.path)


@pytest.mark.parametrize("changes", [{"seed": 1}, {"verb": "finetune"}, {"extra": 1}, {"tuple": [2, 1]}])
def test_a_spec_changed_by_hand_is_refused(run: Run, changes: dict[str, Any]) -> None:
    rewrite(run, **changes)
    with pytest.raises(UserError, match="was changed after it was written"):
        Run.open(run.path)


def test_a_reformatted_spec_is_still_itself(run: Run) -> None:
    file = run.path / "spec.json"
    body = json.loads(file.read_text())
    file.write_text(json.dumps(dict(reversed(body.items())), indent=4))
    assert Run.open(run.path).spec["verb"] == "pretrain"


# Metrics and JSON


def test_metrics_are_cut_back_to_a_step(run: Run) -> None:
    assert run.metrics() == []
    rows = [{"step": s, "loss": 1 / s} for s in range(1, 8)]
    for row in rows:
        run.log(row)
    assert run.metrics() == rows
    run.cut_metrics(4)
    assert run.metrics() == rows[:4]
    run.log(rows[4])
    assert run.metrics() == rows[:5]
    run.cut_metrics(0)
    assert run.metrics() == []


def test_a_line_cut_off_by_a_kill_is_no_row(run: Run) -> None:
    run.log({"step": 1})
    for rest in ('{"step": 2, "lo', '{"step": 2}'):
        (run.path / "metrics.jsonl").write_text('{"step": 1}\n' + rest)
        assert run.metrics() == [{"step": 1}]
        run.cut_metrics(5)
        run.log({"step": 2})
        assert run.metrics() == [{"step": 1}, {"step": 2}]


def test_damaged_files_of_a_run_are_named(run: Run) -> None:
    (run.path / "metrics.jsonl").write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged"):
        run.metrics()
    (run.path / "results.json").write_text('{"a":')
    with pytest.raises(UserError, match=r"results\.json is damaged"):
        run.read_json("results.json")
    assert run.read_json("nothing.json") is None
    assert run.read_json("nothing.json", 3) == 3
    run.write_json("results.json", {"a": [1.5, None]})
    assert run.read_json("results.json") == {"a": [1.5, None]}


# Models


def test_a_model_comes_back_bit_for_bit_in_channels_last(run: Run) -> None:
    objective, optimizer = start()
    train((objective, optimizer), 0, 3)
    weight = objective.encoders()["encoder"].trunk.stage[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    run.save_model(objective, seen=np.arange(5, dtype=np.uint64))
    again = start()[0]
    run.load_model(again)
    assert same(dict(objective.state_dict()), dict(again.state_dict()))
    loaded = again.encoders()["encoder"].trunk.stage[0].conv1.weight
    assert loaded.stride() == weight.stride()
    assert run.array("seen").tolist() == [0, 1, 2, 3, 4]  # type: ignore[union-attr]
    assert run.array("seen").dtype == np.uint64  # type: ignore[union-attr]
    assert run.array("other") is None
    batch = zoo.images()[1]
    with torch.no_grad():
        a, b = (o.encoders()["encoder"].eval()(batch).pooled for o in (objective, again))
    assert torch.equal(a, b)


def test_an_unfinished_run_has_no_model(run: Run) -> None:
    with pytest.raises(
        UserError, match=r"has no model\.safetensors: the run was not finished; modicum pretrain --resume"
    ):
        run.load_model(start()[0])


def test_a_model_of_another_run_is_found_out(run: Run) -> None:
    run.save_model(start("autoencoder(code=4)")[0])
    with pytest.raises(
        UserError, match=r"model\.safetensors does not fit the run's spec: .*; the folder mixes two runs"
    ):
        run.load_model(start()[0])
    run.save_model(zoo.objective("simclr(hidden=16, out=8)", "convnet(width=8, stages=2)", zoo.images)())
    with pytest.raises(UserError, match="the folder mixes two runs"):
        run.load_model(start()[0])


@pytest.mark.parametrize("damage", ["empty", "half", "text", "header"])
def test_a_damaged_model_is_named(run: Run, damage: str) -> None:
    run.save_model(start()[0])
    file = run.path / "model.safetensors"
    whole = file.read_bytes()
    parts = {
        "empty": b"",
        "half": whole[: len(whole) // 2],
        "text": b"not tensors" * 9,
        "header": b"\xff" * 9 + whole[9:],
    }
    file.write_bytes(parts[damage])
    with pytest.raises(UserError, match=r"model\.safetensors does not read as safetensors"):
        run.load_model(start()[0])


def test_nothing_that_is_written_is_a_pickle(run: Run) -> None:
    pair = start()
    train(pair, 0, 2)
    run.save_model(pair[0], seen=np.arange(3))
    run.save_state(2, *pair)
    for file in run.path.rglob("*"):
        if file.is_file():
            assert file.suffix in (".json", ".jsonl", ".safetensors")
    with safe_open(run.path / "state" / "000000002.safetensors", "pt") as opened:
        assert opened.metadata() == {"step": "2"}


# States


def test_the_two_newest_states_are_kept(run: Run) -> None:
    pair = start()
    train(pair, 0, 1)
    for step in (1, 5, 9, 10, 100):
        run.save_state(step, *pair)
    assert states(run) == ["000000010.safetensors", "000000100.safetensors"]
    run.save_state(101, *pair, keep=1)
    assert states(run) == ["000000101.safetensors"]


def test_a_state_continues_bit_for_bit(run: Run) -> None:
    whole, first, other = start(), start(), start()
    train(whole, 0, 6)
    train(first, 0, 3)
    run.save_state(3, *first)
    torch.manual_seed(5)
    for parameter in other[0].parameters():
        nn.init.normal_(parameter)
    assert run.load_state(*other) == 3
    assert same(first[1].state_dict()["state"], other[1].state_dict()["state"])
    train(other, 3, 6)
    assert same(dict(whole[0].state_dict()), dict(other[0].state_dict()))
    assert same(whole[1].state_dict()["state"], other[1].state_dict()["state"])


def test_nothing_saved_is_step_zero_and_remains_of_a_kill_are_swept(run: Run) -> None:
    pair = start()
    before = {k: v.clone() for k, v in pair[0].state_dict().items()}
    assert run.load_state(*pair) == 0
    (run.path / "state").mkdir()
    for name in ("state/.tmp-0123.safetensors", "state/.tmpAbC123", ".tmp-4567.safetensors", ".tmpXyZ789"):
        (run.path / name).write_bytes(b"half")
    (run.path / "state" / "notes.safetensors").write_bytes(b"mine")
    assert run.load_state(*pair) == 0
    assert states(run) == ["notes.safetensors"]
    assert sorted(os.listdir(run.path)) == ["spec.json", "state"]
    assert same(before, dict(pair[0].state_dict()))


@pytest.mark.parametrize("damage", ["empty", "half", "text"])
def test_a_damaged_newest_state_is_passed_over_aloud(run: Run, damage: str) -> None:
    pair, other = start(), start()
    train(pair, 0, 2)
    run.save_state(2, *pair)
    kept = {k: v.clone() for k, v in pair[0].state_dict().items()}
    train(pair, 2, 4)
    run.save_state(4, *pair)
    newest = run.path / "state" / "000000004.safetensors"
    whole = newest.read_bytes()
    newest.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "text": b"hello" * 20}[damage])
    with pytest.warns(Warned, match=r"000000004\.safetensors does not read .*; taking the state before it"):
        assert run.load_state(*other) == 2
    assert same(kept, dict(other[0].state_dict()))
    (run.path / "state" / "000000002.safetensors").write_bytes(b"")
    with pytest.warns(Warned, match="taking the state before it") as warned:
        assert run.load_state(*start()) == 0
    assert len(warned) == 2


def test_a_state_of_another_model_is_found_out(run: Run) -> None:
    run.save_state(1, *start("autoencoder(code=4)"))
    with pytest.raises(UserError, match="the folder mixes two runs"):
        run.load_state(*start())


# Accidents of the disk

FULL = OSError(errno.ENOSPC, "No space left on device")


def failing(what: Exception) -> Any:
    def save_file(tensors: Any, path: Path, metadata: Any = None) -> None:
        Path(path).write_bytes(b"a part of it")
        raise what

    return save_file


ACCIDENTS = {
    "full": (FULL, "the disk is full"),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), "the quota is used up"),
    "wrapped": (SafetensorError("Error while serializing: I/O error: No space left on device"), "No space left"),
    "broken": (OSError(errno.EIO, "Input/output error"), "Input/output error"),
}


@pytest.mark.parametrize("name", ACCIDENTS)
def test_what_was_saved_survives_an_accident(run: Run, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    error, words = ACCIDENTS[name]
    pair = start()
    train(pair, 0, 2)
    run.save_state(2, *pair)
    run.save_model(pair[0])
    kept = {p.name: p.read_bytes() for p in run.path.rglob("*.*") if p.is_file()}
    monkeypatch.setattr(runs, "save_file", failing(error))
    train(pair, 2, 3)
    for write in (lambda: run.save_state(3, *pair), lambda: run.save_model(pair[0])):
        with pytest.raises(
            UserError, match=rf"cannot write .*safetensors: .*{words}.*Everything saved before is intact"
        ):
            write()
    assert {p.name: p.read_bytes() for p in run.path.rglob("*.*") if p.is_file()} == kept
    monkeypatch.undo()
    assert run.load_state(*start()) == 2


def test_a_full_disk_while_spec_and_metrics_are_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.log({"step": 1})
    kept = (run.path / "spec.json").read_bytes()

    def full(*_: Any) -> None:
        raise FULL

    monkeypatch.setattr(os, "fsync", full)
    run.spec["seed"] = 9
    writes = {
        "spec.json": run.save_spec, "results.json": lambda: run.write_json("results.json", {}),
        "metrics.jsonl": lambda: run.cut_metrics(0),
    }  # fmt: skip
    for name, write in writes.items():
        with pytest.raises(UserError, match=f"cannot write .*{name}: the disk is full"):
            write()
    monkeypatch.undo()
    assert (run.path / "spec.json").read_bytes() == kept
    assert run.metrics() == [{"step": 1}]
    assert sorted(os.listdir(run.path)) == ["metrics.jsonl", "spec.json"]


def test_no_permission(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"cannot write .*new: \[Errno 13\] Permission denied"):
        Run.create(tmp_path / "new", {})
    monkeypatch.undo()
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl: \[Errno 13\] Permission denied"):
        run.log({"step": 1})


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_on_a_real_folder(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(UserError, match="Permission denied"):
            Run.create(closed / "run", {})
    finally:
        closed.chmod(stat.S_IRWXU)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file.txt"
    atomic_write(path, b"old")
    with pytest.raises(KeyError), atomic_path(path) as temporary:
        raise KeyError(temporary.write_bytes(b"new"))
    assert (temporary.parent, temporary.suffix) == (path.parent, ".txt")
    order: list[str] = []
    sync, replace = atomic._sync, os.replace
    monkeypatch.setattr(atomic, "_sync", lambda p: (order.append(f"sync {p.is_dir()}"), sync(p)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("rename"), replace(a, b)))
    with atomic_path(path) as outer, atomic_path(path) as inner:
        outer.write_bytes(b"outer")
        inner.write_bytes(b"inner")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"outer"
    assert os.listdir(path.parent) == ["file.txt"]
    assert order == ["sync False", "rename", "sync True"] * 2


def test_files_have_the_permissions_of_any_other_file(run: Run) -> None:
    """A run on a shared disk is for colleagues too."""
    run.save_model(start()[0])
    run.write_json("results.json", {})
    other = run.path / "other"
    other.write_bytes(b"")
    for name in ("spec.json", "results.json", "model.safetensors"):
        assert stat.S_IMODE((run.path / name).stat().st_mode) == stat.S_IMODE(other.stat().st_mode), name


def test_no_warning_in_an_ordinary_life(run: Run) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pair = start()
        train(pair, 0, 2)
        run.save_state(2, *pair)
        assert run.load_state(*start()) == 2
