"""The parts of `transformer` before and beside its blocks: patches and positions, and its two decoders."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modicum.core.errors import UserError
from modicum.core.types import Tokens
from modicum.nn.attention import Block, Rotary, Visible, angles
from modicum.nn.patches import Patches, Unpatch


def rows(x: Tensor, index: Tensor) -> Tensor:
    """The tokens of x (b, t, d) with these numbers (b, k)."""
    return x.gather(1, index.unsqueeze(2).expand(-1, -1, x.shape[2]))


class Sequence(NamedTuple):
    """What the blocks run on: `x` (b, t, width), `mask` (b, t), and the angles of rotary positions."""

    x: Tensor
    mask: Tensor | None
    turn: Tensor | None

    def rows(self, index: Tensor) -> Sequence:
        """Only the tokens of these numbers (b, k), in this order."""
        turn = self.turn
        if turn is not None:
            turn = turn[index] if turn.dim() == 2 else turn.gather(1, index.unsqueeze(2).expand(-1, -1, turn.shape[-1]))
        return Sequence(rows(self.x, index), None if self.mask is None else self.mask.gather(1, index), turn)

    @property
    def rotary(self) -> Rotary | None:
        if self.turn is None:
            return None
        turn = self.turn if self.turn.dim() == 2 else self.turn.unsqueeze(1)
        return turn.cos().to(self.x.dtype), turn.sin().to(self.x.dtype)


class Embedding(nn.Module):
    """Tokens -> one linear map a patch, positions, the class token, `norm`, dropout."""

    def __init__(
        self,
        dim: int,
        grid: tuple[int, ...],
        patch: int,
        width: int,
        pairs: int,
        positions: str,
        class_token: bool,
        norm: nn.Module,
        dropout: float,
    ) -> None:
        super().__init__()
        self.dim, self.patch, self.width, self.pairs, self.kind = dim, patch, width, pairs, positions
        self.grid = tuple(side // patch for side in grid)
        self.most = math.prod(self.grid)
        self.project: nn.Module = nn.Identity() if dim == width else nn.Linear(dim, width)
        if patch > 1:
            self.project = Patches(dim, grid, patch, width)
        self.positions = nn.Parameter(0.02 * torch.randn(self.most, width)) if positions == "learned" else None
        self.class_token = nn.Parameter(0.02 * torch.randn(width)) if class_token else None
        self.norm, self.dropout = norm, nn.Dropout(dropout)

    @property
    def any_length(self) -> bool:
        return self.positions is None and self.patch == 1 and len(self.grid) == 1

    def forward(self, tokens: Tokens, keep: Tensor | None = None, past: int = 0) -> Sequence:
        """The tokens, `past` others having gone before; of them only those numbered in `keep` (b, k)."""
        x, mask = tokens.x, tokens.mask
        if x.dim() != 3 or x.shape[2] != self.dim:
            raise UserError(f"transformer was built for tokens (b, t, {self.dim}); got {tuple(x.shape)}")
        if isinstance(self.project, Patches) and mask is not None:
            x, mask = x.masked_fill(~mask.unsqueeze(-1), 0), self.project.real(mask)
        x = self.project(x)
        t = x.shape[1]
        if past + t > self.most and not self.any_length:
            raise UserError(
                f"transformer was built for at most {self.most} tokens; got {past + t}: build it for a longer grid, or "
                "for a sequence use positions='rotary'"
            )
        out = self._placed(x, mask, past)
        if keep is not None:
            out = out.rows(keep)
        if self.class_token is not None:
            x, mask, turn = out
            x = torch.cat([self.class_token.to(x.dtype).expand(len(x), 1, -1), x], 1)
            out = Sequence(
                x,
                None if mask is None else F.pad(mask, (1, 0), value=True),
                None if turn is None else F.pad(turn, (0, 0, 1, 0)),
            )
        return out._replace(x=self.dropout(self.norm(out.x)))

    def _placed(self, x: Tensor, mask: Tensor | None, past: int) -> Sequence:
        end = past + x.shape[1]
        if self.positions is not None:
            return Sequence(x + self.positions[past:end], mask, None)
        if self.kind == "none":
            return Sequence(x, mask, None)
        grid = (end,) if self.any_length else self.grid
        turn = angles(grid, self.pairs if self.kind == "rotary" else self.width // 2, x.device)[past:end]
        if self.kind == "rotary":
            return Sequence(x, mask, turn)
        return Sequence(x + torch.cat([turn.sin(), turn.cos()], 1).to(x.dtype), mask, None)


class Rebuild(nn.Module):
    """Code (b, code) -> tokens (b, t, dim): the code and learned positions through blocks, a linear map a patch."""

    def __init__(self, code: int, blocks: list[Block], norm: nn.Module, out: Unpatch) -> None:
        super().__init__()
        self.start = nn.Linear(code, out.width)
        self.positions = nn.Parameter(0.02 * torch.randn(math.prod(out.grid_in), out.width))
        self.block, self.norm, self.out = nn.ModuleList(blocks), norm, out

    def forward(self, code: Tensor) -> Tensor:
        x = self.start(code).unsqueeze(1) + self.positions
        for block in self.block:
            x = block(x)
        return self.out(self.norm(x))


class Attending(nn.Module):
    """(targets (b, t, dim), memory) -> (b, t, width): causal blocks with rotary positions that look up the memory."""

    def __init__(self, dim: int, width: int, pairs: int, blocks: list[Block], norm: nn.Module) -> None:
        super().__init__()
        self.pairs = pairs
        self.enter = nn.Identity() if dim == width else nn.Linear(dim, width)
        self.block, self.norm = nn.ModuleList(blocks), norm

    def forward(self, targets: Tensor, memory: Tokens) -> Tensor:
        x, t = self.enter(targets), targets.shape[1]
        rotary = Sequence(x, None, angles((t,), self.pairs, x.device)).rotary
        visible, found = Visible(None, True, queries=t, keys=t, device=x.device), Visible(memory.mask)
        for block in self.block:
            x = block(x, visible, rotary, memory=memory.x, memory_visible=found)
        return self.norm(x)
