"""Text: token ids of any tokenizer as tokens; views that delete spans and single tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from modicum.core.errors import UserError, unknown
from modicum.core.types import Batch, Choose, Embed, Input, Packed, Progress, Tokens, Unembed
from modicum.modalities import _textfiles
from modicum.modalities._textfiles import RawTexts
from modicum.modalities._texttokens import (
    longest,
    pack,
    read_tokenizer,
    special,
    tokenizer_for,
    tokenizer_of,
)

MOST = 256
"""Tokens of a text that are read where nothing else is asked."""


class Words(Embed):
    """{"ids" (b, t) long, "mask" (b, t)} -> a vector (dim) for every token, 0 where padded; t is at most the length."""

    ragged = True

    def __init__(self, text: Text) -> None:
        super().__init__()
        self.dim, self.grid = text.width, (text.length,)
        self.begins = text.begins
        self.hidden = text.special.get("mask")
        self.words = nn.Embedding(text.vocabulary, text.width)
        nn.init.normal_(self.words.weight, std=text.width**-0.5)

    def blank(self) -> Tensor | None:
        return None if self.hidden is None else self.words.weight[self.hidden]

    def forward(self, batch: Batch) -> Tokens:
        ids = batch["ids"]
        mask = batch["mask"] if "mask" in batch else torch.ones_like(ids, dtype=torch.bool)
        return Tokens(self.words(ids) * mask.unsqueeze(-1), mask, (ids.shape[1],))


class Spell(Unembed):
    """Tokens (b, t', dim) -> logits over the vocabulary; cross-entropy of every token, 0 where padded; t' >= t."""

    whole = False

    def __init__(self, text: Text) -> None:
        super().__init__()
        self.dim, self.special = text.width, dict(text.special)
        self.logits = nn.Linear(text.width, text.vocabulary)

    def tie(self, embed: Embed) -> None:
        if isinstance(embed, Words):
            self.logits.weight = embed.words.weight

    def loss(self, tokens: Tensor, batch: Batch, where: Tensor | None = None) -> Tensor:
        # Logits are many: they are made for the tokens alone whose loss is wanted.
        mask = batch["mask"] if where is None else where
        error = F.cross_entropy(self.logits(tokens[:, : mask.shape[1]][mask]), batch["ids"][mask], reduction="none")
        return error if where is not None else error.new_zeros(mask.shape).masked_scatter(mask, error)

    def draw(self, tokens: Tensor, at: int, so_far: Batch | None, choose: Choose) -> Batch:
        """Place `at` chosen, never as <pad>, <mask> or a later <bos>; a row that has ended is padded."""
        never = [self.special[r] for r in ("pad", "mask", "bos") if r in self.special and (r != "bos" or at)]
        logits = self.logits(tokens[:, 0]).float()
        place = torch.tensor([i for i in never if i != self.special.get("eos")], dtype=torch.long, device=logits.device)
        ids = choose(logits.index_fill(1, place, -torch.inf)).unsqueeze(1)
        if so_far is None or not at:
            return {"ids": ids, "mask": torch.ones_like(ids, dtype=torch.bool)}
        before, mask = so_far["ids"][:, :at], so_far["mask"][:, :at]
        real = mask[:, -1:] & (before[:, -1:] != self.special.get("eos", -1))
        return {"ids": torch.cat([before, ids * real], 1), "mask": torch.cat([mask, real], 1)}

    def decode(self, tokens: Tensor) -> Batch:
        """The likeliest token at every place; real up to the first <eos>."""
        ids = torch.cat([self.logits(some).argmax(-1) for some in tokens.split(16)])
        ended = (ids == self.special.get("eos", -1)).long()
        mask = ended.cumsum(1) - ended == 0
        return {"ids": ids * mask, "mask": mask}


class Shorten:
    """Delete a span of a share `delete` of every row's words, and each word with probability `drop`, but never all.

    Special tokens stay. delete=0, drop=0 gives the same tokens twice, so that dropout alone makes the difference
    (SimCSE, Gao et al. 2021). The deletions are those of CLEAR (Wu et al. 2020).
    """

    def __init__(self, keep: Sequence[int], delete: float, drop: float) -> None:
        for name, share in (("delete", delete), ("drop", drop)):
            if not isinstance(share, int | float) or not 0 <= share < 1:
                raise UserError(f"views: wanted 0 <= {name} < 1, got {share!r}")
        self.keep, self.delete, self.drop = torch.tensor(sorted(set(keep)), dtype=torch.long), delete, drop

    def __call__(self, batch: Batch, rng: Generator) -> Batch:
        ids, mask = batch["ids"], batch["mask"]
        score = torch.rand(ids.shape, generator=rng, device=ids.device)
        start = torch.rand((len(ids), 1), generator=rng, device=ids.device)
        word = mask & ~torch.isin(ids, self.keep.to(ids.device))
        order, count = word.long().cumsum(1) - 1, word.sum(1, keepdim=True)
        span = (self.delete * count).floor()
        first = (start * (count - span + 1)).floor()
        kept = word & ~((order >= first) & (order < first + span)) & (score >= self.drop)
        best = torch.where(word, score, -1).argmax(1, keepdim=True)
        spared = torch.zeros_like(word).scatter(1, best, ~kept.any(1, keepdim=True)) & word
        kept = kept | spared | (mask & ~word)
        # What stays moves together, so that padding stays at the end, and no more of it than the longest row leaves.
        place = (~kept).long().argsort(dim=1, stable=True)
        longest = max(1, int(kept.sum(1).max()))
        place = place[:, :longest]
        mask = kept.gather(1, place)
        return {**batch, "ids": ids.gather(1, place) * mask, "mask": mask}


@final
class Text(Input):
    """Texts as at most `length` tokens of `tokenizer` (the content of a tokenizer.json), with vectors of `width`.

    `column` is the column of a table that holds them; None takes the likeliest. Longer texts are read in windows of
    `length` tokens, special ones around each: training sees every window, and the features of a text are the mean of
    its windows' features weighted by their tokens.
    """

    modality = "text"
    default_trunk = "transformer(width=128, depth=2, dropout=.1)"
    default_objective = "simclr"
    baselines = ("TF-IDF + logistic",)

    def __init__(self, tokenizer: str, length: int = 128, width: int = 128, column: str | None = None) -> None:
        if width < 1:
            raise UserError(f"text wants width of at least 1, got {width}")
        tokenizer_of(tokenizer, length)
        self.tokenizer, self.length, self.width, self.column = tokenizer, length, width, column

    @classmethod
    def from_tokenizer(cls, given: str | Path, length: int = 128, width: int = 128, column: str | None = None) -> Text:
        """The input of a tokenizer.json: its path, its folder, or its content."""
        return cls(read_tokenizer(given), length, width, column)

    @property
    def vocabulary(self) -> int:
        """The number of different ids."""
        return 1 + max(tokenizer_of(self.tokenizer).get_vocab(with_added_tokens=True).values())

    @cached_property
    def special(self) -> dict[str, int]:
        """The ids of pad, mask, bos and eos, those that the tokenizer has."""
        return special(self.tokenizer)

    @property
    def begins(self) -> bool:
        """Whether every text begins with one and the same token."""
        empty = tokenizer_of(self.tokenizer).encode("").ids
        return bool(empty) and empty[0] == self.special.get("bos")

    def columns(self) -> tuple[str, ...]:
        return () if self.column is None else (self.column,)

    def embed(self) -> Words:
        return Words(self)

    def unembed(self) -> Spell:
        return Spell(self)

    def views(self, **options: Any) -> Shorten:
        """`delete`: share of the words that one deleted span has; `drop`: probability of a word to be deleted."""
        defaults: dict[str, Any] = {"delete": 0.3, "drop": 0.0}
        for key in options:
            if key not in defaults:
                raise unknown("text view", key, defaults)
        return Shorten([*self.special.values()], **{**defaults, **options})

    @classmethod
    def claims(cls, path: Path) -> bool:
        return _textfiles.claims(path)

    @classmethod
    def scan(cls, path: Path) -> tuple[RawTexts, pa.Table]:
        return _textfiles.scan(path)

    @classmethod
    def as_raw(cls, x: Any) -> RawTexts:
        return _textfiles.as_raw(x)

    @classmethod
    def infer(
        cls,
        raw: RawTexts,
        index: np.ndarray,
        *,
        progress: Progress | None = None,
        exclude: Sequence[str] = (),
        size: int | None = None,
        tokenizer: str | Path = "bpe",
        vocabulary: int | None = None,
        width: int = 128,
        **_: Any,
    ) -> Text:
        """A tokenizer trained on the rows `index`, and their longest length, at most 256; `size` is another length.

        `tokenizer`: bpe or wordpiece is trained, or a tokenizer.json (its path, folder or content) is used as it is.
        """
        column = raw.choose(None, exclude)
        tokenizer = tokenizer_for(raw, column, index, tokenizer, vocabulary)
        length = size or min(MOST, max(4, longest(tokenizer, raw, column, index, MOST)))
        return cls(tokenizer, length, width, column if raw.named else None)

    def pack(self, raw: RawTexts, *, skip_bad: bool = False, progress: Progress | None = None) -> Packed:
        column = raw.choose(self.column)
        made = pack(raw, column, self.tokenizer, self.length, progress)
        if not len(made.keep):
            raise UserError(f"none of the {len(raw)} rows holds text in column '{column}'")
        bad = []
        if len(made.keep) < len(raw):
            empty = np.setdiff1d(np.arange(len(raw)), made.keep)
            bad = [(int(row), raw.place(int(row)), "the text is empty") for row in empty]
        if bad and not skip_bad:
            named = ", ".join(place for _, place, _ in bad[:10]) + (", ..." if len(bad) > 10 else "")
            raise UserError(f"{len(bad)} of {len(raw)} texts are empty ({named}): use --skip-bad to go on without them")
        return Packed(made.source(), made.keep, bad, made.hashes)

    def prompt(self, text: str | None, n: int, length: int | None = None) -> Batch | None:
        """`n` rows of <bos>, where texts have one, and the tokens of `text`."""
        made, words = tokenizer_of(self.tokenizer), (text or "").strip()
        start = [self.special["bos"]] if self.begins else []
        start += made.encode(words, add_special_tokens=False).ids if words else []
        if not start:
            return None
        ids = torch.tensor(start, dtype=torch.long).expand(n, -1)
        return {"ids": ids, "mask": torch.ones_like(ids, dtype=torch.bool)}

    def texts(self, batch: Batch) -> list[str]:
        """The words of every row, without special tokens."""
        rows = [ids[mask].tolist() for ids, mask in zip(batch["ids"].cpu(), batch["mask"].cpu(), strict=True)]
        return [text.removeprefix(" ") for text in tokenizer_of(self.tokenizer).decode_batch(rows)]

    def flat(self, batch: Batch) -> Any:
        """Counts of words and pairs of words, hashed to 2^20 features: a sparse matrix."""
        from sklearn.feature_extraction.text import HashingVectorizer

        hashed = HashingVectorizer(ngram_range=(1, 2), alternate_sign=False, norm=None, dtype=np.float32)
        return hashed.transform(self.texts(batch))

    def show(self, batch: Batch) -> list[dict[str, str]]:
        return [{"text": text} for text in self.texts(batch)]
