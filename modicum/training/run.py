"""A run is a folder: spec.json, model.safetensors, metrics.jsonl, state/; JSON and safetensors, written atomically."""

from __future__ import annotations

import datetime
import errno
import hashlib
import json
import os
import platform
import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from modicum.core.atomic import atomic_path, atomic_write
from modicum.core.errors import UserError, Warned
from modicum.core.tensors import load_tensors as load_tensors
from modicum.core.version import VERSION
from modicum.training.hashes import write_hashes

FORMAT = 1
SEPARATOR = "|"
"""Between the parts of a state's tensor names; parameter names hold dots only."""


def environment() -> dict[str, Any]:
    """What bit-identical continuation depends on."""
    return {
        "versions": {"modicum": VERSION, "torch": torch.__version__, "python": platform.python_version()},
        "threads": torch.get_num_threads(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
    }


@contextmanager
def saving(path: Path, then: str = "") -> Iterator[None]:
    """Say why a file cannot be written, and what to do `then`; what was there before is intact (writes are atomic)."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors wraps the operating system's error
        reasons = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up"}
        reason = reasons.get(getattr(error, "errno", None) or 0, str(error))
        raise UserError(f"cannot write {path}: {reason}. Everything saved before is intact{then}") from error


def check_place(path: str | Path, *, force: bool = False, keep: Iterable[str | Path] = ()) -> None:
    """Refuse a place for a new run that holds something: anything without `force`, all but an older run with it.

    What `abandoned` tells is nothing to keep.

    `keep` are the paths that the new run is made from: a folder that holds one of them is never replaced.
    """
    path = Path(path)
    base = next(p for p in (path, *path.parents, Path()) if p.exists())
    if not base.is_dir() and base != path:
        raise UserError(f"{path} cannot be made: {base} is a file; choose another --out")
    if not path.exists() or (path.is_dir() and (abandoned(path) or not any(path.iterdir()))):
        return
    if not force:
        raise UserError(f"{path} exists: choose another --out, or --force to replace it")
    if not (path / "spec.json").is_file():
        raise UserError(f"{path} exists and is not a modicum run, so --force does not replace it: choose another --out")
    for kept in keep:
        if Path(kept).resolve().is_relative_to(path.resolve()):
            raise UserError(f"{path} holds {kept}, which the new run is made from: choose another --out")


def abandoned(path: Path) -> bool:
    """Whether a folder is a finetune that was stopped before it had results: it holds its spec.json and nothing else.

    One that a process of this machine still works on, or one of another machine may, is not.
    """
    if not all(p.name == "spec.json" or p.name.startswith(".tmp-") for p in path.iterdir()):
        return False
    try:
        spec = Run.open(path).spec
    except UserError:
        return False
    return spec["verb"] == "finetune" and _gone(spec.get("process"))


def _gone(process: Any) -> bool:
    """Whether a process ([machine, number]) is known to have ended; this one is not at work on a run it is to make."""
    if not isinstance(process, list) or process[0] != platform.node() or os.name == "nt":
        return False
    try:
        os.kill(process[1], 0)
    except OSError as error:
        return isinstance(error, ProcessLookupError)
    return bool(process[1] == os.getpid())


class Run:
    """A run's folder; `spec` is the content of its spec.json."""

    def __init__(self, path: Path, spec: dict[str, Any]) -> None:
        self.path, self.spec = path, spec

    @classmethod
    def create(cls, path: str | Path, spec: dict[str, Any], *, force: bool = False) -> Run:
        """A new run at `path`; one that exists is replaced only with `force`, and only if it is a run."""
        path = Path(path)
        check_place(path, force=force)
        with saving(path):
            if path.exists():
                shutil.rmtree(path)
            path.mkdir(parents=True)
        process = [platform.node(), os.getpid()]
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        run = cls(path, {"format": FORMAT, **environment(), "created": created, "process": process, **spec})
        run.save_spec()
        return run

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """The run at `path`; UserError where it is none, is from a newer modicum, or its spec was changed by hand."""
        path = Path(path)
        file = path / "spec.json"
        if not file.is_file():
            what = "has no spec.json" if path.is_dir() else "is not a folder" if path.exists() else "does not exist"
            raise UserError(f"{path} is not a modicum run: it {what}")
        try:
            spec = json.loads(file.read_text("utf-8"))
            checksum, number = spec.pop("checksum"), int(spec["format"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{file} is damaged: {type(error).__name__} {error}; restore it or make the run again"
            ) from None
        if number > FORMAT:
            raise UserError(f"{path} has format {number}; modicum {VERSION} reads up to {FORMAT}: upgrade modicum")
        if checksum != _checksum(spec):
            raise UserError(f"{file} was changed after it was written (its checksum differs): restore it or run again")
        return cls(path, spec)

    @property
    def finished(self) -> bool:
        """Whether everything was written: the report comes last."""
        return (self.path / "model.safetensors").is_file() and (self.path / "report.html").is_file()

    def save_spec(self) -> None:
        body = json.loads(json.dumps(self.spec))
        text = json.dumps({**body, "checksum": _checksum(body)}, indent=1)
        with saving(self.path / "spec.json"):
            atomic_write(self.path / "spec.json", text.encode())

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the run, such as results.json."""
        with saving(self.path / name):
            atomic_write(self.path / name, json.dumps(value).encode())

    def read_json(self, name: str, default: Any = None) -> Any:
        file = self.path / name
        return _parsed(file, file.read_text("utf-8", "replace")) if file.is_file() else default

    def log(self, row: dict[str, Any]) -> None:
        """Append a row to metrics.jsonl."""
        with saving(self.path / "metrics.jsonl"), (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The whole rows of metrics.jsonl: a last line cut off by a kill is no row."""
        file = self.path / "metrics.jsonl"
        lines = file.read_text("utf-8", "replace").split("\n")[:-1] if file.is_file() else []
        return [_parsed(file, line) for line in lines if line]

    def cut_metrics(self, step: int) -> None:
        """Forget what was logged after `step`."""
        rows = [json.dumps(r) + "\n" for r in self.metrics() if r["step"] <= step]
        with saving(self.path / "metrics.jsonl"):
            atomic_write(self.path / "metrics.jsonl", "".join(rows).encode())

    def save_model(self, module: nn.Module, **arrays: np.ndarray) -> None:
        """Write the module's tensors to model.safetensors and each array to its own file."""
        save_tensors(self.path / "model.safetensors", dict(module.state_dict()))
        for name, array in arrays.items():
            with saving(self.path):
                write_hashes(self.path / f"{name}.safetensors", name, array)

    def load_model(self, module: nn.Module) -> None:
        """Fill the module from model.safetensors, strictly."""
        file = self.path / "model.safetensors"
        if not file.is_file():
            verb = self.spec.get("verb", "pretrain")
            todo = f"modicum pretrain --resume {self.path}" if verb == "pretrain" else f"run modicum {verb} again"
            raise UserError(f"{self.path} has no model.safetensors: the run was not finished; {todo}")
        fill(module, load_tensors(file)[0], file)

    def array(self, name: str) -> np.ndarray | None:
        """An array saved beside the model, or None."""
        file = self.path / f"{name}.safetensors"
        return load_tensors(file)[0][name].numpy() if file.is_file() else None

    def save_state(self, step: int, objective: nn.Module, optimizer: torch.optim.Optimizer, keep: int = 2) -> None:
        """Write state/STEP.safetensors, from which training continues bit-identically; the `keep` newest stay."""
        tensors = {f"model{SEPARATOR}{k}": v for k, v in objective.state_dict().items()}
        for i, slots in optimizer.state_dict()["state"].items():
            tensors |= {f"optim{SEPARATOR}{i}{SEPARATOR}{k}": torch.as_tensor(v) for k, v in slots.items()}
        folder = self.path / "state"
        save_tensors(folder / f"{step:09d}.safetensors", tensors, {"step": str(step)})
        for old in self._states()[:-keep]:
            old.unlink()

    def _states(self) -> list[Path]:
        return sorted(p for p in (self.path / "state").glob("*.safetensors") if p.stem.isdecimal())

    def load_state(self, objective: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Continue from the newest state that reads: fills both and returns its step, or 0 where nothing was saved."""
        # What a killed write left: our temporary files, and those of safetensors itself.
        for part in [*self.path.glob(".tmp*"), *(self.path / "state").glob(".tmp*")]:
            part.unlink()
        for file in reversed(self._states()):
            try:
                tensors, metadata = load_tensors(file)
            except UserError as error:
                warnings.warn(f"{error}; taking the state before it", Warned, stacklevel=2)
                continue
            model = {k.split(SEPARATOR)[1]: v for k, v in tensors.items() if k.startswith("model")}
            fill(objective, model, file)
            _fill_optimizer(optimizer, {k: v for k, v in tensors.items() if k.startswith("optim")})
            return int(metadata["step"])
        return 0


def _fill_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Copy saved slots into the optimizer with the memory format of its parameters, on which rounding depends."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for key, value in tensors.items():
        _, i, slot = key.split(SEPARATOR)
        like = parameters[int(i)]
        if value.shape == like.shape:
            value = torch.empty_like(like).copy_(value)
        optimizer.state[like][slot] = value


def _parsed(file: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}; restore it or make the run again") from None


def _checksum(spec: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors to a safetensors file, whole or not at all."""
    plain = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    with saving(path, "; go on with --resume"), atomic_path(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(plain, temporary, metadata)
        temporary.chmod(mode)  # safetensors makes files that only their owner can read


def fill(module: nn.Module, tensors: dict[str, Tensor], file: Path) -> None:
    """Load tensors into a module; every name and shape must match."""
    wanted = module.state_dict()
    wrong = sorted(wanted.keys() ^ tensors.keys())
    wrong += [k for k in wanted.keys() & tensors.keys() if wanted[k].shape != tensors[k].shape]
    if wrong:
        raise UserError(f"{file} does not fit the run's spec: {', '.join(wrong[:5])} differ; the folder mixes two runs")
    module.load_state_dict(tensors)
