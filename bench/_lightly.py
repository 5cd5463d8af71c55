"""lightly in a throw-away folder: its SimCLR transform, projection head and NT-Xent loss, without touching torch."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from modicum.core.types import Tokens

WANTED = ["lightly==1.6.0", "lightning-utilities==0.15.3", "torchvision==0.28.0"]
USED = f"SimCLRTransform, SimCLRProjectionHead and NTXentLoss of {WANTED[0]} with {WANTED[2]}"


class Lightly:
    """What the bench uses of lightly; `why` says what went wrong where it could not be had."""

    def __init__(self) -> None:
        self.why = ""
        self._folder = tempfile.TemporaryDirectory(prefix="modicum-bench-")
        self._library: Any = None
        try:
            self._install()
            self.transform = importlib.import_module("lightly.transforms.simclr_transform").SimCLRTransform
            self.loss = importlib.import_module("lightly.loss").NTXentLoss
            self.head = importlib.import_module("lightly.models.modules.heads").SimCLRProjectionHead
        except (subprocess.CalledProcessError, ImportError, RuntimeError, OSError) as error:
            self.why = f"{type(error).__name__}: {str(getattr(error, 'stderr', '') or error).strip()[-300:]}"

    def _install(self) -> None:
        ask = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", self._folder.name, *WANTED]
        subprocess.run(ask, check=True, capture_output=True, text=True)
        # Behind everything else on the path, so that it can add packages and replace none.
        sys.path.append(self._folder.name)
        # This torchvision is linked against CUDA; beside a CPU torch its operators are missing and only these two
        # are looked for when it is imported. No transform uses them.
        self._library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            self._library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")

    def views(self, images: np.ndarray, mean: float, std: float) -> Dataset:
        """Two views a sample, normalised (1, h, w) float, by SimCLRTransform set to the transforms of the others."""
        same = {"cj_prob": 1.0, "cj_bright": 0.4, "cj_contrast": 0.4, "cj_sat": 0.0, "cj_hue": 0.0, "min_scale": 0.3}
        off = {"random_gray_scale": 0.0, "gaussian_blur": 0.0, "normalize": {"mean": [mean], "std": [std]}}
        return Transformed(images, self.transform(input_size=images.shape[1], **same, **off))

    def close(self) -> None:
        self._folder.cleanup()


class Model(nn.Module):
    """Our trunk under lightly's head and loss: two views (b, 1, h, w) -> loss."""

    def __init__(self, trunk: nn.Module, head: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head, self.loss = trunk, head, loss

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        x = torch.cat([first, second]).permute(0, 2, 3, 1)
        z = self.head(self.trunk(Tokens(x.flatten(1, 2), None, tuple(x.shape[1:3]))).x.mean(1))
        return self.loss(*z.chunk(2))


class Transformed(Dataset):
    """Grey images (n, h, w, 1) as Pillow images through a transform."""

    def __init__(self, images: np.ndarray, transform: Any) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> list[Tensor]:
        return self.transform(Image.fromarray(self.images[row, ..., 0]))
