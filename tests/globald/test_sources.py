"""Which hosts there are: addresses as people write them, and the files of a folder, whatever is in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from globald import sources
from globald.sources import STATIC, Entry, Folder, read_address, together
from vmstackd.address import parse_address
from vmstackd.api import requests
from vmstackd.api.errors import AlreadyExists, Internal, InvalidRequest

# Addresses


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.5:8097", "10.0.0.5:8097"),
        ("10.0.0.5", "10.0.0.5:8097"),
        ("server1", "server1:8097"),
        ("server1:1", "server1:1"),
        ("Server1.Example.ORG:65535", "server1.example.org:65535"),
        ("tcp:server1:9000", "server1:9000"),
        ("[fd00::5]:8097", "[fd00::5]:8097"),
        ("[fd00::5]", "[fd00::5]:8097"),
        ("fd00::5", "[fd00::5]:8097"),
        ("::1", "[::1]:8097"),
        ("[FD00:0:0::05]:9", "[fd00::5]:9"),
        ("[fe80::1%eth0]:9", "[fe80::1%eth0]:9"),
    ],
)
def test_an_address_is_read_as_people_write_it(text: str, address: str) -> None:
    assert read_address(text) == address
    assert read_address(address) == address


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("http://127.0.0.1:8100", "write 127.0.0.1:8097 instead of http://127.0.0.1:8100"),
        ("http://127.0.0.1:8100/", "write 127.0.0.1:8097 instead"),
        ("https://server1/status?x=1", "write server1:8097 instead"),
        ("HTTP://server1:99", "write server1:8097 instead"),
        ("http://[fd00::5]:8100", "write [fd00::5]:8097 instead"),
        ("http://[fd00::5]", "write [fd00::5]:8097 instead"),
        ("http://", "HOST:PORT of a vmstackd, not a URL"),
    ],
)
def test_a_url_is_answered_with_what_to_write_instead(text: str, instead: str) -> None:
    with pytest.raises(ValueError, match=r"not a URL: globald speaks to the hosts' TCP port, 8097") as error:
        read_address(text)
    assert instead in str(error.value)


@pytest.mark.parametrize("text", ["127.0.0.1:8100", "[::1]:8100", "server1:8099"])
def test_a_port_for_http_is_answered_with_what_to_write_instead(text: str) -> None:
    """The prototype's list is 127.0.0.1:8100, as shipped; no host was ever reached with it."""
    with pytest.raises(ValueError, match="is a port for HTTP: write 8097 instead"):
        read_address(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":8097",
        "server1:",
        "server1:0",
        "server1:65536",
        "server1:http",
        "server1:+1",
        "a b:1",
        "a\nb:1",
        "user@server1:1",
        "/run/vmstack/vmstackd.sock",
        "unix:/run/vmstack/vmstackd.sock",
        "[fd00::5",
        "[nonsense]:1",
        "[fd00::5]8097",
        "fd00::5::6",
        "a..b:1",
        f"{'x' * 64}:1",
        f"{'x.' * 200}:1",
        "ü:1",
    ],
)
def test_what_is_no_address_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match=r"^HOST:PORT") as error:
        read_address(text)
    assert len(str(error.value)) < 500


@given(st.text() | st.from_regex(r"[\[\]a-zA-Z0-9.:%_/-]{0,40}") | st.ip_addresses().map(str))
def test_any_text_is_an_address_that_can_be_called_or_refused(text: str) -> None:
    try:
        address = read_address(text)
    except ValueError:
        return
    assert read_address(address) == address
    found = parse_address(address)
    assert found.kind == "tcp"
    assert 1 <= found.port <= 65535
    found.host.encode("idna")


@given(st.ip_addresses(), st.integers(1, 65535))
def test_every_ip_address_can_be_written(ip: object, port: int) -> None:
    port += 2 * (port in sources.HTTP_PORTS)
    text = f"[{ip}]:{port}" if ":" in str(ip) else f"{ip}:{port}"
    assert read_address(text) == text
    assert read_address(str(ip)).endswith(":8097")


# Files


def _addresses(folder: Folder) -> list[str]:
    return [entry.address for entry in folder.read()[0]]


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def _write(path: Path, text: str) -> None:
    """As an editor: another file each time."""
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def test_files_name_hosts_in_the_order_of_their_names(tmp_path: Path) -> None:
    _write(tmp_path / "b.toml", 'address = "b1"')
    _write(tmp_path / "a.toml", 'addresses = ["a2:1", "a1", "a2:1", "A1:8097"]')
    _write(tmp_path / "c.toml", 'address = "c1"\naddresses = ["c2"]')
    for ignored in ("x.toml~", ".hidden.toml", "notes.txt", "x.toml.bak"):
        (tmp_path / ignored).write_text("nonsense")
    entries, problems = Folder(tmp_path).read()
    assert problems == []
    assert [entry.address for entry in entries] == ["a2:1", "a1:8097", "b1:8097", "c1:8097", "c2:8097"]
    assert entries[0].source == str(tmp_path / "a.toml")


