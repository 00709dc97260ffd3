"""Wires the parts together; start and stop.

Rules:
    1. Stopping: not ready at once, new streams refused as temporary, open streams ended spread over
       `drain`, exit. A second signal stops at once. Where another process takes over, the listener is
       closed instead, and what is inside is still served.
    2. The hub's work runs in slices of about 5 ms, between everything else the loop has to do: 50,000
       streams stop neither the accepts, nor the source, nor `/healthz`.
    3. An exception that nobody expected ends the process, wherever it came up (I9).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from aiohttp import web

from sse_gateway import __version__
from sse_gateway.addresses import TrustedProxies
from sse_gateway.admin import admin_app, at_once
from sse_gateway.bounds import core_limits
from sse_gateway.channels import RuleTable
from sse_gateway.connections import Connections
from sse_gateway.http import Front, check_parser
from sse_gateway.hub import Hub
from sse_gateway.listeners import SHUTDOWN_S, Listener, listening, serve_app
from sse_gateway.logs import log_event
from sse_gateway.member import Member, control_channel, log_key
from sse_gateway.metrics import Metrics
from sse_gateway.origins import Origins
from sse_gateway.rejections import Rejections
from sse_gateway.revocations import WORD
from sse_gateway.revoked import synchronise
from sse_gateway.source import Source
from sse_gateway.streams import Streams, admission_of, max_connections, take_descriptors
from sse_gateway.systemd import Watchdog, notify

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from sse_gateway.authority import Authority
    from sse_gateway.census import Register
    from sse_gateway.http import Handler
    from sse_gateway.settings import Settings

SLICE_S = 0.005
"""How long the hub works before the loop turns."""

_log = logging.getLogger(__name__)


class Gateway:
    """One gateway process.

    Attributes:
        hub: The core.
        source: The link to Redis.
        loop: The loop everything runs on.
        max_descriptors: Descriptors this process may have.
        streams: The open streams.
        connections: Those of the public listener that have no stream.
        authority: Lets requests in; None where everybody may read everything.
        handover_dir: Where the workers of this host have their sockets for each other; None for a process alone.
        news: Set when the log is there, or no more, and with every tick.
    """

    def __init__(
        self,
        settings: Settings,
        fallback: Handler | None = None,
        *,
        handover_dir: Path | None = None,
        connections: int = 0,
        register: Register | None = None,
    ) -> None:
        """Wire the parts; needs a running loop.

        Args:
            settings: Configuration.
            fallback: Answers what is not under ``/events`` on the public listener.
            handover_dir: See above.
            connections: Streams of the node, where the settings name this worker's share; 0: they name all.
            register: Where the node's workers count them; None: it counts alone.
        """
        self.handover_dir = handover_dir
        self.loop = asyncio.get_running_loop()
        self.max_descriptors = take_descriptors()
        rules = RuleTable(settings.rules)
        self._tick_s = min(0.25, settings.stream.heartbeat_s / 8, settings.stream.write_timeout_s / 4)
        key = log_key(settings)
        self._wall_offset = time.time() - time.monotonic()  # noqa: TID251 - the one place that reads the wall clock
        self.authority: Authority | None = None
        if settings.auth.mode != "none":
            from sse_gateway.authority import make_authority  # noqa: PLC0415 - 15 MB of cryptography, for who needs it

            self.authority = make_authority(settings, rules, key, self._wall)
        self.hub = Hub(rules, core_limits(settings, self._tick_s), key, socket.SocketType.send)
        self.source = Source(
            settings.redis.url.get_secret_value(),
            [rule.pattern for rule in settings.rules],
            control_channel(settings),
            self,
            connect_timeout_s=settings.redis.connect_timeout_s,
            liveness_timeout_s=settings.redis.liveness_timeout_s,
            unordered=settings.redis.unordered,
            prepare=None if self.authority is None else partial(synchronise, settings.cluster.name, self.authority),
        )
        self.member = Member(
            settings,
            self.hub,
            self.source,
            rules,
            key=key,
            directory=handover_dir,
            changed=self._on_log_change,
            left=self._on_leave,
            failed=self.source_failed,
        )
        self.streams = Streams(
            self.hub,
            settings.stream,
            max_connections(settings.limits.connections, self.max_descriptors),
            admission=admission_of(settings, connections, register),
            descriptors=self.max_descriptors,
            is_live=lambda: self.member.replica.is_synced,
            is_coming=lambda: self.member.replica.is_joining,
            kick=self.kick,
        )
        self.connections = Connections(self.streams.now, self.streams.spare_descriptors)
        self._settings = settings
        self._fallback = fallback
        self._rules = rules
        self._pump_handle: asyncio.Handle | None = None
        self._stopped = asyncio.Event()
        self.news = asyncio.Event()
        self._refuse = True
        self._public: Listener | None = None
        self._is_deaf = False
        self._failure: asyncio.Future[None] = self.loop.create_future()
        self._rejections = Rejections()
        self.metrics = Metrics(self, settings.rules)

    # Life.

    async def run(
        self, started: Callable[[], None] | None = None, listeners: Sequence[Sequence[socket.socket]] | None = None
    ) -> None:
        """Serve until `stop`.

        Args:
            started: Called once everything is in place.
            listeners: Bound sockets, in rows; connections are accepted once `accept` is called. Without them the gateway
                stands alone: it has listeners of its own, also for admin, and watches signals.

        Raises:
            ConfigError: The configuration proved bad at run time.
        """
        check_parser()
        self.loop.set_exception_handler(self._on_exception)
        async with AsyncExitStack() as stack:
            stack.callback(lambda: log_event(_log, logging.INFO, "worker.stopped"))
            rows = await self._stand_alone(stack) if listeners is None else listeners
            self._public = Listener(web.ServerRunner(self._server(), shutdown_timeout=SHUTDOWN_S), rows)
            stack.push_async_callback(self._public.cleanup)
            stack.callback(self.streams.hurry)
            if listeners is None:
                await self.accept([0])
            gc.freeze()  # what is there now stays: the collector need not look at it again
            gc.set_threshold(10_000)  # not 700: streams make next to no cycles, and it took 6 % of an accept
            await self.member.start()
            asked = [] if self.authority is None else [self.authority.run()]
            tasks = [asyncio.create_task(p) for p in (self.source.run(), self.member.run(), self._tick(), *asked)]
            for task in tasks:
                stack.callback(task.cancel)
            notify("READY=1\nSTATUS=waiting for Redis", os.environ)
            self._log_start()
            if started is not None:
                started()
            await self._serve(tasks)

    def _server(self) -> web.Server:
        front = Front(
            self.streams,
            self._rules,
            max_channels=self._settings.stream.max_channels,
            origins=Origins(self._settings.cors.origins, with_cookies=self._settings.auth.uses_cookies),
            proxies=TrustedProxies(self._settings.limits.trusted_proxies),
            authority=self.authority,
            fallback=self._fallback,
        )
        return self.connections.server(front.handle)

    async def _stand_alone(self, stack: AsyncExitStack) -> Sequence[Sequence[socket.socket]]:
        """Watch signals, open the admin listener; returns the sockets of the public one."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(number, self.end)
        token = self._settings.admin.token.get_secret_value
        unordered = self._settings.redis.unordered
        registry = at_once(lambda: self.metrics.registry)
        app = admin_app(registry, at_once(self.unready), token, unordered=lambda: unordered)
        await serve_app(app, await listening(self._settings.admin, "admin", stack), stack)
        return await listening(self._settings.listen, "listen", stack)

    async def accept(self, rows: Collection[int]) -> None:
        """Accept connections from these listeners from now on; after `run` has called ``started``, until it stops."""
        if self._public is not None and not self._is_deaf:
            await self._public.accept(rows)

    async def _serve(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        stopped = asyncio.create_task(self._stopped.wait())
        try:
            ends: set[asyncio.Future[Any]] = {*tasks, stopped, self._failure}
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in done:
                end.result()  # raises, but for the signal's
            notify("STOPPING=1\nSTATUS=draining", os.environ)
            drain_s = self._settings.shutdown.drain_s
            streams = len(self.streams.open_streams)
            log_event(_log, logging.INFO, "worker.draining", streams=streams, drain_s=drain_s, refuse=self._refuse)
            await self.streams.drain(drain_s, refuse=self._refuse)
            await self.member.finish()
        finally:
            stopped.cancel()

    def stop(self, *, refuse: bool = True) -> None:
        """Begin the drain. Idempotent.

        Args:
            refuse: Go on accepting, to refuse new streams for now. Else another process accepts from now on.
        """
        if self._stopped.is_set():
            return
        self._refuse = refuse
        if refuse:
            self.streams.refuse()
        else:
            self.deafen()
        self._stopped.set()

    def deafen(self) -> None:
        """Accept no more connections. Idempotent."""
        self._is_deaf = True
        if self._public is not None:
            self._public.close()

    def end(self) -> None:
        """Begin the drain; called again, end it at once."""
        if self._stopped.is_set():
            self.streams.hurry()
        self.stop()

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
            "worker.started",
            pid=os.getpid(),
            version=__version__,
            max_connections=self.streams.limit,
            configured_connections=self._settings.limits.connections,
        )
        if self._settings.redis.unordered:
            log_event(_log, logging.WARNING, "source.unordered")

    async def _tick(self) -> None:
        """Do what is due by the clock, and feed the watchdog."""
        watchdog = Watchdog(os.environ, os.getpid())
        due = time.monotonic()
        while True:
            due += self._tick_s
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            now = time.monotonic()
            self.metrics.loop_lag.add(max(0.0, now - due), 1)
            due = max(due, now - self._tick_s)
            self._wall_offset = time.time() - now  # noqa: TID251 - as above
            self.hub.tick(now, live=self.member.replica.is_synced)
            self.connections.expire(now)
            self.streams.expire(now, self._wall(), self.authority)
            self.kick()
            self.news.set()
            watchdog.feed(now)

    def unready(self) -> list[str]:
        """Why new streams would not be served."""
        reason = self.streams.unavailable() or (None if self.authority is None else self.authority.lacks)
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
        """The link is up: get the log."""
        self.member.connected()

    def source_message(self, pattern: bytes, channel: bytes, payload: bytes, now: float) -> None:
        """Take one message."""
        rejected = self.member.message(pattern, channel, payload, now, now + self._wall_offset)
        if rejected is not None:
            self._rejections.tell(*rejected, channel, payload, now)

    def source_control(self, payload: bytes, now: float) -> None:
        """Take what another node says, or what was revoked."""
        if not payload.startswith(WORD):
            self.member.entry(payload, now)
        elif self.authority is not None:
            self.authority.heard(payload)

    def _wall(self) -> float:
        """Unix seconds."""
        return time.monotonic() + self._wall_offset

    def source_flush(self) -> None:
        """Send what one read has brought, at once as far as 5 ms go."""
        self.hub.flush(time.monotonic())
        if self._pump_handle is None:
            self._pump()
        elif self.hub.is_full:  # now: libuv hands over megabytes, read by read, before the loop turns to the pump
            self.source.pause()

    def source_lost(self) -> None:
        """The run of messages has ended; streams learn of it from their heartbeats."""
        self.member.lost()

    def _on_log_change(self) -> None:
        """The log is there, or no more."""
        notify("STATUS=live" if self.member.replica.is_synced else "STATUS=waiting for Redis", os.environ)
        self.streams.log_changed()
        self.news.set()
        self.kick()

    def _on_leave(self, seconds: float) -> None:
        """Stay away from the log: its streams are better off elsewhere."""
        self.streams.dismiss()
        self.source.leave(seconds)

    def source_round_trip(self, seconds: float) -> None:
        """A marker came back."""
        self.hub.tally.round_trip.add(seconds, 1)

    def source_failed(self, error: BaseException) -> None:
        """End the process: something failed that must not."""
        if not self._failure.done():
            self._failure.set_exception(error)


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
