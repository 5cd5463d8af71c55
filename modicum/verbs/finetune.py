"""`modicum finetune`: few labels to a predictor, and an honest measure of whether pre-training helped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from modicum.core import seeds
from modicum.core.errors import UserError, unknown
from modicum.core.spec import names, parse, spec
from modicum.core.types import Packed
from modicum.datasets.data import Chain, Data, Labels, open_data
from modicum.model import load
from modicum.nn.encoder import Encoder
from modicum.objectives.supervised import Supervised
from modicum.report.exhibits import exhibits
from modicum.report.page import render
from modicum.training import baselines, transfer
from modicum.training.apply import over
from modicum.training.contest import Contestant, Entry, Plan, Repeat, hold, table
from modicum.training.rows import Ask, choose, for_measuring, marked, special_columns
from modicum.training.run import Run, command
from modicum.training.splits import Split
from modicum.training.transfer import Task, check_method, with_seed
from modicum.verbs._common import at_least, bar, card, choose_device, heard, pack, packing, say


def finetune(
    run: str | Path | Run,
    data: Any,
    *,
    method: str | None = None,
    labels_per_class: int | None = None,
    labels: int | None = None,
    seeds: int = 5,
    steps: int = 200,
    label: str | None = None,
    test: Any = None,
    split: str | None = None,
    group: str | None = None,
    size: int | None = None,
    transductive: bool = False,
    skip_bad: bool = False,
    out: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    force: bool = False,
) -> Run:
    """Measure methods and baselines over repeats on labelled rows, and write a run with one shipped predictor.

    `run`: a pre-training run, or an encoder's spec such as "convnet" to train from scratch. `method`: what is shipped
    (scratch, probe, top:K, lp-ft, full; default lp-ft of a run); scratch, probe and the simple baselines are always
    measured beside it. `labels_per_class` or `labels` draw few labelled rows, for experiments.
    """
    if labels_per_class is not None and labels is not None:
        raise UserError("give --labels-per-class or --labels, not both")
    at_least(1, labels_per_class=labels_per_class, labels=labels, steps=steps, size=size)
    at_least(2, seeds=seeds)
    where = choose_device(device)
    with heard() as warned:
        opened = open_data(data)
        target = opened.labels(label)
        if target is None:
            columns = ", ".join(opened.table.column_names)
            raise UserError(f"{opened.name} has no label column: name it with --label; columns: {columns}")
        encoder, seen, parent = _encoder(run, opened, target, label, group, split, size)
        if parent is None and method not in (None, "scratch"):
            raise UserError(
                f"--method {method} needs a pre-training run; '{run}' is an untrained encoder: use --method scratch"
            )
        method = check_method(method or ("lp-ft" if parent else "scratch"), encoder)
        opened, target, packed, fixed = _rows(encoder, opened, target, test, label, split, skip_bad)
        if labels_per_class is not None and target.kind == "numbers":
            raise UserError("--labels-per-class is for classes; this label is a number: use --labels N")
        ask = Ask(labels_per_class, labels, seeds, seed, split, group, transductive)
        plan = for_measuring(opened, target, packed.hashes, seen, fixed, ask)
        outputs = len(target.classes) or 1
        task = Task(
            packed.source, target.values, target.kind, outputs, steps, device=where, views=opened.views, seed=seed
        )
        made = _create(out, opened, target, packed, encoder, method, seed, parent, force)
        contestants = _contestants(encoder.to(where), method, parent, task)
        first = plan.repeats[0]
        say(
            f"finetune on {len(first.given):,} labelled rows, {len(plan.repeats)} repeats, {len(first.test):,} test "
            f"rows: {', '.join(c.name for c in contestants)} -> {made.path}"
        )
        with bar(len(plan.repeats) * len(contestants), "finetune", "fits") as shown:
            for done, (_, name) in enumerate(hold(contestants, plan, task), 1):
                shown.to(done, name)
        _finish(made, contestants, plan, task, target, opened, method, warned)
    return made


def _encoder(
    run: Any, data: Data, labels: Labels, label: str | None, group: str | None, split: str | None, size: int | None
) -> tuple[Encoder, np.ndarray | None, Run | None]:
    """The encoder, the hashes of rows it was pre-trained on, and its run; or a fresh one from a spec."""
    if isinstance(run, Run) or Path(str(run)).is_dir():
        model = load(run)
        if data.modality is not type(model.input):
            raise UserError(
                f"{model.run.path} takes {model.input.modality}; {data.name} holds {data.modality.modality}"
            )
        return model.encoder, model.run.array("seen"), model.run
    parsed = parse(str(run), "encoder")
    if parsed.get("name") not in names("trunk"):
        problem = unknown("encoder", str(parsed.get("name")), names("trunk"))
        raise UserError(f"'{run}' is no folder of a run, and as a spec: {problem}")
    by_column = marked(data, split)
    usable = np.arange(len(data)) if by_column is None else by_column.train
    special = special_columns(data, label, group, split)
    fitted = data.modality.infer(data.raw, usable, size=size, exclude=special, progress=packing(data))
    with seeds.forked(0, "init"):
        return Encoder.of(fitted, parsed), None, None


def _rows(
    encoder: Encoder, data: Data, labels: Labels, test: Any, label: str | None, split: str | None, skip_bad: bool
) -> tuple[Data, Labels, Packed, Split | None]:
    """Everything packed together: the rows of DATA and, where given, those of --test after them."""
    packed, data = pack(encoder.input, data, skip_bad)
    labels = data.labels(label) or labels
    if test is None:
        return data, labels, packed, marked(data, split)
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
    return data.join(other), Labels(labels.kind, values, labels.classes), both, fixed


def _contestants(encoder: Encoder, method: str, parent: Run | None, task: Task) -> list[Contestant]:
    """Scratch first (the reference), the probe and the method where there is something pre-trained, the baselines."""
    plain = baselines.Plain(encoder.input, task)
    networks = dict.fromkeys(["scratch", *(["probe", method] if parent else [])])
    out = [Contestant(n, "scratch" if n == "scratch" else "pretrained", _network(encoder, n, task)) for n in networks]
    return out + [Contestant(n, "baseline", _baseline(n, plain)) for n in baselines.names(encoder.input, task.kind)]


def _network(encoder: Encoder, method: str, task: Task) -> Callable[[Repeat], Entry]:
    def enter(repeat: Repeat) -> Entry:
        fitted = transfer.train(encoder, method, with_seed(task, repeat.seed), repeat.given, repeat.choose)
        one = fitted.objective
        return Entry(lambda rows: over(one, one.predict, task.source, rows), fitted.setting, one)

    return enter


def _baseline(name: str, plain: baselines.Plain) -> Callable[[Repeat], Entry]:
    def enter(repeat: Repeat) -> Entry:
        return Entry(*baselines.train(name, plain, repeat.given, repeat.choose))

    return enter


def _finish(
    made: Run,
    contestants: list[Contestant],
    plan: Plan,
    task: Task,
    labels: Labels,
    data: Data,
    method: str,
    warned: list[str],
) -> None:
    """Write the results, ship one predictor, and render the report."""
    reference, chosen = contestants[0], next(c for c in contestants if c.name == method)
    rows = table(contestants, reference, plan)
    given, tested = len(plan.repeats[0].given), len(plan.repeats[0].test)
    results: dict[str, Any] = {
        "score": "accuracy" if task.kind == "classes" else "R2", "higher_is_better": True, "labels": given,
        "seeds": len(plan.repeats), "test_rows": tested, "protocol": plan.protocol,
        "contestants": rows, "reference": reference.name, "verdict": verdict(rows, method),
    }  # fmt: skip
    truth = [labels.values[r.test] for r in plan.repeats]
    if task.kind == "classes":
        counts = np.zeros((task.outputs, task.outputs), int)
        for true, out in zip(truth, chosen.outputs, strict=True):
            np.add.at(counts, (true, out.argmax(1)), 1)
        results["confusion"] = {"classes": labels.classes, "counts": counts.tolist()}
    else:
        results["mae"] = float(np.mean([np.abs(t - o).mean() for t, o in zip(truth, chosen.outputs, strict=True)]))
        results["scatter"] = np.stack([truth[0], chosen.outputs[0]], 1)[:1000].tolist()
    shipped = _ship(chosen, plan, task, labels)
    made.spec |= {"parts": {"objective": spec("objective", shipped)}, "classes": labels.classes, "task": task.kind}
    made.spec["data"]["warnings"] = warned
    made.write_json("results.json", results)
    made.save_model(shipped)
    look = plan.repeats[0].test
    made.write_json("exhibits.json", exhibits(shipped, task.source, look, data.ids(), labels, seed=task.seed))
    made.save_spec()
    render(made.path)
    say(results["verdict"])
    say(f"done: {made.path / 'report.html'}")


def _ship(chosen: Contestant, plan: Plan, task: Task, labels: Labels) -> Supervised:
    """One model on all given labels: the first repeat's where repeats share them, else one more fit on everything."""
    assert chosen.first is not None
    if plan.crossed:
        return chosen.first
    every = np.flatnonzero(labels.known)
    drawn = len(plan.repeats[0].given) < len(plan.repeats[0].pool)
    if drawn:
        return chosen.first
    entry = chosen.enter(Repeat(task.seed, every, choose(labels, None, every, task.seed), every, every))
    assert entry.objective is not None
    return entry.objective


