"""One rule's entries in log order: every event its windows hold, and the newest loss of each window.

A prefix follows channels that nobody can list beforehand; it is replayed from here, by walking
entries after a position instead of asking every channel. The oldest event to expire is found
here, too.

Entries are appended in log order and may leave anywhere, so they stand in blocks of at most
`BLOCK`; neighbours that have become small are joined. All operations cost O(log n + BLOCK).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from operator import attrgetter
from typing import TYPE_CHECKING

from sse_gateway.window import Event

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sse_gateway.window import Window

BLOCK = 512
"""Entries in a block: large enough that there are few blocks, small enough to cut one out of it."""

_BY_POSITION = attrgetter("position")


class Mark:
    """The place of a window's newest loss; without a window, of one that has been forgotten."""

    __slots__ = ("position", "window")

    def __init__(self, position: int, window: Window | None) -> None:
        self.position = position
        self.window = window


class Timeline:
    """The log-ordered index of one rule.

    Attributes:
        abandoned: Positions of the marks whose window is forgotten.
    """

    def __init__(self) -> None:
        self.abandoned: set[int] = set()
        self._blocks: list[list[Event | Mark]] = []  # none of them empty
        self._oldest_from = -1  # no event lies before this position

    def append(self, entry: Event | Mark) -> None:
        """Add the newest entry of the rule."""
        if self._blocks and len(self._blocks[-1]) < BLOCK:
            self._blocks[-1].append(entry)
        else:
            self._blocks.append([entry])
        if entry.window is None:
            self.abandoned.add(entry.position)
            self._merge(self._blocks[-1], len(self._blocks[-1]) - 1)

    def mark(self, mark: Mark) -> None:
        """Put a mark in the place of an event."""
        index, at = self._find(mark.position)
        self._blocks[index][at] = mark

    def discard(self, position: int) -> None:
        """Take out the entry at a position."""
        index, at = self._find(position)
        block = self._blocks[index]
        del block[at]
        self._merge(block, at)
        if not block:
            del self._blocks[index]
        self._join(index)
        self._join(index - 1)

    def abandon(self, position: int) -> None:
        """Keep a mark whose window is forgotten: before the next event somebody has to be told."""
        index, at = self._find(position)
        block = self._blocks[index]
        block[at] = Mark(position, None)
        self.abandoned.add(position)
        self._merge(block, at + 1)
        self._merge(block, at)
        self._join(index)
        self._join(index - 1)

    def after(self, position: int) -> Iterator[Event | Mark]:
        """Walk the entries after a position, oldest first.

        The timeline must not change during the walk.
        """
        for index in range(self._block_of(position), len(self._blocks)):
            block = self._blocks[index]
            yield from block[bisect_right(block, position, key=_BY_POSITION) :]

    def oldest(self) -> Event | None:
        """Find the oldest event. It only moves forward, past each mark once."""
        for entry in self.after(self._oldest_from - 1):
            self._oldest_from = entry.position
            if isinstance(entry, Event):
                return entry
        return None

    def _join(self, index: int) -> None:
        """Join a block with the next one, if both are small."""
        pair = self._blocks[max(0, index) : index + 2]
        if len(pair) == 2 and len(pair[0]) + len(pair[1]) <= BLOCK // 2:
            joined = pair[0] + pair[1]
            self._merge(joined, len(pair[0]))
            self._blocks[index : index + 2] = [joined]

    def _merge(self, block: list[Event | Mark], at: int) -> None:
        """Of two neighbouring marks without a window, keep the later one: nothing lies between them."""
        if 0 < at < len(block) and block[at - 1].window is block[at].window is None:
            self.abandoned.discard(block[at - 1].position)
            del block[at - 1]

    def _find(self, position: int) -> tuple[int, int]:
        index = self._block_of(position)
        return index, bisect_left(self._blocks[index], position, key=_BY_POSITION)

    def _block_of(self, position: int) -> int:
        return max(0, bisect_right(self._blocks, position, key=_first_position) - 1)


def _first_position(block: list[Event | Mark]) -> int:
    return block[0].position
