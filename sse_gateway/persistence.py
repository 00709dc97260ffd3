"""Keeps the log in a store, and finds it there when no node holds it any more.

Rules:
    1. Nothing on the path of an event waits for it: a task writes what lies behind, on a connection of its own.
    2. One node writes: the holder of the lease. The others look every second whether there is one; who takes over goes on
       from what is stored.
    3. Whatever fails ends the connection. What was written is read anew before anything else is written.
    4. What was stored is looked for once, for at most 10 seconds, and used whole or not at all. Nothing is deleted for it.
    5. The loop is never held: a batch is a few milliseconds of work, and the writer rests as long as it took.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from sse_gateway.backlog import Backlog
from sse_gateway.errors import SourceError, StoreError
from sse_gateway.logs import log_event
from sse_gateway.mirror import Mirror
from sse_gateway.recollection import Recollection, read_rows, read_state
from sse_gateway.store import LEASE_S, opened
from sse_gateway.stored import Keys, Seal

if TYPE_CHECKING:
    from collections.abc import Callable

    from sse_gateway.hub import Hub
    from sse_gateway.mirror import Batch
    from sse_gateway.settings import Settings
    from sse_gateway.store import Open, Store
    from sse_gateway.stored import Row

LOAD_S = 10.0
"""For reading what is stored; then a new log begins without it."""

WRITE_S = 0.05
"""Between two batches, if the first one wrote all there was."""

POLL_S = 1.0
"""Between two looks at the lease, and between two attempts after a failure."""

FAILED_LOG_S = 10.0
"""At most one line about failures in this time."""

FINISH_S = 2.0
"""What a node that stops has for writing the rest."""

MIN_LOAD = 1 << 30
"""Bytes of memory that are always allowed for reading: the writer's windows may be larger than ours."""

_LOAD_TRIES = 3
_RETRY_S = 0.25
_MAX_REST_S = 0.05

_log = logging.getLogger(__name__)


