"""Views of series: jitter, scaling, resized crops, time-warps, dropped channels and hidden patches, batched."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from modicum.core.errors import UserError
from modicum.core.types import Batch

KNOTS = 6
"""Places of a series between which its speed is drawn, for a time-warp."""


class Bend:
    """A random change of every series, in the order crop and warp, scale, jitter, drop, mask; NaN stays missing.

    `crop`: the range of the share of time that is kept and resized to the whole; `warp`: standard deviation of the log
    of the speed, drawn at a few places and smooth between; `scale`: that of each channel's factor; `jitter`: that of
    noise on every value, in standard deviations of the channel; `drop`: probability of a channel to be missing, never
    of all; `mask`: the share of patches of `patch` steps that is missing (Um et al. 2017; Tang et al. 2020).
    """

    def __init__(
        self,
        patch: int,
        crop: float | tuple[float, ...],
        warp: float,
        scale: float,
        jitter: float,
        drop: float,
        mask: float,
    ) -> None:
        crop = (crop, 1.0) if isinstance(crop, int | float) else tuple(crop)
        if len(crop) != 2 or not all(isinstance(c, int | float) for c in crop) or not 0 < crop[0] <= crop[1] <= 1:
            raise UserError(f"views: crop={crop} must be a share of the time, or two with 0 < low <= high <= 1")
        for name, value in (("warp", warp), ("scale", scale), ("jitter", jitter)):
            if not isinstance(value, int | float) or not 0 <= value <= 2:
                raise UserError(f"views: wanted 0 <= {name} <= 2, got {value!r}")
        for name, value in (("drop", drop), ("mask", mask)):
            if not isinstance(value, int | float) or not 0 <= value < 1:
                raise UserError(f"views: wanted 0 <= {name} < 1, got {value!r}")
        self.patch, self.crop, self.warp, self.scale = patch, crop, warp, scale
        self.jitter, self.drop, self.mask = jitter, drop, mask

    def __call__(self, batch: Batch, rng: Generator) -> Batch:
        x, size = batch["values"], batch["length"]
        b, channels, _ = x.shape
        if self.crop != (1.0, 1.0) or self.warp:
            x = at(x, self._places(x, size, rng))
        if self.scale:
            x = x * torch.exp(self.scale * torch.randn(b, channels, 1, generator=rng, device=x.device))
        if self.jitter:
            x = x + self.jitter * torch.randn(x.shape, generator=rng, device=x.device)
        if self.drop and channels > 1:
            score = torch.rand(b, channels, 1, generator=rng, device=x.device)
            x = x.masked_fill((score < self.drop) & (score < score.amax(1, keepdim=True)), torch.nan)
        if self.mask:
            x = x.masked_fill(self._hidden(batch["mask"], rng).unsqueeze(1)[..., : x.shape[2]], torch.nan)
        real = torch.arange(x.shape[2], device=x.device) < size.unsqueeze(1)
        return {**batch, "values": torch.where(real.unsqueeze(1), x, 0)}

    def _places(self, x: Tensor, size: Tensor, rng: Generator) -> Tensor:
        """Where in its own series every step is read (b, t): increasing, within the series."""
        b, t = len(x), x.shape[2]
        share, start = torch.rand(2, b, 1, generator=rng, device=x.device)
        last = (size - 1).clamp(min=1).unsqueeze(1)
        way = (torch.arange(t, device=x.device) / last).clamp(max=1)
        if self.warp:
            speed = torch.randn(b, KNOTS, generator=rng, device=x.device)
            log = self.warp * _between(speed, way * (KNOTS - 1))
            pace = torch.exp(log) * (way < 1)
            gone = F.pad(pace.cumsum(1)[:, :-1], (1, 0))
            way = (gone / pace.sum(1, keepdim=True).clamp(min=1e-9)).clamp(max=1)
        kept = self.crop[0] + (self.crop[1] - self.crop[0]) * share
        return (start * (1 - kept) + kept * way) * last

    def _hidden(self, mask: Tensor, rng: Generator) -> Tensor:
        """The steps (b, t·patch) of a share of each row's patches, of one at most in two where they are few."""
        rank = torch.rand(mask.shape, generator=rng, device=mask.device).masked_fill(~mask, 2).argsort(1).argsort(1)
        count = mask.sum(1, keepdim=True)
        hide = rank < torch.minimum((self.mask * count).round(), count - 1)
        return hide.repeat_interleave(self.patch, 1)


def _between(points: Tensor, place: Tensor) -> Tensor:
    """Points (b, k) at the places (b, t) in 0..k-1, linearly between them."""
    low = place.floor().clamp(max=points.shape[1] - 2).long()
    share = place - low
    return points.gather(1, low) * (1 - share) + points.gather(1, low + 1) * share


def at(x: Tensor, place: Tensor) -> Tensor:
    """Series (b, c, t) read at `place` (b, t'): linear between two known steps, the nearer one where one is missing."""
    low = place.floor().clamp(0, max(0, x.shape[2] - 2)).long()
    share = (place - low).unsqueeze(1)
    low = low.unsqueeze(1).expand(-1, x.shape[1], -1)
    a, b = x.gather(2, low), x.gather(2, (low + 1).clamp(max=x.shape[2] - 1))
    mixed = a.nan_to_num() * (1 - share) + b.nan_to_num() * share
    lone = torch.where(share < 0.5, a, b)  # NaN where the nearer one is missing
    lone = torch.where((share == 0) | ~(a.isnan() | b.isnan()), torch.where(share == 0, a, mixed), lone)
    return lone


def filled(x: Tensor, size: Tensor) -> Tensor:
    """Series (b, c, t) without gaps: linear between known steps, the nearest one at the ends, 0 where none is known."""
    step = torch.arange(x.shape[2], device=x.device)
    known = ~x.isnan() & (step < size.view(-1, 1, 1))
    before = torch.where(known, step, -1).cummax(2).values
    after = torch.where(known, step, x.shape[2]).flip(2).cummin(2).values.flip(2)
    low = torch.where(before < 0, after, before).clamp(max=x.shape[2] - 1)
    high = torch.where(after >= x.shape[2], low, after)
    clean = torch.where(known, x, 0)
    a, b = clean.gather(2, low), clean.gather(2, high)
    share = (step - low) / (high - low).clamp(min=1)
    return torch.where(high > low, a + (b - a) * share, a)


def stretched(x: Tensor, size: Tensor, length: int) -> Tensor:
    """Series (b, c, t) of `size` steps without gaps -> (b, c, length), linearly resampled from end to end."""
    way = torch.arange(length, device=x.device) / max(1, length - 1)
    return at(x, way * (size - 1).unsqueeze(1))
