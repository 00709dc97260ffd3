"""The workers of one configuration: started together, kept alive, ended together.

Rules:
    1. A worker that ends unasked is started again: the first time at once, then after a back-off
       with jitter; one that lived for a while begins anew.
    2. A worker that is silent for the watchdog's time is ended with SIGABRT, which shows where it
       hung, and then SIGKILL.
    3. After `drain` or `hurry` none is started again, and the end of each has a bound.
    4. Workers that are to replace others accept nothing until told. One that is started again
       accepts once it is ready, or after some seconds.
    5. Of one that is away, or silent, the others accept the connections too, until it is back.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sse_gateway import child as children
from sse_gateway.census_memory import CensusMemory
from sse_gateway.logs import log_event
from sse_gateway.orders import Accept, Deafen, Drain, Start, Stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from sse_gateway.child import Child
    from sse_gateway.listeners import Sockets
    from sse_gateway.orders import Message, Report
    from sse_gateway.settings import Settings

START_S = 30.0
"""How long a worker may take to load; only then does the watchdog's time count."""

ABORT_S = 2.0
"""How long SIGABRT may take."""

SPARE_S = 6.0
"""How long workers may take to end after their drain; then SIGKILL."""

HURRY_S = 3.0
"""How long without one."""

SILENT_S = 3.0
"""A worker that was not heard for so long is taken for away."""

FIRST_HOLD_S = 1.0
"""How long the first workers keep connections waiting until they are ready; then they refuse for now."""

HOLD_S = 5.0
"""How long one that is started again does."""

SETTLED_S = 10.0
"""A worker that lived so long is started again at once."""

ANSWER_S = 1.0
"""How long a worker may take to answer."""

MISSING = "worker"
"""The reason while a worker is missing, starting, or silent."""

BACKOFF_S = 0.1
BACKOFF_CAP_S = 2.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Means:
    """What all generations have in common.

    Attributes:
        env: Variables for workers.
        handover_dir: For their sockets.
        watchdog_s: How long a worker may be silent.
        numbers: One for each process.
    """

    env: Mapping[str, str]
    handover_dir: Path
    watchdog_s: float
    numbers: Iterator[int]


class Owner(children.Owner, Protocol):
    """Who keeps the generations."""

    def ended(self, child: Child) -> None:
        """A process has gone."""


