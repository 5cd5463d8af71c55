"""Quotations and jokes of the BSD program fortune, with the file that each comes from."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa

from modicum.core.errors import UserError
from modicum.core.spec import part
from modicum.datasets.data import Data
from modicum.modalities._files import tenth

FOLDER = Path("/usr/share/games/fortunes")
OTHERS = ("fortunes", "literature", "riddles")
"""Files of Debian's fortunes-min, which lie in the same folder."""


def load() -> Data:
    """14,397 texts from 40 files; a tenth of the texts, drawn once by their words, are for testing."""
    files = sorted(p.with_suffix("") for p in FOLDER.glob("*.dat") if p.stem not in OTHERS)
    if not files:
        raise UserError(
            f"fortunes is not on this machine ({FOLDER} holds none): run scripts/get-data, or  apt-get install fortunes"
        )
    ids, labels, texts = [], [], []
    for path in files:
        parts = re.split(r"^%\n", path.read_text("utf-8"), flags=re.MULTILINE)
        found = [text.strip() for text in parts if text.strip()]
        ids += [f"{path.name}/{k}" for k in range(len(found))]
        labels += [path.name] * len(found)
        texts += found
    split = ["test" if test else "train" for test in tenth(texts)]
    table = pa.table({"id": ids, "text": pa.array(texts, pa.large_string()), "label": labels, "split": split})
    kind = part("modality", "text")
    raw = kind.as_raw(table)  # type: ignore[attr-defined]
    licence = "collected under the BSD licence; see /usr/share/doc/fortunes/copyright"
    return Data("fortunes", kind, raw, table, {}, licence, "Debian fortunes")
