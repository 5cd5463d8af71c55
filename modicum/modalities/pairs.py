"""Pairs: tables whose columns left.NAME and right.NAME are two samples, each of its own modality."""

from __future__ import annotations

import base64
import io
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from scipy import sparse
from torch import Generator, Tensor, nn

from modicum.core.errors import UserError, Warned, unknown
from modicum.core.spec import names, part
from modicum.core.types import Batch, Embed, Input, Packed, Progress, Source, Tokens, Unembed
from modicum.modalities._files import TABLES, peek, row_hashes, table_kind
from modicum.modalities._tableread import read_table
from modicum.nn.layers import filled
from modicum.nn.pair import SIDES, half

FACTS = ("id", "split", "group", "label", "class", "target", "y")
WANTED = "a table of pairs has columns left.NAME and right.NAME (or left_NAME and right_NAME, or just left and right)"


class Both(Embed):
    """The tokens of the left side, then those of the right; the narrower ones are filled up with zeros.

    Ragged sides are padded to their length, so that both are at the same places in every batch.
    """

    def __init__(self, left: Embed, right: Embed) -> None:
        super().__init__()
        self.left, self.right = left, right
        self.dim = max(left.dim, right.dim)
        self.inputs = left.inputs + right.inputs if left.inputs and right.inputs else 0
        self.count = int(np.prod(left.grid))
        self.grid = (self.count + int(np.prod(right.grid)),)

    def forward(self, batch: Batch) -> Tokens:
        sides = [filled(own(half(batch, side)), own.grid) for side, own in (("left", self.left), ("right", self.right))]
        if any(t.edges is not None for t in sides):
            raise UserError("graphs in pairs need an encoder for each side: pair(left=..., right=...)")
        x = torch.cat([nn.functional.pad(t.x, (0, self.dim - t.x.shape[2])) for t in sides], 1)
        if all(t.mask is None for t in sides):
            return Tokens(x, None, self.grid)
        masks = [t.x.new_ones(t.x.shape[:2], dtype=torch.bool) if t.mask is None else t.mask for t in sides]
        return Tokens(x, torch.cat(masks, 1), self.grid)


