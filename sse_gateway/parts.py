"""Blocks in parts, and the two ways that parts go: a connection, or a Redis list.

Rules:
    1. A block travels as its size in 4 bytes and itself, in parts of at most 512 KiB: nobody copies
       or waits for more at once. No part belongs to two blocks.
    2. At most 16 parts wait in a list, which is 8 MiB of Redis' memory (I5). The list has a time to
       live with every part that is pushed.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from sse_gateway.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sse_gateway.link import Link

PART_BYTES = 512 * 1024
"""Bytes that travel at once; a larger block takes several parts."""

MAX_BLOCK_BYTES = 65 * 1024 * 1024
"""The largest message that can be handed over, and what is around it; a longer block is refused."""

MAX_WAITING = 16
"""Parts in a list; beyond, whoever pushes waits for whoever pops."""

LIST_TTL_MS = 30_000
"""Milliseconds that a list lives after the last part was pushed."""

_POLL_S = 0.01  # between two looks at a full list
_SIZE_BYTES = 4


class Way(Protocol):
    """Where parts go, or come from."""

    async def put(self, part: bytes) -> None:
        """Hand on one part; returns when there is room for the next."""

    async def get(self) -> bytes:
        """Wait for a part; empty at the end."""


class SocketWay:
    """Parts through a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def put(self, part: bytes) -> None:
        """Write one part; returns when the connection's buffers have room again."""
        self._writer.write(part)
        await self._writer.drain()

    async def get(self) -> bytes:
        """Read what has come; empty at the end of the connection."""
        return await self._reader.read(PART_BYTES)


class ListWay:
    """Parts through a Redis list."""

    def __init__(self, link: Link, key: bytes) -> None:
        """Begin with what the list holds.

        Args:
            link: Logged in, and nobody else's: it waits for what it pops.
            key: Of the list.
        """
        self._link = link
        self._key = key
        self._waiting = 0

    async def put(self, part: bytes) -> None:
        """Push one part, once there is room for it.

        Raises:
            SourceError: Redis refused, or the link is lost.
        """
        while self._waiting >= MAX_WAITING:
            await asyncio.sleep(_POLL_S)
            self._waiting = _integer(await self._link.call(b"LLEN", self._key))
        try:
            async with asyncio.TaskGroup() as both:  # one after the other, without waiting in between
                pushed = both.create_task(self._link.call(b"RPUSH", self._key, part))
                both.create_task(self._link.call(b"PEXPIRE", self._key, b"%d" % LIST_TTL_MS))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        self._waiting = _integer(pushed.result())

    async def get(self) -> bytes:
        """Pop one part; a list has no end.

        Raises:
            SourceError: Redis refused, or the link is lost.
        """
        while True:
            popped = await self._link.call(b"BLPOP", self._key, b"1")
            if isinstance(popped, list):
                _, part = popped
                return bytes(part)

    async def delete(self, timeout_s: float) -> None:
        """Remove the list, if Redis lets us: it has a time to live."""
        with suppress(SourceError, TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._link.call(b"DEL", self._key)


class Frames:
    """Parts to blocks."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, part: bytes) -> Iterator[bytes]:
        """Add a part, and yield the blocks that are now complete; all of them have to be taken.

        Raises:
            ConnectionError: A block is empty or too large.
        """
        self._buffer += part
        while len(self._buffer) >= _SIZE_BYTES:
            size = int.from_bytes(self._buffer[:_SIZE_BYTES], "big")
            if not 0 < size <= MAX_BLOCK_BYTES:
                raise ConnectionError(f"a block of {size} bytes")
            end = _SIZE_BYTES + size
            if len(self._buffer) < end:
                return
            with memoryview(self._buffer) as view:
                block = bytes(view[_SIZE_BYTES:end])
            del self._buffer[:end]
            yield block


def parts_of(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Blocks to parts, none of which belongs to two blocks; an empty block is an empty part."""
    for block in blocks:
        framed = len(block).to_bytes(_SIZE_BYTES, "big") + block if block else b""
        yield framed[:PART_BYTES]
        for at in range(PART_BYTES, len(framed), PART_BYTES):
            yield framed[at : at + PART_BYTES]


def _integer(reply: object) -> int:
    return reply if isinstance(reply, int) else 0
