"""Every setting of vmstackd, once: its key in the file, in the environment, as a flag, and its meaning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from core.cpuset import CpuListError, parse_cpu_list
from core.level import LevelError, parse_level
from core.policy import DEFAULT_POLICY, POLICIES
from vmstackd.daemon import table
from vmstackd.daemon.table import Setting, SettingsError, Table

DEBUG_RECORD = "results/monitoring.csv"
"""Where the prototype looked for traces, below the folder that it was started in."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one daemon runs with. Each field is a row of TABLE."""

    name: str
    state_dir: str
    hypervisor: str
    require_hypervisor: bool
    topology: str
    exclude_cpus: tuple[int, ...]
    reserved_memory: int
    policy: str
    critical_size: int
    critical_sizes: Mapping[int, int]
    period: float
    delay: float
    record: str
    record_size: int
    record_files: int
    dbus: str
    socket: str
    tcp_host: str
    tcp_port: int
    tls_ca: str
    tls_certificate: str
    tls_key: str
    http_host: str
    http_port: int
    http_names: tuple[str, ...]
    metrics_per_vm: bool
    image_roots: tuple[str, ...]
    machine: str
    emulator: str
    network: str
    virt_type: Literal["auto", "kvm", "qemu"]
    workers: int
    debug: int

    @property
    def trace(self) -> str:
        """The file that measurements are recorded in; empty: none."""
        if self.record == "none":
            return ""
        return self.record or (DEBUG_RECORD if self.debug > 0 else "")


def _cpus(value: object) -> tuple[int, ...]:
    try:
        if isinstance(value, str):
            return parse_cpu_list(value)
    except CpuListError as error:
        raise ValueError(f"a CPU list such as 0-1,64-65 ({error})") from error
    raise ValueError("a CPU list such as 0-1,64-65")


def _seconds_or_never(value: object) -> float:
    if value in ("0", 0) and not isinstance(value, bool):
        return 0.0
    try:
        return table.seconds(value)
    except ValueError as error:
        raise ValueError(f"{error}, or 0 for never") from error


def _critical_sizes(value: object) -> dict[int, int]:
    allowed = 'sizes by level, as "2.0=4,3.0=6" or a TOML table'
    if isinstance(value, str):
        items = [item.partition("=") for item in value.split(",") if item.strip()]
        pairs: list[tuple[str, Any]] = [(level.strip(), size.strip()) for level, _, size in items]
    elif isinstance(value, dict):
        pairs = list(value.items())
    else:
        raise ValueError(allowed)
    sizes: dict[int, int] = {}
    for text, size in pairs:
        try:
            level, count = parse_level(text), table.whole(0, 1_000_000)(size)
        except LevelError as error:
            raise ValueError(f"{allowed} ({error})") from error
        except ValueError as error:
            raise ValueError(f"{allowed} (level {text}: {error})") from error
        sizes[level] = count
    if len(sizes) != len(pairs):
        raise ValueError(f"{allowed}, each level once")
    return sizes


