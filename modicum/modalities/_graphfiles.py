"""Finding graphs: molecules in tables, .smi and .sdf, node-link graphs in JSON, or what a caller holds in memory."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modicum.core.errors import UserError, Warned, need
from modicum.modalities import _graphmolecules as molecules
from modicum.modalities._files import (
    JSON,
    PARQUET,
    TABLES,
    as_table,
    cache_dir,
    check_encoding,
    opened,
    peek,
    table_kind,
)
from modicum.modalities._graphlinks import FORMS, from_dicts, is_graph, is_pyg, read_json
from modicum.modalities._graphmolecules import ALPHABET, ATOM, BOND, Molecule
from modicum.modalities._graphpack import Features, RawGraphs, Store, keep, kept, offsets
from modicum.modalities._graphpyg import from_data
from modicum.modalities._tableread import bad_rows, like, placed
from modicum.modalities._tableread import scan as scan_table

SMILES = ("smiles", "canonical_smiles", "isomeric_smiles", "smi", "smiles_string", "mol_smiles", "mol", "molecule")
"""What columns of SMILES are called, the likeliest first."""
PLAIN, SDF = (".smi", ".smiles"), (".sdf", ".sd")
FORMAT = 1  # of the cached files: raise it when their content would differ
IN_MEMORY = 2000  # molecules: fewer are parsed faster than they are looked up


def claims(path: Path) -> bool:
    """.smi and .sdf files, JSON of node-link graphs, and tables with a column named SMILES that reads as such."""
    kind = table_kind(path)
    if kind in (*PLAIN, *SDF):
        return path.is_file()
    if kind in JSON and path.is_file() and is_graph(path):
        return True
    if kind not in TABLES and not (path.is_dir() and any(p for e in PARQUET for p in path.rglob(f"*{e}"))):
        return False
    try:
        return smiles_column(peek(path)) is not None
    except UserError:
        return False


def scan(path: Path) -> tuple[RawGraphs, pa.Table]:
    """The graphs at a path, and all that is known of each row."""
    kind = table_kind(path)
    if kind in PLAIN:
        raw = from_table(_plain(path), str(path))
    elif kind in SDF:
        raw = from_table(read_sdf(path), str(path))
    elif kind in JSON and is_graph(path):
        raw = from_dicts(read_json(path), str(path))
        placed(raw.facts, path)
    else:
        table = scan_table(path)
        raw = from_table(table, str(path), bad_rows(table))
    return raw, raw.facts


def as_raw(x: Any) -> RawGraphs:
    """Graphs of a table with a column of SMILES, or of a list of SMILES, dicts, networkx graphs or `Data`."""
    if isinstance(x, RawGraphs):
        return x
    if hasattr(x, "columns"):
        return from_table(as_table(x), f"the {type(x).__name__}")
    items = [x] if _one(x) else list(x) if hasattr(x, "__iter__") and not isinstance(x, str | dict) else []
    if items and all(map(is_pyg, items)):
        raw, written = from_data(items), [getattr(item, "smiles", None) for item in items]
        return raw if not all(isinstance(t, str) for t in written) else _with_smiles(raw, list(map(str, written)))
    if items and all(hasattr(item, "adjacency") for item in items):
        link = need("networkx", "graphs").node_link_data
        items = [link(item, edges="edges") for item in items]
    if items and all(isinstance(item, dict) for item in items):
        if all("nodes" in item for item in items):
            return from_dicts(items, "the list")
        return from_table(as_table(items), "the list")
    if items and all(isinstance(item, str) or item is None for item in items):
        texts = [str(item or "") for item in items]
        return from_table(pa.table({"id": np.arange(len(items)).astype(str), "smiles": texts}), "the list")
    found = f"a {type(x).__name__}" + (f" of {type(items[0]).__name__}" if items else "")
    raise UserError(f"graphs are wanted as {FORMS}; got {found}")


def likely(x: Any) -> bool:
    """Whether rows in memory are rather graphs than anything else: what holds nodes and edges, or reads as SMILES."""
    if isinstance(x, RawGraphs) or _one(x):
        return True
    if hasattr(x, "columns"):
        try:
            return smiles_column(as_table(x.iloc[:100] if hasattr(x, "iloc") else x.slice(0, 100))) is not None
        except (UserError, AttributeError, TypeError):
            return False
    if not isinstance(x, list | tuple) or not x:
        return False
    some = list(x[:100])
    if all(map(_one, some)):
        return True
    if all(isinstance(item, dict) for item in some):
        return likely(pa.table({k: [str(i.get(k) or "") for i in some] for k in some[0]}))
    return all(isinstance(item, str) for item in some) and _reads(some)


def _one(x: Any) -> bool:
    """Whether x is one graph: torch-geometric's, networkx's or a dict of nodes and links."""
    return is_pyg(x) or hasattr(x, "adjacency") or (isinstance(x, dict) and "nodes" in x)


def _with_smiles(raw: RawGraphs, texts: list[str]) -> RawGraphs:
    """The molecules of the texts, with the facts of the same rows."""
    facts = raw.facts.drop_columns([c for c in ("smiles", "scaffold") if c in raw.facts.column_names])
    return from_table(facts.append_column("smiles", pa.array(texts)), "the list")


def smiles_column(table: pa.Table) -> str | None:
    """The column that holds SMILES: named so, and at least half of its first rows read as such."""
    lower = {name.lower().replace(" ", "_"): name for name in table.column_names}
    for name in SMILES:
        if name in lower:
            kind = table.schema.field(lower[name]).type
            if pa.types.is_dictionary(kind):
                kind = kind.value_type
            if str(kind) in ("string", "large_string", "string_view"):
                some = [str(v) for v in table.column(lower[name]).slice(0, 100).to_pylist() if v]
                if _reads(some):
                    return lower[name]
    return None


def _reads(texts: Sequence[str]) -> bool:
    """Whether at least half of the first texts are SMILES."""
    some = [text.strip() for text in texts[:100] if text and text.strip()]
    fine = [text for text in some if ALPHABET.fullmatch(text)]
    if not some or 2 * len(fine) < len(some):
        return False
    try:
        return 2 * sum(not isinstance(molecules.parse(text), str) for text in fine) >= len(some)
    except UserError:  # without RDKit the name and the letters decide; who reads the rows is told what to install
        return True


def from_table(table: pa.Table, where: str, left_out: Sequence[tuple[int, str, str]] = ()) -> RawGraphs:
    """The molecules of a table's column of SMILES, with all columns and the Bemis-Murcko scaffold as facts."""
    name = smiles_column(table)
    named = next((c for c in table.column_names if c.lower() in SMILES), None)
    if name is None and named is None:
        raise UserError(
            f"{where}: no column of SMILES; its columns are {', '.join(table.column_names)}. Name the one 'smiles'"
        )
    texts = [None if v is None else str(v) for v in table.column(name or named).to_pylist()]
    molecules.chem()
    made = _cached(texts)
    if "scaffold" not in table.column_names:
        table = like(table.append_column("scaffold", pa.array(made[1], pa.string())), table)
    store, _, hashes, bad, several = made
    every = np.arange(len(texts))
    return RawGraphs(store, table, hashes, every, None, bad, left_out, several, True)


