"""What waits for one stream whose socket takes no more.

Rules:
    1. Bounded in events and in bytes of frames; judged when the *next* batch arrives, so a single
       batch is never refused to a stream that was within its bounds.
    2. The oldest queued events go first. One gap stands where they were, before everything that
       is still queued (I2); it grows until it is taken, so a drain tells at most one.
    3. Under `latest` a newer event replaces the queued one of its channel, without a gap.
    4. `chunk` is what the socket has begun to take. It is outside the queue: its length has been
       announced, so it must be sent to its end.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from sse_gateway.reasons import GapReason, Policy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sse_gateway.channels import QueueBounds
    from sse_gateway.window import Event, Window

CHUNK_BYTES = 32 * 1024
"""Frames that are announced to the socket at a time; a larger frame goes alone."""


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


class Outbox:
    """The queue of one stream that is not writable.

    Attributes:
        chunk: Bytes that the socket has begun to take.
        events: Events queued (under `latest`, superseded ones may still stand among them).
        count: Events queued.
        bytes: Bytes of their frames.
        loss: What was dropped and not told yet.
        position: Everything up to here has been taken, told, or superseded.
    """

    __slots__ = ("_newest", "bounds", "bytes", "chunk", "count", "events", "loss", "position")

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
        self.loss: Loss | None = None
        self.position = position
        self._newest: dict[Window, Event] | None = {} if bounds.policy is Policy.LATEST else None

    def __len__(self) -> int:
        return len(self.chunk) + self.bytes

    @property
    def is_over(self) -> bool:
        """Whether the queue is beyond its bounds, so that the policy has to act."""
        return self.count > self.bounds.max_events or self.bytes > self.bounds.max_bytes

    @property
    def fill(self) -> float:
        """The queue against its bounds, in events or bytes, whichever is fuller; 1 is at the bound."""
        return max(self.count / self.bounds.max_events, self.bytes / self.bounds.max_bytes)

    def offer(self, events: Sequence[Event]) -> int:
        """Queue a batch, after bringing the queue back within its bounds.

        Returns:
            How many queued events were dropped or superseded.
        """
        dropped = 0
        while self.is_over:
            dropped += self._drop_oldest()
        self.events.extend(events)
        self.count += len(events)
        for event in events:
            self.bytes += len(event.frame)
        if self._newest is not None:
            dropped += self._supersede_all(self._newest, events)
        return dropped

    def take(self) -> tuple[Loss | None, list[Event]]:
        """Take the gap, if any, and at most `CHUNK_BYTES` of frames (or one larger frame)."""
        loss, self.loss = self.loss, None
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
        self.loss = None
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

    def _drop_oldest(self) -> int:
        while not self._is_queued(self.events[0]):
            self.events.popleft()
        event = self._remove_oldest()
        if event.window is None:
            loss = Loss(event.position, event.cursor, GapReason(event.type), None)
        else:
            loss = Loss(event.position, event.cursor, GapReason.OVERFLOW, 1, [event.window])
        if self.loss is None:
            self.loss = loss
        else:
            self.loss.merge(loss)
        return int(event.window is not None)

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
