"""Training that goes wrong stops or warns, with the likely cause and what to change."""

from __future__ import annotations

from pathlib import Path

import pytest
import small
from typer.testing import CliRunner

import modicum
from modicum.cli import app
from modicum.core.errors import Warned
from modicum.training.guard import Diverged, Guard


def test_the_cause_of_divergence_is_named(images: Path, tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"(the loss is nan|the (embeddings|projections) collapsed) at step \d+"):
        modicum.pretrain(images, lr=1e6, out=tmp_path / "run", **{**small.TINY, "steps": 30})
    result = CliRunner().invoke(app, ["pretrain", "--resume", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "lr" in result.stderr


def test_the_guard() -> None:
    good = {"loss": 1.0, "spread": 0.5, "rank": 3.0, "lr": 1e-2}
    guard = Guard(100)
    for step in range(1, 101):
        guard.check({"step": step, **good})
    with pytest.raises(Diverged, match=r"the loss is nan at step 3 \(rate 0\.01\)\. .*try --lr 0\.001"):
        guard.check({"step": 3, **good, "loss": float("nan")})
    with pytest.raises(Diverged, match="the loss is inf"):
        guard.check({"step": 3, **good, "loss": float("inf")})
    guard.check({"step": 9, **good, "spread": 0.0})
    with pytest.raises(Diverged, match=r"collapsed at step 10: .*Lower --lr, weaken the views"):
        guard.check({"step": 10, **good, "spread": 1e-4})
    with pytest.raises(Diverged, match=r"projections collapsed at step 10: .*\(spread 0\.005\).*Lower --lr"):
        guard.check({"step": 10, **good, "projected": 5e-3})
    guard.check({"step": 10, **good, "projected": 0.5})
    guard.check({"step": 24, **good, "rank": 1.2})
    with pytest.warns(Warned, match=r"step 25: the embeddings vary along few directions \(rank 1\.20\)"):
        guard.check({"step": 25, **good, "rank": 1.2})
    guard.check({"step": 26, **good, "rank": 1.2})  # said once
