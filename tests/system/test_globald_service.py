"""globald as a service of a real systemd, beside a vmstackd of the same machine with simulated VMs."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.system.box import Box
from tests.system.lab import Lab, missing
from tests.system.package import CLUSTER_CONFIG, IMAGES, SIM, install, put_images, show, until

pytestmark = [pytest.mark.real, pytest.mark.skipif(bool(missing()), reason=f"boxes: {missing()}")]

SERVICE = "globald.service"
URL = "http://127.0.0.1:8100"
HOST = "127.0.0.1:8097"
HOSTS_DIR = "/etc/vmstack/hosts.d"


@pytest.fixture(scope="module")
def server(lab: Lab) -> Iterator[Box]:
    """A server with both daemons running; the host is in the settings of the cluster."""
    with Box(lab, "server") as box:
        install(box, SIM, f'hosts = ["{HOST}"]\n')
        put_images(box, "a.qcow2")
        box.enter("systemctl", "start", "vmstackd", "globald")
        box.enter("useradd", "--no-create-home", "--groups", "vmstack", "reader")
        box.enter("useradd", "--no-create-home", "--groups", "vmstack,vmstack-admin", "admin")
        yield box


@pytest.fixture(autouse=True)
def _as_new(server: Box) -> Iterator[None]:
    """Each test begins with running services that know each other and no VM, and may break them."""

    def start() -> None:
        server.enter("systemctl", "reset-failed", SERVICE, "globald.socket", check=False)
        server.enter("systemctl", "start", "vmstackd.service", "globald.socket", SERVICE)
        until(lambda: states(server) == ["up"], "the host is not up")

    start()
    yield
    start()
    for name in cluster(server, "list", "--output", "name").stdout.split():
        cluster(server, "remove", name)


def cluster(server: Box, *arguments: str, user: str = "root", check: bool = True) -> subprocess.CompletedProcess[str]:
    """vmstackctl, asking globald."""
    return server.run("vmstackctl", "--cluster", *arguments, user=user, check=check)


def get(server: Box, path: str, user: str = "root") -> Any:  # noqa: ANN401  whatever it is, the test looks inside
    done = server.run("curl", "--silent", URL + path, user=user, check=False)
    return json.loads(done.stdout) if done.stdout else None


def states(server: Box) -> list[str]:
    """Of the hosts."""
    done = cluster(server, "hosts", "--output", "json", check=False)
    return [host["state"] for host in json.loads(done.stdout)["hosts"]] if done.stdout else []


def deploy(
    server: Box, name: str, *options: str, user: str = "root", check: bool = True
) -> subprocess.CompletedProcess[str]:
    size = ("--vcpus", "2", "--memory", "1G", "--level", "2", "--image", f"{IMAGES}/a.qcow2")
    return cluster(server, "deploy", name, *size, *options, user=user, check=check)


def pid(server: Box) -> int:
    return int(show(server, "MainPID", unit=SERVICE)[0])


def back(server: Box, before: int) -> None:
    """Return when another process has learned what the hosts have."""

    def learned() -> bool:
        return pid(server) not in (0, before) and (get(server, "/readyz") or {}).get("ready") is True

    until(learned, "globald has not come back")
    until(lambda: states(server) == ["up"], "the host has not come back")


def test_it_is_ready_and_says_how_the_cluster_is(server: Box) -> None:
    server.enter("systemctl", "restart", SERVICE)
    assert show(server, "ActiveState", "SubState", "Type", "User", unit=SERVICE) == [
        *("active", "running", "notify", "vmstack-globald")
    ]
    until(
        lambda: show(server, "StatusText", unit=SERVICE) == ["1 hosts, 0 VMs, 256 of 256 CPUs free"], "no status line"
    )
    assert get(server, "/readyz") == {"ready": True, "hosts": {"up": 1}}
    assert list(get(server, "/status")) == ["server"]


def test_a_vm_is_deployed_through_it_seen_and_removed(server: Box) -> None:
    assert json.loads(deploy(server, "web", "--output", "json").stdout)["host"] == "server"
    assert get(server, "/listvm") == ["web"]
    assert server.run("vmstackctl", "list", "--output", "name").stdout == "web\n", "the host has it"
    assert deploy(server, "web", check=False).returncode == 1
    cluster(server, "remove", "web")
    assert server.run("vmstackctl", "list", "--output", "name").stdout == ""


def test_groups_decide_on_the_unix_socket(server: Box) -> None:
    assert cluster(server, "hosts", user="daemon", check=False).returncode == 5, "the socket is closed to strangers"
    assert cluster(server, "hosts", user="reader").returncode == 0
    denied = deploy(server, "web", user="reader", check=False)
    assert (denied.returncode, "may read but not deploy" in denied.stderr) == (5, True)
    assert deploy(server, "web", user="admin").returncode == 0


def test_groups_decide_over_http(server: Box) -> None:
    assert get(server, "/remove?name=x", user="daemon")["error"] == "Denied"
    assert get(server, "/remove?name=x", user="admin")["error"] == "NotFound"
    assert get(server, "/listvm", user="daemon") == []


def test_the_socket_is_what_it_is_told_to_be(server: Box) -> None:
    found = server.enter("stat", "-c", "%a %U %G", "/run/vmstack/globald.sock").stdout
    assert found == "660 root vmstack\n"


def test_the_socket_starts_the_daemon(server: Box) -> None:
    server.enter("systemctl", "stop", SERVICE)
    assert show(server, "ActiveState", unit=SERVICE) == ["inactive"]
    assert cluster(server, "hosts").returncode == 0
    assert show(server, "ActiveState", unit=SERVICE) == ["active"]


@pytest.mark.parametrize("name", ["http", "tcp"])
def test_its_ports_can_be_systemds(server: Box, name: str) -> None:
    unit = f"globald-{name}.socket"
    server.enter("systemctl", "stop", SERVICE)
    server.enter("systemctl", "start", unit)
    try:
        if name == "http":
            until(lambda: get(server, "/healthz") == {"healthy": True}, "no answer")
        else:
            server.run("vmstackctl", "--address", "127.0.0.1:8098", "hosts")
        assert show(server, "ActiveState", unit=SERVICE) == ["active"]
    finally:
        server.enter("systemctl", "stop", unit, SERVICE)


def test_a_killed_daemon_comes_back_and_knows_everything_again(server: Box) -> None:
    deploy(server, "web")
    host, before = show(server, "MainPID"), pid(server)
    server.enter("kill", "-KILL", str(before))
    back(server, before)
    assert get(server, "/listvm") == ["web"]
    assert show(server, "MainPID") == host, "vmstackd has not noticed"


def test_a_hung_daemon_is_restarted_by_the_watchdog(server: Box) -> None:
    deploy(server, "web")
    server.write(f"/run/systemd/system/{SERVICE}.d/watchdog.conf", "[Service]\nWatchdogSec=2s\n")
    server.enter("systemctl", "daemon-reload")
    server.enter("systemctl", "restart", SERVICE)
    try:
        before = pid(server)
        server.enter("kill", "-STOP", str(before))
        back(server, before)
        assert "watchdog" in server.journal("--unit=globald").lower()
        assert get(server, "/listvm") == ["web"]
    finally:
        server.enter("rm", "-r", f"/run/systemd/system/{SERVICE}.d")
        server.enter("systemctl", "daemon-reload")


def test_a_reload_takes_a_new_setting_and_a_wrong_one_changes_nothing(server: Box) -> None:
    before, was = server.path(CLUSTER_CONFIG).read_text(), pid(server)
    try:
        server.write(CLUSTER_CONFIG, f'{before}policy = "first-fit"\npatience = 5\n')
        server.enter("systemctl", "reload", SERVICE)
        until(
            lambda: "VMSTACK" in server.journal("--unit=globald", "VMSTACK_EVENT=reloaded", "-o", "verbose"), "no word"
        )
        [entry] = server.journal("--unit=globald", "VMSTACK_EVENT=reloaded", "--output=cat").splitlines()[-1:]
        assert entry == "reloaded changed=policy needs_restart=patience"
        server.write(CLUSTER_CONFIG, f"{before}attempts = 0\n")
        assert server.enter("systemctl", "reload", SERVICE, check=False).returncode != 0
        assert "attempts: 0 is not allowed" in server.journal("--unit=globald", "--lines=20")
    finally:
        server.write(CLUSTER_CONFIG, before)
    server.enter("systemctl", "reload", SERVICE)
    assert pid(server) == was


def test_hosts_are_added_and_removed_by_the_user_of_the_service(server: Box) -> None:
    added = cluster(server, "host", "add", "127.0.0.1:9", "--name", "absent", user="admin")
    file = f"{HOSTS_DIR}/absent.toml"
    assert file in added.stdout
    assert server.enter("stat", "-c", "%U %a", file).stdout == "vmstack-globald 644\n"
    assert server.path(file).read_text() == 'address = "127.0.0.1:9"\n'
    until(lambda: states(server) == ["up", "unknown"], "it is not there, or not unknown")
    cluster(server, "host", "remove", "127.0.0.1:9", user="admin")
    assert not server.path(file).exists()
    assert states(server) == ["up"]


def test_a_file_that_an_administrator_writes_is_seen(server: Box) -> None:
    server.write(f"{HOSTS_DIR}/more.toml", 'addresses = ["127.0.0.1:9", "127.0.0.1:10"]\n')
    try:
        until(lambda: len(states(server)) == 3, "the hosts are not seen")
    finally:
        server.path(f"{HOSTS_DIR}/more.toml").unlink()
    until(lambda: states(server) == ["up"], "the hosts are still there")


def test_certificates_of_its_own_are_read_and_a_key_for_everybody_is_refused(server: Box) -> None:
    before = server.path(CLUSTER_CONFIG).read_text()
    pki = "/etc/vmstack/pki"
    server.enter("vmstackctl", "pki", "init", "--dir", "/root/pki")
    server.enter("vmstackctl", "pki", "client", "globald", "--role", "globald", "--dir", "/root/pki")
    server.enter("install", "-d", pki)
    server.enter("install", "-m", "644", "/root/pki/ca.crt", "/root/pki/globald.crt", pki)
    server.enter("install", "-g", "vmstack-globald", "-m", "640", "/root/pki/globald.key", pki)
    tls = [f'tls_ca = "{pki}/ca.crt"', f'tls_certificate = "{pki}/globald.crt"', f'tls_key = "{pki}/globald.key"']
    try:
        server.write(CLUSTER_CONFIG, before + "\n".join(tls) + "\n")
        server.enter("systemctl", "restart", SERVICE)
        metrics = server.run("curl", "--silent", f"{URL}/metrics").stdout
        assert re.search(r"^vmstack_certificate_expiry\w* [0-9.e+]+$", metrics, re.MULTILINE)
        server.enter("chmod", "644", f"{pki}/globald.key")
        done = server.enter("systemctl", "restart", SERVICE, check=False)
        assert done.returncode != 0
        assert "a private key that every user may read" in server.journal("--unit=globald", "--lines=20")
    finally:
        server.write(CLUSTER_CONFIG, before)
        server.enter("rm", "-r", pki)


def test_the_journal_tells_the_story_of_a_vm(server: Box) -> None:
    deploy(server, "example")
    cluster(server, "remove", "example")
    text = server.journal("--unit=globald", "VMSTACK_VM=example", "--output=json")
    story = [json.loads(line) for line in text.splitlines()][-2:]
    assert [entry["VMSTACK_OPERATION"] for entry in story] == ["deploy", "remove"]
    assert all(entry["_SYSTEMD_UNIT"] == SERVICE for entry in story)


def test_the_units_are_valid(server: Box) -> None:
    units = [SERVICE, "globald.socket", "globald-http.socket", "globald-tcp.socket"]
    done = server.enter("systemd-analyze", "verify", *units)
    assert (done.stdout, done.stderr) == ("", "")


def test_the_sandbox_is_rated_well(server: Box) -> None:
    text = server.enter("systemd-analyze", "security", "--no-pager", SERVICE).stdout
    score = float(re.findall(r"Overall exposure level for globald\.service: ([0-9.]+)", text)[0])
    print(f"systemd-analyze security {SERVICE}: {score}")
    assert score <= 1.5


def inside(server: Box, code: str) -> str:
    """Run Python as the service could: with its user and every restriction of its unit."""
    unit = server.enter("systemctl", "cat", SERVICE).stdout
    section = unit.split("[Service]")[1].split("[Install]")[0]
    omitted = ("Type=", "Exec", "Restart", "Watchdog", "Timeout", "NotifyAccess", "OOM", "Limit", "User=")
    properties = [line for line in section.splitlines() if "=" in line and not line.startswith(("#", *omitted))]
    return server.run("/usr/bin/python3", "-c", code, user="vmstack-globald", properties=properties).stdout


def test_the_sandbox_is_real(server: Box) -> None:
    code = """
