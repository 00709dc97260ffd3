"""The bad network of the demo: its page's streams pass through here, and can be stalled or cut.

To the gateway a relayed stream is any client's: a TCP connection of its own over the loopback,
with a small receive buffer. What the browser gets is byte for byte what the gateway sent.

Rules:
    1. A wire holds at most one read of `_READ` bytes; while it is stalled nothing is read, so the
       gateway sees a client that takes no byte.
    2. A clean end stays a clean end, a broken one a broken one.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from aiohttp import web

from sse_gateway.demo_valkey import HOST
from sse_gateway.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

_READ = 8192
_MAX_HEAD = 16 * 1024

_RECEIVE_BUFFER = 8192
"""Bytes, for readers that will be stalled: the kernel's share of their backlog, which it doubles."""

_RESET = struct.pack("ii", 1, 0)  # struct linger: on, 0 seconds
_PASSED_ON = ("content-type", "cache-control", "x-content-type-options")


class _Wire:
    """One relayed stream.

    Attributes:
        upstream: The connection to the gateway.
        transport: The connection to the browser.
        gate: Set while bytes may pass.
    """

    __slots__ = ("gate", "transport", "upstream")

    def __init__(self, upstream: socket.socket, transport: asyncio.Transport, gate: asyncio.Event) -> None:
        self.upstream = upstream
        self.transport = transport
        self.gate = gate

    async def read(self) -> bytes:
        """The gateway's next bytes, or none at the end; raises `OSError` where it broke off."""
        await self.gate.wait()
        return await asyncio.get_running_loop().sock_recv(self.upstream, _READ)

    def cut(self) -> None:
        """Lose the connection both ways, as a network does: the browser is sent a reset."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:  # else it has left meanwhile
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()
        with suppress(OSError):
            self.upstream.shutdown(socket.SHUT_RDWR)  # wakes its reader, which closes it


class Relay:
    """Passes streams on from the gateway on `port`.

    A *place* is a name under which streams are stalled or cut together.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._wires: dict[str, set[_Wire]] = {}
        self._stalled: dict[str, asyncio.Event] = {}
        self._open_gate = asyncio.Event()
        self._open_gate.set()

    def cut(self, place: str) -> int:
        """Cut every stream at a place; returns how many there were."""
        wires = self._wires.get(place, set()).copy()
        for wire in wires:
            wire.cut()
        return len(wires)

    def stall(self, place: str) -> None:
        """Stop reading what comes for a place. Idempotent."""
        gate = self._stalled.setdefault(place, asyncio.Event())
        for wire in self._wires.get(place, ()):
            wire.gate = gate

    def release(self, place: str) -> None:
        """Read on. Idempotent."""
        gate = self._stalled.pop(place, None)
        for wire in self._wires.get(place, ()):
            wire.gate = self._open_gate
        if gate is not None:
            gate.set()

    async def answer(self, request: web.BaseRequest, place: str, target: str, *, is_slow: bool) -> web.StreamResponse:
        """Relay one request for a stream, until either side ends it.

        Args:
            request: The browser's.
            place: Where it passes.
            target: What it asks the gateway for.
            is_slow: It is to be stalled: keep the kernel from hiding that.
        """
        transport = request.transport
        if transport is None:
            raise RequestError(400, "the connection is gone")
        with socket.socket() as upstream:
            upstream.settimeout(0)
            if is_slow:
                upstream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            await asyncio.get_running_loop().sock_connect(upstream, (HOST, self._port))
            await asyncio.get_running_loop().sock_sendall(upstream, _head(target, request))
            wire = _Wire(upstream, transport, self._stalled.get(place, self._open_gate))
            self._wires.setdefault(place, set()).add(wire)
            try:
                return await _pass_on(wire, request)
            finally:
                self._forget(place, wire)

    def _forget(self, place: str, wire: _Wire) -> None:
        self._wires[place].discard(wire)
        if not self._wires[place]:
            del self._wires[place]


def _head(target: str, request: web.BaseRequest) -> bytes:
    """The request to the gateway. HTTP/1.0, so that the answer needs no decoding.

    What it takes from the browser's has been parsed as HTTP: it holds no line end.
    """
    lines = [f"GET {target} HTTP/1.0", f"Host: {HOST}", "Accept: text/event-stream"]
    if "Last-Event-ID" in request.headers:
        lines.append(f"Last-Event-ID: {request.headers['Last-Event-ID']}")
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape")


async def _pass_on(wire: _Wire, request: web.BaseRequest) -> web.StreamResponse:
    try:
        head, body = await _read_head(wire)
        response = web.StreamResponse(status=int(head.split(" ", 2)[1]), headers=dict(_headers(head)))
        await response.prepare(request)
        while body:
            await response.write(body)
            body = await wire.read()
    except OSError:
        wire.cut()  # broken off by the gateway, or left by the browser
        return web.Response()
    await _write_end(response)
    return response


async def _read_head(wire: _Wire) -> tuple[str, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = await wire.read()
        if not piece or len(data) > _MAX_HEAD:
            raise ConnectionResetError("the gateway did not answer")
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    return head.decode(), body or await wire.read()


def _headers(head: str) -> Iterator[tuple[str, str]]:
    for line in head.split("\r\n")[1:]:
        name, _, value = line.partition(":")
        if name.lower() in _PASSED_ON:
            yield name, value.strip()


async def _write_end(response: web.StreamResponse) -> None:
    with suppress(OSError):  # a wire that was cut ends here too, without its browser
        await response.write_eof()
