"""What a report shows of single rows: a map, neighbours, confident mistakes, reconstructions; kept as exhibits.json."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from modicum.core import seeds
from modicum.core.types import Objective, Source
from modicum.datasets.data import Labels
from modicum.probes import neighbours
from modicum.training.apply import batches_of, embed, evaluating, predict

POINTS = 1000
QUERIES, NEAREST, MISTAKES, REBUILT = 8, 8, 24, 12


def exhibits(
    objective: Objective,
    source: Source,
    rows: np.ndarray,
    named: Callable[[np.ndarray], list[str]],
    labels: Labels | None,
    *,
    seed: int,
) -> dict[str, Any]:
    """Exhibits of at most 1,000 of the `rows`, in the JSON form that `report.page` reads; `named` gives rows' ids.

    Predictions are shown where the objective predicts, reconstructions where it reconstructs.
    """
    rng = seeds.numpy(seed, "exhibits")
    rows = np.sort(rng.choice(rows, min(POINTS, len(rows)), replace=False)).astype(np.int64)
    ids = named(rows)
    encoder = next(iter(objective.encoders().values()))
    features = embed(encoder, source, rows)
    place, how = flat_map(features, seeds.fold(seed, "map") % 2**32)
    shown = encoder.input.show(source.rows(rows))
    points: list[dict[str, Any]] = [
        {"x": round(float(x), 4), "y": round(float(y), 4), "id": own, **show}
        for (x, y), own, show in zip(place, ids, shown, strict=True)
    ]
    if labels is not None:
        for point, row in zip(points, rows, strict=True):
            point["label"] = words(labels, row)
    out: dict[str, Any] = {"points": points, "map": f"{how} of {len(rows):,} embeddings"}
    if len(rows) > NEAREST:
        asked = rng.choice(len(rows), min(QUERIES, len(rows)), replace=False)
        found = neighbours(features, asked, NEAREST)
        out["neighbours"] = [{"query": int(q), "found": f.tolist()} for q, f in zip(asked, found, strict=True)]
    if hasattr(objective, "predict") and labels is not None:
        out["mistakes"] = _predicted(points, predict(objective, source, rows), labels, rows)
    if hasattr(objective, "reconstruct"):
        out["reconstructions"] = rebuilt(objective, source, rows[:REBUILT], ids[:REBUILT])
    return out


def words(labels: Labels, row: int) -> str | None:
    """A row's label in words; None where it has none."""
    value = labels.values[row]
    if labels.kind == "numbers":
        return _number(value) or None
    return labels.classes[value] if value >= 0 else None


def _number(value: Any) -> str:
    """A number in words, or those known of several tasks; "" where none is."""
    return (
        ", ".join("?" if np.isnan(v) else f"{v:.4g}" for v in np.atleast_1d(value)) if not np.isnan(value).all() else ""
    )


def flat_map(features: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    """Two coordinates for every row (n, 2), and the method's name: t-SNE of up to 50 principal components."""
    n, d = features.shape
    varied = bool(np.ptp(features, axis=0).any())
    if n < 30 or d < 3 or not varied:
        padded = np.pad(features, ((0, 0), (0, max(0, 2 - d))))
        return (PCA(2).fit_transform(padded), "PCA") if n > 2 and varied else (padded[:, :2], "the first two features")
    reduced = PCA(min(50, n, d), random_state=seed).fit_transform(features.astype(np.float64))
    place = TSNE(perplexity=min(30, (n - 1) / 3), init="pca", random_state=seed, max_iter=500).fit_transform(reduced)
    return place, "t-SNE"


def _predicted(points: list[dict[str, Any]], out: np.ndarray, labels: Labels, rows: np.ndarray) -> list[int]:
    """Write predictions into the points; the most confident mistakes first."""
    if labels.kind == "numbers":
        for point, value in zip(points, out, strict=True):
            point["predicted"] = _number(value)
        error = np.abs(out - labels.values[rows])
        if labels.tasks:
            error = np.nan_to_num(error / np.nanstd(labels.values, axis=0).clip(1e-12)).max(1)
        return [int(i) for i in np.argsort(-np.nan_to_num(error))[:MISTAKES]]
    best, confidence = out.argmax(1), out.max(1)
    for point, k, c in zip(points, best, confidence, strict=True):
        point |= {"predicted": labels.classes[k], "confidence": round(float(c), 4)}
    wrong = np.flatnonzero((best != labels.values[rows]) & (labels.values[rows] >= 0))
    return [int(i) for i in wrong[np.argsort(-confidence[wrong])][:MISTAKES]]


def rebuilt(objective: Any, source: Source, rows: np.ndarray, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Inputs beside their reconstructions, with each row's error."""
    show = next(iter(objective.encoders().values())).input.show
    out: list[dict[str, Any]] = []
    device = next(objective.parameters()).device
    with evaluating(objective):
        for batch in batches_of(source, rows, device):
            again, errors = objective.reconstruct(batch)
            pairs = zip(show(_cpu(batch)), show(_cpu(again)), errors.tolist(), strict=True)
            out += [{"input": _one(a), "output": _one(b), "error": e} for a, b, e in pairs]
    return [{**item, "id": name} for item, name in zip(out, ids, strict=True)]


def _cpu(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v.cpu() for k, v in batch.items()}


def _one(show: dict[str, str]) -> str:
    return show.get("thumb") or show["text"]
