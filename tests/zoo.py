"""One instance of every part, for the laws in test_contracts.py: a new part is one file and one row here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from sklearn.datasets import load_digits

from modicum.core import seeds
from modicum.core.spec import build, parse, part
from modicum.core.types import Batch, Input, Objective, Trunk
from modicum.nn.encoder import tower


@dataclass(frozen=True)
class Row:
    """A part by its `name`, which instance of it this is, and how it is made."""

    name: str
    which: str
    make: Callable[[], Any]
    batch: Callable[[], Batch] | None = None

    def __str__(self) -> str:
        return f"{self.name}-{self.which}"


def kind(modality: str) -> type[Input]:
    return part("modality", modality)


@cache
def pictures() -> Any:
    """Twelve real grey digits as raw rows."""
    x = load_digits().images[:12]
    return kind("images").as_raw((x * (255 / 16)).round().astype(np.uint8))


@cache
def colours() -> Any:
    """Twelve random colour images, not square, so that crops have room."""
    return kind("images").as_raw(np.random.default_rng(0).integers(0, 256, (12, 15, 11, 3), np.uint8))


@cache
def cases(numeric: bool = True, categorical: bool = True) -> pa.Table:
    """Twelve rows of numbers (a date in seconds among them), texts and truths, with missing cells."""
    rng = np.random.default_rng(1)
    date = [1.7e9 + 10 * v for v in rng.standard_normal(12)]
    # Even and odd rows both hold a missing cell of every column: half of the rows must do to see everything.
    columns: dict[str, Any] = {
        "length": [None, None, *rng.standard_normal(10).tolist()],
        "date": [*date[:10], None, None],
        "count": [3, 5, None, None, 1, 2, 8, 9, 4, 4, 2, 7],
    }
    texts: dict[str, Any] = {
        "colour": ["red", "red", "blue", "blue", None, None, "green", "green", "red", "blue", "red", "green"],
        "sick": [True, True, False, False, None, None, True, False, True, True, False, False],
        "code": list("abcabcabcabc"),
    }
    return pa.table({**(columns if numeric else {}), **(texts if categorical else {})})


def dated() -> pa.Table:
    """The mixed table with dates as ISO texts, one missing."""
    days = [f"2026-01-{day:02d}" if day % 5 else None for day in range(1, 13)]
    return cases().append_column("day", pa.array(days, pa.string()))


@cache
def sentences() -> Any:
    """Twelve different texts of several lengths, scripts and symbols."""
    words = ["the", "small", "brown", "dog", "sees", "a", "cat", "and", "an", "owl", "under", "old", "trees"]
    texts = [" ".join(words[k % 5 : k % 5 + 3 + k % 7]) + f" {k}" for k in range(9)]
    return kind("text").as_raw([*texts, "Ωμέγα, naïve 東京 🦉", "<eos> is no special token here", "two\nlines"])


@cache
def curves() -> Any:
    """Twelve series of two channels, of several lengths, with missing points in even and odd rows."""
    rng = np.random.default_rng(2)
    series = [rng.standard_normal((2, 9 + 2 * (k // 2 % 3))).cumsum(1) for k in range(12)]
    for k, x in enumerate(series):
        x[k // 2 % 2, 2 + k % 3] = np.nan
    return kind("series").as_raw(series)


@cache
def drugs() -> Any:
    """Twelve molecules: rings, charges, stereochemistry, a single atom."""
    texts = ["CCO", "c1ccccc1", "CC(=O)[O-]", "C[C@H](N)C(=O)O", "F/C=C/F", "C", "N#CC1CC1", "O=S(=O)(O)c1ccccc1"]
    return kind("graphs").as_raw([*texts, "C[N+](C)(C)C", "c1ccc2[nH]ccc2c1", "BrCCCl", "CC(C)=O"])


@cache
def networks(of_nodes: bool = False) -> Any:
    """Graphs with numbers, texts and gaps on nodes and edges; with `of_nodes` one graph whose nodes are the rows."""
    rng = np.random.default_rng(3)

    def graph(n: int) -> dict[str, Any]:
        nodes: list[dict[str, Any]] = [
            {"id": k, "kind": "abc"[k % 3], "size": float(rng.standard_normal()), "age": None if k % 4 == 3 else k}
            for k in range(n)
        ]
        if of_nodes:
            nodes = [{**node, "label": "yes" if k % 2 else "no"} for k, node in enumerate(nodes)]
        ends = [(k, (k + 1) % n) for k in range(n)] + [(0, n // 2)]
        edges = [{"source": i, "target": j, "weight": float(rng.random()), "how": "xy"[(i + j) % 2]} for i, j in ends]
        return {"nodes": nodes, "edges": edges}

    return kind("graphs").as_raw([graph(12)] if of_nodes else [graph(4 + k % 2) for k in range(12)])


def all_rows(modality: str, raw: Any) -> tuple[Input, Batch]:
    size = raw.num_rows if isinstance(raw, pa.Table) else len(raw)
    made = kind(modality).infer(raw, np.arange(size))
    return made, made.pack(raw).source.rows(np.arange(size))


@cache
def images() -> tuple[Input, Batch]:
    return all_rows("images", pictures())


@cache
def tables() -> tuple[Input, Batch]:
    return all_rows("tables", cases())


@cache
def couples(numeric: bool = True) -> pa.Table:
    """Twelve pairs of cases; the right ones are mixed, the left ones also of numbers alone."""
    left, right = cases(categorical=not numeric), cases().take(pa.array(np.roll(np.arange(12), 5)))
    sides = {f"{side}.{c}": t.column(c) for side, t in (("left", left), ("right", right)) for c in t.column_names}
    return kind("pairs").as_raw(pa.table(sides))


@cache
def pairs() -> tuple[Input, Batch]:
    return all_rows("pairs", couples())


@cache
def texts() -> tuple[Input, Batch]:
    return all_rows("text", sentences())


@cache
def series() -> tuple[Input, Batch]:
    raw = curves()
    made = kind("series").infer(raw, np.arange(len(raw)), patch=2)  # type: ignore[call-arg]
    return made, made.pack(raw).source.rows(np.arange(len(raw)))


@cache
def graphs() -> tuple[Input, Batch]:
    return all_rows("graphs", drugs())


@cache
def members() -> tuple[Input, Batch]:
    return all_rows("graphs", networks(True))


def trunk(text: str, dim: int = 3, grid: tuple[int, ...] = (8, 8)) -> Callable[[], Trunk]:
    def make() -> Trunk:
        with seeds.forked(0, "init"):
            return build("trunk", text, dim=dim, grid=grid)

    return make


def objective(
    text: str, encoder: str, given: Callable[[], tuple[Input, Batch]], **context: Any
) -> Callable[[], Objective]:
    def make() -> Objective:
        with seeds.forked(0, "init"):
            return build("objective", parse(text), encoder=tower(given()[0], encoder), **context)

    return make


def with_target(given: Callable[[], tuple[Input, Batch]], numbers: bool) -> Callable[[], Batch]:
    def batch() -> Batch:
        rows = given()[1]
        target = torch.arange(len(next(iter(rows.values())))) % 3
        return {**rows, "target": 5 + 2.5 * target.float() if numbers else target}

    return batch


def some_labels(given: Callable[[], tuple[Input, Batch]]) -> Callable[[], Batch]:
    """The rows with classes, every fourth unknown."""

    def batch() -> Batch:
        rows = with_target(given, False)()
        unknown = torch.arange(len(rows["target"])) % 4 == 3
        return {**rows, "target": rows["target"].masked_fill(unknown, -1)}

    return batch


def in_halves(given: Callable[[], tuple[Input, Batch]]) -> Callable[[], Batch]:
    """Pairs of the first half of the rows with the second, of which every other one is similar."""

    def batch() -> Batch:
        rows = given()[1]
        half = len(next(iter(rows.values()))) // 2
        return {**{k: v[: 2 * half] for k, v in rows.items()}, "similar": (torch.arange(half) % 2).repeat(2)}

    return batch


def in_thirds(given: Callable[[], tuple[Input, Batch]]) -> Callable[[], Batch]:
    """Triplets of the first, second and last third of the rows."""

    def batch() -> Batch:
        rows = given()[1]
        return {k: v[: len(v) // 3 * 3] for k, v in rows.items()}

    return batch


BERT = {"model_type": "bert", "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT |= {"intermediate_size": 24, "max_position_embeddings": 40, "hidden_dropout_prob": 0.0}
BERT |= {"attention_probs_dropout_prob": 0.0}
GPT2 = {"model_type": "gpt2", "vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40}
VIT = {"model_type": "vit", "image_size": 8, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2}
VIT |= {"num_attention_heads": 2, "intermediate_size": 24}
CLIP: dict[str, Any] = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 8, "patch_size": 4, "width": 16, "layers": 2, "head_width": 8},
    "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}

TRUNKS = [
    Row("convnet", "batch", trunk("convnet(width=4, stages=2)")),
    Row("convnet", "group", trunk("convnet(width=4, stages=3, blocks=2, norm='group', kernel=3, stride=1)")),
    Row("convnet", "odd", trunk("convnet(width=4, stages=2)", dim=1, grid=(9, 7))),
    Row("convnet", "tokens", trunk("convnet(width=4, stages=2, cells=0)")),
    Row("convnet", "large", trunk("convnet(width=2, stages=5)", dim=1, grid=(97, 96))),
    Row("resnet", "10", trunk("resnet(10, width=4)")),
    Row("resnet", "50-group", trunk("resnet(50, width=2, norm='group', act='silu', drop_path=.1)", dim=1, grid=(9, 7))),
    Row("resnet", "imagenet", trunk("resnet(10, width=4, stem='imagenet')", dim=3, grid=(34, 36))),
    Row("mixer", "image", trunk("mixer(width=8, depth=2)", dim=3, grid=(12, 16))),
    Row(
        "mixer", "sequence", trunk("mixer(width=8, depth=2, act='swiglu', dropout=.1, drop_path=.1)", dim=4, grid=(6,))
    ),
    Row("mlp", "sample", trunk("mlp(width=16, depth=3)", dim=4, grid=(6,))),
    Row("mlp", "sample-layer", trunk("mlp(width=16, norm='layer', act='gelu')", dim=4, grid=(6,))),
    Row("mlp", "sample-none", trunk("mlp(width=16, norm='none', act='tanh')", dim=1, grid=(3, 2))),
    Row("mlp", "sample-dropout", trunk("mlp(width=16, dropout=.3, act='silu')", dim=4, grid=(6,))),
    Row("mlp", "set", trunk("mlp(width=16, over='set')", dim=4, grid=(6,))),
    Row("recurrent", "lstm", trunk("recurrent(width=8, depth=2, dropout=.1)", dim=4, grid=(6,))),
    Row("recurrent", "rnn", trunk("recurrent(cell='rnn', width=8)", dim=1, grid=(3, 2))),
    Row("recurrent", "gru-attention", trunk("recurrent(cell='gru', width=8, attention=True)", dim=4, grid=(6,))),
    Row("recurrent", "both", trunk("recurrent(width=4, depth=2, bidirectional=True)", dim=4, grid=(6,))),
    Row(
        "recurrent",
        "both-attention",
        trunk("recurrent('gru', width=4, bidirectional=True, attention=True)", dim=4, grid=(6,)),
    ),
    Row("transformer", "sequence", trunk("transformer(width=16, depth=2, heads=2)", dim=4, grid=(6,))),
    Row(
        "transformer",
        "post-norm",
        trunk(
            "transformer(width=16, depth=2, heads=2, prenorm=False, positions='sincos', dropout=.1)", dim=16, grid=(6,)
        ),
    ),
    Row(
        "transformer",
        "rotary-rms-swiglu",
        trunk(
            "transformer(width=16, depth=2, heads=2, norm='rms', positions='rotary', act='swiglu', ratio=2., "
            "drop_path=.1)",
            dim=4,
            grid=(6,),
        ),
    ),
    Row("transformer", "vit", trunk("transformer(width=16, depth=2, heads=2, patch=2, class_token=True)")),
    Row(
        "transformer",
        "vit-rotary",
        trunk("transformer(width=16, depth=2, heads=2, patch=2, positions='rotary')", dim=1, grid=(4, 6)),
    ),
    Row(
        "transformer",
        "causal",
        trunk("transformer(width=16, depth=2, heads=2, causal=True, act='gelu_tanh')", dim=16, grid=(6,)),
    ),
    Row(
        "transformer",
        "causal-pixels",
        trunk("transformer(width=16, depth=2, heads=2, causal=True, patch=1, positions='rotary')", dim=1, grid=(3, 2)),
    ),
    Row("transformer", "edges", trunk("transformer(width=16, depth=2, heads=2, edges='bias')", dim=4, grid=(7,))),
    Row(
        "transformer",
        "edges-features",
        trunk("transformer(width=16, depth=2, heads=2, edges='bias', edge_dim=3, class_token=True)", dim=4, grid=(7,)),
    ),
    Row("graph", "gin", trunk("graph(width=8, depth=2, dropout=.1)", dim=4, grid=(7,))),
    Row("graph", "gine", trunk("graph(width=8, depth=2, edge_dim=3, readout='sum')", dim=4, grid=(7,))),
    Row("graph", "gcn", trunk("graph('gcn', width=8, depth=2, jump='cat', norm='rms')", dim=4, grid=(7,))),
    Row("graph", "gcn-batch", trunk("graph('gcn', width=8, norm='batch', residual=False)", dim=4, grid=(7,))),
    Row("graph", "gat", trunk("graph('gat', width=8, heads=2, act='gelu')", dim=4, grid=(2, 4))),
    Row("graph", "gat-features", trunk("graph('gat', width=8, depth=1, norm='none', edge_dim=2)", dim=4, grid=(7,))),
    Row("mlp", "set-none", trunk("mlp(width=16, over='set', norm='none', act='sigmoid', depth=1)", dim=4, grid=(2, 3))),
    Row("temporal", "both", trunk("temporal(width=8, depth=2, kernel=4, dropout=.1)", dim=4, grid=(6,))),
    Row("temporal", "causal", trunk("temporal(width=8, depth=2, causal=True, act='silu')", dim=4, grid=(6,))),
    Row("timm", "convolutions", trunk("timm('test_resnet')", grid=(32, 32))),
    Row("timm", "patches", trunk("timm('test_vit', size=32)", grid=(32, 32))),
    Row("hf", "bert", trunk(f"hf('tiny', config={BERT})", dim=16, grid=(6,))),
    Row("hf", "gpt2", trunk(f"hf('tiny', config={GPT2})", dim=16, grid=(6,))),
    Row("hf", "vit", trunk(f"hf('tiny', config={VIT})", grid=(8, 8))),
    Row("open_clip", "image", trunk(f"open_clip('tiny', config={CLIP})", grid=(8, 8))),
    Row("open_clip", "text", trunk(f"open_clip('tiny', tower='text', config={CLIP})", dim=16, grid=(6,))),
]

PAIR = "pair(left=mlp(width=8), right=mlp(width=6, over='set'), rank=4)"
OUTER = "pair(left=mlp(width=4), right=mlp(width=4), rank=None, linear=False)"
WORDS = "transformer(width=16, depth=2, heads=2)"
GPT = "transformer(width=16, depth=1, heads=2, causal=True)"
VISION = "transformer(width=16, depth=1, heads=2, patch=2)"
GIN = "graph(width=16, depth=2)"
CONV, MLP, SET = "convnet(width=4, stages=2)", "mlp(width=16)", "mlp(width=16, over='set')"
MIXER = "mixer(width=8, depth=1)"
RNN, ATTENTION = "recurrent('gru', width=8)", "transformer(width=16, depth=1, heads=2)"

OBJECTIVES = [
    Row("simclr", "images", objective("simclr(hidden=16, out=8)", CONV, images), lambda: images()[1]),
    Row("simclr", "images-n4", objective("simclr(n=4, hidden=16, out=8)", CONV, images), lambda: images()[1]),
    Row("simclr", "tables", objective("simclr(hidden=16, out=8)", MLP, tables), lambda: tables()[1]),
    Row("simclr", "text", objective("simclr(hidden=16, out=8)", SET, texts), lambda: texts()[1]),
    Row("autoencoder", "images", objective("autoencoder(code=6)", CONV, images), lambda: images()[1]),
    Row("autoencoder", "denoising", objective("autoencoder(code=6, noise=.5)", CONV, images), lambda: images()[1]),
    Row("autoencoder", "tables", objective("autoencoder(code=6, noise=.2)", MLP, tables), lambda: tables()[1]),
    Row("autoencoder", "tables-set", objective("autoencoder(code=6)", SET, tables), lambda: tables()[1]),
    Row("autoencoder", "text-set", objective("autoencoder(code=6, noise=.2)", SET, texts), lambda: texts()[1]),
    Row("masked", "images", objective("masked(ratio=.4)", CONV, images), lambda: images()[1]),
    Row("masked", "images-mlp", objective("masked(swap=.2, same=.2)", MLP, images), lambda: images()[1]),
    Row("masked", "tables", objective("masked(ratio=.3)", MLP, tables), lambda: tables()[1]),
    Row("autoencoder", "images-recurrent", objective("autoencoder(code=6)", RNN, images), lambda: images()[1]),
    Row("autoencoder", "images-transformer", objective("autoencoder(code=6)", ATTENTION, images), lambda: images()[1]),
    Row("autoencoder", "tables-recurrent", objective("autoencoder(code=6)", RNN, tables), lambda: tables()[1]),
    Row("masked", "images-visible", objective("masked(ratio=.6)", VISION, images), lambda: images()[1]),
    Row("masked", "tables-visible", objective("masked()", WORDS, tables), lambda: tables()[1]),
    Row("masked", "text", objective("masked(ratio=.3)", WORDS, texts), lambda: texts()[1]),
    Row("masked", "text-bert", objective("masked(ratio=.5, swap=.2, same=.2)", WORDS, texts), lambda: texts()[1]),
    Row("next_token", "text", objective("next_token()", GPT, texts), lambda: texts()[1]),
    Row("next_token", "text-rnn", objective("next_token(tie=False)", "recurrent(width=16)", texts), lambda: texts()[1]),
    Row("denoising", "text", objective("denoising(views={'delete': .5})", WORDS, texts), lambda: texts()[1]),
    Row("denoising", "text-rnn", objective("denoising()", "recurrent('gru', width=16)", texts), lambda: texts()[1]),
    Row("simclr", "series", objective("simclr(hidden=16, out=8)", WORDS, series), lambda: series()[1]),
    Row("masked", "series", objective("masked(ratio=.4)", WORDS, series), lambda: series()[1]),
    Row("masked", "series-rnn", objective("masked()", RNN, series), lambda: series()[1]),
    Row("autoencoder", "series-mlp", objective("autoencoder(code=6)", MLP, series), lambda: series()[1]),
    Row("autoencoder", "series-rnn", objective("autoencoder(code=6, noise=.2)", RNN, series), lambda: series()[1]),
    Row("autoencoder", "series-mixer", objective("autoencoder(code=6)", MIXER, series), lambda: series()[1]),
    Row("simclr", "series-mixer", objective("simclr(hidden=16, out=8)", MIXER, series), lambda: series()[1]),
    Row("simclr", "text-mixer", objective("simclr(hidden=16, out=8)", MIXER, texts), lambda: texts()[1]),
    Row("masked", "series-mixer", objective("masked()", MIXER, series), lambda: series()[1]),
    Row("masked", "text-mixer", objective("masked()", MIXER, texts), lambda: texts()[1]),
    Row("latent_masked", "text-mixer", objective("latent_masked()", MIXER, texts), lambda: texts()[1]),
    Row("masked", "graphs-mixer", objective("masked()", MIXER, graphs), lambda: graphs()[1]),
    Row("next_token", "series", objective("next_token()", GPT, series), lambda: series()[1]),
    Row("next_token", "series-rnn", objective("next_token()", "recurrent(width=16)", series), lambda: series()[1]),
    Row("denoising", "series", objective("denoising(views={'mask': .5})", WORDS, series), lambda: series()[1]),
    Row("supervised", "classes", objective("supervised(3, smoothing=.1)", CONV, images), with_target(images, False)),
    Row(
        "supervised",
        "numbers",
        objective("supervised(1, task='numbers', shift=7.5, scale=2.)", MLP, tables),
        with_target(tables, True),
    ),
    Row(
        "supervised",
        "views",
        objective("supervised(3, views={'crop': (.5, 1.), 'flip': 0.})", CONV, images),
        with_target(images, False),
    ),
    Row("supervised", "pair", objective("supervised(3)", PAIR, pairs), with_target(pairs, False)),
    Row(
        "supervised", "pair-rating", objective("supervised(1, task='numbers')", OUTER, pairs), with_target(pairs, True)
    ),
    Row("supervised", "pairs-mlp", objective("supervised(3)", MLP, pairs), with_target(pairs, False)),
    Row("simclr", "graphs", objective("simclr(hidden=16, out=8)", GIN, graphs), lambda: graphs()[1]),
    Row("simclr", "nodes", objective("simclr(hidden=16, out=8)", GIN, members), lambda: members()[1]),
    Row("masked", "graphs", objective("masked(ratio=.3)", GIN, graphs), lambda: graphs()[1]),
    Row("masked", "nodes", objective("masked(ratio=.5, swap=.2)", GIN, members), lambda: members()[1]),
    Row("autoencoder", "graphs", objective("autoencoder(code=6)", GIN, graphs), lambda: graphs()[1]),
    Row("supervised", "graphs", objective("supervised(3)", GIN, graphs), with_target(graphs, False)),
    Row("simclr", "pair", objective("simclr(hidden=16, out=8)", PAIR, pairs), lambda: pairs()[1]),
    Row("masked", "images-normalised", objective("masked(normalise=True)", VISION, images), lambda: images()[1]),
    Row("vae", "images", objective("vae(code=4)", CONV, images), lambda: images()[1]),
    Row("vae", "tables", objective("vae(code=4, beta=.5, free_bits=.01)", MLP, tables), lambda: tables()[1]),
    Row("vae", "text", objective("vae(code=4)", SET, texts), lambda: texts()[1]),
    Row("vae", "series", objective("vae(code=4)", RNN, series), lambda: series()[1]),
    Row("next_token", "tables", objective("next_token()", GPT, tables), lambda: tables()[1]),
    Row("next_token", "images", objective("next_token()", GPT, images), lambda: images()[1]),
    Row(
        "next_token",
        "images-patches",
        objective("next_token()", "transformer(width=16, depth=1, heads=2, patch=2, causal=True)", images),
        lambda: images()[1],
    ),
    Row("supcon", "images", objective("supcon(hidden=16, out=8)", CONV, images), some_labels(images)),
    Row("supcon", "text", objective("supcon(hidden=16, out=8)", SET, texts), some_labels(texts)),
    Row("triplet", "hard", objective("triplet(None, 'hard', hidden=16, out=8)", CONV, images), some_labels(images)),
    Row("triplet", "random", objective("triplet(1., 'random', hidden=16, out=8)", MLP, tables), some_labels(tables)),
    Row("triplet", "given", objective("triplet(hidden=16, out=8)", GIN, graphs, from_file=True), in_thirds(graphs)),
    Row("pairs", "text", objective("pairs(hidden=16, out=8)", SET, texts), in_halves(texts)),
    Row("pairs", "images", objective("pairs(hidden=16, out=8)", CONV, images), in_halves(images)),
    *(
        Row(name, which, objective(f"{name}({extra}hidden=16, out=8)", encoder, given), lambda given=given: given()[1])
        for name, extra in (
            ("vicreg", "n=3, "),
            ("barlow", ""),
            ("lejepa", "n=3, count=8, "),
            ("byol", ""),
            ("moco", "queue=30, "),
            ("dino", "n=3, prototypes=12, "),
        )
        for which, encoder, given in (("images", CONV, images), ("text", SET, texts), ("graphs", GIN, graphs))
    ),
    Row("latent_masked", "images", objective("latent_masked()", CONV, images), lambda: images()[1]),
    Row("latent_masked", "images-visible", objective("latent_masked(.6)", VISION, images), lambda: images()[1]),
    Row("latent_masked", "tables-mlp", objective("latent_masked(.3)", MLP, tables), lambda: tables()[1]),
    Row("latent_masked", "text", objective("latent_masked()", WORDS, texts), lambda: texts()[1]),
    Row("latent_masked", "series", objective("latent_masked()", RNN, series), lambda: series()[1]),
    Row("latent_masked", "graphs", objective("latent_masked()", GIN, graphs), lambda: graphs()[1]),
    Row(
        "combined",
        "two",
        objective("masked(ratio=.5) + .1*vicreg(hidden=16, out=8)", CONV, images),
        lambda: images()[1],
    ),
    Row(
        "combined",
        "semi",
        objective("simclr(hidden=16, out=8) + supervised()", MLP, tables, outputs=3),
        some_labels(tables),
    ),
]

MODALITIES = [
    Row("images", "grey", pictures),
    Row("images", "colour", colours),
    Row("tables", "mixed", cases),
    Row("pairs", "tables", couples),
    Row("pairs", "mixed", lambda: couples(False)),
    Row("text", "sentences", sentences),
    Row("series", "ragged", curves),
    Row("graphs", "molecules", drugs),
    Row("graphs", "networks", networks),
    Row("graphs", "nodes", lambda: networks(True)),
    Row("tables", "numeric", lambda: cases(categorical=False)),
    Row("tables", "dates", dated),
    Row("tables", "categorical", lambda: cases(numeric=False)),
]
