"""Every setting of vmstackd, once: its key in the file, in the environment, as a flag, and its meaning.

Flags win over environment variables (``VMSTACKD_<KEY>``), those over ``--env-file`` (which takes the
prototype's names too, SEMANTICS 12), that over the TOML file, that over the default.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from core.cpuset import CpuListError, parse_cpu_list
from core.level import LevelError, parse_level
from core.policy import DEFAULT_POLICY, POLICIES

DEFAULT_FILE = Path("/etc/vmstack/vmstackd.toml")
ENVIRONMENT_PREFIX = "VMSTACKD_"


class SettingsError(Exception):
    """A setting that cannot be used: where it stands, which one, what is allowed. One line."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one daemon runs with. Each field is a row of SETTINGS."""

    hypervisor: str
    require_hypervisor: bool
    topology: str
    exclude_cpus: tuple[int, ...]
    reserved_memory: int
    policy: str
    critical_size: int
    critical_sizes: Mapping[int, int]
    period: float
    dbus: str
    socket: str
    http_host: str
    http_port: int
    http_names: tuple[str, ...]
    image_roots: tuple[str, ...]
    machine: str
    emulator: str
    network: str
    virt_type: Literal["auto", "kvm", "qemu"]
    workers: int
    debug: int


class Setting(msgspec.Struct, frozen=True):
    """One row. read: from a text or a TOML value to the field's value, raising ValueError with what is
    allowed. legacy: the prototype's name in an env file. reload: whether SIGHUP can change it.
    """

    key: str
    default: Any
    read: Callable[[Any], Any]
    metavar: str
    help: str
    legacy: str = ""
    reload: bool = False

    @property
    def flag(self) -> str:
        """The command-line option."""
        return "--" + self.key.replace("_", "-")

    @property
    def shown_default(self) -> str:
        """The default as people write it; empty where nothing is set."""
        match self.default:
            case bool():
                return "yes" if self.default else "no"
            case tuple():
                return ",".join(map(str, self.default))
            case dict():
                return ""
            case _:
                return str(self.default)

    @property
    def variable(self) -> str:
        """The environment variable."""
        return ENVIRONMENT_PREFIX + self.key.upper()


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def read(value: object) -> int:
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,12}", value):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return read


def _seconds(value: object) -> float:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value):
        value = float(value)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0.1 <= value <= 86400:
        raise ValueError("seconds from 0.1 to 86400")
    return float(value)


def _text(allowed: str, pattern: str) -> Callable[[Any], str]:
    def read(value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(allowed)
        return value

    return read


def _yes_or_no(value: object) -> bool:
    known = {True: True, False: False, "yes": True, "no": False}
    if not isinstance(value, bool | str) or value not in known:
        raise ValueError("yes or no (in TOML: true or false)")
    return known[value]


def _one_of(*names: str) -> Callable[[Any], str]:
    def read(value: object) -> str:
        if value not in names:
            raise ValueError("one of " + ", ".join(names))
        return str(value)

    return read


def _names(allowed: str, pattern: str) -> Callable[[Any], tuple[str, ...]]:
    def read(value: object) -> tuple[str, ...]:
        items = [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(i, str) and re.fullmatch(pattern, i) for i in items):
            raise ValueError(allowed)
        return tuple(items)

    return read


def _cpus(value: object) -> tuple[int, ...]:
    try:
        if isinstance(value, str):
            return parse_cpu_list(value)
    except CpuListError as error:
        raise ValueError(f"a CPU list such as 0-1,64-65 ({error})") from error
    raise ValueError("a CPU list such as 0-1,64-65")


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
            level, count = parse_level(text), _whole(0, 1_000_000)(size)
        except LevelError as error:
            raise ValueError(f"{allowed} ({error})") from error
        except ValueError as error:
            raise ValueError(f"{allowed} (level {text}: {error})") from error
        sizes[level] = count
    if len(sizes) != len(pairs):
        raise ValueError(f"{allowed}, each level once")
    return sizes


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "hypervisor",
        "qemu:///system",
        _text("a libvirt URI, or sim:", r"[a-z][a-z0-9+.-]*:\S*"),
        "URI",
        "libvirt URI, or sim: for simulated VMs",
        "QEMU_URL",
    ),
    Setting(
        "require_hypervisor",
        True,
        _yes_or_no,
        "YES|NO",
        "end if the hypervisor does not answer at the start; no: serve readers and go on trying",
    ),
    Setting(
        "topology",
        "sysfs",
        _text("sysfs, a file, or synthetic:KEY=N,...", r".+"),
        "SOURCE",
        "the host's CPUs: sysfs, a JSON file, or synthetic:sockets=2,numa=1,l3=16,cores=4,smt=2",
    ),
    Setting("exclude_cpus", (), _cpus, "LIST", "CPUs that VMs must not use, such as 0-1,64-65", "TOPO_EXCLUDE"),
    Setting("reserved_memory", 0, _whole(0, 1 << 30), "MIB", "memory that is not for VMs, in MiB"),
    Setting(
        "policy",
        DEFAULT_POLICY,
        _one_of(*POLICIES),
        "NAME",
        "how CPUs are chosen: " + ", ".join(POLICIES),
        reload=True,
    ),
    Setting(
        "critical_size",
        6,
        _whole(0, 1_000_000),
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
        _seconds,
        "SECONDS",
        "time between two comparisons with the hypervisor",
        "SCL_DELAY",
        reload=True,
    ),
    Setting(
        "dbus",
        "system",
        _text(
            "system, session, none, or a D-Bus address such as unix:path=/run/bus", r"system|session|none|[a-z]+:\S+"
        ),
        "BUS",
        "the D-Bus to be on: system, session, none, or an address",
    ),
    Setting(
        "socket",
        "/run/vmstack/vmstackd.sock",
        _text("an absolute path, or none", r"none|/.+"),
        "PATH",
        "Unix socket for vmstackctl and other msgpack-RPC clients, or none",
    ),
    Setting(
        "http_host",
        "127.0.0.1",
        _text("an address or a host name", r"[A-Za-z0-9._:%-]+"),
        "ADDRESS",
        "address of the HTTP endpoint",
        "SCL_URL",
    ),
    Setting("http_port", 8099, _whole(0, 65535), "PORT", "port of the HTTP endpoint; 0 = any free one", "SCL_PORT"),
    Setting(
        "http_names",
        (),
        _names("a comma separated list of host names", r"[A-Za-z0-9.:_-]+"),
        "NAMES",
        "further host names that HTTP requests may be addressed to",
        reload=True,
    ),
    Setting(
        "image_roots",
        ("/var/lib/libvirt/images",),
        _names("a comma separated list of absolute folders", r"/.*"),
        "FOLDERS",
        "folders that disk images may be in",
        reload=True,
    ),
    Setting(
        "machine",
        "q35",
        _text("a QEMU machine type", r"[A-Za-z0-9._-]+"),
        "TYPE",
        "QEMU machine type",
        "QEMU_MACHINE",
        reload=True,
    ),
    Setting(
        "emulator",
        "",
        _text("an absolute path, or nothing for libvirt's choice", r"(/.*)?"),
        "PATH",
        "QEMU binary; libvirt's choice if not given",
        "QEMU_LOC",
    ),
    Setting(
        "network",
        "",
        _text("bridge:NAME, network:NAME, or nothing", r"((bridge|network):[A-Za-z0-9._-]+)?"),
        "KIND:NAME",
        "network of new VMs, as bridge:br0 or network:default; none if not given",
        reload=True,
    ),
    Setting(
        "virt_type",
        "auto",
        _one_of("auto", "kvm", "qemu"),
        "TYPE",
        "kvm, qemu (emulated), or auto: kvm where a guest really runs with it",
    ),
    Setting("workers", 4, _whole(1, 64), "N", "libvirt calls that may run at the same time"),
    Setting("debug", 0, _whole(0, 9), "N", "more in the log if above 0", reload=True),
)
"""The table."""

