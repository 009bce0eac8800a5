"""What a host keeps on its disk: its UUID and its cordon."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.running import PATIENCE, ROOT
from vmstackd.local_state import CORDON_FILE, MOST_BYTES, UUID_FILE, LocalState, LocalStateError

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refusal(work: Callable[[], object]) -> str:
    with pytest.raises(LocalStateError) as error:
        work()
    assert str(error.value).isprintable()
    return str(error.value)


# UUID


def test_a_uuid_is_made_once_and_kept(folder: Path) -> None:
    first = LocalState(folder)
    assert str(uuid.UUID(first.uuid)) == first.uuid
    assert LocalState(folder).uuid == first.uuid
    assert (folder / UUID_FILE).read_text() == f"{first.uuid}\n"
    assert files(folder) == [UUID_FILE]


def test_every_host_has_its_own(tmp_path: Path) -> None:
    assert LocalState(tmp_path / "a").uuid != LocalState(tmp_path / "b").uuid


def test_the_folder_and_its_files_are_not_for_everybody(folder: Path) -> None:
    before = os.umask(0)
    try:
        LocalState(folder).set_cordon("x")
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o750
    assert [path.stat().st_mode & 0o077 for path in folder.iterdir()] == [0, 0]


def test_a_uuid_that_an_administrator_wrote_holds(folder: Path) -> None:
    folder.mkdir()
    (folder / UUID_FILE).write_text("  7D2C5C1E-94A1-4D3A-9D5F-0C5A8A7F8A11")
    assert LocalState(folder).uuid == "7d2c5c1e-94a1-4d3a-9d5f-0c5a8a7f8a11"


def test_daemons_that_start_together_agree(folder: Path) -> None:
    with ThreadPoolExecutor(16) as threads:
        told = {state.uuid for state in threads.map(lambda _: LocalState(folder), range(64))}
    assert told == {(folder / UUID_FILE).read_text().strip()}
    assert files(folder) == [UUID_FILE]


@pytest.mark.parametrize("content", [b"", b"\n", b"x", b"7d2c5c1e-94a1", b"\xff\xfe", b"a" * 10_000_000])
def test_what_is_no_uuid_is_refused_and_left_alone(folder: Path, content: bytes) -> None:
    folder.mkdir()
    path = folder / UUID_FILE
    path.write_bytes(content)
    assert refusal(lambda: LocalState(folder)) == f"{path}: not a UUID; delete the file to make this a new host"
    assert path.read_bytes() == content


def test_without_a_folder_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = LocalState(None)
    state.set_cordon("x")
    assert state.cordon == "x"
    assert LocalState(None).uuid != state.uuid
    assert LocalState(None).cordon is None
    assert files(tmp_path) == []


# Cordon


def test_a_cordon_is_kept_until_it_is_lifted(folder: Path) -> None:
    assert LocalState(folder).cordon is None
    state = LocalState(folder)
    state.set_cordon("Lüfter, Reihe 3")
    assert state.cordon == LocalState(folder).cordon == "Lüfter, Reihe 3"
    state.set_cordon("other")
    assert LocalState(folder).cordon == "other"
    for _ in range(2):
        state.set_cordon(None)
        assert [state.cordon, LocalState(folder).cordon] == [None, None]
    assert files(folder) == [UUID_FILE]


def test_a_cordon_without_a_reason_is_one(folder: Path) -> None:
    LocalState(folder).set_cordon("")
    assert LocalState(folder).cordon == ""


@pytest.mark.parametrize("reason", ["a\nb", " a\r\n", "\x1b[31ma", "a\ud800", "a\x00b", "\u2028"])
def test_a_reason_is_one_line_now_and_later(folder: Path, reason: str) -> None:
    state = LocalState(folder)
    state.set_cordon(reason)
    assert state.cordon is not None
    assert state.cordon.isprintable()
    assert LocalState(folder).cordon == state.cordon


@pytest.mark.parametrize("content", [b"", b"\xff", b"a\nb\n", b"\x1b[2J", b"x" * 10_000_000])
def test_a_cordon_that_somebody_wrote_holds_whatever_it_says(folder: Path, content: bytes) -> None:
    folder.mkdir()
    (folder / CORDON_FILE).write_bytes(content)
    cordon = LocalState(folder).cordon
    assert cordon is not None
    assert cordon.isprintable()
    assert len(cordon) <= MOST_BYTES


# Killed on the way

STOPPED_BEFORE = """
import os, signal, sys
from pathlib import Path
from vmstackd import local_state
state = local_state.LocalState(Path(sys.argv[1]))
def end(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
Path.replace = Path.hardlink_to = Path.unlink = end
state.set_cordon(sys.argv[2] or None)
"""


@pytest.mark.parametrize(("before", "then"), [(None, "new"), ("old", "new"), ("old", "")])
def test_killed_before_the_last_step_nothing_has_changed(folder: Path, before: str | None, then: str) -> None:
    state = LocalState(folder)
    if before is not None:
        state.set_cordon(before)
    command = [sys.executable, "-c", STOPPED_BEFORE, str(folder), then]
    done = subprocess.run(command, cwd=ROOT, timeout=PATIENCE, check=False)
    assert done.returncode == -signal.SIGKILL
    again = LocalState(folder)
    assert (again.uuid, again.cordon) == (state.uuid, before)
    again.set_cordon("later")
    assert LocalState(folder).cordon == "later"


def test_half_a_file_of_a_killed_daemon_is_harmless(folder: Path) -> None:
    folder.mkdir()
    for name in (UUID_FILE, CORDON_FILE):
        (folder / f".{name}-abcdefgh").write_text("hal")
    state = LocalState(folder)
    assert state.cordon is None
    assert LocalState(folder).uuid == state.uuid


# What cannot be


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    told = refusal(lambda: LocalState(tmp_path / "no" / "state"))
    assert told == (
        f"{tmp_path}/no/state: {tmp_path}/no is not there; make it, or name another folder with state_dir, or none"
    )


def test_a_file_in_place_of_the_folder_is_refused(folder: Path) -> None:
    folder.touch()
    assert refusal(lambda: LocalState(folder)) == f"{folder / UUID_FILE}: cannot be read: Not a directory"


@pytest.mark.parametrize("name", [UUID_FILE, CORDON_FILE])
@pytest.mark.parametrize("kind", ["fifo", "folder", "link", "dangling link"])
def test_what_is_no_regular_file_is_neither_read_nor_waited_for(folder: Path, name: str, kind: str) -> None:
    LocalState(folder)
    path = folder / name
    path.unlink(missing_ok=True)
    elsewhere = folder.parent / "secret"
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "link":
            elsewhere.write_text("not to be shown")
            path.symlink_to(elsewhere)
        case _:
            path.symlink_to(elsewhere)
    told = refusal(lambda: LocalState(folder))
    what = "it is a symbolic link" if "link" in kind else "it is not a regular file"
    assert told == f"{path}: cannot be read: {what}"


def test_a_folder_that_is_a_link_will_do(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    assert LocalState(folder).uuid == LocalState(tmp_path / "elsewhere").uuid


def as_nobody(folder: Path, code: str) -> str:
    """What happens to another user."""
    child = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from vmstackd.local_state import LocalState, LocalStateError\n"
        "folder = Path(sys.argv[1])\n"
        f"state = LocalState(folder) if {'state.' in code} else None\n"
        f"os.setgroups([]); os.setresgid(*[{NOBODY}] * 3); os.setresuid(*[{NOBODY}] * 3)\n"
        f"try:\n    {code}\nexcept LocalStateError as error:\n    print(error)\n"
        "if state is not None:\n    print(state.cordon)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", child, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def open_folder(tmp_path: Path) -> Path:
    """A state folder that other users can reach and look into, with a cordon."""
    for part in (tmp_path, *tmp_path.parents[:3]):
        if part.stat().st_uid == os.geteuid() and part.name.startswith(("pytest", "popen", "test")):
            part.chmod(0o755)
    folder = tmp_path / "state"
    LocalState(folder).set_cordon("kept")
    folder.chmod(0o755)
    return folder


@needs_root
def test_files_of_somebody_else_are_refused(open_folder: Path) -> None:
    told = as_nobody(open_folder, "LocalState(folder)")
    assert told == f"{open_folder / UUID_FILE}: cannot be read: Permission denied\n"
    open_folder.chmod(0o700)
    assert as_nobody(open_folder, "LocalState(folder)") == told


@needs_root
def test_a_folder_in_one_of_somebody_else_cannot_be_made(open_folder: Path) -> None:
    told = as_nobody(open_folder, "LocalState(folder / 'new')")
    assert told.startswith(f"{open_folder}/new: cannot be made: Permission denied; name another folder with state_dir")


@needs_root
@pytest.mark.parametrize("reason", ["'new'", "None"])
def test_what_cannot_be_written_has_not_changed(open_folder: Path, reason: str) -> None:
    told, cordon = as_nobody(open_folder, f"state.set_cordon({reason})").splitlines()
    assert told.startswith(f"{open_folder / CORDON_FILE}: cannot be written: Permission denied; ")
    assert cordon == "kept"
    assert LocalState(open_folder).cordon == "kept"
    assert files(open_folder) == [CORDON_FILE, UUID_FILE]


def test_a_full_disk_leaves_what_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = LocalState(folder)
    state.set_cordon("kept")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "cannot be written: No space left on device" in refusal(lambda: state.set_cordon("new"))
    assert state.cordon == LocalState(folder).cordon == "kept"
    assert files(folder) == [CORDON_FILE, UUID_FILE]
