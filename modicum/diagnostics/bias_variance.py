"""`bias-variance`: what models lose because they are all wrong alike, and what because they differ with their data."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np

from modicum.core.errors import UserError, unknown
from modicum.core.seeds import numpy as generator
from modicum.diagnostics._decompose import Design, Size, Truth, disjoint, given_labels, taught
from modicum.diagnostics._decompose import run as trained
from modicum.diagnostics._finding import COLOURS, Finding, lines
from modicum.diagnostics._rows import Given, given
from modicum.maths.decomposition import LOSSES, Decomposition, Loss, Spread
from modicum.maths.intervals import Interval
from modicum.training.run import Run

NUMBERS = 2e7
"""Outputs of all models on test rows that are kept; there are no more test rows than that allows, nor than 5,000."""
NAMES = {
    "data": "variance: which rows",
    "initialisation": "variance: which start",
    "interaction": "variance: both together",
    "harm": "variance: where the vote is right",
    "help": "variance: where it is wrong",
}


def bias_variance(
    data: Any = "digits",
    *,
    loss: str | None = None,
    encoder: str | None = None,
    run: str | Path | Run | None = None,
    splits: int = 4,
    seeds: int = 2,
    teacher: bool = False,
    label_noise: float = 0.0,
    steps: int = 800,
    batch: int = 64,
    lr: float = 3e-3,
    label: str | None = None,
    split: str | None = None,
    group: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Finding:
    """Decompose the test loss into bias and variance, without bias and with intervals, and bracket the best in reach.

    Models are trained by AdamW without weight decay on `splits` disjoint parts of the training rows x `seeds`
    initialisations; the n that is decomposed is that of a part. `loss`: cross-entropy (default for classes), squared,
    zero-one, several with commas between, or all. With `run`, the encoder (default linear) is a head on its frozen
    features. `label_noise`: the share of training labels that is redrawn. With `teacher`, rows are relabelled by a
    trained model of the same encoder, so that the best there can be is known and noise is apart.
    """
    began = time.perf_counter()
    spec = encoder or ("mlp(width=64, depth=1, norm='none')" if run is None else "mlp(depth=0)")
    design = Design(spec, splits, seeds, steps, batch, lr, seed)
    rows = given(data, run=run, label=label, split=split, group=group, limit=limit, most_tests=5000, seed=seed)
    losses = _losses(loss, rows)
    rows = replace(rows, test=_fewer(rows, design))
    parts = disjoint(rows, splits, seed, group)
    work = rows.work()
    truth = taught(rows, work, design, label_noise) if teacher else given_labels(rows, label_noise, seed)
    sizes = trained(rows, work, truth, design, parts)
    sums = sizes[-1].sums
    found = [sums.decompose(truth.targets[rows.test], name) for name in losses]
    spread = sums.spread(truth.targets[rows.test]) if rows.classes else None
    table = [row for one in found for row in _table(one, sizes[-1].n)] + [
        row for size in sizes for row in _ends(size, rows)
    ]
    charts = {"decomposition": _dots(found, rows, sizes[-1].n), "bracket": _curve(sizes, truth, rows, spec)}
    said = [_setting(rows, design, sizes[-1], label_noise, truth), *map(_decomposed, found)]
    said += [
        _ahead(found[0], rows),
        *([_runs(spread, len(rows.test))] if spread else []),
        _reach(sizes, truth, rows, spec),
    ]
    facts = {
        "n": sizes[-1].n,
        "training rows": len(rows.train),
        "test rows": len(rows.test),
        "splits": splits,
        "seeds": seeds,
        "encoder": spec,
        "steps": steps,
        "label noise": label_noise,
        "teacher": teacher,
        "warnings": {d.kind: d.warning for d in found if d.warning},
        "medians": {d.kind: d.medians for d in found},
        "spread of accuracy": spread._asdict() if spread else None,
        "seconds": round(time.perf_counter() - began, 1),
    }
    return Finding("bias-variance", table, charts, "\n\n".join(said), facts)


def _losses(asked: str | None, rows: Given) -> list[Loss]:
    """The losses asked for, of those that fit the labels."""
    if asked is None:
        return ["cross-entropy" if rows.classes else "squared"]
    if asked == "all":
        return list(LOSSES) if rows.classes else ["squared"]
    out: list[Loss] = []
    for name in (part.strip() for part in asked.split(",")):
        known = next((one for one in LOSSES if one == name), None)
        if known is None:
            raise unknown("--loss", name, [*LOSSES, "all"])
        if known != "squared" and not rows.classes:
            raise UserError(f"--loss {name} is for classes; the label of {rows.data.name} is a number: use squared")
        out.append(known)
    return out


def _fewer(rows: Given, design: Design) -> np.ndarray:
    """The test rows, or as many of them as the outputs of all models may take memory for."""
    most = max(200, int(NUMBERS / (design.splits * design.seeds * max(rows.classes, 1))))
    if len(rows.test) <= most:
        return rows.test
    return np.sort(generator(design.seed, "fewer tests").choice(rows.test, most, replace=False))


# Rows and charts


def _shown(d: Decomposition) -> list[tuple[str, str, Any]]:
    """What a decomposition is drawn as: words, the colour's group, an interval or the noise as a number."""
    noise = [("noise", "noise", d.noise)] if d.noise else []
    parts = [(NAMES[name], "part of the variance", value) for name, value in d.parts.items()]
    return [("loss", "loss", d.loss), *noise, ("bias", "bias", d.bias), ("variance", "variance", d.variance), *parts]


