"""The choice among many hosts: the compiled one is that of the oracle and of the plain definitions."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from core.admission import MAX_CPUS, MAX_MEMORY_MIB, MAX_VCPUS, fault, progress_on, refusal_on, with_vm
from core.allocator import free_cpus, hold, plan_deploy, plan_remove
from core.demand import Market
from core.host_policy import HOST_POLICIES, HostPolicy
from core.host_table import use_registers
from core.inventory import MAX_HOSTS, UNKNOWN, Choice, Inventory
from core.level import HIGHEST, UNIT
from core.model import HostState, Plan, Vm
from core.status import HostStatus, host_status, level_status
from tests.cluster_oracle import SCORES, ClusterOracle, plain
from tests.core.hosts import LEVELS, REFERENCE, build, empty, epyc, filled, i7, restored, states
from tests.core.test_admission import lived

PROGRESS = HOST_POLICIES["progress"]
FIRST_FIT = HOST_POLICIES["first-fit"]
WORTH = HOST_POLICIES["worth"]
NUMBERS = st.sampled_from([0, 1, 2, 3, 30, 31, 32, 33, 63, 64, 66, 2047, 2048, 5000])
"""The first and last of blocks and of groups of blocks, and few enough to meet again."""
VCPUS = st.integers(1, 3) | st.integers(1, 9)
MEMORY = st.integers(1, 12)
LEVEL = st.sampled_from(LEVELS[:4])
REASONS = st.sampled_from(["", "", "", UNKNOWN, "cordoned", "draining"])
WISHES = st.tuples(LEVEL, VCPUS, MEMORY)
SHAPES = ((1000, 1, 2), (1500, 2, 1), (1100, 3, 4), (1200, 1, 1))
"""Asked again and again, while hosts change in between."""


class PlainProgress:
    """A policy without a compiled evaluation."""

    name = "plain-progress"
    kernel: str | None = None

    def score(self, status: HostStatus, level: int, vcpus: int, memory_mib: int, market: Market | None) -> float:
        return progress_on(status, level, vcpus, memory_mib)


def pair(choice: Choice | None) -> tuple[int, float] | None:
    return None if choice is None else (choice.host, choice.score)


def inventory_of(*found: HostStatus) -> Inventory:
    inventory = Inventory()
    for number, status in enumerate(found):
        inventory.put(number, status)
    return inventory


@pytest.fixture(params=[128, 256, 512])
def registers(request: pytest.FixtureRequest) -> Iterator[int]:
    """Every way to compute that this processor has."""
    if use_registers(request.param) != request.param:
        pytest.skip(f"no registers of {request.param} bits")
    yield request.param
    use_registers(512)


class AgainstTheOracle(RuleBasedStateMachine):
    """Hosts come, change, close and go, and every answer is that of the oracle."""

    def __init__(self) -> None:
        super().__init__()
        self.inventory = Inventory()
        self.oracle = ClusterOracle()
        self.states: dict[int, HostState] = {}
        self.nameless: dict[int, str] = {}
        self.count = 0

    def put(self, number: int, state: HostState, closed: str = "") -> None:
        self.states[number] = state
        self.oracle.hosts[number] = plain(state, closed)
        self.nameless.pop(number, None)
        self.inventory.put(number, host_status(state), closed)

    @rule(number=NUMBERS, state=lived(), closed=REASONS)
    def join(self, number: int, state: HostState, closed: str) -> None:
        self.put(number, state, closed)

    @rule(numbers=st.lists(NUMBERS, min_size=2, max_size=8), state=states())
    def join_alike(self, numbers: list[int], state: HostState) -> None:
        """Hosts that differ in nothing, so that the order decides."""
        for number in numbers:
            self.put(number, state)

    @precondition(lambda self: self.states)
    @rule(data=st.data(), reason=REASONS)
    def close(self, data: st.DataObject, reason: str) -> None:
        number = data.draw(st.sampled_from(sorted(self.states)))
        self.oracle.hosts[number].closed = reason
        self.inventory.close(number, reason)

    @rule(number=NUMBERS, reason=st.sampled_from([UNKNOWN, "cordoned"]))
    def announce(self, number: int, reason: str) -> None:
        """A host that has not said anything yet."""
        if number not in self.states:
            self.nameless[number] = reason
            self.inventory.close(number, reason)

    @precondition(lambda self: self.states or self.nameless)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted({*self.states, *self.nameless})))
        self.inventory.drop(number)
        if self.nameless.pop(number, None) is None:
            del self.states[number], self.oracle.hosts[number]

    @rule(wish=WISHES | st.sampled_from(SHAPES), policy=st.sampled_from(sorted(HOST_POLICIES)), bold=st.booleans())
    def deploy(self, wish: tuple[int, int, int], policy: str, bold: bool) -> None:
        """The chosen host takes the VM, whatever else has happened; its new figures are foreseen."""
        level, vcpus, memory = wish
        self.inventory.arrived(level, vcpus, memory)
        chosen = self.inventory.choose(HOST_POLICIES[policy], level, vcpus, memory)
        assert pair(chosen) == self.expected(policy, wish)
        if chosen is None:
            return
        self.count += 1
        state = self.states[chosen.host]
        plan = plan_deploy(state, Vm(f"new{self.count}", vcpus, memory, level), REFERENCE)
        assert isinstance(plan, Plan)
        foreseen = with_vm(host_status(state), level, vcpus, memory)
        self.put(chosen.host, plan.state)
        if bold:
            self.inventory.put(chosen.host, foreseen)

    def expected(
        self, policy: str, wish: tuple[int, int, int], without: Sequence[int] = ()
    ) -> tuple[int, float] | None:
        """What the oracle chooses; by worth, the first of the best by the plain score."""
        if policy in SCORES:
            return self.oracle.choose(policy, Fraction(wish[0], UNIT), *wish[1:], without)
        best: tuple[int, float] | None = None
        for number, state in sorted(self.states.items()):
            status = host_status(state)
            if number in without or self.oracle.hosts[number].closed or refusal_on(status, *wish) is not None:
                continue
            score = HOST_POLICIES[policy].score(status, *wish, self.inventory.demand.market)
            if best is None or score > best[1]:
                best = number, score
        return best

    @precondition(lambda self: any(state.subsets for state in self.states.values()))
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(n for n, state in self.states.items() if state.subsets)))
        state = self.states[number]
        name = data.draw(st.sampled_from([name for subset in state.subsets for name in subset.vms]))
        plan = plan_remove(state, name, REFERENCE)
        self.put(number, free_cpus(plan.state, plan.released), self.oracle.hosts[number].closed)

    @rule(wish=WISHES | st.sampled_from(SHAPES), without=st.lists(NUMBERS, max_size=5))
    def ask(self, wish: tuple[int, int, int], without: list[int]) -> None:
        level, vcpus, memory = wish
        exact = Fraction(level, UNIT)
        for name, policy in HOST_POLICIES.items():
            found = self.inventory.choose(policy, level, vcpus, memory, without)
            assert pair(found) == self.expected(name, wish, without)
        expected = Counter(self.oracle.refusals(exact, vcpus, memory, without))
        expected.update(reason for number, reason in self.nameless.items() if number not in without)
        assert self.inventory.refusals(level, vcpus, memory, without) == expected

    @invariant()
    def the_same_shapes_again(self) -> None:
        for level, vcpus, memory in SHAPES:
            found = self.inventory.choose(PROGRESS, level, vcpus, memory)
            assert pair(found) == self.oracle.choose("progress", Fraction(level, UNIT), vcpus, memory)

    @invariant()
    def every_host_is_scored(self) -> None:
        level, vcpus, memory = SHAPES[self.count % len(SHAPES)]
        expected: list[tuple[int, float | None, str]] = []
        for number in sorted({*self.states, *self.nameless}):
            if number in self.nameless:
                expected.append((number, None, self.nameless[number]))
                continue
            host = self.oracle.hosts[number]
            reason = host.refusal(Fraction(level, UNIT), vcpus, memory)
            score = None if reason else host.progress(Fraction(level, UNIT), vcpus, memory)
            expected.append((number, score, reason))
        assert self.inventory.scores(PROGRESS, level, vcpus, memory) == expected
        assert self.inventory.scores(PlainProgress(), level, vcpus, memory) == expected
        assert len(self.inventory) == len(expected)

    @invariant()
    def totals_are_sums(self) -> None:
        shown = [
            host_status(state) for number, state in self.states.items() if self.oracle.hosts[number].closed != UNKNOWN
        ]
        totals = self.inventory.totals()
        for name in ("cpus", "free_cpus", "held_cpus", "memory_mib", "allocated_mib", "free_mib", "vms"):
            assert getattr(totals, name) == sum(getattr(status, name) for status in shown)
        levels = [level for status in shown for level in status.levels]
        assert [level.level for level in totals.levels] == sorted({level.level for level in levels})
        for total in totals.levels:
            parts = [level for level in levels if level.level == total.level]
            for name in ("cpus", "vcpus", "vms", "needed", "available_thousandths", "potential_thousandths"):
                assert getattr(total, name) == sum(getattr(part, name) for part in parts)
            assert total.ratio == total.level

    @invariant()
    def figures_are_kept(self) -> None:
        for number, state in self.states.items():
            kept = self.inventory.status(number)
            assert kept is not None
            assert msgspec.structs.replace(kept, generation=0) == msgspec.structs.replace(
                host_status(state), generation=0
            )
        for number in self.nameless:
            assert self.inventory.status(number) is None


def test_against_the_oracle() -> None:
    run_state_machine_as_test(
        AgainstTheOracle, settings=settings(max_examples=60, stateful_step_count=25, deadline=None)
    )


# Any figures at all


def some_status(rnd: random.Random) -> HostStatus:
    """Figures of any kind: typical, extreme, or such as no host has."""
    wild = rnd.random() < 0.1
    most = rnd.choice((8, 64, 256, 40_000, MAX_CPUS) if wild else (8, 64, 256))
    levels = []
    for level in rnd.sample(range(UNIT, HIGHEST + 1), rnd.randint(0, 3)) if wild else rnd.sample(LEVELS, 3):
        if rnd.random() < 0.5:
            vcpus = rnd.randint(1, MAX_VCPUS if wild and rnd.random() < 0.2 else most)
            vms = rnd.randint(1, vcpus)
            levels.append(
                level_status(
                    level=level,
                    ratio=level,
                    following=level,
                    cpus=rnd.randint(0 if wild else 1, most // 3),
                    vcpus=vcpus,
                    vms=vms,
                    widest=rnd.randint(0, vcpus),
                    free_cpus=0,
                )
            )
    cpus = rnd.randint(1, most) if wild else most
    memory = rnd.choice((0, 1, rnd.randint(0, MAX_MEMORY_MIB))) if wild else cpus * rnd.choice((2048, 4096, 7001))
    return HostStatus(
        cpus=cpus,
        free_cpus=rnd.randint(0, most),
        held_cpus=rnd.randint(0, 3),
        memory_mib=memory,
        allocated_mib=rnd.choice((0, rnd.randint(0, max(memory, 1)))),
        free_mib=rnd.randint(0, max(memory, 1)),
        vms=sum(level.vms for level in levels),
        generation=0,
        levels=tuple(levels),
        critical_size=rnd.choice((0, 2, 6, 1 << 30)),
        critical_sizes=((1500, rnd.randint(0, 9)),) if rnd.random() < 0.3 else (),
    )


def some_wish(rnd: random.Random) -> tuple[int, int, int]:
    if rnd.random() < 0.1:
        return rnd.randint(UNIT, HIGHEST), rnd.randint(1, 1 << rnd.randint(0, 24)), rnd.randint(0, 1 << 42)
    return rnd.choice(LEVELS), rnd.choice((1, 2, 3, 4, 8, 12)), rnd.choice((0, 1, 512, 1024, 4096, 9000))


@pytest.mark.parametrize("seed", range(12))
def test_any_figures_give_what_the_plain_definition_gives(seed: int, registers: int) -> None:
    rnd = random.Random(seed)
    inventory = Inventory()
    kept: dict[int, HostStatus] = {}
    numbers = 700 if seed % 2 else 90

    def expected(policy: HostPolicy, level: int, vcpus: int, memory: int) -> tuple[int, float] | None:
        fitting = [
            (number, policy.score(status, level, vcpus, memory, inventory.demand.market))
            for number, status in sorted(kept.items())
            if refusal_on(status, level, vcpus, memory) is None
        ]
        return max(fitting, key=lambda found: found[1], default=None)

    for _ in range(numbers):
        number = rnd.randrange(numbers)
        kept[number] = some_status(rnd)
        inventory.put(number, kept[number])
    usual = [some_wish(rnd) for _ in range(8)]
    for _ in range(60):
        wish = rnd.choice(usual) if rnd.random() < 0.6 else some_wish(rnd)
        policy = rnd.choice((PROGRESS, PROGRESS, FIRST_FIT, WORTH))
        if policy is WORTH and wish[1] <= 64:
            inventory.arrived(*wish)
        assert pair(inventory.choose(policy, *wish)) == expected(policy, *wish)
        reasons = Counter(filter(None, (refusal_on(status, *wish) for status in kept.values())))
        assert inventory.refusals(*wish) == reasons
        for _ in range(rnd.choice((0, 1, 1, 3))):
            number = rnd.randrange(numbers)
            if rnd.random() < 0.8:
                kept[number] = some_status(rnd)
                inventory.put(number, kept[number])
            elif kept.pop(number, None) is not None:
                inventory.drop(number)


def test_more_shapes_and_changes_than_are_kept() -> None:
    """Shapes are forgotten and come back; a shape is asked again after the log of changes has gone round."""
    inventory = inventory_of(*(some_status(random.Random(seed)) for seed in range(200)))
    kept = {number: some_status(random.Random(number)) for number in range(200)}
    for turn in range(3):
        for memory in range(1, 90):
            found = inventory.choose(PROGRESS, 1500, 2, memory * 64)
            slow = inventory.choose(PlainProgress(), 1500, 2, memory * 64)
            assert found == slow
        for change in range(5000 if turn else 10):
            number = change % 200
            kept[number] = some_status(random.Random(turn * 200 + number))
            inventory.put(number, kept[number])


# Cases


def test_the_width_rule_of_the_prototype() -> None:
    """SEMANTICS 11: the first host passes the prototype's filter, has the better progress, and refuses."""
    narrow = host_status(hold(restored(empty(epyc()), 3000, 4, [4, 4, 4]), range(8, 256), 0))
    wide = host_status(filled(empty(epyc()), "a", 1, 8, 1000))
    assert (narrow.free_cpus, wide.free_cpus) == (4, 248)
    inventory = inventory_of(narrow, wide)
    chosen = inventory.choose(PROGRESS, 3000, 12, 4096)
    assert chosen is not None
    assert chosen.host == 1
    assert inventory.refusals(3000, 12, 4096) == {"cpu": 1}
    assert progress_on(narrow, 3000, 12, 4096) > chosen.score


