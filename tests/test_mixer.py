"""`mixer` against timm's, its patches, and what it refuses; the laws are in test_contracts.py."""

from __future__ import annotations

import math

import pytest
import torch
import zoo
from torch import nn
from twins import far, images, shaken, timm_model

from modicum.core.errors import UserError
from modicum.core.types import Tokens
from modicum.nn.patches import Patches, Unpatch
from modicum.testing import run, tokens_for
from modicum.testing.tools import stirred

SMALL = "mixer(width=8, depth=2)"


def test_it_equals_timm() -> None:
    ref = shaken(timm_model("mixer_s32_224")).eval()
    ours = zoo.trunk("mixer('small')", grid=(224, 224))().eval()
    ours.load_state_dict(ours.translate(ref.state_dict()))
    x, tokens = images(2, 224)
    with torch.no_grad():
        wanted, out = ref.forward_features(x), ours(tokens)
        assert out.grid == (7, 7)
        assert far(out.x, wanted) < 1e-5
        assert far(out.x.mean(1), ref(x)) < 1e-5


@pytest.mark.parametrize("act", ["gelu", "swiglu"])
def test_a_block_is_the_formula(act: str) -> None:
    trunk = zoo.trunk(f"mixer(width=8, depth=1, act='{act}', ratio=(.75, 2.))", dim=4, grid=(6,))().eval()
    stirred(trunk)
    block, x = trunk.block[0], torch.rand(3, 6, 8)
    assert (block.tokens.down.weight.shape, block.channels.down.weight.shape) == ((6, 6), (8, 16))
    mixed = torch.stack([block.tokens(block.norm1(x)[..., c]) for c in range(8)], -1)
    y = x + mixed
    wanted = y + torch.stack([block.channels(block.norm2(y)[:, t]) for t in range(6)], 1)
    assert far(block(x), wanted) < 1e-5


@pytest.mark.parametrize(
    ("size", "width", "depth"), [("tiny", 128, 4), ("small", 512, 8), ("base", 768, 12), ("large", 1024, 24)]
)
def test_sizes(size: str, width: int, depth: int) -> None:
    with torch.device("meta"):
        trunk = zoo.trunk(f"mixer('{size}')", dim=3, grid=(16, 16))()
        half = zoo.trunk(f"mixer('{size}', depth=1, width=12)", dim=3, grid=(16, 16))()
    assert (trunk.dim_out, len(trunk.block)) == (width, depth)
    assert (half.dim_out, len(half.block)) == (12, 1)
    assert trunk.block[0].channels.up.out_features == 4 * width
    assert trunk.block[0].tokens.up.out_features == width // 2


