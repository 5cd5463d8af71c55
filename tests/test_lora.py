"""Low-rank updates, moving averages and bilinear layers: closed forms, exact bits, and peft's own."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from peers import peer
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from modicum.core import seeds
from modicum.core.errors import UserError
from modicum.core.spec import spec
from modicum.nn.bilinear import Bilinear
from modicum.nn.ema import Ema
from modicum.nn.encoder import Encoder, complete
from modicum.nn.lora import LowRank, LowRankConv2d, LowRankLinear, adapted, lora, merge, plain, unmerge, updates
from modicum.testing import equal_bits, leaves_random_alone, same
from modicum.testing.tools import check_freezing, state, stirred
from modicum.training import transfer
from modicum.training.transfer import Task, check_method


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=seeds.generator(seed, "numbers"), dtype=dtype)


def made(make: Callable[[], Any], seed: int = 0) -> Any:
    with seeds.forked(seed, "made"):
        return make()


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 9), (4, 5, 6)),
    "linear-no-bias": (lambda: nn.Linear(6, 9, bias=False), (4, 6)),
    "conv": (lambda: nn.Conv2d(3, 8, 3, padding=1), (2, 3, 7, 9)),
    "conv-strided": (lambda: nn.Conv2d(3, 8, (5, 3), stride=(2, 1), padding=(2, 0), bias=False), (2, 3, 11, 9)),
    "conv-1x1": (lambda: nn.Conv2d(3, 8, 1, stride=2), (2, 3, 7, 9)),
    "conv-dilated": (lambda: nn.Conv2d(3, 8, 3, dilation=2), (2, 3, 9, 9)),
    "conv-circular": (lambda: nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"), (2, 3, 7, 9)),
    "conv-same": (lambda: nn.Conv2d(3, 8, 5, padding="same"), (2, 3, 7, 9)),
}
PEFT = ["linear", "linear-no-bias", "conv", "conv-strided", "conv-1x1"]
"""What peft adapts too: it passes over dilation and padding modes."""


def stir(module: Any) -> Any:
    """Updates that are not zero."""
    with torch.no_grad():
        for k, p in enumerate(updates(module)):
            p.copy_(0.3 * numbers(*p.shape, seed=k))
    return module


@pytest.mark.parametrize("name", LAYERS)
def test_the_update_is_the_weight_plus_a_product(name: str) -> None:
    make, shape = LAYERS[name]
    layer: Any = nn.Sequential(made(make).double())
    x = numbers(*shape, dtype=torch.float64)
    before, weight = layer(x), layer[0].weight.detach().clone()
    made(lambda: lora(layer, 4, alpha=6.0))
    assert equal_bits(layer(x), before), "updates of zero change the output"
    stir(layer)
    own = layer[0]
    outer = torch.einsum("or,ri->oi", own.lora_b.flatten(1), own.lora_a.flatten(1)).view_as(weight)
    with torch.no_grad():
        twin = copy.deepcopy(made(make).double())
        twin.load_state_dict({"weight": weight + 6 / 4 * outer, **({"bias": own.bias} if own.bias is not None else {})})
        torch.testing.assert_close(layer(x), twin(x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(merge(layer)(x), twin(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", PEFT)
def test_updates_equal_those_of_peft(name: str) -> None:
    peft = peer("peft")
    make, shape = LAYERS[name]
    layer: Any = nn.Sequential(made(make))
    x = numbers(*shape)
    theirs = nn.Sequential(copy.deepcopy(layer[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with seeds.forked(0, "peft"):
            theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=4, lora_alpha=10, target_modules=["0"]))
    ours = stir(made(lambda: lora(layer, 4, alpha=10)))
    own, other = ours[0], theirs.base_model.model[0]
    with torch.no_grad():
        other.lora_A["default"].weight.copy_(own.lora_a)
        other.lora_B["default"].weight.copy_(own.lora_b)
        assert own.delta().abs().max() > 0.01
        torch.testing.assert_close(own.delta(), other.get_delta_weight("default"), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-6, atol=1e-6)


ENCODERS = {
    "convnet": (lambda: Encoder.of(zoo.images()[0], "convnet(width=4, stages=2)"), zoo.images),
    "mlp": (lambda: Encoder.of(zoo.tables()[0], "mlp(width=16)"), zoo.tables),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_merging_is_undone_exactly_and_folding_leaves_an_ordinary_encoder(name: str) -> None:
    make, given = ENCODERS[name]
    encoder, batch = made(make).eval(), given()[1]
    names, layers, types = list(encoder.state_dict()), list(encoder.layers()), [type(m) for m in encoder.modules()]
    first = spec("encoder", encoder)
    bits = {k: v.clone() for k, v in encoder.state_dict().items()}
    made(lambda: lora(encoder, 2))
    assert {type(m) for m in adapted(encoder)} <= {LowRankLinear, LowRankConv2d}
    complete(encoder, encoder.layers())
    with torch.no_grad():
        before = encoder(batch).pooled
        assert equal_bits(before, made(make).eval()(batch).pooled)
        changed = stir(encoder)(batch).pooled
        assert not torch.allclose(changed, before)
        weights = {k: v.clone() for k, v in encoder.state_dict().items()}
        torch.testing.assert_close(merge(merge(encoder))(batch).pooled, changed, rtol=1e-4, atol=1e-4)
        assert not same(weights, dict(encoder.state_dict()))
        assert same(weights, dict(unmerge(unmerge(encoder)).state_dict())), "unmerging leaves other bits"
        assert same(bits, {k: weights[k] for k in bits})
        assert equal_bits(encoder(batch).pooled, changed)
        merged = merge(encoder)(batch).pooled
        assert equal_bits(plain(encoder)(batch).pooled, merged)
    assert list(encoder.layers()) == layers
    assert [type(m) for m in encoder.modules()] == types
    assert sorted(encoder.state_dict()) == sorted(names)
    assert spec("encoder", encoder) == first
    assert not adapted(encoder)
    assert all(p.requires_grad for p in encoder.parameters())
    again = made(make, 1).eval()
    again.load_state_dict(encoder.state_dict())
    assert equal_bits(again(batch).pooled, merged)


def test_freezing_keeps_the_base_and_moves_only_the_updates_above() -> None:
    def build_one() -> tuple[nn.Module, dict[str, Any], Callable[[int], None]]:
        encoder, batch = made(ENCODERS["convnet"][0]), zoo.images()[1]
        stirred(encoder)
        stir(made(lambda: lora(encoder, 2)))

        def train(k: int) -> None:
            encoder.freeze(k).train()
            left = [p for p in encoder.parameters() if p.requires_grad]
            optimizer = torch.optim.SGD(left, 1e-2) if left else None
            for _ in range(2):
                loss = encoder(batch).pooled.square().mean()
                if optimizer:
                    loss.backward()
                    optimizer.step()

        return encoder, {"encoder": encoder}, train

    check_freezing(build_one)
    encoder, _, train = build_one()
    before = {k: v.clone() for k, v in state(encoder).items()}
    train(0)
    kept = [k for k, v in state(encoder).items() if equal_bits(v, before[k])]
    for name, layer in encoder.named_modules():
        if isinstance(layer, LowRank):
            assert f"{name}.weight" in kept
            assert f"{name}.lora_b" not in kept


def test_what_is_not_adapted() -> None:
    net = nn.ModuleDict(
        {
            "a": nn.Linear(4, 4),
            "tied": nn.Linear(4, 4),
            "grouped": nn.Conv2d(4, 4, 3, groups=4),
            "attention": nn.MultiheadAttention(4, 2),
            "norm": nn.LayerNorm(4),
            "b": nn.Linear(4, 4),
        }
    )
    net["b"].weight = net["tied"].weight
    with leaves_random_alone("lora under a fork"):
        made(lambda: lora(net, 2))
    assert [n for n, m in net.named_modules() if isinstance(m, LowRank)] == ["a"]
    picked = made(lambda: lora(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), 1, where=lambda n, _: n == "1"))
    assert [n for n, m in picked.named_modules() if isinstance(m, LowRank)] == ["1"]
    for module, words in ((net, "no Linear or Conv2d layer to adapt in ModuleDict"), (nn.ReLU(), "in ReLU")):
        with pytest.raises(UserError, match=words):
            lora(module)
    with pytest.raises(UserError, match="rank of at least 1, got 0"):
        lora(nn.Linear(2, 2), 0)


def test_device_and_type_follow_the_layer() -> None:
    layer = made(lambda: lora(nn.Sequential(nn.Linear(4, 4).double()), 2))
    merge(layer).float()
    assert {t.dtype for t in [*layer.parameters(), *layer.buffers()]} == {torch.float32}
    assert unmerge(layer)(numbers(2, 4)).dtype == torch.float32


def test_lora_is_a_method_that_ships_an_ordinary_encoder_and_learns() -> None:
    """Frozen are the probe's base weights; the shipped network is better than the probe it started from."""
    digits = load_digits()
    raw = zoo.kind("images").as_raw((digits.images * (255 / 16)).round().astype(np.uint8))
    input = zoo.kind("images").infer(raw, np.arange(400))
    encoder = made(lambda: Encoder.of(input, "convnet(width=8, stages=2)"))
    source = input.pack(raw).source
    task = Task(source, digits.target, "classes", 10, 40, batch=64)
    rows, test = np.arange(400), np.arange(400, 1797)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    probe = transfer._once(encoder, "probe", task, rows, transfer.PENALTIES[1])
    fitted = transfer.train(encoder, "lora:4", task, rows, (rows[:300], rows[300:]))
    assert same(before, dict(encoder.state_dict())), "training changes the encoder that it is given"
    objective = fitted.objective
    assert fitted.setting.startswith("rate=")
    start, end = (transfer.mistake(o, task, test) for o in (probe, objective))
    assert end < 0.8 * start, (start, end)
    shipped = objective.encoder
    assert spec("encoder", shipped) == spec("encoder", encoder)
    after = shipped.state_dict()
    assert sorted(after) == sorted(before)
    for name, weight in before.items():
        moved = not equal_bits(weight, after[name])
        assert moved == (weight.dim() in (2, 4)), name
        if moved:
            assert torch.linalg.matrix_rank((after[name] - weight).flatten(1).double(), rtol=1e-4) <= 4


