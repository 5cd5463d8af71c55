"""`transformer`: attention over tokens or patches: BERT, GPT and, on images, the vision transformer."""

from __future__ import annotations

import math
from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modicum.core.errors import UserError, unknown
from modicum.core.types import Layers, Tokens, Trunk
from modicum.nn.attention import Block, Cache, EdgeBias, Visible
from modicum.nn.layers import norm1d
from modicum.nn.patches import Unpatch, coarse, default_patch
from modicum.nn.trunks import _transformer_keys
from modicum.nn.trunks._transformer_parts import Attending, Embedding, Rebuild, Sequence, rows

SIZES = {"micro": (128, 4, 4), "tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}
"""Width, depth and heads."""
POSITIONS = ("learned", "rotary", "sincos", "none")


class State(NamedTuple):
    """What `step` goes on from: how many tokens there were, each block's keys and values, which tokens were real."""

    past: int
    caches: list[Cache]
    mask: Tensor | None


@final
class Transformer(Trunk):
    """Patches or tokens, positions, `depth` blocks of attention and perceptron (Vaswani et al. 2017), a last norm.

    `size` sets width, depth and heads: micro (the default, for a CPU), tiny, small, base (those of ViT; base is that of
    BERT and GPT-2 too); `width`, `depth` and `heads` overrule it (heads are 64 wide where only the width is given).
    `patch` is the side of a patch in tokens: 1 for a sequence; for an image the smallest that leaves at most 64
    patches, powers of two first, and at most 16. `positions`: "learned" (for no more tokens than the grid has),
    "rotary" or "sincos" (a sequence may have any length; a grid's axes share the width), or "none", the only one with
    `edges`. `ratio` is the perceptron's hidden width as a multiple of `width`. `prenorm=False` normalises after every
    sum and after the embedding in place of at the end. `drop_path` is the stochastic depth of the last block, rising
    linearly from none at the first. edges="bias" adds learned numbers to the scores of tokens joined by an edge, from
    the edges' features too (`edge_dim`, from the data).

    The pooled features are the output at a learned class token (`class_token`), which is not among the tokens; of a
    trunk that is always `causal` they are the last real token's, which alone has seen all; else the tokens' mean.

    `translate` takes state dicts of ViT: size=..., patch=16, class_token=True (transformers: eps=1e-12 too);
    of BERT: size="base", prenorm=False, eps=1e-12; of GPT-2: size="base", causal=True, act="gelu_tanh", eps=1e-5.
    """

    def __init__(
        self,
        dim: int,
        grid: tuple[int, ...],
        size: str = "micro",
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        patch: int | None = None,
        positions: str | None = None,
        norm: str = "layer",
        prenorm: bool = True,
        eps: float = 1e-6,
        act: str = "gelu",
        ratio: float = 4.0,
        class_token: bool = False,
        causal: bool = False,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        edges: str = "none",
        edge_dim: int = 0,
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise unknown("transformer size", size, SIZES)
        self.dim, self.grid, self.size, self.width, self.depth, self.heads = dim, tuple(grid), size, width, depth, heads
        self.patch, self.positions, self.norm, self.prenorm, self.eps = patch, positions, norm, prenorm, eps
        self.act, self.ratio, self.class_token, self.causal = act, ratio, class_token, causal
        self.dropout, self.drop_path, self.edges, self.edge_dim = dropout, drop_path, edges, edge_dim
        wide, deep, split = SIZES[size]
        if width is not None:
            wide, split = width, next((h for h in range(max(1, width // 64), 1, -1) if width % h == 0), 1)
        self.dim_out, self._depth = wide, deep if depth is None else depth
        self._heads = split if heads is None else heads
        self._patch = default_patch(self.grid, 16) if patch is None else patch
        self._positions = ("none" if edges == "bias" else "learned") if positions is None else positions
        self._check()
        pairs = wide // self._heads // 2
        first, last = (nn.Identity(), self._norm()) if prenorm else (self._norm(), nn.Identity())
        self.embed = Embedding(dim, self.grid, self._patch, wide, pairs, self._positions, class_token, first, dropout)
        self.block = nn.ModuleList(self._blocks())
        self.last = last
        _start(self)
        self.edge_bias = EdgeBias(self._heads, edge_dim) if edges == "bias" else None
        self.grid_out = self.embed.grid
        self.can = self._can()

    def _check(self) -> None:
        wide, depth, heads = self.dim_out, self._depth, self._heads
        if self._positions not in POSITIONS:
            raise unknown("transformer positions", self._positions, POSITIONS)
        if self.edges not in ("none", "bias"):
            raise unknown("transformer edges", self.edges, ["none", "bias"])
        rates = 0 <= self.dropout < 1 and 0 <= self.drop_path < 1
        if min(wide, depth, heads) < 1 or wide % heads or int(self.ratio * wide) < 1 or self.edge_dim < 0 or not rates:
            raise UserError(
                "transformer wants width, depth and heads of at least 1, a width that is a multiple of heads, "
                "ratio·width of at least 1, edge_dim >= 0, and 0 <= dropout, drop_path < 1; got "
                f"width={wide}, {depth=}, {heads=}, ratio={self.ratio}, edge_dim={self.edge_dim}, "
                f"dropout={self.dropout}, drop_path={self.drop_path}"
            )
        coarse(self.grid, self._patch)
        of = {"rotary": (wide // heads, "width / heads"), "sincos": (wide, "width")}.get(self._positions)
        if of is not None and (not self.grid or of[0] % (2 * len(self.grid))):
            raise UserError(
                f"positions='{self._positions}' wants {of[1]} to be a multiple of {2 * len(self.grid)} on a grid of "
                f"{len(self.grid)} axes; got {of[0]}"
            )
        if self.causal and (self.class_token or self.edges == "bias"):
            raise UserError(
                "transformer(causal=True) wants tokens in a row: leave out class_token and edges; got "
                f"class_token={self.class_token}, edges='{self.edges}'"
            )
        if self.edges == "bias" and (self._patch > 1 or self._positions != "none"):
            raise UserError(
                "transformer(edges='bias') wants nodes in no order: leave out positions and use patch=1; got "
                f"positions='{self._positions}', patch={self._patch}"
            )

    def _can(self) -> frozenset[str]:
        alone, joined = self._patch == 1, self.edges == "bias"
        can = {
            "stack": True,
            "keep": not joined,
            "padding": alone,
            "causal": not joined and not self.class_token,
            "any_length": self.embed.any_length,
            "edges": joined,
        }
        return frozenset(name for name, does in can.items() if does)

    def _norm(self) -> nn.Module:
        return norm1d(self.norm, self.dim_out, self.eps)

    def _blocks(self, memory: int | None = None) -> list[Block]:
        return [
            Block(
                self.dim_out,
                self._heads,
                int(self.ratio * self.dim_out),
                norm=self.norm,
                eps=self.eps,
                prenorm=self.prenorm,
                act=self.act,
                dropout=self.dropout,
                drop_path=rate,
                memory=memory,
            )
            for rate in torch.linspace(0, self.drop_path, self._depth, device="cpu").tolist()
        ]

    def forward(self, tokens: Tokens, keep: Tensor | None = None, causal: bool = False) -> Tokens:
        causal = causal or self.causal
        for name, used in (("keep", keep is not None), ("causal", causal)):
            if used and name not in self.can:
                raise UserError(f"this transformer lacks '{name}' (it can: {', '.join(sorted(self.can))})")
        sequence = self.embed(tokens, keep)
        back = None
        if causal and sequence.mask is not None:
            # Real tokens to the front, in their order: then none sees a padded one, and no mask is needed.
            order = (~sequence.mask).long().argsort(dim=1, stable=True)
            back, mask = order.argsort(1), sequence.mask
            sequence = sequence.rows(order)._replace(mask=None)
        x = self._run(sequence, causal, self._bias(tokens))
        if back is not None:
            x, sequence = rows(x, back), sequence._replace(mask=mask)
        return self._out(x, sequence.mask, tokens, keep)

    def _run(self, sequence: Sequence, causal: bool, bias: Tensor | None) -> Tensor:
        x, t = sequence.x, sequence.x.shape[1]
        visible, rotary = Visible(sequence.mask, causal, bias, t, t, x.device), sequence.rotary
        for block in self.block:
            x = block(x, visible, rotary)
        return self.last(x)

    def _bias(self, tokens: Tokens) -> Tensor | None:
        if self.edge_bias is None:
            return None
        if tokens.edges is None:
            raise UserError(
                "transformer(edges='bias') wants edges between the tokens; this data has none: leave it out"
            )
        bias = self.edge_bias(tokens.edges, tokens.x.shape[0], tokens.x.shape[1])
        return F.pad(bias, (1, 0, 1, 0)) if self.class_token else bias

    def _out(self, x: Tensor, mask: Tensor | None, tokens: Tokens, keep: Tensor | None) -> Tokens:
        pooled = None
        if self.class_token:
            pooled, x, mask = x[:, 0], x[:, 1:], None if mask is None else mask[:, 1:]
        elif self.causal:
            pooled = x[:, -1] if mask is None else rows(x, _last(mask)).squeeze(1)
        whole = keep is None and x.shape[1] == math.prod(self.grid_out)
        edges = tokens.edges if keep is None and self._patch == 1 else None
        return Tokens(x, mask, self.grid_out if whole else (x.shape[1],), edges, pooled)

    def step(self, tokens: Tokens, state: State | None = None) -> tuple[Tokens, State]:
        if "causal" not in self.can:
            return super().step(tokens, state)
        past, before, mask = state or State(0, [Cache() for _ in self.block], None)
        sequence = self.embed(tokens, past=past)
        x, t = sequence.x, sequence.x.shape[1]
        if mask is not None or tokens.mask is not None:
            parts = [x.new_ones((len(x), n), dtype=torch.bool) if m is None else m
                     for m, n in ((mask, past), (tokens.mask, t))]  # fmt: skip
            mask = torch.cat(parts, 1)
        visible, rotary = Visible(mask, True, None, t, past + t, x.device), sequence.rotary
        caches = [Cache(cache.keys, cache.values) for cache in before]
        for block, cache in zip(self.block, caches, strict=True):
            x = block(x, visible, rotary, cache)
        out = self._out(self.last(x), tokens.mask, tokens, None)
        return out._replace(grid=(t,)), State(past + t, caches, mask)

    def layers(self) -> Layers:
        parts = [self.embed] if self.edge_bias is None else [self.embed, self.edge_bias]
        first: Layers = {"stem": [p for p in parts if next(p.parameters(), None) is not None]}
        blocks: Layers = {f"block{k}": [block] for k, block in enumerate(self.block, 1)}
        last: Layers = {"norm": [self.last]} if self.prenorm else {}
        return {**({} if not first["stem"] else first), **blocks, **last}

    def decoder(self, code: int) -> nn.Module:
        out = Unpatch(self.dim_out, self.grid, self._patch, self.dim)
        return _start(Rebuild(code, self._blocks(), self._norm() if self.prenorm else nn.Identity(), out))

    def seq2seq(self, dim: int) -> nn.Module:
        pairs, odd = divmod(self.dim_out // self._heads, 2)
        if odd:
            raise UserError(f"the transformer's seq2seq turns pairs of numbers, yet its heads are {2 * pairs + 1} wide")
        last = self._norm() if self.prenorm else nn.Identity()
        return _start(Attending(dim, self.dim_out, pairs, self._blocks(self.dim_out), last))

    def translate(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return _transformer_keys.translate(self, tensors)


def _last(mask: Tensor) -> Tensor:
    """The number (b, 1) of each row's last real token; 0 where there is none."""
    return (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(1, keepdim=True)


def _start(module: nn.Module) -> nn.Module:
    """Xavier weights and no biases (Glorot & Bengio 2010)."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
    return module
