"""`modicum pretrain`: an encoder from rows without labels, in a run that survives being killed."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modicum.core import seeds
from modicum.core.device import choose_device, precision
from modicum.core.errors import UserError, Warned
from modicum.core.spec import Spec, build, hinted, parse, spec, text_of
from modicum.core.types import Input, Objective, Packed, Source, Step
from modicum.datasets.data import Data, Labels, address, open_data
from modicum.model import load
from modicum.nn.adopt import Origin, origin
from modicum.probes import Probe
from modicum.report.exhibits import exhibits
from modicum.report.page import render
from modicum.training.batches import Batches
from modicum.training.fit import fit
from modicum.training.guard import Guard
from modicum.training.optim import adamw, cosine, groups
from modicum.training.rows import Rows, enough, for_pretraining
from modicum.training.run import Run, check_place, environment, save_tensors
from modicum.training.tuples import Mixed, Tuples, labelled, read_tuples
from modicum.verbs._common import (
    at_least,
    bar,
    card,
    check_input,
    check_memory,
    check_seed,
    command,
    digest,
    heard,
    in_minutes,
    infer,
    pack,
    say,
    spare,
)

WEIGHT_DECAY = 0.05
SAVE_SECONDS = 30.0


@dataclass(frozen=True)
class Start:
    """The encoder that is trained: its origin, how it was written, and the run it comes from, where it has one."""

    origin: Origin
    text: str
    parent: Run | None = None


@dataclass(frozen=True)
class Job:
    """What is trained, on which rows, where, and how: `plan` holds steps, batch, lr, save_every and seed.

    `start` is None where a run goes on.
    """

    objective: Objective
    packed: Packed
    data: Data
    rows: Rows
    labels: Labels | None
    device: torch.device
    plan: dict[str, Any]
    start: Start | None = None
    tuples: Tuples | None = None

    @property
    def unit(self) -> str:
        """What a batch is counted in."""
        return {0: "rows", 2: "pairs", 3: "triplets"}[len(self.objective.roles)]

    def batches(self) -> Batches | Mixed:
        source, train, how = self.packed.source, self.rows.train, {k: self.plan[k] for k in ("batch", "seed")}
        if self.tuples is not None:
            return Batches(self.tuples, np.arange(self.tuples.size), **how)
        if not self.objective.uses_labels or self.labels is None:
            return Batches(source, train, **how)
        return labelled(source, train, self.labels.values, self.labels.known, **how)


def pretrain(
    data: Any = None,
    *,
    objective: str | None = None,
    encoder: str | Path | Run | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    batch: int = 256,
    lr: float = 4e-3,
    limit: int | None = None,
    size: int | None = None,
    columns: Any = None,
    tokenizer: str | None = None,
    label: str | None = None,
    pairs: str | Path | None = None,
    triplets: str | Path | None = None,
    group: str | None = None,
    split: str | None = None,
    test: str | None = None,
    transductive: bool = False,
    skip_bad: bool = False,
    save_every: int | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    force: bool = False,
) -> Run:
    """Train an encoder on the rows of DATA without labels and write a run's folder.

    DATA is a path, a built-in name, or rows in memory. The specs of objective and encoder default to what the modality
    recommends; the encoder may also be a finished run's folder, or adopted: timm('NAME'), hf('NAME_OR_DIR'),
    open_clip('NAME'), weights('FILE.safetensors', SPEC). Rows for testing (--test, --split, else a fifth of the
    labelled rows) are left out unless --transductive. --pairs FILE (a, b, similar) and --triplets FILE (anchor,
    positive, negative) name rows by their ids, for the objectives `pairs` and `triplet`. --resume continues a run to
    the same bits as if it had never stopped.
    """
    where = choose_device(device)
    if resume is not None:
        if data is not None or out is not None:
            raise UserError("--resume DIR continues that run as it was started: give no DATA and no --out")
        return _resume(Run.open(resume), where)
    if data is None:
        raise UserError("pretrain needs DATA: a path or a built-in name such as digits")
    plan = _checked(
        {"steps": steps, "epochs": epochs, "batch": batch, "lr": lr, "save_every": save_every, "seed": seed}
    )
    at_least(1, limit=limit, size=size)
    asked: dict[str, Any] = {"label": label, "group": group, "split": split, "test": test, "transductive": transductive}
    asked |= {"limit": limit, "seed": seed, "skip_bad": skip_bad, "pairs": pairs, "triplets": triplets}
    fit = {"size": size, "columns": columns, "tokenizer": tokenizer}
    with heard() as warned:
        found = open_data(data)
        goal = _goal(objective or found.modality.default_objective, objective is not None, asked)
        start = _start(found.modality.default_trunk if encoder is None else encoder, found, fit)
        path = Path(out) if out is not None else Path("runs") / f"{found.name}-{goal.get('name', 'sum')}"
        made_from = [start.parent.path] if start.parent else []
        check_place(path, force=force, keep=[*made_from, *filter(None, map(address, (data, test)))])
        job = _job(found, goal, start, asked, plan, fit, where)
        seconds = pace(job)  # before anything is replaced: what cannot be trained fails here
    run = Run.create(path, _record(job, asked, address(data), warned), force=force)
    each = f"{job.batches().batch} {job.unit}"
    say(
        f"pretrain {text_of(goal)} with {start.text} on {len(job.rows.train):,} rows ({job.rows.note}): "
        f"{job.plan['steps']:,} steps of {each}, about {in_minutes(seconds * job.plan['steps'])} "
        f"on {where.type} -> {run.path}"
    )
    if note := job.objective.note():
        say(f"note: {note}")
    return _train(run, job)


def _checked(plan: dict[str, Any]) -> dict[str, Any]:
    """The plan of training, after checking the options it was asked for with."""
    if plan["epochs"] is not None and plan["steps"] is not None:
        raise UserError("give --epochs or --steps, not both")
    at_least(1, epochs=plan["epochs"], steps=plan["steps"], save_every=plan["save_every"])
    at_least(2, batch=plan["batch"])
    check_seed(plan["seed"])
    if not isinstance(plan["lr"], int | float) or not 0 < plan["lr"] < math.inf:
        raise UserError(f"--lr {plan['lr']}: wanted a rate above 0")
    return plan


def _goal(objective: str, named: bool, asked: dict[str, Any]) -> Spec:
    """The spec of `objective`, or where none is `named`, of the one that --pairs or --triplets are for."""
    files = {"pairs": asked["pairs"], "triplet": asked["triplets"]}
    given = [name for name, file in files.items() if file is not None]
    if len(given) > 1:
        raise UserError("give --pairs or --triplets, not both")
    goal = parse(given[0] if given and not named else objective, "objective")
    if given and goal.get("name") != given[0]:
        option = "--pairs" if given[0] == "pairs" else "--triplets"
        raise UserError(f"{option} FILE is for --objective {given[0]}; this one is {text_of(goal)}")
    if goal.get("name") == "pairs" and not given:
        raise UserError("--objective pairs needs --pairs FILE with the columns a, b and similar (1 or 0)")
    return goal


def _start(encoder: str | Path | Run, data: Data, given: dict[str, Any]) -> Start:
    """The encoder of a finished run, or that of a spec."""
    if isinstance(encoder, Run | Path) or (isinstance(encoder, str) and encoder and Path(encoder).is_dir()):
        model = load(encoder)
        start = Start(Origin(lambda _: copy.deepcopy(model.encoder), model.input, True), str(model.run.path), model.run)
    else:
        parsed = parse(encoder, "encoder")
        start = Start(origin(parsed), text_of(parsed))
    if start.origin.input is not None:
        check_input(start.origin.input, data, given, start.text, "the run's" if start.parent else "the encoder's")
    return start


def _job(
    data: Data, goal: Spec, start: Start, asked: dict[str, Any], plan: dict[str, Any], fit: dict[str, Any],
    device: torch.device,
) -> Job:  # fmt: skip
    """Pack the rows, build the objective, and count the steps."""
    input, packed, kept, rows = _prepare(data, start.origin.input, asked, fit)
    spare()
    labels = kept.labels(asked["label"])
    tuples = _tuples(asked, kept, packed.source, rows)
    source, among = (packed.source, rows.train) if tuples is None else (tuples, np.arange(tuples.size))
    per_epoch = Batches(source, among, batch=plan["batch"], seed=plan["seed"]).per_epoch
    steps = plan["steps"] or (plan["epochs"] * per_epoch if plan["epochs"] else max(1000, 20 * per_epoch))
    context = {"steps": steps, "from_file": tuples is not None, **_outputs(labels, rows.train)}

    def make() -> Objective:
        encoder = start.origin.make(input)
        made: Objective = build("objective", goal, encoder=encoder, views=hinted(data.views), **context)
        return made

    if start.origin.input is None and not start.origin.trained:
        check_memory(make)
    with seeds.forked(plan["seed"], "init"):
        objective = make().to(device)
    if objective.uses_labels and asked["transductive"]:
        raise UserError(f"--transductive shows the test rows without labels; {text_of(goal)} would learn theirs")
    if objective.uses_labels and (labels is None or not labels.known[rows.train].any()):
        file = ", or give --triplets FILE" if goal.get("name") == "triplet" else ""
        raise UserError(f"{text_of(goal)} needs labels of at least some rows: name their column with --label{file}")
    return Job(objective, packed, kept, rows, labels, device, {**plan, "steps": steps}, start, tuples)


def _tuples(asked: dict[str, Any], data: Data, source: Source, rows: Rows) -> Tuples | None:
    """The user's pairs or triplets among the training rows, where a file of them is given."""
    for key, roles in (("pairs", ("a", "b")), ("triplets", ("anchor", "positive", "negative"))):
        if asked.get(key) is not None:
            if getattr(source, "windows", None) is not None:
                warnings.warn(
                    f"--{key}: of rows longer than the encoder takes, the first window is seen", Warned, stacklevel=3
                )
            return read_tuples(asked[key], roles, data, source, rows.train, asked["skip_bad"])
    return None