class Persistence:
    """The store, as one node sees it.

    Attributes:
        mirror: What is stored, while we write.
        is_writer: Whether we write.
        batches: Batches written so far.
        events: Events written so far.
        errors: Failures so far.
        loaded_events: Events that were found when this node started.
    """

    def __init__(
        self,
        settings: Settings,
        hub: Hub,
        open_link: Open,
        *,
        node: str,
        fingerprint: str,
        key: bytes,
        is_live: Callable[[], bool],
        failed: Callable[[BaseException], None],
    ) -> None:
        """Prepare; `run` begins.

        Args:
            settings: Configuration.
            hub: The core.
            open_link: Connects to where the store is.
            node: Who we are.
            fingerprint: Of all that decides what an event is.
            key: The log's.
            is_live: Whether the log is live here: only then we write.
            failed: Gets what failed for no foreseen reason: the process has to end.
        """
        persistence = settings.persistence
        self.is_on = persistence.mode == "redis"
        self.is_writer = False
        self.batches = 0
        self.events = 0
        self.errors = 0
        self.loaded_events = 0
        self._hub = hub
        self._open_link = open_link
        self._node = node
        self._keys = Keys(persistence.key_prefix, settings.cluster.name, fingerprint)
        self._seal = Seal(key)
        self._is_live = is_live
        self._failed = failed
        self._timeout_s = max(settings.redis.connect_timeout_s, persistence.max_lag_s)
        self._rules = settings.rules
        self.mirror = Mirror(
            self._keys, self._seal, hub.log, hub.history, self._rules, node=node, max_lag_s=persistence.max_lag_s
        )
        self._state: bytes | None = None  # its value in Redis, as far as we know
        self._stored: tuple[str, int] | None = None  # epoch and head, as long as nobody else writes
        self._backlog = Backlog(hub.history, persistence.max_lag_s)
        self._is_blank = False  # the next time begin from nothing
        self._stir = asyncio.Event()
        self._is_ending = False
        self._skipped = 0
        self._logged_at = -FAILED_LOG_S
        self._task: asyncio.Task[None] | None = None

    # Writing.

    def start(self) -> None:
        """Begin to keep the store, if there is to be one."""
        if self.is_on:
            self._task = asyncio.create_task(self._run())

    def lag_s(self, now: float) -> float:
        """Age of the oldest event that is held and not stored; 0 if there is none, or another node writes."""
        if self._stored is None:
            return 0.0
        epoch, (stored_epoch, head) = self._hub.log.epoch, self._stored
        return self._backlog.lag_s(epoch.base + (head if epoch.name == stored_epoch else -1), now)

    def stir(self) -> None:
        """The log is there: see whether it is to be written."""
        self._stir.set()

    async def finish(self) -> None:
        """Write what is left, and let others write. Idempotent."""
        self._is_ending = True
        self._stir.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=FINISH_S)
            self.close()

    def close(self) -> None:
        """Write no more. Idempotent."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            while not self._is_ending:
                try:
                    await self._keep()
                except (SourceError, StoreError) as error:
                    self._is_blank |= isinstance(error, StoreError)
                    self._note_failure(error)
                finally:
                    self.mirror.drop()
                    self.is_writer = False
                await self._sleep(POLL_S)
        except Exception as error:  # noqa: BLE001 - I9: reported, and the process ends
            self._failed(error)

    async def _keep(self) -> None:
        """Write whenever it is our turn.

        Raises:
            SourceError: Redis is away, or refuses.
            StoreError: A key is not what it should be.
        """
        async with opened(
            self._open_link, self._keys, self._node, timeout_s=self._timeout_s, failed=self._failed
        ) as store:
            while not self._is_ending:
                if self._is_live():
                    await self._take_turn(store)
                await self._sleep(POLL_S)

    async def _take_turn(self, store: Store) -> None:
        if not await store.take_lease(self._hub.log.epoch.name):
            self._stored = None
            return
        await self._write(store)
        self.mirror.drop()
        self.is_writer = False

    async def _write(self, store: Store) -> None:
        """Write the current epoch until we stop, lose the log, or somebody else writes."""
        epoch = self._hub.log.epoch.name
        if not await self._begin(store, epoch):
            await store.release()
            return
        written_at = time.monotonic()
        while self.mirror.is_valid:
            began = time.monotonic()
            batch = self.mirror.batch(began, _wall())
            rest_s = min(time.monotonic() - began, _MAX_REST_S) if batch is not None and batch.has_more else WRITE_S
            if batch is not None:
                if not await store.transact(epoch, self._state, batch.commands, batch.expected):
                    self._stored = None
                    return
                self._state, self._stored = batch.state, (epoch, self.mirror.head)
                self._note_batch(batch)
                written_at = began
            elif self._is_ending or not self._is_live():
                await store.release()
                return
            elif began - written_at > LEASE_S / 4:
                batch = self.mirror.keep()
                if not await store.transact(epoch, self._state, batch.commands, batch.expected):
                    return
                written_at = began
            await self._sleep(rest_s)

    async def _begin(self, store: Store, epoch: str) -> bool:
        """Learn what is stored of the current epoch; False if that is more than we know of it."""
        order = await store.order(epoch)
        if order is None:
            order = (await store.newest())[1] + 1
        self._state = await store.state(epoch)
        state, rows = None, {}
        if self._state is not None and not self._is_blank:
            try:
                state = read_state(self._keys, self._seal, epoch, self._state)
                rows = await self._read_rows(store, epoch)
            except StoreError as error:
                self._note_failure(error)
                state, rows = None, {}
        if epoch != self._hub.log.epoch.name or not self.mirror.begin(state, rows, order, time.monotonic()):
            return False
        self._is_blank = False
        self._stored = epoch, self.mirror.head
        if not self.is_writer:
            self.is_writer = True
            log_event(_log, logging.INFO, "store.writing", epoch=epoch, behind=self._behind())
        return True

    def _behind(self) -> int:
        """Messages that were counted and are not stored."""
        log = self._hub.log
        return log.head - log.epoch.base - self.mirror.head

    def _note_failure(self, error: Exception) -> None:
        self.errors += 1
        now = time.monotonic()
        if now - self._logged_at >= FAILED_LOG_S:
            self._logged_at = now
            reason = str(error)
            if reason.startswith("NOPERM"):
                reason += f"; what the user needs on ~{self._keys.base.decode()}* is in docs/operations.md"
            log_event(_log, logging.WARNING, "store.failed", reason=reason, errors=self.errors)

    def _note_batch(self, batch: Batch) -> None:
        self.batches += 1
        self.events += batch.events
        if self.mirror.skipped > self._skipped:
            log_event(_log, logging.WARNING, "store.skipped", events=self.mirror.skipped - self._skipped)
            self._skipped = self.mirror.skipped

    async def _sleep(self, seconds: float) -> None:
        """Sleep until there is something to do at once; not at all once we end."""
        if self._is_ending:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stir.wait()
                self._stir.clear()

    # Reading.

    async def load(self) -> Recollection | None:
        """Read the newest stored epoch; None if there is none, or it cannot be used."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(LOAD_S):
                found = await self._load()
        except TimeoutError:
            log_event(_log, logging.ERROR, "store.refused", reason=f"it could not be read within {LOAD_S:g} s")
            return None
        except StoreError as error:
            log_event(_log, logging.ERROR, "store.refused", reason=str(error))
            return None
        if found is None:
            log_event(_log, logging.INFO, "store.empty")
            return None
        self.loaded_events += found.events
        log_event(
            _log,
            logging.INFO,
            "store.loaded",
            epoch=found.state.epoch,
            events=found.events,
            channels=len(found.rows),
            channels_lost=found.lost,
            duration_s=round(time.monotonic() - began, 3),
        )
        return found

    async def _load(self) -> Recollection | None:
        while True:
            try:
                async with opened(
                    self._open_link, self._keys, self._node, timeout_s=self._timeout_s, failed=self._failed
                ) as store:
                    return await self._read(store)
            except SourceError as error:
                self._note_failure(error)
            await asyncio.sleep(_RETRY_S)

    async def _read(self, store: Store) -> Recollection | None:
        """Read until nothing has been written meanwhile.

        Raises:
            StoreError: It cannot be used.
        """
        for _ in range(_LOAD_TRIES):
            epoch, _order = await store.newest()
            if not epoch:
                return None
            value = await store.state(epoch)
            if value is None:
                raise StoreError(f"the state of epoch {epoch} is gone: has Redis evicted it?")
            try:
                found = await self._read_epoch(store, epoch, value)
            except StoreError:
                if await store.state(epoch) == value:
                    raise
            else:
                if await store.state(epoch) == value:
                    return found
        raise StoreError("somebody is writing it")

    async def _read_epoch(self, store: Store, epoch: str, value: bytes) -> Recollection:
        state = read_state(self._keys, self._seal, epoch, value)
        rows = await self._read_rows(store, epoch)
        max_bytes = max(2 * self._hub.limits.window_bytes, MIN_LOAD)
        found = Recollection(self._keys, self._seal, state, rows, rules=len(self._rules), max_bytes=max_bytes)
        found.add_ring(await store.ring(epoch, found.blocks()))
        async for name, members in store.windows(epoch, list(rows), max_bytes):
            found.add_window(name, members, time.monotonic(), _wall())
        return found

    async def _read_rows(self, store: Store, epoch: str) -> dict[str, Row]:
        """Read all rows, page by page: a writer that takes over serves streams meanwhile.

        Raises:
            StoreError: They cannot be used; what comes after the first one is not read.
        """
        rows: dict[str, Row] = {}
        async for fields in store.rows(epoch):
            rows |= read_rows(self._keys, self._seal, epoch, fields)
        return rows


def _wall() -> float:
    return time.time()  # noqa: TID251 - ages of what is stored: monotonic clocks end with their host
