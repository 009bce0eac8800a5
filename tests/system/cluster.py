"""A cluster of boxes: vmstackd in each of them, a globald in a box of its own, certificates, and who asks them."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.running import ROOT
from tests.system.box import Box
from tests.system.lab import Lab
from tests.system.network import run_in
from tests.system.package import IMAGES
from vmstackctl.__main__ import main as vmstackctl
from vmstackd.api import requests
from vmstackd.api.errors import AlreadyExists, NoCapacity, Unavailable, VmstackError
from vmstackd.api.replies import Deployed, HostReply
from vmstackd.client import Client
from vmstackd.tls import Tls, TlsFiles

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds for what takes at most some: generous, so that a busy machine fails nothing."""
SOURCES = {"/opt/source": ROOT, "/opt/venv": Path(sys.prefix)}
PYTHON = "/opt/venv/bin/python"
SETTINGS = "/etc/vmstack"
STATE = "/srv/vmstack"
HOSTS_DIR = f"{SETTINGS}/hosts.d"
HOST_PORT, GLOBALD_PORT = 8097, 8098

UNIT = """[Unit]
StartLimitIntervalSec=0

[Service]
Type=notify
WorkingDirectory=/opt/source
ExecStart=/opt/venv/bin/python -m {program} --config {settings}/%i.toml
Environment=VMSTACKD_REQUIRE_HYPERVISOR=no
Restart=always
RestartSec=300ms
RestartPreventExitStatus=78
KillMode=process
RuntimeDirectory=vmstack
RuntimeDirectoryPreserve=yes

[Install]
WantedBy=multi-user.target
"""
"""As the package's, as far as it matters here; %i is the name of the host."""


class Authority:
    """Makes certificates in a folder, as operators do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._make("init")

    def host(self, name: str, *addresses: str) -> TlsFiles:
        """For a vmstackd that is called by these addresses."""
        return self._make("host", name, *(word for address in addresses for word in ("--address", address)))

    def client(self, name: str, role: str, *addresses: str) -> TlsFiles:
        """For whoever calls."""
        return self._make(
            "client", name, "--role", role, *(word for address in addresses for word in ("--address", address))
        )

    def expired(self, files: TlsFiles) -> None:
        """Make another certificate of this one: it ended an hour ago."""
        ca = x509.load_pem_x509_certificate(files.ca.read_bytes())
        key = serialization.load_pem_private_key((self.folder / "ca.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        good = x509.load_pem_x509_certificate(files.certificate.read_bytes())
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder(ca.subject, good.subject, good.public_key(), x509.random_serial_number())
        for extension in good.extensions:
            builder = builder.add_extension(extension.value, critical=extension.critical)
        builder = builder.not_valid_before(now - datetime.timedelta(days=2))
        builder = builder.not_valid_after(now - datetime.timedelta(hours=1))
        files.certificate.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def _make(self, *words: str) -> TlsFiles:
        assert vmstackctl(["pki", *words, "--dir", str(self.folder)]) == 0
        name = self.folder / (words[1] if len(words) > 1 else "ca")
        return TlsFiles(self.folder / "ca.crt", name.with_name(f"{name.name}.crt"), name.with_name(f"{name.name}.key"))


class Server:
    """A daemon of ours in a box, as a service that systemd starts again. name: of the host, and of its files."""

    def __init__(self, box: Box, program: str, name: str, port: int) -> None:
        self.box = box
        self.name = name
        self.address = f"{box.address}:{port}"
        self.port = port
        self.unit = f"{program}@{name}.service"
        box.write(f"/etc/systemd/system/{program}@.service", UNIT.format(program=program, settings=SETTINGS))

    def configure(self, text: str, files: TlsFiles) -> None:
        """Write its settings, and its certificate."""
        box = self.box
        box.write(f"{SETTINGS}/{self.name}.toml", f"{self.tls_settings()}{text}\n")
        box.path(STATE).mkdir(exist_ok=True)
        self.certify(files)

    def tls_settings(self) -> str:
        """That name its certificate."""
        return "".join(f'{field} = "{SETTINGS}/{self.name}/{place}"\n' for field, place in _PLACES.items())

    def certify(self, files: TlsFiles) -> None:
        """Replace its certificate and key, whether it runs or not."""
        for place, file in zip(_PLACES.values(), (files.ca, files.certificate, files.key), strict=True):
            new = f"{SETTINGS}/{self.name}/.{place}"
            self.box.write(new, file.read_text(), 0o600)
            self.box.path(new).rename(self.box.path(new).with_name(place))

    def systemctl(self, verb: str, *words: str) -> str:
        """What systemctl does with it, or tells of it."""
        return self.box.enter("systemctl", verb, *words, self.unit).stdout

    def kill(self, signal: str) -> None:
        """Send a signal to its process, nothing else."""
        self.box.enter("kill", f"-{signal}", str(self.pid))

    @property
    def pid(self) -> int:
        """In its box."""
        return int(self.systemctl("show", "--property=MainPID", "--value"))

    def log(self) -> str:
        """All that it ever wrote."""
        return self.box.journal(f"--unit={self.unit}", "--output=cat")


_PLACES = {"tls_ca": "ca.crt", "tls_certificate": "certificate.crt", "tls_key": "private.key"}


def host_settings(server: Server, more: str) -> str:
    """For a vmstackd that only its certificate opens."""
    return f"""name = "{server.name}"
