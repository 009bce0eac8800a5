"""Imports point one way: core, vmstackd.api, what both daemons are made of, then each daemon; nothing points back."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("core", "globald", "vmstackctl", "vmstackd")
TREES = (*PRODUCT, "benchmarks", "tests", "tools")


CORE = sorted(path for path in (ROOT / "core").rglob("*.py*") if path.suffix in {".py", ".pyi", ".pyx"})


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    _name(path): path for tree in TREES for path in sorted((ROOT / tree).rglob("*.py*")) if path.suffix != ".pyc"
}
"""Every module by its name; of a compiled one, the stub or the source."""


def _source(path: Path) -> str:
    """What ast understands: for a Cython source, the lines that import."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".pyx":
        return text
    lines = [line for line in text.splitlines() if line.startswith(("import ", "from ")) and " cimport " not in line]
    return "\n".join(lines)


def _resolve(base: str, name: str) -> str:
    """``from base import name``: the module that is imported."""
    return f"{base}.{name}" if f"{base}.{name}" in MODULES else base


def imports_of(source: str, module: str, package: bool) -> Iterator[str]:
    """Names of the modules that a source imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: len(module.split(".")) - node.level + int(package)]
                base = ".".join([*above, *([base] if base else [])])
            yield from (_resolve(base, alias.name) for alias in node.names)


IMPORTS = {
    name: set(imports_of(_source(path), name, path.stem == "__init__")) - {"__future__"}
    for name, path in MODULES.items()
}


def _within(module: str, *parents: str) -> bool:
    return any(module == parent or module.startswith(f"{parent}.") for parent in parents)


def _standard(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


def _breaches(importers: tuple[str, ...], *allowed: str) -> list[str]:
    """Imports by these modules of anything that is neither allowed nor in the standard library."""
    return [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        if _within(name, *importers)
        for other in sorted(others)
        if not _standard(other) and not _within(other, *allowed)
    ]


def _meetings(importers: tuple[str, ...], forbidden: tuple[str, ...], but: tuple[str, ...] = ()) -> list[str]:
    """Imports by these modules of something forbidden."""
    return [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        if _within(name, *importers) and not _within(name, *but)
        for other in sorted(others)
        if _within(other, *forbidden)
    ]


def test_the_modules_are_found() -> None:
    assert {"core.allocator", "core.distances", "vmstackd.engine", "vmstackd.api", "vmstackd.transports.http"} <= set(
        MODULES
    )
    assert "core.level" in IMPORTS["vmstackd.engine"]
    assert "vmstackd.daemon.log" in IMPORTS["vmstackd.engine"]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import a.b, c", {"a.b", "c"}),
        ("from vmstackd.daemon import log", {"vmstackd.daemon.log"}),
        ("from vmstackd.daemon.log import info", {"vmstackd.daemon.log"}),
        ("from . import base", {"vmstackd.hypervisor.base"}),
        ("from .base import Record", {"vmstackd.hypervisor.base"}),
        ("from ..host import Host", {"vmstackd.host"}),
        ("from ..daemon.log import info", {"vmstackd.daemon.log"}),
        ("def f():\n    import libvirt", {"libvirt"}),
    ],
)
def test_every_way_to_import_is_seen(source: str, found: set[str]) -> None:
    assert set(imports_of(source, "vmstackd.hypervisor.sim", package=False)) == found


@pytest.mark.parametrize("source", CORE, ids=lambda path: path.name)
def test_the_core_reaches_for_nothing_but_numbers(source: Path) -> None:
    """No clock, no log, no randomness, no I/O: what is allowed is listed, all else is not."""
    allowed = ("__future__", "core", "msgspec", "collections", "fractions", "math", "re", "typing")
    found = set(imports_of(_source(source), _name(source), source.stem == "__init__"))
    assert {module for module in found if not _within(module, *allowed)} == set()


@pytest.mark.parametrize("source", [path for path in CORE if path.suffix == ".pyx"], ids=lambda path: path.name)
def test_compiled_sources_of_the_core_import_only_c_and_the_core(source: Path) -> None:
    lines = [line.split() for line in source.read_text().splitlines() if "import " in line]
    words = {line[1].partition(".")[0] for line in lines if line[0] in {"from", "import", "cimport"}}
    assert words <= {"core", "cpython", "libc", "math"}


@pytest.mark.parametrize("source", [path for path in CORE if path.suffix != ".pyx"], ids=lambda path: path.name)
def test_the_core_opens_prints_and_evaluates_nothing(source: Path) -> None:
    called = {
        node.func.id
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert called.isdisjoint({"open", "print", "input", "eval", "exec", "__import__", "hash", "id", "globals"})


def test_requests_replies_and_errors_see_only_the_core() -> None:
    assert _breaches(("vmstackd.api",), "core", "vmstackd.api", "msgspec") == []


def test_only_the_libvirt_hypervisor_imports_libvirt() -> None:
    assert _meetings(PRODUCT, ("libvirt",), but=("vmstackd.hypervisor.libvirt",)) == []
    assert "libvirt" in IMPORTS["vmstackd.hypervisor.libvirt"]


def test_the_operations_layer_can_be_used_where_libvirt_is_missing() -> None:
    code = (
        "import sys; sys.modules['libvirt'] = None\n"
        "import vmstackd.api.requests, vmstackd.api.replies, vmstackd.api.errors, vmstackd.__main__\n"
        "import vmstackd.engine, vmstackd.transports.http, vmstackd.hypervisor.sim, globald.__main__\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


BUS = {name for name in MODULES if name.startswith(("vmstackd.transports.dbus", "vmstackd.transports.polkit"))}


def test_transports_decide_nothing() -> None:
    deciding = ("vmstackd.topology_source", "core.allocator", "core.policy", "core.capacity", "vmstackd.reconcile")
    assert _meetings(("vmstackd.transports",), ("vmstackd.hypervisor", "vmstackd.watch", *deciding)) == []


def test_hypervisors_and_topology_sources_do_not_know_who_uses_them() -> None:
    users = ("vmstackd.engine", "vmstackd.host", "vmstackd.watch", "vmstackd.reconcile", "vmstackd.transports")
    assert _meetings(("vmstackd.hypervisor", "vmstackd.topology_source"), (*users, "vmstackd.settings")) == []


def test_nothing_imports_what_joins_the_parts_but_the_command_line() -> None:
    for program in ("vmstackd", "globald"):
        joining = (f"{program}.app", f"{program}.__main__")
        assert _meetings(PRODUCT, joining, but=(f"{program}.__main__",)) == []


def test_the_product_imports_neither_tests_nor_benchmarks_nor_tools() -> None:
    assert _meetings(PRODUCT, ("tests", "benchmarks", "tools")) == []


SHARED = (
    "core",
    "vmstackd.address",
    "vmstackd.api",
    "vmstackd.tls",
    "vmstackd.trace_file",
    "vmstackd.unreachable",
    "vmstackd.version",
    "vmstackd.wire",
)
"""What both daemons and their clients know."""


def test_what_both_daemons_are_made_of_knows_neither() -> None:
    libraries = ("aiohttp", "msgspec", "prometheus_client")
    assert _breaches(("vmstackd.daemon",), *SHARED, "vmstackd.daemon", *libraries) == []


def test_the_daemon_of_a_cluster_sees_hosts_only_as_a_client_does() -> None:
    libraries = ("aiohttp", "msgspec", "prometheus_client")
    assert _breaches(("globald",), "globald", *SHARED, "vmstackd.client", "vmstackd.daemon", *libraries) == []


def test_nothing_of_the_product_needs_the_daemon_of_a_cluster() -> None:
    assert _meetings(("core", "vmstackctl", "vmstackd"), ("globald",)) == []


def test_the_command_for_operators_sees_only_what_a_client_needs() -> None:
    libraries = ("click", "cryptography", "matplotlib", "msgspec", "numpy", "rich")
    assert _breaches(("vmstackctl",), "vmstackctl", *SHARED, "vmstackd.client", *libraries) == []
    assert _meetings(("core", "globald", "vmstackd"), ("vmstackctl",)) == []


def test_a_client_needs_little_of_the_daemon() -> None:
    assert _breaches(("vmstackd.client", "vmstackd.wire"), *SHARED, "msgpack", "msgspec") == []


def test_certificates_and_addresses_know_no_daemon() -> None:
    files = ("vmstackd.address", "vmstackd.tls", "vmstackd.unreachable")
    assert _breaches(files, *files, "vmstackd.api", "cryptography", "msgspec") == []


def test_only_whoever_makes_or_reads_certificates_imports_their_library() -> None:
    assert _meetings(PRODUCT, ("cryptography",), but=("vmstackctl.certificates", "vmstackd.tls")) == []


def test_only_pictures_import_what_draws_them() -> None:
    drawing = ("matplotlib", "numpy")
    pictures = ("vmstackctl.report.pictures", "vmstackctl.plan.pictures")
    assert _meetings(PRODUCT, drawing, but=pictures) == []
    assert all(any(_within(other, *drawing) for other in IMPORTS[module]) for module in pictures)


def test_only_the_transport_for_the_bus_imports_its_library() -> None:
    importing = {name for name, others in IMPORTS.items() if any(_within(other, "sdbus") for other in others)}
    assert {name for name in importing if _within(name, *PRODUCT)} <= BUS
    assert importing & BUS


def test_tools_import_neither_tests_nor_benchmarks() -> None:
    assert _meetings(("tools",), ("tests", "benchmarks")) == []


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {
        name: {other for other in others if other in IMPORTS and other != name}
        for name, others in IMPORTS.items()
        if _within(name, *PRODUCT)
    }
    while leaves := {name for name, others in graph.items() if not others & graph.keys()}:
        graph = {name: others - leaves for name, others in graph.items() if name not in leaves}
    assert graph == {}
