"""Molecules: features equal to torch-geometric's, back to molecules, scaffolds, bad rows, files, the verbs."""

from __future__ import annotations

import base64
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import FEW

import modicum
from modicum.core.errors import UserError, Warned, need
from modicum.core.spec import part
from modicum.datasets.data import Data, open_data
from modicum.modalities import _graphfiles
from modicum.modalities import _graphmolecules as molecules
from modicum.modalities.graphs import Graphs
from modicum.nn.encoder import tower
from modicum.report.page import PICTURE

Chem = need("rdkit.Chem", "graphs")
TINY: dict[str, Any] = {"encoder": "graph(width=8, depth=1)", "steps": 3, "batch": 8, "device": "cpu"}


def packed(texts: list[str]) -> tuple[Graphs, dict[str, torch.Tensor]]:
    raw = Graphs.as_raw(texts)
    made = Graphs.infer(raw, np.arange(len(raw)))
    return made, made.pack(raw).source.rows(np.arange(len(raw)))


@pytest.mark.parametrize(("name", "size"), [("freesolv", 642), ("solubility", 1282), ("chembl-drugs", 2628)])
@pytest.mark.filterwarnings("ignore:.* have several components")
def test_features_equal_torch_geometrics_and_lead_back_to_the_molecule(name: str, size: int) -> None:
    data = open_data(name)
    assert len(data) == size
    made = data.modality.infer(data.raw, np.arange(size))
    source = made.pack(data.raw).source
    from_smiles = need("torch_geometric.utils", "graphs").from_smiles
    for row in range(0, size, 5):  # all 4,552 were compared once
        text = str(data.table.column("smiles")[row])
        own = {key: value[0] for key, value in source.rows(np.array([row])).items()}
        true = from_smiles(text)
        assert own["mask"].all()
        assert torch.equal(own["codes"], true.x)
        assert torch.equal(own["edges"].T, true.edge_index)
        assert torch.equal(own["edge_codes"], true.edge_attr)
    rows = np.arange(0, size, 20)
    mols = [Chem.MolFromSmiles(str(data.table.column("smiles")[int(row)])) for row in rows]
    for atom in (atom for mol in mols for atom in mol.GetAtoms()):
        atom.SetIsotope(0)  # the features do not know isotopes
    assert (made.flat(source.rows(rows)) == molecules.fingerprints(mols)).all()


PIECES = ["C", "N", "O", "S", "C(=O)", "c1ccccc1", "C#C", "[N+](C)(C)", "C(F)(F)", "[nH]1cccc1", "(C)", "=C", "Cl"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join))
def test_a_molecule_goes_to_features_and_back_or_says_what_is_wrong(text: str) -> None:
    found, true = molecules.parse(text), Chem.MolFromSmiles(text) if text else None
    if true is None:
        assert isinstance(found, str)
        assert f"'{text[:60]}' is no SMILES" in found
        return
    assert not isinstance(found, str)
    Chem.RemoveStereochemistry(true)
    again = molecules.rebuilt(found.atoms.astype(int), found.ends, found.bonds.astype(int))
    assert Chem.MolToSmiles(again) == Chem.MolToSmiles(true)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="CNOcn123()[]=#+-@Hl. ", max_size=12))
def test_any_text_is_a_molecule_or_named_as_none(text: str) -> None:
    found = molecules.parse(text)
    mol = Chem.MolFromSmiles(text.strip()) if text.strip() else None
    if mol is None or not mol.GetNumAtoms():
        assert isinstance(found, str)
    else:
        assert not isinstance(found, str)
        assert len(found.atoms) == mol.GetNumAtoms()
        assert len(found.ends) == 2 * mol.GetNumBonds()