tcp_host = "{server.box.address}"
tcp_port = {server.port}
http_port = 0
socket = "none"
state_dir = "{STATE}/{server.name}"
{more}"""


def host(box: Box, authority: Authority, name: str, settings: str, port: int = HOST_PORT) -> Server:
    """A running vmstackd."""
    server = Server(box, "vmstackd", name, port)
    server.configure(host_settings(server, settings), authority.host(name, str(box.address)))
    server.systemctl("enable", "--now")
    return server


def globald_of(box: Box, authority: Authority, hosts: Iterable[Server]) -> Server:
    """A running globald, with these hosts in its settings."""
    server = Server(box, "globald", "globald", GLOBALD_PORT)
    addresses = ", ".join(f'"{host.address}"' for host in hosts)
    server.configure(
        f'hosts = [{addresses}]\nhosts_dir = "{HOSTS_DIR}"\ntcp_host = "{box.address}"\n',
        authority.client("globald", "globald", str(box.address)),
    )
    server.systemctl("enable", "--now")
    return server


class Cluster:
    """hosts: by name, those that stand in globald's settings."""

    def __init__(self, lab: Lab, globald: Server, hosts: Mapping[str, Server], operator: TlsFiles) -> None:
        self.lab = lab
        self.globald = globald
        self.hosts = dict(hosts)
        self.tls = Tls(operator)

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run what asks the daemons."""
        return run_in(self.lab, work, 4 * PATIENCE)

    def connect(self, server: Server | None = None, tls: Tls | None = None) -> Awaitable[Client]:
        """To globald, or to a host; as an operator, or with another certificate."""
        address = (server or self.globald).address
        return Client.connect(address, program="test", tls=tls or self.tls)

    @contextlib.asynccontextmanager
    async def asked(self, server: Server | None = None) -> AsyncIterator[Client]:
        """A connection as an operator, for a while."""
        async with await self.connect(server) as client:
            yield client

    async def told(self, client: Client, host: str) -> HostReply:
        """What globald says of a host, by its name or address."""
        return next(found for found in (await client.hosts()).hosts if host in (found.name, found.address))

    async def in_state(self, client: Client, host: str, state: str) -> HostReply:
        """The same, once it is in this state."""

        async def reached() -> bool:
            return (await self.told(client, host)).state == state

        await until(reached, f"host {host} is not {state}")
        return await self.told(client, host)

    async def joined_anew(self, client: Client, before: HostReply) -> None:
        """Return once a host, of which this was told, has joined again since."""

        async def joined() -> bool:
            now = await self.told(client, before.address)
            return now.since > before.since and now.state == before.state

        await until(joined, f"host {before.name} has not joined again")

    async def settle(self, client: Client, names: Iterable[str]) -> dict[str, str]:
        """Order these VMs again, of which nobody knew whether they exist, until they do. Returns their hosts."""
        hosts = {}
        for name in names:

            async def exists(name: str = name) -> bool:
                with contextlib.suppress(AlreadyExists):
                    await client.deploy(vm(name))
                return any(listed.name == name for listed in (await client.list()).vms)

            await until(exists, f"{name!r} can neither be deployed nor is it there")
            hosts[name] = (await client.describe(requests.Describe(name=name))).host
        return hosts

    async def all_up(self, *names: str) -> None:
        """Return once these hosts, or all, are up for a globald that has learned what they have."""

        async def up() -> bool:
            async with self.asked() as client:
                states = {host.name: host.state for host in (await client.hosts()).hosts}
                if any(states.get(name) not in ("up", "cordoned") for name in names or self.hosts):
                    return False
                # It would say so if it still waited for hosts.
                with contextlib.suppress(NoCapacity):
                    await client.deploy(vm("nobody", dry_run=True))
            return True

        await until(up, f"not all hosts are up: {names or tuple(self.hosts)}")

    async def there(self) -> dict[str, str]:
        """Which VM is on which host, as the hosts themselves tell. Fails if one is on two."""
        found: list[tuple[str, str]] = []
        for server in self.hosts.values():
            async with self.asked(server) as host:
                found += [(listed.name, server.name) for listed in (await host.list()).vms]
        doubled = [name for name, count in Counter(name for name, _ in found).items() if count > 1]
        assert not doubled, f"on more than one host: {[pair for pair in found if pair[0] in doubled]}"
        return dict(found)

    async def audit(self, acknowledged: Mapping[str, str], refused: Iterable[str] = ()) -> dict[str, str]:
        """Every VM exists once, where globald says it is; what was acknowledged exists, what was refused does not.

        acknowledged: hosts by VM. Returns the hosts by VM, as they are.
        """
        await self.all_up()
        there: dict[str, str] = {}
        async with self.asked() as client:

            async def agreed() -> bool:
                """What was under way may still come to its end."""
                nonlocal there
                there = await self.there()
                listed = [(listed.name, listed.host) for listed in (await client.list()).vms]
                return sorted(listed) == sorted(there.items())

            await until(agreed, "globald and the hosts do not agree on which VMs there are")
            assert acknowledged.items() <= there.items(), set(acknowledged.items()) - set(there.items())
            assert not there.keys() & set(refused)

            async def counted() -> bool:
                """What globald counts on comes from what hosts push, after their answers."""
                return (await client.status()).host.vms == len(there)

            await until(counted, "globald does not count as many VMs as there are")
            assert not (await client.hosts()).duplicates
            for name, host in there.items():
                error = await refusal(client.deploy(vm(name, dry_run=True)))
                assert isinstance(error, AlreadyExists), error
                assert repr(host) in error.message
        return there

    async def clear(self) -> None:
        """Remove every VM from every host, and wait for globald to know."""
        await self.all_up()

        async def removed() -> bool:
            """An order of before may still be carried out after a look."""
            for server in self.hosts.values():
                async with self.asked(server) as host:
                    names = [listed.name for listed in (await host.list()).vms]
                    await asyncio.gather(*(host.remove(requests.Remove(name=name)) for name in names))
            async with self.asked() as client:
                return not (await client.status()).host.vms and not (await client.list()).vms

        await until(removed, "there are still VMs, or globald does not know that they are gone")


def vm(
    name: str,
    vcpus: int = 1,
    memory_mib: int = 64,
    level: int = 4000,
    *,
    image: str = "any",
    host: str = "",
    dry_run: bool = False,
) -> requests.Deploy:
    """An order; a small VM if nothing else is said."""
    image = f"{IMAGES}/{image}.qcow2"
    return requests.Deploy(
        name=name, vcpus=vcpus, memory_mib=memory_mib, level=level, image=image, host=host, dry_run=dry_run
    )


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Return once the condition holds; as long as it cannot be asked, it does not."""
    deadline = time.monotonic() + PATIENCE
    error: VmstackError | None = None
    while time.monotonic() < deadline:
        try:
            if await condition():
                return
        except VmstackError as problem:
            error = problem
        await asyncio.sleep(0.1)
    raise AssertionError(f"{what} ({error})")


