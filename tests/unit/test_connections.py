"""Clients that ask and do not read: in time, and down to the descriptor."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from sse_gateway.acceptor import Acceptor
from sse_gateway.connections import LINGER_S, REQUEST_S, Connections
from sse_gateway.problems import problem
from sse_gateway.reasons import DropReason

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import web

REQUESTS = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n" * 100
BUFFER = 4096


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for it."""
    async with asyncio.timeout(10):
        while not is_so():  # noqa: ASYNC110 - what it waits for is the kernel's
            await asyncio.sleep(0.01)


async def answer(_request: web.BaseRequest) -> web.StreamResponse:
    """Say no, at length, so that a client which does not read is found out soon."""
    return problem(404, "x" * 20_000, {})


class Server:
    """Connections on a real socket, with a clock that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.connections = Connections(lambda: self.now, lambda: 1000)
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        sock.bind(("127.0.0.1", 0))
        self.address = sock.getsockname()
        self.acceptor = Acceptor(sock, self.connections.server(answer))

    def connect(self) -> socket.socket:
        """A client with little room for what it does not read."""
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        client.connect(self.address)
        client.sendall(REQUESTS)
        client.setblocking(False)
        return client

    @property
    def dropped(self) -> int:
        """Connections that were ended because they took too long."""
        self.connections.expire(self.now)
        return self.connections.dropped[DropReason.DEADLINE]


def is_stalled(server: Server) -> bool:
    """Whether its client has left so much unread that nothing goes on."""
    return any(connection.writing_paused for connection in server.connections._reading)


def is_reset(client: socket.socket) -> bool:
    """Whether the server has let go of the descriptor, though the client has not read; reads nothing."""
    return client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\x07"  # TCP_CLOSE


async def test_who_does_not_take_its_answers_is_ended_and_its_descriptor_closed() -> None:
    """After the time that a request may take; what it has not read holds nothing."""
    server = Server()
    with server.connect() as client:
        await until(lambda: is_stalled(server))
        server.now = REQUEST_S - 0.1
        assert server.dropped == 0
        server.now = REQUEST_S
        early: list[bool] = []  # by a timer: however late the loop is, it calls in order what is due
        asyncio.get_running_loop().call_later(LINGER_S / 2, lambda: early.append(is_reset(client)))
        assert server.dropped == 1
        assert len(server.connections) == 0
        await until(lambda: is_reset(client))
        assert early == [False]
    server.acceptor.close()


async def test_who_takes_them_late_has_them_and_stays() -> None:
    """All of them; and then it is idle, which has no deadline."""
    server = Server()
    with server.connect() as client:
        await until(lambda: is_stalled(server))
        found = b""
        async with asyncio.timeout(30):
            while found.count(b"HTTP/1.1 404") < 100 or not found.endswith(b"}\n"):
                found += await asyncio.get_running_loop().sock_recv(client, 1 << 20)
        await until(lambda: len(server.connections._idle) == 1)
        server.now = 10 * REQUEST_S
        assert server.dropped == 0
        assert len(server.connections) == 1
    server.acceptor.close()
