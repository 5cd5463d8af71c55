"""Images: pixels as tokens, cropped, flipped and re-lit views as batched tensor operations."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional as F

from modicum.core.errors import UserError, unknown
from modicum.core.types import Batch, Embed, Input, Packed, Progress, Tokens, Unembed
from modicum.modalities._files import PLAIN, TABLES, peek, table_kind
from modicum.modalities._folders import walk
from modicum.modalities._imagearrays import idx_sets, is_idx
from modicum.modalities._imagefiles import EXTENSIONS, RawImages, _path_column, as_raw, scan
from modicum.modalities._imagepack import Packed as PackedImages
from modicum.modalities._imagepack import bytes_needed, pack, survey

GREY: dict[str, int | tuple[int, int, int]] = {"L": 128, "RGB": (128, 128, 128)}


class Pixels(Embed):
    """uint8 or float images (b, h, w, c) in 0..255 -> normalised pixels as tokens (b, size·size, c)."""

    def __init__(self, size: int, channels: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.dim, self.grid, self.size, self.inputs = channels, (size, size), size, channels * size**2
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", 1 / (255 * torch.tensor(std)), persistent=False)
        self.register_buffer("shift", -torch.tensor(mean) / torch.tensor(std), persistent=False)

    def forward(self, batch: Batch) -> Tokens:
        x = centre(batch["image"], self.size)
        return Tokens((x * self.scale + self.shift).flatten(1, 2), None, self.grid)


def centre(x: Tensor, size: int) -> Tensor:
    """The middle size×size of images (b, h, w, c)."""
    top, left = (x.shape[1] - size) // 2, (x.shape[2] - size) // 2
    return x[:, top : top + size, left : left + size]


class Paint(Unembed):
    """Tokens in the units of normalised pixels -> images; the error is the squared one, in those units."""

    def __init__(self, pixels: Pixels) -> None:
        super().__init__()
        self.pixels, self.dim = pixels, pixels.dim
        self.cells: tuple[int, ...] = ()

    def normalise(self, grid: tuple[int, ...]) -> None:
        """From now on compare with pixels of mean 0 and variance 1 within each of the cells of a coarser grid."""
        if len(grid) != 2 or any(
            side % cells or cells == side for side, cells in zip(self.pixels.grid, grid, strict=True)
        ):
            raise UserError(
                f"normalise=True wants a trunk whose cells divide the image; {tuple(self.pixels.grid)} pixels in "
                f"{tuple(grid)} cells are none"
            )
        self.cells = tuple(grid)

    def loss(self, tokens: Tensor, batch: Batch, where: Tensor | None = None) -> Tensor:
        x = self.pixels(batch).x
        if self.cells:
            high, wide = (side // cells for side, cells in zip(self.pixels.grid, self.cells, strict=True))
            cells = x.view(len(x), self.cells[0], high, self.cells[1], wide, self.dim)
            var, mean = torch.var_mean(cells, (2, 4, 5), keepdim=True)
            x = ((cells - mean) / (var + 1e-6).sqrt()).view_as(x)
        error = (tokens - x).square().mean(2)
        return error if where is None else error[where]

    def decode(self, tokens: Tensor) -> Batch:
        x = ((tokens - self.pixels.shift) / self.pixels.scale).round().clamp(0, 255).to(torch.uint8)
        return {"image": x.view(-1, *self.pixels.grid, self.dim)}


class Augment:
    """Random crop (area share, resized to `size`), horizontal flip, brightness/contrast, for a whole batch at once.

    Crop and flip are one linear map a side, image -> Ay · image · Axᵀ with antialiased triangle filters as in
    Pillow's bilinear resize: two sparse products for the whole batch; float32 output in 0..255.
    """

    def __init__(self, size: int, crop: float | tuple[float, ...], flip: float, intensity: float, ratio: float) -> None:
        crop = (crop, 1.0) if isinstance(crop, int | float) else crop
        if any(not isinstance(v, int | float) for v in (flip, intensity, ratio, *crop)):
            raise UserError(
                f"views: crop, flip, intensity and ratio are numbers; got {crop}, {flip}, {intensity}, {ratio}"
            )
        if len(crop) != 2 or not 0 < crop[0] <= crop[1] <= 1:
            raise UserError(f"views: crop={crop} must be a share of the area, or two with 0 < low <= high <= 1")
        if not 0 <= flip <= 1 or not 0 <= intensity < 1 or ratio < 1:
            raise UserError(
                f"views: wanted 0 <= flip <= 1, 0 <= intensity < 1, ratio >= 1; got {flip}, {intensity}, {ratio}"
            )
        self.size, self.crop, self.flip, self.intensity, self.ratio = size, crop, flip, intensity, ratio

    def __call__(self, batch: Batch, rng: Generator) -> Batch:
        image = batch["image"]
        b, h, w, c = image.shape
        draw = torch.rand(7, b, generator=rng, device=image.device)
        area = self.crop[0] + (self.crop[1] - self.crop[0]) * draw[0]
        # No more stretch than fits: a crop of the whole area is the whole image.
        stretch = torch.exp((2 * draw[1] - 1) * area.log().neg().clamp(max=math.log(self.ratio)) / 2)
        high, wide = area.sqrt() * stretch * h, area.sqrt() / stretch * w
        flipped = draw[4] < self.flip
        left = draw[3] * (w - wide)
        x = resample(image.float().view(b, h, w * c), self.size, draw[2] * (h - high), high)
        x = x.view(b, self.size, w, c).transpose(1, 2).reshape(b, w, self.size * c)
        x = resample(x, self.size, torch.where(flipped, left + wide, left), torch.where(flipped, -wide, wide))
        # Light is linear too; multiplying while copying to rows first saves a pass.
        gain = 1 + self.intensity * (2 * draw[5] - 1)
        shift = x.view(b, -1).mean(1) * (1 - gain) + 255 * self.intensity * (draw[6] - 0.5)
        y = torch.empty(b, self.size, self.size, c, device=x.device)
        torch.mul(x.view(b, self.size, self.size, c).transpose(1, 2), gain.view(b, 1, 1, 1), out=y)
        x = y.add_(shift.view(b, 1, 1, 1)).clamp_(0, 255)
        return {**batch, "image": x}


def resample(x: Tensor, out: int, start: Tensor, length: Tensor) -> Tensor:
    """Lines (b, n, m) -> (b, out, m): each the `triangles`-weighted sum of a few of its sample's n lines."""
    b, n, m = x.shape
    index, weight = triangles(n, out, start, length)
    # embedding_bag is torch's fused gather and weighted sum.
    bag = F.embedding_bag(index.flatten(0, 1), x.reshape(b * n, m), mode="sum", per_sample_weights=weight.flatten(0, 1))
    return bag.view(b, out, m)


