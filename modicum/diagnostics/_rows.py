"""The labelled rows that diagnostics train and test on, of any data, raw or as a run's frozen encoder sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.decomposition import TruncatedSVD

from modicum.core import seeds
from modicum.core.errors import UserError
from modicum.core.types import Input, Source
from modicum.datasets.data import Data, Labels, open_data
from modicum.model import Model, load
from modicum.training import splits
from modicum.training.apply import embed
from modicum.training.baselines import tfidf
from modicum.training.many import device
from modicum.training.rows import Ask, for_measuring, marked, special_columns
from modicum.training.run import Run
from modicum.training.transfer import scaled
from modicum.training.work import Work

TOPICS = 100
"""Directions that texts are reduced to where dense features are wanted."""


@dataclass(frozen=True)
class Given:
    """Labelled rows: numbers of those to `train` and to `test` on, and how to read them.

    `labels.values` (rows,) are codes of classes, or numbers. `model`: the run whose frozen features are taken.
    """

    data: Data
    input: Input
    source: Source
    labels: Labels
    train: np.ndarray
    test: np.ndarray
    model: Model | None = None

    @property
    def classes(self) -> int:
        """How many classes there are; 0 for numbers."""
        return len(self.labels.classes) if self.labels.kind == "classes" else 0

    def plain(self, index: np.ndarray) -> Any:
        """Plain features (n, p) float32 of rows: a run's frozen ones, else raw pixels, scaled columns, ...

        Of text they are counts of words, as a sparse matrix. UserError: one that is not finite, by row and column.
        """
        if self.model is not None:
            return _finite(embed(self.model.encoder, self.source, index).astype(np.float32), index)
        parts = [self.input.flat(self.source.rows(index[i : i + 4096])) for i in range(0, len(index), 4096)]
        if sparse.issparse(parts[0]):
            return sparse.vstack(parts, "csr")
        return _finite(np.concatenate(parts).astype(np.float32), index)

    def features(self, index: np.ndarray) -> np.ndarray:
        """Dense features (n, p) float32 of rows: plain ones, but of text `TOPICS` leading directions of its TF-IDF.

        Weights and directions are of the training rows, whose labels they do not see; no test row has a part in them.
        """
        plain = self.plain(index)
        return self._topics.transform(plain).astype(np.float32) if sparse.issparse(plain) else plain

    @cached_property
    def _topics(self) -> Any:
        """Latent semantic analysis of the training texts (Deerwester et al. 1990)."""
        plain = self.plain(self.train)
        wide = len(np.unique(plain.indices))
        if wide < 2:
            raise UserError(f"{self.data.name}: the training texts have {wide} different word(s); wanted at least 2")
        return tfidf(TruncatedSVD(min(TOPICS, wide, len(self.train)), random_state=0)).fit(plain)

    def apart(self, most: int, draws: int) -> bool:
        """Whether so many draws of `most` training rows share none."""
        return most * draws <= len(self.train)

    def drawn(self, most: int, draws: int, draw: int, seed: int) -> np.ndarray:
        """The `most` training rows of a draw, in a random order; draws are disjoint where there are enough rows.

        Draws, and about so every prefix of one, hold the classes in their shares.
        """
        pool = self.train
        if self.apart(most, draws):
            order = seeds.numpy(seed, "draws").permutation(pool)
            if self.classes:
                order = order[np.argsort(self.labels.values[order], kind="stable")]
            pool = np.sort(order[draw::draws])
        if most < len(pool):
            own = seeds.fold(seed, "draw", draw) % 2**31
            pool = splits.few(self.labels.values, total=most, kind=self.labels.kind, seed=own, among=pool)
        rng = seeds.numpy(seed, "rows", draw)
        order = rng.permutation(pool)
        if not self.classes:
            return order
        codes = self.labels.values[order]
        counts = np.bincount(codes)
        place = np.empty(len(order))
        for c in np.flatnonzero(counts):  # each class at even distances, from a random start
            place[codes == c] = (np.arange(counts[c]) + rng.random()) / counts[c]
        return order[np.argsort(place, kind="stable")]

    def missing(self, draws: Sequence[np.ndarray]) -> str:
        """Words for the classes of the training rows that some draw of rows lacks; none where every draw has all."""
        if not self.classes:
            return ""
        every, values = np.unique(self.labels.values[self.train]), self.labels.values
        lost: dict[int, int] = {}
        for own in draws:
            for c in np.setdiff1d(every, values[own]).tolist():
                lost[c] = lost.get(c, 0) + 1
        if not lost:
            return ""
        named = ", ".join(f"{self.labels.classes[c]} (in {k} of {len(draws)})" for c, k in list(lost.items())[:5])
        more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
        return (
            f"Careful: draws of {len(draws[0]):,} rows lack class {named}{more}: models there never saw it; give more "
            "rows a draw (--limit), fewer --draws, or leave the class out."
        )

    def targets(self, index: np.ndarray) -> np.ndarray:
        """What a least-squares fit is fitted to, (n, k) float64: one-hot classes, or the number standardised."""
        y = self.labels.values[index]
        if self.classes:
            return np.eye(self.classes)[y]
        own = self.labels.values[self.train]
        return ((y - own.mean()) / max(own.std(), 1e-12))[:, None]

    def work(self, **more: Any) -> Work:
        """What many models train on: the rows as they are, or a run's frozen features of those to train and test on.

        Frozen features are standardised over the training rows (without labels): one rate then suits every run's.
        """
        y = self.labels.values
        more = {"device": device()} | more
        if self.model is None:
            return Work(self.input, self.source, y, self.classes, **more)
        used = np.union1d(self.train, self.test)
        z = self.features(used)
        _, mean, std = scaled(z[np.searchsorted(used, self.train)])
        whole = np.zeros((len(y), z.shape[1]), np.float32)
        whole[used] = (z - mean) / std
        return Work.of_features(whole, y, self.classes, **more)


def _finite(x: np.ndarray, index: np.ndarray) -> np.ndarray:
    """The features (n, p) of the rows `index`; UserError where one is NaN or infinite."""
    if not np.isfinite(x).all():
        at, column = np.argwhere(~np.isfinite(x))[0]
        raise UserError(
            f"feature {column} of row {index[at]} is {x[at, column]}: wanted finite features: drop the row or fill it"
        )
    return x


def given(
    data: Any,
    *,
    run: str | Path | Run | None = None,
    label: str | None = None,
    split: str | None = None,
    group: str | None = None,
    size: int | None = None,
    limit: int | None = None,
    most_tests: int | None = None,
    seed: int = 0,
) -> Given:
    """Open the data and divide its labelled rows: by its split column, else a stratified fifth is for testing.

    `size` is the side of images in pixels. A run's frozen encoder is tested on rows that it was not trained on. `limit`
    draws as many training rows, stratified; `most_tests` as many test rows.
    """
    model = None if run is None else load(run)
    opened = open_data(data, None if model is None else type(model.input))
    by_column = marked(opened, split)
    if model is None:
        usable = np.arange(len(opened)) if by_column is None else by_column.train
        special = special_columns(opened, label, group, split)
        options: dict[str, Any] = {"exclude": special} if opened.modality.takes("exclude") else {}
        if size is not None and not opened.modality.takes("size"):
            raise UserError(f"--size {size}: {opened.name} holds {opened.modality.modality}, which have no size")
        options |= {} if size is None else {"size": size}
        input = opened.modality.infer(opened.raw, usable, **options)
    else:
        input = model.input
    packed = input.pack(opened.raw)
    found = opened.labels(label)
    if found is None:
        columns = ", ".join(opened.table.column_names)
        raise UserError(f"{opened.name} has no label column: name it with --label; columns: {columns}")
    if found.tasks:
        raise UserError(f"--label {label}: diagnostics take one label; name one of {', '.join(found.tasks)}")
    seen = None if model is None else model.run.array("seen")
    repeat = for_measuring(
        opened, found, packed.hashes, seen, by_column, Ask(repeats=1, seed=seed, group=group)
    ).repeats[0]
    train, test = repeat.pool, repeat.test
    if limit is not None:
        if limit < 2:
            raise UserError(f"--limit {limit}: wanted at least 2 training rows")
        if limit < len(train):
            train = splits.few(found.values, total=limit, kind=found.kind, seed=seed, among=train)
    if most_tests is not None and most_tests < len(test):
        test = np.sort(seeds.numpy(seed, "tests").choice(test, most_tests, replace=False))
    return Given(opened, input, packed.source, found, train, test, model)