def test_files_come_change_and_go(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "hosts.d")
    assert folder.read() == ([], [])  # it need not be there
    (tmp_path / "hosts.d").mkdir()
    path = tmp_path / "hosts.d" / "a.toml"
    _write(path, 'address = "a"')
    assert _addresses(folder) == ["a:8097"]
    _write(path, 'address = "b"')
    assert _addresses(folder) == ["b:8097"]
    path.unlink()
    assert folder.read() == ([], [])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "it names no host"),
        (b"addres", "not a TOML file"),
        (b'address = "a', "not a TOML file"),
        (b'address = "b"\naddress = "c"', "not a TOML file"),
        (b'adress = "b"', "unknown field `adress`"),
        (b"address = 5", "Expected `str`"),
        (b'addresses = "b"', "Expected `array`"),
        (b"addresses = []", "it names no host"),
        (b'address = "http://127.0.0.1:8100"', "write 127.0.0.1:8097 instead"),
        (b'addresses = ["b", "c d"]', "'c d' is not allowed"),
        (b'address = "\xff"', "not a TOML file"),
        (b"\0", "not a TOML file"),
        (b"x = " + b"[" * 10_000, "not a TOML file"),
        (b"x = " + b"9" * 10_000, ""),
    ],
)
def test_what_a_file_said_holds_until_it_can_be_understood_again(tmp_path: Path, text: bytes, problem: str) -> None:
    path = tmp_path / "a.toml"
    _write(path, 'address = "a"')
    _write(tmp_path / "z.toml", 'address = "z"')
    folder = Folder(tmp_path)
    assert _addresses(folder) == ["a:8097", "z:8097"]
    path.write_bytes(text)
    for _ in range(2):  # it stays reported
        entries, problems = folder.read()
        assert [entry.address for entry in entries] == ["a:8097", "z:8097"]
        assert len(problems) == 1
        assert problems[0].startswith(f"{path}: ")
        assert problem in problems[0]
        assert len(problems[0]) < 1000
    _write(path, 'address = "c"')
    assert folder.read() == ([Entry("c:8097", str(path)), Entry("z:8097", str(tmp_path / "z.toml"))], [])


def test_what_a_bad_file_names_from_the_start_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("half = ")
    entries, problems = Folder(tmp_path).read()
    assert entries == []
    assert len(problems) == 1


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _dangling(path: Path) -> None:
    path.symlink_to("nothing")


def _large(path: Path) -> None:
    path.write_bytes(b"#" * (sources.MOST_BYTES + 1))


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (_fifo, "not a regular file"),
        (Path.mkdir, "cannot be read: Is a directory"),
        (_loop, "cannot be read: Too many levels of symbolic links"),
        (_dangling, "is a link to a file that does not exist"),
        (_large, "larger than 4194304 bytes"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    ],
    ids=["a FIFO", "a directory", "a link to itself", "a link to nothing", "too large", "a device"],
)
def test_what_is_no_file_is_reported_and_waited_for_by_nobody(tmp_path: Path, make: object, problem: str) -> None:
    path = tmp_path / "a.toml"
    _write(path, 'address = "a"')
    folder = Folder(tmp_path)
    assert _addresses(folder) == ["a:8097"]
    path.unlink()
    make(path)  # type: ignore[operator]  # one of those above
    before = _descriptors()
    for _ in range(3):
        entries, problems = folder.read()
        assert [entry.address for entry in entries] == ["a:8097"]
        assert problems == [f"{path}: {problem}"]
    assert _descriptors() == before


def test_a_link_to_a_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_text('address = "a"')
    (tmp_path / "a.toml").symlink_to("real")
    assert _addresses(Folder(tmp_path)) == ["a:8097"]


