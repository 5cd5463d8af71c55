"""`transformer` and attention against timm, transformers, torch and dense references; laws: test_contracts."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor, nn
from torch.nn import functional as F
from twins import far, images, shaken, timm_model

from modicum.core import seeds
from modicum.core.errors import UserError
from modicum.core.types import Edges, Tokens
from modicum.nn.attention import Attention, Block, EdgeBias, Visible, angles, rotated
from modicum.nn.trunks.transformer import Transformer
from modicum.testing.tools import check_gradients, stirred
from modicum.testing.trunks import weighted

SMALL = "transformer(width=16, depth=2, heads=2"


@pytest.fixture(scope="module")
def hf() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        transformers.BertModel, transformers.GPT2Model, transformers.ViTModel  # noqa: B018 - imported on first use
        from transformers.models.llama import modeling_llama

        transformers.llama = modeling_llama
    return transformers


def random(*shape: int, name: str = "x", dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=seeds.generator(0, name), dtype=dtype)


def made(text: str, dim: int = 4, grid: tuple[int, ...] = (6,)) -> Transformer:
    trunk: Transformer = stirred(zoo.trunk(text, dim, grid)()).eval()  # type: ignore[assignment]
    return trunk


def bert(hf: Any, **options: Any) -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    with seeds.forked(0, "bert"):
        return shaken(hf.BertModel(hf.BertConfig(vocab_size=50, max_position_embeddings=20, **sizes, **options))).eval()


def gpt2(hf: Any) -> nn.Module:
    sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 50, "n_positions": 20}
    with seeds.forked(0, "gpt2"):
        return shaken(hf.GPT2Model(hf.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))).eval()


BERT = "transformer(width=32, depth=3, heads=4, ratio=2., prenorm=False, eps=1e-12)"
GPT2 = "transformer(width=32, depth=3, heads=4, causal=True, act='gelu_tanh', eps=1e-5)"


# The same function as the field's networks


def test_it_equals_timms_vision_transformer() -> None:
    ref = shaken(timm_model("vit_tiny_patch16_224")).eval()
    ours = zoo.trunk("transformer('tiny', patch=16, class_token=True)", 3, (224, 224))().eval()
    ours.load_state_dict(ours.translate(ref.state_dict()))
    x, tokens = images(2, 224)
    with torch.no_grad():
        wanted, out = ref.forward_features(x), ours(tokens)
    assert out.grid == (14, 14)
    assert far(out.x, wanted[:, 1:]) < 1e-5
    assert far(out.pooled, wanted[:, 0]) < 1e-5


def test_it_equals_the_vision_transformer_of_transformers(hf: Any) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    with seeds.forked(0, "vit"):
        ref = shaken(hf.ViTModel(hf.ViTConfig(image_size=32, patch_size=8, **sizes))).eval()
    text = "transformer(width=32, depth=2, heads=4, ratio=2., patch=8, class_token=True, eps=1e-12)"
    ours = zoo.trunk(text, 3, (32, 32))().eval()
    ours.load_state_dict(ours.translate({f"vit.{k}": v for k, v in ref.state_dict().items()}))
    x, tokens = images(2, 32)
    with torch.no_grad():
        wanted, out = ref(x).last_hidden_state, ours(tokens)
    assert far(torch.cat([out.pooled.unsqueeze(1), out.x], 1), wanted) < 1e-5


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_it_equals_bert_with_padding(hf: Any, prefix: str) -> None:
    ref = bert(hf)
    ours = zoo.trunk(BERT, 32, (12,))().eval()  # shorter than the checkpoint's positions
    ours.load_state_dict(ours.translate({prefix + k: v for k, v in ref.state_dict().items()}))
    ids = torch.randint(50, (4, 12), generator=seeds.generator(0, "ids"))
    for mask in (None, torch.arange(12) < torch.tensor([[12], [5], [1], [9]])):
        with torch.no_grad():
            out = ours(Tokens(ref.embeddings.word_embeddings(ids), mask, (12,)))
            wanted = ref(ids, attention_mask=None if mask is None else mask.long()).last_hidden_state
        real = torch.ones(4, 12, dtype=torch.bool) if mask is None else mask
        assert far(out.x[real], wanted[real]) < 1e-5
        assert out.pooled is None


def test_it_equals_gpt2_with_padding(hf: Any) -> None:
    ref = gpt2(hf)
    ours = zoo.trunk(GPT2, 32, (12,))().eval()
    ours.load_state_dict(ours.translate({f"transformer.{k}": v for k, v in ref.state_dict().items()}))
    ids = torch.randint(50, (4, 12), generator=seeds.generator(0, "ids"))
    lengths = torch.tensor([12, 5, 1, 9])
    for mask in (None, torch.arange(12) < lengths.unsqueeze(1)):
        with torch.no_grad():
            out = ours(Tokens(ref.wte(ids), mask, (12,)))
            wanted = ref(ids, attention_mask=None if mask is None else mask.long()).last_hidden_state
        real = torch.ones(4, 12, dtype=torch.bool) if mask is None else mask
        assert far(out.x[real], wanted[real]) < 1e-5
        last = lengths - 1 if mask is not None else torch.full((4,), 11)
        assert torch.equal(out.pooled, out.x[torch.arange(4), last])


@pytest.mark.parametrize("prenorm", [True, False])
@pytest.mark.parametrize("name", ["plain", "padded"])
def test_a_block_with_memory_equals_torchs_decoder_layer(prenorm: bool, name: str) -> None:
    ref = nn.TransformerDecoderLayer(16, 4, 32, 0.0, "gelu", batch_first=True, norm_first=prenorm)
    stirred(ref).eval()
    ours = Block(16, 4, 32, eps=1e-5, prenorm=prenorm, memory=16).eval()
    given, own = ref.state_dict(), {}
    pairs = {"norm1": "norm1", "norm2": "norm_memory", "norm3": "norm2", "linear1": "mlp.up", "linear2": "mlp.down"}
    pairs |= {"self_attn.out_proj": "attention.out", "multihead_attn.out_proj": "look_up.out"}
    for kind in ("weight", "bias"):
        own |= {f"{b}.{kind}": given[f"{a}.{kind}"] for a, b in pairs.items()}
        own[f"attention.qkv.{kind}"] = given[f"self_attn.in_proj_{kind}"]
        own[f"look_up.q.{kind}"], own[f"look_up.kv.{kind}"] = given[f"multihead_attn.in_proj_{kind}"].split([16, 32])
    ours.load_state_dict(own)
    x, memory = random(3, 5, 16), random(3, 7, 16, name="memory")
    mask = None if name == "plain" else torch.arange(7) < torch.tensor([[7], [2], [4]])
    later, padded = torch.ones(5, 5, dtype=torch.bool).triu(1), None if mask is None else ~mask
    with torch.no_grad():
        out = ours(x, Visible(None, True, queries=5, keys=5), memory=memory, memory_visible=Visible(mask))
        wanted = ref(x, memory, later, memory_key_padding_mask=padded, tgt_is_causal=True)
    assert far(out, wanted) < 1e-5


def test_rotary_positions_equal_llamas_and_depend_on_distance_only(hf: Any) -> None:
    q, k = random(2, 3, 9, 8, name="q"), random(2, 3, 9, 8, name="k")
    turn = angles((9,), 4)
    rope = hf.llama.LlamaRotaryEmbedding(
        hf.LlamaConfig(hidden_size=24, num_attention_heads=3, head_dim=8, max_position_embeddings=9)
    )
    wanted = hf.llama.apply_rotary_pos_emb(q, k, *rope(q, torch.arange(9).unsqueeze(0)))
    rotary = (turn.cos(), turn.sin())
    for x, y in zip((q, k), wanted, strict=True):
        assert far(rotated(x, rotary), y) < 1e-6
    a, b = rotated(q[:, :, :1].expand_as(q), rotary), rotated(k[:, :, :1].expand_as(k), rotary)
    products = a @ b.transpose(2, 3)
    for shift in range(-8, 9):
        along = products.diagonal(shift, 2, 3)
        assert far(along, along[..., :1].expand_as(along)) < 1e-5
    assert not torch.allclose(products[..., 0, 0], products[..., 0, 1], atol=1e-3)


def test_rotary_positions_of_an_image_depend_on_both_distances_only() -> None:
    turn = angles((4, 5), 4)
    rotary = (turn.cos(), turn.sin())
    q, k = (rotated(random(1, 8, name=n).expand(20, 8), rotary).view(4, 5, 8) for n in "qk")
    products = torch.einsum("abd,ced->abce", q, k)
    assert torch.allclose(products[0, 0, 1, 2], products[2, 2, 3, 4], atol=1e-5)
    assert not torch.allclose(products[0, 0, 1, 2], products[0, 0, 2, 1], atol=1e-3)


# Steps, padding, keep


@pytest.mark.parametrize("positions", ["learned", "rotary", "sincos", "none"])
def test_steps_equal_one_forward_with_padding_too(positions: str) -> None:
    trunk = made(f"{SMALL}, causal=True, positions='{positions}')")
    x = random(4, 6, 4)
    mask = torch.rand((4, 6), generator=seeds.generator(1, "mask")) < 0.6
    mask[0], mask[1, 0] = True, False
    with torch.no_grad():
        whole, state, parts = trunk(Tokens(x, mask, (6,))), None, []
        for a, b in ((0, 1), (1, 3), (3, 4), (4, 6)):
            out, state = trunk.step(Tokens(x[:, a:b], mask[:, a:b], (b - a,)), state)
            parts.append(out.x)
    assert torch.allclose(torch.cat(parts, 1)[mask], whole.x[mask], atol=1e-5)


def test_rows_without_a_real_token_give_numbers_and_gradients() -> None:
    mask = torch.tensor([[False] * 6, [True] * 6])
    for options in ("", ", causal=True", ", positions='rotary', prenorm=False", ", class_token=True"):
        trunk = made(f"{SMALL}{options})")
        x = random(2, 6, 4).requires_grad_()
        out = trunk(Tokens(x, mask, (6,)))
        (weighted(out.x) + (0 if out.pooled is None else weighted(out.pooled))).backward()
        assert out.x.isfinite().all()
        assert x.grad.isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in trunk.parameters())
    seen = Visible(mask[:, :2], True, queries=2, keys=2)
    attention = Attention(8, 2)
    assert attention(random(2, 2, 8), seen).isfinite().all()


@pytest.mark.parametrize("grid", [(3, 3)])
def test_keep_takes_patches_by_their_numbers(grid: tuple[int, int]) -> None:
    trunk = made(f"{SMALL}, patch=2, class_token=True)", 3, (6, 6))
    x = random(2, 36, 3)
    keep = torch.tensor([[4, 0], [8, 2]])
    patches = x.view(2, 3, 2, 3, 2, 3).permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)
    embedded = trunk.embed.project.linear(patches) + trunk.embed.positions
    rows = torch.stack([embedded[b, keep[b]] for b in range(2)])
    y = torch.cat([trunk.embed.class_token.expand(2, 1, -1), rows], 1)
    for block in trunk.block:
        y = block(y)
    y = trunk.last(y)
    out = trunk(Tokens(x, None, (6, 6)), keep=keep)
    assert out.grid == (2,)
    assert torch.allclose(out.x, y[:, 1:], atol=1e-5)
    assert torch.allclose(out.pooled, y[:, 0], atol=1e-5)


def test_padding_inside_patches_is_read_as_zeros() -> None:
    trunk = made(f"{SMALL}, patch=2)", 3, (4, 4))
    x, mask = random(2, 16, 3), torch.ones(2, 16, dtype=torch.bool)
    mask.view(2, 4, 4)[0, :, 2:] = False
    mask.view(2, 4, 4)[1, 3, 3] = False
    out = trunk(Tokens(x, mask, (4, 4)))
    assert out.mask.tolist() == [[True, False, True, False], [True] * 4]
    other = trunk(Tokens(x.where(mask.unsqueeze(2), 9 + x), mask, (4, 4)))
    assert torch.equal(out.x, other.x)
    zeroed = trunk(Tokens(x.where(mask.unsqueeze(2), torch.zeros(())), None, (4, 4)))
    assert torch.allclose(out.x[1], zeroed.x[1], atol=1e-6)


def test_fewer_tokens_than_the_grid_are_read_as_they_are() -> None:
    trunk = made(f"{SMALL})")
    x = random(2, 6, 4)
    mask = (torch.arange(6) < 4).expand(2, 6)
    short, padded = trunk(Tokens(x[:, :4], None, (4,))), trunk(Tokens(x, mask, (6,)))
    assert short.grid == (4,)
    assert torch.allclose(short.x, padded.x[:, :4], atol=1e-5)


# Edges


def graph(edge_dim: int = 0, dtype: torch.dtype = torch.float32) -> Edges:
    """Two samples of 4 tokens; an edge of the second is there twice."""
    ends = torch.tensor([[0, 1, 3, 4, 6, 6], [1, 0, 3, 7, 5, 5]])
    return Edges(ends, random(6, edge_dim, name="edges", dtype=dtype) if edge_dim else None)


@pytest.mark.parametrize("edge_dim", [0, 3])
def test_the_bias_of_edges_equals_a_dense_reference(edge_dim: int) -> None:
    bias: EdgeBias = stirred(EdgeBias(2, edge_dim))  # type: ignore[assignment]
    edges = graph(edge_dim)
    wanted = torch.zeros(2, 2, 4, 4)
    for e, (i, j) in enumerate(edges.ends.T.tolist()):
        for head in range(2):
            value = bias.weight[head]
            if bias.features is not None:
                value = value + edges.x[e] @ bias.features[:, head]
            wanted[i // 4, head, j % 4, i % 4] += value.detach()
    found = bias(edges, 2, 4)
    assert torch.allclose(found, wanted, atol=1e-6)
    attention = Attention(8, 2)
    x, mask = random(2, 4, 8), torch.tensor([[True] * 4, [True, True, True, False]])
    q, k, v = attention.qkv(x).view(2, 4, 3, 2, 4).permute(2, 0, 3, 1, 4)
    score = (q @ k.transpose(2, 3) / 2 + found).masked_fill(~mask[:, None, None], -torch.inf)
    dense = attention.out((score.softmax(3) @ v).transpose(1, 2).reshape(2, 4, 8))
    assert torch.allclose(attention(x, Visible(mask, bias=found)), dense, atol=1e-6)


def test_what_is_written_by_hand_has_the_right_gradients() -> None:
    trunk = made(f"{SMALL}, edges='bias', edge_dim=2, class_token=True)", 3, (4,)).double()
    edges, mask = graph(2, torch.float64), torch.tensor([[True] * 4, [True, True, False, True]])

    def joined(x: Tensor, features: Tensor) -> tuple[Tensor, ...]:
        out = trunk(Tokens(x, mask, (4,), Edges(edges.ends, features)))
        return out.x[mask], out.pooled

    x = random(2, 4, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(joined, (x, edges.x.requires_grad_()))
    turning = made(f"{SMALL}, causal=True, positions='rotary')", 3, (4,)).double()
    assert torch.autograd.gradcheck(lambda x: turning(Tokens(x, mask, (4,))).x, x)


# The decoder that looks up a memory


@pytest.mark.parametrize("options", ["", ", prenorm=False, norm='rms'"])
def test_seq2seq_is_causal_and_sees_the_real_memory(options: str) -> None:
    trunk = made(f"{SMALL}{options})")
    with seeds.forked(0, "init"):
        decoder = stirred(trunk.seq2seq(3)).eval()
    memory, targets = random(4, 9, 16, name="memory"), random(4, 6, 3, name="targets")
    mask = torch.rand((4, 9), generator=seeds.generator(2, "mask")) < 0.5
    mask[0] = False
    out = decoder(targets, Tokens(memory, mask))
    assert out.shape == (4, 6, 16)
    assert out.isfinite().all()
    later = torch.cat([targets[:, :3], 9 - targets[:, 3:]], 1)
    changed = decoder(later, Tokens(memory, mask))
    assert torch.allclose(changed[:, :3], out[:, :3], atol=1e-5)
    assert not torch.allclose(changed[:, 3], out[:, 3], atol=1e-3)
    padded = decoder(targets, Tokens(memory.where(mask.unsqueeze(2), 99 * memory), mask))
    assert torch.allclose(padded[1:], out[1:], atol=1e-5)
    other = decoder(targets, Tokens(memory.flip(2), mask))
    assert not torch.allclose(other[1:, 0], out[1:, 0], atol=1e-3)
    check_gradients(decoder, weighted(out))


def test_seq2seq_learns_to_turn_sequences_round() -> None:
    with seeds.forked(0, "init"):
        trunk = Transformer(8, (6,), width=32, depth=1, heads=2)
        decoder, head = trunk.seq2seq(8), nn.Linear(trunk.dim_out, 8)
    optimizer = torch.optim.Adam(nn.ModuleList([trunk, decoder, head]).parameters(), 1e-2)
    one_hot, rng = torch.eye(8), seeds.generator(0, "sequences")

    def logits(x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.flip(1)
        before = torch.cat([torch.zeros(len(x), 1, 8), one_hot[y[:, :-1]]], 1)
        return head(decoder(before, trunk(Tokens(one_hot[x], None, (6,))))), y

    for _ in range(120):
        out, y = logits(torch.randint(8, (64, 6), generator=rng))
        optimizer.zero_grad()
        F.cross_entropy(out.flatten(0, 1), y.flatten()).backward()
        optimizer.step()
    out, y = logits(torch.randint(8, (256, 6), generator=rng))
    assert (out.argmax(2) == y).float().mean() > 0.9  # chance is 1/8


# What it chooses and what it refuses


@pytest.mark.parametrize(
    ("side", "patch"), [(8, 1), (16, 2), (28, 4), (32, 4), (64, 8), (96, 16), (128, 16), (224, 16)]
)
def test_the_patch_of_an_image_follows_its_size(side: int, patch: int) -> None:
    trunk = zoo.trunk(f"{SMALL})", 1, (side, side))()
    assert trunk.grid_out == (side // patch, side // patch)


def test_sizes_and_capabilities() -> None:
    trunk = zoo.trunk("transformer('tiny')", 192, (6,))()
    assert (trunk.dim_out, len(trunk.layers()), trunk.block[0].attention.heads) == (192, 14, 3)
    assert zoo.trunk("transformer(width=256, depth=1)", 4, (6,))().block[0].attention.heads == 4
    both = {"padding", "stack"}
    for options, can in {
        "": {"keep", "causal"},
        ", positions='rotary'": {"keep", "causal", "any_length"},
        ", class_token=True": {"keep"},
        ", edges='bias'": {"edges", "any_length"},
    }.items():
        assert zoo.trunk(f"{SMALL}{options})", 4, (6,))().can == both | can, options
    assert zoo.trunk(f"{SMALL}, patch=2)")().can == {"keep", "causal", "stack"}


REFUSED = {
    "transformer('huge')": "unknown transformer size 'huge'; valid:",
    f"{SMALL}, positions='absolute')": "unknown transformer positions 'absolute'; valid:",
    f"{SMALL}, norm='batch')": "unknown transformer norm 'batch'; valid:",
    f"{SMALL}, act='elu')": "unknown activation 'elu'; valid:",
    f"{SMALL}, edges='all')": "unknown transformer edges 'all'; valid:",
    "transformer(width=10, heads=3)": "a width that is a multiple of heads.*width=10, .*heads=3",
    "transformer(depth=0)": "width, depth and heads of at least 1.*depth=0",
    f"{SMALL}, dropout=1.)": "0 <= dropout, drop_path < 1.*dropout=1.0",
    f"{SMALL}, patch=4)": r"patches of 4 tokens a side do not divide the grid \(6,\): .* one of \[1, 2, 3, 6\]",
    "transformer(width=6, heads=2, depth=1, positions='rotary')": r"wants width / heads to be a multiple of 2 .*got 3",
    f"{SMALL}, causal=True, class_token=True)": "causal=True.* wants tokens in a row",
    f"{SMALL}, edges='bias', positions='learned')": "nodes in no order.*positions='learned'",
}


@pytest.mark.parametrize("text", REFUSED)
def test_bad_arguments_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=REFUSED[text]):
        zoo.trunk(text, 4, (6,))()


def test_bad_tokens_are_refused() -> None:
    trunk = made(f"{SMALL})")
    with pytest.raises(UserError, match=r"built for tokens \(b, t, 4\); got \(2, 6, 5\)"):
        trunk(Tokens(random(2, 6, 5), None, (6,)))
    with pytest.raises(UserError, match="at most 6 tokens; got 7"):
        trunk(Tokens(random(2, 7, 4), None, (7,)))
    state = trunk.step(Tokens(random(2, 5, 4), None, (5,)))[1]
    with pytest.raises(UserError, match="at most 6 tokens; got 7"):
        trunk.step(Tokens(random(2, 2, 4), None, (2,)), state)
    with pytest.raises(UserError, match="lacks 'causal'"):
        made(f"{SMALL}, class_token=True)")(Tokens(random(2, 6, 4), None, (6,)), causal=True)
    with pytest.raises(UserError, match="lacks 'causal'"):
        made(f"{SMALL}, class_token=True)").step(Tokens(random(2, 6, 4), None, (6,)))
    with pytest.raises(UserError, match=r"wanted tokens \(b, 36, 3\) on grid \(6, 6\)"):
        made(f"{SMALL}, patch=2)", 3, (6, 6))(Tokens(random(2, 30, 3), None, (5, 6)))
    with pytest.raises(UserError, match="from one sample to another"):
        EdgeBias(2)(Edges(torch.tensor([[0], [5]])), 2, 4)
    with pytest.raises(UserError, match="edges with 3 features; these have 0"):
        EdgeBias(2, 3)(graph(), 2, 4)
    with pytest.raises(UserError, match="multiple of its heads; got width 10, 3 heads"):
        Attention(10, 3)
    with pytest.raises(UserError, match="heads are 3 wide"):
        zoo.trunk("transformer(width=6, heads=2, depth=1)", 4, (6,))().seq2seq(4)


def test_checkpoints_that_do_not_fit_are_refused(hf: Any) -> None:
    state = bert(hf).state_dict()
    with pytest.raises(UserError, match=r"transformers BERT: it has block\.2\..* more"):
        zoo.trunk(BERT.replace("depth=3", "depth=2"), 32, (12,))().translate(state)
    with pytest.raises(UserError, match=r"it lacks block\.3\."):
        zoo.trunk(BERT.replace("depth=3", "depth=4"), 32, (12,))().translate(state)
    with pytest.raises(UserError, match=r"other shapes: .*block\.0\.mlp\.down\.weight \(32, 64\), wanted \(32, 128\)"):
        zoo.trunk(BERT.replace("ratio=2., ", ""), 32, (12,))().translate(state)
    with pytest.raises(UserError, match=r"other shapes: embed\.positions \(20, 32\), wanted \(30, 32\)"):
        zoo.trunk(BERT, 32, (30,))().translate(state)
    with pytest.raises(UserError, match=r"no checkpoint of ViT .* it has a\.b"):
        zoo.trunk(BERT, 32, (12,))().translate({"a.b": torch.zeros(1)})
    whole = {**state, "cls.predictions.bias": torch.zeros(50), "embeddings.position_ids": torch.zeros(1, 20)}
    ours = zoo.trunk(BERT, 32, (12,))()
    assert ours.translate(whole).keys() == ours.state_dict().keys()
