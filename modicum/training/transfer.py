"""From an encoder and few labels to a predictor: the methods, their trials, and their choice on validation rows."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from torch import nn

from modicum.core import seeds
from modicum.core.errors import UserError, unknown
from modicum.core.types import Source
from modicum.nn.encoder import Tower
from modicum.nn.lora import adapted, lora, plain, updates
from modicum.objectives.supervised import Supervised, fold_scaling
from modicum.training.apply import embed, predict
from modicum.training.batches import Batches
from modicum.training.fit import fit
from modicum.training.optim import adamw, cosine, groups
from modicum.training.propagate import graph, propagate

RATES = {
    "scratch": (1e-3, 2e-3, 4e-3, 8e-3), "tuned": (1e-5, 3e-5, 1e-4, 3e-4), "lora": (3e-4, 1e-3, 3e-3, 1e-2)
}  # fmt: skip
SPREADS = (0.8, 0.9, 0.95, 0.99)
UNLABELLED, COMPONENTS = 15_000, 256
"""Rows that labels are propagated to, and principal components their graph is made of, at most."""
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""Four trials each, for every contestant, the baselines included."""
RIDGES = tuple(10 ** (k / 4) for k in range(-4, 17))
"""Penalties of a ridge, in scikit-learn's units, of which leave-one-out error chooses: in closed form, at no trial."""

METHODS = {
    "scratch": "train the whole network from random weights",
    "probe": "freeze the encoder; a linear model on its features",
    "propagate": "probe, also on what the labels say of unlabelled rows through their nearest neighbours (classes)",
    "top:K": "probe, then train the top K layers and the head; the layers below keep their bits",
    "lp-ft": "probe, then train everything from there at a lower rate for lower layers (Kumar et al. 2022)",
    "lora:R": "probe, then train updates of rank R (default 8) of the frozen weights and the head (Hu et al. 2021)",
    "full": "train everything, the head from zero",
}


@dataclass(frozen=True)
class Task:
    """Targets (n,) of a source's rows, of `kind` "classes" (`outputs` of them) or "numbers", and how to train.

    Numbers of several tasks are (n, outputs), NaN where missing.

    `free` are rows that may be learned from without their labels.
    """

    source: Source
    target: np.ndarray
    kind: str
    outputs: int
    steps: int = 100
    batch: int = 128
    views: dict[str, Any] | None = None
    device: torch.device | str = "cpu"
    seed: int = 0
    free: np.ndarray | None = None


@dataclass(frozen=True)
class Fitted:
    """A trained predictor and the setting that was chosen for it."""

    objective: Supervised
    setting: str


def check_method(method: str, encoder: Tower) -> str:
    """The method, if it is one (and its K within the encoder's layers)."""
    if method.startswith("top:") and method[4:].isdecimal():
        layers = list(encoder.layers())
        if not 1 <= int(method[4:]) <= len(layers):
            raise UserError(
                f"--method {method}: K must be 1 to {len(layers)}, the encoder's layers ({', '.join(layers)})"
            )
        return method
    if (rank := rank_of(method)) is not None:
        low = adapted(lora(copy.deepcopy(encoder), 1))  # refuses an encoder that has nothing to adapt
        most = max(8, *(min(len(layer.weight), layer.weight[0].numel()) for layer in low))
        if rank > most:
            raise UserError(f"--method {method}: R must be 1 to {most}, the highest rank of the encoder's layers")
        return method
    if method not in METHODS or method in ("top:K", "lora:R"):
        raise unknown("method", method, METHODS)
    return method


def rank_of(method: str) -> int | None:
    """The rank that `lora` or `lora:R` names; None for other methods."""
    if method == "lora":
        return 8
    return int(method[5:]) if method.startswith("lora:") and method[5:].isdecimal() and int(method[5:]) else None


def train(encoder: Tower, method: str, task: Task, rows: np.ndarray, choose: tuple[np.ndarray, np.ndarray]) -> Fitted:
    """Choose a setting by fitting on `choose[0]` and scoring on `choose[1]`, then refit on all `rows` with it.

    Where there is nothing to choose on (one label a class), the second setting is taken.
    """
    frozen = {"probe": ("C", PENALTIES), "propagate": ("alpha", SPREADS)}
    rates = "scratch" if method in ("scratch", "full") else "lora" if rank_of(method) else "tuned"
    name, trials = frozen.get(method) or ("rate", RATES[rates])
    fit_rows, held = choose
    once = partial(_once, encoder, method, task) if method != "propagate" else _propagator(encoder, task, rows)
    best = trials[1]
    if len(held):
        scores = [mistake(once(fit_rows, s), task, held) for s in trials]
        best = trials[int(np.argmin(np.nan_to_num(scores, nan=np.inf)))]  # a trial that diverged is never the best
    return Fitted(once(rows, best), f"{name}={best:g}" + ("" if method in frozen else f", {task.steps} steps"))