def test_of_equals_the_first_is_chosen() -> None:
    status = host_status(empty(i7()))
    inventory = inventory_of(*[status] * 200)
    for policy in (PROGRESS, FIRST_FIT):
        without: list[int] = []
        for number in range(200):
            chosen = inventory.choose(policy, 1000, 2, 1024, without)
            assert chosen is not None
            assert chosen.host == number
            without.append(number)
        assert inventory.choose(policy, 1000, 2, 1024, without) is None
        again = inventory.choose(policy, 1000, 2, 1024)
        assert again is not None
        assert again.host == 0


def test_scores_that_differ_in_the_last_bit_are_told_apart() -> None:
    """Bounds in single precision cannot: a MiB more or less is sold."""
    base = host_status(filled(empty(epyc()), "a", 40, 5, 1000))
    hosts = [msgspec.structs.replace(base, allocated_mib=700_000 + more) for more in (2, 1, 0, 1, 0, 2)]
    inventory = inventory_of(*hosts)
    for memory in (1, 1024, 200_000):
        scores = [progress_on(host, 2000, 4, memory) for host in hosts]
        assert len(set(scores)) > 1
        chosen = inventory.choose(PROGRESS, 2000, 4, memory)
        assert chosen == Choice(scores.index(max(scores)), max(scores))


