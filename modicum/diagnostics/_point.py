"""What is kept of a cell's models at one epoch: sums over draws in place of the scores of every draw and test row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.special import logsumexp

from modicum.core.errors import UserError
from modicum.maths.decomposition import Decomposition, Loss, Sums
from modicum.maths.intervals import Interval, MeanSquares, bounds


class Scores:
    """The interval of `crossed` for scores (draws, rows) that come a draw at a time.

    `means` (draws,) are over all rows, `halves` (draws, 2) over the even and the odd ones. One sum a row is held until
    the last draw has come, and nothing of a row after it.
    """

    def __init__(self, draws: int) -> None:
        self.means, self.halves = np.full(draws, np.nan), np.full((draws, 2), np.nan)
        self._sum: np.ndarray | None = None
        self._square, self._binary = 0.0, True
        self._interval: Interval | None = None

    def add(self, draw: int, values: np.ndarray) -> None:
        """Take in the scores (rows,) of a draw. UserError: one that is not finite."""
        if not np.isfinite(values).all():
            raise UserError(
                f"the model of draw {draw} gives outputs that are not finite: its training diverged (lower --lr), or "
                "its input holds NaN"
            )
        self.means[draw], self.halves[draw] = values.mean(), (values[::2].mean(), values[1::2].mean())
        self._sum = values.astype(np.float64) if self._sum is None else self._sum + values
        self._square += float(np.square(values).sum())
        self._binary &= bool(((values == 0) | (values == 1)).all())
        if not np.isnan(self.means).any():
            self._interval, self._sum = self._crossed(self._sum), None

    def _crossed(self, over: np.ndarray) -> Interval:
        draws, rows = len(self.means), len(over)
        mean = float(self.means.mean())
        between = rows * float(np.square(self.means - mean).sum()), draws * float(np.square(over / draws - mean).sum())
        left = max(self._square - draws * rows * mean**2 - sum(between), 0.0)
        free = max(draws - 1, 1), rows - 1
        squares = MeanSquares(mean, between[0] / free[0], between[1] / free[1], left / (free[0] * free[1]))
        low, high = bounds(squares, draws, rows, 0.95, binary=self._binary)
        return Interval(mean, float(low), float(high))

    @property
    def interval(self) -> Interval:
        """The mean over draws and rows with its 95 % interval, once all draws have come."""
        assert self._interval is not None
        return self._interval


class Point:
    """A cell at an epoch: test and training scores and, where they are measured, bias, variance and weights.

    Of the arrays (draws,): losses are cross-entropies and errors shares of wrong rows, or both the squared errors of
    numbers. `parts`: decompositions by loss, without their rows; empty where they are not measured.
    """

    def __init__(self, draws: int) -> None:
        self.loss, self.error = Scores(draws), Scores(draws)
        self.train_loss, self.train_error, self.norm, self.effective = np.full((4, draws), np.nan)
        self.parameters = 0
        self.parts: dict[Loss, Decomposition] = {}
        self._sums: Sums | None = None

    def read(self, draw: int, z: np.ndarray, y: np.ndarray, classes: int) -> None:
        """Take in the test outputs (n, c) of a draw."""
        loss, error = scores(z, y, classes)
        self.loss.add(draw, loss)
        self.error.add(draw, error)

    def decompose(self, draw: int, z: np.ndarray, y: np.ndarray, classes: int) -> None:
        """Take in the same for bias and variance, which are known when all draws have come; sums are dropped then."""
        self._sums = self._sums or Sums(classes)
        self._sums.add(z[None], [draw])
        if self._sums.models < len(self.norm):
            return
        kinds: tuple[Loss, ...] = ("squared", "cross-entropy") if classes else ("squared",)
        self.parts = {kind: replace(self._sums.decompose(y, kind), rows={}) for kind in kinds}
        self._sums = None


def scores(z: np.ndarray, y: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Loss and error (n,) of logits (n, c), or twice the squared error of numbers (n, 1)."""
    if not classes:
        square = np.square(z[:, 0].astype(np.float64) - y)
        return square, square
    z = z.astype(np.float64)
    return logsumexp(z, axis=1) - z[np.arange(len(z)), y], (z.argmax(1) != y).astype(np.float64)
