"""Stop or warn when training has gone wrong, with the likely cause and what to change."""

from __future__ import annotations

import math
import warnings
from typing import Any

from modicum.core.errors import UserError, Warned


class Diverged(UserError):
    """Training cannot go on: the loss is not finite, or the embeddings collapsed."""


def check(row: dict[str, Any], steps: int) -> None:
    """Check a logged row {"step", "loss", "rank", "spread", "lr"} of a run of `steps`.

    Raises `Diverged` for a loss that is not finite, or for features that are the same for every row once the first
    tenth is over; warns where they vary along hardly more than one direction.
    """
    step = row["step"]
    if not math.isfinite(row["loss"]):
        raise Diverged(
            f"the loss is {row['loss']} at step {step} (rate {row['lr']:.2g}). Most likely the learning rate is too "
            f"high: try --lr {row['lr'] / 10:.1g}; else look for extreme values in the data"
        )
    if step < steps / 10 or "spread" not in row:
        return
    if row["spread"] < 1e-3 or not math.isfinite(row["spread"]):
        raise Diverged(
            f"the embeddings collapsed at step {step}: every row maps to nearly the same vector (spread "
            f"{row['spread']:.2g}, rank {row['rank']:.2f}). Lower --lr, weaken the views (a crop that leaves too "
            "little to tell rows apart), or raise the batch"
        )
    if row["rank"] < 1.5 and step >= steps / 4:
        warnings.warn(
            f"step {step}: the embeddings vary along few directions (rank {row['rank']:.2f}); a collapse may be near: "
            "lower --lr or weaken the views",
            Warned,
            stacklevel=2,
        )
