"""`triplet`: an anchor is nearer to its like than to another (FaceNet, Schroff et al. 2015; Hermans et al. 2017)."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from modicum.core.errors import UserError, unknown
from modicum.core.types import Batch, Corrupted, Objective
from modicum.maths.losses import spread
from modicum.maths.triplet import HOW, mine, triplet
from modicum.nn.encoder import Tower
from modicum.nn.layers import perceptron
from modicum.objectives._labels import classes


@final
class Triplet(Objective):
    """Triplet loss of projections `hidden` -> `out` of length 1, with a `margin` (None: soft, log(1 + exp)).

    The triplets come from the user's file (--triplets FILE with anchor, positive, negative), or are found by the
    labels: for each labelled row one of `mining` random, semi-hard or hard. Rows are seen through `views`: options of
    the modality's views.
    """

    def __init__(
        self,
        encoder: Tower,
        margin: float | None = 0.2,
        mining: str | None = None,
        hidden: int = 256,
        out: int = 128,
        views: dict[str, Any] | None = None,
        from_file: bool = False,
    ) -> None:
        super().__init__()
        if mining is not None and mining not in HOW:
            raise unknown("mining", mining, HOW)
        if mining is not None and from_file:
            raise UserError(
                f"triplet(mining='{mining}') chooses among labelled rows; --triplets gives them: leave it out"
            )
        if min(hidden, out) < 1 or (margin is not None and margin < 0):
            raise UserError(
                f"triplet wants margin >= 0 or None, hidden and out of at least 1; got {margin=}, {hidden=}, {out=}"
            )
        self.encoder, self.margin, self.mining, self.hidden, self.out = encoder, margin, mining, hidden, out
        self.views, self.from_file = views or {}, from_file
        self.uses_labels = not from_file
        self.roles = ("anchor", "positive", "negative") if from_file else ()
        self.transform = encoder.input.views(**self.views)
        self.head = perceptron([encoder.dim, hidden, out])

    def corrupt(self, batch: Batch, rng: Generator) -> Corrupted:
        seen = self.transform({k: v for k, v in batch.items() if k != "target"}, rng)
        if self.from_file:
            return {"views": seen}
        target = classes(batch, "triplet")
        return {
            "views": seen,
            "target": target,
            "drawn": torch.rand(len(target), 2, generator=rng, device=target.device),
        }

    def forward(self, corrupted: Corrupted) -> tuple[Tensor, dict[str, Tensor]]:
        pooled = self.encoder(corrupted["views"]).pooled
        z = F.normalize(self.head(pooled).float(), dim=1)
        metrics = {**spread(pooled[:128]), "projected": spread(z[:128])["spread"]}
        if self.from_file:
            anchor, positive, negative = z.view(3, -1, self.out)
            loss = triplet(anchor, positive, negative, self.margin)
            return loss, {"triplets": torch.ones_like(loss.detach()), **metrics}
        known = corrupted["target"] >= 0
        z, labels, drawn = z[known], corrupted["target"][known], corrupted["drawn"][known]
        found = mine(z, labels, self.mining or "semi-hard", drawn)
        # Anchors without a fitting negative count 0, so that the loss is a mean over the labelled rows.
        share = len(found.anchor) / max(1, len(z))
        loss = triplet(z[found.anchor], z[found.positive], z[found.negative], self.margin) * share
        return loss + 0 * z.sum(), {"triplets": z.new_tensor(share), **metrics}

    def encoders(self) -> dict[str, Tower]:
        return {"encoder": self.encoder}
