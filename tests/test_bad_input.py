"""What a careless or hostile user gives: exit code 2, one readable message, no traceback, and nothing lost."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small
import torch
from typer.testing import CliRunner

import modicum
from modicum import Run, UserError
from modicum.cli import app
from modicum.core.errors import Warned
from modicum.core.spec import build

CONVNET, MLP = "convnet(width=8, stages=2)", "mlp(width=8)"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, pre: Run, tuned: Run, rebuilt: Run, table_run: Run) -> Path:
    """A folder of everything that can go wrong, with finished runs `pre`, `tuned`, `rebuilt` and `table_run` in it."""
    path = tmp_path_factory.mktemp("bad")
    for name, run in {"pre": pre, "tuned": tuned, "rebuilt": rebuilt, "table_run": table_run}.items():
        shutil.copytree(run.path, path / name)
    small.folder(path / "good")
    small.cut(small.folder(path / "truncated") / "a" / "000.png")
    small.folder(path / "flat", 8, (".",))
    small.folder(path / "one", 1)
    small.folder(path / "three", 3, ("a", "b", "c"))
    small.folder(path / "single", 8, ("a",))
    small.folder(path / "new_class", 8, ("a", "zebra"))
    (path / "empty").mkdir()
    (path / "text.txt").write_text("hello")
    (path / "film.mp4").write_bytes(b"\0\0\0")
    (path / "empty.csv").write_text("")
    (path / "header.csv").write_text("a,b\n")
    (path / "ragged.csv").write_text("a,b\n1,2\n1,2,3\n3,4\n5,6\n")
    (path / "broken.parquet").write_text("zzz")
    (path / "missing.csv").write_text("path,label\ngood/a/000.png,a\ngood/b/999.png,b\n")
    np.save(path / "line.npy", np.arange(5))
    np.save(path / "negative.npy", np.full((4, 8, 8, 1), -9.0))
    np.save(path / "objects.npy", np.array([{}], object), allow_pickle=True)
    small.csv(path / "table.csv", small.columns())
    small.csv(path / "lacks.csv", small.columns(), drop=("whole",))
    small.csv(path / "nolabel.csv", small.columns(), drop=("label",))
    small.csv(path / "words.csv", small.columns(num=["x"] * 60))
    small.csv(path / "infinite.csv", small.columns(num=[float("inf")] * 60))
    small.csv(path / "one_class.csv", small.columns(label=["pos"] * 60))
    small.csv(path / "odd_split.csv", small.columns(split=["train", "test", "foo"] * 20))
    small.csv(path / "grouped.csv", small.columns(patient=[f"p{i // 6}" for i in range(60)]))
    small.csv(path / "numbers.csv", small.columns(label=np.linspace(0, 1, 60)))
    blank = pa.table(small.columns(label=pa.nulls(60, pa.string())))
    pq.write_table(blank, path / "blank.parquet")
    return path


@pytest.fixture(autouse=True)
def _in(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)


def refused(arguments: list[str], *words: str) -> None:
    """Run a command that must fail as the user's mistake, leaving every file as it was."""
    before = {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()}
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    for text in words:
        assert text in result.stderr
    assert result.stderr.count("error: ") + result.stderr.count("Usage: ") == 1
    assert {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()} == before


DATA = {
    "nosuch": "'nosuch' is neither a path that exists nor a built-in data set; built in: ",
    "empty": "empty: the folder is empty; wanted a folder of images",
    "one": "one leaves 1 rows to train on; at least 2 are needed",
    "truncated": "1 of 40 images cannot be read:\n  truncated/a/000.png: image file is truncated\nuse --skip-bad",
    "missing.csv": "1 of 2 images in column 'path' are missing: row 3: good/b/999.png",
    "text.txt": "text.txt leaves 1 rows to train on; at least 2 are needed",
    "film.mp4": "film.mp4: nothing to read there; wanted images in a folder",
    "line.npy": "line.npy: images must be (n, h, w) or (n, h, w, c)",
    "negative.npy": "float64 values from -9 to -9: images must be in [0, 1] or [0, 255]",
    "objects.npy": "objects.npy: cannot be read as numbers",
    "broken.parquet": "broken.parquet: cannot be read as Parquet",
    "empty.csv": "empty.csv: the file is empty",
    "header.csv": "header.csv: the table has no rows",
    "ragged.csv": "ragged.csv: row 3 has 3 columns, not 2",
    "infinite.csv": "60 row(s) of 60 cannot be used:\n  infinite.csv, row 2: column 'num' is infinite: blank it",
    "odd_split.csv": "the split column holds 'foo'; valid: train, test, valid, or blank",
}  # fmt: skip