def test_methods_are_checked_before_anything_is_trained() -> None:
    encoder = made(ENCODERS["mlp"][0])
    assert [check_method(m, encoder) for m in ("lora", "lora:3")] == ["lora", "lora:3"]
    for wrong in ("lora:0", "lora:R", "lora:", "lora:x", "lora:-1"):
        with pytest.raises(UserError, match=f"unknown method '{wrong}'; valid: lora:R"):
            check_method(wrong, encoder)
    assert not adapted(encoder)


# Moving averages


def test_the_average_is_the_closed_form() -> None:
    """θ'_n = mⁿ θ_0 + (1 - m) Σ_k m^(n-k) θ_k, and buffers are those of the last module."""
    net: Any = nn.Sequential(made(lambda: nn.Linear(3, 2)), nn.BatchNorm1d(2)).double()
    ema: Any = Ema(net, 0.9)
    m = 0.9
    history = [net[0].weight.detach().clone()]
    for k in range(5):
        with torch.no_grad():
            net[0].weight.copy_(numbers(2, 3, seed=k, dtype=torch.float64))
        net.train()(numbers(4, 3, seed=10 + k, dtype=torch.float64))
        ema.update(net, k)
        history.append(net[0].weight.detach().clone())
    wanted = m**5 * history[0] + (1 - m) * sum(m ** (5 - k) * history[k] for k in range(1, 6))
    torch.testing.assert_close(ema.module[0].weight, wanted, rtol=1e-13, atol=1e-15)
    assert same(dict(net.named_buffers()), dict(ema.module.named_buffers()))
    assert int(ema.module[1].num_batches_tracked) == 5
    assert equal_bits(history[-1], net[0].weight), "the module itself is changed"


