"""`supervised`: classes by cross-entropy or numbers by squared error, on pooled features."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from modicum.core.errors import UserError, unknown
from modicum.core.types import Batch, Corrupted, Objective
from modicum.maths.losses import spread
from modicum.nn.encoder import Tower


@final
class Supervised(Objective):
    """A linear head of `outputs` on an encoder: task "classes" (logits) or "numbers" (outputs·scale + shift).

    The batch holds `target` (b,) long or float. `views`: options of the modality's views; None trains on the rows as
    they are. Predicted numbers stay within `low` and `high`. Class targets are smoothed by `smoothing`. Numbers of
    several tasks, `target` (b, outputs) with NaN where missing, have a shift, scale, low and high each; the loss is the
    mean over what is known; rows of the class -1 are unknown too.
    """

    uses_labels = True
    only_asked = ("views",)

    def __init__(
        self,
        encoder: Tower,
        outputs: int = 2,
        task: str = "classes",
        smoothing: float = 0.0,
        shift: float | tuple[float, ...] = 0.0,
        scale: float | tuple[float, ...] = 1.0,
        views: dict[str, Any] | None = None,
        low: float | tuple[float, ...] | None = None,
        high: float | tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        if task not in ("classes", "numbers"):
            raise unknown("task", task, ["classes", "numbers"])
        if outputs < 1 or not 0 <= smoothing < 1:
            raise UserError(f"supervised wants outputs >= 1 and 0 <= smoothing < 1; got {outputs} and {smoothing}")
        self.encoder, self.outputs, self.task, self.smoothing = encoder, outputs, task, smoothing
        self.shift, self.scale, self.views = shift, scale, views
        self.low, self.high = low, high
        self.transform = None if views is None else encoder.input.views(**views)
        self.head = nn.Linear(encoder.dim, outputs)
        # A zero head starts from the mean prediction, whatever the scale of the features.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def corrupt(self, batch: Batch, rng: Generator) -> Corrupted:
        return self.transform(batch, rng) if self.transform else batch

    def forward(self, corrupted: Corrupted) -> tuple[Tensor, dict[str, Tensor]]:
        batch = dict(corrupted)
        if "target" not in batch:
            raise UserError("supervised training needs labels: name their column with --label")
        target = batch.pop("target")
        pooled = self.encoder(batch).pooled
        out = self.head(pooled)
        if self.task == "classes":
            known = (target >= 0).sum().clamp(min=1)  # beside other objectives, few rows have a label
            loss = (
                F.cross_entropy(out, target, label_smoothing=self.smoothing, ignore_index=-1, reduction="sum") / known
            )
            return loss, {**spread(pooled[:128]), "accuracy": (out.detach().argmax(1) == target).sum() / known}
        true = (target.view(len(out), -1) - out.new_tensor(self.shift)) / out.new_tensor(self.scale)
        known = ~true.isnan()
        loss = (out - true.nan_to_num()).square().mul(known).sum() / known.sum().clamp(min=1)
        return loss, spread(pooled[:128])

    def predict(self, batch: Batch) -> Tensor:
        """Probabilities (b, outputs) of the classes, or numbers (b,), of tasks (b, outputs), in the targets' units."""
        return self.decide(self.encoder(batch).pooled)

    def decide(self, pooled: Tensor) -> Tensor:
        """`predict`, of pooled features (b, d)."""
        out = self.head(pooled)
        if self.task == "numbers" and self.outputs > 1:
            return self._bounded(out * out.new_tensor(self.scale) + out.new_tensor(self.shift))
        return out.softmax(1) if self.task == "classes" else self._bounded(out.squeeze(1) * self.scale + self.shift)

    def _bounded(self, numbers: Tensor) -> Tensor:
        low, high = (numbers.new_tensor(b) if isinstance(b, tuple) else b for b in (self.low, self.high))
        return numbers if low is None and high is None else numbers.clamp(low, high)  # type: ignore[arg-type]

    def encoders(self) -> dict[str, Tower]:
        return {"encoder": self.encoder}


def fold_scaling(weight: Tensor, bias: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """The linear map on raw features that equals (weight, bias) on features standardised by mean and std."""
    scaled = weight / std
    return scaled, bias - torch.mv(scaled, mean)
