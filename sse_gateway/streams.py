"""The open streams: opening, refusing, ending them.

Rules:
    1. A stream is listed here from the moment its socket is taken until its descriptor is closed;
       both kinds count against `connections`.
    2. Every stream ends once, and then there is one log line (I8).
    3. Draining: open streams end spread over the drain time, in random order, so that their clients
       come back one by one. New ones are refused at once; or, where another process accepts from now
       on, those whose requests are already inside are served, and end with the others.
    4. A stream ends when its client's right to it ends. That is a time of the wall clock, and is compared with that
       clock: if it is set, streams end when it says so. Many that end at once are ended in slices, so that the loop turns.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import random
import resource
import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from sse_gateway.admission import NOBODY, Admission, Place, Quotas
from sse_gateway.census import SECRET_BYTES, alone
from sse_gateway.deadlines import SLOT_S, Deadlines
from sse_gateway.errors import ConfigError
from sse_gateway.logs import log_event
from sse_gateway.reader import Reader, framing_of
from sse_gateway.readiness import Readiness
from sse_gateway.reasons import CloseReason, Refusal
from sse_gateway.stream import LINGER_S, Stream, take_socket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sse_gateway.admission import Caller
    from sse_gateway.authority import Authority
    from sse_gateway.census import Register
    from sse_gateway.grants import Identity
    from sse_gateway.hub import Hub
    from sse_gateway.reasons import Unavailable
    from sse_gateway.settings import Settings, StreamSettings
    from sse_gateway.subscription import Subscription

AGE_SLACK = 0.001
"""The part of `max_age` by which a stream may end later than it drew: those of one such part share a place."""

LATE_S = 1.0
"""How long requests that are inside when a drain begins may take to become streams."""

SLICE_S = 0.005
"""How long streams are ended before the loop turns."""

LOG_WAIT_S = 2.0
"""How long a new stream waits for a log that is about to be there, before it is refused for now."""

RESERVED_DESCRIPTORS = 128
"""Kept for Redis, the admin listener, log and requests that are being answered."""

REFUSED_LOG_S = 1.0
"""At most one line a second and reason about streams refused for now."""

_log = logging.getLogger(__name__)


class Streams:
    """All open streams of one process; the `Owner` of each.

    Attributes:
        hub: The core.
        loop: The loop they live on.
        readiness: Watches their sockets.
        limit: Streams at most: of the node's, this process's share.
        open_streams: Those that have not ended.
        is_draining: The end has begun.
        is_refusing: No new ones are taken, for good.
    """

    def __init__(
        self,
        hub: Hub,
        settings: StreamSettings,
        limit: int,
        *,
        admission: Admission,
        descriptors: int,
        is_live: Callable[[], bool],
        kick: Callable[[], None],
        is_coming: Callable[[], bool] = lambda: False,
    ) -> None:
        """Start empty; needs a running loop.

        Args:
            hub: The core.
            settings: Bounds and times of a stream.
            limit: This process's share of the node's streams.
            admission: Who may have one; it knows the node's.
            descriptors: That this process may have: of the node's streams it takes no more than these allow.
            is_live: Whether the log is there.
            kick: Has the hub's work done soon.
            is_coming: Whether the log is about to be there.
        """
        self.hub = hub
        self.loop = asyncio.get_running_loop()
        self.readiness = Readiness(self.loop)
        self.limit = limit
        self.open_streams: dict[Stream, None] = {}
        self.is_draining = False
        self.is_refusing = False
        self.kick = kick
        self._settings = settings
        self._admission = admission
        self._most = descriptors - RESERVED_DESCRIPTORS
        self._told_at: dict[Refusal, float] = {}
        self._untold = dict.fromkeys(Refusal, 0)
        self._is_live = is_live
        self._is_coming = is_coming
        self._changed = asyncio.Event()
        self._closing: dict[Stream, None] = {}
        self._aging = Deadlines[Stream](max(SLOT_S, AGE_SLACK * settings.max_age_s))
        self._expiring = Deadlines[Stream]()
        self._doomed: dict[Stream, CloseReason] = {}
        self._all_ended = asyncio.Event()
        self._hurried = asyncio.Event()
        self._all_closed = asyncio.Event()

    @staticmethod
    def now() -> float:
        """The clock of everything here, seconds. uvloop's own stands still within a turn of the loop."""
        return time.monotonic()

    async def refusal(self, caller: Caller = NOBODY) -> Unavailable | None:
        """Why no stream can be opened now; counts a refusal. A log that is just coming is waited for."""
        reason = self.unavailable()
        if reason is Refusal.SOURCE and self._is_coming():
            with suppress(TimeoutError):
                async with asyncio.timeout(LOG_WAIT_S):
                    await self._changed.wait()
            reason = self.unavailable()
        return None if reason is None else self._refused(reason, caller)

    def _refused(self, reason: Refusal, caller: Caller) -> Unavailable:
        """Count a refusal, and tell the log now and then."""
        self.hub.tally.refused[reason] += 1
        self._untold[reason] += 1
        now = self.now()
        if now - self._told_at.get(reason, -REFUSED_LOG_S) >= REFUSED_LOG_S:
            self._told_at[reason] = now
            count, self._untold[reason] = self._untold[reason], 0
            log_event(_log, logging.WARNING, "stream.refused", reason=reason, count=count, address=caller.address)
        return reason.told

    def log_changed(self) -> None:
        """The log is there, or no more: whoever waits for it looks again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def dismiss(self) -> None:
        """End all streams with a word, but take new ones when the log is back."""
        for stream in list(self.open_streams):
            stream.end(CloseReason.ERROR)

    def unavailable(self) -> Refusal | None:
        """Why no stream can be opened now, whoever asks."""
        if self.is_refusing:
            return Refusal.DRAINING
        if not self._is_live():
            return Refusal.SOURCE
        if self._admission.is_full or len(self.open_streams) + len(self._closing) >= self._most:
            return Refusal.FULL
        return None

    def spare_descriptors(self) -> int:
        """How many descriptors of this process no stream has."""
        return self._most + RESERVED_DESCRIPTORS - len(self.open_streams) - len(self._closing)

    def retry_ms(self) -> int:
        """Draw a reconnection time: ±50 %."""
        return max(1, round(self._settings.retry_s * 1000 * random.uniform(0.5, 1.5)))

    def open(
        self,
        transport: asyncio.Transport,
        head: bytes,
        subscription: Subscription,
        *,
        chunked: bool,
        caller: Caller = NOBODY,
        identity: Identity | None = None,
    ) -> Unavailable | None:
        """Take the socket and begin a stream on it; or say why that cannot be now, and leave the socket."""
        now = self.now()
        place = self._admission.enter(caller, now, replays=subscription.wants_replay)
        if not isinstance(place, Place):
            return self._refused(place, caller)
        settings = self._settings
        try:
            self.readiness.prepare()
            handle = take_socket(
                transport,
                send_buffer_bytes=settings.send_buffer_bytes,
                write_timeout_s=settings.write_timeout_s,
            )
        except OSError as error:
            self.readiness.rest()
            self._admission.leave(place)
            if error.errno in {errno.EMFILE, errno.ENFILE}:  # connections without a stream hold them
                return self._refused(Refusal.FULL, caller)
            log_event(_log, logging.DEBUG, "stream.not_opened", reason=str(error))
            return None
        stream = Stream(handle, self, now, place)
        self.open_streams[stream] = None
        framing = framing_of(chunked=chunked, wrapped=subscription.wrap)
        stream.reader = Reader(stream, subscription.follow, framing, self.retry_ms())
        self._limit(stream, identity, now)
        try:
            self.hub.attach(stream.reader, subscription, head, now)
            stream.watch()
        except Exception:
            stream.abort(CloseReason.ERROR)
            raise
        self.kick()
        return None

    def _limit(self, stream: Stream, identity: Identity | None, now: float) -> None:
        """Note when a stream has to end: at its age, and with its token."""
        if self._settings.max_age_s:
            stream.expires_at = now + self._settings.max_age_s * random.uniform(0.8, 1.0 - AGE_SLACK)
            self._aging.add(stream, stream.expires_at)
        if identity is not None:
            stream.identity = identity
            self._expiring.add(stream, identity.expires_at)

    def ended(self, stream: Stream, reason: CloseReason) -> None:
        """A stream has left the hub: one line."""
        del self.open_streams[stream]
        if self.is_draining and not self.open_streams:
            self._all_ended.set()
        self._closing[stream] = None
        if stream.expires_at:
            self._aging.discard(stream, stream.expires_at)
        if stream.identity is not None:
            self._expiring.discard(stream, stream.identity.expires_at)
        self._doomed.pop(stream, None)
        reader = stream.reader
        log_event(
            _log,
            logging.INFO,
            "stream.closed",
            reason=reason,
            duration_s=round(self.now() - stream.opened_at, 3),
            channels=len(reader.follow.asked),
            events=reader.events,
            bytes=reader.bytes,
            dropped=reader.dropped,
            replay=reader.replay,
        )

    def replayed(self, stream: Stream, size: int) -> None:
        """A stream has sent so many bytes of replay."""
        self._admission.pay(stream.place, size, self.now())

    def closed(self, stream: Stream) -> None:
        """Its descriptor is closed."""
        self._closing.pop(stream, None)
        self._admission.leave(stream.place)
        if self.is_draining and not self.open_streams and not self._closing:
            self._all_closed.set()

    def expire(self, now: float, wall: float, authority: Authority | None) -> None:
        """End the streams that have reached their maximal age, or the end of their client's right.

        Args:
            now: Seconds of our clock.
            wall: Unix seconds.
            authority: Knows what was revoked: if there is news, all streams are looked through.
        """
        self._doom(self._aging.due(now), CloseReason.MAX_AGE)
        self._doom(self._expiring.due(wall), CloseReason.EXPIRED)
        if authority is not None and authority.take_news():
            mine = [s for s in self.open_streams if s.identity is not None and authority.is_revoked(s.identity)]
            self._doom(mine, CloseReason.REVOKED)

    def _doom(self, streams: Iterable[Stream], reason: CloseReason) -> None:
        is_idle = not self._doomed
        for stream in streams:
            self._doomed.setdefault(stream, reason)
        if is_idle:
            self._end_doomed()

    def _end_doomed(self) -> None:
        until = self.now() + SLICE_S
        while self._doomed and self.now() < until:
            stream = next(iter(self._doomed))
            stream.end(self._doomed.pop(stream))
        if self._doomed:
            self.loop.call_soon(self._end_doomed)

    def refuse(self) -> None:
        """Take no new streams from now on, for good. Idempotent."""
        self.is_refusing = True

    async def drain(self, drain_s: float, *, refuse: bool = True) -> None:
        """End the streams, spread over the drain time, in random order.

        Args:
            drain_s: The drain time.
            refuse: Take no new ones. Else requests that are inside are served for a while, and end with the last.
        """
        self.is_draining = True
        self.is_refusing |= refuse
        order = list(self.open_streams)
        random.shuffle(order)
        begin = self.now()
        for index, stream in enumerate(order):
            await self._wait(self._all_ended, begin + drain_s * index / len(order))
            stream.end(CloseReason.DRAIN)
        if not self.is_refusing:
            await self._wait(self._hurried, begin + min(drain_s, LATE_S))
            self.refuse()
            for stream in list(self.open_streams):
                stream.end(CloseReason.DRAIN)
        if self._closing and not self._hurried.is_set():
            self._all_closed.clear()
            await self._wait(self._all_closed, self.now() + 2 * LINGER_S + 0.5)

    async def _wait(self, event: asyncio.Event, until: float) -> None:
        """Wait for it, but not beyond a moment of our clock."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self.loop.time() + until - self.now()):
                await event.wait()

    def hurry(self) -> None:
        """End all streams now, and do not wait for their clients."""
        self.is_draining = True
        self.refuse()
        self._hurried.set()
        for stream in list(self.open_streams):
            stream.end(CloseReason.DRAIN)
        self._all_closed.set()


def admission_of(settings: Settings, connections: int, register: Register | None) -> Admission:
    """Who may have a stream.

    Args:
        settings: Configuration.
        connections: Streams of the node, where the settings name this worker's share; 0: they name all.
        register: Where the node's workers count them; None: this process counts alone.
    """
    limits = settings.limits
    quotas = Quotas(
        connections or limits.connections,
        limits.connections_per_address,
        limits.connections_per_subject,
        limits.connections_per_second,
        limits.replay_per_subject,
    )
    if register is None:
        register = alone(quotas.streams if quotas.are_personal else 1, secrets.token_bytes(SECRET_BYTES))
    return Admission(quotas, register)


def max_connections(wanted: int, descriptors: int) -> int:
    """Streams at most.

    Raises:
        ConfigError: There are too few descriptors for any.
    """
    limit = min(wanted, descriptors - RESERVED_DESCRIPTORS)
    if limit < 1:
        sentence = f"{descriptors} descriptors are too few, as {RESERVED_DESCRIPTORS} are reserved"
        raise ConfigError([f"limits.connections: {sentence}: raise the limit (ulimit -n, LimitNOFILE)"])
    return limit


def take_descriptors() -> int:
    """Descriptors this process may have, after taking all that it may take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1 << 20
