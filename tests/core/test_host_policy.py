"""Every host policy of the registry, now and later."""

from __future__ import annotations

from fractions import Fraction
from math import isfinite

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.admission import refusal_on
from core.allocator import progress
from core.demand import Lesson, Market, Shape
from core.host_policy import DEFAULT_HOST_POLICY, HOST_POLICIES, HostPolicy
from core.inventory import KERNELS, Inventory
from core.model import HostState
from core.status import host_status
from tests.cluster_oracle import SCORES, plain
from tests.core.hosts import LEVELS
from tests.core.test_admission import lived

LEVEL = st.sampled_from(LEVELS)
SHAPES = st.lists(
    st.builds(Shape, level=LEVEL, vcpus=st.integers(1, 9), memory_mib=st.integers(1, 12), count=st.integers(1, 99)),
    min_size=1,
    max_size=24,
)
SHARES = st.sampled_from([(1.0, 1.0), (1.0, 0.98), (0.97, 1.0), (1.0, 0.0), (0.3, 1.0)])
MARKETS = st.none() | st.builds(
    lambda shapes, uses, cpus, memory, most_cpus, most_mib: Market(
        shapes=tuple(shapes),
        cpus=cpus,
        memory_mib=memory,
        most_cpus=most_cpus,
        most_mib=most_mib,
        cpu_use=uses[0],
        memory_use=uses[1],
    ),
    SHAPES,
    SHARES,
    st.sampled_from([4.0, 6.5, 32.0]),
    st.sampled_from([16.0, 24.5, 65536.0]),
    st.sampled_from([4, 8, 64]),
    st.sampled_from([12, 64, 65536]),
)
every_policy = pytest.mark.parametrize("policy", HOST_POLICIES.values(), ids=HOST_POLICIES)


def test_the_registry() -> None:
    assert DEFAULT_HOST_POLICY in HOST_POLICIES
    assert all(policy.name == name for name, policy in HOST_POLICIES.items())
    assert {policy.kernel for policy in HOST_POLICIES.values()} <= {*KERNELS, None}


@every_policy
@given(state=lived(), level=LEVEL, vcpus=st.integers(1, 9), memory=st.integers(1, 12), market=MARKETS)
def test_the_compiled_score_is_the_plain_one(
    policy: HostPolicy, state: HostState, level: int, vcpus: int, memory: int, market: Market | None
) -> None:
    status = host_status(state)
    inventory = Inventory(Lesson((), 0, 0, market))
    inventory.put(0, status)
    [(host, score, reason)] = inventory.scores(policy, level, vcpus, memory)
    refused = refusal_on(status, level, vcpus, memory)
    plain_score = None if refused else policy.score(status, level, vcpus, memory, market)
    assert plain_score is None or isfinite(plain_score)
    assert (host, reason) == (0, refused or "")
    assert score == plain_score
    assert inventory.score(policy, 0, level, vcpus, memory) == plain_score
    chosen = inventory.choose(policy, level, vcpus, memory)
    assert chosen is None if refused else chosen is not None and (chosen.host, chosen.score) == (0, plain_score)


@every_policy
@given(state=lived(), level=LEVEL, vcpus=st.integers(1, 9), memory=st.integers(1, 12))
def test_the_score_is_the_oracle_s(policy: HostPolicy, state: HostState, level: int, vcpus: int, memory: int) -> None:
    if policy.name in SCORES:
        found = SCORES[policy.name](plain(state), Fraction(level, 1000), vcpus, memory)
        assert policy.score(host_status(state), level, vcpus, memory, None) == found


@given(lived(), LEVEL, st.integers(1, 9), st.integers(1, 12))
def test_progress_is_the_host_s_own(state: HostState, level: int, vcpus: int, memory: int) -> None:
    score = HOST_POLICIES["progress"].score(host_status(state), level, vcpus, memory, None)
    assert score == progress(state, level, vcpus, memory)
