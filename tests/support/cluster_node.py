"""One gateway process as the simulation runs it: the shipping core, and a shell of virtual parts.

The shell does what `gateway`, `source` and the transport of snapshots do, in their order: a read
batch, the decisions it leads to, a flush, and the hub's steps until it is idle.
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING

from sse_gateway.decisions import Fetch, Leave, Load, Publish, Serve, Stop, Synced
from sse_gateway.reasons import CloseReason
from tests.support.cluster_ledger import Entry
from tests.support.cluster_parts import KEY
from tests.support.cluster_redis import Reply, Sign
from tests.support.world import BrokenPromiseError, ensure

if TYPE_CHECKING:
    from sse_gateway.decisions import Decision
    from tests.support.cluster_client import Client
    from tests.support.cluster_parts import Kit, Parts
    from tests.support.cluster_redis import Connection, Item
    from tests.support.cluster_run import Run

CONTROL = b"__sse_gateway:sim"
TICK_S = 0.05
HUB_TICKS = 5
"""Ticks of the replica for each of the hub."""

LIVENESS_S = 5.0
"""Without a byte for so long, a link is given up."""

_DIGITS = string.digits + string.ascii_lowercase
_BATCHES = (1, 2, 5, 50)


class Node:
    """One process, from its start to its end.

    Attributes:
        run: The simulation.
        kit: Its configuration.
        name: In control messages.
        clients: Open streams by descriptor.
        connection: To Redis, or None.
        is_dead: It was killed, or has stopped.
        stopped_until: It does nothing before.
        late_at: When it last did nothing for a while, or lost its link: to older claims it need not have objected.
        rejoined_at: When it last took its log from a peer.
        claims: Claims it has seen while it held the log, and when.
    """

    def __init__(self, run: Run, kit: Kit, parts: Parts) -> None:
        self.run = run
        self.kit = kit
        self.parts = parts
        self.name = self._draw()
        self.clients: dict[int, Client] = {}
        self.connection: Connection | None = None
        self.is_dead = False
        self.stopped_until = 0.0
        self.late_at = -1.0
        self.rejoined_at = -1.0
        self.claims: dict[str, float] = {}
        self.hub = parts.hub(kit.table, kit.limits, KEY, self._write)
        self.hub.watcher = self
        control = parts.control(self.name, kit.fingerprint, run.secret)
        self.replica = parts.replica(
            self.hub,
            control,
            self.name,
            draw=self._draw,
            horizon=lambda: "~",
            random=run.rng.random,
            is_local=self._is_local,
        )
        self._clock = run.rng.uniform(0, 1e5)
        self._ticks = 0
        self._settled = -1  # head of the log then
        self._is_reading = False
        self._is_up = False  # the marker has come back
        self._heard_at = run.now
        self._out_at = 0.0
        run.after(run.rng.uniform(0, TICK_S), self._tick)
        run.after(run.rng.uniform(0, 0.05), self.connect)

    @property
    def now(self) -> float:
        """Its own clock."""
        return self.run.now + self._clock

    @property
    def is_synced(self) -> bool:
        """Whether it takes new streams."""
        return not self.is_dead and self.replica.is_synced and self.run.now >= self.stopped_until

    @property
    def head(self) -> str:
        """Id of its log's head."""
        return self.hub.log.cursor(self.hub.log.head) if self.hub.log.epochs else ""

    def __str__(self) -> str:
        return f"{self.name[-4:]}/{self.kit.family}"

    # Life.

    def connect(self) -> None:
        """Connect to Redis, or try again soon."""
        if self.is_dead or self.connection is not None:
            return
        self.connection = self.run.redis.connect(self._wake)
        self._heard_at = self.run.now
        if self.connection is None:
            self.run.after(self.run.rng.uniform(0.05, 0.4), self.connect)

    def kill(self) -> None:
        """Die at once, as by SIGKILL: every stream is cut where it is."""
        self.is_dead = True
        self.run.trace("kill", self)
        self._drop_link(noticed=self.run.rng.random() < 0.8)
        for client in list(self.clients.values()):
            client.lose()
        self.clients.clear()
        self.run.transport.left(self)

    def stop(self) -> None:
        """End in order: every stream gets its last word."""
        self.run.trace("stop", self)
        self.farewell_all()
        self.is_dead = True
        self._drop_link(noticed=True)
        self.run.transport.left(self)

    def farewell_all(self) -> None:
        """End all streams with a word."""
        for client in list(self.clients.values()):
            client.farewell(CloseReason.DRAIN)

    def freeze(self, seconds: float) -> None:
        """Do nothing for a while, as after SIGSTOP."""
        self.stopped_until = max(self.stopped_until, self.run.now + seconds)

    def _drop_link(self, *, noticed: bool) -> None:
        connection, self.connection = self.connection, None
        self._is_up = False
        if connection is not None and noticed:
            self.run.redis.forget(connection)
        elif connection is not None:
            connection.is_deaf = True
            self.run.after(self.run.rng.uniform(1, 8), self.run.redis.forget, connection)

    # The link.

    def _wake(self) -> None:
        if not self._is_reading:
            self._is_reading = True
            self.run.after(self.run.latency(), self._read)

    def _read(self) -> None:
        """Read a batch, as far as it has come."""
        self._is_reading = False
        connection = self.connection
        if self.is_dead or connection is None:
            return
        wait = max(self.stopped_until, connection.paused_until) - self.run.now
        if wait > 0:
            self._read_later(wait)
            return
        items, now = connection.items, self.run.now
        for _ in range(self.run.rng.choice(_BATCHES)):
            if not items:
                break
            item = items[0]
            if not isinstance(item, Sign) and item.at + connection.delay_s > now:
                self._read_later(item.at + connection.delay_s - now)
                break
            items.popleft()
            self._heard_at = now
            self._take(item)
            if self.connection is not connection:
                break
        self._settle()
        if self.connection is connection and items and not self._is_reading:
            self._read_later(self.run.latency())

    def _read_later(self, wait: float) -> None:
        self._is_reading = True
        self.run.after(wait, self._read)

    def _take(self, item: Item) -> None:
        if isinstance(item, Entry):
            if self._is_up:
                self._take_entry(item)
        elif isinstance(item, Reply):
            self.replica.published(item.publish, item.receivers, self.now)
        elif item is Sign.END:
            self._lose_link()
        else:
            self._is_up = True
            if self.parts.tells_link or not self.replica.is_synced:
                self.replica.connected(self.now)
        self._decide()

    def _take_entry(self, entry: Entry) -> None:
        if not entry.patterns:
            self._note_claim(entry)
            self.replica.entry(entry.payload, self.now)
            return
        time, known = self.run.now, self.kit.patterns
        for pattern in entry.patterns:
            if pattern in known:
                self.replica.message(pattern, entry.channel, entry.payload, time + self._clock, 1.7e9 + time)

    def _lose_link(self) -> None:
        """The link is gone, and we know it."""
        if self.connection is not None:
            self.run.redis.forget(self.connection)
        self.connection = None
        self._is_up = False
        self.late_at = self.run.now
        self.run.trace("lost", self)
        if self.parts.tells_link:
            self.replica.lost()
            self._decide()
        self.run.after(self.run.rng.choice([0.0, 0.05, 0.3, 1.0]), self.connect)

    def _note_claim(self, entry: Entry) -> None:
        """Remember whose claims we have to object to."""
        if b" CLAIM " not in entry.payload:
            return
        words = entry.payload.split(b" ")
        if len(words) > 5 and words[1] == b"CLAIM" and self.replica.is_synced:
            self.claims[words[5].decode()] = self.run.now

    def objects_to(self, epoch: str, at: float) -> bool:
        """Whether it must have objected to a claim by then, as nothing hindered it."""
        seen = self.claims.get(epoch)
        return not (
            seen is None
            or seen + 0.2 > at
            or self.is_dead
            or self.connection is None
            or self.connection.is_deaf
            or not self.connection.is_open
            or max(self.late_at, self.rejoined_at, self.stopped_until) >= seen
        )

    # Decisions.

    def _decide(self) -> None:
        """Carry out what the replica has decided."""
        while self.replica.decisions:
            decisions = list(self.replica.decisions)
            self.replica.decisions.clear()
            for decision in decisions:
                self._carry_out(decision)

    def _carry_out(self, decision: Decision) -> None:
        match decision:
            case Publish():
                self._publish(decision)
            case Serve():
                self.run.transport.serve(self, decision)
            case Fetch():
                self.run.transport.fetch(self, decision)
            case Stop(token):
                self.run.transport.stop(self, token)
            case Load():
                self.replica.loaded(None, self.run.now)
            case Synced(epoch, how):
                self.run.synced(self, epoch, how)
            case Leave(seconds):
                self._leave(seconds)

    def _publish(self, publish: Publish) -> None:
        self.run.trace("publish", self, publish.payload.decode())
        connection = self.connection
        if connection is not None:
            self._out_at = max(self._out_at, self.run.now + self.run.latency())
            self.run.at(self._out_at, self.run.redis.publish_own, connection, publish, CONTROL)

    def _leave(self, seconds: float) -> None:
        ensure(60 <= seconds <= 600, "away for", seconds)
        self.run.trace("leave", self)
        self.run.left += 1
        for connection in self.run.redis.connections:
            connection.loses = 0  # whoever stays may be the only one, and nobody could tell
        self.farewell_all()
        self._drop_link(noticed=True)
        self.replica.lost()
        self._decide()
        self.run.after(self.run.rng.uniform(1, 3), self.connect)  # sooner: the time has no meaning here

    # The clock, and what is due.

    def _tick(self) -> None:
        if self.is_dead:
            return
        run, replica = self.run, self.replica
        wait = self.stopped_until - run.now
        run.after(TICK_S if wait <= 0 else min(wait, TICK_S), self._tick)  # it may be let go on earlier
        if wait > 0:
            self.late_at = self.stopped_until
            return
        connection = self.connection
        if connection is not None and (connection.is_deaf or connection.items):
            silent = run.now - self._heard_at
            if silent > LIVENESS_S:
                run.redis.forget(connection) if run.rng.random() < 0.5 else self._drop_link(noticed=False)
                self._lose_link()
        replica.tick(run.now + self._clock)
        if replica.decisions:
            self._decide()
        self._ticks += 1
        hub = self.hub
        if self._ticks % HUB_TICKS == 0:
            hub.tick(self.now, live=replica.is_synced)
        if hub.is_busy or hub.log.head != self._settled:
            self._settle()

    def _settle(self) -> None:
        """End a turn of the loop: everything due goes out."""
        hub = self.hub
        hub.flush(self.run.now + self._clock)
        self._settled = hub.log.head
        if hub.is_busy:
            self.pump()

    def pump(self) -> None:
        """Have the hub do its work."""
        hub, now = self.hub, self.now
        while hub.is_busy:
            hub.step(now)
            hub.observe(now)

    def serve_block(self, token: str, block: bytes) -> bool:
        """Take a block of a snapshot."""
        is_wanted = self.replica.block(token, block, self.now)
        self._decide()
        self._settle()
        return is_wanted

    def served(self, token: str) -> None:
        """A snapshot of ours has been handed over, or could not be."""
        self.replica.served(token)
        self._decide()

    # What the core asks for.

    def _write(self, fd: int, data: bytes) -> int:
        client = self.clients.get(fd)
        if client is None:
            raise BrokenPromiseError("written to a descriptor that is closed (I11)")
        return client.write(data)

    def _draw(self) -> str:
        """12 digits that ascend with time."""
        stamp, digits = int(1e8 + self.run.now * 1000), ""
        for _ in range(8):
            stamp, digit = divmod(stamp, 36)
            digits = _DIGITS[digit] + digits
        return digits + "".join(self.run.rng.choices(_DIGITS, k=4))

    def _is_local(self, name: str) -> bool:
        return any(node.name == name and node.kit.host == self.kit.host for node in self.run.nodes)