_ROWS = (
    Setting(
        "name",
        "",
        table.text("a host name", r"[A-Za-z0-9._-]{0,64}"),
        "NAME",
        "name of this host in a cluster; that of the machine if not given",
    ),
    Setting(
        "state_dir",
        "/var/lib/vmstack",
        table.text("an absolute path, or none", r"none|/.+"),
        "FOLDER",
        "where the host keeps its UUID and whether it is cordoned; none: nowhere",
    ),
    Setting(
        "hypervisor",
        "qemu:///system",
        table.text("a libvirt URI, or sim:", r"[a-z][a-z0-9+.-]*:\S*"),
        "URI",
        "libvirt URI, or sim: for simulated VMs",
        "QEMU_URL",
    ),
    Setting(
        "require_hypervisor",
        True,
        table.yes_or_no,
        "YES|NO",
        "end if the hypervisor does not answer at the start; no: serve readers and go on trying",
    ),
    Setting(
        "topology",
        "sysfs",
        table.text("sysfs, a file, or synthetic:KEY=N,...", r".+"),
        "SOURCE",
        "the host's CPUs: sysfs, a JSON file, or synthetic:sockets=2,numa=1,l3=16,cores=4,smt=2",
    ),
    Setting("exclude_cpus", (), _cpus, "LIST", "CPUs that VMs must not use, such as 0-1,64-65", "TOPO_EXCLUDE"),
    Setting("reserved_memory", 0, table.whole(0, 1 << 30), "MIB", "memory that is not for VMs, in MiB"),
    Setting(
        "policy",
        DEFAULT_POLICY,
        table.one_of(*POLICIES),
        "NAME",
        "how CPUs are chosen: " + ", ".join(POLICIES),
        reload=True,
    ),
    Setting(
        "critical_size",
        6,
        table.whole(0, 1_000_000),
        "VMS",
        "VMs from which on a subset is oversubscribed; 0 = always",
        "OVSB_CRITICAL_SIZE",
        reload=True,
    ),
    Setting(
        "critical_sizes",
        {},
        _critical_sizes,
        "LEVEL=VMS,...",
        "exceptions to --critical-size by level",
        reload=True,
    ),
    Setting(
        "period",
        15.0,
        table.seconds,
        "SECONDS",
        "time between two comparisons with the hypervisor",
        reload=True,
    ),
    Setting(
        "delay",
        15.0,
        _seconds_or_never,
        "SECONDS",
        "time between two measurements of what VMs and CPUs do; 0 = never",
        "SCL_DELAY",
        reload=True,
    ),
    Setting(
        "record",
        "",
        table.text("a file, none, or nothing", r"(.*[^/])?"),
        "FILE",
        "write what is measured into this trace (as a service: somewhere below /var/lib/vmstack), or none; with "
        f"--debug above 0, if not given: {DEBUG_RECORD}",
        reload=True,
    ),
    Setting(
        "record_size",
        64,
        table.whole(1, 1 << 20),
        "MIB",
        "size at which the trace becomes FILE.1, as it does at each start, and a new one is begun",
        reload=True,
    ),
    Setting(
        "record_files",
        4,
        table.whole(1, 1000),
        "N",
        "files of one trace that are kept, the one being written included",
        reload=True,
    ),
    Setting(
        "dbus",
        "system",
        table.text(
            "system, session, none, or a D-Bus address such as unix:path=/run/bus", r"system|session|none|[a-z]+:\S+"
        ),
        "BUS",
        "the D-Bus to be on: system, session, none, or an address",
    ),
    *table.doors(socket="/run/vmstack/vmstackd.sock", tcp_port=8097, http_port=8099, legacy="SCL"),
    Setting(
        "metrics_per_vm",
        False,
        table.yes_or_no,
        "YES|NO",
        "series for each VM in /metrics, too: five for every name that a VM ever has",
        reload=True,
    ),
    Setting(
        "image_roots",
        ("/var/lib/libvirt/images",),
        table.names("a comma separated list of absolute folders", r"/.*"),
        "FOLDERS",
        "folders that disk images may be in",
        reload=True,
    ),
    Setting(
        "machine",
        "q35",
        table.text("a QEMU machine type", r"[A-Za-z0-9._-]+"),
        "TYPE",
        "QEMU machine type",
        "QEMU_MACHINE",
        reload=True,
    ),
    Setting(
        "emulator",
        "",
        table.text("an absolute path, or nothing for libvirt's choice", r"(/.*)?"),
        "PATH",
        "QEMU binary; libvirt's choice if not given",
        "QEMU_LOC",
    ),
    Setting(
        "network",
        "",
        table.text("bridge:NAME, network:NAME, or nothing", r"((bridge|network):[A-Za-z0-9._-]+)?"),
        "KIND:NAME",
        "network of new VMs, as bridge:br0 or network:default; none if not given",
        reload=True,
    ),
    Setting(
        "virt_type",
        "auto",
        table.one_of("auto", "kvm", "qemu"),
        "TYPE",
        "kvm, qemu (emulated), or auto: kvm where a guest really runs with it",
    ),
    Setting("workers", 4, table.whole(1, 64), "N", "libvirt calls that may run at the same time"),
    table.DEBUG,
)

TABLE = Table(
    program="vmstackd",
    prefix="VMSTACKD_",
    file=Path("/etc/vmstack/vmstackd.toml"),
    rows=_ROWS,
    skipped=re.compile(r"(SCG|INFLUXDB)_[A-Z_]+|SCL_ACT_[A-Z]+"),
)


def load_settings(
    flags: Mapping[str, str],
    environment: Mapping[str, str],
    env_file: Path | None = None,
    config_file: Path | None = None,
) -> Settings:
    """Put all sources together, as ``load`` of the table does. Raises SettingsError."""
    settings = Settings(**table.load(TABLE, flags, environment, env_file, config_file))
    if settings.record not in {"", "none"} and not settings.delay:
        raise SettingsError("record: with a delay of 0 nothing is measured; set delay, or record to none")
    return settings
