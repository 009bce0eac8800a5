from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import PATIENCE, ROOT
from tests.vmstackctl.cluster import Served, member, usual
from tests.vmstackctl.command import Host, environment, run
from vmstackctl.commands import SHELLS, completion_script

COMMAND = Path(sys.executable).parent / "vmstackctl"


def completed(*typed: str, **variables: str) -> list[str]:
    """What bash offers for the last of these words."""
    line = (
        f'eval "$(env -u VMSTACKCTL_ADDRESS {COMMAND} completion bash)"; '
        'COMP_WORDS=(vmstackctl "$@"); COMP_CWORD=$#; COMPREPLY=(); '
        f'_vmstackctl_completion {COMMAND} 2>&1; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", line, "bash", *typed],
        cwd=ROOT,
        env=environment(variables),
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    # compopt complains when it is not called by the shell itself.
    return [word for word in done.stdout.splitlines() if word and "compopt" not in word]


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_gets_a_script(shell: str) -> None:
    script = run("completion", shell).out
    assert script == completion_script(shell)
    assert "_VMSTACKCTL_COMPLETE" in script


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_understands_its_script(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / "script"
    script.write_text(completion_script(shell))
    subprocess.run([shell, "-n", str(script)], check=True, timeout=PATIENCE)


def test_commands_options_and_choices_are_completed() -> None:
    assert completed("de") == ["describe", "deploy"]
    assert completed("deploy", "--v") == ["--vcpus"]
    assert completed("--output", "j") == ["json"]
    assert completed("completion", "") == list(SHELLS)


def test_names_of_vms_are_completed(host: Host) -> None:
    host.deploy("web1")
    host.deploy("web2")
    host.deploy("db")
    where = str(host.socket)
    assert completed("describe", "we", VMSTACKCTL_ADDRESS=where) == ["web1", "web2"]
    assert completed("--socket", where, "remove", "web1", "") == ["web2", "db"]


@pytest.mark.parametrize("name", ["$(reboot)", "a;b", "a b", "`x`", "a>b", "a,b", "a*"])
def test_names_that_mean_something_to_a_shell_are_not_offered(host: Host, name: str) -> None:
    assert host.deploy(name).code == 0
    host.deploy("web1")
    assert completed("describe", "", VMSTACKCTL_ADDRESS=str(host.socket)) == ["web1"]


def test_without_a_daemon_there_are_no_names_and_no_complaints() -> None:
    assert completed("describe", "", VMSTACKCTL_ADDRESS="/nowhere") == []
    assert completed("describe", "", VMSTACKCTL_ADDRESS="nonsense") == []


def test_names_of_hosts_are_completed(host: Host) -> None:
    with Served((*usual(), member("$(reboot)"))) as cluster:
        where = str(cluster.socket)
        names = ["server1", "server2", "server3", "server4"]
        assert completed("cordon", "", VMSTACKCTL_ADDRESS=where) == names
        assert completed("host", "remove", "server3", VMSTACKCTL_ADDRESS=where) == ["server3"]
        assert completed("list", "--host", "s", VMSTACKCTL_ADDRESS=where) == names
        assert completed("host", "", VMSTACKCTL_ADDRESS=where) == ["add", "remove", "list"]
        cluster.do(lambda: cluster.cluster.add("web1", "server1"))
        cluster.do(lambda: cluster.cluster.add("web1", "server2"))
        cluster.do(lambda: cluster.cluster.add("web2", "server2"))
        assert completed("remove", "w", VMSTACKCTL_ADDRESS=where) == ["web1", "web2"]
        assert completed("describe", "--host", "server1", "", VMSTACKCTL_ADDRESS=where) == ["web1"]
    assert len(completed("uncordon", "", VMSTACKCTL_ADDRESS=str(host.socket))) == 1


def test_wrong_defaults_are_nothing_to_complain_about_while_somebody_types(tmp_path: Path) -> None:
    (tmp_path / "vmstack").mkdir()
    (tmp_path / "vmstack" / "vmstackctl.toml").write_text("nonsense")
    assert completed("describe", "", XDG_CONFIG_HOME=str(tmp_path)) == []
