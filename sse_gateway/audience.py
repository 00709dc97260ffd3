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

from typing import TYPE_CHECKING, TypeAlias

from msgspec import Struct

from sse_gateway.lagging import Lagging
from sse_gateway.outbox import Outbox
from sse_gateway.reasons import CloseReason, GapReason, Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sse_gateway.batch import Batch, Joiner
    from sse_gateway.reader import Follow, Framing, Reader
    from sse_gateway.tally import Tally
    from sse_gateway.window import Event, Window

MERGE_BYTES = 256 * 1024
"""Passes that wait are merged while they bring less than this: a member that is behind holds up to one batch beyond
its bounds, and to merge is to copy."""

_DISCONNECT = Policy.DISCONNECT  # to look a member of an enumeration up costs 600 instructions

Write: TypeAlias = "Callable[[int, bytes], int]"
"""Write to a descriptor that does not block: bytes taken; BlockingIOError if none, OSError if gone."""


class Desk:
    """What all audiences share: the counters, and who is behind.

    Attributes:
        tally: The counters.
        lagging: Readers that are not writable.
        served: Batches that were handed to readers and are not counted yet.
    """

    __slots__ = ("lagging", "served", "tally")

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self.lagging = Lagging()
        self.served: list[Batch] = []

    def observe(self, now: float) -> None:
        """Count what was handed over since the last call."""
        for batch in self.served:
            if batch.served:
                self.tally.bytes += batch.size * batch.served
                self.count(batch.events, batch.served, now)
                batch.served = 0
        self.served.clear()

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


class Pass(Struct, gc=False):
    """One batch on its way through the members.

    A `Struct` because it is made for each audience of an event: that takes a quarter of what Python's own takes.

    Attributes:
        batch: What it brings.
        end: It serves the slots before this one.
        index: It has served the slots before this one.
    """

    batch: Batch
    end: int
    index: int = 0


