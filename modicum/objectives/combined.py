"""`combined`: a weighted sum of objectives that share one encoder, written `masked(ratio=.5) + .1*vicreg()`."""

from __future__ import annotations

from collections import Counter
from typing import Any, final

import torch
from torch import Generator, Tensor, nn

from modicum.core.errors import UserError
from modicum.core.spec import build, hinted, text_of
from modicum.core.types import Batch, Corrupted, Objective
from modicum.nn.encoder import Tower

NEAREST = ("spread", "projected", "rank")
"""Measures of which several terms' lowest, the nearest to a collapse, is told; others go by their term's name then."""


@final
class Combined(Objective):
    """Weighted sums of objectives on one encoder, written masked() + .1*vicreg(): `terms` are (weight, spec) each.

    Each term draws its own corruption of the batch and runs the encoder on it; their losses are logged by name, and of
    the measures of collapse the lowest. `context` holds what the data decides for them, such as the hints on views,
    under the user's own options.
    """

    def __init__(
        self, encoder: Tower, terms: tuple[tuple[float, dict[str, Any]], ...], context: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        if not terms or any(not weight > 0 for weight, _ in terms):
            raise UserError(f"a sum wants weights above 0; got {text_of({'sum': terms})}")
        self.encoder, self.terms, self.context = encoder, terms, context or {}
        given: dict[str, Any] = {**self.context, "encoder": encoder}
        given["views"] = hinted(self.context.get("views", {}))
        self.parts = nn.ModuleList(build("objective", spec, **given) for _, spec in terms)
        self.uses_labels = any(part.uses_labels for part in self.parts)
        if any(part.roles for part in self.parts):
            raise UserError(
                f"{text_of({'sum': terms})}: pairs and given triplets have batches of their own: train them alone"
            )

        self.register_state_dict_post_hook(_once)
        self.register_load_state_dict_pre_hook(_again)
        names = [str(spec["name"]) for _, spec in terms]
        self.labels = [f"{n} {k + 1}" if names.count(n) > 1 else n for k, n in enumerate(names)]

    def __getattr__(self, name: str) -> Any:
        """`sample` and `reconstruct` of the one term that has it."""
        if name in ("sample", "reconstruct"):
            able = [part for part in self.parts if hasattr(part, name)]
            if len(able) == 1:
                return getattr(able[0], name)
        return super().__getattr__(name)

    def note(self) -> str:
        return "; ".join(filter(None, (part.note() for part in self.parts)))  # type: ignore[operator]

    def corrupt(self, batch: Batch, rng: Generator) -> Corrupted:
        return {str(k): part.corrupt(batch, rng) for k, part in enumerate(self.parts)}  # type: ignore[operator]

    def forward(self, corrupted: Corrupted) -> tuple[Tensor, dict[str, Tensor]]:
        outs = [part(corrupted[str(k)]) for k, part in enumerate(self.parts)]
        loss = sum(weight * own for (weight, _), (own, _) in zip(self.terms, outs, strict=True))
        metrics: dict[str, Tensor] = {}
        shared = Counter(key for _, found in outs for key in found)
        for label, (own, found) in zip(self.labels, outs, strict=True):
            metrics[f"{label} loss"] = own.detach()
            for key, value in found.items():
                if key in NEAREST:
                    metrics[key] = torch.minimum(metrics.get(key, value), value)
                else:
                    metrics[f"{label} {key}" if shared[key] > 1 else key] = value
        assert isinstance(loss, Tensor)
        return loss, metrics

    def after_step(self, step: int) -> None:
        for part in self.parts:
            part.after_step(step)  # type: ignore[operator]

    def encoders(self) -> dict[str, Tower]:
        return {"encoder": self.encoder}


def _shared(module: nn.Module, prefix: str) -> list[str]:
    """Where the terms name the encoder that is the sum's own."""
    return [f"{prefix}parts.{k}.encoder." for k in range(len(module.terms))]  # type: ignore[arg-type]


def _once(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """The shared encoder is written once."""
    for key in [key for key in state if key.startswith(tuple(_shared(module, prefix)))]:
        del state[key]


def _again(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """And read for every term."""
    own = {k.removeprefix(f"{prefix}encoder."): v for k, v in state.items() if k.startswith(f"{prefix}encoder.")}
    for start in _shared(module, prefix):
        state.update({start + key: value for key, value in own.items()})
