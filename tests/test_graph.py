"""`graph`: equal to torch-geometric's models on batches; edges are flattened and checked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import zoo
from torch import Tensor, nn

from modicum import testing
from modicum.core import seeds
from modicum.core.errors import UserError, need
from modicum.core.types import Edges, Tokens
from modicum.nn.encoder import Encoder
from modicum.nn.graphs import flatten_edges
from modicum.nn.trunks.graph import Graph
from modicum.testing.tools import stirred
from modicum.testing.trunks import edges_for, encoder_of, given_to, graphs_for, renumbered, rows_of

MODELS = need("torch_geometric.nn.models", "graphs")
NODES = torch.tensor([5, 9, 1, 7])


def made(conv: str = "gin", **options: Any) -> Graph:
    with seeds.forked(0, "init"):
        trunk = Graph(3, (9,), conv, **{"width": 8, "heads": 2, "norm": "none", "residual": False, **options})
    return stirred(trunk).eval()  # type: ignore[return-value]


def graphs(edge_dim: int = 0) -> tuple[Tokens, Any]:
    """Four random graphs of up to 9 nodes, one of a single node, as padded tokens and as torch-geometric's batch."""
    data = need("torch_geometric.data", "graphs")
    rng = seeds.generator(0, "graphs")
    single, counts = [], [12, 30, 2, 0]
    x, edges = torch.randn((4, 9, 3), generator=rng), torch.zeros(4, 30, 2, dtype=torch.long)
    features = torch.randn((4, 30, edge_dim), generator=rng) if edge_dim else None
    for k, (n, e) in enumerate(zip(NODES.tolist(), counts, strict=True)):
        edges[k, :e] = torch.randint(n, (e, 2), generator=rng)
        own = None if features is None else features[k, :e]
        single.append(data.Data(x=x[k, :n], edge_index=edges[k, :e].T, edge_attr=own))
    flat = flatten_edges(edges, torch.arange(30) < torch.tensor(counts).unsqueeze(1), 9, features)
    return Tokens(x, torch.arange(9) < NODES.unsqueeze(1), (9,), flat), data.Batch.from_data_list(single)


def twin(trunk: Graph, **options: Any) -> nn.Module:
    """torch-geometric's model with the trunk's weights; it takes what the trunk's first linear layer gives."""
    kind = {"gin": MODELS.GIN, "gcn": MODELS.GCN, "gat": MODELS.GAT}[trunk.conv]
    if trunk.conv == "gat":
        options |= {"v2": True, "heads": trunk.heads}
    model = kind(trunk.width, trunk.width, trunk.depth, jk=trunk.jump, **options)
    model.lin = nn.Identity()
    for k, block in enumerate(trunk.blocks):
        own = {
            n.replace("nn.0.", "nn.lins.0.").replace("nn.2.", "nn.lins.1."): v
            for n, v in block.conv.state_dict().items()
        }
        model.convs[k].load_state_dict(own)
        if block.norm.state_dict():
            norm = model.norms[k]
            (norm.module if hasattr(norm, "module") else norm).load_state_dict(block.norm.state_dict())
    return model.eval()


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gin": ({}, {}),
    "gin-cat": ({"jump": "cat"}, {}),
    "gcn": ({}, {}),
    "gcn-batch": ({"norm": "batch"}, {"norm": "batch_norm"}),
    "gcn-layer": (
        {"norm": "layer", "act": "gelu"},
        {"norm": "layer_norm", "norm_kwargs": {"mode": "node"}, "act": "gelu"},
    ),
    "gat": ({}, {}),
    "gat-features": ({"edge_dim": 2}, {"edge_dim": 2}),
    "gat-layer": ({"norm": "layer"}, {"norm": "layer_norm", "norm_kwargs": {"mode": "node"}}),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_it_equals_torch_geometric_on_batched_graphs(case: str, training: bool) -> None:
    own, its = CASES[case]
    trunk = made(case.split("-")[0], **own)
    tokens, batch = graphs(trunk.edge_dim)
    trunk.train(training)
    model = twin(trunk, **its).train(training)
    out = trunk(tokens)
    given = {"edge_attr": batch.edge_attr} if trunk.edge_dim else {}
    wanted = model(trunk.project(batch.x), batch.edge_index, **given)
    assert torch.allclose(out.x[tokens.mask], wanted, rtol=0, atol=1e-5)
    assert not out.x[~tokens.mask].any()
    weight = torch.randn(wanted.shape, generator=seeds.generator(0, "weight"))
    (weight * out.x[tokens.mask]).sum().backward()
    mine = [p.grad for block in trunk.blocks for p in block.conv.parameters()]
    (weight * wanted).sum().backward()
    assert all(
        torch.allclose(a, p.grad, rtol=1e-4, atol=1e-4) for a, p in zip(mine, model.convs.parameters(), strict=True)
    )