@pytest.mark.parametrize("data", DATA)
def test_data_that_cannot_be_read(data: str) -> None:
    refused(["pretrain", data, "--steps", "2", "--out", "new"], DATA[data])


SPECS = {
    "convnte": "unknown encoder 'convnte'; valid: convnet, ",
    "convnet(widht=8)": "unknown argument of trunk 'convnet' 'widht'; valid: width, ",
    "convnet(width=0)": "width=0",
    "convnet(width=-8)": "width=-8",
    "convnet(width='a')": "trunk 'convnet': width wants int, got 'a'",
    "convnet(width=8.5)": "width wants int, got 8.5",
    "convnet:width=": "width wants int, got ''",
    "convnet(kernel=4)": "an odd kernel",
    "convnet(norm='btach')": "unknown norm 'btach'; valid: batch, group",
    "convnet(dim=3)": "trunk 'convnet': dim is decided by the data",
    "convnet(8, width=9)": "argument width is given twice",
    "convnet(width=8, width=9)": "argument width is given twice",
    "convnet(1, 2, 3, 4, 5, 6, 7, 8, 9, 10)": "arguments: width, ",
    "convnet(width=20000)": "GB to train; this machine has",
    "convnet(stages=40, width=1)": "the network cannot be made with these settings",
    "convnet:width": "'width' is not key=value",
    "convnet() + mlp()": "a sum cannot be used as encoder",
    "": "encoder '' does not read",
    "3": "'3' is not a call with literal arguments (nothing is evaluated)",
    "convnet(width=2**3)": "'2 ** 3' is not a literal (nothing is evaluated)",
    "convnet(width=__import__('os').getpid())": "is not a call with literal arguments (nothing is evaluated)",
    "__import__('os').system('touch new')": "is not a call with literal arguments (nothing is evaluated)",
    "convnet(**{'width': 8})": "** is not allowed",
    "convnet(": "'(' was never closed",
    "mlp(dropout=2)": "0 <= dropout < 1",
    "mlp(dropout='x')": "dropout wants float, got 'x'",
    "mlp(act='rleu')": "unknown activation 'rleu'; valid: relu, ",
    "mlp(over=convnet())": "argument over cannot be the part convnet() here",
}  # fmt: skip


@pytest.mark.parametrize("encoder", SPECS)
def test_specs_of_encoders(encoder: str) -> None:
    refused(["pretrain", "good", "--encoder", encoder, "--steps", "2", "--out", "new"], SPECS[encoder])


@pytest.mark.parametrize("name", ["convnet", "graph", "mixer", "mlp", "recurrent", "resnet", "transformer"])
def test_the_weights_of_every_trunk_are_counted_without_making_them(name: str) -> None:
    with torch.device("meta"):
        trunk = build("trunk", name, dim=4, grid=(16, 16))
    assert all(p.is_meta for p in trunk.parameters())


