"""Every part of the zoo against every law of modicum.testing, and the laws themselves against parts that break them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zoo
from torch import nn

from modicum import testing
from modicum.core.errors import UserError
from modicum.core.spec import names
from modicum.core.types import Layers, Tokens
from modicum.nn.encoder import Encoder, complete, pool
from modicum.nn.layers import spread
from modicum.nn.trunks.mlp import Mlp

ROWS = {"trunk": zoo.TRUNKS, "objective": zoo.OBJECTIVES, "modality": zoo.MODALITIES}


@pytest.mark.parametrize("kind", ROWS)
def test_the_zoo_is_complete(kind: str) -> None:
    missing = set(names(kind)) - {row.name for row in ROWS[kind]}
    assert not missing, f"tests/zoo.py lacks a row for the {kind} {', '.join(sorted(missing))}"
    strangers = {row.name for row in ROWS[kind]} - set(names(kind))
    assert not strangers


@pytest.mark.parametrize("law", testing.TRUNK)
@pytest.mark.parametrize("row", zoo.TRUNKS, ids=str)
def test_trunk(row: zoo.Row, law: str) -> None:
    testing.TRUNK[law](row.make)


@pytest.mark.parametrize("law", testing.OBJECTIVE)
@pytest.mark.parametrize("row", zoo.OBJECTIVES, ids=str)
def test_objective(row: zoo.Row, law: str) -> None:
    assert row.batch is not None
    testing.OBJECTIVE[law](row.make, row.batch())


@pytest.mark.parametrize("law", testing.MODALITY)
@pytest.mark.parametrize("row", zoo.MODALITIES, ids=str)
def test_modality(row: zoo.Row, law: str) -> None:
    testing.MODALITY[law](zoo.kind(row.name), row.make())


def test_the_public_checks_run_every_law(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    for laws in (testing.TRUNK, testing.OBJECTIVE, testing.MODALITY):
        for name in laws:
            monkeypatch.setitem(laws, name, lambda *_, name=name: ran.append(name))
    testing.check_trunk(zoo.TRUNKS[0].make)
    testing.check_objective(zoo.OBJECTIVES[0].make, {})
    testing.check_modality(zoo.kind("tables"), zoo.cases())
    assert ran == [*testing.TRUNK, *testing.OBJECTIVE, *testing.MODALITY]


# Sets and samples


def test_mlp_over_a_set_is_permutation_equivariant_and_over_a_sample_is_not() -> None:
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    for over, equivariant in (("set", True), ("sample", False)):
        trunk = zoo.trunk(f"mlp(width=16, over='{over}')", dim=4, grid=(6,))()
        x = testing.tokens_for(trunk)
        out, turned = testing.run(trunk, x), testing.run(trunk, x[:, order])
        wanted = out[:, order] if equivariant else out
        assert torch.equal(turned, wanted) == equivariant


def test_pooling_is_the_mean_of_real_tokens() -> None:
    x = torch.arange(24.0).view(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 1]]).bool()
    assert torch.equal(pool(x, None), x.mean(1))
    assert torch.equal(pool(x, mask), torch.stack([x[0, :2].mean(0), x[1, 3]]))
    assert torch.equal(pool(x, torch.zeros(2, 4, dtype=torch.bool)), torch.zeros(2, 3))


def test_a_coarse_mask_hides_the_tokens_under_it() -> None:
    hide = torch.tensor([[True, False, False, True]])
    fine = spread(hide, (2, 2), (4, 4)).view(4, 4)
    assert torch.equal(fine, torch.kron(torch.eye(2), torch.ones(2, 2)).bool())
    assert spread(hide, (4,), (4,)) is hide
    with pytest.raises(UserError, match=r"a mask on grid \(4,\) cannot hide tokens on grid \(2, 2\)"):
        spread(hide, (4,), (2, 2))


def test_hidden_tokens_have_no_influence() -> None:
    encoder = testing.encoder_of(zoo.trunk("convnet(width=4, stages=2, cells=0)")()).eval()
    x, other = testing.tokens_for(encoder.trunk), testing.tokens_for(encoder.trunk, seed=1)
    hide = torch.zeros(8, 64, dtype=torch.bool)
    hide[:, 20:40] = True
    mixed = torch.where(hide.unsqueeze(2), other, x)
    assert torch.equal(encoder({"x": x}, hide=hide).tokens, encoder({"x": mixed}, hide=hide).tokens)
    assert not torch.equal(encoder({"x": x}).tokens, encoder({"x": mixed}).tokens)
    coarse = torch.zeros(8, 4, dtype=torch.bool)
    coarse[:, 0] = True  # the upper left quarter of the 2×2 output grid
    quarter = torch.zeros(8, 8, dtype=torch.bool)
    quarter[:4, :4] = True
    a = encoder({"x": x}, hide=coarse).tokens
    assert torch.equal(a, encoder({"x": x}, hide=quarter.flatten().expand(8, -1)).tokens)


def test_the_mode_of_frozen_layers_survives_train_and_eval() -> None:
    encoder = testing.encoder_of(zoo.trunk("convnet(width=4, stages=2)")()).freeze(1)
    encoder.eval().train()
    assert not encoder.trunk.stem.training
    assert all(block.training for block in encoder.trunk.stage)
    encoder.keep_statistics = True
    encoder.train()
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not any(m.training for m in norms)
    with pytest.raises(UserError, match="cannot freeze 4 layers: the encoder has 3"):
        encoder.freeze(4)
    encoder.freeze(0).train()
    assert all(p.requires_grad for p in encoder.parameters())


def test_an_encoder_refuses_a_trunk_made_for_other_tokens() -> None:
    made, _ = zoo.images()
    with pytest.raises(ValueError, match=r"built for tokens of 3 on \(8, 8\); the input gives 1 on \(8, 8\)"):
        Encoder(made, zoo.trunk("convnet(width=4)")())
    with pytest.raises(UserError, match=r"convnet wants tokens on a 2-d grid .* this data has grid \(6,\): use mlp"):
        Encoder.of(zoo.tables()[0], "convnet")


# The laws find what breaks them


class Broken(nn.Module):
    """A trunk of one linear layer, into which a fault is put by name."""

    can: frozenset[str] = frozenset()

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault, self.dim, self.grid, self.dim_out, self.grid_out = fault, 4, (6,), 4, (6,)
        self.dim_pooled = 4
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(6)
        self.can = frozenset({"padding"} if fault == "padding" else {"fly"} if fault == "unknown" else ())

    def forward(self, tokens: Tokens) -> Tokens:
        x = tokens.x
        if self.fault == "batch":
            x = x - x.mean(0)
        if self.fault == "padding":
            x = x - x.mean(1, keepdim=True)
        if self.fault == "noise":
            x = x + torch.randn_like(x)
        if self.fault == "inplace":
            x.mul_(2)
        x = self.norm(self.one(x))
        return tokens._replace(x=x if self.fault == "unused" else self.two(x))

    def layers(self) -> Layers:
        if self.fault == "forgets":
            return {"one": [self.one], "norm": [self.norm]}
        if self.fault == "shares":
            return {"one": [self.one], "norm": [self.norm], "two": [self.two, self.one]}
        if self.fault == "order":
            return {"two": [self.two], "one": [self.one, self.norm]}
        return {"one": [self.one], "norm": [self.norm], "two": [self.two]}

    def decoder(self, code: int) -> nn.Module:
        return nn.Sequential(nn.Linear(code, 24 if self.fault != "decoder" else 20), nn.Unflatten(1, (-1, 4)))


FAULTS = {
    "forgets": ("layers", "layers() of Broken forgets two.weight, two.bias"),
    "shares": ("layers", "'two' and 'one' of Broken share a parameter"),
    "order": ("layers", "layers() says ['two', 'one']; they run as ['one', 'two']"),
    "unused": ("gradients", "no gradient reaches two.weight, two.bias"),
    "batch": ("samples", "depends on which others are in the batch"),
    "padding": ("padding", "padded tokens change real ones"),
    "noise": ("deterministic", "draws from a global random generator"),
    "inplace": ("deterministic", "two different outputs|changes its input"),
    "decoder": ("decoder", "the input grid wants (8, 6, 4)"),
    "unknown": ("shapes", "unknown capabilities ['fly']"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_trunk_breaks_its_law(fault: str) -> None:
    law, words = FAULTS[fault]

    def make() -> Broken:
        torch.default_generator.manual_seed(0)
        return Broken(fault)

    with pytest.raises((AssertionError, ValueError)) as raised:
        testing.TRUNK[law](make)  # type: ignore[arg-type]
    assert any(w in str(raised.value) for w in words.split("|")), raised.value
    good = {k: v for k, v in testing.TRUNK.items() if k in ("shapes", "layers", "gradients", "samples", "decoder")}
    for check in good.values():
        check(lambda: Broken("none"))  # type: ignore[arg-type, return-value]


def test_freezing_is_found_out_where_statistics_move() -> None:
    class Leaky(Mlp):
        """Its normalisation is outside the layers' modules, so that freezing them does not stop it."""

        def layers(self) -> Layers:
            return {k: list(parts[0].parameters()) for k, parts in super().layers().items()}

    testing.trunk_layers(lambda: Leaky(4, (6,), 16))
    with pytest.raises(AssertionError, match="running_mean"):
        testing.trunk_freezing(lambda: Leaky(4, (6,), 16))


def test_tied_parameters_belong_to_their_first_layer() -> None:
    module = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    module["b"].weight = module["a"].weight
    complete(module, {"a": [module["a"]], "b": [module["b"]]})
    with pytest.raises(ValueError, match=r"forgets b\.bias"):
        complete(module, {"a": [module["a"]]})


def test_global_randomness_is_watched_in_torch_numpy_and_python() -> None:
    import random

    for draw in (lambda: torch.rand(1), lambda: np.random.rand(), random.random):  # noqa: NPY002
        with pytest.raises(AssertionError, match="draws from a global"), testing.leaves_random_alone("it"):
            draw()
