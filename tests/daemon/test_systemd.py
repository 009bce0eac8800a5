"""What systemd gives and is told, over real sockets."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.running import PATIENCE, ROOT
from vmstackd.daemon import systemd
from vmstackd.daemon.systemd import MAX_STATUS, Notifier, PassedSocketsError, forget, passed_sockets, watchdog_interval


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket on which systemd listens."""
    with _bound(str(tmp_path / "notify")) as bound:
        yield bound


def _bound(address: str) -> socket.socket:
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    bound.bind(address)
    bound.setblocking(False)
    return bound


def _notifier(manager: socket.socket) -> Notifier:
    return Notifier({"NOTIFY_SOCKET": manager.getsockname()})


def _told(manager: socket.socket) -> list[str]:
    """All that has arrived."""
    told = []
    with contextlib.suppress(BlockingIOError):
        while True:
            told.append(manager.recv(4097).decode())
    return told


# Readiness, status, watchdog


def test_systemd_is_told_each_state(manager: socket.socket) -> None:
    notifier = _notifier(manager)
    notifier.status("starting")
    notifier.ready()
    notifier.watchdog()
    notifier.stopping()
    assert _told(manager) == ["STATUS=starting", "READY=1", "WATCHDOG=1", "STOPPING=1"]


def test_a_reload_tells_when_it_began(manager: socket.socket) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    _notifier(manager).reloading()
    (told,) = _told(manager)
    match = re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=([0-9]+)", told)
    assert match is not None
    assert before <= int(match[1]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_an_abstract_socket_is_found_by_its_name(tmp_path: Path) -> None:
    name = f"vmstack-test{tmp_path}"
    with _bound(f"\0{name}") as manager:
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).ready()
        assert _told(manager) == ["READY=1"]


@given(st.text() | st.text(alphabet="a\\\n\r\x00\x1b\x85\u2028\ud800\U0001f600", min_size=MAX_STATUS))
def test_no_status_can_say_anything_else_or_is_too_long(text: str) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far, pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "sendto", lambda _, data, address: far.send(data))
        Notifier({"NOTIFY_SOCKET": "/somewhere"}).status(text)
        told = near.recv(5000)
    assert told.startswith(b"STATUS=")
    assert told.decode().isprintable()
    assert len(told) <= 4096
    if text.isprintable() and len(text) <= MAX_STATUS and "\\" not in text:
        assert told.decode() == f"STATUS={text}"


def test_a_status_is_shown_with_its_escapes(manager: socket.socket) -> None:
    _notifier(manager).status("a\nb\\")
    (told,) = _told(manager)
    assert re.sub(r"\\(.)", r"\1", told) == "STATUS=a\\nb\\", "systemd takes a backslash for an escape, too"


def _everything(notifier: Notifier) -> None:
    notifier.ready()
    notifier.status("fine")
    notifier.reloading()
    notifier.watchdog()
    notifier.stopping()


@pytest.mark.parametrize(
    "name",
    [None, "", "@", "relative", "vsock:2:1234", "/", "/nowhere/at/all", "/" + "x" * 200, "@\ud800", "/a\0b", "/\ud800"],
)
def test_without_somebody_who_listens_nothing_happens(name: str | None) -> None:
    _everything(Notifier({} if name is None else {"NOTIFY_SOCKET": name}))


def test_a_name_without_a_path_is_never_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with _bound("relative") as bound:
        _everything(Notifier({"NOTIFY_SOCKET": "relative"}))
        assert _told(bound) == []


def test_a_manager_that_goes_does_no_harm(manager: socket.socket) -> None:
    notifier = _notifier(manager)
    notifier.ready()
    manager.close()
    _everything(notifier)


