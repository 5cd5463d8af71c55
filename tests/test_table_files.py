"""Tables from files: types from all cells, what is named aloud, streaming into the cache, and round trips."""

from __future__ import annotations

import datetime
import json
import string
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peers import peer
from scipy.stats import norm, rankdata

import modicum
from modicum.core.errors import UserError, Warned
from modicum.datasets.data import open_data
from modicum.modalities import _tablepack, _tableread
from modicum.modalities._tableread import bad_rows, key_of, read_table, scan
from modicum.modalities.tables import Scaling, Tables


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MODICUM_CACHE", str(tmp_path / "cache"))


def every(table: pa.Table) -> np.ndarray:
    return np.arange(table.num_rows)


# Types of a CSV


TYPES: dict[str, tuple[list[str], pa.DataType]] = {
    "whole": (["1", "-2", ""], pa.int64()),
    "real": (["1", "2.5", "NA"], pa.float64()),
    "true": (["true", "False", ""], pa.bool_()),
    "date": (["2026-01-31", "1969-12-31", ""], pa.date32()),
    "time": (["2026-01-31", "2026-01-31 12:00", ""], pa.timestamp("us")),
    "zoned": (["2026-01-31T12:00:00Z", "2026-01-31T12:00:00+02:00", ""], pa.timestamp("us", "UTC")),
    "codes": (["01", "2", "3"], pa.string()),
    "zero": (["0", "0.5", "-0"], pa.float64()),
    "words": (["NA", "x", ""], pa.string()),
    "nothing": (["", "", ""], pa.null()),
}


def test_types_are_those_that_all_cells_allow(tmp_path: Path) -> None:
    rows = zip(*(cells for cells, _ in TYPES.values()), strict=True)
    (tmp_path / "t.csv").write_text("\n".join([",".join(TYPES), *map(",".join, rows)]) + "\n")
    found = read_table(tmp_path / "t.csv").schema
    assert dict(zip(found.names, found.types, strict=True)) == {name: kind for name, (_, kind) in TYPES.items()}


def test_labels_with_leading_zeros_stay_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x,label\n" + "".join(f"{k},0{k % 3}\n" for k in range(9)))
    labels = open_data(tmp_path / "t.csv").labels()
    assert labels is not None
    assert labels.classes == ["00", "01", "02"]


@pytest.mark.parametrize("rows", [2_000, 60_000])
def test_a_column_that_changes_its_type_late_is_named(
    tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tableread, "PIECE", 1 << 15)  # so that the change is in a later piece
    cells = [f"{k}\n" for k in range(rows)]
    cells[rows - 100 :] = ["unknown\n"] * 100
    (tmp_path / "t.csv").write_text("y,x\n" + "".join(f"1,{c}" for c in cells))
    words = f"t.csv: column 'x' is read as text, because row {rows - 98:,} holds 'unknown' after {rows - 100:,} numbers"
    with pytest.warns(Warned, match=words):
        table = read_table(tmp_path / "t.csv")
    assert table.schema.field("x").type == pa.string()
    made = Tables.infer(table, every(table), columns="x:numeric,y:numeric")
    assert made.numeric[0][0] == "y"
    with pytest.warns(Warned, match=r"'x': 100 text\(s\) that are no number, such as 'unknown', are missing"):
        numbers = made.pack(table).source.rows(every(table))["numeric"][:, 1]
    assert numbers.isnan().sum() == 100
    assert numbers[7] == 7


def test_json_whose_column_changes_its_type_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tableread, "PIECE", 1 << 10)
    lines = [json.dumps({"a": k, "b": "x"}) for k in range(500)]
    (tmp_path / "t.jsonl").write_text("\n".join([*lines, '{"a": "many"}']))
    with pytest.raises(UserError, match=r"t\.jsonl, row 501: column 'a' is .* here and .* before"):
        read_table(tmp_path / "t.jsonl")
    (tmp_path / "t.jsonl").write_text("\n".join([*lines, '{"a": 0.5, "c": true}']))
    table = read_table(tmp_path / "t.jsonl")
    assert table.schema.field("a").type == pa.float64()
    assert table.column("c").to_pylist()[-2:] == [None, True]
    days = [json.dumps({"a": "2026-01-31"})] * 500
    (tmp_path / "t.jsonl").write_text("\n".join([*days, '{"a": "soon"}', *days]))
    assert read_table(tmp_path / "t.jsonl").column("a").to_pylist()[499:502] == ["2026-01-31", "soon", "2026-01-31"]


