"""Decoding one image: whatever its mode, to a square of grey or RGB bytes."""

from __future__ import annotations

import os
from functools import cache

import numpy as np
from PIL import Image, UnidentifiedImageError

from modicum.modalities._imagearrays import factor

# By content, not by extension; without formats that start other programs (EPS) or that are documents.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "TGA")
ORIENTATION = 0x0112  # the EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(f for f in FORMATS if f in Image.OPEN)  # a build of Pillow may lack some


def header(path: str) -> tuple[int, int, str] | None:
    """(width, height, mode) from the first bytes of a file; None when it cannot be read as an image."""
    try:
        with Image.open(path, formats=_formats()) as image:
            return (*image.size, image.mode)
    except MemoryError:
        raise
    except Exception:  # Pillow's readers raise anything at all on damaged files; decoding will tell
        return None


def decode(source: str | np.ndarray | Image.Image, side: int, channels: int) -> np.ndarray:
    """An image file, PIL image or uint8 array (h, w, c) as uint8 (side, side, channels), upright, over white.

    Raises whatever Pillow does for a file it cannot read, and ValueError for values out of range.
    """
    if isinstance(source, str):
        with Image.open(source, formats=_formats()) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit and image.width * image.height > limit:  # up to twice as many, Pillow itself only warns
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
            # JPEG can be decoded at a fraction of its size; twice the side leaves the resampling filter its quality.
            image.draft(None, (2 * side, 2 * side))
            return _square(image, side, channels)
    if isinstance(source, np.ndarray):
        source = Image.fromarray(source[..., 0] if source.shape[2] == 1 else source)
    return _square(source, side, channels)


def _square(image: Image.Image, side: int, channels: int) -> np.ndarray:
    turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    image = _plain(image, "L" if channels == 1 else "RGB")
    if turn is not None:
        image = image.transpose(turn)
    width, height = image.size
    if (width, height) != (side, side):
        # The centre square is cut out and resized at once: the rest is never resampled, however long the image.
        short = min(width, height)
        left, top = (width - short) / 2, (height - short) / 2
        box = (left, top, left + short, top + short)
        image = image.resize((side, side), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
    return np.asarray(image).reshape(side, side, channels)


def _plain(image: Image.Image, mode: str) -> Image.Image:
    """The image as `mode`, L or RGB: 16-bit values over 257, transparent parts over white."""
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        if not np.isfinite(values).all():
            raise ValueError("NaN or infinite values")
        low, high = float(values.min()), float(values.max())
        if image.mode != "F" and (low < 0 or high > 65535):
            raise ValueError(f"values from {low:g} to {high:g} do not fit 16 bits")
        scale = factor(values.dtype, low, high) if image.mode == "F" else 1 / 257
        image = Image.fromarray(np.rint(values * scale).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == mode else image.convert(mode)


def reason(error: Exception, source: object) -> str:
    """Why an image is bad, in words."""
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"too large to be safe (decompression bomb): {error}"
    if isinstance(error, UnidentifiedImageError):
        empty = isinstance(source, str) and os.path.getsize(source) == 0
        return "the file is empty" if empty else "not an image that can be read"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, FileNotFoundError):
        return "the file is missing"
    return str(error) or type(error).__name__
