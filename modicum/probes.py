"""Probes of frozen features: how well do simple rules read the labels off them?"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from modicum.core import seeds
from modicum.core.types import Source, Views
from modicum.datasets.data import Labels
from modicum.maths.representation import alignment, deviations, rank_me, uniformity, unused
from modicum.nn.encoder import Tower
from modicum.training.apply import embed, over


def knn(bank: np.ndarray, labels: np.ndarray, query: np.ndarray, k: int = 20, temperature: float = 0.07) -> np.ndarray:
    """Weighted k-nearest-neighbour classes (n,) of `query` (n, d) by cosine similarity (Wu et al. 2018).

    bank (m, d) with codes `labels` (m,); each neighbour votes with weight exp(similarity / temperature).
    """
    bank, query = unit(bank), unit(query)
    k = min(k, len(bank))
    votes = np.zeros((len(query), int(labels.max()) + 1), np.float32)
    for start in range(0, len(query), 1024):
        near = query[start : start + 1024] @ bank.T
        found = np.argpartition(near, -k, axis=1)[:, -k:]
        weight = np.exp((np.take_along_axis(near, found, 1) - 1) / temperature)
        rows = np.arange(start, start + len(near))[:, None]
        np.add.at(votes, (rows, labels[found]), weight)
    return votes.argmax(1)


def unit(x: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1."""
    return x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12)


def neighbours(x: np.ndarray, query: np.ndarray, k: int) -> np.ndarray:
    """The k rows of x (n, d) nearest to each row x[query] by cosine, nearest first, without itself: (q, k)."""
    near = unit(x)[query] @ unit(x).T
    near[np.arange(len(query)), query] = -np.inf
    return np.argsort(-near, axis=1, kind="stable")[:, :k]


def ridge(bank: np.ndarray, labels: np.ndarray, query: np.ndarray, penalty: float = 0.01) -> np.ndarray:
    """Linear classes (n,) of `query` (n, d): least squares to one-hot `labels` (m,) of `bank` (m, d), in closed form.

    Features are standardised by the bank's; `penalty` is a row's share of the ridge.
    """
    mean, std = bank.mean(0), bank.std(0)
    x, q = (torch.from_numpy((v - mean) / (std + 0.1 * std.mean() + 1e-12)).double() for v in (bank, query))
    y = F.one_hot(torch.from_numpy(labels).long()).double()
    y = y - y.mean(0, keepdim=True)
    n, d = x.shape
    if d <= n:
        weight = torch.linalg.solve(x.T @ x + penalty * n * torch.eye(d, dtype=x.dtype), x.T @ y)
    else:
        weight = x.T @ torch.linalg.solve(x @ x.T + penalty * n * torch.eye(n, dtype=x.dtype), y)
    share = np.bincount(labels) / n
    found: np.ndarray = ((q @ weight).numpy() + share).argmax(1)
    return found


class Probe:
    """The online probes, on training rows alone: what simple rules read off the features so far, and how they lie.

    Accuracy of k-NN and of a linear rule (`knn`, `linear`) on at most 1,000 labelled rows by 4,000 others, where there
    are classes; RankMe, the share of unused dimensions, quantiles of the dimensions' standard deviations, uniformity,
    and the alignment of two `views` of each of at most 500 rows.
    """

    def __init__(
        self, encoder: Tower, source: Source, train: np.ndarray, labels: Labels | None, views: Views | None = None
    ) -> None:
        self.encoder, self.source, self.labels, self.views = encoder, source, labels, views
        self.bank = self.query = np.empty(0, int)
        self.rows = np.sort(seeds.numpy(0, "measure").choice(train, min(500, len(train)), replace=False))
        if labels is not None and labels.kind == "classes":
            known = seeds.numpy(0, "probe").permutation(train[labels.known[train]])[:5000]
            self.bank, self.query = np.split(known, [int(0.8 * len(known))])

    def __call__(self) -> dict[str, float]:
        found = self.measures()
        return self.accuracies() | found if found else {}

    def accuracies(self) -> dict[str, float]:
        """What the classes say of the features; nothing where rows have none."""
        if self.labels is None or not len(self.query) or not len(self.bank):
            return {}
        bank, query = (embed(self.encoder, self.source, index) for index in (self.bank, self.query))
        given, true = self.labels.values[self.bank], self.labels.values[self.query]
        return {f.__name__: float((f(bank, given, query) == true).mean()) for f in (knn, ridge)}

    def measures(self) -> dict[str, float]:
        """How the features lie, whatever the classes."""
        z = torch.from_numpy(embed(self.encoder, self.source, self.rows))
        if not z.isfinite().all():  # the guard says so of the loss
            return {}
        out = {"rank_me": rank_me(z), "unused": unused(z), "uniformity": uniformity(z)}
        out |= {f"deviation_{name}": value for name, value in deviations(z).items()}
        if self.views is not None:
            a, b = (torch.from_numpy(self._seen(k)) for k in range(2))
            out["alignment"] = alignment(a, b)
        return {key: float(value) for key, value in out.items()}

    def _seen(self, k: int) -> np.ndarray:
        """Features of the k-th view of the measured rows, always the same view."""
        rng, views = seeds.generator(0, "measure", k, device=next(self.encoder.parameters()).device), self.views
        assert views is not None
        return over(self.encoder, lambda b: self.encoder(views(b, rng)).pooled.float(), self.source, self.rows)
