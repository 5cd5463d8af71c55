"""The plan of the house, held by reading the code: imports go one way, parts stand alone, nothing is unpickled."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from peers import installed, peer

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "modicum"
FILES = sorted(HOUSE.rglob("*.py"))

ORDER = [
    {"core"},
    {"maths"},
    {"nn"},
    {"modalities"},
    {"datasets", "objectives"},
    {"training"},
    {"model", "probes"},
    {"diagnostics"},
    {"report"},
    {"verbs"},
    {"sklearn", "scale", "serve", "cli"},
]
FLOOR = {name: k for k, names in enumerate(ORDER) for name in names}
ROOF = {"__init__", "__main__", "testing"}
"""The public names, the command, and the contract tests may use everything."""

PARTS = ("nn.trunks", "modalities", "objectives", "diagnostics")
MODULES = {"pillow": "PIL", "scikit-learn": "sklearn", "vl-convert-python": "vl_convert"}
"""Distributions whose module has another name."""
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
REQUIRED = {MODULES.get(name, name) for name in (re.split(r"[<>=!~; \[]", d)[0] for d in DECLARED)}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(HOUSE).with_suffix("").parts).removesuffix(".__init__")


@cache
def imports(path: Path) -> list[tuple[str, int, bool]]:
    """Every imported module as (dotted name, line, whether inside a function); names imported from one are appended."""
    found: list[tuple[str, int, bool]] = []

    def visit(node: ast.AST, inside: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend((alias.name, node.lineno, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ("modicum", *path.relative_to(HOUSE).parts)[: -node.level] if node.level else ()
            base = ".".join([*above, *filter(None, [node.module])])
            found.extend((f"{base}.{alias.name}", node.lineno, inside) for alias in node.names)
        deeper = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, deeper)

    visit(ast.parse(path.read_text("utf-8")), False)
    return found


def inner(path: Path) -> list[tuple[str, int]]:
    """The modules of modicum that a file imports: (name without modicum, line)."""
    own = {module_of(p) for p in FILES}
    found = []
    for name, line, _ in imports(path):
        if name == "modicum" or not name.startswith("modicum."):
            continue
        rest = name.removeprefix("modicum.")
        found.append((rest if rest in own else rest.rpartition(".")[0] or rest, line))
    return found


def test_the_floors_are_all_there() -> None:
    tops = {module_of(p).split(".")[0] or "__init__" for p in FILES} - ROOF
    assert tops <= FLOOR.keys(), f"{sorted(tops - FLOOR.keys())}: which floor of the house? Add it to ORDER and DESIGN"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_one_way(path: Path) -> None:
    here = (module_of(path) or "__init__").split(".")[0]
    if here in ROOF:
        return
    wrong = []
    for name, line in inner(path):
        there = name.split(".")[0]
        if there != here and (there in ROOF or FLOOR[there] >= FLOOR[here]):
            wrong.append(f"{path.relative_to(ROOT)}:{line} imports modicum.{name}")
    assert not wrong, "; ".join(wrong)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_parts_do_not_import_their_siblings(path: Path) -> None:
    here = module_of(path)
    folder = next((f for f in PARTS if here.startswith(f + ".")), None)
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports its sibling {name}"
        for name, line in inner(path)
        if folder and name.startswith(folder + ".") and not name.removeprefix(folder + ".").startswith("_")
    ]
    assert not wrong, "; ".join(wrong)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_optional_libraries_are_imported_where_they_are_needed(path: Path) -> None:
    allowed = REQUIRED | set(sys.stdlib_module_names) | {"modicum"}
    outside = [
        f"{path.relative_to(ROOT)}:{line} imports {name}: declare it in pyproject.toml, or use errors.need()"
        for name, line, _ in imports(path)
        if name.split(".")[0] not in allowed
    ]
    assert not outside, "; ".join(outside)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_nothing_is_unpickled_or_evaluated(path: Path) -> None:
    banned = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torchvision"}
    found = [f"line {line} imports {name}" for name, line, _ in imports(path) if name.split(".")[0] in banned]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("eval", "exec", "compile", "__import__") or called.endswith(("torch.load", ".hub.load")):
                found.append(f"line {node.lineno} calls {called}")
            pickled = [k for k in node.keywords if k.arg == "allow_pickle" and ast.unparse(k.value) != "False"]
            found += [f"line {node.lineno} allows pickle" for _ in pickled]
    assert not found, f"{path.relative_to(ROOT)}: {'; '.join(found)}"


def test_only_one_file_knows_of_processes_and_only_one_of_ray() -> None:
    for library, home in (("torch.distributed", "core.parallel"), ("ray", "scale")):
        for path in FILES:
            users = [n for n, *_ in imports(path) if n == library or n.startswith(library + ".")]
            assert not users or module_of(path) == home, f"{path.relative_to(ROOT)} imports {library}; only {home} may"


def test_the_core_is_read_in_one_sitting() -> None:
    core = [*(HOUSE / "core").glob("*.py"), HOUSE / "nn/encoder.py"]
    core += [HOUSE / "training" / f"{name}.py" for name in ("fit", "batches", "run")]
    lines = {p.name: len(p.read_text("utf-8").splitlines()) for p in core}
    assert sum(lines.values()) <= 1500, lines


def test_no_file_names_a_path_of_one_machine() -> None:
    homes = re.compile(r"""(?<![\w.:/>-])/(?:work|root|home/\w+)(?:/|\b)""")
    kinds = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".cfg", ".html", ".css", ".js", ".csv", ""}
    folders = [ROOT / n for n in ("modicum", "tests", "bench", "docs", "scripts", ".ci")]
    every = [p for f in folders for p in f.rglob("*") if "__pycache__" not in p.parts] + list(ROOT.glob("*"))
    found = []
    for path in every:
        if path.is_file() and path.suffix in kinds and path != Path(__file__):
            lines = path.read_text("utf-8", errors="replace").splitlines()
            found += [
                f"{path.relative_to(ROOT)}:{k}: {line.strip()[:80]}"
                for k, line in enumerate(lines, 1)
                if homes.search(line)
            ]
    assert not found, "; ".join(found)


def test_no_test_of_a_peer_is_skipped_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    for get in (peer, installed):
        with pytest.raises(pytest.skip.Exception, match="nosuchpeer is not installed: run make setup"):
            get("nosuchpeer")
    monkeypatch.setenv("CI", "1")
    for get in (peer, installed):
        with pytest.raises(pytest.fail.Exception, match="nosuchpeer is not installed: make setup installs it"):
            get("nosuchpeer")
    own = {Path(__file__).name}
    skips = [path.name for path in (ROOT / "tests").glob("*.py") if "importorskip" in path.read_text("utf-8")]
    assert not set(skips) - own, "tests/peers.py has what fails in CI"
