from __future__ import annotations

import asyncio

from tests.transports.endpoint import until
from vmstackd.transports.turns import FEW_CALLS, MOST_CALLS, MOST_CALLS_OF_ALL, Turns


def test_callers_take_turns_however_much_one_asks() -> None:
    async def main() -> list[str]:
        served: list[str] = []
        turns: Turns[int] = Turns(lambda caller, call: served.append(f"{caller}{call}"))
        for call in range(4):
            turns.add("a", call)
        turns.add("b", 0)
        turns.add("c", 0)
        turns.add("b", 1)
        await until(lambda: len(served) == 7)
        return served

    assert asyncio.run(main()) == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]


def test_others_of_the_event_loop_get_their_turn() -> None:
    async def main() -> int:
        loop = asyncio.get_running_loop()
        served = 0

        def serve(_caller: str, _call: int) -> None:
            nonlocal served
            served += 1
            end = loop.time() + 0.004
            while loop.time() < end:
                pass

        turns: Turns[int] = Turns(serve)
        for call in range(50):
            turns.add("a", call)
        for _ in range(3):
            await asyncio.sleep(0)
        return served

    assert asyncio.run(main()) < 50


def test_one_caller_cannot_fill_the_memory() -> None:
    async def main() -> None:
        served: list[int] = []
        turns: Turns[int] = Turns(lambda _caller, call: served.append(call))
        assert all(turns.add("a", call) for call in range(MOST_CALLS))
        assert not turns.add("a", MOST_CALLS)
        assert turns.add("b", 0)
        await until(lambda: len(served) == MOST_CALLS + 1)
        assert not turns.add("a", 0)  # served, but not ended
        turns.done("a")
        assert turns.add("a", 0)

    asyncio.run(main())


def test_one_program_with_many_connections_cannot_fill_the_memory_nor_shut_out_others() -> None:
    async def main() -> None:
        served: list[int] = []
        turns: Turns[int] = Turns(lambda _caller, call: served.append(call))
        taken = sum(turns.add(f"a{caller}", 0) for caller in range(100) for _ in range(MOST_CALLS))
        assert MOST_CALLS_OF_ALL <= taken <= MOST_CALLS_OF_ALL + 100 * FEW_CALLS
        assert [turns.add("b", 1) for _ in range(FEW_CALLS + 1)] == [True] * FEW_CALLS + [False]
        await until(lambda: len(served) == taken + FEW_CALLS)
        for _ in range(MOST_CALLS):
            turns.done("a0")
        for _ in range(MOST_CALLS):
            turns.done("a1")
        assert turns.add("b", 1), "there is room again"

    asyncio.run(main())
