"""What has to happen at a time of its own, for very many at once, found by one look at the clock.

A timer each would cost fifty thousand streams a heap entry and a handle in the loop; here those whose times
lie close together share a place, and a look at the clock costs as much as there is to find.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

SLOT_S = 0.125
"""Times that lie within so long are one: nothing comes early, and nothing later than this. Longer ones than usual are for times that
are far away and not those of single items: a place for each would take as much as a timer."""

_SLACK = 1024  # empty places that are left in the heap before it is made anew

Item = TypeVar("Item")


class Deadlines(Generic[Item]):
    """Items by the time at which they are due; which clock that is, is the caller's."""

    def __init__(self, slot_s: float = SLOT_S) -> None:
        """Start empty.

        Args:
            slot_s: Instead of `SLOT_S`.
        """
        self._slot_s = slot_s
        self._slots: dict[int, dict[Item, None]] = {}
        self._order: list[int] = []

    def __len__(self) -> int:
        return sum(map(len, self._slots.values()))

    def add(self, item: Item, at: float) -> None:
        """Have an item come up at a time, seconds."""
        number = int(at / self._slot_s)
        if number not in self._slots:
            self._slots[number] = {}
            heappush(self._order, number)
        self._slots[number][item] = None

    def discard(self, item: Item, at: float) -> None:
        """Forget an item that was added for this time. Idempotent."""
        number = int(at / self._slot_s)
        slot = self._slots.get(number, {})
        slot.pop(item, None)
        if not slot:
            self._slots.pop(number, None)
            if len(self._order) > 2 * len(self._slots) + _SLACK:
                self._order = list(self._slots)
                heapify(self._order)

    def due(self, now: float) -> list[Item]:
        """Take out what is due, the earliest first."""
        found: list[Item] = []
        while self._order and (self._order[0] + 1) * self._slot_s <= now:
            found += self._slots.pop(heappop(self._order), ())
        return found