class Apart(Unembed):
    """Tokens on the grid of `Both` -> the two raw halves."""

    def __init__(self, left: Unembed, right: Unembed, count: int) -> None:
        super().__init__()
        self.left, self.right, self.count = left, right, count
        self.dim = max(left.dim, right.dim)

    def _sides(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return tokens[:, : self.count, : self.left.dim], tokens[:, self.count :, : self.right.dim]

    def loss(self, tokens: Tensor, batch: Batch, where: Tensor | None = None) -> Tensor:
        left, right = self._sides(tokens)
        error = [self.left.loss(left, half(batch, "left")), self.right.loss(right, half(batch, "right"))]
        # Of ragged sides there is none where no row of the batch has a token.
        whole = [nn.functional.pad(e, (0, t.shape[1] - e.shape[1])) for e, t in zip(error, (left, right), strict=True)]
        return torch.cat(whole, 1) if where is None else torch.cat(whole, 1)[where]

    def decode(self, tokens: Tensor) -> Batch:
        left, right = self._sides(tokens)
        return named({"left": self.left.decode(left), "right": self.right.decode(right)})


class SideViews:
    """The views of each side; what belongs to neither is handed on."""

    def __init__(self, views: dict[str, Any]) -> None:
        self.views = views

    def __call__(self, batch: Batch, rng: Generator) -> Batch:
        return {**batch, **named({side: views(half(batch, side), rng) for side, views in self.views.items()})}


class Couples:
    """Rows of two sources side by side: pair i is row `left[i]` of one and `right[i]` of the other.

    Where sides are ragged, the length of a pair is that of its longer side.
    """

    def __init__(self, sources: dict[str, Source], rows_of: dict[str, np.ndarray]) -> None:
        self.sources, self.rows_of = sources, rows_of
        self.size = len(rows_of["left"])
        lengths = [s.lengths[rows_of[side]] for side, s in sources.items() if getattr(s, "lengths", None) is not None]  # type: ignore[attr-defined]
        self.lengths = np.maximum.reduce(lengths) if lengths else None

    def rows(self, index: np.ndarray) -> Batch:
        return named({side: source.rows(self.rows_of[side][index]) for side, source in self.sources.items()})


@final
class Pairs(Input):
    """A table of pairs: `left` and `right` say what each side is. Batches have keys left.KEY and right.KEY.

    Other columns are facts about the pair (label, split, group), never inputs; nor are left.id and right.id. `embed`
    is for one trunk over the tokens of both sides; for an encoder a side use pair(left=..., right=...).
    """

    modality = "pairs"
    default_trunk = "mlp"
    default_objective = "simclr"
    baselines: tuple[str, ...] = ("logistic regression", "SVM", "1-NN", "gradient boosting")

    def __init__(self, left: Input, right: Input) -> None:
        self.left, self.right = left, right
        self.baselines = tuple(b for b in left.baselines if b in right.baselines)

    def _each(self, call: Callable[[Input], Any]) -> dict[str, Any]:
        return {"left": call(self.left), "right": call(self.right)}

    def columns(self) -> tuple[str, ...]:
        return tuple(f"{side}.{c}" for side, own in self._each(lambda i: i.columns()).items() for c in own)

    def embed(self) -> Both:
        return Both(**self._each(lambda i: i.embed()))

    def unembed(self) -> Apart:
        return Apart(**self._each(lambda i: i.unembed()), count=self.embed().count)

    def views(self, **options: Any) -> SideViews:
        """`left`, `right`: the options of that side's views."""
        for key in options:
            if key not in SIDES:
                raise unknown("pair view", key, SIDES)
        return SideViews({s: getattr(self, s).views(**options.get(s, {})) for s in SIDES})

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Tables with a column left.NAME or right.NAME; with left_NAME and right_NAME, or left and right, where at
        most one column is neither of a side nor named as a fact (id, split, group, label, class, target, y)."""
        try:
            return table_kind(path) in TABLES and cls._claims(peek(path).column_names)
        except UserError:
            return False

    @classmethod
    def _claims(cls, columns: Sequence[str]) -> bool:
        if any(c.startswith(("left.", "right.")) for c in columns):
            return True
        sides = {c: sided(c) for c in columns}
        others = [c for c, side in sides.items() if side is None and c.lower() not in FACTS]
        return len(others) <= 1 and {s[0] for s in sides.values() if s} == set(SIDES)

    @classmethod
    def scan(cls, path: Path) -> tuple[pa.Table, pa.Table]:
        """The table twice: as rows and as facts. Names of files in it become full paths."""
        table = cls._checked(read_table(path), str(path))
        for k, name in enumerate(table.column_names):
            column = table.column(name)
            if sided(name) and (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
                table = table.set_column(k, name, _full(column, path.parent))
        return table, table

    @classmethod
    def as_raw(cls, x: Any) -> pa.Table:
        table = part("modality", "tables").as_raw(x)  # type: ignore[attr-defined]
        if not cls._claims(table.column_names):
            raise UserError(f"{WANTED}; here they are {', '.join(table.column_names)}")
        return cls._checked(table, f"the {type(x).__name__}")

    @classmethod
    def _checked(cls, table: pa.Table, where: str) -> pa.Table:
        """The table with the columns of its sides named left.NAME and right.NAME."""
        columns = [".".join(sided(c) or (c,)) for c in table.column_names]
        if twice := {c for c in columns if columns.count(c) > 1}:
            raise UserError(f"{where}: both left_NAME and left.NAME: {', '.join(sorted(twice))}; drop one of the two")
        for side in SIDES:
            if not any(c.startswith(f"{side}.") for c in columns):
                raise UserError(f"{where} has no column {side}.NAME: {WANTED}; here: {', '.join(table.column_names)}")
        return table.rename_columns(columns)

    @classmethod
    def infer(
        cls,
        raw: pa.Table,
        index: np.ndarray,
        *,
        progress: Progress | None = None,
        exclude: Sequence[str] = (),
        columns: str | Mapping[str, str] | None = None,
        **options: Any,
    ) -> Pairs:
        """Each side by the modality that claims its columns; `exclude` and `columns` name left.NAME and right.NAME."""
        asked = (
            dict(c.strip().partition(":")[::2] for c in columns.split(","))
            if isinstance(columns, str)
            else columns or {}
        )
        if strange := [c for c in asked if c not in raw.column_names or not sided(c)]:
            raise unknown("column of a side", strange[0], filter(sided, raw.column_names))
        kinds, made = {}, {}
        for side in SIDES:
            with _about(side):
                kinds[side] = _claimant(_side(raw, side).take(pa.array(index[:100])))
        for key, value in options.items():
            if not any(kind.takes(key) for kind in kinds.values()):
                sides = " and ".join(kind.modality for kind in kinds.values())
                raise UserError(f"--{key} {value}: neither side ({sides}) has a {key}")
        for side, kind in kinds.items():
            left_out = ["id", *_own(dict.fromkeys(exclude), side)]
            with _about(side):
                if (own_columns := _own(asked, side)) and not kind.takes("columns"):
                    raise UserError(f"--columns {', '.join(own_columns)}: {kind.modality} have no columns")
                given, where = _distinct(kind, _side(raw, side))
                own = {**options, "columns": own_columns} if asked else options
                made[side] = kind.infer(given, np.unique(where[index]), progress=progress, exclude=left_out, **own)
        return cls(**made)

    def pack(self, raw: pa.Table, *, skip_bad: bool = False, progress: Progress | None = None) -> Packed:
        sources, places, hashes = {}, {}, {}
        bad: dict[int, tuple[int, str, str]] = {}
        for side in SIDES:
            own: Input = getattr(self, side)
            with _about(side):
                given, where = _distinct(type(own), _side(raw, side))
                packed = own.pack(given, skip_bad=skip_bad, progress=progress)
            place = np.full(where.max(initial=-1) + 1, -1)
            place[packed.keep] = np.arange(len(packed.keep))
            why = {row: (name, words) for row, name, words in packed.bad}
            for row in np.flatnonzero(place[where] < 0).tolist():
                bad.setdefault(row, (row, *why[where[row]]))
            sources[side], places[side], hashes[side] = packed.source, place[where], packed.hashes
            if (windows := getattr(packed.source, "windows", None)) is not None:
                long = int((np.diff(windows.starts) > 1)[place[where][place[where] >= 0]].sum())
                words = f"the {side} side: {long:,} of {raw.num_rows:,} rows are longer than it takes; they are cut"
                warnings.warn(words, Warned, stacklevel=2)
        keep = np.setdiff1d(np.arange(raw.num_rows), [*bad])
        rows = {side: place[keep] for side, place in places.items()}
        both = np.stack([hashes[side][rows[side]] for side in SIDES], 1)
        return Packed(Couples(sources, rows), keep, sorted(bad.values()), row_hashes(both))

    def flat(self, batch: Batch) -> Any:
        """The plain features of both sides, one after the other; sparse where a side's are."""
        parts = [getattr(self, side).flat(half(batch, side)) for side in SIDES]
        if any(sparse.issparse(x) for x in parts):
            return sparse.hstack(parts, "csr", dtype=np.float32)
        return np.concatenate(parts, 1)

    def show(self, batch: Batch) -> list[dict[str, str]]:
        sides = [getattr(self, side).show(half(batch, side)) for side in SIDES]
        return [_beside(left, right) for left, right in zip(*sides, strict=True)]


def named(sides: dict[str, Batch]) -> Batch:
    """The batches of the sides as one."""
    return {f"{side}.{key}": value for side, batch in sides.items() for key, value in batch.items()}


def sided(column: str) -> tuple[str, str] | None:
    """The side a column belongs to and its name there; None for a fact about the pair."""
    found = re.fullmatch(r"(left|right)(?:[._](.+))?", column)
    return (found[1], found[2] or "value") if found else None


def _own(columns: Mapping[str, Any], side: str) -> dict[str, Any]:
    """What is said of the columns of a side, by their names there."""
    start = f"{side}."
    return {name.removeprefix(start): value for name, value in columns.items() if name.startswith(start)}


def _side(raw: pa.Table, side: str) -> pa.Table:
    start = f"{side}."
    own = [c for c in raw.column_names if c.startswith(start)]
    if not own:
        raise UserError(f"the table has no column {side}.NAME: {WANTED}; here: {', '.join(raw.column_names)}")
    return raw.select(own).rename_columns([c.removeprefix(start) for c in own])


def _distinct(kind: type[Input], table: pa.Table) -> tuple[Any, np.ndarray]:
    """A side's raw rows and which of them each pair holds: samples of one column that recur are packed once."""
    if table.num_columns > 1 or kind.modality == "tables":
        return kind.as_raw(table), np.arange(table.num_rows)
    codes = table.column(0).combine_chunks().dictionary_encode(null_encoding="encode")
    return kind.as_raw(pa.table({table.column_names[0]: codes.dictionary})), codes.indices.to_numpy()


def _claimant(table: pa.Table) -> type[Input]:
    """The modality that claims a side, asked in the same order and by the same means as for a file of its own."""
    found: list[type[Input]] = [part("modality", name) for name in names("modality") if name != "pairs"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "side.parquet"
        pq.write_table(table, path)
        return next(kind for kind in sorted(found, key=lambda m: m.modality == "tables") if kind.claims(path))


def _full(column: pa.ChunkedArray, base: Path) -> pa.ChunkedArray:
    """Names of files under `base` as full paths, where the first one is such a name."""
    values = column.to_pylist()
    first = next((v for v in values if v), None)
    try:
        is_file = first is not None and (base / first).is_file()
    except OSError:  # a text too long to be a name
        is_file = False
    return pa.chunked_array([[v and str(base.resolve() / v) for v in values]], pa.string()) if is_file else column


@contextmanager
def _about(side: str) -> Iterator[None]:
    """Say of which side an error speaks."""
    try:
        yield
    except UserError as error:
        raise UserError(f"the {side} side: {error}") from None


def _beside(left: dict[str, str], right: dict[str, str]) -> dict[str, str]:
    """What is shown of two samples as one: pictures side by side, words with a bar between."""
    out = {}
    thumbs, texts = ([d[key] for d in (left, right) if key in d] for key in ("thumb", "text"))
    if thumbs:
        out["thumb"] = thumbs[0] if len(thumbs) == 1 else _joined(*thumbs)
    if texts:
        out["text"] = " | ".join(texts)
    return out


def _joined(*thumbs: str) -> str:
    """Two data URIs as one picture, a gap between: a PNG of PNGs, else an SVG."""
    start = "data:image/png;base64,"
    if not all(t.startswith(start) for t in thumbs):
        inside = "".join(f'<image href="{t}" x="{170 * k}" width="160" height="120"/>' for k, t in enumerate(thumbs))
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 330 120">{inside}</svg>'
        return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
    parts = [Image.open(io.BytesIO(base64.b64decode(t.removeprefix(start)))).convert("RGB") for t in thumbs]
    gap = max(1, parts[0].width // 16)
    whole = Image.new("RGB", (sum(p.width for p in parts) + gap, max(p.height for p in parts)), "white")
    whole.paste(parts[0], (0, 0))
    whole.paste(parts[1], (parts[0].width + gap, 0))
    buffer = io.BytesIO()
    whole.save(buffer, "PNG")
    return start + base64.b64encode(buffer.getvalue()).decode()