def triangles(n: int, out: int, start: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """`out` samples of [start, start + length) of n pixels: the pixels each takes and their weights (b, out, taps).

    Sample i's pixels are numbered from i·n. length (b,) < 0 mirrors. Weights fall linearly to 0 over
    max(1, |length|/out) pixels and sum to 1: Pillow's antialiased bilinear filter. |length| <= n.
    """
    b, device = len(start), start.device
    step = (length / out).view(b, 1, 1)
    at = torch.addcmul(start.view(b, 1, 1) - 0.5, torch.arange(0.5, out, device=device).view(1, -1, 1), step)
    first = torch.arange(0, b * n, n, device=device).view(b, 1, 1)
    if 1 < n <= out:  # Two neighbours; past an edge its pixel has all the weight, as the general rule has it too.
        pair = torch.arange(2, device=device)
        low = at.clamp_(0, n - 1).floor().clamp_(max=n - 2)
        return low.long() + (first + pair), (at.sub_(low) - (1 - pair)).abs_()
    reach = step.abs().clamp_(min=1)
    index = (at - reach).floor_() + torch.arange(1, 1 + math.ceil(2 * max(1, n / out)), device=device)
    weight = (1 - (at - index).abs_().div_(reach)).clamp_(min=0).mul_((index >= 0) & (index < n))
    return index.clamp_(0, n - 1).long().add_(first), weight.div_(weight.sum(2, keepdim=True))


class Pictures:
    """A memory-mapped uint8 array (n, h, w, c) as a Source of {"image": ...}."""

    def __init__(self, images: np.ndarray) -> None:
        self.images, self.size = images, len(images)

    def rows(self, index: np.ndarray) -> Batch:
        return {"image": torch.from_numpy(np.ascontiguousarray(self.images[index]))}


@final
class Images(Input):
    """Images of `size`×`size` pixels with `channels`, normalised by `mean` and `std` of values in 0..1."""

    modality = "images"
    default_trunk = "convnet"
    default_objective = "simclr"
    baselines = ("logistic regression", "SVM", "1-NN")

    def __init__(
        self, size: int, channels: int = 1, mean: tuple[float, ...] = (0.5,), std: tuple[float, ...] = (0.25,)
    ) -> None:
        if not len(mean) == len(std) == channels:
            raise UserError(f"images: {channels} channels need as many means and stds, got {mean} and {std}")
        self.size, self.channels, self.mean, self.std = size, channels, mean, std

    def embed(self) -> Pixels:
        return Pixels(self.size, self.channels, self.mean, self.std)

    def unembed(self) -> Paint:
        return Paint(self.embed())

    def views(self, **options: Any) -> Augment:
        """`crop`: area range or its low end; `flip`: probability; `intensity`: of light; `ratio`: aspect range."""
        defaults: dict[str, Any] = {"crop": (0.3, 1.0), "flip": 0.5, "intensity": 0.4, "ratio": 4 / 3}
        for key in options:
            if key not in defaults:
                raise unknown("image view", key, defaults)
        return Augment(self.size, **{**defaults, **options})

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Folders (unless of Parquet or .txt files), image and array files, and tables with a column of image paths."""
        kind = table_kind(path)
        if path.is_dir():
            if any(path.rglob("*.parquet")):
                return False
            found = {table_kind(Path(parts[-1])) for parts in walk(path)}
            return bool(found & EXTENSIONS) or not found & {*PLAIN} or bool(idx_sets(path))
        if kind not in TABLES:
            return path.suffix.lower() in {*EXTENSIONS, ".npy", ".npz"} or is_idx(path)
        try:
            return _path_column(peek(path), path.parent, str(path)) is not None
        except UserError:
            return False

    @classmethod
    def scan(cls, path: Path) -> tuple[RawImages, pa.Table]:
        return scan(path)

    @classmethod
    def as_raw(cls, x: Any) -> RawImages:
        return as_raw(x)

    @classmethod
    def infer(
        cls, raw: Any, index: np.ndarray, *, progress: Progress | None = None, size: int | None = None, **_: Any
    ) -> Images:
        found, channels = survey(raw)
        plain = cls(size or found, channels, (0.5,) * channels, (0.25,) * channels)
        # The same packing serves training from the cache, so no image is decoded twice.
        made = plain._packed(raw, True, progress)
        rows = np.flatnonzero(np.isin(made.keep, index))
        some = rows[:: max(1, len(rows) // 5000)]
        values = np.asarray(made.images[some], np.float32).reshape(-1, channels) / 255
        mean, std = values.mean(0), values.std(0).clip(1e-3)
        return cls(plain.size, channels, tuple(mean.round(4).tolist()), tuple(std.round(4).tolist()))

    def pack(self, raw: RawImages, *, skip_bad: bool = False, progress: Progress | None = None) -> Packed:
        made = self._packed(raw, skip_bad, progress)
        return Packed(Pictures(made.images), made.keep, made.bad, made.hashes)

    def _packed(self, raw: RawImages, skip_bad: bool, progress: Progress | None) -> PackedImages:
        need = bytes_needed(raw, self.size, self.channels) / 1e6
        words = f"{need:,.1f} MB of {self.size}×{self.size} pixels, {self.channels} channel(s)"
        tell = None if progress is None else lambda done, total: progress(done, total, words)
        return pack(raw, size=self.size, channels=self.channels, skip_bad=skip_bad, progress=tell)

    def flat(self, batch: Batch) -> np.ndarray:
        return (centre(batch["image"], self.size).flatten(1).float() / 255).numpy()

    def beside(self, before: Batch, after: Batch) -> list[Image.Image]:
        """Pictures of every row with its reconstruction at its right."""
        return pictures({"image": torch.cat([centre(before["image"], self.size), after["image"]], 2)})

    def show(self, batch: Batch) -> list[dict[str, str]]:
        out = []
        for picture in pictures(batch):
            picture.thumbnail((96, 96))
            out.append({"thumb": "data:image/png;base64," + base64.b64encode(png(picture)).decode()})
        return out

    def table(self, batch: Batch, prompt: str | None = None) -> pa.Table:
        """A column `image` of PNG files."""
        del prompt
        return pa.table({"image": [png(picture) for picture in pictures(batch)]})

    def sheet(self, batch: Batch) -> Image.Image:
        """All images of the batch in one, side by side, a pixel apart."""
        found = pictures(batch)
        wide = math.ceil(math.sqrt(len(found)))
        width, height = (side + 1 for side in found[0].size)
        out = Image.new(
            found[0].mode, (wide * width + 1, math.ceil(len(found) / wide) * height + 1), GREY[found[0].mode]
        )
        for k, picture in enumerate(found):
            out.paste(picture, (k % wide * width + 1, k // wide * height + 1))
        return out


def pictures(batch: Batch) -> list[Image.Image]:
    """The images of a batch."""
    return [Image.fromarray(x[..., 0] if x.shape[-1] == 1 else x) for x in batch["image"].cpu().numpy()]


def png(picture: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
