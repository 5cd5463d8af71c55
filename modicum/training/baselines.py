"""The simple baselines every comparison stands beside: scikit-learn on plain features, tuned on the same rows."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.dummy import DummyRegressor
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR

from modicum.core.errors import Warned
from modicum.core.types import Input, Windows
from modicum.training.rocket import Rocket, Warped
from modicum.training.transfer import Task, reach

Make = Callable[[Any], Any]
ROCKET = "MiniRocket + ridge"
TOKENS = 1 << 22
"""Tokens of whole rows, padding included, that are read at a time."""


def _grid(kind: str, seed: int, channels: int = 1) -> dict[str, tuple[tuple[Any, ...], Make]]:
    """Name -> (four settings, setting -> scikit-learn estimator); `channels` are those of series."""
    penalties = (0.01, 0.1, 1.0, 10.0)
    counted = (3.0, 10.0, 30.0, 100.0)  # rows of TF-IDF have length 1, so that less penalty is wanted
    margins = ((1.0, 0.5), (1.0, 1.0), (10.0, 0.5), (10.0, 1.0))
    leaves = (4, 8, 16, 31)
    shares = (0.03, 0.1, 0.3, 1.0)  # of the features, tried at every branch
    boosting: dict[str, Any] = {"max_iter": 100, "learning_rate": 0.1, "min_samples_leaf": 5, "random_state": seed}
    forest: Any = RandomForestClassifier if kind == "classes" else RandomForestRegressor
    grown: tuple[tuple[Any, ...], Make] = (shares, lambda p: forest(100, max_features=p, random_state=seed))
    forests = {"random forest": grown, "Morgan + random forest": grown}
    windows, ridges = (0.0, 0.05, 0.1, 0.2), (1000.0, 100.0, 10.0, 1.0)
    series: dict[str, tuple[tuple[Any, ...], Make]] = {
        ROCKET: (ridges, lambda a: Rocket(a, channels, kind == "classes", seed)),
        "1-NN DTW": (windows, lambda w: Warped(w, channels, seed)),
    }
    if kind == "classes":
        return {
            **forests,
            **series,
            "logistic regression": (penalties, lambda c: LogisticRegression(C=c, max_iter=500)),
            "TF-IDF + logistic": (counted, lambda c: tfidf(LogisticRegression(C=c, max_iter=500))),
            "SVM": (margins, lambda s: SVC(C=s[0], gamma=s[1])),
            "1-NN": ((1,), lambda k: KNeighborsClassifier(k)),
            "gradient boosting": (leaves, lambda n: HistGradientBoostingClassifier(max_leaf_nodes=n, **boosting)),
        }
    return {
        **forests,
        **series,
        "ridge regression": (penalties, lambda c: Ridge(alpha=1 / c)),
        "TF-IDF + ridge": (counted, lambda c: tfidf(Ridge(alpha=1 / c))),
        "SVM": (margins, lambda s: TransformedTargetRegressor(SVR(C=s[0], gamma=s[1]), transformer=StandardScaler())),
        "1-NN": ((1,), lambda k: KNeighborsRegressor(k)),
        "gradient boosting": (leaves, lambda n: HistGradientBoostingRegressor(max_leaf_nodes=n, **boosting)),
    }


class Seen(TransformerMixin, BaseEstimator):
    """The columns of a sparse matrix (n, p) that are not empty in training."""

    def fit(self, x: Any, y: Any = None) -> Seen:
        self.columns_ = np.unique(x.indices)
        return self

    def transform(self, x: Any) -> Any:
        return x[:, self.columns_]


def tfidf(model: Any) -> Any:
    """The model on counts of words weighted by their inverse document frequency in its training rows."""
    return make_pipeline(Seen(), TfidfTransformer(), model)


@dataclass(frozen=True)
class Plain:
    """Plain features of a source: `flat` (n, p) float32 for the rows that were asked for, a sparse matrix for text."""

    input: Input
    task: Task

    def features(self, rows: np.ndarray) -> Any:
        windows: Windows | None = getattr(self.task.source, "windows", None)
        source, step = self.task.source, 4096
        if windows is not None:
            source, lengths = windows.whole, windows.whole.lengths  # type: ignore[attr-defined]
            step = int(max(1, min(step, TOKENS // lengths[rows].max(initial=1))))
        parts = [self.input.flat(source.rows(rows[i : i + step])) for i in range(0, len(rows), step)]
        return sparse.vstack(parts, "csr") if sparse.issparse(parts[0]) else np.concatenate(parts)


def names(input: Input, kind: str) -> list[str]:
    """The baselines for an input: those its modality names, but for what needs a library that is not there."""
    known = list(input.baselines)
    if ROCKET in known and not all(map(importlib.util.find_spec, ("aeon", "numba"))):
        known.remove(ROCKET)
        warnings.warn(f"{ROCKET} is left out: it needs  pip install 'modicum[series]'", Warned, stacklevel=2)
    return known if kind == "classes" else [name.replace("logistic", "ridge") for name in known]


def train(
    name: str, plain: Plain, rows: np.ndarray, choose: tuple[np.ndarray, np.ndarray]
) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
    """Fit a baseline like every contestant: choose among its settings on `choose`, refit on `rows`.

    Returns the predictor (rows -> probabilities or numbers) and the chosen setting in words.
    """
    task = plain.task
    settings, make = _grid(task.kind, task.seed, getattr(plain.input, "channels", 1))[name]
    best = settings[min(1, len(settings) - 1)]
    if len(settings) > 1 and len(choose[1]):
        fit_rows, held = choose
        x, held_x = plain.features(fit_rows), plain.features(held)
        scaled = {s: _gamma(s, x) for s in settings}
        errors = [_error(_fitted(make(scaled[s]), x, task, fit_rows)(held_x), task, held) for s in settings]
        best = settings[int(np.argmin(errors))]
    x = plain.features(rows)
    model = make(_gamma(best, x))
    predict = _fitted(model, x, task, rows)
    words = f"C={best[0]:g}, gamma={best[1]:g}/(p·var)" if isinstance(best, tuple) else f"{best:g}"
    return lambda index: predict(plain.features(index)), getattr(model, "note", words)


def _gamma(setting: Any, x: np.ndarray) -> Any:
    """A margin setting's gamma in units of scikit-learn's "scale": 1/(p·var)."""
    if not isinstance(setting, tuple):
        return setting
    return setting[0], setting[1] / (x.shape[1] * max(float(x.var()), 1e-12))


def _fitted(model: Any, x: Any, task: Task, rows: np.ndarray) -> Callable[[Any], np.ndarray]:
    """Plain features -> predictions of a model fitted to `rows`; numbers stay within the reach of its labels."""
    if task.kind == "numbers" and task.outputs > 1:
        return _of_tasks(model, x, task, rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, task.target[rows])
    if task.kind == "numbers":
        low, high = reach(task, rows)
        return lambda new: np.clip(model.predict(new), low, high)
    return lambda new: _probabilities(model, new, task)


def _of_tasks(model: Any, x: Any, task: Task, rows: np.ndarray) -> Callable[[Any], np.ndarray]:
    """Plain features -> numbers (n, tasks) of a model for each task, fitted to the rows where it is known."""
    low, high = reach(task, rows)
    made = []
    for own in task.target[rows].T:
        known = ~np.isnan(own)
        made.append(clone(model).fit(x[known], own[known]) if known.any() else DummyRegressor().fit(x[:1], [0.0]))
    return lambda new: np.clip(np.stack([m.predict(new) for m in made], 1), low, high)


def _probabilities(model: Any, x: Any, task: Task) -> np.ndarray:
    out = np.zeros((x.shape[0], task.outputs))
    if hasattr(model, "predict_proba"):
        out[:, model.classes_] = model.predict_proba(x)
    else:
        out[np.arange(len(out)), model.predict(x)] = 1
    return out


def _error(out: np.ndarray, task: Task, rows: np.ndarray) -> float:
    """Share of mistakes (ties to the earlier, simpler setting), or mean squared error."""
    if task.kind == "numbers":
        error = (out - task.target[rows]) ** 2
        return float(
            np.nanmean(error / np.nanvar(task.target[rows], axis=0).clip(1e-12)) if error.ndim > 1 else error.mean()
        )
    return float((out.argmax(1) != task.target[rows]).mean())
