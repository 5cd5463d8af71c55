"""The simple baselines every comparison stands beside: scikit-learn on plain features, tuned on the same rows."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR

from modicum.core.types import Input
from modicum.training.transfer import Task, reach

Make = Callable[[Any], Any]


def _grid(kind: str, seed: int) -> dict[str, tuple[tuple[Any, ...], Make]]:
    """Name -> (four settings, setting -> scikit-learn estimator)."""
    penalties = (0.01, 0.1, 1.0, 10.0)
    counted = (3.0, 10.0, 30.0, 100.0)  # rows of TF-IDF have length 1, so that less penalty is wanted
    margins = ((1.0, 0.5), (1.0, 1.0), (10.0, 0.5), (10.0, 1.0))
    leaves = (4, 8, 16, 31)
    boosting: dict[str, Any] = {"max_iter": 100, "learning_rate": 0.1, "min_samples_leaf": 5, "random_state": seed}
    if kind == "classes":
        return {
            "logistic regression": (penalties, lambda c: LogisticRegression(C=c, max_iter=500)),
            "TF-IDF + logistic": (counted, lambda c: tfidf(LogisticRegression(C=c, max_iter=500))),
            "SVM": (margins, lambda s: SVC(C=s[0], gamma=s[1])),
            "1-NN": ((1,), lambda k: KNeighborsClassifier(k)),
            "gradient boosting": (leaves, lambda n: HistGradientBoostingClassifier(max_leaf_nodes=n, **boosting)),
        }
    return {
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
        parts = [self.input.flat(self.task.source.rows(rows[i : i + 4096])) for i in range(0, len(rows), 4096)]
        return sparse.vstack(parts, "csr") if sparse.issparse(parts[0]) else np.concatenate(parts)


def names(input: Input, kind: str) -> list[str]:
    """The baselines for an input: those its modality names."""
    if kind == "classes":
        return [*input.baselines]
    return [name.replace("logistic", "ridge") for name in input.baselines]


def train(
    name: str, plain: Plain, rows: np.ndarray, choose: tuple[np.ndarray, np.ndarray]
) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
    """Fit a baseline like every contestant: choose among its settings on `choose`, refit on `rows`.

    Returns the predictor (rows -> probabilities or numbers) and the chosen setting in words.
    """
    task = plain.task
    settings, make = _grid(task.kind, task.seed)[name]
    best = settings[min(1, len(settings) - 1)]
    if len(settings) > 1 and len(choose[1]):
        fit_rows, held = choose
        x, held_x = plain.features(fit_rows), plain.features(held)
        scaled = {s: _gamma(s, x) for s in settings}
        errors = [_error(_fitted(make(scaled[s]), x, task, fit_rows)(held_x), task, held) for s in settings]
        best = settings[int(np.argmin(errors))]
    x = plain.features(rows)
    predict = _fitted(make(_gamma(best, x)), x, task, rows)
    words = f"C={best[0]:g}, gamma={best[1]:g}/(p·var)" if isinstance(best, tuple) else f"{best:g}"
    return lambda index: predict(plain.features(index)), words


def _gamma(setting: Any, x: np.ndarray) -> Any:
    """A margin setting's gamma in units of scikit-learn's "scale": 1/(p·var)."""
    if not isinstance(setting, tuple):
        return setting
    return setting[0], setting[1] / (x.shape[1] * max(float(x.var()), 1e-12))


def _fitted(model: Any, x: Any, task: Task, rows: np.ndarray) -> Callable[[Any], np.ndarray]:
    """Plain features -> predictions of a model fitted to `rows`; numbers stay within the reach of its labels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, task.target[rows])
    if task.kind == "numbers":
        low, high = reach(task, rows)
        return lambda new: np.clip(model.predict(new), low, high)
    return lambda new: _probabilities(model, new, task)


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
        return float(((out - task.target[rows]) ** 2).mean())
    return float((out.argmax(1) != task.target[rows]).mean())
