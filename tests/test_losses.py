"""Losses and triplet mining against closed forms, hand-written float64 references and algebraic laws."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from modicum.core import seeds
from modicum.core.errors import UserError
from modicum.maths.losses import barlow, dino, kl_normal, scaled_cosine, sigreg, slices, vicreg
from modicum.maths.triplet import mine, triplet


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=seeds.generator(seed), dtype=dtype)


def uniform(n: int, seed: int = 0) -> Tensor:
    return torch.rand((n, 2), generator=seeds.generator(seed))


def white(n: int, d: int, seed: int = 0) -> Tensor:
    """Rows whose columns have mean 0, variance 1 (over n) and no correlation, exactly."""
    z = drawn(n, d, seed=seed)
    return torch.linalg.qr(z - z.mean(0))[0] * math.sqrt(n)


# VICReg, Barlow Twins


@pytest.mark.parametrize("views", [2, 5])
def test_whitened_equal_views_cost_nothing(views: int) -> None:
    z = white(30, 6)
    assert vicreg((2 * z).expand(views, 30, 6)).item() == pytest.approx(0, abs=1e-20)
    assert barlow(z, z).item() == pytest.approx(0, abs=1e-8)  # its eps of 1e-5 under the root
    rotation = torch.linalg.qr(drawn(6, 6))[0]
    assert vicreg((2 * z @ rotation).expand(views, 30, 6)).item() == pytest.approx(0, abs=1e-20)


def test_vicreg_of_collapse_and_of_copied_dimensions() -> None:
    """All rows equal: only the lack of deviation, 1 - sqrt(eps). One dimension d times: d(d-1) covariances of v²/d."""
    assert vicreg(torch.ones(2, 8, 4), 0, 1, 0).item() == pytest.approx(1 - 0.01)
    one = drawn(20, 1)
    v = one.var().item()
    assert vicreg(one.expand(2, 20, 4), 0, 0, 1).item() == pytest.approx(2 * 3 * v**2)


def test_vicreg_of_many_views_is_the_mean_over_pairs() -> None:
    z = drawn(4, 10, 3)
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    wanted = torch.stack([vicreg(z[[i, j]], 3.0, 2.0, 0.5) for i, j in pairs]).mean()
    torch.testing.assert_close(vicreg(z, 3.0, 2.0, 0.5), wanted)
    order = torch.randperm(10, generator=seeds.generator(1))
    torch.testing.assert_close(vicreg(z[:, order]), vicreg(z))


def test_barlow_is_the_published_formula_and_ignores_scale() -> None:
    a, b = drawn(12, 5), drawn(12, 5, seed=1)
    u, v = ((x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt() for x in (a, b))
    c = torch.einsum("ni,nj->ij", u, v) / 12
    wanted = sum((c[i, j] - int(i == j)) ** 2 * (1 if i == j else 0.3) for i in range(5) for j in range(5))
    torch.testing.assert_close(barlow(a, b, 0.3), wanted)
    torch.testing.assert_close(barlow(b, a, 0.3), wanted)
    torch.testing.assert_close(barlow(1e3 * a + 7, 1e3 * b, 0.3), wanted, rtol=1e-4, atol=0)


# SIGReg


def epps_pulley(p: Tensor) -> Tensor:
    """The statistic in closed form: the integral over the whole line of n |phi_n - exp(-t²/2)|² exp(-t²/2)."""
    n = len(p)
    pairs = torch.exp(-((p[:, None] - p) ** 2) / 2).sum() * math.sqrt(2 * math.pi) / n**2
    cross = torch.exp(-(p**2) / 4).sum() * 2 * math.sqrt(math.pi) / n
    return n * (pairs - cross + math.sqrt(2 * math.pi / 3))


@pytest.mark.parametrize("chunk", [3, 64])
def test_sigreg_is_the_closed_form_of_epps_and_pulley(chunk: int) -> None:
    """Value and gradient; with 65 knots the quadrature is exact to 1e-6 for projections within a few units."""
    z, directions = drawn(40, 5).requires_grad_(), slices(5, 8, seeds.generator(1)).double()
    found = sigreg(z, directions, 65, chunk=chunk)
    wanted = torch.stack([epps_pulley(z @ a) for a in directions.T]).mean()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*(torch.autograd.grad(v, z)[0] for v in (found, wanted)), rtol=1e-4, atol=1e-5)


def test_sigreg_is_the_published_sum_over_knots() -> None:
    """LeJEPA's listing: 17 knots of [-5, 5], the trapezoidal rule, with complex numbers."""
    z, directions = drawn(40, 5), slices(5, 8, seeds.generator(1)).double()
    t = torch.linspace(-5, 5, 17, dtype=torch.float64)
    normal = torch.exp(-(t**2) / 2)
    empirical = torch.exp(1j * (z @ directions)[:, :, None] * t).mean(0)
    wanted = torch.trapezoid((empirical - normal).abs() ** 2 * normal, t, dim=1).mean() * 40
    torch.testing.assert_close(sigreg(z, directions), wanted)


