"""Claim: on molecules with few labels, pre-training then fine-tuning reaches Morgan fingerprints + random forest.

`solubility` (1,282 molecules, its own 257 for testing) and `freesolv` (642, divided by scaffold), 100 labels each.
Pre-training sees the approved drugs of ChEMBL and, of solubility, the training molecules too; never a test molecule,
however it is written. Scratch, probe and lp-ft beside the baseline with the same validation rows and number of trials;
intervals over labelled subsets, seeds and test rows. Run: python bench/molecules.py [--steps 1000] [--labels 100]
"""

from __future__ import annotations

import warnings

import pyarrow as pa
import pyarrow.compute as pc
from _common import Bench
from _few import measure

import modicum
from modicum.core.errors import Warned
from modicum.datasets.data import Data
from modicum.modalities.graphs import Graphs


def unlabelled(data: Data, *names: str) -> Data:
    """The molecules of data sets without their labels, those of a test split left out."""
    parts = []
    for own in (data, *map(modicum.open_data, names)):
        table = own.table
        if "split" in table.column_names:
            table = table.filter(pc.not_equal(table.column("split"), "test"))
        parts.append(table.select(["smiles"]))
    return modicum.open_data(pa.concat_tables(parts, promote_options="permissive"), Graphs)


def main() -> None:
    bench = Bench("molecules", steps=1000, seeds=5, labels=100)
    warnings.simplefilter("ignore", Warned)  # salts among the drugs
    drugs = modicum.open_data("chembl-drugs")
    solubility, freesolv = modicum.open_data("solubility"), modicum.open_data("freesolv")
    test = solubility.take(pc.equal(solubility.table.column("split"), "test").to_numpy().nonzero()[0])
    for data, rows, held in (
        (solubility, unlabelled(drugs, "solubility"), test),
        (freesolv, drugs, freesolv),
    ):
        run = {"test": held, "steps": bench.asked.steps, "batch": 128, "lr": 2e-3}
        measure(bench, data.name, {"labels": bench.asked.labels}, unlabelled=rows, **run)
    bench.finish()


if __name__ == "__main__":
    main()
