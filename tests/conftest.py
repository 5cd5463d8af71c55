"""For every test: a cache of its own session, and one torch thread, as the workers of pytest-xdist share the cores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import small
import torch

import modicum
from modicum import Run


@pytest.fixture(scope="session", autouse=True)
def _session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = os.environ.get("MODICUM_CACHE")
    os.environ["MODICUM_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    torch.set_num_threads(1)
    yield
    if before is None:
        del os.environ["MODICUM_CACHE"]
    else:
        os.environ["MODICUM_CACHE"] = before


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """What a test draws without a generator of its own is the same in every order of the tests."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 small images of two classes."""
    return small.folder(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="session")
def pre(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished pre-training run on `images`."""
    return modicum.pretrain(images, out=tmp_path_factory.mktemp("runs") / "pre", **small.TINY)


@pytest.fixture(scope="session")
def tuned(pre: Run, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of finetune from `pre`."""
    return modicum.finetune(pre, images, out=tmp_path_factory.mktemp("runs") / "tuned", **small.FEW)


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 60 rows of two classes, with blanks."""
    return small.csv(tmp_path_factory.mktemp("data") / "table.csv", small.columns())


@pytest.fixture(scope="session")
def table_run(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of finetune from scratch on `table`."""
    out = tmp_path_factory.mktemp("runs") / "table"
    with pytest.MonkeyPatch.context() as patch:
        no_report(patch)
        return modicum.finetune("mlp(width=8)", table, out=out, **small.FEW)


@pytest.fixture(scope="session")
def rebuilt(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished autoencoder on `images`."""
    out = tmp_path_factory.mktemp("runs") / "autoencoder"
    with pytest.MonkeyPatch.context() as patch:
        no_report(patch)
        return modicum.pretrain(images, objective="autoencoder(code=4)", out=out, **small.TINY)


def no_report(patch: pytest.MonkeyPatch) -> None:
    """Runs make no report: it takes longer than the tiny training before it."""
    for verb in ("pretrain", "finetune"):
        patch.setattr(f"modicum.verbs.{verb}.exhibits", lambda *_, **__: {})
        patch.setattr(f"modicum.verbs.{verb}.render", lambda path: path / "report.html")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    no_report(monkeypatch)
