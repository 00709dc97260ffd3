"""One worker process as the supervisor has it, from its start to its end.

Rules:
    1. Never fork without exec. A worker inherits its end of the socket and what it listens on, no
       other descriptor; nothing of the configuration is in its arguments or its environment.
    2. Signals wait until the worker can handle them: a Ctrl-C while it starts is the supervisor's.
    3. When it has ended, everything it had said before has been heard.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Protocol

from sse_gateway.orders import Ask, Refused, Report, Up, Wire
from sse_gateway.signals import HANDLED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sse_gateway.orders import Message, Start

MAX_QUESTIONS = 16
"""That wait for an answer; whoever asks beyond gets the last one."""

HEAR_S = 1.0
"""How long the last words of a process that has ended may take."""

_OWN = ("NOTIFY_SOCKET", "WATCHDOG_", "SSE_GATEWAY__")
"""What variables begin with that are for the supervisor: systemd's, and configuration with its secrets."""


class Owner(Protocol):
    """Who keeps the processes."""

    def changed(self) -> None:
        """A process has said something, or has gone."""

    def reported(self, child: Child, report: Report) -> None:
        """It says how it is."""


class Child:
    """One process.

    Attributes:
        slot: Its place among the workers.
        number: Which process this is, of all that there ever were.
        pid: Its id.
        begun_at: Seconds of the monotonic clock.
        heard_at: When it last said something.
        max_connections: Streams it takes; 0 until it is up.
        rows: What it accepts from, as soon as it does.
        accepts: Whether it does.
        reasons: Why new streams would not be served; None until it has said.
        problems: Why it refused its configuration.
        is_killed: Ended by us, since it did not answer.
        exit_code: Once it has ended; a signal's number below zero.
    """

    def __init__(self, number: int, start: Start, wire: Wire, process: subprocess.Popen[bytes], owner: Owner) -> None:
        """Watch over a process that `spawn` has begun."""
        self.slot = start.slot
        self.number = number
        self.pid = process.pid
        self.begun_at = self.heard_at = time.monotonic()
        self.max_connections = 0
        self.rows = start.rows
        self.accepts = False
        self.reasons: list[str] | None = None
        self.problems: tuple[str, ...] = ()
        self.is_killed = False
        self.exit_code = 0
        self._process = process
        self._wire = wire
        self._owner = owner
        self._asked = 0
        self._questions: dict[int, asyncio.Future[Report | None]] = {}
        self._ended = asyncio.Event()
        self._pidfd = os.pidfd_open(process.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._end)
        self._listening = asyncio.create_task(self._listen())
        wire.send(start)

    @property
    def is_up(self) -> bool:
        """Whether everything is in place there."""
        return self.max_connections > 0

    @property
    def is_ready(self) -> bool:
        """Whether new streams would be served."""
        return self.is_up and self.reasons == []

    def tell(self, message: Message) -> None:
        """Give an order; never waits."""
        self._wire.send(message)

    async def ask(self, within_s: float, *, metrics: bool = False) -> Report | None:
        """Ask how it is; None if it does not answer in time."""
        if len(self._questions) >= MAX_QUESTIONS:
            return None if self.reasons is None else Report(self.reasons, [], self.accepts)
        self._asked += 1
        number = self._asked
        answer: asyncio.Future[Report | None] = asyncio.get_running_loop().create_future()
        self._questions[number] = answer
        self.tell(Ask(number, metrics))
        try:
            async with asyncio.timeout(within_s):
                return await answer
        except TimeoutError:
            return None
        finally:
            del self._questions[number]

    def kill(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens once the process has ended."""
        if not self._ended.is_set():
            self.is_killed = True
            signal.pidfd_send_signal(self._pidfd, number)

    async def wait(self) -> None:
        """Wait for the end."""
        await self._ended.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(HEAR_S):
                await asyncio.shield(self._listening)
        self._listening.cancel()
        await self._wire.close()

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.exit_code = self._process.wait()
        self._ended.set()

    async def _listen(self) -> None:
        while (message := await self._wire.receive()) is not None:
            self.heard_at = time.monotonic()
            match message:
                case Up():
                    self.max_connections = message.max_connections
                case Refused():
                    self.problems = tuple(message.problems)
                case Report():
                    self.reasons = message.reasons
                    self.accepts = message.accepts
                    self._owner.reported(self, message)
                    self._answer(message.answers, message)
                case _:
                    pass
            self._owner.changed()
        for number in self._questions:
            self._answer(number, None)

    def _answer(self, number: int, report: Report | None) -> None:
        answer = self._questions.get(number)
        if answer is not None and not answer.done():
            answer.set_result(report)


async def spawn(number: int, start: Start, env: Mapping[str, str], owner: Owner) -> Child:
    """Begin a worker process.

    Raises:
        OSError: There can be none now.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        wire = await Wire.open(ours)
        try:
            process = _exec(theirs.fileno(), start, env)
        except OSError:
            await wire.close()
            raise
        return Child(number, start, wire, process, owner)


def _exec(control: int, start: Start, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    memory = [descriptor for descriptor in (start.census, start.beside) if descriptor >= 0]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    try:
        return subprocess.Popen(  # noqa: S603 - our own program
            # -P: the package that is installed, whatever lies in the working directory.
            [sys.executable, "-P", "-m", "sse_gateway.worker", str(control)],
            pass_fds=[control, *memory, *chain.from_iterable(start.listeners)],
            stdin=subprocess.DEVNULL,
            env={name: value for name, value in env.items() if not name.startswith(_OWN)},
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
