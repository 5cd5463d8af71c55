"""Classical models of growing complexity, on disjoint parts of rows: scikit-learn's, and least squares on powers."""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, pairwise
from typing import Any

import numpy as np
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from sklearn.utils import all_estimators

from modicum.core import seeds
from modicum.core.errors import UserError, unknown
from modicum.diagnostics._rows import Given
from modicum.training.transfer import scaled

POWERS = "polynomial"
FAMILIES: dict[str, tuple[str, str, Sequence[int], Any, Any]] = {
    "depth": ("max_depth", "tree depth", (1, 2, 3, 4, 5, 6, 8, 10, 13), DecisionTreeClassifier, DecisionTreeRegressor),
    "tree": (
        "max_leaf_nodes",
        "leaves of the tree",
        (2, 4, 8, 12, 16, 24, 32, 64, 128, 256),
        DecisionTreeClassifier,
        DecisionTreeRegressor,
    ),
    "knn": (
        "n_neighbors",
        "n/k of k-NN, its effective parameters",
        (1, 2, 3, 5, 10, 20, 30, 50),
        KNeighborsClassifier,
        KNeighborsRegressor,
    ),
    "forest": (
        "n_estimators",
        "trees of the forest",
        (1, 2, 4, 8, 16, 32, 64),
        RandomForestClassifier,
        RandomForestRegressor,
    ),
    "boosting": (
        "n_estimators",
        "boosting rounds",
        (1, 3, 10, 30, 100),
        GradientBoostingClassifier,
        GradientBoostingRegressor,
    ),
    POWERS: ("degree", "degree in every component, no products", (0, 1, 2, 3, 4, 6, 8, 10, 12, 14, 17, 20), None, None),
}
"""Name -> parameter, its words on the axis, values, estimators of classes and of numbers."""
LADDER = (1, 2, 3, 5, 8, 13, 21)
COMPONENTS = 20
MOST_ROWS = 300
"""Rows that the second panel trains on at most: a least squares a number of features a repeat, to 16 times as many."""