def test_a_socket_of_another_kind_does_no_harm(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stream:
        stream.bind(str(tmp_path / "stream"))
        stream.listen()
        _everything(Notifier({"NOTIFY_SOCKET": stream.getsockname()}))


def _fill(manager: socket.socket) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, contextlib.suppress(BlockingIOError):
        sender.setblocking(False)
        while True:
            sender.sendto(b"STATUS=noise", manager.getsockname())


def test_a_full_socket_is_not_waited_for_and_the_state_comes_later(manager: socket.socket) -> None:
    notifier = _notifier(manager)
    _fill(manager)
    notifier.ready()
    notifier.status("lost")
    assert set(_told(manager)) == {"STATUS=noise"}
    notifier.watchdog()
    notifier.watchdog()
    assert _told(manager) == ["READY=1\nWATCHDOG=1", "WATCHDOG=1"]


def test_only_the_newest_state_comes_later(manager: socket.socket) -> None:
    notifier = _notifier(manager)
    _fill(manager)
    notifier.ready()
    notifier.stopping()
    _told(manager)
    notifier.status("ending")
    assert _told(manager) == ["STOPPING=1\nSTATUS=ending"]
    _fill(manager)
    notifier.reloading()
    _told(manager)
    notifier.ready()
    assert _told(manager) == ["READY=1"]


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "1"}, 1e-6),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid() + 1)}, None),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": ""}, None),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "me"}, None),
        ({"WATCHDOG_PID": str(os.getpid())}, None),
        *(
            ({"WATCHDOG_USEC": malformed}, None)
            for malformed in (
                "",
                "0",
                "000",
                "-1",
                "+1",
                " 1",
                "1.5",
                "1_0",
                "٣",
                "1s",
                "1\n",
                str(2**64 - 1),
                "9" * 5000,
            )
        ),
    ],
)
def test_the_interval_of_the_watchdog(environment: dict[str, str], seconds: float | None) -> None:
    assert watchdog_interval(environment) == seconds


def test_the_watchdog_counts_for_the_process_that_is_named_when_it_asks() -> None:
    code = "import os; from vmstackd.daemon.systemd import watchdog_interval as w; print(w(os.environ))"
    environment = os.environ | {"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid())}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True, timeout=PATIENCE
    )
    assert done.stdout == b"None\n"


# Passed sockets

LAUNCHER = """
import fcntl, os, sys
# Descriptors from 3 on, the variables, and the process that they are for: what systemd does.
program, grandchild, *given = sys.argv[1:]
high = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 100) for number in given]
os.closerange(3, 100)
for number, descriptor in enumerate(high, 3):
    os.dup2(descriptor, number, inheritable=True)
os.environ.setdefault("LISTEN_PID", str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-c", program, grandchild])
"""

PROGRAM = """
import json, os, subprocess, sys
from vmstackd.daemon.systemd import PassedSocketsError, passed_sockets
try:
    sockets = passed_sockets(os.environ, os.getpid())
except PassedSocketsError as error:
    print(json.dumps({"error": str(error)}))
    sys.exit()
inherited = subprocess.run([sys.executable, "-c", sys.argv[1]], close_fds=False, capture_output=True, check=True)
for name, each in sockets.items():
    each.setblocking(True)
    connection, _ = each.accept()
    connection.sendall(name.encode())
    connection.close()
    each.setblocking(False)
print(json.dumps({
    "sockets": {
        name: {"number": each.fileno(), "blocking": os.get_blocking(each.fileno()), "family": each.family}
        for name, each in sockets.items()
    },
    "inherited": json.loads(inherited.stdout),
}))
"""

GRANDCHILD = """
import json, os, stat
sockets = []
for number in range(3, 10):
    try:
        if stat.S_ISSOCK(os.fstat(number).st_mode):
            sockets.append(number)
    except OSError:
        pass
print(json.dumps({"variables": [key for key in os.environ if key.startswith("LISTEN")], "sockets": sockets}))
"""


def _started(passed: Sequence[int], **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, PROGRAM, GRANDCHILD, *map(str, passed)],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if not key.startswith("LISTEN")} | variables,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=passed,
    )


def _finished(process: subprocess.Popen[str]) -> Any:  # noqa: ANN401  whatever it says, the test looks inside
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    return json.loads(out)


def _error(passed: Sequence[int], **variables: str) -> str:
    error: str = _finished(_started(passed, **variables))["error"]
    assert error.isprintable()
    return error


def _listener(family: socket.AddressFamily, address: Any) -> socket.socket:  # noqa: ANN401  as sockets have it
    listener = socket.socket(family)
    listener.bind(address)
    listener.listen()
    return listener


def _asked(listener: socket.socket) -> bytes:
    """What the process that accepts here answers."""
    with socket.socket(listener.family) as client:
        client.settimeout(PATIENCE)
        client.connect(listener.getsockname())
        answer = b""
        while data := client.recv(100):
            answer += data
        return answer


@pytest.fixture
def inet() -> Iterator[socket.socket]:
    with _listener(socket.AF_INET, ("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def unix(tmp_path: Path) -> Iterator[socket.socket]:
    with _listener(socket.AF_UNIX, str(tmp_path / "unix")) as listener:
        yield listener


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({"LISTEN_FDNAMES": "http:vmstackd.sock"}, ("http", "vmstackd.sock")),
        ({"LISTEN_FDNAMES": "http:"}, ("http", "unix")),
        ({"LISTEN_FDNAMES": ""}, ("inet", "unix")),
        ({}, ("inet", "unix")),
    ],
)
def test_passed_sockets_are_named_work_and_are_not_passed_on(
    inet: socket.socket, unix: socket.socket, variables: dict[str, str], names: tuple[str, str]
) -> None:
    process = _started([inet.fileno(), unix.fileno()], LISTEN_FDS="2", **variables)
    assert (_asked(inet), _asked(unix)) == (names[0].encode(), names[1].encode())
    assert _finished(process) == {
        "sockets": {
            names[0]: {"number": 3, "blocking": False, "family": socket.AF_INET},
            names[1]: {"number": 4, "blocking": False, "family": socket.AF_UNIX},
        },
        "inherited": {"variables": [], "sockets": []},
    }


