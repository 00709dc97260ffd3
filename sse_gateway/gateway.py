"""Wires the parts together; start and stop.

Rules:
    1. Stopping: not ready at once, new streams refused as temporary, open streams ended spread over
       `drain`, exit. A second signal stops at once.
    2. The hub's work runs in slices of about 5 ms, between everything else the loop has to do: 50,000
       streams stop neither the accepts, nor the source, nor `/healthz`.
    3. An exception that nobody expected ends the process, wherever it came up (I9).
"""

from __future__ import annotations

import asyncio
import errno
import gc
import hashlib
import logging
import os
import resource
import secrets
import signal
import socket
import string
import time
from typing import TYPE_CHECKING, Any

from aiohttp import web

from sse_gateway import __version__
from sse_gateway.admin import admin_app
from sse_gateway.channels import RuleTable
from sse_gateway.cursor import EPOCH_LENGTH
from sse_gateway.errors import ConfigError
from sse_gateway.http import Front, check_parser
from sse_gateway.hub import Hub, Limits
from sse_gateway.logs import log_event
from sse_gateway.metrics import Metrics
from sse_gateway.reasons import GapReason
from sse_gateway.source import Source
from sse_gateway.streams import Streams
from sse_gateway.systemd import notify, watchdog_interval_s

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sse_gateway.channels import Rule
    from sse_gateway.errors import MessageError
    from sse_gateway.http import Handler
    from sse_gateway.settings import AdminSettings, ListenSettings, Settings

SLICE_S = 0.005
"""How long the hub works before the loop turns."""

RESERVED_DESCRIPTORS = 128
"""Kept for Redis, the admin listener, log and requests that are being answered."""

BACKLOG = 4096
"""Connections that wait to be accepted; beyond, a Unix socket refuses at once, and a proxy says 502."""

REJECTED_LOG_S = 1.0
"""At most one line a second and rule about rejected messages."""

_log = logging.getLogger(__name__)


