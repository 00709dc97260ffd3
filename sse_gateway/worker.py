"""One worker process: a gateway that takes its orders from the supervisor.

Run as ``python -m sse_gateway.worker DESCRIPTOR`` by the supervisor alone; all it needs to know comes
through that socket.

Rules:
    1. It reports when something changes, when asked, and in any case every so often: whoever is
       silent for the watchdog's time is taken for hung.
    2. Without a supervisor there is no worker: when the socket ends it stops as on SIGTERM, and
       lets go of the listening sockets at once, so that a new supervisor can have the address.
    3. Ctrl-C and a hang-up of the terminal reach the supervisor, which knows what to do; SIGTERM,
       which some service managers send to every process, is obeyed here as well.
    4. It accepts connections once it is ready: until then they wait in the kernel, where a client
       waits a second, while a refusal would send it away for many. But not for ever.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import math
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import uvloop

from sse_gateway.aggregate import News, snapshot
from sse_gateway.census_memory import join
from sse_gateway.errors import ConfigError, GatewayError
from sse_gateway.gateway import Gateway
from sse_gateway.logs import configure_logging, log_event
from sse_gateway.orders import VERSION, Accept, Ask, Deafen, Drain, Refused, Report, Start, Stop, Up, Wire
from sse_gateway.settings import Settings
from sse_gateway.signals import HANDLED

if TYPE_CHECKING:
    from sse_gateway.aggregate import Family
    from sse_gateway.census import Register

EXIT_OK = 0
EXIT_INTERNAL = 70
EXIT_CONFIG = 78

LOOK_S = 0.05
"""How often it looks whether it may accept, from its start on until it does."""

MAX_WAITING = 1 << 20
"""Bytes that the supervisor has not taken; beyond, nothing is reported unasked."""

_LOG_FLUSH_S = 2.0

_log = logging.getLogger("sse_gateway.worker")  # `__name__` is the program's


def main() -> NoReturn:
    """Run the process."""
    faulthandler.enable()  # SIGABRT, which ends a worker that hangs, shows where
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(uvloop.run(_live(_adopt(int(sys.argv[1])))))


async def _live(sock: socket.socket) -> int:
    wire = await Wire.open(sock)
    try:
        start = await wire.receive()
        return await _work(wire, start) if isinstance(start, Start) else EXIT_OK
    finally:
        await wire.close()


async def _work(wire: Wire, start: Start) -> int:
    """Work until the end; returns the exit code."""
    settings = Settings.model_validate(start.settings)
    logs = configure_logging(settings.log.level, settings.log.format, fields={"worker": start.slot})
    try:
        await Worker(wire, start, settings).run()
    except ConfigError as error:
        wire.send(Refused(list(error.problems)))
        return EXIT_CONFIG
    except Exception as error:  # noqa: BLE001 - I9: logged, and the process ends
        log_event(_log, logging.CRITICAL, "process.failed", exc=error)
        return EXIT_INTERNAL
    finally:
        logs.close(_LOG_FLUSH_S)
        logging.getLogger().addHandler(logging.NullHandler())  # for requests that end after it, with the loop
    return EXIT_OK


class Worker:
    """The gateway, and what the supervisor hears of it and tells it."""

    def __init__(self, wire: Wire, start: Start, settings: Settings) -> None:
        """Wire the gateway; needs a running loop."""
        self._wire = wire
        self._start = start
        self._gateway = Gateway(
            settings,
            handover_dir=Path(start.handover_dir),
            connections=start.connections,
            register=_register(start),
        )
        self._up = asyncio.Event()
        self._ordered = asyncio.Event()
        self._news = News()
        self._rows = start.rows
        self._may_accept = False
        self._accepts = False
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Work until the end.

        Raises:
            ConfigError: The configuration proved bad at run time.
            GatewayError: The supervisor is of another version.
        """
        if self._start.version != VERSION:
            raise GatewayError("the supervisor is of another version: restart the service")
        rows = [[_adopt(descriptor) for descriptor in row] for row in self._start.listeners]
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._gateway.end)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        for work in (self._obey(), self._watch(), self._admit()):
            task = asyncio.create_task(work)
            task.add_done_callback(self._ended)
            self._tasks.append(task)
        try:
            await self._gateway.run(self._started, rows)
        finally:
            self._report(self._news.of(self._gateway.metrics.counters()))
            for task in self._tasks:
                task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._gateway.source_failed(error)

    def _started(self) -> None:
        self._wire.send(Up(self._gateway.streams.limit))
        self._up.set()

    async def _obey(self) -> None:
        """Follow orders, until the supervisor has gone."""
        while (message := await self._wire.receive()) is not None:
            match message:
                case Accept(rows=rows):
                    self._rows = rows
                    self._may_accept = True
                    self._ordered.set()
                case Deafen():
                    self._gateway.deafen()
                case Ask(number=number, metrics=True):
                    self._report(snapshot(self._gateway.metrics.registry.collect()), number)
                case Ask(number=number):
                    self._report([], number)
                case Drain(refuse=refuse):
                    self._gateway.stop(refuse=refuse)
                case Stop():
                    self._gateway.stop()
                    self._gateway.streams.hurry()
                case _:
                    pass
        self._gateway.deafen()
        self._gateway.stop()
        # Who made it cannot remove it any more. Workers that still drain need it no more than we do.
        shutil.rmtree(self._start.handover_dir, ignore_errors=True)

    async def _admit(self) -> None:
        """Accept connections once the time has come, from where we are to."""
        await self._up.wait()
        hold_s = self._start.hold_s
        until = time.monotonic() + (math.inf if hold_s is None else hold_s)
        while not self._may_accept and time.monotonic() < until:
            if hold_s is not None and not self._gateway.unready():
                break
            await asyncio.sleep(LOOK_S)
        while True:
            self._ordered.clear()
            await self._gateway.accept(self._rows)
            self._accepts = True
            self._gateway.news.set()
            await self._ordered.wait()

    async def _watch(self) -> None:
        """Report what changes, and that we live."""
        await self._up.wait()
        told: tuple[list[str], bool] | None = None
        due = 0.0
        while True:
            self._gateway.news.clear()
            now, state = time.monotonic(), (self._gateway.unready(), self._accepts)
            if (state != told or now >= due) and self._wire.waiting < MAX_WAITING:
                told, due = state, now + 0.9 * self._start.beat_s  # a clock that looks every so often is not to miss it
                self._report(self._news.of(self._gateway.metrics.counters()))
            await self._gateway.news.wait()

    def _report(self, families: list[Family], answers: int = 0) -> None:
        self._wire.send(Report(self._gateway.unready(), families, self._accepts, answers))


def _register(start: Start) -> Register | None:
    """Where it counts its streams, together with the other workers; None without such a place."""
    if start.census < 0:
        return None
    for descriptor in (start.census, start.beside):
        if descriptor >= 0:
            os.set_inheritable(descriptor, False)  # noqa: FBT003 - it has no keyword
    return join(start.slot, start.census, start.beside if start.beside >= 0 else None)


def _adopt(descriptor: int) -> socket.socket:
    sock = socket.socket(fileno=descriptor)
    sock.set_inheritable(False)
    return sock


if __name__ == "__main__":
    main()
