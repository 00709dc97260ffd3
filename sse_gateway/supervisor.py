"""The process that `serve` runs: it holds the sockets, keeps the workers alive, and answers for them.

Rules:
    1. It has no link to Redis and serves no stream: nothing that a publisher or client does reaches it.
    2. A reload changes nothing until all new workers are ready; whatever fails before that leaves
       everything as it was. Then the new ones accept, and the old ones drain.
    3. At most two generations live at a time: the next reload begins when the old workers have gone.
       Signals that come meanwhile ask for one reload more.
    4. Readiness and metrics are asked for when somebody wants to know, so that they are true then;
       who does not answer in time contributes what it said last, and is not ready.
    5. Workers do not outlive it: they end when its sockets to them do.

            start                    SIGHUP: new ready               SIGTERM
    first ─────────► in service ──────────────────────► old drains ────────────► all drain ─► exit
                         ▲                │ not within READY_S         a second one: at once
                         └────────────────┘
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import shutil
import signal
import tempfile
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.process_collector import ProcessCollector

from sse_gateway import __version__
from sse_gateway.admin import admin_app
from sse_gateway.aggregate import Aggregate
from sse_gateway.config import load_settings
from sse_gateway.errors import ConfigError
from sse_gateway.generation import MISSING, Generation, Means
from sse_gateway.listeners import Sockets, address_of, listening, serve_app
from sse_gateway.logs import change_logging, log_event
from sse_gateway.metrics import ADDITIVE, PREFIX, SupervisorMetrics
from sse_gateway.reasons import Unavailable
from sse_gateway.signals import HANDLED
from sse_gateway.systemd import notify, watchdog_interval_s

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sse_gateway.child import Child
    from sse_gateway.orders import Report
    from sse_gateway.settings import AdminSettings, Settings

READY_S = 60.0
"""How long new workers may take to get ready; then the old ones stay."""

MAX_DEATHS = 3
"""So many ends of new workers, and they will not get ready."""

WATCHDOG_S = 30.0
"""How long a worker may be silent, where systemd does not say."""

_log = logging.getLogger(__name__)


class Supervisor:
    """Runs the workers of one node.

    Attributes:
        reloads: How many, by outcome.
    """

    def __init__(self, file: Path, settings: Settings, env: Mapping[str, str], *, ready_s: float = READY_S) -> None:
        """Nothing is opened until `run`.

        Args:
            file: The configuration, read again by a reload.
            settings: What it says now.
            env: The environment; it overrides the file.
            ready_s: How long the new workers of a reload may take.
        """
        self.reloads = {"ok": 0, "failed": 0}
        self._file = file
        self._env = dict(env)
        self._settings = settings
        self._ready_s = ready_s
        self._aggregate = Aggregate(ADDITIVE)
        self._registry = CollectorRegistry(auto_describe=False)
        for collector in (self._aggregate, SupervisorMetrics(self)):
            self._registry.register(collector)
        ProcessCollector(namespace=f"{PREFIX}supervisor", registry=self._registry)
        self._sockets = Sockets(settings.listen, "listen")
        self._admin = AsyncExitStack()
        self._means: Means
        self._current: Generation | None = None
        self._generations: list[Generation] = []
        self._past_deaths = 0
        self._stops = 0
        self._hangups = 0
        self._status = ""
        self._turn = asyncio.Event()

    # Life.

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            ConfigError: An address cannot be bound, or the configuration proved bad at run time.
        """
        failure: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as group, AsyncExitStack() as stack:
                await self._run(group, stack)
        except* ConfigError as errors:
            failure = errors.exceptions[0]
        if failure is not None:
            raise failure

    async def _run(self, group: asyncio.TaskGroup, stack: AsyncExitStack) -> None:
        self._watch_signals(stack)
        ticker = group.create_task(self._tick())
        stack.callback(ticker.cancel)
        stack.push_async_callback(self._close)
        self._means = self._provide(stack)
        self._admin = await self._open_admin(self._settings.admin)
        await self._sockets.bind(self._settings.worker_count)
        self._sockets.listen()
        first = self._begin(group, self._settings, self._sockets)
        self._current = first
        await self._until(lambda: first.is_up or self._is_over)
        if first.is_up:
            self._log_start(first)
            self._tell("READY=1")
            await self._serve(group)
        await self._end(self._current)

    async def _close(self) -> None:
        await self._admin.aclose()
        self._sockets.close()

    def _watch_signals(self, stack: AsyncExitStack) -> None:
        loop = asyncio.get_running_loop()
        for number in HANDLED:
            loop.add_signal_handler(number, self._on_hangup if number == signal.SIGHUP else self._on_stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        stack.callback(signal.pthread_sigmask, signal.SIG_BLOCK, HANDLED)  # late ones: the end is as clean

    def _provide(self, stack: AsyncExitStack) -> Means:
        where = self._env.get("RUNTIME_DIRECTORY", "").partition(":")[0] or None
        try:
            directory = Path(tempfile.mkdtemp(prefix="sse-gateway-", dir=where))
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError([f"cannot make a directory for the workers' sockets: {reason}: set TMPDIR"]) from error
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        half_s = watchdog_interval_s(self._env, os.getpid())
        watchdog_s = WATCHDOG_S if half_s is None else 2 * half_s
        return Means(self._env, directory, watchdog_s, itertools.count(1))

    async def _open_admin(self, place: AdminSettings) -> AsyncExitStack:
        """Open the admin listener.

        Raises:
            ConfigError: The address cannot be bound.
        """
        async with AsyncExitStack() as stack:
            app = admin_app(
                self._scrape, self._reasons, self._admin_token, unordered=lambda: self._settings.redis.unordered
            )
            await serve_app(app, await listening(place, "admin", stack), stack)
            return stack.pop_all()
        raise AssertionError

    def _begin(self, group: asyncio.TaskGroup, settings: Settings, sockets: Sockets) -> Generation:
        generation = Generation(settings, sockets, self._means, self, former=self._current)
        self._generations.append(generation)
        if self._stops:
            generation.hurry()
        group.create_task(self._keep(generation))
        return generation

    async def _keep(self, generation: Generation) -> None:
        await generation.run()
        self._generations.remove(generation)
        self._past_deaths += generation.deaths
        self._turn.set()

    async def _serve(self, group: asyncio.TaskGroup) -> None:
        """Do as the signals say, until it is over."""
        reload: asyncio.Task[None] | None = None
        while not self._is_over:
            if self._hangups and (reload is None or reload.done()):
                self._hangups = 0
                reload = group.create_task(self._reload(group))
                reload.add_done_callback(lambda _: self._turn.set())
            await self._turn.wait()
            self._turn.clear()
        if reload is not None:
            reload.cancel()

    @property
    def _is_over(self) -> bool:
        """A signal came, or a worker has found the configuration bad."""
        return bool(self._stops or (self._current is not None and self._current.problems))

    async def _end(self, current: Generation) -> None:
        """See all workers out.

        Raises:
            ConfigError: A worker has found the configuration bad.
        """
        notify("STOPPING=1\nSTATUS=draining", self._env)
        workers = sum(len(generation.children) for generation in self._generations)
        log_event(_log, logging.INFO, "gateway.draining", workers=workers, drain_s=current.settings.shutdown.drain_s)
        if current.problems:
            for generation in self._generations:
                generation.hurry()
        await self._until(lambda: not self._generations)
        log_event(_log, logging.INFO, "gateway.stopped")
        if current.problems:
            raise ConfigError(current.problems)

    def _on_stop(self) -> None:
        """The first begins the drain, the second ends it."""
        self._stops += 1
        for generation in self._generations:
            if self._stops == 1:
                generation.drain(refuse=True)
            else:
                generation.hurry()
        self._turn.set()

    def _on_hangup(self) -> None:
        self._hangups += 1
        self._turn.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._turn.wait()
            self._turn.clear()

    async def _tick(self) -> None:
        """Feed systemd's watchdog."""
        interval_s = watchdog_interval_s(self._env, os.getpid())
        while interval_s is not None:
            notify("WATCHDOG=1", self._env)
            await asyncio.sleep(interval_s)

    # Reload.

    async def _reload(self, group: asyncio.TaskGroup) -> None:
        """Replace the workers by such of the configuration as it is now."""
        before = self._current
        log_event(_log, logging.INFO, "reload.started")
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}\nSTATUS=reloading", self._env)
        try:
            settings = load_settings(self._file, self._env)
            await self._replace(group, settings)
        except ConfigError as error:
            self.reloads["failed"] += 1
            log_event(_log, logging.ERROR, "reload.failed", problems=error.problems)
        else:
            self.reloads["ok"] += 1
            change_logging(settings.log.level, settings.log.format)
            log_event(_log, logging.INFO, "reload.done", workers=settings.worker_count)
        self._tell("READY=1")
        if self._current is not before:
            await self._until(lambda: before not in self._generations)

    async def _replace(self, group: asyncio.TaskGroup, settings: Settings) -> None:
        """Start new workers, and let the old ones go once the new are ready.

        Raises:
            ConfigError: Something cannot be had, or the new ones did not get ready; nothing has changed.
        """
        async with AsyncExitStack() as undo:
            sockets = await self._sockets_for(settings, undo)
            admin = self._admin
            if address_of(settings.admin) != address_of(self._settings.admin):
                admin = await self._open_admin(settings.admin)
                undo.push_async_callback(admin.aclose)
            new = self._begin(group, settings, sockets)
            undo.callback(new.hurry)
            await self._await_ready(new)
            undo.pop_all()
        await self._take_over(new, admin)

    async def _sockets_for(self, settings: Settings, undo: AsyncExitStack) -> Sockets:
        """What the new workers accept from: what there is already, as far as it serves."""
        if settings.listen == self._sockets.place:
            await self._sockets.bind(settings.worker_count)
            return self._sockets
        sockets = Sockets(settings.listen, "listen")
        undo.callback(sockets.close)
        await sockets.bind(settings.worker_count, own_ports={self._sockets.place.port})
        return sockets

    async def _await_ready(self, new: Generation) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._ready_s):
                await self._until(lambda: new.is_ready or bool(new.problems) or new.deaths >= MAX_DEATHS)
        if new.problems:
            raise ConfigError(new.problems)
        if not new.is_ready:
            raise ConfigError([f"the new workers did not get ready: {', '.join(sorted(new.reasons))}"])

    async def _take_over(self, new: Generation, admin: AsyncExitStack) -> None:
        """From here on nothing fails."""
        old, self._current = self._current, new
        new.sockets.listen()
        new.accept()
        if old is not None:
            await old.deafen()
            old.drain(refuse=False)
        self._settings = new.settings
        if new.sockets is not self._sockets:
            self._sockets.close()
            self._sockets = new.sockets
        if admin is not self._admin:
            former, self._admin = self._admin, admin
            await former.aclose()

    # How it is.

    @property
    def running(self) -> int:
        """Workers in service."""
        return 0 if self._current is None else sum(child.is_up for child in self._current.children.values())

    @property
    def restarts(self) -> int:
        """Workers started again, so far."""
        return self._past_deaths + sum(generation.deaths for generation in self._generations)

    def _admin_token(self) -> str:
        return self._settings.admin.token.get_secret_value()

    async def _scrape(self) -> CollectorRegistry:
        async with asyncio.TaskGroup() as group:
            for generation in self._generations:
                group.create_task(generation.ask(metrics=True))
        return self._registry

    async def _reasons(self) -> list[str]:
        """Why new streams would not be served."""
        if self._current is None:
            return [MISSING]
        reasons = await self._current.ask()
        if self._stops:
            reasons = reasons - {MISSING} | {Unavailable.DRAINING.value}
        return sorted(reasons)

    def changed(self) -> None:
        """A process has said something, or has gone."""
        self._turn.set()
        self._tell()

    def reported(self, child: Child, report: Report) -> None:
        """A process says how it is."""
        self._aggregate.take(child.slot, child.number, report.families)

    def ended(self, child: Child) -> None:
        """A process has gone."""
        self._aggregate.end(child.slot, child.number)

    def _tell(self, state: str = "") -> None:
        """Tell systemd what has changed: once it is ready, and until it stops."""
        if self._current is None or self._stops or not (state or self._status):
            return
        status = _status_of(self._current)
        if state or status != self._status:
            self._status = status
            notify(f"{state}\nSTATUS={status}".lstrip(), self._env)

    def _log_start(self, first: Generation) -> None:
        log_event(
            _log,
            logging.INFO,
            "gateway.started",
            version=__version__,
            listen=address_of(self._settings.listen),
            admin=address_of(self._settings.admin),
            workers=self._settings.worker_count,
            max_connections=sum(child.max_connections for child in first.children.values()),
            configured_connections=self._settings.limits.connections,
            unordered=self._settings.redis.unordered,
        )


def _status_of(generation: Generation) -> str:
    """What `systemctl status` shows."""
    if generation.is_ready:
        return "live"
    reasons = generation.reasons
    if reasons <= {Unavailable.SOURCE.value}:
        return "waiting for Redis"
    return f"not ready: {', '.join(sorted(reasons))}"