def test_bad_rows_are_named_with_their_reason_and_left_out_only_when_asked() -> None:
    texts = ["CCO", "C(C)(C)(C)(C)C", "", "[Xx]", "c1ccccc", "[Fe+9]", "CC"]
    raw = Graphs.as_raw(pa.table({"id": list("abcdefg"), "smiles": texts}))
    made = Graphs.infer(raw, np.arange(7))
    with pytest.raises(UserError) as error:
        made.pack(raw)
    lines = str(error.value).splitlines()
    assert lines[0] == "5 row(s) of 7 cannot be used:"
    assert "row 1 (b): 'C(C)(C)(C)(C)C' is no SMILES: Explicit valence for atom # 0 C, 5" in lines[1]
    assert lines[2].strip() == "row 2 (c): the SMILES is empty"
    assert "row 3 (d): '[Xx]' is no SMILES" in lines[3]
    assert "row 4 (e)" in lines[4]
    assert "row 5 (f): '[Fe+9]': the charge of atom 0 is beyond" in lines[5]
    assert "--skip-bad" in lines[6]
    found = made.pack(raw, skip_bad=True)
    assert found.keep.tolist() == [0, 6]
    assert [row for row, _, _ in found.bad] == [1, 2, 3, 4, 5]
    again = made.pack(raw.take(np.array([6, 2, 0])), skip_bad=True)
    assert (again.keep.tolist(), again.bad[0][0]) == ([0, 2], 1)
    assert again.hashes.tolist() == found.hashes[::-1].tolist()
    with pytest.raises(UserError, match="none of the 2 rows can be used"):
        made.pack(raw.take(np.array([1, 2])), skip_bad=True)


def test_salts_are_kept_whole_counted_and_said() -> None:
    raw = Graphs.as_raw(["CC(=O)[O-].[Na+]", "CCO", "Cl.CN"])
    made = Graphs.infer(raw, np.arange(3))
    with pytest.warns(Warned, match=r"2 of 3 molecules have several components, such as salts: kept whole"):
        source = made.pack(raw).source
    assert source.rows(np.array([0]))["mask"].sum() == 5


def test_one_molecule_written_in_two_ways_has_one_hash() -> None:
    raw = Graphs.as_raw(["OCC", "CCO", "CCN"])
    hashes = Graphs.infer(raw, np.arange(3)).pack(raw).hashes
    assert hashes[0] == hashes[1] != hashes[2]


# Finding them


def test_a_column_is_smiles_where_it_is_named_so_and_reads_so(tmp_path: Path) -> None:
    mols, words = ["CCO", "CCN", "c1ccccc1", "zzz"], ["a cat sat", "the dog ran off", "hello there", "one two"]

    def claimed(columns: dict[str, Any]) -> str:
        path = tmp_path / "rows.parquet"
        pq.write_table(pa.table(columns), path)
        return open_data(path).modality.modality

    assert claimed({"SMILES": mols, "y": [1.0, 2.0, 3.0, 4.0]}) == "graphs"
    assert claimed({"mol": mols, "p_np": [0, 1, 0, 1]}) == "graphs"
    assert claimed({"code": mols, "y": [1.0, 2.0, 3.0, 4.0]}) == "tables"
    assert claimed({"smiles": words, "y": [1.0, 2.0, 3.0, 4.0]}) == "tables"
    assert claimed({"text": [*words[:3], "more words than that"], "label": list("abab")}) == "text"
    assert open_data(["the words of a text", "and some more of them"]).modality.modality == "text"
    assert open_data(["CCO", "CCN"]).modality.modality == "graphs"
    with pytest.raises(UserError, match=r"no column of SMILES; its columns are code\. Name the one 'smiles'"):
        Graphs.as_raw(pa.table({"code": mols}))