class Generation:
    """The workers of one configuration.

    Attributes:
        settings: The configuration.
        sockets: What they accept from.
        children: The processes that live, by slot.
        deaths: How often one ended unasked.
        problems: Why one refused the configuration; then none is started again.
        census: In which the workers count their streams together.
    """

    def __init__(
        self, settings: Settings, sockets: Sockets, means: Means, owner: Owner, former: Generation | None = None
    ) -> None:
        """Nothing runs until `run`.

        Args:
            settings: The configuration.
            sockets: Bound for as many workers.
            means: What it has in common with others.
            owner: Hears what happens.
            former: Whom it is to replace; None: it accepts without being told.

        Raises:
            ConfigError: There is no memory to count in.
        """
        is_first = former is None
        self.settings = settings
        self.sockets = sockets
        self.children: dict[int, Child] = {}
        self.deaths = 0
        self.problems: tuple[str, ...] = ()
        self._beside: CensusMemory | None = None if former is None else former.census
        secret = b"" if self._beside is None else self._beside.census.secret
        self.census: CensusMemory = CensusMemory.create(settings.worker_count, _share(settings, 0), secret)
        self._means = means
        self._owner = owner
        self._holds: dict[int, float | None] = dict.fromkeys(
            range(settings.worker_count), FIRST_HOLD_S if is_first else None
        )
        self._document = settings.document()
        # As they are now: another generation may add to them.
        self._listeners = [[sock.fileno() for sock in row] for row in sockets.rows]
        self._dealt = sockets.deal(settings.worker_count)
        self._may_accept = is_first
        self._begun_at = time.monotonic()
        self._lost: set[int] = set()
        self._order: Message | None = None
        self._over = asyncio.Event()

    # Life.

    async def run(self) -> None:
        """Keep the workers alive, until the end of the last."""
        try:
            async with asyncio.TaskGroup() as group:
                keepers = [group.create_task(self._keep(slot)) for slot in self._holds]
                watch = group.create_task(self._watch())
                await asyncio.wait(keepers)
                watch.cancel()
        finally:
            self._kill()  # nobody is left, unless we have failed
            self.census.close()

    async def _keep(self, slot: int) -> None:
        """Keep one worker alive."""
        tries = 0
        while not self._over.is_set():
            begun = time.monotonic()
            child = await self._live(slot)
            if self._over.is_set():
                return
            tries = 1 if time.monotonic() - begun >= SETTLED_S else tries + 1
            pause_s = backoff_s(tries)
            self.deaths += 1
            if child is not None:
                self._log_death(child, pause_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._over.wait()

    async def _live(self, slot: int) -> Child | None:
        """One worker's life; None if it could not be started."""
        start = self._start(slot)
        self._holds[slot] = HOLD_S if self._may_accept else None
        try:
            child = await children.spawn(next(self._means.numbers), start, self._means.env, self)
        except OSError as error:
            log_event(_log, logging.ERROR, "worker.not_started", worker=slot, reason=error.strerror or str(error))
            return None
        self.children[slot] = child
        if self._may_accept and start.hold_s is None:  # told while it was being started
            child.tell(Accept(child.rows))
        if self._order is not None:
            child.tell(self._order)
        await child.wait()
        self.census.clear(slot)
        del self.children[slot]
        self._lost.add(slot)
        self._owner.ended(child)
        if child.problems:
            self.problems = child.problems
            self._over.set()
        self.changed()
        return child

    def _start(self, slot: int) -> Start:
        share = {"connections": _share(self.settings, slot)}
        beside = self._beside
        return Start(
            settings=self._document | {"limits": self._document["limits"] | share},
            slot=slot,
            listeners=self._listeners,
            rows=self._dealt[slot],
            hold_s=self._holds[slot],
            handover_dir=str(self._means.handover_dir),
            beat_s=min(1.0, self._means.watchdog_s / 4),
            connections=self.settings.limits.connections,
            census=self.census.descriptor,
            beside=-1 if beside is None else beside.descriptor,
        )

    @staticmethod
    def _log_death(child: Child, pause_s: float) -> None:
        code = child.exit_code
        log_event(
            _log,
            logging.WARNING,
            "worker.died",
            worker=child.slot,
            pid=child.pid,
            exit_code=code if code >= 0 else None,
            signal=signal.Signals(-code).name if code < 0 else None,
            restart_in_s=round(pause_s, 3),
        )

    async def _watch(self) -> None:
        """End those that hang."""
        interval_s = min(0.25, self._means.watchdog_s / 8)
        while True:
            due = time.monotonic() + interval_s
            await asyncio.sleep(interval_s)
            now = time.monotonic()
            for child in self.children.values():
                if now - due > 1.0:  # we ourselves were held up: what they said has not been read yet
                    child.heard_at = now
                limit_s = self._means.watchdog_s if child.is_up else max(START_S, self._means.watchdog_s)
                if now - child.heard_at > limit_s and not child.is_killed:
                    self._end_hung(child, now - child.heard_at)
            self._share_out()

    @staticmethod
    def _end_hung(child: Child, silent_s: float) -> None:
        log_event(_log, logging.ERROR, "worker.hung", worker=child.slot, pid=child.pid, silent_s=round(silent_s, 3))
        child.kill(signal.SIGABRT)
        asyncio.get_running_loop().call_later(ABORT_S, child.kill, signal.SIGKILL)

    def _share_out(self) -> None:
        """Have all rows accepted from, those too whose worker is away."""
        now = time.monotonic()
        present = {slot: child for slot, child in self.children.items() if child.accepts}
        present = {slot: child for slot, child in present.items() if now - child.heard_at < SILENT_S}
        if self._order is not None and self._order != Drain(refuse=True):
            return
        missed = self._holds.keys() if now - self._begun_at >= HOLD_S else self._lost
        away = [row for slot in sorted(missed - present.keys()) for row in self._dealt[slot]]
        for index, (slot, child) in enumerate(sorted(present.items())):
            rows = sorted({*self._dealt[slot], *away[index :: len(present)]})
            if rows != child.rows:
                child.rows = rows
                child.tell(Accept(rows))

    # What they say.

    def changed(self) -> None:
        """A process has said something, or has gone."""
        self._share_out()
        self._owner.changed()

    def reported(self, child: Child, report: Report) -> None:
        """A process says how it is."""
        self._owner.reported(child, report)

    # What they are told.

    def accept(self) -> None:
        """Take over: accept connections from now on, those that are started again too."""
        self._may_accept = True
        self._begun_at = time.monotonic()
        self._holds = dict.fromkeys(self._holds, HOLD_S)
        for child in self.children.values():
            child.tell(Accept(child.rows))

    async def deafen(self) -> None:
        """Have all of them accept no more, and wait until they do: whose stream one ends must not meet another."""
        self._tell(Deafen())
        await self._ask(self.children.values())  # orders are followed in turn

    def drain(self, *, refuse: bool) -> None:
        """End all workers, streams spread over the drain time. Only the first time counts."""
        if self._order is None:
            self._finish(Drain(refuse), self.settings.shutdown.drain_s + SPARE_S)

    def hurry(self) -> None:
        """End all workers at once."""
        self._finish(Stop(), HURRY_S)

    def _finish(self, order: Drain | Stop, within_s: float) -> None:
        self._order = order
        self._over.set()
        self._tell(order)
        asyncio.get_running_loop().call_later(within_s, self._kill)

    def _tell(self, message: Message) -> None:
        for child in self.children.values():
            child.tell(message)

    def _kill(self) -> None:
        for child in self.children.values():
            log_event(_log, logging.ERROR, "worker.killed", worker=child.slot, pid=child.pid)
            child.kill(signal.SIGKILL)

    # How they are.

    @property
    def is_up(self) -> bool:
        """Whether every worker is in place."""
        return self._all(lambda child: child.is_up)

    @property
    def is_ready(self) -> bool:
        """Whether new streams would be served by every worker, as far as is known."""
        return self._all(lambda child: child.is_ready)

    def _all(self, condition: Callable[[Child], bool]) -> bool:
        return len(self.children) == len(self._holds) and all(map(condition, self.children.values()))

    @property
    def reasons(self) -> set[str]:
        """Why new streams would not be served, as far as is known."""
        missing = set() if self.is_up else {MISSING}
        return missing.union(*(child.reasons or () for child in self.children.values()))

    async def ask(self, *, metrics: bool = False) -> set[str]:
        """Ask all that are up; returns why new streams would not be served.

        Who does not answer in time is missing, and so is who still starts: that takes longer than whoever asks may wait.
        """
        reports = await self._ask([child for child in self.children.values() if child.is_up], metrics=metrics)
        missing = set() if self.is_up and None not in reports else {MISSING}
        return missing.union(*(report.reasons for report in reports if report is not None))

    @staticmethod
    async def _ask(those: Iterable[Child], *, metrics: bool = False) -> list[Report | None]:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(child.ask(ANSWER_S, metrics=metrics)) for child in those]
        return [task.result() for task in asked]


def _share(settings: Settings, slot: int) -> int:
    """A worker's part of the node's connections."""
    total, slots = settings.limits.connections, settings.worker_count
    return total // slots + (slot < total % slots)


def backoff_s(tries: int) -> float:
    """How long to wait before a worker is started again.

    Args:
        tries: Ends in a row, 1 at least.
    """
    if tries <= 1:
        return 0.0
    most = min(BACKOFF_CAP_S, BACKOFF_S * 2.0 ** min(tries - 2, 16))
    return most / 2 + random.uniform(0, most / 2)
