"""Contestants side by side on the same repeats, with intervals over labelled subsets, seeds and test rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from modicum.maths.intervals import Interval, crossed, gain, paired, repeated
from modicum.objectives.supervised import Supervised
from modicum.training.transfer import Task, predictions


@dataclass(frozen=True)
class Repeat:
    """One repeat: the labelled rows given out of `pool`, how they divide for choosing settings, and the test rows.

    `free` are the other rows on the training side: their labels, if they have any, are not to be used.
    """

    seed: int
    given: np.ndarray
    choose: tuple[np.ndarray, np.ndarray]
    test: np.ndarray
    pool: np.ndarray
    free: np.ndarray


@dataclass(frozen=True)
class Plan:
    """The repeats; `crossed` where all share the test rows, else every repeat is a split of its own."""

    repeats: list[Repeat]
    crossed: bool
    protocol: str


@dataclass(frozen=True)
class Entry:
    """What a contestant gives for a repeat: a predictor of rows, its setting, and the network if it is one."""

    predict: Callable[[np.ndarray], np.ndarray]
    setting: str
    objective: Supervised | None = None


@dataclass
class Contestant:
    """A name, its kind ("pretrained", "scratch" or "baseline"), how it enters a repeat, and what came of it.

    `scores` are rows' scores a repeat by the measure that decides; `also` those by every other, by name.
    """

    name: str
    kind: str
    enter: Callable[[Repeat], Entry]
    outputs: list[np.ndarray] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)
    also: dict[str, list[np.ndarray]] = field(default_factory=dict)
    settings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    first: Supervised | None = None


def hold(contestants: list[Contestant], plan: Plan, task: Task) -> Iterator[tuple[int, str]]:
    """Run every contestant on every repeat, yielding (repeat, name) after each; results are kept in the contestants."""
    for repeat in plan.repeats:
        for one in contestants:
            start = time.perf_counter()
            entry = one.enter(repeat)
            one.seconds += time.perf_counter() - start
            output, measured = predictions(entry.predict, task, repeat.test)
            first, *others = measured.items()
            one.outputs.append(output)
            one.scores.append(first[1])
            for name, score in others:
                one.also.setdefault(name, []).append(score)
            one.settings.append(entry.setting)
            if one.first is None:
                one.first = entry.objective
            yield repeat.seed, one.name


def interval(a: Contestant, b: Contestant | None, plan: Plan) -> Interval:
    """The 95 % interval of a's score, or of its paired difference from b."""
    if plan.crossed:
        scores = np.stack(a.scores)
        return crossed(scores) if b is None else paired(scores, np.stack(b.scores))
    values = [float(s.mean() - (0 if b is None else t.mean())) for s, t in zip(a.scores, (b or a).scores, strict=True)]
    found = repeated(values, len(plan.repeats[0].pool), len(plan.repeats[0].test))
    if not all(((t == 0) | (t == 1)).all() for t in a.scores):
        return found
    least = 0.0 if b is None else -1.0  # a share of right answers, or the difference of two
    return replace(found, low=max(found.low, least), high=min(found.high, 1.0))


def table(contestants: list[Contestant], reference: Contestant, plan: Plan) -> list[dict[str, Any]]:
    """A row for each contestant, as results.json holds it; seconds are the mean of a repeat, choosing included."""
    rows = []
    for one in contestants:
        own = interval(one, None, plan)
        row: dict[str, Any] = {"name": one.name, "kind": one.kind, "mean": own.mean, "low": own.low, "high": own.high}
        row |= {"seconds": one.seconds / len(plan.repeats), "settings": "; ".join(dict.fromkeys(one.settings))}
        for name, scores in one.also.items():
            other = interval(replace(one, scores=scores), None, plan)
            row |= {name.lower(): other.mean, f"{name.lower()}_low": other.low, f"{name.lower()}_high": other.high}
        if one is not reference:
            difference = interval(one, reference, plan)
            row["versus"] = {
                "mean": difference.mean, "low": difference.low, "high": difference.high, "verdict": gain(difference)
            }  # fmt: skip
        rows.append(row)
    return rows
