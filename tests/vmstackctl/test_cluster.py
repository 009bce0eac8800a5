"""The commands, asking a cluster."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vmstackctl.cluster import Served, member, usual
from tests.vmstackctl.command import Host, run
from tests.vmstackctl.test_commands import failed
from vmstackd.api import requests
from vmstackd.api.replies import DuplicateVm
from vmstackd.tls import TlsFiles


@pytest.fixture
def cluster() -> Iterator[Served]:
    with Served(usual()) as served:
        yield served


@pytest.fixture
def twice(cluster: Served) -> Served:
    """web1 is on two hosts, of which one is silent."""
    cluster.do(lambda: cluster.cluster.add("web1", "server1"))
    cluster.do(lambda: cluster.cluster.add("web1", "server3", vcpus=0, level=0, cpus=(), state="unknown"))
    return cluster


def test_hosts_are_a_table_or_json_or_names(cluster: Served) -> None:
    lines = cluster.ctl("hosts").out.splitlines()
    assert [line.split()[:2] for line in lines[1:5]] == [
        ["server1", "up"],
        ["server2", "cordoned"],
        ["server3", "unknown"],
        ["server4", "connecting"],
    ]
    assert lines[-1].startswith("4 hosts: ")
    found = cluster.json("hosts")
    assert [host["name"] for host in found["hosts"]] == ["server1", "server2", "server3", "server4"]
    assert found["hosts"][0]["status"]["levels"][1]["level_text"] == "2.0"
    assert found["hosts"][3]["status"] is None
    assert found["duplicates"] == []
    assert cluster.ctl("hosts", "--output", "name").out.split() == ["server1", "server2", "server3", "server4"]


def test_names_on_several_hosts_are_told_with_the_hosts(twice: Served) -> None:
    found = (DuplicateVm(name="web1", hosts=("server1", "server3")),)
    twice.do(lambda: setattr(twice.cluster, "duplicates", found))
    last = twice.ctl("hosts").out.splitlines()[-1]
    assert last == "! web1 is on server1 and server3: vmstackctl remove web1 --host HOST removes one of them"


def test_three_hundred_hosts_arrive() -> None:
    with Served([member(f"server{number}") for number in range(300)]) as large:
        assert large.ctl("hosts").out.splitlines()[301].startswith("300 hosts: 300 up")


def test_a_vm_is_deployed_where_the_cluster_says(cluster: Served) -> None:
    assert cluster.deploy("web1", 2).out == "web1: runs at level 2:1 on CPUs 0-1 of server1 (score 12.345)\n"
    there = cluster.deploy("web2", 1, "--host", "server3", "--dry-run").out
    assert there == "web2: would run at level 2:1 on CPUs 0 of server3 (score 12.345) (dry run: nothing was changed)\n"
    assert [vm["host"] for vm in cluster.json("list")["vms"]] == ["server1"]
    assert cluster.ctl("list").out.splitlines()[1].split()[:3] == ["web1", "server1", "2:1"]
    assert cluster.ctl("describe", "web1").out.startswith("web1\n  host    server1\n")
    assert cluster.ctl("remove", "web1").out == "web1: removed from server1, freed CPUs 0-1\n"
    assert cluster.json("list") == {"vms": []}


def test_a_refusal_says_for_what_reasons(cluster: Served) -> None:
    failed(cluster.deploy("big", 100), 4, "no host for it: 4 hosts: 1 no cpu, 1 cordoned, 2 unknown; vmstackctl hosts")
    cluster.deploy("web1")
    failed(cluster.deploy("web1"), 1, "is on host 'server1' already")


def test_only_one_host_is_asked_about_when_it_is_named(twice: Served) -> None:
    assert [vm["host"] for vm in twice.json("list", "--host", "server3")["vms"]] == ["server3"]
    failed(twice.ctl("describe", "web1"), 2, "'web1' is on 2 hosts: server1, server3; say which with --host")
    failed(twice.ctl("remove", "web1"), 2, "; say which with --host")
    silent = twice.ctl("describe", "web1", "--host", "server3").out
    assert silent == "web1\n  host   server3\n  state  unknown: its host does not answer\n"
    assert twice.ctl("remove", "web1", "--host", "server1").code == 0
    assert [vm["host"] for vm in twice.json("list")["vms"]] == ["server3"]


def test_what_is_not_there_ends_with_3(cluster: Served) -> None:
    cluster.deploy("web1")
    failed(cluster.ctl("describe", "wbe1"), 3, "'wbe1' does not exist in this cluster; did you mean web1?")
    failed(cluster.ctl("describe", "zzz"), 3, "; vmstackctl list shows the VMs of the cluster")
    nowhere = "there is no host 'nope' in this cluster; vmstackctl hosts shows those that are"
    failed(cluster.ctl("describe", "web1", "--host", "nope"), 3, nowhere)
    failed(cluster.ctl("uncordon", "nope"), 3, nowhere)
    failed(cluster.ctl("host", "remove", "nope"), 3, nowhere)


def test_status_is_of_the_cluster_or_of_one_host(cluster: Served) -> None:
    whole = cluster.ctl("status").out
    assert "\nserver1  up " in whole
    assert re.search(r"^1:1 +12 +12 +4 +1\.00 +0$", whole, re.MULTILINE)
    assert whole.count("silent for 12 s") == 1
    assert "\n! x.toml: not TOML\n" in whole
    assert cluster.json("status")["host"]["cpus"] == 48
    one = cluster.ctl("status", "--host", "server1").out
    assert one.startswith("server1 a host  2 CPUs,")
    assert "Socket 0" in one
    assert cluster.json("status", "--host", "server1")["host"]["cpus"] == 2


def test_topology_is_of_one_host(cluster: Served) -> None:
    failed(cluster.ctl("topology"), 2, "add --host HOST; vmstackctl hosts shows their names")
    assert cluster.ctl("topology", "--host", "server1").out.startswith("a host  2 CPUs")
    assert cluster.json("topology", "--host", "server1")["host_cpus"] == 2


def test_progress_is_of_every_host(cluster: Served) -> None:
    size = ("--vcpus", "1", "--memory", "1", "--level", "1")
    lines = cluster.ctl("progress", *size).out.splitlines()
    assert lines[1].split() == ["*", "server1", "0.0"]
    assert lines[2].split() == ["server2", "-", "cordoned"]
    found = cluster.json("progress", *size)
    assert found["host"] == "server1"
    assert len(found["hosts"]) == 4
    failed(cluster.ctl("progress", *size, "--host", "server3"), 4, "no host for 1 vCPUs")


def test_a_host_is_cordoned_and_uncordoned(cluster: Served) -> None:
    failed(cluster.ctl("cordon"), 2, "cordon is for one host: name it; vmstackctl hosts shows their names")
    failed(cluster.ctl("uncordon"), 2, "uncordon is for one host")
    done = cluster.ctl("cordon", "server1", "--reason", "new disks")
    assert done.out == "server1: cordoned (new disks), gets no new VMs\n"
    assert cluster.json("hosts")["hosts"][0]["state"] == "cordoned"
    assert cluster.json("uncordon", "server1") == {"cordoned": False, "reason": "", "host": "server1"}
    assert cluster.ctl("uncordon", "server1", "--output", "name").out == "server1\n"
    failed(cluster.ctl("cordon", "server1", "--reason", "a\nb"), 2, "--reason: only printable characters")


def test_hosts_come_and_go(cluster: Served) -> None:
    added = cluster.ctl("host", "add", "10.0.0.9:8097", "--name", "server9").out
    assert added == (
        "10.0.0.9:8097: part of the cluster (/hosts.d/server9.toml); vmstackctl hosts shows when it is up\n"
    )
    assert cluster.ctl("host", "add", "a:1", "--output", "name").out == "a:1\n"
    assert cluster.ctl("host", "remove", "a:1", "--output", "name").out == "a:1\n"
    assert cluster.ctl("host", "list").out.splitlines()[-1].split() == ["server9", "10.0.0.9:8097", "static"]
    assert cluster.ctl("host", "list", "--output", "name").out.split()[-1] == "server9"
    assert len(cluster.json("host", "list")["hosts"]) == 5
    gone = cluster.ctl("host", "remove", "server1").out
    assert gone == "server1: no longer part of the cluster; 3 VMs of it run on\n"
    assert cluster.json("host", "remove", "server9")["listed"] is False
    assert cluster.ctl("host", "list", "--output", "name").out.split() == ["server2", "server3", "server4"]


def test_requests_name_the_host_that_was_typed(cluster: Served) -> None:
    size = ("--vcpus", "1", "--memory", "1", "--level", "1")
    cluster.ctl("progress", *size, "--host", "server1")
    cluster.ctl("list", "--host", "server2")
    assert cluster.cluster.asked == [
        requests.Progress(vcpus=1, memory_mib=1024, level=1000, host="server1"),
        requests.List(host="server2"),
    ]


@pytest.mark.parametrize(
    "command", ["hosts", "host list", "host add a:8097", "host remove server1"], ids=lambda command: command
)
def test_what_only_a_cluster_knows_is_not_asked_of_a_host(host: Host, command: str) -> None:
    asked = " ".join(command.split()[:2]) if command.startswith("host ") else command
    failed(host.ctl(*command.split()), 2, " is host ", f"; {asked} is answered by globald: add --cluster, or --address")


def test_a_host_answers_for_itself(host: Host) -> None:
    name = json.loads(host.ctl("cordon", "--output", "json").out)
    assert name == {"cordoned": True, "reason": ""}
    try:
        assert "cordoned; it gets no new VMs" in host.ctl("status").out
        failed(host.deploy("web1"), 6, "; ")
    finally:
        done = host.ctl("uncordon")
    assert re.fullmatch(r"\S+: gets new VMs again\n", done.out)
    assert "cordoned" not in host.ctl("status").out
    own = done.out.partition(":")[0]
    assert host.ctl("list", "--host", own).code == 0
    failed(host.ctl("list", "--host", "other"), 3, "this is host ")


def test_a_cluster_that_is_not_there_is_looked_for_by_its_name(cluster: Served) -> None:
    cluster.stop()
    failed(cluster.ctl("hosts"), 6, "is globald running? systemctl status globald")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki") / "pki"
    for arguments in (
        ("init",),
        ("client", "head", "--role", "globald", "--address", "127.0.0.1"),
        ("client", "alice", "--role", "operator"),
        ("client", "bob", "--role", "reader"),
    ):
        assert run("pki", *arguments, "--dir", str(folder)).code == 0
    return folder


def introduced(folder: Path, name: str) -> tuple[str, ...]:
    """The options for somebody's certificate."""
    files = {"ca": "ca.crt", "cert": f"{name}.crt", "key": f"{name}.key"}
    return tuple(word for option, file in files.items() for word in (f"--tls-{option}", str(folder / file)))


