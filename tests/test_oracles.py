"""Least squares against exact answers: its risk, its leave-one-out errors, its path of descent, its widths (O1-O9).

docs/oracles.md lists every oracle with the test that holds it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from estimates import decomposed, near

from modicum.core.errors import Warned
from modicum.diagnostics import _features
from modicum.diagnostics.random_features import random_features
from modicum.maths.decomposition import Decomposition
from modicum.maths.feature_theory import theory
from modicum.maths.random_features import Draw, curve
from modicum.training.many import Member, Work, train
from modicum.training.transfer import RIDGES, _ridge


@pytest.fixture(autouse=True, scope="module")
def few_rows_for_the_theory() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_features, "POPULATION", 300)
        yield


# O1 at the threshold


def gaussian(rng: np.random.Generator, p: int, n: int = 20, d: int = 60, draws: int = 8) -> Decomposition:
    """Least squares on p of d Gaussian columns, on several draws of n rows, decomposed on 100 test rows."""
    w, outputs = rng.normal(size=d) / d**0.5, []
    test = rng.normal(size=(100, d))
    for _ in range(draws):
        x = rng.normal(size=(n, d))
        y = x @ w + 0.7 * rng.normal(size=n)
        outputs.append(curve(x[:, :p], y[:, None], test[:, :p], (test @ w)[:, None], at=np.array([p])).outputs[0])
    return decomposed(np.stack(outputs), test @ w)


def test_an_infinite_mean_is_warned_of_and_medians_are_given() -> None:
    """O1: at p = n-1..n+1 the expected loss is infinite. Eight draws mostly show it at n, often beside
    it, and next to never at n/2 and 3n.
    """
    rng = np.random.default_rng(0)
    warned, ratio = {}, {}
    for p in (10, 19, 20, 21, 60):
        found = [gaussian(rng, p) for _ in range(30)]
        warned[p] = np.mean([d.warning != "" for d in found])
        ratio[p] = np.mean([d.loss.mean for d in found]) / np.median([d.medians["model"] for d in found])
        assert all("read the medians" in d.warning for d in found if d.warning)
    assert warned[20] > 0.4
    assert min(warned[19], warned[21]) > 0.05
    assert max(warned[10], warned[60]) < 0.05
    assert ratio[20] > 5
    assert min(ratio[19], ratio[21]) > 1.5
    assert max(ratio[10], ratio[60]) < 1.2


def test_the_diagnostic_calls_its_threshold_heavy_tailed() -> None:
    """Medians over 8 draws with the draws that hold them, widths with tails named, bias² below 0 shown as it is."""
    found = random_features("digits", limit=40, widths=120, draws=8, ridges=0, features="cosine")
    at = found.facts["threshold"]
    assert at == 40
    heavy = found.facts["heavy tails at widths"]
    assert 40 in heavy
    assert set(heavy) & {39, 41}
    assert all(30 < width < 50 for width in heavy)
    assert "tails are heavy, and means over draws say little there" in found.words
    row = found.rows[at - 1]
    assert row["test loss low"] < row["test loss"] < row["test loss high"] <= row["worst test loss"]
    assert all(np.isfinite(v) for r in found.rows for k, v in r.items() if v is not None)


# O2 below the threshold


def excess(rng: np.random.Generator, n: int, p: int, noise: float, r: float) -> float:
    """|ŵ - w|² of least squares on isotropic rows, exactly: on test rows e_1 .. e_p it is p times the loss."""
    w = rng.normal(size=p)
    w *= r / np.linalg.norm(w)
    x = rng.normal(size=(n, p))
    y = x @ w + noise**0.5 * rng.normal(size=n)
    return p * float(curve(x, y[:, None], np.eye(p), w[:, None]).loss[-1])


@pytest.mark.parametrize("gamma", [0.2, 0.5, 0.75, 1.5, 2.5])
def test_excess_risk_of_isotropic_least_squares(gamma: float) -> None:
    """O2 (Hastie et al. 2019): σ²γ/(1-γ) below n rows, whatever w is; r²(1-1/γ) + σ²/(γ-1) above."""
    n, noise, r = 200, 0.6, 1.5
    below = gamma < 1
    truth = noise * gamma / (1 - gamma) if below else r**2 * (1 - 1 / gamma) + noise / (gamma - 1)
    rng = np.random.default_rng(1)
    near([excess(rng, n, int(gamma * n), noise, r) for _ in range(40 if below else 20)], truth)
    size = int(gamma * n)
    said = theory(np.ones(size), np.full(size, r**2 / size), n, np.inf, 1e-9 if below else 0.0, noise).loss - noise
    assert said == pytest.approx(truth, rel=1e-6)


# O4's training loss


@pytest.mark.parametrize(("size", "delta"), [(60, 0.3), (150, 0.3), (150, 3.0)])
def test_training_loss_of_anisotropic_ridge(size: int, delta: float) -> None:
    """O4: train = (δ / nκ)² test, both with the noise; within 4 standard errors and 1 %."""
    n, noise = 100, 0.4
    values = 1 / np.arange(1, size + 1) ** 0.8
    b = np.random.default_rng(2).normal(size=size)
    said = theory(values, values * b**2, n, np.inf, delta, noise)
    kappas = values * (1 - said.learned) / said.learned
    assert kappas == pytest.approx(kappas[0], rel=1e-9)
    expected = (delta / (n * kappas[0])) ** 2 * said.loss
    found = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(n, size)) * values**0.5
        y = (x @ b + rng.normal(size=n) * noise**0.5)[:, None]
        found.append(curve(x, y, x[:1], y[:1], ridge=delta).train[-1])
    error = np.std(found, ddof=1) / len(found) ** 0.5
    assert abs(np.mean(found) - expected) < 4 * error + 0.01 * expected


# O6 linear smoothers


@pytest.mark.parametrize(("width", "ridge"), [(12, 0.0), (90, 0.0), (25, 0.5), (90, 2.0)])
def test_smoothers_variance_and_leave_one_out(width: int, ridge: float) -> None:
    """O6: fitting the identity gives the smoother; σ²|s(x)|² is the variance of fits to fresh noise, its trace the
    effective parameters, and eᵢ/(1-Hᵢᵢ) the error of the fit without row i (which needs e != 0: not at width > n).
    """
    rng = np.random.default_rng(3)
    n, m, sd = 30, 8, 0.7
    draw = Draw("relu", 5, width, 0)
    phi, psi = draw(rng.normal(size=(n, 5))), draw(rng.normal(size=(m, 5)))
    both, at = np.concatenate([phi, psi]), np.array([width])
    found = curve(phi, np.eye(n), both, np.zeros((n + m, n)), ridge=ridge, at=at)
    hat, smoother = found.outputs[0][:n], found.outputs[0][n:]
    assert found.effective[-1] == pytest.approx(np.trace(hat), rel=1e-9)
    noise = sd * rng.normal(size=(n, 4000))
    fits = curve(phi, noise, psi, np.zeros((m, 4000)), ridge=ridge, at=at).outputs[0]
    for row, own in zip(fits, smoother, strict=True):
        near(row**2, sd**2 * (own**2).sum())
    if width > n and not ridge:
        assert np.allclose(hat, np.eye(n), atol=1e-7)
        return
    y = rng.normal(size=(n, 1))
    left = (y - hat @ y)[:, 0] / (1 - np.diag(hat))
    for i in range(n):
        rest = np.arange(n) != i
        alone = curve(phi[rest], y[rest], phi[i : i + 1], y[i : i + 1], ridge=ridge)
        assert alone.loss[-1] == pytest.approx(left[i] ** 2, rel=1e-7)


def test_the_head_of_numbers_has_the_penalty_of_least_leave_one_out_error() -> None:
    """O6 as finetune's linear head uses it: the mean of (eᵢ/(1-Hᵢᵢ))² for each penalty, the intercept in H."""
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(25, 12)), rng.normal(size=25)
    y += x[:, 0]
    centred, n = x - x.mean(0), len(x)
    errors = []
    for penalty in RIDGES:
        hat = 1 / n + centred @ np.linalg.solve(centred.T @ centred + penalty * np.eye(12), centred.T)
        errors.append((((y - hat @ y) / (1 - np.diag(hat))) ** 2).mean())
    found: Any = _ridge(None).fit(x, y)
    assert found.alpha_ == RIDGES[int(np.argmin(errors))]
    assert -found.best_score_ == pytest.approx(min(errors), rel=1e-9)


