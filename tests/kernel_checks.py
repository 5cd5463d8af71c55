"""What the kernels compute, against the blockwise losses in float64: run by test_kernels.py in a process of its own.

Triton decides when it is imported whether it interprets on the processor or compiles for a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_losses_contrastive import LABELS, TWINS, Loss, drawn, pairs, results
from torch import Tensor
from torch.nn import functional as F

from modicum.maths import blockwise
from modicum.maths.contrastive import nt_xent, supcon
from modicum.maths.kernels import launch
from modicum.maths.kernels import log_sums as fused

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
OURS: dict[str, Loss] = {
    **{name: ours for name, (ours, _) in TWINS.items()},
    "supcon": lambda x, y, s: supcon(x + y, LABELS.to(x.device), 1 / s.double()),
}
FUSED = sorted(OURS.keys() - {"siglip"})


@pytest.fixture(autouse=True)
def _chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        monkeypatch.setattr(fused, "usable", lambda x, y: x.dtype in fused.DTYPES)
        monkeypatch.setattr(launch, "PROGRAMS", 1)


def rows(n: int, d: int, seed: int = 0) -> Tensor:
    return F.normalize(drawn(n, d, seed=seed), dim=1)


def values_and_gradients(
    sums: Callable[..., tuple[Tensor, ...]], x: Tensor, y: Tensor | None, scale: float, groups: Any, **how: bool
) -> list[Tensor]:
    """The three results, and the gradients of a fixed weighting of them."""
    leaves = [v.clone().requires_grad_() for v in (x, torch.tensor(scale, dtype=torch.float64, device=x.device))]
    if y is not None:
        leaves.append(y.clone().requires_grad_())
    found = sums(leaves[0], leaves[2] if y is not None else None, leaves[1], groups, **how)
    weighted = [(v * torch.linspace(-1, 2, len(v), device=v.device)).nan_to_num(neginf=0).sum() for v in found]
    gradients = torch.autograd.grad(torch.stack(weighted).sum(), leaves)
    return [v.detach().double().cpu() for v in (*found, *gradients)]


HOW: dict[str, dict[str, bool]] = {
    "one way": {},
    "both ways": {"both": True, "pull": True},
    "itself": {"pull": True},
    "rivals": {"pull": True, "rivals": True},
    "all with all": {},
}


def made(how: str, n: int, m: int, d: int) -> tuple[Tensor, Tensor | None, Any]:
    x, y = rows(n, d), rows(m, d, seed=1)
    groups = torch.arange(n) // 3, torch.arange(m) // 3
    if how in ("itself", "rivals", "all with all"):
        return x, None, None if how == "all with all" else (groups[0], groups[0])
    return x, y, None if how == "one way" else groups


def compared(how: str, n: int, m: int, d: int, scale: float, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    x, y, groups = made(how, n, m, d)
    x, y = x.to(dtype), None if y is None else y.to(dtype)
    exact = blockwise.log_sums
    wanted = values_and_gradients(exact, x.double(), None if y is None else y.double(), scale, groups, **HOW[how])
    there = None if groups is None else tuple(g.to(DEVICE) for g in groups)
    y = None if y is None else y.to(DEVICE)
    return list(
        zip(values_and_gradients(fused.log_sums, x.to(DEVICE), y, scale, there, **HOW[how]), wanted, strict=True)
    )


@pytest.mark.parametrize(
    ("size", "scale"),
    [((1, 1, 1), 1.0), ((2, 3, 5), 100.0), ((70, 33, 17), 1.0), ((70, 33, 17), 100.0), ((64, 64, 16), 20.0)],
)
@pytest.mark.parametrize("how", HOW)
def test_sums_and_gradients(
    how: str, size: tuple[int, int, int], scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes that fill tiles and that do not, one and more of them in rows, columns, width and a part of the columns."""
    monkeypatch.setattr(launch, "PROGRAMS", 2)
    for found, wanted in compared(how, *size, scale, torch.float32):
        torch.testing.assert_close(found, wanted, rtol=2e-5, atol=4e-6 * scale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("how", ["both ways", "itself"])
def test_rows_of_16_bits(how: str, dtype: torch.dtype) -> None:
    """Sums as exact as of float32; gradients are rounded to 16 bits."""
    found = compared(how, 70, 33, 17, 20.0, dtype)
    for ours, wanted in found[:3]:
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=2e-5)
    for ours, wanted in found[3:]:
        torch.testing.assert_close(ours, wanted, rtol=2 * torch.finfo(dtype).eps, atol=0.01)


