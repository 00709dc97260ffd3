"""One client of a random schedule: a socket that takes what it is told to, and the oracle behind it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sse_gateway.delivery import SETTLED_BYTES
from sse_gateway.lagging import LOOK, RANK_BYTES
from sse_gateway.reader import Phase
from sse_gateway.reasons import CloseReason, Policy
from tests.support.unframer import Unframer, count
from tests.support.world import ensure

if TYPE_CHECKING:
    from sse_gateway.channels import QueueBounds
    from sse_gateway.reader import Reader
    from tests.support.oracle import StreamCheck
    from tests.support.schedules import Run

MAX_CHUNK = 32 * 1024
"""Frames announced to a socket at a time."""


class Client:
    """One stream with its socket, which takes bytes as the schedule has it; the hub's `Sink`.

    Attributes:
        bounds: Of its queue.
        room: Bytes its socket still takes; None is any number.
        is_cut_off: The connection is gone.
        waits: The hub waits for it.
        refused_at: When it last took a byte, or began to refuse.
        reason: Why its stream ended, None while it is open.
    """

    def __init__(self, fd: int, check: StreamCheck, head: bytes, bounds: QueueBounds, run: Run) -> None:
        self.handle = fd
        self.bounds = bounds
        self.check = check
        self.room: int | None = None
        self.is_cut_off = False
        self.waits = False
        self.reason: CloseReason | None = None
        self.reader: Reader
        self.refused_at = run.now
        self._head = head
        self._run = run
        self._all = b""
        self._fed = 0
        self._is_slow = False
        self._begun_in = -1

    def write(self, data: bytes) -> int:
        """Take bytes as a descriptor that does not block."""
        ensure(data, "a write of nothing")
        if self.is_cut_off:
            raise ConnectionResetError
        taken = len(data) if self.room is None else min(self.room, len(data))
        if taken or self.reader not in self._run.hub.lagging:
            self.refused_at = self._run.now
        self._is_slow |= taken < len(data)
        if taken == 0:
            raise BlockingIOError
        if self.room is not None:
            self.room -= taken
        self._all += data[:taken]
        return taken

    def wait_writable(self) -> None:
        """See `Sink`."""
        self.waits = True

    def replayed(self, size: int) -> None:
        """See `Sink`."""

    def abort(self, reason: CloseReason) -> None:
        """See `Sink`."""
        if self.reason is None:
            self._judge_abort(reason)
            pending = self.reader.outbox.chunk if self.reader.outbox is not None else b""
            self._end(reason)
            self._run.hub.leave(self.reader, reason)
            self.judge_counters(pending)

    def end(self, reason: CloseReason) -> None:
        """End with a last block; what the socket still takes of it, it gets."""
        self._end(reason)
        rest = self._run.hub.farewell(self.reader, reason)
        self.judge_counters(rest)
        self._all += rest if self.room is None else rest[: self.room]

    def writable(self) -> None:
        """The loop found that the socket takes bytes again."""
        if not self.waits or self.has_ended() or (self.room == 0 and not self.is_cut_off):
            return
        more = self._run.hub.advance(self.reader, self._run.now)
        if not self.has_ended() and self.reader.outbox is None:
            self.waits = False
            if more:
                self._run.hub.schedule(self.reader)

    def has_ended(self) -> bool:
        """Whether the stream is over."""
        return self.reason is not None

    def settle(self, step: int) -> None:
        """Judge what came in during a step."""
        if not self.check.is_begun and self.reader.phase is not Phase.HELD:
            outcome = self._run.outcome(self.check.asked.cursor)
            self.check.asked = replace(self.check.asked, outcomes=frozenset({outcome.replace("ahead", "cursor")}))
            self.check.begin()
            self._begun_in = step
        data, self._fed = self._all[self._fed :], len(self._all)
        if data:
            self.check.feed(data, at_once=step == self._begun_in)
            # A replay may wait for its turn, though its socket does not.
            is_quick = not self._is_slow and len(self._all) < MAX_CHUNK
            ensure(not (is_quick and self.check.gaps["overflow"]), "overflow, though it took everything at once")

    def judge_counters(self, pending: bytes) -> None:
        """The reader's numbers are those of the blocks handed over, the one begun included."""
        blocks = Unframer(self._head, chunked=self.check.asked.chunked).feed(self._all + pending)
        events, size, gaps = count(blocks)
        self._run.handed.update(gaps)
        reader = self.reader
        if not self.is_cut_off:  # else a chunk may have been fetched that it never took
            ensure((events, size) == (reader.events, reader.bytes), "counters", reader.events, events,
                   reader.bytes, size)  # fmt: skip
        self._run.is_cut_off |= self.is_cut_off
        self._run.total_events += reader.events
        self._run.total_bytes += reader.bytes
        self._run.total_dropped += self.reader.dropped

    def _judge_abort(self, reason: CloseReason) -> None:
        policy, run = self.check.asked.policy, self._run
        if reason is CloseReason.SLOW:
            ensure(policy is Policy.DISCONNECT, "cut off for being slow under", policy)
        elif reason is CloseReason.TIMEOUT:
            ensure(run.now - self.refused_at > run.hub.limits.write_timeout_s, "timed out too early")
        elif reason is CloseReason.MEMORY:
            ensure(run.hub.tally.queue_bytes > run.hub.limits.queue_bytes, "memory was left")
            fullest = max(map(waiting, run.hub.lagging))
            slack = RANK_BYTES if len(run.hub.lagging) > LOOK else 1
            ensure(waiting(self.reader) > fullest - slack, "not the fullest")
        else:
            ensure(reason is CloseReason.CLIENT, "aborted:", reason)

    def _end(self, reason: CloseReason) -> None:
        ensure(self.reason is None, "ended twice (I8)")
        self.reason = reason
        self._run.fds.remove(self.handle)
        self._run.closed[reason] += 1


def waiting(reader: Reader) -> int:
    """Bytes that wait for a stream: its queue, and what it remembers of channels while it catches up."""
    settled = 0 if reader.catchup is None else SETTLED_BYTES * len(reader.catchup.settled)
    return settled + (0 if reader.outbox is None else len(reader.outbox))
