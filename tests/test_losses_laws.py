"""Losses against formulas written anew in float64, value and gradient; what must not matter; what is never whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from watch import Watch

from modicum.core import seeds
from modicum.maths.contrastive import info_nce_queue, nt_xent
from modicum.maths.losses import kl_normal, margin_pairs, scaled_cosine, sigreg, slices
from modicum.maths.representation import uniformity
from modicum.maths.triplet import HOW, mine, triplet

SIMILAR = torch.arange(30) % 3 == 0


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeds.generator(seed), dtype=torch.float64)


def plain_margin(x: Tensor, y: Tensor) -> Tensor:
    """Hadsell et al. 2006, row by row."""
    total = torch.zeros((), dtype=torch.float64)
    for a, b, alike in zip(x, y, SIMILAR, strict=True):
        apart = ((a - b) ** 2).sum() ** 0.5
        total = total + (apart**2 if alike else torch.clamp(3.0 - apart, min=0) ** 2) / 2
    return total / len(x)


def plain_cosine(x: Tensor, y: Tensor) -> Tensor:
    """GraphMAE's error of power 3, from the cosine itself."""
    cosine = (x * y).sum(1) / ((x * x).sum(1) * (y * y).sum(1)).sqrt()
    return ((1 - cosine) ** 3).mean()


def plain_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """½ Σ(μ² + s² - 1 - log s²)."""
    return (0.5 * (mean**2 + log_variance.exp() - 1 - log_variance)).sum()


TWINS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "margin_pairs": (lambda x, y: margin_pairs(x, y, SIMILAR, 3.0), plain_margin),
    "scaled_cosine": (lambda x, y: scaled_cosine(x, y, 3.0), plain_cosine),
    "kl_normal": (lambda x, y: kl_normal(x, y).sum(), plain_kl),
}


@pytest.mark.parametrize("name", TWINS)
def test_value_and_gradients_are_the_formulas(name: str) -> None:
    found, wanted = [], []
    for loss, out in zip(TWINS[name], (found, wanted), strict=True):
        x, y = drawn(30, 5).requires_grad_(), drawn(30, 5, seed=1).requires_grad_()
        value = loss(x, y)
        value.backward()
        out += [value.detach(), x.grad, y.grad]
    for f, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(f, w, rtol=1e-9, atol=1e-12)


def turned(seed: int = 3) -> Tensor:
    """A rotation of 5 dimensions."""
    return torch.linalg.qr(drawn(5, 5, seed=seed))[0]


def test_order_and_rotation_do_not_matter() -> None:
    x, y, z = (drawn(30, 5, seed=s) for s in range(3))
    order, q = torch.randperm(30, generator=seeds.generator(4)), turned()
    labels, u = torch.arange(30) % 4, torch.rand(30, 2, generator=seeds.generator(5))
    assert margin_pairs(x[order] @ q, y[order] @ q, SIMILAR[order], 3.0).item() == pytest.approx(
        margin_pairs(x, y, SIMILAR, 3.0).item(), rel=1e-12
    )
    for margin in (0.2, None):
        assert triplet(x[order] @ q, y[order] @ q, z[order] @ q, margin).item() == pytest.approx(
            triplet(x, y, z, margin).item(), rel=1e-12
        )
    hard, same = mine(x, labels, "hard", u), mine(x[order] @ q, labels[order], "hard", u)
    assert {tuple(t) for t in torch.stack(hard, 1).tolist()} == {tuple(t) for t in order[torch.stack(same, 1)].tolist()}
    # Directions drawn uniformly: turned with the rows, each statistic is the same.
    directions = slices(5, 40, seeds.generator(6)).double()
    assert sigreg(x[order] @ q, q.T @ directions).item() == pytest.approx(sigreg(x, directions).item(), rel=1e-12)


def test_nothing_of_the_size_of_all_pairs_is_made() -> None:
    n = 3000
    z, other = drawn(n, 8).float(), drawn(n, 8, seed=1).float()
    labels, u = torch.arange(n) % 7, torch.rand(n, 2, generator=seeds.generator(2))
    with Watch() as watch:
        for how in HOW:
            found = mine(z, labels, how, u)
            x = z.clone().requires_grad_()
            triplet(x[found.anchor], x[found.positive], x[found.negative]).backward()
        x = z.clone().requires_grad_()
        info_nce_queue(x, other, other.flip(0), 5.0).backward()
    assert watch.largest <= 512 * 512
    with Watch() as watch:
        uniformity(z)
    assert watch.largest <= n * n / 2, "in blocks of rows"


@pytest.mark.parametrize("noise", [1.0, 0.05])
def test_float32_of_three_views_is_no_worse_than_the_textbooks(noise: float) -> None:
    """Root mean square error over 12 draws of value and gradient: at most twice the textbook's."""

    def book(z: Tensor) -> Tensor:
        unit = torch.nn.functional.normalize(z, dim=2)
        sims = torch.einsum("vbd,wcd->vbwc", unit, unit) * 20
        n, b, _ = z.shape
        own = torch.eye(b, dtype=torch.bool)
        total = []
        for v in range(n):
            others = sims[v].masked_fill(own[:, None, :].expand(b, n, b), -torch.inf).flatten(1).logsumexp(1)
            for w in range(n):
                if w != v:
                    positive = sims[v, :, w].diagonal()
                    total.append(torch.logaddexp(positive, others) - positive)
        return torch.stack(total).mean()

    errors = torch.zeros(2, 2, dtype=torch.float64)
    for seed in range(12):
        base = drawn(1, 41, 8, seed=seed)
        z = base + noise * drawn(3, 41, 8, seed=100 + seed)
        results = []
        for loss, dtype in ((book, torch.float64), (lambda x: nt_xent(x, 0.05), torch.float32), (book, torch.float32)):
            x = z.to(dtype).detach().clone().requires_grad_()
            value = loss(x)
            value.backward()
            assert x.grad is not None
            results.append((value.detach().double(), x.grad.double()))
        for k in (0, 1):
            errors[k] += torch.stack([(f - e).square().sum() for f, e in zip(results[k + 1], results[0], strict=True)])
    assert (errors[0] <= 4 * errors[1]).all(), (errors[0] / errors[1]).sqrt()
