"""The core: messages in, passes and replays out. Plain calls, no waiting, no clock.

Rules:
    1. `publish` counts, decodes, encodes once, holds and marks for fan-out; `flush` at the end of a
       read batch turns the marks into passes. Neither waits for a client (I4).
    2. `step` does a bounded slice of what is due: some writes of a pass, or one replay's next
       chunk. The loop calls it while `is_busy`, between everything else it has to do.
    3. A reader is attached, catches up, and joins its audience in the same call in which its pull
       reaches the log's head (I3).
    4. `leave` is the one way out: it settles counters and queues, once (I8).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sse_gateway.audience import Desk
from sse_gateway.audiences import Audiences
from sse_gateway.delivery import Delivery
from sse_gateway.frames import LAST_CHUNK, chunk, close_frame, gap_frame, heartbeat_frame
from sse_gateway.history import History
from sse_gateway.hold import Hold
from sse_gateway.intake import Intake
from sse_gateway.log import RING_SIZE, Log, Verdict
from sse_gateway.outbox import Outbox
from sse_gateway.reader import Catchup, Phase
from sse_gateway.reasons import CloseReason, GapReason
from sse_gateway.replay import wrap
from sse_gateway.tally import Tally
from sse_gateway.window import Event

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sse_gateway.audience import Audience, Pass, Write
    from sse_gateway.channels import Rule, RuleTable
    from sse_gateway.errors import MessageError
    from sse_gateway.reader import Reader
    from sse_gateway.subscription import Subscription

_UNVERIFIED = {
    Verdict.STALE: GapReason.WINDOW,
    Verdict.UNKNOWN_EPOCH: GapReason.EPOCH,
    Verdict.INVALID: GapReason.CURSOR,
}


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the core.

    Attributes:
        channels: Channels remembered.
        window_bytes: Memory of all windows.
        queue_bytes: Memory of all outboxes.
        message_bytes: Largest payload, and largest encoded frame.
        pass_bytes: Bytes in waiting passes beyond which the source should pause.
        heartbeat_s: Silence after which a stream gets a heartbeat.
        write_timeout_s: How long a socket may take no byte.
        ring_size: Positions whose cursors can be verified.
        writes_per_step: Writes of a pass between two looks at the clock: 64 take about 0.4 ms.
    """

    channels: int
    window_bytes: int
    queue_bytes: int
    message_bytes: int
    heartbeat_s: float
    write_timeout_s: float
    pass_bytes: int = 8 * 1024 * 1024
    ring_size: int = RING_SIZE
    writes_per_step: int = 64