def _table(d: Decomposition, n: int) -> list[dict[str, Any]]:
    out = []
    for part, _, value in _shown(d):
        mean, low, high = (value, value, value) if isinstance(value, float) else (value.mean, value.low, value.high)
        covers = "" if isinstance(value, float) else value.over
        out.append({"loss": d.kind, "part": part, "n": n, "value": mean, "low": low, "high": high, "covers": covers})
    return out


def _ends(size: Size, rows: Given) -> list[dict[str, Any]]:
    """The ends of the bracket: mean training loss, where training has converged, and test loss."""
    name = "cross-entropy" if rows.classes else "squared"
    given = [("training loss", size.train)] if size.converged else [("training loss, not converged", size.train)]
    return [
        {"loss": name, "part": part, "n": size.n, "value": i.mean, "low": i.low, "high": i.high, "covers": i.over}
        for part, i in (*given, ("test loss", size.test))
    ]


def _dots(found: Sequence[Decomposition], rows: Given, n: int) -> Any:
    """Bars with intervals, a panel a loss."""
    colours = {"loss": COLOURS[5], "noise": "#c3c7ce", "bias": COLOURS[0], "variance": COLOURS[1]}
    colours["part of the variance"] = "#eec08d"
    panels = []
    for d in found:
        values = []
        for row, (_, group, _) in zip(_table(d, n), _shown(d), strict=True):
            values.append({**row, "group": group})
        order = [row["part"] for row in values]
        base = alt.Chart(alt.InlineData(values=values), width=440, height=34 * len(values))
        base = base.properties(title=f"{rows.data.name}: {_TITLE[d.kind]} of models trained on n = {n:,} rows")
        y = alt.Y("part:N", sort=order, title=None, axis=alt.Axis(labelLimit=260))
        fill = alt.Color("group:N", scale=alt.Scale(domain=list(colours), range=list(colours.values())), legend=None)
        title = f"{_TITLE[d.kind]}, with 95 % intervals"
        bar = base.mark_bar(height=16).encode(
            y=y, x=alt.X("value:Q", title=title, axis=alt.Axis(format=".3~g")), color=fill
        )
        rule = base.mark_rule(strokeWidth=2, color="#333b46").encode(y=y, x="low:Q", x2="high:Q")
        panels.append(alt.layer(bar, rule))
    return alt.vconcat(*panels) if len(panels) > 1 else panels[0]


_TITLE = {"squared": "squared loss", "cross-entropy": "cross-entropy", "zero-one": "error"}


def _curve(sizes: Sequence[Size], truth: Truth, rows: Given, spec: str) -> Any:
    """Training and test loss against the number of training rows; the best in reach is between them."""
    points = []
    for name in ("test", "training"):
        for size in sizes:
            i = size.test if name == "test" else size.train
            if name == "test" or size.converged:
                points.append(
                    {"n": size.n, "loss": i.mean, "low": max(i.low, 0.0), "high": i.high, "of": f"{name} loss"}
                )
    if truth.known:
        best = _best(truth, rows)
        points += [
            {"n": s.n, "loss": best, "low": best, "high": best, "of": "best there can be (known)"} for s in sizes
        ]
    name = "cross-entropy" if rows.classes else "squared loss"
    heading = f"{rows.data.name}: the best that {spec} can reach is between"
    title = ("training rows", name)
    return lines(points, "n", "loss", by="of", band=("low", "high"), title=title, heading=heading, log="x")


def _best(truth: Truth, rows: Given) -> float:
    """The loss of the teacher itself, on the labels drawn from it."""
    if not rows.classes:
        return truth.noise
    p = truth.targets[rows.test]
    return float(-np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(1).mean())


# Words


def _setting(rows: Given, design: Design, size: Size, noise: float, truth: Truth) -> str:
    where = "a head on a run's frozen features, " if rows.model is not None else ""
    said = (
        f"{design.splits * design.seeds} models ({where}{design.encoder}) were trained on {design.splits} disjoint parts "
        f"of the {len(rows.train):,} training rows of {rows.data.name}, {design.seeds} initialisation(s) each, and tested "
        f"on {len(rows.test):,} rows. So all that follows is about models trained on n = {size.n:,} rows."
    )
    if truth.known:
        said += " All labels are drawn from a model of this very kind, so that the truth is known."
    if noise:
        said += f" {noise:.0%} label noise was added for training"
        said += "; noise is apart." if truth.known else "; the decomposition is against the labels as given."
    return said


