"""Dynamic time warping of many pairs of series at once."""

from __future__ import annotations

import torch
from torch import Tensor

CELLS = 1 << 22
"""Cells of one antidiagonal, over all pairs, that are in memory at a time."""


def dtw(a: Tensor, b: Tensor, window: float = 1.0) -> Tensor:
    """Distances (n, m) of series (n, c, t) to series (m, c, t): least sum of squared differences over warping paths.

    Steps that a path joins are at most `window` · t apart (Sakoe & Chiba 1978), 0 for none. Channels are warped
    together. One antidiagonal of all pairs after the other: O(n·m·t·window·t) time.
    """
    reach = round(window * a.shape[2])
    step = max(1, CELLS // max(1, len(b) * (reach + 1)))
    return torch.cat([_some(part, b, reach) for part in a.split(step)])


def _some(a: Tensor, b: Tensor, reach: int) -> Tensor:
    n, m, t = len(a), len(b), a.shape[2]
    back = b.flip(2)
    # Cell (i, j) of antidiagonal k = i + j is at i + 1; what is outside the window is infinitely far.
    older, old, new = (torch.full((n, m, t + 2), torch.inf, dtype=a.dtype, device=a.device) for _ in range(3))
    for k in range(2 * t - 1):
        low, high = max(0, k - t + 1, (k - reach + 1) // 2), min(t - 1, k, (k + reach) // 2)
        if low > high:  # a window of 0 has no cells between those of the diagonal
            older, old, new = old, new.fill_(torch.inf), older
            continue
        first = t - 1 - k + low  # of the flipped series: j falls while i rises
        cost = _apart(a[:, :, low : high + 1], back[:, :, first : first + high - low + 1])
        if k:
            near = torch.minimum(old[..., low : high + 1], old[..., low + 1 : high + 2])
            cost += torch.minimum(near, older[..., low : high + 1])
        new[..., low + 1 : high + 2] = cost
        new[..., low] = new[..., high + 2] = torch.inf
        older, old, new = old, new, older
    return old[..., t]


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """Squared differences (n, m, w) of (n, c, w) and (m, c, w), summed over channels."""
    out = (a[:, None, 0] - b[None, :, 0]).square_()
    for k in range(1, a.shape[1]):
        out += (a[:, None, k] - b[None, :, k]).square_()
    return out
