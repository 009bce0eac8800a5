"""vmstackctl report: what it writes where, and what it says when it cannot."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.running import PATIENCE, ROOT, Finished
from tests.vmstackctl.command import environment, run, words
from tests.vmstackctl.recorded import samples, write
from tests.vmstackctl.test_commands import failed
from tests.vmstackctl.test_start import imported
from vmstackctl.report.target import Target, WriteError, make_folder, parse_target, write_whole

NAMES = ("cpus", "delay", "host", "levels", "vms")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return write(tmp_path / "monitoring.csv", samples(30))


def _in_shell(line: str, folder: Path) -> Finished:
    """A shell runs ``$VMSTACKCTL``, in another folder."""
    program = f"{sys.executable} -m vmstackctl"
    done = subprocess.run(
        ["/bin/sh", "-c", line],
        cwd=folder,
        env=environment({"VMSTACKCTL": program, "PYTHONPATH": str(ROOT)}),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    return Finished(code=done.returncode, out=done.stdout, err=done.stderr)


# What is written


def test_a_page_is_one_file(trace: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    done = run("report", str(trace), "-o", str(file))
    assert (done.code, done.err) == (0, "")
    assert done.out == f"wrote {file}\nread 30 samples\n"
    text = file.read_text()
    assert text.startswith("<!DOCTYPE html>\n")
    assert text.endswith("</html>\n")
    assert text.count("<img ") == len(NAMES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["monitoring.csv", "report.html"]


@pytest.mark.parametrize("target", ["pictures/*.png", "pictures/", "a/b/*.png", "*.png"])
def test_pictures_are_files_of_a_folder(trace: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "work").mkdir()
    done = _in_shell(f"$VMSTACKCTL report {trace} -o '{target}'", tmp_path / "work")
    assert (done.code, done.err) == (0, "")
    folder = tmp_path / "work" / target.removesuffix("*.png")
    assert sorted(path.name for path in folder.iterdir()) == [f"{name}.png" for name in NAMES]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.iterdir())
    assert done.out.count("wrote ") == len(NAMES)


def test_a_folder_that_is_there_needs_no_slash(trace: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures.html"
    folder.mkdir()
    assert run("report", str(trace), "-o", str(folder)).code == 0
    assert len(list(folder.iterdir())) == len(NAMES)


def test_what_was_there_is_replaced_and_has_the_usual_mode(trace: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text("old")
    assert _in_shell(f"umask 027; $VMSTACKCTL report {trace} -o {file}", tmp_path).code == 0
    assert file.read_text().startswith("<!DOCTYPE html>")
    assert file.stat().st_mode & 0o777 == 0o640


def test_a_packed_trace_gives_the_same_page(trace: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed" / trace.name
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(trace.read_bytes()))
    pages = [tmp_path / "one.html", tmp_path / "two.html"]
    for source, page in zip((trace, packed), pages, strict=True):
        assert run("report", str(source), "-o", str(page)).code == 0
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    trace = write(tmp_path / "t.csv", samples(5, delay=False))
    done = run("report", str(trace), "-o", str(tmp_path / "p/"))
    assert done.code == 2  # Path has taken the slash away
    done = run("report", str(trace), "-o", f"{tmp_path}/p/")
    assert "left out delay: the trace does not tell how long vCPUs waited" in done.out
    assert not (tmp_path / "p" / "delay.png").exists()


def test_a_recording_that_was_killed_is_drawn_with_a_note(trace: Path, tmp_path: Path) -> None:
    trace.write_bytes(trace.read_bytes()[:-20])
    done = run("report", str(trace), "-o", str(tmp_path / "report.html"))
    assert done.code == 0
    note = re.search(r"^note: (line \d+: the file was cut off here)$", done.out, re.MULTILINE)
    assert note is not None
    assert note[1] in (tmp_path / "report.html").read_text()


def test_for_programs_it_is_json_or_names(trace: Path, tmp_path: Path) -> None:
    file = str(tmp_path / "report.html")
    told = json.loads(run("--output", "json", "report", str(trace), "-o", file).out)
    assert told == {"files": [file], "samples": 30, "left_out": {}, "notes": []}
    assert run("--output", "name", "report", str(trace), "--output", file).out == f"{file}\n"


# What is refused


@pytest.mark.parametrize("target", ["", "report", "report.pdf", "pictures/host.png", "pictures/*.svg"])
def test_other_targets_are_refused_with_what_is_allowed(trace: Path, tmp_path: Path, target: str) -> None:
    done = run("report", str(trace), "-o", target)
    failed(done, 2, "FILE.html for one page, or 'DIR/*.png' in quotes")
    assert [path.name for path in tmp_path.iterdir()] == ["monitoring.csv"]


def test_a_target_must_be_named(trace: Path) -> None:
    failed(run("report", str(trace)), 2, "-o")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"nonsense\n", "line 1: found"),
        (None, "No such file or directory"),
    ],
)
def test_a_trace_that_is_none_is_refused_in_one_line(tmp_path: Path, content: bytes | None, words: str) -> None:
    trace = tmp_path / "t.csv"
    if content is not None:
        trace.write_bytes(content)
    done = run("report", str(trace), "-o", str(tmp_path / "report.html"))
    failed(done, 1, str(trace), words)
    assert not (tmp_path / "report.html").exists()


def test_a_wrong_line_is_named(trace: Path, tmp_path: Path) -> None:
    lines = trace.read_text().splitlines()
    lines[6] = lines[6].replace("\tvm\t", "\tperson\t").replace("\tsubset\t", "\tperson\t")
    trace.write_text("\n".join(lines) + "\n")
    old = tmp_path / "report.html"
    old.write_text("old")
    failed(run("report", str(trace), "-o", str(old)), 1, f"{trace}: line 7: found rec 'person'")
    assert old.read_text() == "old"


def test_a_trace_of_column_names_only_is_refused(tmp_path: Path) -> None:
    trace = write(tmp_path / "t.csv", [])
    failed(run("report", str(trace), "-o", str(tmp_path / "r.html")), 1, "holds no sample")


def test_where_nothing_can_be_written_nothing_is_left(trace: Path, tmp_path: Path) -> None:
    failed(run("report", str(trace), "-o", str(trace / "report.html")), 1, "cannot be written: Not a directory")
    failed(run("report", str(trace), "-o", f"{trace}/pictures/"), 1, "cannot be made: Not a directory")
    old = tmp_path / "report.html"
    old.write_text("old")
    # More than so many KiB a file must not have.
    done = _in_shell(f"ulimit -f 20; exec $VMSTACKCTL report {trace} -o {old}", tmp_path)
    failed(done, 1, "report.html: cannot be written: File too large; choose another -o")
    assert old.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["monitoring.csv", "report.html"]


def test_ctrl_c_leaves_what_was_there(tmp_path: Path) -> None:
    pipe, old = tmp_path / "trace", tmp_path / "report.html"
    os.mkfifo(pipe)
    old.write_text("old")
    with subprocess.Popen(
        words("report", str(pipe), "-o", str(old)), cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            with pipe.open("w") as writer:  # once it is reading
                writer.write("tmp\trec")
                writer.flush()
                time.sleep(0.2)
                process.send_signal(signal.SIGINT)
                _, err = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert (process.returncode, err.strip()) == (130, "")
    assert old.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "trace"]


# What it needs


@pytest.mark.parametrize("library", ["matplotlib", "numpy"])
def test_without_the_library_it_says_how_to_get_it(trace: Path, tmp_path: Path, library: str) -> None:
    code = f"import sys; sys.modules[{library!r}] = None; from vmstackctl.__main__ import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "report", str(trace), "-o", str(tmp_path / "report.html")],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    failed(Finished(done.returncode, done.stdout, done.stderr), 1, "needs matplotlib", "install vmstack[report]")
    assert not (tmp_path / "report.html").exists()


def test_only_who_draws_pays_for_the_library() -> None:
    assert not {"matplotlib", "numpy"} & imported("report", "--help")
    assert not {name for name in imported("--version") if name.startswith("vmstackctl.report")}


def test_no_daemon_is_needed_and_none_is_asked(trace: Path, tmp_path: Path) -> None:
    file = str(tmp_path / "report.html")
    assert run("report", str(trace), "-o", file, VMSTACKCTL_ADDRESS="/nowhere").code == 0
    assert "--socket" not in run("report", "--help").out
    failed(run("report", str(trace), "-o", file, "--socket", "/nowhere"), 2, "--socket")


# Targets


@pytest.mark.parametrize(
    ("text", "path", "is_folder"),
    [
        ("a.html", "a.html", False),
        ("dir/A.HTM", "dir/A.HTM", False),
        ("dir/*.png", "dir", True),
        ("/*.png", "/", True),
        ("*.png", ".", True),
        ("new.html/", "new.html", True),
        ("/", "/", True),
    ],
)
def test_targets_are_pages_or_folders(text: str, path: str, is_folder: bool) -> None:
    assert parse_target(text) == Target(path=Path(path), is_folder=is_folder)


def test_a_folder_may_be_there_already(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="file: cannot be made: File exists; choose another -o"):
        make_folder(tmp_path / "file")


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    file = tmp_path / "f"
    for content in (b"one", b"two"):
        write_whole(file, content)
        assert file.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
