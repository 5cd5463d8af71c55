"""Layers against their formulas, and the pooling of an encoder."""

from __future__ import annotations

import json
import math
from functools import cache

import pytest
import torch
import zoo
from torch import Tensor, nn

from modicum.core import seeds
from modicum.core.errors import UserError
from modicum.core.spec import Spec, parse, spec, text_of
from modicum.core.types import Batch, Input
from modicum.nn.decoders import Upsample
from modicum.nn.encoder import Encoder, Tower, tower
from modicum.nn.layers import (
    ACTIVATIONS,
    AttentionPool,
    DropPath,
    FeedForward,
    activation,
    as_image,
    as_tokens,
    norm1d,
    norm2d,
    rising,
)
from modicum.testing.tools import stirred

FORMULAS = {
    "sigmoid": lambda v: 1 / (1 + math.exp(-v)),
    "tanh": lambda v: (math.exp(2 * v) - 1) / (math.exp(2 * v) + 1),
    "relu": lambda v: max(v, 0.0),
    "gelu": lambda v: v * (1 + math.erf(v / math.sqrt(2))) / 2,
    "gelu_tanh": lambda v: v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) / 2,
    "silu": lambda v: v / (1 + math.exp(-v)),
}


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=seeds.generator(0, "layers"), dtype=torch.double)


def near(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", FORMULAS)
def test_an_activation_is_its_formula(name: str) -> None:
    x = torch.linspace(-4, 4, 33, dtype=torch.double)
    assert near(activation(name)(x.clone()), torch.tensor([FORMULAS[name](v) for v in x.tolist()], dtype=torch.double))


def test_swiglu_gates_the_second_half_by_the_first() -> None:
    assert FORMULAS.keys() | {"swiglu"} == ACTIVATIONS.keys()
    x = random(3, 2, 8)
    wanted = torch.stack([x[..., k] * torch.sigmoid(x[..., k]) * x[..., 4 + k] for k in range(4)], -1)
    assert near(activation("swiglu")(x), wanted)


def test_norms_are_their_formulas() -> None:
    x = random(4, 6)
    centred = x - x.mean(1, keepdim=True)
    layer = centred / (centred.square().mean(1, keepdim=True) + 1e-3).sqrt()
    assert near(norm1d("layer", 6, 1e-3).double()(x), layer)
    assert near(norm1d("rms", 6, 1e-3).double()(x), x / (x.square().mean(1, keepdim=True) + 1e-3).sqrt())
    columns = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-3).sqrt()
    assert near(norm1d("batch", 6, 1e-3).double()(x), columns)
    assert norm1d("none", 6)(x) is x
    image = random(4, 24, 3, 2)
    over = (0, 2, 3)
    batch = (image - image.mean(over, keepdim=True)) / (image.var(over, False, keepdim=True) + 1e-5).sqrt()
    assert near(norm2d("batch", 24).double()(image), batch)
    groups = image.view(4, 3, 8 * 6)  # 24 channels are no multiple of 16: 8 a group
    groups = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()
    assert near(norm2d("group", 24).double()(image), groups.view_as(image))
    assert [norm2d("group", c).num_groups for c in (64, 24, 4)] == [4, 3, 1]


def test_unknown_names_are_errors() -> None:
    with pytest.raises(UserError, match="unknown activation 'gleu'; valid: gelu, "):
        activation("gleu")
    with pytest.raises(UserError, match="unknown norm 'instance'; valid: "):
        norm1d("instance", 4)
    with pytest.raises(UserError, match="unknown norm 'layer'; valid: "):
        norm2d("layer", 4)


@pytest.mark.parametrize("act", ["gelu", "swiglu"])
def test_feed_forward_is_its_formula(act: str) -> None:
    layer = FeedForward(4, 6, act).double()
    x = random(2, 3, 4)
    up = x @ layer.up.weight.T + layer.up.bias
    inner = up[..., :6].sigmoid() * up[..., :6] * up[..., 6:] if act == "swiglu" else nn.functional.gelu(up)
    assert near(layer(x), inner @ layer.down.weight.T + layer.down.bias)
    assert FeedForward(4, 6, bias=False).down.bias is None


def test_feed_forward_drops_inside_and_at_its_end() -> None:
    layer = FeedForward(4, 64, dropout=0.5)
    seen: list[Tensor] = []
    layer.down.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        out = layer(random(50, 4).float())
    for dropped in (seen[0], out):
        assert 0.4 < (dropped == 0).float().mean() < 0.6


# Stochastic depth


def test_a_path_is_dropped_for_whole_samples_and_kept_in_expectation() -> None:
    x, rate, n = torch.ones(20_000, 3, 2), 0.3, 20_000
    with torch.random.fork_rng():
        torch.manual_seed(0)
        out = DropPath(rate)(x)
    first = out[:, :1, :1]
    assert torch.equal(out, first.expand_as(out)), "a part of a sample is dropped"
    assert torch.equal(out.unique(), torch.tensor([0.0, 1 / (1 - rate)]))
    error = math.sqrt(rate / (1 - rate) / n)  # of the mean of n such draws
    assert abs(float(first.mean()) - 1) < 4 * error