class Audience:
    """The members and what is under way to them.

    Attributes:
        follow: What all members follow.
        framing: How their blocks are written.
        windows: Windows of the channels followed by name.
        passes: Passes under way, oldest first.
        sent_at: When the members last got anything, seconds.
        watched_at: The second under which it is watched for its silence.
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
        "sent_at",
        "size",
        "waiting",
        "watched_at",
        "windows",
    )

    def __init__(self, follow: Follow, framing: Framing, windows: Sequence[Window], now: float) -> None:
        self.follow = follow
        self.framing = framing
        self.windows = tuple(windows)
        self.passes: list[Pass] = []
        self.sent_at = now
        self.watched_at = 0
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
        reader.events -= self.events
        reader.bytes -= self.bytes
        for current in self.passes:
            reader.events -= current.batch.count
            reader.bytes -= current.batch.size

    def leave(self, reader: Reader) -> None:
        """Take a member out and settle its counters."""
        self._members[reader.slot] = None
        self.size -= 1
        reader.events += self.events
        reader.bytes += self.bytes
        for current in self.passes:
            if reader.slot < current.index or reader.slot >= current.end:
                reader.events += current.batch.count
                reader.bytes += current.batch.size

    def drop_passes(self) -> int:
        """Forget what is under way; every member has left. Returns the bytes that waited."""
        size = sum(current.batch.release() for current in self.passes)
        self.passes.clear()
        return size

    def members(self) -> list[Reader]:
        """All members."""
        return [member for member in self._members if member is not None]

    def position_of(self, reader: Reader, head: int) -> int:
        """Up to where a member has everything; without passes that is `head`."""
        if reader.outbox is not None:
            return reader.outbox.position
        if not self.passes:
            return head
        current = self.passes[0]
        if reader.slot < current.index:
            return current.batch.position
        return max(self._position, reader.position)

    def put(self, batch: Batch, joiner: Joiner) -> int:
        """Send a batch to all members, in a pass of its own or with the last one waiting.

        Returns:
            Bytes that now wait in addition.
        """
        passes = self.passes
        less = 0
        if passes and self._takes_more(passes[-1]):
            less = passes[-1].batch.release()
            passes[-1].batch = batch = joiner.join((passes[-1].batch, batch))
        else:
            passes.append(Pass(batch, len(self._members)))
        batch.passes += 1
        return batch.size - less if batch.passes == 1 else -less

    def _takes_more(self, last: Pass) -> bool:
        batch = last.batch
        return bool(last.index == 0 and last.end == len(self._members) and batch.events and batch.size < MERGE_BYTES)

    def put_heartbeat(self, heartbeat: Batch) -> int:
        """Send a heartbeat, as nothing else waits; returns the bytes that now wait in addition."""
        self.passes.append(Pass(heartbeat, len(self._members)))
        heartbeat.passes += 1
        return heartbeat.size if heartbeat.passes == 1 else 0

    def deliver(self, write: Write, limit: int, desk: Desk, now: float) -> int:
        """Serve the next `limit` slots of the oldest pass. Nothing here awaits, locks or logs.

        Returns:
            How many slots those were.
        """
        current = self.passes[0]
        batch = current.batch
        data = batch.blob(self.framing.chunked).data
        size = len(data)
        served = 0
        start, stop = current.index, current.end
        members = self._members
        if stop - start > limit or len(members) > stop - start:
            stop = min(stop, start + limit)
            members = members[start:stop]
        for reader in members:
            if reader is None:
                continue
            if reader.outbox is not None:
                current.index = reader.slot
                self._offer(reader, reader.outbox, batch, desk)
                continue
            try:
                sent = write(reader.sink.fd, data)
            except BlockingIOError:
                sent = 0
            except OSError:
                current.index = reader.slot
                reader.sink.abort(CloseReason.CLIENT)
                continue
            if sent == size:
                served += 1
            else:
                reader.progress_at = now
                self._fall_behind(reader, batch, sent, desk, now)
        current.index = stop
        if not batch.served:
            desk.served.append(batch)
        batch.served += served
        if stop == current.end and self.passes:  # none if the last member has just left
            self._finish(batch, desk)
        return stop - start

    def _finish(self, batch: Batch, desk: Desk) -> None:
        del self.passes[0]
        self.events += batch.count
        self.bytes += batch.size
        self._position = batch.position
        batch.passes -= 1
        if not batch.passes:
            desk.tally.pass_bytes -= batch.size

    def _fall_behind(self, reader: Reader, batch: Batch, sent: int, desk: Desk, now: float) -> None:
        """Queue what the socket of a member did not take."""
        chunk_rest, first = batch.blob(self.framing.chunked).rest_after(sent)
        desk.count(batch.events[:first], 1, now)
        if first == 0:
            position = max(self._position, reader.position)
        elif first < len(batch.events):
            position = batch.events[first - 1].position
        else:
            position = batch.position
        reader.outbox = outbox = Outbox(self.follow.bounds, position, chunk_rest)
        before = reader.bytes
        if batch.events:
            queued = batch.events[first:]
            # The audience counts them as handed over.
            reader.events -= sum(event.window is not None for event in queued)
            reader.bytes -= sum(len(event.frame) for event in queued)
            self._count_drops(reader, outbox.offer(queued), desk)
        elif first == 0:  # a heartbeat is not queued
            reader.bytes -= batch.size
        desk.tally.bytes += batch.size + reader.bytes - before
        desk.tally.queue_bytes += len(outbox)
        desk.lagging.put(reader)
        reader.sink.wait_writable()

    def _offer(self, reader: Reader, outbox: Outbox, batch: Batch, desk: Desk) -> None:
        """Queue a batch for a member that is behind, or let its policy act."""
        if not batch.events:  # a heartbeat
            reader.bytes -= batch.size
            return
        policy = outbox.bounds.policy
        if policy is _DISCONNECT and outbox.is_over:
            desk.tally.dropped[Policy.DISCONNECT] += outbox.count
            reader.dropped += outbox.count
            reader.sink.abort(CloseReason.SLOW)
            return
        before = outbox.bytes
        dropped = outbox.offer(batch.events)
        grown = outbox.bytes - before
        reader.events -= batch.count
        reader.bytes -= batch.size
        if grown:
            desk.tally.queue_bytes += grown
            if grown > 0:
                desk.lagging.put(reader)
        if dropped:
            reader.dropped += dropped
            desk.tally.dropped[policy] += dropped

    def _count_drops(self, reader: Reader, dropped: int, desk: Desk) -> None:
        reader.dropped += dropped
        desk.tally.dropped[self.follow.bounds.policy] += dropped

    def _compact(self) -> None:
        members: list[Reader | None] = []
        for reader in self.members():
            reader.slot = len(members)
            members.append(reader)
        self._members = members