def test_smi_and_sdf_files(tmp_path: Path) -> None:
    smi = tmp_path / "a.smi"
    smi.write_text("SMILES name\nCCO ethanol\nc1ccccc1 benzene\n\nCCN\tethyl amine\n")
    data = open_data(smi)
    assert data.ids() == ["ethanol", "benzene", "ethyl amine"]
    assert data.raw.place(2) == f"{smi}, row 5 (ethyl amine)", "lines as a person counts them"
    sdf = tmp_path / "a.sdf"
    with Chem.SDWriter(str(sdf)) as writer:
        for name, text, value in (("x", "CCO", "1.5"), ("y", "c1ccccc1", "-2")):
            mol = Chem.MolFromSmiles(text)
            mol.SetProp("_Name", name)
            mol.SetProp("logS", value)
            writer.write(mol)
    sdf.write_text(sdf.read_text() + sdf.read_text().replace(" C ", " Qq").replace("x\n", "z\n", 1))
    data = open_data(sdf)
    assert data.ids()[:2] == ["x", "y"]
    assert data.table.column("logS").to_pylist()[:2] == [1.5, -2]
    assert data.table.column("smiles").to_pylist()[:2] == ["CCO", "c1ccccc1"]
    made = Graphs.infer(data.raw, np.arange(len(data)))
    with pytest.raises(UserError, match=r"2 row\(s\) of 4 cannot be used:\n  .*a.sdf, row 3: '\(a record that"):
        made.pack(data.raw)
    empty = tmp_path / "b.smi"
    empty.write_text("\n")
    with pytest.raises(UserError, match="the file holds no SMILES"):
        open_data(empty)


def test_many_are_parsed_once_and_memory_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODICUM_CACHE", str(tmp_path))
    texts = ["CCO", "bad", "c1ccccc1C", "Cl.CN"]
    plain = _graphfiles._unpacked(*_graphfiles._parsed(texts))
    monkeypatch.setattr(_graphfiles, "IN_MEMORY", 1)
    first = _graphfiles._cached(texts)
    (file,) = (tmp_path / "graphs").iterdir()
    monkeypatch.setattr(_graphfiles, "_parsed", lambda _: pytest.fail("parsed again"))
    again = _graphfiles._cached(texts)
    for made in (first, again):
        assert isinstance(made[0].nodes.codes.base, np.memmap | np.ndarray)
        for a, b in ((made[0].nodes.codes, plain[0].nodes.codes), (made[0].ends, plain[0].ends)):
            assert a.dtype == b.dtype
            assert (a == b).all()
        assert (made[0].starts == plain[0].starts).all()
        assert (made[2] == plain[2]).all()
        assert (made[1], made[3], made[4]) == (plain[1], plain[3], plain[4])
    monkeypatch.undo()
    monkeypatch.setenv("MODICUM_CACHE", str(tmp_path))
    monkeypatch.setattr(_graphfiles, "IN_MEMORY", 1)
    file.write_bytes(file.read_bytes()[:50])
    assert _graphfiles._cached(texts)[1] == plain[1]


# Scaffolds, pictures, verbs


def test_scaffolds_divide_the_rows_unless_something_else_is_asked() -> None:
    from modicum.training.rows import Ask, for_measuring, for_pretraining

    data = open_data("freesolv")
    scaffold = np.array(data.table.column("scaffold").to_pylist())
    assert scaffold[data.ids().index("3,5-dimethylphenol")] == "c1ccccc1"
    assert scaffold[data.ids().index("heptan-1-ol")] == "acyclic"
    packed = data.modality.infer(data.raw, np.arange(len(data))).pack(data.raw)
    labels = data.labels()
    assert labels is not None
    plan = for_measuring(data, labels, packed.hashes, None, None, Ask(repeats=2))
    assert "No group of 'scaffold' is on both sides." in plan.protocol
    for repeat in plan.repeats:
        assert not set(scaffold[repeat.test]) & set(scaffold[repeat.pool])
        assert 0.1 < len(repeat.test) / len(data) < 0.3
    free = for_measuring(data, labels, packed.hashes, None, None, Ask(repeats=2, group="id"))
    assert set(scaffold[free.repeats[0].test]) & set(scaffold[free.repeats[0].pool])
    options: dict[str, Any] = {"label": None, "split": None, "test": None, "transductive": False, "limit": None}
    rows = for_pretraining(data, group=None, seed=0, **options)
    assert rows.note.endswith("held out for testing, whole groups of 'scaffold'")
    assert not set(scaffold[rows.test]) & set(scaffold[rows.train])


