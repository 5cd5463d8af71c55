"""Blockwise contrastive losses against closed forms, the textbook in float64, and algebraic laws."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from watch import Watch

from modicum.core import seeds
from modicum.core.errors import UserError
from modicum.maths import blocks
from modicum.maths.blockwise import log_sums
from modicum.maths.contrastive import info_nce, info_nce_queue, nt_xent, sigmoid_pairs, supcon

Loss = Callable[..., Tensor]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeds.generator(seed))


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 7 rows, so that small matrices have many, whole and cut off."""
    monkeypatch.setattr(blocks, "_slices", lambda z: [slice(k, min(k + 7, len(z))) for k in range(0, len(z), 7)])


# The textbook, written with the whole matrix


def both_ways(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    logits = scale * F.normalize(x, dim=1) @ F.normalize(y, dim=1).T
    target = torch.arange(len(x))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def one_way(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    return F.cross_entropy(scale * F.normalize(x, dim=1) @ F.normalize(y, dim=1).T, torch.arange(len(x)))


def queued(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """The first 20 pairs; the other rows of y are the queue."""
    x, y = F.normalize(x, dim=1)[:20], F.normalize(y, dim=1)
    own = (x * y[:20]).sum(1, keepdim=True)
    logits = scale * torch.cat([own, x @ y[20:].T], 1)
    return F.cross_entropy(logits, torch.zeros(20, dtype=torch.long))


def published_nt_xent(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    z = F.normalize(torch.cat([x, y]), dim=1)
    logits = (scale * z @ z.T).masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(z)).roll(len(x)))


LABELS = torch.arange(41) % 6


def published_supcon(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    z = F.normalize(x + y, dim=1)
    itself = torch.eye(len(z), dtype=torch.bool)
    logp = (scale * z @ z.T).masked_fill(itself, -torch.inf).log_softmax(1)
    positive = (LABELS[:, None] == LABELS) & ~itself
    return -(logp.masked_fill(~positive, 0).sum(1) / positive.sum(1)).mean()


def published_siglip(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    logits = scale * F.normalize(x, dim=1) @ F.normalize(y, dim=1).T - 3
    return -F.logsigmoid(logits * (2 * torch.eye(len(x), dtype=x.dtype) - 1)).sum() / len(x)


TWINS: dict[str, tuple[Loss, Loss]] = {
    "both ways": (info_nce, both_ways),
    "one way": (lambda x, y, s: info_nce(x, y, s, both=False), one_way),
    "queue": (lambda x, y, s: info_nce_queue(x[:20], y[:20], y[20:], s), queued),
    "nt_xent": (lambda x, y, s: nt_xent(torch.stack([x, y]), 1 / s.double()), published_nt_xent),
    "supcon": (lambda x, y, s: supcon(x + y, LABELS, 1 / s.double()), published_supcon),
    "siglip": (lambda x, y, s: sigmoid_pairs(x, y, s, -3.0), published_siglip),
}


def results(loss: Loss, given: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    """Value and gradients, in float64."""
    leaves = [g.to(dtype).requires_grad_() for g in given]
    value = loss(*leaves)
    assert value.dtype == dtype
    return [v.double() for v in (value.detach(), *torch.autograd.grad(value, leaves))]


def pairs(rows: int, scale: float, seed: int, noise: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    x = drawn(rows, 5, seed=seed)
    return x, x + noise * drawn(rows, 5, seed=seed + 100), torch.tensor(scale)


@pytest.mark.parametrize("scale", [1.0, 14.0, 100.0, 1000.0])
@pytest.mark.parametrize("name", TWINS)
def test_value_and_gradients_are_the_textbooks(name: str, scale: float) -> None:
    """In float64; 100 is shifted, and at 1000 no one shift holds for all rows."""
    ours, book = TWINS[name]
    given = pairs(41, scale, seed=1)
    for found, wanted in zip(results(ours, given, torch.float64), results(book, given, torch.float64), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("noise", [1.0, 0.05])
@pytest.mark.parametrize("scale", [2.0, 20.0, 100.0])
@pytest.mark.parametrize("name", TWINS)
def test_float32_is_no_worse_than_the_textbooks(name: str, scale: float, noise: float) -> None:
    """Root mean square error over 12 draws of value, gradients and the scale's gradient: at most twice as large."""
    ours, book = TWINS[name]
    errors = torch.zeros(2, 4, dtype=torch.float64)
    for seed in range(12):
        given = pairs(41, scale, seed, noise)
        exact = results(book, given, torch.float64)
        for k, loss in enumerate((ours, book)):
            found = results(loss, given, torch.float32)
            errors[k] += torch.stack([(f - e).square().sum() for f, e in zip(found, exact, strict=True)])
    # What rounding the exact result to float32 would cost is nobody's fault.
    rounding = torch.stack([12 * e.square().sum() * 2.0**-48 for e in exact])
    assert (errors[0] <= 4 * errors[1] + rounding).all(), (errors / errors[1]).sqrt()


@pytest.mark.parametrize("name", ["both ways", "nt_xent"])
def test_blocks_of_the_usual_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows than one block on this device, and a rest."""
    monkeypatch.undo()
    ours, book = TWINS[name]
    given = pairs(1300, 20.0, seed=2)
    for found, wanted in zip(results(ours, given, torch.float64), results(book, given, torch.float64), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_the_matrix_is_never_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of more than a block or the embeddings is made, forward or backward."""
    monkeypatch.undo()
    given = pairs(3000, 20.0, seed=2)
    labels = torch.arange(3000) % 7
    losses = [
        *(TWINS[k][0] for k in ("both ways", "one way", "nt_xent", "siglip")),
        lambda x, y, s: supcon(x, labels, 1 / s.double()),
    ]
    with Watch() as watch:
        for loss in losses:
            x, y, s = (g.clone().requires_grad_() for g in given)
            loss(x, y, s).backward()
    assert watch.largest <= 512 * 512


# Closed forms


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0, 500.0])
def test_identical_pairs_among_orthonormal_others(scale: float) -> None:
    b, eye = 20, torch.eye(20, dtype=torch.float64)
    wanted = math.log1p((b - 1) * math.exp(-scale))
    assert info_nce(eye, eye, scale).item() == pytest.approx(wanted, rel=1e-9)
    assert info_nce(eye, eye, scale, both=False).item() == pytest.approx(wanted, rel=1e-9)
    assert nt_xent(torch.stack([eye, eye]), 1 / scale).item() == pytest.approx(
        math.log1p(2 * (b - 1) * math.exp(-scale)), rel=1e-9
    )
    classes = torch.arange(b).repeat(3)  # three copies: two positives, each log(2 + 3(B-1)e^-s), less s by s
    assert supcon(eye.repeat(3, 1), classes, 1 / scale).item() == pytest.approx(
        math.log(2 + 3 * (b - 1) * math.exp(-scale)), rel=1e-9
    )
    softplus = math.log1p(math.exp(-scale))
    assert sigmoid_pairs(eye, eye, scale, 0.0).item() == pytest.approx(softplus + (b - 1) * math.log(2), rel=1e-9)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_constant_embeddings_have_the_loss_of_chance(scale: float) -> None:
    z = torch.ones(30, 4)
    assert info_nce(z, z, scale).item() == pytest.approx(math.log(30), rel=1e-6)
    assert info_nce_queue(z[:5], z[:5], z, scale).item() == pytest.approx(math.log(31), rel=1e-6)
    assert supcon(z, torch.arange(30) % 3, 1 / scale).item() == pytest.approx(math.log(29), rel=1e-6)


def test_a_tiny_loss_keeps_its_gradient() -> None:
    """In float32 1 - exp(-30) is 1: gradients of e^-30 are there only if the diagonal was never subtracted from."""
    x = torch.eye(6, requires_grad=True)
    scale = torch.tensor(30.0, requires_grad=True)
    loss = info_nce(x, torch.eye(6), scale)
    loss.backward()
    assert loss.item() == pytest.approx(5 * math.exp(-30), rel=1e-4)
    assert scale.grad is not None
    assert scale.grad.item() == pytest.approx(-5 * math.exp(-30), rel=1e-4)


@pytest.mark.parametrize("scale", [50.0, 70.0, 100.0])
def test_a_small_gradient_from_above_does_not_vanish(scale: float) -> None:
    """All rows nearly alike, so that every sum is near its largest: 2^-24 of the loss has 2^-24 of the gradient."""
    x, y = 1 + 0.05 * drawn(41, 5), 1 + 0.05 * drawn(41, 5, seed=1)
    for name, (loss, _) in TWINS.items():
        leaf, s = x.clone().requires_grad_(), torch.tensor(scale)
        whole, part = (torch.autograd.grad(f * loss(leaf, y, s), leaf)[0] for f in (1.0, 2.0**-24))
        torch.testing.assert_close(part * 2**24, whole, rtol=1e-4, atol=1e-6, msg=name)


# Laws


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(TWINS)), st.floats(0.5, 200), st.integers(0, 10**6))
def test_order_length_and_rotation_do_not_matter(name: str, scale: float, seed: int) -> None:
    loss = TWINS[name][0]
    x, y, s = (v.double() for v in pairs(41, scale, seed))
    rng = seeds.generator(seed, "turn")
    rotation = torch.linalg.qr(torch.randn((5, 5), generator=rng, dtype=torch.float64))[0]
    wanted = pytest.approx(loss(x, y, s).item(), rel=1e-9)
    assert loss(x @ rotation, y @ rotation, s).item() == wanted
    if name in ("both ways", "nt_xent"):
        assert loss(y, x, s).item() == wanted
    if name not in ("queue", "supcon"):
        order = torch.randperm(41, generator=rng)
        assert loss(x[order], y[order], s).item() == wanted
    if name != "supcon":
        length = torch.rand((41, 1), generator=rng, dtype=torch.float64) + 0.1
        assert loss(length * x, y, s).item() == wanted
    else:
        order = torch.randperm(41, generator=rng)
        assert supcon((x + y)[order], LABELS[order], 1 / s.double()).item() == wanted


def test_scaling_rows_scales_the_sums_like_the_temperature() -> None:
    x, y = (v.double() for v in pairs(20, 1.0, seed=3)[:2])
    for a, b in zip(
        log_sums(3 * x, y, torch.tensor(2.0), None, both=True),
        log_sums(x, y, torch.tensor(6.0), None, both=True),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("views", [2, 3, 20])
def test_nt_xent_of_many_views(views: int) -> None:
    """Against the definition in loops over positives, in float64; each view is of its sample whatever the order."""
    z = drawn(views, 6, 5).double().requires_grad_()
    unit = F.normalize(z, dim=2).transpose(0, 1).flatten(0, 1)
    sample = torch.arange(6).repeat_interleave(views)
    e = (unit @ unit.T / 0.3).exp()
    others = (e * (sample[:, None] != sample)).sum(1, keepdim=True)
    pair = (sample[:, None] == sample) & ~torch.eye(len(unit), dtype=torch.bool)
    wanted = -(e / (e + others)).log()[pair].mean()
    found = nt_xent(z, 0.3)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(v, z)[0] for v in (found, wanted)))


def test_supcon_leaves_out_anchors_without_a_positive() -> None:
    z, labels = drawn(9, 4).double(), torch.tensor([0, 0, 1, 1, 1, 2, 3, 4, 5])
    unit = F.normalize(z, dim=1)
    logp = (unit @ unit.T / 0.2).fill_diagonal_(-torch.inf).log_softmax(1)
    terms = [-logp[i, [j for j in range(9) if j != i and labels[j] == labels[i]]].mean() for i in range(5)]
    torch.testing.assert_close(supcon(z, labels, 0.2), torch.stack(terms).mean())
    alone = z.clone().requires_grad_()
    loss = supcon(alone, torch.arange(9), 0.2)
    loss.backward()
    assert loss.item() == 0
    assert alone.grad is not None
    assert not alone.grad.any()


# How they are called


@pytest.mark.parametrize("name", TWINS)
def test_autocast_and_half_precision_compute_in_float32(name: str) -> None:
    loss, given = TWINS[name][0], pairs(41, 20.0, seed=4)
    rounded = [g.bfloat16() for g in given]
    leaves, plain = ([r.clone().to(t).requires_grad_() for r in rounded] for t in (torch.bfloat16, torch.float32))
    if name == "supcon":  # adds its inputs, which bfloat16 would round
        leaves[1], plain[1] = (torch.zeros_like(v).requires_grad_() for v in (leaves[1], plain[1]))
    if name in ("supcon", "nt_xent"):  # 1/scale
        leaves[2], plain[2] = (torch.tensor(16.0, dtype=v.dtype).requires_grad_() for v in (leaves[2], plain[2]))
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(*leaves)
        found.backward()
    wanted = loss(*plain)
    wanted.backward()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted)
    for a, b in zip(leaves, plain, strict=True):
        assert a.grad is not None
        assert a.grad.dtype == torch.bfloat16
        torch.testing.assert_close(a.grad.float(), b.grad, rtol=2e-2, atol=1e-4)


def test_under_torch_func_grad() -> None:
    x, y, s = pairs(41, 20.0, seed=5)
    for name in TWINS:
        leaves = [v.clone().requires_grad_() for v in (x, y, s)]
        wanted = torch.autograd.grad(TWINS[name][0](*leaves), leaves)
        torch.testing.assert_close(torch.func.grad(TWINS[name][0], (0, 1, 2))(x, y, s), wanted)


@pytest.mark.parametrize("name", TWINS)
def test_a_second_derivative_is_refused(name: str) -> None:
    x, y, s = pairs(41, 20.0, seed=5)
    x.requires_grad_()
    gradient = torch.autograd.grad(TWINS[name][0](x, y, s), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="only once"):
        gradient.sum().backward()


def test_nan_is_not_hidden() -> None:
    for scale in (5.0, 500.0):
        x, y, s = pairs(41, scale, seed=6)
        x[3, 2] = math.nan
        for ours, _ in TWINS.values():
            assert ours(x, y, s).isnan()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="pairs are rows, at least one, of two matrices"):
        info_nce(drawn(4, 3), drawn(5, 3), 1.0)
    with pytest.raises(UserError, match="pairs are rows, at least one, of two matrices"):
        sigmoid_pairs(drawn(4, 3), drawn(4, 2), 1.0, 0.0)
    with pytest.raises(UserError, match="rows with one label each"):
        supcon(drawn(4, 3), torch.arange(3), 1.0)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_must_be_above_zero(value: float) -> None:
    z = torch.randn(2, 4, 3)
    for loss in (
        lambda: nt_xent(z, value),
        lambda: supcon(z[0], torch.tensor([0, 0, 1, 1]), value),
        lambda: info_nce(z[0], z[1], value),
    ):
        with pytest.raises(UserError, match="must be above 0 and finite"):
            loss()
