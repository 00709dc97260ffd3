"""The core: messages in, passes and replays out. Plain calls, no waiting, no clock.

Rules:
    1. `publish` counts, decodes, encodes once and holds; `flush` at the end of a read batch notes for its audiences
       what it brought. Neither waits for a client (I4).
    2. `step` does a bounded slice of what is due: some writes of a pass, or one replay's next
       chunk. The loop calls it while `is_busy`, between everything else it has to do.
    3. A reader is attached, catches up, and joins its audience in the same call in which its pull
       reaches the log's head (I3).
    4. `leave` is the one way out: it settles counters and queues, once (I8).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from sse_gateway.audience import Desk
from sse_gateway.audiences import Audiences
from sse_gateway.batch import Batch, batch_of
from sse_gateway.cut import Cut
from sse_gateway.delivery import Delivery
from sse_gateway.errors import SnapshotError
from sse_gateway.frames import LAST_CHUNK, chunk, close_frame, gap_frame, heartbeat_frame
from sse_gateway.history import History
from sse_gateway.intake import Intake
from sse_gateway.log import Epoch, Log
from sse_gateway.outbox import Outbox
from sse_gateway.placement import Placement
from sse_gateway.reader import Catchup, Phase
from sse_gateway.reasons import CloseReason, GapReason
from sse_gateway.snapshot import MIN_SNAPSHOT, Snapshot
from sse_gateway.tally import Tally
from sse_gateway.turns import Turns
from sse_gateway.window import Event

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sse_gateway.audience import Write
    from sse_gateway.channels import Rule, RuleTable
    from sse_gateway.errors import MessageError
    from sse_gateway.limits import Limits
    from sse_gateway.reader import Reader
    from sse_gateway.subscription import Subscription
    from sse_gateway.window import Window


class Hub:
    """All streams and all channels of one gateway.

    Attributes:
        log: The sequence.
        history: The windows.
        tally: The counters.
        limits: Its bounds.
        readers: Streams open.
        lagging: Streams that are not writable.
        placement: Where readers begin.
    """

    def __init__(self, rules: RuleTable, limits: Limits, key: bytes, write: Write) -> None:
        """Start empty, without an epoch.

        Args:
            rules: Who owns which channel.
            limits: Bounds.
            key: Key of the log's hash.
            write: Writes to what a sink is written to, as a socket's `send` does that does not block.
        """
        self.log = Log(key, limits.ring_size)
        self.history = History(rules.rules, limits.channels, limits.window_bytes)
        self.tally = Tally(len(rules.rules))
        self.readers = 0
        self.limits = limits
        self._key = key
        self._desk = Desk(self.tally)
        self._turns = Turns(write, self._desk)
        self._delivery = Delivery(self.log, self.history, self._desk, self._turns, write)
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
        self.placement = Placement(self.log, self.history, self.tally, self.schedule)
        self._fresh: dict[Window, list[Event]] = {}  # what this read batch has brought so far
        self._catching: deque[Reader] = deque()

    # What comes from the source.

    def begin_epoch(self, name: str, reason: GapReason, now: float) -> None:
        """Begin a new epoch: what was published in between, nobody knows. Every stream is told one gap, in log order."""
        self.flush(now)
        epoch = self.log.begin_epoch(name, reason)
        self._tell_break(epoch, now)
        self.placement.reached(now)
        self.placement.epoch_began(now)

    def _tell_break(self, epoch: Epoch, now: float) -> None:
        """Tell all live streams that nobody knows what came before an epoch."""
        cursor = self.log.cursor(epoch.base)
        for audience in self._audiences:
            frame = gap_frame(cursor, epoch.reason, audience.follow.asked, None)
            self._turns.add([audience], batch_of([Event(epoch.base, None, frame, now, type=epoch.reason.value)]))

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
        self._fresh.setdefault(taken.window, []).append(taken)
        return None

    def flush(self, now: float) -> None:
        """End a read batch: note what it brought for whom it is due to."""
        if self._fresh:
            for window, events in self._fresh.items():
                self._turns.add(self._audiences.followers(window), batch_of(events))
            self._fresh = {}
        self.placement.reached(now)

    # What comes from a peer, or goes to it.

    def cut(self, token: str, have: str, claims: Iterable[str], now: float) -> Cut:
        """Take a snapshot of the log and the windows at this place in the log.

        Args:
            token: Of the JOIN that is answered.
            have: Cursor up to which the joiner knows the log, or anything else if it does not.
            claims: Epochs claimed and undecided.
            now: Seconds.
        """
        return Cut(self._key, token, self.log, self.history, have, claims, now, beside=self.placement.beside)

    def receive(self, token: str, cut_at: float) -> Snapshot:
        """Prepare to take a snapshot in.

        Args:
            token: Of our JOIN.
            cut_at: When it came back, seconds.
        """
        max_bytes = max(2 * self.limits.window_bytes, MIN_SNAPSHOT) + 16 * self.limits.ring_size
        return Snapshot(self._key, token, len(self.history.marks), cut_at, max_bytes=max_bytes)

    def install(self, snapshot: Snapshot, now: float) -> None:
        """Go on from a snapshot that is complete: our log ends where it was cut.

        Streams pull what it has beyond their positions from the windows. Where it continues no log of ours, they are told.

        Raises:
            SnapshotError: It continues another log than ours; nothing was changed.
        """
        here = self.log.cursor(self.log.head) if self.log.epochs else "-"
        if (head := snapshot.head) is None or not snapshot.is_complete or head.have not in {"", here}:
            raise SnapshotError("the snapshot does not continue this log")
        self.flush(now)
        readers = self._rewind()
        is_whole = not head.have
        self.placement.beside |= head.beside
        if is_whole:
            shift = self.log.head + 1
            readers = [reader for audience in self._audiences for reader in audience.waiting]
            self.placement.uproot(readers)
            self.log.restart(head.first + shift - 1)
            self.history.clear()
        else:
            shift = self.log.head - head.begin
        self.log.extend([Epoch(name, base + shift, why) for name, base, why in head.epochs], snapshot.hashes)
        self.history.install(snapshot.held(shift), snapshot.marks(shift), snapshot.abandoned(shift), now)
        if is_whole:
            self.placement.replant(readers, now)
            return
        for audience in self._audiences:
            for reader in audience.waiting:
                assert reader.catchup is not None  # noqa: S101 - who waits has one
                reader.catchup.serial = self.history.serial  # what the peer has lost, nobody here was too slow for
        for reader in readers:
            if reader not in self.lagging:
                self.schedule(reader)
        self.placement.epoch_began(now)

    def _rewind(self) -> list[Reader]:
        """Take every live reader back to the windows."""
        rewound: list[Reader] = []
        self._turns.settle_all()
        for audience in self._audiences:
            rewound += audience.members()
            for reader in audience.members():
                self.placement.rewind(reader, audience)
            self.tally.pass_bytes -= audience.drop_passes()
        return rewound

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
        self.placement.place(reader, now)
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
        here = self.log.cursor(self._delivery.position(reader, self._spread_to))
        if reader.catchup is not None and reader.catchup.gap is not None:  # not told yet: he has got no further
            here = reader.catchup.asked or here
        pending = reader.outbox.chunk if reader.outbox is not None else b""
        is_open = reader.catchup is None or reader.catchup.is_open
        self.leave(reader, reason)
        word = close_frame(here, reason, reader.retry_ms) if is_open else b""
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
            audience.stop_waiting(reader)
        if reader.outbox is not None:
            self.tally.queue_bytes -= len(reader.outbox)
            reader.outbox = None
        if reader.catchup is not None:
            self.tally.queue_bytes -= reader.catchup.charged
        self.lagging.drop(reader)
        reader.phase = Phase.ENDED
        reader.catchup = reader.audience = None
        self.readers -= 1
        self.tally.closed[reason] += 1
        self.tally.pass_bytes -= self._audiences.dissolve_if_empty(audience)

    @property
    def _spread_to(self) -> int:
        """Up to where everything is in passes, or behind them."""
        oldest = next(iter(self._fresh.values()), None)
        return self.log.head if oldest is None else oldest[0].position - 1

    # What the loop drives.

    @property
    def is_busy(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._turns or self._catching)

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
        """Do a slice of what is due: some writes of passes, and one replay's next chunks."""
        self._turns.serve(self.limits.writes_per_step, now)
        self._delivery.limit(self.limits.queue_bytes)
        if self._catching:
            reader = self._catching.popleft()
            if reader.phase is not Phase.ENDED and self.advance(reader, now):
                self._catching.append(reader)

    def observe(self, now: float) -> None:
        """Count the deliveries of the last `step`, with the clock read after it."""
        self._desk.observe(now)

    def tick(self, now: float, *, live: bool) -> None:
        """Do what is due by the clock: expiry, heartbeats, time-outs.

        Args:
            now: Seconds.
            live: Whether the source is there.
        """
        self.flush(now)
        self.history.expire(now)
        self.placement.expire(now)
        silent = self._audiences.silent_since(now - self.limits.heartbeat_s)
        head = self.log.head
        # What is due or under way is no silence.
        idle = [each for each in silent if each.size and not each.passes and each not in self._turns]
        if idle:
            self._turns.add(idle, Batch((), [heartbeat_frame(self.log.cursor(head), live=live)], head))
        for audience in silent:
            audience.sent_at = now
        for reader in list(self.lagging):
            if now - reader.progress_at > self.limits.write_timeout_s:
                reader.sink.abort(CloseReason.TIMEOUT)
