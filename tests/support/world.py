"""The log as its publishers see it, and what its windows hold, by the rules alone."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sse_gateway.channels import Rule

_CURSOR = re.compile(r"([0-9a-z]{12})-(0|[1-9][0-9]*)-([0-9a-f]{12})")


class BrokenPromiseError(AssertionError):
    """A client saw what the contract rules out."""


def ensure(condition: object, *why: object) -> None:
    """Judge one rule."""
    if not condition:
        raise BrokenPromiseError(" ".join(map(str, why)))


@dataclass(frozen=True, slots=True)
class Deliverable:
    """One event as its client should get it.

    Attributes:
        position: Place in the log, over all epochs.
        channel: Name that clients know.
        type: Event type.
        text: Data of a plain client.
        value: Data of a client that has it wrapped.
    """

    position: int
    channel: str
    type: str
    text: str
    value: Any


class World:
    """The log, and what its windows hold, by the rules alone.

    Attributes:
        head: Position of the newest entry.
        epochs: (name, position of its BREAK, reason), oldest first.
        events: By position.
        places: Positions of a channel's events, ascending.
        lost: Per channel, the newest event that its window has lost.
        is_exact: Nothing but the rules' own bounds has made windows lose, and no channel was forgotten.
    """

    def __init__(self, rules: Sequence[Rule], *, exact: bool) -> None:
        self.rules = tuple(rules)
        self.is_exact = exact
        self.head = -1
        self.epochs: list[tuple[str, int, str]] = []
        self.events: dict[int, Deliverable] = {}
        self.places: dict[str, list[int]] = {}
        self.owners: dict[str, Rule] = {}
        self.lost: dict[str, int] = {}
        self.checks: dict[int, str] = {}
        self._held: dict[str, deque[tuple[int, int, float]]] = {}
        self._keys: dict[str, dict[str, None]] = {}

    def begin_epoch(self, name: str, reason: str) -> None:
        """Put a BREAK at the next position."""
        self.head += 1
        self.epochs.append((name, self.head, reason))

    def count(self) -> int:
        """Count one message, whatever becomes of it."""
        self.head += 1
        return self.head

    def add(self, event: Deliverable, rule: Rule, now: float) -> None:
        """Note that the message just counted became an event."""
        name = event.channel
        self.owners[name] = rule
        self.events[event.position] = event
        self.places.setdefault(name, []).append(event.position)
        self._held.setdefault(name, deque()).append((event.position, self._frame_bytes(event), now))
        self._lose(name, now)

    def knows_key(self, channel: str, key: str) -> bool:
        """Whether a key is among the last 1,000 of its channel; notes it if not."""
        keys = self._keys.setdefault(channel, {})
        if key in keys:
            return True
        keys[key] = None
        if len(keys) > 1000:
            del keys[next(iter(keys))]
        return False

    def expire(self, now: float) -> None:
        """Lose what has reached its age."""
        for name in self._held:
            self._lose(name, now)

    def held(self, channel: str) -> list[int]:
        """Positions that the window holds."""
        return [position for position, _, _ in self._held.get(channel, ())]

    def between(self, channel: str, after: int, upto: int) -> list[int]:
        """Positions of a channel's events after one place, up to another."""
        places = self.places.get(channel, [])
        return places[bisect_right(places, after) : bisect_right(places, upto)]

    def place(self, cursor: str) -> int:
        """The position a cursor names; the same place always has the same check (I1)."""
        match = _CURSOR.fullmatch(cursor)
        ensure(match and len(cursor) <= 48, "not a cursor:", cursor)
        assert match is not None
        index = next((i for i, epoch in enumerate(self.epochs) if epoch[0] == match[1]), None)
        ensure(index is not None, "a cursor of no epoch:", cursor)
        assert index is not None
        position = self.epochs[index][1] + int(match[2])
        ensure(position <= self.end_of(index), "a cursor from the future:", cursor)
        if match[3] != "0" * 12:  # too old to be known; it still names its place
            known = self.checks.setdefault(position, match[3])
            ensure(known == match[3], "one place, two histories:", cursor, known)
        return position

    def end_of(self, index: int) -> int:
        """Position of an epoch's last entry."""
        return self.epochs[index + 1][1] - 1 if index + 1 < len(self.epochs) else self.head

    def breaks(self, after: int, upto: int) -> list[int]:
        """Positions of BREAKs after one place, up to another."""
        return [base for _, base, _ in self.epochs if after < base <= upto]

    def _lose(self, name: str, now: float) -> None:
        held, bounds = self._held[name], self.owners[name].window
        size = sum(entry[1] for entry in held)
        while held and (
            len(held) > bounds.max_events or size > bounds.max_bytes or held[0][2] <= now - bounds.max_age_s
        ):
            position, frame_bytes, _ = held.popleft()
            size -= frame_bytes
            self.lost[name] = position

    def _frame_bytes(self, event: Deliverable) -> int:
        epoch, base, _ = self.epochs[-1]
        lines = [f"id: {epoch}-{event.position - base}-{'0' * 12}"]
        lines += [f"event: {event.type}"] if event.type != "message" else []
        lines += [f"data: {line}" for line in event.text.split("\n")]
        return len("\n".join(lines).encode()) + 2