class Gateway:
    """One gateway process.

    Attributes:
        hub: The core.
        source: The link to Redis.
        loop: The loop everything runs on.
        max_descriptors: Descriptors this process may have.
        streams: The open streams.
    """

    def __init__(self, settings: Settings, fallback: Handler | None = None) -> None:
        """Wire the parts; needs a running loop.

        Args:
            settings: Configuration.
            fallback: Answers what is not under ``/events`` on the public listener.
        """
        self.loop = asyncio.get_running_loop()
        self.max_descriptors = _descriptors()
        max_connections = min(settings.limits.connections, self.max_descriptors - RESERVED_DESCRIPTORS)
        if max_connections < 1:
            sentence = f"{self.max_descriptors} descriptors are too few, as {RESERVED_DESCRIPTORS} are reserved"
            raise ConfigError([f"limits.connections: {sentence}: raise the limit (ulimit -n, LimitNOFILE)"])
        rules = RuleTable(settings.rules)
        self._tick_s = min(0.25, settings.stream.heartbeat_s / 8, settings.stream.write_timeout_s / 4)
        limits = Limits(
            channels=settings.limits.channels,
            window_bytes=settings.limits.window_memory_bytes,
            queue_bytes=settings.limits.queue_memory_bytes,
            message_bytes=settings.limits.message_bytes,
            # A tick comes late by its interval at most, so a heartbeat is due that much earlier.
            heartbeat_s=settings.stream.heartbeat_s - self._tick_s,
            write_timeout_s=settings.stream.write_timeout_s,
        )
        key = hashlib.blake2b(settings.cluster.name.encode(), digest_size=32, person=b"sse-gateway").digest()
        self.hub = Hub(rules, limits, key, os.write)
        self.source = Source(
            settings.redis.url.get_secret_value(),
            [rule.pattern for rule in settings.rules],
            f"__sse_gateway:{settings.cluster.name}",
            self,
            connect_timeout_s=settings.redis.connect_timeout_s,
            liveness_timeout_s=settings.redis.liveness_timeout_s,
        )
        self.streams = Streams(
            self.hub, settings.stream, max_connections, is_live=lambda: self.source.live, kick=self.kick
        )
        self._settings = settings
        self._fallback = fallback
        self._rules = rules
        self._pump_handle: asyncio.Handle | None = None
        self._stopped = asyncio.Event()
        self._signals = 0
        self._failure: asyncio.Future[None] = self.loop.create_future()
        self._rejected_at: dict[int, float] = {}
        self._wall_offset = time.time() - time.monotonic()  # noqa: TID251 - the one place that reads the wall clock
        self.metrics = Metrics(self, settings.rules)

    # Life.

    async def run(self, started: Callable[[], None] | None = None) -> None:
        """Serve until a signal comes.

        Raises:
            ConfigError: The configuration proved bad at run time.
        """
        check_parser()
        self.loop.set_exception_handler(self._on_exception)
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(number, self._on_signal)
        self.loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        admin = await _listen(
            web.AppRunner(admin_app(self.metrics.registry, self.unready), access_log=None),
            self._settings.admin,
            "admin",
        )
        front = Front(
            self.streams,
            self._rules,
            max_channels=self._settings.stream.max_channels,
            origins=self._settings.cors.origins,
            fallback=self._fallback,
        )
        public = await _listen(web.ServerRunner(front.server()), self._settings.listen, "listen")
        self._log_start()
        gc.freeze()  # what is there now stays: the collector need not look at it again
        source = asyncio.create_task(self.source.run())
        ticker = asyncio.create_task(self._tick())
        notify("READY=1\nSTATUS=waiting for Redis", os.environ)
        if started is not None:
            started()
        try:
            await self._serve(source, ticker)
        finally:
            for task in (source, ticker):
                task.cancel()
            self.streams.hurry()
            await public.cleanup()
            await admin.cleanup()
            log_event(_log, logging.INFO, "gateway.stopped")

    async def _serve(self, source: asyncio.Task[None], ticker: asyncio.Task[None]) -> None:
        stopped = asyncio.create_task(self._stopped.wait())
        try:
            ends: set[asyncio.Future[Any]] = {source, ticker, stopped, self._failure}
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in done:
                end.result()  # raises, but for the signal's
            notify("STOPPING=1\nSTATUS=draining", os.environ)
            drain_s = self._settings.shutdown.drain_s
            log_event(_log, logging.INFO, "gateway.draining", streams=len(self.streams.open_streams), drain_s=drain_s)
            await self.streams.drain(drain_s)
        finally:
            stopped.cancel()

    def _on_signal(self) -> None:
        """The first begins the drain, the second ends it."""
        self._signals += 1
        self._stopped.set()
        if self._signals > 1:
            self.streams.hurry()

    def _on_hangup(self) -> None:
        log_event(_log, logging.WARNING, "reload.ignored", reason="not available in this version; restart instead")

    def _on_exception(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError):  # a peer that went away while it was being accepted
            log_event(_log, logging.DEBUG, "loop.os_error", message=str(context.get("message")), exc=error)
        elif isinstance(context.get("future"), asyncio.Task) or isinstance(context.get("protocol"), web.RequestHandler):
            # Ours are awaited: it is the library's, for one request or connection, which has ended with it.
            name = type(error).__name__ if error is not None else str(context.get("message"))
            log_event(_log, logging.ERROR, "request.failed", error=name)
        else:
            self.source_failed(error or RuntimeError(str(context.get("message"))))

    def _log_start(self) -> None:
        log_event(
            _log,
            logging.INFO,
            "gateway.started",
            version=__version__,
            listen=_address(self._settings.listen),
            admin=_address(self._settings.admin),
            max_connections=self.streams.limit,
            configured_connections=self._settings.limits.connections,
        )

    async def _tick(self) -> None:
        """Do what is due by the clock, and feed the watchdog."""
        watchdog_s = watchdog_interval_s(os.environ, os.getpid())
        fed_at = 0.0
        due = time.monotonic()
        while True:
            due += self._tick_s
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            now = time.monotonic()
            self.metrics.loop_lag.add(max(0.0, now - due), 1)
            due = max(due, now - self._tick_s)
            self._wall_offset = time.time() - now  # noqa: TID251 - as above
            self.hub.tick(now, live=self.source.live)
            self.streams.expire(now)
            self.kick()
            if watchdog_s is not None and now - fed_at >= watchdog_s:
                fed_at = now
                notify("WATCHDOG=1", os.environ)

    def unready(self) -> list[str]:
        """Why new streams would not be served."""
        reason = self.streams.unavailable()
        return [] if reason is None else [reason.value]

    # What the hub needs done.

    def kick(self) -> None:
        """Have the hub's work done in the loop's next turn."""
        if self._pump_handle is None and self.hub.is_busy:
            self._pump_handle = self.loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_handle = None
        now = time.monotonic()
        end = now + SLICE_S
        while self.hub.is_busy and now < end:
            self.hub.step(now)
            now = time.monotonic()
            self.hub.observe(now)
        if self.hub.is_full:
            self.source.pause()
        else:
            self.source.resume()
        self.kick()

    # What the source brings.

    def source_began(self) -> None:
        """Begin a new epoch: nobody knows what was published meanwhile."""
        name = "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(EPOCH_LENGTH))
        self.hub.begin_epoch(name, GapReason.SOURCE, time.monotonic())
        log_event(_log, logging.INFO, "epoch.began", epoch=name)
        notify("STATUS=live", os.environ)
        self.kick()

    def source_message(self, pattern: bytes, channel: bytes, payload: bytes, now: float) -> None:
        """Take one message."""
        rejected = self.hub.publish(pattern, channel, payload, now, now + self._wall_offset)
        if rejected is not None:
            self._log_rejected(*rejected, channel, payload, now)

    def source_flush(self) -> None:
        """Send what one read has brought, at once as far as 5 ms go."""
        self.hub.flush(time.monotonic())
        if self._pump_handle is None:
            self._pump()
        elif self.hub.is_full:  # now: libuv hands over megabytes, read by read, before the loop turns to the pump
            self.source.pause()

    def source_lost(self) -> None:
        """The run of messages has ended; streams learn of it from their heartbeats."""
        notify("STATUS=waiting for Redis", os.environ)

    def source_round_trip(self, seconds: float) -> None:
        """A marker came back."""
        self.hub.tally.round_trip.add(seconds, 1)

    def source_failed(self, error: BaseException) -> None:
        """End the process: something failed that must not."""
        if not self._failure.done():
            self._failure.set_exception(error)

    def _log_rejected(self, rule: Rule, error: MessageError, channel: bytes, payload: bytes, now: float) -> None:
        """Show the publisher's mistake: once a second and rule, the only payload that is ever logged."""
        if now - self._rejected_at.get(rule.index, -REJECTED_LOG_S) >= REJECTED_LOG_S:
            self._rejected_at[rule.index] = now
            log_event(
                _log,
                logging.WARNING,
                "message.rejected",
                rule=rule.pattern,
                reason=error.reason,
                detail=str(error),
                channel=channel[:80].decode(errors="backslashreplace"),
                payload=payload[:80].decode(errors="backslashreplace"),
            )