def test_momentum_is_a_function_of_the_step_and_the_copy_stays_still() -> None:
    net = made(lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Dropout(0.5)))
    ema: Any = Ema(net, lambda step: (0.0, 1.0)[step])
    x = numbers(4, 3)
    before = ema.train()(x)
    assert equal_bits(before, ema(x)), "the copy trains: dropout, or batch statistics"
    assert not before.requires_grad
    assert not any(p.requires_grad for p in ema.parameters())
    with torch.no_grad():
        net[0].weight.add_(1)
    ema.update(net, 1)
    assert equal_bits(before, ema(x))
    ema.update(net, 0)
    assert equal_bits(ema(x), net.eval()(x))
    loss = net(x).sum()
    loss.backward()
    assert all(p.grad is None for p in ema.parameters())
    assert list(ema.state_dict()) == [f"module.{k}" for k in net.state_dict()]


# Bilinear


def test_bilinear_is_xwz() -> None:
    x, z = numbers(5, 4, dtype=torch.float64), numbers(5, 6, seed=1, dtype=torch.float64)
    full = made(lambda: Bilinear(4, 6, 3)).double()
    with torch.no_grad():
        full.bias.copy_(numbers(3))
    wanted = torch.einsum("bi,kij,bj->bk", x, full.w, z) + full.bias
    torch.testing.assert_close(full(x, z), wanted)
    torch.testing.assert_close(full(x, z), F.bilinear(x, z, full.w, full.bias))
    torch.testing.assert_close(full(x.view(5, 1, 4), z.view(5, 1, 6)), wanted.view(5, 1, 3))
    low = made(lambda: Bilinear(4, 6, 3, rank=2, bias=False)).double()
    assert low.bias is None
    torch.testing.assert_close(low(x, z), torch.einsum("bi,kri,krj,bj->bk", x, low.u, low.v, z))
    one = made(lambda: Bilinear(4, 6, 3, rank=1, bias=False)).double()
    torch.testing.assert_close(one(x, z), (x @ one.u[:, 0].T) * (z @ one.v[:, 0].T))
    for layer in (full, low, one):
        assert torch.autograd.gradcheck(layer, (x.requires_grad_(), z.requires_grad_()))


def test_full_rank_equals_the_full_form() -> None:
    x, z = numbers(5, 4, dtype=torch.float64), numbers(5, 6, seed=1, dtype=torch.float64)
    full, low = made(lambda: Bilinear(4, 6, 3)).double(), made(lambda: Bilinear(4, 6, 3, rank=4)).double()
    with torch.no_grad():
        u, s, v = torch.linalg.svd(full.w, full_matrices=False)
        low.u.copy_((u * s.unsqueeze(1)).mT)
        low.v.copy_(v)
    torch.testing.assert_close(low(x, z), full(x, z))


def test_bilinear_starts_at_unit_variance_and_refuses_other_widths() -> None:
    x, z = numbers(4000, 32), numbers(4000, 48, seed=1)
    for rank in (None, 1, 8):
        with seeds.forked(0, "made"):
            layer = Bilinear(32, 48, 64, rank)
        assert 0.8 < layer(x, z).var().item() < 1.25, rank
    with pytest.raises(UserError, match=r"a left of width 32; got \(4000, 48\)"):
        layer(z, x)
    with pytest.raises(UserError, match="widths and rank of at least 1"):
        Bilinear(3, 4, 2, rank=0)
