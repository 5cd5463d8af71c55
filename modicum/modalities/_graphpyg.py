"""torch-geometric's `Data` in memory as rows of graphs or of nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from modicum.core.errors import UserError
from modicum.modalities._graphlinks import finished, table_of
from modicum.modalities._graphpack import Features, RawGraphs, Store, columns, offsets


def from_data(items: Sequence[Any]) -> RawGraphs:
    """Graphs of `Data`: whole numbers in x and edge_attr are categories; y is a label of graphs, or of one's nodes."""
    bad: dict[int, str] = {}
    nodes, edges, ends = [], [], []
    width, edge_width = (_width(items, key) for key in ("x", "edge_attr"))
    for k, item in enumerate(items):
        pairs = np.empty((0, 2), np.int64) if item.edge_index is None else item.edge_index.cpu().numpy().T
        count = int(item.num_nodes)
        outside = (pairs < 0) | (pairs >= count)
        if not count:
            bad[k] = "the graph has no nodes"
        elif outside.any():
            edge = int(np.argwhere(outside)[0, 0])
            bad[k] = f"edge {edge} goes from node {pairs[edge, 0]} to {pairs[edge, 1]}; it has {count} nodes"
        x, attr = _matrix(item.x, count, width), _matrix(item.edge_attr, len(pairs), edge_width)
        nodes.append(x[:0] if k in bad else x)
        edges.append(attr[:0] if k in bad else attr)
        ends.append(pairs[:0] if k in bad else pairs)
    store = Store(
        offsets([len(x) for x in nodes]), offsets([len(e) for e in ends]),
        np.concatenate([np.empty((0, 2), np.int32), *ends]).astype(np.int32),
        _features(nodes, "x"), _features(edges, "edge"),
    )  # fmt: skip
    y = [getattr(item, "y", None) for item in items]
    if len(items) == 1 and y[0] is not None and y[0].numel() == items[0].num_nodes > 1:
        values = y[0].reshape(-1).cpu().numpy()
        facts = pa.table({"id": np.arange(len(values)).astype(str), "label": values})
        return finished(store, facts, bad, "the Data", of_nodes=True)
    rows = []
    for k, own in enumerate(y):
        values = [] if own is None else [None if v != v else v for v in own.reshape(-1).tolist()]
        named = {"label": values[0]} if len(values) == 1 else {f"y.{j}": v for j, v in enumerate(values)}
        rows.append({"id": str(k), **named})
    return finished(store, table_of(rows, "the list"), bad, "the list")


def _width(items: Sequence[Any], key: str) -> int:
    """How many features all of them have."""
    sizes = {1 if v.dim() == 1 else v.shape[1] for v in (getattr(item, key) for item in items) if v is not None}
    if len(sizes) > 1:
        raise UserError(f"{key} has {min(sizes)} columns in one graph and {max(sizes)} in another")
    return sizes.pop() if sizes else 0


def _matrix(x: Any, count: int, width: int) -> np.ndarray:
    """x as (count, width); without features where there is none."""
    if x is None:
        return np.full((count, width), np.nan, np.float32)
    found: np.ndarray = x.cpu().numpy().reshape(len(x), -1)
    if len(found) != count:
        raise UserError(f"features of {len(found)} nodes or edges for {count}")
    return found


def _features(parts: Sequence[np.ndarray], name: str) -> Features:
    x = np.concatenate(parts)
    if x.dtype.kind == "f":
        empty = np.empty((len(x), 0), np.int32)
        return Features(empty, x.astype(np.float32), (), tuple(f"{name}.{j}" for j in range(x.shape[1])))
    return columns({f"{name}.{j}": x[:, j].astype(str).astype(object) for j in range(x.shape[1])}, len(x))
