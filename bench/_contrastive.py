"""One contestant of bench/contrastive.py in a process of its own: prints seconds a pass and the extra MB at its peak.

Run: python bench/_contrastive.py KIND NAME ROWS DIM SCALE ROUNDS THREADS SEED
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from modicum.maths.contrastive import info_nce, nt_xent


def pairs(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """Two products, one a direction (open_clip's form); cross-entropy of a transpose is 2.3 times slower."""
    x, y, target = F.normalize(x, dim=1), F.normalize(y, dim=1), torch.arange(len(x))
    return (F.cross_entropy(scale * x @ y.T, target) + F.cross_entropy(scale * y @ x.T, target)) / 2


def views(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    z = F.normalize(torch.cat([x, y]), dim=1)
    return F.cross_entropy((scale * z @ z.T).fill_diagonal_(-torch.inf), torch.arange(len(z)).roll(len(x)))


def lightly(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """Its loss without its packages of models, which import torchvision."""
    found = importlib.util.find_spec("lightly")
    assert found is not None
    assert found.origin is not None
    for name in ("models", "models.modules", "models.utils", "loss"):
        package = sys.modules.setdefault(f"lightly.{name}", ModuleType(f"lightly.{name}"))
        package.__path__ = [str(Path(found.origin).parent.joinpath(*name.split(".")))]
    vars(sys.modules["lightly.models"])["utils"] = sys.modules["lightly.models.utils"]
    loss: Tensor = importlib.import_module("lightly.loss.ntx_ent_loss").NTXentLoss(1 / scale.item())(x, y)
    return loss


def metric(name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def loss(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        library = importlib.import_module("pytorch_metric_learning.losses")
        found: Tensor = getattr(library, name)(1 / scale.item())(torch.cat([x, y]), torch.arange(len(x)).repeat(2))
        return found

    return loss


LOSSES: dict[str, dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "pairs": {"modicum": info_nce, "textbook": pairs},
    "views": {
        "modicum": lambda x, y, s: nt_xent(torch.stack([x, y]), 1 / s),
        "textbook": views,
        "lightly": lightly,
        "pytorch-metric-learning SupCon": metric("SupConLoss"),
        "pytorch-metric-learning NTXent": metric("NTXentLoss"),
    },
}


def status(key: str) -> float:
    """MB that /proc/self/status says."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(s.split()[1]) / 1e3 for s in lines if s.startswith(key + ":"))


def main() -> None:
    kind, name = sys.argv[1:3]
    rows, dim, rounds, threads, seed = (int(sys.argv[k]) for k in (3, 4, 6, 7, 8))
    torch.set_num_threads(threads)
    rng, loss = torch.Generator().manual_seed(seed), LOSSES[kind][name]
    scale = torch.tensor(float(sys.argv[5]), requires_grad=True)
    count = rows // 2 if kind == "views" else rows
    # A warm-up of a small batch, so that libraries are loaded before memory is measured.
    small = [torch.randn((64, dim), generator=rng, requires_grad=True) for _ in range(2)]
    loss(*small, scale).backward()
    x, y = (torch.randn((count, dim), generator=rng, requires_grad=True) for _ in range(2))
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # starts the record of the peak anew
    took, value = [], 0.0
    for _ in range(rounds):
        x.grad = y.grad = scale.grad = None
        began, used = time.perf_counter(), time.process_time()
        value_of = loss(x, y, scale)
        value_of.backward()
        took.append((time.perf_counter() - began, time.process_time() - used))
        value = value_of.item()
    print(json.dumps({"took": took, "extra": status("VmHWM") - before, "loss": value}))


if __name__ == "__main__":
    main()
