"""Claim: our graph batches are at least as fast as torch-geometric's loader, and memory is linear in the edges.

The drugs of ChEMBL as molecules: reading a batch, embedding atoms and bonds, three GIN layers with bonds, pooling,
forward and backward, beside `torch_geometric.loader.DataLoader` over the same graphs in memory with the same layers
(OGB's embeddings of atoms, and of bonds in every layer, GINEConv, LayerNorm). Then a graph of random edges: the most
memory of a training step, over that before it, an edge.
"""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _common
import numpy as np
import torch
from torch import Tensor, nn

import modicum
from modicum.core import seeds
from modicum.core.errors import need
from modicum.modalities.graphs import Graphs
from modicum.nn.encoder import Encoder
from modicum.training.batches import Batches

WIDTH, DEPTH, BATCH = 64, 3, 128


class Peer(nn.Module):
    """torch-geometric's layers as its users write them, over its own batches."""

    def __init__(self, sizes: tuple[int, ...], bonds: tuple[int, ...]) -> None:
        super().__init__()
        lib = need("torch_geometric.nn", "graphs")
        self.atoms = nn.ModuleList(nn.Embedding(size, WIDTH) for size in sizes)
        self.bonds = nn.ModuleList(nn.Embedding(size, WIDTH) for _ in range(DEPTH) for size in bonds)
        self.first = nn.Linear(WIDTH, WIDTH)
        nets = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)) for _ in range(DEPTH)]
        self.convs = nn.ModuleList(lib.GINEConv(net) for net in nets)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(DEPTH))
        self.pool: Callable[..., Tensor] = lib.global_mean_pool

    def forward(self, batch: Any) -> Tensor:
        x = self.first(sum(own(batch.x[:, j]) for j, own in enumerate(self.atoms)))
        for k, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            edges = sum(own(batch.edge_attr[:, j]) for j, own in enumerate(self.bonds[3 * k : 3 * k + 3]))
            x = x + norm(conv(x, batch.edge_index, edges)).relu()
        return self.pool(x, batch.batch)


def batches(bench: _common.Bench) -> None:
    """An epoch of batches through both, in turns."""
    data = modicum.open_data("chembl-drugs")
    made = Graphs.infer(data.raw, np.arange(len(data)), width=WIDTH)
    source = made.pack(data.raw).source
    from_smiles = need("torch_geometric.utils", "graphs").from_smiles
    theirs = [from_smiles(str(text)) for text in data.table.column("smiles")]
    for graph in theirs:
        del graph.smiles
    with seeds.forked(bench.asked.seed, "init"):
        ours, peer = (
            Encoder.of(made, f"graph(width={WIDTH}, depth={DEPTH}, readout='mean')"),
            Peer(made.sizes, made.edge_sizes),
        )
    loader = need("torch_geometric.loader", "graphs").DataLoader(theirs, BATCH, shuffle=True, drop_last=True)
    count = len(loader) * BATCH

    def own() -> None:
        batch = Batches(source, np.arange(len(data)), batch=BATCH, seed=0)
        for step in range(len(loader)):
            ours.zero_grad(set_to_none=True)
            ours(batch(step)).pooled.square().mean().backward()

    def other() -> None:
        for batch in loader:
            peer.zero_grad(set_to_none=True)
            peer(batch).square().mean().backward()

    title = f"{len(data):,} drugs, batches of {BATCH}, GIN {DEPTH}×{WIDTH}, loading, forward and backward"
    calls = {"modicum": own, "torch-geometric": other}
    ratio = _common.contest(bench, title, calls, dict.fromkeys(calls, count))
    _common.verdict(
        "against torch-geometric's loader and layers, times as fast", ratio[0]["torch-geometric"], 1.0,
        processor=ratio[1]["torch-geometric"],
    )  # fmt: skip


def memory(bench: _common.Bench) -> None:
    """Peak memory of a training step in processes of their own, at 250,000 to 1,000,000 edges."""
    sizes, used = (250_000, 500_000, 1_000_000), []
    for edges in sizes:
        child = subprocess.run(
            [sys.executable, __file__, "step", str(edges)], capture_output=True, text=True, check=True
        )
        used.append(int(child.stdout.split()[-1]))
        print(
            f"{edges:,} edges, {edges // 10:,} nodes: {used[-1] / 1e6:,.0f} MB, {used[-1] / edges:,.0f} bytes an edge"
        )
        bench.row(f"a step at {edges:,} edges", used[-1] / edges, "bytes/edge")
    _common.verdict("bytes an edge at 1,000,000 edges over those at 250,000", used[-1] / 4 / used[0], 1.25, most=True)


def step(edges: int) -> None:
    """One training step of a large graph, and how far it raised this process's peak memory; printed."""
    nodes, rng = edges // 10, torch.Generator().manual_seed(0)
    lib = need("torch_geometric.data", "graphs")
    graph = lib.Data(x=torch.randn(nodes, 8, generator=rng), edge_index=torch.randint(nodes, (2, edges), generator=rng))
    small = lib.Data(x=graph.x[:10], edge_index=torch.tensor([[0, 1], [1, 0]]))
    raw = Graphs.as_raw([graph, small])
    made = Graphs.infer(raw, np.arange(2), width=WIDTH)
    source, encoder = made.pack(raw).source, Encoder.of(made, f"graph(width={WIDTH}, depth={DEPTH})")
    for row in (1, 0):  # the first loads what any step needs
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = resident("VmRSS")
        encoder(source.rows(np.array([row]))).pooled.square().mean().backward()
    print(resident("VmHWM") - before)


def resident(what: str) -> int:
    """Bytes of this process's memory, now (VmRSS) or at most (VmHWM)."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def main() -> None:
    if sys.argv[1:2] == ["step"]:
        return step(int(sys.argv[2]))
    bench = _common.Bench("graphs", rounds=7)
    warnings.simplefilter("ignore")
    batches(bench)
    memory(bench)
    bench.finish()


if __name__ == "__main__":
    main()
