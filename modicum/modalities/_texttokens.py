"""From texts to token ids: the tokenizer, trained or adopted, and ids packed into a memory-mapped file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from modicum.core.atomic import atomic_path
from modicum.core.errors import UserError, need
from modicum.core.types import Batch, Progress, Source, Windows
from modicum.modalities._files import cache_dir
from modicum.modalities._textfiles import STEP, RawTexts, hashes_of

SPECIAL = {
    "pad": ("<pad>", "[PAD]"),
    "mask": ("<mask>", "[MASK]"),
    "bos": ("<bos>", "[CLS]", "<s>", "<|endoftext|>"),
    "eos": ("<eos>", "[SEP]", "</s>", "<|endoftext|>"),
}
"""What tokenizers call the tokens that stand for no text."""
SAMPLE = 1 << 24  # bytes of text that a vocabulary is learned from, at most
IN_MEMORY = 1 << 20  # texts of fewer characters are not worth a file
FORMAT = 2
KINDS = ("u4", "i8", "i8", "i8", "u8")
"""How lengths, starts, first, keep and hashes are kept in files."""
FEW = 64
"""Of the texts with the most bytes, so many are tokenized at a time."""


@lru_cache(maxsize=8)
def tokenizer_of(text: str, length: int | None = None) -> Any:
    """The tokenizer of a tokenizer.json, in windows of `length` tokens; special tokens in texts are text as any."""
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
    if length is not None:  # what is over comes as further windows, with special tokens of their own
        made.enable_truncation(length)
    return made


def special(text: str) -> dict[str, int]:
    """The ids of the tokens pad, mask, bos and eos, those that the tokenizer has."""
    made = tokenizer_of(text)
    found = {role: [made.token_to_id(n) for n in names] for role, names in SPECIAL.items()}
    return {
        role: next(i for i in ids if i is not None) for role, ids in found.items() if any(i is not None for i in ids)
    }


def tokenizer_for(raw: RawTexts, column: str, index: np.ndarray, given: str | Path, vocabulary: int | None) -> str:
    """The content of the tokenizer that is `given`: bpe or wordpiece, trained on the texts `index`, or a file's."""
    if given in TRAINED:
        return train(raw, column, index, vocabulary, str(given))
    if vocabulary is not None:
        raise UserError(f"a vocabulary of {vocabulary} is for a tokenizer that is trained: {', '.join(TRAINED)}")
    return read_tokenizer(given)