Fit = Callable[[float, int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Parts:
    """Standardised features and targets of the disjoint training parts, and of the test rows."""

    x: list[np.ndarray]
    y: list[np.ndarray]
    codes: list[np.ndarray]
    test_x: np.ndarray
    test_y: np.ndarray
    test_codes: np.ndarray
    classes: int
    seed: int

    @property
    def rows(self) -> int:
        """Rows of the smallest part."""
        return min(map(len, self.x))


@dataclass(frozen=True)
class Family:
    """Models of growing complexity: `fit(value, part)` gives outputs (rows, k) for the test rows and the part's own.

    `at` is the place of a value on the axis; `threshold` where there are as many parameters as training rows.
    """

    name: str
    axis: str
    values: tuple[float, ...]
    fit: Fit
    at: Callable[[float], float] = float
    threshold: float = math.inf


def divide(found: Given, count: int, seed: int) -> Parts:
    """Disjoint stratified parts of the training rows; UserError where they, or a class in them, would be too small."""
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 3:
        raise UserError(f"--seeds {count!r}: wanted at least 3 disjoint parts of the training rows to see what varies")
    if len(found.train) < 10 * count:
        raise UserError(
            f"{found.data.name} has {len(found.train)} training rows: {count} disjoint parts of at least 10 rows need "
            f"{10 * count}; give more rows or fewer --seeds"
        )
    train = seeds.numpy(seed, "parts").permutation(found.train)
    codes = found.labels.values
    if not found.classes and np.ptp(codes[train]) == 0:
        raise UserError(f"{found.data.name}: every training label is {codes[train[0]]:g}; wanted labels that differ")
    if found.classes:
        train = train[np.argsort(codes[train], kind="stable")]
        counts = np.bincount(codes[train], minlength=found.classes)
        rare = [found.labels.classes[c] for c in np.flatnonzero((counts > 0) & (counts < count))]
        if rare:
            raise UserError(
                f"class {', '.join(map(str, rare[:5]))} has fewer than {count} training rows and would be missing from "
                "a part: give fewer --seeds, or drop or merge the class"
            )
    plain = found.features(np.concatenate([train, found.test]))
    x, mean, std = scaled(plain[: len(train)])
    cut = [np.arange(k, len(train), count) for k in range(count)]
    test = (plain[len(train) :] - mean) / std
    y = found.targets(train)
    own = [codes[train[i]] for i in cut]
    truth = found.targets(found.test), codes[found.test]
    return Parts([x[i] for i in cut], [y[i] for i in cut], own, test, *truth, found.classes, seed)


def choose(model: str, over: str | Sequence[float] | None, parts: Parts) -> Family:
    """The family of models that is asked for; UserError for what is not known, or no values."""
    parameter, values = _asked(over)
    if model == POWERS:
        _only(model, parameter, "degree")
        return _powers(_increasing(values or FAMILIES[POWERS][2], whole=0), parts)
    if model in FAMILIES:
        own, axis, usual, *kinds = FAMILIES[model]
        _only(model, parameter, own)
        made = kinds[0 if parts.classes else 1]
        chosen = _increasing(values or [v for v in usual if v <= parts.rows], whole=1)
    else:
        made = estimator(model, parts.classes > 0)
        if parameter is None:
            known = ", ".join(sorted(_new(made).get_params()))
            raise UserError(f"--model {model}: name the parameter that is its complexity, --over NAME=1,2,5: {known}")
        own, axis, chosen = parameter, f"{parameter} of {made.__name__}", _increasing(values or LADDER)
        if own not in _new(made).get_params():
            raise unknown(f"parameter of {made.__name__}", own, _new(made).get_params())
    if model == "knn":
        if chosen[-1] > parts.rows:
            raise UserError(f"--over {chosen[-1]:g}: k is at most the {parts.rows} training rows of a part")
        return Family(model, axis, chosen[::-1], _sklearn(made, own, parts), lambda k: parts.rows / k)
    return Family(model, axis, chosen, _sklearn(made, own, parts))


def estimator(name: str, classes: bool) -> Any:
    """The scikit-learn classifier or regressor of that public name, dotted or not; nothing else is ever imported."""
    kinds = {"classifier": True, "regressor": False}
    found = {c: made for kind, is_classes in kinds.items() if is_classes == classes for c, made in all_estimators(kind)}
    other = {c for kind, is_classes in kinds.items() if is_classes != classes for c, _ in all_estimators(kind)}
    short = name.rpartition(".")[2]
    if short in other and short not in found:
        wanted = "a classifier: the labels are classes" if classes else "a regressor: the labels are numbers"
        raise UserError(f"--model {name}: wanted {wanted}")
    if short not in found or name not in (short, _public(found[short])):
        public = [_public(made) for made in found.values()] if "." in name else list(found)
        raise UserError(str(unknown("model", name, [*FAMILIES, *public]))[:600] + ", ...")
    return found[short]


def _public(made: type) -> str:
    path = made.__module__.split(".")
    private = next((k for k, part in enumerate(path) if part.startswith("_")), len(path))
    return ".".join([*path[:private], made.__name__])


def _asked(over: str | Sequence[float] | None) -> tuple[str | None, list[float] | None]:
    """The parameter and the values of "NAME", "1,2,5", "NAME=1,2,5" or a list."""
    if over is None:
        return None, None
    if not isinstance(over, str):
        return None, [over] if isinstance(over, int | float) else list(over)
    name, equals, values = over.partition("=")
    if not equals:
        name, values = (name, "") if name.strip().isidentifier() else ("", name)
    try:
        read = [ast.literal_eval(v.strip()) for v in values.split(",")] if values.strip() else None
    except (ValueError, SyntaxError):
        raise UserError(f"--over {over}: wanted values such as 1,2,5 or NAME=1,2,5") from None
    return name.strip() or None, read


def _only(model: str, parameter: str | None, own: str) -> None:
    if parameter not in (None, own):
        raise UserError(f"--model {model} --over {parameter}: its complexity is {own}; give its values alone")


def _increasing(values: Sequence[float], whole: int | None = None) -> tuple[float, ...]:
    """At least two finite numbers in increasing order; whole ones of at least `whole` where that is given."""
    if any(isinstance(v, bool) or not isinstance(v, int | float | np.number) or not math.isfinite(v) for v in values):
        raise UserError(f"--over {list(values)}: wanted numbers")
    if len(values) < 2 or any(b <= a for a, b in pairwise(values)):
        raise UserError(f"--over {list(values)}: wanted at least two values in increasing order")
    if whole is not None and (values[0] < whole or any(int(v) != v for v in values)):
        raise UserError(f"--over {list(values)}: wanted whole numbers of at least {whole}")
    return tuple(values)


def _new(made: Any) -> Any:
    try:
        return made()
    except TypeError as error:
        raise UserError(f"{made.__name__} cannot be made without more arguments: {error}") from None


def _sklearn(made: Any, parameter: str, parts: Parts) -> Fit:
    def fit(value: float, part: int) -> tuple[np.ndarray, np.ndarray]:
        model = _new(made)
        fixed = {"random_state": parts.seed + part} if "random_state" in model.get_params() else {}
        target = parts.codes[part] if parts.classes else parts.y[part][:, 0]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.set_params(**{parameter: value}, **fixed).fit(parts.x[part], target)
        except (ValueError, TypeError) as error:
            raise UserError(f"{made.__name__}({parameter}={value}) does not train on this data: {error}") from None
        return _outputs(model, parts.test_x, parts.classes), _outputs(model, parts.x[part], parts.classes)

    return fit


def _outputs(model: Any, x: np.ndarray, classes: int) -> np.ndarray:
    """Numbers (n, 1), or probabilities (n, classes) with 0 for a class the model never saw."""
    if not classes:
        return np.asarray(model.predict(x), dtype=np.float64).reshape(len(x), 1)
    if not hasattr(model, "predict_proba"):
        return np.eye(classes)[model.predict(x)]
    out = np.zeros((len(x), classes))
    out[:, model.classes_] = model.predict_proba(x)
    return out


def _components(parts: Parts) -> tuple[list[np.ndarray], np.ndarray]:
    """The leading principal components of the training rows in [-1, 1], three standard deviations at its ends."""
    x = np.concatenate(parts.x)
    size, right = np.linalg.svd(x, full_matrices=False)[1:]
    kept = right[:COMPONENTS][size[:COMPONENTS] > 1e-6 * size[0]].T
    third = 3 * (x @ kept).std(0)
    return [np.clip(p @ kept / third, -1, 1) for p in parts.x], np.clip(parts.test_x @ kept / third, -1, 1)


def _powers(values: tuple[float, ...], parts: Parts) -> Family:
    """Least squares on the powers of each component alone, as Legendre polynomials."""
    own, test = _components(parts)

    def columns(x: np.ndarray, degree: float) -> np.ndarray:
        each = np.polynomial.legendre.legvander(x, int(degree))[..., 1:]
        return np.concatenate([np.ones((len(x), 1)), each.reshape(len(x), -1)], 1)

    def fit(value: float, part: int) -> tuple[np.ndarray, np.ndarray]:
        x = columns(own[part], value)
        weight = np.linalg.lstsq(x, parts.y[part], rcond=1e-12)[0]
        return columns(test, value) @ weight, x @ weight

    return Family(POWERS, FAMILIES[POWERS][1], values, fit)


def least_squares(parts: Parts) -> Family:
    """Minimum-norm least squares on the first D of many nested Legendre products, from D = 1 to 16 n."""
    n = min(parts.rows, MOST_ROWS)
    sizes = np.concatenate(
        [np.geomspace(1, 0.8 * n, 10), n * np.array([0.9, 1, 1.1, 1.3]), n * np.geomspace(1.6, 16, 6)]
    )
    values = tuple(map(float, np.unique(np.round(sizes))))
    own, test = _components(parts)
    own = [x[:n] for x in own]
    chosen = monomials(test.shape[1], int(values[-1]), seeds.numpy(parts.seed, "monomials"))
    train_columns, test_columns = [_products(x, chosen) for x in own], _products(test, chosen)

    def fit(value: float, part: int) -> tuple[np.ndarray, np.ndarray]:
        x = train_columns[part][:, : int(value)]
        weight = np.linalg.lstsq(x, parts.y[part][:n], rcond=1e-12)[0]
        return test_columns[:, : int(value)] @ weight, x @ weight

    return Family("least squares", "polynomial features D of least squares", values, fit, threshold=n)


def monomials(variables: int, count: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """`count` distinct products of variables, by total degree, in random order from degree 2 on."""
    found: list[tuple[int, ...]] = [(), *((k,) for k in range(variables))]
    degree = 2
    while len(found) < count:
        wanted = count - len(found)
        if math.comb(variables + degree - 1, degree) > 10 * wanted:
            drawn: dict[tuple[int, ...], None] = {}
            while len(drawn) < wanted:
                drawn[tuple(sorted(rng.integers(variables, size=degree).tolist()))] = None
            found += drawn
        else:
            every = list(combinations_with_replacement(range(variables), degree))
            found += [every[k] for k in rng.permutation(len(every))]
        degree += 1
    return found[:count]


def _products(x: np.ndarray, chosen: list[tuple[int, ...]]) -> np.ndarray:
    """Columns (n, len(chosen)): products of Legendre polynomials, each of variance 1 under uniform variables."""
    highest = len(chosen[-1])
    each = np.polynomial.legendre.legvander(x, highest) * np.sqrt(2 * np.arange(highest + 1) + 1)
    out = np.ones((len(x), len(chosen)))
    for k, product in enumerate(chosen):
        for variable in set(product):
            out[:, k] *= each[:, variable, product.count(variable)]
    return out
