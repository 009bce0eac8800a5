"""vmstackd as a service of a real systemd: with real libvirt and VMs, the system bus, polkit and the journal."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.box import Box
from tests.system.lab import Lab, missing
from tests.system.package import (
    CONFIG,
    IMAGES,
    REAL,
    call,
    install,
    put_images,
    refused,
    show,
    until,
    vmstackctl,
)
from tests.system.test_box import missing_libvirt

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(missing()), reason=f"boxes: {missing()}"),
    pytest.mark.skipif(bool(missing_libvirt), reason=f"libvirt: {missing_libvirt}"),
]

RULE = """polkit.addRule(function(action, subject) {
    var theirs = subject.user == "daemon" && action.lookup("vm").indexOf("team-") == 0;
    if (action.id == "org.vmstack.host1.deploy" && theirs) return polkit.Result.YES;
});
"""
"""User daemon may deploy VMs whose names begin with its team's."""

DEPLOY = ("Deploy", "sudds")


@pytest.fixture(scope="module")
def host(lab: Lab) -> Iterator[Box]:
    """A server with the package, libvirtd, and vmstackd running."""
    with Box(lab, "host") as box:
        install(box, REAL)
        put_images(box, *(f"{name}.qcow2" for name in "abcdef"))
        box.enter("systemctl", "start", "vmstackd")
        box.enter("useradd", "--no-create-home", "--groups", "vmstack", "reader")
        box.enter("useradd", "--no-create-home", "--groups", "vmstack,vmstack-admin", "admin")
        yield box


@pytest.fixture(autouse=True)
def _as_new(host: Box) -> Iterator[None]:
    """Each test begins with a running service and no VM, and may break both."""
    host.enter("systemctl", "reset-failed", "vmstackd.service", "vmstackd.socket", check=False)
    host.enter("systemctl", "start", "dbus", "libvirtd", "vmstackd.socket", "vmstackd.service")
    yield
    host.enter("systemctl", "reset-failed", "vmstackd.service", check=False)
    host.enter("systemctl", "start", "libvirtd", "vmstackd.service")
    for vm in call(host, "List")[0]:
        call(host, "Remove", "s", vm[0])


def deploy(
    host: Box, name: str, vcpus: int = 1, level: float = 2.0, *, image: str = "a", user: str = "root"
) -> list[int]:
    cpus: list[int] = call(host, *DEPLOY, name, str(vcpus), "0.0625", str(level), f"{IMAGES}/{image}.qcow2", user=user)[
        0
    ]
    return cpus


def pid(host: Box) -> int:
    return int(show(host, "MainPID")[0])


def restarted(host: Box, before: int) -> None:
    """Return when another process is ready."""

    def ready() -> bool:
        return pid(host) not in (0, before) and show(host, "ActiveState") == ["active"]

    until(ready, "vmstackd has not come back")


def pins(host: Box, name: str) -> str:
    """Where libvirt says that the first vCPU of a VM may run."""
    return host.enter("virsh", "vcpupin", name, "0").stdout.split()[-1]


def test_it_is_ready_when_it_owns_its_name_and_says_how_the_host_is(host: Box) -> None:
    host.enter("systemctl", "restart", "vmstackd")
    owner = host.enter(
        "busctl", "call", "org.freedesktop.DBus", "/", "org.freedesktop.DBus", "GetNameOwner", "s", "org.vmstack.Host1"
    )
    assert owner.stdout.startswith('s ":')
    until(lambda: show(host, "StatusText") == ["0 VMs, 2 of 2 CPUs free"], "no status line")
    assert show(host, "ActiveState", "SubState", "Type", "User") == ["active", "running", "notify", "vmstack"]


def test_a_real_vm_is_deployed_pinned_and_removed_over_the_bus(host: Box) -> None:
    assert deploy(host, "web") == [0]
    assert pins(host, "web") == "0"
    until(lambda: show(host, "StatusText") == ["1 VMs, 1 of 2 CPUs free (2.0: 1 CPUs)"], "no status line")
    assert call(host, "Remove", "s", "web") == [[0]]
    assert "web" not in host.enter("virsh", "list", "--all", "--name").stdout