import ctypes, errno, mmap, os, socket
def failed():
    raise OSError(ctypes.get_errno(), "")
def attempt(what, call):
    try:
        call()
        print(what, "works")
    except OSError as error:
        print(what, errno.errorcode[error.errno])
for path in ("/etc/x", "/etc/vmstack/x", "/usr/x", "/var/lib/x", "/run/vmstack/x", "/root/x", "/srv/x"):
    attempt("write " + path, lambda: open(path, "w"))
attempt("hosts", lambda: os.close(os.open("/etc/vmstack/hosts.d/.x", os.O_CREAT | os.O_WRONLY)))
attempt("forget", lambda: os.unlink("/etc/vmstack/hosts.d/.x"))
attempt("home", lambda: os.listdir("/root"))
attempt("disk", lambda: open("/dev/kmsg"))
for family in ("AF_PACKET", "AF_NETLINK", "AF_VSOCK"):
    attempt(family, lambda: socket.socket(getattr(socket, family), socket.SOCK_DGRAM))
attempt("AF_INET", lambda: socket.create_connection(("127.0.0.1", 8097)))
attempt("namespace", lambda: ctypes.CDLL(None, use_errno=True).unshare(0x10000000) and failed())
attempt("setuid", lambda: os.setuid(0))
attempt("executable", lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC))
print("others", sum(os.path.exists(f"/proc/{pid}") for pid in (1, 2)))
"""
    done = dict(line.rsplit(" ", 1) for line in inside(server, code).splitlines())
    writes = {what: result for what, result in done.items() if what.startswith("write ")}
    assert set(writes.values()) <= {"EROFS", "EACCES"}, writes
    assert (done["hosts"], done["forget"]) == ("works", "works")
    assert done["home"] == "EACCES"
    assert done["disk"] in {"ENOENT", "EPERM", "EACCES"}
    assert {done[family] for family in ("AF_PACKET", "AF_NETLINK", "AF_VSOCK")} == {"EAFNOSUPPORT"}
    assert done["AF_INET"] == "works"
    assert done["namespace"] == "EPERM"
    assert done["setuid"] == "EPERM"
    assert done["executable"] in {"EPERM", "EACCES"}
    assert done["others"] == "0", "it sees no process of others"


def test_the_running_service_has_no_more_than_it_needs(server: Box) -> None:
    status = server.path(f"/proc/{pid(server)}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"].strip() == "1"
    assert fields["Seccomp"].strip() == "2"


def test_it_waits_for_hosts_that_are_not_there_yet(server: Box) -> None:
    server.enter("systemctl", "stop", "vmstackd.service", "vmstackd.socket")
    server.enter("systemctl", "restart", SERVICE)
    refused = deploy(server, "web", check=False)
    assert refused.returncode in (4, 6), refused.stderr
    server.enter("systemctl", "start", "vmstackd.socket", "vmstackd.service")
    until(lambda: states(server) == ["up"], "the host is not found when it comes")
    assert deploy(server, "web").returncode == 0
