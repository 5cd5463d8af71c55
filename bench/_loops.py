"""The plain PyTorch loop that bench/many.py compares with: one model after the other, everything warm."""

from __future__ import annotations

import time

import torch
from torch import nn
from torch.nn import functional as F


def perceptron(inputs: int, width: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(inplace=True), nn.Linear(width, classes))


def loop(model: nn.Module, x: torch.Tensor, y: torch.Tensor, batch: int, steps: int, optimizer: str) -> float:
    """Seconds a step of one model, after a few steps to warm up."""
    if optimizer == "sgd":
        moves: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9, fused=True)
    else:
        moves = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    order = torch.cat([torch.randperm(len(x)) for _ in range(-(-batch * (steps + 10) // len(x)))])
    for step in range(steps + 10):
        if step == 10:
            began = time.perf_counter()
        rows = order[step * batch : (step + 1) * batch]
        loss = F.cross_entropy(model(x[rows]), y[rows])
        moves.zero_grad(set_to_none=True)
        loss.backward()
        moves.step()
    return (time.perf_counter() - began) / steps


def loops(inputs: int, widths: list[int], classes: int, n: int, batch: int, steps: int, optimizer: str) -> float:
    """Seconds that perceptrons of these widths take a step each, one after the other, with one thread (for joblib)."""
    torch.set_num_threads(1)
    x, y = torch.randn(n, inputs), torch.randint(0, classes, (n,))
    return sum(loop(perceptron(inputs, w, classes), x, y, batch, steps, optimizer) for w in widths)