def _print(tuples: Tuples) -> str:
    """A fingerprint of the user's pairs or triplets in their order."""
    return digest(tuples.index if tuples.similar is None else np.column_stack([tuples.index, tuples.similar]))


def _answers(objective: Objective, labels: Labels | None) -> str | None:
    """A fingerprint of the labels, where the objective learns from them."""
    return None if labels is None or not objective.uses_labels else digest(labels.values)


def _outputs(labels: Labels | None, train: np.ndarray) -> dict[str, Any]:
    """What the labels of the training rows decide for a supervised objective."""
    if labels is None:
        return {}
    if labels.kind == "classes":
        return {"task": "classes", "outputs": len(labels.classes)}
    values = labels.values[train]
    known = [column[~np.isnan(column)] for column in values.reshape(len(values), -1).T]
    shift, scale = (
        [float(f(own)) if len(own) else default for own in known] for f, default in ((np.mean, 0.0), (np.std, 1.0))
    )
    scale = [own or 1.0 for own in scale]
    many = len(known) > 1
    return {
        "task": "numbers",
        "outputs": len(known),
        "shift": tuple(shift) if many else shift[0],
        "scale": tuple(scale) if many else scale[0],
    }


def _record(job: Job, asked: dict[str, Any], origin: str | None, warned: list[str]) -> dict[str, Any]:
    """The content of spec.json: enough to show the run and, where its data is not only in memory, to continue it."""
    rows, input = job.rows, next(iter(job.objective.encoders().values())).input
    facts = {"train_rows": len(rows.train), "held_out": len(rows.test), "note": rows.note, "warnings": warned}
    test, parent = address(asked["test"]), job.start.parent if job.start else None
    asked = asked | {k: None if asked[k] is None else str(Path(asked[k]).resolve()) for k in ("pairs", "triplets")}
    used = parent.spec["data"].get("labels_used", 0) if parent else 0
    if job.tuples is not None:
        facts |= {"tuples": job.tuples.size}
    elif job.objective.uses_labels and job.labels is not None:
        used += int(job.labels.known[rows.train].sum())
    facts |= {"labels_used": used} if used else {}
    return {
        "verb": "pretrain",
        "command": command(),
        "history": [*parent.spec.get("history", []), parent.spec["command"]] if parent else [],
        "seed": job.plan["seed"],
        "data": card(job.data, job.labels, job.packed, input) | facts,
        "digest": digest(job.packed.hashes),
        "tuples": None if job.tuples is None else _print(job.tuples),
        "labels": _answers(job.objective, job.labels),
        "input": {**asked, "test": test, "data": None if test is None and asked["test"] is not None else origin},
        "trained": job.start is not None and job.start.origin.trained,
        "train": {k: job.plan[k] for k in ("steps", "batch", "lr", "save_every")},
        "parts": {"objective": spec("objective", job.objective)},
    }


