"""From texts to token ids: the tokenizer, trained or adopted, and ids packed into a memory-mapped file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from modicum.core.atomic import atomic_path
from modicum.core.errors import UserError, need
from modicum.core.types import Batch, Progress
from modicum.modalities._files import cache_dir
from modicum.modalities._textfiles import STEP, RawTexts, lengths_in_bytes

SPECIAL = {
    "pad": ("<pad>", "[PAD]"),
    "mask": ("<mask>", "[MASK]"),
    "bos": ("<bos>", "[CLS]", "<s>", "<|endoftext|>"),
    "eos": ("<eos>", "[SEP]", "</s>", "<|endoftext|>"),
}
"""What tokenizers call the tokens that stand for no text."""
SAMPLE = 1 << 24  # bytes of text that a vocabulary is learned from, at most
IN_MEMORY = 1 << 20  # texts of fewer characters are not worth a file
FORMAT = 1


@lru_cache(maxsize=8)
def tokenizer_of(text: str, length: int | None = None) -> Any:
    """The tokenizer of a tokenizer.json, cutting to `length` tokens; special tokens in texts are text as any."""
    try:
        made = need("tokenizers", "text").Tokenizer.from_str(text)
    except UserError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"the tokenizer is not the content of a tokenizer.json: {error}") from None
    made.no_padding()
    made.no_truncation()
    made.encode_special_tokens = True
    least = made.num_special_tokens_to_add(False) + 1
    if length is not None and length < least:
        raise UserError(f"texts need a length of at least {least} tokens, special ones included; got {length}")
    if length is not None:
        made.enable_truncation(length)
    return made


def special(text: str) -> dict[str, int]:
    """The ids of the tokens pad, mask, bos and eos, those that the tokenizer has."""
    made = tokenizer_of(text)
    found = {role: [made.token_to_id(n) for n in names] for role, names in SPECIAL.items()}
    return {
        role: next(i for i in ids if i is not None) for role, ids in found.items() if any(i is not None for i in ids)
    }


def train(raw: RawTexts, column: str, index: np.ndarray, vocabulary: int | None) -> str:
    """A byte-level BPE (Radford et al. 2019) of the texts `index`, as the content of its tokenizer.json.

    <pad> 0, <mask> 1, <bos> 2, <eos> 3, the 256 bytes, then merges: at most `vocabulary` in all, by default one token
    for every 64 bytes of text between 512 and 8,192. Rows become <bos> ... <eos>.
    """
    library = need("tokenizers", "text")
    size = int(lengths_in_bytes(raw, column, index).sum())
    vocabulary = vocabulary or min(8192, max(512, size // 64))
    names = [SPECIAL[role][0] for role in ("pad", "mask", "bos", "eos")]
    made = library.Tokenizer(library.models.BPE())
    # With a space before the first word too, a word is the same token wherever it stands.
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=names,
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    some = index[:: max(1, -(-size // SAMPLE))]
    made.train_from_iterator((text for texts in raw.read(column, some) for text in texts), trainer)
    ends = [(name, made.token_to_id(name)) for name in names[2:]]
    made.post_processor = library.processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=ends)
    return made.to_str()


def longest(text: str, raw: RawTexts, column: str, index: np.ndarray) -> int:
    """The most tokens that one of the texts `index` has; of many, only those with the most bytes are counted."""
    size = lengths_in_bytes(raw, column, index)
    most = index[np.argsort(-size, kind="stable")[:STEP]]
    made = tokenizer_of(text)
    return max(len(e.ids) for texts in raw.read(column, most) for e in made.encode_batch_fast(texts))


class Sentences:
    """Token ids of all rows, one after the other, as a Source of {"ids" (b, t) long, "mask" (b, t)}, 0 where padded."""

    def __init__(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        self.ids, self.lengths, self.size = ids, lengths, len(lengths)
        self.starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]) if len(lengths) else np.empty(0, int)

    def rows(self, index: np.ndarray) -> Batch:
        length = self.lengths[index]
        place = np.arange(max(1, int(length.max(initial=0))))
        mask = place < length[:, None]
        ids = np.zeros(mask.shape, np.int64)
        ids[mask] = self.ids[(self.starts[index][:, None] + place)[mask]]
        return {"ids": torch.from_numpy(ids), "mask": torch.from_numpy(mask)}


class Ids(NamedTuple):
    """Token ids of the rows, one after the other; each row's number of tokens, 0 where it has no text; those cut."""

    ids: np.ndarray
    lengths: np.ndarray
    cut: int


