"""Claim: a SimCLR step beats DataLoader + Pillow and lightly, and less than 10 % of it is not the network or optimiser.

Batch 256, two views, the default convnet and a projection head of 256 -> 128, fused AdamW, on 28×28 grey images.
"modicum" is what `modicum pretrain` runs: fit, Batches, SimCLR.corrupt, clipping, and the collapse metrics. The peers
train the same trunk with the same optimiser, without clipping and metrics, with 0 and with 2 workers: (a) DataLoader
with Pillow views and the textbook NT-Xent (whole similarity matrix, cross-entropy); (b) lightly 1.6: SimCLRTransform
(set to the same transforms; its colour jitter is multiplicative), SimCLRProjectionHead, NTXentLoss, as in its
tutorials. The step without the network is views + gathering + loss + optimiser: the step less the forward and backward
of encoder and head alone on inputs that are ready.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import _common
import _lightly
import _pil
import _timing
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modicum.core import seeds
from modicum.maths.contrastive import nt_xent
from modicum.maths.losses import spread
from modicum.modalities.images import Images, Pictures
from modicum.nn.encoder import Encoder
from modicum.objectives.simclr import SimCLR
from modicum.training.batches import Batches
from modicum.training.fit import fit
from modicum.training.optim import adamw, cosine, groups

BATCH, RATE, TEMPERATURE = 256, 4e-3, 0.2


def objective(images: np.ndarray, seed: int) -> SimCLR:
    share = images[:5000] / 255
    kind = Images(images.shape[1], 1, (float(share.mean()),), (float(share.std()),))
    with seeds.forked(seed, "init"):
        return SimCLR(Encoder.of(kind, "convnet"), temperature=TEMPERATURE)


def ours(images: np.ndarray, seed: int, steps: int) -> tuple[Callable[[], None], dict[str, Callable[[], object]]]:
    """Our `steps` training steps, and the same number of each of its parts alone."""
    model = objective(images, seed)
    batches = Batches(Pictures(images), np.arange(len(images)), batch=BATCH, seed=seed)
    optimizer = adamw(groups(model, lr=RATE, weight_decay=0.05))
    loop = fit(model, batches, optimizer, steps=10**6, seed=seed, schedule=cosine(10**6), clip=1.0)
    ready = model.corrupt(batches(0), seeds.generator(seed, "corrupt", 0))
    pooled = torch.randn(2 * BATCH, model.encoder.dim)
    z = torch.randn(2, BATCH, model.out, requires_grad=True)
    ones = torch.ones(2 * BATCH, model.out)

    def network() -> None:
        model.zero_grad(set_to_none=True)
        model.head(model.encoder(ready).pooled).backward(ones)

    def loss() -> None:
        nt_xent(z, TEMPERATURE).backward()
        spread(pooled)

    def update() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    def views() -> None:
        with torch.no_grad():
            model.corrupt(batches(1), seeds.generator(seed, "corrupt", 1))

    parts = {"network": network, "views and gathering": views, "loss and metrics": loss, "clipping and AdamW": update}
    return times(steps, lambda: next(loop)), {name: times(steps, part) for name, part in parts.items()}


def times(count: int, call: Callable[[], object]) -> Callable[[], None]:
    def repeated() -> None:
        for _ in range(count):
            call()

    return repeated


def textbook(model: SimCLR, first: Tensor, second: Tensor) -> Tensor:
    z = F.normalize(model.head(model.encoder({"image": torch.cat([first, second])}).pooled), dim=1)
    logits = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(len(z)).roll(len(z) // 2))


def peer(data: torch.utils.data.Dataset, workers: int, steps: int, step: Callable, model: nn.Module):
    """`steps` steps of a usual loop: loss from the two views, backward, AdamW."""
    load = _pil.loader(data, batch=BATCH, batches=steps, workers=workers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05, fused=True)

    def call() -> None:
        model.train()
        for first, second in load:
            optimizer.zero_grad()
            step(first, second).backward()
            optimizer.step()

    return call


def main() -> None:
    bench = _common.Bench("pretrain", rounds=5, steps=4)
    images, words = _common.pictures(20_000)
    seed, steps = bench.asked.seed, bench.asked.steps
    print(f"   {words}")
    step, parts = ours(images, seed, steps)
    contestants, other = {"modicum": step}, _lightly.Lightly()
    print(f"   lightly: {other.why or _lightly.USED}")
    for workers in (0, 2):
        twin = objective(images, seed)
        data, loss = _pil.PilViews(images, 28, 2), partial(textbook, twin)
        contestants[f"DataLoader + Pillow, {workers} workers"] = peer(data, workers, steps, loss, twin)
        if not other.why:
            trunk = objective(images, seed).encoder.trunk
            model = _lightly.Model(trunk, other.head(trunk.dim_out, 256, 128), other.loss(TEMPERATURE))
            data = other.views(images, twin.encoder.input.mean[0], twin.encoder.input.std[0])
            contestants[f"lightly, {workers} workers"] = peer(data, workers, steps, model, model)
    count = dict.fromkeys(contestants, steps * BATCH)
    elapsed, processor = _common.contest(bench, "SimCLR training, two views an image", contestants, count)
    share(bench, {"step": step, **parts}, steps)
    times, cpu = min(elapsed.values()), min(processor.values())
    _common.verdict("times as fast as the fastest peer", times, 1, processor=cpu)
    other.close()
    bench.finish()


def share(bench: _common.Bench, parts: dict[str, Callable[[], object]], steps: int) -> None:
    """Where our step goes: each part alone, and the step less the network alone."""
    seconds = _timing.interleaved(parts, bench.asked.rounds)
    print(f"\n{'part of our step, alone':24} {'ms':>7}  of the step   by processor time")
    of = {name: np.median(took / seconds["step"], 0) for name, took in seconds.items()}
    for name, took in seconds.items():
        ms = 1e3 * float(np.median(took[:, 0])) / steps
        print(f"{name:24} {ms:7.2f}  {of[name][0]:11.1%}   {of[name][1]:17.1%}")
        bench.row(f"our step: {name}", ms, "ms", float(of[name][0]))
    alone = sum(share for name, share in of.items() if name not in ("step", "network"))
    print(f"sum of the last three: {alone[0]:.1%} of the step; by processor time {alone[1]:.1%}")
    outside = 1 - of["network"]
    free = outside - of["clipping and AdamW"]
    for name, part in (("the network", outside), ("network and optimiser", free)):
        _common.verdict(f"share of the step outside {name}", part[0], 0.1, most=True, processor=part[1])
        bench.row(f"our step: outside {name}", float(part[0]), "share")


if __name__ == "__main__":
    main()
