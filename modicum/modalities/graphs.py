"""Graphs: molecules, or nodes and edges with features; every node a token, edges between them."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional as F

from modicum.core.errors import UserError, Warned, unknown
from modicum.core.types import Batch, Input, Packed, Progress
from modicum.modalities import _graphdraw, _graphfiles
from modicum.modalities import _graphmolecules as molecules
from modicum.modalities._graphnodes import neighbourhoods
from modicum.modalities._graphpack import HIDDEN, Features, RawGraphs, Rows, inside
from modicum.modalities._graphtokens import Atoms, Guess, Numeric, scaling
from modicum.modalities._graphviews import Perturb

Categorical = tuple[tuple[str, tuple[str, ...]], ...]
HOPS, AROUND = 3, 128
"""Steps from a node, and nodes around it, that are read where rows are nodes."""


@final
class Graphs(Input):
    """Graphs of up to about `nodes` nodes, as tokens of `width`.

    `categorical` (name, values) and `numeric` (name, mean, std) are features of nodes, `edge_...` those of edges;
    `molecules` have the features of torch-geometric's `from_smiles` instead. With `hops` rows are nodes: each with at
    most `nodes` nodes from which so many steps along edges lead to it.
    """

    modality = "graphs"
    default_trunk = "graph(width=128, depth=4)"
    default_objective = "masked"
    group = "scaffold"
    baselines: tuple[str, ...] = ("Morgan + random forest", "random forest", "logistic regression")

    def __init__(
        self,
        nodes: int,
        categorical: Categorical = (),
        numeric: Numeric = (),
        edge_categorical: Categorical = (),
        edge_numeric: Numeric = (),
        width: int = 128,
        molecules: bool = False,
        hops: int = 0,
    ) -> None:
        if min(nodes, width) < 1 or hops < 0:
            raise UserError(
                f"graphs wants nodes and width of at least 1 and hops >= 0; got {nodes=}, {width=}, {hops=}"
            )
        if not molecules and not categorical and not numeric:
            raise UserError("graphs wants at least one feature of nodes, such as their degree")
        self.nodes, self.categorical, self.numeric = nodes, categorical, numeric
        self.edge_categorical, self.edge_numeric = edge_categorical, edge_numeric
        self.width, self.molecules, self.hops = width, molecules, hops
        plain = ("random forest", "logistic regression")
        self.baselines = ("Morgan + random forest",) if molecules else plain

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many codes each categorical feature of nodes has; 0 is an unseen value, but in molecules."""
        return tuple(molecules.ATOM.values()) if self.molecules else tuple(len(v) + 1 for _, v in self.categorical)

    @property
    def edge_sizes(self) -> tuple[int, ...]:
        """How many codes each categorical feature of edges has."""
        return tuple(molecules.BOND.values()) if self.molecules else tuple(len(v) + 1 for _, v in self.edge_categorical)

    def embed(self) -> Atoms:
        return Atoms(self)

    def unembed(self) -> Guess:
        return Guess(self)

    def views(self, **options: Any) -> Perturb:
        """`subgraph`: share of the nodes that a connected part keeps; `nodes`, `edges`, `features`: shares lost."""
        defaults: dict[str, Any] = {"subgraph": 1.0, "nodes": 0.0, "edges": 0.0, "features": 0.25}
        for key in options:
            if key not in defaults:
                raise unknown("graph view", key, defaults)
        return Perturb(**{**defaults, **options}, first=self.hops > 0)

    @classmethod
    def claims(cls, path: Path) -> bool:
        return _graphfiles.claims(path)

    @classmethod
    def scan(cls, path: Path) -> tuple[RawGraphs, pa.Table]:
        return _graphfiles.scan(path)

    @classmethod
    def as_raw(cls, x: Any) -> RawGraphs:
        return _graphfiles.as_raw(x)

    @classmethod
    def likely(cls, x: Any) -> bool:
        return _graphfiles.likely(x)

    @classmethod
    def infer(
        cls,
        raw: RawGraphs,
        index: np.ndarray,
        *,
        progress: Progress | None = None,
        size: int | None = None,
        width: int = 128,
        **_: Any,
    ) -> Graphs:
        """The features of rows `index`; of rows that are nodes, those of all nodes in their graphs.

        `size`: the most nodes around a node that is a row.
        """
        store, graph = raw.store, np.unique(raw.graph[raw.own(index)])
        if size is not None and raw.node is None:
            raise UserError(f"--size {size}: whole graphs are read as they are; a size is for rows that are nodes")
        most = max(1, int(np.diff(store.starts)[graph].max(initial=1)))
        hops = 0 if raw.node is None else HOPS
        most = most if raw.node is None else min(most, size or AROUND)
        if raw.molecules:
            return cls(most, width=width, molecules=True)
        made = [
            _seen(part, at[real])
            for part, at, real in (
                (store.nodes, *inside(store.starts, graph)),
                (store.edges, *inside(store.edge_starts, graph)),
            )
        ]
        (categorical, numeric), (edge_categorical, edge_numeric) = made
        return cls(most, categorical, numeric, edge_categorical, edge_numeric, width, hops=hops)

    def pack(self, raw: RawGraphs, *, skip_bad: bool = False, progress: Progress | None = None) -> Packed:
        if raw.molecules != self.molecules:
            one, other = (
                ("molecules", "other graphs") if self.molecules else ("other graphs than molecules", "molecules")
            )
            raise UserError(f"the input takes {one}; these are {other}")
        if (raw.node is None) == bool(self.hops):
            one, other = ("nodes", "whole graphs") if self.hops else ("whole graphs", "nodes")
            raise UserError(f"the input's rows are {one}; these are {other}")
        rows = raw.own()
        keep = np.array([k for k, row in enumerate(rows.tolist()) if row not in raw.bad], int)
        bad = [(k, raw.place(k), raw.bad[row]) for k, row in enumerate(rows.tolist()) if row in raw.bad]
        bad += raw.left_out
        if bad and not skip_bad:
            shown = "\n  ".join(f"{place}: {why}" for _, place, why in bad[:10])
            more = f"\n  and {len(bad) - 10:,} more" if len(bad) > 10 else ""
            what = f"{len(bad):,} row(s) of {len(raw):,} cannot be used"
            raise UserError(f"{what}:\n  {shown}{more}\nuse --skip-bad to go on without them")
        if not len(keep):
            raise UserError(f"none of the {len(raw)} rows can be used, such as {bad[0][1]}: {bad[0][2]}")
        if raw.several:
            words = (
                f"{raw.several:,} of {len(raw.graph):,} molecules have several components, such as salts: kept whole"
            )
            warnings.warn(words, Warned, stacklevel=2)
        own, store = rows[keep], raw.store
        nodes, edges = store.nodes, store.edges
        if not self.molecules:
            nodes = recoded(nodes, self.categorical, self.numeric, "node")
            edges = recoded(edges, self.edge_categorical, self.edge_numeric, "edge")
        if raw.node is None:
            return Packed(Rows(store, raw.graph[own], nodes, edges), keep, bad, raw.hashes[own])
        around, of, edge_of = neighbourhoods(store, raw.graph[own], raw.node[own], self.hops, self.nodes)
        edges = edges._replace(codes=edges.codes[edge_of], numeric=edges.numeric[edge_of])
        return Packed(Rows(around, np.arange(len(own)), nodes, edges, of), keep, bad, raw.hashes[own])

    def note(self) -> str:
        if self.molecules:
            return ""
        parts = [f"{len(self.categorical)} categorical and {len(self.numeric)} numeric features of nodes"]
        parts += [f"{len(self.edge_categorical)} and {len(self.edge_numeric)} of edges"]
        if self.hops:
            parts += [f"a row is a node with at most {self.nodes} nodes within {self.hops} steps"]
        return "; ".join(parts)

    def flat(self, batch: Batch) -> np.ndarray:
        """Morgan fingerprints; of other graphs sizes, degrees and the mean features of nodes.

        Where rows are nodes: a node's features, the mean of its neighbours' and of all around it.
        """
        if self.molecules:
            return molecules.fingerprints(self._molecules(batch))
        mask, real = batch["mask"], batch["edge_mask"]
        hot = [F.one_hot(batch["codes"][..., j].clamp(min=0), size) for j, size in enumerate(self.sizes)]
        mean, std = scaling(self.numeric)
        numbers = ((batch["numeric"] - mean) / std).nan_to_num()
        x = torch.cat([*(h.float() for h in hot), numbers], 2) * mask.unsqueeze(2)
        b, t, p = x.shape
        ends = batch["edges"].masked_fill(~real.unsqueeze(2), 0)
        into = torch.zeros(b, t).scatter_add(1, ends[..., 1], real.float())
        sent = x.gather(1, ends[..., :1].expand(-1, -1, p)) * real.unsqueeze(2)
        near = torch.zeros_like(x).scatter_add(1, ends[..., 1:].expand(-1, -1, p), sent)
        near = near / into.clamp(min=1).unsqueeze(2)
        count = mask.sum(1, keepdim=True).clamp(min=1)
        if self.hops:
            return torch.cat([x[:, 0], near[:, 0], x.sum(1) / count, into[:, :1]], 1).numpy()
        degree = F.one_hot(into.long().clamp(max=9), 10) * mask.unsqueeze(2)
        sizes = torch.cat([count, real.sum(1, keepdim=True)], 1).float().log1p()
        return torch.cat([x.sum(1) / count, near.sum(1) / count, degree.sum(1) / count, sizes], 1).numpy()

    def _graphs(self, batch: Batch) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Codes (n, m), ends (e, 2) and codes of edges (e, q) of every row, without what is padded."""
        out, codes = [], batch["codes"].numpy()
        for k, own in enumerate(codes):
            mask = batch["mask"][k].numpy() if "mask" in batch else np.ones(len(own), bool)
            place = np.cumsum(mask) - 1
            if "edges" in batch:
                real = batch["edge_mask"][k].numpy()
                ends, kinds = place[batch["edges"][k].numpy()[real]], batch["edge_codes"][k].numpy()[real]
            else:
                ends, kinds = np.empty((0, 2), int), np.empty((0, len(self.edge_sizes)), int)
            out.append((own[mask], ends, kinds))
        return out

    def _molecules(self, batch: Batch) -> list[Any]:
        return [molecules.rebuilt(*graph) for graph in self._graphs(batch)]

    def show(self, batch: Batch) -> list[dict[str, str]]:
        if self.molecules:
            made, write = self._molecules(batch), molecules.chem().MolToSmiles
            return [{"thumb": _graphdraw.uri(molecules.drawn(mol)), "text": write(mol)} for mol in made]
        out = []
        for codes, ends, _ in self._graphs(batch):
            own = {"text": f"{len(codes):,} nodes, {_graphdraw.edges(ends):,} edges"}
            if 0 < len(codes) <= _graphdraw.MOST:
                own["thumb"] = _graphdraw.uri(_graphdraw.drawn(ends, len(codes), self.hops > 0))
            out.append(own)
        return out


def _seen(part: Features, rows: np.ndarray) -> tuple[Categorical, Numeric]:
    """The values and the scales that features have in some rows."""
    codes, numeric = part.codes[rows], part.numeric[rows].astype(np.float64)
    found = [np.unique(codes[:, j]) for j in range(codes.shape[1])]
    named = zip(part.categorical, found, strict=True)
    categorical = tuple((name, tuple(values[c] for c in own if c >= 0)) for (name, values), own in named)
    scales = []
    for j, name in enumerate(part.names):
        column = numeric[:, j][np.isfinite(numeric[:, j])]
        mean, std = (float(column.mean()), float(column.std())) if len(column) else (0.0, 1.0)
        scales.append((name, mean, std if std > 1e-12 and math.isfinite(std) else 1.0))
    return categorical, tuple(scales)


def recoded(part: Features, categorical: Categorical, numeric: Numeric, what: str) -> Features:
    """Features in the columns and codes of an input: 0 for values it does not know."""
    have = [*part.names, *(name for name, _ in part.categorical)]
    if lost := [name for name, *_ in (*categorical, *numeric) if name not in have]:
        raise UserError(f"the graphs lack the feature '{lost[0]}' of a {what}; they have {', '.join(have) or 'none'}")
    codes = np.empty((len(part.codes), len(categorical)), np.int32)
    names = [name for name, _ in part.categorical]
    for j, (name, values) in enumerate(categorical):
        at, number = names.index(name), {value: k + 1 for k, value in enumerate(values)}
        table = np.array([*(number.get(v, 0) for v in part.categorical[at][1]), HIDDEN], np.int32)
        codes[:, j] = table[part.codes[:, at]]
    columns = [part.names.index(name) for name, *_ in numeric]
    return Features(codes, part.numeric[:, columns], categorical, tuple(name for name, *_ in numeric))
