"""`resnet` against timm's networks, its shapes, and what it refuses; the laws are in test_contracts.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import zoo
from torch import nn
from twins import far, images, shaken, timm_model

from modicum.core.errors import UserError
from modicum.core.types import Tokens
from modicum.testing import tokens_for
from modicum.testing.tools import stirred


def twins(depth: int, side: int) -> tuple[Any, nn.Module]:
    ref = shaken(timm_model(f"resnet{depth}"))
    ours = zoo.trunk(f"resnet({depth}, width=64, stem='imagenet')", grid=(side, side))()
    ours.load_state_dict(ours.translate(ref.state_dict()))
    return ours, ref


@pytest.mark.parametrize("depth", [18, 50])
def test_it_equals_timm(depth: int) -> None:
    ours, ref = twins(depth, 64)
    x, tokens = images(4, 64)
    with torch.no_grad():
        wanted, out = ref.eval().forward_features(x), ours.eval()(tokens)
    assert out.pooled is None
    assert out.grid == ours.grid_out == tuple(wanted.shape[2:])
    assert far(out.x, wanted.flatten(2).transpose(1, 2)) < 1e-5
    assert far(out.x.mean(1), ref(x)) < 1e-5


@pytest.mark.parametrize("depth", [18, 50])
def test_a_step_of_training_equals_timm(depth: int) -> None:
    ours, ref = (network.double() for network in twins(depth, 32))  # statistics of few values amplify
    x, tokens = images(4, 32)
    x, tokens = x.double(), tokens._replace(x=tokens.x.double())
    for network, given in ((ref, x), (ours, tokens)):
        network.train()
        out = network(given)
        pooled = out if isinstance(out, torch.Tensor) else out.x.mean(1)
        pooled.square().sum().backward()
    assert far(ours(tokens).x.mean(1), ref(x)) < 1e-9
    wanted, own = ours.translate(ref.state_dict()), ours.state_dict()
    for name in own:
        if "running" in name:
            assert far(own[name], wanted[name]) < 1e-9, name
        if name.endswith("num_batches_tracked"):
            assert own[name] == 2
    slopes = ours.translate({k: p.grad for k, p in ref.named_parameters()} | dict(ref.named_buffers()))
    for name, parameter in ours.named_parameters():
        assert far(parameter.grad, slopes[name]) < 1e-9, name


def test_the_default_stem_follows_the_grid() -> None:
    for side, stem, out in ((63, None, 8), (64, None, 2), (64, "small", 8), (33, "imagenet", 2)):
        trunk = zoo.trunk(f"resnet(10, width=2, stem={stem!r})", grid=(side, side))()
        assert trunk.grid_out == (out, out)
        assert len(trunk(Tokens(tokens_for(trunk, 2))).x[0]) == out * out


def test_layers_are_named_by_stage_and_depth_counts_the_convolutions() -> None:
    names = list(zoo.trunk("resnet(34, width=2)")().layers())
    assert names[:5] == ["stem", "stage1.block1", "stage1.block2", "stage1.block3", "stage2.block1"]
    assert len(names) == 17
    for depth in (10, 18, 34, 50):
        trunk = zoo.trunk(f"resnet({depth}, width=2)")()
        convs = [n for n, m in trunk.named_modules() if isinstance(m, nn.Conv2d) and "shortcut" not in n]
        assert len(convs) + 1 == depth  # the classifier is the last layer of the name
        assert trunk.dim_out == (64 if depth == 50 else 16)


def test_a_fresh_block_is_its_shortcut() -> None:
    block = zoo.trunk("resnet(10, width=4)")().stage[0].eval()
    x = torch.rand(2, 4, 5, 5)
    assert torch.equal(block(x), x)
    stirred(block)
    assert not torch.equal(block(x), x)


def test_stochastic_depth_rises_linearly_and_is_off_in_evaluation() -> None:
    trunk = zoo.trunk("resnet(18, width=4, drop_path=.7)")()
    assert [round(block.drop_path.rate, 6) for block in trunk.stage] == [k / 10 for k in range(8)]
    plain = zoo.trunk("resnet(18, width=4)")()
    plain.load_state_dict(stirred(trunk).state_dict())
    tokens = Tokens(tokens_for(trunk))
    assert torch.equal(trunk.eval()(tokens).x, plain.eval()(tokens).x)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert not torch.equal(trunk.train()(tokens).x, plain.train()(tokens).x)


def test_pixels_enter_and_maps_leave_without_a_copy() -> None:
    trunk = zoo.trunk("resnet(10, width=4)")()
    seen = []
    trunk.first[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    trunk.stage[-1].register_forward_hook(lambda _, __, out: seen.append(out))
    x = tokens_for(trunk)
    out = trunk(Tokens(x))
    assert seen[0].data_ptr() == x.data_ptr()
    assert out.x.data_ptr() == seen[1].data_ptr()
    assert seen[1].is_contiguous(memory_format=torch.channels_last)


def test_a_checkpoint_that_does_not_fit_is_refused() -> None:
    ref = timm_model("resnet18").state_dict()
    with pytest.raises(UserError, match="does not fit this resnet as a timm resnet18: other shapes: ") as raised:
        zoo.trunk("resnet(18, stem='imagenet')")().translate(ref)
    assert "first.0.weight (64, 3, 7, 7), wanted (16, 3, 7, 7)" in str(raised.value)
    with pytest.raises(UserError, match=r"as a timm resnet34: it lacks stage\.2\.body\.0\.weight.* and 77 more"):
        zoo.trunk("resnet(34, width=64, stem='imagenet')")().translate(ref)
    own = zoo.trunk("resnet(18, width=64, stem='imagenet')")()
    with pytest.raises(UserError, match=r"it has odd, unknown here"):
        own.translate({**ref, "odd": torch.zeros(1)})
    whole = {**ref, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    assert own.translate(whole).keys() == own.state_dict().keys()
    old = {k: v for k, v in ref.items() if not k.endswith("num_batches_tracked")}
    own.load_state_dict(own.translate(old))


@pytest.mark.parametrize(
    ("text", "grid", "words"),
    [
        ("resnet", (6,), r"resnet wants tokens on a 2-d grid such as pixels; this data has grid \(6,\): use mlp"),
        ("resnet(17)", (8, 8), "unknown resnet depth '17'; valid: 10, 18, 34, 50"),
        ("resnet(stem='tiny')", (8, 8), "unknown resnet stem 'tiny'; valid: imagenet, small"),
        ("resnet(act='swiglu')", (8, 8), "unknown resnet act 'swiglu'; valid: silu"),
        ("resnet(norm='layer')", (8, 8), "unknown norm 'layer'; valid: "),
        ("resnet(width=0)", (8, 8), "width of at least 1 and 0 <= drop_path < 1; got width=0, drop_path=0.0"),
        ("resnet(drop_path=1.)", (8, 8), "got width=16, drop_path=1.0"),
    ],
)
def test_wrong_arguments_are_refused(text: str, grid: tuple[int, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        zoo.trunk(text, grid=grid)()


@pytest.mark.parametrize("name", ["resnet(10, width=2)", "convnet(width=2)"])
def test_tokens_of_another_grid_are_refused(name: str) -> None:
    trunk = zoo.trunk(name)()
    for shape in ((2, 63, 3), (2, 128, 3), (2, 64, 1)):
        with pytest.raises(UserError, match=r"wanted tokens \(b, 64, 3\) on grid \(8, 8\).*got \(2, "):
            trunk(Tokens(torch.zeros(shape)))


def test_widths_are_padded_only_where_zero_stays_zero() -> None:
    for text, padded in (("", True), ("norm='group'", False), ("act='sigmoid'", False), ("act='tanh'", True)):
        assert ("pad_width" in zoo.trunk(f"resnet(10, width=4, {text})")().can) == padded
