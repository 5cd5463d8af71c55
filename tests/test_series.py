"""Series: reading, refusing, scaling, views, features that padding never changes, distributions, forecasts, charts."""

from __future__ import annotations

import io
import math
import warnings
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from peers import peer
from PIL import Image
from torch import Tensor

import modicum
from modicum import UserError, open_data
from modicum.core import seeds
from modicum.core.errors import Warned
from modicum.core.ragged import join
from modicum.core.spec import build, part
from modicum.core.types import Batch
from modicum.maths.dtw import dtw
from modicum.maths.sampling import Sampler, likeliest
from modicum.modalities._seriesraw import RawSeries
from modicum.modalities._seriestokens import crps, quantile
from modicum.modalities._seriesviews import at, filled, stretched
from modicum.modalities.images import Images
from modicum.modalities.series import Series
from modicum.modalities.tables import Tables
from modicum.modalities.text import Text
from modicum.nn.encoder import Encoder, tower
from modicum.training.rocket import Rocket, Warped
from modicum.training.run import Run

STEPS = st.floats(-1e6, 1e6, width=32) | st.just(math.nan)


def waves(n: int = 12, channels: int = 2, t: int = 20, seed: int = 0) -> np.ndarray:
    """Noisy sines (n, channels, t) of two speeds, around 50 and 1000 times as large as the noise."""
    rng = np.random.default_rng(seed)
    speed = 1 + np.arange(n)[:, None, None] % 2
    phase = rng.uniform(0, 1, (n, channels, 1))
    return (
        50 + 10 * np.sin(2 * np.pi * (phase + speed * np.arange(t) / t)) + 0.01 * rng.standard_normal((n, channels, t))
    )


def made(raw: Any, **options: Any) -> tuple[Series, Batch]:
    raw = Series.as_raw(raw)
    own = Series.infer(raw, np.arange(len(raw)), **options)
    source = own.pack(raw).source
    return own, source.rows(np.arange(source.size))


def lists(raw: RawSeries) -> list[np.ndarray]:
    """Every series (channels, t) up to its last known step."""
    return [raw.read(np.array([k]))[0][:, : raw.survey.sizes[k]] for k in range(len(raw))]


def trimmed(x: np.ndarray) -> np.ndarray:
    known = np.flatnonzero(~np.isnan(x).all(0))
    return x[:, : known[-1] + 1 if len(known) else 0]


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b, strict=True))


# Reading


@st.composite
def ragged(draw: st.DrawFn) -> list[np.ndarray]:
    """One to five series of one to three channels and 2 to 9 steps, with gaps; the last step is known."""
    channels = draw(st.integers(1, 3))
    out = []
    for size in draw(st.lists(st.integers(2, 9), min_size=1, max_size=5)):
        x = draw(arrays(np.float64, (channels, size), elements=STEPS))
        x[0, -1] = draw(st.floats(-10, 10, width=32))
        out.append(x)
    return out


