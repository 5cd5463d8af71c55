"""Least squares at every number of features, 1, 2, 3, ..., from one factorisation.

Φ (n, D) are features of the training rows, Ψ (m, D) of the test rows, Y (n, k) the targets; the fit at width d uses the
first d columns and minimises |Y - Φw|² + ridge |w|², at ridge 0 with the least |w|. From a width to the next the
outputs on the test rows change by an outer product, f_d = f_(d-1) + u_d ⊗ v_d, in two stages:

- d <= n: [Φ; √ridge I] = QR gives u = QᵀY and v = R⁻ᵀΨᵀ for all these widths at once;
- d > n, in blocks of features B: RᵀR = ΦΦᵀ + ridge I is kept with P = R⁻ᵀΦΨᵀ and β = R⁻ᵀY. With G = R⁻ᵀB and
  [G; I] = QS, u = S⁻ᵀGᵀβ and v = S⁻ᵀ(Ψ_Bᵀ - GᵀP); and [R; Bᵀ] = QR' gives the next R' and P' = Qᵀ[P; Ψ_Bᵀ].

Only orthogonal factorisations are used: forming (ΦΦᵀ)⁻¹ would square the condition number, which at d = n is what makes
the peak. Memory is that of Φ and Ψ and a few times n·m; no array has an axis of widths and one of test rows besides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from modicum.core import seeds
from modicum.core.errors import UserError

Kind = Literal["relu", "cosine"]
KINDS: tuple[Kind, ...] = ("relu", "cosine")
WEAK = 1e-8
"""A feature with less than this share of its length outside those before it depends on them, in this precision."""
FLOOR = 1e-10
"""The ridge, as a share of the mean squared length of a feature, that stands for none where features are dependent."""


@dataclass(frozen=True)
class Curve:
    """What the fit at each width (D,) gives: `loss` and `error` on the test rows, `train` loss, the `norm` of w.

    Losses are squared errors summed over outputs, means over rows; error is the share of rows whose largest output is
    not the target's (NaN for one output). `effective` is the trace of the smoother, the parameters in use; `outputs`
    (len(at), m, k) those at the widths asked for. `ridge` is the one used; `used` (D,) counts the features that are not
    0 on all training rows, and `rank` how many of these fit the rows exactly: fewer than n where rows are equal.
    """

    loss: np.ndarray
    error: np.ndarray
    train: np.ndarray
    norm: np.ndarray
    effective: np.ndarray
    outputs: np.ndarray
    used: np.ndarray
    ridge: float
    rank: int

    @property
    def threshold(self) -> int | None:
        """The first width at which the training rows are fitted exactly without ridge, if any is large enough."""
        wide = int(np.searchsorted(self.used, self.rank))
        return wide + 1 if wide < len(self.used) else None


class _Rows(NamedTuple):
    phi: Tensor
    y: Tensor
    within: float  # squared error that no function of the inputs can avoid, from equal rows with unequal targets


@dataclass
class _Scores:
    """Collects loss and error on the test rows, and outputs at some widths, of outputs (k, m) that change by u ⊗ v."""

    targets: Tensor
    at: frozenset[int]
    loss: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)
    outputs: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.right = self.targets.max(0).indices
        self.apart = torch.empty_like(self.targets)
        self.record(torch.zeros_like(self.targets))

    def add(self, f: Tensor, u: Tensor, v: Tensor) -> None:
        """Score f + Σ_(i<=j) u_i ⊗ v_i for every j; u (b, k), v (b, m). Changes f (k, m)."""
        for one, other in zip(u, v, strict=True):
            self.record(f.addr_(one, other))

    def record(self, f: Tensor) -> None:
        k, m = f.shape
        flat = torch.sub(f, self.targets, out=self.apart).view(-1)
        self.loss.append(float(torch.dot(flat, flat)) / m)
        # The first of equal outputs counts, as argmax has it: where features are few, all outputs of a row may be 0.
        self.error.append(float((f.max(0).indices != self.right).sum()) / m if k > 1 else float("nan"))
        if len(self.loss) - 1 in self.at:
            self.outputs[len(self.loss) - 1] = f.T.numpy().copy()


def curve(
    phi: np.ndarray,
    y: np.ndarray,
    psi: np.ndarray,
    targets: np.ndarray,
    *,
    ridge: float = 0.0,
    at: np.ndarray | None = None,
) -> Curve:
    """The fit at every width 1..D to features phi (n, D) and targets y (n, k), tested on psi (m, D) and targets (m, k).

    float64 throughout. A feature that is 0 on all training rows changes nothing. At ridge 0, where a feature within the
    first n depends on those before it (see WEAK), a ridge of FLOOR is used instead. Belkin et al. 2019, Mei & Montanari
    2019. UserError: shapes that do not agree, a negative ridge, values that are not finite.
    """
    _check(phi, y, psi, targets, ridge)
    used = np.flatnonzero((phi != 0).any(0))
    place = np.searchsorted(used, np.arange(1, phi.shape[1] + 1))  # how many used columns a width has
    rows = _distinct(phi, y)
    own = rows.phi if len(used) == phi.shape[1] else rows.phi[:, torch.from_numpy(used)]
    test = torch.from_numpy(np.asarray(psi, np.float64))
    test = test if len(used) == phi.shape[1] else test[:, torch.from_numpy(used)]
    asked = place[np.asarray(at, dtype=int) - 1] if at is not None else np.zeros(0, int)
    goal = torch.from_numpy(np.asarray(targets, np.float64)).T.contiguous()
    scores = _Scores(goal, frozenset(asked.tolist()))
    count, rank = len(phi), min(len(rows.phi), len(used))
    train, norm, effective = ([float((rows.y**2).sum())], [0.0], [0.0])
    if len(used):
        q, r = _first(own[:, :rank], ridge)
        if ridge == 0 and bool((r.diagonal().abs() < WEAK * own[:, :rank].norm(dim=0)).any()):
            ridge = FLOOR * float((own**2).sum(0).mean())
            q, r = _first(own[:, :rank], ridge)
        f = torch.zeros_like(goal)
        u = q.T @ rows.y
        scores.add(f, u, _solved(r, test[:, :rank].T))
        size = _squares(torch.zeros(u.T.shape, dtype=u.dtype), u, _solved(r, torch.eye(rank, dtype=r.dtype)))
        objective = train[0] - (u**2).sum(1).cumsum(0).numpy()
        norm += size.tolist()
        train += (objective - ridge * size).tolist()
        effective += (q**2).sum(0).cumsum(0).tolist()
    if len(used) > rank:
        for part in _wider(own, rows.y, test, rank, ridge, scores):
            for whole, new in zip((train, norm, effective), part, strict=True):
                whole += new.tolist()
    return Curve(
        np.array(scores.loss)[place],
        np.array(scores.error)[place],
        (np.maximum(train, 0)[place] + rows.within) / count,
        np.sqrt(np.maximum(norm, 0)[place]),
        np.array(effective)[place],
        np.stack([scores.outputs[k] for k in asked]) if len(asked) else np.zeros((0, *targets.shape)),
        place,
        ridge,
        len(rows.phi),
    )


def _first(phi: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """The part of Q with rows of phi (n, d), and R, of [phi; √ridge I]."""
    n, d = phi.shape
    if ridge:
        phi = torch.cat([phi, ridge**0.5 * torch.eye(d, dtype=phi.dtype)])
    q, r = torch.linalg.qr(phi)
    return q[:n], r


def _wider(
    phi: Tensor, y: Tensor, test: Tensor, start: int, ridge: float, scores: _Scores
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Score the widths beyond `start` = n; yields squared train error, squared norm and effective parameters (b,)."""
    n, wide = phi.shape
    q, r = _first(phi[:, :start].T, ridge)
    p = q.T @ test[:, :start].T
    step = min(max(n // 2, 32), 512)
    for low in range(start, wide, step):
        part, seen = phi[:, low : low + step], test[:, low : low + step].T
        b = part.shape[1]
        g, beta = _solved(r, part), _solved(r, y)
        s = torch.linalg.qr(torch.cat([g, torch.eye(b, dtype=g.dtype)]), mode="r").R
        u, v = _solved(s, g.T @ beta), _solved(s, seen - g.T @ p)
        scores.add(beta.T @ p, u, v)
        # YᵀMY with M = (ΦΦᵀ + ridge I)⁻¹ is the squared norm where nothing is left over, and |αridge|² is left over.
        whole = (beta**2).sum() - (u**2).sum(1).cumsum(0)
        if ridge:
            h = torch.linalg.solve_triangular(r, g, upper=True)
            h = torch.linalg.solve_triangular(s, h, upper=True, left=False)
            alpha = torch.linalg.solve_triangular(r, beta, upper=True)
            size = torch.from_numpy(_squares(alpha.T.contiguous(), -u, h.T))
            inverse = torch.linalg.solve_triangular(r, torch.eye(n, dtype=r.dtype), upper=True)
            trace = (inverse**2).sum() - (h**2).sum(0).cumsum(0)
            yield (ridge**2 * size).numpy(), (whole - ridge * size).numpy(), (n - ridge * trace).numpy()
        else:
            yield np.zeros(b), whole.numpy(), np.full(b, float(n))
        if low + b < wide:
            q, r = torch.linalg.qr(torch.cat([r, part.T]))
            p = q.T @ torch.cat([p, seen])


def _solved(r: Tensor, x: Tensor) -> Tensor:
    """R⁻ᵀ x for upper triangular R."""
    return torch.linalg.solve_triangular(r.T, x, upper=False)


def _squares(f: Tensor, u: Tensor, v: Tensor) -> np.ndarray:
    """Squared norms of f + Σ_(i<=j) u_i ⊗ v_i for every j; changes f (k, r)."""
    flat, out = f.view(-1), np.empty(len(u))
    for k, (one, other) in enumerate(zip(u, v, strict=True)):
        f.addr_(one, other)
        out[k] = float(torch.dot(flat, flat))
    return out


def _distinct(phi: np.ndarray, y: np.ndarray) -> _Rows:
    """Equal rows as one of their joint weight: the same least squares, without the rank that they take away."""
    phi, y = np.asarray(phi, np.float64), np.asarray(y, np.float64)
    mark = phi @ np.random.default_rng(0).normal(
        size=phi.shape[1]
    )  # equal rows have nearly equal marks: cheap to rule out
    gaps = np.diff(np.sort(mark))
    if len(phi) < 2 or gaps.min() > 1e-12 * np.abs(mark).max():
        return _Rows(torch.from_numpy(phi), torch.from_numpy(y), 0.0)
    rows, which, counts = np.unique(phi, axis=0, return_inverse=True, return_counts=True)
    sums = np.zeros((len(rows), y.shape[1]))
    np.add.at(sums, which, y)
    root = np.sqrt(counts)[:, None]
    within = float((y**2).sum() - ((sums / root) ** 2).sum())
    return _Rows(torch.from_numpy(rows * root), torch.from_numpy(sums / root), max(within, 0.0))


def _check(phi: np.ndarray, y: np.ndarray, psi: np.ndarray, targets: np.ndarray, ridge: float) -> None:
    agree = len(phi) == len(y) and len(psi) == len(targets) and phi.shape[1:] == psi.shape[1:]
    if phi.ndim != 2 or y.ndim != 2 or y.shape[1:] != targets.shape[1:] or not agree:
        shapes = ", ".join(str(a.shape) for a in (phi, y, psi, targets))
        raise UserError(
            f"wanted features (n, D), targets (n, k), test features (m, D), test targets (m, k): got {shapes}"
        )
    if not len(phi) or not len(psi) or not phi.shape[1]:
        raise UserError(f"wanted at least one feature, training and test row: got {phi.shape} and {psi.shape}")
    if not ridge >= 0:
        raise UserError(f"ridge {ridge}: wanted at least 0")
    for name, x in (("features", phi), ("targets", y), ("test features", psi), ("test targets", targets)):
        if not np.isfinite(x).all():
            row = int(np.flatnonzero(~np.isfinite(x).all(1))[0])
            raise UserError(f"the {name} of row {row} are not all finite: drop the row or fill in its values")


def needed(n: int, width: int, m: int, k: int, *, at: int = 0) -> int:
    """Bytes that `curve` and its arguments take at most: n training and m test rows, outputs kept at `at` widths."""
    step = min(max(n // 2, 32), 512)
    return 8 * (width * (n + m) + m * (3 * min(n, width) + 3 * step + 4 * k + at * k) + 8 * (n + step) ** 2)


def kernel_curve(
    gram: np.ndarray, y: np.ndarray, cross: np.ndarray, targets: np.ndarray, ridge: float
) -> tuple[np.ndarray, np.ndarray]:
    """Test loss and error (n,) of kernel ridge regression on the first 1..n training rows, from one Cholesky factor.

    gram (n, n) and cross (n, m) are kernels of the training rows with themselves and with the test rows; y (n, k),
    targets (m, k). With K + ridge I = LLᵀ, f_n = Σ_(i<=n) (L⁻¹cross)_i ⊗ (L⁻¹y)_i. UserError: K + ridge I is singular.
    """
    factor, info = torch.linalg.cholesky_ex(torch.from_numpy(gram + ridge * np.eye(len(gram))))
    if int(info):
        raise UserError(f"the kernel of the first {int(info)} rows is singular at ridge {ridge}: give a larger ridge")
    u, v = (torch.linalg.solve_triangular(factor, torch.from_numpy(a), upper=False) for a in (y, cross))
    scores = _Scores(torch.from_numpy(targets).T.contiguous(), frozenset())
    scores.add(torch.zeros_like(scores.targets), u, v)
    return np.array(scores.loss[1:]), np.array(scores.error[1:])


@dataclass(frozen=True)
class Draw:
    """Random features of inputs (n, p), the first d of which are the same for any `width` >= d (Rahimi & Recht 2007).

    With w ~ N(0, I/p): max(w·x, 0), or √2 cos(w·x + b) with b uniform on the circle. Without 1/√width, so that the
    features are nested; a ridge on w then stands for itself times the width elsewhere.
    """

    kind: Kind
    p: int
    width: int
    seed: int

    def __call__(self, x: np.ndarray) -> np.ndarray:
        w = seeds.numpy(self.seed, "weights").normal(size=(self.width, self.p)) / self.p**0.5
        inner = torch.from_numpy(np.asarray(x, np.float64)) @ torch.from_numpy(w).T
        if self.kind == "relu":
            return inner.relu_().numpy()
        phase = seeds.numpy(self.seed, "phases").uniform(0, 2 * np.pi, self.width)
        return inner.add_(torch.from_numpy(phase)).cos_().mul_(2**0.5).numpy()
