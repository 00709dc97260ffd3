"""The link to Redis: one connection, one PSUBSCRIBE, every message in order.

Rules:
    1. Whatever ends the link, what was published until the next one is unknown here (I6): the replica
       asks a peer. redis-py's own PubSub would reconnect without telling.
    2. Messages count from where our own first marker comes back: before that, Redis may not have
       subscribed us where publishers publish.
    3. A link is dead when nothing at all was heard for `liveness_timeout`, or our marker (every
       second at least) is missing for three times that while other messages arrive. It is not
       judged while we ourselves have paused it, nor for a time in which this process stood still.
    4. The server is judged at the start and with every marker: a primary, standalone, with the
       run id it had. A demoted primary is left within a second, and one that the sentinels no
       longer name at once, even if it still answers us.
    5. Nothing here waits on the path of a message; while the hub is full, the socket is not read,
       and Redis' output buffer is the bound.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import hiredis

from sse_gateway.errors import SourceError
from sse_gateway.link import Link
from sse_gateway.logs import log_event
from sse_gateway.primary import Primary
from sse_gateway.server import greet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from sse_gateway.link import Listener
    from sse_gateway.place import Address
    from sse_gateway.server import Server

MARKER_S = 1.0
"""Time between two markers, at most; a shorter `liveness_timeout` shortens it to a third of itself."""

MARKER_PATIENCE = 3.0
"""Times `liveness_timeout` that our marker may be missing while other messages arrive."""

BACKOFF_S = (0.05, 1.0)
"""Between attempts, the first and the longest; half of it is drawn at random. Short, because every second is one in
which events pass unseen."""

_log = logging.getLogger(__name__)


class Source:
    """Keeps one link to Redis up.

    Attributes:
        live: Messages are flowing.
        attempts: Connection attempts.
        losses: Links lost after they had been live.
        paused_s: Seconds in which we have not read, in all.
        server: Server of the newest link, or None.
        primary: Where the links go.
    """

    def __init__(
        self,
        url: str,
        patterns: Sequence[str],
        control: str,
        listener: Listener,
        *,
        connect_timeout_s: float,
        liveness_timeout_s: float,
        unordered: bool = False,
        prepare: Callable[[Link], Awaitable[None]] | None = None,
    ) -> None:
        """Prepare; `run` connects.

        Args:
            url: redis://, rediss://, unix:// or redis+sentinel://.
            patterns: Globs of all rules.
            control: Channel of our markers, and of what nodes say to one another.
            listener: Gets the messages.
            connect_timeout_s: For connecting, and for each step of the handshake.
            liveness_timeout_s: See rule 3.
            unordered: Whether a server that gives no order will do.
            prepare: Reads what has to be known before messages count, once those that come later cannot be missed.
        """
        self.live = False
        self.attempts = 0
        self.losses = 0
        self.server: Server | None = None
        self.primary = Primary(url, timeout_s=connect_timeout_s, moved=self._move)
        self._patterns = [pattern.encode() for pattern in patterns]
        self._control = control.encode()
        self._listener = listener
        self._connect_timeout_s = connect_timeout_s
        self._liveness_timeout_s = liveness_timeout_s
        self._prepare = prepare
        self._token = secrets.token_hex(8).encode()
        self._unordered = unordered
        self._link: Link | None = None
        self._limit: asyncio.Timeout | None = None
        self._moved = asyncio.Event()
        self._paused_s = 0.0
        self._away_s = 0.0

    @property
    def paused_s(self) -> float:
        """Seconds in which we have not read, in all."""
        return self._paused_s + (self._link.paused_s if self._link is not None else 0.0)

    async def run(self) -> None:
        """Connect, and connect again, until cancelled.

        Raises:
            ConfigError: The server cannot carry the promise whatever we do.
        """
        async with self.primary.followed(self._listener.source_failed):
            failures = 0
            while True:
                self.attempts += 1
                self._moved.clear()
                try:
                    await self._connect_and_follow()
                except (OSError, TimeoutError, SourceError, hiredis.HiredisError) as error:
                    failures = 0 if self.live else failures + 1
                    self._lose(error)
                await self._rest(failures)

    def pause(self) -> None:
        """Stop reading. Idempotent."""
        if self._link is not None:
            self._link.pause()

    def resume(self) -> None:
        """Read again. Idempotent."""
        if self._link is not None:
            self._link.resume()

    def publish(self, payload: bytes, answer: Callable[[int], None]) -> None:
        """Publish on the control channel; `answer` gets the number of receivers. Without a link, nothing happens."""
        if self._link is not None:
            self._link.publish(payload, answer)

    def leave(self, seconds: float) -> None:
        """Drop the link, and connect again after so long."""
        self._away_s = seconds
        if self._link is not None:
            self._link.drop(f"this node has left the log for {seconds:.0f} s")

    def _move(self, _primary: Address) -> None:
        """The sentinels name another primary, and the link to this one is dropped: wait for no step any longer."""
        self._moved.set()
        if self._limit is not None:
            self._limit.reschedule(0.0)

    async def _rest(self, failures: int) -> None:
        """Wait before the next attempt; not where a new primary is known."""
        away_s, self._away_s = self._away_s, 0.0
        if away_s:
            await asyncio.sleep(away_s)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_backoff_s(failures)):
                await self._moved.wait()

    def _lose(self, error: Exception) -> None:
        reason = str(error) or type(error).__name__
        if self.live:
            self.live = False
            self.losses += 1
            log_event(_log, logging.WARNING, "source.lost", reason=reason)
        else:
            log_event(_log, logging.WARNING, "source.unavailable", reason=reason, attempt=self.attempts)

    async def _connect_and_follow(self) -> None:
        async with self._step("connecting"):
            link = await self.primary.open(lambda: Link(self._listener, self._control, self._token))
        self._link = link
        try:
            async with self._step("logging in"):
                self.server = server = await greet(link, unordered=self._unordered)
            async with self._step("subscribing"):
                await link.call(b"PSUBSCRIBE", *self._patterns, self._control, pushes=len(self._patterns) + 1)
            if self._prepare is not None:
                async with self._step("reading what was revoked"):
                    await self._prepare(link)
            async with self._step("our first marker"):
                await link.begin()
            self.live = True
            log_event(_log, logging.INFO, "source.connected", server=server.kind, version=server.version)
            await self._watch(link)
        finally:
            self._paused_s += link.paused_s
            self._link = None
            link.close()
            if link.began.is_set():
                self._listener.source_lost()

    @asynccontextmanager
    async def _step(self, what: str) -> AsyncIterator[None]:
        """Bound one step on the way to a live link.

        Raises:
            SourceError: It took longer than `connect_timeout`.
        """
        try:
            async with asyncio.timeout(self._connect_timeout_s) as self._limit:
                yield
        except TimeoutError:
            if self._moved.is_set():
                raise SourceError(f"{what}: the sentinels name another primary meanwhile") from None
            raise SourceError(f"{what}: no answer within {self._connect_timeout_s:g} s") from None
        finally:
            self._limit = None

    async def _watch(self, link: Link) -> None:
        """Send markers and judge the link until it is dead."""
        interval = min(MARKER_S, self._liveness_timeout_s / 3)
        while True:
            woke_at = time.monotonic()
            try:
                async with asyncio.timeout(interval):
                    await link.lost.wait()
                raise SourceError(link.why)
            except TimeoutError:
                pass
            if link.is_paused:
                link.touch()
                continue
            if time.monotonic() - woke_at > 2 * interval:  # we slept: what has come meanwhile is still to be read
                link.touch()
            self._judge(link)
            if not link.is_waiting:
                self._check_soon(link)

    def _judge(self, link: Link) -> None:
        now = time.monotonic()
        if now - link.heard_at > self._liveness_timeout_s:
            raise SourceError(f"nothing was heard for {self._liveness_timeout_s:g} s")
        if now - link.marked_at > MARKER_PATIENCE * self._liveness_timeout_s:
            raise SourceError("our own marker does not come back")

    def _check_soon(self, link: Link) -> None:
        """Send marker, role and run id questions; the answers are judged when they come."""
        link.check(self.server.run_id if self.server is not None else "")


def _backoff_s(failures: int) -> float:
    first, longest = BACKOFF_S
    return min(longest, first * 2.0 ** min(failures + 1, 10)) * random.uniform(0.5, 1.0)
