"""A Redis that never was: one total order of messages, and connections that lag, break, or go deaf.

Rules, as the real one keeps them:
    1. A PUBLISH is appended to the buffers of all subscribers before the next command.
    2. What a connection yields is a prefix of what was appended to it, whatever becomes of it.
    3. The answer to a PUBLISH counts the connections that the server believes to be there, and comes
       before the publisher's own copy.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from sse_gateway.decisions import Publish
    from tests.support.cluster_ledger import Entry, Ledger


class Sign(Enum):
    """What the link itself has to say."""

    MARKER = auto()
    """The subscription is confirmed, and our own marker has come back."""
    END = auto()
    """The connection is closed."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a PUBLISH of ours."""

    publish: Publish
    receivers: int
    at: float


Item: TypeAlias = "Entry | Reply | Sign"


class Connection:
    """One subscriber.

    Attributes:
        items: Sent by the server, not read yet.
        is_open: The server believes in it.
        is_deaf: Half-open: nothing passes in either direction, and nobody has noticed.
        delay_s: So late everything comes.
        paused_until: Nothing can be read before.
        loses: Drop the next so many messages without a trace, as no real connection does.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self.items: deque[Item] = deque([Sign.MARKER])
        self.is_open = True
        self.is_deaf = False
        self.delay_s = 0.0
        self.paused_until = 0.0
        self.loses = 0
        self._wake = wake

    def append(self, item: Item) -> None:
        """Send something to it."""
        if not self.is_deaf:
            self.items.append(item)
            self._wake()

    def end(self, kept: int) -> None:
        """Close it; of what was not read, so much still arrives."""
        self.is_open = False
        while len(self.items) > kept:
            self.items.pop()
        self.append(Sign.END)


class Redis:
    """The server.

    Attributes:
        is_up: It accepts connections and commands.
        connections: Subscribers it believes in.
        max_items: Bound of a connection's output buffer.
        restarts: So often it has begun anew.
    """

    def __init__(self, ledger: Ledger, rng: Random, now: Callable[[], float]) -> None:
        self.is_up = True
        self.connections: list[Connection] = []
        self.max_items = 10_000
        self.restarts = 0
        self._ledger = ledger
        self._rng = rng
        self._now = now

    def connect(self, wake: Callable[[], None]) -> Connection | None:
        """Subscribe; None while the server is away."""
        if not self.is_up:
            return None
        connection = Connection(wake)
        self.connections.append(connection)
        wake()
        return connection

    def publish(self, channel: bytes, payload: bytes, patterns: tuple[bytes, ...] = ()) -> Entry:
        """Execute a PUBLISH.

        Args:
            channel: Channel.
            payload: Payload.
            patterns: Under which it is sent, in this order; none for a control message.
        """
        entry = self._ledger.publish(self._now(), channel, payload, patterns)
        for connection in list(self.connections):
            if connection.loses and patterns:
                connection.loses -= 1
                continue
            connection.append(entry)
            if len(connection.items) > self.max_items:
                self.kill(connection)
        return entry

    def publish_own(self, connection: Connection, publish: Publish, channel: bytes) -> None:
        """Execute a PUBLISH that a subscriber sent; nothing comes of it if its connection is gone."""
        if not connection.is_open or connection.is_deaf:
            return
        connection.append(Reply(publish, len(self.connections), self._now()))
        self.publish(channel, publish.payload)

    def kill(self, connection: Connection) -> None:
        """Close a connection: a prefix of what was sent still arrives, if anything does."""
        if connection in self.connections:
            self.connections.remove(connection)
            left = len(connection.items)
            connection.end(self._rng.choice([0, left, self._rng.randint(0, left)]))

    def forget(self, connection: Connection) -> None:
        """Notice that a connection is gone, at last."""
        if connection in self.connections:
            self.connections.remove(connection)
            connection.is_open = False

    def stop(self) -> None:
        """Go down, with all connections."""
        self.is_up = False
        self.restarts += 1
        for connection in list(self.connections):
            self.kill(connection)

    def start(self) -> None:
        """Come back."""
        self.is_up = True
