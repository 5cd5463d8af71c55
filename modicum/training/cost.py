"""What a trunk costs on this machine: parameters, FLOPs, rates and memory."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from modicum.core import seeds
from modicum.core.types import Edges, Tokens, Trunk

BATCH, ROUNDS = 64, 3


@dataclass(frozen=True)
class Cost:
    """`flops` of one sample's forward pass; samples a second `forward` and `training`; `memory` in bytes.

    A multiplication and an addition are two FLOPs, of matrix products, convolutions and attention (what else there is,
    is not counted). Training is forward and backward. Memory is the peak of what a training step of BATCH samples
    allocates: activations and gradients, without the weights.
    """

    flops: int
    forward: float
    training: float
    memory: int


def example(trunk: Trunk, batch: int) -> Tokens:
    """Random tokens for a trunk; with a ring of edges where it works on edges."""
    t, device = math.prod(trunk.grid), next(trunk.parameters()).device
    x = torch.randn((batch, t, trunk.dim), generator=seeds.generator(0, "example")).to(device)
    if "edges" not in trunk.can:
        return Tokens(x, None, trunk.grid)
    node = torch.arange(batch * t, device=device)
    after = torch.where((node + 1) % t == 0, node + 1 - t, node + 1)
    ends = torch.cat([torch.stack([node, after]), torch.stack([after, node])], 1)
    width = getattr(trunk, "edge_dim", 0)
    about = torch.randn((ends.shape[1], width), generator=seeds.generator(0, "edges")).to(device) if width else None
    return Tokens(x, None, trunk.grid, Edges(ends, about))


def cost(trunk: Trunk) -> Cost:
    """Measure a trunk on its device, at its own grid."""
    tokens, one = example(trunk, BATCH), example(trunk, 1)
    trunk.train()

    def step() -> None:
        trunk.zero_grad(set_to_none=True)
        trunk(tokens).x.square().mean().backward()

    with seeds.forked(0, "dropout"):
        training = _rate(step)
        trunk.zero_grad(set_to_none=True)
        memory = _peak(step, tokens.x.device)
        trunk.zero_grad(set_to_none=True)
        trunk.eval()
        with torch.no_grad():
            forward = _rate(lambda: trunk(tokens))
            flops = _flops(lambda: trunk(one))
    return Cost(flops, forward, training, memory)


def _flops(call: Callable[[], object]) -> int:
    """FLOPs of a call; fused kernels hide what they compute, so the same is counted through the plain ones."""
    fused = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.set_flags(_enabled=False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call()
    finally:
        torch.backends.mkldnn.set_flags(_enabled=fused)
    return counter.get_total_flops()


def _rate(call: Callable[[], object]) -> float:
    """Samples a second of the fastest of a few calls after one to warm up."""
    best = math.inf
    for _ in range(1 + ROUNDS):
        _wait()
        began = time.perf_counter()
        call()
        _wait()
        best = min(best, time.perf_counter() - began)
    return BATCH / best


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak(call: Callable[[], object], device: torch.device) -> int:
    """The most bytes that were allocated at once during a call, above those before it."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler talks on stderr
    with profile(profile_memory=True) as seen:
        call()
    assert seen.profiler is not None
    events = seen.profiler.kineto_results.events()
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()) if e.name() == "[memory]"]
    live = most = 0
    for size in sizes:
        live += size
        most = max(most, live)
    return most
