"""Training that goes wrong stops or warns, with the likely cause and what to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
import zoo
from typer.testing import CliRunner

import modicum
from modicum.cli import app
from modicum.core import seeds
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
    guard.check({"step": 49, **good, "projected": 0.05, "triplets": 1.0})
    guard.check({"step": 50, **good, "projected": 0.05})
    with pytest.raises(Diverged, match=r"triplets are stuck at step 50: .*mining='semi-hard' or lower --lr"):
        guard.check({"step": 50, **good, "projected": 0.05, "triplets": 1.0})
    guard.check({"step": 24, **good, "rank": 1.2})
    with pytest.warns(Warned, match=r"step 25: the embeddings vary along few directions \(rank 1\.20\)"):
        guard.check({"step": 25, **good, "rank": 1.2})
    guard.check({"step": 26, **good, "rank": 1.2})  # said once


def test_hard_triplets_that_draw_everything_together_stop_the_run(tmp_path: Path) -> None:
    """Classes that the rows do not tell: the nearest other is as near as the farthest like, and only 0 is nearer."""
    rng = np.random.default_rng(0)
    rows = [{**dict(zip("pqrstu", rng.normal(size=6).tolist(), strict=True)), "label": "ab"[k % 2]} for k in range(300)]
    tiny: dict[str, Any] = {"encoder": "mlp(width=32)", "steps": 60, "batch": 64, "lr": 3e-2, "device": "cpu"}
    with pytest.raises(Diverged, match=r"triplets are stuck at step 30: .*mining='semi-hard' or lower --lr"):
        modicum.pretrain(rows, objective="triplet(mining='hard')", out=tmp_path / "hard", **tiny)
    modicum.pretrain(rows, objective="triplet()", out=tmp_path / "semi-hard", **tiny)


@pytest.mark.parametrize(("name", "which"), [("triplet", "hard"), ("triplet", "given"), ("pairs", "images")])
def test_what_the_loss_compares_is_watched(name: str, which: str) -> None:
    """Projections that no longer differ are seen although the features still do."""
    row = next(row for row in zoo.OBJECTIVES if (row.name, row.which) == (name, which))
    objective = row.make()
    corrupted = objective.corrupt(row.batch(), seeds.generator(0))  # type: ignore[misc]
    torch.nn.init.zeros_(objective.head[-1].weight)
    torch.nn.init.ones_(objective.head[-1].bias)
    metrics = objective(corrupted)[1]
    assert metrics["spread"] > 0.01
    assert metrics["projected"] < 1e-6
    with pytest.raises(Diverged, match=r"projections collapsed .*triplet: mining='semi-hard'; pairs: a larger margin"):
        Guard(10).check({"step": 9, "loss": 1.0, "lr": 1e-2, **{k: float(v) for k, v in metrics.items()}})
