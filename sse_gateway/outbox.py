"""What waits for one stream whose socket takes no more.

Rules:
    1. Bounded in events and in bytes of frames; judged when the *next* batch arrives, so a single
       batch is never refused to a stream that was within its bounds.
    2. The oldest queued events go first. One gap stands where they were, before everything that
       is still queued (I2); it grows until it is taken, so a drain tells at most one.
    3. Under `latest` a newer event replaces the queued one of its channel, without a gap.
    4. `chunk` is what the socket has begun to take. It is outside the queue: its length has been
       announced, so it must be sent to its end.

A stream that stays stalled drops an event for each that comes, so dropping only counts: the gap is made when it
is told.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from sse_gateway.reasons import GapReason, Policy
from sse_gateway.window import Event

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sse_gateway.channels import QueueBounds
    from sse_gateway.window import Window

CHUNK_BYTES = 32 * 1024
"""Frames that are announced to the socket at a time; a larger frame goes alone."""

KEPT_BYTES = 512
"""A larger frame is not kept for its cursor when its event is dropped, only its beginning."""

NAMED = 64
"""A gap names so many channels; one more is remembered, which means all that the stream follows."""

_HEAD_BYTES = 80  # the cursor of an event or of a gap ends before


class Loss:
    """Events that a stream will not get, told as one gap.

    Attributes:
        position: Position of the newest loss.
        cursor: Text of the cursor there.
        reason: Why.
        missed: Events lost, or None where that is not known.
        windows: Channels that lost events; empty means all of the stream's channels.
    """

    __slots__ = ("cursor", "missed", "position", "reason", "windows")

    def __init__(
        self, position: int, cursor: str, reason: GapReason, missed: int | None, windows: Sequence[Window] = ()
    ) -> None:
        self.position = position
        self.cursor = cursor
        self.reason = reason
        self.missed = missed
        self.windows: dict[Window, None] = dict.fromkeys(windows)

    def merge(self, other: Loss) -> None:
        """Take in a later loss: what nobody can count outweighs what was counted."""
        if self.windows and other.windows:
            self.windows.update(other.windows)
        else:
            self.windows = {}
        if self.missed is None or other.missed is None:
            self.missed = None
        else:
            self.missed += other.missed
        if self.reason is GapReason.OVERFLOW or other.reason in {GapReason.SOURCE, GapReason.EPOCH}:
            self.reason = other.reason
        self.position, self.cursor = other.position, other.cursor


class Dropped:
    """What a queue has dropped and not told yet.

    Attributes:
        newest: The newest of it, for its position and cursor; its frame may be cut.
        count: Events dropped.
        windows: Their channels, at most `NAMED` and one.
        reason: Reason of the newest break among them, or None.
    """

    __slots__ = ("count", "newest", "reason", "windows")

    def __init__(self, newest: Event) -> None:
        self.newest = newest
        self.count = 0
        self.windows: dict[Window, None] = {}
        self.reason: str | None = None

    def loss(self) -> Loss:
        """Make the gap. After a break nobody can count, on any channel."""
        newest = self.newest
        if self.reason is not None:
            return Loss(newest.position, newest.cursor, GapReason(self.reason), None)
        return Loss(newest.position, newest.cursor, GapReason.OVERFLOW, self.count, tuple(self.windows))


class Outbox:
    """The queue of one stream that is not writable.

    Attributes:
        chunk: Bytes that the socket has begun to take.
        events: Events queued (under `latest`, superseded ones may still stand among them).
        count: Events queued.
        bytes: Bytes of their frames.
        dropped: What was dropped and not told yet.
        position: Everything up to here has been taken, told, or superseded.
    """

    __slots__ = ("_newest", "bounds", "bytes", "chunk", "count", "dropped", "events", "position")

    def __init__(self, bounds: QueueBounds, position: int, chunk: bytes = b"") -> None:
        """Start with what the socket has begun to take.

        Args:
            bounds: Events, bytes and policy of the stream.
            position: The stream's position once `chunk` has been sent.
            chunk: The rest of it.
        """
        self.bounds = bounds
        self.chunk = chunk
        self.events: deque[Event] = deque()
        self.count = 0
        self.bytes = 0
        self.position = position
        self.dropped: Dropped | None = None
        self._newest: dict[Window, Event] | None = {} if bounds.policy is Policy.LATEST else None

    def __len__(self) -> int:
        return len(self.chunk) + self.bytes

    @property
    def is_over(self) -> bool:
        """Whether the queue is beyond its bounds, so that the policy has to act."""
        return self.count > self.bounds.max_events or self.bytes > self.bounds.max_bytes

    @property
    def loss(self) -> Loss | None:
        """The gap that tells what was dropped."""
        return None if self.dropped is None else self.dropped.loss()

    @property
    def fill(self) -> float:
        """The queue against its bounds, in events or bytes, whichever is fuller; 1 is at the bound."""
        return max(self.count / self.bounds.max_events, self.bytes / self.bounds.max_bytes)

    def offer(self, events: Sequence[Event]) -> int:
        """Queue a batch, after bringing the queue back within its bounds.

        Returns:
            How many queued events were dropped or superseded.
        """
        queue, count, size, newest = self.events, self.count, self.bytes, self._newest
        max_events, max_bytes = self.bounds.max_events, self.bounds.max_bytes
        lost = 0
        # In one piece, with local variables: a stalled stream comes here for each event, and calls and attributes
        # are what that costs.
        if count > max_events or size > max_bytes:
            dropped = self.dropped
            if dropped is None:
                dropped = self.dropped = Dropped(queue[0])
            windows, event, length = dropped.windows, dropped.newest, 0
            while count > max_events or size > max_bytes:
                event = queue.popleft()
                window = event.window
                if window is None:
                    dropped.reason = event.type
                elif newest is None or newest.get(window) is event:
                    if len(windows) <= NAMED:
                        windows[window] = None
                    lost += 1
                    if newest is not None:
                        del newest[window]
                else:
                    continue  # superseded, and not counted any more
                length = len(event.frame)
                count -= 1
                size -= length
            dropped.count += lost
            dropped.newest = event if length <= KEPT_BYTES else _head_of(event)
        for event in events:
            size += len(event.frame)
        queue.extend(events)
        self.count = count + len(events)
        self.bytes = size
        return lost if newest is None else lost + self._supersede_all(newest, events)

    def take(self) -> tuple[Loss | None, list[Event]]:
        """Take the gap, if any, and at most `CHUNK_BYTES` of frames (or one larger frame)."""
        loss, self.dropped = self.loss, None
        taken: list[Event] = []
        size = 0
        while self.events:
            event = self.events[0]
            if not self._is_queued(event):
                self.events.popleft()
                continue
            size += len(event.frame)
            if taken and size > CHUNK_BYTES:
                break
            taken.append(self._remove_oldest())
        if taken:
            self.position = taken[-1].position
        elif loss is not None:
            self.position = loss.position
        return loss, taken

    def rewind(self) -> None:
        """Forget what is queued and not told: its reader pulls it from the windows."""
        self.events.clear()
        self.count = self.bytes = 0
        self.dropped = None
        if self._newest is not None:
            self._newest.clear()

    def _is_queued(self, event: Event) -> bool:
        return self._newest is None or event.window is None or self._newest.get(event.window) is event

    def _remove_oldest(self) -> Event:
        event = self.events.popleft()
        self.count -= 1
        self.bytes -= len(event.frame)
        if self._newest is not None and event.window is not None:
            del self._newest[event.window]
        return event

    def _supersede_all(self, newest: dict[Window, Event], events: Sequence[Event]) -> int:
        """Let newer events stand for the queued ones of their channels; returns for how many."""
        dropped = 0
        for event in events:
            if event.window is None:
                continue
            older = newest.get(event.window)
            newest[event.window] = event
            if older is not None:
                self.count -= 1
                self.bytes -= len(older.frame)
                dropped += 1
        if len(self.events) > 2 * self.count + 16:
            self.events = deque(event for event in self.events if self._is_queued(event))
        return dropped


def _head_of(event: Event) -> Event:
    return Event(event.position, None, event.frame[:_HEAD_BYTES], 0.0)
