"""Which rows train, which test, which few keep their labels: row indices, a function of the data and the seed.

Labels are an array of class numbers with -1 for unlabelled rows (`kind="classes"`), or of floats with NaN for
unlabelled rows (`kind="numbers"`). Groups (patient, plate, scaffold) are an array of integers or strings, or None.
Every index array returned is sorted. The global random state is never read or written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from modicum.core.errors import UserError

DRAWS = 50  # group draws before the best one is taken: accepting the first good one keeps repeats different
BINS = 10  # quantiles that a hold-out of numbers is stratified by

COLUMN = {
    **dict.fromkeys(("", "train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "valid"),
}


@dataclass(frozen=True)
class Split:
    """Row indices of a split, each sorted; together they hold every row once.

    train: labelled and unlabelled rows to learn from. test: labelled rows never to be seen before scoring.
    excluded: unlabelled rows that share a group with a test row. valid: only where a split column names such rows.
    """

    train: np.ndarray
    test: np.ndarray
    excluded: np.ndarray
    valid: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))


def hold_out(labels: np.ndarray, groups: np.ndarray | None, *, fraction: float, seed: int, kind: str) -> Split:
    """A random test part of the labelled rows: stratified by class or by quantile; whole groups where groups are given.

    labels, groups: (rows,). `fraction` is of the labelled rows. With groups it is met as nearly as a random order of
    whole groups allows, those over 1.5 times the part wanted always train, and every class has a training row.
    Unlabelled rows train, or are excluded if a test row has their group.
    UserError: fraction outside (0, 1), fewer than two classes, a class with one row or in one group, one group only.
    """
    _check_fraction(fraction)
    labelled = _labelled(labels, kind)
    ids = _group_ids(groups, labelled, len(labels))
    rng = _rng(seed, "hold_out")
    strata = _strata(labels[labelled], fraction, kind, rng, grouped=ids is not None)
    _check_strata(strata, labels[labelled], kind, has="has only 1 labelled row")
    excluded = np.zeros(len(labels), dtype=bool)
    if ids is None:
        test = labelled[_prefix(strata, fraction, rng)]
    else:
        pairs = np.unique(np.stack([strata, ids[labelled]]), axis=1)
        _check_strata(pairs[0], labels[labelled], kind, has="has labelled rows in one group only")
        test = labelled[_draw_groups(strata, ids[labelled], fraction, rng)]
        excluded = np.isin(ids, ids[test])
    excluded[test] = False
    train = ~excluded
    train[test] = False
    return Split(np.flatnonzero(train), np.sort(test), np.flatnonzero(excluded))


def validation(
    labels: np.ndarray, groups: np.ndarray | None, *, kind: str, seed: int, fraction: float = 0.2
) -> tuple[np.ndarray, np.ndarray]:
    """The given labels in two: rows to fit and rows to choose settings on; unlabelled rows are in neither.

    labels, groups: (rows,). Stratified: a class with 2 rows or more has at least one on each side, one with a single
    row is fitted; with groups, whole groups move and every class is among the rows to fit.
    UserError: fraction outside (0, 1), fewer than two classes, no class with two rows, one group only.
    """
    _check_fraction(fraction)
    labelled = _labelled(labels, kind)
    ids = _group_ids(groups, labelled, len(labels))
    rng = _rng(seed, "validation")
    strata = _strata(labels[labelled], fraction, kind, rng, grouped=ids is not None)
    if ids is not None:
        chosen = _draw_groups(strata, ids[labelled], fraction, rng)
    else:
        several = np.flatnonzero(np.bincount(strata)[strata] > 1)
        if len(several) == 0:
            raise UserError("no class has two labelled rows, so none can be kept for validation: give more labels")
        chosen = several[_prefix(np.unique(strata[several], return_inverse=True)[1], fraction, rng)]
    return np.delete(labelled, chosen), np.sort(labelled[chosen])


def few(
    labels: np.ndarray,
    *,
    per_class: int | None = None,
    total: int | None = None,
    kind: str,
    seed: int,
    among: np.ndarray | None = None,
) -> np.ndarray:
    """The labelled subset of an experiment, nested for one seed: `few(10)` is contained in `few(20)`.

    among: row indices to choose from, all by default; unlabelled ones are passed over. Give `per_class` rows of every
    class, or `total` rows: in proportion to the classes with at least one of each if that many, at random for numbers.
    UserError: both or neither asked for, more than there are (naming the class), `per_class` for numbers.
    """
    if (per_class is None) == (total is None):
        raise UserError("ask for a number of labels per class or for a total number of labels: one of the two")
    wanted = per_class if per_class is not None else total
    assert wanted is not None
    if wanted < 1:
        raise UserError(f"a labelled subset needs at least 1 row: got {wanted}")
    rows = _labelled(labels, kind, among)
    if wanted > len(rows):
        raise UserError(f"{wanted} labels were asked for, but only {len(rows)} rows are labelled")
    rng = _rng(seed, "few")
    if kind == "numbers":
        if per_class is not None:
            raise UserError("numbers have no classes: ask for a total number of labels instead of a number per class")
        return np.sort(rng.permutation(rows)[:wanted])
    names, strata = np.unique(labels[rows], return_inverse=True)
    if total is not None:
        return np.sort(rows[_order(strata, rng)[:total]])
    counts = np.bincount(strata)
    if counts.min() < wanted:
        short = ", ".join(f"class {names[c]} has {counts[c]}" for c in np.flatnonzero(counts < wanted)[:5])
        raise UserError(f"{wanted} labels per class were asked for, but {short}: ask for at most {counts.min()}")
    return np.sort(rows[_places(strata, rng) < wanted])


def by_column(values: Sequence[Any] | np.ndarray) -> Split:
    """The split a column of the data names: train/training, test/testing, valid/validation/val/dev; blank is train.

    values: (rows,), read without regard to case or surrounding space; None and NaN are blank.
    UserError: other values (listed), no training row, no test row.
    """
    read = ["" if v is None or v != v else str(v).strip().lower() for v in values]
    unknown = sorted(set(read) - COLUMN.keys())
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        listed = ", ".join(repr(v) for v in unknown[:5])
        raise UserError(f"the split column holds {listed}{more}; valid: train, test, valid, or blank for train")
    side = np.array([COLUMN[v] for v in read], dtype=str)
    for needed in ("train", "test"):
        if not (side == needed).any():
            raise UserError(f"the split column names no {needed} row: give some rows the value '{needed}'")
    train, test, valid = (np.flatnonzero(side == s) for s in ("train", "test", "valid"))
    return Split(train, test, np.empty(0, dtype=np.int64), valid)


def _order(strata: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Positions in an order whose every prefix is stratified: one of each stratum first, one of each (of 2+) last.

    In between, row j of a stratum of n comes at (j + 1/2)/n: Webster's apportionment, for all sizes at once, so that
    larger samples contain smaller ones.
    """
    place = _places(strata, rng)
    size = np.bincount(strata)[strata]
    key = (place + 0.5) / size
    key[place == size - 1] = 2
    key[place == 0] = -1
    return np.lexsort((rng.permutation(len(strata)), key))