def test_no_path_is_dropped_in_evaluation_or_at_rate_zero() -> None:
    x = random(8, 3)
    assert DropPath(0.9).eval()(x) is x
    assert DropPath(0.0).train()(x) is x
    assert rising(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert rising(0.3, 1) == [0]


# Attention pooling


def test_attention_pooling_is_its_formula() -> None:
    layer = AttentionPool(4).double()
    x = random(3, 5, 4)
    weight = torch.exp(x @ layer.score.weight[0])
    assert near(layer(x), (weight.unsqueeze(2) * x).sum(1) / weight.sum(1, keepdim=True))
    nn.init.zeros_(layer.score.weight)
    assert near(layer(x), x.mean(1))


def test_attention_pooling_never_counts_padded_tokens() -> None:
    layer = AttentionPool(4).double()
    x, mask = random(3, 5, 4), torch.arange(5) < torch.tensor([[5], [2], [3]])
    out = layer(torch.where(mask.unsqueeze(2), x, 1e3), mask)
    for k, length in enumerate((5, 2, 3)):
        assert near(out[k : k + 1], layer(x[k : k + 1, :length]))


# Images as tokens


def test_images_and_tokens_are_views_of_each_other() -> None:
    x = random(2, 6, 5)
    image = as_image(x, (3, 2), 5)
    assert image.shape == (2, 5, 3, 2)
    assert torch.equal(image[1, :, 2, 0], x[1, 4])
    assert image.data_ptr() == as_tokens(image).data_ptr() == x.data_ptr()
    assert torch.equal(as_tokens(image), x)


def test_upsampling_doubles_to_the_sizes_it_is_given() -> None:
    up = Upsample(3, [8, 4], [(2, 1), (3, 2), (6, 4)], 2, "batch").eval()
    assert up(torch.zeros(5, 3)).shape == (5, 24, 2)
    assert sum(isinstance(m, nn.ReLU) for m in up.modules()) == 2
    assert sum(isinstance(m, nn.SiLU) for m in Upsample(3, [8], [(2, 1)] * 2, 2, "group", "silu").modules()) == 1


# Pooling of an encoder

TRUNK = "resnet(10, width=4)"
POOLED = {
    "mean": lambda x: x.mean(1),
    "max": lambda x: x.amax(1),
    "own": lambda x: x.mean(1),
}


@cache
def pictures() -> tuple[Input, Batch]:
    """Images large enough for several tokens to be left."""
    return zoo.all_rows("images", zoo.colours())


def made(text: str) -> Tower:
    with seeds.forked(0, "init"):
        return tower(pictures()[0], text)


@pytest.mark.parametrize("pool", ["mean", "max", "attention", "own"])
def test_an_encoder_pools_as_it_is_told(pool: str) -> None:
    encoder = stirred(made(f"encoder({TRUNK}, pool='{pool}')")).eval()
    assert isinstance(encoder, Encoder)
    batch = pictures()[1]
    out = encoder(batch)
    assert out.tokens.shape[1] > 1
    wanted = encoder.pooling(out.tokens) if pool == "attention" else POOLED[pool](out.tokens)
    assert torch.equal(out.pooled, wanted)
    assert out.pooled.shape == (12, encoder.dim)
    assert list(encoder.layers())[-1] == ("pool" if pool == "attention" else "stage4.block1")


@pytest.mark.parametrize("pool", ["mean", "max", "attention"])
def test_the_spec_of_a_pooling_encoder_builds_it_again(pool: str) -> None:
    encoder = stirred(made(f"encoder({TRUNK}, pool='{pool}')")).eval()
    written: Spec = json.loads(json.dumps(spec("encoder", encoder)))
    again = tower(pictures()[0], without(written))
    again.load_state_dict(encoder.state_dict())
    batch = pictures()[1]
    assert torch.equal(again.eval()(batch).pooled, encoder(batch).pooled)
    assert spec("encoder", again) == spec("encoder", encoder)
    assert tower(pictures()[0], parse(text_of(without(written)))).layers().keys() == encoder.layers().keys()


def without(written: Spec) -> Spec:
    """The spec of an encoder without what its data decide."""
    trunk = written["args"]["trunk"]
    own = {k: v for k, v in trunk["args"].items() if k not in ("dim", "grid")}
    rest = {k: v for k, v in written["args"].items() if k != "input"}
    return {**written, "args": {**rest, "trunk": {**trunk, "args": own}}}


@pytest.mark.parametrize("count", [0, 3, 5, 6])
def test_freezing_reaches_attention_pooling_last(count: int) -> None:
    encoder = stirred(made(f"encoder({TRUNK}, pool='attention')")).freeze(count).train()  # type: ignore[operator]
    before = {k: v.clone() for k, v in encoder.named_parameters()}
    left = [p for p in encoder.parameters() if p.requires_grad]
    if left:
        encoder(pictures()[1]).pooled.square().sum().backward()
        torch.optim.SGD(left, 0.1).step()
    moved = {name for name, p in encoder.named_parameters() if not torch.equal(p, before[name])}
    names = {id(p): k for k, parts in enumerate(encoder.layers().values()) for m in parts for p in m.parameters()}
    assert moved == {name for name, p in encoder.named_parameters() if names[id(p)] >= count}


def test_an_unknown_pool_is_an_error() -> None:
    with pytest.raises(UserError, match="unknown pool 'median'; valid: mean, "):
        made(f"encoder({TRUNK}, pool='median')")
