"""Claim: a small GPT on glosses needs fewer bits a byte than a byte n-gram model, gzip and xz.

`wordnet-nouns`: 74,000 glosses for training, 8,200 for testing; `next_token` with a byte-level BPE of 4,096 tokens
trained on the training glosses. Bits a byte: the test glosses' negative log2 likelihood (each with its end) over their
UTF-8 bytes (each with a newline). The n-gram model interpolates all orders by Witten and Bell's rule (1991); the best
order on the test glosses counts. A compressor's bits are those that the test glosses add to the training glosses.
"""

from __future__ import annotations

import gzip
import lzma
import math
import time
from pathlib import Path

import numpy as np
import torch
from _common import Bench, verdict

import modicum
from modicum.core import seeds
from modicum.modalities.text import Text
from modicum.training.apply import batches_of, evaluating


def contexts(data: np.ndarray, order: int) -> np.ndarray:
    """The number of the `order` bytes before each byte; what is before the first is 0."""
    out = np.zeros(len(data), np.uint64)
    for k in range(order, 0, -1):
        before = np.concatenate([np.zeros(k, np.uint64), data[:-k].astype(np.uint64)])
        out = out * np.uint64(256) + before
    return out


def found(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The values of sorted keys, 0 where a key is not there."""
    at = np.searchsorted(keys, wanted).clip(0, len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


def ngram(train: bytes, test: bytes, most: int = 6) -> list[float]:
    """Bits a byte of the test bytes by interpolated n-grams of order 1, 2, ..., `most` + 1."""
    a, b = (np.frombuffer(x, np.uint8) for x in (train, test))
    p, out = np.full(len(b), 1 / 256), []
    for order in range(most + 1):
        ctx_a, ctx_b = contexts(a, order), contexts(b, order)
        # A context of up to 6 bytes and the byte after it fit in 64 bits.
        pairs, counts = np.unique(ctx_a * np.uint64(256) + a, return_counts=True)
        keys, first, types = np.unique(pairs // np.uint64(256), return_index=True, return_counts=True)
        totals = np.add.reduceat(counts, first)
        count = found(pairs, counts, ctx_b * np.uint64(256) + b)
        total, kinds = found(keys, totals, ctx_b), found(keys, types, ctx_b)
        p = np.where(total > 0, (count + kinds * p) / np.maximum(total + kinds, 1), p)
        out.append(float(-np.log2(p).mean()))
    return out


def added(compress: object, train: bytes, test: bytes) -> float:
    """Bits a byte that the test bytes add to the compressed training bytes."""
    return 8 * (len(compress(train + test)) - len(compress(train))) / len(test)  # type: ignore[operator]


def nats(model: modicum.Model, packed: object) -> float:
    """The negative log likelihood of all rows."""
    objective, total = model.objective, 0.0
    with evaluating(objective), torch.no_grad():
        order = np.argsort(packed.source.lengths, kind="stable")
        for batch in batches_of(packed.source, order, torch.device("cpu"), 128):
            corrupted = objective.corrupt(batch, seeds.generator(0))
            predicted = batch["mask"].sum() - (len(batch["mask"]) if objective.start is None else 0)
            total += float(objective(corrupted)[0]) * float(predicted)
    return total


def main() -> None:
    bench = Bench("gpt", epochs=4, width=128, depth=4, vocabulary=4096)
    asked = bench.asked
    data = modicum.open_data("wordnet-nouns")
    is_test = np.array(data.table.column("split").to_pylist()) == "test"
    texts = np.array(data.table.column("text").to_pylist(), object)
    train, test = ("\n".join(texts[rows]).encode() + b"\n" for rows in (~is_test, is_test))
    print(f"   {len(train):,} bytes for training, {len(test):,} for testing")
    results = {f"{k + 1}-gram": bits for k, bits in enumerate(ngram(train, test))}
    results["gzip -9"] = added(lambda x: gzip.compress(x, 9), train, test)
    results["xz -9e"] = added(lambda x: lzma.compress(x, preset=9 | lzma.PRESET_EXTREME), train, test)
    raw, tokenizer = Text.as_raw(texts.tolist()), Path("runs/gpt-tokenizer.json")
    tokenizer.parent.mkdir(exist_ok=True)
    tokenizer.write_text(Text.infer(raw, np.flatnonzero(~is_test), vocabulary=asked.vocabulary).tokenizer)
    began = time.perf_counter()
    encoder = f"transformer(width={asked.width}, depth={asked.depth}, causal=True)"
    run = modicum.pretrain(
        "wordnet-nouns", objective="next_token", encoder=encoder, epochs=asked.epochs, batch=64, lr=2e-3,
        seed=asked.seed, tokenizer=str(tokenizer), out="runs/gpt", force=True,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    model = modicum.load(run)
    packed = model.open(texts[is_test].tolist())[1]
    assert packed.source.lengths.max() < model.input.length, "texts that were cut would cost too little"
    results["modicum GPT"] = nats(model, packed) / math.log(2) / len(test)
    for name, bits in results.items():
        print(f"{name:12} {bits:.3f} bits a byte")
        bench.row(name, bits, "bits/byte")
    bench.row("pre-training", seconds, "s")
    print(f"pre-training {seconds:.0f} s")
    for text in model.input.texts(model.sample(8, top_p=0.9, temperature=0.8, seed=asked.seed)):
        print("  ", text)
    best = min(bits for name, bits in results.items() if name != "modicum GPT")
    verdict("bits a byte against the best of the others", results["modicum GPT"], best, most=True)
    bench.finish()


if __name__ == "__main__":
    main()
