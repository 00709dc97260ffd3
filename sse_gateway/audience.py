"""The streams that follow exactly the same channels with the same framing, and their passes.

Rules:
    1. The same bytes go to every member.
    2. A pass serves the members that were there when it was made: whoever joins later has pulled
       its events already (I3). Members keep their slots while passes wait.
    3. Passes run in order, a slice at a time.
    4. A member that is not writable is offered the events; it never holds up the others (I4).
"""

from __future__ import annotations

from contextlib import suppress
from itertools import repeat
from typing import TYPE_CHECKING, Final, TypeAlias

from msgspec import Struct

from sse_gateway.lagging import Lagging
from sse_gateway.outbox import Outbox
from sse_gateway.reasons import CloseReason, GapReason, Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sse_gateway.batch import Batch
    from sse_gateway.reader import Follow, Framing, Handle, Reader
    from sse_gateway.tally import Tally
    from sse_gateway.window import Event, Window

RUN = 8
"""From so many slots on it is worth to write to them in a run."""

NOBODY: Final[dict[Reader, None]] = {}
"""Who waits for very many audiences: it stays empty."""

_DISCONNECT = Policy.DISCONNECT  # to look a member of an enumeration up costs 600 instructions

Write: TypeAlias = "Callable[[Handle, bytes], int]"
"""Write to a sink's handle, without waiting: bytes taken; BlockingIOError if none, OSError if gone."""


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

    The handles stand in a list of their own: a write then touches nothing of its member, whose memory is cold
    where members are many.

    Attributes:
        follow: What all members follow.
        framing: How their blocks are written.
        windows: Windows of the channels followed by name.
        passes: Passes under way, oldest first.
        position: Up to where every member has got all of the passes that have ended.
        sent_at: When the first of them last got what goes to all, seconds.
        watched_at: The second under which it is watched for its silence.
        size: Members.
        waiting: Readers that are still catching up and will join.
        events: Events passed to every member so far.
        bytes: Bytes of frames, likewise.
        handles: For each slot what is written to, or None if its member is not writable or has left.
        lone: The handle where there is one slot: audiences that are very many mostly are such, and a list for each
            is cold.
    """

    __slots__ = (
        "_members",
        "bytes",
        "events",
        "follow",
        "framing",
        "handles",
        "lone",
        "passes",
        "position",
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
        self.passes: tuple[Pass, ...] = ()
        self.sent_at = now
        self.watched_at = 0
        self.size = 0
        self.waiting = NOBODY
        self.events = 0
        self.bytes = 0
        self._members: list[Reader | None] = []
        self.handles: list[Handle | None] = []
        self.lone: Handle | None = None
        self.position = -1

    def wait(self, reader: Reader) -> None:
        """Note a reader that catches up."""
        if not self.waiting:
            self.waiting = {}  # the old one has grown to the most that ever waited
        self.waiting[reader] = None

    def stop_waiting(self, reader: Reader) -> None:
        """Note that a reader has caught up, or has ended."""
        del self.waiting[reader]
        if not self.waiting:
            self.waiting = NOBODY

    def join(self, reader: Reader) -> None:
        """Make a reader a member; it gets every pass made from now on.

        A member's counters run as differences to the audience's, so that a delivery costs nothing
        per member.
        """
        self._compact()
        reader.slot = len(self._members)
        self._members.append(reader)
        self.handles.append(None)
        self._set_handle(reader.slot, _handle_of(reader))
        self.size += 1
        reader.events -= self.events
        reader.bytes -= self.bytes
        for current in self.passes:
            reader.events -= current.batch.count
            reader.bytes -= current.batch.size

    def leave(self, reader: Reader) -> None:
        """Take a member out and settle its counters."""
        self._members[reader.slot] = None
        self._set_handle(reader.slot, None)
        self.size -= 1
        reader.events += self.events
        reader.bytes += self.bytes
        for current in self.passes:
            if reader.slot < current.index or reader.slot >= current.end:
                reader.events += current.batch.count
                reader.bytes += current.batch.size

    def writability_changed(self, reader: Reader) -> None:
        """Note that a member has an outbox, or has none any more."""
        self._set_handle(reader.slot, _handle_of(reader))

    def drop_passes(self) -> int:
        """Forget what is under way; every member has left. Returns the bytes that waited."""
        size = sum(current.batch.release() for current in self.passes)
        self.passes = ()
        return size

    def members(self) -> list[Reader]:
        """All members."""
        return [member for member in self._members if member is not None]

    def position_of(self, reader: Reader, head: int, *, is_due: bool = False) -> int:
        """Up to where a member has everything; where nothing is due and no pass under way, that is `head`."""
        if reader.outbox is not None:
            return reader.outbox.position
        if not self.passes and not is_due:
            return head
        if self.passes and reader.slot < self.passes[0].index:
            return self.passes[0].batch.position
        return max(self.position, reader.position)

    def put(self, batch: Batch) -> int:
        """Have a batch sent to all members, in a pass after those under way; returns the bytes that now wait in addition."""
        self._compact()
        self.passes = (*self.passes, Pass(batch, len(self._members)))
        return batch.hold()

    def deliver(self, write: Write, limit: int, desk: Desk, now: float) -> int:
        """Serve the next `limit` slots of the oldest pass.

        Returns:
            How many slots those were.
        """
        current = self.passes[0]
        start, stop = current.index, min(current.end, current.index + limit)
        if not start:
            self.sent_at = now
        self._write(current.batch, start, stop, write, desk, now)
        current.index = stop
        if stop == current.end and self.passes:  # none if the last member has just left
            self.passes = self.passes[1:]
            self._has_got(current.batch)
            desk.tally.pass_bytes -= current.batch.release()
        return stop - start

    def serve(self, batch: Batch, write: Write, desk: Desk, now: float) -> int:
        """Serve all slots at once, while no pass is under way.

        Returns:
            How many slots those were.
        """
        slots = len(self.handles)
        self._write(batch, 0, slots, write, desk, now)
        self._has_got(batch)
        self.sent_at = now
        return slots

    def finish_lone(self, batch: Batch, sent: int, write: Write, desk: Desk, now: float) -> None:
        """See to the lone member if it did not take all of a batch: bytes taken, or -1 if it refused, for whatever reason."""
        if sent < 0:  # it refuses again, or takes some after all
            self._write(batch, 0, 1, write, desk, now)
        else:
            self._fall_behind(0, batch, sent, desk, now)

    def _has_got(self, batch: Batch) -> None:
        """Count a batch that all members have been served."""
        self.position = batch.position
        self.events += batch.count
        self.bytes += batch.size

    def _write(self, batch: Batch, start: int, stop: int, write: Write, desk: Desk, now: float) -> None:
        """Write a batch to some members. Nothing here awaits, locks or logs."""
        data = batch.blob(self.framing.chunked).data
        size = len(data)
        if not batch.served:
            desk.served.append(batch)
        if stop - start >= RUN:
            start = self._write_run(batch, data, start, stop, write, desk, now)
        handles = self.handles
        for slot in range(start, stop):
            handle = handles[slot]
            if handle is None:
                self._offer(slot, batch, desk)
                continue
            try:
                sent = write(handle, data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._abort(slot, CloseReason.of(error))
                continue
            if sent == size:
                batch.served += 1
            else:
                self._fall_behind(slot, batch, sent, desk, now)

    def _write_run(self, batch: Batch, data: bytes, start: int, stop: int, write: Write, desk: Desk, now: float) -> int:
        """Write a batch to members as long as nobody refuses, without an instruction of ours between two writes.

        Returns:
            The slot to go on from.
        """
        run = self.handles[start:stop]
        if not all(run):
            return start
        taken: list[int] = []
        with suppress(OSError):  # whoever goes on meets it again
            taken.extend(map(write, run, repeat(data)))  # keeps what it has got before an error
        size = len(data)
        whole = taken.count(size)
        batch.served += whole
        if whole < len(taken):
            for slot, sent in enumerate(taken, start):
                if sent != size:
                    self._fall_behind(slot, batch, sent, desk, now)
        return start + len(taken)

    def _fall_behind(self, slot: int, batch: Batch, sent: int, desk: Desk, now: float) -> None:
        """Queue what the socket of a member did not take."""
        reader = self._members[slot]
        assert reader is not None  # noqa: S101 - it has a handle
        reader.progress_at = now
        self._set_handle(slot, None)
        chunk_rest, first = batch.blob(self.framing.chunked).rest_after(sent)
        desk.count(batch.events[:first], 1, now)
        if first == 0:
            position = max(self.position, reader.position)
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

    def _abort(self, slot: int, reason: CloseReason) -> None:
        """End a member that the pass under way has come to."""
        reader = self._members[slot]
        assert reader is not None  # noqa: S101 - only members are aborted
        reader.sink.abort(reason)

    def _offer(self, slot: int, batch: Batch, desk: Desk) -> None:
        """Queue a batch for a member that is behind, or let its policy act."""
        reader = self._members[slot]
        if reader is None:
            return
        outbox = reader.outbox
        assert outbox is not None  # noqa: S101 - it is behind
        if not batch.events:  # a heartbeat
            reader.bytes -= batch.size
            return
        policy = outbox.bounds.policy
        if policy is _DISCONNECT and outbox.is_over:
            desk.tally.dropped[Policy.DISCONNECT] += outbox.count
            reader.dropped += outbox.count
            self._abort(slot, CloseReason.SLOW)
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
        """Close up when most have left, so that nobody pays for them; not under a pass."""
        if self.passes or len(self._members) <= 2 * self.size + 8:
            return
        members = self.members()
        for slot, reader in enumerate(members):
            reader.slot = slot
        self._members = [*members]
        self.handles = list(map(_handle_of, members))
        self.lone = self.handles[0] if len(members) == 1 else None

    def _set_handle(self, slot: int, handle: Handle | None) -> None:
        self.handles[slot] = handle
        self.lone = handle if len(self.handles) == 1 else None


def _handle_of(reader: Reader) -> Handle | None:
    return reader.sink.handle if reader.outbox is None else None
