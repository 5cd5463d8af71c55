"""Label propagation: its closed form, its limits, and that it uses unlabelled rows and no hidden label."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import modicum
from modicum import UserError
from modicum.core import seeds
from modicum.datasets.data import open_data
from modicum.modalities.images import Images
from modicum.nn.encoder import Encoder
from modicum.training.apply import over
from modicum.training.propagate import graph, propagate
from modicum.training.transfer import Task, train


def drawn(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def test_graph_is_symmetric_and_normalised() -> None:
    edges = graph(drawn(300, 8), k=5).toarray()
    np.testing.assert_allclose(edges, edges.T, atol=1e-6)  # float32 similarities
    # The spectral radius of D^-1/2 W D^-1/2 is 1: Perron-Frobenius with the vector D^1/2.
    assert np.abs(np.linalg.eigvalsh(edges)).max() == pytest.approx(1, abs=1e-6)
    assert not edges.diagonal().any()


def test_propagation_tends_to_its_closed_form() -> None:
    edges, given, codes, alpha = graph(drawn(200, 6), k=8), np.arange(9), np.arange(9) % 3, 0.5
    found = propagate(edges, given, codes, 3, alpha)
    labels = np.zeros((200, 3))
    labels[given, codes] = 1
    exact = np.linalg.solve(np.eye(200) - alpha * edges.toarray(), (1 - alpha) * labels)  # Zhou et al. 2004, eq. 3
    exact = exact / exact.sum(0)
    np.testing.assert_allclose(found, exact / exact.sum(1, keepdims=True), atol=1e-6)


def test_a_label_fills_its_cluster_and_a_cluster_without_one_stays_open() -> None:
    centres = np.eye(3)[np.repeat([0, 1, 2], 50)] * 10
    found = propagate(graph(centres + 0.1 * drawn(150, 3)), np.array([0, 50]), np.array([0, 1]), 2, 0.9)
    assert (found[:50].argmax(1) == 0).all()
    assert (found[50:100].argmax(1) == 1).all()
    np.testing.assert_allclose(found[100:], 0.5)


def test_unlabelled_rows_help_and_their_labels_are_not_read() -> None:
    data = open_data("digits")
    labels = data.labels()
    assert labels is not None
    input = Images(8, 1)
    source = input.pack(data.raw).source
    with seeds.forked(0, "init"):
        encoder = Encoder.of(input, "mlp(width=256, depth=1)")
    rows = np.random.default_rng(0).permutation(len(data))
    given = np.concatenate([rows[labels.values[rows] == c][:1] for c in range(10)])
    free = np.setdiff1d(rows[:1200], given)
    test = np.setdiff1d(rows[1200:], given)
    task = Task(source, labels.values, "classes", 10, free=free)
    hidden = labels.values.copy()
    hidden[free] = -1
    share = {}
    for method in ("probe", "propagate"):
        fitted = train(encoder, method, replace(task, target=hidden), given, (given, given))
        out = over(fitted.objective, fitted.objective.predict, source, test)
        share[method] = float((out.argmax(1) == labels.values[test]).mean())
    # One label a class on random features of digits, 4 draws: .55-.60 for the probe, .73-.80 after propagation.
    assert share["propagate"] > share["probe"] + 0.08


def test_numbers_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = [f"{a:.3f},{2 * a:.3f}" for a in rng.normal(size=40)]
    (tmp_path / "t.csv").write_text("a,target\n" + "\n".join(lines) + "\n")
    options = {"encoder": "mlp(width=4)", "steps": 2, "batch": 8}
    run = modicum.pretrain(tmp_path / "t.csv", objective="autoencoder(code=2)", out=tmp_path / "run", **options)
    with pytest.raises(UserError, match="propagate is for classes"):
        modicum.finetune(run, tmp_path / "t.csv", method="propagate", steps=2, out=tmp_path / "new")