def test_parquet_files_of_different_types_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"a": ["x"]}), tmp_path / "1.parquet")
    with pytest.raises(UserError, match=r"1\.parquet: column 'a' is string here and int64 before"):
        read_table(tmp_path)


# Rows


def test_ragged_rows_can_be_skipped_and_are_listed(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n" + "1,2\n" * 3 + "1,2,3\n" + "4,5\n" * 3 + "7\n")
    table = scan(tmp_path / "t.csv")
    made = Tables.infer(table, every(table))
    with pytest.raises(
        UserError, match=r"(?s)2 row\(s\) of 8 cannot be used:.*row 5 has 3 columns, not 2.*\n.*row 9 has 1"
    ):
        made.pack(table)
    packed = made.pack(table, skip_bad=True)
    assert packed.source.size == len(packed.keep) == 6
    assert [why.split(":")[0] for _, _, why in packed.bad] == [
        "row 5 has 3 columns, not 2",
        "row 9 has 1 columns, not 2",
    ]
    assert not bad_rows(table.take([0]))


def test_repeated_ids_are_counted(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,x\na,1\nb,2\na,3\na,4\n")
    with pytest.warns(Warned, match=r"t\.csv: 2 row\(s\) have an id that an earlier row has"):
        scan(tmp_path / "t.csv")


def test_numbers_without_a_target_are_unlabelled_and_infinite_ones_refused() -> None:
    data = open_data(pa.table({"x": [1.0, 2, 3], "y": [0.5, None, float("nan")]}))
    labels = data.labels()
    assert labels is not None
    assert labels.known.tolist() == [True, False, False]
    with pytest.raises(UserError, match=r"infinite in 1 row\(s\), first row 1"):
        open_data(pa.table({"x": [1.0, 2], "y": [0.5, float("inf")]})).labels()


# Kinds of columns


def test_kinds_are_shown_and_can_be_told(tmp_path: Path) -> None:
    table = pa.table(
        {
            "age": [30, 40, 50],
            "zip": [101, 102, 101],
            "city": ["a", "b", None],
            "joined": ["2026-01-01", "2026-01-02", None],
            "notes": ["x", "y", "z"],
        }
    )
    words = Tables.infer(table, every(table)).note()
    assert words == "age numeric, zip numeric, joined date, city categorical (2), notes categorical (3)"
    made = Tables.infer(table, every(table), columns="zip:categorical,notes:drop,joined:categorical")
    assert made.note() == "age numeric, zip categorical (2), city categorical (2), joined categorical (2)"
    for wrong, why in {
        "zp:drop": "unknown column in --columns 'zp'; valid: zip",
        "zip:number": "unknown kind of column 'zip' in --columns 'number'; valid: numeric",
        "zip": "wanted NAME:KIND",
        "city:numeric,age:date,notes:date": "column 'notes' holds text that is no ISO 8601 date",
    }.items():
        with pytest.raises(UserError, match=why):
            Tables.infer(table, every(table), columns=wrong)
    with pytest.raises(UserError, match="'age' is the label"):
        Tables.infer(table, every(table), exclude=["age"], columns="age:numeric")


def test_other_modalities_have_no_columns(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--columns a:drop: digits holds images, which have no columns"):
        modicum.pretrain("digits", columns="a:drop", steps=1, out=tmp_path / "run")


@pytest.mark.parametrize("kind", ["text", "date", "stamp", "zoned"])
def test_dates_are_seconds(kind: str) -> None:
    days = [datetime.date(1970, 1, 2), datetime.date(1969, 12, 31), None, datetime.date(2026, 3, 1)]
    column = pa.array(days, pa.date32())
    typed = {"date": pa.date32(), "stamp": pa.timestamp("ns"), "zoned": pa.timestamp("ms", "UTC"), "text": pa.string()}
    table = pa.table({"at": column.cast(typed[kind]), "x": [1, 2, 3, 4]})
    made = Tables.infer(table, every(table))
    assert made.dates == ("at",)
    batch = made.pack(table).source.rows(every(table))
    assert batch["numeric"][:, 0].nan_to_num(7).tolist() == [86400, -86400, 7, 1772323200]
    assert [row["text"].split(",")[0] for row in made.show(batch)] == [
        "at=1970-01-02", "at=1969-12-31", "at=(missing)", "at=2026-03-01"
    ]  # fmt: skip


def test_rare_categories_share_a_token() -> None:
    words = [f"w{k}" for k in range(120) for _ in range(9 if k < 60 else 1)]
    table = pa.table({"c": words, "x": range(len(words))})
    with pytest.warns(Warned, match="'c': 60 of 120 categories are rare and share the token of unseen ones"):
        made = Tables.infer(table, every(table))
    assert len(made.categorical[0][1]) == 60
    assert (made.pack(table).source.rows(every(table))["categorical"][-60:] == _tablepack.UNSEEN).all()


# Scaling


def test_quantile_scaling_gives_normal_scores_and_goes_back() -> None:
    x = np.random.default_rng(0).lognormal(sigma=2, size=4000)
    x[5] = 1e9
    table = pa.table({"x": x, "flag": (x > 1).astype(int)})
    made = Tables.infer(table, every(table), columns="x:quantile")
    assert made.knots[1] == ()
    scaling, batch = Scaling(made), made.pack(table).source.rows(every(table))
    scaled = scaling(batch["numeric"])
    wanted = norm.ppf((rankdata(x) - 0.5) / len(x))
    middle = np.abs(wanted) < 1.5
    np.testing.assert_allclose(scaled[:, 0].numpy()[middle], wanted[middle], atol=0.05)
    np.testing.assert_allclose(scaling.back(scaled).numpy(), batch["numeric"].numpy(), rtol=2e-3, atol=1e-3)
    plain = Scaling(Tables(numeric=made.numeric))(batch["numeric"])
    torch.testing.assert_close(scaled[:, 1], plain[:, 1])
    again = Scaling(Tables(made.numeric, made.categorical, knots=made.knots))(torch.tensor([[torch.nan, 0.0]]))
    assert again[0, 0].isnan()


def test_many_equal_cells_have_their_middle_score() -> None:
    table = pa.table({"x": [0.0] * 500 + list(np.linspace(1, 2, 500))})
    made = Tables.infer(table, every(table), scaling="quantile")
    zero = Scaling(made)(torch.zeros(1, 1, dtype=torch.float64)).item()
    assert zero == pytest.approx(norm.ppf(0.25), abs=0.2)
    assert all(a < b for a, b in zip(made.knots[0], made.knots[0][1:], strict=False))


# Larger than memory


def test_large_files_are_packed_into_the_cache_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    table = pa.table({"x": rng.normal(size=500), "c": [None if k % 7 == 0 else "abc"[k % 3] for k in range(500)]})
    pyarrow.csv.write_csv(table, tmp_path / "t.csv")
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=90)
    small = {name: read_table(tmp_path / name) for name in ("t.csv", "t.parquet")}
    monkeypatch.setattr(_tableread, "IN_MEMORY", 0)
    monkeypatch.setattr(_tablepack, "IN_MEMORY", 0)
    monkeypatch.setattr(_tablepack, "PIECE", 64)
    for name, plain in small.items():
        large = read_table(tmp_path / name)
        assert large.equals(plain)
        assert key_of(plain) is None
        assert key_of(large) == key_of(read_table(tmp_path / name)) is not None
        assert key_of(large.slice(0, 500)) is None
        made = Tables.infer(large, every(large))
        packed, again, wanted = made.pack(large), made.pack(large), made.pack(plain)
        assert isinstance(packed.source.data, np.memmap)  # type: ignore[attr-defined]
        assert (packed.hashes == wanted.hashes).all()
        assert (again.hashes == wanted.hashes).all()
        ask = np.array([3, 499, 0, 7])
        for key, value in wanted.source.rows(ask).items():
            torch.testing.assert_close(packed.source.rows(ask)[key], value, equal_nan=True)
    assert len(list((tmp_path / "cache" / "tables").glob("*.npy"))) == 2
    assert len(list((tmp_path / "cache" / "tables").glob("*.arrow"))) == 2


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"x": [1.0, 2.0]}), tmp_path / "t.parquet")
    monkeypatch.setattr(_tableread, "IN_MEMORY", 0)
    monkeypatch.setenv("MODICUM_CACHE", "/proc/nowhere")
    with pytest.raises(
        UserError, match=r"t\.parquet is large and is put into .*; free some space or set MODICUM_CACHE"
    ):
        read_table(tmp_path / "t.parquet")


