"""One channel's replay window: what it still holds, and what it has lost.

Rules:
    1. Events leave from the oldest end only, so everything lost lies before everything held.
    2. An event that leaves keeps its frame: passes and outboxes may still hold it (I2). The window
       remembers its position, until more than `MAX_LOST` of its channel are remembered; from then
       on `forgotten` says up to where the count is unknown.
    3. The newest loss is never forgotten while the channel lives: a loss is always told (I2).
    4. Channels may be as many as streams: what one has none of, all share (`NO_LOSS`, `NO_KEYS`), and never change.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from operator import attrgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sse_gateway.audience import Audience
    from sse_gateway.channels import Rule

MAX_LOST = 1000
"""Lost offsets a channel remembers one by one; beyond it a gap tells `missed: null`."""

NO_LOSS: Final = array("q")
NO_KEYS: Final[Mapping[str, None]] = MappingProxyType({})

_BY_POSITION = attrgetter("position")


class Event(Struct, gc=False, eq=False):
    """A publication with its place in the log, encoded once for all its readers.

    The garbage collector does not look at events, of which windows may hold a million: a full collection would hold
    the loop for 0.1 s. Nor need it: whoever forgets a window empties it, so that no cycle is left behind.

    Attributes:
        position: Place in the log.
        window: Window of its channel; None for a gap that is told on all channels of a stream.
        frame: The encoded block.
        received_at: When its bytes came from Redis, seconds of the loop's clock.
        type: Event type.
        is_text: The data is a string, not JSON text.
        raw: The data as published where the frame cannot give it back (it holds a CR), or None.
        ts: Publisher's clock in seconds, where it is of use, or None.
        key: Idempotency key, or None; not known of an event that came from a peer.
    """

    position: int
    window: Window | None
    frame: bytes
    received_at: float
    type: str = "message"
    is_text: bool = True
    raw: bytes | None = None
    ts: float | None = None
    key: str | None = None

    @property
    def cursor(self) -> str:
        """Text of its cursor."""
        start = self.frame.index(b"id: ") + 4
        return self.frame[start : self.frame.index(b"\n", start)].decode()


_VACANT = Event(-1, None, b"", 0.0)


class Window:
    """The events of one channel that a returning client can still get.

    Attributes:
        name: Channel as clients know it.
        rule: Rule that owns the channel.
        bytes: Bytes of the frames held.
        lost: Positions of events lost and remembered, oldest first.
        newest_loss: Position of the newest lost event, -1 for none.
        forgotten: Up to this position the number of lost events is unknown, -1 for none.
        loss_serial: The history's loss counter at the newest loss.
        keys: Idempotency keys, oldest first.
        audiences: Audiences that follow exactly this channel, among others.
        used_at: When the channel was last published to or left by a reader, seconds.
    """

    __slots__ = (
        "_events",
        "_start",
        "audiences",
        "bytes",
        "forgotten",
        "keys",
        "loss_serial",
        "lost",
        "name",
        "newest_loss",
        "rule",
        "used_at",
    )

    def __init__(self, name: str, rule: Rule, mark: int, now: float) -> None:
        """Start empty.

        Args:
            name: Channel as clients know it.
            rule: Rule that owns it.
            mark: The rule's highest forgotten loss, which may have been this channel's.
            now: Seconds.
        """
        self.name = name
        self.rule = rule
        # A list whose first `_start` places are vacant: bisects like a list, loses like a queue.
        self._events: list[Event] = []
        self._start = 0
        self.bytes = 0
        self.lost: array[int] = NO_LOSS
        self.newest_loss = mark
        self.forgotten = mark
        self.loss_serial = 0
        self.keys: Mapping[str, None] = NO_KEYS
        self.audiences: dict[Audience, None] = {}
        self.used_at = now

    def __len__(self) -> int:
        return len(self._events) - self._start

    @property
    def newest(self) -> Event | None:
        """The newest event held."""
        return self._events[-1] if len(self) else None

    def append(self, event: Event) -> None:
        """Take the newest event; the caller then evicts while `is_over`."""
        self._events.append(event)
        self.bytes += len(event.frame)

    def is_over(self, oldest_allowed: float) -> bool:
        """Whether the oldest event has to go.

        Args:
            oldest_allowed: Events received at or before this have reached their maximal age.
        """
        held, bounds = len(self), self.rule.window
        return held > 0 and (
            held > bounds.max_events
            or self.bytes > bounds.max_bytes
            or self._events[self._start].received_at <= oldest_allowed
        )

    def clear(self) -> None:
        """Begin anew, empty."""
        self._events.clear()
        self._start = 0
        self.bytes = 0
        self.lost = NO_LOSS
        self.newest_loss = self.forgotten = -1
        self.keys = NO_KEYS

    def add_key(self, key: str) -> None:
        """Remember an idempotency key, as the newest."""
        keys = self.keys if isinstance(self.keys, dict) else {}
        keys[key] = None
        self.keys = keys

    def drop_key(self, key: str) -> None:
        """Forget an idempotency key that is remembered."""
        assert isinstance(self.keys, dict)  # noqa: S101 - it has some
        del self.keys[key]

    def evict(self, serial: int) -> Event:
        """Lose the oldest event and remember that it was there. Amortised O(1).

        Args:
            serial: The history's loss counter.
        """
        event = self._events[self._start]
        self._events[self._start] = _VACANT
        self._start += 1
        if self._start * 2 > len(self._events):
            del self._events[: self._start]
            self._start = 0
        self.bytes -= len(event.frame)
        if self.lost is NO_LOSS:
            self.lost = array("q")
        self.lost.append(event.position)
        self.newest_loss = event.position
        self.loss_serial = serial
        return event

    def lose(self, positions: Iterable[int], serial: int) -> None:
        """Remember losses that happened elsewhere, after everything here."""
        self.lost = self.lost + array("q", positions)
        self.newest_loss = self.lost[-1]
        self.loss_serial = serial

    def forget(self, keep: int) -> int:
        """Forget the oldest losses beyond `keep` and return how many those were."""
        count = len(self.lost) - keep
        if count <= 0:
            return 0
        self.forgotten = max(self.forgotten, self.lost[count - 1])
        del self.lost[:count]
        return count

    def missed_after(self, position: int) -> int | None:
        """Count the lost events after a position; None where that is no longer known."""
        if self.forgotten > position:
            return None
        return len(self.lost) - bisect_right(self.lost, position)

    def after(self, position: int, limit: int) -> list[Event]:
        """Return the `limit` oldest events held after a position. O(log held + limit)."""
        start = bisect_right(self._events, position, lo=self._start, key=_BY_POSITION)
        return self._events[start : start + limit]

    def is_among_newest(self, event: Event, count: int, head: int) -> bool:
        """Whether an event is one of the `count` newest at or before `head`, or after it."""
        if event.position > head:
            return True
        end = bisect_right(self._events, head, lo=self._start, key=_BY_POSITION)
        return end - bisect_left(self._events, event.position, lo=self._start, key=_BY_POSITION) <= count

    def nth_newest(self, count: int, head: int) -> Event | None:
        """Return the oldest of the `count` newest events at or before `head`, or None if there are none."""
        end = bisect_right(self._events, head, lo=self._start, key=_BY_POSITION)
        first = max(self._start, end - count)
        return self._events[first] if first < end else None
