"""`random-features`: least squares on 1, 2, 3, ... random features: the cleanest double descent, and its theory."""

from __future__ import annotations

from typing import Any

from modicum.core.errors import UserError, unknown
from modicum.diagnostics._feature_curves import find
from modicum.diagnostics._finding import Finding
from modicum.diagnostics._rows import given
from modicum.maths.random_features import KINDS

OPTIONS = {
    "run": "A run of modicum pretrain, whose frozen features are taken instead of plain inputs.",
    "features": "relu or cosine.",
    "limit": "Training rows of a draw; default as many as keep draws disjoint, at most 500.",
    "widths": "The largest number of features; default 4 times the training rows.",
    "draws": "Independent draws of training rows, noise and features.",
    "label_noise": "The share of training labels that are redrawn at random.",
    "ridges": "How many ridges are tried at every width, at least 4; 0 for none.",
}


def random_features(
    data: Any = "digits",
    *,
    run: str | None = None,
    features: str = "relu",
    label: str | None = None,
    split: str | None = None,
    group: str | None = None,
    limit: int | None = None,
    widths: int | None = None,
    draws: int = 6,
    label_noise: float = 0.0,
    ridges: int = 6,
    seed: int = 0,
) -> Finding:
    """Show the test error of least squares on random features at every width, past the point where all rows are fitted.

    Each of `draws` draws has its own `limit` training rows (default: as many as keep draws disjoint, at most 500), its
    own noise and own `features`, relu or cosine (Belkin et al. 2019), of plain inputs or of a run's frozen features;
    `widths` is the largest (default 4 times the rows). The best of so many `ridges`, chosen on half of the test rows
    and measured on the other, is drawn beside it. Losses are squared errors, summed over one-hot classes or of the
    standardised number. With classes, redrawn labels are uniform over all of them.
    """
    if features not in KINDS:
        raise unknown("--features", features, KINDS)
    if widths is not None and widths < 1:
        raise UserError(f"--widths {widths}: wanted at least 1, the largest number of features")
    if not 0 <= label_noise < 1:
        raise UserError(f"--label-noise {label_noise}: wanted a share of the labels from 0 to below 1")
    if ridges != 0 and ridges < 4:
        raise UserError(
            f"--ridges {ridges}: wanted how many to try, at least 4 (they span 5 powers of ten), or 0 for none"
        )
    rows = given(data, run=run, label=label, split=split, group=group, most_tests=2000, seed=seed)
    return find(rows, features, limit, widths, draws, label_noise, ridges, seed)
