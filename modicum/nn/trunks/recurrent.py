"""`recurrent`: vanilla, LSTM and GRU networks over sequences of tokens, packed by their mask."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from modicum.core.errors import UserError, unknown
from modicum.core.types import Layers, Tokens, Trunk
from modicum.nn.encoder import pool

CELLS: dict[str, Callable[..., nn.Module]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}

State = tuple[Tensor, ...]
"""Of one layer: the hidden state (directions, b, width), and beside it the cell of an LSTM."""


def packing(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How the real tokens of a mask (b, t) of any pattern are packed, rows without any left out.

    The numbers of the flattened tokens, step by step; the rows they are of, longest first; the rows at each step.
    """
    b, t = mask.shape
    lengths = mask.sum(1)
    rows = lengths.argsort(descending=True, stable=True)[: int(lengths.count_nonzero())]
    real = mask.index_select(0, rows)
    step = (real.cumsum(1) - 1)[real]
    number = torch.arange(b * t, device=mask.device).view(b, t).index_select(0, rows)[real]
    return number[step.argsort(stable=True)], rows, step.bincount().cpu()


class Stack(nn.Module):
    """Recurrent layers with dropout between them: torch's own with num_layers=depth, as one module a layer.

    (b, t, dim), mask (b, t) -> states (b, t, sides·width), zero where masked, and every layer's state after the last
    real token. The mask may be of any pattern: real tokens follow one another as if there were none between.
    """

    def __init__(self, cell: str, dim: int, width: int, depth: int, bidirectional: bool, dropout: float) -> None:
        super().__init__()
        self.cell, self.width, self.sides = cell, width, 2 if bidirectional else 1
        self.cells = nn.ModuleList(
            CELLS[cell](width * self.sides if k else dim, width, batch_first=True, bidirectional=bidirectional)
            for k in range(depth)
        )
        self.dropout = nn.Dropout(dropout)
        self.shape = (depth, 2 if cell == "lstm" else 1, self.sides, width)

    def starts(self, flat: Tensor) -> list[State]:
        """Numbers (b, p), p the product of `shape`, as the states of all layers to start from."""
        state = flat.view(-1, *self.shape).permute(1, 2, 3, 0, 4).contiguous()
        return [tuple(layer) for layer in state]

    def forward(
        self, x: Tensor, mask: Tensor | None = None, state: list[State] | None = None
    ) -> tuple[Tensor, list[State]]:
        if mask is None:
            out, ends = self._run(x, state)
            return out, ends
        before = state or self.starts(x.new_zeros(len(x), math.prod(self.shape)))
        tokens, rows, sizes = packing(mask)
        if not len(tokens):
            return x.new_zeros(*mask.shape, self.sides * self.width), before
        packed = PackedSequence(x.flatten(0, 1).index_select(0, tokens), sizes)
        packed, ends = self._run(packed, [tuple(s.index_select(1, rows) for s in layer) for layer in before])
        out = packed.data.new_zeros(mask.numel(), self.sides * self.width).index_copy(0, tokens, packed.data)
        after = [
            tuple(old.to(new.dtype).index_copy(1, rows, new) for old, new in zip(*layer, strict=True))
            for layer in zip(before, ends, strict=True)
        ]
        return out.view(*mask.shape, -1), after

    def _run(self, x: Any, state: list[State] | None) -> tuple[Any, list[State]]:
        ends = []
        for k, cell in enumerate(self.cells):
            if k and self.dropout.p:
                x = x._replace(data=self.dropout(x.data)) if isinstance(x, PackedSequence) else self.dropout(x)
            given = None if state is None else state[k] if self.cell == "lstm" else state[k][0]
            x, end = cell(x, given)
            ends.append(end if isinstance(end, tuple) else (end,))
        return x, ends