def test_a_host_with_every_level_there_can_be() -> None:
    levels = [UNIT * number for number in range(1, 65)]
    state = empty(epyc())
    for level in levels:
        state = filled(state, f"vm{level}-", 1, 2, level)
    status = host_status(state)
    inventory = inventory_of(host_status(empty(i7())), status, status)
    for level in levels:
        chosen = inventory.choose(PlainProgress(), level, 3, 1024)
        assert chosen == inventory.choose(PROGRESS, level, 3, 1024)
    assert len(inventory.totals().levels) == 64
    assert inventory.status(1) == status
    inventory.drop(1)
    inventory.drop(2)
    assert inventory.totals().levels == ()
    assert len(inventory) == 1


def test_a_cluster_of_no_hosts() -> None:
    inventory = Inventory()
    assert len(inventory) == 0
    assert inventory.choose(PROGRESS, 1000, 1, 1) is None
    assert inventory.choose(PlainProgress(), 1000, 1, 1) is None
    assert inventory.refusals(1000, 1, 1, [0, -1, 7]) == {}
    assert inventory.scores(PROGRESS, 1000, 1, 1) == []
    assert inventory.totals().cpus == 0


def test_a_host_without_figures_is_only_counted() -> None:
    inventory = inventory_of(host_status(empty(i7())))
    inventory.close(70, UNKNOWN)
    inventory.close(3, "cordoned")
    assert len(inventory) == 3
    assert inventory.refusals(1000, 1, 1) == {UNKNOWN: 1, "cordoned": 1}
    assert inventory.totals().cpus == 8
    for number in (3, 2, 500):
        with pytest.raises(ValueError, match="no figures"):
            inventory.close(number, "")
    inventory.put(3, host_status(empty(i7())))
    assert inventory.refusals(1000, 1, 1) == {UNKNOWN: 1}


