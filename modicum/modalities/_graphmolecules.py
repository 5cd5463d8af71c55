"""Molecules: SMILES to features and back, scaffolds, fingerprints and drawings, through RDKit."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np

from modicum.core.errors import need

ATOM = {
    "atomic number": 119, "chirality": 9, "degree": 11, "charge": 12, "hydrogens": 9, "radical electrons": 5,
    "hybridization": 8, "aromatic": 2, "in ring": 2,
}  # fmt: skip
BOND = {"type": 22, "stereo": 6, "conjugated": 2}
"""How many values each feature of an atom and of a bond has: torch-geometric's `from_smiles`, in its order."""
CHARGE = 5  # what is added to a charge, so that it counts from 0
HYBRIDIZATION = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 6: 5, 7: 6, 8: 7}
"""Of RDKit's numbers (which have SP2D between SP3 and SP3D) to the features'."""
AROMATIC = 12
ALPHABET = re.compile(r"[A-Za-z0-9@+\-\[\]()=#$:/\\.%*~]+")
"""What a SMILES is written in."""
BITS, RADIUS = 2048, 2


class Molecule(NamedTuple):
    """Features (n, 9) and (e, 3), ends (e, 2), all uint8 or int32, and what else is known of a molecule."""

    atoms: np.ndarray
    ends: np.ndarray
    bonds: np.ndarray
    scaffold: str
    smiles: str
    parts: int


def chem() -> Any:
    """rdkit.Chem."""
    return need("rdkit.Chem", "graphs")


def parse(smiles: str | None) -> Molecule | str:
    """The molecule of a SMILES, or why there is none."""
    text = (smiles or "").strip()
    if not text:
        return "the SMILES is empty"
    lib = chem()
    with need("rdkit.rdBase", "graphs").BlockLogs():
        mol = lib.MolFromSmiles(text)
        if mol is None:
            rough = lib.MolFromSmiles(text, sanitize=False)
            problems = [] if rough is None else [p.Message() for p in lib.DetectChemistryProblems(rough)]
            return f"'{text[:60]}' is no SMILES: {problems[0] if problems else 'it does not parse'}"
        return _featurised(mol, text)


def _featurised(mol: Any, text: str) -> Molecule | str:
    if not mol.GetNumAtoms():
        return f"'{text[:60]}' has no atoms"
    atoms = [_atom(a) for a in mol.GetAtoms()]
    bonds = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx(), *_bond(b)) for b in mol.GetBonds()]
    table, edges = np.array(atoms, np.int64), np.array(bonds, np.int64).reshape(-1, 5)
    for what, names, values in (("atom", ATOM, table), ("bond", BOND, edges[:, 2:])):
        outside = (values < 0) | (values >= np.array([*names.values()]))
        if outside.any():
            row, column = np.argwhere(outside)[0]
            return f"'{text[:60]}': the {[*names][column]} of {what} {row} is beyond what the features can say"
    both = np.concatenate([edges, edges[:, [1, 0, 2, 3, 4]]])
    both = both[np.lexsort((both[:, 1], both[:, 0]))]
    murcko = need("rdkit.Chem.Scaffolds.MurckoScaffold", "graphs")
    canonical = chem().MolToSmiles(mol)
    scaffold = murcko.MurckoScaffoldSmiles(mol=mol, includeChirality=False) or "acyclic"
    ends, kinds = both[:, :2].astype(np.int32), both[:, 2:].astype(np.uint8)
    return Molecule(table.astype(np.uint8), ends, kinds, scaffold, canonical, canonical.count(".") + 1)


def _atom(atom: Any) -> tuple[int, ...]:
    return (
        atom.GetAtomicNum(), int(atom.GetChiralTag()), atom.GetTotalDegree(), atom.GetFormalCharge() + CHARGE,
        atom.GetTotalNumHs(), atom.GetNumRadicalElectrons(), HYBRIDIZATION.get(int(atom.GetHybridization()), -1),
        int(atom.GetIsAromatic()), int(atom.IsInRing()),
    )  # fmt: skip


