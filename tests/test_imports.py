"""The house stays in order: each file imports only from what stands before it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import sftc

ROOT = Path(sftc.__file__).parent
ORDER = """
early errors folders types filed positions columns stop store device environment metrics tasks losses fusion
models data optim objective loop answers lab strategies track report pictures scenes schema build cli
""".split()  # noqa: SIM905
FILES = sorted(file for file in ROOT.rglob("*.py") if file.parent != ROOT or not file.name.startswith("__"))


def _part(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def _imports(file: Path) -> set[str]:
    """Full names of all modules a file imports, at the top, in functions and for type checkers alike."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ("sftc", *file.relative_to(ROOT).parts)[: -node.level] if node.level else ()
            base = ".".join([*package, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            names |= {str(a.value) for a in node.args[:1] if isinstance(a, ast.Constant)}
    return names


def test_the_tree_in_the_readme_names_every_file():
    readme = ROOT.parents[1] / "README.md"
    if not readme.is_file():
        pytest.skip("installed without its README")
    tree = readme.read_text(encoding="utf-8").split("## The tree")[1].split("```")[1]
    said: dict[str, str] = {}
    name = ""
    for line in tree.splitlines():
        if line[:2] == "  " and line[2] != " ":
            name = line.split()[0].rstrip("/").removesuffix(".py")
        said[name] = said.get(name, "") + line
    for file in FILES:
        if not file.name.startswith("__"):
            assert re.search(rf"\b{re.escape(file.name)}", said.get(_part(file), "")), file.relative_to(ROOT)


def _id(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("file", FILES, ids=_id)
def test_each_file_imports_only_what_stands_before_it(file):
    assert _part(file) in ORDER, f"{file} has no place in the order"
    allowed = ORDER[: ORDER.index(_part(file)) + 1]
    parts = {name.split(".")[1] for name in _imports(file) if name.startswith("sftc.")}
    assert not {p for p in parts if p in ORDER and p not in allowed}


@pytest.mark.parametrize(
    ("package", "homes"),
    [
        ("hydra", {"build", "cli"}),
        ("omegaconf", {"build", "cli"}),
        ("lightning_fabric", {"device"}),
        ("lightning", {"device"}),
        ("timm", {"models", "optim"}),
        ("rich", {"track", "report", "cli"}),
        ("matplotlib", {"pictures", "scenes"}),
        ("pandas", {"data"}),
        ("transformers", {"models"}),
        ("tokenizers", {"models"}),
        ("peft", {"optim"}),
        ("seqeval", {"metrics"}),
        ("soundfile", {"data"}),
    ],
)
def test_a_library_stays_in_its_rooms(package, homes):
    users = {_id(file) for file in FILES if any(name.split(".")[0] == package for name in _imports(file))}
    assert not {user for user in users if user.split("/")[0].removesuffix(".py") not in homes}


@pytest.mark.parametrize("file", [f for f in FILES if _part(f) != "device"], ids=_id)
def test_only_the_device_names_cuda(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    docs = {id(doc) for node in ast.walk(tree) if (doc := _docstring(node)) is not None}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            assert node.attr != "cuda", f"line {node.lineno}"
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            assert "cuda" not in node.value, f"line {node.lineno}"


def _docstring(node: ast.AST) -> ast.Constant | None:
    body = getattr(node, "body", None)
    first = body[0] if isinstance(body, list) and body else None
    value = first.value if isinstance(first, ast.Expr) else None
    return value if isinstance(value, ast.Constant) else None


def test_there_is_no_drawer_for_everything():
    assert not [file for file in FILES if file.stem in ("utils", "helpers", "common", "misc")]