async def run(
    settings: Settings, *, started: Callable[[], None] | None = None, fallback: Handler | None = None
) -> None:
    """Run one gateway until SIGTERM or SIGINT.

    Args:
        settings: Configuration.
        started: Called once both listeners are open.
        fallback: Answers what is not under ``/events`` on the public listener.

    Raises:
        ConfigError: The configuration proved bad at run time.
    """
    await Gateway(settings, fallback).run(started)


async def _listen(
    runner: web.AppRunner | web.ServerRunner, place: ListenSettings | AdminSettings, key: str
) -> web.AppRunner | web.ServerRunner:
    """Open a listener.

    Raises:
        ConfigError: The address cannot be bound.
    """
    await runner.setup()
    try:
        if place.unix is not None:
            _check_unused(place.unix)
            await web.UnixSite(runner, str(place.unix), backlog=BACKLOG).start()
        else:
            await web.TCPSite(runner, place.host, place.port, backlog=BACKLOG, reuse_address=True).start()
    except OSError as error:
        await runner.cleanup()
        raise ConfigError([f"{key}: cannot listen on {_address(place)}: {error.strerror or error}"]) from error
    return runner


def _check_unused(path: Path) -> None:
    """Refuse a socket that somebody listens on: the loop would remove it, and that process go deaf without a word.

    Raises:
        OSError: It is in use.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return
    raise OSError(errno.EADDRINUSE, "another process listens there")


def _address(place: ListenSettings | AdminSettings) -> str:
    return f"unix:{place.unix}" if place.unix is not None else f"{place.host}:{place.port}"


def _descriptors() -> int:
    """Descriptors this process may have, after taking all that it may take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1 << 20
