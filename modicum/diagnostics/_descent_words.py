"""What the curves of `double-descent` show, in words for a newcomer."""

from __future__ import annotations

import math

from modicum.diagnostics._descent_curves import FITS, Curve
from modicum.diagnostics._matrix import Matrix
from modicum.diagnostics._rows import Given


def words(curve: Curve, matrix: Matrix, rows: Given) -> str:
    """The paragraph about an axis."""
    said = [_lowest(curve, matrix, rows), _threshold(curve, rows), _peak(curve, rows), _early(curve, rows)]
    return " ".join(filter(None, said))


def _lowest(curve: Curve, matrix: Matrix, rows: Given) -> str:
    best, key = min(curve.rows, key=lambda r: r["test error"]), curve.key
    what = "test error" if rows.classes else "squared test error"
    interval = f"[{best['test error low']:.3g}, {best['test error high']:.3g}]"
    said = (
        f"Over {curve.axis}, with {matrix.draws} draws of {matrix.samples[-1]:,} training rows and {matrix.noise:.0%} "
        f"of the labels redrawn at random: {what} is lowest, {best['test error']:.3g} {interval}, at {key} "
        f"{best[key]:,}."
    )
    if not matrix.apart(rows):
        said += " The draws share rows, so that what varies between them is understated."
    return said


def _threshold(curve: Curve, rows: Given) -> str:
    if curve.threshold is None:
        return "No model fits the training labels, so there is no interpolation threshold in this range."
    if curve.axis == "samples":
        return f"Up to {curve.threshold:,} samples the training labels, noise included, are fitted."
    to = f"{FITS:.0%} error" if rows.classes else f"{FITS:.0%} of their variance"
    return f"The training labels, noise included, are fitted to {to} from {curve.key} {curve.threshold:,} on."


def _peak(curve: Curve, rows: Given) -> str:
    tested, key = curve.peak, curve.key
    if isinstance(tested, str):
        return f"Whether there is a peak was not tested: {tested}."
    if tested.found:
        inside = [r for r in curve.rows if tested.before < r[key] < tested.after]
        top = max(inside, key=lambda r: r["test error"])
        size, low, high = (v if rows.classes else math.exp(v) for v in (tested.height, tested.low, tested.high))
        return (
            f"There is a peak, highest at {key} {top[key]:,} (p = {tested.p:.2g}, {size:.3g} [{low:.3g}, {high:.3g}] "
            f"{'above' if rows.classes else 'times'} both sides): error falls, rises, and falls again, which is "
            "double descent. Near it models are worse than smaller and than larger ones: go past it, stop early, or "
            "regularise."
        )
    worst, most = max(curve.rows, key=lambda r: r["test error"]), max(tested.high, 0)
    size_ = f"higher than {most:.3g}" if rows.classes else f"of more than {math.exp(most):.3g} times both sides"
    return (
        f"No peak is shown (p = {tested.p:.2f}; one {size_} is ruled out): the curve may just fall, or fall and rise "
        f"once. Its highest point, at {key} {worst[key]:,}, is {worst['test error']:.3g}."
    )


def _early(curve: Curve, rows: Given) -> str:
    if curve.axis == "epochs":
        return ""
    best = min(curve.rows, key=lambda r: r["early stopping"])
    what = "error" if rows.classes else "squared error"
    return f"With early stopping the lowest {what} is {best['early stopping']:.3g}, at {curve.key} {best[curve.key]:,}."
