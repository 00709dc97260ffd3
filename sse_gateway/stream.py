"""One client's open response, on a socket that the stream alone owns.

Rules:
    1. The socket is taken from the HTTP server: its descriptor is duplicated and the server's
       transport aborted. To the server the client has just left; the connection lives on in the
       duplicate, which nobody else knows. It is a `SocketType`, the bare one without Python's own class: its `send`
       costs a tenth less than `os.write`, which goes through the kernel's files.
    2. The descriptor is closed in the step in which the stream leaves its audience, or after it:
       a descriptor that the kernel gives to somebody else is no longer written to (I11).
    3. A stream ends once, with one reason (I8). It ends at once (`abort`), or with a last block
       (`end`): then the rest is written, the sending side shut, and the client's end awaited.
"""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from sse_gateway.reasons import CloseReason

if TYPE_CHECKING:
    import asyncio

    from sse_gateway.admission import Place
    from sse_gateway.grants import Identity
    from sse_gateway.hub import Hub
    from sse_gateway.reader import Reader
    from sse_gateway.readiness import Readiness

MAX_INPUT = 64 * 1024
"""Bytes a client may send on a stream, where it has nothing to say; beyond it is dropped."""

LINGER_S = 1.0
"""How long a client may take to read the end of its stream, and then to close."""

RESET = struct.pack("ii", 1, 0)
"""For SO_LINGER (struct linger: on, 0 seconds): what is not sent is thrown away."""


class Owner(Protocol):
    """Who keeps the streams."""

    hub: Hub
    loop: asyncio.AbstractEventLoop
    readiness: Readiness

    def now(self) -> float:
        """The clock, seconds."""

    def kick(self) -> None:
        """Have the hub's work done soon."""

    def ended(self, stream: Stream, reason: CloseReason) -> None:
        """Called once, when a stream has left the hub."""

    def replayed(self, stream: Stream, size: int) -> None:
        """Called when so many bytes of events that were have been handed to it."""

    def closed(self, stream: Stream) -> None:
        """Called once, when its descriptor has been closed."""


def take_socket(transport: asyncio.Transport, *, send_buffer_bytes: int, write_timeout_s: float) -> socket.SocketType:
    """Take the connection away from its transport.

    Args:
        transport: The server's; untouched if this raises.
        send_buffer_bytes: Bound on what the kernel holds for a slow client.
        write_timeout_s: How long it tries for a client that vanished.

    Returns:
        A socket that does not block, owned by the caller.

    Raises:
        OSError: The connection is gone, or there are no descriptors left (EMFILE, ENFILE).
    """
    theirs = transport.get_extra_info("socket")
    if theirs is None or theirs.fileno() < 0:
        raise OSError("the connection is gone")
    ours = socket.SocketType(theirs.family, theirs.type, theirs.proto, os.dup(theirs.fileno()))
    try:
        ours.settimeout(0)
        _tune(ours, send_buffer_bytes, write_timeout_s)
    except OSError:
        ours.close()
        raise
    transport.abort()
    return ours


def _tune(sock: socket.SocketType, send_buffer_bytes: int, write_timeout_s: float) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
    if sock.family in {socket.AF_INET, socket.AF_INET6}:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(write_timeout_s * 1000)))


class Stream:
    """The socket of one reader; the hub's `Sink`.

    Attributes:
        handle: The socket.
        reader: The reader, set right after both exist.
        place: What it has taken of the node's limits.
        opened_at: Seconds of the loop's clock.
        expires_at: When `max_age` ends it, or 0.
        identity: Whose it is, and when that ends; None where nobody was asked.
        reason: Why it ended; None while it is open.
    """

    __slots__ = (
        "_input",
        "_owner",
        "_rest",
        "_timer",
        "_waits",
        "expires_at",
        "handle",
        "identity",
        "opened_at",
        "place",
        "reader",
        "reason",
    )

    reader: Reader

    def __init__(self, handle: socket.SocketType, owner: Owner, opened_at: float, place: Place) -> None:
        self.handle = handle
        self.opened_at = opened_at
        self.place = place
        self.expires_at = 0.0
        self.identity: Identity | None = None
        self.reason: CloseReason | None = None
        self._owner = owner
        self._rest = b""
        self._input = 0
        self._waits = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def fd(self) -> int:
        """The descriptor; -1 once it is closed."""
        return self.handle.fileno()

    def watch(self) -> None:
        """Begin to notice when the client leaves."""
        if self.fd >= 0:
            self._owner.readiness.watch(self, writes=self._waits)

    def wait_writable(self) -> None:
        """Go on when the socket takes bytes again. Idempotent."""
        if not self._waits and self.fd >= 0:
            self._waits = True
            self._owner.readiness.watch(self, writes=True)

    def replayed(self, size: int) -> None:
        """Events that were have been handed over; counted against the budget of whoever asked."""
        self._owner.replayed(self, size)

    def abort(self, reason: CloseReason) -> None:
        """End at once, without a word. Idempotent.

        A client that does not read is reset, so that the kernel frees what it holds for it.
        """
        if self.fd >= 0 and reason is not CloseReason.CLIENT:
            self.handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._leave(reason)
        self._close()

    def end(self, reason: CloseReason) -> None:
        """End with a last block, as far as the client still reads. Idempotent."""
        if self.reason is not None:
            return
        self.reason = reason
        self._rest = self._owner.hub.farewell(self.reader, reason)
        self._owner.ended(self, reason)
        self._close_later()
        self._write_rest()

    def _leave(self, reason: CloseReason) -> None:
        if self.reason is None:
            self.reason = reason
            self._owner.hub.leave(self.reader, reason)
            self._owner.ended(self, reason)

    def _close(self) -> None:
        if self.fd < 0:
            return
        self._owner.readiness.forget(self.fd)
        if self._timer is not None:
            self._timer.cancel()
        self.handle.close()
        self._owner.closed(self)

    def _write_rest(self) -> None:
        try:
            self._rest = self._rest[self.handle.send(self._rest) :] if self._rest else b""
        except BlockingIOError:
            pass
        except OSError:
            self._close()
            return
        if self._rest:
            self.wait_writable()
        else:
            self._stop_waiting()
            self._shut()

    def _shut(self) -> None:
        with suppress(OSError):  # the client may have been faster
            self.handle.shutdown(socket.SHUT_WR)
        self._close_later()

    def _close_later(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._owner.loop.call_later(LINGER_S, self._close)

    def _stop_waiting(self) -> None:
        if self._waits:
            self._waits = False
            self._owner.readiness.watch(self, writes=False)

    def writable(self) -> None:
        """Go on writing."""
        if self.reason is not None:
            self._write_rest()
            return
        more = self._owner.hub.advance(self.reader, self._owner.now())
        if self.fd >= 0 and self.reader.outbox is None:
            self._stop_waiting()
            if more:
                self._owner.hub.schedule(self.reader)
                self._owner.kick()

    def readable(self) -> None:
        """Notice that the client leaves; what it sends is thrown away."""
        try:
            data = self.handle.recv(MAX_INPUT)
        except BlockingIOError:
            return
        except OSError as error:
            self.abort(CloseReason.of(error))
            return
        self._input += len(data)
        if not data:
            self.abort(CloseReason.CLIENT)
        elif self._input > MAX_INPUT:
            self.abort(CloseReason.PROTOCOL)
