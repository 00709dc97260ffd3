"""The streams that follow exactly the same channels with the same framing, and their passes.

Rules:
    1. What a batch brings is joined once, and the same bytes go to every member.
    2. A pass serves the members that were there when it was made: whoever joins later has pulled
       its events already (I3). Members keep their slots while passes wait.
    3. Passes run in order, a slice at a time; the last one takes in more events as long as it has
       not begun and nobody has joined since.
    4. A member that is not writable is offered the events; it never holds up the others (I4).
"""

from __future__ import annotations

from bisect import bisect_right
from operator import itemgetter
from typing import TYPE_CHECKING, TypeAlias

from sse_gateway.frames import chunk
from sse_gateway.outbox import CHUNK_BYTES, Outbox
from sse_gateway.reasons import CloseReason, GapReason, Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sse_gateway.reader import Follow, Framing, Reader
    from sse_gateway.tally import Tally
    from sse_gateway.window import Event, Window

_BY_END = itemgetter(0)

Write: TypeAlias = "Callable[[int, bytes], int]"
"""Write to a descriptor that does not block: bytes taken; BlockingIOError if none, OSError if gone."""


class Desk:
    """What all audiences share: the counters, and who is behind.

    Attributes:
        tally: The counters.
        lagging: Readers that are not writable.
    """

    __slots__ = ("lagging", "tally")

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self.lagging: dict[Reader, None] = {}

    def count(self, events: Sequence[Event], readers: int, now: float) -> None:
        """Count what some readers have just been handed; the bytes are counted by whoever writes them."""
        tally = self.tally
        for event in events:
            if event.window is None:
                tally.gaps[GapReason(event.type)] += readers
                continue
            tally.deliveries += readers
            tally.latency.add(now - event.received_at, readers)
            if event.ts is not None:
                tally.publish_latency.add(max(0.0, now - event.ts), readers)


class Batch:
    """What one pass writes.

    Attributes:
        blob: Bytes for the socket, HTTP chunks of whole frames.
        cuts: For each chunk, where it ends in the blob and how many events it completes.
    """

    __slots__ = ("blob", "cuts")

    def __init__(self, frames: Sequence[bytes], *, chunked: bool) -> None:
        """Join frames to chunks of at most `CHUNK_BYTES`; a larger frame is a chunk of its own."""
        pieces: list[bytes] = []
        self.cuts: list[tuple[int, int]] = []
        start = end = 0
        while start < len(frames):
            size = len(frames[start])
            end = start + 1
            while end < len(frames) and size + len(frames[end]) <= CHUNK_BYTES:
                size += len(frames[end])
                end += 1
            joined = b"".join(frames[start:end])
            pieces.append(chunk(joined) if chunked else joined)
            self.cuts.append(((self.cuts[-1][0] if self.cuts else 0) + len(pieces[-1]), end))
            start = end
        self.blob = b"".join(pieces)

    def rest_after(self, sent: int) -> tuple[bytes, int]:
        """Where a socket stopped: the rest of the chunk it has begun, and the first event after it."""
        index = bisect_right(self.cuts, sent, key=_BY_END)
        begin, done = self.cuts[index - 1] if index else (0, 0)
        if sent == begin:
            return b"", done
        end, done = self.cuts[index]
        return self.blob[sent:end], done


class Pass:
    """One batch on its way through the members.

    Attributes:
        events: What it brings; empty for a heartbeat.
        count: Events among them that are not gaps.
        size: Bytes of their frames.
        position: Whoever has got all of it has everything up to here.
        end: It serves the slots before this one.
        index: It has served the slots before this one.
        batch: Its bytes, once it has begun.
    """

    __slots__ = ("batch", "count", "end", "events", "index", "position", "size")

    def __init__(self, end: int) -> None:
        self.events: list[Event] = []
        self.count = 0
        self.size = 0
        self.position = -1
        self.end = end
        self.index = 0
        self.batch: Batch | None = None

    def extend(self, events: Sequence[Event]) -> int:
        """Add newer events; returns the bytes of their frames."""
        size = sum(len(event.frame) for event in events)
        self.events.extend(events)
        self.count += sum(event.window is not None for event in events)
        self.size += size
        self.position = events[-1].position
        return size