class Additive(nn.Module):
    """States (b, t, d), mask (b, t) -> (b, d): their mean, weighted by softmax(v·tanh(Wx + c)) (Yang et al. 2016)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, 1, bias=False))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        score = self.score(x)
        if mask is not None:
            score = score.masked_fill(~mask.unsqueeze(-1), torch.finfo(score.dtype).min)
        return (score.softmax(1) * x).sum(1)


class Unroll(nn.Module):
    """Code (b, code) -> tokens (b, t, dim): the code starts the states and goes in at every step, beside its place."""

    def __init__(self, code: int, stack: Stack, tokens: int, dim: int) -> None:
        super().__init__()
        self.start = nn.Linear(code, math.prod(stack.shape))
        self.enter = nn.Linear(code, stack.width)
        self.place = nn.Parameter(torch.randn(tokens, stack.width))
        self.stack = stack
        self.out = nn.Linear(stack.sides * stack.width, dim)

    def forward(self, code: Tensor) -> Tensor:
        states = self.stack.starts(self.start(code).tanh())
        return self.out(self.stack(self.enter(code).unsqueeze(1) + self.place, state=states)[0])


class Attentive(nn.Module):
    """(targets (b, t, dim), memory) -> (b, t, dim_out): states that look up the memory (Luong et al. 2015, general).

    They start from the memory's mean; an output depends on the targets up to its own.
    """

    def __init__(self, stack: Stack, dim_out: int) -> None:
        super().__init__()
        self.start = nn.Linear(dim_out, math.prod(stack.shape))
        self.stack = stack
        self.query = nn.Linear(stack.width, dim_out, bias=False)
        self.out = nn.Linear(stack.width + dim_out, dim_out)

    def forward(self, targets: Tensor, memory: Tokens) -> Tensor:
        real = None if memory.mask is None else memory.mask[:, None, None]
        start = self.start(pool(memory.x, memory.mask)).tanh()
        x = self.stack(targets, state=self.stack.starts(start))[0]
        kept = memory.x.unsqueeze(1)
        found = F.scaled_dot_product_attention(self.query(x).unsqueeze(1), kept, kept, real).squeeze(1)
        return self.out(torch.cat([x, found], -1)).tanh()


@final
class Recurrent(Trunk):
    """`depth` recurrent layers of `width`, read token after token; a 2-d grid is read row by row.

    cell: "rnn" (tanh, Elman 1990), "lstm" (Hochreiter & Schmidhuber 1997) or "gru" (Cho et al. 2014). With
    `bidirectional` half of the output read the sequence backwards, and the trunk is not causal. The pooled features are
    the state after the last real token, of a bidirectional trunk both directions' last states; with `attention` the
    mean of all states, weighted by learned additive attention. `dropout` falls between the layers.
    """

    def __init__(
        self,
        dim: int,
        grid: tuple[int, ...],
        cell: str = "lstm",
        width: int = 128,
        depth: int = 1,
        bidirectional: bool = False,
        attention: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if cell not in CELLS:
            raise unknown("recurrent cell", cell, CELLS)
        if min(width, depth) < 1 or not 0 <= dropout < 1:
            raise UserError(
                "recurrent wants width and depth of at least 1 and 0 <= dropout < 1; "
                f"got {width=}, {depth=}, {dropout=}"
            )
        self.dim, self.grid, self.cell, self.width, self.depth = dim, tuple(grid), cell, width, depth
        self.bidirectional, self.attention, self.dropout = bidirectional, attention, dropout
        self.stack = self._stack(dim, bidirectional)
        self.dim_out, self.grid_out = width * self.stack.sides, self.grid
        self.attend = Additive(self.dim_out) if attention else None
        self.can = frozenset({"padding", "any_length"} | (set() if bidirectional else {"causal"}))

    def _stack(self, dim: int, bidirectional: bool) -> Stack:
        return Stack(self.cell, dim, self.width, self.depth, bidirectional, self.dropout)

    def forward(self, tokens: Tokens, causal: bool = False) -> Tokens:
        if causal and self.bidirectional:
            raise UserError("recurrent(bidirectional=True) sees later tokens: build it with bidirectional=False")
        x, ends = self.stack(tokens.x, tokens.mask)
        if self.attend is not None:
            return tokens._replace(x=x, pooled=self.attend(x, tokens.mask))
        return tokens._replace(x=x, pooled=ends[-1][0].transpose(0, 1).flatten(1))

    def step(self, tokens: Tokens, state: Any = None) -> tuple[Tokens, Any]:
        if self.bidirectional:
            return super().step(tokens, state)
        x, ends = self.stack(tokens.x, tokens.mask, state)
        return tokens._replace(x=x, pooled=None if self.attention else ends[-1][0][0]), ends

    def layers(self) -> Layers:
        last: Layers = {} if self.attend is None else {"attention": [self.attend]}
        return {**{f"rnn{k + 1}": [cell] for k, cell in enumerate(self.stack.cells)}, **last}

    def decoder(self, code: int) -> nn.Module:
        return Unroll(code, self._stack(self.width, self.bidirectional), math.prod(self.grid), self.dim)

    def seq2seq(self, dim: int) -> nn.Module:
        return Attentive(self._stack(dim, False), self.dim_out)
