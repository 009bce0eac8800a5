"""Who is at the other end of a connection, as the kernel tells it, and what that user may do."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.running import PATIENCE
from tests.transports.rpc import STRANGER, as_root
from vmstackd.api.caller import Role
from vmstackd.daemon import peers, sock_diag
from vmstackd.daemon.peers import Peer, is_local, role_of, tcp_peer_uid, unix_peer, user_peer

_CONNECT = """
import socket, sys
family, *address = sys.argv[1:]
connection = socket.socket(getattr(socket, family))
connection.connect(address[0] if family == "AF_UNIX" else (address[0], int(address[1])))
print("connected", flush=True)
sys.stdin.read()
"""


@contextmanager
def _other(
    family: str, *address: str, uid: int | None = None, gid: int | None = None, groups: Sequence[int] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process, of another user if told so, that has connected."""
    command = [sys.executable, "-I", "-c", _CONNECT, family, *address]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, user=uid, group=gid, extra_groups=groups, cwd="/"
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"connected\n"
            yield process
        finally:
            process.stdin.close()
            process.wait(PATIENCE)


@contextmanager
def _listening(family: socket.AddressFamily, address: object) -> Iterator[socket.socket]:
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.settimeout(PATIENCE)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            listener.bind(address)  # type: ignore[arg-type]  # of the family
        except OSError as error:
            pytest.skip(f"this machine has no {address}: {error.strerror}")
        listener.listen()
        yield listener


# Unix sockets


def test_the_other_end_of_a_pair_is_this_process() -> None:
    one, other = socket.socketpair()
    with one, other:
        peer = unix_peer(one)
        assert (peer.pid, peer.uid) == (os.getpid(), os.geteuid())
        assert peer.gids == {os.getegid(), *os.getgroups()}


def test_another_process_is_known_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with _listening(socket.AF_UNIX, str(path)) as listener, _other("AF_UNIX", str(path)) as process:
        connection, _ = listener.accept()
        with connection:
            assert unix_peer(connection).pid == process.pid


@as_root
@pytest.mark.parametrize("groups", [[], [4201], [4201, 4202, 4203], range(5000, 5255), range(5000, 5300)])
def test_another_user_is_known_with_all_groups(groups: Sequence[int]) -> None:
    # pytest's own folders are closed to others.
    with tempfile.TemporaryDirectory() as folder, _listening(socket.AF_UNIX, f"{folder}/s") as listener:
        Path(folder).chmod(0o755)
        Path(folder, "s").chmod(0o666)
        with _other("AF_UNIX", f"{folder}/s", uid=STRANGER, gid=4200, groups=list(groups)) as process:
            connection, _ = listener.accept()
            with connection:
                peer = unix_peer(connection)
                assert (peer.pid, peer.uid) == (process.pid, STRANGER)
                if len(groups) < 256:
                    assert peer.gids == {4200, *groups}
                else:  # more than can be asked for: those of the user database
                    assert peer.gids == user_peer(STRANGER).gids


@as_root
def test_who_has_connected_counts_not_who_is_there_now() -> None:
    one, other = socket.socketpair()
    with one, other:
        code = "import os, time; os.setuid(65534); print('changed', flush=True); import sys; sys.stdin.read()"
        command = [sys.executable, "-I", "-c", code]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[other.fileno()]
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"changed\n"
            assert unix_peer(one).uid == 0
            child.communicate()


def test_what_is_no_unix_socket_raises() -> None:
    with closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.close()
        with pytest.raises(OSError, match="descriptor"):
            unix_peer(connection)


# Names


def test_a_user_has_a_name_or_a_number() -> None:
    assert Peer(pid=1, uid=0, gids=frozenset()).user == "root"
    assert Peer(pid=1, uid=4_000_000, gids=frozenset()).user == "4000000"


def test_the_groups_of_a_user_come_from_the_database() -> None:
    peer = user_peer(0)
    assert (peer.pid, peer.uid) == (0, 0)
    assert pwd.getpwuid(0).pw_gid in peer.gids
    assert user_peer(4_000_000).gids == frozenset()


# TCP