def test_one_scaffold_alone_is_divided_at_random_and_said() -> None:
    from modicum.training.rows import together

    data = open_data(pa.table({"smiles": ["CCO", "CCN", "CCC"], "target": [1.0, 2.0, 3.0]}), Graphs)
    with pytest.warns(Warned, match="rows are divided at random and not by scaffold, because all labelled rows are in"):
        assert together(data, data.labels(), None) == (None, "")


def test_molecules_are_drawn() -> None:
    made, batch = packed(["c1ccccc1O", "CC(=O)[O-]", "C"])
    for row, text in zip(made.show(batch), ["Oc1ccccc1", "CC(=O)[O-]", "C"], strict=True):
        assert row["text"] == text
        assert PICTURE.fullmatch(row["thumb"])
        svg = ET.fromstring(base64.b64decode(row["thumb"].partition(",")[2]))
        assert len(svg) > 0
        assert len(row["thumb"]) < 4000
    tokens = torch.randn(3, batch["codes"].shape[1], made.width, generator=torch.Generator().manual_seed(0))
    assert len(made.show(made.unembed().decode(tokens))) == 3  # what a network guesses need not be chemistry


def test_pairs_of_molecules() -> None:
    kind = part("modality", "pairs")
    raw = kind.as_raw(pa.table({"left.smiles": ["CCO", "CCN"], "right.smiles": ["c1ccccc1", "CC"]}))  # type: ignore[attr-defined]
    made = kind.infer(raw, np.arange(2))  # type: ignore[attr-defined]
    assert isinstance(made.left, Graphs)
    batch = made.pack(raw).source.rows(np.arange(2))
    assert all(PICTURE.fullmatch(row["thumb"]) for row in made.show(batch))
    encoder = tower(made, "pair(left=graph(width=8), right=graph(width=8), rank=2)")
    assert encoder(batch).pooled.isfinite().all()


@pytest.fixture
def table() -> Data:
    rng = np.random.default_rng(0)
    texts = ["C" * int(k) + str(t) for k in range(1, 9) for t in ("O", "N", "c1ccccc1", "C1CC1", "c1ccncc1")]
    target = [len(t) * 100.0 + 1000 + rng.normal() for t in texts]
    return open_data(pa.table({"id": [f"m{k}" for k in range(40)], "smiles": texts, "target": target}), Graphs)


def test_pretrain_finetune_and_predict_in_the_targets_units(table: Data, tmp_path: Path) -> None:
    run = modicum.pretrain(table, out=tmp_path / "run", **TINY)
    tuned = modicum.finetune(run, table, out=tmp_path / "tuned", method="probe", **FEW)
    results = tuned.read_json("results.json")
    assert results is not None
    assert {row["name"] for row in results["contestants"]} == {"scratch", "probe", "Morgan + random forest"}
    assert "data:image/svg+xml" in (tuned.path / "report.html").read_text()
    new = pa.table({"id": ["a", "b"], "smiles": ["CCCCO", "nonsense"]})
    with pytest.raises(UserError, match=r"row 1 \(b\): 'nonsense' is no SMILES"):
        modicum.predict(tuned, new, output=tmp_path / "p.parquet")
    with pytest.warns(Warned, match=r"skipped 1 bad row\(s\) of .*: row 1 \(b\) \('nonsense' is no SMILES"):
        out = modicum.predict(tuned, new, output=tmp_path / "p.parquet", skip_bad=True)
    assert out.column("id").to_pylist() == ["a"]
    assert 1000 < out.column("predicted")[0].as_py() < 3000