def pack(raw: RawTexts, column: str, text: str, length: int, progress: Progress | None) -> Ids:
    """Tokenize once, into the cache unless it is little."""
    made = tokenizer_of(text, length)
    size = int(lengths_in_bytes(raw, column, np.arange(len(raw))).sum())
    if size < IN_MEMORY:
        parts = list(_encoded(made, raw, column))
        ids = np.concatenate([np.empty(0, np.uint32), *(p.ids for p in parts)])
        return Ids(ids, np.concatenate([np.empty(0, int), *(p.lengths for p in parts)]), sum(p.cut for p in parts))
    key = hashlib.blake2b(raw.hashes(column).tobytes() + text.encode(), digest_size=16).hexdigest()
    target = cache_dir() / "texts" / f"{key}-{length}-{FORMAT}.ids"
    kind = np.dtype(np.uint16 if made.get_vocab_size() <= 1 << 16 else np.uint32)
    if (found := _load(target, kind)) is None:
        try:
            _write(target, kind, _encoded(made, raw, column), len(raw), size, progress)
        except OSError as error:
            raise UserError(
                f"{target.parent}: the token ids cannot be written here ({error.strerror or error}): free some space "
                "or set MODICUM_CACHE to a folder with room"
            ) from error
        found = _load(target, kind)
        assert found is not None, target
    return found


def _encoded(made: Any, raw: RawTexts, column: str) -> Iterator[Ids]:
    for texts in raw.read(column):
        rows = made.encode_batch_fast(texts)
        full = [e.ids if t else [] for e, t in zip(rows, texts, strict=True)]
        ids = np.fromiter((i for row in full for i in row), np.uint32)
        cut = sum(bool(e.overflowing) for e in rows)
        yield Ids(ids, np.fromiter(map(len, full), np.int64, len(full)), cut)


def _write(
    target: Path, kind: np.dtype, parts: Iterator[Ids], count: int, size: int, progress: Progress | None
) -> None:
    lengths, cut, done = [], 0, 0
    tell = progress or (lambda *_: None)
    tell(0, count, f"token ids from {size / 1e6:,.1f} MB of text")
    with atomic_path(target) as temporary:
        with temporary.open("wb") as file:
            for part in parts:
                file.write(part.ids.astype(kind).tobytes())
                lengths.append(part.lengths)
                cut, done = cut + part.cut, done + len(part.lengths)
                tell(done, count, "")
        with atomic_path(target.with_suffix(".npz")) as beside:
            np.savez(beside, lengths=np.concatenate(lengths), cut=cut)


def _load(target: Path, kind: np.dtype) -> Ids | None:
    try:
        with np.load(target.with_suffix(".npz"), allow_pickle=False) as beside:
            lengths, cut = beside["lengths"], int(beside["cut"])
        ids = np.memmap(target, kind, mode="r") if target.stat().st_size else np.empty(0, kind)
    except (OSError, ValueError, KeyError, EOFError):
        return None
    return Ids(ids, lengths, cut) if len(ids) == lengths.sum() else None


def read_tokenizer(given: str | Path) -> str:
    """The content of a tokenizer.json: of the path, or what is given itself where it is that already."""
    if isinstance(given, str) and given.lstrip().startswith("{"):
        return given
    path = Path(given)
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        return json.dumps(json.loads(path.read_text("utf-8")), ensure_ascii=False, separators=(",", ":"))
    except OSError as error:
        raise UserError(f"{path}: the tokenizer cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{path}: not a tokenizer.json: {error}") from None