class Audience:
    """The members and what is under way to them.

    Attributes:
        follow: What all members follow.
        framing: How their blocks are written.
        windows: Windows of the channels followed by name.
        pending: Events of the current read batch, not yet in a pass.
        passes: Passes under way, oldest first.
        sent_at: When the members last got anything, seconds.
        size: Members.
        waiting: Readers that are still catching up and will join.
        events: Events passed to every member so far.
        bytes: Bytes of frames, likewise.
    """

    __slots__ = (
        "_members",
        "_position",
        "bytes",
        "events",
        "follow",
        "framing",
        "passes",
        "pending",
        "sent_at",
        "size",
        "waiting",
        "windows",
    )

    def __init__(self, follow: Follow, framing: Framing, windows: Sequence[Window], now: float) -> None:
        self.follow = follow
        self.framing = framing
        self.windows = tuple(windows)
        self.pending: list[Event] = []
        self.passes: list[Pass] = []
        self.sent_at = now
        self.size = 0
        self.waiting: dict[Reader, None] = {}
        self.events = 0
        self.bytes = 0
        self._members: list[Reader | None] = []
        self._position = -1

    def join(self, reader: Reader) -> None:
        """Make a reader a member; it gets every pass made from now on.

        A member's counters run as differences to the audience's, so that a delivery costs nothing
        per member.
        """
        if not self.passes and len(self._members) > 2 * self.size + 8:
            self._compact()
        reader.slot = len(self._members)
        self._members.append(reader)
        self.size += 1
        reader.events -= self.events + sum(current.count for current in self.passes)
        reader.bytes -= self.bytes + sum(current.size for current in self.passes)

    def leave(self, reader: Reader) -> None:
        """Take a member out and settle its counters."""
        self._members[reader.slot] = None
        self.size -= 1
        reader.events += self.events
        reader.bytes += self.bytes
        for current in self.passes:
            if reader.slot < current.index or reader.slot >= current.end:
                reader.events += current.count
                reader.bytes += current.size

    def drop_passes(self) -> int:
        """Forget what is under way; every member has left. Returns the bytes that waited."""
        size = sum(current.size for current in self.passes)
        self.passes.clear()
        return size

    def members(self) -> list[Reader]:
        """All members."""
        return [member for member in self._members if member is not None]

    def position_of(self, reader: Reader, head: int) -> int:
        """Up to where a member has everything; `head` is the log's."""
        if reader.outbox is not None:
            return reader.outbox.position
        if not self.passes:
            return self.pending[0].position - 1 if self.pending else head
        current = self.passes[0]
        if reader.slot < current.index:
            return current.position
        return max(self._position, reader.position)

    def put(self, events: Sequence[Event]) -> int:
        """Send a batch to all members, in a pass of its own or with the last one waiting.

        Returns:
            Bytes that now wait in addition.
        """
        last = self.passes[-1] if self.passes else None
        if last is None or last.batch is not None or last.end != len(self._members):
            last = Pass(len(self._members))
            self.passes.append(last)
        return last.extend(events)

    def put_heartbeat(self, frame: bytes, position: int) -> int:
        """Send a block that is not queued for members that are not writable.

        Args:
            frame: The block.
            position: The one its `id:` stands for; nothing waits before it.

        Returns:
            Bytes that now wait in addition.
        """
        current = Pass(len(self._members))
        current.size = len(frame)
        current.position = position
        current.batch = Batch([frame], chunked=self.framing.chunked)
        self.passes.append(current)
        return current.size

    def deliver(self, write: Write, limit: int, desk: Desk, now: float) -> tuple[Pass, int]:
        """Serve the next `limit` slots of the oldest pass. Nothing here awaits, locks or logs.

        Returns:
            The pass, and how many members got all of it at once.
        """
        current = self.passes[0]
        batch = current.batch
        if batch is None:
            batch = current.batch = Batch([event.frame for event in current.events], chunked=self.framing.chunked)
        blob = batch.blob
        size = len(blob)
        served = 0
        stop = min(current.end, current.index + limit)
        for index in range(current.index, stop):
            reader = self._members[index]
            if reader is None:
                continue
            if reader.outbox is not None:
                current.index = index
                self._offer(reader, reader.outbox, current, desk)
                continue
            try:
                sent = write(reader.sink.fd, blob)
            except BlockingIOError:
                sent = 0
            except OSError:
                current.index = index
                reader.sink.abort(CloseReason.CLIENT)
                continue
            if sent == size:
                served += 1
            else:
                reader.progress_at = now
                self._fall_behind(reader, current, batch.rest_after(sent), desk, now)
        current.index = stop
        if stop == current.end and self.passes:  # none if the last member has just left
            self._finish(desk)
        return current, served

    def _finish(self, desk: Desk) -> None:
        done = self.passes.pop(0)
        self.events += done.count
        self.bytes += done.size
        self._position = done.position
        desk.tally.pass_bytes -= done.size

    def _fall_behind(self, reader: Reader, current: Pass, rest: tuple[bytes, int], desk: Desk, now: float) -> None:
        """Queue what the socket of a member did not take."""
        chunk_rest, first = rest
        desk.count(current.events[:first], 1, now)
        if first == 0:
            position = max(self._position, reader.position)
        elif first < len(current.events):
            position = current.events[first - 1].position
        else:
            position = current.position
        reader.outbox = outbox = Outbox(self.follow.bounds, position, chunk_rest)
        before = reader.bytes
        if current.events:
            queued = current.events[first:]
            self._settle(reader, queued, outbox.offer(queued), desk)
        elif first == 0:  # a heartbeat is not queued
            reader.bytes -= current.size
        desk.tally.bytes += current.size + reader.bytes - before
        desk.tally.queue_bytes += len(outbox)
        desk.lagging[reader] = None
        reader.sink.wait_writable()

    def _offer(self, reader: Reader, outbox: Outbox, current: Pass, desk: Desk) -> None:
        """Queue a batch for a member that is behind, or let its policy act."""
        if not current.events:  # a heartbeat
            reader.bytes -= current.size
            return
        if outbox.is_over and outbox.bounds.policy is Policy.DISCONNECT:
            desk.tally.dropped[Policy.DISCONNECT] += outbox.count
            reader.dropped += outbox.count
            reader.sink.abort(CloseReason.SLOW)
            return
        before = outbox.bytes
        dropped = outbox.offer(current.events)
        desk.tally.queue_bytes += outbox.bytes - before
        self._settle(reader, current.events, dropped, desk)

    def _settle(self, reader: Reader, queued: Sequence[Event], dropped: int, desk: Desk) -> None:
        """Take back what the audience counts as handed over, and count the drops."""
        reader.events -= sum(event.window is not None for event in queued)
        reader.bytes -= sum(len(event.frame) for event in queued)
        reader.dropped += dropped
        desk.tally.dropped[self.follow.bounds.policy] += dropped

    def _compact(self) -> None:
        members: list[Reader | None] = []
        for reader in self.members():
            reader.slot = len(members)
            members.append(reader)
        self._members = members