def test_sigreg_of_gaussians_has_its_null_mean_and_of_a_point_its_value() -> None:
    """Under N(0, I) the expectation is sqrt(2 pi) (1 - 3^-1/2); a point at 0 gives the integral of n (1 - phi)² phi."""
    directions = slices(6, 200, seeds.generator(0)).double()
    mean = torch.stack([sigreg(drawn(50, 6, seed=k), directions) for k in range(100)]).mean().item()
    assert mean == pytest.approx(math.sqrt(2 * math.pi) * (1 - 3**-0.5), rel=0.05)
    wanted = epps_pulley(torch.zeros(50, dtype=torch.float64)).item()
    assert sigreg(torch.zeros(50, 6), directions.float()).item() == pytest.approx(wanted, rel=1e-4)
    torch.testing.assert_close(directions.norm(dim=0), torch.ones(200, dtype=torch.float64))


# KL, scaled cosine, DINO


def test_kl_is_torchs_and_zero_at_the_normal() -> None:
    mean, log_variance = drawn(7, 4), drawn(7, 4, seed=1)
    one = torch.distributions.Normal(mean, (log_variance / 2).exp())
    wanted = torch.distributions.kl_divergence(one, torch.distributions.Normal(torch.tensor(0.0), torch.tensor(1.0)))
    torch.testing.assert_close(kl_normal(mean, log_variance), wanted)
    assert not kl_normal(torch.zeros(2, 3), torch.zeros(2, 3)).any()
    tiny = torch.full((1, 1), 1e-4)  # x²/4 in float32, where exp(x) - 1 - x would be noise
    assert kl_normal(torch.zeros(1, 1), tiny).item() == pytest.approx(2.5e-9, rel=0.05)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_scaled_cosine(power: float) -> None:
    x, y = drawn(9, 4), drawn(9, 4, seed=1)
    torch.testing.assert_close(scaled_cosine(x, y, power), ((1 - F.cosine_similarity(x, y)) ** power).mean())
    assert scaled_cosine(x, 3 * x, power).item() == pytest.approx(0, abs=1e-15)
    assert scaled_cosine(x, -x, power).item() == pytest.approx(2**power)
    x.requires_grad_()
    assert torch.autograd.grad(scaled_cosine(x, x.detach(), power), x)[0].isfinite().all()


def test_dino_of_uniform_logits_and_its_centre() -> None:
    """Log k for a student that knows nothing; a constant added to the teacher and to the centre changes nothing."""
    s, t, centre = drawn(3, 5, 8), drawn(2, 5, 8, seed=1), drawn(8, seed=2)
    assert dino(torch.zeros_like(s), t, centre).item() == pytest.approx(math.log(8))
    torch.testing.assert_close(dino(s, t, centre), dino(s, t + centre, 2 * centre))
    t.requires_grad_()
    assert not dino(s, t, centre).requires_grad


# Triplets


def test_equal_distances_cost_the_margin() -> None:
    a, p, n = torch.zeros(3, 2), torch.tensor([[3.0, 4]] * 3), torch.tensor([[0.0, -5]] * 3)
    assert triplet(a, p, n, 0.7).item() == pytest.approx(0.7)
    assert triplet(a, p, n, None).item() == pytest.approx(math.log(2))
    assert triplet(a[:0], p[:0], n[:0]).item() == 0


