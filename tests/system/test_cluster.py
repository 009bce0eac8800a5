"""A cluster of whole machines, with real TLS between them, while its machines, daemons and network fail.

At the end of each test every VM exists exactly once, where globald says it is. Hosts simulate their VMs, and lose them
with their vmstackd; but for one, whose VMs are real.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ssl
import statistics
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.system.box import Box
from tests.system.cluster import (
    HOST_PORT,
    HOSTS_DIR,
    PATIENCE,
    PYTHON,
    SOURCES,
    STATE,
    Authority,
    Cluster,
    Outcome,
    Server,
    ctl,
    deploy_all,
    globald_of,
    host,
    host_settings,
    insist,
    refusal,
    until,
    vm,
)
from tests.system.lab import Lab, missing
from tests.system.network import delaying_proxy
from tests.system.package import REAL, put_images
from tests.system.test_box import missing_libvirt
from vmstackd import wire
from vmstackd.api import replies, requests, session
from vmstackd.api.errors import AlreadyExists, Denied, NoCapacity, NotFound, Unavailable, VmstackError
from vmstackd.client import Client
from vmstackd.tls import Tls, TlsFiles

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(missing()), reason=f"boxes: {missing()}"),
    pytest.mark.skipif(bool(missing_libvirt), reason=f"libvirt: {missing_libvirt}"),
]

SIMULATED = {
    "small": (11, "l3=2,cores=4,smt=2,memory=65536"),
    "medium": (12, "l3=4,cores=4,smt=2,memory=131072"),
    "large": (13, "l3=8,cores=4,smt=2,memory=262144"),
}
"""Last part of the address, topology: 16, 32 and 64 CPUs."""
REAL_VMS = tuple(f"real{number}" for number in range(8))
SPARE = "10.77.0.15"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki") / "ours")


@pytest.fixture(scope="module")
def operator(authority: Authority) -> TlsFiles:
    return authority.client("operator", "operator")


@pytest.fixture(scope="module")
def cluster(lab: Lab, authority: Authority, operator: TlsFiles) -> Iterator[Cluster]:
    """Three hosts of different sizes, and one with real VMs, which gets none unless a test says so."""
    with contextlib.ExitStack() as boxes:

        def boot(name: str, number: int) -> Box:
            return boxes.enter_context(Box(lab, name, read_only=SOURCES, address=f"10.77.0.{number}"))

        hosts = {
            name: host(boot(name, number), authority, name, simulated(shape))
            for name, (number, shape) in SIMULATED.items()
        }
        real = boot("real", 14)
        put_images(real, *(f"{name}.qcow2" for name in (*REAL_VMS, "any")))
        real.enter("systemctl", "start", "libvirtd")
        hosts["real"] = host(real, authority, "real", f'{REAL}dbus = "none"\n')
        globald = globald_of(boot("globald", 10), authority, hosts.values())
        made = Cluster(lab, globald, hosts, operator)
        made.run(lambda: set_cordon(made, "real", on=True))
        yield made


@pytest.fixture(scope="module")
def spare(lab: Lab) -> Iterator[Box]:
    """A machine that is not part of the cluster."""
    with Box(lab, "spare", read_only=SOURCES, address=SPARE) as box:
        yield box


@pytest.fixture(autouse=True)
def _as_new(cluster: Cluster) -> Iterator[None]:
    """Each test leaves all up, no VM, and no hosts but those of the settings."""
    yield
    for server in (cluster.globald, *cluster.hosts.values()):
        if not server.box.leader:
            server.box.start()
        server.box.thaw()
        server.box.heal()
        server.systemctl("kill", "--signal=CONT")
        server.systemctl("start")
    for file in cluster.globald.box.path(HOSTS_DIR).glob("*.toml"):
        file.unlink()
    cluster.run(cluster.clear)


def simulated(shape: str) -> str:
    return f'hypervisor = "sim:"\ntopology = "synthetic:sockets=1,{shape}"\ndbus = "none"\n'


async def set_cordon(cluster: Cluster, name: str, *, on: bool) -> None:
    await cluster.all_up(name)
    async with cluster.asked() as client:
        if on:
            await client.cordon(requests.Cordon(reason="only real VMs", host=name))
        else:
            await client.uncordon(requests.Uncordon(host=name))


@contextlib.contextmanager
def grown(cluster: Cluster, *servers: Server) -> Iterator[None]:
    """The cluster has these hosts too, for a while."""
    try:
        cluster.hosts |= {server.name: server for server in servers}
        yield
    finally:
        for server in servers:
            del cluster.hosts[server.name]


def name_hosts(cluster: Cluster, file: str, *addresses: str) -> None:
    """Write a file of hosts.d as operators do: whole, or not at all."""
    new = f"{HOSTS_DIR}/.{file}"
    cluster.globald.box.write(new, f"addresses = {list(addresses)}\n")
    cluster.globald.box.path(new).rename(cluster.globald.box.path(f"{HOSTS_DIR}/{file}.toml"))


def everywhere(prefix: str, count: int = 50) -> list[requests.Deploy]:
    """As many orders: for each of the hosts, and for any."""
    return [vm(f"{prefix}{number}", host=("", *SIMULATED)[number % 4]) for number in range(count)]


def only_for(outcome: Outcome, host: str) -> bool:
    """Whether all that came to nothing, or may have, was for this host."""
    errors = (outcome.refused | outcome.doubtful).values()
    return all(isinstance(error, Unavailable) and f"host '{host}'" in error.message for error in errors)


def running(box: Box) -> set[str]:
    """Real VMs, as libvirt tells."""
    return set(box.enter("virsh", "list", "--name").stdout.split())


def on(done: Mapping[str, str], *hosts: str) -> dict[str, str]:
    """Those VMs that are on one of these hosts."""
    return {name: host for name, host in done.items() if host in hosts}


# --- full -----------------------------------------------------------------------------------------------------------


def test_the_cluster_is_filled_to_its_last_cpu_and_emptied(cluster: Cluster) -> None:
    async def fill() -> None:
        async with cluster.asked() as client:
            outcome = await deploy_all(client, (vm(f"full{number}", 4, 1024, 1000) for number in range(40)))
            there = await cluster.audit(outcome.done, outcome.refused)
            assert {name: len(on(there, name)) for name in SIMULATED} == {"small": 4, "medium": 8, "large": 16}
            assert len(outcome.refused) == 12
            for error in outcome.refused.values():
                assert isinstance(error, NoCapacity)
                assert error.message.startswith("no host for it: 4 hosts: ")
                assert error.details["cpu"] == 3
                assert error.details["cordoned"] == 1
            removed = await asyncio.gather(*(client.remove(requests.Remove(name=name)) for name in there))
            assert {reply.name: reply.host for reply in removed} == there
            assert not await cluster.audit({}, there)

    cluster.run(fill)


# --- faults of hosts ------------------------------------------------------------------------------------------------


def test_the_others_are_served_while_a_host_is_cut_off(cluster: Cluster) -> None:
    small = cluster.hosts["small"].box
    is_cut = threading.Event()

    def cut() -> None:
        small.cut()
        is_cut.set()

    async def part() -> None:
        served: list[replies.Deployed] = []
        async with cluster.asked() as client:
            storm = asyncio.create_task(deploy_all(client, everywhere("cut"), pace=0.01, meanwhile=cut, after=15))
            assert await asyncio.to_thread(is_cut.wait, PATIENCE)

            async def noticed() -> bool:
                """Until then, and not only afterwards, the others are served."""
                for name in ("medium", "large"):
                    try:
                        served.append(await client.deploy(vm(f"served{len(served)}", host=name)))
                    except VmstackError as error:
                        raise AssertionError(f"{name} is not served") from error
                return (await cluster.told(client, "small")).state == "unknown"

            await until(noticed, "it is not noticed")
            assert len(served) > 2, "it was noticed before anybody could be served"
            outcome = await storm
            assert only_for(outcome, "small")
            known = sorted(on(outcome.done, "small"))
            assert known, "no VM was there before"
            shown = {listed.name: listed.state for listed in (await client.list()).vms if listed.host == "small"}
            assert shown == dict.fromkeys(known, "unknown")
            for name in (known[0], *outcome.doubtful):
                assert isinstance(await refusal(client.deploy(vm(name))), AlreadyExists)
            assert isinstance(await refusal(client.remove(requests.Remove(name=known[0]))), Unavailable)
            assert isinstance(await refusal(client.deploy(vm("there", host="small"))), Unavailable)
            late = await client.deploy(vm("late"))
            assert late.host != "small"
            small.heal()
            await cluster.in_state(client, "small", "up")
            hosts = outcome.done | {reply.name: reply.host for reply in (*served, late)}
            await cluster.audit(hosts, outcome.refused)
            await cluster.audit(hosts | await cluster.settle(client, outcome.doubtful))

    cluster.run(part)


def test_orders_that_arrived_without_an_answer_are_known_later(cluster: Cluster) -> None:
    """The line fails one way: the host gets its orders and carries them out, but is not heard any more."""
    small = cluster.hosts["small"].box
    way_back = ("blackhole", str(cluster.globald.box.address))

    async def mute() -> None:
        async with cluster.asked() as client:
            small.enter("ip", "route", "add", *way_back)
            orders = [vm(f"mute{number}", host=("", "small")[number % 2]) for number in range(10)]
            outcome = await deploy_all(client, orders)
            assert not outcome.refused
            assert len(outcome.doubtful) >= 5
            await cluster.in_state(client, "small", "unknown")
            assert outcome.doubtful.keys() <= (await cluster.there()).keys(), "they did not arrive"
            for name in outcome.doubtful:
                assert isinstance(await refusal(client.deploy(vm(name, host="large"))), AlreadyExists)
            small.enter("ip", "route", "delete", *way_back)
            await cluster.in_state(client, "small", "up")
            await cluster.audit(outcome.done | dict.fromkeys(outcome.doubtful, "small"))

    try:
        cluster.run(mute)
    finally:
        small.enter("ip", "route", "delete", *way_back, check=False)


def test_a_short_break_is_bridged(cluster: Cluster) -> None:
    small = cluster.hosts["small"].box

    async def interrupt() -> None:
        async with cluster.asked() as client:
            before = await cluster.told(client, "small")
            small.cut()
            working = asyncio.create_task(deploy_all(client, (vm(f"short{n}", host="small") for n in range(10))))
            assert not (await asyncio.wait((working,), timeout=1))[0]
            small.heal()
            outcome = await working
            assert len(outcome.done) == 10
            after = await cluster.told(client, "small")
            assert (after.state, after.since) == ("up", before.since), "the connection was given up"
            await cluster.audit(outcome.done)

    cluster.run(interrupt)


def test_a_machine_that_loses_its_power_comes_back_without_its_vms(cluster: Cluster) -> None:
    medium = cluster.hosts["medium"].box

    async def lose() -> None:
        async with cluster.asked() as client:
            outcome = await deploy_all(client, everywhere("power"), pace=0.01, meanwhile=medium.crash, after=15)
            assert only_for(outcome, "medium")
            down = await cluster.in_state(client, "medium", "unknown")
            lost = sorted(on(outcome.done, "medium"))
            assert down.status is not None
            assert (await client.describe(requests.Describe(name=lost[0]))).state == "unknown"
            assert isinstance(await refusal(client.deploy(vm(lost[0]))), AlreadyExists)
            kept = on(outcome.done, "small", "large")
            kept["other"] = (await client.deploy(vm("other"))).host
            await asyncio.to_thread(medium.start)
            await cluster.in_state(client, "medium", "up")
            kept |= await cluster.settle(client, outcome.doubtful)
            assert await cluster.audit(kept, (*lost, *outcome.refused)) == kept
            assert (await client.deploy(vm(lost[0]))).name == lost[0]

    cluster.run(lose)


def test_real_vms_outlive_a_killed_vmstackd_in_the_middle_of_deployments(cluster: Cluster) -> None:
    real = cluster.hosts["real"]
    before = real.pid

    async def kill() -> None:
        await set_cordon(cluster, "real", on=False)
        try:
            async with cluster.asked() as client:
                joined = await cluster.told(client, "real")
                orders = [vm(name, image=name, host="real") for name in REAL_VMS]
                outcome = await deploy_all(client, orders, meanwhile=functools.partial(real.kill, "KILL"), after=2)
                assert not [error for error in outcome.refused.values() if not isinstance(error, Unavailable)]
                await cluster.joined_anew(client, joined)

                async def seen() -> bool:
                    """Libvirt carries out what it was asked; vmstackd sees it then."""
                    return running(real.box) == (await cluster.there()).keys()

                await until(seen, "not all VMs that run are seen")
                there = await cluster.audit(outcome.done, outcome.refused)
                assert real.pid != before
                # What did not get there is free again, and may be tried again.
                missing_vms = [order for order in orders if order.name not in there]

                async def complete() -> bool:
                    for order in missing_vms:
                        with contextlib.suppress(AlreadyExists):
                            await client.deploy(order)
                    return (await cluster.there()).keys() == set(REAL_VMS)

                await until(complete, "the VMs that were lost on the way cannot be deployed")
                await cluster.audit(dict.fromkeys(REAL_VMS, "real"))
                assert running(real.box) == set(REAL_VMS)
                await asyncio.gather(*(client.remove(requests.Remove(name=name)) for name in REAL_VMS))
                assert not running(real.box)
        finally:
            await set_cordon(cluster, "real", on=True)

    cluster.run(kill)


def test_simulated_vms_end_with_their_vmstackd_and_globald_says_so(cluster: Cluster) -> None:
    small = cluster.hosts["small"]

    async def kill() -> None:
        async with cluster.asked() as client:
            joined = await cluster.told(client, "small")
            kill_it = functools.partial(small.kill, "KILL")
            outcome = await deploy_all(client, everywhere("sim"), pace=0.01, meanwhile=kill_it, after=15)
            assert only_for(outcome, "small")
            kept = on(outcome.done, "medium", "large")
            await cluster.joined_anew(client, joined)
            there = await cluster.audit(kept, outcome.refused)
            lost = outcome.done.keys() - there.keys()
            assert lost
            assert set(on(outcome.done, "small")) >= lost
            for name in lost:
                assert (await client.deploy(vm(name))).host

    cluster.run(kill)


def test_what_is_ordered_of_a_frozen_host_is_never_there_twice(cluster: Cluster) -> None:
    frozen = ("small", "medium")
    small, medium = (cluster.hosts[name] for name in frozen)

    async def freeze() -> None:
        async with cluster.asked() as client:
            before = {f"on-{name}": (await client.deploy(vm(f"on-{name}", host=name))).host for name in frozen}
            small.kill("STOP")
            medium.box.freeze()
            ordered = {name: asyncio.create_task(client.deploy(vm(f"to-{name}", host=name))) for name in frozen}
            storm = asyncio.create_task(deploy_all(client, (vm(f"any{number}") for number in range(12))))
            await asyncio.sleep(0)  # the orders are sent
            while_asked = [await refusal(client.deploy(vm(f"to-{name}", host="large"))) for name in ordered]
            assert all("is being deployed on host" in error.message for error in while_asked), while_asked
            done = {f"other{n}": (await client.deploy(vm(f"other{n}", host="large"))).host for n in range(10)}
            for name, order in ordered.items():
                error = await refusal(order)
                assert (error.code, error.details["outcome"]) == (Unavailable.code, "unknown")
                await cluster.in_state(client, name, "unknown")
                for taken in (f"to-{name}", f"on-{name}"):
                    assert isinstance(await refusal(client.deploy(vm(taken, host="large"))), AlreadyExists)
                assert isinstance(await refusal(client.remove(requests.Remove(name=f"on-{name}"))), Unavailable)
            outcome = await storm
            assert not outcome.refused
            done |= outcome.done
            medium.box.thaw()
            small.kill("CONT")
            for name in frozen:
                await cluster.in_state(client, name, "up")
            await cluster.audit(done | before)
            doubtful = (*outcome.doubtful, *(f"to-{name}" for name in ordered))
            await cluster.audit(done | before | await cluster.settle(client, doubtful))

    cluster.run(freeze)


# --- a slow host ----------------------------------------------------------------------------------------------------


def test_a_host_behind_a_slow_line_slows_down_nobody_else(cluster: Cluster, spare: Box, authority: Authority) -> None:
    far = host(spare, authority, "far", simulated("l3=2,cores=4,smt=2,memory=65536"))
    far.certify(authority.host("far-proxied", SPARE, "10.77.0.1"))
    far.systemctl("restart")

    async def deploy_timed(client: Client, name: str, host: str) -> float:
        begin = time.monotonic()
        assert (await client.deploy(vm(name, host=host))).host == host
        return time.monotonic() - begin

    async def compare() -> None:
        async with delaying_proxy(SPARE, HOST_PORT, 0.5) as address, cluster.asked() as client:
            name_hosts(cluster, "far", address)
            await cluster.all_up()
            slow = asyncio.gather(*(deploy_timed(client, f"far{number}", "far") for number in range(10)))
            near = [await deploy_timed(client, f"near{number}", "large") for number in range(20)]
            assert not slow.done(), "nothing was compared"
            late = await slow
            assert statistics.median(near) * 3 < statistics.median(late), (near, late)
            anywhere = await deploy_all(client, (vm(f"any{number}") for number in range(20)))
            assert not anywhere.refused | anywhere.doubtful
            assert (await cluster.told(client, "far")).state == "up"
            done = {f"far{n}": "far" for n in range(10)} | {f"near{n}": "large" for n in range(20)} | anywhere.done
            await cluster.audit(done)
            await asyncio.gather(*(client.remove(requests.Remove(name=name)) for name in on(done, "far")))

    with grown(cluster, far):
        cluster.run(compare)
    far.systemctl("disable", "--now")


# --- trust ----------------------------------------------------------------------------------------------------------


def test_a_host_with_a_wrong_certificate_is_kept_out_until_it_has_another(
    cluster: Cluster, spare: Box, authority: Authority, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path / "theirs")
    expired = authority.host("was-good", SPARE)
    authority.expired(expired)
    theirs = stranger.host("stranger", SPARE)
    ours = authority.host("believer", SPARE)
    wrong = {
        "stranger": (theirs, "not signed by our authority"),
        "expired": (expired, "it has expired"),
        "elsewhere": (authority.host("elsewhere", "10.77.0.99"), "is for elsewhere, 10.77.0.99, not for 10.77.0.15"),
        "client": (authority.client("no-server", "operator"), "it is not for servers"),
        "believer": (TlsFiles(theirs.ca, ours.certificate, ours.key), "does not accept our certificate"),
    }
    servers = []
    for number, (name, (files, _)) in enumerate(wrong.items()):
        server = Server(spare, "vmstackd", name, 8201 + number)
        server.configure(host_settings(server, simulated("l3=1,cores=2,smt=1,memory=4096")), files)
        server.systemctl("start")
        servers.append(server)
    pids = [server.pid for server in (cluster.globald, *servers)]

    async def replace() -> None:
        async with cluster.asked() as client:
            name_hosts(cluster, "wrong", *(server.address for server in servers))
            for server, (_, why) in zip(servers, wrong.values(), strict=True):
                out = functools.partial(kept_out, client, server.address, why)
                await until(out, f"it is not kept out because {why}")
            outcome = await deploy_all(client, (vm(f"trust{number}") for number in range(20)))
            await cluster.audit(outcome.done)
            assert len(outcome.done) == 20
            for server in servers:
                server.certify(authority.host(f"{server.name}-renewed", SPARE))
            with grown(cluster, *servers):
                await cluster.all_up()
                outcome.done |= {
                    server.name: (await client.deploy(vm(server.name, host=server.name))).host for server in servers
                }
                await cluster.audit(outcome.done)

    cluster.run(replace)
    assert [server.pid for server in (cluster.globald, *servers)] == pids, "something was restarted"
    for server in servers:
        server.systemctl("stop")


async def kept_out(client: Client, address: str, why: str) -> bool:
    """A host that refuses our own certificate looks much as one that is not there; others are quarantined."""
    return any(
        host.address == address and host.state in ("quarantined", "unknown") and why in host.reason
        for host in (await client.hosts()).hosts
    )


async def listed(client: Client, address: str) -> bool:
    return any(host.address == address for host in (await client.hosts()).hosts)


def test_what_a_certificate_allows_is_what_its_role_allows(cluster: Cluster, authority: Authority) -> None:
    small = cluster.hosts["small"]
    reader = Tls(authority.client("reader", "reader"))
    host_itself = Tls(authority.host("another", "10.77.0.98"))

    async def call() -> None:
        for server in (cluster.globald, small):
            async with await cluster.connect(server, reader) as client:
                assert client.hello.role == "reader"
                assert not (await client.list()).vms
                assert (await client.status()).host.cpus
                for refused in (
                    client.deploy(vm("x")),
                    client.remove(requests.Remove(name="x")),
                    client.cordon(requests.Cordon(host="small")),
                ):
                    assert isinstance(await refusal(refused), Denied)
            async with await cluster.connect(server) as client:
                assert (await client.deploy(vm("y"))).name == "y"
                assert (await client.remove(requests.Remove(name="y"))).name == "y"
            error = await refusal(cluster.connect(server, host_itself))
            assert "does not accept our certificate" in error.message
            stranger = ssl.create_default_context(cafile=cluster.tls.files.ca)
            assert not await first_answer(server, stranger)
            assert await first_answer(server, cluster.tls.client())
        async with await cluster.connect(None, reader) as client:
            assert isinstance(await refusal(client.host_add(requests.HostAdd(address="10.77.0.97:1"))), Denied)

    cluster.run(call)


async def first_answer(server: Server, context: ssl.SSLContext) -> bytes:
    """The beginning of what a daemon answers to who says hello; empty if it hangs up."""
    try:
        reading, writing = await asyncio.open_connection(server.box.address, server.port, ssl=context)
        with contextlib.closing(writing):
            writing.write(wire.request(1, session.Hello(versions=session.PROTOCOL_VERSIONS, client="test")))
            return await reading.read(1)
    except OSError:
        return b""


@pytest.mark.parametrize("program", ["vmstackd", "globald"])
def test_plain_tcp_beyond_loopback_is_refused_at_the_start(cluster: Cluster, program: str) -> None:
    server = cluster.hosts["small"] if program == "vmstackd" else cluster.globald
    box = server.box
    flags = ["--config", "/dev/null", "--socket", "none", "--http-port", "0", "--tcp-host", str(box.address)]
    done = box.run(
        PYTHON, "-m", program, *flags, "--tcp-port", "8200", check=False, properties=["WorkingDirectory=/opt/source"]
    )
    assert done.returncode == 78
    assert "plain TCP is refused beyond loopback" in done.stderr


# --- globald itself -------------------------------------------------------------------------------------------------


def test_a_restarted_globald_knows_all_that_its_hosts_know(cluster: Cluster) -> None:
    globald = cluster.globald
    done: dict[str, str] = {}
    before = globald.pid

    async def restart() -> None:
        orders = [[vm(f"again{worker}-{number}") for number in range(4)] for worker in range(100)]
        working = asyncio.gather(*(insist(cluster, share, done) for share in orders))

        async def at_least(count: int) -> None:
            async def so_many() -> bool:
                return len(done) >= count

            await until(so_many, f"{len(done)} VMs only")
            assert not working.done(), "it ended before anything happened"

        await at_least(50)
        await asyncio.to_thread(globald.systemctl, "restart")
        await at_least(150)
        await asyncio.to_thread(globald.kill, "KILL")
        await working
        assert done.keys() == {order.name for share in orders for order in share}
        assert await cluster.audit(done) == done

    cluster.run(restart)
    assert globald.pid != before


# --- which hosts there are ------------------------------------------------------------------------------------------


def test_hosts_come_and_go_while_it_runs(cluster: Cluster, spare: Box, authority: Authority) -> None:
    guest = host(spare, authority, "guest", simulated("l3=1,cores=2,smt=1,memory=4096"), 8301)
    box = cluster.globald.box
    pid = cluster.globald.pid

    async def come_and_go() -> None:
        async with cluster.asked() as client:
            name_hosts(cluster, "guest", guest.address)
            with grown(cluster, guest):
                await cluster.all_up()
                assert (await client.deploy(vm("visitor", host="guest"))).host == "guest"
                await cluster.audit({"visitor": "guest"})
            box.path(f"{HOSTS_DIR}/guest.toml").unlink()

            async def gone() -> bool:
                return not await listed(client, guest.address)

            await until(gone, "the host is still there")
            assert isinstance(await refusal(client.describe(requests.Describe(name="visitor"))), NotFound)
            await cluster.audit({})
            # By command, the VM is still where it was.
            added = await asyncio.to_thread(ctl, box, "host", "add", guest.address)
            assert guest.address in added.stdout
            with grown(cluster, guest):
                await cluster.all_up()
                await cluster.audit({"visitor": "guest"})
                await client.remove(requests.Remove(name="visitor"))
            await asyncio.to_thread(ctl, box, "host", "remove", "guest")
            assert await gone()
            kept = await asyncio.to_thread(ctl, box, "host", "remove", "small", check=False)
            assert (kept.returncode, "named by the setting hosts" in kept.stderr) == (2, True)

    cluster.run(come_and_go)
    guest.systemctl("disable", "--now")
    assert cluster.globald.pid == pid


def test_a_copied_disk_is_no_second_host(cluster: Cluster, spare: Box, authority: Authority) -> None:
    uuid = cluster.hosts["small"].box.path(f"{STATE}/small/host-uuid").read_text()
    spare.write(f"{STATE}/copy/host-uuid", uuid)
    copy = host(spare, authority, "copy", simulated("l3=1,cores=2,smt=1,memory=4096"), 8302)

    async def add() -> None:
        async with cluster.asked() as client:
            name_hosts(cluster, "copy", copy.address)
            await until(lambda: listed(client, copy.address), "the file was not read")
            shown = await cluster.in_state(client, copy.address, "quarantined")
            assert f"it has the UUID of small ({cluster.hosts['small'].address})" in shown.reason
            assert (await cluster.told(client, "small")).state == "up"
            outcome = await deploy_all(client, (vm(f"real{number}") for number in range(10)))
            await cluster.audit(outcome.done)
            # As the reason says.
            copy.box.path(f"{STATE}/copy/host-uuid").unlink()
            await asyncio.to_thread(copy.systemctl, "restart")
            with grown(cluster, copy):
                await cluster.all_up()
                await cluster.audit(outcome.done)

    cluster.run(add)
    copy.systemctl("disable", "--now")
