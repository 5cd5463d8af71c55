"""What many models are trained on: `Work`, and `Member`, how one of them differs from the others."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from modicum.core import seeds
from modicum.core.errors import UserError, Warned, unknown
from modicum.core.types import Batch, Embed, Input, Source, Tokens
from modicum.nn.encoder import tower
from modicum.objectives.supervised import Supervised
from modicum.training.optim import cosine

SCHEDULES = ("cosine", "constant")


@dataclass(frozen=True)
class Member:
    """One model: the numbers of the `rows` it trains on, their `targets` (default: the work's), and its settings.

    `encoder` is the spec of a trunk, `seed` that of its initialisation, `order` that of the order of its batches
    (default `seed`), `schedule` the course of its rate: cosine (with warm-up) or constant.
    """

    rows: np.ndarray
    targets: np.ndarray | None = None
    encoder: str = "mlp(width=64, depth=1, norm='none')"
    seed: int = 0
    order: int | None = None
    lr: float = 1e-3
    weight_decay: float = 0.0
    batch: int = 128
    steps: int = 1000
    schedule: str = "cosine"

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, SCHEDULES)
        if len(self.rows) < 1 or self.batch < 1 or self.steps < 1 or self.lr <= 0 or self.weight_decay < 0:
            raise UserError(
                "a member wants at least one row, batch and steps of at least 1, lr > 0 and weight_decay >= 0; got "
                f"{len(self.rows)} rows, {self.batch=}, {self.steps=}, {self.lr=}, {self.weight_decay=}"
            )
        if self.targets is not None and len(self.targets) != len(self.rows):
            raise UserError(f"a member has {len(self.rows)} rows and {len(self.targets)} targets: one a row is wanted")

    @property
    def shuffle(self) -> int:
        """The seed of the order of its batches."""
        return self.seed if self.order is None else self.order

    @cached_property
    def key(self) -> tuple[str, int, int]:
        """Members of the same key see the same batches of rows."""
        digest = hashlib.blake2b(np.ascontiguousarray(self.rows, np.int64).data, digest_size=12).hexdigest()
        return digest, self.shuffle, min(self.batch, len(self.rows))


@dataclass(frozen=True)
class Work:
    """The rows that members train on and are read on, what is predicted, and with which optimizer.

    targets (n,): class numbers where `classes` counts them, else numbers (`classes=0`, squared error in units of their
    spread). `optimizer`: adamw or sgd, with `momentum`; `clip` bounds each member's own gradient norm.
    """

    input: Input
    source: Source
    targets: np.ndarray
    classes: int
    optimizer: str = "adamw"
    momentum: float = 0.9
    clip: float | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.optimizer not in ("adamw", "sgd"):
            raise unknown("optimizer", self.optimizer, ["adamw", "sgd"])
        if getattr(self.source, "windows", None) is not None:
            words = (
                "rows longer than the encoder takes are read by their first window alone when many models are trained"
            )
            warnings.warn(f"{words}: give --run with a pre-trained encoder to use all of them", Warned, stacklevel=3)

    @classmethod
    def of_features(cls, x: np.ndarray, targets: np.ndarray, classes: int, **more: Any) -> Work:
        """Work on plain features (n, p), such as those of a frozen encoder, as they are."""
        if not np.isfinite(x).all():
            row, column = np.argwhere(~np.isfinite(x))[0]
            raise UserError(f"feature {column} of row {row} is {x[row, column]}: every feature must be finite")
        return cls(cast(Input, Vectors(x.shape[1])), Matrix(x), targets, classes, **more)

    def read_as(self, **changes: Any) -> Work:
        return replace(self, **changes)

    @cached_property
    def scale(self) -> tuple[float, float]:
        """Mean and standard deviation of numbers to predict."""
        known = self.targets[np.isfinite(self.targets)]
        return (0.0, 1.0) if self.classes else (float(known.mean()), float(known.std()) or 1.0)

    def build(self, member: Member) -> Supervised:
        """The member's model, as it begins."""
        shift, scale = self.scale
        task = {"outputs": self.classes, "task": "classes"} if self.classes else {"outputs": 1, "task": "numbers"}
        with seeds.forked(member.seed, "init"):
            made = Supervised(tower(self.input, member.encoder), shift=shift, scale=scale, **task)  # type: ignore[arg-type]
        return made.to(self.device, self.dtype)

    def factor(self, member: Member) -> Any:
        """The member's schedule: step -> factor of its rate."""
        return _cosine(member.steps) if member.schedule == "cosine" else constant


def constant(step: int) -> float:
    """A rate that stays."""
    del step
    return 1.0


_COSINES: dict[int, Any] = {}


def _cosine(steps: int) -> Any:
    """One function a number of steps, so that members of one schedule are known to have it in common."""
    return _COSINES.setdefault(steps, cosine(steps))


class Matrix:
    """Rows of a matrix (n, p) as a source."""

    def __init__(self, x: np.ndarray) -> None:
        self.x, self.size = torch.from_numpy(np.ascontiguousarray(x)), len(x)

    def rows(self, index: np.ndarray) -> Batch:
        return {"x": self.x[torch.from_numpy(np.ascontiguousarray(index))]}


class _AsIs(Embed):
    """Features (b, p) as one token."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim, self.grid = dim, (1,)

    def forward(self, batch: Batch) -> Tokens:
        x: Tensor = batch["x"]
        return Tokens(x.unsqueeze(1), None, self.grid)


class Vectors:
    """The input of plain features: nothing is learned of them and nothing scaled."""

    modality = "vectors"

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def embed(self) -> Embed:
        return _AsIs(self.dim)
