"""The folder of many models' training: whose it is, how it was divided, and the states that stacks go on from."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modicum.core.atomic import atomic_write
from modicum.core.errors import UserError, Warned
from modicum.core.tensors import load_tensors
from modicum.training.divide import Chunk
from modicum.training.each import Each
from modicum.training.run import save_tensors
from modicum.training.stack import Stack
from modicum.training.work import Member, Work


def file(place: Path | None, kind: str, step: int) -> Path:
    assert place is not None
    return place / f"{kind}-{step:09d}.safetensors"


def claim(
    place: Path, members: Sequence[Member], work: Work, at: Sequence[int], cut: Callable[[], list[Chunk]]
) -> list[Chunk]:
    """The chunks of a folder that is these members', as they were divided first; a folder of others is refused."""
    file, name = place / "members.json", digest(members, work, at)
    if file.is_file():
        known = json.loads(file.read_text())
        if known["digest"] != name:
            raise UserError(
                f"{place} holds other members than these: choose another folder, delete it (--force), or ask as before "
                "to go on"
            )
        if known["torch"] != torch.__version__:
            warnings.warn(
                f"{place} was begun with torch {known['torch']}: with {torch.__version__} it goes on, not bit for bit",
                Warned,
                stacklevel=3,
            )
        return [Chunk(**c) for c in known["chunks"]]
    chunks = cut()
    place.mkdir(parents=True, exist_ok=True)
    known = {"digest": name, "members": len(members), "torch": torch.__version__, "chunks": [c.plain() for c in chunks]}
    atomic_write(file, json.dumps(known).encode())
    return chunks


def digest(members: Sequence[Member], work: Work, at: Sequence[int]) -> str:
    """What tells one training from another: members, targets, settings, and the rows that are trained on."""
    found = hashlib.blake2b(digest_size=16)
    for m in members:
        found.update(repr((m.key, m.encoder, m.seed, m.lr, m.weight_decay, m.steps, m.schedule)).encode())
        found.update(b"" if m.targets is None else np.ascontiguousarray(m.targets).tobytes())
    found.update(np.ascontiguousarray(work.targets).tobytes())
    settings = (work.classes, work.optimizer, work.momentum, work.clip, str(work.dtype), work.scale, list(at))
    found.update(repr(settings).encode())
    used = np.unique(np.concatenate([m.rows for m in {m.key[0]: m for m in members}.values()]))
    for k in range(0, len(used), 4096):
        for key, value in sorted(work.source.rows(used[k : k + 4096]).items()):
            found.update(key.encode() + np.ascontiguousarray(value.numpy()).tobytes())
    found.update(repr(sorted((k, repr(v)) for k, v in vars(work.input).items())).encode())
    return found.hexdigest()


def kept(place: Path | None) -> dict[str, Any] | None:
    file = None if place is None else place / "plan.json"
    return json.loads(file.read_text()) if file is not None and file.is_file() else None


def state(place: Path | None) -> tuple[dict[str, torch.Tensor], dict[str, str]] | None:
    """The newest state that reads."""
    for file in sorted(place.glob("state-*.safetensors"), reverse=True) if place is not None else []:
        try:
            return load_tensors(file)
        except UserError as error:
            warnings.warn(f"{error}; taking the state before it", Warned, stacklevel=2)
    return None


def save(place: Path, stack: Stack, optimizer: Each, step: int) -> None:
    tensors = {f"model|{k}": v for k, v in stack.state_dict().items()}
    for name, p in stack.named_parameters():
        tensors |= {f"optim|{name}|{slot}": v for slot, v in optimizer.state[p].items()}
    save_tensors(file(place, "state", step), tensors, {"step": str(step)})
    for old in sorted(place.glob("state-*.safetensors"))[:-2]:
        old.unlink()


def restore(stack: Stack, optimizer: Each, tensors: dict[str, torch.Tensor]) -> None:
    stack.load_state_dict({k.split("|")[1]: v for k, v in tensors.items() if k.startswith("model|")})
    named = dict(stack.named_parameters())
    for key, value in tensors.items():
        if key.startswith("optim|"):
            _, name, slot = key.split("|")
            like = named[name]
            # With the memory format of the parameter, on which rounding depends.
            optimizer.state[like][slot] = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
