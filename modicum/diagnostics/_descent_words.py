"""What the curves of `double-descent` show, in words for a newcomer."""

from __future__ import annotations

import math
from typing import Any

from modicum.diagnostics._decompose_words import TITLE
from modicum.diagnostics._descent_curves import FITS, Curve
from modicum.diagnostics._matrix import Matrix
from modicum.diagnostics._rows import Given

KINDS = ("squared", "cross-entropy")


def words(curve: Curve, matrix: Matrix, rows: Given) -> str:
    """The paragraph about an axis."""
    said = [_lowest(curve, matrix, rows), _threshold(curve, rows), _peak(curve, rows)]
    said += [_about_p(curve, matrix, rows), _early(curve, rows), _tails(curve), _negative(curve)]
    return " ".join(filter(None, said))


def _lowest(curve: Curve, matrix: Matrix, rows: Given) -> str:
    best, key = min(curve.rows, key=lambda r: r["test error"]), curve.key
    what = "test error" if rows.classes else "squared test error"
    interval = f"[{best['test error low']:.3g}, {best['test error high']:.3g}]"
    return (
        f"Over {curve.axis}, with {matrix.draws} draws of {matrix.samples[-1]:,} training rows and {matrix.noise:.0%} "
        f"of the labels redrawn at random: {what} is lowest, {best['test error']:.3g} {interval}, at {key} "
        f"{best[key]:,}."
    )


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


def _about_p(curve: Curve, matrix: Matrix, rows: Given) -> str:
    """What p and bands are about, and what draws that overlap do to them."""
    said = "p is over draws, for these test rows." if not isinstance(curve.peak, str) else ""
    if matrix.apart(rows):
        return said
    most, pool = max(matrix.samples), len(rows.train)
    small = "p, the intervals and the variance are" if said else "the intervals and the variance are"
    fits = pool // matrix.draws
    return said + (
        f" But draws overlap: any two share about {most / pool:.0%} of their {most:,} rows (all are from the same "
        f"{pool:,}), so that they differ less than new samples would and {small} too small"
        + (f"; --limit {fits} keeps them apart." if fits > 1 else ".")
    )


def _tails(curve: Curve) -> str:
    """Where few models or rows make up the mean loss, and the medians where it is worst."""
    said = []
    for kind in KINDS:
        bad = [r for r in curve.rows if r.get(f"{kind} warning")]
        if not bad:
            continue
        top = max(bad, key=lambda r: r["test loss"])
        said.append(
            f"Careful with the {TITLE[kind]} at {curve.key} {_places(curve, bad)}, whose tails are heavy: at "
            f"{top[curve.key]:,} {top[f'{kind} warning']} (of rows: bias {top[f'{kind} bias median']:.3g}, variance "
            f"{top[f'{kind} variance median']:.3g}; of models' losses {top[f'{kind} loss median']:.3g})."
        )
    return " ".join(said)


def _negative(curve: Curve) -> str:
    """Where an unbiased estimate is below 0."""
    below = [
        f"{part} of the {TITLE[kind]} at {curve.key} {_places(curve, bad)}"
        for kind in KINDS
        for part in ("bias", "variance")
        if (bad := [r for r in curve.rows if r.get(f"{kind} {part}", 0) < 0])
    ]
    if not below:
        return ""
    return f"An unbiased estimate may be below 0, as is the {', and the '.join(below)}: there it is as good as 0."


def _places(curve: Curve, rows: list[dict[str, Any]]) -> str:
    """The first five places of rows, in words."""
    more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
    return ", ".join(f"{r[curve.key]:,}" for r in rows[:5]) + more
