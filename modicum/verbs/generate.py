"""`modicum generate`: new rows from a generative run."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from modicum.model import load
from modicum.training.run import Run
from modicum.verbs._common import at_least, check_seed, say
from modicum.verbs.use import place, write


def generate(
    run: str | Path | Run,
    *,
    n: int = 8,
    prompt: str | None = None,
    length: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    output: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    force: bool = False,
) -> pa.Table:
    """Draw N new rows from a generative run, such as a pre-training with --objective next_token.

    Texts may begin with a prompt; for series it is a file of series, of which each is forecast N times. Writes a
    Parquet table with -o, and returns it: a column `text`, or a long table (id, time and a column a channel; of a
    forecast the ids and times of the prompt, and `draw` where each is forecast more than once).
    """
    at_least(1, n=n, length=length)
    at_least(0, top_k=top_k)
    check_seed(seed)
    path = None if output is None else place(output, force)
    model = load(run, device=device)
    made = model.sample(
        n, prompt=prompt, length=length, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
    )  # fmt: skip
    table = model.input.table(made, prompt)
    if path is not None:
        say(f"{table.num_rows:,} rows -> {path}")
        write(table, path)
    return table
