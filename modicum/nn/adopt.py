"""Where encoders come from: fresh from a spec, or with weights of timm, transformers, open_clip or a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from modicum.core import seeds
from modicum.core.errors import UserError, unknown
from modicum.core.spec import Spec, build, names, part, resolve, text_of
from modicum.core.types import Input
from modicum.nn.encoder import Encoder, Tower, tower
from modicum.nn.foreign import Foreign
from modicum.nn.hub import read

WORDS = ("word_embeddings", "wte", "token_embedding", "tok_embeddings", "embed_tokens", "words")
"""What libraries call the vectors of words."""


@dataclass(frozen=True)
class Origin:
    """Where an encoder comes from: `make(input)` gives it; `input` is what it brings, None where the data decides.

    `trained` where its weights are.
    """

    make: Callable[[Input], Tower]
    input: Input | None = None
    trained: bool = False


def known() -> list[str]:
    """The names that the spec of an encoder can begin with."""
    return [*names("trunk"), *names("encoder"), "weights"]


def origin(spec: Spec) -> Origin:
    """The origin of the encoder that a spec names: a trunk, encoder(trunk, ...), or weights('FILE', trunk, input=...).

    Trunks of other libraries bring their input and, unless they say `pretrained=False`, their weights, which are
    fetched here: building them again from a run's own spec and weights needs neither network nor files.
    """
    if "sum" in spec:
        raise UserError(f"a sum cannot be used as encoder: '{text_of(spec)}'")
    if spec["name"] not in known():
        raise unknown("encoder", spec["name"], known())
    if spec["name"] in names("encoder") and spec["name"] != "encoder":
        return Origin(lambda input: tower(input, spec))
    key = _trunk_key(spec)
    inner: Spec | None = spec if key is None else spec["args"].get(key)
    file, input, inner = _weights(inner) if inner and inner["name"] == "weights" else (None, None, inner)
    tensors = None if file is None else read(file)
    where = str(file)
    if inner and issubclass(cls := part("trunk", inner["name"]), Foreign):
        with seeds.forked(0, "adopt"):
            brought = cls.bring(file is None, **resolve("trunk", inner, ("dim", "grid")))
        input, inner = input or brought.input, {**inner, "args": brought.args}
        if file is None:
            tensors, where = brought.tensors, f"the weights of {text_of(spec)}"
    whole = inner if key is None else {**spec, "args": {**spec["args"], key: inner}}

    def make(own: Input) -> Tower:
        made = tower(own, whole or own.default_trunk)
        if tensors is not None:
            fill(made, tensors, where)
        return made

    return Origin(make, input, tensors is not None)


def _trunk_key(spec: Spec) -> str | None:
    """Where encoder(...) holds its trunk; None for a trunk itself."""
    if spec["name"] != "encoder":
        return None
    return "0" if "0" in spec["args"] else "trunk"


def _weights(spec: Spec) -> tuple[Path, Input | None, Spec]:
    """The file, the input if it is given, and the trunk of weights('FILE', trunk, input=...)."""
    args = {{"0": "file", "1": "trunk"}.get(k, k): v for k, v in spec["args"].items()}
    right = args.keys() <= {"file", "trunk", "input"} and isinstance(args.get("file"), str)
    if not right or not isinstance(args.get("trunk"), dict) or args["trunk"].get("name") not in names("trunk"):
        raise UserError(
            f"{text_of(spec)}: wanted weights('FILE.safetensors', TRUNK) with a trunk such as resnet(depth=18), and "
            "input=images(...) where the network's input is not to be taken from the data"
        )
    input = None if args.get("input") is None else build("modality", args["input"])
    return Path(args["file"]), input, args["trunk"]


def fill(encoder: Tower, tensors: dict[str, Tensor], where: str) -> None:
    """Give an encoder the weights of a run's or an encoder's own file, or of a checkpoint that its trunk translates.

    UserError that names what is missing, too much or of another shape. A pooling that the file lacks stays as it is.
    """
    if not isinstance(encoder, Encoder):
        raise UserError(f"{where}: weights are for an encoder of one trunk")
    wanted = {k: v for k, v in encoder.state_dict().items() if not k.startswith("pooling.")}
    own = _own(wanted, tensors)
    if own is None:
        try:
            own = {f"trunk.{k}": v for k, v in encoder.trunk.translate(tensors).items()}
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        own |= _words(wanted, tensors, where)
    wrong = sorted(
        f"{k} {tuple(own[k].shape)}, wanted {tuple(v.shape)}"
        for k, v in wanted.items()
        if k in own and own[k].shape != v.shape
    )
    missing = sorted(wanted.keys() - own.keys())
    if wrong or missing:
        faults = [f"lacks {', '.join(missing[:3])}"] if missing else []
        faults += [f"has other shapes: {', '.join(wrong[:3])}"] if wrong else []
        raise UserError(f"{where} does not fit {type(encoder.trunk).__name__.lower()}: it {' and '.join(faults)}")
    with torch.no_grad():
        encoder.load_state_dict(own, strict=False)


def _own(wanted: dict[str, Tensor], tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The tensors under the encoder's own names: as they are, or of one encoder of a run."""
    first = next((k for k in wanted if k.startswith("trunk.")), "")
    starts = sorted(
        {k.removesuffix(first) for k in tensors if k.endswith(first)}, key=lambda s: (s != "encoder.", len(s))
    )
    for start in starts:
        if all(start + k in tensors for k in wanted):
            return {k: tensors[start + k] for k in wanted}
    return None


def _words(wanted: dict[str, Tensor], tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """The vectors of words of a foreign checkpoint, as many as the tokenizer has; nothing where the input has none."""
    name = "embed.words.weight"
    if name not in wanted:
        return {}
    found = [v for k, v in tensors.items() if k.endswith(".weight") and k.split(".")[-2] in WORDS]
    if not found:
        raise UserError(f"{where} holds no vectors of words ({', '.join(WORDS)})")
    if len(found[0]) < len(wanted[name]):
        raise UserError(f"{where} has vectors of {len(found[0])} tokens; the tokenizer knows {len(wanted[name])}")
    return {name: found[0][: len(wanted[name])].float()}
