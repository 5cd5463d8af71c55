"""Claim: the default convnet trains at least 1.7 times as fast as a plain network of three convolutions at stride 1.

Forward and backward, 28×28 grey, batch 128, on inputs that are ready (no embedding, no optimiser). The plain network:
3×3 convolutions of 32, 64 and 128 channels, each with batch norm and ReLU, then the global mean; without pooling and
with 2×2 max pooling after the first two; in torch's default layout and channels-last.
"""

from __future__ import annotations

import _common
import torch
from torch import nn

from modicum.core import seeds
from modicum.core.types import Tokens
from modicum.nn.trunks.convnet import ConvNet

BATCH, SIDE = 128, 28


def plain(pool: bool) -> nn.Sequential:
    parts: list[nn.Module] = []
    for k, (before, after) in enumerate([(1, 32), (32, 64), (64, 128)]):
        parts += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        parts += [nn.MaxPool2d(2)] if pool and k < 2 else []
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def training(model: nn.Module, x: object, steps: int, features=lambda out: out):
    """A call of `steps` forward and backward passes."""

    def call() -> None:
        for _ in range(steps):
            model.zero_grad(set_to_none=True)
            out = features(model(x))
            assert out.dim() == 2, out.shape
            out.square().mean().backward()

    return call


def main() -> None:
    bench = _common.Bench("encoder", rounds=9, steps=4)
    steps = bench.asked.steps
    x = torch.randn(BATCH, 1, SIDE, SIDE)
    with seeds.forked(bench.asked.seed, "init"):
        ours = ConvNet(1, (SIDE, SIDE))
        contestants = {
            "modicum convnet": training(
                ours, Tokens(x.view(BATCH, -1, 1), None, (SIDE, SIDE)), steps, lambda t: t.x.mean(1)
            )
        }
        for pool in (False, True):
            for name, layout in (("default", torch.contiguous_format), ("channels-last", torch.channels_last)):
                model = plain(pool).to(memory_format=layout)
                words = f"plain, {'2×2 max pooling' if pool else 'no pooling'}, {name} layout"
                contestants[words] = training(model, x.to(memory_format=layout), steps)
    title = f"forward and backward, batches of {BATCH}"
    elapsed, processor = _common.contest(bench, title, contestants, dict.fromkeys(contestants, steps * BATCH))
    for pool in ("no pooling", "max pooling"):
        times, cpu = (min(r for k, r in ratios.items() if pool in k) for ratios in (elapsed, processor))
        _common.verdict(f"against the faster layout, {pool}, times as fast", times, 1.7, processor=cpu)
    bench.finish()


if __name__ == "__main__":
    main()