def _bond(bond: Any) -> tuple[int, int, int]:
    return int(bond.GetBondType()), int(bond.GetStereo()), int(bond.GetIsConjugated())


def rebuilt(atoms: np.ndarray, ends: np.ndarray, bonds: np.ndarray) -> Any:
    """An RDKit molecule of features, without stereochemistry and isotopes; hidden (-1) atoms are `*`."""
    lib = chem()
    mol, kinds = lib.RWMol(), lib.BondType.values
    for number, _, _, charge, hydrogens, radicals, _, aromatic, _ in atoms.tolist():
        atom = lib.Atom(max(number, 0))
        if number >= 0:
            atom.SetFormalCharge(charge - CHARGE)
            atom.SetNumRadicalElectrons(radicals)
            atom.SetIsAromatic(bool(aromatic))
            atom.SetNumExplicitHs(hydrogens)
        atom.SetNoImplicit(True)
        mol.AddAtom(atom)
    for (i, j), kind in zip(ends.tolist(), bonds[:, 0].tolist(), strict=True):
        if i < j and mol.GetBondBetweenAtoms(i, j) is None:
            mol.AddBond(i, j, kinds[max(kind, 0)])
            mol.GetBondBetweenAtoms(i, j).SetIsAromatic(kind == AROMATIC)
    made = mol.GetMol()
    with need("rdkit.rdBase", "graphs").BlockLogs():
        made.UpdatePropertyCache(strict=False)
        lib.GetSymmSSSR(made)
    return made


def fingerprints(molecules: list[Any]) -> np.ndarray:
    """Morgan fingerprints (Rogers & Hahn 2010): counts (n, 2048) float32 of the circles of radius 2 around atoms."""
    made = need("rdkit.Chem.rdFingerprintGenerator", "graphs").GetMorganGenerator(radius=RADIUS, fpSize=BITS)
    rows = [made.GetCountFingerprintAsNumPy(mol) for mol in molecules]
    return np.stack(rows).astype(np.float32) if rows else np.zeros((0, BITS), np.float32)


def drawn(mol: Any, width: int = 160, height: int = 120) -> str:
    """RDKit's drawing of a molecule as a small SVG."""
    lib, draw = chem(), need("rdkit.Chem.Draw.rdMolDraw2D", "graphs")
    canvas = draw.MolDraw2DSVG(width, height, -1, -1, True)  # letters as text, not as outlines
    with need("rdkit.rdBase", "graphs").BlockLogs():
        try:
            shown = draw.PrepareMolForDrawing(mol)
        except (lib.KekulizeException, lib.AtomValenceException, ValueError):
            shown = draw.PrepareMolForDrawing(mol, kekulize=False)
        canvas.drawOptions().prepareMolsBeforeDrawing = False
        canvas.DrawMolecule(shown)
    canvas.FinishDrawing()
    return _small(canvas.GetDrawingText(), width, height)


def _small(svg: str, width: int, height: int) -> str:
    """The drawing with the lines of one colour as one path: a tenth of the bytes."""
    lines: dict[str, list[str]] = {}
    for points, style in re.findall(r"<path[^>]*? d='([^']*)' style='([^']*)'", svg):
        colour = re.search(r"stroke:(#\w+)", style)
        if colour:
            lines.setdefault(colour[1], []).append(re.sub(r"\s+", " ", points))
    texts = re.findall(r"<text x='([\d.-]+)' y='([\d.-]+)'[^>]*?font-size:(\d+)px[^>]*?fill:(#\w+)' >([^<]*)<", svg)
    parts = [f'<path d="{"".join(p)}" stroke="{c}" fill="none"/>' for c, p in lines.items()]
    parts += [f'<text x="{x}" y="{y}" font-size="{size}" fill="{c}">{t}</text>' for x, y, size, c, t in texts]
    head = f'viewBox="0 0 {width} {height}" font-family="sans-serif" style="background:#fff"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {head}>{"".join(parts)}</svg>'