def test_edge_features_enter_the_messages_as_in_gine() -> None:
    trunk = made("gin", depth=1, edge_dim=2)
    tokens, batch = graphs(2)
    conv = trunk.blocks[0].conv
    x, into = trunk.project(batch.x), torch.zeros(len(batch.x), 8)
    for (i, j), feature in zip(batch.edge_index.T.tolist(), batch.edge_attr, strict=True):
        into[j] += (x[i] + conv.lin(feature)).relu()
    assert torch.allclose(trunk(tokens).x[tokens.mask], conv.nn((1 + conv.eps) * x + into).relu(), rtol=0, atol=1e-5)


def test_a_residual_connection_adds_what_came_in() -> None:
    plain, residual = made("gcn", depth=1), made("gcn", depth=1, residual=True)
    tokens, _ = graphs()
    start = plain.project(tokens.x)[tokens.mask]
    assert torch.allclose(residual(tokens).x[tokens.mask], plain(tokens).x[tokens.mask] + start, atol=1e-6)


@pytest.mark.parametrize("conv", ["gin", "gcn", "gat"])
def test_gradients_of_edge_features_and_tokens_are_right(conv: str) -> None:
    trunk = made(conv, depth=1, act="tanh", edge_dim=0 if conv == "gcn" else 2).double()
    tokens, _ = graphs(2)
    small = tokens.x[:2].double().requires_grad_()
    feature = torch.randn((4, 2), dtype=torch.float64, generator=seeds.generator(0, "e")).requires_grad_()
    ends = torch.tensor([[0, 1, 2, 10], [1, 0, 0, 11]])

    def run(x: Tensor, e: Tensor) -> Tensor:
        return trunk(Tokens(x, tokens.mask[:2], (9,), Edges(ends, e))).x

    assert torch.autograd.gradcheck(run, (small, feature))


def test_sums_and_means_over_the_real_nodes() -> None:
    tokens, _ = graphs()
    for readout in ("mean", "sum"):
        encoder = encoder_of(made(readout=readout))
        features = encoder.run(tokens)
        for k, n in enumerate(NODES):
            real = features.tokens[k, :n]
            assert torch.allclose(features.pooled[k], getattr(real, readout)(0), rtol=1e-4)


def test_the_wide_readout_has_mean_maximum_and_rooted_sum_of_every_round() -> None:
    tokens, _ = graphs()
    rounds = made(jump="cat", readout="mean")(tokens).x.unflatten(2, (3, 8))
    for jump in ("last", "cat"):
        trunk = made(jump=jump)
        out = trunk(tokens)
        assert torch.equal(out.x.contiguous(), rounds.flatten(2) if jump == "cat" else rounds[:, :, -1])
        for k, n in enumerate(NODES.tolist()):
            real = rounds[k, :n].flatten(1)
            wanted = torch.cat([real.mean(0), real.amax(0), real.sum(0) / n**0.5])
            assert torch.allclose(out.pooled[k], wanted, rtol=1e-5, atol=1e-6)
        assert out.pooled.shape == (4, trunk.dim_pooled)
    gone = torch.zeros_like(tokens.mask)
    assert not trunk(tokens._replace(mask=gone)).pooled.any()


def test_rows_about_a_node_are_pooled_as_that_node() -> None:
    input, batch = zoo.all_rows("graphs", zoo.networks(True))
    encoder = Encoder.of(input, "graph(width=8, depth=2)").eval()
    features = encoder(batch)
    assert torch.equal(features.pooled, features.tokens[:, 0])
    assert features.pooled.shape[1] == encoder.dim == 8


