"""Operation check of a cluster: one host, or all of them at the same time."""

from __future__ import annotations

import msgspec

from globald.cluster import MOST_CHECKED, _as_checked
from tests.globald.hosts import RealHost, together, vm
from tests.globald.test_cluster import NOWHERE, run
from vmstackd.api import replies, requests
from vmstackd.api.errors import NotFound, Unavailable

Found = list[tuple[str, str, str, bool]]


def found(reply: replies.CheckReply) -> Found:
    return [(finding.host, finding.kind, finding.vm, finding.repaired) for finding in reply.findings]


def disturb(host: RealHost, name: str) -> None:
    vms = host.simulated.vms
    vms[name] = msgspec.structs.replace(vms[name], pinned=frozenset({7}))


def test_all_hosts_or_one_are_compared_and_repaired() -> None:
    async def test() -> None:
        async with together(RealHost("a"), RealHost("b")) as both:
            for host, name in (("a", "one"), ("b", "two")):
                await both.deploy(vm(name, host=host))
            reply = await both.ask(requests.Check(), replies.CheckReply)
            assert reply == replies.CheckReply(findings=(), vms=2, hosts=2)
            for host, name in (("a", "one"), ("b", "two")):
                disturb(both.hosts[host], name)
            reply = await both.ask(requests.Check(dry_run=True), replies.CheckReply)
            assert found(reply) == [("a", "pinning", "one", False), ("b", "pinning", "two", False)]
            assert reply.dry_run
            reply = await both.ask(requests.Check(host="b"), replies.CheckReply)
            assert (found(reply), reply.vms, reply.hosts) == ([("b", "pinning", "two", True)], 1, 1)
            reply = await both.ask(requests.Check(), replies.CheckReply)
            assert found(reply) == [("a", "pinning", "one", True)]
            error = await both.refusal(requests.Check(host="nobody"))
            assert isinstance(error, NotFound)

    run(test())


def test_what_is_not_repaired_comes_first_and_hosts_that_do_not_answer_are_told() -> None:
    async def test() -> None:
        async with together(RealHost("a"), RealHost("b")) as both:
            await both.deploy(vm("one", host="a"))
            # After a deployment a host looks by itself too; this look takes the place of that one.
            await both.ask(requests.Check(), replies.CheckReply)
            disturb(both.hosts["a"], "one")
            both.hosts["b"].simulated.cut()
            await both.state("b", "hypervisor-down")
            reply = await both.ask(requests.Check(), replies.CheckReply)
            assert found(reply) == [("b", "unchecked", "", False), ("a", "pinning", "one", True)]
            assert "the link is cut" in reply.findings[0].text
            assert (reply.vms, reply.hosts) == (1, 1)
            error = await both.refusal(requests.Check(host="b"))
            assert isinstance(error, Unavailable)
            assert "the link is cut" in error.message

    run(test())


def test_a_host_that_is_not_there() -> None:
    async def test() -> None:
        async with together(RealHost("a"), others=(NOWHERE,), patience=0.1) as both:
            await both.state(NOWHERE, "unknown")
            reply = await both.ask(requests.Check(), replies.CheckReply)
            assert found(reply) == [(NOWHERE, "unchecked", "", False)]

    run(test())


def test_what_a_host_answers_is_kept_to_a_size() -> None:
    """A host may lie about everything."""

    async def test() -> None:
        async with together(RealHost("a")) as both:
            one = replies.Finding(kind="k" * 9000, vm="v" * 9000, text="t" * 9000, repaired=False, host="other")
            told = replies.CheckReply(findings=(one,) * (replies.MOST_FINDINGS + 2), vms=1 << 63, hidden=-5, hosts=9)
            reply = _as_checked(both.member("a"), told)
            assert len(reply.findings) == replies.MOST_FINDINGS
            assert (reply.vms, reply.hidden, reply.left_out, reply.hosts) == (MOST_CHECKED, 0, 2, 1)
            assert all(finding.host == "a" for finding in reply.findings)
            assert len(msgspec.msgpack.encode(reply)) < 3 << 20

    run(test())