OBJECTIVES = {
    "simclr(n=1)": "simclr wants n >= 2",
    "simclr(n=2.5)": "objective 'simclr': n wants int, got 2.5",
    "simclr(n=True)": "n wants int, got True",
    "simclr(temperature=0)": "temperature above 0",
    "simclr(hidden=0)": "hidden",
    "simclr(views=3)": "views wants dict",
    "simclr(views=views(corp=3))": "unknown image view 'corp'; valid: crop, ",
    "simclr(encoder=mlp())": "encoder is decided by the data and the other options",
    "simclr() + nosuch()": "unknown objective 'nosuch'",
    "simclr() + autoencoder(code=0)": "at least 1 number; got code=0",
    "0*simclr() + masked()": "a sum wants weights above 0",
    "simclr() + .1*pairs()": "train them alone",
    "masked(normalise=True)": "normalise=True wants a trunk whose cells divide the image",
    "vae(beta=-1)": "beta and free_bits of at least 0",
    "byol(momentum=1)": "0 <= momentum < 1",
    "masked(depth=2)": "masked(depth=2) is of the decoder that fills in",
    "latent_masked(depth=2)": "visible ones alone, which it does not here: leave it out",
    "moco(queue=0)": "queue >= 1",
    "dino(prototypes=1)": "prototypes >= 2",
    "lejepa(weight=1)": "0 < weight < 1",
    "latent_masked(ratio=1)": "0 < ratio < 1",
    "vicreg(variance=-1)": "weights of at least 0",
    "barlow(scale=0)": "scale > 0",
    "triplet(mining='soft')": "unknown mining 'soft'; valid: random, semi-hard, hard",
    "triplet(steps=3)": "unknown argument of objective 'triplet' 'steps'",
    "byol(steps=3)": "steps is decided by the data and the other options",
    "autoencoder(noise=2)": "0 <= noise < 1",
    "supervised(outputs=3)": "outputs is decided by the data",
    "simcl": "unknown objective 'simcl'; valid: simclr, ",
}  # fmt: skip


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_specs_of_objectives(objective: str) -> None:
    arguments = ["pretrain", "good", "--objective", objective, "--encoder", CONVNET, "--steps", "2", "--out", "new"]
    refused(arguments, OBJECTIVES[objective])


PRETRAIN = {
    "": "pretrain needs DATA",
    "good --steps 2 --epochs 2": "give --epochs or --steps, not both",
    "good --steps 0": "--steps 0: wanted at least 1",
    "good --steps many": "Invalid value for '--steps'",
    "good --batch 1": "--batch 1: wanted at least 2",
    "good --limit 1": "good leaves 1 rows to train on",
    "good --lr nan": "--lr nan: wanted a rate above 0",
    "good --lr -1": "--lr -1.0: wanted a rate above 0",
    "good --seed -1": "--seed -1: wanted at least 0",
    "good --seed 9999999999": "--seed 9999999999: wanted less than",
    "good --size 0": "--size 0: wanted at least 1",
    "good --size 10000000": "free some space or set MODICUM_CACHE",
    "good --device gpu": "unknown device 'gpu'; valid: cpu, auto, cuda",
    "good --label nope": "good has no label column 'nope'; its columns: ",
    "good --group nope": "good has no group column 'nope'; its columns: ",
    "good --split nope": "good has no split column 'nope'; its columns: ",
    "table.csv --label cat:numbers": "label column 'cat' of table.csv is not numeric",
    "table.csv --label cat:words": "after the colon comes classes or numbers",
    "table.csv --encoder convnet": "this data has grid (4,): use mlp",
    "good --test nosuch": "'nosuch' is neither a path",
    "good --test table.csv": "table.csv holds tables; wanted images",
    "good --test good": "good leaves 0 rows to train on",
    "good --bogus 3": "No such option: --bogus",
    "good --out good": "good exists: choose another --out, or --force to replace it",
    "good --out good --force": "good exists and is not a modicum run, so --force does not replace it",
    "good --out text.txt --force": "text.txt exists and is not a modicum run",
    "good --out text.txt/new": "text.txt/new cannot be made: text.txt is a file",
    "good --out pre": "pre exists: choose another --out, or --force",
    "pre/inside.csv --out pre --force": "which the new run is made from: choose another --out",
    "good --resume pre": "--resume DIR continues that run as it was started: give no DATA and no --out",
    "--resume pre --out new": "give no DATA and no --out",
    "--resume nosuch": "nosuch is not a modicum run: it does not exist",
    "--resume good": "good is not a modicum run: it has no spec.json",
    "--resume text.txt": "text.txt is not a modicum run: it is not a folder",
    "--resume tuned": "tuned is a finetune run; only pretrain runs are resumed",
}  # fmt: skip


