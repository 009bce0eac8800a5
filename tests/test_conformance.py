"""Recorded traces agree with core, and the checker notices when one does not."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from core.cpuset import format_cpu_list
from core.topology import Topology
from tests.conformance import main, same
from tests.core.hosts import build
from tests.oracle import Oracle, host_of
from tests.traces import REPOSITORY
from vmstackd.topology_source import load_topology

RECORDED = REPOSITORY.parent / "shared" / "reference"
NAMES = (
    "t1-epyc7662-guarantee-mixed.jsonl",
    "t2-epyc7662exp-besteffort-mixed.jsonl",
    "t3-i7-guarantee-small.jsonl",
    "t4-epyc7662exp-besteffort-level1.5.jsonl",
    "t5-i7-besteffort-memory.jsonl",
    "t6-epyc7662-besteffort-level3only.jsonl",
)
FOUND = sorted({*NAMES, *(path.name for path in RECORDED.glob("t*.jsonl"))})
PROBES = [[1, 2, 1.0], [2, 8, 2.0], [4, 0.5, 1.5]]
ENTRY = {"l": 1.0, "cpus": "0", "cap": 1, "alloc": 1, "n": 1, "vavail": 0, "vpot": 0}
TEXTS = {"cpu": "Not enough space on res cpu", "memory": "Not enough space on res mem", None: None}

Lines = list[dict[str, Any]]
"""A trace as JSON values, the header first."""


@pytest.mark.parametrize("name", FOUND)
def test_recorded_trace(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if not (RECORDED / name).is_file():
        pytest.skip(f"the recorded trace {name} is not beside this checkout")
    assert main([str(RECORDED / name)]) == 0
    assert capsys.readouterr().out.endswith(" skipped, 0 mismatches\n")


def record(
    topology: Topology, file: str, *, strategy: str, critical: int, memory: int, seed: int, operations: int = 120
) -> Lines:
    """What a prototype without bugs would have recorded of random operations."""
    oracle = Oracle(host_of(topology, memory), 0 if strategy == "best-effort" else critical)
    dice = random.Random(seed)
    lines: Lines = []
    names: list[str] = []
    for i in range(operations):
        line: dict[str, Any] = {"i": i}
        if names and dice.random() < (0.35 if i % 60 < 40 else 0.7):
            name = names.pop(dice.randrange(len(names)))
            oracle.remove(name)
            line |= {"op": "remove", "name": name, "ok": True, "why": None}
        else:
            name, cpu, gigabytes = f"v{i}", dice.choice((1, 1, 2, 4)), dice.choice((0.5, 1, 2))
            level = dice.choice((1.0, 1.5, 2.0, 3.0))
            refused = oracle.deploy(name, cpu, int(gigabytes * 1024), Fraction(level))
            line |= {"op": "deploy", "name": name, "cpu": cpu, "oc": level, "mem_gb": gigabytes}
            line |= {"ok": refused is None, "why": TEXTS[refused.resource if refused else None]}
            names += [] if refused else [name]
        lines.append(line | after(oracle))
    lines.append(
        {"i": operations, "op": "remove", "name": "ghost", "ok": False, "why": "does not exist"} | after(oracle)
    )
    header = {
        "trace": 1,
        "topology": file,
        "host_cpus": topology.host_cpus,
        "usable_cpus": len(topology.cpu_ids),
        "mem_mb": memory,
        "strategy": strategy,
        "critical_size": critical,
        "probes": PROBES,
        "ops": len(lines),
        "first_quirk_op": None,
    }
    return [header, *lines]


def after(oracle: Oracle) -> dict[str, Any]:
    """The state part of a line, with an empty entry of a level that was there."""
    levels = [
        {
            "l": float(level),
            "cpus": format_cpu_list(found.cpus),
            "cap": len(found.cpus),
            "alloc": found.alloc,
            "n": found.vms,
            "vavail": float(found.available),
            "vpot": float(found.potential),
        }
        for level, found in oracle.figures().items()
    ]
    levels.insert(0, {"l": 9.0, "cpus": "", "cap": 0, "alloc": 0, "n": 0, "vavail": 0.0, "vpot": 9.0})
    sold, free = oracle.sold_memory, oracle.free_memory
    return {
        "sub": levels,
        "free": len(oracle.free),
        "mem": {"avail": free, "cap": sold, "alloc": sold, "vavail": 0.0, "vpot": free},
        "prog": [oracle.progress(Fraction(level), int(cpu), int(size * 1024)) for cpu, size, level in PROBES],
    }


def prototype_json(topology: Topology) -> str:
    """A topology as the prototype wrote it, with the stale distances it had."""
    groups: dict[str, dict[int, list[int]]] = {"core": {}, "package": {}}
    for cpu in topology.cpus:
        groups["core"].setdefault(cpu.core, []).append(cpu.id)
        groups["package"].setdefault(cpu.package, []).append(cpu.id)
    cpus = [
        {
            "cpu_id": cpu.id,
            "numa_node": cpu.node,
            "sib_smt": [other for other in groups["core"][cpu.core] if other != cpu.id],
            "sib_cpu": [other for other in groups["package"][cpu.package] if other != cpu.id],
            "cache_level": {str(index): cache for index, cache in enumerate(cpu.caches)},
            "max_freq": 3300000,
        }
        for cpu in topology.cpus
    ]
    rows = dict(zip(map(str, topology.nodes), topology.node_distances, strict=True))
    stale = {str(a): {str(b): 60 for b in topology.cpu_ids if b != a} for a in topology.cpu_ids}
    return json.dumps(
        {
            "cpuset": {
                "host_count": topology.host_cpus,
                "cpu_list": cpus,
                "numa_distances": rows,
                "distances": stale,
            },
            "memset": {"total": topology.memory_mib, "allowed": topology.memory_mib},
        }
    )


def write(folder: Path, lines: Lines) -> str:
    path = folder / "trace.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return str(path)


@pytest.fixture
def small() -> Lines:
    """A trace on a topology of the repository."""
    topology = load_topology(f"file:{REPOSITORY / 'topologies' / 'i7-1185G7.json'}")
    return record(topology, "topology_i7-1185G7.json", strategy="guarantee", critical=3, memory=31776, seed=1)


@pytest.mark.parametrize("strategy", ["guarantee", "best-effort"])
@pytest.mark.parametrize("seed", range(4))
def test_other_hosts_and_settings(seed: int, strategy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    topology = build(sockets=1 + seed % 2, nodes=1 + seed // 2, l3=2, cores=2)
    (tmp_path / "topologies").mkdir()
    (tmp_path / "topologies" / "host.json").write_text(prototype_json(topology))
    memory = (6000, 65536)[seed % 2]
    lines = record(topology, "host.json", strategy=strategy, critical=seed, memory=memory, seed=seed)
    assert main([write(tmp_path, lines)]) == 0
    assert capsys.readouterr().out == "1 files, 242 operations compared, 0 skipped, 0 mismatches\n"


def last(lines: Lines, wanted: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    return next(line for line in reversed(lines) if wanted(line))


def grown(line: dict[str, Any]) -> bool:
    return line.get("op") == "deploy" and line["ok"] and any("," in entry["cpus"] for entry in line["sub"])


def swap_cpus(lines: Lines) -> None:
    entry = next(entry for entry in last(lines, grown)["sub"] if "," in entry["cpus"])
    first, _, rest = entry["cpus"].partition(",")
    entry["cpus"] = f"{rest},{first}"


def more_alloc(lines: Lines) -> None:
    last(lines, grown)["sub"][-1]["alloc"] += 1


def other_progress(lines: Lines) -> None:
    lines[40]["prog"][1] += 1e-5


def refuse(lines: Lines) -> None:
    last(lines, grown).update(ok=False, why=TEXTS["cpu"])


def accept(lines: Lines) -> None:
    last(lines, lambda line: line.get("why") == TEXTS["cpu"]).update(ok=True, why=None)


def other_reason(lines: Lines) -> None:
    last(lines, lambda line: line.get("why") == TEXTS["cpu"]).update(why=TEXTS["memory"])


def ghost_removed(lines: Lines) -> None:
    lines[-1].update(ok=True, why=None)


def less_memory(lines: Lines) -> None:
    lines[10]["mem"]["avail"] -= 1


def one_more_free(lines: Lines) -> None:
    lines[10]["free"] += 1


def other_vavail(lines: Lines) -> None:
    last(lines, grown)["sub"][-1]["vavail"] += 0.5


def level_lost(lines: Lines) -> None:
    del last(lines, grown)["sub"][-1]


@pytest.mark.parametrize(
    ("tamper", "shown"),
    [
        (swap_cpus, "cpus: expected "),
        (more_alloc, "alloc: expected "),
        (other_progress, "progress[1]: expected "),
        (refuse, "outcome: expected 'refused', got 'done'"),
        (accept, "outcome: expected 'done', got 'refused'"),
        (other_reason, "reason: expected 'memory', got 'cpu'"),
        (ghost_removed, "reason: expected None, got 'unknown'"),
        (less_memory, "memory avail: expected "),
        (one_more_free, "free: expected "),
        (other_vavail, "vavail: expected "),
        (level_lost, "got {"),
    ],
)
def test_tampering_is_noticed(
    tamper: Callable[[Lines], None], shown: str, small: Lines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([write(tmp_path, small)]) == 0
    tamper(small)
    capsys.readouterr()
    assert main([write(tmp_path, small)]) == 1
    output = capsys.readouterr().out
    assert shown in output
    assert int(output.split()[-2]) >= 1
    assert max(len(line) for line in output.splitlines()) < 1000


@pytest.mark.parametrize(
    ("expected", "got", "agree"),
    [
        (4910.0, 4910.0 * (1 + 5e-10), True),
        (4910.0, 4910.0 * (1 + 2e-9), False),
        (0.2, 0.2 * (1 + 5e-10), True),
        (0.2, 0.2 * (1 + 2e-9), False),
        (-1e-3, -1e-3 - 1e-10, False),
        (0.0, 4 * math.ulp(4910.0), True),
        (0.0, 1e-10, False),
        (3, 3.0, True),
        (0, None, False),
        (math.nan, math.nan, False),
    ],
)
def test_numbers_agree_to_a_billionth_of_their_size(expected: float, got: float | None, agree: bool) -> None:
    assert same(expected, got) is same(got, expected) is agree


def ending(lines: Lines, wanted: Callable[[dict[str, Any]], object], mark: str, **changed: object) -> Lines:
    """The trace up to the last such line, which gets a mark and other contents."""
    place = lines.index(last(lines, wanted))
    lines[place] |= {"q": [mark], **changed}
    lines[0] |= {"ops": place, "first_quirk_op": place - 1}
    return lines[: place + 1]


def fresh_level(line: dict[str, Any]) -> bool:
    return line.get("op") == "deploy" and line["ok"] and line["sub"][-1]["n"] == 1 and line["sub"][-1]["cap"] > 1


def summary(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.splitlines()[-1].partition("compared, ")[2]


def test_a_marked_line_must_differ_as_it_says(small: Lines, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = ending(small, fresh_level, "restart")
    assert main([write(tmp_path, same)]) == 1
    assert "marked restart, yet the CPUs are those of a new subset" in capsys.readouterr().out
    swap = same[-1]["sub"][-1]
    swap["cpus"] = ",".join(reversed(swap["cpus"].replace("-", ",").split(",")))
    assert main([write(tmp_path, same)]) == 0
    assert summary(capsys) == "1 skipped, 0 mismatches"
    swap["cap"] += 1
    same[-1]["q"] = ["over"]
    assert main([write(tmp_path, same)]) == 0
    swap["cap"] -= 1
    assert main([write(tmp_path, same)]) == 1
    assert "marked over, yet no more CPUs than needed" in capsys.readouterr().out


def test_a_wrong_refusal_is_not_demanded(small: Lines, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ending(small, grown, "overref", ok=False, why=TEXTS["cpu"])
    assert main([write(tmp_path, lines)]) == 0
    lines[-1]["why"] = TEXTS["memory"]
    assert main([write(tmp_path, lines)]) == 1
    assert "marked overref, yet" in capsys.readouterr().out


def test_a_refusal_that_changed_something_is_not_demanded(
    small: Lines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ending(small, lambda line: line.get("why") == TEXTS["cpu"], "failchg")
    assert main([write(tmp_path, lines)]) == 1
    assert "marked failchg, yet nothing was changed" in capsys.readouterr().out
    del lines[-1]["sub"][0]
    assert main([write(tmp_path, lines)]) == 0


def test_progress_of_a_marked_line_is_the_corrected_one(small: Lines, tmp_path: Path) -> None:
    small[7]["prog"][0] += 1
    assert main([write(tmp_path, small)]) == 1
    small[7]["q"] = ["pover"]
    assert main([write(tmp_path, small)]) == 0


def test_many_mismatches_are_counted_and_not_all_shown(
    small: Lines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for line in small[1:]:
        line["free"] += 1
    assert main([write(tmp_path, small)]) == 1
    output = capsys.readouterr().out.splitlines()
    assert len(output) < 20
    assert output[-1] == "1 files, 242 operations compared, 0 skipped, 242 mismatches"


@pytest.mark.parametrize(
    ("line", "change", "message"),
    [
        (1, {"topology": "nowhere.json"}, "1: the topology 'nowhere.json' is in none of"),
        (1, {"usable_cpus": 9}, "has 8 CPUs, not 9"),
        (1, {"strategy": "luck"}, "1: Invalid enum value 'luck'"),
        (1, {"ops": 500}, "122: the file ends here, after 121 of 500 operations"),
        (1, {"probes": [[0, 1, 1.0]]}, "1: 0 vCPUs and 1.0 GB are no VM"),
        (1, {"critical_size": -1}, "1: critical_size is -1; it cannot be negative"),
        (1, {"critical_size": -1, "strategy": "best-effort"}, "1: critical_size is -1; it cannot be negative"),
        (1, {"mem_mb": 0}, "1: mem_mb is 0; no host has so"),
        (1, {"mem_mb": 10**15}, "1: mem_mb is 1000000000000000; no host has so"),
        (1, {"mem_mb": -31776}, "1: mem_mb is -31776; no host has so"),
        (1, {"first_quirk_op": -1}, "1: first_quirk_op is -1, not null or 0 to 121"),
        (1, {"first_quirk_op": 122}, "1: first_quirk_op is 122, not null or 0 to 121"),
        (5, {"op": "resize"}, "5: Invalid enum value 'resize'"),
        (5, {"i": 9}, "5: i is 9 where 3 follows"),
        (5, {"prog": [1.0]}, "5: 1 values of progress for 3 probes"),
        (5, {"free": "3"}, "5: Expected `int`, got `str`"),
        (5, {"why": "tired"}, "5: the reason 'tired' is none that core can give"),
        (2, {"op": "deploy", "oc": None}, "2: a deploy needs cpu, mem_gb and oc"),
        (2, {"oc": 0.5}, "2: '0.5' is not an oversubscription level"),
        (2, {"cpu": 0}, "2: 0 vCPUs"),
        (2, {"mem_gb": 1e308}, " GB are no VM"),
        (2, {"sub": [ENTRY | {"cpus": "x"}]}, "2: 'x' is not"),
        (2, {"sub": [ENTRY | {"cpus": "3,9,8"}]}, "2: level 1.0: CPUs 8-9 are not in the topology"),
        (9, {"sub": [ENTRY | {"cpus": "8"}]}, "9: level 1.0: CPUs 8 are not in the topology"),
        (9, {"sub": [ENTRY | {"cpus": "8", "n": 0}]}, "9: level 1.0: CPUs 8 are not in the topology"),
    ],
)
def test_an_unusable_file_is_refused_with_its_line(
    line: int, change: dict[str, Any], message: str, small: Lines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small[line - 1] |= change
    path = write(tmp_path, small)
    assert main([path]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(path)
    assert message in captured.err
    assert captured.out == "0 files, 0 operations compared, 0 skipped, 0 mismatches\n"


@pytest.mark.parametrize("content", [b"", b"\n", b"[]\n", b"\xff\xfe\n", b'{"trace": 1'])
def test_what_is_no_trace_is_refused(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(content)
    assert main([str(path)]) == 2
    assert capsys.readouterr().err.startswith(str(path))


@pytest.mark.parametrize("first_quirk_op", [0, 1, 121, None])
def test_the_agreed_part_may_be_nothing_or_the_whole_file(
    first_quirk_op: int | None, small: Lines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small[0]["first_quirk_op"] = first_quirk_op
    assert main([write(tmp_path, small)]) == 0
    agreed = 121 if first_quirk_op is None else first_quirk_op
    assert capsys.readouterr().out == f"1 files, {121 + agreed} operations compared, 0 skipped, 0 mismatches\n"


def test_an_unusable_file_does_not_hide_the_others(
    small: Lines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write(tmp_path, small)
    bad = tmp_path / "bad.jsonl"
    stranger = small[20] | {"sub": [ENTRY | {"cpus": "77"}]}
    bad.write_text("\n".join(json.dumps(line) for line in [*small[:20], stranger, *small[21:]]))
    assert main([str(bad), good]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"{bad}:21: level 1.0: CPUs 77 are not in the topology\n"
    assert captured.out == "1 files, 242 operations compared, 0 skipped, 0 mismatches\n"


def test_a_missing_file_does_not_hide_the_others(
    small: Lines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "none.jsonl"), write(tmp_path, small)]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"{tmp_path / 'none.jsonl'}: No such file or directory\n"
    assert captured.out == "1 files, 242 operations compared, 0 skipped, 0 mismatches\n"
    assert main([]) == 2