@pytest.mark.parametrize("pid", ["1", "", "me", "-1"])
def test_sockets_for_another_process_are_left_alone(inet: socket.socket, pid: str) -> None:
    done = _finished(_started([inet.fileno()], LISTEN_FDS="1", LISTEN_PID=pid, LISTEN_FDNAMES="http"))
    assert done == {"sockets": {}, "inherited": {"variables": [], "sockets": [3]}}


def test_two_sockets_of_one_name_are_refused(inet: socket.socket, unix: socket.socket) -> None:
    given = [inet.fileno(), unix.fileno()]
    error = _error(given, LISTEN_FDS="2", LISTEN_FDNAMES="a\nb:a\nb")
    assert error.startswith("two passed sockets are named 'a\\nb' (descriptors 3 and 4); ")
    assert "FileDescriptorName=" in error
    assert "named 'inet'" in _error([inet.fileno()] * 2, LISTEN_FDS="2")


@pytest.mark.parametrize("count", ["", "-1", "one", "1 ", "99999", "9" * 5000, "1\n2", "٣"])
def test_a_number_of_sockets_that_is_none_is_refused(count: str) -> None:
    environment = {"LISTEN_FDS": count, "LISTEN_PID": "7"}
    with pytest.raises(PassedSocketsError, match="is not a number of sockets") as caught:
        passed_sockets(environment, 7)
    assert str(caught.value).isprintable()
    assert environment == {}


def test_no_sockets_are_no_mistake() -> None:
    for environment in ({}, {"LISTEN_FDS": "0", "LISTEN_PID": "7"}, {"LISTEN_FDS": "0"}):
        assert passed_sockets(environment, 7) == {}


@pytest.mark.parametrize(("count", "names"), [("1", "a:b"), ("2", "a"), ("1", ":"), ("0", "a")])
def test_a_wrong_number_of_names_is_refused(count: str, names: str) -> None:
    environment = {"LISTEN_FDS": count, "LISTEN_PID": "7", "LISTEN_FDNAMES": names}
    with pytest.raises(PassedSocketsError, match=f"LISTEN_FDNAMES has {names.count(':') + 1} names for {count} sock"):
        passed_sockets(environment, 7)


def test_what_is_no_listening_stream_socket_is_refused(inet: socket.socket, tmp_path: Path) -> None:
    near, far = socket.socketpair()
    with near, far, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams, socket.socket() as idle:
        for wrong in (near, datagrams, idle):
            error = _error([inet.fileno(), wrong.fileno()], LISTEN_FDS="2", LISTEN_FDNAMES="a:b")
            assert error.startswith("the passed descriptor 4 is not a listening stream socket; ")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as packets:
        packets.bind(str(tmp_path / "packets"))
        packets.listen()
        assert "is not a listening stream socket" in _error([packets.fileno()], LISTEN_FDS="1")
    with (tmp_path / "file").open("w") as file:
        assert "3 cannot be used: Socket operation on non-socket" in _error([file.fileno()], LISTEN_FDS="1")
    assert "4 cannot be used: Bad file descriptor" in _error([inet.fileno()], LISTEN_FDS="2")


def test_after_a_refusal_nothing_stays_open(inet: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as idle:
        first = fcntl.fcntl(inet, fcntl.F_DUPFD_CLOEXEC, 200)
        second = fcntl.fcntl(idle, fcntl.F_DUPFD_CLOEXEC, first + 1)
    assert second == first + 1
    monkeypatch.setattr(systemd, "FIRST_SOCKET", first)
    with pytest.raises(PassedSocketsError, match="is not a listening stream socket"):
        passed_sockets({"LISTEN_FDS": "2", "LISTEN_PID": "7"}, 7)
    for descriptor in (first, second):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_what_is_for_us_alone_is_taken_out_of_the_environment() -> None:
    ours = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
    environment = {"PATH": "/bin", "JOURNAL_STREAM": "1:2", **dict.fromkeys(ours, "1")}
    forget(environment)
    assert environment == {"PATH": "/bin", "JOURNAL_STREAM": "1:2"}
    forget(environment)
