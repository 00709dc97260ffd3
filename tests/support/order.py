"""One order: subscribers that write down what they saw, and who judges it against what was published.

A message is what has a place for the gateway: one that it would count, taken under the first pattern
that matches its channel, or one that nodes say to one another, taken under the control pattern. Copies
under other patterns, and the markers, are left out.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import hiredis

from sse_gateway.channels import RuleTable
from sse_gateway.link import Link
from sse_gateway.place import connect, place_of
from tests.support.core import rule
from tests.support.traffic import END

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tests.support.traffic import Message, Publisher

CONTROL = b"__sse_gateway:order"
PATTERNS = (b"a:*", b"*:1", b"?:[0-4]*", b"*")

_RULES = RuleTable([rule(pattern.decode(), index) for index, pattern in enumerate(PATTERNS)])


def rotations() -> list[tuple[bytes, ...]]:
    """The patterns, beginning with each of them."""
    return [PATTERNS[place:] + PATTERNS[:place] for place in range(len(PATTERNS))]


# -- subscribers


class Witness:
    """Writes down one subscriber's messages; a `Listener` of a link, too.

    Attributes:
        order: The messages, in the order in which they came.
        ended: `END` has come.
        news: Notified when something has come over a link.
    """

    def __init__(self) -> None:
        self.order: list[Message] = []
        self.ended = asyncio.Event()
        self.news = threading.Condition()
        self._owners: dict[bytes, bytes | None] = {CONTROL: CONTROL}

    def take(self, pattern: bytes, channel: bytes, payload: bytes) -> None:
        """Take one message under one of its patterns."""
        if channel not in self._owners:
            owner = _RULES.owner(channel)
            self._owners[channel] = None if owner is None else owner.pattern.encode()
        if self._owners[channel] == pattern and not payload.startswith(b"1 MARK "):
            self.order.append((channel, payload))

    def is_at_end(self) -> bool:
        """Whether the newest message is the last of all."""
        return self.order[-1:] == [END]

    def source_began(self) -> None:
        """Nothing has come yet."""
        assert not self.order

    def source_message(self, pattern: bytes, channel: bytes, payload: bytes, now: float) -> None:  # noqa: ARG002
        """Take it."""
        self.take(pattern, channel, payload)

    def source_control(self, payload: bytes, now: float) -> None:  # noqa: ARG002
        """Take it."""
        self.take(CONTROL, CONTROL, payload)

    def source_flush(self) -> None:
        """Tell who waits."""
        if self.is_at_end():
            self.ended.set()
        with self.news:
            self.news.notify_all()

    def source_lost(self) -> None:
        """A link does not say so itself."""

    def source_round_trip(self, seconds: float) -> None:
        """A marker came back."""

    def source_failed(self, error: BaseException) -> None:
        """Fail the test.

        Raises:
            BaseException: What failed.
        """
        raise error


@asynccontextmanager
async def following(url: str, patterns: Sequence[bytes], witness: Witness) -> AsyncIterator[Link]:
    """Subscribe as the gateway does, for the length of an ``async with`` block."""
    token = b"%d" % id(witness)
    link = await connect(place_of(url), lambda: Link(witness, CONTROL, token))
    try:
        await link.call(b"HELLO", b"3")
        await link.call(b"PSUBSCRIBE", *patterns, CONTROL, pushes=len(patterns) + 1)
        await link.begin()
        yield link
    finally:
        link.close()


class Stalled:
    """A subscriber that reads nothing until it is asked to read it all."""

    def __init__(self, port: int, patterns: Sequence[bytes], receive_buffer: int) -> None:
        """Subscribe, before anything is published.

        Args:
            port: Of the server.
            patterns: In this order.
            receive_buffer: Bytes that the kernel may take meanwhile.
        """
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.settimeout(30)
        self._socket.connect(("127.0.0.1", port))
        self._socket.sendall(hiredis.pack_command((b"PSUBSCRIBE", *patterns, CONTROL)))  # type: ignore[arg-type] # its stub knows only 1-tuples
        reader = hiredis.Reader()
        for _ in (*patterns, CONTROL):
            while reader.gets() is False:
                reader.feed(self._socket.recv(4096))
        assert not reader.has_data()

    def read_all(self, witness: Witness) -> bytes:
        """Read what there is until the server's end, and return what is left behind the last whole message."""
        reader = hiredis.Reader()
        tail = b""
        while data := self._socket.recv(1 << 20):
            tail += data
            reader.feed(data)
            whole = 0
            while (reply := reader.gets()) is not False:
                witness.take(*reply[1:])
                whole += len(encoded(*reply[1:]))
            tail = tail[whole:]
        return tail

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def encoded(pattern: bytes, channel: bytes, payload: bytes) -> bytes:
    """One message as a server writes it in RESP2."""
    words = (b"pmessage", pattern, channel, payload)
    return b"*4\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


# -- the judge


def judge(orders: Sequence[Sequence[Message]], said: Sequence[Publisher]) -> None:
    """Hold what subscribers saw against each other and against what was published.

    Raises:
        AssertionError: With the first thing that is wrong.
    """
    first = orders[0]
    for number, order in enumerate(orders):
        place = difference(first, order)
        assert place is None, f"subscribers 0 and {number} differ at {place}"
        assert len(order) == len(first), f"subscriber {number} has {len(order)} messages, subscriber 0 {len(first)}"
    places = {message: place for place, message in enumerate(first)}
    published = {message for publisher in said for group in publisher.groups for message in group}
    assert len(places) == len(first), "something came twice"
    assert places.keys() == published, f"{len(places.keys() ^ published)} messages are missing, or were never published"
    for publisher in said:
        mine = [places[message] for group in publisher.groups for message in group]
        assert mine == sorted(mine), f"publisher {publisher.name}'s own order was not kept"
        assert not (publisher.is_atomic and torn(publisher, places)), f"a group of publisher {publisher.name} is torn"


def difference(one: Sequence[Message], other: Sequence[Message]) -> int | None:
    """The first place where two orders differ, as far as both go."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (mine, its) in pairs if mine != its), None)


def torn(publisher: Publisher, places: dict[Message, int]) -> int:
    """Count the groups of a publisher that have something of another's between them."""
    return sum(places[group[-1]] - places[group[0]] != len(group) - 1 for group in publisher.groups)
