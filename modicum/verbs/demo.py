"""`modicum demo`: the main job on the embedded digits, in about a minute and without a network."""

from __future__ import annotations

import shutil
from pathlib import Path

from modicum.core.errors import UserError
from modicum.training.run import Run, saving
from modicum.verbs.finetune import finetune
from modicum.verbs.pretrain import pretrain


def demo(*, out: str | Path = "runs/demo", seed: int = 0, device: str = "auto", force: bool = False) -> Run:
    """Pre-train on scikit-learn's digits without labels, fine-tune with 10 labels a class over 5 repeats, and report.

    Writes OUT/pretrain, OUT/finetune and OUT/report.html; replaces only what an earlier demo wrote there.
    """
    path = Path(out)
    own = (path / "pretrain" / "spec.json").is_file()
    if path.exists() and not own and not force and (path.is_file() or any(path.iterdir())):
        raise UserError(f"{path} exists and was not made by modicum demo: choose another --out")
    encoder = pretrain("digits", steps=600, out=path / "pretrain", seed=seed, device=device, force=own or force)
    again = force or (path / "finetune" / "spec.json").is_file()
    run = finetune(encoder, "digits", labels_per_class=10, out=path / "finetune", seed=seed, device=device, force=again)
    with saving(path / "report.html"):
        shutil.copyfile(run.path / "report.html", path / "report.html")
    return run
