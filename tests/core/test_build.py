"""Core is compiled; that it is pure is tested with all other imports, in tests/test_imports.py."""

import importlib
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


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_every_module_is_compiled(source: Path) -> None:
    name = ".".join(("core", *source.with_suffix("").parts))
    loaded = importlib.import_module(name).__file__
    assert loaded is not None
    assert loaded.endswith(tuple(EXTENSION_SUFFIXES)), "run make build"
