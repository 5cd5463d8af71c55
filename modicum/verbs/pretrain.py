"""`modicum pretrain`: an encoder from rows without labels, in a run that survives being killed."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modicum.core import seeds
from modicum.core.errors import UserError
from modicum.core.spec import Make, build, parse, spec, text_of
from modicum.core.types import Input, Objective, Packed, Step
from modicum.datasets.data import Data, Labels, builtin, open_data
from modicum.nn.encoder import Encoder
from modicum.probes import Probe
from modicum.report.exhibits import exhibits
from modicum.report.page import render
from modicum.training import guard
from modicum.training.batches import Batches
from modicum.training.fit import fit
from modicum.training.optim import adamw, cosine, groups
from modicum.training.rows import Rows, for_pretraining
from modicum.training.run import Run, command, environment
from modicum.verbs._common import (
    at_least,
    bar,
    card,
    choose_device,
    digest,
    heard,
    in_minutes,
    pack,
    packing,
    precision,
    say,
)

WEIGHT_DECAY = 0.05
SAVE_SECONDS = 30.0


@dataclass
class Job:
    """A run about to be trained: the objective, the rows it may see, and where."""

    run: Run
    objective: Objective
    packed: Packed
    data: Data
    rows: Rows
    labels: Labels | None
    device: torch.device


def pretrain(
    data: Any = None,
    *,
    objective: str | None = None,
    encoder: str | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    batch: int = 256,
    lr: float = 4e-3,
    limit: int | None = None,
    size: int | None = None,
    label: str | None = None,
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
    recommends. Rows for testing (--test, --split, else a fifth of the labelled rows) are left out unless
    --transductive. --resume continues a run to the same bits as if it had never stopped.
    """
    where = choose_device(device)
    if resume is not None:
        if data is not None or out is not None:
            raise UserError("--resume DIR continues that run as it was started: give no DATA and no --out")
        return _train(_reopen(Run.open(resume), where), resume=True)
    if data is None:
        raise UserError("pretrain needs DATA: a path or a built-in name such as digits")
    if epochs is not None and steps is not None:
        raise UserError("give --epochs or --steps, not both")
    at_least(1, epochs=epochs, steps=steps, limit=limit, size=size, save_every=save_every)
    at_least(2, batch=batch)
    if lr <= 0:
        raise UserError(f"--lr {lr}: wanted a rate above 0")
    asked: dict[str, Any] = {"label": label, "group": group, "split": split, "test": test, "transductive": transductive}
    asked |= {"limit": limit, "seed": seed, "skip_bad": skip_bad}
    with heard() as warned:
        opened = open_data(data)
        parts = (
            parse(objective or opened.modality.default_objective, "objective"),
            parse(encoder or opened.modality.default_trunk, "encoder"),
        )
        input, packed, kept, rows = _prepare(opened, asked, size)
    with seeds.forked(seed, "init"):
        made = _make(parts[0], Encoder.of(input, parts[1]), opened)
    labels = kept.labels(label)
    per_epoch = max(1, len(rows.train) // min(batch, len(rows.train)))
    total = steps or (epochs * per_epoch if epochs else max(1000, 20 * per_epoch))
    facts = {"train_rows": len(rows.train), "held_out": len(rows.test), "note": rows.note, "warnings": warned}
    origin = (
        None if not isinstance(data, str | Path) else str(data) if str(data) in builtin() else str(Path(data).resolve())
    )
    body = {
        "verb": "pretrain",
        "command": command(),
        "seed": seed,
        "data": card(kept, labels, packed, input) | facts,
        "digest": digest(packed.hashes),
        "input": {"data": origin, **asked},
        "train": {"steps": total, "batch": batch, "lr": lr, "save_every": save_every},
        "parts": {"objective": spec("objective", made)},
    }
    path = Path(out) if out is not None else Path("runs") / f"{opened.name}-{parts[0].get('name', 'sum')}"
    run = Run.create(path, body, force=force)
    say(
        f"pretrain {text_of(parts[0])} with {text_of(parts[1])} on {len(rows.train):,} rows ({rows.note}): "
        f"{total:,} steps of {min(batch, len(rows.train))} rows on {where.type} -> {run.path}"
    )
    return _train(Job(run, made, packed, kept, rows, labels, where))


def _prepare(data: Data, asked: dict[str, Any], size: int | None) -> tuple[Input, Packed, Data, Rows]:
    """The input spec, the packed rows, and which of them may be seen; rows equal to those of --test may not."""
    rows = _rows(data, asked)
    input = data.modality.infer(data.raw, rows.train, size=size, exclude=rows.special, progress=packing(data))
    packed, kept = pack(input, data, asked["skip_bad"])
    rows = _rows(kept, asked)
    if asked["test"] is not None:
        other = input.pack(open_data(asked["test"], data.modality).raw, skip_bad=asked["skip_bad"])
        fewer = rows.avoiding(packed.hashes, other.hashes)
        if len(fewer.train) < len(rows.train):  # their statistics may not shape the scaling either
            rows = fewer
            input = data.modality.infer(kept.raw, rows.train, size=size, exclude=rows.special)
            packed = input.pack(kept.raw)
    return input, packed, kept, rows


def _rows(data: Data, asked: dict[str, Any]) -> Rows:
    return for_pretraining(data, **{k: v for k, v in asked.items() if k not in ("data", "skip_bad")})


def _make(parsed: dict[str, Any], encoder: Encoder, data: Data) -> Objective:
    """The objective around the encoder, with the data's hints on views under the user's own options."""
    views = Make(lambda given: {**data.views, **(given["args"] if given else {})})
    return build("objective", parsed, encoder=encoder, views=views)


def _reopen(run: Run, device: torch.device) -> Job:
    """The job of a run that was started before, from what its spec.json says."""
    if run.spec["verb"] != "pretrain":
        raise UserError(f"{run.path} is a {run.spec['verb']} run; only pretrain runs are resumed")
    asked = run.spec["input"]
    if asked["data"] is None:
        raise UserError(f"{run.path} was trained on rows in memory, which are gone: it cannot be resumed")
    now = environment()
    changed = [f"{k} {run.spec[k]} -> {now[k]}" for k in now if run.spec[k] != now[k]]
    if changed:
        say(f"warning: the continuation may differ in its last bits, because this changed: {'; '.join(changed)}")
    objective: Objective = build("objective", run.spec["parts"]["objective"])
    input = next(iter(objective.encoders().values())).input
    packed, kept = pack(input, open_data(asked["data"]), asked["skip_bad"])
    if digest(packed.hashes) != run.spec["digest"]:
        raise UserError(f"{asked['data']} has changed since {run.path} was started: restore it, or start a new run")
    rows = _rows(kept, asked)
    if asked["test"] is not None:
        rows = rows.avoiding(packed.hashes, input.pack(open_data(asked["test"]).raw, skip_bad=asked["skip_bad"]).hashes)
    return Job(run, objective, packed, kept, rows, kept.labels(asked["label"]), device)


def _train(job: Job, resume: bool = False) -> Run:
    """Train from the newest state to the end, logging, probing and saving on the way."""
    run, plan, seed = job.run, job.run.spec["train"], job.run.spec["seed"]
    steps: int = plan["steps"]
    objective = job.objective.to(job.device)
    optimizer = adamw(groups(objective, lr=plan["lr"], weight_decay=WEIGHT_DECAY))
    batches = Batches(job.packed.source, job.rows.train, batch=plan["batch"], seed=seed)
    start = run.load_state(objective, optimizer) if resume else 0
    if resume:
        where = f"resuming at step {start:,} of {steps:,}" if start else "nothing was saved yet, starting at step 0"
        say(f"{run.path}: {where}")
        run.cut_metrics(start)
    if start < steps:
        say(f"about {in_minutes(estimate(objective, batches, seed) * (steps - start))} of training")
    probe = Probe(next(iter(objective.encoders().values())), job.packed.source, job.rows.train, job.labels)
    log, began = max(1, steps // 200), time.perf_counter()
    saved = began
    with bar(steps, "pretrain", "rows") as shown:
        for step in fit(
            objective,
            batches,
            optimizer,
            steps=steps,
            seed=seed,
            start=start,
            schedule=cosine(steps),
            clip=1.0,
            precision=precision(job.device),
        ):
            now = time.perf_counter()
            if step.number % log == 0 or step.number == steps:
                row = _row(step, now - began, (step.number - start) * batches.batch)
                if step.number % (10 * log) == 0 or step.number == steps:
                    row |= probe()
                guard.check(row, steps)
                run.log(row)
                shown.to(step.number, f"loss {row['loss']:.3f}", batches.batch)
            if _due(step.number, now - saved, plan["save_every"]):
                run.save_state(step.number, objective, optimizer)
                saved = now
    return _finish(job, time.perf_counter() - began)


def _finish(job: Job, seconds: float) -> Run:
    """Save the model, the hashes of the rows it saw, and the report."""
    run = job.run
    run.save_model(job.objective, seen=job.packed.hashes[job.rows.train])
    run.spec["seconds"] = run.spec.get("seconds", 0.0) + seconds
    run.save_spec()
    say(f"trained in {in_minutes(seconds)}; writing the report")
    look = job.rows.test if len(job.rows.test) else job.rows.train
    shown = exhibits(job.objective, job.packed.source, look, job.data.ids(), job.labels, seed=run.spec["seed"])
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


def estimate(objective: Objective, batches: Batches, seed: int) -> float:
    """Seconds a step, from three steps of a copy that is thrown away."""
    trial = copy.deepcopy(objective)
    times = []
    for step in fit(trial, batches, adamw(groups(trial, lr=1e-9, weight_decay=0.0)), steps=3, seed=seed):
        step.loss.item()
        times.append(time.perf_counter())
    return float(np.diff(times).min())