def mistake(objective: Supervised, task: Task, rows: np.ndarray) -> float:
    """What is minimised on validation rows: the Brier score of the probabilities, or the squared error."""
    out = predict(objective, task.source, rows)
    if task.kind == "classes":
        return float(((out - np.eye(task.outputs)[task.target[rows]]) ** 2).sum(1).mean())
    if task.outputs > 1:
        return float(np.nanmean(((out - task.target[rows]) / np.array(objective.scale)) ** 2))
    return float(((out - task.target[rows]) ** 2).mean())


def _once(encoder: Tower, method: str, task: Task, rows: np.ndarray, setting: float) -> Supervised:
    """One training of one method at one setting."""
    objective = _untrained(encoder, method, task, rows)
    tower = objective.encoder
    if method == "probe":
        linear_head(objective, task, rows, setting)
    elif method in ("scratch", "full"):
        _descend(objective, task, rows, setting, decay=1.0, freeze=0)
    elif rank := rank_of(method):
        _adapt(objective, task, rows, setting, rank)
    else:
        layers = len(tower.layers())
        top = int(method[4:]) if method.startswith("top:") else layers
        linear_head(objective, task, rows)
        # The probe was read off the running statistics: batch statistics of few rows would move what it stands on.
        tower.keep_statistics = True
        _descend(objective, task, rows, setting, decay=0.8, freeze=layers - top)
    return objective


def _adapt(objective: Supervised, task: Task, rows: np.ndarray, rate: float, rank: int) -> None:
    """From the probe, train low-rank updates of the encoder's weights and the head; the updates are folded in."""
    tower = objective.encoder
    linear_head(objective, task, rows)
    tower.keep_statistics = True
    with seeds.forked(task.seed, "lora"):
        lora(tower, rank)
    _descend(objective, task, rows, rate, decay=1.0, freeze=0, only=[*updates(tower), *objective.head.parameters()])
    plain(tower).requires_grad_(True)


def _untrained(encoder: Tower, method: str, task: Task, rows: np.ndarray) -> Supervised:
    """The encoder (new weights for scratch) under a head of zeros that starts from the mean."""
    tower = fresh(encoder, task.seed) if method == "scratch" else copy.deepcopy(encoder)
    shift, scale = (0.0, 1.0) if task.kind == "classes" else moments(task.target[rows])
    with seeds.forked(task.seed, "head"):
        return Supervised(tower, task.outputs, task.kind, 0.0, shift, scale, task.views, *reach(task, rows)).to(
            task.device
        )


def moments(target: np.ndarray) -> tuple[Any, Any]:
    """Mean and standard deviation of targets (n,), or of those known of each of several tasks (n, k) as tuples."""
    if target.ndim == 1:
        return (float(target.mean()), float(target.std()) or 1.0) if len(target) else (0.0, 1.0)
    both = [moments(own[~np.isnan(own)]) for own in target.T]
    return tuple(mean for mean, _ in both), tuple(std for _, std in both)


def reach(task: Task, rows: np.ndarray) -> tuple[Any, Any]:
    """The given targets' range and a quarter of it on both sides: few labels say nothing of what lies further off.

    (low, high), numbers or tuples of several tasks; of classes None.
    """
    return (None, None) if task.kind == "classes" else _around(task.target[rows])


def _around(target: np.ndarray) -> tuple[Any, Any]:
    if target.ndim == 1:
        low, high = (float(target.min()), float(target.max())) if len(target) else (0.0, 0.0)
        return low - (high - low) / 4, high + (high - low) / 4
    both = [_around(own[~np.isnan(own)]) for own in target.T]
    return tuple(low for low, _ in both), tuple(high for _, high in both)


def _propagator(encoder: Tower, task: Task, given: np.ndarray) -> Callable[[np.ndarray, float], Supervised]:
    """How to train by propagation from some of the given rows at an alpha; the graph is made once.

    The head is a logistic regression on the principal components of the features of given and unlabelled rows, with the
    surer 70 % of the propagated labels; it is folded into a head on the features themselves.
    """
    if task.kind != "classes":
        raise UserError("--method propagate is for classes; for numbers use probe or lp-ft")
    free = np.empty(0, int) if task.free is None else task.free
    if len(free) > UNLABELLED:
        free = seeds.numpy(task.seed, "free").choice(free, UNLABELLED, replace=False)
    every = np.concatenate([given, free])
    x, mean, std = scaled(embed(encoder, task.source, every))
    pca = PCA(min(COMPONENTS, *x.shape), svd_solver="randomized", random_state=0).fit(x)
    z = pca.transform(x)
    edges = graph(z)

    def once(rows: np.ndarray, alpha: float) -> Supervised:
        known = np.flatnonzero(np.isin(every, rows))
        share = propagate(edges, known, task.target[every[known]], task.outputs, alpha)
        codes, sure = share.argmax(1), share.max(1)
        codes[known], sure[known] = task.target[every[known]], 1.0
        keep = sure >= np.quantile(sure, 0.3)
        weight, bias = logistic(z[keep], codes[keep], task.outputs, PENALTIES[0])
        objective = _untrained(encoder, "propagate", task, rows)
        wide = weight @ pca.components_
        set_head(objective, wide, bias - wide @ pca.mean_, mean, std)
        return objective

    return once


