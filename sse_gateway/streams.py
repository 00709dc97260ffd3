"""The open streams: opening, refusing, ending them.

Rules:
    1. A stream is listed here from the moment its socket is taken until its descriptor is closed;
       both kinds count against `connections`.
    2. Every stream ends once, and then there is one log line (I8).
    3. Draining: new streams are refused at once; open ones end spread over the drain time, in random
       order, so that their clients come back one by one.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import random
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from sse_gateway.logs import log_event
from sse_gateway.reader import Framing, Reader
from sse_gateway.reasons import CloseReason, Unavailable
from sse_gateway.stream import LINGER_S, Stream, take_socket

if TYPE_CHECKING:
    from collections.abc import Callable

    from sse_gateway.hub import Hub
    from sse_gateway.settings import StreamSettings
    from sse_gateway.subscription import Subscription

EXPIRY_S = 0.125
"""Streams that reach their maximal age within this long end together."""

_log = logging.getLogger(__name__)


class Streams:
    """All open streams of one process; the `Owner` of each.

    Attributes:
        hub: The core.
        loop: The loop they live on.
        limit: Streams at most.
        open_streams: Those that have not ended.
        is_draining: No new ones are taken, for good.
    """

    def __init__(
        self, hub: Hub, settings: StreamSettings, limit: int, *, is_live: Callable[[], bool], kick: Callable[[], None]
    ) -> None:
        """Start empty; needs a running loop.

        Args:
            hub: The core.
            settings: Bounds and times of a stream.
            limit: Streams at most.
            is_live: Whether the source is there.
            kick: Has the hub's work done soon.
        """
        self.hub = hub
        self.loop = asyncio.get_running_loop()
        self.limit = limit
        self.open_streams: dict[Stream, None] = {}
        self.is_draining = False
        self.kick = kick
        self._settings = settings
        self._is_live = is_live
        self._closing: dict[Stream, None] = {}
        self._expiring: dict[int, dict[Stream, None]] = {}
        self._all_ended = asyncio.Event()
        self._all_closed = asyncio.Event()

    @staticmethod
    def now() -> float:
        """The clock of everything here, seconds. uvloop's own stands still within a turn of the loop."""
        return time.monotonic()

    def refusal(self) -> Unavailable | None:
        """Why no stream can be opened now; counts a refusal."""
        reason = self.unavailable()
        if reason is not None:
            self.hub.tally.refused[reason] += 1
        return reason

    def unavailable(self) -> Unavailable | None:
        """Why no stream can be opened now."""
        if self.is_draining:
            return Unavailable.DRAINING
        if not self._is_live():
            return Unavailable.SOURCE
        if len(self.open_streams) + len(self._closing) >= self.limit:
            return Unavailable.FULL
        return None

    def retry_ms(self) -> int:
        """Draw a reconnection time: ±50 %."""
        return max(1, round(self._settings.retry_s * 1000 * random.uniform(0.5, 1.5)))

    def open(
        self, transport: asyncio.Transport, head: bytes, subscription: Subscription, *, chunked: bool
    ) -> Unavailable | None:
        """Take the socket and begin a stream on it; or say why that cannot be now, and leave the socket."""
        now = self.now()
        settings = self._settings
        try:
            fd = take_socket(
                transport,
                send_buffer_bytes=settings.send_buffer_bytes,
                write_timeout_s=settings.write_timeout_s,
            )
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:  # connections without a stream hold them
                self.hub.tally.refused[Unavailable.FULL] += 1
                return Unavailable.FULL
            log_event(_log, logging.DEBUG, "stream.not_opened", reason=str(error))
            return None
        stream = Stream(fd, self, now)
        self.open_streams[stream] = None
        framing = Framing(chunked=chunked, wrapped=subscription.wrap)
        stream.reader = Reader(stream, subscription.follow, framing, self.retry_ms())
        if settings.max_age_s:
            stream.expires_at = now + settings.max_age_s * random.uniform(0.8, 1.0)
            self._expiring.setdefault(int(stream.expires_at / EXPIRY_S), {})[stream] = None
        try:
            self.hub.attach(stream.reader, subscription, head, now)
            stream.watch()
        except Exception:
            stream.abort(CloseReason.ERROR)
            raise
        self.kick()
        return None

    def ended(self, stream: Stream, reason: CloseReason) -> None:
        """A stream has left the hub: one line."""
        del self.open_streams[stream]
        if self.is_draining and not self.open_streams:
            self._all_ended.set()
        self._closing[stream] = None
        if stream.expires_at and (due := self._expiring.get(int(stream.expires_at / EXPIRY_S))):
            due.pop(stream, None)
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

    def closed(self, stream: Stream) -> None:
        """Its descriptor is closed."""
        self._closing.pop(stream, None)
        if self.is_draining and not self.open_streams and not self._closing:
            self._all_closed.set()

    def expire(self, now: float) -> None:
        """End the streams that have reached their maximal age."""
        for due in [due for due in self._expiring if (due + 1) * EXPIRY_S <= now]:
            for stream in list(self._expiring.pop(due)):
                stream.end(CloseReason.MAX_AGE)

    async def drain(self, drain_s: float) -> None:
        """End the streams, spread over the drain time, in random order."""
        self.is_draining = True
        order = list(self.open_streams)
        random.shuffle(order)
        begin = self.now()
        for index, stream in enumerate(order):
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self.loop.time() + begin + drain_s * index / len(order) - self.now()):
                    await self._all_ended.wait()
            stream.end(CloseReason.DRAIN)
        if self._closing:
            with suppress(TimeoutError):
                async with asyncio.timeout(2 * LINGER_S + 0.5):
                    await self._all_closed.wait()

    def hurry(self) -> None:
        """End all streams now, and do not wait for their clients."""
        self.is_draining = True
        for stream in list(self.open_streams):
            stream.end(CloseReason.DRAIN)
        self._all_closed.set()