ADDRESSES = {
    "IPv4": (socket.AF_INET, "127.0.0.1", "AF_INET", "127.0.0.1"),
    "IPv6": (socket.AF_INET6, "::1", "AF_INET6", "::1"),
    "IPv4 on a socket for both": (socket.AF_INET6, "::", "AF_INET", "127.0.0.1"),
    "IPv6 on a socket for both": (socket.AF_INET6, "::", "AF_INET6", "::1"),
    "IPv4 spelled as IPv6": (socket.AF_INET, "127.0.0.1", "AF_INET6", "::ffff:127.0.0.1"),
    "IPv4 spelled as IPv6 on a socket for both": (socket.AF_INET6, "::", "AF_INET6", "::ffff:127.0.0.1"),
}


def _refuse(*_: object) -> None:
    raise PermissionError


@pytest.fixture(params=["asked", "from the table"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the kernel is asked: about one connection, or where it may not be, for all of them."""
    name = str(request.param)
    other = "_uid_between" if name == "asked" else "_asked_uid"
    monkeypatch.setattr(peers, other, lambda *_: None)
    return name


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("family", "ours", "their_family", "theirs"), ADDRESSES.values(), ids=ADDRESSES.keys())
@pytest.mark.parametrize("uid", [pytest.param(None, id="the same user"), pytest.param(STRANGER, marks=as_root)])
def test_the_user_of_a_tcp_connection(
    family: socket.AddressFamily, ours: str, their_family: str, theirs: str, uid: int | None
) -> None:
    with _listening(family, (ours, 0)) as listener:
        port = str(listener.getsockname()[1])
        with _other(their_family, theirs, port, uid=uid):
            connection, _ = listener.accept()
            with connection:
                assert tcp_peer_uid(connection) == (os.geteuid() if uid is None else uid)
                assert is_local(connection)


def test_where_the_kernel_may_not_be_asked_its_table_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sock_diag, "uid_of", _refuse)
    with (
        _listening(socket.AF_INET, ("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as connection,
    ):
        assert tcp_peer_uid(connection) == os.geteuid()


@as_root
@pytest.mark.usefixtures("way")
def test_each_of_several_connections_has_its_own_user() -> None:
    with _listening(socket.AF_INET, ("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        with _other("AF_INET", "127.0.0.1", port), _other("AF_INET", "127.0.0.1", port, uid=STRANGER):
            first, second = listener.accept()[0], listener.accept()[0]
            with first, second:
                assert (tcp_peer_uid(first), tcp_peer_uid(second)) == (os.geteuid(), STRANGER)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("uid", [pytest.param(None, id="the same user"), pytest.param(STRANGER, marks=as_root)])
def test_one_that_has_closed_is_nobody(uid: int | None) -> None:
    """Else it would be taken for root, to whom such connections belong in the kernel's table."""
    with _listening(socket.AF_INET, ("127.0.0.1", 0)) as listener:
        with _other("AF_INET", "127.0.0.1", str(listener.getsockname()[1]), uid=uid):
            connection, _ = listener.accept()
        with connection:
            assert connection.recv(1) == b""
            assert tcp_peer_uid(connection) is None


def test_a_connection_that_is_none_belongs_to_nobody() -> None:
    with closing(socket.socket()) as connection:
        assert tcp_peer_uid(connection) is None
        assert is_local(connection)  # as far as one knows: what is not local may do more


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("hang_up", [False, True])
def test_one_that_has_hung_up_is_nobody_but_local(*, hang_up: bool) -> None:
    """Without an answer to who it is, one of this machine must not pass for one from elsewhere."""
    with (
        _listening(socket.AF_INET, ("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as other,
    ):
        connection, _ = listener.accept()
        with connection:
            if hang_up:
                other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                other.close()
            else:
                other.shutdown(socket.SHUT_WR)
            assert tcp_peer_uid(connection) is None
            assert is_local(connection)


def test_one_that_hangs_up_while_it_is_looked_for_is_nobody(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its port may belong to somebody else by then."""
    with (
        _listening(socket.AF_INET, ("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as other,
    ):
        connection, _ = listener.accept()
        look = peers._asked_uid if way == "asked" else peers._uid_between

        def look_late(*ends: Any) -> int | None:  # noqa: ANN401  as either of them takes
            uid = look(*ends)
            assert uid == os.geteuid()
            other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            other.close()
            return uid

        monkeypatch.setattr(peers, look.__name__, look_late)
        with connection:
            assert tcp_peer_uid(connection) is None


def _address_beyond_loopback(family: socket.AddressFamily) -> str:
    """One that this machine has."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.77" if family == socket.AF_INET else "2001:db8::77", 9))
        except OSError as error:
            pytest.skip(f"this machine has no address to send from: {error.strerror}")
        return str(probe.getsockname()[0])


@pytest.mark.parametrize(
    ("family", "ours"),
    [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::1"), (socket.AF_INET6, "::")],
)
def test_every_address_of_this_machine_is_local(family: socket.AddressFamily, ours: str) -> None:
    """Also one that calls another one."""
    source = _address_beyond_loopback(family)
    loopback = "127.0.0.1" if family == socket.AF_INET else "::1"
    with _listening(family, (ours, 0)) as listener, socket.socket(family) as other:
        other.bind((source, 0))
        other.connect((loopback, listener.getsockname()[1]))
        connection, _ = listener.accept()
        with connection:
            assert connection.getpeername()[0] == source
            assert tcp_peer_uid(connection) == os.geteuid()
            assert is_local(connection)


def test_an_address_that_this_machine_has_is_local_whatever_was_called() -> None:
    source = _address_beyond_loopback(socket.AF_INET)
    for theirs, ours in ((source, "198.51.100.7"), (f"::ffff:{source}", "::ffff:198.51.100.7")):
        assert is_local(_Connected(theirs, ours))  # type: ignore[arg-type]  # as much of a socket as is asked


class _Connected:
    """A connection between two addresses."""

    def __init__(self, theirs: str, ours: str) -> None:
        self.theirs = theirs
        self.ours = ours

    def getpeername(self) -> tuple[str, int]:
        return self.theirs, 40000

    def getsockname(self) -> tuple[str, int]:
        return self.ours, 8097


@pytest.mark.parametrize(
    ("theirs", "ours", "local"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.8.8.8", "127.0.0.1", True),
        ("::1", "::1", True),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1", True),
        ("192.0.2.1", "192.0.2.1", True),
        ("fe80::1%eth0", "fe80::1%eth0", True),
        ("203.0.113.99", "127.0.0.1", True),
        ("203.0.113.99", "203.0.113.98", False),
        ("::ffff:203.0.113.99", "::ffff:203.0.113.98", False),
        ("fe80::2%eth0", "fe80::1%eth0", False),
        ("2001:db8::2", "2001:db8::1", False),
    ],
)
def test_what_is_local(theirs: str, ours: str, *, local: bool) -> None:
    connection = _Connected(theirs, ours)
    assert is_local(connection) is local  # type: ignore[arg-type]  # as much of a socket as is asked
    assert tcp_peer_uid(connection) is None  # type: ignore[arg-type]  # there is no such connection


# Roles

GROUPS = {peers.READERS: 4201, peers.OPERATORS: 4202}


@pytest.mark.parametrize(
    ("uid", "gids", "role"),
    [
        (0, [], Role.OPERATOR),
        (1000, [], Role.NOBODY),
        (1000, [1000, 4200], Role.NOBODY),
        (1000, [1000, 4201], Role.READER),
        (1000, [1000, 4202], Role.OPERATOR),
        (1000, [4201, 4202], Role.OPERATOR),
        (4242, [], Role.OPERATOR),
    ],
)
def test_groups_make_roles(uid: int, gids: list[int], role: Role, monkeypatch: pytest.MonkeyPatch) -> None:
    def known(name: str) -> grp.struct_group:
        return grp.struct_group((name, "x", GROUPS[name], []))

    monkeypatch.setattr(grp, "getgrnam", known)
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    assert role_of(Peer(pid=1, uid=uid, gids=frozenset(gids))) is role


def test_groups_that_do_not_exist_make_nobody_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> grp.struct_group:
        raise KeyError(name)

    monkeypatch.setattr(grp, "getgrnam", unknown)
    assert role_of(Peer(pid=1, uid=1000, gids=frozenset({0, 1000}))) is Role.NOBODY
    assert role_of(Peer(pid=1, uid=0, gids=frozenset())) is Role.OPERATOR
