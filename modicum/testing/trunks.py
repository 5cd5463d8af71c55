"""The laws of trunks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from modicum.core import seeds
from modicum.core.errors import UserError
from modicum.core.types import Batch, Edges, Embed, Input, Tokens, Trunk
from modicum.nn.encoder import Encoder, Tower, complete
from modicum.nn.graphs import flatten_edges
from modicum.nn.layers import spread
from modicum.testing.tools import (
    CAPABILITIES,
    MakeTrunk,
    call_order,
    check_freezing,
    check_gradients,
    check_spec,
    equal_bits,
    leaves_random_alone,
    near,
    refusal,
    same,
    stirred,
)


class Given(Embed):
    """Tokens that are given as they are: {"x", "mask" where there is one, "edges" with "edge_mask" and "edge_x"}.

    Where a trunk needs edges and the batch has none, they are those of `edges_for`.
    """

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.dim, self.grid = trunk.dim, tuple(trunk.grid)
        self.joined, self.edge_dim = "edges" in trunk.can, getattr(trunk, "edge_dim", 0)

    def forward(self, batch: Batch) -> Tokens:
        x = batch["x"]
        if "edges" not in batch and self.joined:
            batch = {**batch, **edges_for(len(x), x.shape[1], self.edge_dim)}
        edges = None
        if "edges" in batch:
            edges = flatten_edges(batch["edges"], batch["edge_mask"], x.shape[1], batch.get("edge_x"))
        return Tokens(x, batch.get("mask"), self.grid, edges)


def encoder_of(trunk: Trunk) -> Encoder:
    """An encoder whose batch is {"x": tokens}."""
    given = SimpleNamespace(embed=lambda: Given(trunk))
    return Encoder(cast(Input, given), trunk)


def edges_for(b: int, t: int, dim: int = 0) -> Batch:
    """The same 2t random edges, without a pattern, in each of b samples of t tokens, with `dim` features."""
    rng = seeds.generator(t, "edges")
    edges = torch.randint(t, (2 * t, 2), generator=rng).expand(b, -1, -1)
    out = {"edges": edges, "edge_mask": torch.ones(b, 2 * t, dtype=torch.bool)}
    return {**out, "edge_x": torch.randn((2 * t, dim), generator=rng).expand(b, -1, -1)} if dim else out


def given_to(trunk: Trunk, x: Tensor, mask: Tensor | None = None) -> Tokens:
    """The tokens x as a trunk takes them: on its grid, with edges where it needs them."""
    batch = {"x": x} if mask is None else {"x": x, "mask": mask}
    return Given(trunk)(batch)


def tokens_for(trunk: Trunk, b: int = 8, seed: int = 0) -> Tensor:
    """Random tokens (b, t, dim) for the trunk."""
    shape = (b, int(np.prod(trunk.grid)), trunk.dim)
    return torch.randn(shape, generator=seeds.generator(seed, "tokens"))


def run(trunk: Trunk, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """The output tokens, in evaluation mode, without gradients."""
    with torch.no_grad():
        return trunk.eval()(given_to(trunk, x, mask)).x


def trunk_shapes(make: MakeTrunk) -> None:
    """Output tokens lie on `grid_out` with width `dim_out`; capabilities have known names."""
    trunk = make().eval()
    unknown = trunk.can - CAPABILITIES
    assert not unknown, f"unknown capabilities {sorted(unknown)}; known: {sorted(CAPABILITIES)}"
    out = trunk(given_to(trunk, tokens_for(trunk)))
    wanted = (8, int(np.prod(trunk.grid_out)), trunk.dim_out)
    assert out.x.shape == wanted, f"grid_out and dim_out promise {wanted}; the output is {tuple(out.x.shape)}"
    assert tuple(out.grid) == tuple(trunk.grid_out), f"output grid {out.grid}; promised {trunk.grid_out}"
    assert out.x.isfinite().all(), "the output is not finite"
    pooled = encoder_of(trunk).eval()({"x": tokens_for(trunk)}).pooled
    assert pooled.shape == (8, trunk.dim_pooled), f"dim_pooled promises {trunk.dim_pooled}; pooled is {pooled.shape}"


def trunk_layers(make: MakeTrunk) -> None:
    """`layers()` is an ordered, complete partition of the parameters, and `complete` names what is forgotten."""
    trunk = make().eval()
    layers = complete(trunk, trunk.layers())
    assert list(trunk.layers()) == list(layers), "layers() is not the same twice"
    for name, parts in layers.items():
        rest = {k: v for k, v in layers.items() if k != name}
        own = {id(p) for part in parts for p in ([part] if isinstance(part, nn.Parameter) else part.parameters())}
        forgotten = [n for n, p in trunk.named_parameters() if id(p) in own]
        assert forgotten, f"layer {name} has no parameters"
        words = refusal(ValueError, partial(complete, trunk, rest))
        assert words, f"without layer {name} the layers still pass for complete"
        assert all(n in words for n in forgotten), f"the error names not all of {forgotten}: {words}"
    modules = {k: v for k, v in layers.items() if any(isinstance(p, nn.Module) for p in v)}
    order = call_order(trunk, modules, lambda: run(trunk, tokens_for(trunk)))
    assert order == [n for n in modules if n in order], f"layers() says {list(modules)}; they run as {order}"


def trunk_spec(make: MakeTrunk) -> None:
    """The spec, through JSON and through text, builds a trunk that gives the same bits with the same weights."""
    trunk = make()
    stirred(trunk)
    again = check_spec("trunk", trunk, dim=trunk.dim, grid=tuple(trunk.grid))
    x = tokens_for(trunk)
    assert equal_bits(run(trunk, x), run(again, x)), "a trunk built from its spec gives another output"


def trunk_freezing(make: MakeTrunk) -> None:
    """Freezing the first k layers keeps exactly their parameters and buffers, bit for bit."""

    def build_one() -> tuple[nn.Module, dict[str, Tower], Callable[[int], Any]]:
        encoder = encoder_of(make())
        stirred(encoder)
        x = tokens_for(encoder.trunk)

        def train(k: int) -> None:
            encoder.freeze(k).train()
            left = [p for p in encoder.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(left, 1e-2) if left else None
            for _ in range(3):
                loss = weighted(encoder({"x": x}).pooled)
                if optimizer:
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()

        return encoder, {"encoder": encoder}, train

    check_freezing(build_one)


def weighted(z: Tensor) -> Tensor:
    """A scalar to which every element of z matters differently."""
    weight = torch.randn(z.shape, generator=seeds.generator(0, "weight"))
    return (weight * z).sum() + (weight.flip(0) * z.square()).sum()


def trunk_gradients(make: MakeTrunk) -> None:
    """The gradient reaches every parameter."""
    trunk = make().eval()
    stirred(trunk)
    out = trunk(given_to(trunk, tokens_for(trunk, 16)))
    check_gradients(trunk, weighted(out.x) + (0 if out.pooled is None else weighted(out.pooled)))


def trunk_samples(make: MakeTrunk) -> None:
    """In evaluation a sample's output is its own: whatever its place in the batch, whoever the others are."""
    trunk = make()
    stirred(trunk)
    x = tokens_for(trunk)
    out, order = run(trunk, x), torch.randperm(8, generator=seeds.generator(0, "order"))
    assert near(run(trunk, x[order]), out[order]), "permuting the samples does not permute the output"
    assert near(run(trunk, x[:3]), out[:3]), "a sample's output depends on which others are in the batch"
    assert near(run(trunk, x[5:6]), out[5:6]), "a sample alone gets another output"


