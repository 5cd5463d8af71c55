"""Label propagation: what few labels say of unlabelled rows, through a graph of nearest neighbours.

Zhou et al. 2004 on features of a frozen encoder, as in Iscen et al. 2019.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse

NEIGHBOURS, ROUNDS = 10, 30
BLOCK = 1024  # rows of the similarity matrix at a time: it is never whole


def graph(z: np.ndarray, k: int = NEIGHBOURS) -> sparse.csr_array:
    """The symmetric, degree-normalised graph of each row's k nearest rows of z (n, d); edges weigh cosine³."""
    unit = torch.from_numpy(z / np.linalg.norm(z, axis=1, keepdims=True).clip(1e-12)).float()
    n, k = len(z), min(k, len(z) - 1)
    near, weight = [], []
    for start in range(0, n, BLOCK):
        similar = unit[start : start + BLOCK] @ unit.T
        similar[torch.arange(len(similar)), torch.arange(start, start + len(similar))] = -1
        values, index = similar.topk(k, 1)
        near.append(index.numpy())
        weight.append(values.clamp(min=0).numpy() ** 3)
    rows = np.arange(n).repeat(k)
    one_way = sparse.csr_array((np.concatenate(weight).ravel(), (rows, np.concatenate(near).ravel())), shape=(n, n))
    both = one_way + one_way.T
    scale = sparse.diags_array(1 / np.sqrt(np.asarray(both.sum(1)).clip(1e-12)))
    return scale @ both @ scale


def propagate(edges: sparse.csr_array, given: np.ndarray, codes: np.ndarray, outputs: int, alpha: float) -> np.ndarray:
    """Class probabilities (n, outputs) of every row after the labels `codes` of rows `given` have spread.

    Iterates F <- alpha·S·F + (1 - alpha)·Y; each class is then scaled to the same total, for few labels fill their
    neighbourhoods unevenly, and each row to 1 (a row that nothing reached is uniform).
    """
    start = np.zeros((edges.shape[0], outputs))
    start[given, codes] = 1
    spread = start
    for _ in range(ROUNDS):
        spread = alpha * (edges @ spread) + (1 - alpha) * start
    spread = spread / spread.sum(0).clip(1e-12)
    total = spread.sum(1, keepdims=True)
    return np.where(total > 0, spread / np.maximum(total, 1e-300), 1 / outputs)
