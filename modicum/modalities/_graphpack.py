"""Graphs as flat arrays with offsets: built from columns, memory-mapped in the cache, read as padded batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from safetensors.numpy import save_file

from modicum.core.atomic import atomic_path
from modicum.core.errors import UserError
from modicum.core.types import Batch
from modicum.modalities._tableread import place_of

HIDDEN = -1
"""The code of a category that is missing, or hidden by a view."""


class Features(NamedTuple):
    """Columns of nodes or of edges: `codes` (n, m) into `values`, -1 where missing, and `numeric` (n, p), NaN there."""

    codes: np.ndarray
    numeric: np.ndarray
    categorical: tuple[tuple[str, tuple[str, ...]], ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Store:
    """Graphs one after the other: graph i has the nodes and edges from `starts[i]` and `edge_starts[i]` on.

    `ends` (E, 2) are numbers of nodes within their graph.
    """

    starts: np.ndarray
    edge_starts: np.ndarray
    ends: np.ndarray
    nodes: Features
    edges: Features

    def __len__(self) -> int:
        return len(self.starts) - 1


@dataclass(frozen=True, eq=False)
class RawGraphs:
    """Rows of graphs: row i is graph `graph[i]` of the store or, with `node`, that node of it and what lies around.

    `bad` says why a row cannot be used; `rows` are those of the `facts` that are taken, all by default.
    """

    store: Store
    facts: pa.Table
    hashes: np.ndarray
    graph: np.ndarray
    node: np.ndarray | None = None
    bad: Mapping[int, str] = field(default_factory=dict)
    left_out: Sequence[tuple[int, str, str]] = ()
    several: int = 0
    molecules: bool = False
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.graph) if self.rows is None else len(self.rows)

    def take(self, index: Sequence[int] | np.ndarray) -> RawGraphs:
        """The rows `index`."""
        rows = np.arange(len(self))[np.asarray(index) if len(index) else slice(0)]
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def own(self, index: np.ndarray | None = None) -> np.ndarray:
        """The numbers of rows, or of some of them, among all that were read."""
        every = np.arange(len(self.graph)) if self.rows is None else self.rows
        return every if index is None else every[index]

    def place(self, row: int) -> str:
        """What messages call a row: its number, and its id where it has one."""
        own = int(self.own()[row])
        ids = self.facts.column("id") if "id" in self.facts.column_names else None
        place = place_of(self.facts, own)
        return place if ids is None or str(ids[own]) == str(own) else f"{place} ({ids[own]})"


def offsets(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Where each of so many begins, and where the last ends: (n + 1,)."""
    return np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))]).astype(np.int64)