def trunk_deterministic(make: MakeTrunk) -> None:
    """Evaluation gives the same bits twice, draws nothing and leaves input, parameters and buffers as they were."""
    trunk = make()
    x = tokens_for(trunk)
    given, before = x.clone(), {k: v.clone() for k, v in trunk.state_dict().items()}
    with leaves_random_alone("evaluation of the trunk"):
        first, second = run(trunk, x), run(trunk, x)
    assert equal_bits(first, second), "evaluation gives two different outputs for one input"
    assert equal_bits(x, given), "the trunk changes its input"
    assert same(before, dict(trunk.state_dict())), "evaluation changes the trunk's state"


def trunk_refusals(make: MakeTrunk) -> None:
    """A capability that is absent is refused by name."""
    encoder = encoder_of(make()).eval()
    x = tokens_for(encoder.trunk)
    options: dict[str, Any] = {"keep": torch.zeros(8, 1, dtype=torch.long), "causal": True}
    for name, value in options.items():
        if name in encoder.trunk.can:
            continue
        words = refusal(UserError, partial(encoder, {"x": x}, **{name: value}))
        assert words, f"the trunk declares no '{name}', yet is run with it"
        assert f"'{name}'" in words, f"the refusal of '{name}' does not name it: {words}"


def trunk_padding(make: MakeTrunk) -> None:
    """Where `padding` is declared, what stands in padded tokens changes no real token and no pooled feature."""
    encoder = encoder_of(make()).eval()
    if "padding" not in encoder.trunk.can:
        return
    stirred(encoder)
    x = tokens_for(encoder.trunk)
    mask = torch.rand(x.shape[:2], generator=seeds.generator(0, "mask")) < 0.6
    mask[:, 0] = True
    other = torch.where(mask.unsqueeze(2), x, 100 * tokens_for(encoder.trunk, seed=1))
    with torch.no_grad():
        a, b = encoder({"x": x, "mask": mask}), encoder({"x": other, "mask": mask})
    assert a.mask is not None, "the output lost the mask"
    assert equal_bits(a.mask, mask), "the output changed the mask"
    assert equal_bits(a.tokens[mask], b.tokens[mask]), "padded tokens change real ones"
    assert near(a.pooled, b.pooled), "padded tokens change the pooled features"