def test_polkit_refuses_an_unprivileged_user_and_a_rule_allows_it(host: Box) -> None:
    arguments = ("team-a", "1", "0.0625", "2.0", f"{IMAGES}/a.qcow2")
    assert "may read but not deploy" in refused(host, *DEPLOY, *arguments, user="daemon")
    assert call(host, "Status", user="daemon"), "reading is for everybody"
    host.write("/etc/polkit-1/rules.d/10-team.rules", RULE)
    host.enter("chown", "root:polkitd", "/etc/polkit-1/rules.d/10-team.rules")
    try:
        until(
            lambda: (
                host.run(
                    "busctl",
                    "call",
                    "org.vmstack.Host1",
                    "/org/vmstack/Host1",
                    "org.vmstack.Host1",
                    *DEPLOY,
                    *arguments,
                    user="daemon",
                    check=False,
                ).returncode
                == 0
            ),
            "polkit does not see the rule",
        )
        other = ("other", *arguments[1:])
        assert "may read but not deploy" in refused(host, *DEPLOY, *other, user="daemon")
        assert "may read but not remove" in refused(host, "Remove", "s", "team-a", user="daemon")
    finally:
        host.enter("rm", "/etc/polkit-1/rules.d/10-team.rules")
    assert [vm[0] for vm in call(host, "List")[0]] == ["team-a"]


def test_without_polkit_only_root_may_change_things(host: Box) -> None:
    host.enter("systemctl", "mask", "--runtime", "--now", "polkit")
    try:
        assert "may read but not deploy" in refused(
            host, *DEPLOY, "a", "1", "0.0625", "2.0", f"{IMAGES}/a.qcow2", user="admin"
        )
        assert deploy(host, "a") == [0]
    finally:
        host.enter("systemctl", "unmask", "--runtime", "polkit")


def test_groups_decide_on_the_unix_socket(host: Box) -> None:
    assert vmstackctl(host, "list", user="daemon", check=False).returncode == 5, "the socket is closed to strangers"
    assert vmstackctl(host, "list", user="reader").returncode == 0
    denied = vmstackctl(host, "remove", "x", user="reader", check=False)
    assert (denied.returncode, "may read but not remove" in denied.stderr) == (5, True)
    missing_vm = vmstackctl(host, "remove", "x", user="admin", check=False)
    assert missing_vm.returncode == 3


def test_the_socket_starts_the_daemon(host: Box) -> None:
    host.enter("systemctl", "stop", "vmstackd.service")
    assert show(host, "ActiveState") == ["inactive"]
    assert vmstackctl(host, "list", "--output", "json").returncode == 0
    assert show(host, "ActiveState") == ["active"]


def test_the_bus_starts_the_daemon_only_if_it_is_enabled(host: Box) -> None:
    host.enter("systemctl", "stop", "vmstackd.service")
    assert "not found" in refused(host, "Status").lower() or show(host, "ActiveState") == ["inactive"]
    host.enter("systemctl", "enable", "vmstackd.service")
    try:
        assert call(host, "Status")
        assert show(host, "ActiveState") == ["active"]
    finally:
        host.enter("systemctl", "disable", "vmstackd.service")


def test_a_hung_daemon_is_restarted_by_the_watchdog_with_the_same_subsets(host: Box) -> None:
    cpus = deploy(host, "web")
    host.write("/run/systemd/system/vmstackd.service.d/watchdog.conf", "[Service]\nWatchdogSec=2s\n")
    host.enter("systemctl", "daemon-reload")
    host.enter("systemctl", "restart", "vmstackd")
    try:
        before = pid(host)
        host.enter("kill", "-STOP", str(before))
        restarted(host, before)
        assert "watchdog" in host.journal("--unit=vmstackd").lower()
        assert [vm[0] for vm in call(host, "List")[0]] == ["web"]
        assert pins(host, "web") == ",".join(map(str, cpus))
    finally:
        host.enter("rm", "-r", "/run/systemd/system/vmstackd.service.d")
        host.enter("systemctl", "daemon-reload")


def test_a_killed_daemon_comes_back_with_the_same_subsets(host: Box) -> None:
    deploy(host, "low", level=1.0)
    deploy(host, "high", level=2.0, image="b")

    def described(name: str) -> object:
        [vm] = call(host, "Describe", "s", name)
        assert isinstance(vm, dict)
        return {key: value for key, value in vm.items() if key != "usage"}

    before = {name: described(name) for name in ("low", "high")}
    qemus = host.enter("pgrep", "-f", "qemu-system").stdout
    was = pid(host)
    host.enter("kill", "-KILL", str(was))
    restarted(host, was)
    assert {name: described(name) for name in before} == before
    assert host.enter("pgrep", "-f", "qemu-system").stdout == qemus


