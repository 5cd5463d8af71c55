"""`modicum finetune`: few labels to a predictor, and an honest measure of whether pre-training helped."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modicum.core import seeds
from modicum.core.device import choose_device
from modicum.core.errors import UserError, Warned, unknown
from modicum.core.spec import parse, spec
from modicum.core.types import Packed
from modicum.datasets.data import Chain, Data, Labels, address, open_data
from modicum.model import load
from modicum.nn.adopt import known, origin
from modicum.nn.encoder import Tower
from modicum.objectives.supervised import Supervised
from modicum.report.exhibits import exhibits
from modicum.report.page import render
from modicum.training import baselines, transfer
from modicum.training.apply import predict
from modicum.training.contest import Contestant, Entry, Plan, Repeat, hold, table
from modicum.training.rows import Ask, choose, for_measuring, marked, special_columns
from modicum.training.run import Run, check_place, save_tensors
from modicum.training.splits import Split
from modicum.training.transfer import Task, check_method
from modicum.verbs._common import (
    at_least,
    bar,
    card,
    check_input,
    check_memory,
    check_seed,
    command,
    heard,
    in_minutes,
    infer,
    pack,
    say,
)


def finetune(
    run: str | Path | Run,
    data: Any,
    *,
    method: str | None = None,
    labels_per_class: int | None = None,
    labels: int | None = None,
    seeds: int = 5,
    steps: int = 100,
    label: str | None = None,
    test: Any = None,
    split: str | None = None,
    group: str | None = None,
    size: int | None = None,
    columns: Any = None,
    tokenizer: str | None = None,
    transductive: bool = False,
    skip_bad: bool = False,
    out: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    force: bool = False,
) -> Run:
    """Measure methods and baselines over repeats on labelled rows, and write a run with one shipped predictor.

    `run`: a pre-training run, or an encoder's spec such as "convnet" to train from scratch. `method`: what is shipped
    (scratch, probe, propagate, top:K, lp-ft, lora, full; default lp-ft of a run); more after commas, scratch, probe and
    the simple baselines are measured beside it, of an adopted network scratch only where it is named (lp-ft,scratch).
    An unfinished finetune at `out` is replaced. `labels_per_class` or `labels` draw few labelled rows, for experiments.
    """
    if labels_per_class is not None and labels is not None:
        raise UserError("give --labels-per-class or --labels, not both")
    at_least(1, labels_per_class=labels_per_class, steps=steps, size=size)
    at_least(2, labels=labels, seeds=seeds)
    check_seed(seed)
    where = choose_device(device)
    ask = Ask(labels_per_class, labels, seeds, seed, split, group, transductive)
    with heard() as warned:
        opened = open_data(data)
        start = _start(run, opened, label, ask, {"size": size, "columns": columns, "tokenizer": tokenizer})
        methods = _methods(method, start, run)
        chosen = methods[0]
        path = Path(out) if out is not None else Path("runs") / f"{opened.name}-{chosen.replace(':', '-')}"
        made_from = [start.parent.path] if start.parent else []
        check_place(path, force=force, keep=[*made_from, *filter(None, map(address, (data, test)))])
        rows = _rows(start.encoder, opened, test, label, split, skip_bad)
        if blank := int((~rows.labels.known).sum()):
            say(f"{blank:,} of {len(rows.labels.known):,} rows have no label")
        plan = for_measuring(rows.data, rows.labels, rows.packed.hashes, start.seen, rows.fixed, ask)
        outputs = len(rows.labels.classes) or len(rows.labels.tasks) or 1
        task = Task(
            rows.packed.source, rows.labels.values, rows.labels.kind, outputs, steps, device=where,
            views=opened.views, seed=seed,
        )  # fmt: skip
        if "scratch" not in (networks := _networks(methods, start)):
            words = f"{LEFT_OUT} (--method {method or chosen},scratch measures it)."
            say(words)
            plan = replace(plan, protocol=f"{plan.protocol} {words}")
        made = Run.create(path, _record(start, rows, chosen, seed), force=force)
        contestants = _contestants(_footing(start, rows, plan, task), networks, start, task)
        _hold(contestants, plan, task, made)
        _finish(made, contestants, plan, task, rows, start, chosen, warned)
    return made


LEFT_OUT = "Scratch was left out, because the network is adopted and training it anew takes long"


@dataclass(frozen=True)
class Start:
    """The encoder that is fine-tuned, the hashes of the rows it was trained on, and its run, where it has one.

    One that brings no input has `infer`: the encoder whose scaling is taken from the rows given. `trained` where its
    weights are.
    """

    encoder: Tower
    seen: np.ndarray | None = None
    parent: Run | None = None
    infer: Callable[[np.ndarray], Tower] | None = None
    trained: bool = True


@dataclass(frozen=True)
class Given:
    """The rows of DATA and --test together, their labels, and how --test or a split column divides them."""

    data: Data
    labels: Labels
    packed: Packed
    fixed: Split | None


def _methods(method: str | None, start: Start, run: Any) -> list[str]:
    """The methods that are measured; the first is shipped."""
    if not start.trained and method not in (None, "scratch"):
        raise UserError(
            f"--method {method} needs a pre-training run; '{run}' is an untrained encoder: use --method scratch"
        )
    named = method or ("lp-ft" if start.trained else "scratch")
    return [check_method(one.strip(), start.encoder) for one in named.split(",")]


def _hold(contestants: list[Contestant], plan: Plan, task: Task, made: Run) -> None:
    """Run the contest under a bar, saying before what is done and, after the first network, how long it may take."""
    first, names, began = plan.repeats[0], [c.name for c in contestants], time.perf_counter()
    say(
        f"finetune on {len(first.given):,} labelled rows, {len(plan.repeats)} repeats, {len(first.test):,} test "
        f"rows: {', '.join(names)} -> {made.path}"
    )
    networks = len(plan.repeats) * sum(c.kind != "baseline" for c in contestants)
    with bar(len(plan.repeats) * len(contestants), "finetune", "fits") as shown:
        for done, (_, name) in enumerate(hold(contestants, plan, task), 1):
            shown.to(done, name)
            if done == 1:
                left = (time.perf_counter() - began) * (networks - 1)
                say(f"{name} took {in_minutes(time.perf_counter() - began)}: at most about {in_minutes(left)} to go")


def _start(run: Any, data: Data, label: str | None, ask: Ask, given: dict[str, Any]) -> Start:
    """The encoder of a run, or a fresh one from a spec."""
    if isinstance(run, Run) or Path(str(run)).is_dir():
        model = load(run)
        check_input(model.input, data, given, str(model.run.path), "the run's")
        if column := [c for c in data.label_columns(label) if c in model.input.columns()]:
            raise UserError(
                f"{model.run.path} takes the label column '{column[0]}' as an input, so it would be given the answer: "
                f"pre-train again with --label {','.join(data.label_columns(label))}"
            )
        if ask.transductive and model.run.spec["verb"] != "pretrain":
            raise UserError(f"--transductive is for pre-training runs: {model.run.path} was trained on labels")
        if used := model.run.spec["data"].get("labels_used"):
            words = f"the encoder of {model.run.path} was pre-trained with the labels of {used:,} rows"
            warnings.warn(
                f"{words}: the tables show what it makes of them, not of few labels alone", Warned, stacklevel=4
            )
        return Start(model.encoder, model.run.array("seen"), model.run)
    parsed = parse(str(run), "encoder")
    if parsed.get("name") not in known():
        problem = unknown("encoder", str(parsed.get("name")), known())
        raise UserError(f"'{run}' is no folder of a run, and as a spec: {problem}")
    found = origin(parsed)
    if found.input is not None:
        check_input(found.input, data, given, str(run), "the encoder's")
        with seeds.forked(0, "init"):
            return Start(found.make(found.input), trained=found.trained)
    by_column = marked(data, ask.split)
    usable = np.arange(len(data)) if by_column is None else by_column.train
    special = special_columns(data, label, ask.group, ask.split)

    def fitted(index: np.ndarray) -> Tower:
        input = infer(data, index, special, **given)
        if not found.trained:
            check_memory(lambda: found.make(input))
        with seeds.forked(0, "init"):
            return found.make(input)

    made = fitted(usable)
    if note := made.input.note():
        say(note)
    return Start(made, infer=fitted, trained=found.trained)


def _rows(encoder: Tower, data: Data, test: Any, label: str | None, split: str | None, skip_bad: bool) -> Given:
    """Everything packed together: the rows of DATA and, where given, those of --test after them."""
    _labels(data, label)
    packed, data = pack(encoder.input, data, skip_bad)
    labels = _labels(data, label)
    if test is None:
        return Given(data, labels, packed, marked(data, split))
    other = open_data(test, data.modality)
    more, other = pack(encoder.input, other, skip_bad)
    classes = labels.classes if labels.kind == "classes" else None
    theirs = other.labels(label, classes)
    if theirs is None or not theirs.known.any():
        raise UserError(f"--test {other.name} has no labels to test against: name their column with --label")
    n, m = packed.source.size, more.source.size
    hashes = np.concatenate([packed.hashes, more.hashes])
    both = Packed(Chain(packed.source, more.source), np.arange(n + m), packed.bad + more.bad, hashes)
    values = np.concatenate([labels.values, theirs.values])
    fixed = Split(np.arange(n), np.arange(n, n + m), np.empty(0, int))
    return Given(data.join(other), replace(labels, values=values), both, fixed)


def _labels(data: Data, label: str | None) -> Labels:
    found = data.labels(label)
    if found is None:
        columns = ", ".join(data.table.column_names)
        raise UserError(f"{data.name} has no label column: name it with --label; columns: {columns}")
    return found


Footing = Callable[[Repeat], tuple[Tower, Task]]


def _footing(start: Start, rows: Given, plan: Plan, task: Task) -> Footing:
    """The encoder and the packed rows that a repeat stands on.

    Where every repeat is a split of its own, a fresh encoder's scaling comes from that repeat's training rows alone.
    """
    start.encoder.to(task.device)
    if start.infer is None or plan.crossed:
        return lambda repeat: (start.encoder, task)
    made: dict[int, tuple[Tower, Task]] = {}

    def own(repeat: Repeat) -> tuple[Tower, Task]:
        if repeat.seed not in made:
            made.clear()
            with warnings.catch_warnings():  # what all rows warned of is not said again of every part of them
                warnings.simplefilter("ignore", Warned)
                encoder = start.infer(rows.packed.keep[repeat.pool]).to(task.device)  # type: ignore[misc]
                source = encoder.input.pack(rows.data.raw, skip_bad=True).source
            made[repeat.seed] = encoder, replace(task, source=source)
        return made[repeat.seed]

    return own


def _networks(methods: list[str], start: Start) -> list[str]:
    """Scratch first (the reference), then the probe and the methods where there is something pre-trained.

    A large network that somebody else trained is not trained anew unasked: it may take hours.
    """
    adopted = start.trained and start.parent is None
    first = ["scratch"] if not adopted or "scratch" in methods else []
    return [*dict.fromkeys([*first, *(["probe", *methods] if start.trained else [])])]


def _contestants(footing: Footing, networks: list[str], start: Start, task: Task) -> list[Contestant]:
    """The networks, of which the first is the reference, and the simple baselines."""
    out = [Contestant(n, "scratch" if n == "scratch" else "pretrained", _network(footing, n)) for n in networks]
    simple = baselines.names(start.encoder.input, task.kind)
    return out + [Contestant(n, "baseline", _baseline(footing, n)) for n in simple]


def _network(footing: Footing, method: str) -> Callable[[Repeat], Entry]:
    def enter(repeat: Repeat) -> Entry:
        encoder, task = footing(repeat)
        own = replace(task, seed=repeat.seed, free=repeat.free)
        fitted = transfer.train(encoder, method, own, repeat.given, repeat.choose)
        one = fitted.objective
        return Entry(lambda rows: predict(one, task.source, rows), fitted.setting, one)

    return enter


def _baseline(footing: Footing, name: str) -> Callable[[Repeat], Entry]:
    def enter(repeat: Repeat) -> Entry:
        encoder, task = footing(repeat)
        return Entry(*baselines.train(name, baselines.Plain(encoder.input, task), repeat.given, repeat.choose))

    return enter


def _finish(
    made: Run, contestants: list[Contestant], plan: Plan, task: Task, rows: Given, start: Start, method: str,
    warned: list[str],
) -> None:  # fmt: skip
    """Write the results, ship one predictor, and render the report."""
    labels = rows.labels
    reference, chosen = contestants[0], next(c for c in contestants if c.name == method)
    ranked = table(contestants, reference, plan)
    given, tested = len(plan.repeats[0].given), len(plan.repeats[0].test)
    results: dict[str, Any] = {
        "score": "accuracy" if task.kind == "classes" else "R2", "also": [*chosen.also], "higher_is_better": True,
        "labels": given,
        "seeds": len(plan.repeats), "test_rows": tested, "protocol": plan.protocol,
        "contestants": ranked, "reference": reference.name, "verdict": verdict(ranked, method),
    }  # fmt: skip
    truth = [labels.values[r.test] for r in plan.repeats]
    if task.kind == "classes":
        counts = np.zeros((task.outputs, task.outputs), int)
        for true, out in zip(truth, chosen.outputs, strict=True):
            np.add.at(counts, (true, out.argmax(1)), 1)
        results["confusion"] = {"classes": labels.classes, "counts": counts.tolist()}
    elif not labels.tasks:
        results["mae"] = next(row["mae"] for row in ranked if row["name"] == chosen.name)
        results["scatter"] = np.stack([truth[0], chosen.outputs[0]], 1)[:1000].tolist()
    shipped, used = _ship(chosen, plan, task, labels)
    made.spec |= {"parts": {"objective": spec("objective", shipped)}, "classes": labels.classes, "task": task.kind}
    made.spec |= {"tasks": labels.tasks} if labels.tasks else {}
    made.spec["data"]["warnings"] = warned
    made.write_json("results.json", results)
    for row in start.parent.metrics() if start.parent else []:  # so that the report shows where the encoder came from
        made.log(row)
    if plan.crossed:  # row by row, so that runs on the same repeats can be compared in pairs later
        scores = {c.name: torch.from_numpy(np.stack(c.scores)) for c in contestants}
        save_tensors(made.path / "scores.safetensors", scores)
    # Who goes on from this run must not test on rows that it, or the run before it, was trained on.
    trained = rows.packed.hashes[used]
    made.save_model(shipped, seen=trained if start.seen is None else np.union1d(start.seen, trained))
    look = plan.repeats[0].test
    own = shipped.encoder.input
    same = spec("modality", own) == spec("modality", start.encoder.input)
    source = task.source if same else own.pack(rows.data.raw, skip_bad=True).source
    made.write_json("exhibits.json", exhibits(shipped, source, look, rows.data.ids, labels, seed=task.seed))
    made.save_spec()
    render(made.path)
    say(results["verdict"])
    say(f"done: {made.path / 'report.html'}")


def _ship(chosen: Contestant, plan: Plan, task: Task, labels: Labels) -> tuple[Supervised, np.ndarray]:
    """One model on all given labels, and its rows: the first repeat's where repeats share them, else one more fit."""
    assert chosen.first is not None
    first = plan.repeats[0]
    if plan.crossed or len(first.given) < len(first.pool):
        return chosen.first, first.given
    every = np.flatnonzero(labels.known)
    free = np.flatnonzero(~labels.known)
    entry = chosen.enter(Repeat(task.seed, every, choose(labels, None, every, task.seed), every, every, free))
    assert entry.objective is not None
    return entry.objective, every


