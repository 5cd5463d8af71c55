"""Tables as people keep them: a fault is an error or a named, counted warning, on the command line and in Python."""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import small
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import modicum
from modicum.cli import app
from modicum.core.errors import UserError, Warned
from modicum.datasets.data import open_data
from modicum.modalities._tableread import read_table, scan
from modicum.modalities.tables import Scaling, Tables

N = 40
RNG = np.random.default_rng(0)
BASE = {"u": RNG.normal(size=N).round(3).tolist(), "v": RNG.normal(size=N).round(3).tolist()}
LABEL = ["p", "q", "q"] * 13 + ["p"]
TINY: dict[str, Any] = {"encoder": "mlp(width=8)", "steps": 1, "batch": 8, "device": "cpu"}
OPTIONS = [text for key, value in TINY.items() for text in (f"--{key}", str(value))]


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def text_of(columns: dict[str, Any]) -> str:
    rows = zip(*columns.values(), strict=True)
    return "\n".join(",".join(f'"{v}"' if "," in str(v) else str(v) for v in row) for row in [tuple(columns), *rows])


def command(*arguments: str) -> tuple[int, str, list[str]]:
    """Exit code, stderr, and the warnings of a command."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "300"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stderr, [str(w.message) for w in told]


ODD = text_of({**BASE, "label": LABEL}).split("\n")
REFUSED: dict[str, tuple[str, bytes, str]] = {
    "latin-1": ("t.csv", text_of({**BASE, "city": ["é"] * N}).encode("latin-1"), "t.csv, line 2: not UTF-8 (byte 0xe9"),
    "UTF-16": ("t.csv", text_of(BASE).encode("utf-16"), "t.csv: the file is UTF-16; save it as UTF-8"),
    "UTF-16 unmarked": ("t.csv", text_of(BASE).encode("utf-16-le"), "t.csv, line 1: holds a NUL byte"),
    "texts in latin-1": ("t.txt", "café au lait\n".encode("latin-1") * 9, "t.txt, line 1: not UTF-8 (byte 0xe9)"),
    "texts in UTF-16": ("t.txt", "café au lait\n".encode("utf-16") * 9, "t.txt: the file is UTF-16"),
    "NUL": ("t.csv", b"a,b\n1,2\n\0,3\n", "t.csv, line 3: holds a NUL byte"),
    "ragged": (
        "t.csv",
        "\n".join([*ODD[:4], "1,2,p,4", *ODD[4:8], "7", *ODD[8:]]).encode(),
        "2 row(s) of 42 cannot be used:\n  t.csv: row 5 has 4 columns, not 3: '1,2,p,4'\n  t.csv: row 10 has 1 columns",
    ),
    "ragged texts": (
        "t.csv",
        b"text,label\n" + b"the quick brown fox jumps far,a\n" * 9 + b"one, two, three and four more words,b\n",
        "t.csv: row 11 has 4 columns, not 2",
    ),
    "quote": ("t.csv", "\n".join([*ODD[:7], '1,"2,p', *ODD[7:]]).encode(), "row 8 opens a quote that is never closed"),
    "quote at the end": ("t.csv", "\n".join([*ODD[:7], '1,2,"p', *ODD[7:]]).encode(), "row 8 opens a quote"),
    "names used twice": ("t.csv", b"a,a,b\n1,2,3\n", "t.csv: column names used twice: a; rename them"),
    "header alone": ("t.csv", b"a,b\n", "t.csv: the table has no rows"),
    "empty": ("t.csv", b"", "t.csv: the file is empty"),
    "empty lines": ("t.csv", b"\n\n", "t.csv: the file is empty"),
    "mark alone": ("t.csv", b"\xef\xbb\xbf", "t.csv: the file is empty"),
    "semicolons": ("t.csv", b"a;b\n1;2\n", "the columns seem to be separated by ';': save it with ','"),
    "JSON array": ("t.json", b'[{"a": 1}]', "t.json, row 1: not JSON lines, one object a line: a list"),
    "JSON cut off": ("t.jsonl", b'{"a": 1}\n{"a":', "t.jsonl, row 2: not JSON lines"),
    "JSON changes": ("t.jsonl", b'{"a": 1}\n{"a": "x"}', "t.jsonl, row 2: column 'a' is text here and a number before"),
    "infinite": ("t.csv", b"x,y\n1,2\ninf,3\n4,1\n", "1 row(s) of 3 cannot be used:\n  t.csv, row 3: column 'x' is"),
    "huge": ("t.csv", b"x,y\n1,2\n1e200,3\n4,1\n", "t.csv, row 3: column 'x' is beyond ±1e+150: blank it"),
    "infinite label": ("t.csv", b"x,y\n1,2.5\n2,inf\n3,\n4,.5\n", "infinite in 1 row(s), first t.csv, row 3: blank"),
    "all constant": ("t.csv", b"x,y,label\n" + b"1,2,a\n" * 9, "a table needs at least one numeric or categorical"),
    "no such label": ("t.csv", text_of(BASE).encode(), "t.csv has no label column 'nope'; its columns: "),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore::modicum.core.errors.Warned")
def test_what_cannot_be_used_is_refused(name: str) -> None:
    file, content, words = REFUSED[name]
    Path(file).write_bytes(content)
    label = "nope" if name == "no such label" else None
    trunk = "transformer(width=8, depth=1)" if "texts" in name else TINY["encoder"]
    with pytest.raises(UserError) as error:
        modicum.pretrain(file, out="run", label=label, **{**TINY, "encoder": trunk})
    assert words in str(error.value)
    more = ["--label", label] if label else []
    code, said, _ = command("pretrain", file, "--out", "run", *OPTIONS, "--encoder", trunk, *more)
    assert (code, words in said) == (2, True), said
    assert not Path("run").exists()


WARNED: dict[str, tuple[dict[str, Any], str]] = {
    "repeated id": ({"id": [1, 1, 1, *range(3, N)]}, "t.csv: 2 row(s) have an id that an earlier row has, such as '1'"),
    "constant number": ({"c": [5] * N}, "column 'c' is 5 everywhere in the training rows and is left out"),
    "constant text": ({"c": ["w"] * N}, "column 'c' is 'w' in the training rows and is left out"),
    "all missing": ({"c": [""] * N}, "column 'c' is empty in the training rows and is left out"),
    "no name": ({"": range(N)}, "column 3 has no name (an index that pandas wrote?) and is left out"),
    "thousands": ({"c": [f"1,{k:03d}" for k in range(N)]}, "'c' holds numbers with signs in them, such as '1,000'"),
    "decimal comma": ({"c": [f"{k % 4},5" for k in range(N)]}, "'c' holds numbers with signs in them, such as '0,5'"),
    "currency": ({"c": [f"${k}.5" for k in range(N)]}, "'c' holds numbers with signs in them, such as '$0.5'"),
    "half a date": (
        {"c": ["2026-01-01", "2026-01-02", "soon", "later"] * 10},
        "column 'c' is read as text, for 16 of 32 cells looked at are ISO 8601 dates, others are not, such as 'soon'",
    ),
    "two dates": ({"c": ["01/02/2026", "03/04/2026"] * 20}, "'c' holds dates such as '01/02/2026', which may mean two"),
    "codes": ({"c": [10**25 + k for k in range(N)]}, "column 'c' has 32 different texts in 32 rows (an id or"),
    "leak": ({"copy": LABEL}, "column 'copy' says the same as 'label' in 32 rows looked at, so the answer may be"),
    "no label": ({"label": ["nan", "NA", *LABEL[2:]]}, "2 label(s) of t.csv are 'NA' or 'nan', taken as a class"),
}  # fmt: skip


@pytest.mark.parametrize("name", WARNED)
@pytest.mark.usefixtures("quick")
def test_what_is_doubtful_is_said(name: str) -> None:
    columns, words = WARNED[name]
    label = columns.get("label", LABEL)
    Path("t.csv").write_text(text_of({**BASE, **columns, "label": label}))
    with pytest.warns(Warned) as told:
        run = modicum.pretrain("t.csv", out="a", **TINY)
    assert sum(words in str(w.message) for w in told) == 1, [str(w.message) for w in told]
    assert any(words in text for text in run.spec["data"]["warnings"]), "the report says it too"
    code, _, heard = command("pretrain", "t.csv", "--out", "b", *OPTIONS)
    assert (code, sum(words in text for text in heard)) == (0, 1), heard


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "columns", [{"c": ["z"] + ["x", "y"] * 19 + ["x"]}, {"c": ["true", "False"] * 20}, {"c": [""] + [3] * 39}]
)
def test_what_is_fine_is_silent(columns: dict[str, Any]) -> None:
    """A category with one row, booleans, a constant with a blank."""
    Path("t.csv").write_text(text_of({**BASE, **columns, "label": LABEL}))
    run = modicum.pretrain("t.csv", out="a", **TINY)
    assert modicum.load(run).input.columns() == ("u", "v", "c")


def test_a_column_that_changes_its_type_at_row_a_million() -> None:
    Path("t.csv").write_text("x\n" + "7\n8\n" * 500_000 + "abc\n")
    with pytest.warns(Warned, match="'x' is read as text, because row 1,000,002 holds 'abc' after 1,000,000 numbers"):
        table = read_table("t.csv")
    assert table.num_rows == 1_000_001


def test_dates_that_are_none_may_be_missing() -> None:
    days = ["2026-01-31", "soon", "2026-02-01T12:00", ""] * 10
    raw = pa.table({"d": days, "x": range(N)})
    made = Tables.infer(raw, np.arange(N), columns="d:date")
    with pytest.warns(Warned, match=r"column 'd': 10 text\(s\) that are no date, such as 'soon', are missing"):
        seconds = made.pack(raw).source.rows(np.arange(4))["numeric"][:, 0].nan_to_num(0).tolist()
    assert seconds == [1769817600, 0, 1769947200, 0]
    with pytest.raises(UserError, match="column 'd' holds text that is no ISO 8601 date"):
        Tables.infer(pa.table({"d": ["a", "b"]}), np.arange(2), columns="d:date")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"s": [{"a": 1}] * N}, "column 's' holds struct<a: int64>, which cannot be a category: leave it out"),
        ({"s": [b"\xff"] * N}, "column 's' holds binary, which cannot be a category"),
        ({"label": [[1]] * N}, "the label column holds list<element: int64>, wanted text or numbers"),
    ],
)  # fmt: skip
def test_columns_of_parquet_that_are_no_cells(columns: dict[str, Any], words: str) -> None:
    pq.write_table(pa.table({**BASE, "label": LABEL, **columns}), "t.parquet")
    with pytest.raises(UserError) as error:
        modicum.pretrain("t.parquet", out="run", **TINY)
    assert words in str(error.value)
    assert words in command("finetune", "mlp(width=8)", "t.parquet", "--out", "run")[1]


FRAMES: dict[str, tuple[Any, str]] = {
    "mixed": (lambda: pd.DataFrame({"x": [1, "a", 2.5], "label": LABEL[:3]}), "Conversion failed for column x"),
    "lists": (lambda: pd.DataFrame({"x": [1, None, [1]], "label": LABEL[:3]}), "Conversion failed for column x"),
    "twice": (lambda: pd.DataFrame([[1, 2]] * 3, columns=["x", "x"]), "Duplicate column names found: ['x', 'x']"),
    "empty": (pd.DataFrame, "the DataFrame has no rows"),
}


@pytest.mark.parametrize("name", FRAMES)
def test_frames_that_are_no_tables(name: str) -> None:
    make, words = FRAMES[name]
    with pytest.raises(UserError) as error:
        modicum.pretrain(make(), out="run", **TINY)
    assert words in str(error.value)


def test_rows_are_named_as_in_the_file() -> None:
    """Blank lines and ragged rows before count; files of other kinds have no header; rows in memory count from 0."""
    Path("t.csv").write_text("x,y\n1,2\n1,2,3\n4,5\n7\ninf,1\n")
    table = scan(Path("t.csv"))
    packed = Tables.infer(table, np.arange(3)).pack(table, skip_bad=True)
    assert [(place, why.split(":")[0]) for _, place, why in packed.bad] == [
        ("t.csv", "row 3 has 3 columns, not 2"),
        ("t.csv", "row 5 has 1 columns, not 2"),
        ("t.csv, row 6", "column 'x' is infinite"),
    ]
    assert packed.keep.tolist() == [0, 1]
    bad = pa.table({"x": [1, np.inf], "y": [1, 2]})
    pq.write_table(bad, "t.parquet")
    for raw, place in ((scan(Path("t.parquet")), "t.parquet, row 2"), (bad, "row 1")):
        assert Tables.infer(raw, np.arange(2)).pack(raw, skip_bad=True).bad[0][1] == place


@pytest.mark.usefixtures("quick")
def test_what_is_skipped_is_listed(table_run: Any) -> None:
    path = small.csv(Path("t.csv"), small.columns())
    rows = path.read_text().split("\n")
    path.write_text("\n".join([*rows[:5], *["1,2"] * 7, *rows[5:]]))
    words = r"skipped 7 bad row\(s\) of t.csv: t.csv \(row 6 has .*, and 2 more, all listed in "
    with pytest.warns(Warned, match=words + "the report"):
        run = modicum.pretrain(path, skip_bad=True, out="run", **TINY)
    assert [why.split(" has")[0] for *_, why in run.spec["data"]["bad"]] == [f"row {k}" for k in range(6, 13)]
    with pytest.warns(Warned, match=words + "p.parquet.skipped.csv"):
        assert modicum.predict(table_run, path, skip_bad=True, output="p.parquet").num_rows == 60
    listed = pyarrow.csv.read_csv("p.parquet.skipped.csv").to_pylist()
    assert [row["row"] for row in listed] == ["t.csv"] * 7
    assert [row["why"].split(" has")[0] for row in listed] == [f"row {k}" for k in range(6, 13)]


def test_a_stray_cell_of_new_data_does_not_spoil_the_row(table_run: Any) -> None:
    rows = pa.table(small.columns(num=[1e140] * 60))
    assert np.isfinite(modicum.load(table_run).predict_proba(rows)).all()


def test_long_numbers_are_codes() -> None:
    """10^25 and 10^25 + 1 are one float64: as an id or a category they are two."""
    Path("t.csv").write_text("id,k,x\n" + "".join(f"{10**25 + k},{2**62 + k},{k}.5\n" for k in range(9)))
    table = read_table("t.csv")
    assert table.schema.types == [pa.string(), pa.int64(), pa.float64()]
    assert len(set(table.column("id").to_pylist())) == 9


# Any table whatever


ANY: list[Any] = [
    st.floats() | st.none(),
    st.integers(-(2**63), 2**63 - 1) | st.none(),
    st.text(max_size=12) | st.none(),
    st.dates() | st.none(),
    st.datetimes() | st.none(),
    st.booleans(),
    st.none(),
    st.lists(st.integers(0, 3), max_size=2),
    st.just(1.6e-19) | st.just(1.7e-19),
    st.sampled_from(["1,000", "2026-01-31", "0x1F", "1e5", "inf", " 7", "007", "NaN", "NA", "", "é", "\ufeff", "\x00"]),
]


@st.composite
def anything(draw: st.DrawFn) -> pa.Table:
    rows = draw(st.integers(0, 8))
    columns = {}
    for name in draw(st.lists(st.text(max_size=5), max_size=4, unique=True)):
        cells = draw(st.lists(draw(st.sampled_from(ANY)), min_size=rows, max_size=rows))
        columns[name] = pa.array(cells)
    return pa.table(columns)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(anything(), st.sampled_from(["csv", "parquet", "jsonl"]), st.sampled_from(["zscore", "quantile"]))
@pytest.mark.filterwarnings("ignore::modicum.core.errors.Warned")
def test_any_table_is_read_or_refused(table: pa.Table, suffix: str, scaling: str) -> None:
    """No exception but UserError; what is read has the numbers it was written with and finite tokens."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"t.{suffix}"
        try:
            write(table, path)
        except pa.ArrowException:  # a CSV has no lists
            return
        try:
            data = open_data(path)
            if data.modality is not Tables:
                return
            data.labels()
            raw = data.raw
            made = Tables.infer(raw, np.arange(raw.num_rows), scaling=scaling)
            packed = made.pack(raw, skip_bad=True)
        except UserError:
            return
    assert len(packed.keep) + len(packed.bad) == table.num_rows, "no row is lost without a word"
    batch = packed.source.rows(np.arange(packed.source.size))
    numeric = batch["numeric"].numpy()
    for j, (name, _, std) in enumerate(made.numeric):
        kind = table.column(name).type if name in table.column_names else None
        if kind is not None and (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            wanted = np.asarray(table.column(name).cast(pa.float64(), safe=False).to_numpy(), float)[packed.keep]
            np.testing.assert_allclose(numeric[:, j], wanted, rtol=1e-12)
            back = Scaling(made).back(Scaling(made)(batch["numeric"]))[:, j].numpy()
            np.testing.assert_allclose(back, wanted, rtol=1e-4, atol=1e-4 * std)
    assert made.embed()(batch).x.isfinite().all()
    assert np.isfinite(made.flat(batch)).all()
    assert len(made.show(batch)) == packed.source.size


def write(table: pa.Table, path: Path) -> None:
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    elif path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        path.write_text("".join(json.dumps(row, default=str) + "\n" for row in table.to_pylist()))
