"""Text: files and folders, however large; long documents in windows; the choice of the tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from sklearn.feature_extraction.text import HashingVectorizer

import modicum
from modicum import UserError, open_data
from modicum.core import seeds
from modicum.core.errors import Warned
from modicum.datasets.data import Chain
from modicum.modalities import _textfiles, _textplain, _texttokens
from modicum.modalities.images import Images
from modicum.modalities.tables import Tables
from modicum.modalities.text import Text
from modicum.nn.encoder import Encoder
from modicum.training import baselines, hashes, transfer
from modicum.training.apply import embed, predict
from modicum.training.batches import Batches
from modicum.training.transfer import Task

# Files


def rows_in(path: Path) -> list[str]:
    data = open_data(path)
    assert data.modality is Text
    return [t for texts in data.raw.read(data.raw.choose(None)) for t in texts]


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_text_file_is_read_by_lines_or_by_paragraphs(tmp_path: Path) -> None:
    lines = written(tmp_path / "lines.txt", "\ufeffone\n\ntwo\r\n  \n  three \n")
    assert rows_in(lines) == ["one", "two", "three"]
    assert open_data(lines).ids() == ["1", "3", "5"]
    blocks = written(tmp_path / "blocks.txt", "one\nmore\n\n\ntwo\n")
    assert rows_in(blocks) == ["one\nmore", "two"]
    assert open_data(blocks).ids() == ["1", "5"]
    stray = "\n".join(f"line {k}" for k in range(200))
    assert len(rows_in(written(tmp_path / "stray.txt", stray + "\n\n" + stray))) == 400


def test_bad_text_files_are_named_with_their_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"latin.txt, line 2: not UTF-8 \(byte 0xe9\)"):
        open_data(written(tmp_path / "latin.txt", b"fine\ncaf\xe9\n"))
    with pytest.raises(UserError, match=r"blank\.txt: the file holds no text"):
        open_data(written(tmp_path / "blank.txt", "\n \n"))
    with pytest.raises(UserError, match="the file is UTF-16"):
        open_data(written(tmp_path / "wide.txt", "two\n".encode("utf-16")))
    for end in ("", "\n\n"):
        with pytest.warns(Warned, match=r"one.txt: all of it is one line of 2,000 characters.* wanted one text a line"):
            assert len(open_data(written(tmp_path / "one.txt", "word " * 400 + end))) == 1
    assert len(open_data(written(tmp_path / "short.txt", "one text alone\n"))) == 1


LONG = [f"this row number {k} has quite a few different words in it" for k in range(20)]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "folder"])
def test_a_column_of_free_text_makes_a_table_text(tmp_path: Path, kind: str) -> None:
    texts = ['with "quotes",\nnew lines and,\tseparators inside of it', *LONG[1:]]
    frame = pd.DataFrame({"n": range(20), "remark": texts, "label": ["a", "b"] * 10})
    path = tmp_path / f"x.{kind}" if kind != "folder" else tmp_path / "x"
    if kind in ("csv", "tsv"):
        frame.to_csv(path, index=False, sep="," if kind == "csv" else "\t")
    elif kind == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        path.mkdir() if kind == "folder" else None
        pq.write_table(pa.table(frame), path / "a.parquet" if kind == "folder" else path)
    assert rows_in(path) == texts
    labels = open_data(path).labels()
    assert labels is not None
    assert labels.classes == ["a", "b"]


TITLES = ["Mr", "Mrs", "Dr", "Miss"] * 5
NAMES = [f"Smith, Mr. John the {k}th" for k in range(20)]


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        ({"review": TITLES, "text": LONG}, "text"),
        ({"note": LONG, "review": ["short", "one", "or", "two"] + [f"no {k}" for k in range(16)]}, "review"),
        ({"short": [t[:30] for t in LONG], "long": LONG}, "long"),
        ({"label": LONG, "text": [f"a {k}" for k in range(20)]}, "text"),
        ({"title": TITLES, "name": NAMES, "age": range(20)}, None),
        ({"a": range(20), "b": range(20), "c": range(20), "remark": LONG}, None),
        ({"x": range(20), "label": LONG}, None),
    ],
)
def test_the_column_of_text_is_found_and_tables_stay_tables(
    tmp_path: Path, columns: dict[str, Any], chosen: str | None
) -> None:
    path = small.csv(tmp_path / "x.csv", {k: list(v) for k, v in columns.items()})
    data = open_data(path)
    assert data.modality is (Tables if chosen is None else Text)
    if chosen is not None:
        assert data.raw.choose(None) == chosen


def test_a_table_of_image_paths_with_captions_stays_images(images: Path, tmp_path: Path) -> None:
    files = sorted(str(p) for p in images.rglob("*.png"))[:20]
    assert open_data(small.csv(tmp_path / "x.csv", {"text": LONG, "path": files})).modality is Images


def test_the_label_is_never_the_text(tmp_path: Path) -> None:
    raw = open_data(small.csv(tmp_path / "x.csv", {"text": LONG, "answer": LONG[::-1]})).raw
    every = np.arange(20)
    assert Text.infer(raw, every, exclude=["text"]).columns() == ("answer",)
    with pytest.raises(UserError, match="no column of text is left as input besides text, answer"):
        Text.infer(raw, every, exclude=["text", "answer"])
    other = open_data(small.csv(tmp_path / "y.csv", {"text": LONG})).raw
    with pytest.raises(UserError, match="no column 'answer' of text; the table has text"):
        Text.infer(raw, every, exclude=["text"]).pack(other)
    assert Text.infer(raw, every).pack(Text.as_raw(LONG)).source.size == 20, "a bare list has no names to mistake"


def test_empty_texts_are_named_and_left_out_only_when_asked(tmp_path: Path) -> None:
    path = small.csv(tmp_path / "x.csv", {"id": ["p", "q", "r"], "text": ["some words", None, "  "]})
    raw = open_data(path).raw
    made = Text.infer(raw, np.arange(3))
    with pytest.raises(UserError, match=r"2 of 3 texts are empty \(.*x.csv, row 3 \(q\), .*x.csv, row 4 \(r\)\): use"):
        made.pack(raw)
    held = made.pack(raw, skip_bad=True)
    assert held.keep.tolist() == [0]
    assert held.bad == [(k, f"{path}, row {k + 2} ({'pqr'[k]})", "the text is empty") for k in (1, 2)]
    assert made.texts(held.source.rows(np.array([0]))) == ["some words"]
    with pytest.raises(UserError, match="none of the 2 rows holds text in column 'text'"):
        made.pack(raw.take([1, 2]), skip_bad=True)
    with pytest.raises(UserError, match=r"1 of 2 texts are empty \(.*row 3 \(q\)\)"):
        made.pack(raw.take([0, 1]))


def test_texts_in_memory() -> None:
    frame = pd.DataFrame({"text": LONG, "label": ["a", "b"] * 10})
    for x in (frame, pa.table(frame), frame.to_dict("records")):
        data = open_data(x)
        labels = data.labels()
        assert data.modality is Text
        assert labels is not None, "what is known of rows in memory is kept"
        assert labels.classes == ["a", "b"]
    for y in (LONG, np.array(LONG), frame["text"]):
        assert len(open_data(y, Text)) == 20
    for bad, words in (([1, 2], "list of int"), ("text", "got a str"), (pd.DataFrame({"x": [1]}), "no column of free")):
        with pytest.raises(UserError, match=words):
            Text.as_raw(bad)
    with pytest.raises(UserError, match="text 1 is not valid Unicode: surrogates not allowed"):
        Text.as_raw(["fine", "\ud800"])


def plain(content: str) -> list[tuple[str, str]]:
    """What rows a text file has, by the rule as it is written, in memory: (id, text)."""
    lines = content.removeprefix("\ufeff").splitlines()
    full = np.array([bool(line.strip()) for line in lines])
    first = np.flatnonzero(full & ~np.concatenate([[False], full[:-1]]))
    last = np.flatnonzero(full & ~np.concatenate([full[1:], [False]])) + 1
    if len(first) < 2 or not 1 < (last - first).max() <= 100:
        first = np.flatnonzero(full)
        last = first + 1
    return [(str(a + 1), "\n".join(lines[a:b])) for a, b in zip(first, last, strict=True)]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(st.sampled_from("ab é\n\r\t\x0c\u2028\ufeff"), max_size=40).filter(
        lambda t: bool(t.strip("\ufeff \n\r\t\x0c\u2028"))
    )
)
def test_a_text_file_read_in_pieces_has_the_rows_of_the_whole(tmp_path: Path, content: str) -> None:
    path = written(tmp_path / "x.txt", content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_textplain, "PIECE", 5)
        patch.setattr(_textplain, "ROWS", 2)
        table = _textplain.read(path)
    found = list(zip(table.column("id").to_pylist(), table.column("text").to_pylist(), strict=True))
    assert found == plain(content)


def test_a_large_text_file_is_mapped_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODICUM_CACHE", str(tmp_path / "cache"))
    path = written(tmp_path / "x.txt", "\n".join(LONG))
    (tmp_path / "docs").mkdir()
    for k, text in enumerate(LONG):
        written(tmp_path / "docs" / f"{k:02d}.txt", text)
    monkeypatch.setattr(_textplain, "IN_MEMORY", 0)
    monkeypatch.setattr(_texttokens, "IN_MEMORY", 0)
    for where, names in (
        (path, [str(k + 1) for k in range(20)]),
        (tmp_path / "docs", [f"{k:02d}.txt" for k in range(20)]),
    ):
        for _ in range(2):
            data = open_data(where)
            assert rows_in(where) == LONG
            assert data.ids() == names
            made = Text.infer(data.raw, np.arange(20))
            held = made.pack(data.raw)
            assert held.hashes.tolist() == Text.as_raw(LONG).hashes("text").tolist()
    assert len(list((tmp_path / "cache" / "tables").glob("*.arrow"))) == 2
    assert len(list((tmp_path / "cache" / "texts").glob("*.ids"))) == 2, "the second time they are there"
    few = data.raw.take([3, 5])
    assert made.texts(made.pack(few).source.rows(np.arange(2))) == [LONG[3], LONG[5]]
    assert len(list((tmp_path / "cache" / "texts").glob("*.ids"))) == 3, "some rows are not all rows"


def test_a_folder_of_texts_is_a_text_a_file_and_its_folders_are_classes(tmp_path: Path) -> None:
    for name in ("pos/b.txt", "pos/a.text", "neg/sub/c.TXT", ".hidden.txt"):
        path = tmp_path / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        written(path, f"\ufeffthis is\n\n{name}\n")
    data = open_data(tmp_path / "docs")
    labels = data.labels()
    assert data.modality is Text
    assert data.ids() == ["neg/sub/c.TXT", "pos/a.text", "pos/b.txt"]
    assert rows_in(tmp_path / "docs") == [f"this is\n\n{name}" for name in data.ids()]
    assert labels is not None
    assert [labels.classes[k] for k in labels.values] == ["neg", "pos", "pos"]
    written(tmp_path / "docs" / "notes.csv", "a,b")
    with pytest.warns(Warned, match=r"1 files are not texts and were left out: notes\.csv"):
        open_data(tmp_path / "docs")


def test_splits_of_a_folder_of_texts_and_what_is_wrong_with_its_files(tmp_path: Path) -> None:
    for name in ("train/x/a.txt", "train/y/b.txt", "test/x/c.txt", "unlabelled/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        written(tmp_path / name, f"words of {name}")
    table = open_data(tmp_path).table
    assert table.column("split").to_pylist() == ["test", "train", "train", "train"]
    assert table.column("label").to_pylist() == ["x", "x", "y", None]
    written(tmp_path / "test" / "x" / "e.txt", "")
    raw = open_data(tmp_path).raw
    with pytest.raises(UserError, match=r"1 of 5 texts are empty \(row test/x/e.txt\)"):
        Text.infer(raw, np.arange(5)).pack(raw)
    written(tmp_path / "test" / "x" / "e.txt", b"fine\ncaf\xe9\n")
    with pytest.raises(UserError, match=r"e.txt, line 2: not UTF-8"):
        open_data(tmp_path)


def test_a_folder_with_images_stays_images(images: Path, tmp_path: Path) -> None:
    (tmp_path / "mixed").symlink_to(images)
    assert open_data(tmp_path / "mixed").modality is Images
    small.folder(tmp_path / "both", 4)
    written(tmp_path / "both" / "README.txt", "what these are")
    with pytest.warns(Warned, match="1 files are not images"):
        assert open_data(tmp_path / "both").modality is Images
    with pytest.warns(Warned, match="4 files are not texts"):
        assert len(open_data(tmp_path / "both", Text)) == 1


def test_rows_are_taken_without_the_rest_of_their_column(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"text {k} {'x' * (k % 50)}" if k % 7 else None for k in range(300)]
    column = pa.chunked_array([texts[:100], texts[100:100], texts[100:250], texts[250:]])
    raw = _textfiles.from_table(pa.table({"text": column}), "the table")
    index = np.random.default_rng(0).integers(0, 300, 90)
    monkeypatch.setattr(_textfiles, "STEP", 40)
    monkeypatch.setattr(_textfiles, "PIECE", 100)
    parts = list(raw.read("text", index))
    assert [t for part in parts for t in part] == [texts[k] or "" for k in index]
    assert max(sum(map(len, part)) for part in parts) <= 200
    assert [int(s) for sizes in raw.sizes("text", index) for s in sizes] == [len(texts[k] or "") for k in index]
    again = raw.take(index).take([5, 3])
    assert [t for part in again.read("text") for t in part] == [texts[k] or "" for k in index[[5, 3]]]
    assert list(raw.read("text", index[:0])) == []


# Windows


def packed(texts: list[str], **options: Any) -> tuple[Text, Any]:
    raw = Text.as_raw(texts)
    made = Text.infer(raw, np.arange(len(raw)), **options)
    return made, made.pack(raw)


def documents(n: int = 40, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Documents of 30 to 60 words of which only the last nine tell the class."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    filler = [" ".join(rng.choice(["one", "two", "three", "four", "five"], rng.integers(30, 60))) for _ in y]
    return [f"{text} {' '.join(['cat' if k else 'chair'] * 9)}" for text, k in zip(filler, y, strict=True)], y


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.text(max_size=60).filter(lambda t: bool(t.strip())), min_size=1, max_size=5), st.integers(3, 20))
def test_any_unicode_comes_back_from_its_windows(texts: list[str], length: int) -> None:
    made, held = packed(texts, size=length)
    windows = getattr(held.source, "windows", None)
    source = held.source if windows is None else windows.whole
    assert made.texts(source.rows(np.arange(len(texts)))) == [t.strip() for t in texts]


@pytest.mark.parametrize("tokenizer", ["bpe", "wordpiece"])
def test_every_token_is_in_one_window_with_special_ones_around_it(tokenizer: str) -> None:
    texts = ["cat", *documents(6)[0], " ".join(["chair"] * 10)]
    made, held = packed(texts, size=12, tokenizer=tokenizer)
    windows = held.source.windows
    every = _texttokens.tokenizer_of(made.tokenizer)
    bos, eos = made.special["bos"], made.special["eos"]
    for row, text in enumerate(texts):
        batch = windows.parts.rows(windows.of(np.array([row]))[0])
        ids = [own[mask].tolist() for own, mask in zip(batch["ids"], batch["mask"], strict=True)]
        assert all(own[0] == bos and own[-1] == eos and len(own) <= 12 for own in ids)
        assert all(len(own) == 12 for own in ids[:-1]), "only the last window is shorter"
        assert [bos, *(i for own in ids for i in own[1:-1]), eos] == every.encode(text).ids
        first = held.source.rows(np.array([row]))
        assert first["ids"][0][first["mask"][0]].tolist() == ids[0], "a row is its first window"
    parts, place = windows.of(np.array([2, 0, 2]))
    assert (parts[place == 0] == parts[place == 2]).all()
    assert len(parts[place == 1]) == 1
    assert held.source.size == len(texts) == len(held.keep) == len(held.hashes)


def test_the_features_of_a_document_are_its_windows_mean_by_their_tokens() -> None:
    texts = ["cat", *documents(6)[0]]
    made, held = packed(texts, size=12)
    with seeds.forked(0, "init"):
        encoder = Encoder.of(made, "transformer(width=16, depth=1, heads=2)").eval()
    windows = held.source.windows
    index = np.array([3, 0, 6, 3])
    found = embed(encoder, held.source, index)
    for row, own in zip(index, found, strict=True):
        batch = windows.parts.rows(np.arange(windows.starts[row], windows.starts[row + 1]))
        with torch.no_grad():
            pooled = encoder(batch).pooled
        tokens = batch["mask"].sum(1)
        np.testing.assert_allclose(own, (pooled * tokens[:, None]).sum(0) / tokens.sum(), atol=1e-6)
    alone = made.pack(made.as_raw(["cat"])).source
    assert not hasattr(alone, "windows")
    np.testing.assert_allclose(embed(encoder, alone, np.array([0]))[0], found[1], atol=1e-6)


def test_training_sees_every_window_with_the_label_of_its_document() -> None:
    texts, y = documents(10)
    held = packed(texts, size=12)[1]
    windows, rows = held.source.windows, np.array([7, 2, 4])
    batches = Batches(held.source, rows, batch=1, seed=0, extra={"target": torch.from_numpy(y[rows]), "row": rows})
    seen = [batches(step) for step in range(batches.per_epoch)]
    parts, place = windows.of(rows)
    assert batches.per_epoch == len(parts)
    assert sorted(int(b["row"][0]) for b in seen) == sorted(rows[place].tolist())
    assert all(int(b["target"][0]) == y[int(b["row"][0])] for b in seen)
    wanted = windows.parts.rows(parts)
    rows_of = sorted(tuple(ids[mask].tolist()) for ids, mask in zip(wanted["ids"], wanted["mask"], strict=True))
    assert sorted(tuple(b["ids"][0][b["mask"][0]].tolist()) for b in seen) == rows_of


@pytest.mark.parametrize("method", ["scratch", "probe"])
def test_what_only_the_end_of_a_document_tells_is_learned(method: str) -> None:
    texts, y = documents(240)
    made, held = packed(texts, size=16)
    with seeds.forked(0, "init"):
        encoder = Encoder.of(made, "mlp(width=32, over='set')")
    task = Task(held.source, y, "classes", 2, steps=60)
    train, test = np.arange(200), np.arange(200, 240)
    one = transfer.train(encoder, method, task, train, (train, train[:0])).objective
    out = predict(one, held.source, test)
    assert (out.argmax(1) == y[test]).mean() > 0.9
    with torch.no_grad():
        by_hand = one.decide(torch.from_numpy(embed(one.encoder, held.source, test)))
    np.testing.assert_allclose(out, by_hand, atol=1e-6)
    first = made.pack(made.as_raw([" ".join(t.split()[:10]) for t in texts])).source
    assert not hasattr(first, "windows")
    assert (predict(one, first, test).argmax(1) == y[test]).mean() < 0.8, "the beginning does not tell"


def test_the_baseline_sees_whole_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, y = documents(20)
    made, held = packed(texts, size=12)
    monkeypatch.setattr(baselines, "TOKENS", 300)
    x = baselines.Plain(made, Task(held.source, y, "classes", 2)).features(np.arange(20)[::-1])
    hashed = HashingVectorizer(ngram_range=(1, 2), alternate_sign=False, norm=None, dtype=np.float32)
    assert (x != hashed.transform(texts[::-1])).nnz == 0


def test_sources_with_and_without_windows_chain() -> None:
    texts, _ = documents(6)
    made, held = packed([*texts, "cat", "a chair"], size=12)
    a, b = (made.pack(made.as_raw(own)).source for own in (texts, ["cat", "a chair"]))
    assert not hasattr(b, "windows")
    assert Chain(b, b).windows is None
    index = np.array([6, 2, 7, 0])
    both = Chain(a, b)
    parts, place = held.source.windows.of(index)
    assert both.windows is not None
    theirs = both.windows.of(index)
    assert (theirs[1] == place).all()
    assert torch.equal(both.windows.parts.rows(theirs[0])["ids"], held.source.windows.parts.rows(parts)["ids"])
    assert torch.equal(both.windows.whole.rows(index)["ids"], held.source.windows.whole.rows(index)["ids"])


def test_windows_in_the_cache_are_those_in_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MODICUM_CACHE", str(tmp_path))
    raw = Text.as_raw([*documents(6)[0], None, "cat"])
    made = Text.infer(raw, np.arange(8), size=12)
    memory = made.pack(raw, skip_bad=True)
    monkeypatch.setattr(_texttokens, "IN_MEMORY", 0)
    monkeypatch.setattr(_textfiles, "STEP", 3)
    mapped = made.pack(raw, skip_bad=True)
    a, b = memory.source.windows, mapped.source.windows
    assert isinstance(mapped.source.windows.parts.ids, np.memmap)
    assert (a.starts == b.starts).all()
    assert mapped.keep.tolist() == memory.keep.tolist() == [0, 1, 2, 3, 4, 5, 7]
    every = np.arange(a.parts.size)
    assert torch.equal(a.parts.rows(every)["ids"], b.parts.rows(every)["ids"])


def test_a_text_without_tokens_is_named_as_empty_ones_are() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    nothing = Tokenizer(models.BPE({"o": 0, "w": 1, "l": 2}, []))
    nothing.pre_tokenizer = pre_tokenizers.Whitespace()
    made = Text(nothing.to_str(), 8)
    assert made.pack(made.as_raw(["owl", "bee"]), skip_bad=True).keep.tolist() == [0]


TINY: dict[str, Any] = {"encoder": "mlp(width=8, over='set')", "steps": 3, "batch": 16, "device": "cpu"}


@pytest.mark.filterwarnings("ignore:.*few directions")
def test_the_verbs_take_long_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts, y = documents(40)
    for text, name, k in zip(texts, y, range(40), strict=True):
        (tmp_path / "docs" / f"c{name}").mkdir(parents=True, exist_ok=True)
        written(tmp_path / "docs" / f"c{name}" / f"{k:02d}.txt", text)
    run = modicum.pretrain(tmp_path / "docs", out=tmp_path / "pre", size=16, objective="autoencoder(code=4)", **TINY)
    said = capsys.readouterr().err
    assert "40 of 40 rows are longer than the encoder takes: the rows are read as" in said
    tuned = modicum.finetune(run, tmp_path / "docs", out=tmp_path / "fine", **small.FEW)
    model = modicum.load(tuned)
    table = modicum.predict(tuned, tmp_path / "docs", output=tmp_path / "p.parquet")
    order = open_data(tmp_path / "docs").ids()
    assert table.column("id").to_pylist() == order
    again = model.predict_proba([texts[int(Path(name).stem)] for name in order])
    np.testing.assert_allclose(table.column("p_c1").to_numpy(), again[:, 1], atol=1e-6)
    vectors = np.array(
        modicum.embed(run, tmp_path / "docs", output=tmp_path / "e.parquet").column("embedding").to_pylist()
    )
    np.testing.assert_allclose(vectors[0], modicum.load(run).embed([texts[int(Path(order[0]).stem)]])[0], atol=1e-6)
    out = modicum.reconstruct(run, tmp_path / "docs", output=tmp_path / "rebuilt")
    assert texts[int(Path(order[0]).stem)].startswith(out.column("input").to_pylist()[0])


# The tokenizer


@pytest.mark.filterwarnings("ignore:.*few directions")
def test_the_tokenizer_is_chosen(tmp_path: Path) -> None:
    texts = [f"{t} naïve Éa {k}" for k, t in enumerate(documents(20)[0])]
    path = small.csv(tmp_path / "x.csv", {"text": texts, "label": ["a", "b"] * 10})
    own = packed(["some other words", "and more of them"])[0].tokenizer
    written(tmp_path / "tokenizer.json", own)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modicum.verbs.pretrain.exhibits", lambda *_, **__: {})
        patch.setattr("modicum.verbs.pretrain.render", lambda path: path / "report.html")
        patch.setattr("modicum.verbs.finetune.exhibits", lambda *_, **__: {})
        patch.setattr("modicum.verbs.finetune.render", lambda path: path / "report.html")
        for given in ("bpe", "wordpiece", str(tmp_path), str(tmp_path / "tokenizer.json")):
            run = modicum.pretrain(path, out=tmp_path / "run", tokenizer=given, force=True, **TINY)
            input: Any = modicum.load(run).input
            kind = json.loads(input.tokenizer)["model"]["type"]
            assert kind == {"wordpiece": "WordPiece"}.get(given, "BPE")
            assert (json.loads(input.tokenizer) == json.loads(own)) == (str(tmp_path) in given)
        fine = modicum.finetune(
            "mlp(width=8, over='set')", path, tokenizer="wordpiece", out=tmp_path / "f", **small.FEW
        )
    assert "WordPiece" in modicum.load(fine).input.tokenizer  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"--tokenizer bpe: the tokenizer is the run's$"):
        modicum.finetune(run, path, tokenizer="bpe", out=tmp_path / "g", **small.FEW)


def test_wordpiece_is_of_the_words_in_lower_case_and_deterministic() -> None:
    texts = ["The naïve Owl sees", "the owl 東京", "unseen 🦉"]
    made, held = packed(texts[:2] * 5, tokenizer="wordpiece")
    assert made.begins
    assert set(made.special) == {"pad", "mask", "bos", "eos"}
    assert made.texts(held.source.rows(np.arange(2))) == ["the naive owl sees", "the owl 東 京"]
    assert packed(texts[:2] * 5, tokenizer="wordpiece")[0].tokenizer == made.tokenizer
    ids = made.pack(made.as_raw([texts[2]])).source.rows(np.array([0]))["ids"][0].tolist()
    assert _texttokens.tokenizer_of(made.tokenizer).token_to_id("[UNK]") in ids


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tokenizer": "sentencepiece"}, "sentencepiece: the tokenizer cannot be read.*trained: bpe, wordpiece"),
        ({"tokenizer": __file__}, r"test_text_files\.py: not a tokenizer\.json"),
        ({"columns": "text:drop"}, "--columns text:drop: x.csv holds text, which have no columns"),
    ],
)
def test_what_no_tokenizer_is_is_refused(options: dict[str, str], words: str, tmp_path: Path) -> None:
    path = small.csv(tmp_path / "x.csv", {"text": LONG})
    with pytest.raises(UserError, match=words):
        modicum.pretrain(path, out=tmp_path / "run", **options, **TINY)


def test_a_vocabulary_is_for_what_is_trained() -> None:
    own = packed(LONG)[0].tokenizer
    with pytest.raises(UserError, match="a vocabulary of 300 is for a tokenizer that is trained: bpe, wordpiece"):
        packed(LONG, tokenizer=own, vocabulary=300)


def test_other_modalities_refuse_a_tokenizer(images: Path, table: Path, tmp_path: Path) -> None:
    for path, kind in ((images, "images"), (table, "tables")):
        with pytest.raises(UserError, match=f"--tokenizer bpe: {path.name} holds {kind}, which have no tokenizer"):
            modicum.pretrain(path, tokenizer="bpe", out=tmp_path / "run", device="cpu")
    both = small.csv(tmp_path / "pairs.csv", {"left.a": [1.0, 2.0, 3.0], "right.b": [3.0, 4.0, 5.0]})
    with pytest.raises(UserError, match=r"--tokenizer bpe: neither side \(tables and tables\) has a tokenizer"):
        modicum.pretrain(both, tokenizer="bpe", out=tmp_path / "run", device="cpu")


def test_hashes_are_written_as_safetensors_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "PIECE", 3)
    x = np.random.default_rng(0).integers(0, 2**64, 11, np.uint64)
    hashes.write_hashes(tmp_path / "own", "seen", x)
    save_file({"seen": x}, tmp_path / "theirs")
    assert (tmp_path / "own").read_bytes() == (tmp_path / "theirs").read_bytes()