# O7 the path of gradient descent


def descent(rates: list[float], steps: int, at: list[int]) -> Any:
    """Linear models trained by full-batch descent, and the loss's mean, curvature and targets with a column of ones."""
    rng = np.random.default_rng(5)
    n, p = 40, 12
    x = rng.normal(size=(n + 20, p)) * np.geomspace(1, 0.1, p)
    y = x @ rng.normal(size=p) + 0.3 * rng.normal(size=n + 20)
    work = Work.of_features(x, y, 0, optimizer="sgd", momentum=0.0, dtype=torch.float64)
    wide = np.concatenate([x, np.ones((n + 20, 1))], 1)
    top = np.linalg.eigvalsh(2 / n * wide[:n].T @ wide[:n])[-1]
    own: dict[str, Any] = {"encoder": "mlp(depth=0, norm='none')", "batch": n, "steps": steps, "schedule": "constant"}
    members = [Member(np.arange(n), lr=rate / top, **own) for rate in rates]
    return wide, (y - work.scale[0]) / work.scale[1], top, train(members, work, at=at)


def weights(reading: Any, k: int) -> np.ndarray:
    head: Any = reading.member(k).head
    return np.append(head.weight.detach().numpy()[0], head.bias.detach().numpy())


def test_the_path_of_gradient_descent() -> None:
    """O7: w_t = V [(1 - (1 - ηs²)^t)/s] Uᵀy/√n with s of X/√n and η twice the rate (the loss is a mean of squares)."""
    n, rates, seen = 40, [0.4, 1.0, 1.98], []
    wide, y, top, readings = descent(rates, 1000, [1, 7, 60])
    u, s, vt = np.linalg.svd(wide[:n] / n**0.5, full_matrices=False)
    for reading in readings:
        seen.append(reading.step)
        for k, number in enumerate(reading.numbers):
            eta = 2 * rates[number] / top
            exact = vt.T @ ((1 - (1 - eta * s**2) ** reading.step) / s * (u.T @ y[:n])) / n**0.5
            found = weights(reading, k)
            np.testing.assert_allclose(found, exact, rtol=0, atol=1e-9 * abs(exact).max())
            error = (((wide @ found - y)[n:] ** 2).mean(), ((wide @ exact - y)[n:] ** 2).mean())
            assert error[0] == pytest.approx(error[1], rel=1e-9)
    assert seen == [1, 7, 60, 1000]


