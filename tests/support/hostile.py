"""Clients that mean no good, in a process of their own: ``python -m tests.support.hostile PORT SECONDS CHANNEL``.

Some connect and reset, some send a header that never ends, some open a stream and do not read it, some
open streams as fast as they get them. Says at the end how often each of them did it, as JSON.
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
DRIBBLERS = 100
STALLERS = 30
ABORTS_PER_S = 300
OPENS_PER_S = 300


class Hostile:
    """All of them, on one loop."""

    def __init__(self, port: int, channel: str) -> None:
        self.counts = {"aborted": 0, "dribbled": 0, "stalled": 0, "opened": 0}
        self._address = ("127.0.0.1", port)
        self._request = f"GET /events/{channel} HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n".encode()

    async def run(self, seconds: float) -> None:
        """Go on for so long."""
        loop = asyncio.get_running_loop()
        work: list[Callable[[], Awaitable[None]]] = [self._abort, self._open]
        work += [self._dribble] * DRIBBLERS + [self._stall] * STALLERS
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
        sock.setblocking(False)
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
        await asyncio.sleep(1 / ABORTS_PER_S)

    async def _open(self) -> None:
        """Open a stream, or be refused, and go."""
        loop = asyncio.get_running_loop()
        with await self._connect() as sock:
            await loop.sock_sendall(sock, self._request)
            await loop.sock_recv(sock, 100)
        self.counts["opened"] += 1
        await asyncio.sleep(1 / OPENS_PER_S)

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


def main(port: int, seconds: float, channel: str) -> None:
    """Run."""
    hostile = Hostile(port, channel)
    asyncio.run(hostile.run(seconds))
    sys.stdout.write(json.dumps(hostile.counts))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