def test_edges_at_padded_tokens_carry_nothing() -> None:
    trunk = made()
    tokens, _ = graphs()
    joined = Edges(torch.cat([tokens.edges.ends, torch.tensor([[8, 0, 7], [0, 8, 8]])], 1))  # row 0 has 5 nodes
    assert torch.equal(trunk(tokens._replace(edges=joined)).x, trunk(tokens).x)


@pytest.mark.parametrize("conv", ["gin", "gcn", "gat"])
def test_empty_batches_and_edgeless_graphs_run(conv: str) -> None:
    trunk = made(conv)
    none = Edges(torch.zeros(2, 0, dtype=torch.long))
    assert trunk(Tokens(torch.zeros(0, 9, 3), None, (9,), none)).x.shape == (0, 9, 8)
    for mask in (None, torch.zeros(2, 9, dtype=torch.bool)):
        out = trunk(Tokens(torch.ones(2, 9, 3), mask, (9,), none)).x
        assert out.isfinite().all()
        assert out.any() == (mask is None)


@pytest.mark.parametrize("conv", ["gin", "gcn", "gat"])
def test_a_million_edges_among_two_hundred_thousand_nodes(conv: str) -> None:
    ends = torch.randint(200_000, (2, 1_000_000), generator=seeds.generator(0, "many"))
    trunk = made(conv, depth=1, width=4)  # a matrix of the pairs of nodes would hold 4e10 numbers
    out = trunk(Tokens(torch.ones(2, 100_000, 3), None, (100_000,), Edges(ends))).x
    out.sum().backward()
    assert trunk.project.weight.grad.isfinite().all()


# Flattening and checking


def test_edges_are_flattened_over_the_tokens_of_the_batch() -> None:
    edges = torch.tensor([[[0, 1], [2, 0], [-7, 99]], [[1, 1], [9, 9], [2, 1]]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 1]]).bool()
    flat = flatten_edges(edges, mask, 3, torch.arange(6.0).view(2, 3, 1))
    assert flat.ends.tolist() == [[0, 2, 4, 5], [1, 0, 4, 4]]
    assert flat.x.flatten().tolist() == [0, 1, 3, 5]
    assert flatten_edges(edges.int(), mask, 3).x is None
    assert flatten_edges(edges.int(), mask, 3).ends.dtype == torch.long
    assert flatten_edges(edges, torch.zeros_like(mask), 3).ends.shape == (2, 0)


def test_edges_out_of_range_are_named() -> None:
    edges = torch.tensor([[[0, 1], [1, 0]], [[0, 1], [1, 3]]])
    real = torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(
        UserError, match=r"edge 1 of row 1 goes from token 1 to token 3; wanted 0 to 2: there are 3 tok"
    ):
        flatten_edges(edges, real, 3)
    with pytest.raises(UserError, match=r"edge 0 of row 0 goes from token 0 to token 1; .* there is 1 token$"):
        flatten_edges(edges, real, 1)
    with pytest.raises(UserError, match="edge 0 of row 0 goes from token -1"):
        flatten_edges(edges - 1, real, 3)
    for wrong in (edges[0], edges.float(), edges[..., :1], edges[:, :1]):
        with pytest.raises(UserError, match=r"edges are whole numbers \(b, e, 2\) with a mask \(b, e\); got"):
            flatten_edges(wrong, real, 3)