def test_urls_are_read_through_fsspec(tmp_path: Path) -> None:
    fsspec = peer("fsspec")
    system = fsspec.filesystem("memory")
    system.pipe("/tables/t.csv", b"x,label\n1,a\n2,b\n")
    assert len(open_data("memory://tables/t.csv")) == 2
    system.pipe("/tables/t.csv", b"x,label\n1,a\n2,b\n3,a\n")
    assert len(open_data("memory://tables/t.csv")) == 3
    pq.write_table(pa.table({"x": [1, 2]}), tmp_path / "a.parquet")
    system.pipe("/many/a.parquet", (tmp_path / "a.parquet").read_bytes())
    system.pipe("/many/b.parquet", (tmp_path / "a.parquet").read_bytes())
    assert len(open_data("memory://many")) == 4
    assert len(open_data((tmp_path / "a.parquet").as_uri())) == 2
    for url in ("memory://tables/none.csv", "nosuch://tables/t.csv"):
        with pytest.raises(UserError, match="cannot be read"):
            open_data(url)


# Any table


NAMES = st.lists(st.text(string.ascii_letters + " é", min_size=1, max_size=8), min_size=1, max_size=4, unique=True)
CELLS: list[Any] = [
    st.floats(-1e9, 1e9, width=32) | st.none(),
    st.integers(-(2**40), 2**40) | st.none(),
    st.sampled_from(["red", "green, blue", 'say "x"', "naïve 東京", "01"]) | st.none(),
    st.booleans() | st.none(),
    st.dates(datetime.date(1900, 1, 1), datetime.date(2200, 1, 1)) | st.none(),
]


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    rows = draw(st.integers(2, 12))
    kinds = {name: draw(st.sampled_from(CELLS)) for name in draw(NAMES)}
    columns = {name: draw(st.lists(kind, min_size=rows, max_size=rows)) for name, kind in kinds.items()}
    return pa.table({**columns, "row": [0.5 + k for k in range(rows)]})


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(tables(), st.sampled_from(["csv", "parquet", "jsonl"]), st.sampled_from(["zscore", "quantile"]))
@pytest.mark.filterwarnings("ignore::modicum.core.errors.Warned")
def test_any_table_is_read_back_or_refused_clearly(table: pa.Table, suffix: str, scaling: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"t.{suffix}"
        if suffix == "csv":
            pyarrow.csv.write_csv(table, path)
        elif suffix == "parquet":
            pq.write_table(table, path)
        else:
            path.write_text("".join(json.dumps(row, default=str) + "\n" for row in table.to_pylist()))
        raw = scan(path)
        assert raw.num_rows == table.num_rows
        made = Tables.infer(raw, every(raw), scaling=scaling)
        batch = made.pack(raw).source.rows(every(raw))
        back = Scaling(made).back(Scaling(made)(batch["numeric"]))
        for j, (name, _, std) in enumerate(made.numeric):
            wanted = _seconds(table.column(name).to_pylist())
            np.testing.assert_allclose(batch["numeric"][:, j], wanted, rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(back[:, j], wanted, rtol=1e-4, atol=1e-4 * std)
        for j, (name, values) in enumerate(made.categorical):
            shown = [["", "", *values][code] for code in batch["categorical"][:, j].tolist()]
            assert shown == [_word(v) for v in table.column(name).to_pylist()]
        assert made.embed()(batch).x.isfinite().all()
        assert np.isfinite(made.flat(batch)).all()
        assert len(made.show(batch)) == raw.num_rows


def _seconds(cells: list[Any]) -> list[float]:
    day = datetime.date(1970, 1, 1)
    seconds = [(v - day).days * 86400 if isinstance(v, datetime.date) else v for v in cells]
    return [float("nan") if v is None else float(v) for v in seconds]


def _word(cell: Any) -> str:
    return "" if cell is None else str(cell).lower() if isinstance(cell, bool) else str(cell)