@pytest.mark.parametrize("options", PRETRAIN)
def test_options_of_pretrain(options: str) -> None:
    shutil.copy("table.csv", "pre/inside.csv")
    new = [] if "--out" in options or "--resume" in options else ["--out", "new"]
    steps = [] if "--steps" in options or "--resume" in options else ["--steps", "2"]
    refused(["pretrain", *options.split(), *steps, *new], PRETRAIN[options])


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refused(["pretrain", "good", "--device", "cuda", "--out", "new"], "--device cuda: torch sees no CUDA device here")


FINETUNE = {
    "nosuch good": "'nosuch' is no folder of a run, and as a spec: unknown encoder 'nosuch'; valid: ",
    "good good": "good is not a modicum run: it has no spec.json",
    "pre table.csv": "pre takes images; table.csv holds tables",
    "table_run good": "table_run takes tables; good holds images",
    "table_run lacks.csv": "the table lacks the column(s) whole; it has num, ",
    "table_run words.csv": "column 'num' was numeric in training; here it is string",
    "pre flat": "flat has no label column: name it with --label; columns: id",
    "table_run nolabel.csv": "nolabel.csv has no label column",
    "table_run one_class.csv": "one_class.csv has the single class 'pos': at least two are needed",
    "table_run blank.parquet": "the label column is empty in every row; finetune needs labels",
    "table_run table.csv --label nope": "table.csv has no label column 'nope'",
    "table_run table.csv --label cat": "takes the label column 'cat' as an input, so it would be given the answer",
    "pre good --size 20": "--size 20: the size is the run's, 10",
    "mlp grouped.csv --group nope": "grouped.csv has no group column 'nope'",
    "mlp odd_split.csv": "the split column holds 'foo'",
    "convnet three": "class 'a', 'b', 'c' has only 1 labelled row: label more, or drop or merge the class",
    "convnet single": "single has the single class 'a'",
    "convnet one": "one has the single class 'a'",
    "convnet good --method lp-ft": "--method lp-ft needs a pre-training run; 'convnet' is an untrained encoder",
    "pre good --method top:9": "K must be 1 to 3, the encoder's layers (stem, ",
    "pre good --method lora:100000": "R must be 1 to ",
    "pre good --method tpo:1": "unknown method 'tpo:1'; valid: top:K, ",
    "pre good --labels 3 --labels-per-class 2": "give --labels-per-class or --labels, not both",
    "pre good --labels-per-class 20": "'a' has 16, 'b' has 16: ask for at most 16",
    "pre good --labels-per-class 0": "--labels-per-class 0: wanted at least 1",
    "pre good --labels 1": "--labels 1: wanted at least 2",
    "pre good --labels 999": "999 labels were asked for, but only 32 rows are labelled",
    "mlp numbers.csv --labels-per-class 3": "--labels-per-class is for classes; this label is a number: use --labels N",
    "pre good --seeds 1": "--seeds 1: wanted at least 2",
    "pre good --test new_class": "new_class has the class(es) zebra, never seen in training; known: a, b",
    "pre good --test flat": "--test flat has no labels to test against",
    "pre good --test good": "32 of 40 test rows were seen in training the encoder",
    "tuned good --transductive": "--transductive is for pre-training runs: tuned was trained on labels",
    "table_run table.csv": "the encoder was trained on every labelled row of table.csv, so none can test it",
    "pre good --out pre --force": "pre holds pre, which the new run is made from: choose another --out",
    "pre good --out tuned": "tuned exists: choose another --out, or --force",
    "pre good --out good --force": "good exists and is not a modicum run",
}  # fmt: skip


@pytest.mark.parametrize("options", FINETUNE)
def test_options_of_finetune(options: str) -> None:
    steps = [] if "--seeds" in options else ["--seeds", "2"]
    new = [] if "--out" in options else ["--out", "new"]
    refused(["finetune", *options.split(), "--steps", "2", *steps, *new], FINETUNE[options])


