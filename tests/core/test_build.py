"""Core is compiled, and pure: it reaches for nothing but numbers."""

import ast
import importlib
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

import core

FOLDER = Path(core.__file__).parent
SOURCES = sorted(
    path.relative_to(FOLDER)
    for pattern in ("*.py", "*.pyx")
    for path in FOLDER.rglob(pattern)
    if path.name != "__init__.py"
)
PYTHON = sorted(path.relative_to(FOLDER) for pattern in ("*.py", "*.pyi") for path in FOLDER.rglob(pattern))
ALLOWED = {"__future__", "collections", "core", "fractions", "math", "msgspec", "re", "typing"}


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_every_module_is_compiled(source: Path) -> None:
    name = ".".join(("core", *source.with_suffix("").parts))
    loaded = importlib.import_module(name).__file__
    assert loaded is not None
    assert loaded.endswith(tuple(EXTENSION_SUFFIXES)), "run make build"


def _imported(source: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse((FOLDER / source).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("source", PYTHON, ids=str)
def test_imports_reach_no_clock_no_log_and_no_io(source: Path) -> None:
    assert {name.partition(".")[0] for name in _imported(source)} <= ALLOWED
    for name in ALLOWED - {"core", "msgspec"}:
        assert name in sys.stdlib_module_names


def test_compiled_sources_import_only_c() -> None:
    for source in FOLDER.rglob("*.pyx"):
        lines = [line.split() for line in source.read_text().splitlines() if "import " in line]
        assert {words[1].partition(".")[0] for words in lines if words[0] in {"from", "import", "cimport"}} <= {
            "cpython",
            "libc",
        }


@pytest.mark.parametrize("source", PYTHON, ids=str)
def test_nothing_is_opened_printed_or_evaluated(source: Path) -> None:
    called = {
        node.func.id
        for node in ast.walk(ast.parse((FOLDER / source).read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert called.isdisjoint({"open", "print", "input", "eval", "exec", "__import__", "hash", "id", "globals"})
