"""This process as one of the nodes that share a log: carries out what the replica decides.

The replica is pure; here it gets its clock, its randomness, its link and its hand-over.

With `redis.unordered` there is no log to share. The node then talks with itself alone: what its replica
says comes back at once, as on a channel that has no other listener, and what others say is not heard. So
each connection begins a new epoch, in the same step in which its first marker comes back.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import secrets
import string
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from sse_gateway.control import Control, fingerprint
from sse_gateway.decisions import Fetch, Leave, Load, Publish, Serve, Stop, Synced
from sse_gateway.handover import Handover
from sse_gateway.logs import log_event
from sse_gateway.persistence import Persistence
from sse_gateway.primary import open_link
from sse_gateway.replica import Replica

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sse_gateway.channels import Rule, RuleTable
    from sse_gateway.decisions import Decision
    from sse_gateway.errors import MessageError
    from sse_gateway.hub import Hub
    from sse_gateway.settings import Settings
    from sse_gateway.source import Source

TICK_S = 0.05
"""Time between two looks at the replica's clock, while nodes join; else there is one for each checkpoint."""

_NAMES_BEGAN = 1_577_836_800
"""Unix seconds of 2020-01-01, from where names count: six digits last until 2088."""

SKEW_S = 10
"""By how much the clocks of nodes may differ."""

DIGITS = string.digits + string.ascii_lowercase
TIME_DIGITS = 6
RANDOM_DIGITS = 6

_log = logging.getLogger(__name__)


