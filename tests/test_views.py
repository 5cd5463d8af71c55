"""Views of images against Pillow: the same crops, mirrors and light, for a whole batch at once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from modicum.core import seeds
from modicum.core.errors import UserError
from modicum.modalities.images import Images, Pictures, centre, resample

BILINEAR = Image.Resampling.BILINEAR


def cropped(images: np.ndarray, boxes: np.ndarray, out: int) -> torch.Tensor:
    """Our crop and resize of images (b, h, w, c): boxes (b, 4) are (left, top, right, bottom); (b, out, out, c)."""
    b, h, w, c = images.shape
    left, top, right, bottom = torch.from_numpy(boxes).float().T
    x = torch.from_numpy(images).float()
    x = resample(x.reshape(b, h, w * c), out, top, bottom - top).view(b, out, w, c).transpose(1, 2)
    return resample(x.reshape(b, w, out * c), out, left, right - left).view(b, out, out, c).transpose(1, 2)


def pillow(image: np.ndarray, box: np.ndarray, out: int) -> np.ndarray:
    """Pillow's, in 8 bits for colour and in float for grey."""
    if image.shape[2] == 3:
        return np.asarray(Image.fromarray(image).resize((out, out), BILINEAR, box=tuple(box)), np.float32)
    grey = Image.fromarray(image[..., 0]).convert("F")
    return np.asarray(grey.resize((out, out), BILINEAR, box=tuple(box)))[..., None]


def drawn(b: int, h: int, w: int, c: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random images and boxes inside them."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (b, h, w, c), np.uint8)
    high, wide = rng.uniform(0.1, 1, b) * h, rng.uniform(0.1, 1, b) * w
    top, left = rng.uniform(0, 1, b) * (h - high), rng.uniform(0, 1, b) * (w - wide)
    return images, np.stack([left, top, left + wide, top + high], 1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(2, 60), st.integers(2, 60), st.integers(1, 40), st.sampled_from([1, 3]), st.integers(0, 10**6))
def test_crop_and_resize_is_pillows_bilinear(h: int, w: int, out: int, c: int, seed: int) -> None:
    images, boxes = drawn(4, h, w, c, seed)
    ours = cropped(images, boxes, out).numpy()
    for k in range(4):
        theirs = pillow(images[k], boxes[k], out)
        # 8 bits are rounded once a side, float is not.
        assert np.abs(ours[k] - theirs).max() <= (1.01 if c == 3 else 0.02)


def test_the_whole_image_at_its_own_size_is_itself() -> None:
    images, _ = drawn(3, 17, 17, 3)
    boxes = np.tile([0.0, 0, 17, 17], (3, 1))
    assert torch.equal(cropped(images, boxes, 17), torch.from_numpy(images).float())


def test_weights_sum_to_one_so_that_a_plain_image_stays_plain() -> None:
    _, boxes = drawn(50, 24, 30, 1)
    plain = np.full((50, 24, 30, 1), 137, np.uint8)
    for out in (1, 7, 24, 50):
        torch.testing.assert_close(cropped(plain, boxes, out), torch.full((50, out, out, 1), 137.0))


# The views


def images(size: int, channels: int = 1) -> Images:
    return Images(size, channels, (0.5,) * channels, (0.25,) * channels)


def viewed(batch: torch.Tensor, size: int, seed: int = 0, **options: Any) -> torch.Tensor:
    return images(size, batch.shape[3]).views(**options)({"image": batch}, seeds.generator(seed))["image"]


WHOLE = {"crop": (1.0, 1.0), "ratio": 1.0, "flip": 0.0, "intensity": 0.0}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 8, 31])
def test_nothing_asked_is_the_identity(channels: int, size: int) -> None:
    batch = torch.from_numpy(drawn(6, size, size, channels)[0])
    assert torch.equal(viewed(batch, size, **WHOLE), batch.float())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_flip_mirrors(channels: int) -> None:
    batch = torch.from_numpy(drawn(6, 20, 26, channels)[0])
    square = batch[:, :, :20]
    assert torch.equal(viewed(square, 20, **{**WHOLE, "flip": 1.0}), square.flip(2).float())
    for crop in ((1.0, 1.0), (0.3, 1.0)):
        straight = viewed(batch, 15, crop=crop, flip=0.0, intensity=0.3)
        mirrored = viewed(batch, 15, crop=crop, flip=1.0, intensity=0.3)
        torch.testing.assert_close(mirrored, straight.flip(2), rtol=0, atol=0.01)


def test_half_are_flipped_one_by_one() -> None:
    batch = torch.from_numpy(drawn(400, 5, 5, 1)[0])
    out = viewed(batch, 5, **{**WHOLE, "flip": 0.5})
    turned = (out == batch.flip(2)).flatten(1).all(1)
    kept = (out == batch).flatten(1).all(1)
    assert torch.equal(turned, ~kept)
    assert 160 < turned.sum() < 240