IGNORED_LEGACY = re.compile(r"(SCG|INFLUXDB)_[A-Z_]+|SCL_ACT_[A-Z]+")
"""Keys of the prototype that have no meaning for a host daemon."""


def load_settings(
    flags: Mapping[str, str],
    environment: Mapping[str, str],
    env_file: Path | None = None,
    config_file: Path | None = None,
) -> Settings:
    """Put all sources together. flags: texts by key, only those given.

    config_file None: DEFAULT_FILE, if there is one. Raises SettingsError.
    """
    rows = {row.key: row for row in SETTINGS}
    found: dict[str, Any] = {row.key: row.default for row in SETTINGS}

    def take(key: str, value: object, where: str) -> None:
        try:
            found[key] = rows[key].read(value)
        except ValueError as error:
            raise SettingsError(f"{where}: {_shown(value)} is not allowed; it must be {error}") from error

    path = DEFAULT_FILE if config_file is None else config_file
    for key, value in _read_toml(path, optional=config_file is None).items():
        if key not in rows:
            raise SettingsError(f"{path}: {key}: there is no such setting; known are {', '.join(sorted(rows))}")
        take(key, value, f"{path}: {key}")
    if env_file is not None:
        _take_env_file(env_file, take)
    for row in SETTINGS:
        if row.variable in environment:
            take(row.key, environment[row.variable], f"environment variable {row.variable}")
    for key, text in flags.items():
        take(key, text, rows[key].flag)
    return Settings(**found)


def _shown(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 200:
        return "so large a number"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _read_toml(path: Path, *, optional: bool) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        if optional and isinstance(error, FileNotFoundError | NotADirectoryError):
            return {}
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path}: not a TOML file: {error}") from error


def _take_env_file(path: Path, take: Callable[[str, object, str], None]) -> None:
    by_name = {row.legacy: row.key for row in SETTINGS if row.legacy} | {row.variable: row.key for row in SETTINGS}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: not a text file: {error}") from error
    for number, line in enumerate(lines, 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        match = re.fullmatch(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)", stripped)
        if match is None:
            raise SettingsError(f"{path}: line {number}: not of the form KEY=VALUE")
        name, value = match[1], match[2]
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        if name in by_name:
            take(by_name[name], value, f"{path}: line {number}: {name}")
        elif not IGNORED_LEGACY.fullmatch(name):
            raise SettingsError(f"{path}: line {number}: {name}: there is no such setting")
