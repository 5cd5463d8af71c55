"""The laws of modalities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from scipy.sparse import issparse

from modicum.core import seeds
from modicum.core.errors import UserError
from modicum.core.ragged import join
from modicum.core.spec import names, parse, spec
from modicum.core.types import Batch, Input
from modicum.nn.encoder import Encoder
from modicum.testing.tools import (
    check_gradients,
    check_spec,
    equal_bits,
    leaves_random_alone,
    near,
    pick,
    refusal,
    same,
)
from modicum.testing.trunks import (
    weighted,
)


def rows_of(kind: type[Input], raw: Any) -> int:
    """How many raw rows there are."""
    return raw.num_rows if isinstance(raw, pa.Table) else len(raw)


def taken(raw: Any, index: np.ndarray) -> Any:
    """Raw rows `index`."""
    return raw.take(pa.array(index)) if isinstance(raw, pa.Table) else raw.take(index)


def fitted(kind: type[Input], raw: Any) -> tuple[Input, Batch]:
    """The input inferred from all rows, and all rows as a batch."""
    every = np.arange(rows_of(kind, raw))
    made = kind.infer(raw, every)
    return made, made.pack(raw).source.rows(every)


def modality_names(kind: type[Input], raw: Any) -> None:
    """The class names its modality, defaults that exist, and baselines."""
    assert kind.modality in names("modality"), f"modality '{kind.modality}' is not among {names('modality')}"
    trunk = parse(kind.default_trunk)["name"]
    assert trunk in names("trunk"), f"default_trunk '{kind.default_trunk}' is not among {names('trunk')}"
    known = names("objective")
    assert kind.default_objective in known, f"default_objective '{kind.default_objective}' is not among {known}"
    assert kind.baselines, "there is no simple baseline"


def modality_spec(kind: type[Input], raw: Any) -> None:
    """An inferred input, through JSON, builds one that embeds to the same bits with the same weights."""
    made, batch = fitted(kind, raw)
    again = check_spec("modality", made)
    a, b = made.embed(), again.embed()
    b.load_state_dict(a.state_dict())
    with torch.no_grad():
        assert equal_bits(a(batch).x, b(batch).x), "an input built from its spec embeds differently"
        rebuilt = again.pack(raw).source.rows(np.arange(rows_of(kind, raw)))
    assert same(batch, rebuilt), "an input built from its spec packs differently"


def modality_infer(kind: type[Input], raw: Any) -> None:
    """Statistics come from the given rows only: those of a subset equal those of the subset alone."""
    index = np.arange(rows_of(kind, raw))[::2]
    with leaves_random_alone("infer"):
        a, b = kind.infer(raw, index), kind.infer(taken(raw, index), np.arange(len(index)))
    assert spec("modality", a) == spec("modality", b), "infer looks at rows that it was not given"


def modality_source(kind: type[Input], raw: Any) -> None:
    """A source reads rows by number, in any order, repeated or alone, and what is done to them stays outside."""
    size = rows_of(kind, raw)
    packed = kind.infer(raw, np.arange(size)).pack(raw)
    source = packed.source
    assert source.size == size == len(packed.keep), f"{size} rows pack to {source.size}, keep {len(packed.keep)}"
    assert not packed.bad, f"good rows are reported as bad: {packed.bad}"
    assert packed.hashes.dtype == np.uint64, f"hashes are {packed.hashes.dtype}; wanted uint64"
    assert len(np.unique(packed.hashes)) == len(packed.hashes) == size, (
        "rows that differ share a hash, or some have none"
    )
    every = source.rows(np.arange(size))
    assert all(len(v) == size for v in every.values()), "a value of the batch is not one a row"
    for index in (np.array([size - 1, 0, 3, 3]), np.array([2]), np.arange(size)[::-1]):
        asked = pick(join([source.rows(index), every]), slice(len(index)))  # padded to the longest of all
        assert same(asked, pick(every, index.copy())), f"rows({index}) differ from those rows of all"
    kept = {k: v.clone() for k, v in every.items()}
    for value in source.rows(np.arange(size)).values():
        value.zero_()
    assert same(source.rows(np.arange(size)), kept), "changing a batch changes its source"
    order = np.arange(size)[::-1].copy()
    turned = kind.infer(raw, np.arange(size)).pack(taken(raw, order))
    assert (turned.hashes == packed.hashes[order]).all(), "a row's hash depends on its place"


def modality_embed(kind: type[Input], raw: Any) -> None:
    """`embed` gives finite float tokens of `dim` on `grid`, each sample for itself, and trains throughout."""
    made, batch = fitted(kind, raw)
    embed = made.embed()
    out = embed(batch)
    wanted = (rows_of(kind, raw), int(np.prod(embed.grid)), embed.dim)
    assert out.x.shape == wanted, f"dim and grid promise {wanted}; the tokens are {tuple(out.x.shape)}"
    assert tuple(out.grid) == tuple(embed.grid), f"tokens on grid {out.grid}; promised {embed.grid}"
    assert out.x.dtype == torch.float32, f"tokens are {out.x.dtype}"
    assert out.x.isfinite().all(), "tokens are not finite"
    assert near(embed(pick(batch, slice(2, 5))).x, out.x[2:5]), "a sample's tokens depend on the others"
    if next(embed.parameters(), None) is not None:
        check_gradients(embed, weighted(out.x))


def modality_unembed(kind: type[Input], raw: Any) -> None:
    """`unembed` says of tokens how far each is from the truth, and decodes them to a batch that embeds again."""
    made, batch = fitted(kind, raw)
    embed, unembed = made.embed(), made.unembed()
    size, t = rows_of(kind, raw), int(np.prod(embed.grid))
    x = torch.randn((size, t, unembed.dim), generator=seeds.generator(0, "tokens"), requires_grad=True)
    loss = unembed.loss(x, batch)
    assert loss.shape == (size, t), f"loss of tokens is {tuple(loss.shape)}; wanted one a token {(size, t)}"
    assert loss.isfinite().all(), "the loss is not finite"
    assert (loss >= 0).all(), "the loss is negative"
    check_gradients(unembed, loss.sum())
    assert x.grad is not None and x.grad.any(), "the loss does not depend on the tokens"  # noqa: PT018
    with torch.no_grad():
        out = unembed.decode(x)
        assert out.keys() <= batch.keys(), f"decode gives {sorted(out)}; a batch has {sorted(batch)}"
        assert embed(out).x.shape == (size, t, embed.dim), "decoded rows do not embed"


def modality_views(kind: type[Input], raw: Any) -> None:
    """Views are pure functions of (batch, generator) that keep keys, number of rows and what can be embedded."""
    made, batch = fitted(kind, raw)
    views, embed = made.views(), made.embed()
    given = {k: v.clone() for k, v in batch.items()}
    with leaves_random_alone("a view"):
        first, other = views(batch, seeds.generator(0)), views(batch, seeds.generator(1))
    assert same(batch, given), "a view changes the batch it is given"
    assert same(first, views(batch, seeds.generator(0))), "a view is not a function of its generator"
    assert not same(first, other), "two generators give one view"
    assert first.keys() == batch.keys(), f"a view turns {sorted(batch)} into {sorted(first)}"
    shape, before = embed(first).x.shape, embed(batch).x.shape
    if embed.ragged:  # a view may leave fewer tokens
        assert 0 < shape[1] <= before[1], f"a view of {before[1]} tokens has {shape[1]}"
        shape = (shape[0], before[1], shape[2])
    assert shape == before, "a view embeds to another shape"
    extra = torch.arange(rows_of(kind, raw))
    carried = views({**batch, "target": extra}, seeds.generator(0))
    assert same({**first, "target": extra}, carried), "a view does not hand on what it does not know"
    words = refusal(UserError, lambda: made.views(no_such_option=1))
    assert words, "an unknown option of views is accepted"
    assert "no_such_option" in words, f"the refusal does not name the option: {words}"


def modality_flat(kind: type[Input], raw: Any) -> None:
    """`flat` gives every row the same number of finite float32 features, whatever rows are asked."""
    made, batch = fitted(kind, raw)
    flat, part = (x.toarray() if issparse(x) else x for x in (made.flat(batch), made.flat(pick(batch, slice(2, 5)))))
    assert flat.ndim == 2, f"flat has shape {flat.shape}; wanted (rows, features)"
    assert len(flat) == rows_of(kind, raw), f"flat has {len(flat)} rows"
    assert flat.dtype == np.float32, f"flat is {flat.dtype}; wanted float32"
    assert np.isfinite(flat).all(), "flat is not finite"
    assert (part == flat[2:5]).all(), "flat features depend on the other rows"


def modality_show(kind: type[Input], raw: Any) -> None:
    """`show` gives every row a thumb or a text."""
    made, batch = fitted(kind, raw)
    shown = made.show(batch)
    assert len(shown) == rows_of(kind, raw), f"{len(shown)} rows shown of {rows_of(kind, raw)}"
    assert all(row.keys() & {"thumb", "text"} and all(isinstance(v, str) for v in row.values()) for row in shown), (
        shown[0]
    )


def modality_trunk(kind: type[Input], raw: Any) -> None:
    """The default trunk takes the modality's tokens; the encoder's own spec builds it again."""
    made, batch = fitted(kind, raw)
    encoder = Encoder.of(made, kind.default_trunk).eval()
    again = check_spec("encoder", encoder).eval()
    with torch.no_grad():
        a, b = encoder(batch).pooled, again(batch).pooled
    assert a.shape == (rows_of(kind, raw), encoder.dim), f"pooled features are {tuple(a.shape)}"
    assert equal_bits(a, b), "an encoder built from its spec gives other features"


MODALITY: dict[str, Callable[[type[Input], Any], None]] = {
    "names": modality_names,
    "spec": modality_spec,
    "infer": modality_infer,
    "source": modality_source,
    "embed": modality_embed,
    "unembed": modality_unembed,
    "views": modality_views,
    "flat": modality_flat,
    "show": modality_show,
    "trunk": modality_trunk,
}
