"""The shapes that flow through every part: batches in, tokens through, features out."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Generator, Tensor, nn

from modicum.core.errors import UserError

Batch = dict[str, Tensor]
"""Named tensors whose first axis is the sample."""

Corrupted = Mapping[str, Any]
"""What `Objective.corrupt` hands to `Objective.forward`."""

Progress = Callable[[int, int, str], None]
"""Called with rows done, rows in all, and words on what is being made of them; first with 0 done."""

Choose = Callable[[Tensor], Tensor]
"""Chooses one of n by logits: (b, n) -> (b,)."""

Layers = dict[str, list[nn.Module | nn.Parameter]]
"""Named layers, input -> output: an ordered, complete partition of a module's parameters."""


class Edges(NamedTuple):
    """Directed edges over the flattened b*t tokens: `ends` (2, E) long, `x` (E, d) or None."""

    ends: Tensor
    x: Tensor | None = None


class Tokens(NamedTuple):
    """A batch of samples as tokens: `x` (b, t, d); `mask` (b, t), True where real; `grid` multiplies to t.

    `pooled` (b, p) is a trunk's own summary of each sample (class token, spatial pyramid), where it makes one.
    """

    x: Tensor
    mask: Tensor | None = None
    grid: tuple[int, ...] = ()
    edges: Edges | None = None
    pooled: Tensor | None = None


class Features(NamedTuple):
    """What an encoder returns: `tokens` (b, t, d) on the trunk's output grid and `pooled` (b, p)."""

    tokens: Tensor
    pooled: Tensor
    mask: Tensor | None = None
    grid: tuple[int, ...] = ()
    edges: Edges | None = None


class Source(Protocol):
    """Rows that can be read by number, in their raw dtypes, without loading the rest.

    Ragged ones are padded with 0 to the longest row asked for, and the source has `lengths` (size,) of all. Where rows
    are longer than an encoder takes, it has `windows` too; `rows` and `lengths` are then those of their first window.
    """

    size: int

    def rows(self, index: np.ndarray) -> Batch: ...


