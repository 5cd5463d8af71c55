"""Node-link graphs: dicts as networkx writes them, one in JSON or one a line, as rows of graphs or of nodes."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from modicum.core.errors import UserError, Warned
from modicum.modalities._files import check_encoding, opened
from modicum.modalities._graphpack import Features, RawGraphs, Store, columns, content, offsets

LABELS = ("label", "class", "target", "y")
FACTS = ("id", "split", "group", *LABELS)
"""What is said of a node that is no feature of it."""
FORMS = (
    "a table with a column of SMILES, .smi, .sdf, JSON lines of node-link graphs, or a list of SMILES, of networkx "
    "graphs or of torch-geometric Data"
)


def is_pyg(x: Any) -> bool:
    """Whether x is a torch-geometric Data."""
    return hasattr(x, "edge_index") and hasattr(x, "num_nodes")


def is_graph(path: Path) -> bool:
    """Whether a JSON file begins like a node-link graph, or a list of them."""
    try:
        with opened(path) as file:
            head = file.read(1 << 16)
    except (OSError, EOFError):
        return False
    return b'"nodes"' in head and (b'"links"' in head or b'"edges"' in head or len(head) == 1 << 16)


def read_json(path: Path) -> list[Any]:
    """The graphs of a file: one a line, or one JSON value: a graph or a list of graphs."""
    check_encoding(path)
    with opened(path) as file:
        text = file.read().decode("utf-8-sig")
    try:
        whole = json.loads(text)
        return whole if isinstance(whole, list) else [whole]
    except ValueError:
        pass
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise UserError(f"{path}, line {number}: no JSON: {error}; wanted one graph a line") from None
    return rows


class Links:
    """One node-link graph, read: nodes and edges with their features, or `why` it cannot be used."""

    def __init__(self, given: Any) -> None:
        self.nodes: list[Mapping[str, Any]] = []
        self.edges: list[Mapping[str, Any]] = []
        self.ends = np.empty((0, 2), np.int32)
        self.facts: dict[str, Any] = {}
        self.why = self._read(given)
        if self.why:
            self.nodes, self.edges, self.ends = [], [], self.ends[:0]

    def _read(self, given: Any) -> str:
        if not isinstance(given, dict) or not isinstance(given.get("nodes"), list):
            return "it is no node-link graph: wanted {'nodes': [...], 'edges': [...]}"
        key = "links" if "links" in given else "edges"
        edges = given.get(key, [])
        own: dict[str, Any] = given["graph"] if isinstance(given.get("graph"), dict) else {}
        skip = ("nodes", "links", "edges", "directed", "multigraph", "graph")
        self.facts = {k: v for k, v in {**own, **given}.items() if k not in skip and not isinstance(v, list | dict)}
        nodes: list[Mapping[str, Any]] = [node if isinstance(node, dict) else {"id": node} for node in given["nodes"]]
        if not nodes:
            return "the graph has no nodes"
        place: dict[Any, int] = {}
        for k, node in enumerate(nodes):
            name = _name(node.get("id", k))
            if name in place:
                return f"two nodes have the id {node.get('id', k)!r}"
            place[name] = k
        ends = []
        for k, edge in enumerate(edges if isinstance(edges, list) else [None]):
            if not isinstance(edge, dict) or "source" not in edge or "target" not in edge:
                return f"edge {k} has no source and target"
            for side in ("source", "target"):
                if _name(edge[side]) not in place:
                    return f"edge {k} has the {side} {edge[side]!r}, which is none of its {len(nodes)} nodes"
            ends.append((place[_name(edge["source"])], place[_name(edge["target"])]))
        self.nodes, self.edges = nodes, list(edges)
        self.ends = np.array(ends, np.int32).reshape(-1, 2)
        if not given.get("directed"):  # both ways, and a loop once
            back = np.flatnonzero(self.ends[:, 0] != self.ends[:, 1])
            self.ends = np.concatenate([self.ends, self.ends[back, ::-1]])
            self.edges += [self.edges[k] for k in back]
        return ""


def _name(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def from_dicts(given: Sequence[Any], where: str) -> RawGraphs:
    """Node-link graphs; rows are nodes where nodes, and no graph, have a label, else graphs."""
    links = [Links(one) for one in given]
    if not links:
        raise UserError(f"{where}: holds no graph")
    bad = {i: g.why for i, g in enumerate(links) if g.why}
    every = [node for g in links for node in g.nodes]
    fields = tabulated(every, (*FACTS, "source", "target"), "node")
    nodes = columns(fields, len(every))
    edges_of = [edge for g in links for edge in g.edges]
    edges = columns(tabulated(edges_of, ("source", "target", "key", "id"), "edge"), len(edges_of))
    counts = [len(g.nodes) for g in links]
    ends = np.concatenate([np.empty((0, 2), np.int32), *(g.ends for g in links)])
    store = Store(offsets(counts), offsets([len(g.ends) for g in links]), ends, nodes, edges)
    of_nodes = any(name in node for node in every for name in LABELS) and not any(
        name in g.facts for g in links for name in LABELS
    )
    facts = [{"id": str(k), **g.facts} for k, g in enumerate(links)]
    if not of_nodes:
        return finished(store, table_of(facts, where), bad, where)
    if bad:
        row, why = next(iter(bad.items()))
        count = len(links)
        raise UserError(
            f"{where}: {len(bad)} of {count} graphs cannot be used, such as graph {row + 1} of {count}: {why}"
        )
    alone, rows = len(links) == 1, []
    for fact, g in zip(facts, links, strict=True):
        for k, node in enumerate(g.nodes):
            name = str(node.get("id", k))
            own = {n: node[n] for n in FACTS if n in node}
            rows.append({**fact, **own, "id": name if alone else f"{fact['id']}/{name}"})
    return finished(store, table_of(rows, where), {}, where, of_nodes=True)


def finished(store: Store, facts: pa.Table, bad: Mapping[int, str], where: str, *, of_nodes: bool = False) -> RawGraphs:
    """The rows, once graphs without features have their nodes' degrees as one; graphs without edges are counted."""
    if not store.nodes.codes.shape[1] and not store.nodes.numeric.shape[1]:
        store = Store(store.starts, store.edge_starts, store.ends, degrees(store), store.edges)
    bare = int(((np.diff(store.edge_starts) == 0) & (np.diff(store.starts) > 0)).sum())
    if bare:
        warnings.warn(f"{where}: {bare:,} of {len(store):,} graphs have no edges; they are kept", Warned, stacklevel=4)
    if "id" in facts.column_names:
        ids = facts.column("id").to_pylist()
        if twice := len(ids) - len(set(ids)):
            warnings.warn(f"{where}: {twice:,} row(s) have an id that an earlier row has", Warned, stacklevel=4)
    infinite = np.flatnonzero(np.isinf(store.nodes.numeric).any(1))
    bad = dict(bad) | {int(g): "a feature of a node is infinite" for g in graphs_of(store, infinite)}
    hashes = content(store)
    if not of_nodes:
        return RawGraphs(store, facts, hashes, np.arange(len(store)), None, bad)
    graph = np.repeat(np.arange(len(store)), np.diff(store.starts))
    node = np.arange(len(graph)) - store.starts[graph]
    # Nodes whose surroundings look alike are still different rows: what a row is, is which node of which graph.
    mixed = hashes[graph] ^ (node.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    return RawGraphs(store, facts, mixed, graph, node, {k: bad[g] for k, g in enumerate(graph.tolist()) if g in bad})


def graphs_of(store: Store, nodes: np.ndarray) -> np.ndarray:
    """The graphs that have one of the nodes."""
    return np.unique(np.searchsorted(store.starts, nodes, "right") - 1)


def degrees(store: Store) -> Features:
    """The number of edges into every node, as its one feature."""
    first = np.repeat(store.starts[:-1], np.diff(store.edge_starts))
    count = np.bincount(store.ends[:, 1] + first, minlength=int(store.starts[-1])).astype(np.float32)
    return Features(np.empty((len(count), 0), np.int32), count[:, None], (), ("degree",))


def table_of(rows: Sequence[Mapping[str, Any]], where: str) -> pa.Table:
    """Facts as a table."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    try:
        return pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})
    except pa.ArrowException as error:
        raise UserError(f"{where}: what is said of the graphs does not make a table: {error}") from None


def tabulated(rows: Sequence[Mapping[str, Any]], skip: Sequence[str], what: str) -> dict[str, np.ndarray]:
    """The features of nodes or edges by column: float64 of numbers (NaN where missing), objects of texts (None there).

    A list of numbers is a column for each of them. UserError where a feature is a number here and a text there.
    """
    names = list(dict.fromkeys(name for row in rows for name in row if name not in skip))
    out: dict[str, np.ndarray] = {}
    for name in names:
        values = [row.get(name) for row in rows]
        some = [v for v in values if v is not None]
        if some and all(isinstance(v, list) for v in some):
            sizes = {len(v) for v in some}
            if len(sizes) > 1:
                raise UserError(
                    f"feature '{name}' of a {what} has {min(sizes)} numbers in one and {max(sizes)} in another"
                )
            for k in range(sizes.pop()):
                out[f"{name}.{k}"] = _column(f"{name}.{k}", [None if v is None else v[k] for v in values], what)
        elif some:
            out[name] = _column(name, values, what)
    return out


def _column(name: str, values: Sequence[Any], what: str) -> np.ndarray:
    some = [v for v in values if v is not None]
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in some):
        return np.array([math.nan if v is None else v for v in values], np.float64)
    if all(isinstance(v, str | bool) for v in some):
        return np.array([None if v is None else str(v) for v in values], object)
    kinds = ", ".join(sorted({type(v).__name__ for v in some}))
    raise UserError(f"feature '{name}' of a {what} is a mix of {kinds}: wanted numbers, or texts, in all of them")
