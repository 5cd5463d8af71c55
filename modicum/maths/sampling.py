"""Drawing one of many by logits."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from modicum.core.errors import UserError


def likeliest(logits: Tensor) -> Tensor:
    """The number of the highest of logits (b, n): (b,)."""
    return logits.argmax(1)


class Sampler:
    """Draws from logits (b, n): over `temperature` (0: the likeliest), among the `top_k` likeliest (0: all).

    `top_p`: among the likeliest that together have that probability (nucleus, Holtzman et al. 2020).
    """

    def __init__(self, rng: Generator, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> None:
        if not 0 <= temperature < math.inf or top_k < 0 or not 0 < top_p <= 1:
            raise UserError(
                f"wanted temperature >= 0, top_k >= 0 and 0 < top_p <= 1; got {temperature}, {top_k} and {top_p}"
            )
        self.rng, self.temperature, self.top_k, self.top_p = rng, temperature, top_k, top_p

    def __call__(self, logits: Tensor) -> Tensor:
        """The number of one of each row's n: (b,)."""
        if not self.temperature:
            return likeliest(logits)
        logits = logits.float() / self.temperature
        if self.top_k:
            least = logits.topk(min(self.top_k, logits.shape[1]), 1).values[:, -1:]
            logits = logits.masked_fill(logits < least, -math.inf)
        if self.top_p < 1:
            ordered, order = logits.sort(1, descending=True)
            share = ordered.softmax(1)
            # What is cut has top_p or more before it: the likeliest always stays.
            cut = share.cumsum(1) - share >= self.top_p
            logits = logits.masked_fill(torch.empty_like(cut).scatter(1, order, cut), -math.inf)
        return logits.softmax(1).multinomial(1, generator=self.rng).squeeze(1)