def test_stopping_and_starting_leaves_vms_running(host: Box) -> None:
    deploy(host, "web")
    qemu = host.enter("pgrep", "-f", "qemu-system").stdout
    host.enter("systemctl", "stop", "vmstackd")
    assert host.enter("pgrep", "-f", "qemu-system").stdout == qemu
    host.enter("systemctl", "start", "vmstackd")
    assert [vm[0] for vm in call(host, "List")[0]] == ["web"]


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_it_is_back_on_the_bus_by_itself(host: Box, how: str) -> None:
    before = pid(host)
    if how == "restart":
        host.enter("systemctl", "restart", "dbus")
    else:
        host.enter("systemctl", "kill", "--signal=KILL", "dbus")
    until(lambda: show(host, "ActiveState", unit="dbus.service") == ["active"], "no bus")
    until(
        lambda: (
            host.enter(
                "busctl", "call", "org.vmstack.Host1", "/org/vmstack/Host1", "org.vmstack.Host1", "Status", check=False
            ).returncode
            == 0
        ),
        "not back on the bus",
    )
    assert pid(host) == before, "it did not need a restart for it"


def test_a_reload_takes_a_new_setting(host: Box) -> None:
    before = host.path(CONFIG).read_text()
    was = pid(host)
    try:
        host.write(CONFIG, before + 'image_roots = ["/srv/other"]\nworkers = 2\n')
        host.enter("systemctl", "reload", "vmstackd")
        error = refused(host, *DEPLOY, "web", "1", "0.0625", "2.0", f"{IMAGES}/a.qcow2")
        assert "outside the allowed directories: /srv/other" in error
        [entry] = host.journal("--unit=vmstackd", "VMSTACK_EVENT=reloaded", "--output=cat").splitlines()[-1:]
        assert entry == "reloaded changed=image_roots needs_restart=workers"
    finally:
        host.write(CONFIG, before)
        host.enter("systemctl", "reload", "vmstackd")
    assert deploy(host, "web") == [0]
    assert pid(host) == was


def test_a_reload_of_a_wrong_setting_fails_and_changes_nothing(host: Box) -> None:
    before = host.path(CONFIG).read_text()
    was = pid(host)
    try:
        host.write(CONFIG, before + "period = -1\n")
        done = host.enter("systemctl", "reload", "vmstackd", check=False)
        assert done.returncode != 0
        assert "period: -1 is not allowed" in host.journal("--unit=vmstackd", "--lines=20")
        assert show(host, "ActiveState") == ["active"]
        # A bare signal, without the check before it, is no better.
        host.enter("kill", "-HUP", str(was))
        until(lambda: "reload-failed" in host.journal("--unit=vmstackd", "--lines=20"), "no word of it")
    finally:
        host.write(CONFIG, before)
    assert deploy(host, "web") == [0]
    assert pid(host) == was


def test_it_starts_without_libvirt_serves_readers_and_finds_vms_when_it_comes(host: Box) -> None:
    deploy(host, "web")
    host.enter("systemctl", "stop", "libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket", "libvirtd")
    try:
        host.enter("systemctl", "restart", "vmstackd")
        assert call(host, "Status")
        assert show(host, "StatusText")[0].startswith("DEGRADED: the hypervisor is unreachable")
        error = refused(host, *DEPLOY, "b", "1", "0.0625", "2.0", f"{IMAGES}/b.qcow2")
        assert "the hypervisor qemu:///system is unreachable" in error
    finally:
        host.enter("systemctl", "start", "libvirtd.socket", "libvirtd")
    until(lambda: [vm[0] for vm in call(host, "List")[0]] == ["web"], "the VM has not been found again")


def test_the_journal_tells_the_story_of_a_vm(host: Box) -> None:
    deploy(host, "example")
    call(host, "Remove", "s", "example")
    text = host.journal("VMSTACK_VM=example", "--output=json")
    story = [json.loads(line) for line in text.splitlines()][-2:]
    assert [entry["VMSTACK_OPERATION"] for entry in story] == ["deploy", "remove"]
    assert story[0]["VMSTACK_LEVEL"] == "2.0"
    assert all(entry["VMSTACK_REQUEST"].startswith("dbus-") for entry in story)
    assert all(entry["_SYSTEMD_UNIT"] == "vmstackd.service" for entry in story)
    assert all(entry["PRIORITY"] == "6" for entry in story)


