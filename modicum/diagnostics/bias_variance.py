"""`bias-variance`: what models lose because they are all wrong alike, and what because they differ with their data."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from modicum.core.errors import UserError, unknown
from modicum.core.seeds import numpy as generator
from modicum.diagnostics import _decompose_charts as charts
from modicum.diagnostics import _decompose_words as words
from modicum.diagnostics._decompose import Design, Size, Truth
from modicum.diagnostics._decompose import run as trained
from modicum.diagnostics._finding import Finding
from modicum.diagnostics._parts import disjoint, overlap, subsamples
from modicum.diagnostics._rows import Given, given
from modicum.diagnostics._teach import Reach, approximation, given_labels, same, taught
from modicum.maths.decomposition import LOSSES, Decomposition, Loss
from modicum.training.run import Run

NUMBERS = 2e7
"""Outputs of all models on test rows that are kept; there are no more test rows than that allows, nor than 5,000."""
OPTIONS = {
    "teacher": "Relabel all rows by a trained model of this encoder (same: of the students'): the truth is then known.",
    "samples": "Rows of each part, not as many as fit; where there are too few, parts are subsamples that overlap.",
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
    teacher: str | None = None,
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
    relabelled by a trained model of that encoder ("same": of the students'), so that noise is apart and approximation
    error known: 0 with the same encoder, else between what a student of the teacher's own outputs, fitted to all
    training rows, loses on the test rows and what it loses once it is fitted to these.
    """
    began = time.perf_counter()
    spec = encoder or ("mlp(width=64, depth=1, norm='none')" if run is None else "mlp(depth=0)")
    design = Design(spec, splits, seeds, steps, batch, lr, seed)
    own = teacher is None or same(teacher, spec)
    rows = given(data, run=run, label=label, split=split, group=group, limit=limit, most_tests=5000, seed=seed)
    losses = _losses(loss, rows)
    rows = replace(rows, test=_fewer(rows, design))
    parts = disjoint(rows, splits, seed, group) if samples is None else subsamples(rows, splits, samples, seed, group)
    work = rows.work()
    truth = given_labels(rows, label_noise, seed)
    if teacher is not None:
        truth = taught(rows, work, design, label_noise, spec if own else teacher)
    sizes = trained(rows, work, truth, design, parts)
    by = reach = None
    if teacher is not None:
        by = sizes[-1].sums.decompose(truth.targets[rows.test], _losses(None, rows)[0])  # of what they were trained by
        reach = None if own else approximation(rows, work, truth, design, by)
    asked = {"samples": samples, "label noise": label_noise, "disjoint": not overlap(parts), "group": group}
    finding = _told(rows, design, truth, sizes, losses, by, reach, asked)
    finding.facts["seconds"] = round(time.perf_counter() - began, 1)
    return finding


def _told(
    rows: Given,
    design: Design,
    truth: Truth,
    sizes: list[Size],
    losses: Sequence[Loss],
    by: Decomposition | None,
    reach: Reach | None,
    asked: dict[str, Any],
) -> Finding:
    """Rows, charts, words and facts of what was trained."""
    last, noise = sizes[-1], asked["label noise"]
    found = [last.sums.decompose(truth.targets[rows.test], name) for name in losses]
    spread = last.sums.spread(truth.targets[rows.test]) if rows.classes else None
    table = [row for one in found for row in charts.table(one, last.n)]
    table += [row for size in sizes for row in charts.ends(size, rows)]
    table += charts.bounds(reach, last.n, rows) if reach else []
    said = [words.setting(rows, design, last, truth, asked)]
    said += [words.decomposed(d, rows) for d in found]
    said += [words.runs(spread, len(rows.test))] if spread else []
    said.append(
        words.known(by, last, truth, reach, design, rows)
        if by is not None
        else words.reach(sizes, rows, design.encoder, noise)
    )
    facts = {
        **{"n": last.n, "training rows": len(rows.train), "test rows": len(rows.test)},
        **{"splits": design.splits, "seeds": design.seeds, "encoder": design.encoder},
        **{"steps": design.steps, "batch": design.batch, "lr": design.lr},
        **{"teacher": truth.teacher or None, **asked},
        "warnings": {d.kind: d.warning for d in found if d.warning},
        "medians": {d.kind: d.medians for d in found},
        "spread of accuracy": spread._asdict() if spread else None,
    }
    drawn = {
        "decomposition": charts.dots(found, rows, last.n),
        "bracket": charts.curve(sizes, truth, rows, design.encoder, reach),
    }
    return Finding("bias-variance", table, drawn, "\n\n".join(said), facts)


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