class Hub:
    """All streams and all channels of one gateway.

    Attributes:
        log: The sequence.
        history: The windows.
        tally: The counters.
        limits: Its bounds.
        readers: Streams open.
        lagging: Streams that are not writable.
    """

    def __init__(self, rules: RuleTable, limits: Limits, key: bytes, write: Write) -> None:
        """Start empty, without an epoch.

        Args:
            rules: Who owns which channel.
            limits: Bounds.
            key: Key of the log's hash.
            write: Writes to a descriptor that does not block, as `os.write` does.
        """
        self.log = Log(key, limits.ring_size)
        self.history = History(rules.rules, limits.channels, limits.window_bytes)
        self.tally = Tally(len(rules.rules))
        self.readers = 0
        self.limits = limits
        self._write = write
        self._desk = Desk(self.tally)
        self._delivery = Delivery(self.log, self.history, self._desk, write)
        self.lagging = self._desk.lagging
        self._intake = Intake(
            rules,
            self.log,
            self.history,
            self.tally,
            max_bytes=limits.message_bytes,
            max_routes=2 * limits.channels,
        )
        self._audiences = Audiences(self.history)
        self._hold = Hold()
        self._touched: list[Audience] = []  # have events pending
        self._ready: deque[Audience] = deque()  # have passes
        self._catching: deque[Reader] = deque()
        self._served: tuple[Pass, int] | None = None

    # What comes from the source.

    def begin_epoch(self, name: str, reason: GapReason, now: float) -> None:
        """Begin a new epoch: whatever was published in between, nobody knows.

        Every stream is told, in log order, with one gap.
        """
        self.flush(now)
        epoch = self.log.begin_epoch(name, reason)
        cursor = self.log.cursor(epoch.base)
        for audience in self._audiences:
            frame = gap_frame(cursor, reason, audience.follow.asked, None)
            self._mark(audience, Event(epoch.base, None, frame, now, type_=reason.value))
        self.flush(now)
        self._release(self._hold.all())

    def publish(
        self, pattern: bytes, channel: bytes, payload: bytes, now: float, wall: float
    ) -> tuple[Rule, MessageError] | None:
        """Take one message from the log's source; `flush` comes at the end of the batch.

        Args:
            pattern: Under which Redis sent it; copies under other patterns are not counted.
            channel: Redis channel.
            payload: As published.
            now: When its bytes came, seconds of the loop's clock.
            wall: The same moment, Unix seconds.

        Returns:
            The rule and the error of a message that was rejected.
        """
        taken = self._intake.take(pattern, channel, payload, now, wall)
        if not isinstance(taken, Event):
            return taken
        assert taken.window is not None  # noqa: S101 - it was held there
        for audience in self._audiences.followers(taken.window):
            self._mark(audience, taken)
        return None

    def flush(self, now: float) -> None:
        """End a read batch: make passes of what it brought."""
        touched, self._touched = self._touched, []
        wrapped: dict[int, Event] = {}
        for audience in touched:
            events, audience.pending = audience.pending, []
            if not audience.size:  # gone meanwhile, or its readers still catch up: they pull from the windows
                continue
            if audience.framing.wrapped:
                events = [_wrapped(event, wrapped) for event in events]
            if not audience.passes:
                self._ready.append(audience)
            self.tally.pass_bytes += audience.put(events)
            self._audiences.note_sent(audience, now)
        self._release(self._hold.reached(self.log.head))

    # Streams.

    def attach(self, reader: Reader, subscription: Subscription, head: bytes, now: float) -> None:
        """Begin a stream: from here on the reader gets what it asked for, or is told otherwise.

        Args:
            reader: New.
            subscription: What it asked for.
            head: Bytes that go out first, whatever the answer is.
            now: Seconds.
        """
        self.flush(now)
        reader.outbox = Outbox(reader.follow.bounds, -1, head)
        self.tally.queue_bytes += len(head)
        catchup = Catchup(head=self.log.head, newest=subscription.replay)
        catchup.asked = subscription.cursor
        reader.catchup = catchup
        self._audiences.admit(reader, now)
        reader.progress_at = now
        self.readers += 1
        self.tally.opened += 1
        verdict, position = self._locate(catchup)
        if verdict is Verdict.AHEAD:
            self._hold.put(reader, position, now)
        else:
            self._begin(reader, catchup, verdict, position)
        if self.advance(reader, now):
            self.schedule(reader)

    def advance(self, reader: Reader, now: float) -> bool:
        """Write what a reader's socket takes, some chunks at most.

        Returns:
            Whether there is more to do at once; False if the reader is live, waits for its socket,
            is held, or has ended.
        """
        self.flush(now)
        has_more = self._delivery.advance(reader, now)
        self._delivery.limit(self.limits.queue_bytes)
        return has_more

    def schedule(self, reader: Reader) -> None:
        """Let `step` advance a reader."""
        self._catching.append(reader)

    def farewell(self, reader: Reader, reason: CloseReason) -> bytes:
        """End a stream with a word: returns the bytes that complete it."""
        position = self._delivery.position(reader)
        pending = reader.outbox.chunk if reader.outbox is not None else b""
        is_open = reader.catchup is None or reader.catchup.is_open
        self.leave(reader, reason)
        word = close_frame(self.log.cursor(position), reason, reader.retry_ms) if is_open else b""
        reader.bytes += len(word)
        self.tally.bytes += len(word)
        if not reader.framing.chunked:
            return pending + word
        return pending + (chunk(word) if word else b"") + LAST_CHUNK

    def leave(self, reader: Reader, reason: CloseReason) -> None:
        """End a stream. Idempotent: the first reason counts."""
        if reader.phase is Phase.ENDED:
            return
        audience = reader.audience
        assert audience is not None  # noqa: S101 - set by attach
        if reader.phase is Phase.LIVE:
            audience.leave(reader)
        else:
            audience.waiting -= 1
        if reader.outbox is not None:
            self.tally.queue_bytes -= len(reader.outbox)
            reader.outbox = None
        if reader.catchup is not None:
            self.tally.queue_bytes -= reader.catchup.charged
        self.lagging.pop(reader, None)
        reader.phase = Phase.ENDED
        reader.catchup = reader.audience = None
        self.readers -= 1
        self.tally.closed[reason] += 1
        self.tally.pass_bytes -= self._audiences.dissolve_if_empty(audience)

    # What the loop drives.

    @property
    def is_busy(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._ready or self._catching)

    @property
    def is_full(self) -> bool:
        """Whether so much waits in passes that the source should stop reading."""
        return self.tally.pass_bytes > self.limits.pass_bytes

    @property
    def audiences(self) -> int:
        """Audiences that exist."""
        return len(self._audiences)

    def fullest(self) -> float:
        """Fill of the fullest queue against its bounds, in events or bytes: 0, 1 at the bound, or a little above."""
        return max((reader.outbox.fill for reader in self.lagging if reader.outbox is not None), default=0.0)

    def step(self, now: float) -> None:
        """Do a slice of what is due: some writes of a pass, and one replay's next chunks."""
        if self._ready:
            audience = self._ready.popleft()
            if audience.passes:
                current, served = audience.deliver(self._write, self.limits.writes_per_step, self._desk, now)
                self._served = current, served
                self._delivery.limit(self.limits.queue_bytes)
            if audience.passes:
                # A pass under way goes on; between two passes others have their turn.
                (self._ready.append if audience.passes[0].index == 0 else self._ready.appendleft)(audience)
        if self._catching:
            reader = self._catching.popleft()
            if reader.phase is not Phase.ENDED and self.advance(reader, now):
                self._catching.append(reader)

    def observe(self, now: float) -> None:
        """Count the deliveries of the last `step`, with the clock read after it."""
        if self._served is None:
            return
        (current, served), self._served = self._served, None
        if not served:
            return
        self.tally.bytes += current.size * served
        self._desk.count(current.events, served, now)

    def tick(self, now: float, *, live: bool) -> None:
        """Do what is due by the clock: expiry, heartbeats, time-outs.

        Args:
            now: Seconds.
            live: Whether the source is there.
        """
        self.flush(now)
        self.history.expire(now)
        self._release(self._hold.expired(now))
        silent = self._audiences.silent_since(now - self.limits.heartbeat_s)
        frame = heartbeat_frame(self.log.cursor(self.log.head), live=live) if silent else b""
        for audience in silent:
            if not audience.passes and audience.size:  # what is under way is no silence
                self._ready.append(audience)
                self.tally.pass_bytes += audience.put_heartbeat(frame, self.log.head)
            self._audiences.note_sent(audience, now)
        for reader in list(self.lagging):
            if now - reader.progress_at > self.limits.write_timeout_s:
                reader.sink.abort(CloseReason.TIMEOUT)

    def _mark(self, audience: Audience, event: Event) -> None:
        if not audience.pending:
            self._touched.append(audience)
        audience.pending.append(event)

    def _release(self, readers: Iterable[Reader]) -> None:
        """Go on with readers that were held; the loop writes to them, as there may be very many at once."""
        for reader in readers:
            assert reader.catchup is not None  # noqa: S101 - set by attach
            verdict, position = self._locate(reader.catchup)
            if verdict is Verdict.AHEAD:  # still: nobody else has that log
                verdict, position = Verdict.INVALID, self.log.head
            self._begin(reader, reader.catchup, verdict, position)
            self.schedule(reader)

    def _locate(self, catchup: Catchup) -> tuple[Verdict | None, int]:
        return self.log.locate(catchup.asked) if catchup.asked else (None, self.log.head)

    def _begin(self, reader: Reader, catchup: Catchup, verdict: Verdict | None, position: int) -> None:
        """Decide where a reader begins."""
        if verdict is Verdict.UNKNOWN_EPOCH:
            position = self.log.epoch.base
        catchup.head = self.log.head
        catchup.has_cursor = verdict not in {None, Verdict.INVALID}
        catchup.gap = None if verdict is None else _UNVERIFIED.get(verdict)
        reader.phase = Phase.REPLAY
        reader.position = catchup.settled_from = position


def _wrapped(event: Event, done: dict[int, Event]) -> Event:
    """Make the event that wrapped audiences get, once per event."""
    if event.window is None:
        return event
    if event.position not in done:
        done[event.position] = Event(event.position, event.window, wrap(event), event.received_at, ts=event.ts)
    return done[event.position]
