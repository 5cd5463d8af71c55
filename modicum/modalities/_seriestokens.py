"""Series as tokens and back: patches of steps, and distributions over values, scored by the CRPS."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from modicum.core.types import Batch, Choose, Embed, Tokens, Unembed


def patched(x: Tensor, patch: int) -> Tensor:
    """Steps (b, c, t·patch) as patches (b, t, c, patch)."""
    return x.unflatten(2, (-1, patch)).transpose(1, 2)


class Segments(Embed):
    """{"values" (b, c, steps) scaled, NaN where missing, "length" (b,), "mask" (b, t)} -> a token (dim) a patch.

    A linear map of the values, 0 where missing, and of which ones are missing. So a gap is no value, nothing is taken
    from later steps, and steps after the end of a series are as if they were missing.
    """

    ragged = True

    def __init__(self, channels: int, length: int, patch: int, width: int) -> None:
        super().__init__()
        self.dim, self.grid, self.patch = width, (math.ceil(length / patch),), patch
        self.inputs = channels * length
        self.values = nn.Linear(channels * patch, width)
        self.missing = nn.Linear(channels * patch, width, bias=False)

    def forward(self, batch: Batch) -> Tokens:
        x, known = patches(batch, self.patch)
        mask = batch["mask"] if "mask" in batch else x.new_ones(x.shape[:2], dtype=torch.bool)
        token = self.values(x.flatten(2)) + self.missing((~known).to(x.dtype).flatten(2))
        return Tokens(token * mask.unsqueeze(-1), mask, (x.shape[1],))


def patches(batch: Batch, patch: int) -> tuple[Tensor, Tensor]:
    """Values (b, t, c, patch), 0 where not known, and which are known."""
    x = batch["values"]
    known = ~x.isnan()
    if "length" in batch:
        known &= (torch.arange(x.shape[2], device=x.device) < batch["length"].unsqueeze(1)).unsqueeze(1)
    return patched(torch.where(known, x, 0), patch), patched(known, patch)


class Levels(Unembed):
    """Tokens -> a distribution over `bins` values for every step and channel; its error is the CRPS over known ones.

    The continuous ranked probability score (Matheson & Winkler 1976) is the absolute error where all probability is on
    one value, and its mean is least for the true distribution. In standard deviations of a channel.
    """

    bins: Tensor

    def __init__(self, channels: int, length: int, patch: int, width: int, bins: tuple[float, ...]) -> None:
        super().__init__()
        self.dim, self.patch, self.channels, self.length = width, patch, channels, length
        self.register_buffer("bins", torch.tensor(bins), persistent=False)
        self.logits = nn.Linear(width, channels * patch * len(bins))

    def _logits(self, tokens: Tensor) -> Tensor:
        """(..., dim) -> (..., channels, patch, bins)."""
        return self.logits(tokens).unflatten(-1, (self.channels, self.patch, -1))

    def loss(self, tokens: Tensor, batch: Batch, where: Tensor | None = None) -> Tensor:
        x, known = patches(batch, self.patch)
        tokens = tokens[:, : x.shape[1]]
        if where is not None:
            tokens, x, known = tokens[where], x[where], known[where]
        error = crps(self._logits(tokens).float().softmax(-1), self.bins, x) * known
        return error.sum((-2, -1)) / known.sum((-2, -1)).clamp(min=1)

    def draw(self, tokens: Tensor, at: int, so_far: Batch | None, choose: Choose) -> Batch:
        """Patch `at`: `choose` draws its first step; later ones take the same quantile of their own distributions.

        So a patch is smooth, and every step has the distribution that was predicted for it.
        """
        share = self._logits(tokens[:, 0]).float().log_softmax(-1)
        first = choose(share[:, :, 0].flatten(0, 1)).view(len(tokens), self.channels, 1)
        share = share.exp()
        below = share[:, :, 0].cumsum(-1).gather(-1, first) - share[:, :, 0].gather(-1, first) / 2
        rest = quantile(share[:, :, 1:], self.bins, below)
        patch = torch.cat([self.bins[first], rest], 2)
        out: Batch = {} if so_far is None else dict(so_far)
        before = patch[..., :0] if so_far is None or not at else so_far["values"][..., : at * self.patch]
        out["values"] = torch.cat([before, patch], 2)
        out["mask"] = torch.ones(len(patch), at + 1, dtype=torch.bool, device=patch.device)
        end = (at + 1) * self.patch
        steps = self.length if at * self.patch < self.length < end else end
        out["length"] = torch.full((len(patch),), steps, device=patch.device)
        return out

    def decode(self, tokens: Tensor) -> Batch:
        """The median of every value."""
        share = self._logits(tokens).float().softmax(-1)
        half = torch.full_like(share[..., 0, :1], 0.5)
        return {"values": quantile(share, self.bins, half).transpose(1, 2).flatten(2)}


def crps(share: Tensor, bins: Tensor, true: Tensor) -> Tensor:
    """The CRPS (...) of probabilities (..., k) of the ascending values `bins` (k,), at the `true` values (...)."""
    below = share.cumsum(-1)[..., :-1]
    apart = (share * (bins - true.unsqueeze(-1)).abs()).sum(-1)
    return (apart - (below * (1 - below) * bins.diff()).sum(-1)).clamp(min=0)


def quantile(share: Tensor, bins: Tensor, level: Tensor) -> Tensor:
    """Quantiles (..., p) at `level` (..., 1) of probabilities (..., p, k) of `bins` (k,), linear between them."""
    middle = share.cumsum(-1) - share / 2
    high = (middle < level.unsqueeze(-1)).sum(-1, keepdim=True).clamp(1, len(bins) - 1)
    a, b = middle.gather(-1, high - 1), middle.gather(-1, high)
    part = ((level.unsqueeze(-1) - a) / (b - a).clamp(min=1e-9)).clamp(0, 1)
    return (bins[high - 1] + part * (bins[high] - bins[high - 1])).squeeze(-1)
