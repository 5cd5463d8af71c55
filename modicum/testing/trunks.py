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
from modicum.core.types import Batch, Embed, Input, Tokens, Trunk
from modicum.nn.encoder import Encoder, complete
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
    """Tokens that are given as they are: {"x", "mask" where there is one}."""

    def __init__(self, dim: int, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.dim, self.grid = dim, grid

    def forward(self, batch: Batch) -> Tokens:
        return Tokens(batch["x"], batch.get("mask"), self.grid)


def encoder_of(trunk: Trunk) -> Encoder:
    """An encoder whose batch is {"x": tokens}."""
    given = SimpleNamespace(embed=lambda: Given(trunk.dim, tuple(trunk.grid)))
    return Encoder(cast(Input, given), trunk)


def tokens_for(trunk: Trunk, b: int = 8, seed: int = 0) -> Tensor:
    """Random tokens (b, t, dim) for the trunk."""
    shape = (b, int(np.prod(trunk.grid)), trunk.dim)
    return torch.randn(shape, generator=seeds.generator(seed, "tokens"))


def run(trunk: Trunk, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """The output tokens, in evaluation mode, without gradients."""
    with torch.no_grad():
        return trunk.eval()(Tokens(x, mask, tuple(trunk.grid))).x


def trunk_shapes(make: MakeTrunk) -> None:
    """Output tokens lie on `grid_out` with width `dim_out`; capabilities have known names."""
    trunk = make().eval()
    unknown = trunk.can - CAPABILITIES
    assert not unknown, f"unknown capabilities {sorted(unknown)}; known: {sorted(CAPABILITIES)}"
    out = trunk(Tokens(tokens_for(trunk), None, tuple(trunk.grid)))
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

    def build_one() -> tuple[nn.Module, dict[str, Encoder], Callable[[int], Any]]:
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
    out = trunk(Tokens(tokens_for(trunk, 16), None, tuple(trunk.grid)))
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
    x = tokens_for(encoder.trunk)
    cut = x.shape[1] // 2
    other = torch.cat([x[:, :cut], tokens_for(encoder.trunk, seed=1)[:, cut:]], 1)
    with torch.no_grad():
        a, b = encoder({"x": x}, causal=True).tokens, encoder({"x": other}, causal=True).tokens
    assert near(a[:, :cut], b[:, :cut]), "an earlier token sees later ones"


def trunk_decoder(make: MakeTrunk) -> None:
    """The decoder mirrors a code back onto the input grid; it is trainable throughout."""
    trunk = make()
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
    "decoder": trunk_decoder,
}