@pytest.mark.parametrize(
    ("grid", "patch"),
    [
        ((8, 8), 1),
        ((28, 28), 4),
        ((32, 32), 4),
        ((224, 224), 32),
        ((15, 15), 3),
        ((11, 13), 1),
        ((96, 64), 16),
        ((90,), 1),
    ],
)
def test_the_default_patch(grid: tuple[int, ...], patch: int) -> None:
    trunk = zoo.trunk("mixer(width=4, depth=1)", dim=1, grid=grid)()
    assert trunk.patches.patch == patch
    assert trunk.patch is None
    assert trunk.grid_out == tuple(side // patch for side in grid)


def test_it_is_not_permutation_equivariant() -> None:
    trunk = zoo.trunk(SMALL, dim=4, grid=(6,))()
    stirred(trunk)
    x, order = tokens_for(trunk), torch.tensor([3, 1, 5, 0, 2, 4])
    assert far(run(trunk, x[:, order]), run(trunk, x)[:, order]) > 0.01
    block = trunk.block[0]
    nn.init.zeros_(block.tokens.down.weight)
    nn.init.zeros_(trunk.block[1].tokens.down.weight)
    for own in (block, trunk.block[1]):
        nn.init.zeros_(own.tokens.down.bias)
    assert far(run(trunk, x[:, order]), run(trunk, x)[:, order]) < 1e-5  # nothing but token mixing knows the places


def test_stochastic_depth_rises_linearly_and_dropout_is_in_both_perceptrons() -> None:
    trunk = zoo.trunk("mixer(width=8, depth=4, dropout=.2, drop_path=.3)")()
    assert [round(block.drop_path.rate, 6) for block in trunk.block] == [0, 0.1, 0.2, 0.3]
    assert [m.p for m in trunk.modules() if isinstance(m, nn.Dropout)] == [0.2] * 8


def test_padded_tokens_are_read_as_zeros_and_the_mask_goes_on() -> None:
    for text, can in ((SMALL, True), ("mixer(width=8, depth=2, patch=2)", False)):
        trunk = zoo.trunk(text, dim=4, grid=(6,))().eval()
        assert ("padding" in trunk.can) == can
        x = tokens_for(trunk)
        mask = torch.tensor([1, 1, 1, 0, 0, 0]).bool().expand(8, 6)
        out = trunk(Tokens(x, mask))
        assert torch.equal(out.x, run(trunk, x * mask.unsqueeze(2)))
        assert torch.equal(out.mask, mask if can else torch.tensor([True, True, False]).expand(8, 3))


def test_another_number_of_tokens_is_refused() -> None:
    trunk = zoo.trunk(SMALL, dim=3, grid=(8, 8))()
    for shape in ((2, 63, 3), (2, 128, 3), (2, 64, 1)):
        words = (
            rf"wanted tokens \(b, 64, 3\) on grid \(8, 8\), as the network was built for; got \({shape[0]}, {shape[1]}"
        )
        with pytest.raises(UserError, match=words):
            trunk(Tokens(torch.zeros(shape)))


def test_a_checkpoint_that_does_not_fit_is_refused() -> None:
    ref = timm_model("mixer_s32_224").state_dict()
    with pytest.raises(
        UserError, match=r"timm mixer: other shapes: block\.0\.tokens\.up\.weight \(256, 49\)"
    ) as raised:
        zoo.trunk("mixer('small', patch=32)", grid=(256, 256))().translate(ref)
    assert "wanted (256, 64)" in str(raised.value)
    with pytest.raises(UserError, match=r"it has block\.1\.norm1\.weight, "):
        zoo.trunk("mixer('small', depth=1)", grid=(224, 224))().translate(ref)
    own = zoo.trunk("mixer('small')", grid=(224, 224))()
    whole = {**ref, "head.weight": torch.zeros(1000, 512), "head.bias": torch.zeros(1000)}
    assert own.translate(whole).keys() == own.state_dict().keys()


@pytest.mark.parametrize(
    ("text", "grid", "words"),
    [
        ("mixer('huge')", (8, 8), "unknown mixer size 'huge'; valid: "),
        ("mixer(act='step')", (8, 8), "unknown activation 'step'; valid: "),
        ("mixer(patch=3)", (8, 8), r"patches of 3 tokens .* the grid \(8, 8\): .* one of \[1, 2, 4, 8\]"),
        ("mixer(patch=0)", (8, 8), "patches of 0 tokens"),
        ("mixer", (97, 96), r"no patch divides the grid \(97, 96\) into 4 to 64 patches: .* one of \[1\]"),
        ("mixer(width=0)", (8, 8), "width, depth and ratio·width of at least 1.*got width=0, depth=4"),
        ("mixer(ratio=(.001, 4.))", (8, 8), r"got width=128, depth=4, ratio=\(0.001, 4.0\)"),
        ("mixer(dropout=1.)", (8, 8), "0 <= dropout, drop_path < 1; got .*dropout=1.0"),
    ],
)
def test_wrong_arguments_are_refused(text: str, grid: tuple[int, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        zoo.trunk(text, grid=grid)()


# Patches


@pytest.mark.parametrize(("grid", "patch"), [((6, 4), 2), ((6, 4), 1), ((8,), 4), ((2, 4, 6), 2)])
def test_patches_are_a_strided_convolution(grid: tuple[int, ...], patch: int) -> None:
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(grid)](3, 7, patch, patch).double()
    patches = Patches(3, grid, patch, 7).double()
    patches.linear.load_state_dict({"weight": Patches.from_conv(conv.weight), "bias": conv.bias})
    x = torch.randn(2, math.prod(grid), 3, dtype=torch.double)
    wanted = conv(x.view(2, *grid, 3).movedim(-1, 1)).flatten(2).transpose(1, 2)
    assert far(patches(x), wanted) < 1e-12
    assert patches.grid_out == tuple(side // patch for side in grid)


@pytest.mark.parametrize(("grid", "patch"), [((6, 4), 2), ((6, 4), 1), ((8,), 4), ((2, 4, 6), 2)])
def test_unpatch_is_the_way_back(grid: tuple[int, ...], patch: int) -> None:
    width = 3 * patch ** len(grid)
    there, back = Patches(3, grid, patch, width), Unpatch(width, grid, patch, 3)
    for one in (there, back):
        one.linear.load_state_dict({"weight": torch.eye(width), "bias": torch.zeros(width)})
    x = torch.randn(2, math.prod(grid), 3)
    assert torch.equal(back(there(x)), x)


def test_a_patch_is_real_where_any_of_its_tokens_is() -> None:
    patches = Patches(1, (4, 6), 2, 1)
    mask = torch.zeros(2, 4, 6, dtype=torch.bool)
    mask[0, 1, 0] = mask[0, 2, 5] = mask[1, 0, 3] = True
    wanted = torch.tensor([[1, 0, 0, 0, 0, 1], [0, 1, 0, 0, 0, 0]]).bool()
    assert torch.equal(patches.real(mask.flatten(1)), wanted)
