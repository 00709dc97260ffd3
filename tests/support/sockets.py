"""Sockets that exist only in a test: each takes what the test has given it room for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from sse_gateway.reasons import CloseReason

UNLIMITED = 2**62
"""Room of a socket whose client reads everything."""


class FakeSocket:
    """One client's socket: a `Sink` for the core, and the place where its bytes end up.

    Attributes:
        handle: Its descriptor.
        room: Bytes that it still takes.
        taken: Bytes that it has taken.
        is_gone: The client has closed the connection; writing fails.
        failure: How it fails then.
        replays: Bytes of events that the core called a replay.
        waits: How often the core has begun to wait until it takes bytes again.
        aborted: Why the core has ended it, or None.
        on_abort: What else happens then, as a shell would leave the hub.
    """

    def __init__(self, fd: int, room: int) -> None:
        self.handle = fd
        self.room = room
        self.taken = b""
        self.is_gone = False
        self.failure: type[OSError] = BrokenPipeError
        self.replays = 0
        self.waits = 0
        self.aborted: CloseReason | None = None
        self.on_abort: Callable[[CloseReason], None] | None = None

    def take(self, data: bytes) -> int:
        """Take as much as there is room for, as a descriptor that does not block."""
        if self.is_gone:
            raise self.failure
        size = min(len(data), self.room)
        if size == 0:
            raise BlockingIOError
        self.room -= size
        self.taken += data[:size]
        return size

    def wait_writable(self) -> None:
        """Note that the core waits."""
        self.waits += 1

    def replayed(self, size: int) -> None:
        """Add up what the core says of replays."""
        self.replays += size

    def abort(self, reason: CloseReason) -> None:
        """Note why the core has ended it; the first reason counts."""
        if self.aborted is None:
            self.aborted = reason
            if self.on_abort is not None:
                self.on_abort(reason)


class Network:
    """All sockets of a test; `write` is what the core is given in place of `os.write`."""

    def __init__(self) -> None:
        self._sockets: dict[int, FakeSocket] = {}

    def open(self, room: int = UNLIMITED) -> FakeSocket:
        """Make a socket."""
        fd = len(self._sockets) + 3
        self._sockets[fd] = FakeSocket(fd, room)
        return self._sockets[fd]

    def write(self, fd: int, data: bytes) -> int:
        """Write as `os.write` does. A descriptor that the core has given up must not come again (I11)."""
        sock = self._sockets[fd]
        assert sock.aborted is None, "written to after it was ended"
        return sock.take(data)
