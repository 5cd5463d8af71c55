"""Tables: every column a token; missing values and unseen categories have tokens of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Generator, Tensor, nn

from modicum.core.errors import UserError, unknown
from modicum.core.types import Batch, Embed, Input, Packed, Progress, Tokens, Unembed
from modicum.modalities._files import TABLES, read_table, row_hashes, table_kind

MISSING, UNSEEN = 0, 1
"""Codes of a category that is missing, or was not in the training rows; known ones follow."""


class Scaling(nn.Module):
    """Numeric columns (b, n) to mean 0 and standard deviation 1 in the training rows, NaN where missing, and back.

    In float64: a date in seconds has more digits than float32 holds.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, table: Tables) -> None:
        super().__init__()
        stats = torch.tensor([(mean, std) for _, mean, std in table.numeric], dtype=torch.float64).view(-1, 2)
        self.register_buffer("mean", stats[:, 0].clone(), persistent=False)
        self.register_buffer("std", stats[:, 1].clone(), persistent=False)

    def forward(self, numeric: Tensor) -> Tensor:
        return ((numeric - self.mean) / self.std).float()

    def back(self, scaled: Tensor) -> Tensor:
        return scaled * self.std + self.mean


class Columns(Embed):
    """{"numeric" (b, n) NaN where missing, "categorical" (b, m) codes} -> one token (dim) a column."""

    offset: Tensor

    def __init__(self, table: Tables) -> None:
        super().__init__()
        self.dim, self.grid = table.width, (len(table.numeric) + len(table.categorical),)
        self.scaled = Scaling(table)
        sizes = [len(values) + 2 for _, values in table.categorical]
        offset = torch.tensor([0, *np.cumsum(sizes)[:-1]][: len(sizes)], dtype=torch.long)
        self.register_buffer("offset", offset, persistent=False)
        n = len(table.numeric)
        self.weight = nn.Parameter(torch.randn(n, self.dim) / self.dim**0.5)
        self.bias = nn.Parameter(torch.zeros(n, self.dim))
        self.missing = nn.Parameter(torch.randn(n, self.dim) / self.dim**0.5)
        self.category = nn.Parameter(torch.randn(sum(sizes), self.dim) / self.dim**0.5)

    def forward(self, batch: Batch) -> Tokens:
        x = self.scaled(batch["numeric"]).unsqueeze(2)
        numeric = torch.where(x.isnan(), self.missing, x.nan_to_num() * self.weight + self.bias)
        category = nn.functional.embedding(batch["categorical"] + self.offset, self.category)
        return Tokens(torch.cat([numeric, category], 1), None, self.grid)


