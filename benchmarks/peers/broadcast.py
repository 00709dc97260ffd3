"""What every Python peer needs around its response: Redis in, one bounded queue per client.

redis-py's asyncio pub/sub with hiredis, and `asyncio.Queue`, as the documentation of these libraries shows it. A full queue drops
its newest event silently. No window, no cursor, no resume: less than the gateway does.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import TYPE_CHECKING

from redis.asyncio import Redis
from redis.asyncio.client import PubSub  # noqa: TC002 - beside its client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

QUEUE_EVENTS = 2000
"""As the gateway's default queue."""

PREFIX = "bench:"


class Broadcast:
    """The queues of the open streams, by channel."""

    def __init__(self, redis_port: int) -> None:
        self._redis = Redis(port=redis_port, decode_responses=True)
        self._queues: dict[str, set[asyncio.Queue[tuple[str, str]]]] = {}
        self._numbers = itertools.count(1)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Subscribe, and read until `stop`."""
        pubsub = self._redis.pubsub()
        await pubsub.psubscribe(f"{PREFIX}*")
        self._task = asyncio.create_task(self._read(pubsub))

    async def stop(self) -> None:
        """End reading."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._redis.aclose()

    async def _read(self, pubsub: PubSub) -> None:
        async for message in pubsub.listen():
            if message["type"] == "pmessage":
                event = (str(next(self._numbers)), message["data"])
                for queue in self._queues.get(message["channel"].removeprefix(PREFIX), ()):
                    with contextlib.suppress(asyncio.QueueFull):
                        queue.put_nowait(event)

    @contextlib.contextmanager
    def _follow(self, channel: str) -> Iterator[asyncio.Queue[tuple[str, str]]]:
        queue: asyncio.Queue[tuple[str, str]] = asyncio.Queue(QUEUE_EVENTS)
        queues = self._queues.setdefault(channel, set())
        queues.add(queue)
        try:
            yield queue
        finally:
            queues.discard(queue)

    async def events(self, channel: str) -> AsyncIterator[tuple[str, str]]:
        """Follow a channel: pairs of id and data."""
        with self._follow(channel) as queue:
            while True:
                yield await queue.get()