USE = {
    "predict nosuch good": "nosuch is not a modicum run: it does not exist",
    "predict tuned nosuch": "'nosuch' is neither a path",
    "predict tuned empty": "empty: the folder is empty",
    "predict tuned truncated": "truncated/a/000.png: image file is truncated\nuse --skip-bad",
    "predict tuned table.csv": "table.csv holds tables; wanted images",
    "predict table_run digits": "digits holds images; wanted tables",
    "predict table_run lacks.csv": "the table lacks the column(s) whole",
    "predict table_run words.csv": "column 'num' was numeric in training; here it is string",
    "predict pre good": "pre predicts nothing (it is a pre-training run): run  modicum finetune pre DATA  first",
    "predict tuned good -o text.txt": "text.txt exists: choose another -o, or --force to replace it",
    "predict tuned good -o good --force": "good is a folder: give the name of a file, such as -o good/out.parquet",
    "predict tuned good -o text.txt/new": "text.txt/new cannot be written: text.txt is a file",
    "embed tuned table.csv": "table.csv holds tables; wanted images",
    "reconstruct pre good": "pre does not reconstruct: pre-train with --objective autoencoder",
    "reconstruct rebuilt good -o good": "good exists: choose another -o, or --force to write into it",
    "reconstruct rebuilt good -o text.txt --force": "text.txt is a file, and a folder is written: choose another -o",
    "report good": "good is not a modicum run: it has no spec.json",
    "demo --out good": "good exists and was not made by modicum demo: choose another --out",
}  # fmt: skip


@pytest.mark.parametrize("options", USE)
def test_using_a_run(options: str) -> None:
    new = [] if "-o" in options or options.startswith("report") else ["-o", "new.parquet"]
    refused([*options.split(), *new], USE[options])


def test_predict_wants_an_output() -> None:
    refused(["predict", "tuned", "good"], "Missing option '-o' / '--output'")


def test_arguments_of_the_wrong_type() -> None:
    with pytest.raises(UserError, match="--steps 'a': wanted a whole number"):
        modicum.pretrain("good", steps="a", out="new")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"--steps 2\.5: wanted a whole number"):
        modicum.pretrain("good", steps=2.5, out="new")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="encoder 3: wanted a text"):
        modicum.pretrain("good", steps=2, encoder=3, out="new")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="unknown device 'x'"):
        modicum.load("tuned", device="x")


def test_a_full_disk_while_a_result_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "p.parquet"
    modicum.predict("tuned", "good", output=out)
    before = out.read_bytes()

    def full(_: Any, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(
        UserError, match=r"cannot write .*p\.parquet: the disk is full\. Everything saved before is intact"
    ):
        modicum.predict("tuned", "good", output=out, force=True)
    assert out.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["p.parquet"]


def test_a_broken_image_can_be_skipped_and_is_listed(tmp_path: Path) -> None:
    with pytest.warns(Warned, match=r"skipped 1 bad row\(s\) of truncated: truncated/a/000.png \(image file is trunc"):
        made = modicum.pretrain("truncated", skip_bad=True, out=tmp_path / "run", **small.TINY)
    assert made.spec["data"]["bad"] == [[0, "truncated/a/000.png", "image file is truncated"]]
    page = (made.path / "report.html").read_text("utf-8")
    assert "truncated/a/000.png" in page
    with pytest.warns(Warned, match="skipped 1 bad"):
        table = modicum.predict("tuned", "truncated", skip_bad=True, output=tmp_path / "p.parquet")
    assert table.num_rows == 39
    assert "a/000.png" not in table.column("id").to_pylist()


def test_predict_needs_no_labels_and_takes_classes_it_never_saw(tmp_path: Path) -> None:
    for k, data in enumerate(("flat", "new_class", "single", "one")):
        table = modicum.predict("tuned", data, output=tmp_path / f"{k}.parquet")
        assert set(table.column("predicted").to_pylist()) <= {"a", "b"}
    assert modicum.predict("table_run", "nolabel.csv", output=tmp_path / "t.parquet").num_rows == 60
