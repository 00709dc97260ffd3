"""Clients that mean no good: ``python -m benchmarks.hostile_clients PORT SECONDS CHANNEL [CLIENTS [PER_SECOND]]``.

Of so many clients a third send a header that never ends, a third open a stream and do not read it, and a third
connect again and again: to reset at any byte of their request, or to open a stream and leave. Says as JSON that it
has begun, and at the end how often each of them did it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

RESET = struct.pack("ii", 1, 0)
"""For SO_LINGER."""

CLIENTS = 390
PER_SECOND = 600
"""Connections that those who connect again and again make together."""


class Hostile:
    """All of them, on one loop.

    Attributes:
        counts: What they have done.
    """

    def __init__(self, port: int, channel: str, clients: int, per_second: float) -> None:
        self.counts = {"aborted": 0, "dribbled": 0, "stalled": 0, "opened": 0}
        self._address = ("127.0.0.1", port)
        self._clients = clients
        self._pause_s = clients / 3 / per_second
        self._request = f"GET /events/{channel} HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n".encode()

    async def run(self, seconds: float) -> None:
        """Go on for so long."""
        loop = asyncio.get_running_loop()
        kinds: list[Callable[[], Awaitable[None]]] = [self._abort, self._dribble, self._stall]
        kinds += [self._open, self._dribble, self._stall]
        work = [kinds[number % len(kinds)] for number in range(self._clients)]
        tasks = [loop.create_task(self._again(one)) for one in work]
        await asyncio.sleep(seconds)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    async def _again(self, one: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await one()
            except OSError:
                await asyncio.sleep(0.05)

    async def _connect(self, receive_buffer: int = 0) -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)  # noqa: FBT003 - it has no keyword
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            await asyncio.get_running_loop().sock_connect(sock, self._address)
        except OSError:
            sock.close()
            raise
        return sock

    async def _abort(self) -> None:
        """Connect, send some of a request or all of it, and reset."""
        with await self._connect() as sock:
            cut = self.counts["aborted"] % (len(self._request) + 1)
            with contextlib.suppress(BlockingIOError):
                sock.send(self._request[:cut])
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.counts["aborted"] += 1
        await asyncio.sleep(self._pause_s)

    async def _open(self) -> None:
        """Open a stream, or be refused, and go."""
        loop = asyncio.get_running_loop()
        with await self._connect() as sock:
            await loop.sock_sendall(sock, self._request)
            await loop.sock_recv(sock, 100)
        self.counts["opened"] += 1
        await asyncio.sleep(self._pause_s)

    async def _dribble(self) -> None:
        """Send a header, byte by byte, until the other end has had enough."""
        loop = asyncio.get_running_loop()
        with await self._connect() as sock:
            await loop.sock_sendall(sock, self._request[:40])
            self.counts["dribbled"] += 1
            while True:
                await asyncio.sleep(0.5)
                await loop.sock_sendall(sock, b"x")

    async def _stall(self) -> None:
        """Open a stream and do not read it."""
        loop = asyncio.get_running_loop()
        with await self._connect(4096) as sock:
            await loop.sock_sendall(sock, self._request)
            self.counts["stalled"] += 1
            while True:
                await asyncio.sleep(0.5)
                await loop.sock_sendall(sock, b"x")  # raises once it has been cut


def main(port: int, seconds: float, channel: str, clients: int = CLIENTS, per_second: float = PER_SECOND) -> None:
    """Run."""
    hostile = Hostile(port, channel, clients, per_second)
    print(json.dumps({"clients": clients}), flush=True)
    asyncio.run(hostile.run(seconds))
    print(json.dumps(hostile.counts), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:]))