def _prepare(
    data: Data, own: Input | None, asked: dict[str, Any], fit: dict[str, Any]
) -> tuple[Input, Packed, Data, Rows]:
    """The input spec (the encoder's own where it has one), the packed rows, and which of them may be seen.

    Rows equal to those of --test may not.
    """
    rows = _rows(data, asked)
    input = own or infer(data, rows.train, rows.special, **fit)
    if note := input.note():
        say(note)
    packed, kept = pack(input, data, asked["skip_bad"])
    rows = _rows(kept, asked)
    if asked["test"] is not None:
        other = input.pack(open_data(asked["test"], data.modality).raw, skip_bad=asked["skip_bad"])
        fewer = rows.avoiding(packed.hashes, other.hashes)
        if len(fewer.train) < len(rows.train):  # their statistics may not shape the scaling either
            rows = fewer
            enough(rows.train, data)
            if own is None:
                input = infer(kept, rows.train, rows.special, **fit)
                packed = input.pack(kept.raw)
    return input, packed, kept, rows


def _rows(data: Data, asked: dict[str, Any]) -> Rows:
    others = ("data", "skip_bad", "pairs", "triplets")
    return for_pretraining(data, **{k: v for k, v in asked.items() if k not in others})


def _resume(run: Run, device: torch.device) -> Run:
    """Continue a run that was started before, as its spec.json says."""
    if run.spec["verb"] != "pretrain":
        raise UserError(f"{run.path} is a {run.spec['verb']} run; only pretrain runs are resumed")
    asked = run.spec["input"]
    if run.finished:
        say(f"{run.path} is finished: nothing is left to do")
        return run
    if asked["data"] is None:
        raise UserError(f"{run.path} was trained on rows in memory, which are gone: it cannot be resumed")
    now = environment()
    changed = [f"{k} {run.spec[k]} -> {now[k]}" for k in now if run.spec[k] != now[k]]
    if changed:
        say(f"warning: the continuation may differ in its last bits, because this changed: {'; '.join(changed)}")
    with seeds.forked(run.spec["seed"], "init"):  # where nothing was saved, it starts from the same weights again
        objective: Objective = build("objective", run.spec["parts"]["objective"])
    input = next(iter(objective.encoders().values())).input
    packed, kept = pack(input, open_data(asked["data"], type(input)), asked["skip_bad"])
    if digest(packed.hashes) != run.spec["digest"]:
        raise UserError(f"{asked['data']} has changed since {run.path} was started: restore it, or start a new run")
    rows = _rows(kept, asked)
    if asked["test"] is not None:
        other = input.pack(open_data(asked["test"], type(input)).raw, skip_bad=asked["skip_bad"])
        rows = rows.avoiding(packed.hashes, other.hashes)
    plan = {**run.spec["train"], "seed": run.spec["seed"]}
    tuples = _tuples(asked, kept, packed.source, rows)
    if tuples is not None and _print(tuples) != run.spec["tuples"]:
        file = asked["pairs"] or asked["triplets"]
        raise UserError(f"{file} has changed since {run.path} was started: restore it, or start a new run")
    labels = kept.labels(asked["label"])
    if _answers(objective, labels) != run.spec.get("labels"):
        raise UserError(f"the labels of {asked['data']} have changed since {run.path} was started: restore them")
    return _train(run, Job(objective.to(device), packed, kept, rows, labels, device, plan, None, tuples), True)


