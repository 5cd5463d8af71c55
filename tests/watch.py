"""How large a tensor is ever made: for claims that a matrix of all pairs is not."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Watch(TorchDispatchMode):
    """Inside, `largest` is the most numbers that a tensor that was made has had."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else [out]:
            self.largest = max(self.largest, t.numel() if isinstance(t, Tensor) else 0)
        return out
