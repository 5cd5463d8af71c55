"""WordNet 3.0's noun glosses with their lexicographer class (Miller 1995; Fellbaum 1998)."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from modicum.core.errors import UserError
from modicum.core.spec import part
from modicum.datasets.data import Data
from modicum.modalities._files import tenth

PATH = Path("/usr/share/wordnet/data.noun")
CLASSES = ["Tops", "act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event", "feeling"]
CLASSES += ["food", "group", "location", "motive", "object", "person", "phenomenon", "plant", "possession", "process"]
CLASSES += ["quantity", "relation", "shape", "state", "substance", "time"]
"""Lexicographer files 3 to 28, in their order (lexnames(5WN))."""


def load() -> Data:
    """82,115 glosses of 26 classes; a tenth of the glosses, drawn once by their words, are for testing."""
    if not PATH.exists():
        raise UserError(
            f"wordnet-nouns is not on this machine ({PATH} is missing): run scripts/get-data, or  apt-get install "
            "wordnet-base"
        )
    ids, labels, texts = [], [], []
    for line in PATH.read_text("utf-8").splitlines():
        if line.startswith(" "):  # the licence
            continue
        head, _, gloss = line.partition(" | ")
        offset, file, _ = head.split(" ", 2)
        ids.append(offset)
        labels.append(CLASSES[int(file) - 3])
        texts.append(gloss.strip())
    split = ["test" if test else "train" for test in tenth(texts)]
    table = pa.table({"id": ids, "text": pa.array(texts, pa.large_string()), "label": labels, "split": split})
    kind = part("modality", "text")
    raw = kind.as_raw(table)  # type: ignore[attr-defined]
    return Data(
        "wordnet-nouns", kind, raw, table, {}, "WordNet 3.0 licence", "Debian wordnet-base, wordnet.princeton.edu"
    )