class Cells(Unembed):
    """Tokens -> cells: a number, or logits over the categories; squared error and cross-entropy, 0 where missing."""

    def __init__(self, table: Tables) -> None:
        super().__init__()
        self.dim, self.scaled = table.width, Scaling(table)
        self.numbers = nn.Parameter(torch.randn(len(table.numeric), self.dim) / self.dim**0.5)
        self.shift = nn.Parameter(torch.zeros(len(table.numeric)))
        self.logits = nn.ModuleList(nn.Linear(self.dim, len(values) + 2) for _, values in table.categorical)

    def _cells(self, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        n = len(self.shift)
        numbers = (tokens[:, :n] * self.numbers).sum(2) + self.shift
        return numbers, [head(tokens[:, n + j]) for j, head in enumerate(self.logits)]

    def loss(self, tokens: Tensor, batch: Batch, where: Tensor | None = None) -> Tensor:
        numbers, logits = self._cells(tokens)
        true = self.scaled(batch["numeric"])
        errors = [torch.where(true.isnan(), 0, (numbers - true.nan_to_num()).square())]
        for j, out in enumerate(logits):
            code = batch["categorical"][:, j]
            error = nn.functional.cross_entropy(out, code, reduction="none")
            errors.append(torch.where(code == MISSING, 0, error).unsqueeze(1))
        error = torch.cat(errors, 1)
        return error if where is None else error[where]

    def decode(self, tokens: Tensor) -> Batch:
        numbers, logits = self._cells(tokens)
        codes = [out[:, 2:].argmax(1) + 2 for out in logits]
        empty = torch.empty(len(tokens), 0, dtype=torch.long, device=tokens.device)
        categorical = torch.stack(codes, 1) if codes else empty
        return {"numeric": self.scaled.back(numbers), "categorical": categorical}


class Resample:
    """SCARF's corruption (Bahri et al. 2022): a share `corrupt` of cells is drawn anew from its column in the batch."""

    def __init__(self, corrupt: float) -> None:
        if not isinstance(corrupt, int | float) or not 0 <= corrupt < 1:
            raise UserError(f"views: wanted 0 <= corrupt < 1, got {corrupt!r}")
        self.corrupt = corrupt

    def __call__(self, batch: Batch, rng: Generator) -> Batch:
        out = dict(batch)
        for key in ("numeric", "categorical"):
            x = batch[key]
            donor = torch.randint(len(x), x.shape, generator=rng, device=x.device)
            swap = torch.rand(x.shape, generator=rng, device=x.device) < self.corrupt
            out[key] = torch.where(swap, x.gather(0, donor), x)
        return out


class Cases:
    """Columns in memory as a Source of {"numeric", "categorical"}."""

    def __init__(self, numeric: np.ndarray, categorical: np.ndarray) -> None:
        self.numeric, self.categorical, self.size = numeric, categorical, len(numeric)

    def rows(self, index: np.ndarray) -> Batch:
        return {
            "numeric": torch.from_numpy(self.numeric[index]),
            "categorical": torch.from_numpy(self.categorical[index]),
        }


@final
class Tables(Input):
    """Columns of a table: `numeric` (name, mean, std), `categorical` (name, categories); tokens of `width`."""

    modality = "tables"
    default_trunk = "mlp"
    default_objective = "simclr"
    baselines = ("logistic regression", "SVM", "1-NN", "gradient boosting")

    def __init__(
        self,
        numeric: tuple[tuple[str, float, float], ...] = (),
        categorical: tuple[tuple[str, tuple[str, ...]], ...] = (),
        width: int = 8,
    ) -> None:
        if not numeric and not categorical:
            raise UserError("a table needs at least one numeric or categorical column besides the label")
        if width < 1:
            raise UserError(f"tables wants width of at least 1, got {width}")
        self.numeric, self.categorical, self.width = numeric, categorical, width

    def columns(self) -> tuple[str, ...]:
        return tuple(str(column[0]) for column in (*self.numeric, *self.categorical))

    def embed(self) -> Columns:
        return Columns(self)

    def unembed(self) -> Cells:
        return Cells(self)

    def views(self, **options: Any) -> Resample:
        """`corrupt`: share of the cells drawn anew from their column."""
        for key in options:
            if key != "corrupt":
                raise unknown("table view", key, ["corrupt"])
        return Resample(**{"corrupt": 0.3, **options})

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Tables are the last resort for a file that reads as one, so this is asked after the other modalities."""
        return table_kind(path) in TABLES or (path.is_dir() and any(path.glob("**/*.parquet")))

    @classmethod
    def scan(cls, path: Path) -> tuple[pa.Table, pa.Table]:
        table = read_table(path)
        return table, table

    @classmethod
    def as_raw(cls, x: Any) -> pa.Table:
        if isinstance(x, pa.Table):
            return x
        try:
            if hasattr(x, "iloc"):
                return pa.Table.from_pandas(x, preserve_index=False)
            if isinstance(x, Sequence) and x and isinstance(x[0], dict):
                return pa.Table.from_pylist(list(x))
        except (pa.ArrowException, ValueError) as error:  # mixed types in a column, a column twice
            raise UserError(f"the {type(x).__name__} cannot be read as a table: {error}") from None
        raise UserError(f"a table wants a DataFrame, an Arrow table, a list of dicts or a path; got {type(x).__name__}")

    @classmethod
    def infer(
        cls,
        raw: pa.Table,
        index: np.ndarray,
        *,
        progress: Progress | None = None,
        exclude: Sequence[str] = (),
        **_: Any,
    ) -> Tables:
        numeric, categorical = [], []
        for name in raw.column_names:
            if name in exclude:
                continue
            column = raw.column(name).take(pa.array(index))
            if is_number(column.type):
                x = numbers(column)
                with np.errstate(invalid="ignore"):
                    known = x[np.isfinite(x)]
                mean, std = (float(known.mean()), float(known.std())) if len(known) else (0.0, 1.0)
                numeric.append((name, mean, std if std > 1e-12 * max(1.0, abs(mean)) else 1.0))
            else:
                values = sorted(v for v in pc.unique(strings(column)).to_pylist() if v is not None)
                if len(values) > max(100, len(index) // 2):
                    raise UserError(
                        f"column '{name}' has {len(values)} different texts in {len(index)} rows: it looks like an "
                        "id or free text; drop it from the table"
                    )
                categorical.append((name, tuple(values)))
        return cls(tuple(numeric), tuple(categorical))

    def pack(self, raw: pa.Table, *, skip_bad: bool = False, progress: Progress | None = None) -> Packed:
        absent = [name for name in self.columns() if name not in raw.column_names]
        if absent:
            raise UserError(f"the table lacks the column(s) {', '.join(absent)}; it has {', '.join(raw.column_names)}")
        numeric = np.empty((raw.num_rows, len(self.numeric)))
        for j, (name, *_) in enumerate(self.numeric):
            if not is_number(raw.column(name).type) and not pa.types.is_null(raw.column(name).type):
                raise UserError(f"column '{name}' was numeric in training; here it is {raw.column(name).type}")
            numeric[:, j] = numbers(raw.column(name))
            if infinite := np.flatnonzero(np.isinf(numeric[:, j])).tolist():
                raise UserError(
                    f"column '{name}' is infinite in {len(infinite)} row(s), first row {infinite[0]}: blank them"
                )
        categorical = np.empty((raw.num_rows, len(self.categorical)), np.int64)
        for j, (name, values) in enumerate(self.categorical):
            text = strings(raw.column(name))
            code = pc.fill_null(pc.index_in(text, value_set=pa.array(values, pa.string())), -1).to_numpy()
            missing = pc.is_null(text).to_numpy()
            categorical[:, j] = np.where(missing, MISSING, np.where(code < 0, UNSEEN, code + 2))
        both = np.concatenate([numeric.view(np.uint8), categorical.view(np.uint8)], 1)
        return Packed(Cases(numeric, categorical), np.arange(raw.num_rows), [], row_hashes(both))

    def flat(self, batch: Batch) -> np.ndarray:
        """Scaled numbers (0 where missing, with an indicator) and one-hot categories."""
        stats = np.array([(m, s) for _, m, s in self.numeric]).reshape(-1, 2)
        x = ((batch["numeric"].numpy() - stats[:, 0]) / stats[:, 1]).astype(np.float32)
        hot = [
            np.eye(len(v) + 2, dtype=np.float32)[batch["categorical"][:, j].numpy()]
            for j, (_, v) in enumerate(self.categorical)
        ]
        return np.concatenate([np.nan_to_num(x), np.isnan(x).astype(np.float32), *hot], 1)

    def show(self, batch: Batch) -> list[dict[str, str]]:
        names = [["(missing)", "(unseen)", *values] for _, values in self.categorical]
        out = []
        for number, code in zip(batch["numeric"].tolist(), batch["categorical"].tolist(), strict=True):
            cells: list[str] = [f"{n}={v:.4g}" for (n, *_), v in zip(self.numeric, number, strict=True)]
            cells += [
                f"{name}={names[j][c]}" for j, ((name, _), c) in enumerate(zip(self.categorical, code, strict=True))
            ]
            out.append({"text": ", ".join(cells)})
        return out


def is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def numbers(column: pa.ChunkedArray) -> np.ndarray:
    """The column as float64 (n,), NaN where missing."""
    return np.asarray(pc.cast(column, pa.float64()).to_numpy(), np.float64)


def strings(column: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return pc.cast(column, pa.string())
    except pa.ArrowException:
        raise UserError(
            f"a column of type {column.type} cannot be a category; use text, whole numbers or true/false"
        ) from None
