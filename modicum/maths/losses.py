"""Losses as pure functions of tensors; every one has a public reference. The contrastive ones: contrastive.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Generator, Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from modicum.core.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")


def full(function: Callable[P, T]) -> Callable[P, T]:
    """The function outside autocast: products of few digits move small differences."""

    @wraps(function)
    def run(*args: P.args, **options: P.kwargs) -> T:
        with torch.autocast(args[0].device.type, enabled=False):  # type: ignore[attr-defined]
            return function(*args, **options)

    return run


@full
def vicreg(z: Tensor, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0) -> Tensor:
    """VICReg over n views of b samples (Bardes et al. 2022), not normalised: z (n, b, d).

    Mean squared difference over pairs of views; the mean lack of standard deviation below 1; the sum of squared
    covariances between dimensions over d, twice the mean over views. With n = 2 this is the published loss.
    """
    n, b, d = z.shape
    if n < 2 or b < 2:
        raise UserError(f"vicreg wants at least two views of at least two samples; got {n} and {b}")
    z = widened(z)
    # Over all pairs of views: twice the unbiased variance between views, without enumerating pairs.
    between = 2 * z.var(0).mean()
    centred = z - z.mean(1, keepdim=True)
    cov = centred.transpose(1, 2) @ centred / (b - 1)
    own = cov.diagonal(dim1=1, dim2=2)
    lack = F.relu(1 - (own + 1e-4).sqrt()).mean()
    shared = cov.masked_fill(torch.eye(d, dtype=torch.bool, device=z.device), 0).square().sum() / d
    return invariance * between + variance * lack + covariance * 2 * shared / n


@full
def barlow(a: Tensor, b: Tensor, off_diagonal: float = 5e-3) -> Tensor:
    """Barlow Twins (Zbontar et al. 2021): the correlations of two views a, b (n, d) over samples, against identity.

    Squared differences summed over d and, times `off_diagonal`, over pairs of dimensions.
    """
    a, b = (F.batch_norm(widened(v), None, None, training=True) for v in (a, b))
    correlation = a.T @ b / len(a)
    own = correlation.diagonal()
    others = correlation.masked_fill(torch.eye(len(own), dtype=torch.bool, device=a.device), 0)
    return (own - 1).square().sum() + off_diagonal * others.square().sum()


def slices(dim: int, count: int, rng: Generator, device: torch.device | str = "cpu") -> Tensor:
    """`count` directions drawn uniformly from the sphere, for sigreg: (dim, count)."""
    return F.normalize(torch.randn((dim, count), generator=rng, device=device), dim=0)


@full
def sigreg(z: Tensor, directions: Tensor, knots: int = 17, reach: float = 5.0, chunk: int = 64) -> Tensor:
    """SIGReg (LeJEPA, Balestriero and LeCun 2025): how far z (n, d) is from N(0, I) along directions (d, s).

    The mean over directions of the Epps-Pulley statistic, n · integral of |phi_n(t) - exp(-t²/2)|² exp(-t²/2) dt over
    [-reach, reach] by the trapezoidal rule at `knots` points, odd in number. `chunk` directions are computed at a time
    and again in backward: memory is O(n · chunk · knots).
    """
    if knots < 3 or knots % 2 == 0:
        raise UserError(f"sigreg wants an odd number of knots of at least 3; got {knots}")
    z = widened(z)
    directions = directions.to(z.dtype)
    t = torch.linspace(0, reach, knots // 2 + 1, dtype=z.dtype, device=z.device)[1:]
    normal = (-t.square() / 2).exp()
    # The integrand is even, and 0 at 0.
    weight = 2 * normal * (t[1] - t[0] if len(t) > 1 else t[0])
    weight[-1] /= 2

    def statistics(part: Tensor, z: Tensor) -> Tensor:
        angles = (z @ part).unsqueeze(2) * t
        error = (angles.cos().mean(0) - normal).square() + angles.sin().mean(0).square()
        return (error @ weight).sum()

    parts = directions.split(chunk, 1)
    if len(parts) == 1:
        return statistics(directions, z) * len(z) / directions.shape[1]
    totals = [checkpoint(statistics, part, z, use_reentrant=False, preserve_rng_state=False) for part in parts]
    return torch.stack(totals).sum() * len(z) / directions.shape[1]


def kl_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL divergence of N(mean, diag(exp(log_variance))) to N(0, I), a term a dimension (Kingma and Welling 2014).

    Both (b, d); summed over d it is the divergence. To full precision near 0.
    """
    mean, log_variance = widened(mean), widened(log_variance)
    return (mean.square() + torch.expm1(log_variance) - log_variance) / 2


def scaled_cosine(x: Tensor, y: Tensor, power: float = 2.0) -> Tensor:
    """Scaled cosine error (GraphMAE, Hou et al. 2022): the mean of (1 - cos(x_i, y_i))^power over rows (b, d)."""
    # Half the squared distance of unit vectors is 1 - cos, without the difference of two near 1.
    apart = (F.normalize(widened(x), dim=-1) - F.normalize(widened(y), dim=-1)).square().sum(-1) / 2
    return apart.pow(power).mean()


def dino(
    student: Tensor, teacher: Tensor, centre: Tensor, student_temperature: float = 0.1, temperature: float = 0.04
) -> Tensor:
    """DINO's cross-entropy of a student to a centred, sharpened teacher (Caron et al. 2021).

    student (s, b, k) and teacher (t, b, k) logits, s >= t; view v of the teacher is view v of the student, and each
    teacher's view is compared with all other views of the student. centre (k,) is the running mean of the teacher's
    logits; no gradient reaches it or the teacher.
    """
    (s, b, _), t = student.shape, len(teacher)
    if s < 2 or t > s:
        raise UserError(
            f"dino wants at least two views, and no more of the teacher than of the student; got {s} and {t}"
        )
    wanted = ((widened(teacher) - centre) / temperature).softmax(2).detach()
    found = (widened(student) / student_temperature).log_softmax(2)
    # All pairs of views at once, less those of a view with itself.
    total = (wanted.sum(0) * found.sum(0)).sum() - (wanted * found[:t]).sum()
    return -total / (b * t * (s - 1))


@full
def margin_pairs(x: Tensor, y: Tensor, similar: Tensor, margin: float = 1.0) -> Tensor:
    """Contrastive loss of pairs of rows (m, d), `similar` (m,) 1 or 0 (Hadsell et al. 2006), averaged over pairs.

    Half the squared distance of similar ones, half the square of what others lack of being `margin` apart. Distances
    are Euclidean, and nothing is normalised.
    """
    apart = torch.linalg.vector_norm(widened(x) - widened(y), dim=1)
    return torch.where(similar > 0, apart, F.relu(margin - apart)).square().mean() / 2


def widened(x: Tensor) -> Tensor:
    """In float32, or float64 where it is that already."""
    return x if x.dtype == torch.float64 else x.float()


def spread(z: Tensor) -> dict[str, Tensor]:
    """Two measures of collapse of features (b, d): `rank`, the participation ratio (tr C)²/|C|² of their covariance,
    a smooth effective rank, and `spread`, the mean standard deviation over the root mean square.
    """
    z = z.detach().float()
    c = z - z.mean(0)
    deviation = (c.square().sum(0) / max(1, len(c) - 1)).sqrt()  # Tensor.std is ten times slower down a column
    gram = c.T @ c if c.shape[1] <= c.shape[0] else c @ c.T
    rank = gram.diagonal().sum() ** 2 / gram.square().sum().clamp(min=1e-30)
    return {"rank": rank, "spread": deviation.mean() / z.square().mean().sqrt().clamp(min=1e-12)}
