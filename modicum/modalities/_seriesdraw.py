"""Pictures of series: every channel a line, in a row of small charts or one over the other."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image, ImageDraw

COLOURS = ["#3b6fb6", "#d1672c", "#3a9a5c", "#b0408c", "#8a6d1f", "#5a5fc0", "#2a9aa8", "#b03a3a"]
MOST = 8
"""Channels that are drawn."""
FINE = 3
"""How many times finer it is drawn than it is kept."""


def chart(series: np.ndarray, size: tuple[int, int] = (128, 96), other: np.ndarray | None = None) -> Image.Image:
    """Lines of a series (channels, t), NaN where missing, each channel scaled to a strip of its own.

    `other` (channels, t) is drawn over it in orange on the same scale: a reconstruction.
    """
    series = series[:MOST]
    wide, high = size[0] * FINE, size[1] * FINE
    picture = Image.new("RGB", (wide, high), "white")
    pen = ImageDraw.Draw(picture)
    strip = high / len(series)
    for k, line in enumerate(series):
        both = line if other is None else np.concatenate([line, other[k]])
        finite = both[np.isfinite(both)]
        low, top = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
        span = top - low or 1.0
        box = (k * strip, strip, low if top > low else low - 0.5, span)
        _line(pen, line, wide, box, COLOURS[0 if other is not None else k])
        if other is not None:
            _line(pen, other[k], wide, box, COLOURS[1])
    return picture.resize(size, Image.Resampling.LANCZOS)


def _line(
    pen: ImageDraw.ImageDraw, line: np.ndarray, wide: int, box: tuple[float, float, float, float], colour: str
) -> None:
    """One line with gaps where it is missing, in the strip of `box`: its top and height, least value and span."""
    top, high, low, span = box
    edge = 3 * FINE
    x = edge + np.arange(len(line)) * (wide - 2 * edge) / max(1, len(line) - 1)
    y = top + high - edge - (line - low) / span * (high - 2 * edge)
    real = np.flatnonzero(np.isfinite(y))
    for run in np.split(real, np.flatnonzero(np.diff(real) > 1) + 1):
        points = [(float(x[i]), float(y[i])) for i in run]
        if len(points) > 1:
            pen.line(points, fill=colour, width=FINE + 1, joint="curve")
        elif points:
            (px, py), r = points[0], FINE
            pen.ellipse((px - r, py - r, px + r, py + r), fill=colour)


def data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.quantize(32).save(buffer, "PNG", optimize=False)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
