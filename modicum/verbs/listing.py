"""`modicum list`: what there is, read from the code."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import torch

from modicum.core import seeds as _seeds
from modicum.core.device import choose_device
from modicum.core.errors import UserError, unknown
from modicum.core.spec import arguments, build, names, part
from modicum.core.types import Trunk
from modicum.datasets.data import builtin
from modicum.training.cost import cost
from modicum.training.transfer import METHODS

KINDS = ("objectives", "encoders", "datasets", "methods")
CONTEXT = {"encoder", "dim", "grid", "views", "steps", "from_file", "terms", "context"}
"""Arguments that the data decides, or that are themselves options of a part."""


EXAMPLES = {"28×28 grey pixels": (1, (28, 28)), "64 tokens of 64": (64, (64,))}
"""What encoders are counted and measured on: the first that they take."""


def listing(
    kind: str | None = None, *, measure: bool = False, seed: int = 0, device: str = "auto", force: bool = False
) -> list[dict[str, Any]]:
    """List the parts there are: objectives, encoders, datasets and methods, with their arguments and defaults.

    Encoders have their parameters and what they can; --measure adds FLOPs a sample, samples a second (forward;
    forward and backward) and peak memory of a step of 64, on this machine. Returns rows {"kind", "name", "what",
    "arguments", ...} of one kind or of all.
    """
    del force  # every verb takes the same arguments
    where = choose_device(device)
    if kind is not None and kind not in KINDS:
        raise unknown("list", kind, KINDS)
    rows: list[dict[str, Any]] = []
    for one in [kind] if kind else KINDS:
        if one == "methods":
            rows += [{"kind": one, "name": n, "what": w, "arguments": ""} for n, w in METHODS.items()]
        elif one == "datasets":
            rows += [_dataset(n) for n in builtin()]
        else:
            rows += [_part(one, n) for n in names({"objectives": "objective", "encoders": "trunk"}[one])]
        if one == "encoders":
            for row in rows[-len(names("trunk")) :]:
                row |= _encoder(row["name"], measure, seed, where)
    return rows


def _encoder(name: str, measure: bool, seed: int, device: torch.device) -> dict[str, Any]:
    """Parameters, capabilities and costs of a trunk with its default arguments; empty where it needs a name."""
    for on, (dim, grid) in EXAMPLES.items():
        try:
            with _seeds.forked(seed, "init"):
                trunk: Trunk = build("trunk", name, dim=dim, grid=grid).to(device)
        except UserError:
            continue
        row: dict[str, Any] = {"on": on, "parameters": sum(p.numel() for p in trunk.parameters())}
        row["can"] = sorted(trunk.can)
        if measure:
            found = cost(trunk)
            row |= {"flops": found.flops, "forward": found.forward, "training": found.training, "memory": found.memory}
        return row
    return {}


def _dataset(name: str) -> dict[str, Any]:
    module = importlib.import_module(f"modicum.datasets.{name.replace('-', '_')}")
    first = (inspect.getdoc(module) or "").split("\n")[0]
    return {"kind": "datasets", "name": name, "what": f"{first} {inspect.getdoc(module.load)}", "arguments": ""}


def _part(kind: str, name: str) -> dict[str, Any]:
    cls = part("objective" if kind == "objectives" else "trunk", name)
    first = (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")
    given = [f"{k}={p.default!r}" for k, p in arguments(cls).items() if k not in CONTEXT and p.default is not p.empty]
    return {"kind": kind, "name": name, "what": first, "arguments": ", ".join(given)}
