"""What a decomposition into bias and variance says, in words for a newcomer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from modicum.core.spec import parse
from modicum.diagnostics._decompose import STILL, Design, Size, Truth
from modicum.diagnostics._rows import Given
from modicum.diagnostics._teach import Reach, same
from modicum.maths.decomposition import Decomposition, Spread
from modicum.maths.intervals import Interval

TITLE = {"squared": "squared loss", "cross-entropy": "cross-entropy", "zero-one": "error"}
SOURCES = {"data": "which rows they saw", "initialisation": "which start they had", "interaction": "both together"}


def setting(rows: Given, design: Design, size: Size, truth: Truth, asked: dict[str, Any]) -> str:
    """What was trained on how many rows, and what the intervals cover; `asked`: label noise, disjoint, group."""
    shared, noise = not asked["disjoint"], asked["label noise"]
    where = "a head on a run's frozen features, " if rows.model is not None else ""
    starts = "one initialisation" if design.seeds == 1 else f"the same {design.seeds} initialisations"
    parts = "subsamples of" if shared else "disjoint parts of"
    said = (
        f"{design.splits * design.seeds} models ({where}{design.encoder}) were trained on {design.splits} {parts} "
        f"the {len(rows.train):,} training rows of {rows.data.name}, {starts} each, and tested on "
        f"{len(rows.test):,} rows. So all that follows is about models trained on n = {size.n:,} rows; 95 % intervals "
        "[...] are over the choice of training and of test rows."
    )
    if rows.classes and asked["group"] is None:
        said += " Every part has the classes in their shares, so that those make no variance."
    if shared:
        share = size.n / len(rows.train)
        said += (
            f" The subsamples overlap, so models are more alike than on fresh rows: variance from which rows they saw "
            f"is understated, by about {share:.0%} of itself, bias overstated by as much, and intervals are too narrow."
        )
    if truth.teacher:
        kind = "this very kind" if same(truth.teacher, design.encoder) else f"another kind, {truth.teacher}"
        said += f" All labels are drawn from a model of {kind}, so that the truth is known and noise is apart."
    elif noise:
        said += f" In training {noise:.0%} of the labels were redrawn; bias and variance are against those as given."
    if not truth.teacher:
        said += " What is wrong with the labels themselves counts as bias, though no model can mend it."
    return said


def decomposed(d: Decomposition, rows: Given) -> str:
    """Bias and variance, what the variance comes from, which is larger and what helps."""
    noise = f"noise {d.noise:.3g} + " if d.noise else ""
    said = f"{TITLE[d.kind].capitalize()} {d.loss} = {noise}bias {d.bias} + variance {d.variance}."
    if d.bias.over == "rows":
        said += " With 2 splits the intervals of bias and variance are over test rows only: ask for more --splits."
    if "data" in d.parts:
        said += _sources(d)
    if d.bias.mean < 0 or d.variance.mean < 0:
        said += " An unbiased estimate may be below 0: it is then as good as 0 within its interval."
    if d.warning:
        medians = ", ".join(f"{k} {d.medians[k]:.3g}" for k in ("loss", "bias", "variance"))
        said += f" Careful: {d.warning} (of rows: {medians}; of models' losses {d.medians['model']:.3g})."
    if d.kind == "zero-one":
        return said + (
            f" Here bias is the error of the models' majority vote; single models add {d.parts['harm']} where it is "
            f"right and take {abs(d.parts['help'].mean):.3g} off where it is wrong."
        )
    return f"{said} {_helps(d, rows)}"


def _sources(d: Decomposition) -> str:
    """What the variance comes from: parts that are known, those that hardly matter, and those that are not known."""
    whole = max(d.variance.mean, 0.0)
    small = {k: v for k, v in d.parts.items() if v.high < 0.05 * whole}
    known = {k: v for k, v in d.parts.items() if v.low > 0 and k not in small}
    shares = [f"{SOURCES[k]} makes {100 * v.mean / whole:.0f} %: {v}" for k, v in known.items() if whole]
    said = f" Of the variance, {', '.join(shares)}." if shares else ""
    if small:
        said += f" Less than a twentieth comes from {' and from '.join(SOURCES[k] for k in small)}."
    if rest := [f"{SOURCES[k]} ({d.parts[k]})" for k in d.parts if k not in small and k not in known]:
        said += f" How much comes from {' and from '.join(rest)} is not known: the interval holds 0."
    return said


def _helps(d: Decomposition, rows: Given) -> str:
    if d.balance.low > 0:
        run = "" if rows.model is not None else ", or pre-training (--run)"
        helps = f"a larger or better suited encoder, longer training{run}"
        return f"Bias is larger than variance, by {d.balance}: models are wrong alike. What helps is {helps}."
    if d.balance.high < 0:
        by = Interval(-d.balance.mean, -d.balance.high, -d.balance.low, d.balance.over)
        said = f"Variance is larger than bias, by {by}: models differ. More labelled rows or regularisation help"
        rest = sum(d.parts[k].mean for k in ("initialisation", "interaction") if k in d.parts)
        if rest > 0:
            return (
                f"{said}; averaging models that differ in their start alone can gain {rest:.2g} of {d.loss.mean:.2g}."
            )
        return f"{said}, and so does averaging several models."
    return f"Which of the two is larger is not known: bias - variance is {d.balance}. More --splits can tell."


def runs(spread: Spread, tests: int) -> str:
    """How much the accuracy differs between runs."""
    seen, true = (100 * math.sqrt(max(v, 0.0)) for v in (spread.naive, spread.true))
    return (
        f"One model's accuracy is {100 * spread.accuracy:.1f} %, with a standard deviation between runs of {true:.2f} "
        f"points; on {tests:,} test rows it looks like {seen:.2f}, as few rows add noise of their own."
    )


def known(d: Decomposition, size: Size, truth: Truth, near: Reach | None, design: Design, rows: Given) -> str:
    """Approximation and estimation error where the truth is known."""
    own = f"whose own {TITLE[d.kind]} is {d.noise or truth.noise:.3g}, all noise"
    if near is None:
        return (
            f"Approximation error is exactly 0, as the truth is itself a model of this kind, {own}. So at "
            f"n = {size.n:,} bias and variance together are estimation error: {d.excess}, which more rows lower. Bias "
            "is then estimation bias, variance that of estimation (which rows) and of optimisation (which start)."
        )
    labels = "the teacher's probabilities" if rows.classes else "the teacher's outputs without noise"
    said = (
        f"Approximation error, what the best of {design.encoder} loses to the truth, {own}, is at most {near.most}: "
        f"the test loss above the noise of one such model, trained on {labels} for all {len(rows.train):,} training "
        f"rows, L-BFGS going on. So of bias and variance together at n = {size.n:,}, {d.excess}, at least "
        f"{near.estimation} is estimation error, which more rows lower"
    )
    if near.least is None:
        return (
            f"{said}. A lower bound of the approximation error is refused: fitting the test rows has not converged; "
            "raise --steps."
        )
    taken = "" if convex(design.encoder) else ", if training found the lowest there is"
    return (
        f"{said}, and at most {max(d.excess.mean - near.least.mean, 0.0):.3g}: approximation error is at least "
        f"{near.least.mean:.3g}, what such a model loses where it is fitted to the test rows themselves{taken}."
    )


def reach(sizes: Sequence[Size], rows: Given, spec: str, noise: float) -> str:
    """The bracket of the lowest loss in reach as n grows, which parts approximation from estimation error."""
    last, name = sizes[-1], "cross-entropy" if rows.classes else "squared loss"
    labels = " of labels as noisy as those" if noise else ""
    ends = [f"{s.train.mean:.3g}" if s.converged else "no lower end" for s in sizes]
    said = (
        f"Approximation error, which more rows cannot lower, is not the same as bias. The lowest {name}{labels} that "
        "this encoder can reach is at most its expected test loss and at least its expected lowest training loss: "
        + "; ".join(f"n = {s.n:,}: {end} to {s.test.mean:.3g}" for s, end in zip(sizes, ends, strict=True))
        + "."
    )
    if last.converged:
        said += (
            f" So at n = {last.n:,} estimation error, which more rows do lower, is at most "
            f"{last.test.mean - last.train.mean:.3g}."
        )
    if not convex(spec) and any(s.converged for s in sizes):
        said += " The lower end takes it that training found the lowest loss of all, which a network may miss."
    return said + _refused([s for s in sizes if not s.converged])


def convex(spec: str) -> bool:
    """Whether a trunk has no layer of its own, so that the model is linear and its lowest training loss is found."""
    made = parse(spec, "encoder")
    return bool(made.get("name") == "mlp" and made["args"].get("depth") == 0)


def _refused(lost: Sequence[Size]) -> str:
    """Why some sizes have no lower end."""
    if not lost:
        return ""
    worst = max(lost, key=lambda s: s.left if s.left == s.left else math.inf)
    trained, lower = np.mean(worst.polished, axis=0)
    models = f"full-batch L-BFGS, going on from {len(worst.polished)} of the models"
    if math.isnan(lower):
        said = f"{models}, strays to a loss that is not finite at n = {worst.n:,}, so that nothing is known: lower --lr"
        return f" It is refused where {said}."
    return (
        f" It is refused where training has not converged: {models}, still lowers the training loss by more than "
        f"{STILL:.0%} of the test loss; at n = {worst.n:,} from {trained:.3g} to {lower:.3g}: raise --steps, or --lr."
    )
