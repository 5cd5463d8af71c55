"""Tables: every column a token; missing values and unseen categories have tokens of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
import torch
from torch import Generator, Tensor, nn

from modicum.core.errors import UserError, unknown
from modicum.core.types import Batch, Embed, Input, Packed, Progress, Tokens, Unembed
from modicum.modalities._files import TABLES, as_table, table_kind
from modicum.modalities._tablecolumns import Knots, asked_kinds, find, in_words
from modicum.modalities._tablepack import MISSING, Plan, pack
from modicum.modalities._tableread import scan

FARTHEST = 1e15
"""Standard deviations from the mean beyond which numbers are taken as that far."""


class Scaling(nn.Module):
    """Numeric columns (b, n) to mean 0 and standard deviation 1 in the training rows, NaN where missing, and back.

    Columns with knots go on to normal scores, piecewise linearly through them and beyond the outer ones. In float64: a
    date in seconds has more digits than float32 holds.
    """

    mean: Tensor
    std: Tensor
    at: Tensor
    score: Tensor

    def __init__(self, table: Tables) -> None:
        super().__init__()
        stats = torch.tensor([(mean, std) for _, mean, std in table.numeric], dtype=torch.float64).view(-1, 2)
        most = max((len(k) for k in table.knots), default=0)
        points = torch.tensor([_padded(k, most) for k in table.knots], dtype=torch.float64).view(
            len(table.knots), most, 2
        )
        self.register_buffer("mean", stats[:, 0].clone(), persistent=False)
        self.register_buffer("std", stats[:, 1].clone(), persistent=False)
        self.register_buffer("at", points[..., 0].contiguous(), persistent=False)
        self.register_buffer("score", points[..., 1].contiguous(), persistent=False)

    def forward(self, numeric: Tensor) -> Tensor:
        x = (numeric - self.mean) / self.std
        # A stray cell of new data may not overflow float32 and make the whole row's prediction NaN.
        return (bend(x, self.at, self.score) if len(self.at) else x).clamp(-FARTHEST, FARTHEST).float()

    def back(self, scaled: Tensor) -> Tensor:
        x = bend(scaled.double(), self.score, self.at) if len(self.at) else scaled
        return x * self.std + self.mean


def _padded(knots: Knots, most: int) -> list[tuple[float, float]]:
    """`most` points of one line through the knots; the identity where there are none."""
    points = list(knots) or [(0.0, 0.0), (1.0, 1.0)]
    (x0, z0), (x1, z1) = points[-2:]
    return [*points, *((x1 + k * (x1 - x0), z1 + k * (z1 - z0)) for k in range(1, most - len(points) + 1))]


def bend(x: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Every column of x (b, n) through its line from `start` to `end` (n, k), k > 1, increasing; its ends go on."""
    x = x.T.contiguous()
    right = torch.searchsorted(start, x).clamp(1, start.shape[1] - 1)
    x0, x1, z0, z1 = (p.gather(1, i) for p in (start, end) for i in (right - 1, right))
    return (z0 + (x - x0) * ((z1 - z0) / (x1 - x0))).T


class Columns(Embed):
    """{"numeric" (b, n) NaN where missing, "categorical" (b, m) codes} -> one token (dim) a column."""

    offset: Tensor

    def __init__(self, table: Tables) -> None:
        super().__init__()
        self.dim, self.grid = table.width, (len(table.numeric) + len(table.categorical),)
        self.scaled, self.inputs = Scaling(table), self.grid[0]
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
    """SCARF's corruption (Bahri et al. 2022): a share `corrupt` of cells is drawn anew from its column in the batch.

    A share `hide` of all cells is missing instead.
    """

    def __init__(self, corrupt: float, hide: float) -> None:
        for name, share in (("corrupt", corrupt), ("hide", hide)):
            if not isinstance(share, int | float) or not 0 <= share < 1:
                raise UserError(f"views: wanted 0 <= {name} < 1, got {share!r}")
        self.corrupt, self.hide = corrupt, hide

    def __call__(self, batch: Batch, rng: Generator) -> Batch:
        out = dict(batch)
        for key, missing in (("numeric", torch.nan), ("categorical", MISSING)):
            x = batch[key]
            donor = torch.randint(len(x), x.shape, generator=rng, device=x.device)
            swap = torch.rand(x.shape, generator=rng, device=x.device) < self.corrupt
            out[key] = torch.where(swap, x.gather(0, donor), x)
            if self.hide:
                gone = torch.rand(x.shape, generator=rng, device=x.device) < self.hide
                out[key] = out[key].masked_fill(gone, missing)
        return out


