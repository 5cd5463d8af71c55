"""`learning-curve`: error against the number of labels, what more labels would bring, and what pre-training is worth."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
from sklearn.linear_model import RidgeCV

from modicum.core.errors import UserError
from modicum.diagnostics._finding import COLOURS, Finding, lines
from modicum.diagnostics._rows import Given, given
from modicum.maths.intervals import crossed
from modicum.maths.power_law import IllBehaved, PowerLaw, equal_size, fit, plausible, rounded
from modicum.training import splits
from modicum.training.many import Member, Work, train
from modicum.training.run import Run
from modicum.training.transfer import logistic, scaled

PRETRAINED = "pre-trained, frozen"
HEAD = "mlp(depth=0)"
HEAD_RATE = 1e-2
"""A linear model on standardised features is convex: a high rate only shortens it."""
FARTHEST = 8
"""How many times the largest size the fitted law is drawn."""


@dataclass(frozen=True)
class Curve:
    """Errors of one method: `scores` (seeds, sizes, test rows), its fitted law, or why there is none."""

    name: str
    scores: np.ndarray
    law: PowerLaw | None
    why: str

    @property
    def error(self) -> np.ndarray:
        """The mean error at every size."""
        out: np.ndarray = self.scores.mean((0, 2))
        return out


def learning_curve(
    data: Any = "digits",
    *,
    run: str | Path | Run | None = None,
    encoder: str = "mlp(width=64, depth=1, norm='none')",
    sizes: str | Sequence[int] | None = None,
    seeds: int = 5,
    target: float | None = None,
    label: str | None = None,
    split: str | None = None,
    group: str | None = None,
    limit: int | None = None,
    steps: int = 500,
    seed: int = 0,
) -> Finding:
    """Error against the number of labelled rows, a fitted power law, and how many labels an error needs.

    Each of `seeds` repeats has its own nested, stratified subsets of the training rows, of `sizes` rows ("20,50,100";
    default: seven up to half of them), the same for every method: the encoder from scratch, a linear model on plain
    features, and with `run` a head on its frozen features; the last is read as a shift along the axis: how many labels
    without pre-training reach the same error. Error: the share of mistakes, or of numbers the squared error in units of
    their variance (1 - R²). Curves that no power law describes are said to be so, not fitted.
    """
    began = time.perf_counter()
    check(seeds, steps, target)
    found = given(data, run=run, label=label, split=split, group=group, limit=limit, most_tests=2000, seed=seed)
    at = chosen_sizes(sizes, found)
    subsets = [
        [splits.few(found.labels.values, total=n, kind=found.labels.kind, seed=seed + s, among=found.train) for n in at]
        for s in range(seeds)
    ]
    scratch = replace(found, model=None)
    tables = {encoder: networks(scratch, scratch.work(), subsets, encoder, steps, seed)}
    tables["ridge regression" if not found.classes else "logistic regression"] = baseline(scratch, subsets)
    if found.model is not None:
        work = frozen(found)
        tables[PRETRAINED] = networks(found, work, subsets, HEAD, steps, seed, lr=HEAD_RATE)
    curves = [fitted(name, at, scores, seed) for name, scores in tables.items()]
    rows = [row for curve in curves for row in points(curve, at)]
    worth = shifts(curves, at, seed) if found.model is not None else []
    charts = {"learning-curve": chart(rows, curves, found.classes > 0)}
    if any(math.isfinite(w["worth"]) and w["worth"] > 0 for w in worth):
        charts["worth"] = chart_of_worth(worth, encoder)
    best = min(curves, key=lambda c: c.error[-1])
    target = float(best.error[-1]) / 2 if target is None else target
    facts = {
        "data": found.data.name,
        "run": None if run is None else str(getattr(run, "path", run)),
        "sizes": list(at),
        "seeds": seeds,
        "test_rows": len(found.test),
        "pool": len(found.train),
        "laws": {c.name: _law(c, target) for c in curves},
        "worth": worth,
        "target": target,
        "seconds": round(time.perf_counter() - began, 2),
    }
    return Finding("learning-curve", rows, charts, words(curves, worth, facts, found), facts)


def check(seeds: int, steps: int, target: float | None) -> None:
    """Refuse numbers that make no learning curve."""
    for name, value, least in (("seeds", seeds, 3), ("steps", steps, 1)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise UserError(f"--{name} {value!r}: wanted a whole number of at least {least}")
    if target is not None and not (isinstance(target, int | float) and math.isfinite(target) and target > 0):
        raise UserError(f"--target {target!r}: wanted an error above 0, such as 0.1")


def chosen_sizes(sizes: str | Sequence[int] | None, found: Given) -> list[int]:
    """The numbers of training rows: increasing, at least one a class, at most all."""
    pool = len(found.train)
    codes = found.labels.values[found.train]
    least = max(2, len(np.unique(codes)) if found.classes else 2)
    if sizes is None:
        low = max(2 * least, 10)
        if pool < 4 * low:
            raise UserError(
                f"{found.data.name} has {pool} labelled training rows: a learning curve from {low} rows to half of all "
                f"needs {4 * low}; give more rows, or --sizes"
            )
        return np.unique(np.round(np.geomspace(low, pool / 2, 7)).astype(int)).tolist()
    try:
        read = [int(v) for v in (sizes.split(",") if isinstance(sizes, str) else sizes)]
    except (TypeError, ValueError):
        raise UserError(f"--sizes {sizes}: wanted whole numbers such as 20,50,100") from None
    if len(read) < 2 or any(b <= a for a, b in pairwise(read)):
        raise UserError(f"--sizes {','.join(map(str, read))}: wanted at least two sizes in increasing order")
    if read[0] < least:
        raise UserError(
            f"--sizes {read[0]}: the smallest needs a row of each of the {least} classes, so at least {least}"
        )
    if read[-1] > pool:
        raise UserError(f"--sizes {read[-1]}: {found.data.name} has {pool} labelled training rows")
    return read


def networks(
    found: Given,
    work: Work,
    subsets: list[list[np.ndarray]],
    encoder: str,
    steps: int,
    seed: int,
    **settings: Any,
) -> np.ndarray:
    """Scores (seeds, sizes, test rows) of networks trained on every subset, all at once."""
    where = [(s, k) for s, own in enumerate(subsets) for k in range(len(own))]
    members = [Member(subsets[s][k], encoder=encoder, seed=seed + s, steps=steps, **settings) for s, k in where]
    out = np.full((len(subsets), len(subsets[0]), len(found.test)), np.nan)
    for reading in train(members, work):
        outputs = reading.outputs(found.test)
        for j, number in enumerate(reading.numbers):
            out[where[number]] = score(outputs[j], found)
    if not np.isfinite(out).all():
        raise UserError(f"training {encoder} diverged on some subset: its outputs are not finite; try another encoder")
    return out


def frozen(found: Given) -> Work:
    """Work on the run's features, standardised over the training rows (without labels)."""
    used = np.union1d(found.train, found.test)
    z = found.features(used)
    _, mean, std = scaled(z[np.searchsorted(used, found.train)])
    whole = np.zeros((len(found.labels.values), z.shape[1]), np.float32)
    whole[used] = (z - mean) / std
    return Work.of_features(whole, found.labels.values, found.classes)