class Member:
    """One node.

    Attributes:
        name: In control messages, and of its hand-over socket.
        replica: What decides.
        control: Reads and writes the messages.
        handover: Moves snapshots.
        persistence: Keeps the log in a store, where there is one.
    """

    def __init__(
        self,
        settings: Settings,
        hub: Hub,
        source: Source,
        rules: RuleTable,
        *,
        key: bytes,
        directory: Path | None,
        changed: Callable[[], None],
        left: Callable[[float], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """Wire the parts; `run` starts them.

        Args:
            settings: Configuration.
            hub: The core.
            source: The link to Redis.
            rules: Who owns which channel.
            key: Of the log's hash.
            directory: Where nodes of this host hand over to one another; None: there are none.
            changed: Called when the log is there, or no more, and after whatever gives the hub work.
            left: Called with the seconds for which this node stays away.
            failed: Called when something failed that must not.
        """
        cluster = settings.cluster
        self.name = draw_name()
        mark = fingerprint(settings.rules, settings.limits.message_bytes, key)
        self.control = Control(self.name, mark, cluster.secret.get_secret_value().encode())
        self.handover = Handover(
            source.primary.open,
            cluster.name,
            self.name,
            directory,
            self._receive,
            connect_timeout_s=settings.redis.connect_timeout_s,
            failed=failed,
        )
        url = settings.persistence.url
        self.persistence = Persistence(
            settings,
            hub,
            source.primary.open
            if url is None
            else partial(open_link, url.get_secret_value(), timeout_s=settings.redis.connect_timeout_s),
            node=self.name,
            fingerprint=mark,
            key=key,
            is_live=lambda: self.replica.is_synced,
            failed=failed,
        )
        self.replica = Replica(
            hub,
            self.control,
            self.name,
            copies=1 + rules.matching(control_channel(settings).encode()),
            has_store=self.persistence.is_on,
            draw=draw_name,
            horizon=horizon,
            random=random.random,
            is_local=self.handover.is_local,
        )
        self._source = source
        self._is_alone = settings.redis.unordered
        self._changed = changed
        self._left = left
        self._failed = failed
        self._stir = asyncio.Event()
        self._loading: asyncio.Task[None] | None = None

    @property
    def is_coming(self) -> bool:
        """Whether the link is up and the log about to be there."""
        return self.replica.is_joining

    async def start(self) -> None:
        """Be there for the hand-over; to be called before the link is up."""
        await self.handover.start()
        self.persistence.start()

    async def finish(self) -> None:
        """Store what is left to be stored, while the log is still live; `run` is cancelled then."""
        await self.persistence.finish()

    async def run(self) -> None:
        """Keep the replica's clock, until cancelled."""
        try:
            while True:
                await self._rest()
                self.replica.tick(time.monotonic())
                self._carry_out()
        finally:
            if self._loading is not None:
                self._loading.cancel()
            self.persistence.close()
            await self.handover.close()

    async def _rest(self) -> None:
        """Wait for the next look at the replica's clock."""
        if not self._is_quiet:
            await asyncio.sleep(TICK_S)
            return
        self._stir.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(TICK_S, self.replica.checkpoints.due - time.monotonic())):
                await self._stir.wait()

    @property
    def _is_quiet(self) -> bool:
        """Whether nothing but the next checkpoint is due, unless a control message comes."""
        return self.replica.is_synced and not self.replica.offers.is_waiting

    def connected(self) -> None:
        """The link is up."""
        self.replica.connected(time.monotonic())
        self._carry_out()

    def lost(self) -> None:
        """The link is gone."""
        self.replica.lost()
        self._carry_out()
        self._changed()

    def message(
        self, pattern: bytes, channel: bytes, payload: bytes, now: float, wall: float
    ) -> tuple[Rule, MessageError] | None:
        """Take a publication; as `Hub.publish`."""
        return self.replica.message(pattern, channel, payload, now, wall)

    def entry(self, payload: bytes, now: float) -> None:
        """Take a control message."""
        if self._is_alone:
            return
        self.replica.entry(payload, now)
        self._carry_out()

    def _receive(self, token: str, block: bytes) -> bool:
        is_wanted = self.replica.block(token, block, time.monotonic())
        self._carry_out()
        return is_wanted

    def _served(self, token: str) -> None:
        self.replica.served(token)
        self._carry_out()

    def _carry_out(self) -> None:
        while self.replica.decisions:
            decisions, self.replica.decisions[:] = list(self.replica.decisions), []
            for decision in decisions:
                self._do(decision)
        if not self._is_quiet:
            self._stir.set()

    def _do(self, decision: Decision) -> None:
        match decision:
            case Publish(_, payload) if self._is_alone:
                now = time.monotonic()
                self.replica.published(decision, 1, now)
                self.replica.entry(payload, now)
            case Publish(_, payload):
                self._source.publish(payload, partial(self._published, decision))
            case Serve(token, joiner, via, blocks):
                log_event(_log, logging.INFO, "snapshot.serving", joiner=joiner, via=via)
                self.handover.serve(token, joiner, via, blocks, partial(self._served, token))
            case Fetch(token, via):
                self.handover.fetch(token, via)
            case Stop(token):
                self.handover.stop(token)
            case Load():
                self._loading = asyncio.create_task(self._load())
            case Synced(epoch, how):
                log_event(_log, logging.INFO, "log.synced", epoch=epoch, how=how)
                self.persistence.stir()
                self._changed()
            case Leave(seconds):
                log_event(_log, logging.ERROR, "log.left", away_s=round(seconds))
                self._left(seconds)

    async def _load(self) -> None:
        try:
            found = await self.persistence.load()
        except Exception as error:  # noqa: BLE001 - I9: reported, and the process ends
            self._failed(error)
            return
        self.replica.loaded(found, time.monotonic())
        self._carry_out()

    def _published(self, publish: Publish, receivers: int) -> None:
        self.replica.published(publish, receivers, time.monotonic())
        self._carry_out()


def control_channel(settings: Settings) -> str:
    """Where the nodes of a cluster talk; no rule owns it, whatever its pattern."""
    return f"__sse_gateway:{settings.cluster.name}"


def log_key(settings: Settings) -> bytes:
    """The key of the log's hash: nodes with one cluster name and secret share it."""
    cluster = settings.cluster
    secret = hashlib.blake2b(cluster.secret.get_secret_value().encode(), person=b"sse-gateway key").digest()
    return hashlib.blake2b(cluster.name.encode(), digest_size=32, key=secret, person=b"sse-gateway").digest()


def draw_name() -> str:
    """Draw a name for a node, a token or an epoch: 31 random bits behind the second in which it was drawn.

    So names ascend with time, and a node that is behind knows an epoch that it has yet to see.
    """
    return _time_digits(0) + "".join(secrets.choice(DIGITS) for _ in range(RANDOM_DIGITS))


def horizon() -> str:
    """A name above all that are drawn now, on any node whose clock is not further off than `SKEW_S`."""
    return _time_digits(SKEW_S + 1) + "~"  # one more: it is drawn anew with each checkpoint only


def _time_digits(ahead_s: int) -> str:
    seconds = int(time.time()) - _NAMES_BEGAN + ahead_s  # noqa: TID251 - the order of epochs over hosts and restarts
    digits = []
    for _ in range(TIME_DIGITS):
        seconds, digit = divmod(seconds, len(DIGITS))
        digits.append(DIGITS[digit])
    return "".join(reversed(digits))