def verdict(rows: list[dict[str, Any]], method: str) -> str:
    """In words: did pre-training help (where scratch was measured), and who won?"""
    named = {row["name"]: row for row in rows}
    reference = next(row["name"] for row in rows if "versus" not in row)
    best = max(rows, key=lambda row: row["mean"])
    winner = f"The best score is {best['name']}'s, {best['mean']:.3f} [{best['low']:.3f}, {best['high']:.3f}]."
    if best["mean"] < 0:  # only an R2 is
        winner += " Below 0 is worse than predicting the mean: none of these is of use."
    versus = named[method].get("versus")
    if versus is None:
        return winner
    size = f"{versus['mean']:+.3f} [{versus['low']:+.3f}, {versus['high']:+.3f}]"
    if reference != "scratch":
        return f"{method} is {size} from {reference}. {winner}"
    words = {"gain": "helped", "loss": "hurt"}.get(versus["verdict"], "made no measurable difference")
    return f"Pre-training {words}: {method} is {size} from scratch. {winner}"


def _record(start: Start, rows: Given, method: str, seed: int) -> dict[str, Any]:
    """The content of spec.json, before the results are known."""
    parent = start.parent
    history = [*parent.spec.get("history", []), parent.spec["command"]] if parent else []
    facts = card(rows.data, rows.labels, rows.packed, start.encoder.input)
    return {
        "verb": "finetune", "command": command(), "history": history, "seed": seed, "method": method, "data": facts
    }  # fmt: skip