@settings(max_examples=25, deadline=None)
@given(series=ragged(), data=st.data())
def test_arrays_lists_files_and_tables_hold_the_same_series(
    series: list[np.ndarray], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("series")
    assert same(lists(Series.as_raw(series)), series)
    channels, most = len(series[0]), max(x.shape[1] for x in series)
    full = np.stack([np.pad(x, ((0, 0), (0, most - x.shape[1])), constant_values=np.nan) for x in series])
    np.save(folder / "x.npy", full)
    np.savez(folder / "x.npz", series=full, labels=np.arange(len(full)))
    assert same(lists(Series.scan(folder / "x.npy")[0]), series)
    raw, facts = Series.scan(folder / "x.npz")
    assert same(lists(raw), series)
    assert facts.column("label").to_pylist() == list(range(len(full)))
    (folder / "x.ts").write_text(ts(series))
    assert Series.claims(folder / "x.ts")
    raw, facts = Series.scan(folder / "x.ts")
    assert same(lists(raw), series)
    assert facts.column("label").to_pylist() == ["ab"[k % 2] for k in range(len(series))]
    rows = [
        {"id": f"s{k}", "time": t, **{f"v{c}": x[c, t] for c in range(channels)}, "label": k % 2}
        for k, x in enumerate(series)
        for t in range(x.shape[1])
    ]
    order = data.draw(st.permutations(range(len(rows))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Warned)  # that rows are not in the order of time
        raw = Series.as_raw(pa.Table.from_pylist([rows[i] for i in order]))
    place = {name: k for k, name in enumerate(raw.facts.column("id").to_pylist())}
    read = lists(raw)
    assert same([read[place[f"s{k}"]] for k in range(len(series))], series)


def ts(series: list[np.ndarray]) -> str:
    head = ["# made for a test", "@problemName waves", "@univariate false", f"@dimensions {len(series[0])}"]
    cells = [":".join(",".join("?" if np.isnan(v) else repr(float(v)) for v in c) for c in x) for x in series]
    return "\n".join([*head, "@classLabel true a b", "@data", *(f"{c}:{'ab'[k % 2]}" for k, c in enumerate(cells))])


def test_an_array_in_a_file_stays_there(tmp_path: Path) -> None:
    x = waves(50)
    np.save(tmp_path / "x.npy", x)
    raw, _ = Series.scan(tmp_path / "x.npy")
    assert isinstance(raw.values, np.memmap)
    own = Series.infer(raw, np.arange(50))
    batch = own.pack(raw).source.rows(np.array([7, 3]))
    assert np.allclose([own.given(batch)[k] for k in (0, 1)], x[[7, 3]], atol=1e-4)


def test_archive_files_hold_targets_times_and_parts(tmp_path: Path) -> None:
    path = tmp_path / "A_TRAIN.ts"
    path.write_text("@targetlabel true\n@data\n1,2,NaN,4:0.5\n\n# no series\n3,?,5:?\n")
    raw, facts = Series.scan(path)
    assert same(lists(raw), [np.array([[1, 2, np.nan, 4]]), np.array([[3, np.nan, 5]])])
    assert facts.column("label").to_pylist() == [0.5, None]
    stamped = "@timestamps true\n@univariate false\n@classlabel true x y\n@data\n"
    (tmp_path / "t.ts").write_text(f"{stamped}(2026-01-01 00:00:00,1.5),(2026-01-01 00:01:00,?):(0,3),(1,4):y\n")
    raw, facts = Series.scan(tmp_path / "t.ts")
    assert same(lists(raw), [np.array([[1.5, np.nan], [3, 4]])])
    assert facts.column("label").to_pylist() == ["y"]
    (tmp_path / "t.ts").unlink()
    (tmp_path / "A_TEST.ts").write_text("@targetlabel true\n@data\n6,7:1\n")
    data = open_data(tmp_path)
    assert data.modality is Series
    assert data.table.column("split").to_pylist() == ["train", "train", "test"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("@data\n", "no series after @data"),
        ("@univariate true\n1,2\n", "line 2: wanted @data before the first series"),
        ("@univariate true\n", "no line @data"),
        ("@univariate maybe\n@data\n1,2\n", "@univariate maybe: wanted true or false"),
        ("@dimensions two\n@data\n1,2\n", "@dimensions two: wanted a whole number"),
        ("@classlabel true\n@targetlabel true\n@data\n1,2\n", "wanted one"),
    ],
)
def test_headers_that_are_none_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "x.ts").write_text(text)
    with pytest.raises(UserError, match=words):
        Series.scan(tmp_path / "x.ts")


def test_lines_that_do_not_read_are_named(tmp_path: Path) -> None:
    lines = ["1,2:3,4:a", "1,x:3,4:a", "1,2:3:a", "1,2:a", "1,2:3,4:c", "1,2", "5,6:7,8:b"]
    (tmp_path / "x.ts").write_text("@dimensions 2\n@classLabel true a b\n@data\n" + "\n".join(lines))
    raw, _ = Series.scan(tmp_path / "x.ts")
    own = Series.infer(raw, np.arange(len(raw)))
    with pytest.raises(UserError, match="5 of 7 series") as raised:
        own.pack(raw)
    said = str(raised.value)
    for words in ("line 5: 'x' is no number", "line 6: its channels have 2, 1 steps", "line 7: it has 1 channel"):
        assert words in said, said
    assert "line 8: the label 'c' is none of @classLabel: a, b" in said
    packed = own.pack(raw, skip_bad=True)
    assert packed.keep.tolist() == [0, 6]
    assert [row for row, _, _ in packed.bad] == [1, 2, 3, 4, 5]


# Bad input


