"""Files of pretrained networks, from a folder or the Hugging Face hub and its cache: safetensors and JSON only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from modicum.core.errors import UserError, need
from modicum.core.tensors import load_tensors

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".tar")


def read(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; UserError for any other, as pickle can run code."""
    path = Path(file)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file of weights")
    if path.suffix in PICKLED:
        raise UserError(
            f"{path} is a pickle, which can run any code when it is opened, so it is not read. If you trust it, "
            "convert it once: state = torch.load(FILE, weights_only=True); "
            "safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, 'FILE.safetensors')"
        )
    return load_tensors(path)[0]


def read_json(file: Path) -> dict[str, Any]:
    """The content of a JSON file that holds an object."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} does not read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{file}: wanted a JSON object, got a {type(found).__name__}")
    return found


def fetch(name: str, file: str) -> Path:
    """A file of a folder, or of a repository of the hub (from its cache where it is there)."""
    if Path(name).is_dir():
        found = Path(name) / file
        if not found.is_file():
            raise UserError(f"{found} is needed and not there; {name} holds {_listed(Path(name))}")
        return found
    hub = need("huggingface_hub", "hub")
    try:
        return Path(hub.hf_hub_download(name, file))
    except Exception as error:  # the hub, its network library and the operating system each raise their own
        if isinstance(error, hub.errors.EntryNotFoundError) and not isinstance(
            error, hub.errors.LocalEntryNotFoundError
        ):
            words = "the repository on the hub has no such file"
        else:
            words = f"it is not in the cache ({hub.constants.HF_HUB_CACHE}) and could not be fetched from the hub"
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"'{name}' needs its file {file}: {words} ({reason[0][:200]}). '{name}' is no folder here either: "
            "check the name, connect to the network once, or give a folder or weights('FILE.safetensors', ...)"
        ) from None


def fetch_weights(name: str) -> list[Path]:
    """The safetensors files of a folder or repository: one, or those that its index names."""
    try:
        return [fetch(name, "model.safetensors")]
    except UserError as error:
        try:
            index = read_json(fetch(name, "model.safetensors.index.json"))
        except UserError:
            pickles = [p.name for p in Path(name).glob("*") if p.suffix in PICKLED] if Path(name).is_dir() else []
            if pickles:
                read_pickle = Path(name) / pickles[0]
                read(read_pickle)  # says how to convert it
            raise error from None
    return [fetch(name, part) for part in sorted(set(index["weight_map"].values()))]


def maybe(name: str, file: str) -> dict[str, Any]:
    """The content of a JSON file of a folder or repository; nothing where there is none."""
    try:
        return read_json(fetch(name, file))
    except UserError:
        return {}


def _listed(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir())
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"
