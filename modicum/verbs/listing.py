"""`modicum list`: what there is, read from the code."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from modicum.core.errors import unknown
from modicum.core.spec import arguments, names, part
from modicum.datasets.data import builtin
from modicum.training.transfer import METHODS

KINDS = ("objectives", "encoders", "datasets", "methods")
CONTEXT = {"encoder", "dim", "grid", "views"}
"""Arguments that the data decides, or that are themselves options of a part."""


def listing(
    kind: str | None = None, *, seed: int = 0, device: str = "auto", force: bool = False
) -> list[dict[str, Any]]:
    """List the parts there are: objectives, encoders, datasets and methods, with their arguments and defaults.

    Returns rows {"kind", "name", "what", "arguments"} of one kind or of all.
    """
    del seed, device, force  # every verb takes the same arguments
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
    return rows


def _dataset(name: str) -> dict[str, Any]:
    module = importlib.import_module(f"modicum.datasets.{name.replace('-', '_')}")
    first = (inspect.getdoc(module) or "").split("\n")[0]
    return {"kind": "datasets", "name": name, "what": f"{first} {inspect.getdoc(module.load)}", "arguments": ""}


def _part(kind: str, name: str) -> dict[str, Any]:
    cls = part("objective" if kind == "objectives" else "trunk", name)
    first = (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")
    given = [f"{k}={p.default!r}" for k, p in arguments(cls).items() if k not in CONTEXT and p.default is not p.empty]
    return {"kind": kind, "name": name, "what": first, "arguments": ", ".join(given)}