@pytest.mark.parametrize(("scale", "noise"), [(2.0, 1.0), (100.0, 0.05)])
@pytest.mark.parametrize("name", ["both ways", "queue", "nt_xent", "supcon"])
def test_float32_is_no_worse_than_the_textbooks(name: str, scale: float, noise: float) -> None:
    """As the test of this name of the blockwise losses, with fewer draws."""
    book, draws = TWINS[name][1], 4 if INTERPRETED else 12
    errors = torch.zeros(2, 4, dtype=torch.float64)
    for seed in range(draws):
        given = pairs(41, scale, seed, noise)
        exact = results(book, given, torch.float64)
        ours = results(OURS[name], tuple(g.to(DEVICE) for g in given), torch.float32)
        for k, found in enumerate((ours, results(book, given, torch.float32))):
            errors[k] += torch.stack([(f.cpu() - e).square().sum() for f, e in zip(found, exact, strict=True)])
    rounding = torch.stack([draws * e.square().sum() * 2.0**-48 for e in exact])
    assert (errors[0] <= 4 * errors[1] + rounding).all(), (errors[0] / errors[1]).sqrt()


@pytest.mark.parametrize("views", [2, 3])
def test_nt_xent_of_views(views: int) -> None:
    z = drawn(views, 25, 5)
    found = [z.clone().to(DEVICE).requires_grad_(), z.double().requires_grad_()]
    losses = [nt_xent(v, 0.1) for v in found]
    gradients = [torch.autograd.grad(loss, v)[0].double().cpu() for loss, v in zip(losses, found, strict=True)]
    torch.testing.assert_close(losses[0].double().cpu(), losses[1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


def test_the_losses_run_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward, all but the sigmoid loss."""
    called: list[str] = []
    for kernel in ("sums", "gradients"):
        real = getattr(launch, kernel)
        monkeypatch.setattr(launch, kernel, lambda *a, _real=real, _name=kernel: called.append(_name) or _real(*a))
    wanted = {"both ways": 4, "one way": 3, "queue": 3, "nt_xent": 2, "supcon": 2, "siglip": 0}
    for name, ours in OURS.items():
        called.clear()
        results(ours, tuple(g.to(DEVICE) for g in pairs(41, 20.0, seed=4)), torch.float32)
        assert len(called) == wanted[name], (name, called)


def test_where_nothing_is_summed() -> None:
    """All rows are of one group: -inf, and no gradient."""
    x, group = rows(9, 4).to(DEVICE).requires_grad_(), torch.zeros(9, dtype=torch.long, device=DEVICE)
    scale = torch.tensor(5.0, device=DEVICE)
    sums, _, _ = blockwise.log_sums(x, None, scale, (group, group))
    assert sums.isneginf().all()
    assert not torch.autograd.grad(sums.exp().sum(), x)[0].any()


@pytest.mark.skipif(INTERPRETED, reason="the interpreter runs one program after the other")
def test_the_same_every_time() -> None:
    x, y, s = (v.to(DEVICE) for v in pairs(3000, 20.0, seed=7))
    first, second = (results(OURS["both ways"], (x, y, s), torch.float32) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["both ways", "supcon"])
def test_what_autograd_asks_for(name: str) -> None:
    x, y, s = (v.to(DEVICE) for v in pairs(41, 20.0, seed=5))
    leaves = [v.clone().requires_grad_() for v in (x, y, s)]
    wanted = torch.autograd.grad(OURS[name](*leaves), leaves)
    torch.testing.assert_close(torch.func.grad(OURS[name], (0, 1, 2))(x, y, s), wanted)
    gradient = torch.autograd.grad(OURS[name](*leaves), leaves[0], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="only once"):
        gradient.sum().backward()


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # of NumPy, which interprets
def test_nan_is_not_hidden() -> None:
    x, y, s = (v.to(DEVICE) for v in pairs(41, 20.0, seed=6))
    x[3, 2] = torch.nan
    for name in FUSED:
        assert OURS[name](x, y, s).isnan()


@pytest.mark.skipif(INTERPRETED, reason="the memory of a GPU")
def test_memory_is_that_of_the_rows() -> None:
    """Of 16,384 rows the matrix would be 1 GB."""
    x, y = (rows(16384, 64, seed).to(DEVICE).requires_grad_() for seed in (0, 1))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    OURS["both ways"](x, y, torch.tensor(20.0, device=DEVICE)).backward()
    assert torch.cuda.max_memory_allocated() - before < 100 * 2**20