def test_a_second_daemon_refuses_to_start_and_says_who_is_there(host: Box) -> None:
    before = pid(host)
    apart = ("--http-port", "0", "--tcp-host", "none")
    done = host.run("/usr/sbin/vmstackd", *apart, "--socket", "none", user="vmstack", check=False)
    assert done.returncode == 1
    assert f"{before}" in done.stderr
    assert "name-taken" in done.stderr
    done = host.run("/usr/sbin/vmstackd", *apart, "--dbus", "none", check=False)
    assert done.returncode == 1
    assert "socket-failed" in done.stderr
    assert pid(host) == before


SCORE = re.compile(r"Overall exposure level for vmstackd\.service: ([0-9.]+)")


def test_the_sandbox_is_rated_well(host: Box) -> None:
    text = host.enter("systemd-analyze", "security", "--no-pager", "vmstackd.service").stdout
    score = float(SCORE.findall(text)[0])
    print(f"systemd-analyze security vmstackd.service: {score}")
    assert score <= 3.0


def inside(host: Box, code: str, user: str = "vmstack") -> str:
    """Run Python as the service could: with its user and every restriction of its unit."""
    unit = host.enter("systemctl", "cat", "vmstackd.service").stdout
    section = unit.split("[Service]")[1].split("[Install]")[0]
    omitted = ("Type=", "Exec", "Restart", "Watchdog", "Timeout", "NotifyAccess", "KillMode", "OOM", "Limit")
    properties = [
        line for line in section.splitlines() if "=" in line and not line.startswith(("#", "User=", *omitted))
    ]
    return host.run("/usr/bin/python3", "-c", code, user=user, properties=properties).stdout


def test_the_sandbox_is_real(host: Box) -> None:
    code = """
import ctypes, errno, os, socket
def failed():
    raise OSError(ctypes.get_errno(), "")
def attempt(what, call):
    try:
        call()
        print(what, "works")
    except OSError as error:
        print(what, errno.errorcode[error.errno])
for path in ("/etc/x", "/usr/x", "/var/lib/libvirt/images/x", "/var/lib/x", "/run/vmstack/x", "/root/x", "/srv/x"):
    attempt("write " + path, lambda: open(path, "w"))
attempt("tmp", lambda: open("/tmp/x", "w"))
attempt("kernel", lambda: open("/proc/sys/kernel/hostname", "w"))
for family in ("AF_PACKET", "AF_NETLINK", "AF_VSOCK"):
    attempt(family, lambda: socket.socket(getattr(socket, family), socket.SOCK_DGRAM))
attempt("AF_UNIX", lambda: socket.socket(socket.AF_UNIX))
attempt("namespace", lambda: ctypes.CDLL(None, use_errno=True).unshare(0x10000000) and failed())
attempt("setuid", lambda: os.setuid(0))
attempt("signal", lambda: os.kill(1, 0))
attempt("affinity", lambda: os.sched_setaffinity(0, {0}))
"""
    done = dict(line.rsplit(" ", 1) for line in inside(host, code).splitlines())
    writes = {what: result for what, result in done.items() if what.startswith("write ")}
    assert set(writes.values()) <= {"EROFS", "EACCES"}, writes
    assert done["tmp"] == "works"
    assert done["kernel"] in {"EROFS", "EACCES"}
    assert {done[family] for family in ("AF_PACKET", "AF_NETLINK", "AF_VSOCK")} == {"EAFNOSUPPORT"}
    assert done["AF_UNIX"] == "works"
    assert done["namespace"] == "EPERM"
    assert done["setuid"] == "EPERM"
    assert done["signal"] in {"EPERM", "ESRCH"}
    assert done["affinity"] == "EPERM"


