"""Losses and miners against pytorch-metric-learning and lightly: value and gradient within 1e-5, in float64."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from peers import installed, peer
from torch import Tensor
from torch.nn import functional as F

from modicum.core import seeds
from modicum.maths.contrastive import info_nce, info_nce_queue, nt_xent, sigmoid_pairs, supcon
from modicum.maths.losses import barlow, dino, vicreg
from modicum.maths.triplet import mine, triplet


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeds.generator(seed), dtype=torch.float64)


def agree(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *given: Tensor) -> None:
    leaves = [g.clone().requires_grad_() for g in given]
    values = ours(*leaves), theirs(*leaves)
    torch.testing.assert_close(*values, rtol=1e-5, atol=1e-7)
    for a, b in zip(*(torch.autograd.grad(v, leaves) for v in values), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def metric() -> Any:
    peer("pytorch_metric_learning")
    names = ("losses", "miners", "reducers", "distances")
    return {n: importlib.import_module(f"pytorch_metric_learning.{n}") for n in names}


@pytest.fixture(scope="module")
def lightly() -> Iterator[Callable[[str], Any]]:
    """lightly's loss modules without its packages of models, which import torchvision."""
    root, bare = (
        installed("lightly"),
        ("lightly.models", "lightly.models.modules", "lightly.models.utils", "lightly.loss"),
    )
    for name in bare:
        package = ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    vars(sys.modules["lightly.models"])["utils"] = sys.modules["lightly.models.utils"]
    yield lambda name: importlib.import_module(f"lightly.loss.{name}")
    for name in [n for n in sys.modules if n.startswith(bare)]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def clip() -> Any:
    """open_clip's file of losses: the package wants torchvision."""
    spec = importlib.util.spec_from_file_location("open_clip_losses", installed("open_clip") / "loss.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("views", [2, 4])
def test_nt_xent_is_metric_learnings(metric: Any, views: int, temperature: float) -> None:
    labels = torch.arange(13).repeat(views)
    theirs = metric["losses"].NTXentLoss(temperature)
    agree(lambda z: nt_xent(z, temperature), lambda z: theirs(z.flatten(0, 1), labels), drawn(views, 13, 6))


def test_nt_xent_is_lightlys(lightly: Any) -> None:
    theirs = lightly("ntx_ent_loss").NTXentLoss(0.2)
    agree(lambda a, b: nt_xent(torch.stack([a, b]), 0.2), theirs, drawn(13, 6), drawn(13, 6, seed=1))


def test_info_nce_against_a_queue_is_lightlys_with_a_memory_bank(lightly: Any) -> None:
    """Theirs compares with what the bank held before the batch."""
    theirs = lightly("ntx_ent_loss").NTXentLoss(0.1, memory_bank_size=(32, 6))
    bank = F.normalize(drawn(32, 6, seed=2), dim=1)
    theirs.memory_bank.bank = bank.clone()
    y = drawn(8, 6, seed=1)
    agree(lambda x: info_nce_queue(x, y, bank, 10.0), lambda x: theirs(x, y), drawn(8, 6))


def test_info_nce_is_open_clips(clip: Any) -> None:
    peer = clip.ClipLoss()

    def theirs(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        found: Tensor = peer(F.normalize(x, dim=1), F.normalize(y, dim=1), scale)
        return found

    agree(info_nce, theirs, drawn(11, 6), drawn(11, 6, seed=1), torch.tensor(14.0, dtype=torch.float64))


def test_sigmoid_pairs_are_open_clips(clip: Any) -> None:
    peer = clip.SigLipLoss()

    def theirs(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        found: Tensor = peer(F.normalize(x, dim=1), F.normalize(y, dim=1), scale, bias)
        return found

    scalars = torch.tensor(10.0, dtype=torch.float64), torch.tensor(-10.0, dtype=torch.float64)
    agree(sigmoid_pairs, theirs, drawn(11, 6), drawn(11, 6, seed=1), *scalars)


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_supcon_is_metric_learnings(metric: Any, temperature: float) -> None:
    labels = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0, 0, 0, 1, 3, 2, 2])
    theirs = metric["losses"].SupConLoss(temperature)
    agree(lambda z: supcon(z, labels, temperature), lambda z: theirs(z, labels), drawn(14, 6))


@pytest.mark.parametrize("margin", [0.3, None])
@pytest.mark.parametrize("how", ["random", "semi-hard", "hard"])
def test_triplets_are_metric_learnings(metric: Any, how: str, margin: float | None) -> None:
    """Their miner's triplets are ours, and so is the loss on them; random ones are ours given to their loss."""
    distance = metric["distances"].LpDistance(normalize_embeddings=False)
    loss = metric["losses"].TripletMarginLoss(
        margin or 0.0, smooth_loss=margin is None, distance=distance, reducer=metric["reducers"].MeanReducer()
    )
    z = drawn(40, 5)
    # With two rows a label every way to choose a positive is the same.
    labels = torch.arange(40) % (20 if how == "semi-hard" else 7)
    u = torch.rand((40, 2), generator=seeds.generator(3))
    found = mine(z, labels, how, u)
    theirs = tuple(found)
    if how != "random":
        miner = metric["miners"].BatchEasyHardMiner("hard", "hard" if how == "hard" else "semihard", distance=distance)
        a, p, _, n = miner(z, labels)
        theirs = a, p, n
        for ours, wanted in zip(found, theirs, strict=True):
            assert torch.equal(ours, wanted)
    agree(
        lambda z: triplet(z[found.anchor], z[found.positive], z[found.negative], margin),
        lambda z: loss(z, labels, theirs),
        z,
    )


def test_semi_hard_triplets_are_among_all_of_metric_learnings(metric: Any) -> None:
    distance = metric["distances"].LpDistance(normalize_embeddings=False)
    z, labels = drawn(60, 4), torch.arange(60) % 9
    every = metric["miners"].TripletMarginMiner(1e9, "semihard", distance=distance)(z, labels)
    found = mine(z, labels, "semi-hard", torch.rand((60, 2), generator=seeds.generator(0)))
    assert len(found.anchor) > 50
    assert set(zip(*(v.tolist() for v in found), strict=True)) <= set(zip(*(v.tolist() for v in every), strict=True))


def test_vicreg_is_lightlys(lightly: Any) -> None:
    theirs = lightly("vicreg_loss").VICRegLoss()
    agree(lambda a, b: vicreg(torch.stack([a, b])), theirs, 0.7 * drawn(15, 6), 0.7 * drawn(15, 6, seed=1))


def test_barlow_is_lightlys(lightly: Any) -> None:
    theirs = lightly("barlow_twins_loss").BarlowTwinsLoss()
    agree(barlow, theirs, drawn(15, 6), drawn(15, 6, seed=1))


@pytest.mark.parametrize(("student", "teacher"), [(2, 2), (6, 2), (3, 1)])
def test_dino_is_lightlys(lightly: Any, student: int, teacher: int) -> None:
    theirs = lightly("dino_loss").DINOLoss(9).double()
    centre = drawn(9, seed=2)
    theirs.center = centre.view(1, 1, 9).clone()
    taught = drawn(teacher, 7, 9, seed=1)
    agree(
        lambda s: dino(s, taught, centre),
        lambda s: theirs(list(taught), list(s)),
        drawn(student, 7, 9),
    )
