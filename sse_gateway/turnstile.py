"""Lets a few through in each turn of the loop; the others wait for theirs, in order.

When 10,000 clients come back together, a thousand requests may be read in one turn, and answered in the next: 0.3 s in which
nobody else gets anything. What waits here costs a place in a queue.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PER_TURN = 16
"""Let through in one turn: a request takes half a millisecond until it is a stream."""


class Turnstile:
    """One entrance."""

    def __init__(self) -> None:
        """Open; needs a running loop."""
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Callable[[], None]] = deque()
        self._passed = 0

    def try_pass(self) -> bool:
        """Pass now, if there is room in this turn and nobody waits."""
        if self._passed >= PER_TURN:
            return False
        if self._passed == 0:
            self._loop.call_soon(self._turn)
        self._passed += 1
        return True

    def wait(self, enter: Callable[[], None]) -> None:
        """Be called when it is one's turn."""
        self._waiting.append(enter)

    def _turn(self) -> None:
        self._passed = min(PER_TURN, len(self._waiting))
        if self._passed:
            self._loop.call_soon(self._turn)
        for _ in range(self._passed):
            self._waiting.popleft()()
