"""Claim: a table, or with --text a corpus, of 4 GB of Parquet pre-trains with less than 1 GB of memory beside files'.

A subprocess runs `modicum.pretrain` on files made in a temporary folder (deleted afterwards), the whole verb: scan,
statistics, packing, training steps, saving, report. RssAnon of /proc is sampled: pages of the memory-mapped files are
the kernel's to take back, and shown beside it.
Run: python bench/streaming.py [--mb 4000] [--steps 200] [--text 1]  (about three times as much disk is needed)
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import _common
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from memory import peaks

CODE = """
import sys, modicum
modicum.pretrain(sys.argv[1], out=sys.argv[2], batch=int(sys.argv[3]), steps=int(sys.argv[4]), device='cpu')
"""
PIECE = 200_000


def piece(rng: np.random.Generator, rows: int) -> pa.Table:
    """Rows of 40 numbers, 8 categories with blanks, and a date."""
    columns: dict[str, pa.Array] = {f"x{k}": pa.array(rng.normal(size=rows)) for k in range(40)}
    words = pa.array([f"category {k}" for k in range(50)])
    for k in range(8):
        blank = rng.random(rows) < 0.05
        columns[f"c{k}"] = words.take(pa.array(rng.integers(0, 50, rows), mask=blank))
    columns["at"] = pa.array(rng.integers(10**9, 2 * 10**9, rows), pa.timestamp("s"))
    return pa.table(columns)


def sentences(rng: np.random.Generator, rows: int) -> pa.Table:
    """Rows of 40 words drawn from 5,000 by Zipf's law, in a column `text`."""
    words = np.array(["".join(rng.choice(list("abcdefghijklmnoprstu"), rng.integers(2, 10))) for _ in range(5000)])
    drawn = words[np.minimum(rng.zipf(1.3, (rows, 40)) - 1, 4999)]
    return pa.table({"text": [" ".join(row) for row in drawn]})


def write(folder: Path, megabytes: int, seed: int, text: bool) -> tuple[int, float]:
    """Parquet files of random rows until there are so many MB; (rows, MB)."""
    folder.mkdir()
    rng, rows, size, k = np.random.default_rng(seed), 0, 0.0, 0
    while size < megabytes:
        table = sentences(rng, PIECE // 10) if text else piece(rng, PIECE)
        # Made words shrink to two fifths: as they are, a GB of file is a GB of text.
        packed = {"compression": "none", "use_dictionary": False} if text else {}
        pq.write_table(table, folder / f"{k:05d}.parquet", row_group_size=PIECE // 4, **packed)
        rows, size, k = rows + table.num_rows, size + (folder / f"{k:05d}.parquet").stat().st_size / 1e6, k + 1
    return rows, size


def main() -> None:
    bench = _common.Bench("streaming", mb=4000, steps=200, text=0)
    if not Path("/proc/self/status").exists():
        sys.exit("bench/streaming.py reads /proc: it needs Linux")
    with tempfile.TemporaryDirectory(prefix="modicum-bench-") as folder:
        data = Path(folder) / "data"
        rows, size = write(data, bench.asked.mb, bench.asked.seed, bool(bench.asked.text))
        print(f"   {rows:,} rows, {size:,.0f} MB of Parquet")
        env = {**os.environ, "MODICUM_CACHE": f"{folder}/cache", "OMP_NUM_THREADS": str(bench.asked.threads)}
        command = [sys.executable, "-c", CODE, str(data)]
        # The activations of a transformer on 256 texts are about 1 GB, whatever the corpus.
        asked = [str(16 if bench.asked.text else 256), str(bench.asked.steps)]
        for what in ("first", "from the cache"):
            peak, at, took = peaks([*command, f"{folder}/{what[:5]}", *asked], env, folder)
            print(f"{what:15} peak RssAnon {peak['RssAnon']:7,.0f} MB after {at:.0f} of {took:.0f} s, "
                  f"peak RssFile {peak['RssFile']:7,.0f} MB")  # fmt: skip
            bench.row(f"peak RssAnon, {what}", peak["RssAnon"], "MB", 1000 / peak["RssAnon"])
            bench.row(f"seconds, {what}", took, "s")
            _common.verdict(f"peak anonymous memory, GB ({what})", peak["RssAnon"] / 1e3, 1, most=True)
    bench.row("Parquet", size, "MB")
    bench.finish()


if __name__ == "__main__":
    main()
