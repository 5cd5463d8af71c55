"""Claim: batched views are at least 10 times as fast as a DataLoader with Pillow, at 28×28 grey.

Both draw random batches (512 rows at 28×28: SimCLR's two views of 256) from uint8 images in memory and give random
resized crops (area 0.3 to 1, ratio 3/4 to 4/3, antialiased bilinear), flips, contrast and brightness (±0.4). The peer
is given every advantage that a user could: no torchvision between it and Pillow, uint8 batches, the better of 0 and 2
workers, workers kept alive. 64×64 and 224×224 RGB are shown for information.
"""

from __future__ import annotations

import _common
import _pil
import numpy as np
import torch

from modicum.core import seeds
from modicum.modalities.images import Images, Pictures
from modicum.training.batches import Batches


def ours(images: np.ndarray, size: int, batch: int, seed: int, batches: int):
    """A call that makes the views of `batches` further batches."""
    channels = images.shape[3]
    views = Images(size, channels, (0.5,) * channels, (0.25,) * channels).views()
    draw = Batches(Pictures(images), np.arange(len(images)), batch=batch, seed=seed)
    state = {"step": 0}

    def call() -> None:
        for step in range(state["step"], state["step"] + batches):
            with torch.no_grad():
                views(draw(step), seeds.generator(seed, "views", step))
        state["step"] += batches

    return call


def peer(images: np.ndarray, size: int, batch: int, workers: int, batches: int):
    load = _pil.loader(_pil.PilViews(images, size, 1), batch=batch, batches=batches, workers=workers)

    def call() -> None:
        for _ in load:
            pass

    return call


def contest(bench: _common.Bench, title: str, images: np.ndarray, batch: int, batches: int) -> tuple[float, float]:
    """How many times as fast as the better peer: elapsed, and by processor time."""
    size = images.shape[1]
    contestants = {"modicum": ours(images, size, batch, bench.asked.seed, 4 * batches)}
    for workers in (0, 2):
        contestants[f"DataLoader + Pillow, {workers} workers"] = peer(images, size, batch, workers, batches)
    count = {name: batch * batches * (4 if name == "modicum" else 1) for name in contestants}
    elapsed, processor = _common.contest(bench, title, contestants, count)
    return min(elapsed.values()), min(processor.values())


def main() -> None:
    bench = _common.Bench("views", rounds=7)
    grey, words = _common.pictures(20_000)
    print(f"   {words}; RGB: random bytes")
    rng = np.random.default_rng(bench.asked.seed)
    found = contest(bench, "28×28 grey", grey, 512, 10)
    contest(bench, "64×64 RGB", rng.integers(0, 256, (1000, 64, 64, 3), dtype=np.uint8), 128, 8)
    contest(bench, "224×224 RGB", rng.integers(0, 256, (200, 224, 224, 3), dtype=np.uint8), 32, 4)
    _common.verdict("28×28 views against the better DataLoader, times as fast", found[0], 10, processor=found[1])
    bench.finish()


if __name__ == "__main__":
    main()
