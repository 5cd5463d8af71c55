"""Patches: neighbouring tokens of a grid joined into one, and back."""

from __future__ import annotations

import math

from torch import Tensor, nn

from modicum.core.errors import UserError

FEW, MANY = 64, 1024
"""The patches aimed at, and the most tokens that are taken one by one where no patch divides an image."""


def coarse(grid: tuple[int, ...], patch: int) -> tuple[int, ...]:
    """The grid of patches of `patch` tokens a side; UserError where they do not divide the grid."""
    if patch < 1 or not grid or any(side < 1 or side % patch for side in grid):
        raise UserError(
            f"patches of {patch} tokens a side do not divide the grid {tuple(grid)}: wanted a common divisor of its "
            f"sides, one of {divisors(grid)}"
        )
    return tuple(side // patch for side in grid)


def divisors(grid: tuple[int, ...]) -> list[int]:
    """The sides that a patch can have on the grid."""
    common = math.gcd(*grid)
    return [k for k in range(1, common + 1) if common % k == 0]


def default_patch(grid: tuple[int, ...], largest: int | None = None) -> int:
    """A patch's side: 1 for a sequence, else the smallest that leaves at most 64, powers of two first; or `largest`."""
    if len(grid) == 1:
        return 1
    sides = sorted(divisors(grid), key=lambda k: (k & (k - 1) != 0, k))
    counts = {k: math.prod(grid) // k ** len(grid) for k in sides}
    fit = [k for k in sides if counts[k] >= 4 and (counts[k] <= FEW or k == largest)]
    if not fit and math.prod(grid) > MANY:
        raise UserError(
            f"no patch divides the grid {grid} into 4 to {FEW} patches: give images another size, or patch=..., one of "
            f"{divisors(grid)}"
        )
    return fit[0] if fit else 1


class Patches(nn.Module):
    """Tokens (b, t, dim) on `grid` -> one linear map a patch (b, n, width), row-major on `grid_out`; no overlap.

    Equal to a convolution whose kernel and stride are `patch` (Dosovitskiy et al. 2021). `patch` counts tokens a side.
    """

    def __init__(self, dim: int, grid: tuple[int, ...], patch: int, width: int) -> None:
        super().__init__()
        self.dim, self.grid, self.patch, self.width = dim, tuple(grid), patch, width
        self.grid_out = coarse(grid, patch)
        self.linear = nn.Linear(dim * patch ** len(grid), width)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != (math.prod(self.grid), self.dim):
            raise UserError(
                f"wanted tokens (b, {math.prod(self.grid)}, {self.dim}) on grid {self.grid}, as the network was built "
                f"for; got {tuple(x.shape)}"
            )
        if self.patch == 1:
            return self.linear(x)
        axes = len(self.grid)
        split = [part for side in self.grid_out for part in (side, self.patch)]
        order = [0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1]
        return self.linear(x.reshape(-1, *split, self.dim).permute(order).reshape(len(x), math.prod(self.grid_out), -1))

    def real(self, mask: Tensor) -> Tensor:
        """Which patches hold a real token, given which tokens are real: (b, t) -> (b, n)."""
        split = [part for side in self.grid_out for part in (side, self.patch)]
        return mask.reshape(-1, *split).any(tuple(range(2, 2 * len(self.grid) + 1, 2))).flatten(1)

    @staticmethod
    def from_conv(weight: Tensor) -> Tensor:
        """The weight of `linear` that equals a convolution's weight (width, dim, *kernel)."""
        return weight.movedim(1, -1).flatten(1)


class Unpatch(nn.Module):
    """The way back: patches (b, n, width) -> tokens (b, t, dim) on `grid`, one linear map a patch."""

    def __init__(self, width: int, grid: tuple[int, ...], patch: int, dim: int) -> None:
        super().__init__()
        self.width, self.grid, self.patch, self.dim = width, tuple(grid), patch, dim
        self.grid_in = coarse(grid, patch)
        self.linear = nn.Linear(width, dim * patch ** len(grid))

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        if self.patch == 1:
            return x
        axes = len(self.grid)
        order = [0, *(k for side in range(axes) for k in (1 + side, 1 + axes + side)), 2 * axes + 1]
        split = x.reshape(-1, *self.grid_in, *[self.patch] * axes, self.dim)
        return split.permute(order).reshape(len(x), math.prod(self.grid), self.dim)


def outwards(width: int, coarse: tuple[int, ...], fine: tuple[int, ...], dim: int) -> nn.Module | None:
    """From tokens (b, n, width) on a coarse grid to tokens (b, t, dim) on a finer one of square cells; else None."""
    if coarse == fine:
        return nn.Identity() if width == dim else nn.Linear(width, dim)
    sides = {f // c if not f % c else 0 for f, c in zip(fine, coarse, strict=False)}
    if len(coarse) == len(fine) and len(sides) == 1 and 0 not in sides and math.prod(coarse) > 1:
        return Unpatch(width, fine, sides.pop(), dim)
    return None