Parsed = tuple[Store, list[str], np.ndarray, dict[int, str], int]
"""Molecules, their scaffolds and hashes, why rows are none, and how many have several components."""


def _cached(texts: Sequence[str | None]) -> Parsed:
    """The molecules of SMILES, from the cache where many were parsed before."""
    if len(texts) < IN_MEMORY:
        return _unpacked(*_parsed(texts))
    version = need("rdkit", "graphs").__version__
    key = hashlib.blake2b("\n".join([version, str(FORMAT), *(t or "" for t in texts)]).encode(), digest_size=16)
    target = cache_dir() / "graphs" / f"{key.hexdigest()}.safetensors"
    found = kept(target)
    if found is None:
        keep(target, *_parsed(texts))
        found = kept(target)
        assert found is not None, target
    return _unpacked(*found)


def _parsed(texts: Sequence[str | None]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Flat arrays of the molecules, and facts in JSON."""
    made = [molecules.parse(text) for text in texts]
    bad = {i: m for i, m in enumerate(made) if isinstance(m, str)}
    good = [_NONE if isinstance(m, str) else m for m in made]
    hashes = b"".join(hashlib.blake2b(m.smiles.encode(), digest_size=8).digest() for m in good)
    arrays = {
        "codes": np.concatenate([_NONE.atoms, *(m.atoms for m in good)]),
        "ends": np.concatenate([_NONE.ends, *(m.ends for m in good)]),
        "bonds": np.concatenate([_NONE.bonds, *(m.bonds for m in good)]),
        "starts": offsets([len(m.atoms) for m in good]),
        "edge_starts": offsets([len(m.ends) for m in good]),
        "hashes": np.frombuffer(hashes, "<u8"),
    }
    facts = {"scaffolds": [m.scaffold for m in good], "bad": bad, "several": sum(m.parts > 1 for m in good)}
    return arrays, facts


_NONE = Molecule(
    np.empty((0, len(ATOM)), np.uint8), np.empty((0, 2), np.int32), np.empty((0, len(BOND)), np.uint8), "none", "", 0
)


def _unpacked(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> Parsed:
    nodes, edges = (_unnamed(arrays[key]) for key in ("codes", "bonds"))
    store = Store(arrays["starts"], arrays["edge_starts"], arrays["ends"], nodes, edges)
    bad = {int(row): why for row, why in facts["bad"].items()}
    return store, facts["scaffolds"], arrays["hashes"], bad, facts["several"]


def _unnamed(codes: np.ndarray) -> Features:
    return Features(codes, np.empty((len(codes), 0), np.float32))


def _plain(path: Path) -> pa.Table:
    """A .smi file: a SMILES a line and, after white space, its name; a first line that says so is passed over."""
    check_encoding(path)
    try:
        with opened(path) as file:
            every = enumerate(file.read().decode("utf-8-sig").splitlines(), 1)
            lines = [(number, line.split(None, 1)) for number, line in every if line.strip()]
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if lines and lines[0][1][0].lower() in SMILES:
        lines = lines[1:]
    if not lines:
        raise UserError(f"{path}: the file holds no SMILES")
    ids = [line[1].strip() if len(line) > 1 else str(k) for k, (_, line) in enumerate(lines)]
    _warn_of_twins(ids, str(path))
    return placed(pa.table({"id": ids, "smiles": [line[0] for _, line in lines]}), path, [n for n, _ in lines])


def read_sdf(path: Path) -> pa.Table:
    """The records of an .sdf as a table: `id` (the title), `smiles`, and their properties as columns.

    Only what a SMILES says is kept: no coordinates. Properties that are numbers in all records become numbers.
    """
    lib, rows = molecules.chem(), []
    try:
        with opened(path) as file, need("rdkit.rdBase", "graphs").BlockLogs():
            for k, mol in enumerate(lib.ForwardSDMolSupplier(file)):
                if mol is None:
                    rows.append({"id": str(k), "smiles": "(a record that cannot be read)"})
                    continue
                own = {name: str(mol.GetProp(name)) for name in mol.GetPropNames() if name.lower() not in SMILES}
                title = mol.GetProp("_Name").strip() or str(k)
                rows.append(
                    {"id": title, **{n: v for n, v in own.items() if n != "id"}, "smiles": lib.MolToSmiles(mol)}
                )
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if not rows:
        raise UserError(f"{path}: holds no molecule")
    _warn_of_twins([str(row["id"]) for row in rows], str(path))
    names = list(dict.fromkeys(name for row in rows for name in row))
    return placed(pa.table({name: _typed([row.get(name) for row in rows]) for name in names}), path)


def _typed(values: Iterable[str | None]) -> pa.Array:
    """Texts as whole numbers or numbers, where all of them are such."""
    column = pa.array([v if v is None or v.strip() else None for v in values], pa.string())
    for kind in (pa.int64(), pa.float64()):
        try:
            return pc.cast(column, kind)
        except pa.ArrowInvalid:
            continue
    return column


def _warn_of_twins(ids: Sequence[str], where: str) -> None:
    twice = len(ids) - len(set(ids))
    if twice:
        warnings.warn(f"{where}: {twice:,} row(s) have an id that an earlier row has", Warned, stacklevel=3)