def trunk_lengths(make: MakeTrunk) -> None:
    """Where `any_length` is declared, other numbers of tokens run."""
    trunk = make().eval()
    if "any_length" in trunk.can:
        for t in (1, 5, 33):
            out = run(trunk, torch.randn((2, t, trunk.dim), generator=seeds.generator(t)))
            assert out.shape[0] == 2, f"{t} tokens give {tuple(out.shape)}"
            assert out.shape[2] == trunk.dim_out, f"{t} tokens give {tuple(out.shape)}"


def trunk_causal(make: MakeTrunk) -> None:
    """Where `causal` is declared, a token does not see later ones."""
    encoder = encoder_of(make()).eval()
    if "causal" not in encoder.trunk.can:
        return
    x, trunk = tokens_for(encoder.trunk), encoder.trunk
    cut = int(np.prod(trunk.grid_out)) // 2
    later = (torch.arange(int(np.prod(trunk.grid_out))) >= cut).expand(len(x), -1)
    later = spread(later, tuple(trunk.grid_out), tuple(trunk.grid)) if trunk.grid_out != trunk.grid else later
    other = torch.where(later.unsqueeze(2), tokens_for(trunk, seed=1), x)
    with torch.no_grad():
        a, b = encoder({"x": x}, causal=True).tokens, encoder({"x": other}, causal=True).tokens
    assert near(a[:, :cut], b[:, :cut]), "an earlier token sees later ones"


def graphs_for(trunk: Trunk) -> Batch:
    """Six graphs of other numbers of nodes and edges, padded: one without edges, one of one node, one of none."""
    t = int(np.prod(trunk.grid))
    rng, dim = seeds.generator(0, "graphs"), getattr(trunk, "edge_dim", 0)
    nodes, counts = torch.tensor([t, 4, t - 1, 5, 1, 0]).clamp(max=t), torch.tensor([2 * t, 3, t, 0, 1, 0])
    edges = (torch.rand((6, 2 * t, 2), generator=rng) * nodes.view(-1, 1, 1)).long()
    edge_mask = torch.arange(2 * t) < counts.unsqueeze(1)
    batch = {
        "x": torch.randn((6, t, trunk.dim), generator=rng),
        "mask": torch.arange(t) < nodes.unsqueeze(1),
        "edges": edges.masked_fill(~edge_mask.unsqueeze(2), -1),
        "edge_mask": edge_mask,
    }
    return {**batch, "edge_x": torch.randn((6, 2 * t, dim), generator=rng)} if dim else batch


