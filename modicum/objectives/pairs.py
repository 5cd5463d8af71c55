"""`pairs`: rows that the user calls similar come together, others apart (Hadsell et al. 2006)."""

from __future__ import annotations

from typing import Any, final

from torch import Generator, Tensor

from modicum.core.errors import UserError
from modicum.core.types import Batch, Corrupted, Objective
from modicum.maths.losses import margin_pairs, spread
from modicum.nn.encoder import Tower
from modicum.nn.layers import perceptron


@final
class Pairs(Objective):
    """Contrastive loss with a `margin` between projections `hidden` -> `out` of the pairs in the user's file.

    --pairs FILE has the columns a, b and similar (1 or 0). Rows are seen through `views`: options of the modality's
    views.
    """

    roles = ("a", "b")

    def __init__(
        self,
        encoder: Tower,
        margin: float = 1.0,
        hidden: int = 256,
        out: int = 128,
        views: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if margin <= 0 or min(hidden, out) < 1:
            raise UserError(f"pairs wants margin > 0, hidden and out of at least 1; got {margin=}, {hidden=}, {out=}")
        self.encoder, self.margin, self.hidden, self.out, self.views = encoder, margin, hidden, out, views or {}
        self.transform = encoder.input.views(**self.views)
        self.head = perceptron([encoder.dim, hidden, out])

    def corrupt(self, batch: Batch, rng: Generator) -> Corrupted:
        if "similar" not in batch:
            raise UserError("pairs needs the pairs: --pairs FILE with the columns a, b and similar (1 or 0)")
        rows = {k: v for k, v in batch.items() if k not in ("target", "similar")}
        return {"views": self.transform(rows, rng), "similar": batch["similar"]}

    def forward(self, corrupted: Corrupted) -> tuple[Tensor, dict[str, Tensor]]:
        pooled = self.encoder(corrupted["views"]).pooled
        z = self.head(pooled)
        a, b = z.view(2, -1, self.out)
        similar = corrupted["similar"].view(2, -1)[0]  # every row of a pair has it
        metrics = {**spread(pooled[:128]), "projected": spread(z[:128])["spread"]}
        return margin_pairs(a, b, similar, self.margin), metrics

    def encoders(self) -> dict[str, Tower]:
        return {"encoder": self.encoder}