def _places(strata: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The place, from 0, of each row in a random order of its own stratum."""
    order = np.lexsort((rng.permutation(len(strata)), strata))
    starts = np.concatenate([[0], np.cumsum(np.bincount(strata))[:-1]])
    place = np.empty(len(strata), dtype=np.int64)
    place[order] = np.arange(len(strata)) - starts[strata[order]]
    return place


def _prefix(strata: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Positions of a stratified `fraction` of the rows: at least one row of each stratum (of 2+) on each side."""
    count, least = len(strata), int(strata.max()) + 1
    return _order(strata, rng)[: int(np.clip(round(fraction * count), least, count - least))]


def _draw_groups(strata: np.ndarray, ids: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Positions of whole random groups, near `fraction` of the rows, that leave every stratum on the other side.

    Of up to `DRAWS` draws the first with every stratum on both sides is taken, otherwise the one with the most.
    """
    ids = np.unique(ids, return_inverse=True)[1]
    sizes = np.bincount(ids)
    target = fraction * len(ids)
    small = np.flatnonzero(sizes <= max(1.5 * target, sizes.min()))
    wanted = int(strata.max()) + 1
    best, most = np.empty(0, dtype=np.int64), 0
    for _ in range(DRAWS):
        order = rng.permutation(small)
        if len(order) == len(sizes):
            order = order[:-1]
        taken = order[: int(np.argmin(np.abs(np.cumsum(sizes[order]) - target))) + 1]
        mask = _give_back(np.isin(ids, taken), strata, ids)
        covered = len(np.unique(strata[mask]))
        if covered > most:
            best, most = np.flatnonzero(mask), covered
        if most == wanted:
            break
    if most == 0:
        raise UserError("every group is the only one with some class, so none can be held out: label more groups")
    return best


def _give_back(mask: np.ndarray, strata: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The mask less one group for each stratum that it would otherwise hold completely."""
    for stratum in np.setdiff1d(strata[mask], strata[~mask]):
        held = mask & (strata == stratum)
        if held.any() and not (~mask & (strata == stratum)).any():
            mask = mask & (ids != ids[held][0])
    return mask


def _strata(values: np.ndarray, fraction: float, kind: str, rng: np.random.Generator, *, grouped: bool) -> np.ndarray:
    """The stratum, from 0, of each labelled row: its class; for numbers its quantile, or none where groups decide."""
    if kind == "classes":
        return np.unique(values, return_inverse=True)[1]
    count = len(values)
    held = round(fraction * count)
    bins = 1 if grouped else max(1, min(BINS, held, count - held))
    # Ties are broken at random, or a column of few distinct values would be split in the order of the file.
    rank = np.empty(count, dtype=np.int64)
    rank[np.lexsort((rng.permutation(count), values))] = np.arange(count)
    return rank * bins // count


def _labelled(labels: np.ndarray, kind: str, among: np.ndarray | None = None) -> np.ndarray:
    """The sorted indices of the labelled rows (of those in `among`), at least two of them and, if classes, of two."""
    integer = labels.dtype.kind in "iu"
    if labels.ndim != 1 or kind not in ("classes", "numbers") or integer != (kind == "classes"):
        raise UserError(
            "labels must be one column of class numbers (kind 'classes', -1 for none) or of floats (kind 'numbers', "
            f"NaN for none): got {labels.dtype} of shape {labels.shape} for kind '{kind}'"
        )
    given = labels != -1 if integer else ~np.isnan(labels)
    bad = labels < -1 if integer else np.isinf(labels)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise UserError(
            f"the label of row {row} is {labels[row]}: it must be finite, or {-1 if integer else np.nan} for none"
        )
    rows = np.flatnonzero(given)
    if among is not None:
        rows = np.intersect1d(rows, among)
    if len(rows) < 2:
        raise UserError(f"{len(rows)} rows are labelled: at least 2 are needed")
    if kind == "classes" and (labels[rows] == labels[rows[0]]).all():
        raise UserError(f"all {len(rows)} labelled rows are of class {labels[rows[0]]}: two classes are needed")
    return rows


def _group_ids(groups: np.ndarray | None, labelled: np.ndarray, count: int) -> np.ndarray | None:
    """Groups as numbers from 0, or what is wrong with them."""
    if groups is None:
        return None
    values = np.asarray(groups)
    if values.shape != (count,):
        raise UserError(f"groups must be one value a row: got shape {values.shape} for {count} rows")
    blank = np.array([v is None or v != v or v == "" for v in values.tolist()], dtype=bool)
    if blank.any():
        raise UserError(f"row {int(np.flatnonzero(blank)[0])} has no group: {int(blank.sum())} of {count} are blank")
    ids = np.unique(values.astype(str) if values.dtype == object else values, return_inverse=True)[1]
    if (ids[labelled] == ids[labelled[0]]).all():
        raise UserError(f"all labelled rows are in group '{values[labelled[0]]}', so no group can be held out")
    return ids


def _check_strata(strata: np.ndarray, values: np.ndarray, kind: str, *, has: str) -> None:
    """Every class needs two rows, or two groups, to be in both training and test."""
    lone = np.flatnonzero(np.bincount(strata) == 1)
    if kind == "classes" and len(lone):
        named = ", ".join(str(c) for c in np.unique(values)[lone][:5])
        raise UserError(
            f"class {named} {has}, which cannot be in both training and test: label more, or drop or merge the class"
        )


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise UserError(f"the fraction held out must be between 0 and 1, such as 0.2: got {fraction}")


def _rng(seed: int, purpose: str) -> np.random.Generator:
    """A generator of its own for each purpose, so that the choice of test rows says nothing about that of labels."""
    return np.random.default_rng([seed, *purpose.encode()])