def test_light_is_pillows_contrast_and_a_shift() -> None:
    """gain·(x - mean) + mean is ImageEnhance.Contrast about the exact mean; the shift is at most half the intensity."""
    batch = torch.from_numpy(drawn(64, 9, 9, 1)[0] // 4 + 96)
    out = viewed(batch, 9, **{**WHOLE, "intensity": 0.4})
    x, y = batch.float().flatten(1), out.flatten(1)
    gain = y.std(1) / x.std(1)
    assert ((gain > 0.6 - 1e-4) & (gain < 1.4 + 1e-4)).all()
    assert gain.std() > 0.1
    shift = y.mean(1) - x.mean(1)
    assert shift.abs().max() <= 255 * 0.2 + 1e-3
    assert shift.std() > 10
    torch.testing.assert_close(y, (x - x.mean(1, True)) * gain[:, None] + x.mean(1, True) + shift[:, None])
    flat = np.asarray(batch[0, ..., 0])
    enhanced = ImageEnhance.Contrast(Image.fromarray(flat)).enhance(float(gain[0]))
    ours = (y[0] - shift[0]).view(9, 9).numpy()
    assert np.abs(ours - np.asarray(enhanced, np.float32)).max() <= 1.5  # its mean is rounded to whole levels


def test_light_stays_within_what_a_pixel_can_be() -> None:
    batch = torch.from_numpy(drawn(64, 9, 9, 3)[0])
    out = viewed(batch, 9, intensity=0.9)
    assert out.min() >= 0
    assert out.max() <= 255
    assert out.dtype == torch.float32


def test_samples_are_independent() -> None:
    """A sample's view depends on its own pixels and draws, not on the pixels of others."""
    batch = torch.from_numpy(drawn(8, 16, 16, 3)[0])
    other = batch.clone()
    other[4:] = 255 - other[4:]
    a, b = viewed(batch, 12), viewed(other, 12)
    assert torch.equal(a[:4], b[:4])
    assert not torch.equal(a[4:], b[4:])
    same = viewed(batch[:1].expand(8, -1, -1, -1), 12)
    assert len(same.unique(dim=0)) == 8


@pytest.mark.parametrize("channels", [1, 3])
def test_bytes_and_floats_give_one_view(channels: int) -> None:
    batch = torch.from_numpy(drawn(8, 16, 13, channels)[0])
    assert torch.equal(viewed(batch, 12), viewed(batch.float(), 12))


def test_crops_cover_the_areas_and_ratios_asked() -> None:
    """A ramp along each side shows where a crop begins and ends."""
    n, side = 2000, 64
    ramp = torch.arange(side).float()
    down = ramp.view(1, side, 1, 1).expand(n, side, side, 1)
    high, wide = (
        (lambda v: (v[:, -2] - v[:, 1]) / 29 * 32)(viewed(x, 32, crop=(0.3, 0.6), flip=0.0, intensity=0.0)[k])
        for x, k in ((down, (..., 16, 0)), (down.transpose(1, 2), (slice(None), 16, slice(None), 0)))
    )
    area, ratio = high * wide / side**2, (high / wide).log()
    assert area.min() > 0.29
    assert area.max() < 0.61
    assert abs(area.mean() - 0.45) < 0.01
    assert ratio.abs().max() < math.log(4 / 3) + 0.02
    assert abs(ratio.mean()) < 0.02
    assert ratio.std() > 0.1


def test_a_crop_of_the_whole_area_is_the_whole_image_at_any_ratio() -> None:
    batch = torch.from_numpy(drawn(16, 10, 10, 1)[0])
    out = viewed(batch, 10, crop=(1.0, 1.0), flip=0.0, intensity=0.0)
    assert torch.equal(out, batch.float())


BOUNDS = [
    {"crop": (0.0, 1.0)}, {"crop": (0.6, 0.5)}, {"crop": (0.5, 1.1)}, {"crop": (-1, 1)}, {"flip": -0.1}, {"flip": 1.1},
    {"intensity": 1.0}, {"intensity": -0.1}, {"ratio": 0.9}, {"crop": "wide"}, {"crop": (0.3,)},
    {"crop": (0.1, 0.2, 0.3)}, {"flip": "yes"}, {"ratio": None},
]  # fmt: skip


@pytest.mark.parametrize("options", BOUNDS, ids=str)
def test_bounds(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="views: "):
        images(8).views(**options)


def test_one_share_is_the_lower_end_of_the_crop() -> None:
    assert images(8).views(crop=0.3).crop == (0.3, 1.0)


def test_other_bounds() -> None:
    with pytest.raises(UserError, match="unknown image view 'zoom'; valid: "):
        images(8).views(zoom=2)
    with pytest.raises(UserError, match="images: 3 channels need as many means and stds"):
        Images(8, 3)


# What stands around the views


def test_the_middle_is_what_is_evaluated() -> None:
    batch = torch.from_numpy(drawn(2, 10, 13, 3)[0])
    assert torch.equal(centre(batch, 8), batch[:, 1:9, 2:10])
    assert torch.equal(centre(batch[:, :, :10], 10), batch[:, :, :10])
    tokens = images(8, 3).embed()({"image": batch})
    torch.testing.assert_close(tokens.x, ((batch[:, 1:9, 2:10] / 255 - 0.5) / 0.25).flatten(1, 2))
    assert torch.equal(images(8, 3).embed()({"image": batch.float()}).x, tokens.x)


def test_painting_undoes_embedding() -> None:
    made = Images(9, 3, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    batch = {"image": torch.from_numpy(drawn(5, 9, 9, 3)[0])}
    paint = made.unembed()
    tokens = made.embed()(batch).x
    assert torch.equal(paint.decode(tokens)["image"], batch["image"])
    assert not paint.loss(tokens, batch).any()
    moved = tokens + torch.tensor([0.0, 0.3, 0.6])
    torch.testing.assert_close(paint.loss(moved, batch), torch.full((5, 81), (0.09 + 0.36) / 3))
    far = paint.decode(torch.full((1, 81, 3), 99.0))["image"]
    assert (far == 255).all()


def test_a_source_gives_bytes() -> None:
    pixels = drawn(5, 4, 4, 1)[0]
    rows = Pictures(pixels).rows(np.array([3, 0]))["image"]
    assert rows.dtype == torch.uint8
    assert torch.equal(rows, torch.from_numpy(pixels[[3, 0]]))