def test_a_number_is_used_again() -> None:
    inventory = inventory_of(host_status(filled(empty(i7()), "a", 8, 1, 1000)), host_status(empty(epyc())))
    assert inventory.choose(FIRST_FIT, 1000, 1, 1) == Choice(1, 0.0)
    inventory.drop(0)
    assert inventory.choose(FIRST_FIT, 1000, 1, 1) == Choice(1, 0.0)
    with pytest.raises(KeyError):
        inventory.drop(0)
    with pytest.raises(KeyError):
        inventory.status(0)
    inventory.put(0, host_status(empty(i7())))
    assert inventory.choose(FIRST_FIT, 1000, 1, 1) == Choice(0, 0.0)


def test_closing_keeps_the_figures() -> None:
    inventory = inventory_of(*[host_status(empty(i7()))] * 2)
    inventory.close(0, "cordoned")
    assert inventory.choose(PROGRESS, 1000, 1, 1) == inventory.choose(PROGRESS, 1000, 1, 1, [0])
    assert inventory.totals().cpus == 16
    inventory.close(0, UNKNOWN)
    assert inventory.totals().cpus == 8
    inventory.close(0, "")
    chosen = inventory.choose(PROGRESS, 1000, 1, 1)
    assert chosen is not None
    assert chosen.host == 0
    assert inventory.totals().cpus == 16