def test_what_may_not_be_read_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.toml"
    _write(path, 'address = "a"')
    folder = Folder(tmp_path)
    folder.read()
    _write(path, 'address = "bb"')

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:  # root may read everything
        patch.setattr(sources, "_without_waiting", refuse)
        entries, problems = folder.read()
        assert [entry.address for entry in entries] == ["a:8097"]
        assert problems == [f"{path}: cannot be read: Permission denied"]
    assert _addresses(folder) == ["bb:8097"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        entries, problems = folder.read()
        assert [entry.address for entry in entries] == ["bb:8097"]
        assert problems == [f"{tmp_path}: cannot be read: Permission denied"]


def test_a_name_that_is_no_text_does_no_harm(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n.toml")).write_text('address = "a"')
    entries, problems = Folder(tmp_path).read()
    assert ([entry.address for entry in entries], problems) == (["a:8097"], [])


@given(st.binary(max_size=200))
def test_any_bytes_name_hosts_or_are_a_problem(data: bytes) -> None:
    path = Path("/proc/self/fd") / str(descriptor := os.memfd_create("any"))
    try:
        os.write(descriptor, data)
        try:
            found = sources._addresses(path)
        except ValueError:
            return
        assert found
    finally:
        os.close(descriptor)


# Add and remove


def test_a_file_is_added_and_removed(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "hosts.d")
    source = folder.add("[fd00::5]:8097", "")
    assert source == str(tmp_path / "hosts.d" / "fd00-5-8097.toml")
    assert Path(source).stat().st_mode & 0o777 == 0o644
    assert folder.read() == ([Entry("[fd00::5]:8097", source)], [])
    assert folder.add("a:1", "rack.1") == str(tmp_path / "hosts.d" / "rack.1.toml")
    assert _addresses(folder) == ["[fd00::5]:8097", "a:1"]
    folder.remove(Entry("[fd00::5]:8097", source))
    folder.remove(Entry("[fd00::5]:8097", source))  # somebody else was faster
    assert _addresses(folder) == ["a:1"]
    assert _files(tmp_path / "hosts.d") == ["rack.1.toml"]


@pytest.mark.parametrize("kind", ["file", "directory", "dangling link"])
def test_adding_never_overwrites(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.toml"
    match kind:
        case "file":
            path.write_text("somebody's own")
        case "directory":
            path.mkdir()
        case _:
            path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AlreadyExists, match=r"a\.toml exists already"):
        Folder(tmp_path).add("b:1", "a")
    assert _files(tmp_path) == ["a.toml"]
    if kind == "file":
        assert path.read_text() == "somebody's own"


def test_what_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Internal, match="nothing has changed"):
        Folder(tmp_path / "file").add("a:1", "")
    with pytest.raises(Internal, match="nothing has changed"):
        Folder(tmp_path / "missing" / "deep").add("a:1", "")
    with pytest.raises(Internal, match="nothing has changed"):
        Folder(tmp_path).add("a:1", "x" * 300)
    assert _files(tmp_path) == ["file"]


def test_a_file_that_names_others_too_is_not_removed(tmp_path: Path) -> None:
    _write(tmp_path / "a.toml", 'addresses = ["a", "b", "c"]')
    folder = Folder(tmp_path)
    entry = folder.read()[0][1]
    with pytest.raises(InvalidRequest, match="names 2 other hosts too; take b:8097 out of it by hand"):
        folder.remove(entry)
    assert (tmp_path / "a.toml").exists()


@pytest.mark.parametrize("name", ["../a", "a/b", "/etc/a", ".a", "a\0b", "a\nb", "", "x" * 65, "-a"])
def test_a_name_with_tricks_is_refused_before_any_file_is_thought_of(name: str) -> None:
    request = requests.HostAdd(address="a:1", name=name)
    if not name:
        requests.check(request)
        return
    with pytest.raises(InvalidRequest):
        requests.check(request)


@given(st.from_regex(requests._ADDRESS, fullmatch=True))
def test_the_name_that_is_made_of_an_address_is_a_plain_one(text: str) -> None:
    try:
        requests.check(requests.HostAdd(address=text))
        address = read_address(text)
    except (InvalidRequest, ValueError):
        return
    stem = sources.stem_of(address)
    assert "/" not in stem
    assert not stem.startswith((".", "-"))


# Together


def test_each_address_is_one_host_and_the_first_to_name_it_is_told() -> None:
    files = [Entry("b:1", "/x/1.toml"), Entry("a:1", "/x/2.toml"), Entry("b:1", "/x/3.toml"), Entry("c:1", "/x/3.toml")]
    entries, problems = together(["z:1", "a:1"], files)
    assert entries == [Entry("z:1", STATIC), Entry("a:1", STATIC), Entry("b:1", "/x/1.toml"), Entry("c:1", "/x/3.toml")]
    assert problems == [
        "/x/2.toml: a:1 is named by static already",
        "/x/3.toml: b:1 is named by /x/1.toml already",
    ]