def baseline(found: Given, subsets: list[list[np.ndarray]]) -> np.ndarray:
    """Scores (seeds, sizes, test rows) of logistic or ridge regression on plain features."""
    index = np.concatenate([found.train, found.test])
    plain = found.features(index)
    if not np.isfinite(plain).all():
        row, column = np.argwhere(~np.isfinite(plain))[0]
        raise UserError(
            f"feature {column} of row {index[row]} is {plain[row, column]}: wanted finite features; fill or drop them"
        )
    place = {int(row): k for k, row in enumerate(found.train)}
    out = np.empty((len(subsets), len(subsets[0]), len(found.test)))
    for s, own in enumerate(subsets):
        for k, rows in enumerate(own):
            x, mean, std = scaled(plain[[place[int(r)] for r in rows]])
            new = (plain[len(found.train) :] - mean) / std
            y = found.labels.values[rows]
            if found.classes:
                weight, bias = logistic(x, y, found.classes, 1.0)
                out[s, k] = score(new @ weight.T + bias, found)
            else:
                predicted = RidgeCV(np.logspace(-3, 4, 15)).fit(x, y).predict(new)
                out[s, k] = score(predicted[:, None], found)
    return out


def score(outputs: np.ndarray, found: Given) -> np.ndarray:
    """The error of each test row: a mistake, or the squared error in units of the variance of the test labels."""
    true = found.labels.values[found.test]
    if found.classes:
        wrong: np.ndarray = np.where(np.isfinite(outputs).all(1), outputs.argmax(1) != true, np.nan)
        return wrong
    error: np.ndarray = (outputs[:, 0] - true) ** 2 / max(float(true.var()), 1e-12)
    return error