def test_impossible_figures_change_nothing() -> None:
    status = host_status(filled(empty(i7()), "a", 2, 2, 1500))
    inventory = inventory_of(status)
    for changes in (
        {"cpus": 0},
        {"free_cpus": -1},
        {"memory_mib": 1 << 70},
        {"levels": (msgspec.structs.replace(status.levels[0], level=999),)},
        {"levels": (msgspec.structs.replace(status.levels[0], cpus=MAX_CPUS + 1),)},
    ):
        wrong = msgspec.structs.replace(status, **changes)
        assert fault(wrong) != ""
        with pytest.raises(ValueError, match=" is "):
            inventory.put(0, wrong)
        with pytest.raises(ValueError, match=" is "):
            inventory.put(1, wrong)
    assert inventory.status(0) == status
    assert len(inventory) == 1
    for number in (-1, MAX_HOSTS):
        with pytest.raises(ValueError, match="no number"):
            inventory.put(number, status)
        with pytest.raises(ValueError, match="no number"):
            inventory.close(number, "cordoned")


@pytest.mark.parametrize(
    ("level", "vcpus", "memory"), [(999, 1, 1), (64001, 1, 1), (0, 1, 1), (1000, 0, 1), (1000, 1, -1)]
)
def test_what_nobody_may_ask(level: int, vcpus: int, memory: int) -> None:
    inventory = inventory_of(host_status(empty(i7())))
    with pytest.raises(ValueError, match="no host is asked"):
        inventory.choose(PROGRESS, level, vcpus, memory)
    with pytest.raises(ValueError, match="no host is asked"):
        inventory.refusals(level, vcpus, memory)


@given(st.integers(1, 1 << 70), st.integers(0, 1 << 70))
def test_more_than_any_host_has_fits_nowhere(vcpus: int, memory: int) -> None:
    status = host_status(empty(i7()))
    inventory = inventory_of(status)
    refused = refusal_on(status, 2000, vcpus, memory)
    assert inventory.refusals(2000, vcpus, memory) == ({} if refused is None else {refused: 1})
    assert (inventory.choose(PROGRESS, 2000, vcpus, memory) is None) == (refused is not None)


def test_larger_hosts_are_looked_at_at_once() -> None:
    """What they are worth is not in the tables: until then nothing would be lost by filling them."""
    small, large = empty(build(memory=8192)), empty(build(cores=64, memory=131072))
    inventory = inventory_of(*[host_status(small)] * 4)
    inventory.arrived(1000, 1, 512)
    for host in range(4, 6):
        inventory.put(host, host_status(large), UNKNOWN)
    inventory.arrived(1000, 1, 512)
    assert inventory.demand.market is not None
    assert inventory.demand.market.most_cpus == 8
    for host in range(4, 6):
        inventory.put(host, host_status(large))
    inventory.arrived(1000, 1, 512)
    assert inventory.demand.market.most_cpus == 128
    chosen = inventory.choose(WORTH, 1000, 1, 512)
    assert chosen is not None
    assert chosen.host == 0