def _decomposed(d: Decomposition) -> str:
    noise = f" = noise {d.noise:.3g} + bias" if d.noise else " = bias"
    said = f"{_TITLE[d.kind].capitalize()} {d.loss}{noise} {d.bias} + variance {d.variance}."
    if d.bias.over == "rows":
        said += " With these splits the intervals of bias and variance cover the test rows only: ask for 3 or more --splits."
    if "data" in d.parts:
        whole = d.variance.mean
        shares = [f"{NAMES[k].partition(': ')[2]} {v}{_share(v.mean, whole)}" for k, v in d.parts.items()]
        said += f" Of the variance, {', '.join(shares)}."
    if "harm" in d.parts:
        said += (
            f" Bias is the error of the models' majority vote; single models add {d.parts['harm']} where it is right and "
            f"take {-d.parts['help'].mean:.3g} off where it is wrong."
        )
    if d.bias.mean < 0 or d.variance.mean < 0:
        said += " An unbiased estimate may be below 0: it is then as good as 0 within its interval."
    return said + (f" Careful: {d.warning} (row medians: loss {d.medians['loss']:.3g}, bias {d.medians['bias']:.3g}, "
                   f"variance {d.medians['variance']:.3g}; of models' losses {d.medians['model']:.3g})." if d.warning else "")  # fmt: skip


def _share(value: float, whole: float) -> str:
    return f" ({100 * value / whole:.0f} %)" if whole > 0 else ""


def _ahead(d: Decomposition, rows: Given) -> str:
    """Which of the two is larger, if that is known, and what helps."""
    if d.balance.low > 0:
        run = "" if rows.model is not None else ", or pre-training (--run)"
        helps = f"a larger or better suited encoder, longer training{run}"
        return f"Bias is larger than variance, by {d.balance}: models are wrong alike. What helps is {helps}."
    if d.balance.high < 0:
        by = Interval(-d.balance.mean, -d.balance.high, -d.balance.low, d.balance.over)
        said = f"Variance is larger than bias, by {by}: models differ. More labelled rows or regularisation help"
        rest = sum(d.parts[k].mean for k in ("initialisation", "interaction") if k in d.parts)
        if d.kind != "zero-one" and rest > 0:
            return (
                f"{said}; averaging models that differ in their start alone can gain {rest:.2g} of {d.loss.mean:.2g}."
            )
        return f"{said}, and so does averaging several models."
    tell = "more --splits can tell"
    return f"Whether bias or variance is larger is not known: their difference is {d.balance}; {tell}."


def _runs(spread: Spread, tests: int) -> str:
    seen, true = (100 * math.sqrt(max(v, 0.0)) for v in (spread.naive, spread.true))
    return (
        f"One model's accuracy is {100 * spread.accuracy:.1f} %, with a standard deviation of {true:.2f} points between "
        f"runs; on {tests:,} test rows it looks like {seen:.2f}, the rest being the noise of few rows."
    )


def _reach(sizes: Sequence[Size], truth: Truth, rows: Given, spec: str) -> str:
    """Approximation and estimation error: exact where the truth is known, else the bracket as n grows."""
    last, name = sizes[-1], "cross-entropy" if rows.classes else "squared loss"
    if truth.known:
        best = _best(truth, rows)
        over = last.test.mean - best
        said = (
            f"Approximation error is 0, as the truth is itself such a model, whose own {name} is {best:.3g}; the "
            f"estimation error at n = {last.n:,} is all of the rest: {over:.3g}."
        )
    else:
        said = (
            "Approximation error, which more rows cannot lower, is not the same as bias. The lowest "
            f"{name} that this encoder could reach is at most its test loss and, in expectation, at least the lowest "
            "training loss: "
        )
        said += "; ".join(
            f"n = {s.n:,}: {f'{s.train.mean:.3g}' if s.converged else 'no lower end'} to {s.test.mean:.3g}"
            for s in sizes
        )
        said += "."
        if last.converged:
            said += (
                f" So at n = {last.n:,} estimation error, which more rows do lower, is at most "
                f"{last.test.mean - last.train.mean:.3g}."
            )
            if not spec.replace(" ", "").startswith("mlp(depth=0"):
                said += " The lower end takes it that training found the lowest loss of all, which a network may miss."
    lost = [s for s in sizes if not s.converged]
    if lost:
        worst = max(lost, key=lambda s: s.left)
        said += (
            f" The lower end is refused where training has not converged: at n = {worst.n:,} the training loss was "
            f"{worst.half.mean():.3g} half-way and {worst.end.mean():.3g} at the end: raise --steps."
        )
    return said
