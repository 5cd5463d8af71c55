"""`modicum pretrain`: an encoder from rows without labels, in a run that survives being killed."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modicum.core import seeds
from modicum.core.errors import UserError
from modicum.core.spec import Make, build, parse, spec, text_of
from modicum.core.types import Input, Objective, Packed, Step
from modicum.datasets.data import Data, Labels, open_data
from modicum.nn.encoder import Encoder
from modicum.probes import knn
from modicum.report.exhibits import exhibits
from modicum.report.page import render
from modicum.training import guard
from modicum.training.apply import embed
from modicum.training.batches import Batches
from modicum.training.fit import fit
from modicum.training.optim import adamw, cosine, groups
from modicum.training.rows import Rows, for_pretraining
from modicum.training.run import Run, command, environment
from modicum.verbs._common import bar, card, choose_device, digest, in_minutes, pack, precision, say

WEIGHT_DECAY = 0.05
SAVE_SECONDS = 30.0


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
    """Train an encoder on the rows of `data` without labels and write a run folder.

    `data`: a path, a built-in name, or rows in memory. `objective` and `encoder` are specs; both default to what the
    modality recommends. Rows for testing (`test`, `split`, or a fifth of the labelled rows) are left out unless
    `transductive`. `resume` continues a run to the same bits as if it had never stopped.
    """
    if resume is not None:
        if data is not None or out is not None:
            raise UserError("--resume DIR continues that run as it was started: give no DATA and no --out")
        return _resume(Run.open(resume), device)
    if data is None:
        raise UserError("pretrain needs DATA: a path or a built-in name such as digits")
    if epochs is not None and steps is not None:
        raise UserError("give --epochs or --steps, not both")
    for name, value in (
        ("epochs", epochs),
        ("steps", steps),
        ("limit", limit),
        ("size", size),
        ("save-every", save_every),
    ):
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: wanted at least 1")
    if batch < 2 or lr <= 0:
        raise UserError(f"wanted --batch of at least 2 and --lr above 0; got {batch} and {lr}")
    where = choose_device(device)
    opened = open_data(data)
    asked: dict[str, Any] = {"label": label, "group": group, "split": split, "test": test, "transductive": transductive}
    asked |= {"limit": limit, "skip_bad": skip_bad, "seed": seed}
    kind = opened.modality
    texts = (objective or kind.default_objective, encoder or kind.default_trunk)
    parsed = (parse(texts[0], "objective"), parse(texts[1], "encoder"))
    rows = for_pretraining(opened, **{k: v for k, v in asked.items() if k not in ("skip_bad",)})
    input = kind.infer(opened.raw, rows.train, size=size, exclude=rows.special)
    with seeds.forked(seed, "init"):
        made = _make(parsed[0], Encoder.of(input, parsed[1]), opened)
    packed, kept = pack(input, opened, skip_bad)
    rows = for_pretraining(kept, **{k: v for k, v in asked.items() if k not in ("skip_bad",)}) if packed.bad else rows
    per_epoch = max(1, len(rows.train) // min(batch, len(rows.train)))
    total = steps or (epochs * per_epoch if epochs else max(1000, 20 * per_epoch))
    labels = kept.labels(label)
    path = Path(out) if out is not None else Path("runs") / f"{opened.name}-{parsed[0].get('name', 'sum')}"
    run = Run.create(
        path,
        {
            "verb": "pretrain", "command": command(), "history": [], "seed": seed,
            "data": card(kept, labels, packed, input, train_rows=len(rows.train), held_out=len(rows.test), note=rows.note),
            "digest": digest(packed.hashes),
            "input": {"data": str(Path(data).resolve()) if _is_path(data) else str(data) if isinstance(data, str) else None, **asked},
            "train": {"steps": total, "batch": batch, "lr": lr, "save_every": save_every},
            "parts": {"objective": spec("objective", made)}, "written": {"objective": text_of(parsed[0]), "encoder": text_of(parsed[1])},
        },
        force=force,
    )  # fmt: skip
    say(
        f"pretrain {text_of(parsed[0])} with {text_of(parsed[1])} on {len(rows.train):,} rows ({rows.note}): {total:,} steps of "
        f"{min(batch, len(rows.train))} on {where.type} -> {run.path}"
    )
    return _train(run, made, packed, kept, rows, labels, where)


def _is_path(data: Any) -> bool:
    from modicum.datasets.data import builtin

    return isinstance(data, str | Path) and str(data) not in builtin()


def _make(parsed: dict[str, Any], encoder: Encoder, data: Data) -> Objective:
    """The objective around the encoder, with the data's hints on views under the user's own options."""
    views = Make(lambda given: {**data.views, **(given["args"] if given else {})})
    return build("objective", parsed, encoder=encoder, views=views)


def _resume(run: Run, device: str) -> Run:
    if run.spec["verb"] != "pretrain":
        raise UserError(f"{run.path} is a {run.spec['verb']} run; only pretrain runs are resumed")
    asked = run.spec["input"]
    if asked["data"] is None:
        raise UserError(f"{run.path} was trained on rows in memory, which are gone: it cannot be resumed")
    now = environment()
    changed = [f"{k} {run.spec[k]} -> {now[k]}" for k in now if run.spec[k] != now[k]]
    if changed:
        say(f"warning: the continuation may differ in its last bits, because this changed: {'; '.join(changed)}")
    where = choose_device(device)
    objective: Objective = build("objective", run.spec["parts"]["objective"])
    data = open_data(asked["data"])
    input = next(iter(objective.encoders().values())).input
    packed, kept = pack(input, data, asked["skip_bad"])
    if digest(packed.hashes) != run.spec["digest"]:
        raise UserError(f"{asked['data']} has changed since {run.path} was started: restore it, or start a new run")
    rows = for_pretraining(kept, **{k: v for k, v in asked.items() if k not in ("data", "skip_bad")})
    return _train(run, objective, packed, kept, rows, kept.labels(asked["label"]), where, resume=True)


def _train(
    run: Run, objective: Objective, packed: Packed, data: Data, rows: Rows, labels: Labels | None,
    device: torch.device, resume: bool = False,
) -> Run:  # fmt: skip
    """Train from the newest state to the end, logging, probing and saving on the way."""
    plan, seed = run.spec["train"], run.spec["seed"]
    steps: int = plan["steps"]
    objective = objective.to(device)
    optimizer = adamw(groups(objective, lr=plan["lr"], weight_decay=WEIGHT_DECAY))
    batches = Batches(packed.source, rows.train, batch=plan["batch"], seed=seed)
    start = run.load_state(objective, optimizer) if resume else 0
    if resume:
        say(
            f"{run.path}: resuming at step {start:,} of {steps:,}"
            if start
            else f"{run.path}: nothing was saved yet, starting at step 0"
        )
        run.cut_metrics(start)
    elif start < steps:
        say(f"about {in_minutes(estimate(objective, batches, seed) * (steps - start))} of training")
    probe = Probe(objective, packed, rows, labels)
    every, began, saved = max(1, steps // 200), time.perf_counter(), time.perf_counter()
    with bar(steps, "pretrain", "rows") as shown:
        for step in fit(
            objective, batches, optimizer, steps=steps, seed=seed, start=start, schedule=cosine(steps), clip=1.0,
            precision=precision(device),
        ):  # fmt: skip
            if step.number % every == 0 or step.number == steps:
                row = _row(step, time.perf_counter() - began, (step.number - start) * batches.batch)
                if step.number % (10 * every) == 0 or step.number == steps:
                    row |= probe()
                run.log(row)
                guard.check(row, steps)
                shown.to(step.number, f"loss {row['loss']:.3f}", batches.batch)
            if (
                (plan["save_every"] is None
                and time.perf_counter() - saved > SAVE_SECONDS)
                or _due(step.number, plan["save_every"])
            ):
                run.save_state(step.number, objective, optimizer)
                saved = time.perf_counter()
    seconds = time.perf_counter() - began
    run.save_model(objective, seen=packed.hashes[rows.train])
    run.spec["seconds"] = run.spec.get("seconds", 0.0) + seconds
    run.save_spec()
    say(f"trained in {in_minutes(seconds)}; writing the report")
    look = rows.test if len(rows.test) else rows.train
    run.write_json("exhibits.json", exhibits(objective, packed.source, look, data.ids(), labels, seed=seed))
    render(run.path)
    say(f"done: {run.path / 'report.html'}")
    return run


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _row(step: Step, seconds: float, rows: int) -> dict[str, Any]:
    """A line of metrics.jsonl: reading the numbers is what synchronises with the device."""
    row: dict[str, Any] = {"step": step.number, "loss": step.loss.item(), "lr": step.rate}
    row |= {k: v.item() for k, v in step.metrics.items()}
    return row | {"seconds": round(seconds, 3), "rate": round(rows / max(seconds, 1e-9), 1)}


def estimate(objective: Objective, batches: Batches, seed: int) -> float:
    """Seconds a step, from two steps of a copy that is thrown away."""
    trial = copy.deepcopy(objective)
    optimizer = adamw(groups(trial, lr=1e-9, weight_decay=0.0))
    times = [time.perf_counter()]
    for step in fit(trial, batches, optimizer, steps=3, seed=seed):
        step.loss.item()
        times.append(time.perf_counter())
    return min(np.diff(times[1:]))


class Probe:
    """The online probe: k-NN accuracy of labelled training rows among other labelled training rows, never test rows."""

    def __init__(self, objective: Objective, packed: Packed, rows: Rows, labels: Labels | None) -> None:
        self.towers, self.source = objective.encoders(), packed.source
        self.labels = labels if labels is not None and labels.kind == "classes" else None
        if self.labels is not None:
            known = rows.train[self.labels.known[rows.train]]
            known = seeds.numpy(0, "probe").permutation(known)[:5000]
            self.bank, self.query = np.split(known, [int(0.8 * len(known))])

    def __call__(self) -> dict[str, float]:
        if self.labels is None or not len(self.query):
            return {}
        tower: Encoder = next(iter(self.towers.values()))
        bank, query = (embed(tower, self.source, index) for index in (self.bank, self.query))
        found = knn(bank, self.labels.values[self.bank], query)
        return {"knn": float((found == self.labels.values[self.query]).mean())}


def default_input(data: Data, index: np.ndarray, exclude: list[str], size: int | None = None) -> Input:
    """The input spec of fresh encoders on these rows."""
    return data.modality.infer(data.raw, index, size=size, exclude=exclude)