def test_gradient_descent_diverges_beyond_two_over_the_curvature() -> None:
    """O7: below ηλ = 2 the distance along the steepest direction shrinks by |1 - ηλ| a step, above it grows; and where
    numbers overflow, a warning says which member's.
    """
    n = 40
    wide, y, _, readings = descent([1.98, 2.02], 300, [100])
    best = np.linalg.lstsq(wide[:n], y[:n], rcond=None)[0]
    axis = np.linalg.svd(wide[:n])[2][0]
    off = {r.step: [abs(axis @ (weights(r, k) - best)) for k in range(2)] for r in readings}
    assert off[300][0] / off[100][0] == pytest.approx(0.98**200, rel=1e-6)
    assert off[300][1] / off[100][1] == pytest.approx(1.02**200, rel=1e-6)
    with pytest.warns(Warned, match="1 of 2 members diverged .number 1.: their weights are not finite"):
        list(descent([1.0, 3.0], 1100, [])[-1])


# O9b the Cholesky form


def test_the_curve_is_that_of_the_cholesky_form() -> None:
    """O9b, another algorithm: up to n within 0.3 % at the peak with λ = 1e-11 of the mean diagonal, while 1e-6 flattens
    it; beyond n exact with K grown by blocks of features.
    """
    rng = np.random.default_rng(8)
    n, wide, m = 120, 300, 60
    draw = Draw("relu", 15, wide, 8)
    x = rng.normal(size=(n + m, 15))
    y = np.sin(x @ rng.normal(size=(15, 2))) + 0.2 * rng.normal(size=(n + m, 2))
    phi, psi, y, t = draw(x[:n]), draw(x[n:]), y[:n], y[n:]
    found = curve(phi, y, psi, t)

    def losses(share: float) -> np.ndarray:
        gram = phi[:, :n].T @ phi[:, :n]
        factor = np.linalg.cholesky(gram + share * np.diag(gram).mean() * np.eye(n))
        u, p = np.linalg.solve(factor, phi[:, :n].T @ y), np.linalg.solve(factor, psi[:, :n].T)
        f = np.cumsum(p[:, :, None] * u[:, None], 0)
        return ((f - t) ** 2).sum(-1).mean(1)

    low = losses(1e-11)
    assert int(found.loss.argmax()) + 1 == n
    assert found.loss[n - 1] > 3000
    assert low == pytest.approx(found.loss[:n], rel=3e-3)
    assert low[: n // 2] == pytest.approx(found.loss[: n // 2], rel=1e-6)
    assert losses(1e-6)[n - 1] < 300
    gram, cross = phi[:, :n] @ phi[:, :n].T, psi[:, :n] @ phi[:, :n].T
    for low_width in range(n, wide, 30):
        block = slice(low_width, low_width + 30)
        gram, cross = gram + phi[:, block] @ phi[:, block].T, cross + psi[:, block] @ phi[:, block].T
        factor = np.linalg.cholesky(gram)
        f = cross @ np.linalg.solve(factor.T, np.linalg.solve(factor, y))
        assert ((f - t) ** 2).sum(1).mean() == pytest.approx(found.loss[block.stop - 1], rel=1e-9)


def test_the_page_of_oracles_names_tests_that_exist() -> None:
    folder = Path(__file__).parent
    page = (folder.parent / "docs/oracles.md").read_text("utf-8")
    here = "".join(p.read_text("utf-8") for p in folder.glob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) > 25
    missing = [n for n in named if f"def {n}(" not in here and not (folder / f"{n}.py").exists()]
    assert not missing, missing
