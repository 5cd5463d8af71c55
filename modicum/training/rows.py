"""Which rows may be used for what: held-out rows for pre-training, repeats for measuring, by one rule."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np

from modicum.core import seeds
from modicum.core.errors import UserError, Warned
from modicum.datasets.data import LABELS, Data, Labels
from modicum.training import splits
from modicum.training.contest import Plan, Repeat

HOLD_OUT = 0.2
ALL_SEEN = "all labelled rows are seen: to measure on unseen ones, finetune needs --test"


@dataclass(frozen=True)
class Rows:
    """`train` and `test` row numbers, the columns that are facts about rows and not features, and words on the rule."""

    train: np.ndarray
    test: np.ndarray
    special: list[str]
    note: str

    def avoiding(self, hashes: np.ndarray, others: np.ndarray) -> Rows:
        """Without the training rows whose content is among `others`."""
        clash = np.isin(hashes[self.train], others)
        note = f"{self.note}; {int(clash.sum())} rows equal to test rows left out" if clash.any() else self.note
        return replace(self, train=self.train[~clash], note=note)


def special_columns(data: Data, *named: str | None) -> list[str]:
    """Columns that are not features: id, split, the label and what else was named."""
    given = [c for n in named[:1] if n for c in data.label_columns(n)] + [n.partition(":")[0] for n in named[1:] if n]
    label = [] if named and named[0] else [n for n in LABELS if n in data.table.column_names][:1]
    return [n for n in dict.fromkeys([*given, *label, "id", "split"]) if n in data.table.column_names]


def codes(data: Data, column: str | None) -> np.ndarray | None:
    """A group column as text; None where none is named."""
    found = data.column(column, what="group column") if column else None
    return None if found is None else np.array([str(v) for v in found.to_pylist()])


def together(data: Data, labels: Labels | None, column: str | None, free: bool = True) -> tuple[np.ndarray | None, str]:
    """The groups whose rows stay on one side of a split, and the column's name: the one asked for, else the modality's.

    The latter (molecules: their scaffold) only where nothing fixes the test rows (`free`) and the rows can be divided.
    """
    own = data.modality.group
    if column is not None or not free or labels is None or own not in data.table.column_names:
        return codes(data, column), column or ""
    groups = codes(data, own)
    if why := unfit(labels, np.flatnonzero(labels.known), groups):
        if labels.known.any():
            words = f"rows are divided at random and not by {own}, because {why}"
            warnings.warn(words, Warned, stacklevel=3)
        return None, ""
    return groups, str(own)


def marked(data: Data, column: str | None) -> splits.Split | None:
    """The split of a column that says train or test; the column `split` is used unasked."""
    found = data.column(column, default=["split"], what="split column")
    if found is None:
        return None
    part = splits.by_column(found.to_pylist())
    # Settings are chosen on a part of the given labels, drawn anew in every repeat: rows marked valid are given ones.
    return replace(part, train=np.union1d(part.train, part.valid))


def for_pretraining(
    data: Data,
    *,
    label: str | None,
    group: str | None,
    split: str | None,
    test: str | None,
    transductive: bool,
    limit: int | None,
    seed: int,
) -> Rows:
    """The rows pre-training may see: not those of a split column's test part, else not a fifth of the labelled ones.

    With `test` (rows elsewhere) or `transductive` all rows are used; so are they where no row is labelled.
    """
    special = special_columns(data, label, group, split)
    labels, by_column = data.labels(label), marked(data, split)
    groups, by = together(data, labels, group, free=not transductive and by_column is None and test is None)
    # Half the memory where rows are many.
    every, none = np.arange(len(data), dtype=np.int32 if len(data) < 1 << 31 else np.int64), np.empty(0, int)
    if transductive:
        rows = Rows(every, none, special, "transductive: test rows are among them, without labels")
    elif by_column is not None:
        note = f"{len(by_column.test):,} test rows of its split column left out"
        rows = Rows(by_column.train, by_column.test, special, note)
    elif test is not None:
        rows = Rows(every, none, special, "all rows; the test rows are elsewhere")
    elif labels is None or not labels.known.any():
        rows = Rows(every, none, special, "all rows")
    else:
        rows = _held_out(labels, groups, special, seed)
        if by and len(rows.test):
            rows = replace(rows, note=f"{rows.note}, whole groups of '{by}'")
    if limit is not None and limit < len(rows.train):
        few = np.sort(seeds.numpy(seed, "limit").choice(rows.train, limit, replace=False))
        rows = replace(rows, train=few, note=f"{rows.note}; {limit:,} of {len(rows.train):,} drawn")
    if test is None and labels is not None and _all_seen(rows.train, labels.known):
        rows = replace(rows, note=f"{rows.note}; {ALL_SEEN}")
    enough(rows.train, data)
    return rows


def _all_seen(train: np.ndarray, known: np.ndarray) -> bool:
    """Whether there are `known` labels, and none of another row than those of `train`."""
    other = np.ones(len(known), bool)
    other[train] = False
    return bool(known.any()) and not (known & other).any()


def enough(train: np.ndarray, data: Data) -> None:
    """Refuse to train on fewer than two rows."""
    if len(train) < 2:
        raise UserError(f"{data.name} leaves {len(train)} rows to train on; at least 2 are needed")


def _held_out(labels: Labels, groups: np.ndarray | None, special: list[str], seed: int) -> Rows:
    """A fifth of the labelled rows for testing; rows of classes that cannot be divided are all seen."""
    known = np.flatnonzero(labels.known)
    if labels.kind == "classes":
        labels = replace(
            labels, values=np.where(np.isin(labels.values, _lone(labels, known, groups)), -1, labels.values)
        )
        known = np.flatnonzero(labels.known)
    if why := unfit(labels, known, groups):
        note = f"all rows: none can be held out for testing, because {why}"
        return Rows(np.arange(len(labels.values)), np.empty(0, int), special, note)
    part = splits.hold_out(labels.level, groups, fraction=HOLD_OUT, seed=seed, kind=labels.kind)
    return Rows(part.train, part.test, special, f"{len(part.test):,} labelled rows held out for testing")


def _lone(labels: Labels, rows: np.ndarray, groups: np.ndarray | None) -> list[int]:
    """The classes with a single row, or with rows in a single group: none of it can be held out."""
    units = zip(labels.values[rows].tolist(), (rows if groups is None else groups[rows]).tolist(), strict=True)
    counts = np.bincount([code for code, _ in set(units)], minlength=1)
    return np.flatnonzero(counts == 1).tolist()


def unfit(labels: Labels, rows: np.ndarray, groups: np.ndarray | None) -> str | None:
    """Why the labelled `rows` cannot be divided into training and test rows, in words; None where they can."""
    if len(rows) < 2:
        return "fewer than 2 rows are labelled" if labels.kind == "numbers" else "no class has 2 labelled rows"
    if groups is not None and len(np.unique(groups[rows])) < 2:
        return f"all labelled rows are in group '{groups[rows[0]]}'"
    if labels.kind == "numbers":
        return None
    if len(np.unique(labels.values[rows])) < 2:
        return f"all labelled rows are of class '{labels.classes[labels.values[rows[0]]]}'"
    if lone := _lone(labels, rows, groups):
        only = "only 1 labelled row" if groups is None else "labelled rows in 1 group only"
        return f"class {_listed([labels.classes[c] for c in lone])} has {only}: label more, or drop or merge the class"
    return None


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(f"'{name}'" for name in names[:5]) + more


@dataclass(frozen=True)
class Ask:
    """What the user asked of a measurement: labelled rows an experiment, repeats, and where the test rows come from."""

    per_class: int | None = None
    total: int | None = None
    repeats: int = 5
    seed: int = 0
    split: str | None = None
    group: str | None = None
    transductive: bool = False


def for_measuring(
    data: Data, labels: Labels, hashes: np.ndarray, seen: np.ndarray | None, fixed: splits.Split | None, ask: Ask
) -> Plan:
    """The repeats of an experiment: test rows fixed by the user or by pre-training, else repeated splits.

    `hashes` (n,) of the rows' content; `seen` those of pre-training; `fixed` the rows of --test or --split.
    """
    if ask.per_class and labels.kind == "numbers":
        raise UserError("--labels-per-class is for classes; this label is a number: use --labels N")
    groups, by = together(data, labels, ask.group, free=fixed is None)
    known = np.flatnonzero(labels.known)
    if len(known) == 0:
        raise UserError(f"{data.name}: the label column is empty in every row; finetune needs labels")
    if labels.kind == "classes" and len(np.unique(labels.values[known])) < 2:
        raise UserError(
            f"{data.name} has the single class '{labels.classes[labels.values[known][0]]}': at least two are needed"
        )
    old = np.zeros(len(hashes), bool) if seen is None or ask.transductive else np.isin(hashes, seen)
    told = ask.transductive and seen is not None
    suffix = " TRANSDUCTIVE: pre-training saw the test rows, without labels." if told else ""
    where = "the given test rows"
    if fixed is None and old[known].any():
        new = known[~old[known]]
        if not len(new):
            raise UserError(
                f"the encoder was trained on every labelled row of {data.name}, so none can test it: give --test PATH "
                "or --split COLUMN, or pre-train again with the labels named (a fifth is then held out), or accept it "
                "with --transductive"
            )
        # Where most rows are unseen they were not held out: the data is another, with some rows in common.
        if len(new) <= len(known) / 2:
            fixed, where = splits.Split(known[old[known]], new, np.empty(0, int)), "the rows held out in pre-training"
    if fixed is None:
        return _splits(
            data, labels, groups, old, ask, f" No group of '{by}' is on both sides.{suffix}" if by else suffix
        )
    test = _unseen(np.intersect1d(fixed.test, known), old, ask)
    pool = _apart(np.intersect1d(fixed.train, known), test, hashes, groups)
    if not len(test) or not len(pool):
        raise UserError(
            f"{data.name} leaves {len(pool)} labelled rows to train on and {len(test)} to test on: both are needed"
        )
    side = np.union1d(pool, fixed.train[~labels.known[fixed.train]])
    repeats = [_repeat(labels, groups, pool, side, test, ask, s) for s in range(ask.repeats)]
    words = f"{ask.repeats} repeats ({_drawn(ask)}), all tested on {where}: {len(test):,}."
    drawn = "labelled subset, seed" if ask.per_class or ask.total else "seed"
    return Plan(repeats, True, f"{words} Intervals cover {drawn} and test rows.{suffix}")


def _unseen(test: np.ndarray, old: np.ndarray, ask: Ask) -> np.ndarray:
    """Test rows that pre-training did not see; a few equal rows are dropped aloud, many are an error."""
    clash = int(old[test].sum())
    if clash > max(1, 0.05 * len(test)):
        raise UserError(
            f"{clash} of {len(test)} test rows were seen in training the encoder: pre-train again without them (--test "
            "or --split there), or accept it with --transductive"
        )
    if clash:
        words = f"{clash} test row(s) equal to a row seen in pre-training are left out of the test"
        warnings.warn(words, Warned, stacklevel=4)
    return test[~old[test]]


def _apart(pool: np.ndarray, test: np.ndarray, hashes: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """The rows to train on that neither equal a test row nor share its group; the others are left out aloud."""
    equal = np.isin(hashes[pool], hashes[test])
    kin = np.zeros(len(pool), bool) if groups is None else np.isin(groups[pool], groups[test])
    for lost, what in ((equal, "equal a test row"), (kin & ~equal, "are of a test row's group")):
        if lost.any():
            words = f"{int(lost.sum())} of {len(pool)} labelled training rows {what} and are left out"
            warnings.warn(words, Warned, stacklevel=4)
    return pool[~(equal | kin)]


def _splits(data: Data, labels: Labels, groups: np.ndarray | None, old: np.ndarray, ask: Ask, suffix: str) -> Plan:
    """Random splits; the test part is drawn from the rows that training the encoder did not see."""
    known = np.flatnonzero(labels.known)
    new = known[~old[known]]
    if why := unfit(labels, new, groups):
        raise UserError(f"{data.name} cannot be divided into training and test rows: {why}")
    own = None if groups is None else groups[new]
    repeats = []
    for s in range(ask.repeats):
        seed = seeds.fold(ask.seed, "split", s) % 2**31
        test = new[splits.hold_out(labels.level[new], own, fraction=HOLD_OUT, seed=seed, kind=labels.kind).test]
        pool = np.setdiff1d(known, test)
        side = np.setdiff1d(np.arange(len(labels.values)), new if groups is None else test)
        side = np.union1d(side, pool)
        if groups is not None:
            pool, side = (part[~np.isin(groups[part], groups[test])] for part in (pool, side))
        repeats.append(_repeat(labels, groups, pool, side, test, ask, s))
    words = f"{ask.repeats} random splits ({_drawn(ask)}), each tested on its own {len(repeats[0].test):,} rows."
    return Plan(repeats, False, f"{words} Intervals by Nadeau and Bengio's correction.{suffix}")


def _drawn(ask: Ask) -> str:
    if ask.per_class:
        return f"each with its own {ask.per_class} labels a class and seed"
    return f"each with its own {ask.total} labels and seed" if ask.total else "all given labels, each a new seed"


def _repeat(
    labels: Labels, groups: np.ndarray | None, pool: np.ndarray, side: np.ndarray, test: np.ndarray, ask: Ask, s: int
) -> Repeat:
    """Repeat s: `given` of the labelled `pool`; `side` is everything on the training side, unlabelled rows too."""
    seed = ask.seed + s
    given = pool
    if ask.per_class:
        _suffice(labels, pool, ask.per_class)
    if ask.per_class or ask.total:
        given = splits.few(
            labels.level, per_class=ask.per_class, total=ask.total, kind=labels.kind, seed=seed, among=pool
        )
    return Repeat(seed, given, choose(labels, groups, given, seed), test, pool, np.setdiff1d(side, given))


def _suffice(labels: Labels, pool: np.ndarray, wanted: int) -> None:
    """Refuse more labels a class than there are, naming the class."""
    counts = np.bincount(labels.values[pool])
    short = [c for c in np.flatnonzero(counts < wanted) if counts[c]]
    if short:
        listed = ", ".join(f"'{labels.classes[c]}' has {counts[c]}" for c in short[:5])
        raise UserError(
            f"--labels-per-class {wanted}: of the labelled rows to train on, {listed}: ask for at most "
            f"{min(counts[c] for c in short)}"
        )


def choose(labels: Labels, groups: np.ndarray | None, given: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The given rows divided for choosing settings: (fit, validation); no validation where rows or groups are too few.

    Too few is: no class with two rows, fewer than five rows of numbers, one group.
    """
    values = labels.level[given]
    own = None if groups is None else groups[given]
    few = np.bincount(values).max() < 2 if labels.kind == "classes" else len(given) < 5
    if few or (own is not None and len(np.unique(own)) < 2):
        return given, given[:0]
    fit, held = splits.validation(values, own, kind=labels.kind, seed=seed)
    return given[fit], given[held]