def _train(run: Run, job: Job, resume: bool = False) -> Run:
    """Train from the newest state to the end, logging, probing and saving on the way."""
    plan, objective, batches = job.plan, job.objective, job.batches()
    steps: int = plan["steps"]
    optimizer = adamw(groups(objective, lr=plan["lr"], weight_decay=WEIGHT_DECAY))
    start = _rewind(run, job, optimizer) if resume else _keep(run, job, optimizer)
    encoder = next(iter(objective.encoders().values()))
    probe = Probe(encoder, job.packed.source, job.rows.train, job.labels, encoder.input.views(**job.data.views))
    guard, log, began = Guard(steps), max(1, steps // 200), time.perf_counter()
    saved = began
    options: dict[str, Any] = {"schedule": cosine(steps), "clip": 1.0, "precision": precision(job.device)}
    with heard() as warned, _stoppable(run), bar(steps, "pretrain", job.unit) as shown:
        for step in fit(objective, batches, optimizer, steps=steps, seed=plan["seed"], start=start, **options):
            now = time.perf_counter()
            if step.number % log == 0 or step.number == steps:
                row = _row(step, now - began, (step.number - start) * batches.batch)
                guard.check(row)  # before the probe, which wants numbers
                if step.number % (10 * log) == 0 or step.number == steps:
                    row |= probe()
                run.log(row)
                shown.to(step.number, f"loss {row['loss']:.3f}", batches.batch)
            if _due(step.number, now - saved, plan["save_every"]):
                run.save_state(step.number, objective, optimizer)
                saved = now
    run.spec["data"]["warnings"] += warned
    del batches  # their order may be large, and is of no more use
    spare()
    return _finish(run, job, time.perf_counter() - began)


def _keep(run: Run, job: Job, optimizer: torch.optim.Optimizer) -> int:
    """Save what building the objective again would not give: weights that were trained before, and on which rows."""
    if job.start is not None and job.start.origin.trained:
        run.save_state(0, job.objective, optimizer)
        before = job.start.parent.array("seen") if job.start.parent else None
        if before is not None:
            save_tensors(run.path / "before.safetensors", {"before": torch.from_numpy(before)})
    return 0


def _rewind(run: Run, job: Job, optimizer: torch.optim.Optimizer) -> int:
    """Go back to the newest state, and say so; its step."""
    start, steps = run.load_state(job.objective, optimizer), job.plan["steps"]
    if run.spec.get("trained") and not any((run.path / "state").glob("*.safetensors")):
        raise UserError(f"{run.path} was stopped before the weights it begins with were saved: start it again")
    where = f"resuming at step {start:,} of {steps:,}" if start else "nothing was saved yet, starting at step 0"
    left = f", about {in_minutes(pace(job) * (steps - start))} to go" if start < steps else ""
    say(f"{run.path}: {where}{left}")
    run.cut_metrics(start)
    return start


@contextmanager
def _stoppable(run: Run) -> Iterator[None]:
    """Tell who interrupts how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"stopped; modicum pretrain --resume {run.path}  goes on from the last saved step")
        raise


def _finish(run: Run, job: Job, seconds: float) -> Run:
    """Save the model, the hashes of the rows it saw, and the report."""
    hashes, train, before = job.packed.hashes, job.rows.train, run.array("before")
    seen = hashes if len(train) == len(hashes) else hashes[train]  # all of them may be many, and memory-mapped
    run.save_model(job.objective, seen=seen if before is None else np.union1d(before, seen))
    run.spec["seconds"] = run.spec.get("seconds", 0.0) + seconds
    run.save_spec()
    say(f"trained in {in_minutes(seconds)}; writing the report")
    look = job.rows.test if len(job.rows.test) else job.rows.train
    shown = exhibits(job.objective, job.packed.source, look, job.data.ids, job.labels, seed=job.plan["seed"])
    run.write_json("exhibits.json", shown)
    say(f"done: {render(run.path)}")
    return run


def _due(step: int, seconds: float, every: int | None) -> bool:
    """Whether to save a state: every so many steps, or by the clock; training does not depend on which."""
    return step % every == 0 if every else seconds > SAVE_SECONDS


def _row(step: Step, seconds: float, rows: int) -> dict[str, Any]:
    """A line of metrics.jsonl: reading the numbers is what synchronises with the device."""
    row: dict[str, Any] = {"step": step.number, "loss": step.loss.item(), "lr": step.rate}
    row |= {k: v.item() for k, v in step.metrics.items()}
    return row | {"seconds": round(seconds, 3), "rate": round(rows / max(seconds, 1e-9), 1)}


def pace(job: Job) -> float:
    """Seconds a step, from three steps of a copy that is thrown away."""
    trial = copy.deepcopy(job.objective)
    optimizer, times = adamw(groups(trial, lr=1e-9, weight_decay=0.0)), []
    for step in fit(trial, job.batches(), optimizer, steps=3, seed=job.plan["seed"], precision=precision(job.device)):
        step.loss.item()
        times.append(time.perf_counter())
    return float(np.diff(times).min())
