"""Every setting of globald, once: its key in the file, in the environment, as a flag, and its meaning."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from core.host_policy import DEFAULT_HOST_POLICY, HOST_POLICIES
from globald.sources import STATIC, read_address
from vmstackd.address import is_loopback, parse_address
from vmstackd.daemon import table
from vmstackd.daemon.table import Setting, SettingsError, Table

__all__ = ["TABLE", "Settings", "SettingsError", "load_settings"]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one globald runs with. Each field is a row of TABLE."""

    hosts: tuple[str, ...]
    hosts_dir: str
    policy: str
    attempts: int
    patience: float
    socket: str
    tcp_host: str
    tcp_port: int
    tls_ca: str
    tls_certificate: str
    tls_key: str
    http_host: str
    http_port: int
    http_names: tuple[str, ...]
    debug: int


def _hosts(value: object) -> tuple[str, ...]:
    texts = [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("a comma separated list of HOST:PORT")
    addresses = [read_address(text) for text in texts]
    if len(set(addresses)) != len(addresses):
        raise ValueError("a list in which each host stands once")
    return tuple(addresses)


TABLE = Table(
    program="globald",
    prefix="GLOBALD_",
    file=Path("/etc/vmstack/globald.toml"),
    rows=(
        Setting(
            "hosts",
            (),
            _hosts,
            "ADDRESSES",
            f"the hosts, as HOST:PORT of their vmstackd, comma separated ({STATIC}: only a restart changes them)",
            "SCG_NODE_URL_LIST",
        ),
        Setting(
            "hosts_dir",
            "/etc/vmstack/hosts.d",
            table.text("an absolute path, or none", r"none|/.+"),
            "FOLDER",
            "folder whose *.toml files name further hosts, looked at all the time; or none",
        ),
        Setting(
            "policy",
            DEFAULT_HOST_POLICY,
            table.one_of(*HOST_POLICIES),
            "NAME",
            "how the host of a new VM is chosen: " + ", ".join(HOST_POLICIES),
            reload=True,
        ),
        Setting(
            "attempts",
            3,
            table.whole(1, 100),
            "HOSTS",
            "hosts that are asked for one VM, if the first ones refuse it",
            reload=True,
        ),
        Setting(
            "patience",
            10.0,
            table.seconds,
            "SECONDS",
            "how long hosts may take to answer at the start; until then, nothing new is deployed",
        ),
        *table.doors(socket="/run/vmstack/globald.sock", tcp_port=8098, http_port=8100, legacy="SCG"),
        table.DEBUG,
    ),
    skipped=re.compile(r"SCG_DELAY|(SCL|QEMU|TOPO|OVSB|INFLUXDB)_[A-Z_]+"),
)


def load_settings(
    flags: Mapping[str, str],
    environment: Mapping[str, str],
    env_file: Path | None = None,
    config_file: Path | None = None,
) -> Settings:
    """Put all sources together, as ``load`` of the table does. Raises SettingsError."""
    settings = Settings(**table.load(TABLE, flags, environment, env_file, config_file))
    beyond = [address for address in settings.hosts if _is_elsewhere(parse_address(address).host)]
    if beyond and not (settings.tls_ca or settings.tls_certificate or settings.tls_key):
        raise SettingsError(
            f"hosts: {beyond[0]} is beyond this machine, and plain TCP is refused there: set tls_ca, tls_certificate "
            "and tls_key; vmstackctl pki client NAME --role globald makes a certificate"
        )
    return settings


def _is_elsewhere(host: str) -> bool:
    """Whether an address is another machine's; what a name stands for is seen when it is called."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return not is_loopback(host)
