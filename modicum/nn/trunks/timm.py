"""`timm`: any image network of timm, with its own weights where it is adopted (Wightman 2019)."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor

from modicum.core.errors import UserError, unknown
from modicum.core.spec import part
from modicum.core.types import Tokens
from modicum.nn.foreign import Brought, Foreign, library
from modicum.nn.hub import fetch, read
from modicum.nn.keymap import translated
from modicum.nn.layers import as_tokens


@final
class Timm(Foreign):
    """The network `name` of timm, such as 'resnet18' or 'vit_tiny_patch16_224', without its classifier.

    Adopted as an encoder it brings its input (size, mean, std) and, unless `pretrained=False`, the weights on the hub;
    `size` is another size of the images. Tokens are its last map or its patches; pooled is what its classifier sees.
    """

    def __init__(
        self, dim: int, grid: tuple[int, ...], name: str, pretrained: bool = True, size: int | None = None
    ) -> None:
        super().__init__()
        if len(grid) != 2:
            raise UserError(f"timm wants images; this data has grid {tuple(grid)}")
        self.dim, self.grid, self.name, self.pretrained, self.size = dim, tuple(grid), name, pretrained, size
        self.settle(self._create())
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _create(self, **more: Any) -> Any:
        config = _config(self.name)
        if config.fixed_input_size and tuple(config.input_size[1:]) != self.grid:
            more["img_size"] = self.grid
        return library("timm").create_model(self.name, in_chans=self.dim, num_classes=0, **more)

    @classmethod
    def bring(cls, trained: bool, **args: Any) -> Brought:
        config, name = _config(args["name"]), args["name"]
        size = args.get("size") or config.input_size[-1]
        input = part("modality", "images")(size, 3, tuple(config.mean), tuple(config.std))
        if not trained or not args.get("pretrained", True):
            return Brought(input, args)
        if not config.hf_hub_id:
            raise UserError(f"timm has no weights of '{name}' on the hub: write timm('{name}', pretrained=False)")
        return Brought(input, args, read(fetch(config.hf_hub_id, config.hf_hub_filename or "model.safetensors")))

    def forward(self, tokens: Tokens) -> Tokens:
        x = self.module.forward_features(self.as_image(tokens))
        if not isinstance(x, Tensor):
            raise UserError(f"timm's '{self.name}' gives several maps at once: choose another")
        pooled = self.module.forward_head(x, pre_logits=True)
        if x.dim() == 4:
            last = getattr(self.module, "output_fmt", "NCHW") == "NHWC"
            grid = tuple(x.shape[1:3] if last else x.shape[2:])
            return Tokens(x.flatten(1, 2) if last else as_tokens(x), None, grid, pooled=pooled)
        x = x[:, getattr(self.module, "num_prefix_tokens", 0) :]
        side = math.isqrt(x.shape[1])
        return Tokens(x, None, (side, side) if side**2 == x.shape[1] else (x.shape[1],), pooled=pooled)

    def translate(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint of this network as timm reads it, without its classifier; UserError where it does not fit."""
        found: dict[str, Tensor] = dict(tensors)
        try:
            with _said() as words:
                made = self._create(pretrained=True, pretrained_cfg_overlay={"state_dict": dict(tensors)})
            # What is missing timm only tells, and leaves as it was made.
            if not any(word.startswith("Missing keys") for word in words):
                found = made.state_dict()
        except (RuntimeError, KeyError):
            pass  # what does not fit is named below
        return translated(self, {f"module.{k}": v for k, v in found.items()}, str, f"timm {self.name}")


@contextmanager
def _said() -> Iterator[list[str]]:
    """What timm tells its log of the weights that it loads, and only here."""
    log, words = logging.getLogger("timm.models._builder"), list[str]()

    def hear(record: logging.LogRecord) -> bool:
        words.append(record.getMessage())
        return False

    level = log.level
    log.addFilter(hear)
    log.setLevel(logging.INFO)
    try:
        yield words
    finally:
        log.setLevel(level)
        log.removeFilter(hear)


def _config(name: str) -> Any:
    """What timm knows of a network and its weights."""
    timm = library("timm")
    if not timm.is_model(name.partition(".")[0]):
        raise unknown("network of timm", name, timm.list_models())
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # an unknown tag after the dot
        config = None
    if config is None:
        raise UserError(
            f"timm has no weights '{name}'; it has {', '.join(timm.list_pretrained(name.split('.')[0] + '*'))}"
        )
    return config
