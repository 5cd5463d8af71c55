"""Small graphs as small SVGs."""

from __future__ import annotations

import base64

import numpy as np

MOST = 150
"""Nodes of a graph that is still drawn."""


def uri(svg: str) -> str:
    """An SVG as a data URI."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def drawn(ends: np.ndarray, count: int, first: bool) -> str:
    """Dots and lines, laid out by springs; node 0 is marked where the graph is about it."""
    place = springs(ends, count)
    low, span = place.min(0), np.ptp(place, axis=0).clip(1e-9)
    xy = (10 + (place - low) / span * (140, 100)).round(1)
    lines = "".join(f"M{xy[i, 0]},{xy[i, 1]}L{xy[j, 0]},{xy[j, 1]}" for i, j in ends.tolist() if i <= j)
    dots = "".join(f'<circle cx="{x}" cy="{y}" r="3"/>' for x, y in xy[first:])
    mark = f'<circle cx="{xy[0, 0]}" cy="{xy[0, 1]}" r="5" fill="#d33"/>' if first else ""
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 160 120" style="background:#fff">'
    return f'{head}<path d="{lines}" stroke="#999" fill="none"/><g fill="#36c">{dots}</g>{mark}</svg>'


def edges(ends: np.ndarray) -> int:
    """How many edges there are for a reader: those that all go both ways count once."""
    there = {(i, j) for i, j in ends.tolist()}
    both = len(there) == len(ends) and all((j, i) in there for i, j in there)
    return sum(i <= j for i, j in there) if both else len(ends)


def springs(ends: np.ndarray, count: int, rounds: int = 50) -> np.ndarray:
    """Places (n, 2) of nodes that repel each other and attract along edges (Fruchterman & Reingold 1991)."""
    angle = 2 * np.pi * np.arange(count) / max(count, 1)
    place = np.stack([np.cos(angle), np.sin(angle)], 1)
    near, joined = (np.pi / max(count, 1)) ** 0.5, np.zeros((count, count))
    joined[ends[:, 0], ends[:, 1]] = joined[ends[:, 1], ends[:, 0]] = 1
    for k in range(rounds):
        gap = place[:, None] - place[None]
        size = np.sqrt((gap**2).sum(2)).clip(0.01)
        force = (gap * (near**2 / size**2 - joined * size / near)[..., None]).sum(1)
        length = np.sqrt((force**2).sum(1, keepdims=True)).clip(1e-9)
        place = place + force / length * np.minimum(length, 0.2 * (1 - k / rounds))
    return place
