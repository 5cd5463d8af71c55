"""Stop or warn when training has gone wrong, with the likely cause and what to change."""

from __future__ import annotations

import math
import warnings
from typing import Any

from modicum.core.errors import UserError, Warned


class Diverged(UserError):
    """Training cannot go on: the loss is not finite, or the embeddings collapsed."""


class Guard:
    """Watches the logged rows {"step", "loss", "lr", "rank", "spread", "projected", "triplets"} of a run of `steps`."""

    def __init__(self, steps: int) -> None:
        self.steps, self.warned = steps, False

    def check(self, row: dict[str, Any]) -> None:
        """Raise `Diverged` for a loss that is not finite, or features or projections that are the same for every row.

        The latter once the first tenth is over. Warns, once a run, where features vary along hardly more than one
        direction after a quarter of it.
        """
        step = row["step"]
        if not math.isfinite(row["loss"]):
            raise Diverged(
                f"the loss is {row['loss']} at step {step} (rate {row['lr']:.2g}). Most likely the learning rate is "
                f"too high: try --lr {row['lr'] / 10:.1g}; else look for extreme values in the data"
            )
        if step < self.steps / 10 or "spread" not in row:
            return
        if row["spread"] < 1e-3 or not math.isfinite(row["spread"]):
            raise Diverged(
                f"the embeddings collapsed at step {step}: every row maps to nearly the same vector (spread "
                f"{row['spread']:.2g}, rank {row['rank']:.2f}). Lower --lr, weaken the views (a crop that leaves too "
                "little to tell rows apart), or raise the batch"
            )
        if row.get("projected", 1.0) < 1e-2:
            raise Diverged(
                f"the projections collapsed at step {step}: what the loss compares is nearly the same for every row "
                f"(spread {row['projected']:.2g}), so nothing more is learned. Lower --lr, raise the batch, or give "
                "the objective more to keep rows apart (vicreg: variance, covariance; byol, dino: a momentum nearer 1; "
                "triplet: mining='semi-hard'; pairs: a larger margin)"
            )
        # Hard triplets first draw everything together and may come apart again; half the training is patience enough.
        if "triplets" in row and row.get("projected", 1.0) < 0.1 and step >= self.steps / 2:
            raise Diverged(
                f"the triplets are stuck at step {step}: all distances are nearly equal and far below a margin (spread "
                f"{row['projected']:.2g}), so the loss stays at it. Use mining='semi-hard' or lower --lr"
            )
        if row["rank"] < 1.5 and step >= self.steps / 4 and not self.warned:
            self.warned = True
            warnings.warn(
                f"step {step}: the embeddings vary along few directions (rank {row['rank']:.2f}); a collapse may be "
                "near: lower --lr or weaken the views",
                Warned,
                stacklevel=2,
            )
