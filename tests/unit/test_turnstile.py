"""A crowd is let through a few in each turn of the loop, in order."""

from __future__ import annotations

import asyncio
from functools import partial

from sse_gateway.turnstile import PER_TURN, Turnstile


async def test_a_crowd_enters_in_order_a_few_a_turn() -> None:
    """Whoever comes first passes at once, the others as turns go on; nobody overtakes."""
    turnstile = Turnstile()
    entered: list[int] = []
    at_once = [turnstile.try_pass() for _ in range(PER_TURN + 1)]
    for number in range(2 * PER_TURN + 1):
        turnstile.wait(partial(entered.append, number))

    counts = []
    for _ in range(4):
        await asyncio.sleep(0)
        counts.append(len(entered))

    assert at_once == [True] * PER_TURN + [False]
    assert counts == [PER_TURN, 2 * PER_TURN, 2 * PER_TURN + 1, 2 * PER_TURN + 1]
    assert entered == sorted(entered)


async def test_nobody_overtakes_those_that_wait() -> None:
    """As long as somebody waits for the next turn, a newcomer waits behind him."""
    turnstile = Turnstile()
    while turnstile.try_pass():
        pass
    for _ in range(PER_TURN + 1):
        turnstile.wait(lambda: None)
    await asyncio.sleep(0)

    assert not turnstile.try_pass()
    await asyncio.sleep(0)
    assert turnstile.try_pass()


async def test_a_turn_without_a_crowd_is_not_asked_for() -> None:
    """Once everybody is through, nothing goes on."""
    turnstile = Turnstile()
    turnstile.try_pass()
    for _ in range(2):
        await asyncio.sleep(0)

    assert [turnstile.try_pass() for _ in range(PER_TURN)] == [True] * PER_TURN