def fitted(name: str, sizes: Sequence[int], scores: np.ndarray, seed: int) -> Curve:
    """The curve with its law, or with the reason why it has none."""
    try:
        return Curve(name, scores, fit(sizes, scores, seed=seed), "")
    except IllBehaved as error:
        return Curve(name, scores, None, str(error))


def points(curve: Curve, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """A row a measured size with its interval, and rows of the fitted law up to some times the largest size."""
    rows = []
    for k, n in enumerate(sizes):
        inside = crossed(curve.scores[:, k])
        rows.append({"curve": curve.name, "kind": "measured", "n": n} | _limits(inside.mean, inside.low, inside.high))
    if curve.law is not None:
        grid = np.geomspace(sizes[0], FARTHEST * sizes[-1], 60)
        rows += [
            {"curve": curve.name, "kind": "fitted", "n": float(n)} | _limits(*values)
            for n, values in zip(grid, curve.law.at(grid), strict=True)
        ]
    return rows


def _limits(error: float, low: float, high: float) -> dict[str, float]:
    return {"error": float(error), "low": float(low), "high": float(high)}


def shifts(curves: list[Curve], sizes: Sequence[int], seed: int) -> list[dict[str, Any]]:
    """For every size of the pre-trained curve, the size at which the same encoder family from scratch is as good.

    0: fewer rows than the smallest size; infinite: more than the largest. Both curves are drawn together, as they share
    subsets and test rows.
    """
    scratch, pretrained = curves[0], curves[-1]
    count = len(sizes)
    drawn = plausible(np.concatenate([scratch.scores, pretrained.scores], 1), seed=seed)
    at = np.asarray(sizes, dtype=np.float64)
    rows = []
    for k, n in enumerate(sizes):
        here = equal_size(at, scratch.error[None], pretrained.error[k : k + 1])[0]
        spread = np.sort(equal_size(at, drawn[:, :count], drawn[:, count + k]))
        low, high = spread[int(0.025 * len(spread))], spread[int(0.975 * len(spread))]
        rows.append({"n": n, "worth": float(here), "low": float(min(low, here)), "high": float(max(high, here))})
    return rows


def chart(rows: list[dict[str, Any]], curves: list[Curve], classes: bool) -> Any:
    """Measured errors with their intervals, and the fitted laws as dashed lines with bands."""
    order = [c.name for c in curves]
    title = ("labelled rows", "test error" if classes else "squared error / variance")
    measured = [r for r in rows if r["kind"] == "measured"]
    drawn = lines(
        measured, "n", "error", by="curve", band=("low", "high"), title=title, heading="Learning curves", log="xy"
    )
    law = [r for r in rows if r["kind"] == "fitted" and r["error"] > 0]
    if not law:
        return drawn
    floor = min(r["error"] for r in rows if r["error"] > 0) / 2
    law = [r | {"low": max(r["low"], floor), "high": max(r["high"], floor)} for r in law]
    scale = alt.Scale(domain=order, range=[COLOURS[k % len(COLOURS)] for k in range(len(order))])
    colour = alt.Color("curve:N", scale=scale, sort=order, title=None)
    base = alt.Chart(alt.InlineData(values=law)).encode(x="n:Q", color=colour)
    dashed = base.mark_line(strokeDash=[5, 4], strokeWidth=1.2).encode(y="error:Q")
    edges = [base.mark_line(strokeDash=[1, 3], strokeWidth=1).encode(y=f"{edge}:Q") for edge in ("low", "high")]
    return alt.layer(drawn, dashed, *edges)


def chart_of_worth(worth: list[dict[str, Any]], encoder: str) -> Any:
    """How many labels from scratch each number of labels with pre-training is worth."""
    kept = [r for r in worth if 0 < r["worth"] < math.inf]
    most = max(r["n"] for r in worth)
    shown = [
        {
            "n": r["n"],
            "labels": r["worth"],
            "low": max(r["low"], worth[0]["n"]),
            "high": min(r["high"], most),
            "curve": c,
        }
        for r in kept
        for c in ("with pre-training",)
    ]
    equal = [{"n": r["n"], "labels": r["n"], "low": None, "high": None, "curve": "equal"} for r in worth]
    title = ("labels with pre-training", f"labels that {encoder} from scratch needs")
    heading = "What labels are worth with pre-training"
    return lines(shown + equal, "n", "labels", by="curve", band=("low", "high"), title=title, heading=heading, log="xy")


def _law(curve: Curve, target: float) -> dict[str, Any]:
    """The law of a curve in numbers for `facts`; without one, why."""
    if curve.law is None:
        return {"fitted": False, "why": curve.why}
    law, needed = curve.law, curve.law.needed(target)
    parts = {k: [i.mean, i.low, i.high] for k, i in (("scale", law.scale), ("rate", law.rate), ("offset", law.offset))}
    # JSON has no infinity: None is "more than any".
    needs = [None if math.isinf(v) else v for v in (needed.n, needed.low, needed.high)]
    return {"fitted": True, **parts, "needed": needs, "needed_words": needed.words}


def words(curves: list[Curve], worth: list[dict[str, Any]], facts: dict[str, Any], found: Given) -> str:
    """The paragraph: what was measured, what the best curve says of more labels, and what pre-training is worth."""
    sizes, error = facts["sizes"], "error" if found.classes else "squared error in units of the variance (1 - R²)"
    text = (
        f"From {sizes[0]} to {sizes[-1]} labelled rows of {facts['data']}, in {facts['seeds']} nested stratified subsets "
        f"each, tested on {facts['test_rows']} rows, the {error} goes "
    )
    said = []
    for c in curves:
        last = crossed(c.scores[:, -1])
        said.append(f"from {c.error[0]:.3g} to {last.mean:.3g} [{last.low:.3g}, {last.high:.3g}] with {c.name}")
    text += "; ".join(said) + ". "
    best = min(curves, key=lambda c: c.error[-1])
    if best.law is not None:
        rate = best.law.rate
        text += (
            f"Of the lowest at {sizes[-1]}, {best.name}, the excess over a floor of {best.law.offset} falls as "
            f"n^-{rate.mean:.2g} (95 % [{rate.low:.2g}, {rate.high:.2g}]): doubling the labels would bring about "
            f"{best.law.at([2 * sizes[-1]])[0, 0]:.3g}; {best.law.needed(facts['target']).words}. "
        )
    for c in curves:
        if c.law is None:
            text += f"No power law is fitted to {c.name}: {c.why}. "
    if worth:
        text += _worth_in_words(worth, sizes, curves[0].name)
    share = sizes[-1] / facts["pool"]
    if share > 0.6:
        text += (
            f"The largest subsets hold {share:.0%} of the training rows, so that they hardly differ: the intervals there "
            "leave out most of what another draw of labels would change. "
        )
    return text.strip()


def _worth_in_words(worth: list[dict[str, Any]], sizes: Sequence[int], name: str) -> str:
    def labels(n: float) -> str:
        if n == 0:
            return f"fewer than {sizes[0]}"
        return f"more than {sizes[-1]}" if math.isinf(n) else rounded(n)

    inside = [w for w in worth if 0 < w["worth"] < math.inf]
    w = inside[len(inside) // 2] if inside else worth[len(worth) // 2]
    text = (
        f"Pre-training moves the curve: {w['n']} labels on the frozen encoder reach what {name} needs {labels(w['worth'])} "
        f"for (95 % {labels(w['low'])} to {labels(w['high'])})"
    )
    better = [v for v in worth if v["low"] > v["n"]]
    worse = [v for v in worth if v["high"] < v["n"]]
    if better and worse:
        return text + f"; it helps at {_listed(better)} labels and hurts at {_listed(worse)}. "
    if better:
        return text + f"; the gain is beyond noise at {_listed(better)} labels. "
    if worse:
        return text + f"; it is worth less than training from scratch at {_listed(worse)} labels. "
    return text + ", which is no difference beyond noise at any size. "


def _listed(rows: list[dict[str, Any]]) -> str:
    return ", ".join(str(r["n"]) for r in rows)
