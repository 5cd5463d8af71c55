"""`modicum generate`: new rows from a generative run."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from modicum.core.atomic import atomic_path
from modicum.core.errors import UserError
from modicum.model import load
from modicum.training.run import Run, saving
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
    Parquet table with -o, and returns it: a column `text` or `image` (PNG; -o NAME.png writes all images as one), the
    columns of a table, or of series a long table (id, time and a column a channel; of a forecast the ids and times of
    the prompt, and `draw` where each is forecast more than once).
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
    if path is not None and path.suffix.lower() == ".png":
        sheet = getattr(model.input, "sheet", None)
        if sheet is None:
            raise UserError(f"{path}: {model.input.modality} are no pictures; write a table, such as -o rows.parquet")
        say(f"{table.num_rows:,} images -> {path}")
        with saving(path), atomic_path(path) as temporary:
            sheet(made).save(temporary, "PNG")
    elif path is not None:
        say(f"{table.num_rows:,} rows -> {path}")
        write(table, path)
    return table
