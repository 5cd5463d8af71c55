"""Batches of rows that belong together: the user's pairs and triplets, and labelled rows among many others."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from modicum.core.errors import UserError, Warned
from modicum.core.ragged import join
from modicum.core.types import Batch, Source
from modicum.datasets.data import Data
from modicum.modalities._tableread import read_table
from modicum.training.batches import Batches

SHARE = 4
"""To so many rows comes a labelled one, where fewer of all rows are."""


@dataclass
class Tuples:
    """Row numbers (n, roles) of the samples of a file, and whether its pairs are `similar` (n,), where it says so.

    A `Source` over `source`: the rows of a batch are those of the first role, then those of the second, ...
    """

    source: Source
    index: np.ndarray
    similar: np.ndarray | None
    size: int

    def rows(self, index: np.ndarray) -> Batch:
        batch = self.source.rows(self.index[index].T.ravel())
        if self.similar is None:
            return batch
        return {**batch, "similar": torch.from_numpy(np.tile(self.similar[index], self.index.shape[1]))}


def read_tuples(
    path: str | Path, roles: tuple[str, ...], data: Data, source: Source, train: np.ndarray, skip_bad: bool
) -> Tuples:
    """The pairs or triplets of a table with a column of ids (`data.ids()`) a role, and for pairs `similar`, 1 or 0.

    Those with a row outside `train` are left out aloud. UserError: columns that are missing, ids that name no row or
    several, a row beside itself, `similar` neither 1 nor 0; with `skip_bad` these rows of the file are left out aloud.
    """
    table, wanted = read_table(path, unique=False), (*roles, "similar") if len(roles) == 2 else roles
    if missing := [name for name in wanted if name not in table.column_names]:
        raise UserError(
            f"{path}: no column {', '.join(missing)}; wanted {', '.join(wanted)}, found {', '.join(table.column_names)}"
        )
    index, bad = _numbers(table, roles, data)
    for j, k in combinations(range(len(roles)), 2):
        same = (index[:, j] == index[:, k]) & (index[:, j] >= 0)
        bad |= {int(i): f"{roles[j]} and {roles[k]} are the same row" for i in np.flatnonzero(same)}
    similar = None
    if len(roles) == 2:
        words = [str(v).lower() for v in table.column("similar").to_pylist()]
        truth = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0}
        similar = np.array([truth.get(word, -1) for word in words], np.int64)
        bad |= {int(i): f"similar is '{words[i]}', neither 1 nor 0" for i in np.flatnonzero(similar < 0)}
        bad |= {i: why for i, why in _contradictions(index, similar).items() if i not in bad}
    if bad:
        first = "; ".join(f"row {i + 1}: {bad[i]}" for i in sorted(bad)[:3])
        if not skip_bad:
            raise UserError(f"{path}: {len(bad):,} row(s) cannot be used ({first}); --skip-bad leaves them out")
        warnings.warn(f"{path}: {len(bad):,} row(s) left out ({first})", Warned, stacklevel=2)
    usable = np.ones(len(index), bool)
    usable[list(bad)] = False
    seen = np.isin(index, train).all(1)
    if lost := int((usable & ~seen).sum()):
        what = f"{lost:,} of {len(index):,} rows of {path} name rows that are not trained on"
        warnings.warn(f"{what} (held out for testing, or by --limit), and are left out", Warned, stacklevel=2)
    usable &= seen
    if usable.sum() < 2:
        raise UserError(
            f"{path} leaves {int(usable.sum())} {'pairs' if similar is not None else 'triplets'}: at least 2 are needed"
        )
    if similar is not None and len(kinds := np.unique(similar[usable])) < 2:
        raise UserError(
            f"{path}: every pair is {'similar' if kinds[0] else 'dissimilar'}; both kinds are needed, or all rows "
            "would fall together or apart"
        )
    return Tuples(source, index[usable], None if similar is None else similar[usable], int(usable.sum()))


def _contradictions(index: np.ndarray, similar: np.ndarray) -> dict[int, str]:
    """By row of the file, pairs of which an earlier row says the opposite, in this order or the other."""
    first: dict[tuple[int, int], int] = {}
    out: dict[int, str] = {}
    for i, (a, b) in enumerate(np.sort(index, 1).tolist()):
        before = first.setdefault((a, b), i)
        if a >= 0 and similar[before] >= 0 and similar[i] == 1 - similar[before]:
            out[i] = f"similar is {similar[i]}, and {similar[before]} of the same pair in row {before + 1}"
    return out


def _numbers(table: pa.Table, roles: tuple[str, ...], data: Data) -> tuple[np.ndarray, dict[int, str]]:
    """The rows' numbers (n, roles), -1 where an id names none or several, and what is wrong by row."""
    numbers: dict[str, int] = {}
    twice: set[str] = set()
    for number, name in enumerate(data.ids()):
        twice.update([name] if name in numbers else [])
        numbers[name] = number
    out, bad = np.full((table.num_rows, len(roles)), -1, np.int64), dict[int, str]()
    for k, role in enumerate(roles):
        for i, value in enumerate(table.column(role).to_pylist()):
            name = "" if value is None else str(value)
            if name in twice:
                bad[i] = f"{role} '{name}' is the id of several rows of {data.name}"
            elif name not in numbers:
                bad[i] = f"{role} '{name}' is no id of {data.name}"
            else:
                out[i, k] = numbers[name]
    return out, bad


@dataclass(frozen=True)
class Mixed:
    """Batches whose rows come from two: `most`, then `few`."""

    most: Batches
    few: Batches

    @property
    def batch(self) -> int:
        return self.most.batch + self.few.batch

    def __call__(self, step: int) -> Batch:
        return join([self.most(step), self.few(step)])


def labelled(
    source: Source, train: np.ndarray, target: np.ndarray, known: np.ndarray, batch: int, seed: int
) -> Batches | Mixed:
    """Batches of rows `train` with their `target`; where few are `known`, a quarter more that are come after them."""

    answers = torch.from_numpy(target if target.dtype.kind == "i" else target.astype(np.float32))

    def of(rows: np.ndarray, size: int) -> Batches:
        return Batches(source, rows, batch=size, seed=seed, extra={"target": answers[rows]})

    own = train[known[train]]
    if SHARE * len(own) >= len(train) or batch < SHARE:
        return of(train, batch)
    return Mixed(of(train, batch), of(own, batch // SHARE))
