"""Graphs that are no molecules: reading, bad input, views, neighbourhoods, and what the encoder makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import FEW

import modicum
from modicum.core import seeds
from modicum.core.errors import UserError, Warned, need
from modicum.core.ragged import join
from modicum.core.types import Batch
from modicum.datasets.data import open_data
from modicum.modalities._graphnodes import neighbourhoods
from modicum.modalities._graphtokens import summed
from modicum.modalities.graphs import Graphs
from modicum.nn.encoder import Encoder
from modicum.testing.tools import near, stirred

nx = need("networkx", "graphs")


def ring(n: int, **more: Any) -> dict[str, Any]:
    nodes = [{"id": f"n{k}", "size": k / 2, "kind": "ab"[k % 2]} for k in range(n)]
    edges = [{"source": f"n{k}", "target": f"n{(k + 1) % n}", "weight": 1.0 + k} for k in range(n)]
    return {"nodes": nodes, "edges": edges, **more}


def whole(given: Any) -> tuple[Graphs, Batch]:
    raw = Graphs.as_raw(given)
    made = Graphs.infer(raw, np.arange(len(raw)))
    return made, made.pack(raw).source.rows(np.arange(len(raw)))


# Reading


@st.composite
def links(draw: st.DrawFn) -> dict[str, Any]:
    n = draw(st.integers(1, 6))
    nodes = [
        {"id": k, "size": draw(st.floats(-9, 9, width=32)), "kind": draw(st.sampled_from("xyz"))} for k in range(n)
    ]
    ends = draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), min_size=1, max_size=8, unique=True))
    edges = [{"source": i, "target": j, "weight": draw(st.floats(0, 1, width=32))} for i, j in ends]
    return {"directed": draw(st.booleans()), "nodes": nodes, "edges": edges}


@settings(max_examples=40, deadline=None)
@given(st.lists(links(), min_size=1, max_size=4))
def test_what_is_written_is_what_is_read(graphs: list[dict[str, Any]]) -> None:
    made, batch = whole(json.loads(json.dumps(graphs)))
    for k, graph in enumerate(graphs):
        mask, real = batch["mask"][k], batch["edge_mask"][k]
        assert mask.sum() == len(graph["nodes"])
        assert torch.equal(batch["numeric"][k, mask, 0], torch.tensor([v["size"] for v in graph["nodes"]]))
        values = made.categorical[0][1]
        assert [values[c - 1] for c in batch["codes"][k, mask, 0].tolist()] == [v["kind"] for v in graph["nodes"]]
        there = {(e["source"], e["target"], e["weight"]) for e in graph["edges"]}
        if not graph["directed"]:
            there |= {(j, i, w) for i, j, w in there}
        weights = batch["edge_numeric"][k, real, 0].tolist()
        found = sorted((i, j, w) for (i, j), w in zip(batch["edges"][k, real].tolist(), weights, strict=True))
        assert sorted(set(found)) == sorted(there)


def test_files_lists_and_networkx_give_the_same(tmp_path: Path) -> None:
    graphs = [ring(3, label="a", id="p"), ring(5, label="b", id="q")]
    lines, one, old = tmp_path / "a.jsonl", tmp_path / "a.json", tmp_path / "b.json"
    lines.write_text("\n".join(map(json.dumps, graphs)))
    one.write_text(json.dumps(graphs, indent=1))
    old.write_text(json.dumps([{"links" if k == "edges" else k: v for k, v in g.items()} for g in graphs]))
    raws = [open_data(x).raw for x in (lines, one, old, graphs)]
    with_nx = [nx.node_link_graph(g, edges="edges") for g in graphs]
    raws.append(open_data(with_nx).raw)
    for raw in raws:
        assert (raw.hashes == raws[0].hashes).all()
    data = open_data(lines)
    assert (data.ids(), data.table.column("label").to_pylist()) == (["p", "q"], ["a", "b"])
    lines.write_text(json.dumps(graphs[0]) + "\n{oops\n")
    with pytest.raises(UserError, match=r"a.jsonl, line 2: no JSON"):
        open_data(lines)


def test_torch_geometrics_data() -> None:
    data = need("torch_geometric.data", "graphs").Data
    ends = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    x = torch.tensor([[1.0, 2], [3, 4], [5, 6]])
    attr = torch.tensor([0, 0, 1, 1])
    made, batch = whole([data(x=x, edge_index=ends, edge_attr=attr, y=torch.tensor([k])) for k in (3, 4)])
    assert torch.equal(batch["numeric"][0], x)
    assert torch.equal(batch["edges"][1].T, ends)
    assert batch["edge_codes"][0, :, 0].tolist() == [1, 1, 2, 2]
    assert made.edge_categorical == (("edge.0", ("0", "1")),)
    listed = open_data([data(x=x, edge_index=ends, y=torch.tensor([[1.0, float("nan")]])), data(x=x, edge_index=ends)])
    assert listed.table.column("y.0").to_pylist() == [1.0, None]
    assert listed.table.column("y.1").to_pylist() == [None, None]
    nodes = open_data(data(x=x.long(), edge_index=ends, y=torch.tensor([0, 1, 0])))
    assert (len(nodes), nodes.table.column("label").to_pylist()) == (3, [0, 1, 0])
    smiles = need("torch_geometric.utils", "graphs").from_smiles
    assert Graphs.as_raw([smiles("CCO"), smiles("CN")]).molecules
    wrong = Graphs.as_raw([data(x=x, edge_index=ends + 1), data(x=x, edge_index=ends)])
    with pytest.raises(UserError, match="row 0: edge 2 goes from node 2 to 3; it has 3 nodes"):
        made.pack(wrong)


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        ({"nodes": [], "edges": []}, "the graph has no nodes"),
        ({"nodes": [{"id": 1}, {"id": 1}], "edges": []}, "two nodes have the id 1"),
        (
            {"nodes": [{"id": 1}], "edges": [{"source": 1, "target": 2}]},
            "edge 0 has the target 2, which is none of its 1",
        ),
        ({"nodes": [{"id": 1}], "edges": [{"source": 1}]}, "edge 0 has no source and target"),
        ({"nodes": 3}, "it is no node-link graph"),
    ],
)
def test_bad_graphs_are_named_and_left_out_only_when_asked(graph: dict[str, Any], words: str) -> None:
    raw = Graphs.as_raw([ring(3), graph, ring(4)])
    made = Graphs.infer(raw, np.array([0, 2]))
    with pytest.raises(UserError, match=f"1 row\\(s\\) of 3 cannot be used:\n  row 1: {words}"):
        made.pack(raw)
    packed = made.pack(raw, skip_bad=True)
    assert (packed.keep.tolist(), [b[0] for b in packed.bad]) == ([0, 2], [1])


def test_other_bad_input_is_refused_in_words() -> None:
    def first(**more: Any) -> dict[str, Any]:
        return {"nodes": [{"id": 0, **more}, {"id": 1, "v": 1.0}], "edges": [{"source": 0, "target": 1}]}

    with pytest.raises(UserError, match="feature 'v' of a node is a mix of float, str"):
        Graphs.as_raw([first(v="a")])
    with pytest.raises(UserError, match="feature 'w' of a node has 1 numbers in one and 2 in another"):
        Graphs.as_raw([first(w=[1]), first(w=[1, 2])])
    infinite = Graphs.as_raw([first(v=float("inf")), first(v=2)])
    with pytest.raises(UserError, match="row 0: a feature of a node is infinite"):
        Graphs.infer(infinite, np.arange(2)).pack(infinite)
    for wrong, words in ((3, "got a int"), ([3.5], "got a list of float"), ([], "got a list")):
        with pytest.raises(UserError, match=words):
            Graphs.as_raw(wrong)
    with pytest.raises(UserError, match="1 of 2 graphs cannot be used, such as graph 2 of 2: the graph has no nodes"):
        Graphs.as_raw([{"nodes": [{"label": "a"}, {"label": "b"}], "edges": []}, {"nodes": [], "edges": []}])
    with pytest.warns(Warned, match=r"1 row\(s\) have an id that an earlier row has"):
        Graphs.as_raw([ring(3, id="a"), ring(4, id="a")])
    made, _ = whole([ring(3), ring(4)])
    with pytest.raises(UserError, match="the graphs lack the feature 'kind' of a node; they have size"):
        made.pack(Graphs.as_raw([{"nodes": [{"size": 1.0}], "edges": [{"source": 0, "target": 0, "weight": 1.0}]}]))
    with pytest.raises(UserError, match="the input takes other graphs than molecules; these are molecules"):
        made.pack(Graphs.as_raw(["CCO"]))
    with pytest.raises(UserError, match="the input's rows are whole graphs; these are nodes"):
        made.pack(open_data("karate").raw)
    with pytest.raises(UserError, match="graphs wants at least one feature"):
        Graphs(3)


def test_graphs_without_edges_or_features_are_kept() -> None:
    with pytest.warns(Warned, match="the list: 1 of 2 graphs have no edges; they are kept"):
        made, batch = whole(
            [{"nodes": [{}, {}, {}], "edges": []}, {"nodes": [{}, {}], "edges": [{"source": 0, "target": 1}]}]
        )
    assert [name for name, *_ in made.numeric] == ["degree"]
    assert batch["numeric"][..., 0].tolist() == [[0, 0, 0], [1, 1, 0]]
    assert Encoder.of(made, "graph(width=8)")(batch).pooled.isfinite().all()


def test_unseen_and_missing_values_have_places_of_their_own() -> None:
    raw = Graphs.as_raw(
        [ring(4), {**ring(3), "nodes": [{"id": f"n{k}", "kind": v} for k, v in enumerate(["z", None, "b"])]}]
    )
    made = Graphs.infer(raw, np.array([0]))
    batch = made.pack(raw).source.rows(np.array([1]))
    assert batch["codes"][0, :, 0].tolist() == [0, -1, 2]
    assert batch["numeric"].isnan().all()
    assert made.embed()(batch).x.isfinite().all()


# Tokens


def test_tokens_are_sums_of_embeddings_and_edges_are_one_hot() -> None:
    raw = Graphs.as_raw(["CC=O", "c1ccccc1"])
    made = Graphs.infer(raw, np.arange(2))
    batch, embed = made.pack(raw).source.rows(np.arange(2)), made.embed()
    tokens = embed(batch)
    sizes = [s + 1 for s in made.sizes]
    parts = embed.values.split(sizes)  # one embedding a feature, as in OGB's AtomEncoder; 0 is hidden
    wanted = sum(part[batch["codes"][..., j] + 1] for j, part in enumerate(parts)) * batch["mask"].unsqueeze(2)
    assert near(tokens.x, wanted)
    index = torch.tensor([[0, 3], [599, 1]])
    table = torch.arange(1200.0).view(600, 2)
    assert torch.equal(summed(index, table), table[index].sum(1))
    assert tokens.edges is not None
    assert tokens.edges.x is not None
    hot = torch.cat(
        [torch.nn.functional.one_hot(batch["edge_codes"][..., j], s) for j, s in enumerate(made.edge_sizes)], 2
    )
    assert torch.equal(tokens.edges.x, hot[batch["edge_mask"]].float())


def test_the_loss_is_cross_entropy_and_squared_or_scaled_cosine_error() -> None:
    made, batch = whole([ring(3), ring(4)])
    unembed = made.unembed()
    with torch.no_grad():
        unembed.out.weight.zero_()
        unembed.out.bias.zero_()
    scaled = (batch["numeric"][..., 0] - made.numeric[0][1]) / made.numeric[0][2]
    wanted = torch.where(batch["mask"], np.log(made.sizes[0]) + scaled.square(), 0)
    assert near(unembed.loss(torch.zeros(2, 4, made.width), batch), wanted)
    wide = Graphs(4, numeric=tuple((f"v{k}", 0.0, 1.0) for k in range(8)))
    unembed, x = wide.unembed(), torch.eye(8)[:4].unsqueeze(0)
    given = {"codes": torch.empty(1, 4, 0, dtype=torch.long), "numeric": 3 * x, "mask": torch.ones(1, 4).bool()}
    with torch.no_grad():
        unembed.out.weight.zero_()
        unembed.out.bias.copy_(torch.tensor([2.0, 0, 0, 0, 0, 0, 0, 0]))
    assert near(unembed.loss(torch.zeros(1, 4, wide.width), given), torch.tensor([[0.0, 1, 1, 1]]))


@pytest.mark.parametrize("conv", ["gin", "gcn", "gat"])
def test_renumbering_padding_and_batching_change_nothing(conv: str) -> None:
    given = [ring(5), ring(3), ring(9), ring(4)]
    order = np.random.default_rng(0).permutation(9)
    turned = {"nodes": [given[2]["nodes"][k] for k in order], "edges": given[2]["edges"][::-1]}
    raw = Graphs.as_raw([*given, turned])
    made = Graphs.infer(raw, np.arange(5))
    source = made.pack(raw).source
    encoder = Encoder.of(made, f"graph('{conv}', width=16, depth=3)").eval()
    stirred(encoder)
    with torch.no_grad():
        out = encoder(source.rows(np.arange(5)))
        assert near(out.pooled[4], out.pooled[2])
        assert near(out.tokens[4, :9], out.tokens[2, order])
        assert not near(out.pooled[0], out.pooled[2])
        for k, n in enumerate((5, 3, 9, 4)):
            alone = encoder(source.rows(np.array([k])))
            assert near(alone.pooled[0], out.pooled[k])
            assert near(alone.tokens[0], out.tokens[k, :n])
        batch = source.rows(np.arange(4))
        wide = join([batch, {k: torch.zeros((1, 20, *v.shape[2:]), dtype=v.dtype) for k, v in batch.items()}])
        assert near(encoder(wide).pooled[:4], out.pooled[:4])


# Views


def test_views_drop_what_they_say() -> None:
    raw = Graphs.as_raw([nx.random_regular_graph(4, 60, seed=k) for k in range(40)])
    made = Graphs.infer(raw, np.arange(40))
    batch = made.pack(raw).source.rows(np.arange(40))

    def view(**options: float) -> Batch:
        return made.views(**{"features": 0.0, **options})(batch, seeds.generator(0))

    out = view(nodes=0.3)
    assert 0.65 < out["mask"].float().mean() < 0.75
    gone = torch.stack([~out["mask"][k][out["edges"][k]] for k in range(40)]).any(2)
    assert torch.equal(out["edge_mask"], batch["edge_mask"] & ~gone)
    out = view(edges=0.3)
    kept = [{tuple(e) for e in out["edges"][k, out["edge_mask"][k]].tolist()} for k in range(40)]
    assert all((j, i) in own for own in kept for i, j in own)
    assert 0.65 < np.mean([len(own) for own in kept]) / 240 < 0.75
    assert torch.equal(out["mask"], batch["mask"])
    out = view(features=0.3)
    assert 0.25 < out["numeric"].isnan().float().mean() < 0.35
    assert not batch["numeric"].isnan().any()
    out = view(subgraph=0.25)
    assert (out["mask"].sum(1) == 15).all()
    for k in range(40):
        own = nx.Graph()
        own.add_nodes_from(out["mask"][k].nonzero().flatten().tolist())
        own.add_edges_from(out["edges"][k, out["edge_mask"][k]].tolist())
        assert nx.is_connected(own)
    out = view(nodes=0.999)
    assert (out["mask"].sum(1) >= 1).all()


def test_a_node_that_a_row_is_about_stays_and_options_are_checked() -> None:
    data = open_data("karate")
    made = data.modality.infer(data.raw, np.arange(34))
    batch = made.pack(data.raw).source.rows(np.arange(34))
    out = made.views(nodes=0.9, subgraph=0.2, features=0.0)(batch, seeds.generator(0))
    assert out["mask"][:, 0].all()
    assert torch.equal(out["codes"][:, 0], batch["codes"][:, 0])
    bad: dict[str, Any] = {"nodes": 1.0, "edges": -0.1, "features": "x", "subgraph": 0.0}
    for name, value in bad.items():
        with pytest.raises(UserError, match=f"views: wanted 0 <=? {name} <=? 1, got {value!r}"):
            made.views(**{name: value})


# Nodes as rows


def test_neighbourhoods_are_those_of_networkx_and_may_be_cut() -> None:
    graph = nx.gnp_random_graph(80, 0.04, seed=2)
    raw = Graphs.as_raw(graph)
    every = np.arange(80)
    for hops in (1, 3):
        around, of, edge_of = neighbourhoods(raw.store, np.zeros(80, int), every, hops, 80)
        for k in every:
            own = of[around.starts[k] : around.starts[k + 1]]
            wanted = nx.ego_graph(graph, int(k), radius=hops)
            assert own[0] == k
            assert set(own.tolist()) == set(wanted)
            ends = own[around.ends[around.edge_starts[k] : around.edge_starts[k + 1]]]
            assert {tuple(e) for e in ends.tolist()} == {p for i, j in wanted.edges for p in ((i, j), (j, i))}
            given = raw.store.ends[edge_of[around.edge_starts[k] : around.edge_starts[k + 1]]]
            assert (given == ends).all()
    around, of, _ = neighbourhoods(raw.store, np.zeros(80, int), every, 3, 6)
    assert np.diff(around.starts).max() == 6
    for k in every:
        own = of[around.starts[k] : around.starts[k + 1]].tolist()
        steps = [nx.shortest_path_length(graph, int(k), n) for n in own]
        full = nx.ego_graph(graph, int(k), radius=3)
        near_by = sorted(nx.shortest_path_length(full, int(k)).values())
        assert sorted(steps) == near_by[: len(own)]


def test_a_nodes_features_are_those_it_has_in_the_whole_graph() -> None:
    graph = nx.gnp_random_graph(40, 0.06, seed=1)
    nodes = [{"id": k, "size": k % 7 / 3} for k in graph]
    given = {"nodes": nodes, "edges": [{"source": i, "target": j} for i, j in graph.edges]}
    labelled = {**given, "nodes": [{**node, "label": k % 2} for k, node in enumerate(nodes)]}
    raw, of_nodes = Graphs.as_raw([given]), Graphs.as_raw([labelled])
    assert (len(raw), len(of_nodes)) == (1, 40)
    made = Graphs.infer(of_nodes, np.arange(40))
    assert made.hops == 3
    large = Graphs(40, made.categorical, made.numeric)
    encoder = Encoder.of(made, "graph(width=16, depth=3)").eval()
    stirred(encoder)
    other = Encoder.of(large, "graph(width=16, depth=3)").eval()
    other.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        nodes_own = encoder(made.pack(of_nodes).source.rows(np.arange(40))).pooled
        whole_graph = other(large.pack(raw).source.rows(np.arange(1))).tokens[0]
    assert near(nodes_own, whole_graph)


def test_karate_is_learned_from_few_labels(tmp_path: Path) -> None:
    data = open_data("karate")
    assert (len(data), sorted(set(data.table.column("label").to_pylist()))) == (34, ["Mr. Hi", "Officer"])
    run = modicum.finetune(
        "graph(width=32)", data, labels_per_class=4, out=tmp_path, force=True, **{**FEW, "steps": 40}
    )
    results = run.read_json("results.json")
    assert results is not None
    assert next(r["mean"] for r in results["contestants"] if r["name"] == "scratch") > 0.7
    shown = modicum.load(run).input.show(modicum.load(run).open(data)[1].source.rows(np.array([0])))
    assert shown[0]["text"] == "34 nodes, 78 edges", "as networkx counts them, and not both ways"
    assert shown[0]["thumb"].startswith("data:image/svg+xml")
    assert modicum.load(run).predict("karate").shape == (34,)


def test_labels_of_graphs_and_of_nodes(tmp_path: Path) -> None:
    path = tmp_path / "two.jsonl"
    lines = [{"id": g, "nodes": [{"id": k, "label": "ab"[k % 2]} for k in range(3)], "edges": []} for g in "pq"]
    path.write_text("\n".join(map(json.dumps, lines)))
    with pytest.warns(Warned, match="2 of 2 graphs have no edges"):
        data = open_data(path)
    assert data.ids() == ["p/0", "p/1", "p/2", "q/0", "q/1", "q/2"]
    assert isinstance(data.table, pa.Table)
    labels = data.labels()
    assert labels is not None
    assert labels.values.tolist() == [0, 1, 0, 0, 1, 0]
