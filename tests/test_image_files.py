"""Images are found, decoded once and packed right, whatever their kind; and every mistake is named."""

from __future__ import annotations

import gzip
import json
import os
import struct
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from modicum.core.atomic import atomic_path, atomic_write
from modicum.core.errors import UserError, Warned
from modicum.modalities import _files, _imagedecode, _imagepack
from modicum.modalities._files import cache_dir, content_key, row_hashes
from modicum.modalities._imagefiles import RawImages, as_raw, scan
from modicum.modalities._imagepack import bytes_needed, pack, survey
from modicum.modalities._tableread import read_table

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODICUM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def picture(size: tuple[int, int] = (12, 10), seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def save(path: Path, image: Image.Image | None = None, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or picture(seed=len(str(path)))).save(path, **options)
    return path


def idx(path: Path, array: np.ndarray) -> Path:
    data = struct.pack(f">I{array.ndim}I", 0x800 | array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def one(image: Image.Image, path: Path, channels: int = 3, **options: object) -> np.ndarray:
    """The image as packed at its own size after a trip through a file."""
    raw, _ = scan(save(path, image, **options))
    return pack(raw, size=image.size[0], channels=channels).images[0]


# Atomic files ---------------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    atomic_write(path, b"old")
    with pytest.raises(UnicodeEncodeError), atomic_path(path) as temporary:
        temporary.write_text("half" * 9999 + "é", "ascii")
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"


# Tables ---------------------------------------------------------------------------------------------------------------


def test_tables_of_every_kind_agree(data: Path) -> None:
    frame = pd.DataFrame({"a": [1, 2, 3], "b": ["x", "y, é\nz", None]})
    frame.to_csv(data / "t.csv", index=False)
    frame.to_csv(data / "t.csv.gz", index=False)
    frame.to_csv(data / "t.tsv", index=False, sep="\t")
    frame.to_json(data / "t.jsonl", orient="records", lines=True)
    frame.to_parquet(data / "t.parquet")
    wanted = frame.astype(object).where(frame.notna(), None).to_dict("records")
    for name in ("t.csv", "t.csv.gz", "t.tsv", "t.jsonl", "t.parquet"):
        assert read_table(data / name).to_pylist() == wanted, name


def test_a_folder_of_parquet_keeps_every_column(data: Path) -> None:
    pyarrow.parquet.write_table(pa.table({"a": [1]}), data / "0.parquet")
    (data / "kind=x").mkdir()
    pyarrow.parquet.write_table(pa.table({"a": [2.5], "b": ["y"]}), data / "kind=x" / "1.parquet")
    rows = read_table(data).to_pylist()
    assert rows == [{"a": 1.0, "kind": None, "b": None}, {"a": 2.5, "kind": "x", "b": "y"}]


def test_na_is_text_in_text_and_null_in_numbers(data: Path) -> None:
    (data / "t.csv").write_text("text,number\nNA,NA\n,2\nx,\n")
    wanted = {"text": ["NA", None, "x"], "number": [None, 2, None]}
    assert read_table(data / "t.csv").to_pydict() == wanted


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "no such file"),
        ("t.csv", b"", "empty"),
        ("t.csv", b"a,b\n", "no rows"),
        ("t.csv", b"a,b\n1,2\n3,4,5\n", "t.csv: row 3 has 3 columns, not 2: '3,4,5'"),
        ("t.csv", b"a,b\n1,2\nx,\xe9\n", "line 3: not UTF-8 .byte 0xe9"),
        ("t.csv", b"\xff\xfea\0,\0b\0", "UTF-16"),
        ("t.csv", b"a;b\n1;2\n", "separated by ';'"),
        ("t.csv", b"a,a\n1,2\n", "used twice: a"),
        ("t.csv.gz", b"no gzip", "cannot be read"),
        ("t.jsonl", b'{"a": 1}\n{"a":\n', "JSON lines"),
        ("t.jsonl", b'[{"a": 1}]', "JSON lines"),
        ("t.parquet", b"PAR", "Parquet"),
        ("t.xlsx", b"x", r"unknown kind of table '.xlsx'; known: .csv, .tsv"),
        ("t", b"x", "unknown kind of table ''"),
    ],
)
def test_bad_tables_are_named(data: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (data / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_table(data / name)


def test_an_empty_folder_is_no_table(data: Path) -> None:
    with pytest.raises(UserError, match="no Parquet"):
        read_table(data)


# Keys of content ------------------------------------------------------------------------------------------------------


def test_content_key_follows_content_and_order_not_names(data: Path) -> None:
    for name, text in (("a", "1"), ("b", "2"), ("c", "1"), ("d", "2")):
        (data / name).write_text(text)
    a, b, c, d = (data / n for n in "abcd")
    assert content_key([a, b]) == content_key([c, d]) != content_key([b, a])
    assert content_key([a, data / "missing"]) == content_key([c, data / "gone"]) != content_key([a])


def test_unchanged_files_are_not_read_again(data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = data / "a"
    path.write_text("1")
    os.utime(path, (1, 1))
    key = content_key([path])
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", lambda *_: pytest.fail("read again"))
        assert content_key([path]) == key
    (index,) = (cache / "index").iterdir()
    for damage in (b"", b"{", b"[7]", b"null", b'[["x"]]'):
        index.write_bytes(damage)
        assert content_key([path]) == key
    path.write_text("2")
    os.utime(path, (1, 2))
    assert content_key([path]) != key


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("MODICUM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "modicum"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "modicum"


# Finding images -------------------------------------------------------------------------------------------------------


def test_folder_of_classes(data: Path) -> None:
    for name in ("b/2.png", "a/deep/1.PNG", "a/10.png", "top.png", ".hidden/x.png", "a/._1.png", "__MACOSX/a/1.png"):
        save(data / name)
    raw, table = scan(data)
    assert table.to_pydict() == {
        "id": ["a/10.png", "a/deep/1.PNG", "b/2.png", "top.png"],
        "label": ["a", "a", "b", None],
    }
    assert [Path(p).relative_to(data).as_posix() for p in raw.paths] == table["id"].to_pylist()


def test_flat_folder_and_single_image(data: Path) -> None:
    save(data / "b.png")
    save(data / "a.png")
    assert scan(data)[1].to_pydict() == {"id": ["a.png", "b.png"]}
    assert scan(data / "a.png")[1].to_pydict() == {"id": ["a.png"]}


def test_links_are_followed_but_not_in_circles(data: Path) -> None:
    save(data / "a" / "1.png")
    (data / "b").symlink_to(data.parent / "other")
    save(data.parent / "other" / "2.png")
    (data / "a" / "loop").symlink_to(data)
    assert scan(data)[1].to_pydict() == {"id": ["a/1.png", "b/2.png"], "label": ["a", "b"]}


def test_folder_of_splits(data: Path) -> None:
    for name in ("train/a/1.png", "train/b/1.png", "valid/a/2.png", "test/3.png", "unlabeled/x/4.png"):
        save(data / name)
    assert scan(data)[1].to_pylist() == [
        {"id": "test/3.png", "label": None, "split": "test"},
        {"id": "train/a/1.png", "label": "a", "split": "train"},
        {"id": "train/b/1.png", "label": "b", "split": "train"},
        {"id": "unlabeled/x/4.png", "label": None, "split": "train"},
        {"id": "valid/a/2.png", "label": "a", "split": "val"},
    ]
    save(data / "more" / "5.png")
    with pytest.raises(UserError, match=r"beside other folders \(more\)"):
        scan(data)


def test_a_class_may_be_called_train(data: Path) -> None:
    for name in ("train/1.png", "bus/1.png"):
        save(data / name)
    assert scan(data)[1]["label"].to_pylist() == ["bus", "train"]


def test_other_files_are_counted_never_dropped_silently(data: Path) -> None:
    save(data / "a.png")
    for i in range(5):
        (data / f"{i}.txt").write_text("x")
    (data / ".DS_Store").write_text("x")
    with pytest.warns(Warned, match=r"5 files are not images and were left out: 0.txt, 1.txt, 2.txt"):
        scan(data)


def test_folders_without_images(data: Path) -> None:
    with pytest.raises(UserError, match="the folder is empty; wanted a folder of images"):
        scan(data)
    (data / "a.txt").write_text("x")
    with pytest.raises(UserError, match="1 other files, such as a"):
        scan(data)
    with pytest.raises(UserError, match="no such file"):
        scan(data / "b")
    with pytest.raises(UserError, match="unknown kind of file"):
        scan(data / "a.txt")


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("column", ["filename", "Image", "somewhere"])
def test_tables_of_paths(data: Path, kind: str, column: str) -> None:
    save(data / "in" / "a.png")
    other = save(data.parent / "far.png")
    frame = pd.DataFrame(
        {"note": ["u", "v", "w"], column: ["in/a.png", str(other), "in/a.png"], "label": ["x", "", " "]}
    )
    path = data / f"t.{kind}"
    if kind == "parquet":
        frame.to_parquet(path)
    elif kind == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, sep="\t" if kind == "tsv" else ",")
    raw, table = scan(path)
    assert table["id"].to_pylist() == ["in/a.png", other.as_posix(), "in/a.png"]
    assert table["label"].to_pylist() == ["x", None, None]
    assert table["note"].to_pylist() == ["u", "v", "w"]
    assert [
        os.path.samefile(a, b) for a, b in zip(raw.paths, (data / "in/a.png", other, data / "in/a.png"), strict=True)
    ]


def test_a_folder_of_parquet_and_a_table_with_ids(data: Path) -> None:
    image = save(data.parent / "a.png")
    pyarrow.parquet.write_table(pa.table({"id": [7], "path": [str(image)]}), data / "0.parquet")
    raw, table = scan(data)
    assert (len(raw), table.to_pydict()) == (1, {"id": [7], "path": [str(image)]})


def test_tables_without_images(data: Path) -> None:
    save(data / "a.png")
    (data / "t.csv").write_text("x,y\n1,u\n")
    with pytest.raises(UserError, match=r"no column of image paths; its columns are x, y"):
        scan(data / "t.csv")
    (data / "t.csv").write_text("path,y\na.png,1\nb.png,2\n,3\n")
    with pytest.raises(UserError, match=r"2 of 3 images in column 'path' are missing: row 3: b.png, row 4: \(blank\)"):
        scan(data / "t.csv")


@pytest.mark.parametrize("zipped", ["", ".gz"])
@pytest.mark.parametrize("dash", ["-", "."])
def test_idx(data: Path, zipped: str, dash: str) -> None:
    images = RNG.integers(0, 256, (5, 4, 4), dtype=np.uint8)
    path = idx(data / f"train-images{dash}idx3-ubyte{zipped}", images)
    raw, table = scan(path)
    np.testing.assert_array_equal(raw.array, images)
    assert table.to_pydict() == {"id": [0, 1, 2, 3, 4]}
    idx(data / f"train-labels{dash}idx1-ubyte{zipped}", np.arange(5, dtype=np.uint8))
    idx(data / f"t10k-images{dash}idx3-ubyte{zipped}", images[:2])
    assert scan(path)[1]["label"].to_pylist() == [0, 1, 2, 3, 4]
    raw, table = scan(data)
    np.testing.assert_array_equal(raw.array, np.concatenate([images[:2], images]))
    assert table["split"].to_pylist() == ["test"] * 2 + ["train"] * 5
    assert table["label"].to_pylist() == [None, None, 0, 1, 2, 3, 4]


def test_bad_idx(data: Path) -> None:
    path = idx(data / "train-images-idx3-ubyte", np.zeros((5, 4, 4), np.uint8))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="cut short"):
        scan(path)
    with pytest.raises(UserError, match="found labels; give the images"):
        scan(idx(data / "train-labels-idx1-ubyte", np.zeros(5, np.uint8)))
    path = idx(data / "x-images-idx3-ubyte.gz", np.zeros((5, 40, 40), np.uint8))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="cut short"):
        scan(path)
    with pytest.raises(UserError, match="several IDX sets"):
        scan(data)
    idx(data / "labels-idx1-ubyte", np.zeros(3, np.uint8))
    with pytest.raises(UserError, match="5 images but labels of shape"):
        scan(idx(data / "images-idx3-ubyte", np.zeros((5, 4, 4), np.uint8)))


def test_numpy_files(data: Path) -> None:
    images = RNG.integers(0, 256, (6, 5, 5, 3), dtype=np.uint8)
    np.save(data / "a.npy", images)
    raw, table = scan(data / "a.npy")
    assert isinstance(raw.array, np.memmap)
    assert table.to_pydict() == {"id": list(range(6))}
    np.savez(data / "a.npz", x=images, y=np.array(list("abcabc"))[:, None])
    raw, table = scan(data / "a.npz")
    assert table["label"].to_pylist() == list("abcabc")
    np.savez(data / "b.npz", x_train=images[:4], y_train=[1, 2, 3, 4], test_images=images[4:])
    raw, table = scan(data / "b.npz")
    np.testing.assert_array_equal(raw.array, images)
    assert table["split"].to_pylist() == ["train"] * 4 + ["test"] * 2
    assert table["label"].to_pylist() == [1, 2, 3, 4, None, None]


def test_bad_numpy_files(data: Path) -> None:
    np.save(data / "a.npy", np.array([{}], object))
    np.savez(data / "a.npz", pixels=np.zeros(3))
    np.savez(data / "b.npz", x=np.zeros((2, 9, 9)), y=np.zeros((2, 3)))
    (data / "b.npy").write_bytes(b"no")
    (data / "c.npy").write_bytes(b"")
    for name, message in (
        ("a.npy", "cannot be read as numbers"),
        ("a.npz", "it holds pixels"),
        ("b.npy", "cannot be read"),
        ("b.npz", r"labels of shape \(2, 3\)"),
        ("c.npy", "empty"),
    ):
        with pytest.raises(UserError, match=message):
            scan(data / name)


# In-memory input ------------------------------------------------------------------------------------------------------


def test_as_raw_takes_what_people_have(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture((8, 8))
    path = save(data / "a.png", image)
    monkeypatch.chdir(data)
    array = np.asarray(image)
    raws = [
        as_raw(x)
        for x in (
            path,
            str(path),
            data,
            [path, "a.png"],
            [image],
            [array, array],
            array[None],
            torch.tensor(array)[None],
            torch.tensor(array).permute(2, 0, 1)[None],
            [torch.tensor(array)],
            pd.DataFrame({"n": [1], "path": ["a.png"]}),
            pd.Series(["a.png"]),
            pa.table({"path": ["a.png"]}),
            [array, array[:, :, :1], np.zeros((3, 5), np.uint8)],
        )
    ]
    for raw in raws:
        assert as_raw(raw) is raw
        packed = pack(raw, size=8, channels=3).images[0]
        if packed.shape[0] == 8:
            np.testing.assert_array_equal(packed, array)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (7, "no images in a int"),
        ([], "no images in a list"),
        ([7, "a"], "a list of int, str is not"),
        (["nowhere.png"], "1 of 1 image files are missing: nowhere.png"),
        (np.zeros((4, 4)), "reshape"),
        (np.zeros((9, 9, 3)), "first axis of 1"),
        (np.zeros((0, 4, 4)), "holds no images"),
        (np.array([["a"]]), "must be numbers"),
        (np.zeros((1, 9, 9, 9)), "at most 4 channels"),
        ([np.zeros((5, 6)), np.zeros((7, 8))], "different shapes"),
        (pa.table({"a": [1]}), "no column of image paths"),
    ],
)
def test_as_raw_refuses_the_rest(x: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        as_raw(x)


def test_take_picks_without_reading(data: Path) -> None:
    array = RNG.integers(0, 256, (6, 5, 5), dtype=np.uint8)
    np.save(data / "a.npy", array)
    raw = as_raw(data / "a.npy")
    index = [4, 1, 3]
    np.testing.assert_array_equal(pack(raw.take(index), size=5, channels=1).images[..., 0], array[index])
    np.testing.assert_array_equal(pack(raw.take(index).take([2, 0]), size=5, channels=1).images[..., 0], array[[3, 4]])
    mask = np.array([0, 1, 1, 1, 0, 0], bool)
    part = pack(raw.take(mask), size=5, channels=1)
    np.testing.assert_array_equal(part.images[..., 0], array[mask])
    assert np.shares_memory(part.images, raw.array)
    assert raw.take([0, 1]).content_key() != raw.take([1, 0]).content_key() != raw.content_key()
    images = RawImages(images=tuple(picture(seed=s) for s in range(3)))
    assert images.take([2]).content_key() == RawImages(images=(picture(seed=2),)).content_key()
    assert RawImages(array=array).content_key() != RawImages(array=array[::-1]).content_key()


# Decoding -------------------------------------------------------------------------------------------------------------


def test_plain_modes_are_exact(data: Path) -> None:
    rgb = np.asarray(picture((6, 6)))
    grey = rgb[..., 0]
    np.testing.assert_array_equal(one(Image.fromarray(rgb), data / "rgb.png"), rgb)
    np.testing.assert_array_equal(one(Image.fromarray(grey), data / "l.png", 1)[..., 0], grey)
    np.testing.assert_array_equal(one(Image.fromarray(grey), data / "l.png"), np.repeat(grey[..., None], 3, 2))
    np.testing.assert_array_equal(
        one(Image.fromarray(grey > 99), data / "1.png", 1)[..., 0], np.where(grey > 99, 255, 0)
    )
    palette = Image.fromarray(rgb).quantize(9)
    np.testing.assert_array_equal(one(palette, data / "p.png"), np.asarray(palette.convert("RGB")))
    np.testing.assert_array_equal(
        one(Image.fromarray(rgb), data / "rgb1.png", 1)[..., 0], np.asarray(Image.fromarray(rgb).convert("L"))
    )
    cmyk = Image.fromarray(rgb).convert("CMYK")
    assert np.abs(one(cmyk, data / "cmyk.tif").astype(int) - rgb).max() <= 1
    assert one(cmyk, data / "cmyk.jpg", 1).shape == (6, 6, 1)


def test_transparency_lies_over_white(data: Path) -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:2, :, 3] = 255
    wanted = np.where(np.arange(4)[:, None, None] < 2, 0, 255).repeat(4, 1).repeat(3, 2)
    image = Image.fromarray(rgba)
    for name, variant, options in (
        ("rgba.png", image, {}),
        ("la.png", image.convert("LA"), {}),
        ("p.png", image.quantize(4, method=Image.Quantize.FASTOCTREE), {}),
        ("index.gif", Image.fromarray(rgba[..., 3] // 255 * 2).convert("P"), {"transparency": 0}),
        ("trns.png", Image.fromarray(rgba[..., 3] // 255), {"transparency": 0}),
    ):
        packed = one(variant, data / name, **options)
        assert np.abs(packed.astype(int) - wanted).max() <= 2, name
        assert np.abs(one(variant, data / name, 1, **options).astype(int) - wanted[..., :1]).max() <= 2, name
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert abs(int(one(half, data / "half.png")[0, 0, 0]) - 127) <= 1
    array = pack(as_raw(rgba[None]), size=4, channels=3).images[0]
    np.testing.assert_array_equal(array, wanted)


def test_sixteen_bits_and_floats_scale_by_their_range(data: Path) -> None:
    values = np.array([[0, 257], [128 * 257, 65535]], np.uint16)
    wanted = np.array([[0, 1], [128, 255]])
    for name in ("a.png", "a.tif"):
        np.testing.assert_array_equal(one(Image.fromarray(values), data / name, 1)[..., 0], wanted)
    np.testing.assert_array_equal(one(Image.fromarray(values.astype(np.int32)), data / "i.tif", 1)[..., 0], wanted)
    np.testing.assert_array_equal(one(Image.fromarray(wanted.astype(np.float32)), data / "f.tif", 1)[..., 0], wanted)
    np.testing.assert_array_equal(
        one(Image.fromarray((wanted / 255).astype(np.float32)), data / "f1.tif", 1)[..., 0], wanted
    )
    big = np.pad(values, ((0, 6), (0, 6)))
    for array in (big, big / 65535, big / 257, np.rint(big / 257).astype(int), big.astype(">u2")):
        packed = pack(as_raw(array[None]), size=8, channels=1).images[0, :2, :2, 0]
        np.testing.assert_array_equal(packed, wanted)
    np.testing.assert_array_equal(
        pack(as_raw(big[None] > 999), size=8, channels=3).images[0, :2, :2, 2], [[0, 0], [255, 255]]
    )


def test_values_out_of_range_are_refused() -> None:
    good = np.zeros((3, 8, 8))
    for value, kind, message in (
        (-1, float, "float64 values from -1 to 0"),
        (256, float, "must be in .0, 1. or .0, 255."),
        (256, int, "int64 values from 0 to 256"),
        (np.nan, float, "1 of 3 images cannot be read:\n  image 1: NaN"),
        (np.inf, np.float32, "NaN or infinite"),
    ):
        bad = good.astype(kind)
        bad[1, 2, 3] = value
        with pytest.raises(UserError, match=message):
            pack(as_raw(bad), size=8, channels=1)
    bad = np.ones((3, 8, 8))
    bad[1, 0, 0] = np.nan
    packed = pack(as_raw(bad), size=8, channels=1, skip_bad=True)
    assert packed.keep.tolist() == [0, 2]
    assert packed.bad == [(1, "image 1", "NaN or infinite values")]
    assert (packed.images == 255).all()
    with pytest.warns(Warned, match="reach only 4000 of 65535"):
        pack(as_raw(np.full((1, 8, 8), 4000, np.uint16)), size=8, channels=1)


def test_exif_orientation_6_is_turned_upright(data: Path) -> None:
    stored = np.zeros((32, 48, 3), np.uint8)
    stored[:16, :16] = 255  # stored top left; turned a quarter clockwise it is seen top right
    exif = Image.Exif()
    exif[0x0112] = 6
    raw, _ = scan(save(data / "a.jpg", Image.fromarray(stored), exif=exif, quality=95))
    packed = pack(raw, size=28, channels=1).images[0, ..., 0]
    assert packed.shape == (32, 32)
    assert packed[4, 28] > 200  # rows 8..40 of the upright 48 x 32 image are kept
    assert packed[4, 4] < 50
    assert packed[14, 28] < 50
    for tag, turn in _imagedecode.TURNS.items():
        exif[0x0112] = tag
        image = picture((8, 8))
        np.testing.assert_array_equal(one(image, data / f"{tag}.png", exif=exif), np.asarray(image.transpose(turn)))


def test_resized_to_the_short_side_and_cropped_in_the_middle(data: Path) -> None:
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = 200
    packed = pack(scan(save(data / "a.png", Image.fromarray(wide)))[0], size=20, channels=3).images
    assert packed.shape == (1, 23, 23, 3)
    assert (packed[0, :, 1:-1] > 195).all()
    plain = np.asarray(Image.fromarray(wide).resize((69, 23), Image.Resampling.BICUBIC).crop((23, 0, 46, 23)))
    assert np.abs(packed[0].astype(int) - plain).max() <= 4
    smooth = picture((5, 4)).resize((640, 512), Image.Resampling.BICUBIC)
    jpeg = pack(scan(save(data / "b.jpg", smooth, quality=95))[0], size=20, channels=3).images[0]
    plain = np.asarray(smooth.crop((64, 0, 576, 512)).resize((23, 23), Image.Resampling.BICUBIC))
    assert np.abs(jpeg.astype(int) - plain).max() < 12  # decoded at an eighth of the size, yet the same picture


def test_survey(data: Path) -> None:
    for i, size in enumerate([(30, 20), (300, 40), (50, 60)]):
        save(data / f"{i}.png", picture(size).convert("L"))
    (data / "broken.png").write_bytes(b"x")
    assert survey(scan(data)[0]) == (40, 1)
    save(data / "3.jpg", picture((9999, 260)))
    save(data / "4.jpg", picture((300, 260)))
    save(data / "5.jpg", picture((300, 260)))
    save(data / "6.jpg", picture((300, 260)))
    assert survey(scan(data)[0]) == (224, 3)
    assert survey(as_raw(np.zeros((2, 28, 30)))) == (28, 1)
    assert survey(as_raw(np.zeros((2, 28, 30, 3)))) == (28, 3)
    assert survey(as_raw([picture(), picture().convert("L")])) == (10, 3)
    with pytest.raises(UserError, match=r"none of 1 images can be opened; the first, .*broken.png: not an image"):
        survey(as_raw([data / "broken.png"]))


# Bad images -----------------------------------------------------------------------------------------------------------


def damaged(data: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    for i in range(20):
        save(data / f"{i:02}.jpg", picture((40, 30), i))
    whole = (data / "03.jpg").read_bytes()
    (data / "03.jpg").write_bytes(whole[: len(whole) // 2])
    (data / "07.jpg").write_bytes(b"<html>not found</html>")
    (data / "11.jpg").write_bytes(b"")
    save(data / "15.png", Image.new("1", (300, 200)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    return ["03.jpg", "07.jpg", "11.jpg", "15.png"]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_all_bad_images_are_named_at_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = damaged(data, monkeypatch)
    raw, table = scan(data)
    with pytest.raises(UserError) as caught:
        pack(raw, size=20, channels=3)
    message = str(caught.value)
    assert message.startswith("4 of 21 images cannot be read:")
    assert all(name in message for name in names)
    for why in ("truncated", "not an image", "the file is empty", "decompression bomb", "use --skip-bad to go on"):
        assert why in message
    packed = pack(raw, size=20, channels=3, skip_bad=True)
    assert [Path(path).name for _, path, _ in packed.bad] == names
    ids = table["id"].to_pylist()
    assert [ids[row] for row, _, _ in packed.bad] == names
    assert [ids[row] for row in packed.keep] == [i for i in ids if i not in names]
    assert len(packed.images) == len(packed.hashes) == 17
    alone = pack(as_raw([data / "19.jpg"]), size=20, channels=3)
    np.testing.assert_array_equal(packed.images[-1], alone.images[0])
    again = pack(raw, size=20, channels=3, skip_bad=True)
    assert again.bad == packed.bad
    with pytest.raises(UserError, match="4 of 21 images"):
        pack(raw, size=20, channels=3)


def test_only_the_first_ten_bad_images_are_listed(data: Path) -> None:
    for i in range(13):
        (data / f"{i:02}.png").write_bytes(b"x")
    with pytest.raises(UserError, match="and 3 more\nnone is left"):
        pack(scan(data)[0], size=8, channels=3, skip_bad=True)


def test_a_file_that_may_not_be_read_is_bad(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(data / "a.png")
    secret = save(data / "b.png")
    opened = Image.open

    def refuse(path: str, **options: object) -> Image.Image:  # chmod does not stop root
        if path == str(secret):
            raise PermissionError(13, "Permission denied")
        return opened(path, **options)

    monkeypatch.setattr(Image, "open", refuse)
    raw, _ = scan(data)
    assert pack(raw, size=8, channels=3, skip_bad=True).bad == [(1, str(secret), "no permission to read it")]


def test_images_in_memory_may_be_bad_too(data: Path) -> None:
    path = save(data / "a.png")
    path.write_bytes(path.read_bytes()[:200])
    with Image.open(path) as cut:
        images = [cut, picture(), Image.fromarray(np.full((9, 9), -5, np.int32))]
        packed = pack(as_raw(images), size=8, channels=1, skip_bad=True)
    assert [(row, name) for row, name, _ in packed.bad] == [(0, "image 0"), (2, "image 2")]
    assert "values from -5 to -5 do not fit 16 bits" in packed.bad[1][2]


# The cache ------------------------------------------------------------------------------------------------------------


def test_packed_once_and_found_again(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(30):
        save(data / f"{i}.png", picture((40, 30), i))
    raw, _ = scan(data)
    monkeypatch.setattr(_imagepack, "CHUNK", 4 * 23 * 23 * 3)
    seen: list[tuple[int, int]] = []
    first = pack(raw, size=20, channels=3, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 30), *((min(i + 4, 30), 30) for i in range(0, 30, 4))]
    assert isinstance(first.images, np.memmap)
    assert first.images.nbytes == bytes_needed(raw, 20, 3) == 30 * 23 * 23 * 3
    with pytest.raises(ValueError, match="read-only"):
        first.images[0] = 0
    copy = data.parent / "copy"
    data.rename(copy)
    monkeypatch.setattr(_imagepack, "decode", lambda *_: pytest.fail("decoded again"))
    second = pack(scan(copy)[0], size=20, channels=3)
    np.testing.assert_array_equal(first.images, second.images)
    np.testing.assert_array_equal(first.hashes, second.hashes)


def test_a_damaged_cache_is_packed_again(data: Path, cache: Path) -> None:
    save(data / "a.png")
    raw, _ = scan(data)
    wanted = np.array(pack(raw, size=8, channels=3).images)
    for name in ("*.npy", "*.npz"):
        for damage in (b"", b"x" * 50):
            (path,) = (cache / "images").glob(name)
            path.unlink()
            path.write_bytes(damage)
            np.testing.assert_array_equal(pack(raw, size=8, channels=3).images, wanted)


def test_packs_at_the_same_time_do_not_disturb_each_other(data: Path, cache: Path) -> None:
    for i in range(40):
        save(data / f"{i}.png", picture((40, 30), i))
    raw, _ = scan(data)
    results: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: results.append(pack(raw, size=20, channels=3).images)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all((r == results[0]).all() for r in results)
    assert len(list((cache / "images").iterdir())) == 2


def test_leftovers_of_killed_processes_go(data: Path, cache: Path) -> None:
    save(data / "a.png")
    (cache / "images").mkdir(parents=True)
    old, new = cache / "images" / ".tmp-old.npy", cache / "images" / ".tmp-new.npy"
    old.write_bytes(b"x")
    new.write_bytes(b"x")
    os.utime(old, (1, 1))
    pack(scan(data)[0], size=8, channels=3)
    assert (old.exists(), new.exists()) == (False, True)


def test_a_cache_that_cannot_be_written_is_named(data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(data / "a.png")
    raw, _ = scan(data)
    monkeypatch.setattr(_imagepack.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(UserError, match=r"only 0.0 MB are free.*MB are needed.*MODICUM_CACHE"):
        pack(raw, size=8, channels=3)
    monkeypatch.setenv("MODICUM_CACHE", str(data / "a.png"))
    with pytest.raises(UserError, match=r"a.png/images: the packed images cannot be written here \(.*MODICUM_CACHE"):
        pack(raw, size=8, channels=3)
    pack(as_raw(np.zeros((3, 40, 30))), size=8, channels=3)  # small arrays need no cache


def test_large_arrays_go_to_the_cache_and_small_ones_do_not(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = as_raw(RNG.random((9, 12, 10)))
    small = pack(raw, size=8, channels=1)
    assert not cache.exists()
    monkeypatch.setattr(_imagepack, "IN_MEMORY", 100)
    large = pack(raw, size=8, channels=1)
    assert isinstance(large.images, np.memmap)
    np.testing.assert_array_equal(small.images, large.images)
    np.testing.assert_array_equal(small.hashes, large.hashes)


def test_wrong_requests() -> None:
    raw = as_raw(np.zeros((3, 8, 8)))
    with pytest.raises(UserError, match="1 or 3 channels"):
        pack(raw, size=8, channels=2)
    with pytest.raises(UserError, match="no images to pack"):
        pack(raw.take([]), size=8, channels=1)


MILLION = """
import sys, numpy as np
from modicum.modalities._imagefiles import scan
from modicum.modalities._imagepack import bytes_needed, pack
raw, table = scan(sys.argv[1])
assert bytes_needed(raw, 28, 1) == 0
packed = pack(raw, size=28, channels=1)
assert packed.images.shape == (1_000_000, 28, 28, 1) and np.shares_memory(packed.images, raw.array)
assert len(np.unique(packed.hashes)) == 3
print(next(l.split()[1] for l in open("/proc/self/status") if l.startswith("RssAnon")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon is Linux's")
def test_a_million_images_are_mapped_not_loaded(data: Path) -> None:
    array = np.lib.format.open_memmap(data / "a.npy", "w+", np.uint8, (1_000_000, 28, 28))
    array[7, 3, 3] = array[999_999, 3, 3] = 1
    array[8, 3, 3] = 2
    array.flush()
    out = subprocess.run(
        [sys.executable, "-c", MILLION, str(data / "a.npy")], capture_output=True, text=True, check=True
    )
    assert int(out.stdout) < 400_000  # kB; the images alone are 784 MB


# Hashes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 7, 8, 75])
def test_hashes_tell_rows_apart(length: int) -> None:
    base = RNG.integers(0, 256, length, dtype=np.uint8)
    changed = [base]
    for at in range(length):
        for value in {1, 128, 255}:
            other = base.copy()
            other[at] ^= value
            changed.append(other)
    rows = np.stack(changed * 2)
    hashes = row_hashes(rows)
    assert (hashes[: len(changed)] == hashes[len(changed) :]).all()
    assert len(np.unique(hashes)) == len(changed)
    np.testing.assert_array_equal(row_hashes(rows[3:5]), hashes[3:5])


def test_swapped_and_random_rows_hash_differently() -> None:
    rows = RNG.integers(0, 2, (20_000, 64), dtype=np.uint8) * 255
    assert len(np.unique(row_hashes(rows))) == len(np.unique(rows, axis=0))
    swapped = np.concatenate([rows[:, 8:16], rows[:, :8], rows[:, 16:]], 1)
    assert (row_hashes(swapped) != row_hashes(rows)).mean() > 0.99
    assert len(row_hashes(rows[:0])) == 0


def test_hashes_find_leaked_rows_whatever_the_file(data: Path) -> None:
    for i in range(4):
        save(data / "train" / f"{i}.png", picture((20, 20), i))
    save(data / "test" / "x.bmp", picture((20, 20), 2))
    train, test = (pack(scan(data / part)[0], size=16, channels=3) for part in ("train", "test"))
    assert np.flatnonzero(np.isin(train.hashes, test.hashes)).tolist() == [2]


def test_no_warnings_are_left_over(data: Path) -> None:
    save(data / "p.png", picture((9, 9)).quantize(4), transparency=b"\x00\xff\xff\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pack(scan(data)[0], size=9, channels=3)
    assert json.loads((_files.cache_dir() / "index").glob("*").__next__().read_text()) == [None]
