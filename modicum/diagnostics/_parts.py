"""Parts of the training rows, a model each: disjoint, or subsamples that overlap where there are too few rows."""

from __future__ import annotations

import numpy as np

from modicum.core import seeds
from modicum.core.errors import UserError
from modicum.diagnostics._rows import Given
from modicum.training.rows import codes
from modicum.training.splits import few


def disjoint(rows: Given, splits: int, seed: int, group: str | None) -> list[np.ndarray]:
    """The training rows in `splits` parts of one size and the same shares of classes; whole groups where asked.

    Shares of classes are fixed by that: what differs between parts, and makes variance, is which rows of a class.
    UserError: fewer rows, groups or rows of a class than splits, a class that some part would lack.
    """
    pool, rng = rows.train, seeds.numpy(seed, "splits")
    if len(pool) < 2 * splits:
        raise UserError(
            f"{len(pool)} training rows in --splits {splits}: a model needs at least 2 rows; ask for at most "
            f"--splits {len(pool) // 2}, or for overlapping subsamples (--samples)"
        )
    if rows.classes and group is None:
        _enough(rows, splits)
    names = codes(rows.data, group)
    order = rng.permutation(pool)
    if names is not None:
        part = _whole_groups(names[order], splits)
    else:
        if rows.classes:
            order = order[np.argsort(rows.labels.values[order], kind="stable")]
        part = np.arange(len(order)) % splits
    parts = [np.sort(order[part == k]) for k in range(splits)]
    for k, own in enumerate(parts):
        if rows.classes and len(lost := np.setdiff1d(rows.labels.values[pool], rows.labels.values[own])):
            count = int((rows.labels.values[pool] == lost[0]).sum())
            raise UserError(
                f"class {rows.labels.classes[lost[0]]} is missing from split {k + 1} of {splits} (it has {count} "
                "training row(s)): ask for fewer --splits, label more of it, or leave the class out"
            )
    return parts


def _enough(rows: Given, splits: int) -> None:
    """Refuse more splits than the rarest class has training rows, one of which each split gets."""
    counts = np.bincount(rows.labels.values[rows.train], minlength=rows.classes)
    rare = [c for c in np.flatnonzero(counts) if counts[c] < splits]
    if rare:
        least = int(counts[rare].min())
        named = ", ".join(f"{rows.labels.classes[c]} ({counts[c]} training row(s))" for c in rare[:5])
        more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
        fits = f"ask for at most --splits {least}" if least > 1 else "no --splits fit"
        raise UserError(
            f"--splits {splits}: class {named}{more} would be missing from a split: {fits}, label more of it, leave "
            "the class out, or ask for overlapping subsamples (--samples)"
        )


def subsamples(rows: Given, splits: int, samples: int, seed: int, group: str | None) -> list[np.ndarray]:
    """`splits` parts of so many training rows, classes in their shares: disjoint where there are enough of them.

    Else each is drawn without replacement for itself (never a bootstrap), so that parts overlap. UserError: as many as
    there are, which would all be the same; fewer than classes; with groups, which it would divide.
    """
    pool = rows.train
    if group is not None:
        raise UserError(f"--samples {samples} divides the groups of --group {group}: give one of the two")
    if not max(2, rows.classes) <= samples < len(pool):
        raise UserError(
            f"--samples {samples}: wanted at least {max(2, rows.classes)} (a row of every class) and fewer than the "
            f"{len(pool)} training rows, of which all subsamples would be the same"
        )
    apart = samples * splits <= len(pool)
    if apart and rows.classes:
        apart = bool(np.unique(rows.labels.values[pool], return_counts=True)[1].min() >= splits)
    among = disjoint(rows, splits, seed, None) if apart else [pool] * splits
    return [
        few(rows.labels.values, total=samples, kind=rows.labels.kind, seed=seeds.fold(seed, "subsample", k) % 2**31,
            among=own)
        for k, own in enumerate(among)
    ]  # fmt: skip


def overlap(parts: list[np.ndarray]) -> bool:
    """Whether a row is in two parts."""
    return len(np.unique(np.concatenate(parts))) < sum(map(len, parts))


def _whole_groups(names: np.ndarray, splits: int) -> np.ndarray:
    """The part of every row: each group, the largest first, goes to the part that has the fewest rows."""
    _, at = np.unique(names, return_inverse=True)
    sizes = np.bincount(at)
    if len(sizes) < splits:
        raise UserError(f"{len(sizes)} group(s) of training rows for --splits {splits}: ask for fewer splits")
    filled, place = np.zeros(splits), np.empty(len(sizes), int)
    for g in np.argsort(-sizes, kind="stable"):
        place[g] = int(filled.argmin())
        filled[place[g]] += sizes[g]
    return place[at]
