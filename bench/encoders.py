"""Claim: our architectures are at most 1.1 times as slow as timm's, transformers', torch's and torch-geometric's.

The same sizes, the same number of parameters, the same inputs; forward, and forward with backward, interleaved in one
run. Peers run as their users run them (their default memory format, scaled-dot-product attention).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import _common
import torch
from torch import Tensor, nn

from modicum.core import seeds
from modicum.core.errors import need
from modicum.core.spec import build
from modicum.core.types import Edges, Tokens, Trunk
from modicum.nn.foreign import library


def passes(model: nn.Module, run: Callable[[], Tensor], backward: bool) -> Callable[[], None]:
    """A call of one pass, in training mode (dropout is 0 everywhere)."""

    def call() -> None:
        if not backward:
            with torch.no_grad():
                run()
            return
        model.zero_grad(set_to_none=True)
        run().square().mean().backward()

    return call


def trunk(text: str, dim: int, grid: tuple[int, ...]) -> Trunk:
    with seeds.forked(0, "init"):
        made: Trunk = build("trunk", text, dim=dim, grid=grid)
    return made


Twin = tuple[str, int, nn.Module, Callable[[], Tensor], nn.Module, Callable[[], Tensor]]
"""Title, samples a pass, ours and how it runs, the peer and how it runs."""


def images() -> Iterator[Twin]:
    """timm's networks; pixels reach ours as tokens, the peer as (b, c, h, w)."""
    timm = library("timm")

    for name, text, side, batch in (
        ("resnet18", "resnet(depth=18, width=64, stem='imagenet')", 96, 16),
        ("resnet50", "resnet(depth=50, width=64, stem='imagenet')", 96, 8),
        ("mixer_s32_224", "mixer(size='small', patch=32)", 224, 8),
        ("vit_tiny_patch16_224", "transformer(size='tiny', patch=16, class_token=True)", 224, 8),
    ):
        pixels = torch.randn(batch, side * side, 3)
        image = pixels.view(batch, side, side, 3).permute(0, 3, 1, 2).contiguous()
        peer = timm.create_model(name, num_classes=0)
        ours = trunk(text, 3, (side, side))
        yield (
            f"{name}, {side}×{side}, batch {batch}", batch,
            ours, lambda ours=ours, x=pixels, grid=(side, side): ours(Tokens(x, None, grid)).x,
            peer, lambda peer=peer, x=image: peer.forward_features(x),
        )  # fmt: skip


def texts() -> Iterator[Twin]:
    """BERT and GPT-2 of transformers on embedded words, rows of 33 to 64 real tokens of 64."""
    from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

    batch, length, width = 16, 64, 256
    x = torch.randn(batch, length, width)
    mask = torch.arange(length) < torch.randint(33, 65, (batch, 1))
    sizes: dict[str, Any] = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0, "vocab_size": 64}
    sizes |= {"hidden_size": width, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 4 * width}
    bert = BertModel(BertConfig(**sizes), add_pooling_layer=False)
    ours = trunk("transformer(width=256, depth=4, prenorm=False, eps=1e-12)", width, (length,))
    yield (
        f"BERT 4×{width}, {batch} rows of 33-64 tokens", batch,
        ours, lambda ours=ours: ours(Tokens(x, mask, (length,))).x,
        bert, lambda: bert(inputs_embeds=x, attention_mask=mask.long()).last_hidden_state,
    )  # fmt: skip
    sizes = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "vocab_size": 64, "n_positions": length}
    gpt = GPT2Model(GPT2Config(n_embd=width, n_layer=4, n_head=4, **sizes))
    causal = trunk("transformer(width=256, depth=4, causal=True, act='gelu_tanh', eps=1e-5)", width, (length,))
    yield (
        f"GPT-2 4×{width}, {batch} rows of {length} tokens", batch,
        causal, lambda: causal(Tokens(x, None, (length,))).x,
        gpt, lambda: gpt(inputs_embeds=x, use_cache=False).last_hidden_state,
    )  # fmt: skip


class Packed(nn.Module):
    """torch.nn.LSTM over packed sequences, as its documentation shows it."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dim, width, 2, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, mask.sum(1), batch_first=True, enforce_sorted=False)
        return nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0]


def sequences() -> Iterator[Twin]:
    """An LSTM over padded rows."""
    batch, length, width = 32, 64, 128
    x = torch.randn(batch, length, width)
    mask = torch.arange(length) < torch.cat([torch.tensor([[length]]), torch.randint(33, 65, (batch - 1, 1))])
    ours, peer = trunk(f"recurrent(cell='lstm', width={width}, depth=2)", width, (length,)), Packed(width, width)
    yield (
        f"LSTM 2×{width}, {batch} rows of 33-64 tokens", batch,
        ours, lambda: ours(Tokens(x, mask, (length,))).x,
        peer, lambda: peer(x, mask),
    )  # fmt: skip


def graphs() -> Iterator[Twin]:
    """torch-geometric's models, behind a linear layer as ours, on 64 graphs of 24 nodes and 96 edges."""
    need("torch_geometric", "graphs")  # it warns when it is imported
    from torch_geometric.nn.models import GAT, GCN, GIN

    batch, nodes, edges, width = 64, 24, 96, 64
    x = torch.randn(batch, nodes, width)
    ends = torch.randint(nodes, (2, batch, edges)) + nodes * torch.arange(batch).view(1, batch, 1)
    ends = ends.flatten(1)
    for name, model, options in (("gin", GIN, {}), ("gcn", GCN, {}), ("gat", GAT, {"v2": True, "heads": 4})):
        first, net = nn.Linear(width, width), model(width, width, 3, **options)
        peer = nn.ModuleList([first, net])
        heads = ", heads=4" if name == "gat" else ""
        ours = trunk(
            f"graph(conv='{name}', width={width}, depth=3, norm='none', residual=False{heads})", width, (nodes,)
        )
        yield (
            f"{name.upper()} 3×{width}, {batch} graphs of {nodes} nodes and {edges} edges", batch,
            ours, lambda ours=ours: ours(Tokens(x, None, (nodes,), Edges(ends))).x,
            peer, lambda first=first, net=net: net(first(x.flatten(0, 1)), ends),
        )  # fmt: skip


def main() -> None:
    bench, slowest = _common.Bench("encoders", rounds=7), {}
    warnings.simplefilter("ignore")
    for twins in (images, texts, sequences, graphs):
        for title, samples, ours, run, peer, run_peer in twins():
            counts = [sum(p.numel() for p in m.parameters()) for m in (ours, peer)]
            for backward in (False, True):
                words = f"{title}, {'forward and backward' if backward else 'forward'}"
                calls = {"modicum": passes(ours, run, backward), "peer": passes(peer, run_peer, backward)}
                ratio = _common.contest(bench, words, calls, dict.fromkeys(calls, samples))[0]["peer"]
                slowest[words] = ratio
            print(f"parameters: {counts[0]:,}; the peer's {counts[1]:,}")
            assert 0.8 < counts[0] / counts[1] < 1.25, "these are no twins"
    worst = min(slowest, key=slowest.__getitem__)
    _common.verdict(f"the slowest against its twin ({worst}), times as fast", slowest[worst], 1 / 1.1)
    bench.finish()


if __name__ == "__main__":
    main()
