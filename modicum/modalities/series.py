"""Series: patches of time steps as tokens; missing points are known as such; values are predicted as distributions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from modicum.core.errors import UserError, Warned, unknown
from modicum.core.types import Batch, Input, Packed, Progress
from modicum.modalities import _seriesfiles
from modicum.modalities._seriesdraw import chart, data_uri
from modicum.modalities._seriesforecast import begun, named, tell_far
from modicum.modalities._seriesraw import RawSeries
from modicum.modalities._seriesstats import levels, statistics
from modicum.modalities._seriestokens import Levels, Segments
from modicum.modalities._seriesviews import Bend, filled, stretched

TOKENS = 64
"""Patches that the longest training series is cut into, about."""
VIEWS: dict[str, Any] = {"crop": (0.8, 1.0), "warp": 0.1, "scale": 0.1, "jitter": 0.2, "drop": 0.0, "mask": 0.0}


class Readings:
    """Series as a Source of {"values" (b, c, t·patch) scaled, "length", "mask" (b, t), "shift" and "scale" (b, c)}.

    What was given is values · scale + shift. NaN is a missing value; what is after a series' last patch is 0.
    """

    def __init__(self, raw: RawSeries, keep: np.ndarray, series: Series) -> None:
        self.raw, self.keep, self.series, self.size = raw, keep, series, len(keep)
        self.steps = np.minimum(raw.survey.sizes[keep], series.length)
        self.lengths = -(-self.steps // series.patch)

    def rows(self, index: np.ndarray) -> Batch:
        own, patch = self.series, self.series.patch
        steps, count = self.steps[index], self.lengths[index]
        most = int(count.max(initial=1)) * patch
        x = self.raw.read(self.keep[index], most)
        x = np.pad(x, ((0, 0), (0, 0), (0, most - x.shape[2])), constant_values=np.nan)
        place = np.arange(most)
        x[np.broadcast_to((place >= steps[:, None])[:, None], x.shape)] = np.nan
        x, shift, scale = own.scaled(x)
        x[np.broadcast_to((place >= patch * count[:, None])[:, None], x.shape)] = 0
        return {
            "values": torch.from_numpy(x.astype(np.float32)),
            "length": torch.from_numpy(steps),
            "mask": torch.from_numpy(np.arange(most // patch) < count[:, None]),
            "shift": torch.from_numpy(shift),
            "scale": torch.from_numpy(scale),
        }


@final
class Series(Input):
    """Series of at most `length` steps as patches of `patch` steps, with vectors of `width`.

    `mean` and `std` are the channels' in the training rows, or with `scaling="sample"` every series' own (then () and
    ()). `bins` are the scaled values that predictions are distributions over. `names` are the columns of a long table
    that are the channels. Longer series are cut, with a warning.
    """

    modality = "series"
    default_trunk = "temporal"
    default_objective = "simclr"
    baselines = ("MiniRocket + ridge", "1-NN DTW", "logistic regression")

    def __init__(
        self,
        channels: int,
        length: int,
        patch: int = 1,
        mean: tuple[float, ...] = (),
        std: tuple[float, ...] = (),
        bins: tuple[float, ...] = (-2.0, -1.0, 0.0, 1.0, 2.0),
        scaling: str = "global",
        width: int = 64,
        names: tuple[str, ...] = (),
    ) -> None:
        if scaling not in ("global", "sample"):
            raise unknown("scaling of series", scaling, ["global", "sample"])
        if min(channels, patch, width) < 1 or length < 2:
            raise UserError(
                f"series wants channels, patch and width of at least 1 and a length of at least 2; got {channels=}, "
                f"{patch=}, {width=}, {length=}"
            )
        wanted = channels if scaling == "global" else 0
        if len(mean) != wanted or len(std) != wanted or min(std, default=1.0) <= 0:
            raise UserError(f"series: {scaling} scaling wants {wanted} means and stds above 0; got {mean} and {std}")
        if len(bins) < 2 or any(a >= b for a, b in pairwise(bins)):
            raise UserError(f"series wants at least 2 bins in ascending order; got {bins}")
        self.channels, self.length, self.patch, self.mean, self.std = channels, length, patch, mean, std
        self.bins, self.scaling, self.width, self.names = bins, scaling, width, names

    @property
    def tokens(self) -> int:
        """Patches of the longest series."""
        return math.ceil(self.length / self.patch)

    def columns(self) -> tuple[str, ...]:
        return self.names

    def scaled(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Series (b, c, t) with NaN scaled, and the shift and scale (b, c): of all the same, or each one's own."""
        if self.scaling == "global":
            shift, scale = (np.tile(np.array(own), (len(x), 1)) for own in (self.mean, self.std))
        else:
            known = ~np.isnan(x)
            count = known.sum(2).clip(1)
            shift = np.where(known, x, 0).sum(2) / count
            spread = np.sqrt((np.where(known, x - shift[..., None], 0) ** 2).sum(2) / count)
            scale = np.where(spread > 1e-9 * np.abs(shift).clip(1e-3), spread, 1.0)
        return (x - shift[..., None]) / scale[..., None], shift, scale

    def embed(self) -> Segments:
        return Segments(self.channels, self.length, self.patch, self.width)

    def unembed(self) -> Levels:
        return Levels(self.channels, self.length, self.patch, self.width, self.bins)

    def views(self, **options: Any) -> Bend:
        """`crop`, `warp`, `scale`, `jitter`, `drop`, `mask`: how much of each, 0 for none (crop: 1)."""
        for key in options:
            if key not in VIEWS:
                raise unknown("series view", key, VIEWS)
        return Bend(self.patch, **{**VIEWS, **options})

    @classmethod
    def claims(cls, path: Path) -> bool:
        return _seriesfiles.claims(path)

    @classmethod
    def likely(cls, x: Any) -> bool:
        return _seriesfiles.likely(x)

    @classmethod
    def scan(cls, path: Path) -> tuple[RawSeries, pa.Table]:
        raw = _seriesfiles.scan(path)
        return raw, raw.facts

    @classmethod
    def as_raw(cls, x: Any) -> RawSeries:
        return _seriesfiles.as_raw(x)

    @classmethod
    def infer(
        cls,
        raw: RawSeries,
        index: np.ndarray,
        *,
        progress: Progress | None = None,
        exclude: Sequence[str] = (),
        size: int | None = None,
        scaling: str = "global",
        patch: int | None = None,
        width: int = 64,
        **_: Any,
    ) -> Series:
        """Channels, scaling and length of the rows `index`; `size`: another length than that of their longest."""
        names = tuple(name for name in raw.names if name not in exclude)
        if raw.names and not names:
            raise UserError(f"no column of numbers is left as a channel besides {', '.join(exclude)}")
        raw = raw.picked(names, raw.channels)
        good = np.setdiff1d(index, [row for row, _, _ in raw.bad()])
        if not len(good):
            raise UserError("none of the training rows is a series that can be used")
        length = size or int(raw.survey.sizes[good].max())
        step = patch or max(1, round(length / TOKENS))
        mean, std = statistics(raw, good, length) if scaling == "global" else ((), ())
        plain = cls(raw.channels, length, step, mean, std, scaling=scaling, width=width, names=names)
        bins = levels(raw, good, length, step, lambda x: plain.scaled(x)[0])
        return cls(raw.channels, length, step, mean, std, bins, scaling, width, names)

    def pack(self, raw: RawSeries, *, skip_bad: bool = False, progress: Progress | None = None) -> Packed:
        raw = raw.picked(self.names, self.channels)
        bad = raw.bad()
        if bad and not skip_bad:
            shown = "\n  ".join(f"{place}: {why}" for _, place, why in bad[:10])
            more = f"\n  and {len(bad) - 10:,} more" if len(bad) > 10 else ""
            raise UserError(
                f"{len(bad):,} of {len(raw):,} series or rows cannot be used:\n  {shown}{more}\n"
                "use --skip-bad to go on without them"
            )
        keep = np.setdiff1d(np.arange(len(raw)), [row for row, _, _ in bad])
        if not len(keep):
            raise UserError(f"none of {len(raw):,} series can be used")
        look = raw.survey
        if cut := int((look.sizes[keep] > self.length).sum()):
            words = f"{cut:,} of {len(keep):,} series have more than {self.length} steps and are cut to that"
            warnings.warn(words, Warned, stacklevel=2)
        return Packed(Readings(raw, keep, self), keep, bad, look.hashes[keep])

    def prompt(self, text: str | None, n: int, length: int | None = None) -> Batch | None:
        """The series in a file, each `n` times, as `_seriesforecast.begun` takes them: what comes after is forecast."""
        if text is None:
            return None
        path = Path(text)
        if not path.exists() or not self.claims(path):
            raise UserError(f"--prompt {text!r}: wanted a file of series to go on with, as pretrain reads them")
        raw = self.scan(path)[0]
        if raw.bad():
            self.pack(raw)  # names them
        part, batch = begun(raw, self.patch, self.tokens, length, text)
        source, rows = self.pack(part).source, np.repeat(np.arange(len(part)), n)
        batch = source.rows(rows) | {key: value[rows] for key, value in batch.items()}
        if self.scaling == "global":
            tell_far(batch["values"], self.bins, self.mean, self.std, text)
        return batch

    def given(self, batch: Batch) -> list[np.ndarray]:
        """Every series (channels, steps) of a batch in the units of the data, NaN where missing."""
        x = batch["values"].double()
        if "scale" in batch:
            x = x * batch["scale"].unsqueeze(2) + batch["shift"].unsqueeze(2)
        elif self.scaling == "global":
            x = x * torch.tensor(self.std, dtype=x.dtype).view(1, -1, 1) + torch.tensor(self.mean).view(1, -1, 1)
        sizes = batch["length"].tolist() if "length" in batch else [self.length] * len(x)
        return [row[:, :size] for row, size in zip(x.numpy(), sizes, strict=True)]

    def table(self, batch: Batch, prompt: str | None = None) -> pa.Table:
        """The series as a long table: id, time, and a column of values a channel; it can be read again.

        Ids and times are those of the `prompt`, where there is one, and there `draw` counts those of one id.
        """
        rows = self.given(batch)
        names = self.names or [f"channel{k}" if self.channels > 1 else "value" for k in range(self.channels)]
        steps = [row.shape[1] for row in rows]
        values = np.concatenate(rows, 1)
        columns: dict[str, Any] = {"id": np.repeat(np.arange(len(rows)), steps).astype(str)}
        columns["time"] = np.concatenate([np.arange(n) for n in steps])
        if prompt is not None and "row" in batch:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Warned)  # they were shown when it was read to go on from
                columns = named(self.scan(Path(prompt))[0], batch, steps)
        return pa.table(columns | {name: values[k] for k, name in enumerate(names)})

    def flat(self, batch: Batch) -> np.ndarray:
        """Every channel's values after the other, gaps filled linearly, resampled to `length` steps."""
        x = filled(batch["values"], batch["length"])
        return stretched(x, batch["length"], self.length).flatten(1).float().numpy()

    def note(self) -> str:
        scaled = "each scaled by its own" if self.scaling == "sample" else "scaled by the training rows'"
        what = f"series of {self.channels} channel(s), at most {self.length} steps, {scaled} mean and deviation"
        return f"{what}; {self.tokens} patches of {self.patch} step(s)" + (
            f": {', '.join(self.names)}" if self.names else ""
        )

    def beside(self, before: Batch, after: Batch) -> list[Image.Image]:
        """Charts of every series with its reconstruction over it."""
        pairs = zip(self.given(before), self.given(after), strict=True)
        return [chart(a, (384, 96 * min(4, self.channels)), b[:, : a.shape[1]]) for a, b in pairs]

    def show(self, batch: Batch) -> list[dict[str, str]]:
        return [{"thumb": data_uri(chart(row))} for row in self.given({k: v.cpu() for k, v in batch.items()})]