def test_over_tcp_the_certificate_says_what_somebody_may_do(certificates: Path, tmp_path: Path) -> None:
    files = TlsFiles(certificates / "ca.crt", certificates / "head.crt", certificates / "head.key")
    with Served(usual(), files) as cluster:
        address = f"127.0.0.1:{cluster.port}"
        alice = ("--address", address, *introduced(certificates, "alice"))
        bob = ("--address", f"tcp:{address}", *introduced(certificates, "bob"))
        assert run(*alice, "cordon", "server1").out == "server1: cordoned, gets no new VMs\n"
        assert run(*bob, "hosts").out.startswith("NAME ")
        failed(run(*bob, "uncordon", "server1"), 5, "may read but not uncordon; the role in our certificate decides")
        failed(run("--address", address, "hosts"), 6, address)
        (tmp_path / "vmstack").mkdir()
        keys = {"address": address, "tls_ca": "ca.crt", "tls_cert": "alice.crt", "tls_key": "alice.key"}
        for name in ("ca.crt", "alice.crt", "alice.key"):
            shutil.copy(certificates / name, tmp_path / "vmstack")
        text = "".join(f'{key} = "{value}"\n' for key, value in keys.items())
        (tmp_path / "vmstack" / "vmstackctl.toml").write_text(text)
        assert run("uncordon", "server1", XDG_CONFIG_HOME=str(tmp_path)).out == "server1: gets new VMs again\n"
