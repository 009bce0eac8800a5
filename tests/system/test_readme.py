"""What the README shows for a server is typed there: package, vmstackctl, busctl, systemctl, journalctl, polkit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.readme import File, Step, check_printed, part, steps, steps_and_files
from tests.system.box import Box
from tests.system.lab import Lab, missing
from tests.system.package import BUILD_PATIENCE, package, put_images, until
from tests.system.test_box import missing_libvirt
from vmstackd.trace_file import TraceFile

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(missing()), reason=f"boxes: {missing()}"),
    pytest.mark.skipif(bool(missing_libvirt), reason=f"libvirt: {missing_libvirt}"),
]

SERVER = part("## On a server", "### From a clone")
CLUSTER = part("### A cluster of servers", "### HTTP calls of globald")
ADDRESS = "10.0.0.5"
"""Of the server, in the README."""
NOT_TYPED = {"make deb": "tests/system/package.py has run what it runs"}


@pytest.fixture(scope="module")
def server(lab: Lab) -> Iterator[Box]:
    """A server as the README expects it: libvirtd, an image, an administrator called alice, the built package."""
    with Box(lab, "server1") as box:
        box.enter("systemctl", "start", "libvirtd")
        put_images(box, "hello.qcow2")
        box.enter("useradd", "alice")
        box.enter("ip", "address", "add", f"{ADDRESS}/32", "dev", "lo")
        box.copy(package(), f"/root/dist/{package().name}")
        # Where KVM cannot be relied on; else as it comes.
        box.write(
            "/etc/systemd/system/vmstackd.service.d/test.conf", "[Service]\nEnvironment=VMSTACKD_VIRT_TYPE=qemu\n"
        )
        yield box


def typed(server: Box, step: Step) -> None:
    done = server.run("sh", "-c", f"cd /root; {step.line}", timeout=BUILD_PATIENCE)
    check_printed(step, re.sub(r" +$", "", done.stdout, flags=re.MULTILINE))


def test_every_line_works_in_its_order_and_prints_what_is_shown(server: Box) -> None:
    lines = [step for step in steps(SERVER) if step.line not in NOT_TYPED]
    assert len(lines) > 20
    for step in lines:
        typed(server, step)
    assert set(server.enter("id", "-Gn", "alice").stdout.split()) == {"alice", "vmstack", "vmstack-admin"}
    check_recorded(server)


def check_recorded(server: Box) -> None:
    """The service sees what its VMs use, although it is shut in."""
    server.enter("sh", "-c", "echo 'delay = 1' >> /etc/vmstack/vmstackd.toml; systemctl reload vmstackd")
    image = "/var/lib/libvirt/images/hello.qcow2"
    server.run("vmstackctl", "deploy", "seen", "--vcpus", "1", "--memory", "512M", "--level", "2", "--image", image)

    def recorded() -> bool:
        path = server.path("/var/lib/vmstack/monitoring.csv")
        if not path.exists():
            return False
        with TraceFile(path) as trace:
            return any(
                vm.name == "seen" and None not in (vm.cpu, vm.memory, vm.delay_s)
                for sample in trace
                for vm in sample.vms
            )

    until(recorded, "nothing of the VM is recorded")
    server.run("vmstackctl", "remove", "seen")


def hosts(server: Box) -> dict[str, str]:
    """State of each by its address, as globald tells."""
    reply = json.loads(server.run("vmstackctl", "--cluster", "hosts", "--output", "json").stdout)
    return {host["address"]: host["state"] for host in reply["hosts"]}


def test_a_cluster_is_made_of_it_line_by_line(server: Box) -> None:
    done = []
    for step in steps_and_files(CLUSTER):
        if isinstance(step, File):
            server.write(step.path, server.path(step.path).read_text() + step.text)
            continue
        typed(server, step)
        done.append(step.line)
        if " host add " in step.line:
            until(lambda: hosts(server) == {f"{ADDRESS}:8097": "up"}, "the host is not up")
    assert len(done) > 15
    # Who has no certificate is nobody.
    plain = server.run("vmstackctl", "--address", f"{ADDRESS}:8097", "status", check=False)
    assert plain.returncode != 0
    assert server.enter("find", "/etc/vmstack", "-name", "ca.key").stdout == ""


def test_the_program_of_a_few_lines_works(server: Box) -> None:
    [program] = re.findall(r"^```python\n(.*?)^```\n", SERVER, re.MULTILINE | re.DOTALL)
    done = server.run("env", "PYTHONPATH=/usr/lib/vmstack", "python3", "-c", program)
    hello, progress = done.stdout.splitlines()
    assert hello.startswith("1 {'version': 1")
    assert progress.startswith("2 {'progress': ")


def test_the_rule_for_polkit_allows_what_it_says_and_no_more(server: Box) -> None:
    [rule] = re.findall(r"^```js\n(.*?)^```\n", SERVER, re.MULTILINE | re.DOTALL)
    server.enter("groupadd", "web")
    server.enter("usermod", "--append", "--groups", "web", "alice")
    server.write("/etc/polkit-1/rules.d/50-vmstack.rules", rule)
    server.enter("systemctl", "restart", "polkit")

    def deploy(name: str, level: str) -> str:
        call = "busctl call org.vmstack.Host1 /org/vmstack/Host1 org.vmstack.Host1 Deploy sudds"
        words = [*call.split(), name, "1", "0.0625", level, "/var/lib/libvirt/images/hello.qcow2"]
        done = server.run(*words, user="alice", check=False)
        return done.stdout + done.stderr

    assert "may read but not deploy" in deploy("web-1", "2.0")
    assert "may read but not deploy" in deploy("db-1", "3.0")
    assert deploy("web-1", "3.0").startswith("au 1 ")
    server.run("vmstackctl", "remove", "web-1", user="alice")
    until(lambda: "web-1" not in server.enter("virsh", "list", "--name").stdout, "it runs on")