def test_a_graph_refuses_what_it_cannot_read() -> None:
    trunk = made(edge_dim=2)
    tokens, _ = graphs(2)
    ends, x = tokens.edges
    with pytest.raises(UserError, match=r"this data has none: use mlp\(over='set'\) or transformer"):
        Encoder.of(zoo.images()[0], "graph()")(zoo.images()[1])
    for edges, words in {
        (ends + 36, x): "edge 0 goes from token .* there are 36 tokens",
        (ends.T, x): r"the ends of edges are \(2, E\) of torch.int64; got \(44, 2\)",
        (ends.int(), x): r"\(2, 44\) of torch.int32",
        (ends, x[1:]): r"44 edges want features \(44, d\); got \(43, 2\)",
        (ends, None): "built for edges with 2 features; these have 0: build it with edge_dim=0",
        (ends, x[:, :1]): "built for edges with 2 features; these have 1: build it with edge_dim=1",
    }.items():
        with pytest.raises(UserError, match=words):
            trunk(tokens._replace(edges=Edges(*edges)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"conv": "sage"}, "unknown graph conv 'sage'; valid: "),
        ({"act": "swiglu"}, "unknown graph act 'swiglu'; valid: silu"),
        ({"norm": "graph"}, "unknown norm 'graph'"),
        ({"jump": "max"}, "unknown graph jump 'max'"),
        ({"readout": "max"}, "unknown graph readout 'max'"),
        ({"conv": "gat", "heads": 3}, "a width that is a multiple of heads; got width=8, heads=3"),
        ({"depth": 0}, "graph wants width, depth and heads of at least 1"),
        ({"edge_dim": -1}, "edge_dim >= 0; got"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        made(**options)


def test_the_data_decide_the_width_of_the_edge_features(monkeypatch: pytest.MonkeyPatch) -> None:
    given = zoo.images()[0]
    monkeypatch.setattr(type(given.embed()), "edge_dim", 5)
    assert [Encoder.of(given, f"graph('{c}')").trunk.edge_dim for c in ("gin", "gat", "gcn")] == [5, 5, 5]
    tokens = given_to(zoo.trunk("graph('gcn', edge_dim=5)")(), torch.ones(1, 64, 3))
    assert made("gcn", edge_dim=5)(tokens).x.isfinite().all(), "gcn leaves them unread"


# Permutations


def test_sets_and_graphs_are_permutation_equivariant_and_sequences_are_not() -> None:
    rows = {
        "graph(width=8)": True,
        "mlp(width=8, over='set')": True,
        "mlp(width=8)": False,
        "recurrent(width=8)": False,
        "recurrent(width=8, bidirectional=True)": False,
    }
    for text, equivariant in rows.items():
        encoder = encoder_of(stirred(zoo.trunk(text, dim=4, grid=(6,))())).eval()  # type: ignore[arg-type]
        x = testing.tokens_for(encoder.trunk)
        order = torch.rand((8, 6), generator=seeds.generator(0, "order")).argsort(1)
        batch = {"x": x, "mask": torch.ones(8, 6, dtype=torch.bool), **edges_for(8, 6)}
        out, turned = encoder(batch), encoder(renumbered(batch, order))
        if text == "mlp(width=8)":
            assert not torch.allclose(turned.pooled, out.pooled, atol=1e-3)
            continue
        assert torch.allclose(turned.tokens, rows_of(out.tokens, order), atol=1e-5) == equivariant, text


class Broken(Graph):  # type: ignore[misc]
    """A graph trunk into which a fault is put by name."""

    fault = ""

    def forward(self, tokens: Tokens) -> Tokens:
        edges = tokens.edges
        if self.fault == "unchecked" and edges is not None:
            tokens = tokens._replace(edges=Edges(edges.ends % tokens.x[..., 0].numel()))
        if self.fault == "edgeless" or (edges is None and self.fault == "lenient"):
            tokens = tokens._replace(edges=Edges(torch.zeros(2, 0, dtype=torch.long)))
        if self.fault == "order":
            tokens = tokens._replace(x=tokens.x + torch.arange(tokens.x.shape[1]).unsqueeze(1))
        out = super().forward(tokens)
        if self.fault == "pooling":
            out = out._replace(pooled=out.x.mean(1))
        if self.fault == "company":
            out = out._replace(x=out.x - out.x.mean((0, 1)))
        return out


FAULTS = {
    "unchecked": "an edge to token -1 of 84 is run",
    "edgeless": "the edges change nothing",
    "lenient": "tokens without edges are not refused",
    "order": "renumbering the nodes changes their tokens",
    "company": "a graph's tokens depend on padding or on other graphs",
    "pooling": "a graph's pooled features depend on padding",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_graph_breaks_the_law_of_edges(fault: str) -> None:
    def make() -> Graph:
        with seeds.forked(0, "init"):
            trunk = Broken(3, (14,), width=8)
        trunk.fault = fault
        return trunk

    assert graphs_for(make())["x"].shape == (6, 14, 3)
    with pytest.raises(AssertionError, match=FAULTS[fault]):
        testing.TRUNK["edges"](make)