def fresh(encoder: Tower, seed: int) -> Tower:
    """The same architecture with new random weights."""
    from modicum.core.spec import build, spec

    with seeds.forked(seed, "scratch"):
        return build("encoder", spec("encoder", encoder))


def _descend(
    objective: Supervised, task: Task, rows: np.ndarray, rate: float, *, decay: float, freeze: int,
    only: list[nn.Parameter] | None = None,
) -> None:  # fmt: skip
    """Train at a rate that falls by `decay` a layer, above `freeze` layers; with `only`, these parameters alone."""
    kind = torch.long if task.kind == "classes" else torch.float32
    target = torch.as_tensor(task.target[rows], dtype=kind)
    batches = Batches(task.source, rows, batch=task.batch, seed=task.seed, extra={"target": target})
    optimizer = adamw(groups(objective, lr=rate, weight_decay=0.05, decay=decay, freeze=freeze))
    if only is not None:  # the others get no gradient, so the optimizer passes them over
        objective.requires_grad_(False)
        for parameter in only:
            parameter.requires_grad_(True)
    for _ in fit(
        objective, batches, optimizer, steps=task.steps, seed=task.seed, schedule=cosine(task.steps), clip=1.0
    ):
        pass


def linear_head(objective: Supervised, task: Task, rows: np.ndarray, penalty: float | None = None) -> None:
    """Set the head to the (multinomial) logistic or ridge regression on standardised frozen features.

    `penalty` is scikit-learn's C (its inverse for ridge); None: a middling one for classes, for numbers that with the
    least leave-one-out error on `rows`.
    """
    x, mean, std = scaled(embed(objective.encoder, task.source, rows))
    y = task.target[rows]
    if task.kind == "classes":
        weight, bias = logistic(x, y, task.outputs, penalty or PENALTIES[1])
    elif task.outputs > 1:
        y = (y - np.array(objective.shift)) / np.array(objective.scale)
        weight, bias = np.zeros((task.outputs, x.shape[1])), np.zeros(task.outputs)
        for k, own in enumerate(y.T):
            if (known := ~np.isnan(own)).any():
                ridge = _ridge(penalty).fit(x[known], own[known])
                weight[k], bias[k] = ridge.coef_, ridge.intercept_
    else:
        ridge = _ridge(penalty).fit(x, (y - objective.shift) / objective.scale)
        weight, bias = ridge.coef_[None], np.atleast_1d(ridge.intercept_)
    set_head(objective, weight, bias, mean, std)


def _ridge(penalty: float | None) -> Ridge | RidgeCV:
    return RidgeCV(RIDGES) if penalty is None else Ridge(alpha=1 / penalty)


def scaled(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (n, d) standardised, in float64, with their means and scales (d,)."""
    x = x.astype(np.float64)
    mean, var = x.mean(0), x.var(0)
    # A feature that hardly varies in few rows is not blown up to the scale of the others: it would rule the head,
    # and the least step of the layers below would then move every prediction.
    std = np.sqrt(var + 0.1 * max(float(var.mean()), 1e-12))
    return (x - mean) / std, mean, std


def set_head(objective: Supervised, weight: np.ndarray, bias: np.ndarray, mean: np.ndarray, std: np.ndarray) -> None:
    """Make the head the linear map (weight, bias) of features standardised by mean and std."""
    folded = fold_scaling(*(torch.as_tensor(a, dtype=torch.float64) for a in (weight, bias, mean, std)))
    with torch.no_grad():
        objective.head.weight.copy_(folded[0])
        objective.head.bias.copy_(folded[1])


def logistic(x: np.ndarray, y: np.ndarray, outputs: int, c: float) -> tuple[np.ndarray, np.ndarray]:
    """Multinomial logistic regression (outputs, p), (outputs,); a class without rows gets a very low bias."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 500 iterations are near enough for a probe
        model = LogisticRegression(C=c, max_iter=500).fit(x, y)
    weight, bias = np.zeros((outputs, x.shape[1])), np.full(outputs, -30.0)
    if len(model.classes_) == 2:
        weight[model.classes_] = np.concatenate([-model.coef_, model.coef_]) / 2
        bias[model.classes_] = np.concatenate([-model.intercept_, model.intercept_]) / 2
    else:
        weight[model.classes_], bias[model.classes_] = model.coef_, model.intercept_
    return weight, bias


def predictions(
    predict: Callable[[np.ndarray], np.ndarray], task: Task, rows: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Predictions for rows, and each row's scores, of which the first decides.

    accuracy: 1 where right. R2: 1 - squared error / variance (its mean is R²); MAE: the error in the target's units.
    Of several tasks: the mean R2 of those known of a row, by the variance among all known labels of a task (of 0 and 1
    that is the Brier skill score).
    """
    out = predict(rows)
    true = task.target[rows]
    if task.kind == "classes":
        return out, {"accuracy": (out.argmax(1) == true).astype(np.float64)}
    error = np.abs(out - true)
    if task.outputs > 1:
        return out, {"R2": np.nanmean(1 - error**2 / np.nanvar(task.target, axis=0).clip(1e-12), axis=1)}
    return out, {"R2": 1 - error**2 / max(float(true.var()), 1e-12), "MAE": error}
