"""How all pairs of rows of two matrices are gone through in blocks, and a gradient that has none itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Blocked = Iterator[tuple[slice, slice, Tensor]]

# What is summed stays below exp(55) a term: 2^20 of them are far below the largest float32, and the gradient over the
# sum, exp(-70) times one over the batch, far above the smallest. A sum of at least exp(-60) loses nothing that float32
# could hold by the terms below exp(-87) that vanish.
HIGH, LOW = 55.0, -60.0


class Blocks:
    """How the pairs of rows of x and y are divided into blocks; with y None those below the diagonal are left out.

    One call has one, forward and backward. `shift` is subtracted from all s, so that no exponential overflows;
    `exact`, set in forward, says that others then vanished which matter.
    """

    def __init__(
        self, x: Tensor, y: Tensor | None, groups: tuple[Tensor, Tensor] | None = None, rivals: bool = False
    ) -> None:
        self.symmetric, self.groups, self.rivals, self.exact = y is None, groups, rivals, False
        other = x if y is None else y
        self.rows, self.columns = _slices(x), _slices(other)
        self.room = max(s.stop - s.start for s in self.rows) * max(s.stop - s.start for s in self.columns)
        self.norms = [torch.linalg.vector_norm(z.detach(), dim=1).amax() for z in (x, other)]
        self.shift, self.safe = 0.0, True
        self.ends = None
        if groups and len(self.rows) * len(self.columns) > 1:
            self.ends = [_ends(g, s) for g, s in zip(groups, (self.rows, self.columns), strict=True)]

    def within(self, scale: Tensor) -> Blocks:
        """Find the shift, and whether it alone makes everything safe."""
        bound = float(self.norms[0] * self.norms[1] * scale.detach().abs())
        self.shift = max(0.0, bound - HIGH)
        self.safe = -bound >= self.shift + LOW
        return self

    def products(self, x: Tensor, y: Tensor, scale: Tensor) -> Blocked:
        """The blocks of scale · x yᵀ with their rows and columns, each in the same buffer."""
        room = x.new_empty(self.room)
        # Scaled before the product: what rounding does to a row is then the same for all it is compared with, in x xᵀ
        # also where it is the column.
        if self.symmetric:
            x = y = x * scale.sqrt()
        for i in self.rows:
            scaled = x[i] if self.symmetric else x[i] * scale
            for j in self.columns:
                if not self.symmetric or j.start >= i.start:
                    yield i, j, torch.mm(scaled, y[j].T, out=fit(room, i, j))

    def counts_columns(self, i: slice, j: slice) -> bool:
        """Whether the columns of a block are not its rows over again, as on the diagonal of x xᵀ."""
        return not self.symmetric or i != j

    def same(self, i: slice, j: slice) -> Tensor | None:
        """Which pairs of a block are of one group; None where none is."""
        if self.groups is None:
            return None
        if self.ends is not None:
            (low, high), (first, last) = self.ends[0][i.start], self.ends[1][j.start]
            if high < first or last < low:
                return None
        return self.groups[0][i].unsqueeze(1) == self.groups[1][j]

    def masks(self, i: slice, j: slice) -> tuple[Tensor | None, Tensor | None]:
        """Which pairs of a block are left out of the sums, and which are pulled; None where none is."""
        same, itself = self.same(i, j), None
        if self.symmetric and i == j:
            itself = torch.eye(i.stop - i.start, dtype=torch.bool, device=self.norms[0].device)
        pulled = same if same is None or itself is None else same & ~itself
        return itself if self.rivals else same, pulled


def fit(room: Tensor, i: slice, j: slice) -> Tensor:
    """The beginning of a buffer as a block of rows i and columns j."""
    n, m = i.stop - i.start, j.stop - j.start
    return room[: n * m].view(n, m)


def _slices(z: Tensor) -> list[slice]:
    """Blocks that stay in the cache of a processor, or fill a GPU."""
    side = (256 if len(z) <= 2048 else 512) if z.device.type == "cpu" else 4096
    return [slice(k, min(k + side, len(z))) for k in range(0, len(z), side)]


def _ends(group: Tensor, slices: list[slice]) -> dict[int, tuple[int, int]]:
    """First and last group of each slice, by where it starts."""
    at = [k for s in slices for k in (s.start, s.stop - 1)]
    found = group[torch.tensor(at, device=group.device)].tolist()
    return {s.start: (found[2 * k], found[2 * k + 1]) for k, s in enumerate(slices)}


class Final(torch.autograd.Function):
    """A gradient that depends on `of`, and says so when it is asked for its own."""

    @staticmethod
    def forward(gradient: Tensor, *of: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError(
            "the blockwise contrastive losses are differentiable only once: they have no second derivative"
        )

    @staticmethod
    def all(gradients: Sequence[Tensor | None], of: tuple[Tensor, ...]) -> list[Tensor | None]:
        return [None if g is None else Final.apply(g, *of) for g in gradients]
