"""Publishers that all speak at once, each in its own way."""

from __future__ import annotations

import asyncio
import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import hiredis

from tests.support.valkey import Link, Valkey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Message = tuple[bytes, bytes]
"""Channel and payload."""

Group = list[Message]
"""What a publisher has under way at once."""

CHANNELS = [b"%b:%d" % (head, number) for head in (b"a", b"b", b"a:b", b"\xff") for number in range(8)]
END: Message = (b"a:end", b"end")
"""The last message of all."""

PUBLISHING_S = 4.0
"""Then it is enough, on a slow machine."""

_FILLER = bytes(range(256)) * 257  # also what looks like RESP: digits, dollars, CR, LF
_SIZES = ((20, 600), (200, 250), (4_000, 145), (64 * 1024, 5))  # bytes, and how many of 1,000
_SCRIPT = b"for i = 1, #ARGV, 2 do redis.call('PUBLISH', ARGV[i], ARGV[i + 1]) end"


class Taker(Protocol):
    """Who gets what a subscribed publisher sees."""

    def take(self, pattern: bytes, channel: bytes, payload: bytes) -> None:
        """Take one message under one of its patterns."""

    def is_at_end(self) -> bool:
        """Whether the newest message is the last of all."""


@dataclass(slots=True)
class Publisher:
    """Publishes groups of messages, each unlike any other.

    Attributes:
        name: Number of the publisher.
        send: Publishes a group, and returns when the server has answered.
        is_atomic: The server executes a group as one.
        groups: What has been published, in order.
    """

    name: int
    send: Callable[[Group], object]
    is_atomic: bool = False
    groups: list[Group] = field(default_factory=list)

    def run(self, budget: Iterator[int], deadline: float, pace: Callable[[int], None]) -> None:
        """Publish until the budget that all share is used up, or until the deadline.

        Args:
            budget: One for each group.
            deadline: Seconds of the monotonic clock.
            pace: Told how many messages were published; it may wait.
        """
        dice = random.Random(self.name)
        for number in budget:
            group = [self._message(number, place, dice) for place in range(dice.randint(1, 12))]
            self.publish(group)
            pace(len(group))
            if time.monotonic() > deadline:
                return

    def publish(self, group: Group) -> None:
        """Publish a group."""
        self.groups.append(group)
        self.send(group)

    def _message(self, number: int, place: int, dice: random.Random) -> Message:
        (size,) = dice.choices([size for size, _ in _SIZES], [weight for _, weight in _SIZES])
        start = dice.randrange(256)
        head = b"%d.%d.%d " % (self.name, number, place)
        return dice.choice(CHANNELS), (head + _FILLER[start : start + size])[:size]


class SelfPublisher:
    """Publishes on the connection on which it is subscribed: scripts, and single messages without one.

    Never a transaction: a Redis before 7.2 writes its pushes between the elements of EXEC's reply, which
    then ends too early for every parser. Before 7.2 pushes come ahead of a reply, since then behind it.

    Source: redis/redis pull request 12326; measured on Redis 7.0 and Valkey 9.1.
    """

    def __init__(self, port: int, patterns: Sequence[bytes], taker: Taker) -> None:
        self._link = Link(port)
        self._taker = taker
        self._link.call("HELLO", 3)
        self._link.send("PSUBSCRIBE", *patterns)
        for _ in patterns:
            self._link.read()

    def send(self, group: Group) -> None:
        """Publish a group as one."""
        self._link.send(*(_publishes(group)[0] if len(group) == 1 else _script(group)))
        while self._read_push():
            pass

    def read_to_end(self) -> None:
        """Read until `END` has come."""
        while not self._taker.is_at_end():
            assert self._read_push()

    def close(self) -> None:
        """Close the connection."""
        self._link.close()

    def _read_push(self) -> bool:
        reply = self._link.read()
        if not isinstance(reply, hiredis.PushNotification):
            return False
        self._taker.take(*reply[1:])
        return True


class Traffic:
    """Eight publishers, each on a connection of its own; one of them is subscribed on it."""

    def __init__(self, server: Valkey, patterns: Sequence[bytes], taker: Taker) -> None:
        """Connect.

        Args:
            server: Gets the messages.
            patterns: Of the publisher that is subscribed.
            taker: Gets what that one sees.
        """
        self._stack = ExitStack()
        self._itself = self._stack.enter_context(closing(SelfPublisher(server.port, patterns, taker)))
        links = [self._stack.enter_context(closing(Link(server.port))) for _ in range(7)]
        self._end = Publisher(-1, server.publish_many)
        self.publishers = [
            *(Publisher(name, _one_by_one(link)) for name, link in enumerate(links[:2])),
            *(Publisher(name, _pipeline(link)) for name, link in enumerate(links[2:4], 2)),
            *(Publisher(name, _as_transaction(link), is_atomic=True) for name, link in enumerate(links[4:6], 4)),
            Publisher(6, _as_script(links[6]), is_atomic=True),
            Publisher(7, self._itself.send, is_atomic=True),
        ]

    @property
    def said(self) -> list[Publisher]:
        """Everybody who published."""
        return [*self.publishers, self._end]

    async def run(
        self, groups: int, pace: Callable[[int], None] = lambda _: None, *, most_s: float = PUBLISHING_S
    ) -> None:
        """Publish, all at once.

        Args:
            groups: How many, all together.
            pace: Told how many messages were published; it may wait.
            most_s: Then it is enough.
        """
        loop = asyncio.get_running_loop()
        budget, deadline = iter(range(groups)), time.monotonic() + most_s
        with ThreadPoolExecutor(len(self.publishers)) as pool:
            jobs = [loop.run_in_executor(pool, one.run, budget, deadline, pace) for one in self.publishers]
            for job in jobs:
                await job

    async def end(self) -> None:
        """Publish the end, when nobody publishes any more, and let the one that is subscribed see it."""
        self._end.publish([END])
        await asyncio.to_thread(self._itself.read_to_end)

    def close(self) -> None:
        """Close all connections."""
        self._stack.close()


def _one_by_one(link: Link) -> Callable[[Group], object]:
    return lambda group: [link.call(*command) for command in _publishes(group)]


def _pipeline(link: Link) -> Callable[[Group], object]:
    return lambda group: link.pipeline(_publishes(group))


def _as_transaction(link: Link) -> Callable[[Group], object]:
    return lambda group: link.pipeline(_transaction(group))


def _as_script(link: Link) -> Callable[[Group], object]:
    return lambda group: link.call(*_script(group))


def _publishes(group: Group) -> list[tuple[bytes, ...]]:
    return [(b"PUBLISH", *message) for message in group]


def _transaction(group: Group) -> list[tuple[bytes, ...]]:
    return [(b"MULTI",), *_publishes(group), (b"EXEC",)]


def _script(group: Group) -> tuple[bytes, ...]:
    return (b"EVAL", _SCRIPT, b"0", *(part for message in group for part in message))
