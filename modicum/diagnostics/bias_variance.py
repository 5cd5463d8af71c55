"""`bias-variance`: what models lose because they are all wrong alike, and what because they differ with their data."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np

from modicum.core.errors import UserError, unknown
from modicum.core.seeds import numpy as generator
from modicum.diagnostics import _decompose_words as words
from modicum.diagnostics._decompose import Design, Size, Truth, disjoint, given_labels, overlap, subsamples, taught
from modicum.diagnostics._decompose import run as trained
from modicum.diagnostics._finding import COLOURS, Finding, lines
from modicum.diagnostics._rows import Given, given
from modicum.maths.decomposition import LOSSES, Decomposition, Loss
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

OPTIONS = {
    "samples": "Rows of each part, not as many as fit; where there are too few, parts are subsamples that overlap."
}


def bias_variance(
    data: Any = "digits",
    *,
    loss: str | None = None,
    encoder: str | None = None,
    run: str | Path | Run | None = None,
    splits: int = 4,
    seeds: int = 2,
    samples: int | None = None,
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
    initialisations, with the classes in their shares; the n that is decomposed is that of a part. `samples`: its rows;
    too many for disjoint parts make them overlap, which understates variance. `loss`: cross-entropy (default for
    classes), squared, zero-one, several with commas between, or all. With `run`, the encoder (default linear) is a head
    on its frozen features. `label_noise`: the share of training labels that is redrawn. With `teacher`, rows are
    relabelled by a trained model of the same encoder, so that the best there can be is known and noise is apart.
    """
    began = time.perf_counter()
    spec = encoder or ("mlp(width=64, depth=1, norm='none')" if run is None else "mlp(depth=0)")
    design = Design(spec, splits, seeds, steps, batch, lr, seed)
    rows = given(data, run=run, label=label, split=split, group=group, limit=limit, most_tests=5000, seed=seed)
    losses = _losses(loss, rows)
    rows = replace(rows, test=_fewer(rows, design))
    parts = (
        subsamples(rows, splits, samples, seed, group) if samples is not None else disjoint(rows, splits, seed, group)
    )
    work = rows.work()
    truth = taught(rows, work, design, label_noise) if teacher else given_labels(rows, label_noise, seed)
    sizes = trained(rows, work, truth, design, parts)
    sums = sizes[-1].sums
    found = [sums.decompose(truth.targets[rows.test], name) for name in losses]
    spread = sums.spread(truth.targets[rows.test]) if rows.classes else None
    table = [row for one in found for row in _table(one, sizes[-1].n)]
    table += [row for size in sizes for row in _ends(size, rows)]
    charts = {"decomposition": _dots(found, rows, sizes[-1].n), "bracket": _curve(sizes, truth, rows, spec)}
    by = _losses(None, rows)[0]  # what they were trained by
    shared = overlap(parts)
    said = [
        words.setting(rows, design, sizes[-1], label_noise, truth, shared),
        *(words.decomposed(d, rows) for d in found),
    ]
    said += [words.runs(spread, len(rows.test))] if spread else []
    if teacher:
        said.append(words.known(sums.decompose(truth.targets[rows.test], by), sizes[-1], truth))
    else:
        said.append(words.reach(sizes, rows, spec, label_noise))
    facts = {
        **{"n": sizes[-1].n, "training rows": len(rows.train), "test rows": len(rows.test)},
        **{
            "splits": splits,
            "disjoint": not shared,
            "seeds": seeds,
            "encoder": spec,
            "steps": steps,
            "batch": batch,
            "lr": lr,
        },
        **{"label noise": label_noise, "teacher": teacher},
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
        values = [{**row, "group": group} for row, (_, group, _) in zip(_table(d, n), _shown(d), strict=True)]
        order = [row["part"] for row in values]
        base = alt.Chart(alt.InlineData(values=values), width=440, height=34 * len(values))
        base = base.properties(title=f"{rows.data.name}: {words.TITLE[d.kind]} of models trained on n = {n:,} rows")
        y = alt.Y("part:N", sort=order, title=None, axis=alt.Axis(labelLimit=260))
        fill = alt.Color("group:N", scale=alt.Scale(domain=list(colours), range=list(colours.values())), legend=None)
        title = f"{words.TITLE[d.kind]}, with 95 % intervals"
        bar = base.mark_bar(height=16).encode(
            y=y, x=alt.X("value:Q", title=title, axis=alt.Axis(format=".3~g")), color=fill
        )
        rule = base.mark_rule(strokeWidth=2, color="#333b46").encode(y=y, x="low:Q", x2="high:Q")
        panels.append(alt.layer(bar, rule))
    return alt.vconcat(*panels) if len(panels) > 1 else panels[0]


def _curve(sizes: Sequence[Size], truth: Truth, rows: Given, spec: str) -> Any:
    """Training and test loss against the number of training rows; the best in reach is between them."""
    points = []
    for name in ("test", "training"):
        for size in sizes:
            i = size.test if name == "test" else size.train
            of = f"{name} loss" + ("" if name == "test" or size.converged else ", not converged")
            points.append({"n": size.n, "loss": i.mean, "low": max(i.low, 0.0), "high": i.high, "of": of})
    if truth.known:
        best = _best(truth, rows)
        points += [
            {"n": s.n, "loss": best, "low": best, "high": best, "of": "best there can be (known)"} for s in sizes
        ]
    name = "cross-entropy" if rows.classes else "squared loss"
    both = "between test and training loss" if any(s.converged for s in sizes) else "at most its test loss"
    heading = f"{rows.data.name}: the best of {spec} is {both}"
    title = ("training rows", name)
    return lines(points, "n", "loss", by="of", band=("low", "high"), title=title, heading=heading, log="x")


def _best(truth: Truth, rows: Given) -> float:
    """The loss of the teacher itself, on the labels drawn from it."""
    if not rows.classes:
        return truth.noise
    p = truth.targets[rows.test]
    return float(-np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(1).mean())