def inside(starts: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of the parts of rows `index` (b, most), and which of them are real."""
    counts = starts[index + 1] - starts[index]
    step = np.arange(int(counts.max(initial=0)))
    return starts[index][:, None] + step, step < counts[:, None]


def content(store: Store) -> np.ndarray:
    """A 64-bit hash (n,) of every graph's nodes and edges: of its values, not of how they are coded."""
    words = []
    for part in (store.nodes, store.edges):
        tables = [np.array([0, *map(_word, (f"{name}={v}" for v in values))], np.uint64) for name, values in part[2]]
        coded = [t[part.codes[:, j].astype(np.int64) + 1] for j, t in enumerate(tables)]
        empty = np.empty((len(part.codes), 0), np.uint64)
        named = np.array([_word(name) for name in part.names], np.uint64)
        own = part.numeric.astype(np.float64).view(np.uint64) ^ named
        words.append(np.concatenate([np.stack(coded, 1) if coded else empty, own], 1))
    nodes, edges = words
    first = np.repeat(store.starts[:-1], np.diff(store.edge_starts))
    order = np.lexsort((store.ends[:, 1], store.ends[:, 0] + first))  # in whichever order edges were written
    ends, edges = store.ends[order].astype(np.int64), edges[order]
    out = np.empty(len(store), np.uint64)
    for i in range(len(store)):
        a, b, c, d = *store.starts[i : i + 2], *store.edge_starts[i : i + 2]
        data = [nodes[a:b].tobytes(), ends[c:d].tobytes(), edges[c:d].tobytes()]
        out[i] = _word(b"".join([str((b - a, d - c)).encode(), *data]))
    return out


def _word(data: str | bytes) -> int:
    data = data.encode() if isinstance(data, str) else data
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def columns(names: Mapping[str, np.ndarray], count: int) -> Features:
    """Features of columns (count,): those of numbers as such, those of texts as codes."""
    numeric = {n: v for n, v in names.items() if v.dtype.kind == "f"}
    codes, categorical = [], []
    for name, values in names.items():
        if name not in numeric:
            known = np.array([v is not None for v in values], bool)
            found, code = np.unique(values[known].astype(str), return_inverse=True)
            own = np.full(count, HIDDEN, np.int32)
            own[known] = code
            codes.append(own)
            categorical.append((name, tuple(found.tolist())))
    return Features(
        np.stack(codes, 1) if codes else np.empty((count, 0), np.int32),
        np.stack([*numeric.values()], 1).astype(np.float32) if numeric else np.empty((count, 0), np.float32),
        tuple(categorical),
        tuple(numeric),
    )


class Rows:
    """The graphs `index` of a store, recoded, as a Source; `of` (N,) are the places of its nodes' features.

    Batches: "codes" (b, t, m) long and "numeric" (b, t, p) of nodes with "mask" (b, t); "edges" (b, e, 2) long with
    "edge_mask" (b, e), "edge_codes" (b, e, q) long and "edge_numeric" (b, e, r).
    """

    def __init__(
        self, store: Store, index: np.ndarray, nodes: Features, edges: Features, of: np.ndarray | None = None
    ) -> None:
        self.store, self.index, self.size = store, index, len(index)
        self.nodes, self.edges, self.of = nodes, edges, of
        self.lengths = np.diff(store.starts)[index]

    def rows(self, index: np.ndarray) -> Batch:
        own = self.index[index]
        at, mask = inside(self.store.starts, own)
        if not mask.shape[1]:
            at, mask = np.zeros((len(own), 1), int), np.zeros((len(own), 1), bool)
        where = at[mask] if self.of is None else self.of[at[mask]]
        edge_at, edge_mask = inside(self.store.edge_starts, own)
        real = edge_at[edge_mask]
        made = {
            "codes": _padded(self.nodes.codes[where], mask, np.int64), "mask": mask,
            "numeric": _padded(self.nodes.numeric[where], mask, np.float32),
            "edges": _padded(self.store.ends[real], edge_mask, np.int64), "edge_mask": edge_mask,
            "edge_codes": _padded(self.edges.codes[real], edge_mask, np.int64),
            "edge_numeric": _padded(self.edges.numeric[real], edge_mask, np.float32),
        }  # fmt: skip
        return {key: torch.from_numpy(value) for key, value in made.items()}


def _padded(values: np.ndarray, mask: np.ndarray, kind: Any) -> np.ndarray:
    out = np.zeros((*mask.shape, values.shape[1]), kind)
    if values.shape[1]:
        out[mask] = values
    return out


def keep(target: Path, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Write arrays and facts (JSON) as one safetensors file that appears whole or not at all."""
    try:
        with atomic_path(target) as temporary:
            save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, temporary, {"facts": json.dumps(facts)})
    except OSError as error:
        raise UserError(
            f"{target.parent}: parsed molecules cannot be written here ({error.strerror or error}): free some space "
            "or set MODICUM_CACHE to a folder with room"
        ) from error


def kept(target: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """What `keep` wrote, memory-mapped; None where it is not there or not whole."""
    try:
        data = np.memmap(target, np.uint8, "r")
        size = int(data[:8].view("<u8")[0])
        head = json.loads(bytes(data[8 : 8 + size]))
        facts, out = json.loads(head.pop("__metadata__")["facts"]), {}
        for name, one in head.items():
            first, last = (8 + size + k for k in one["data_offsets"])
            kind = {"U8": "u1", "I32": "<i4", "I64": "<i8", "U64": "<u8"}[one["dtype"]]
            out[name] = np.frombuffer(data[first:last], kind).reshape(one["shape"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return out, facts
