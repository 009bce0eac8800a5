"""The README as what it tells a newcomer to type, and what it says is printed then."""

from __future__ import annotations

import json
import re

import msgspec

from tests.running import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")

MACHINE = {"avail", "vpotential", "progress", "score", "free", "largest_vcpus", "largest_mib"}
"""Keys whose numbers depend on the machine."""


class Step(msgspec.Struct, frozen=True):
    """One line to type. kind: of the block with what it prints, empty if the README does not say."""

    line: str
    kind: str = ""
    printed: str = ""


class File(msgspec.Struct, frozen=True):
    """What is to be added to a file: a block of TOML whose first line is its path."""

    path: str
    text: str


def part(begin: str, end: str) -> str:
    """The README from one heading to another."""
    assert README.count(f"\n{begin}\n") == README.count(f"\n{end}\n") == 1
    return README.partition(f"\n{begin}\n")[2].partition(f"\n{end}\n")[0]


def steps(text: str = README) -> list[Step]:
    """Lines to type, in their order."""
    return [step for step in steps_and_files(text) if isinstance(step, Step)]


def steps_and_files(text: str) -> list[Step | File]:
    """A block of several lines says nothing about what they print; a block of one may."""
    blocks = re.findall(r"^```(\w+)\n(.*?)^```\n(\n?)", text, re.MULTILINE | re.DOTALL)
    found: list[Step | File] = []
    for index, (kind, block, _) in enumerate(blocks):
        if kind == "toml" and block.startswith("# /"):
            path, _, rest = block.removeprefix("# ").partition("\n")
            found.append(File(path, rest))
        if kind != "sh":
            continue
        lines = block.splitlines()
        follows = blocks[index][2] == "" and index + 1 < len(blocks) and blocks[index + 1][0] in ("json", "text")
        if follows:
            assert len(lines) == 1, f"which of these lines prints what is shown below? {lines}"
            found.append(Step(lines[0], *blocks[index + 1][:2]))
        else:
            found += [Step(line) for line in lines]
    return found


def alike(shown: object, printed: object, key: str = "") -> bool:
    """Whether two JSON values are equal but for the numbers of a machine."""
    if isinstance(shown, dict) and isinstance(printed, dict):
        return list(shown) == list(printed) and all(alike(shown[name], printed[name], name) for name in shown)
    if isinstance(shown, list) and isinstance(printed, list):
        return len(shown) == len(printed) and all(map(alike, shown, printed))
    if key in MACHINE:
        return isinstance(printed, int | float)
    if key == "message" and isinstance(shown, str) and isinstance(printed, str):
        # Its numbers are those of the other fields.
        return re.sub(r"\d+", "N", shown) == re.sub(r"\d+", "N", printed)
    return shown == printed


def check_printed(step: Step, printed: str) -> None:
    """Raises AssertionError unless the line printed what the README shows; "..." stands for anything."""
    if step.kind == "json":
        shown = json.loads(step.printed)
        assert alike(shown, json.loads(printed)), f"{step.line}\nshown: {shown}\nprinted: {printed}"
    elif step.kind == "text":
        pattern = re.escape(step.printed.rstrip("\n")).replace(r"\.\.\.", ".+")
        assert re.fullmatch(pattern, printed.rstrip("\n")), f"{step.line}\nprinted: {printed}"