def test_triplet_is_torchs_and_has_no_nan_gradient_at_zero_distance() -> None:
    a, p, n = (drawn(9, 4, seed=k).requires_grad_() for k in range(3))
    torch.testing.assert_close(triplet(a, p, n, 0.5), F.triplet_margin_loss(a, p, n, 0.5, eps=0))
    triplet(a, a, a, None).backward()
    assert a.grad is not None
    assert a.grad.isfinite().all()


def brute(z: Tensor, labels: Tensor, positive: Tensor, semi: bool) -> tuple[Tensor, Tensor]:
    """Hardest positive and hardest negative, or the nearest negative beyond the given positive, from all distances."""
    apart = torch.cdist(z, z)
    same, itself = labels[:, None] == labels, torch.eye(len(z), dtype=torch.bool)
    hardest = apart.masked_fill(~same | itself, -1).argmax(1)
    within = same if not semi else same | (apart <= apart.gather(1, positive[:, None]))
    return hardest, apart.masked_fill(within, torch.inf).argmin(1)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(2, 40), st.integers(1, 8), st.sampled_from(["random", "semi-hard", "hard"]), st.integers(0, 10**6))
def test_mined_triplets_are_what_they_are_called(n: int, classes: int, how: str, seed: int) -> None:
    z = drawn(n, 3, seed=seed)
    labels = torch.randint(classes, (n,), generator=seeds.generator(seed, "labels"))
    a, p, m = mine(z, labels, how, uniform(n, seed))
    assert (labels[a] == labels[p]).all()
    assert (a != p).all()
    assert (labels[a] != labels[m]).all()
    assert len(a.unique()) == len(a)
    count = (labels[:, None] == labels).sum(1)
    able = ((count > 1) & (count < n)).nonzero().squeeze(1)
    partner = torch.arange(n).scatter(0, a, p)
    hardest, nearest = brute(z, labels, partner, how == "semi-hard")
    if how != "semi-hard":
        assert torch.equal(a, able)
    if how == "hard":
        assert torch.equal(p, hardest[a])
    if how != "random":
        assert torch.equal(m, nearest[a])
    gap = torch.cdist(z, z)
    assert how != "semi-hard" or (gap[a, m] > gap[a, p]).all()


def test_blocks_of_miners_agree_with_all_distances() -> None:
    """More rows than one block holds, far from the origin."""
    z, labels = drawn(1100, 8) + 100, torch.randint(9, (1100,), generator=seeds.generator(0))
    a, p, m = mine(z, labels, "hard", uniform(1100))
    hardest, nearest = brute(z, labels, p, False)
    assert torch.equal(p, hardest[a])
    assert torch.equal(m, nearest[a])


def test_random_triplets_are_uniform() -> None:
    """One anchor, 3 other positives and 5 negatives: each drawn equally often (chi-squared at 1e-4)."""
    labels = torch.tensor([1, 0, 1, 0, 0, 1, 1, 0, 0])
    counts = torch.zeros(9)
    for k in range(400):
        found = mine(torch.zeros(9, 1), labels, "random", uniform(9, k))
        counts[found.positive[0]] += 1
        counts[found.negative[0]] += 1
    positives, negatives = counts[[2, 5, 6]], counts[[1, 3, 4, 7, 8]]
    assert positives.sum() == negatives.sum() == 400
    assert ((positives - 400 / 3).square() / (400 / 3)).sum() < 18.4
    assert ((negatives - 80).square() / 80).sum() < 23.5


def test_what_does_not_fit_is_refused() -> None:
    z = drawn(4, 3)
    with pytest.raises(UserError, match="unknown miner 'hardest'; valid: hard"):
        mine(z, torch.arange(4), "hardest", uniform(4))
    with pytest.raises(UserError, match="one label and two numbers a row"):
        mine(z, torch.arange(3), "hard", uniform(4))
    with pytest.raises(UserError, match="two views of at least two samples"):
        vicreg(drawn(1, 4, 3))
    with pytest.raises(UserError, match="odd number of knots"):
        sigreg(z, drawn(3, 2), 4)
    with pytest.raises(UserError, match="at least two views"):
        dino(drawn(1, 4, 3), drawn(1, 4, 3), torch.zeros(3))
