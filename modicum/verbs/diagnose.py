"""`modicum diagnose NAME [DATA]`: one question about generalisation, answered with rows, charts and a paragraph."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import modicum.diagnostics
from modicum.core.device import choose_device
from modicum.core.errors import UserError, unknown
from modicum.diagnostics._finding import Finding
from modicum.report.finding import write
from modicum.training.many import Around, around
from modicum.training.run import saving
from modicum.verbs._common import at_least, bar, check_seed, say

MEMBERS = "members"
"""The folder in OUT where trainings that were killed go on."""


def diagnostics() -> dict[str, Callable[..., Finding]]:
    """Every diagnostic by its name in kebab case: the function of its file's name."""
    files = sorted(m.name for m in pkgutil.iter_modules(modicum.diagnostics.__path__) if not m.name.startswith("_"))
    return {f.replace("_", "-"): getattr(importlib.import_module(f"modicum.diagnostics.{f}"), f) for f in files}


def diagnose(
    name: str,
    data: Any = None,
    *,
    workers: int = 1,
    device: str = "auto",
    out: str | Path | None = None,
    force: bool = False,
    **options: Any,
) -> Finding:
    """Answer one question about DATA (default: the digits) and write rows, charts and a page to the folder OUT.

    `name`: see `modicum diagnose --help`; `options` are those of the diagnostic, such as over="width". Returns a
    `Finding`, which shows itself in a notebook; without `out` nothing is written from Python. `workers` processes share
    the training. Killed and asked again with the same `out`, it goes on where its trainings were.
    """
    known = diagnostics()
    if name not in known:
        raise unknown("diagnostic", name, list(known))
    function = known[name]
    taken = inspect.signature(function).parameters
    for key in options:
        if key not in taken:
            raise unknown(f"option of diagnose {name}", key, [k for k in taken if k != "data"])
    if "seed" in options:
        check_seed(options["seed"])
    at_least(1, workers=workers)
    members = None if out is None else Path(out) / MEMBERS
    if out is not None:
        check_folder(Path(out), force)
    where = choose_device(device)
    try:
        with bar(1, name, "member steps") as shown, around(Around(members, workers, shown.of, where)):
            finding = function(**({} if data is None else {"data": data}), **options)
    except UserError as error:
        if members is None or str(members) not in str(error):
            raise
        raise UserError(f"{error}; or start anew with --force") from None
    if out is not None:
        with saving(Path(out)):
            write(finding, Path(out))
            shutil.rmtree(Path(out) / MEMBERS, ignore_errors=True)
    return finding


def check_folder(out: Path, force: bool) -> None:
    """Refuse a place that holds something else than a diagnosis; a finished one only without --force.

    One that was begun goes on, over an older finding too; with --force it starts anew.
    """
    finished, begun = (out / "finding.json").is_file(), (out / MEMBERS).is_dir()
    if out.is_file() or (out.is_dir() and not finished and not {p.name for p in out.iterdir()} <= {MEMBERS}):
        raise UserError(f"{out} exists: choose another --out, it is no finding of modicum diagnose")
    if finished and not begun and not force:
        raise UserError(f"{out} exists: choose another --out, or --force to replace it")
    if force:
        shutil.rmtree(out / MEMBERS, ignore_errors=True)


def commands() -> dict[str, Callable[..., Finding]]:
    """A function a diagnostic, with its own arguments and --out and --force, for the command line.

    `options`: what its file's OPTIONS say of its arguments, where the command line has no words for them of its own.
    """
    return {name: _command(name, function) for name, function in diagnostics().items()}


def _command(name: str, function: Callable[..., Finding]) -> Callable[..., Finding]:
    own = inspect.signature(function)
    keyword = inspect.Parameter.KEYWORD_ONLY
    workers = inspect.Parameter("workers", keyword, default=1, annotation=int)
    device = inspect.Parameter("device", keyword, default="auto", annotation=str)
    out = inspect.Parameter("out", keyword, default=None, annotation=str | None)
    force = inspect.Parameter("force", keyword, default=False, annotation=bool)
    parameters = [*own.parameters.values(), workers, device, out, force]

    def call(
        data: Any,
        *,
        workers: int = 1,
        device: str = "auto",
        out: str | None = None,
        force: bool = False,
        **options: Any,
    ) -> Finding:
        folder = Path(out) if out is not None else Path("runs") / f"{name}-{Path(str(data)).stem}"
        again = out is None and (folder / "finding.json").is_file() and not (folder / MEMBERS).is_dir()
        force = force or again
        finding = diagnose(name, data, workers=workers, device=device, out=folder, force=force, **options)
        say(f"{finding.words}\n")
        return finding

    call.__doc__ = inspect.getdoc(function)
    call.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.options = getattr(sys.modules[function.__module__], "OPTIONS", {})  # type: ignore[attr-defined]
    hints = inspect.get_annotations(function, eval_str=True)
    call.__annotations__ = {**{k: v for k, v in hints.items() if k != "return"}, "workers": int, "device": str}
    call.__annotations__ |= {"out": str | None, "force": bool}
    return call
