"""Checkpoints of other libraries under a network's own parameter names, and what does not fit."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from modicum.core.errors import UserError


def translated(
    network: nn.Module, tensors: dict[str, Tensor], rename: Callable[[str], str | None], source: str
) -> dict[str, Tensor]:
    """`tensors` under the names of `network`'s state, each of which must be there in its shape; else a UserError.

    `rename` gives the own name of a foreign one, or None where it belongs to a head; what it does not know it returns.
    """
    own = network.state_dict()
    out = {name: tensor for key, tensor in tensors.items() if (name := rename(key)) is not None}
    counts = {k: v for k, v in own.items() if k.endswith("num_batches_tracked")}  # older checkpoints lack them
    missing = [name for name in own if name not in out and name not in counts]
    strange = [name for name in out if name not in own]
    shapes = [
        f"{name} {tuple(out[name].shape)}, wanted {tuple(own[name].shape)}"
        for name in own
        if name in out and out[name].shape != own[name].shape
    ]
    faults = [
        f"it lacks {_few(missing)}" if missing else "",
        f"it has {_few(strange)}, unknown here" if strange else "",
        f"other shapes: {_few(shapes)}" if shapes else "",
    ]
    if any(faults):
        raise UserError(
            f"the checkpoint does not fit this {type(network).__name__.lower()} as a {source}: "
            f"{'; '.join(filter(None, faults))}: build the network with the checkpoint's sizes and input"
        )
    return {**counts, **out}


def _few(words: list[str]) -> str:
    return ", ".join(words[:3]) + (f" and {len(words) - 3} more" if len(words) > 3 else "")