def test_bad_series_are_named_counted_and_listed() -> None:
    good = np.arange(6.0)[None]
    bad = {"one time step": np.array([[4.0]]), "no value is known": np.full((1, 5), np.nan)}
    bad |= {"2 channel": np.zeros((2, 5)), "is infinite|are infinite": np.array([[1, np.inf, 2]])}
    items: list[Any] = [good, *bad.values(), ["a", "b"], good + 1, np.zeros((1, 2, 2))]
    raw = Series.as_raw(items)
    own = Series.infer(raw, np.arange(len(raw)))
    with pytest.raises(UserError, match="6 of 8 series or rows cannot be used") as raised:
        own.pack(raw)
    for words in ("one time step", "no value is known", "2 channel", "infinite", "no number", r"shape (1, 2, 2)"):
        assert words in str(raised.value)
    packed = own.pack(raw, skip_bad=True)
    assert packed.keep.tolist() == [0, 6]
    assert [row for row, _, _ in packed.bad] == [1, 2, 3, 4, 5, 7]
    with pytest.raises(UserError, match="none of the training rows"):
        Series.infer(raw, np.array([1, 2]))
    with pytest.raises(UserError, match=r"none of 2 series can be used"):
        own.pack(raw.take([1, 2]), skip_bad=True)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros(5), r"one series needs a first axis of 1"),
        (np.zeros((2, 3, 4, 5)), r"must be \(n, channels, time\)"),
        (np.zeros((2, 0)), r"holds no series"),
        (np.array([["a", "b"]]), "must be numbers"),
        ([], "series are wanted as"),
        (["a text"], "of texts"),
        ([{"a": 1}], "a long table of series has a column of ids"),
    ],
)
def test_what_is_no_series_is_refused(x: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Series.as_raw(x)


def long(**columns: Any) -> pa.Table:
    n = 12
    own = {"id": [f"s{k // 4}" for k in range(n)], "time": [k % 4 for k in range(n)], "v": [float(k) for k in range(n)]}
    return pa.table({**own, **columns})


def test_a_long_table_says_what_is_wrong_with_it() -> None:
    texts = [str(float(k)) for k in range(12)]
    texts[5] = "abc"
    ids = [f"s{k // 4}" for k in range(11)] + [""]
    time = [0, 1, 1, 3, *range(7), None]
    label = ["a"] * 7 + ["b"] * 5
    raw = Series.as_raw(long(id=ids, time=time, v=texts, label=label))
    places = {place: why for _, place, why in raw.bad()}
    assert places["row 11"] == "its id is empty"
    assert places["series 's0'"] == "time 1 is there twice, again in row 2"
    assert "'abc', which is no number" in places["series 's1'"] or "label" in places["series 's1'"]
    assert "series 's2'" not in places
    alone = Series.as_raw(long(label=label)).bad()
    assert [(p, w) for _, p, w in alone] == [("series 's1'", "its label is not the same in all of its rows")]
    with pytest.warns(Warned, match=r"1 of 3 series are not in the order of time \(s0\)"):
        raw = Series.as_raw(long(time=[3, 2, 1, 0, *range(8)]))
    assert lists(raw)[0].tolist() == [[3, 2, 1, 0]]
    with pytest.warns(Warned, match="column 'said' holds text that changes"):
        assert Series.as_raw(long(said=["x", "y"] * 6)).names == ("v",)
    with pytest.raises(UserError, match="no row has both"):
        Series.as_raw(long(time=pa.nulls(12, pa.int64())))
    raw = Series.as_raw(long())
    own = Series.infer(raw, np.arange(3))
    with pytest.raises(UserError, match="no column of numbers 'v', a channel"):
        own.pack(Series.as_raw(long().rename_columns(["id", "time", "w"])))
    with pytest.raises(UserError, match="no column of numbers is left"):
        Series.infer(raw, np.arange(3), exclude=["v"])
    with pytest.raises(UserError, match=r"series of 1 channel\(s\) are wanted; these have 2"):
        own.pack(Series.as_raw(waves()))


def test_times_left_out_of_a_regular_clock_are_missing_points() -> None:
    day = pa.array([f"2026-01-0{d}T00:00:00" for d in (1, 2, 4, 5, 1, 2, 3, 4, 1, 2, 3, 5)])
    raw = Series.as_raw(long(time=day))
    gap = [lists(raw)[k][0].tolist() for k in (0, 2)]
    assert str(gap) == "[[0.0, 1.0, nan, 2.0, 3.0], [8.0, 9.0, 10.0, nan, 11.0]]"
    odd = Series.as_raw(long(time=[0.0, 1, 2.5, 3, *range(8)]))
    assert lists(odd)[0].tolist() == [[0, 1, 2, 3]], "no clock: rows are steps"


def test_facts_of_a_long_table_are_its_constant_columns() -> None:
    raw = Series.as_raw(
        long(label=[1.5] * 4 + [None] * 4 + [2.5] * 4, w=[float(k % 5) for k in range(12)], split=["train"] * 12)
    )
    assert raw.names == ("v", "w")
    assert raw.facts.to_pydict() == {"id": ["s0", "s1", "s2"], "label": [1.5, None, 2.5], "split": ["train"] * 3}


# Whose data it is


@pytest.mark.filterwarnings("ignore:.*have an id that an earlier row has")
def test_series_take_nothing_from_other_modalities(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "pictures.npy", rng.integers(0, 256, (9, 8, 8), np.uint8))
    np.save(tmp_path / "grey.npy", rng.random((9, 12, 10)))
    pd.DataFrame({"id": range(20), "time": range(20), "x": rng.random(20)}).to_csv(tmp_path / "events.csv", index=False)
    words = ["a row of the long table has words"] * 20
    said = pd.DataFrame(
        {"id": np.arange(20) // 10, "time": range(20), "v": 1.0, "text": [f"{w} {k}" for k, w in enumerate(words)]}
    )
    said.to_csv(tmp_path / "said.csv", index=False)
    (tmp_path / "code.ts").write_text("export const x: number[] = [1, 2]\n")
    for name, kind in (("pictures.npy", Images), ("grey.npy", Images), ("events.csv", Tables), ("said.csv", Text)):
        assert open_data(tmp_path / name).modality is kind, name
    assert not Series.claims(tmp_path / "code.ts")
    assert open_data(rng.random((9, 12, 10))).modality is Images
    assert open_data(pd.DataFrame({"id": range(9), "time": 1, "x": 2.0})).modality is Tables


def test_series_are_found_where_they_are(tmp_path: Path) -> None:
    x = waves(30)
    np.save(tmp_path / "x.npy", x - 50)
    np.save(tmp_path / "lines.npy", x[:, 0])
    np.savez(tmp_path / "named.npz", values=x)
    np.savez(
        tmp_path / "parts.npz",
        X_train=x[:20] - 50,
        y_train=np.arange(20) % 2,
        X_test=x[20:] - 50,
        y_test=np.arange(10) % 2,
    )
    table = pa.table({"series_id": np.repeat(np.arange(30), 20), "t": np.tile(np.arange(20), 30), "a": x[:, 0].ravel()})
    pq.write_table(table, tmp_path / "x.parquet")
    pyarrow.csv.write_csv(table.sort_by("t"), tmp_path / "by_time.csv")
    for name in ("x.npy", "lines.npy", "named.npz", "parts.npz", "x.parquet", "by_time.csv"):
        data = open_data(tmp_path / name)
        assert (data.modality, len(data)) == (Series, 30), name
    assert open_data(tmp_path / "parts.npz").table.column("split").to_pylist() == ["train"] * 20 + ["test"] * 10
    for own in (x - 50, list(x - 50), x[:, 0], table, table.to_pandas()):
        assert open_data(own).modality is Series
    np.savez(tmp_path / "odd.npz", X_train=x, X_test=x[:, :1])
    with pytest.raises(UserError, match="different shapes"):
        Series.scan(tmp_path / "odd.npz")
    np.savez(tmp_path / "odd.npz", series=waves(), y=np.arange(3))
    with pytest.raises(UserError, match="12 series but labels of shape"):
        Series.scan(tmp_path / "odd.npz")


# Scaling and packing


@pytest.mark.parametrize("scaling", ["global", "sample"])
def test_values_are_scaled_and_come_back(scaling: str) -> None:
    x = waves() * np.array([1.0, 1000.0])[:, None]
    x[3, 1, 4:7] = np.nan
    own, batch = made(x, scaling=scaling)
    z, axis = batch["values"].numpy(), (0, 2) if scaling == "global" else 2
    assert np.allclose(np.nanmean(z, axis), 0, atol=1e-4)
    assert np.allclose(np.nanstd(z, axis), 1, atol=1e-3)
    assert np.allclose(np.stack(own.given(batch)), x, rtol=1e-5, equal_nan=True)
    again = Series.as_raw(own.table(batch))
    assert np.allclose(np.stack(lists(again)), x, rtol=1e-5, equal_nan=True)


def test_a_constant_channel_is_no_division_by_zero() -> None:
    for scaling in ("global", "sample"):
        own, batch = made(np.concatenate([waves(channels=1), np.full((12, 1, 20), 1e9)], 1), scaling=scaling)
        assert batch["values"].isfinite().all()
        assert np.allclose(own.given(batch)[0][1], 1e9)


def test_longer_series_are_cut_with_a_warning() -> None:
    raw = Series.as_raw(waves(t=20))
    own = Series.infer(raw, np.arange(12), size=8)
    with pytest.warns(Warned, match="12 of 12 series have more than 8 steps"):
        source = own.pack(raw).source
    assert source.rows(np.arange(3))["values"].shape[2] == 8


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(2, 17), min_size=2, max_size=5), patch=st.integers(1, 5), seed=st.integers(0, 99))
def test_padding_and_batching_never_change_features(sizes: list[int], patch: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    raw = Series.as_raw([rng.standard_normal((2, n)) for n in sizes])
    own = Series.infer(raw, np.arange(len(raw)), patch=patch, size=40)
    source = own.pack(raw).source
    with seeds.forked(0, "init"):
        encoders = [
            Encoder.of(own, text).eval()
            for text in ("transformer(width=8, depth=1, heads=2)", "recurrent('gru', width=8)")
        ]
    whole = source.rows(np.arange(source.size))
    whole["values"][:, :, 0] = torch.where(torch.rand(len(sizes), 2) < 2, torch.nan, 0)  # missing in every row
    more = join(
        [
            whole,
            {
                k: torch.cat([v] * 2, 2 if k == "values" else 1)[:1] if k in ("values", "mask") else v[:1]
                for k, v in whole.items()
            },
        ]
    )
    for encoder in encoders:
        with torch.no_grad():
            together = encoder(whole).pooled
            padded = encoder({k: v[: len(sizes)] for k, v in more.items()}).pooled
            alone = []
            for k in range(len(sizes)):
                one = source.rows(np.array([k]))
                one["values"][:, :, 0] = torch.nan
                alone.append(encoder(one).pooled)
        assert torch.allclose(together, torch.cat(alone), atol=1e-5)
        assert torch.allclose(together, padded, atol=1e-5)


def test_a_gap_is_no_zero_and_what_is_after_the_end_does_not_matter() -> None:
    own, batch = made(waves(), patch=3)
    embed = own.embed()
    gap, zero, after = ({**batch, "values": batch["values"].clone()} for _ in range(3))
    gap["values"][:, :, 4], zero["values"][:, :, 4] = torch.nan, 0
    after["values"][:, :, 20:] = 99
    assert not torch.allclose(embed(gap).x, embed(zero).x)
    assert torch.equal(embed(after).x, embed(batch).x)
    unembed, x = own.unembed(), embed(batch).x
    assert torch.equal(unembed.loss(x, after), unembed.loss(x, batch))
    one = unembed.loss(x, gap)[:, 1] * 2 * 2  # of two channels, two steps are known
    both = unembed.loss(x, batch)[:, 1] * 2 * 3
    assert (one < both).all(), "a gap has no error"


# Distributions


def test_crps_is_that_of_its_definition() -> None:
    rng = np.random.default_rng(0)
    bins, share = np.sort(rng.standard_normal(7)), rng.dirichlet(np.ones(7), 5)
    for true in (-5.0, 0.1, bins[3], 5.0):
        x = np.linspace(-8, 8, 400_001)
        below = np.where(x[:, None] >= bins, share[:, None], 0).sum(2)
        wanted = ((below - (x >= true)) ** 2).sum(1) * (x[1] - x[0])
        got = crps(torch.tensor(share), torch.tensor(bins), torch.full((5,), float(true), dtype=torch.float64))
        assert np.allclose(got, wanted, atol=1e-3)
    sure = torch.eye(7, dtype=torch.float64)
    assert torch.allclose(crps(sure, torch.tensor(bins), torch.zeros(7)), torch.tensor(np.abs(bins))), "absolute error"


def test_quantiles_are_the_inverse_of_what_lies_below() -> None:
    bins = torch.tensor([0.0, 1.0, 3.0])
    share = torch.tensor([[[0.5, 0.25, 0.25]]])
    for level, wanted in ((0.25, 0.0), (0.625, 1.0), (0.75, 2.0), (0.875, 3.0), (0.01, 0.0), (0.99, 3.0)):
        assert quantile(share, bins, torch.tensor([[level]])).item() == pytest.approx(wanted)


def test_a_drawn_patch_has_the_predicted_distribution_and_is_smooth() -> None:
    own, _ = made(waves(40, 1), patch=4)
    own = Series(1, 20, 4, own.mean, own.std, bins=tuple(np.linspace(-2, 2, 9).tolist()))
    unembed = own.unembed()
    with torch.no_grad():
        unembed.logits.weight.zero_()
        unembed.logits.bias.copy_(torch.randn(4 * 9, generator=seeds.generator(1)))
    share = unembed.logits.bias.detach().view(4, 9).softmax(1)
    draw = unembed.draw(torch.zeros(20_000, 1, own.width), 0, None, Sampler(seeds.generator(0)))["values"][:, 0]
    counts = torch.stack([(draw[:, 0] == b).float().mean() for b in unembed.bins])
    assert torch.allclose(counts, share[0], atol=0.02)
    mean = (share * unembed.bins).sum(1)
    assert torch.allclose(draw.mean(0), mean, atol=0.1)
    order = draw[:, 0].argsort(stable=True)
    assert (draw[order][1:] >= draw[order][:-1] - 1e-6).all(), "steps are at one quantile"
    best = unembed.draw(torch.zeros(2, 1, own.width), 0, None, likeliest)["values"][0, 0, 0]
    assert best == unembed.bins[share[0].argmax()]


def trained(own: Series, batch: Batch, objective: str, encoder: str, steps: int = 150) -> Any:
    with seeds.forked(0, "init"):
        model = build("objective", objective, encoder=tower(own, encoder))
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for step in range(steps):
        loss, _ = model(model.corrupt(batch, seeds.generator(0, step)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("scaling", ["global", "sample"])
def test_an_autoencoder_rebuilds_in_the_units_of_the_data(scaling: str) -> None:
    series = [x[:, : 20 - k % 4] for k, x in enumerate(waves(16, 1))]
    own, batch = made(series, scaling=scaling)
    model = trained(own, batch, "autoencoder(code=8)", "mlp(width=64)")
    with torch.no_grad():
        again, errors = model.reconstruct(batch)
    for a, b in zip(own.given(again), series, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).mean() < 3, "the waves are 10 high"
    assert errors.shape == (16,)


def test_forecasts_go_on_as_the_series_did(tmp_path: Path) -> None:
    t = np.arange(24)
    x = np.stack([np.sin(2 * np.pi * (t / 8 + p)) for p in np.linspace(0, 1, 16, endpoint=False)])
    own, batch = made(100 + 5 * x, patch=2)
    model = trained(own, batch, "next_token()", "transformer(width=32, depth=1, heads=2, causal=True)", 300)
    np.save(tmp_path / "start.npy", 100 + 5 * x[[3, 9], :15])
    with pytest.warns(Warned, match="the last 1 steps of the prompt"):
        start = own.prompt(str(tmp_path / "start.npy"), 2)
    assert start is not None
    made_on = own.given(model.sample(4, likeliest, start))
    assert [row.shape for row in made_on] == [(1, 24)] * 4
    for k, row in enumerate(made_on):
        assert np.allclose(row[0, :14], 100 + 5 * x[(3, 9)[k // 2], :14], atol=1e-3)
        assert np.abs(row[0, 14:] - 100 - 5 * x[(3, 9)[k // 2], 14:]).mean() < 1.5
    free = model.sample(3, Sampler(seeds.generator(0)))
    assert [row.shape for row in own.given(free)] == [(1, 24)] * 3
    with pytest.raises(UserError, match="wanted a file of series"):
        own.prompt("no such file", 1)


def test_generate_writes_a_long_table(tmp_path: Path, quick: None) -> None:
    np.save(tmp_path / "x.npy", waves() - 50)
    encoder = "transformer(width=16, depth=1, heads=2, causal=True, positions='rotary')"
    options: dict[str, Any] = {"steps": 3, "device": "cpu", "out": tmp_path / "run"}
    run = modicum.pretrain(tmp_path / "x.npy", objective="next_token", encoder=encoder, **options)
    table = modicum.generate(run, n=3, output=tmp_path / "new.parquet")
    assert table.column_names == ["id", "time", "channel0", "channel1"]
    assert table.num_rows == 60
    assert open_data(tmp_path / "new.parquet").modality is Series
    longer = modicum.generate(run, n=2, prompt=str(tmp_path / "new.parquet"), length=25)
    assert longer.num_rows == 6 * 25


@pytest.fixture(scope="module")
def forecaster(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("forecaster")
    np.save(folder / "x.npy", waves(channels=1))
    encoder = "transformer(width=16, depth=1, heads=2, causal=True)"
    options: dict[str, Any] = {"steps": 2, "batch": 4, "device": "cpu", "out": folder / "run"}
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore", Warned)  # that so few steps teach little
        patch.setattr("modicum.verbs.pretrain.exhibits", lambda *_, **__: {})
        patch.setattr("modicum.verbs.pretrain.render", lambda path: path / "report.html")
        return modicum.pretrain(folder / "x.npy", objective="next_token", encoder=encoder, **options)


def prompt(path: Path, values: np.ndarray, time: list[Any]) -> str:
    """A long CSV of series (n, t) called a, b, ... at the same times."""
    ids = [name for name in "abcdef"[: len(values)] for _ in time]
    pd.DataFrame({"id": ids, "time": [*time] * len(values), "value": values.ravel()}).to_csv(path, index=False)
    return str(path)


def test_a_forecast_has_the_ids_and_times_of_its_prompt(tmp_path: Path, forecaster: Run) -> None:
    x = waves(2, 1, 16)[:, 0]
    days = pd.date_range("2026-01-31", periods=20, freq="D")
    path = prompt(tmp_path / "days.csv", x, [str(day.date()) for day in days[:16]])
    made = modicum.generate(forecaster, n=1, prompt=path).to_pandas()
    assert made["id"].tolist() == ["a"] * 20 + ["b"] * 20
    assert made["time"].tolist() == [*days] * 2
    assert np.allclose(made["value"].to_numpy().reshape(2, 20)[:, :16], x, atol=1e-3)
    twice = modicum.generate(forecaster, n=2, prompt=path)
    assert twice.column_names == ["id", "time", "draw", "value"]
    assert twice.to_pandas().groupby(["id", "draw"], sort=False).size().to_dict() == {
        ("a", 0): 20, ("a", 1): 20, ("b", 0): 20, ("b", 1): 20,
    }  # fmt: skip
    odd = modicum.generate(forecaster, n=1, prompt=prompt(tmp_path / "odd.csv", x, [*range(100, 115), 117]))
    assert odd["time"].to_pylist()[:20] == [*range(100, 120)], "a time that is left out is a missing point"
    assert odd["time"].type == pa.int64()
    np.save(tmp_path / "x.npy", x)
    assert modicum.generate(forecaster, n=1, prompt=str(tmp_path / "x.npy"))["time"].to_pylist() == [*range(20)] * 2


def test_a_prompt_that_fills_the_model_is_gone_on_from_its_last_steps(tmp_path: Path, forecaster: Run) -> None:
    x = waves(2, 1, 33)[:, 0]
    for size in (20, 33):
        path = prompt(tmp_path / f"{size}.csv", x[:, :size], [60 * k for k in range(size)])
        with pytest.warns(Warned, match=f"up to {size} steps and the model goes on from the last 15"):
            made = modicum.generate(forecaster, n=1, prompt=path).to_pandas()
        own = made[made["id"] == "b"]
        assert own["time"].tolist() == [60 * k for k in range(size - 15, size + 5)]
        assert np.allclose(own["value"][:15], x[1, size - 15 : size], atol=1e-3)


def test_values_far_from_those_of_training_are_told(tmp_path: Path, forecaster: Run) -> None:
    path = prompt(tmp_path / "far.csv", 1000 * waves(2, 1, 16)[:, 0], [*range(16)])
    with pytest.warns(
        Warned, match=r"100 % of the values lie far outside those of training \(.* in training 3.*same u"
    ):
        modicum.generate(forecaster, n=1, prompt=path)


@pytest.mark.filterwarnings("ignore:.*have an id that an earlier row has")
@pytest.mark.parametrize("row", [3, 777])
def test_a_word_among_numbers_is_named_and_makes_no_table(tmp_path: Path, row: int) -> None:
    path = tmp_path / "x.csv"
    cells = [f"{k % 7}.5" for k in range(1000)]
    cells[row] = "broken"
    frame = pd.DataFrame({"id": np.arange(1000) // 20, "time": np.arange(1000) % 20, "v": cells})
    for more in ({}, {"w": 1.5 * np.arange(1000)}):
        frame.assign(**more).to_csv(path, index=False)
        data = open_data(path)
        assert data.modality is Series
        own = Series.infer(data.raw, np.arange(50))
        with pytest.raises(UserError, match=rf"x.csv, row {row + 2:,}: column 'v' holds 'broken', which is no number"):
            own.pack(data.raw)
        packed = own.pack(data.raw, skip_bad=True)
        assert [own for own, _, _ in packed.bad] == [row // 20]
    frame.sort_values("time").to_csv(path, index=False)
    assert open_data(path).modality is Series
    cells[50:90:2] = ["a", "b", "c", "d"] * 5
    frame.assign(v=cells, w=1.5).to_csv(path, index=False)
    with pytest.warns(Warned, match="column 'v' is read as text"):
        assert open_data(path).modality is Tables, "two per cent of texts are no slip"


def test_rows_without_an_id_are_named_as_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(
        "id,time,v\n" + "".join(f"{'' if k == 4 else k // 4},{k % 4},{k}\n" for k in range(12))
    )
    raw, _ = Series.scan(tmp_path / "x.csv")
    assert raw.bad()[0][1:] == (f"{tmp_path / 'x.csv'}, row 6", "its id is empty")


# Views


def test_views_do_what_they_are_called() -> None:
    own, batch = made([x[:, : 20 - k % 3] for k, x in enumerate(waves(64, 3, 20))], patch=2)
    off: dict[str, Any] = {"crop": 1.0, "warp": 0.0, "scale": 0.0, "jitter": 0.0}
    x, real = batch["values"], torch.arange(20) < batch["length"].view(-1, 1, 1)

    def seen(**options: Any) -> Tensor:
        return own.views(**{**off, **options})(batch, seeds.generator(0))["values"]

    assert torch.equal(seen().nan_to_num(), torch.where(real, x, 0).nan_to_num())
    assert ((seen(jitter=0.5) - x)[real.expand_as(x)].std() - 0.5).abs() < 0.02
    ratio = (seen(scale=0.3) / x)[..., 3]
    assert (ratio.log().std() - 0.3).abs() < 0.05
    gone = seen(drop=0.9).isnan().all(2)
    assert gone.any()
    assert not gone.all(1).any()
    hidden = torch.where(real, seen(mask=0.5), 0).isnan()[:, 0]
    assert (hidden.view(64, 10, 2).any(2).sum(1) == (0.5 * batch["mask"].sum(1)).round()).all()
    for options in ({"crop": (0.5, 0.5)}, {"warp": 0.5}):
        y = seen(**options)
        for key, value in (("max", torch.maximum), ("min", torch.minimum)):
            a, b = (getattr(torch.where(real, v, v[..., :1]), f"a{key}")(2) for v in (x, y))
            assert torch.allclose(value(a, b), a, atol=1e-5), f"{options} leaves the range of the series"
        assert not y[~real.expand_as(y)].any()


def test_crops_and_warps_keep_a_ramp_rising() -> None:
    own, batch = made(np.tile(np.arange(20.0), (50, 1)))
    for options in ({"crop": (0.3, 0.9), "warp": 0.0}, {"crop": 1.0, "warp": 0.8}):
        y = own.views(**{"scale": 0.0, "jitter": 0.0, **options})(batch, seeds.generator(0))["values"][:, 0]
        assert (y.diff() > 0).all()
        ends = y[:, -1] - y[:, 0]
        whole = batch["values"][0, 0, -1] - batch["values"][0, 0, 0]
        share = ends / whole
        if options["warp"]:
            assert torch.allclose(share, torch.ones(50), atol=1e-4)
            assert y.diff().std(1).min() > 0.01
        else:
            assert torch.allclose(y.diff(), y.diff()[:, :1].expand(-1, 19), atol=1e-4)
            assert (share > 0.29).all()
            assert (share < 0.91).all()


@pytest.mark.parametrize(
    "options",
    [
        {"crop": 0},
        {"crop": (0.5, 0.2)},
        {"crop": "x"},
        {"warp": -1},
        {"scale": 3},
        {"jitter": "a"},
        {"drop": 1},
        {"mask": -0.1},
    ],
)
def test_views_refuse_what_is_out_of_range(options: dict[str, Any]) -> None:
    own, _ = made(waves())
    with pytest.raises((UserError, TypeError), match=next(iter(options))):
        own.views(**options)


def test_gaps_stay_gaps_and_are_filled_linearly() -> None:
    x = torch.tensor([[[np.nan, 1.0, np.nan, np.nan, 4.0, np.nan, 7.0]]])
    assert filled(x, torch.tensor([6]))[0, 0].tolist() == [1, 1, 2, 3, 4, 4, 4]
    assert at(x, torch.tensor([[1.0, 1.25, 1.75, 4.0]]))[0, 0].isnan().tolist() == [False, False, True, False]
    y = torch.tensor([[[0.0, 2.0, 4.0, 0.0]]])
    assert stretched(y, torch.tensor([3]), 5)[0, 0].tolist() == [0, 1, 2, 3, 4]
    rng = np.random.default_rng(0)
    z = rng.standard_normal((20, 2, 15))
    z[rng.random(z.shape) < 0.4] = np.nan
    mine = filled(torch.tensor(z), torch.full((20,), 15)).numpy()
    for a, b in zip(z.reshape(-1, 15), mine.reshape(-1, 15), strict=True):
        known = np.flatnonzero(~np.isnan(a))
        assert np.allclose(b, np.interp(np.arange(15), known, a[known]))


# Beside others


def slow_dtw(a: np.ndarray, b: np.ndarray, reach: int) -> float:
    t = a.shape[1]
    d = np.full((t + 1, t + 1), np.inf)
    d[0, 0] = 0
    for i in range(t):
        for j in range(max(0, i - reach), min(t, i + reach + 1)):
            d[i + 1, j + 1] = ((a[:, i] - b[:, j]) ** 2).sum() + min(d[i, j], d[i, j + 1], d[i + 1, j])
    return float(d[t, t])


@pytest.mark.parametrize("window", [0.0, 0.1, 0.34, 1.0])
def test_dtw_is_that_of_the_plain_recursion(window: float) -> None:
    rng = np.random.default_rng(0)
    for t in (1, 2, 7, 12):
        a, b = rng.standard_normal((3, 2, t)), rng.standard_normal((4, 2, t))
        wanted = [[slow_dtw(x, y, round(window * t)) for y in b] for x in a]
        assert np.allclose(dtw(torch.tensor(a), torch.tensor(b), window), wanted)


def test_the_baselines_of_series() -> None:
    x = np.concatenate([waves(40, 2, 300), waves(40, 2, 300)], 0).reshape(80, -1).astype(np.float32)
    y = np.arange(80) % 2
    near = Warped(0.1, 2, 0).fit(x[:40], y[:40])
    assert near.note == "window=0.1, 256 of 300 steps"
    assert (near.predict(x[40:]) == y[40:]).mean() > 0.95
    peer("aeon")
    threads = torch.get_num_threads()
    rocket = Rocket(1.0, 2, True, 0).fit(x[:40, :200], y[:40])
    rocket.predict(x[:2, :200])
    assert torch.get_num_threads() == threads, "aeon sets OpenMP's threads, which are torch's"
    assert (rocket.predict(x[40:, :200]) == y[40:]).mean() > 0.95
    few = Rocket(1.0, 2, False, 0).fit(x[:40, :8], y[:40].astype(float))
    assert few.predict(x[40:, :8]).shape == (40,)


def test_charts_are_pictures() -> None:
    own, batch = made([np.array([[0, 1, np.nan, 3, 5.0], [1, 1, 1, 1, 1]]), np.zeros((2, 2))])
    for row in own.show(batch):
        picture = Image.open(io.BytesIO(b64decode(row["thumb"].removeprefix("data:image/png;base64,"))))
        assert picture.size == (128, 96)
        assert len(picture.convert("RGB").getcolors() or range(300)) > 5
    assert own.beside(batch, batch)[0].size == (384, 192)
    assert "2 channel(s)" in own.note()


def test_impossible_settings_are_refused() -> None:
    for options, words in (
        ({"length": 1}, "length of at least 2"),
        ({"scaling": "some"}, "unknown scaling"),
        ({"mean": (0.0,)}, "wants 2 means"),
        ({"std": (0.0, 1.0)}, "above 0"),
        ({"bins": (1.0, 1.0)}, "ascending"),
    ):
        good: dict[str, Any] = {"channels": 2, "length": 9, "mean": (0.0, 0.0), "std": (1.0, 1.0)}
        with pytest.raises(UserError, match=words):
            Series(**{**good, **options})
    assert part("modality", "series") is Series