class Windows(NamedTuple):
    """Rows in parts that an encoder takes: those of row i are `parts` (ragged) from starts[i] to starts[i + 1].

    `whole` has a row's parts one after the other as one row, for what is no encoder. Training sees every part as a
    sample; the features of a row are the mean of its parts' features, weighted by their real tokens.
    """

    parts: Source
    starts: np.ndarray
    whole: Source

    def of(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The numbers (m,) of all parts of the rows `index`, and the position in `index` that each belongs to."""
        counts = self.starts[index + 1] - self.starts[index]
        place = np.repeat(np.arange(len(index)), counts)
        before = np.cumsum(counts) - counts
        return np.arange(len(place)) + (self.starts[index] - before)[place], place


class Views(Protocol):
    """A random change of a batch that keeps its meaning, as batched tensor operations on the batch's device."""

    def __call__(self, batch: Batch, rng: Generator) -> Batch: ...


class Step(NamedTuple):
    """What `fit` yields after each update: `number` counts finished steps; `loss` and `metrics` stay on the device."""

    number: int
    loss: Tensor
    metrics: dict[str, Tensor]
    rate: float


class Embed(nn.Module, ABC):
    """Raw batch -> `Tokens` with x (b, t, dim) on `grid`.

    `ragged`: rows have different numbers of tokens, and batches a "mask" (b, t), True where real. `begins`: every row's
    first token is one and the same, such as a text's <bos>. `edge_dim`: the width of the features of its edges.
    `first`: rows are about their first token (a node and those around it), so that it is what is pooled.
    """

    dim: int
    grid: tuple[int, ...]
    ragged: bool = False
    begins: bool = False
    first: bool = False
    edge_dim: int = 0

    def blank(self) -> Tensor | None:
        """The vector (dim) of a hidden token, where the modality has one of its own, such as BERT's [MASK]."""
        return None

    @abstractmethod
    def forward(self, batch: Batch) -> Tokens: ...


class Unembed(nn.Module, ABC):
    """Tokens (b, t, dim) on the embed's grid -> a raw batch (`whole`: all of it), and how far from the true one."""

    dim: int
    whole: bool = True

    @abstractmethod
    def loss(self, tokens: Tensor, batch: Batch, where: Tensor | None = None) -> Tensor:
        """Mean reconstruction error of each token (b, t); with `where` (b, t), of those tokens alone (k,)."""

    def tie(self, embed: Embed) -> None:
        """Use the embed's weights, where both have a matrix of the same vocabulary and width."""

    def draw(self, tokens: Tensor, at: int, so_far: Batch | None, choose: Choose) -> Batch:
        """The batch `so_far` with place `at` chosen by what `tokens` (b, 1, dim) say of it; None: nothing is yet."""
        name = type(self).__name__
        raise UserError(f"'{name}' predicts values, no distribution to draw tokens from: generate needs one")

    @abstractmethod
    def decode(self, tokens: Tensor) -> Batch:
        """The reconstructed batch, in the units of the raw data."""


class Input(ABC):
    """What an encoder takes (the InputSpec): one final subclass a modality, built from JSON-able arguments alone."""

    modality: ClassVar[str]
    default_trunk: ClassVar[str]
    default_objective: ClassVar[str]
    group: ClassVar[str | None] = None
    """The column whose groups are not divided between training and test rows where nothing else is asked."""
    baselines: tuple[str, ...]

    @classmethod
    @abstractmethod
    def claims(cls, path: Path) -> bool:
        """Whether the path holds this modality, by names and first bytes alone."""

    @classmethod
    @abstractmethod
    def scan(cls, path: Path) -> tuple[Any, pa.Table]:
        """The raw rows at a path, unread where they are large, and a table of facts: id, label, split, ..."""

    @classmethod
    @abstractmethod
    def as_raw(cls, x: Any) -> Any:
        """Rows in memory as raw rows."""

    @classmethod
    def likely(cls, x: Any) -> bool:
        """Whether rows in memory are rather of this modality than of another, whose `as_raw` takes them too."""
        del x
        return True

    def columns(self) -> tuple[str, ...]:
        """The columns of a table that are taken as input; none where the input is no table."""
        return ()

    def note(self) -> str:
        """What a person should know of how the data is read, such as the kinds of a table's columns; "" for nothing."""
        return ""

    def prompt(self, text: str | None, n: int, length: int | None = None) -> Batch | None:
        """`n` rows that begin with `text`, to go on with to `length` tokens; None where nothing is to begin with."""
        del n, length
        if text is not None:
            raise UserError(f"--prompt {text!r}: {self.modality} take no prompt; it is for text")
        return None

    @abstractmethod
    def embed(self) -> Embed: ...

    @abstractmethod
    def unembed(self) -> Unembed: ...

    @abstractmethod
    def views(self, **options: Any) -> Views: ...

    @abstractmethod
    def pack(self, raw: Any, *, skip_bad: bool = False, progress: Progress | None = None) -> Packed:
        """The rows made ready, from the cache where they were before; `progress` is called where there is work."""

    @abstractmethod
    def flat(self, batch: Batch) -> Any:
        """Plain features (b, p) float32 for the simple baselines: raw pixels, scaled columns, counts of words.

        A numpy array, or a scipy sparse matrix where they are many.
        """

    @abstractmethod
    def show(self, batch: Batch) -> list[dict[str, str]]:
        """What to show a person of every row: {"thumb": data URI} or {"text": words}."""

    def table(self, batch: Batch, prompt: str | None = None) -> pa.Table:
        """What `generate` writes of a batch that began with `prompt`: its rows in words, or a better form."""
        del prompt
        shown = self.show(batch)
        if any("text" not in row for row in shown):
            raise UserError(f"{self.modality} cannot be written as text yet")
        return pa.table({"text": [row["text"] for row in shown]})

    @classmethod
    def takes(cls, option: str) -> bool:
        """Whether `infer` looks at an option of that name."""
        # What is called `_` is not looked at; a modality that hands options on to others calls them by another name.
        known = inspect.signature(cls.infer).parameters.values()
        return any(p.name == option or (p.kind is p.VAR_KEYWORD and p.name != "_") for p in known)

    @classmethod
    @abstractmethod
    def infer(cls, raw: Any, index: np.ndarray, *, progress: Progress | None = None, **options: Any) -> Input:
        """The input spec that fits rows `index` of `raw`: statistics are taken from those rows only."""


class Packed(NamedTuple):
    """Raw data ready for an `Input`: `keep` are the raw rows it holds, `bad` those skipped, `hashes` (n,) uint64."""

    source: Source
    keep: np.ndarray
    bad: list[tuple[int, str, str]]
    hashes: np.ndarray


class Trunk(nn.Module, ABC):
    """Tokens (b, t, dim) on `grid` -> tokens (b, t', dim_out) on `grid_out`, and its own `pooled` where it makes one.

    The constructor takes `dim` and `grid` first, then options with defaults. `can` names its capabilities:
    keep, causal, padding, edges, any_length, stack, pad_width. With `keep`, forward takes keep=(b, k) long: the numbers
    of the tokens (on `grid_out`) to run on, the others unseen, and returns k tokens on grid (k,); with `causal`, it
    takes causal=True.
    """

    can: frozenset[str] = frozenset()
    dim: int
    grid: tuple[int, ...]
    dim_out: int
    grid_out: tuple[int, ...]

    @property
    def dim_pooled(self) -> int:
        """Width of `pooled`, where it is not that of the tokens."""
        return self.dim_out

    @abstractmethod
    def forward(self, tokens: Tokens) -> Tokens: ...

    @abstractmethod
    def layers(self) -> Layers: ...

    @abstractmethod
    def decoder(self, code: int) -> nn.Module:
        """The mirror of this trunk: (b, code) -> tokens (b, t, dim) on the input grid."""

    def seq2seq(self, dim: int) -> nn.Module:
        """An autoregressive decoder that attends to this trunk's output: (targets, memory) -> (b, t, dim_out).

        Each of the `targets` (b, t, dim) sees itself and those before it; `memory` is Tokens as this trunk gives them.
        """
        raise UserError(f"trunk '{type(self).__name__}' has no decoder that attends to its tokens: use transformer")

    def step(self, tokens: Tokens, state: Any = None) -> tuple[Tokens, Any]:
        """The next tokens of causal sequences, given the state after those before (None at the start).

        Steps one after the other equal one causal forward; needs `causal`. Here every step runs over all tokens so far;
        trunks that keep a smaller state do better.
        """
        if "causal" not in self.can:
            raise UserError(f"trunk '{type(self).__name__}' cannot go on from a state (it lacks 'causal')")
        parts = [tokens] if state is None else [state, tokens]
        masks = [p.x.new_ones(p.x.shape[:2], dtype=torch.bool) if p.mask is None else p.mask for p in parts]
        mask = None if all(p.mask is None for p in parts) else torch.cat(masks, 1)
        x = torch.cat([p.x for p in parts], 1)
        whole = Tokens(x, mask, (x.shape[1],))
        out, t = self(whole, causal=True), tokens.x.shape[1]
        return out._replace(x=out.x[:, -t:], mask=tokens.mask, grid=(t,)), whole

    def translate(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint of timm or transformers under this trunk's parameter names; what is not the trunk's is left."""
        raise UserError(f"trunk '{type(self).__name__}' knows no foreign checkpoint: give a file of its own parameters")


class Objective(nn.Module, ABC):
    """A model and its loss: `corrupt` holds all the randomness, `forward` all the parameters.

    Batches have classes, `target` (b,) with -1 where unknown, if it `uses_labels`; `roles` name the rows of a sample
    in the user's file of pairs or triplets: a batch then has all rows of the first role, then of the second, ...
    `only_asked` names arguments whose defaults stand where the data would decide otherwise (spec.build).
    """

    uses_labels: bool = False
    roles: tuple[str, ...] = ()
    only_asked: tuple[str, ...] = ()

    @abstractmethod
    def corrupt(self, batch: Batch, rng: Generator) -> Corrupted: ...

    @abstractmethod
    def forward(self, corrupted: Corrupted) -> tuple[Tensor, dict[str, Tensor]]: ...

    @abstractmethod
    def encoders(self) -> dict[str, Any]:
        """The encoder, or the towers of a pair, by name."""

    def note(self) -> str:
        """What a person should know before training with it, such as what its run cannot do; "" for nothing."""
        return ""

    def after_step(self, step: int) -> None:
        """Called after each update: moving-average teachers, queues."""
        del step
