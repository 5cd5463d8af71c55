"""The peer's view of an image: random resized crop, flip, contrast and brightness with Pillow and numpy, one by one."""

from __future__ import annotations

import math
import random

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

LEVELS = np.arange(256, dtype=np.float32)


def view(image: Image.Image, size: int) -> np.ndarray:
    """The same transforms and ranges as `Images.views()`; `random` is seeded in every worker by torch."""
    draw = random.random
    w, h = image.size
    area, stretch = 0.3 + 0.7 * draw(), math.exp((2 * draw() - 1) * math.log(4 / 3) / 2)
    high, wide = min(1, math.sqrt(area) * stretch) * h, min(1, math.sqrt(area) / stretch) * w
    top, left = draw() * (h - high), draw() * (w - wide)
    image = image.resize((size, size), Image.Resampling.BILINEAR, (left, top, left + wide, top + high))
    if draw() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    x = np.asarray(image)
    gain = 1 + 0.4 * (2 * draw() - 1)
    add = x.mean() * (1 - gain) + 255 * 0.4 * (draw() - 0.5)
    # Whichever is faster at the size: arithmetic, or a table of the 256 levels.
    if x.size < 20_000:
        x = np.clip(x * np.float32(gain) + np.float32(add), 0, 255).astype(np.uint8)
    else:
        x = np.clip(LEVELS * gain + add, 0, 255).astype(np.uint8)[x]
    return x if x.ndim == 3 else x[..., None]


class PilViews(Dataset):
    """`n` views a sample (h, w, c) uint8, of images (rows, h, w, c) uint8 in memory."""

    def __init__(self, images: np.ndarray, size: int, n: int) -> None:
        self.images, self.size, self.n = images, size, n

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> list[Tensor]:
        pixels = self.images[row]
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        return [torch.from_numpy(view(image, self.size)) for _ in range(self.n)]


def loader(dataset: Dataset, *, batch: int, batches: int, workers: int) -> DataLoader:
    """`batches` random batches each time it is iterated; workers stay alive in between."""
    sampler = RandomSampler(dataset, num_samples=batch * batches)
    return DataLoader(
        dataset, batch, sampler=sampler, num_workers=workers, persistent_workers=workers > 0, drop_last=True
    )
