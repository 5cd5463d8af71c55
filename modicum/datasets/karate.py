"""Zachary's karate club (1977): who met whom outside the club, and with whom they went when it split."""

from __future__ import annotations

from modicum.core.errors import need
from modicum.core.spec import part
from modicum.datasets.data import Data

LICENCE = "not stated for the data; networkx, which has it, is BSD-3-Clause"


def load() -> Data:
    """34 members as rows, each a node with those around it; the label is the side taken, the feature who it is."""
    club = need("networkx", "graphs").karate_club_graph()
    nodes = [{"id": k, "member": str(k), "label": club.nodes[k]["club"]} for k in club]
    edges = [{"source": i, "target": j, "weight": float(w)} for i, j, w in club.edges.data("weight")]
    kind = part("modality", "graphs")
    raw = kind.as_raw({"nodes": nodes, "edges": edges})  # type: ignore[attr-defined]
    return Data("karate", kind, raw, raw.facts, {}, LICENCE, "networkx")