def verdict(rows: list[dict[str, Any]], method: str) -> str:
    """One sentence: did pre-training help, and who won?"""
    named = {row["name"]: row for row in rows}
    best = max(rows, key=lambda row: row["mean"])
    winner = f"The best score is {best['name']}'s, {best['mean']:.3f} [{best['low']:.3f}, {best['high']:.3f}]."
    versus = named[method].get("versus")
    if versus is None:
        return winner
    size = f"{versus['mean']:+.3f} [{versus['low']:+.3f}, {versus['high']:+.3f}]"
    words = {"gain": "helped", "loss": "hurt"}.get(versus["verdict"], "made no measurable difference")
    return f"Pre-training {words}: {method} is {size} from scratch. {winner}"


def _create(
    out: str | Path | None, data: Data, labels: Labels, packed: Packed, encoder: Encoder, method: str, seed: int,
    parent: Run | None, force: bool,
) -> Run:  # fmt: skip
    path = Path(out) if out is not None else Path("runs") / f"{data.name}-{method.replace(':', '-')}"
    history = [*parent.spec.get("history", []), parent.spec["command"]] if parent else []
    body = {"verb": "finetune", "command": command(), "history": history, "seed": seed, "method": method}
    return Run.create(path, {**body, "data": card(data, labels, packed, encoder.input)}, force=force)
