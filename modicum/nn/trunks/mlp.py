"""`mlp`: the multilayer perceptron, over the whole sample or over each token of a set."""

from __future__ import annotations

import math
from typing import final

from torch import Tensor, nn

from modicum.core.errors import UserError, unknown
from modicum.core.types import Layers, Tokens, Trunk
from modicum.nn.layers import activation, norm1d


class Dense(nn.Module):
    """Linear, norm, activation, dropout on the last axis."""

    def __init__(self, dim: int, width: int, norm: str, act: str, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, width)
        self.norm = norm1d(norm, width)
        self.act = activation(act)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        # Flat before the activation, which is in place: on a view its gradient would be copied once more.
        y = self.norm(self.linear(x.flatten(0, -2)))
        return self.dropout(self.act(y)).view(*x.shape[:-1], -1)


class Unflatten(nn.Module):
    """Code (b, code) -> tokens (b, t, dim) through the mirrored widths."""

    def __init__(self, code: int, width: int, depth: int, tokens: int, dim: int, norm: str, act: str) -> None:
        super().__init__()
        self.tokens, self.dim = tokens, dim
        hidden = [Dense(width if k else code, width, norm, act, 0.0) for k in range(depth)]
        self.net = nn.Sequential(*hidden, nn.Linear(width if depth else code, tokens * dim))

    def forward(self, code: Tensor) -> Tensor:
        return self.net(code).view(-1, self.tokens, self.dim)


@final
class Mlp(Trunk):
    """`depth` dense layers of `width`: over="sample" flattens all tokens into one, over="set" treats each alone.

    With depth=0 the tokens are the features: a head on it is a linear model.

    With over="set" the output is permutation equivariant in the tokens and padding never changes real ones
    (norm "layer" or "none"; "batch" mixes tokens and is refused there).
    """

    def __init__(
        self,
        dim: int,
        grid: tuple[int, ...],
        width: int = 256,
        depth: int = 2,
        over: str = "sample",
        norm: str | None = None,
        act: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if over not in ("sample", "set"):
            raise unknown("mlp over", over, ["sample", "set"])
        if over == "set" and norm == "batch":
            raise unknown("norm for over='set'", "batch", ["layer", "none"])
        if width < 1 or depth < 0 or not 0 <= dropout < 1:
            raise UserError(
                f"mlp wants width of at least 1, depth >= 0 and 0 <= dropout < 1; got {width=}, {depth=}, {dropout=}"
            )
        self.dim, self.grid, self.width, self.depth = dim, tuple(grid), width, depth
        self.over, self.norm, self.act, self.dropout = over, norm, act, dropout
        used = norm or ("batch" if over == "sample" else "layer")
        start = dim if over == "set" else dim * math.prod(grid)
        self.net = nn.Sequential(*(Dense(width if k else start, width, used, act, dropout) for k in range(depth)))
        self.dim_out = width if depth else start
        self.grid_out = self.grid if over == "set" else (1,)
        self.can = frozenset({"stack"} | ({"padding", "any_length"} if over == "set" else set()))
        self._used = used

    def forward(self, tokens: Tokens) -> Tokens:
        if self.over == "set":
            return tokens._replace(x=self.net(tokens.x))
        x = tokens.x if tokens.mask is None else tokens.x.masked_fill(~tokens.mask.unsqueeze(-1), 0)
        return Tokens(self.net(x.flatten(1)).unsqueeze(1), None, self.grid_out)

    def layers(self) -> Layers:
        return {f"dense{k + 1}": [layer] for k, layer in enumerate(self.net)}

    def decoder(self, code: int) -> nn.Module:
        return Unflatten(code, self.width, self.depth, math.prod(self.grid), self.dim, self._used, self.act)