async def refusal(call: Awaitable[Any]) -> VmstackError:
    """The error with which a call ends."""
    try:
        reply = await call
    except VmstackError as error:
        return error
    raise AssertionError(f"not refused: {reply}")


class Outcome(msgspec.Struct):
    """How deployments ended. done: hosts by VM. doubtful: nobody knows yet; refused: certainly not there."""

    done: dict[str, str] = {}
    doubtful: dict[str, VmstackError] = {}
    refused: dict[str, VmstackError] = {}

    def enter(self, name: str, end: Deployed | VmstackError) -> None:
        """Keep how one ended."""
        if isinstance(end, Deployed):
            self.done[name] = end.host
        elif end.details.get("outcome") == "unknown":
            self.doubtful[name] = end
        else:
            self.refused[name] = end


async def deploy_all(
    client: Client,
    orders: Iterable[requests.Deploy],
    *,
    pace: float = 0.0,
    meanwhile: Callable[[], None] | None = None,
    after: int = 0,
) -> Outcome:
    """All at the same time, each begun so many seconds after the one before.

    meanwhile: done once, in a thread, when so many are done.
    """
    outcome = Outcome()
    doing: list[asyncio.Task[None]] = []

    async def deploy(order: requests.Deploy, wait: float) -> None:
        await asyncio.sleep(wait)
        try:
            end: Deployed | VmstackError = await client.deploy(order)
        except VmstackError as error:
            end = error
        outcome.enter(order.name, end)
        if meanwhile is not None and len(outcome.done) > after and not doing:
            doing.append(asyncio.create_task(asyncio.to_thread(meanwhile)))

    await asyncio.gather(*(deploy(order, pace * number) for number, order in enumerate(orders)))
    await asyncio.gather(*doing)
    assert meanwhile is None or doing, "it ended before anything happened"
    return outcome


async def insist(cluster: Cluster, orders: Iterable[requests.Deploy], done: dict[str, str]) -> None:
    """Deploy one after the other, whatever happens to globald: connect anew, and ask again with the same name.

    done: gets the hosts by VM.
    """
    for order in orders:
        doubtful = False

        async def ended(order: requests.Deploy = order) -> bool:
            nonlocal doubtful
            async with cluster.asked() as client:
                try:
                    done[order.name] = (await client.deploy(order)).host
                except Unavailable:
                    doubtful = True
                    raise
                except AlreadyExists:
                    assert doubtful, f"{order.name!r} was ordered for the first time"
                    done[order.name] = (await client.describe(requests.Describe(name=order.name))).host
            return True

        await until(ended, f"{order.name!r} cannot be deployed")


def ctl(box: Box, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """vmstackctl in a box, of the cluster whose globald runs there."""
    return box.run(
        PYTHON, "-m", "vmstackctl", "--cluster", *words, check=check, properties=["WorkingDirectory=/opt/source"]
    )
