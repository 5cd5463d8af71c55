"""The kernels interpreted on the processor, compiled for GPUs that are not here, and run on the one that is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import peer
from torch._subclasses import FakeTensorMode

from modicum.maths.kernels import log_sums as fused

CHECKS = Path(__file__).with_name("kernel_checks.py")


@pytest.fixture
def triton() -> Any:
    return peer("triton")


def checked(interpret: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--durations=3", str(CHECKS)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": interpret}, timeout=300
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_interpreted(triton: Any) -> None:
    checked("1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the kernels were only interpreted")
def test_on_the_device(triton: Any) -> None:
    checked("0")


@pytest.mark.parametrize(("dtype", "capability"), [("fp32", 90), ("bf16", 80)])
@pytest.mark.parametrize("name", ["sums", "gradients"])
def test_compiled_for_a_gpu(
    triton: Any, name: str, dtype: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Much that is interpreted is no Triton for a GPU. Products of float32 are not left to tensor cores."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from modicum.maths.kernels import launch, tiles

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(tiles, name)
    known = {**dict.fromkeys(("a", "b", "values"), f"*{dtype}"), **dict.fromkeys(("a_groups", "b_groups"), "*i64")}
    known.update(dict.fromkeys(("factor", "results", "a_stats", "b_stats"), "*fp32"))
    kinds = {p.name: "constexpr" if p.is_constexpr else known.get(p.name, "i32") for p in kernel.params}
    precision = "ieee" if dtype == "fp32" else "tf32"
    fixed = {**launch.TILE, "BD": 32, "SYMMETRIC": True, "RIVALS": False, "PRECISION": precision}
    source = ASTSource(kernel, kinds, {k: v for k, v in fixed.items() if k in kinds})
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(launch.OPTIONS))
    assert made.asm["cubin"]
    assert ("mma" in made.asm["ptx"]) == (dtype == "bf16")


def test_where_they_are_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch.cuda.is_available() or not fused.works()
    monkeypatch.setattr(fused, "works", lambda: True)
    assert not fused.usable(torch.ones(3, 4), None)
    with FakeTensorMode():
        x = torch.ones(3, 4, device="cuda")
        assert fused.usable(x, None)
        assert fused.usable(x.half(), torch.ones(2, 4, device="cuda").half())
        for y in (x.double(), torch.ones(3, 4), *(torch.ones(s, device="cuda") for s in ((3, 5), (0, 4)))):
            assert not fused.usable(x, y)
        for shape in ((0, 4), (3, 0), (3, fused.WIDEST + 1)):
            assert not fused.usable(torch.ones(shape, device="cuda"), None)
        assert not fused.usable(x.double(), None)
        monkeypatch.setattr(fused, "works", lambda: False)
        assert not fused.usable(x, None)