def rows_of(x: Tensor, order: Tensor) -> Tensor:
    """Tokens (b, t, d) in another order, or some of them: their numbers (b, k)."""
    return x.gather(1, order.unsqueeze(2).expand(-1, -1, x.shape[2]))


def renumbered(batch: Batch, order: Tensor) -> Batch:
    """Graphs with their nodes in another order (b, t), and the same edges between them, these the other way round."""
    number = order.argsort(1).unsqueeze(2).expand(-1, -1, 2)
    moved = {k: v.flip(1) for k, v in batch.items() if k.startswith("edge")}
    ends = number.gather(1, moved["edges"].clamp(min=0)).masked_fill(~moved["edge_mask"].unsqueeze(2), -1)
    return {**moved, "x": rows_of(batch["x"], order), "mask": batch["mask"].gather(1, order), "edges": ends}


def trunk_edges(make: MakeTrunk) -> None:
    """Where `edges` is declared, tokens may be renumbered, graphs are alone in their batch, and edges are checked."""
    encoder = encoder_of(make()).eval()
    if "edges" not in encoder.trunk.can:
        return
    stirred(encoder)
    batch = graphs_for(encoder.trunk)
    mask = batch["mask"]
    with torch.no_grad():
        out = encoder(batch)
        assert out.tokens.isfinite().all(), "graphs without nodes or edges give no finite output"

        order = torch.rand(mask.shape, generator=seeds.generator(0, "order")).argsort(1)
        moved = renumbered(batch, order)
        again, turned = encoder(moved), rows_of(out.tokens, order)
        assert near(again.tokens[moved["mask"]], turned[moved["mask"]]), "renumbering the nodes changes their tokens"
        assert near(again.pooled, out.pooled), "renumbering the nodes changes the pooled features"

        for k, (n, e) in enumerate(zip(mask.sum(1), batch["edge_mask"].sum(1), strict=True)):
            short = {key: v[k : k + 1, : e if key.startswith("edge") else n] for key, v in batch.items()}
            if n and "any_length" in encoder.trunk.can:
                alone = encoder(short)
                assert near(alone.tokens[0], out.tokens[k, :n]), "a graph's tokens depend on padding or on other graphs"
                assert near(alone.pooled[0], out.pooled[k]), "a graph's pooled features depend on padding or others"

        bare = encoder({**batch, "edge_mask": torch.zeros_like(batch["edge_mask"])}).tokens
        assert not near(bare[0], out.tokens[0]), "the edges change nothing"
        if "edge_x" in batch:
            other = encoder({**batch, "edge_x": -batch["edge_x"]}).tokens
            assert not near(other[0], out.tokens[0]), "the features of the edges change nothing"
    _edges_are_checked(encoder.trunk, given_to(encoder.trunk, batch["x"], mask))


def _edges_are_checked(trunk: Trunk, tokens: Tokens) -> None:
    count = tokens.x.shape[0] * tokens.x.shape[1]
    for token in (-1, count):
        wrong = tokens._replace(edges=Edges(torch.tensor([[0, 1], [1, token]])))
        words = refusal(UserError, partial(trunk, wrong))
        assert words, f"an edge to token {token} of {count} is run"
        assert all(w in words for w in ("edge 1", str(token), f"{count} tokens")), (
            f"it names not what is wrong: {words}"
        )
    words = refusal(UserError, partial(trunk, tokens._replace(edges=None)))
    assert "edges" in words, f"tokens without edges are not refused as such: {words}"