@final
class Tables(Input):
    """Columns of a table: `numeric` (name, mean, std), `categorical` (name, categories); tokens of `width`.

    `dates` are the numeric columns that hold times, in seconds; `knots` the points (standardised number, score) of
    every numeric column's scaling, () where it is standardised only.
    """

    modality = "tables"
    default_trunk = "mlp"
    default_objective = "masked"
    baselines = ("logistic regression", "SVM", "1-NN", "gradient boosting")

    def __init__(
        self,
        numeric: tuple[tuple[str, float, float], ...] = (),
        categorical: tuple[tuple[str, tuple[str, ...]], ...] = (),
        width: int = 8,
        dates: tuple[str, ...] = (),
        knots: tuple[tuple[tuple[float, float], ...], ...] = (),
    ) -> None:
        if not numeric and not categorical:
            raise UserError("a table needs at least one numeric or categorical column besides the label")
        if width < 1:
            raise UserError(f"tables wants width of at least 1, got {width}")
        if knots and len(knots) != len(numeric):
            raise UserError(
                f"tables wants knots for each of {len(numeric)} numeric columns or for none; got {len(knots)}"
            )
        self.numeric, self.categorical, self.width = numeric, categorical, width
        self.dates, self.knots = dates, knots

    def columns(self) -> tuple[str, ...]:
        return tuple(str(column[0]) for column in (*self.numeric, *self.categorical))

    def embed(self) -> Columns:
        return Columns(self)

    def unembed(self) -> Cells:
        return Cells(self)

    def views(self, **options: Any) -> Resample:
        """`corrupt`: share of the cells drawn anew from their column; `hide`: share of the cells made missing."""
        defaults = {"corrupt": 0.3, "hide": 0.0}
        for key in options:
            if key not in defaults:
                raise unknown("table view", key, defaults)
        return Resample(**{**defaults, **options})

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Tables are the last resort for a file that reads as one, so this is asked after the other modalities."""
        return table_kind(path) in TABLES or (path.is_dir() and any(path.glob("**/*.parquet")))

    @classmethod
    def scan(cls, path: Path) -> tuple[pa.Table, pa.Table]:
        table = scan(path)
        return table, table

    @classmethod
    def as_raw(cls, x: Any) -> pa.Table:
        if isinstance(x, pa.Table) or hasattr(x, "iloc") or (isinstance(x, Sequence) and x and isinstance(x[0], dict)):
            return as_table(x)
        raise UserError(f"a table wants a DataFrame, an Arrow table, a list of dicts or a path; got {type(x).__name__}")

    @classmethod
    def infer(
        cls,
        raw: pa.Table,
        index: np.ndarray,
        *,
        progress: Progress | None = None,
        exclude: Sequence[str] = (),
        columns: str | Mapping[str, str] | None = None,
        scaling: str = "zscore",
        **_: Any,
    ) -> Tables:
        """The columns but `exclude` as rows `index` show them; `columns` says otherwise of some (`age:numeric,...`).

        `scaling`: "zscore", or "quantile" (normal scores of ranks).
        """
        asked = asked_kinds(columns, raw.column_names)
        if taken := [name for name in asked if name in exclude and asked[name] != "drop"]:
            raise UserError(f"--columns: '{taken[0]}' is the label, an id or a split and cannot be input too")
        found = find(raw, index, exclude, asked, scaling)
        return cls(found.numeric, found.categorical, dates=found.dates, knots=found.knots)

    def pack(self, raw: pa.Table, *, skip_bad: bool = False, progress: Progress | None = None) -> Packed:
        plan = Plan([name for name, *_ in self.numeric], self.dates, self.categorical)
        return pack(raw, plan, skip_bad, progress)

    def flat(self, batch: Batch) -> np.ndarray:
        """Scaled numbers (0 where missing, with an indicator) and one-hot categories."""
        x = Scaling(self)(batch["numeric"]).numpy()
        hot = [
            np.eye(len(v) + 2, dtype=np.float32)[batch["categorical"][:, j].numpy()]
            for j, (_, v) in enumerate(self.categorical)
        ]
        return np.concatenate([np.nan_to_num(x), np.isnan(x).astype(np.float32), *hot], 1)

    def note(self) -> str:
        return in_words(self.numeric, self.categorical, self.dates)

    def show(self, batch: Batch) -> list[dict[str, str]]:
        names = [["(missing)", "(unseen)", *values] for _, values in self.categorical]
        out = []
        for number, code in zip(batch["numeric"].tolist(), batch["categorical"].tolist(), strict=True):
            cells = [f"{n}={self._cell(n, v)}" for (n, *_), v in zip(self.numeric, number, strict=True)]
            cells += [
                f"{name}={names[j][c]}" for j, ((name, _), c) in enumerate(zip(self.categorical, code, strict=True))
            ]
            out.append({"text": ", ".join(cells)})
        return out

    def table(self, batch: Batch, prompt: str | None = None) -> pa.Table:
        """The columns by name, in the units they came in; dates as such, missing and unseen values empty."""
        del prompt
        out: dict[str, Any] = {}
        for (name, *_), column in zip(self.numeric, batch["numeric"].double().T.numpy(), strict=True):
            out[name] = pa.array(column, from_pandas=True)
            if name in self.dates:
                whole = np.nan_to_num(column).round().astype(np.int64)
                out[name] = pa.array(whole, pa.timestamp("s"), mask=np.isnan(column))
        for (name, values), code in zip(self.categorical, batch["categorical"].T.tolist(), strict=True):
            out[name] = pa.array([None, None, *values], pa.string()).take(pa.array(code))
        return pa.table(out)

    def _cell(self, name: str, value: float) -> str:
        """A number for a reader; a date as one, without its time where all of them are whole days."""
        if value != value:
            return "(missing)"
        if name not in self.dates or not abs(value) < 2**47:
            return f"{value:.4g}"
        return str(np.datetime64(round(value), "s")).replace("T00:00:00", "")
