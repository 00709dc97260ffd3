"""Readers whose cursor is ahead of the log: this node is behind the one that gave it to them.

They wait until the log gets there, and at most `HOLD_S`: if nobody else has that log, waiting
longer would not help. Whoever leaves meanwhile is forgotten at that moment, too.
"""

from __future__ import annotations

import heapq
from collections import deque
from itertools import count
from typing import TYPE_CHECKING

from sse_gateway.reader import Phase

if TYPE_CHECKING:
    from sse_gateway.reader import Reader

HOLD_S = 5.0
"""How long a cursor ahead of the log is waited for."""


class Hold:
    """The readers that are HELD."""

    def __init__(self) -> None:
        self._by_position: list[tuple[int, int, Reader]] = []  # a heap
        self._by_age: deque[tuple[float, Reader]] = deque()
        self._ticket = count()  # readers do not compare

    def put(self, reader: Reader, position: int, now: float) -> None:
        """Hold a reader until the log has reached a position."""
        reader.phase = Phase.HELD
        heapq.heappush(self._by_position, (position, next(self._ticket), reader))
        self._by_age.append((now + HOLD_S, reader))

    def reached(self, head: int) -> list[Reader]:
        """Take out those whose position the log has reached."""
        found = []
        while self._by_position and self._by_position[0][0] <= head:
            found.append(heapq.heappop(self._by_position)[2])
        return [reader for reader in found if reader.phase is Phase.HELD]

    def expired(self, now: float) -> list[Reader]:
        """Take out those that have waited long enough."""
        found = set()
        while self._by_age and self._by_age[0][0] <= now:
            found.add(self._by_age.popleft()[1])
        if not found:
            return []
        expired = [entry[2] for entry in self._by_position if entry[2] in found]
        self._by_position = [entry for entry in self._by_position if entry[2] not in found]
        heapq.heapify(self._by_position)
        return [reader for reader in expired if reader.phase is Phase.HELD]

    def all(self) -> list[Reader]:
        """Take out everybody."""
        found, self._by_position = self._by_position, []
        return [reader for _, _, reader in found if reader.phase is Phase.HELD]
