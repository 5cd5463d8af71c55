"""`double-descent`: one run matrix for all axes, noise as asked for, and words that follow the numbers."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modicum.core.errors import UserError
from modicum.diagnostics._descent_curves import Curve, along, stopped
from modicum.diagnostics._descent_words import words
from modicum.diagnostics._finding import Finding
from modicum.diagnostics._matrix import Cell, Kept, Matrix, effective, noisy
from modicum.diagnostics._point import Point, Scores
from modicum.diagnostics._rows import given
from modicum.diagnostics.double_descent import WIDTHS, double_descent, geometric, plan
from modicum.maths.decomposition import Sums
from modicum.maths.intervals import crossed
from modicum.maths.peak import peak
from modicum.training.many import Member, train

PARTS = ("bias-variance", "weights")
SMALL: dict[str, Any] = {"draws": 3, "epochs": 12, "limit": 100}


def at(found: Finding, **place: int) -> dict[str, Any]:
    return next(row for row in found.rows if all(row[k] == v for k, v in place.items()))


def test_all_axes_come_from_one_run_matrix() -> None:
    found = double_descent(over="width,samples,epochs", values="2,16", **SMALL)
    assert {(r["width"], r["samples"]) for r in found.rows} >= {(2, 100), (16, 100), (16, 20), (2, 20)}
    assert list(found.charts) == [
        f"{axis}-{chart}" for axis in ("width", "samples", "epochs") for chart in ("error", "loss", *PARTS)
    ]
    wide, narrow = at(found, width=16, samples=100, epoch=12), at(found, width=2, samples=100, epoch=12)
    assert wide["train error"] < narrow["train error"]
    assert wide["parameters"] == 65 * 16 + 17 * 10
    assert found.facts["largest encoder"] == "mlp(width=16, depth=1, norm='none')"
    for row in (wide, narrow):
        assert row["test error low"] <= row["test error"] <= row["test error high"]
        whole = row["squared bias"] + row["squared variance"]
        assert 0 < whole < 2
    last = [r for r in found.rows if (r["width"], r["samples"]) == (16, 100)]
    assert len(last) > 4
    for row in last:  # along the epochs
        assert row["squared bias"] + row["squared variance"] < 2
        assert row["effective parameters"] > 1
    norms = [r["weight norm"] for r in last]
    assert norms[0] < norms[-1] == wide["weight norm"]
    assert found.png("epochs-weights")[:4] == b"\x89PNG"
    assert found.png("width-error")[:4] == b"\x89PNG"
    assert "<img" in found._repr_html_()


def test_numbers_and_other_trunks() -> None:
    found = double_descent("diabetes", values="1,8", label_noise=0.0, **SMALL)
    assert "squared test error" in found.words
    assert not any("cross-entropy bias" in row for row in found.rows)
    layers = double_descent(over="depth", values="1,2", width=8, **SMALL)
    assert [r["depth"] for r in layers.rows if "parameters" in r] == [1, 2]
    assert "double descent" not in layers.words


@pytest.mark.parametrize(("encoder", "over", "values"), [
    ("convnet", "width", "1,4"), ("transformer", "width", "4,8"), ("convnet", "depth", "1,2"),
])  # fmt: skip
def test_other_trunks_are_varied_too(encoder: str, over: str, values: str) -> None:
    width = None if over == "width" else 4
    found = double_descent(encoder=encoder, over=over, values=values, width=width, draws=2, epochs=1, limit=40)
    first, last = (row for row in found.rows if "parameters" in row)
    assert first["parameters"] < last["parameters"]


@pytest.mark.parametrize(("encoder", "own", "widths"), [
    ("mlp", 64, WIDTHS["mlp"]), ("mlp(width=128)", 128, WIDTHS["mlp"]), ("mlp(128, norm='none')", 128, WIDTHS["mlp"]),
    ("convnet(norm='batch')", None, WIDTHS["convnet"]), ("transformer(heads=2)", None, WIDTHS["transformer"]),
])  # fmt: skip
def test_a_spec_has_its_own_width_and_those_of_its_trunk(
    encoder: str, own: int | None, widths: tuple[int, ...]
) -> None:
    def made(axis: str, width: int | None = None) -> Matrix:
        return plan(given("digits"), [axis], encoder, None, width, 2, 1, 0.0, 1e-3, 16, 40, 0)

    assert list(made("samples").widths) == [own]
    assert ("width=" in made("samples").spec(made("samples").cells()[0])) == (own is not None)
    assert made("depth", 9).spec(Cell(9, 3, 40)).count("width=9") == 1
    assert tuple(made("width").widths) == widths


def test_numbers_are_fitted_by_their_variance_and_their_peak_is_one_of_logarithms() -> None:
    rows = given("diabetes")
    matrix = Matrix("mlp", [1, 2, 3], [None], [10], [1], 3, 0.0, 1e-3, 8, 0.0, 0)
    kept: dict[Cell, Kept] = {}
    table = []
    for width, level in ((1, 1e3), (2, 1e6), (3, 1e2)):
        point = Point(3)
        kept[Cell(width, None, 10)] = {1: point}
        # One wild draw: an interval of raw numbers would hold 0, one of logarithms does not.
        point.error.means[:] = level * np.array([1.0, 1.5 + 0.1 * width, 40.0])
        table.append({"width": width, "depth": None, "samples": 10, "epoch": 1, "train error": level / 3})
        table[-1] |= dict.fromkeys(("test error", "test error low", "test error high", "early stopping"), level)
    assert level / 3 < 0.01 * rows.labels.values[rows.train].var() < 1e3 / 3  # 1 % of the numbers' variance
    found = along("width", matrix, kept, table, rows)
    assert found.threshold == 3
    assert not isinstance(found.peak, str)
    assert found.peak.found
    assert math.exp(found.peak.height) == pytest.approx(1e3, rel=0.1)
    said = words(found, matrix, rows)
    assert "fitted to 1% of their variance from width 3 on" in said
    assert "times both sides" in said


def test_words_tell_of_heavy_tails_negative_estimates_and_draws_that_overlap() -> None:
    columns: dict[str, list[Any]] = {
        "width": [1, 2, 1000], "test error": [0.3, 0.2, 0.1], "test error low": [0.1] * 3, "test error high": [0.3] * 3,
        "test loss": [1.0, 90.0, 1.0], "early stopping": [0.3, 0.2, 0.1], "squared bias": [0.1, -0.02, -0.03],
        "squared variance": [0.1] * 3, "cross-entropy bias": [0.1] * 3, "cross-entropy variance": [0.1] * 3,
        "cross-entropy warning": [None, "one of 5 models makes up 80 % of the loss: read the medians", None],
        "cross-entropy bias median": [0.1] * 3, "cross-entropy variance median": [0.2] * 3,
        "cross-entropy loss median": [0.3] * 3,
    }  # fmt: skip
    table = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    rng = np.random.default_rng(0)
    tested = peak(np.arange(3.0), np.array([0.3, 0.2, 0.1]) + 0.01 * rng.random((5, 3)))
    rows = given("digits")
    matrix = Matrix("mlp", [1, 2, 1000], [None], [50, 600], [1], 5, 0.1, 1e-3, 8, 0.0, 0)
    said = words(Curve("width", "width", table, None, tested), matrix, rows)
    assert "Careful with the cross-entropy at width 2, whose tails are heavy: at 2 one of 5 models" in said
    assert "(of rows: bias 0.1, variance 0.2; of models' losses 0.3)" in said
    assert "below 0, as is the bias of the squared loss at width 2, 1,000: there it is as good as 0" in said
    share = f"any two share about {600 / len(rows.train):.0%} of their 600 rows"
    assert "p is over draws, for these test rows. But draws overlap: " + share in said
    assert f"p, the intervals and the variance are too small; --limit {len(rows.train) // 5} keeps them apart" in said
    apart = Matrix("mlp", [1, 2, 1000], [None], [50], [1], 5, 0.1, 1e-3, 8, 0.0, 0)
    said = words(Curve("width", "width", [{**r, "squared bias": 0.1} for r in table], None, "few"), apart, rows)
    assert "p is over" not in said
    assert "overlap" not in said
    assert "below 0" not in said


def test_medians_and_warnings_are_columns() -> None:
    found = double_descent("diabetes", values="2,4", draws=3, epochs=2, limit=50)
    last = found.rows[-1]
    assert {f"squared {k}" for k in ("bias median", "variance median", "loss median", "warning")} <= set(last)
    drawn = str(found.charts["width-error"].to_dict())
    assert "test, stopped early" in drawn
    assert "training (from 0.1% of variance)" in drawn


def test_random_features_have_their_peak_where_all_rows_are_fitted() -> None:
    found = double_descent(encoder="random-features", values="100", label_noise=0.2, draws=4, limit=40)
    assert found.name == "double-descent"
    error = [row["test error"] for row in found.rows]
    assert len(error) == 100
    assert "for these test rows" in found.words or "was not tested" in found.words
    assert max(error[30:50]) > error[-1] + 0.05
    with pytest.raises(UserError, match="--over samples: of random features it is the width"):
        double_descent(encoder="random-features", over="samples")


def test_a_wide_net_fits_noisy_labels_and_says_so() -> None:
    found = double_descent(values="1,128", label_noise=0.3, draws=3, epochs=150, limit=60, lr=1e-2)
    last = at(found, width=128, epoch=150)
    assert last["train error"] <= 0.01
    assert "are fitted to 1% error from width 128 on" in found.words
    assert last["early stopping"] <= last["test error"] + 0.05


def test_noise_redraws_a_share_of_the_labels_over_all_classes() -> None:
    labels = np.arange(20000) % 10
    out = noisy(labels, 10, 0.2, 3)
    # A redrawn label is the old one in a tenth of the cases.
    assert abs((out != labels).mean() - 0.18) < 4 * math.sqrt(0.18 * 0.82 / 20000)
    assert np.array_equal(noisy(labels, 10, 0.0, 3), labels)
    unlabelled = np.where(labels == 3, -1, labels)
    assert (noisy(unlabelled, 10, 0.5, 3)[labels == 3] == -1).all()


def test_draws_share_no_rows_where_there_are_enough() -> None:
    rows = given("digits")
    matrix = Matrix("mlp(norm='none')", [4], [None], [50, 200], [1], 5, 0.0, 1e-3, 32, 0.0, 0)
    orders = [matrix.drawn(rows, d)[0] for d in range(5)]
    assert len(np.unique(np.concatenate(orders))) == 1000
    assert all(np.isin(o, rows.train).all() for o in orders)
    again = matrix.drawn(rows, 2)[0]
    assert np.array_equal(again, orders[2])


def test_early_stopping_is_chosen_on_other_rows_than_it_is_measured_on() -> None:
    kept: Kept = {}
    rng = np.random.default_rng(0)
    for epoch, level in ((1, 1.0), (2, 0.2), (3, 0.6)):
        point = kept[epoch] = Point(2)
        for draw in range(2):
            point.loss.add(draw, level + 0.01 * rng.random(40))
            # The half that the epoch is not chosen on is worse.
            point.error.add(draw, np.where(np.arange(40) % 2, level, level + draw))
    assert stopped(kept) == (2.0, pytest.approx((0.2 + 0.2 + 0.2 + 1.2) / 4))


@pytest.mark.parametrize("binary", [True, False])
def test_intervals_from_sums_are_those_of_all_scores(binary: bool) -> None:
    rng = np.random.default_rng(1)
    skill, hard = rng.normal(size=(5, 1)), rng.normal(size=(1, 301))
    table = np.exp(skill + hard + rng.normal(size=(5, 301)))
    table = (table > 1).astype(float) if binary else table
    own = Scores(5)
    for draw in (3, 0, 4, 1, 2):
        own.add(draw, table[draw])
    whole = crossed(table)
    assert (own.interval.mean, own.interval.low, own.interval.high) == pytest.approx(
        (whole.mean, whole.low, whole.high), rel=1e-12
    )
    assert np.allclose(own.halves, np.stack([table[:, ::2].mean(1), table[:, 1::2].mean(1)], 1))
    with pytest.raises(UserError, match="draw 1 gives outputs that are not finite"):
        Scores(2).add(1, np.array([1.0, np.nan]))


def test_what_is_kept_does_not_grow_with_test_rows_or_draws() -> None:
    rng, point = np.random.default_rng(2), Point(4)
    z, y = rng.normal(size=(4, 5000, 3)), rng.integers(0, 3, 5000)
    whole = Sums(3)
    whole.add(z, range(4))
    for draw in range(4):
        point.read(draw, z[draw], y, 3)
        point.decompose(draw, z[draw], y, 3)
    assert point.parts["squared"].bias == whole.decompose(y, "squared").bias
    assert set(point.parts) == {"squared", "cross-entropy"}
    assert len(pickle.dumps(point)) < 6000


def test_effective_parameters_of_features_in_few_directions_are_few() -> None:
    work = given("digits").work()
    member = Member(given("digits").train[:200], None, "mlp(depth=0)", steps=1)
    (reading,) = train([member], work)
    found = effective(reading.member(0), work, member.rows)
    assert 10 < found < 10 * 64
    assert geometric(1, 100, 5) == [1, 3, 10, 32, 100]
    assert Cell(3, 1, 10)._asdict() == {"width": 3, "depth": 1, "samples": 10}


FEATURES: dict[str, Any] = {"encoder": "random-features", "epochs": 400}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "axis": ({"over": "height"}, "--over 'height'"),
    "noise": ({"label_noise": 1.0}, "--label-noise 1.0: wanted a share"),
    "width 0": ({"values": "0,4"}, "--values 0,4: wanted whole numbers of at least 1"),
    "falling": ({"values": "4,2"}, "that rise"),
    "draws": ({"draws": 1}, "--draws 1"),
    "too many samples": ({"over": "samples", "values": "10,100000"}, "100,000 samples were asked for"),
    "encoder": ({"encoder": "convnot"}, "convnot"),
    "depth of a trunk without": ({"encoder": "resnet", "over": "depth", "values": "1"}, "resnet"),
    "width that is the axis": ({"width": 8}, "--width 8: the widths of the axis are --values"),
    "sum of trunks": ({"encoder": "mlp + mlp"}, "wanted one trunk"),
    "features' epochs": ({"encoder": "random-features", "epochs": 9}, "--epochs 9: random features are fitted exactly"),
    "features' width": ({**FEATURES, "width": 9}, "--width 9: random features"),
    "features' rate": ({**FEATURES, "lr": 0.1}, "--lr 0.1: random features"),
    "features' batch": ({**FEATURES, "batch": 9}, "--batch 9: random features"),
    "features' draws": ({**FEATURES, "draws": 2}, "--draws 2: bias, variance and their intervals need at least 3"),
    "size": ({"data": "wine", "size": 14}, "--size 14: wine holds tables"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_asks_are_refused_by_name(name: str) -> None:
    options, words = BAD[name]
    with pytest.raises(UserError, match=words):
        double_descent(**{**SMALL, **options})


def test_a_class_that_a_draw_lacks_is_named(tmp_path: Path) -> None:
    places = np.random.default_rng(0).random((200, 2))
    names = ["rare"] * 6 + ["often", "other"] * 97
    lines = [f"{a:.3f},{b:.3f},{name}" for (a, b), name in zip(places, names, strict=True)]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["x,z,label", *lines]))
    found = double_descent(str(path), label="label", limit=10, draws=4, values="1,2,4", epochs=1)
    assert "draws of 10 rows lack class rare (in" in found.words
    assert "lack class" not in double_descent(limit=100, draws=3, values="1,2,4", epochs=1).words
