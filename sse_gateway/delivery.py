"""What one reader's own socket gets: its replay, and what has waited for it.

Rules:
    1. Everything a socket has begun to take is sent to its end: its length has been announced.
    2. The next chunk is fetched when the socket has taken the one before: from the windows while
       the reader catches up, from its outbox afterwards. Nothing is pushed (I4, I5).
    3. The pull that reaches the log's head joins the audience in the same call (I3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sse_gateway.frames import chunk, gap_frame
from sse_gateway.opening import open_stream
from sse_gateway.outbox import Outbox
from sse_gateway.reader import Phase, Reader, names_of
from sse_gateway.reasons import CloseReason
from sse_gateway.replay import pull

if TYPE_CHECKING:
    from sse_gateway.audience import Desk, Write
    from sse_gateway.history import History
    from sse_gateway.log import Log
    from sse_gateway.reader import Catchup
    from sse_gateway.turns import Turns

SETTLED_BYTES = 90
"""What it costs to remember of one channel how far a reader has got with it."""

CHUNKS = 4
"""Chunks that one reader may write before others have their turn."""


class Delivery:
    """Writes to readers one by one; what goes to whole audiences is in `Audience`."""

    def __init__(self, log: Log, history: History, desk: Desk, turns: Turns, write: Write) -> None:
        """Share the core's parts.

        Args:
            log: The sequence.
            history: The windows.
            desk: Counters, and who is behind.
            turns: Who is due what.
            write: Writes to what a sink is written to, without waiting.
        """
        self._log = log
        self._history = history
        self._desk = desk
        self._tally = desk.tally
        self._lagging = desk.lagging
        self._turns = turns
        self._write = write

    def advance(self, reader: Reader, now: float) -> bool:
        """Write what a reader's socket takes, some chunks at most.

        Returns:
            Whether there is more to do at once; False if the reader is live, waits for its socket,
            is held, or has ended.
        """
        for _ in range(CHUNKS):
            outbox = reader.outbox
            data = (outbox.chunk if outbox is not None else b"") or self._next(reader, now)
            if not data:
                if reader.phase is Phase.REPLAY:
                    return True
                self._become_writable(reader)
                return False
            try:
                sent = self._write(reader.sink.handle, data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                reader.sink.abort(CloseReason.of(error))
                return False
            if sent or reader not in self._lagging:
                reader.progress_at = now
            self._keep(reader, data[sent:])
            if sent < len(data):
                return False
        return True

    def _next(self, reader: Reader, now: float) -> bytes:
        """The next chunk for a reader's socket; empty if there is none now."""
        if reader.phase is Phase.LIVE:
            frames = self._take(reader, now)
        elif reader.phase is Phase.REPLAY:
            frames = self._pull(reader)
        else:
            frames = []
        data = b"".join(frames)
        reader.bytes += len(data)
        self._tally.bytes += len(data)
        return chunk(data) if data and reader.framing.chunked else data

    def _pull(self, reader: Reader) -> list[bytes]:
        catchup, audience = reader.catchup, reader.audience
        assert catchup is not None  # noqa: S101 - set in REPLAY
        assert audience is not None  # noqa: S101 - set in REPLAY
        opening = b""
        if not catchup.is_open:
            opening = open_stream(reader, catchup, audience, self._log, self._history)
            if not opening:
                self._charge(catchup)
                return []
            self._tally.replays[reader.replay] += 1
        elif catchup.gap is not None:
            here = self._log.cursor(reader.position)
            opening = gap_frame(here, catchup.gap, reader.follow.asked, None)
        if catchup.gap is not None:
            self._tally.gaps[catchup.gap] += 1
            catchup.gap = None
        pulled = pull(reader, audience, catchup, self._log, self._history)
        if pulled.is_too_slow:
            reader.sink.abort(CloseReason.SLOW)
            return []
        for reason in pulled.gaps:
            self._tally.gaps[reason] += 1
        if pulled.frames:
            reader.sink.replayed(sum(map(len, pulled.frames)))
        reader.events += len(pulled.events)
        self._tally.deliveries += len(pulled.events)
        if pulled.is_at_head:
            reader.phase = Phase.LIVE
            reader.catchup = None
            self._tally.queue_bytes -= catchup.charged
            audience.stop_waiting(reader)
            self._turns.settle(audience)
            audience.join(reader)
            if reader.outbox is not None:
                reader.outbox.position = reader.position
        else:
            self._charge(catchup)
        return [opening, *pulled.frames]

    def _charge(self, catchup: Catchup) -> None:
        """Count what a reader that catches up remembers of its channels."""
        charged = SETTLED_BYTES * len(catchup.settled)
        self._tally.queue_bytes += charged - catchup.charged
        catchup.charged = charged

    def _take(self, reader: Reader, now: float) -> list[bytes]:
        outbox = reader.outbox
        if outbox is None:
            return []
        before = outbox.bytes
        loss, events = outbox.take()
        self._tally.queue_bytes += outbox.bytes - before
        frames = [event.frame for event in events]
        if loss is not None:
            names = names_of(reader.follow, list(loss.windows))
            frames.insert(0, gap_frame(loss.cursor, loss.reason, names, loss.missed))
            self._tally.gaps[loss.reason] += 1
        self._desk.count(events, 1, now)
        reader.events += sum(event.window is not None for event in events)
        return frames

    def _keep(self, reader: Reader, rest: bytes) -> None:
        """Remember what the socket has not taken of a chunk."""
        outbox = reader.outbox
        if outbox is None:
            if not rest:
                return
            outbox = reader.outbox = Outbox(reader.follow.bounds, reader.position)
            self._writability_changed(reader)
        self._tally.queue_bytes += len(rest) - len(outbox.chunk)
        outbox.chunk = rest
        if rest:
            self._lagging.put(reader)
            reader.sink.wait_writable()

    def _become_writable(self, reader: Reader) -> None:
        reader.outbox = None
        self._lagging.drop(reader)
        self._writability_changed(reader)

    @staticmethod
    def _writability_changed(reader: Reader) -> None:
        if reader.phase is Phase.LIVE and reader.audience is not None:
            reader.audience.writability_changed(reader)

    def position(self, reader: Reader, head: int) -> int:
        """Up to where a reader has everything of its channels, told or delivered; live, up to `head` at most."""
        if reader.phase is Phase.LIVE and reader.audience is not None:
            return reader.audience.position_of(reader, head, is_due=reader.audience in self._turns)
        return reader.position

    def limit(self, queue_bytes: int) -> None:
        """At the memory of all queues the fullest streams are aborted."""
        while self._tally.queue_bytes > queue_bytes and (reader := self._lagging.fullest()) is not None:
            reader.sink.abort(CloseReason.MEMORY)
