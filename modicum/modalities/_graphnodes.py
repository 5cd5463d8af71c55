"""Nodes as samples: each with the nodes around it, as a graph of its own whose first node it is."""

from __future__ import annotations

import numpy as np

from modicum.modalities._graphpack import Store, inside, offsets


def neighbourhoods(
    store: Store, graph: np.ndarray, node: np.ndarray, hops: int, most: int
) -> tuple[Store, np.ndarray, np.ndarray]:
    """Subgraphs of at most `most` nodes from which `hops` steps along edges lead to node `node[i]` of `graph[i]`.

    Nearer nodes come first; among equally near ones a fixed draw decides where not all have room (as in GraphSAGE,
    Hamilton et al. 2017). Returns the store of the subgraphs, node 0 being the one they are about, and which nodes and
    edges of the given store its nodes (N,) and edges (E,) are; its features are those of the given store.
    """
    first = np.repeat(store.starts[:-1], np.diff(store.edge_starts))
    ends = store.ends + first[:, None]
    into = np.argsort(ends[:, 1], kind="stable")
    starts = offsets(np.bincount(ends[:, 1], minlength=int(store.starts[-1])))
    place = np.full(int(store.starts[-1]), -1)
    nodes, edges, local = [], [], []
    for target in (store.starts[graph] + node).tolist():
        own = _around(target, ends[:, 0], into, starts, place, hops, most)
        place[own] = np.arange(len(own))
        at, real = inside(starts, own)
        found = into[at[real]]
        found = found[place[ends[found, 0]] >= 0]
        nodes.append(own)
        edges.append(found)
        local.append(place[ends[found]])
        place[own] = -1
    made = Store(
        offsets([len(n) for n in nodes]), offsets([len(e) for e in edges]),
        np.concatenate([np.empty((0, 2), int), *local]).astype(np.int32), store.nodes, store.edges,
    )  # fmt: skip
    none = np.empty(0, int)
    return made, np.concatenate([none, *nodes]), np.concatenate([none, *edges])


def _around(
    target: int, source: np.ndarray, into: np.ndarray, starts: np.ndarray, place: np.ndarray, hops: int, most: int
) -> np.ndarray:
    """The nodes around one, itself first; `place` is -1 everywhere, and left so."""
    front = found = np.array([target])
    place[target] = 0
    for _ in range(hops):
        at, real = inside(starts, front)
        new = np.unique(source[into[at[real]]])
        new = new[place[new] < 0]
        room = most - len(found)
        if len(new) > room:
            new = new[np.argsort(_draw(target, new), kind="stable")[:room]]
        place[new] = 0
        front, found = new, np.concatenate([found, new])
        if not len(new) or len(found) == most:
            break
    place[found] = -1
    return found


def _draw(target: int, nodes: np.ndarray) -> np.ndarray:
    """A fixed random number for every pair of the target and a node."""
    x = nodes.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) ^ np.uint64((target * 0xBF58476D1CE4E5B9) % 2**64)
    x = (x ^ (x >> np.uint64(31))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(29))