def trunk_keep(make: MakeTrunk) -> None:
    """Where `keep` is declared, the trunk runs on the tokens kept, from their own places, and sees no other."""
    encoder = encoder_of(make()).eval()
    trunk = encoder.trunk
    if "keep" not in trunk.can:
        return
    stirred(encoder)
    x, count = tokens_for(trunk), int(np.prod(trunk.grid_out))
    order = torch.rand((8, count), generator=seeds.generator(0, "keep")).argsort(1)
    keep = order[:, : (count + 1) // 2].sort(1).values
    with torch.no_grad():
        whole, every = encoder({"x": x}), encoder({"x": x}, keep=torch.arange(count).expand(8, -1))
        assert near(every.tokens, whole.tokens), "keeping all tokens differs from the whole"
        assert near(every.pooled, whole.pooled), "keeping all tokens changes the pooled features"
        hidden = torch.ones(8, count, dtype=torch.bool).scatter(1, keep, False)
        unseen = spread(hidden, trunk.grid_out, trunk.grid).unsqueeze(2)
        out = encoder({"x": x}, keep=keep)
        other = encoder({"x": torch.where(unseen, tokens_for(trunk, seed=1), x)}, keep=keep)
        assert tuple(out.grid) == (keep.shape[1],), f"{keep.shape[1]} tokens are kept; the output's grid is {out.grid}"
        assert out.tokens.shape == (8, keep.shape[1], trunk.dim_out), f"keep gives {tuple(out.tokens.shape)}"
        assert equal_bits(out.tokens, other.tokens), "tokens that are not kept change those that are"
        assert equal_bits(out.pooled, other.pooled), "tokens that are not kept change the pooled features"
        if count > 1:
            assert not near(rows_of(whole.tokens, keep), out.tokens), "the tokens kept see the others"
            assert not near(out.tokens, encoder({"x": x.roll(1, 1)}, keep=keep).tokens), "keep takes other tokens"


def trunk_step(make: MakeTrunk) -> None:
    """Where `causal` is declared, steps one after the other equal one causal forward; their state is left as it is."""
    trunk = make().eval()
    if "causal" not in trunk.can or tuple(trunk.grid_out) != tuple(trunk.grid):  # a step is a token, not a patch
        return
    stirred(trunk)
    x = tokens_for(trunk, 3)
    with torch.no_grad():
        whole = trunk(given_to(trunk, x), causal=True).x
        for sizes in ([1] * x.shape[1], [2, 1, x.shape[1] - 3], [x.shape[1]]):
            state, parts = None, []
            for part in x.split(sizes, 1):
                tokens = Tokens(part, None, (part.shape[1],))
                out, after = trunk.step(tokens, state)
                again = trunk.step(tokens, state)[0]
                assert equal_bits(out.x, again.x), "a step changes the state that it is given"
                parts.append(out.x)
                state = after
            assert near(torch.cat(parts, 1), whole), f"steps of {sizes} tokens differ from one causal forward"


def trunk_decoder(make: MakeTrunk) -> None:
    """The decoder mirrors a code back onto the input grid; it is trainable throughout."""
    trunk = make()
    with seeds.forked(0, "decoder"):
        decoder = trunk.decoder(5).eval()
    stirred(decoder)
    code = torch.randn((8, 5), generator=seeds.generator(0, "code"))
    out = decoder(code)
    wanted = (8, int(np.prod(trunk.grid)), trunk.dim)
    assert out.shape == wanted, f"the decoder gives {tuple(out.shape)}; the input grid wants {wanted}"
    assert not equal_bits(out[0], out[1]), "the decoder ignores the code"
    assert near(decoder(code[:2]), out[:2]), "a decoded sample depends on which others are in the batch"
    check_gradients(decoder, weighted(out))


TRUNK: dict[str, Callable[[MakeTrunk], None]] = {
    "shapes": trunk_shapes,
    "layers": trunk_layers,
    "spec": trunk_spec,
    "freezing": trunk_freezing,
    "gradients": trunk_gradients,
    "samples": trunk_samples,
    "deterministic": trunk_deterministic,
    "refusals": trunk_refusals,
    "padding": trunk_padding,
    "lengths": trunk_lengths,
    "causal": trunk_causal,
    "keep": trunk_keep,
    "step": trunk_step,
    "edges": trunk_edges,
    "decoder": trunk_decoder,
}
