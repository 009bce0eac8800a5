"""The Debian package: installed, upgraded, removed and purged on a server whose VMs must not notice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import ROOT
from tests.system.box import Box
from tests.system.lab import Lab, missing
from tests.system.package import (
    BUILD_PATIENCE,
    CLUSTER_CONFIG,
    CONFIG,
    IMAGES,
    REAL,
    call,
    install,
    package,
    put_images,
    show,
    until,
    upgrade,
)
from tests.system.test_box import missing_libvirt
from tools.example_config import TABLES, example
from vmstackd.daemon import table as settings
from vmstackd.daemon.table import Table
from vmstackd.version import VERSION

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(missing()), reason=f"boxes: {missing()}"),
    pytest.mark.skipif(bool(missing_libvirt), reason=f"libvirt: {missing_libvirt}"),
]

UNITS = (
    *("vmstackd.service", "vmstackd.socket", "vmstackd-http.socket"),
    *("globald.service", "globald.socket", "globald-http.socket", "globald-tcp.socket"),
)

FOREIGN = """<domain type='qemu'>
  <name>foreign</name>
  <memory unit='MiB'>32</memory>
  <vcpu>1</vcpu>
  <os><type>hvm</type></os>
</domain>
"""


@pytest.fixture
def server(lab: Lab) -> Iterator[Box]:
    """A server with libvirtd and a VM that is not ours, without the package."""
    with Box(lab, "server") as box:
        box.enter("systemctl", "start", "libvirtd")
        box.write("/root/foreign.xml", FOREIGN)
        box.enter("virsh", "create", "/root/foreign.xml")
        yield box


def qemus(box: Box) -> list[str]:
    """Pids of the QEMU processes, with where each may run."""
    pids = box.enter("pgrep", "-f", "qemu-system", check=False).stdout.split()
    return [
        f"{pid} {re.findall('Cpus_allowed_list:(.*)', box.path(f'/proc/{pid}/status').read_text())[0].strip()}"
        for pid in pids
    ]


def names_in_cluster(box: Box) -> list[str]:
    """VMs, as globald knows them."""
    return sorted(box.enter("vmstackctl", "--cluster", "list", "--output", "name", check=False).stdout.split())


def test_no_step_of_its_life_touches_a_vm(server: Box, tmp_path: Path) -> None:
    foreign = qemus(server)
    assert len(foreign) == 1
    install(server, REAL)
    assert qemus(server) == foreign, "installing it pins nothing"
    for unit in UNITS:
        assert show(server, "ActiveState", "UnitFileState", unit=unit) == ["inactive", "disabled"], unit

    server.enter("systemctl", "enable", "--now", "vmstackd")
    server.enter("systemctl", "enable", "--now", "globald")
    server.enter("vmstackctl", "--cluster", "host", "add", "127.0.0.1:8097")
    until(lambda: names_in_cluster(server) == ["foreign"], "globald does not find the host's VM")
    assert [vm[0] for vm in call(server, "List")[0]] == ["foreign"], "now it takes part"
    put_images(server, "a.qcow2")
    call(server, "Deploy", "sudds", "ours", "1", "0.0625", "2.0", f"{IMAGES}/a.qcow2")
    running = qemus(server)
    assert len(running) == 2

    before, globald_before = show(server, "MainPID"), show(server, "MainPID", unit="globald.service")
    uuid = server.path("/var/lib/vmstack/host-uuid").read_text()
    changed = server.path(CONFIG).read_text()
    newer = upgrade(server, tmp_path)
    assert show(server, "ActiveState", "UnitFileState") == ["active", "enabled"]
    assert show(server, "MainPID") != before, "the new version runs"
    assert show(server, "ActiveState", "UnitFileState", unit="globald.service") == ["active", "enabled"]
    assert show(server, "MainPID", unit="globald.service") != globald_before
    until(lambda: names_in_cluster(server) == ["foreign", "ours"], "globald does not find the host again")
    assert server.path("/var/lib/vmstack/host-uuid").read_text() == uuid, "it is the host that it was"
    assert server.path(CONFIG).read_text() == changed
    assert sorted(vm[0] for vm in call(server, "List")[0]) == ["foreign", "ours"]
    assert qemus(server) == running

    server.enter("apt-get", "remove", "--yes", "vmstack", timeout=BUILD_PATIENCE)
    assert not server.path("/usr/sbin/vmstackd").exists()
    assert not list(server.path("/usr/lib").glob("vmstack*"))
    assert server.path(CONFIG).read_text() == changed, "a conffile stays"
    assert not server.path("/usr/sbin/globald").exists()
    for daemon in ("vmstackd", "globald"):
        assert server.enter("pgrep", "-x", daemon, check=False).stdout == ""
    assert qemus(server) == running

    server.enter("apt-get", "install", "--yes", newer, timeout=BUILD_PATIENCE)
    server.enter("systemctl", "start", "vmstackd")
    assert sorted(vm[0] for vm in call(server, "List")[0]) == ["foreign", "ours"], "found again"

    assert server.path("/etc/vmstack/hosts.d/127.0.0.1-8097.toml").exists(), "what an administrator has said stays"
    server.enter("apt-get", "purge", "--yes", "vmstack", timeout=BUILD_PATIENCE)
    left = server.enter(
        *("find", "/etc", "/usr", "/var/lib", "/run", "(", "-name", "*vmstack*", "-o", "-name", "*globald*", ")"),
        *("-not", "-path", "*/deb/*"),
    ).stdout
    allowed = r"(/var/lib/systemd/deb-systemd-helper.*|/var/lib/(dpkg|apt)/.*)"
    assert [path for path in left.splitlines() if not re.fullmatch(allowed, path)] == []
    assert qemus(server) == running


def test_what_it_installs_is_where_users_look(lab: Lab) -> None:
    with Box(lab, "look") as box:
        install(box)
        assert box.enter("vmstackctl", "--version").stdout.split()[-1] == VERSION
        assert box.enter("vmstackd", "--version").stdout.split()[-1] == VERSION
        assert box.enter("globald", "--version").stdout.split()[-1] == VERSION
        for page in ("1/vmstackctl.1", "8/vmstackd.8", "5/vmstackd.toml.5", "8/globald.8", "5/globald.toml.5"):
            assert box.path(f"/usr/share/man/man{page}.gz").exists()
        for completion in (
            "bash-completion/completions/vmstackctl",
            "zsh/vendor-completions/_vmstackctl",
            "fish/vendor_completions.d/vmstackctl.fish",
        ):
            assert box.path(f"/usr/share/{completion}").read_text().strip()
        assert "org.vmstack.Host1" in box.path("/usr/share/dbus-1/interfaces/org.vmstack.Host1.xml").read_text()
        conffiles = box.enter("dpkg-query", "--show", "--showformat=${Conffiles}", "vmstack").stdout
        assert {CONFIG, CLUSTER_CONFIG} <= set(conffiles.split())
        for table in TABLES:
            assert box.path(str(table.file)).read_text() == example(table)
        assert "0 hosts, and those of /etc/vmstack/hosts.d" in box.enter("globald", "--check-config").stdout
        assert "usable" in box.enter("vmstackd", "--hypervisor", "sim:", "--check-config").stdout
        groups = box.enter("id", "-Gn", "vmstack").stdout.split()
        assert set(groups) == {"vmstack", "libvirt", "kvm"}
        groups = box.enter("id", "-Gn", "vmstack-globald").stdout.split()
        assert set(groups) == {"vmstack-globald", "vmstack", "vmstack-admin"}
        assert box.enter("stat", "-c", "%U %a", "/etc/vmstack/hosts.d", "/etc/vmstack").stdout.splitlines() == [
            "vmstack-globald 755",
            "root 755",
        ]
        for file in ("prometheus.yml", "rules/vmstack.rules.yml", "dashboards/vmstack.json"):
            assert box.path(f"/usr/share/vmstack/monitoring/{file}").read_text().strip()
        # Compiled where it is installed, and none of it is the machine's own Python packages.
        code = "import core.allocator, cryptography.x509, sys; "
        code += "print(core.allocator.__file__, cryptography.__file__, *sys.path)"
        program = box.path("/usr/sbin/vmstackd").read_text().splitlines()[0].removeprefix("#!").split()
        where = box.enter(*program, "-c", f"import sys; sys.path.insert(0, '/usr/lib/vmstack'); {code}").stdout
        assert where.startswith("/usr/lib/vmstack/core/allocator.cpython-")
        assert where.split()[1].startswith("/usr/lib/vmstack/cryptography/")
        assert "dist-packages" not in where


def test_the_versions_agree() -> None:
    changelog = (ROOT / "debian" / "changelog").read_text().splitlines()[0]
    assert changelog.split()[1] == f"({VERSION}-1)"
    assert f"_{VERSION}-1_" in package().name


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.program)
def test_the_configuration_that_it_brings_is_what_it_says(tmp_path: Path, table: Table) -> None:
    path, text = tmp_path / table.file.name, example(table)
    path.write_text(text)
    defaults = settings.load(table, {}, {}, config_file=path)
    path.write_text(re.sub(r"^#(\w+ = )", r"\1", text, flags=re.MULTILINE))
    assert settings.load(table, {}, {}, config_file=path) == defaults
    assert all(f"#{row.key} = " in text for row in table.rows)