def test_the_running_service_has_no_more_than_it_needs(host: Box) -> None:
    status = host.path(f"/proc/{pid(host)}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    dac_read_search = 1 << 2
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == dac_read_search
    assert fields["NoNewPrivs"].strip() == "1"
    assert fields["Seccomp"].strip() == "2"


def test_the_http_endpoint_answers_at_its_port_only_on_loopback(host: Box) -> None:
    assert json.loads(host.run("curl", "-s", "http://127.0.0.1:8099/healthz").stdout)["healthy"] is True
    denied = host.run("curl", "-s", "http://127.0.0.1:8099/remove?name=x", user="daemon").stdout
    assert json.loads(denied)["error"] == "Denied"


def test_its_http_socket_can_be_systemds(host: Box) -> None:
    host.enter("systemctl", "stop", "vmstackd.service")
    host.enter("systemctl", "start", "vmstackd-http.socket")
    try:
        assert json.loads(host.run("curl", "-s", "http://127.0.0.1:8099/healthz").stdout)["hypervisor"] == "up"
        assert show(host, "ActiveState") == ["active"]
    finally:
        host.enter("systemctl", "stop", "vmstackd-http.socket", "vmstackd.service")


def test_its_http_socket_can_become_systemds_while_it_runs(host: Box) -> None:
    host.enter("systemctl", "enable", "vmstackd-http.socket")
    try:
        host.enter("systemctl", "restart", "vmstackd.service")
        assert show(host, "ActiveState", unit="vmstackd-http.socket") == ["active"]
        assert json.loads(host.run("curl", "-s", "http://127.0.0.1:8099/healthz").stdout)["hypervisor"] == "up"
    finally:
        host.enter("systemctl", "disable", "vmstackd-http.socket")
        host.enter("systemctl", "stop", "vmstackd-http.socket", "vmstackd.service")


def test_its_tcp_socket_can_be_systemds(host: Box) -> None:
    host.enter("systemctl", "stop", "vmstackd.service")
    host.enter("systemctl", "start", "vmstackd-tcp.socket")
    try:
        assert host.enter("vmstackctl", "--address", "127.0.0.1:8097", "list", "--output", "name").stdout == ""
        assert show(host, "ActiveState") == ["active"]
    finally:
        host.enter("systemctl", "stop", "vmstackd-tcp.socket", "vmstackd.service")


def test_its_tcp_port_is_open_on_loopback_as_it_comes(host: Box) -> None:
    assert show(host, "ActiveState", unit="vmstackd-tcp.socket") == ["inactive"]
    deploy(host, "web")
    assert host.enter("vmstackctl", "--address", "127.0.0.1:8097", "list", "--output", "name").stdout == "web\n"


def test_it_keeps_who_the_host_is_and_its_cordon(host: Box) -> None:
    state = host.path("/var/lib/vmstack")
    assert host.enter("stat", "-c", "%a %U %G", "/var/lib/vmstack").stdout == "750 vmstack vmstack\n"
    uuid = (state / "host-uuid").read_text()
    call(host, "Cordon", "s", "new fans")
    try:
        before = pid(host)
        host.enter("systemctl", "kill", "-s", "KILL", "vmstackd")
        restarted(host, before)
        until(lambda: show(host, "StatusText") == ["0 VMs, 2 of 2 CPUs free; cordoned: new fans"], "no status line")
        assert "takes no new VMs: new fans" in refused(host, *DEPLOY, "web", "1", "0.0625", "2.0", f"{IMAGES}/a.qcow2")
    finally:
        call(host, "Uncordon")
    assert deploy(host, "web") == [0]
    host.enter("systemctl", "restart", "vmstackd")
    assert (state / "host-uuid").read_text() == uuid
    assert sorted(path.name for path in state.iterdir()) == ["host-uuid"]


def test_it_checks_the_threads_of_vms(host: Box) -> None:
    """Of libvirt's threads it can have all moved. QEMU's helpers, which it may not, stay where they started."""

    def check() -> list[tuple[str, str, bool]]:
        done = host.enter("vmstackctl", "check", "--output", "json", check=False)
        reply = json.loads(done.stdout)
        assert reply["hidden"] == 0
        found = [(one["kind"], one["vm"], one["repaired"]) for one in reply["findings"]]
        assert done.returncode == int(not all(repaired for _, _, repaired in found))
        return found

    until(lambda: show(host, "StatusText") == ["0 VMs, 2 of 2 CPUs free"], "libvirt has not come")
    assert deploy(host, "web", 1, 1.0) == [0]
    assert deploy(host, "mail", 1, 1.0, image="b") == [0, 1]  # and web with it, but for its helpers
    assert check() == []
    host.enter("virsh", "vcpupin", "web", "0", "1", "--live")
    assert check() == [("pinning", "web", True)]
    assert pins(host, "web") == "0-1"
    qemu = host.enter("pgrep", "-f", "guest=web").stdout.strip()
    host.enter("taskset", "--all-tasks", "--cpu-list", "--pid", "1", qemu)
    assert check() == [("pinning", "web", True)]
    assert check() == []
    assert call(host, "Check", "b", "true")[0]["vms"]["data"] == 2
    assert "may read but not check" in refused(host, "Check", "b", "true", user="daemon")


def test_only_who_may_deploy_may_cordon(host: Box) -> None:
    assert "may read but not cordon" in refused(host, "Cordon", "s", "mine", user="daemon")
    assert "may read but not uncordon" in refused(host, "Uncordon", user="daemon")


@pytest.mark.parametrize("command", ["restart", "stop"])
def test_its_socket_is_never_lost(host: Box, command: str) -> None:
    deploy(host, "web")
    host.enter("systemctl", command, "vmstackd.socket")
    host.enter("systemctl", "start", "vmstackd.service")
    assert vmstackctl(host, "list", "--output", "name").stdout == "web\n"


def test_whoever_calls_it_while_its_settings_are_wrong_does_no_harm(host: Box) -> None:
    before = host.path(CONFIG).read_text()
    try:
        host.write(CONFIG, before + "period = -1\n")
        assert host.enter("systemctl", "restart", "vmstackd.service", check=False).returncode == 1
        for _ in range(2):
            assert vmstackctl(host, "list", check=False).returncode == 6
        assert show(host, "ActiveState", unit="vmstackd.socket") == ["active"]
    finally:
        host.write(CONFIG, before)
    host.enter("systemctl", "start", "vmstackd.service")


def test_it_does_not_give_up_on_what_may_pass(host: Box) -> None:
    host.enter("systemctl", "stop", "vmstackd.service")
    host.enter(
        "systemd-run", "--unit=occupant", "python3", "-m", "http.server", "--bind=127.0.0.1", "8099", "--directory=/srv"
    )
    try:
        until(lambda: host.run("curl", "-s", "http://127.0.0.1:8099/", check=False).returncode == 0, "no occupant")
        host.enter("systemctl", "start", "--no-block", "vmstackd.service")
        until(lambda: int(show(host, "NRestarts")[0]) > 11, "it has given up")
    finally:
        host.enter("systemctl", "stop", "occupant")
    until(lambda: show(host, "ActiveState") == ["active"], "it does not come back")


def test_the_units_are_valid(host: Box) -> None:
    units = ["vmstackd.service", "vmstackd.socket", "vmstackd-http.socket", "vmstackd-tcp.socket"]
    done = host.enter("systemd-analyze", "verify", *units)
    assert (done.stdout, done.stderr) == ("", "")


def test_the_socket_is_what_it_is_told_to_be(host: Box) -> None:
    path = host.path("/run/vmstack/vmstackd.sock")
    group = host.enter("getent", "group", "vmstack").stdout.split(":")[2]
    assert (path.stat().st_mode & 0o777, path.stat().st_uid, path.stat().st_gid) == (0o660, 0, int(group))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


@pytest.mark.skipif(not Path("/dev/kvm").exists(), reason="no /dev/kvm here")
def test_whether_guests_run_under_kvm_can_be_tried_from_the_sandbox(lab: Lab) -> None:
    """Were it forbidden, every VM would be emulated, with nothing but a line in the log."""
    code = """
import subprocess
done = subprocess.run(
    ["timeout", "--signal=KILL", "3", "qemu-system-x86_64", "-accel", "kvm", "-machine", "pc", "-m", "16",
     "-nodefaults", "-display", "none", "-no-user-config", "-monitor", "none", "-serial", "none"],
    capture_output=True, text=True)
print(done.returncode, done.stderr)
"""
    # Not where VMs run: libvirt asks QEMU for its capabilities at every start while it may not open the device.
    # As root, without its powers, for the device may be root's; on servers it belongs to group kvm.
    with Box(lab, "kvm", kvm=True) as box:
        install(box)
        said = inside(box, code, user="root")
        assert said.split()[0] in {"-9", "137"}, said
