from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from msgspec import structs

from tests.soak.samples import Call, Moment, Process
from tests.soak.verdict import PULSE, Limits, Run, judge, table

SECONDS = 1800.0
LIMITS = Limits()
Curve = Callable[[float], float]
"""Over the time of the run, 0 to 1."""


def flat(_: float) -> float:
    return 0.0


def made_up(
    seed: int,
    *,
    memory: Curve = flat,
    descriptors: Curve = flat,
    held: Curve = flat,
    threads: Curve = flat,
    log: Curve = flat,
    latency: Curve = flat,
    tail: Curve = flat,
    machine: Curve = flat,
    unjudged: frozenset[str] = frozenset(),
) -> Run:
    """A run with noise. What is given is added to: MiB of globald, its descriptors, those that clients hold, its
    threads, bytes of log for each call; and as a part: time of all calls, of one call in forty, and of everything.
    """
    chance = random.Random(seed)
    moments, calls, logged = [], [], 0.0
    for second in range(int(SECONDS)):
        part = second / SECONDS
        for _ in range(10):
            logged += 180 + chance.uniform(-20, 20) + log(part)
            seconds = chance.lognormvariate(-7, 0.3) * (1 + latency(part)) * (1 + machine(part))
            if chance.random() < 0.025:
                seconds *= 5 * (1 + tail(part))
            calls.append(Call(at=second + chance.random(), door="deploy", seconds=seconds))
        calls.append(Call(at=second, door=PULSE, seconds=chance.lognormvariate(-8, 0.3) * (1 + machine(part))))
        if second % 5:
            continue
        visitors = chance.choice((0, 0, 1, 3))
        globald = Process(
            name="globald",
            kind="globald",
            resident_kib=int(1024 * (60 + chance.uniform(-0.3, 0.3) + memory(part))),
            descriptors=int(20 + visitors + descriptors(part) + held(part)),
            held=int(held(part)),
            threads=int(4 + chance.choice((0, 1)) + threads(part)),
            log_bytes=int(logged),
        )
        hosts = [
            Process(
                name=f"host{number}",
                kind="vmstackd",
                resident_kib=40_000 + chance.randrange(200),
                descriptors=10 + chance.choice((0, 0, 0, 1)),
                held=0,
                threads=3,
                log_bytes=int(logged / 3),
            )
            for number in range(3)
        ]
        moments.append(Moment(at=float(second), processes=(globald, *hosts)))
    return Run(seconds=SECONDS, moments=moments, calls=calls, unjudged=unjudged)


def bad(run: Run) -> list[str]:
    """What is not as it should be."""
    return [row.what for row in judge(run, LIMITS) if not row.good]


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_flat(seed: int) -> None:
    assert bad(made_up(seed)) == []


def test_what_warms_up_in_the_first_third_is_flat() -> None:
    def warm(part: float) -> float:
        return 10 * min(1.0, 3 * part)

    assert bad(made_up(1, memory=warm, descriptors=warm, threads=warm)) == []


@pytest.mark.parametrize("seed", range(5))
def test_memory_that_grows_by_the_minute_is_found(seed: int) -> None:
    assert bad(made_up(seed, memory=lambda part: 6 * part)) == ["globald: resident memory, MiB"]


def test_memory_of_a_kind_that_is_started_again_and_again_is_only_shown() -> None:
    run = made_up(1, memory=lambda part: 6 * part, unjudged=frozenset({"globald"}))
    assert bad(run) == []
    [row] = [row for row in judge(run, LIMITS) if row.what == "globald: resident memory, MiB"]
    assert row.limit == ""


def test_memory_of_many_processes_counts_together() -> None:
    run = made_up(1)
    moments = [
        structs.replace(
            moment,
            processes=tuple(
                structs.replace(one, resident_kib=one.resident_kib + int(2 * moment.at)) for one in moment.processes[1:]
            ),
        )
        for moment in run.moments
    ]
    assert bad(structs.replace(run, moments=moments)) == ["vmstackd: resident memory, MiB"]


def test_a_descriptor_now_and_then_that_stays_open_is_found() -> None:
    assert bad(made_up(1, descriptors=lambda part: 4 * part)) == ["globald: descriptors of its own"]


def test_descriptors_that_clients_hold_are_theirs() -> None:
    assert bad(made_up(1, held=lambda part: 500 * part)) == []


def test_a_connection_that_is_not_yet_accepted_accuses_nobody() -> None:
    run = made_up(1)
    moments = list(run.moments)
    number = next(number for number, moment in enumerate(moments) if moment.at > SECONDS / 2)
    globald, *hosts = moments[number].processes
    moments[number] = structs.replace(
        moments[number], processes=(structs.replace(globald, descriptors=20, held=1), *hosts)
    )
    assert bad(structs.replace(run, moments=moments)) == []


def test_threads_that_are_never_joined_are_found() -> None:
    assert bad(made_up(1, threads=lambda part: 20 * part)) == ["globald: threads"]


@pytest.mark.parametrize("seed", range(3))
def test_calls_that_become_slower_are_found(seed: int) -> None:
    assert bad(made_up(seed, latency=lambda part: 6 * part * part)) == ["deploy: median, ms", "deploy: p99, ms"]


def test_a_tail_that_grows_is_found() -> None:
    assert bad(made_up(1, tail=lambda part: 12 * part * part)) == ["deploy: p99, ms"]


def test_a_machine_that_becomes_slower_is_not_held_against_the_daemons() -> None:
    assert bad(made_up(1, machine=lambda part: 3 * part)) == []


def test_a_burst_of_work_by_others_is_noise() -> None:
    assert bad(made_up(1, latency=lambda part: 20.0 if 0.7 < part < 0.9 else 0.0)) == []


def test_a_flood_in_the_log_is_found() -> None:
    assert bad(made_up(1, log=lambda part: 200.0 if part > 2 / 3 else 0.0)) == [
        "globald: log, bytes for each call",
        "vmstackd: log, bytes for each call",
    ]


def test_a_log_that_was_always_too_much_is_found() -> None:
    assert bad(made_up(1, log=lambda _: 900.0)) == [
        "globald: log, bytes for each call",
        "vmstackd: log, bytes for each call",
    ]


def test_a_third_that_was_not_looked_at_is_no_verdict() -> None:
    run = made_up(1)
    with pytest.raises(ValueError, match="not looked at"):
        judge(structs.replace(run, seconds=2 * SECONDS), LIMITS)


def test_a_door_through_which_nobody_goes_any_more_is_found() -> None:
    run = made_up(1)
    calls = [call for call in run.calls if call.door == PULSE or call.at < SECONDS / 2]
    found = [row for row in judge(structs.replace(run, calls=calls), LIMITS) if not row.good]
    assert "deploy: p99, ms" in [row.what for row in found]


def test_the_table_says_what_is_not_as_it_should_be() -> None:
    lines = table(judge(made_up(1, memory=lambda part: 6 * part), LIMITS)).splitlines()
    assert [line.split("  ")[0] for line in lines if line.endswith("NOT OK")] == ["globald: resident memory, MiB"]
    assert sum(line.endswith(" ok") for line in lines) == 9