def train(raw: RawTexts, column: str, index: np.ndarray, vocabulary: int | None, kind: str = "bpe") -> str:
    """A tokenizer trained on the texts `index`, as the content of its tokenizer.json.

    `bpe`: byte-level BPE (Radford et al. 2019): <pad> 0, <mask> 1, <bos> 2, <eos> 3, the 256 bytes, then merges; rows
    become <bos> ... <eos>. `wordpiece`: that of BERT (Devlin et al. 2019), lower case, no accents; characters that it
    never saw are [UNK]. At most `vocabulary` tokens in all (of wordpiece not fewer than characters), by default one for
    every 64 bytes of text between 512 and 8,192, and from 2 MB on one for every 256 bytes, at most 32,768.
    """
    library = need("tokenizers", "text")
    size = sum(int(sizes.sum()) for sizes in raw.sizes(column, index))
    some = index[:: max(1, -(-size // SAMPLE))]

    def texts() -> Iterator[str]:
        return (text[:SAMPLE] for texts in raw.read(column, some) for text in texts)

    made = TRAINED[kind](library, vocabulary or max(512, min(8192, size // 64), min(32768, size // 256)), texts)
    first, last = (next(n for n in SPECIAL[role] if made.token_to_id(n) is not None) for role in ("bos", "eos"))
    ends = [(name, made.token_to_id(name)) for name in (first, last)]
    made.post_processor = library.processors.TemplateProcessing(single=f"{first} $A {last}", special_tokens=ends)
    return made.to_str()


def _bpe(library: Any, vocabulary: int, texts: Callable[[], Iterator[str]]) -> Any:
    made = library.Tokenizer(library.models.BPE())
    # With a space before the first word too, a word is the same token wherever it stands.
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[SPECIAL[role][0] for role in ("pad", "mask", "bos", "eos")],
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(texts(), trainer)
    return made


def _wordpiece(library: Any, vocabulary: int, texts: Callable[[], Iterator[str]]) -> Any:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

    def trained(size: int, first: list[str]) -> dict[str, int]:
        made = tokenizer(None)
        options: dict[str, Any] = {"min_frequency": 2, "show_progress": False}
        made.train_from_iterator(
            texts(), library.trainers.WordPieceTrainer(vocab_size=size, special_tokens=first, **options)
        )
        vocabulary: dict[str, int] = json.loads(made.to_str())["model"]["vocab"]
        return vocabulary

    def tokenizer(vocab: dict[str, int] | None) -> Any:
        made = library.Tokenizer(library.models.WordPiece(vocab, unk_token="[UNK]"))
        made.normalizer = library.normalizers.BertNormalizer()
        made.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
        made.decoder = library.decoders.WordPiece()
        return made

    # Left alone, the trainer numbers the characters within words in another order every time: they are given to it.
    inner = sorted(token for token in trained(0, special) if token.startswith("##"))
    made = tokenizer(trained(vocabulary, [*special, *inner]))
    made.add_special_tokens(special)
    return made


TRAINED = {"bpe": _bpe, "wordpiece": _wordpiece}
"""Tokenizers that are trained on the texts."""


def longest(text: str, raw: RawTexts, column: str, index: np.ndarray, enough: int) -> int:
    """The most tokens that one of the texts `index` has, or a number from `enough` on where one has more than that.

    Of many texts only those with the most bytes are counted.
    """
    size, most, start = np.empty(0, int), np.empty(0, int), 0
    for sizes in raw.sizes(column, index):
        size = np.concatenate([size, sizes])
        most = np.concatenate([most, index[start : start + len(sizes)]])
        start += len(sizes)
        best = np.argsort(-size, kind="stable")[:STEP]
        size, most = size[best], most[best]
    made, found = tokenizer_of(text), 0
    for start in range(0, len(most), FEW):
        for texts in raw.read(column, most[start : start + FEW]):
            found = max(found, *(len(e.ids) for e in made.encode_batch_fast(texts)))
            if found >= enough:
                return found
    return found


class Sentences:
    """Token ids of rows as a Source of {"ids" (b, t) long, "mask" (b, t)}, 0 where padded.

    Row i has `lengths[i]` of `ids` from `starts[i]` on; without `starts` the rows are one after the other.
    """

    def __init__(self, ids: np.ndarray, lengths: np.ndarray, starts: np.ndarray | None = None) -> None:
        self.ids, self.lengths, self.size = ids, lengths, len(lengths)
        self.starts = np.cumsum(lengths, dtype=np.int64) - lengths if starts is None else starts

    def rows(self, index: np.ndarray) -> Batch:
        return _padded(self.ids, self.starts[index], self.lengths[index])


class Whole:
    """Rows as a whole: those windows of each that begin at the numbers `first` (n + 1,), one after the other."""

    def __init__(self, parts: Sentences, first: np.ndarray) -> None:
        self.parts, self.first, self.size = parts, first, len(first) - 1

    def _lengths(self, index: np.ndarray) -> np.ndarray:
        last = self.first[index + 1] - 1
        return self.parts.starts[last] + self.parts.lengths[last] - self.parts.starts[self.first[index]]

    @cached_property
    def lengths(self) -> np.ndarray:
        return self._lengths(np.arange(self.size))

    def rows(self, index: np.ndarray) -> Batch:
        return _padded(self.parts.ids, self.parts.starts[self.first[index]], self._lengths(index))


class Documents:
    """Rows of which some have several windows, as a Source of each one's first."""

    def __init__(self, parts: Sentences, first: np.ndarray) -> None:
        self.windows, self.size = Windows(parts, first, Whole(parts, first)), len(first) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        lengths: np.ndarray = self.windows.parts.lengths[self.windows.starts[:-1]]  # type: ignore[attr-defined]
        return lengths

    def rows(self, index: np.ndarray) -> Batch:
        return self.windows.parts.rows(self.windows.starts[index])


def _padded(tokens: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> Batch:
    place = np.arange(max(1, int(lengths.max(initial=0))))
    mask = place < lengths[:, None]
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = tokens[(starts[:, None] + place)[mask]]
    return {"ids": torch.from_numpy(ids), "mask": torch.from_numpy(mask)}


class Held(NamedTuple):
    """Token ids of all windows one after the other, each window's `lengths` and `starts` in them, the rows to `keep`
    (those that hold text), and of these the number of the `first` window and the hashes."""

    ids: np.ndarray
    lengths: np.ndarray
    starts: np.ndarray
    first: np.ndarray
    keep: np.ndarray
    hashes: np.ndarray

    def source(self) -> Source:
        """The rows as a source."""
        parts = Sentences(self.ids, self.lengths, self.starts)
        return parts if len(self.lengths) == len(self.keep) else Documents(parts, self.first)


def pack(raw: RawTexts, column: str, text: str, length: int, progress: Progress | None) -> Held:
    """Tokenize once, into the cache unless it is little."""
    made = tokenizer_of(text, length)
    kinds = dict(zip(Held._fields, ("u2" if made.get_vocab_size() <= 1 << 16 else "u4", *KINDS), strict=True))
    size = sum(int(sizes.sum()) for sizes in raw.sizes(column))
    if size < IN_MEMORY:
        parts = list(_encoded(made, raw, column))
        own = ([getattr(part, name) for part in parts] for name in kinds)
        return Held(*(np.concatenate([np.empty(0, k), *v]) for k, v in zip(kinds.values(), own, strict=True)))
    key = hashlib.blake2b(raw.key(column).encode() + text.encode(), digest_size=16).hexdigest()
    files = {name: cache_dir() / "texts" / f"{key}-{length}-{FORMAT}.{name}" for name in kinds}
    if (found := _load(files, kinds)) is None:
        try:
            _write(files, kinds, _encoded(made, raw, column), len(raw), size, progress)
        except OSError as error:
            raise UserError(
                f"{files['ids'].parent}: the token ids cannot be written here ({error.strerror or error}): free some "
                "space or set MODICUM_CACHE to a folder with room"
            ) from error
        found = _load(files, kinds)
        assert found is not None, files
    return found


def _encoded(made: Any, raw: RawTexts, column: str) -> Iterator[Held]:
    """What some rows become at a time, and last the number of all windows as the first one of no row."""
    row = place = window = 0
    for texts in raw.read(column):
        full = [k for k, text in enumerate(texts) if text]
        found = made.encode_batch_fast([texts[k] for k in full])
        rows = [(k, e) for k, e in zip(full, found, strict=True) if e.ids]
        counts = np.array([1 + len(e.overflowing) for _, e in rows], np.int64)
        windows = [w.ids for _, e in rows for w in (e, *e.overflowing)]
        lengths = np.array([*map(len, windows)], np.int64)
        ids = np.fromiter(chain.from_iterable(windows), np.uint32, int(lengths.sum()))
        keep = np.array([k for k, _ in rows], np.int64)
        starts, first = place + np.cumsum(lengths) - lengths, window + np.cumsum(counts) - counts
        yield Held(ids, lengths, starts, first, row + keep, hashes_of([texts[k] for k in keep]))
        window += len(lengths)
        row, place = row + len(texts), place + len(ids)
    none = np.empty(0, np.int64)
    yield Held(np.empty(0, np.uint32), none, none, np.array([window]), none, np.empty(0, np.uint64))


def _write(
    files: dict[str, Path], kinds: dict[str, str], parts: Iterator[Held], count: int, size: int,
    progress: Progress | None,
) -> None:  # fmt: skip
    tell, done = progress or (lambda *_: None), 0
    tell(0, count, f"token ids from {size / 1e6:,.1f} MB of text")
    with ExitStack() as stack:
        # The ids are entered first, so they are named last: where they are, all is.
        temporary = {name: stack.enter_context(atomic_path(file)) for name, file in files.items()}
        with ExitStack() as opened:
            out = {name: opened.enter_context(file.open("wb")) for name, file in temporary.items()}
            for part in parts:
                for name, values in part._asdict().items():
                    out[name].write(values.astype(kinds[name]).data)
                done += len(part.keep)
                if len(part.keep):
                    tell(done, count, "")


def _load(files: dict[str, Path], kinds: dict[str, str]) -> Held | None:
    try:
        found = Held(*(np.memmap(files[name], kind, mode="r") for name, kind in kinds.items()))
    except (OSError, ValueError):
        return None
    fits = len(found.lengths) == len(found.starts) == int(found.first[-1])
    fits &= len(found.first) == len(found.keep) + 1 == len(found.hashes) + 1
    return found if fits and len(found.ids) == int(found.starts[-1]) + int(found.lengths[-1]) else None


def read_tokenizer(given: str | Path) -> str:
    """The content of a tokenizer.json: of the path, or what is given itself where it is that already."""
    if isinstance(given, str) and given.lstrip().startswith("{"):
        return given
    path = Path(given)
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        return json.dumps(json.loads(path.read_text("utf-8")), ensure_ascii=False, separators=(",", ":"))
    except OSError as error:
        raise UserError(
            f"{path}: the tokenizer cannot be read: {error.strerror or error}; wanted a tokenizer.json, its folder, or "
            f"one that is trained: {', '.join(TRAINED)}"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: not a tokenizer.json: {error}") from None
