"""The .ts files of the UCR and UEA archives: a header of @names, then a series a line, channels parted by colons."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from modicum.core.errors import UserError
from modicum.modalities._files import check_encoding, opened
from modicum.modalities._seriesraw import RawSeries, joined

STAMPED = re.compile(r"\(([^,()]*),([^()]*)\)")
"""A value with its time before it."""


class Header(NamedTuple):
    """What the lines before @data say: `label` is None, "class" or "target"; `classes` those listed."""

    label: str | None
    classes: tuple[str, ...]
    channels: int | None
    stamped: bool


def is_ts(path: Path) -> bool:
    """Whether a file called .ts begins as these do: other kinds of files are called so too."""
    if not path.name.lower().removesuffix(".gz").endswith(".ts"):
        return False
    try:
        with opened(path) as file:
            start = file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n")
    except (OSError, EOFError):
        return False
    return start.startswith((b"@", b"#", b"%"))


def read_ts(files: Sequence[tuple[Path, str | None]]) -> RawSeries:
    """The series of one or more files and their splits, with id, label and, where it is known, split.

    UserError naming the line of a header that is none; lines that do not read are faults of their series.
    """
    parts: list[np.ndarray | None] = []
    labels: list[Any] = []
    ids, splits, faults = [], [], {}
    kinds = set()
    for path, split in files:
        head, lines = _lines(path)
        kinds.add(head.label)
        for number, line in lines:
            row = len(parts)
            try:
                series, label = _case(line, head)
            except UserError as error:
                series, label = None, None
                faults[row] = f"line {number}: {error}"
            parts.append(series)
            labels.append(label)
            splits.append(split)
            ids.append(str(row) if len(files) == 1 else f"{split}-{row - splits.index(split)}")
    if not parts:
        raise UserError(f"{files[0][0]}: there are no series after @data")
    if len(kinds) > 1:
        raise UserError(f"{files[0][0]} and {files[1][0]} have labels of different kinds")
    columns: dict[str, Any] = {"id": ids}
    if kinds != {None}:
        columns["label"] = pa.array(labels, pa.float64() if kinds == {"target"} else pa.string())
    if any(splits):
        columns["split"] = pa.array(splits, pa.string())
    return joined(parts, pa.table(columns), faults)


def _lines(path: Path) -> tuple[Header, Iterator[tuple[int, str]]]:
    """The header, and the lines with series and their numbers."""
    check_encoding(path)
    try:
        with opened(path) as file:
            text = file.read().decode("utf-8-sig").splitlines()
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    found: dict[str, list[str]] = {}
    for number, line in enumerate(text, 1):
        line = line.strip()
        if not line or line.startswith(("#", "%")):
            continue
        if not line.startswith("@"):
            raise UserError(
                f"{path}, line {number}: wanted @data before the first series, as in the UCR and UEA archives"
            )
        key, *values = line[1:].split()
        if key.lower() == "data":
            rest = ((k, cell.strip()) for k, cell in enumerate(text[number:], number + 1))
            return _header(path, found), ((k, cell) for k, cell in rest if cell and not cell.startswith(("#", "%")))
        found[key.lower()] = values
    raise UserError(f"{path}: there is no line @data")


def _header(path: Path, found: dict[str, list[str]]) -> Header:
    def says(key: str) -> bool:
        value = (found.get(key) or ["false"])[0].lower()
        if value not in ("true", "false"):
            raise UserError(f"{path}: @{key} {value}: wanted true or false")
        return value == "true"

    kinds = [kind for kind in ("class", "target") if says(f"{kind}label")]
    if len(kinds) > 1:
        raise UserError(f"{path}: @classlabel and @targetlabel are both true; wanted one")
    size = (found.get("dimensions") or found.get("dimension") or [""])[0]
    if size and not (size.isdecimal() and int(size)):
        raise UserError(f"{path}: @dimensions {size}: wanted a whole number above 0")
    classes = tuple(found["classlabel"][1:]) if kinds == ["class"] else ()
    channels = 1 if "univariate" in found and says("univariate") else int(size) if size else None
    return Header(kinds[0] if kinds else None, classes, channels, says("timestamps"))


def _case(line: str, head: Header) -> tuple[np.ndarray, str | float | None]:
    """The values (channels, t) of a line, and its label."""
    texts = re.split(r"(?<=\)):", line) if head.stamped else line.split(":")
    label: str | float | None = None
    if head.label is not None:
        if len(texts) < 2:
            raise UserError("there is no label after the last colon")
        label = _label(texts.pop().strip(), head)
    rows = [_values(text, head.stamped) for text in texts]
    if len({len(row) for row in rows}) > 1:
        raise UserError(f"its channels have {', '.join(str(len(row)) for row in rows)} steps; wanted as many in each")
    if head.channels is not None and len(rows) != head.channels:
        raise UserError(f"it has {len(rows)} channel(s); the header says {head.channels}")
    return np.stack(rows), label


def _label(text: str, head: Header) -> str | float | None:
    if text in ("", "?"):
        return None
    if head.label == "class":
        if head.classes and text not in head.classes:
            raise UserError(f"the label '{text[:40]}' is none of @classLabel: {', '.join(head.classes)}")
        return text
    try:
        return float(text)
    except ValueError:
        raise UserError(f"the label '{text[:40]}' is no number") from None


def _values(text: str, stamped: bool) -> np.ndarray:
    cells = [value for _, value in STAMPED.findall(text)] if stamped else text.split(",")
    if stamped and STAMPED.sub("", text).strip(" ,"):
        raise UserError(f"'{STAMPED.sub('', text).strip(' ,')[:40]}' is no (time,value)")
    if not text.strip():
        return np.empty(0)
    cells = ["nan" if cell.strip() == "?" else cell for cell in cells]
    try:
        return np.array(cells, np.float64)
    except ValueError:
        wrong = next(cell for cell in cells if not _is_number(cell))
        raise UserError(f"'{wrong.strip()[:40]}' is no number (a missing one is ?)") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
