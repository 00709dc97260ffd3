"""When the sockets of streams can be read or written: one watcher of the loop for all of them.

A watcher of the loop's own takes 600 bytes for each socket: handle, context and callback in Python, two handles in C,
a place in a table. Here it is a place in a list. The kernel nests: an epoll that has something to tell is itself
readable.

Rules:
    1. Nothing is remembered of what was told: whoever leaves something over, and whoever had no turn, is ready again in the next
       turn of the loop.
    2. A descriptor is forgotten before it is closed: nobody is told of one that the kernel gives to somebody else (I11).
    3. Whose connection has broken can read: that is how he learns it.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio

MAX_TOLD = 64
"""Sockets that have their turn before the loop goes on: many clients that leave at once do not hold it."""


class Watched(Protocol):
    """Whose socket is watched."""

    @property
    def fd(self) -> int:
        """The descriptor."""

    def readable(self) -> None:
        """The socket can be read, or is broken."""

    def writable(self) -> None:
        """The socket takes bytes."""


class Readiness:
    """All sockets that are watched, by their descriptors. It has a descriptor of its own while there are any."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watch none yet."""
        self._loop = loop
        self._epoll: select.epoll | None = None
        self._watched: list[Watched | None] = []
        self._count = 0

    def prepare(self) -> select.epoll:
        """Take the descriptor that the first to be watched needs, while a failure does no harm yet. Idempotent.

        Raises:
            OSError: There are none left (EMFILE, ENFILE).
        """
        if self._epoll is None:
            self._epoll = select.epoll()
            self._loop.add_reader(self._epoll.fileno(), self._tell, self._epoll)
        return self._epoll

    def watch(self, socket: Watched, *, writes: bool) -> None:
        """Tell a socket from now on when it can be read.

        Args:
            socket: Known already or not.
            writes: Tell it as well when it takes bytes.

        Raises:
            OSError: There are no descriptors left (EMFILE, ENFILE), or the kernel watches no more (ENOSPC, ENOMEM).
        """
        fd = socket.fd
        events = select.EPOLLIN | select.EPOLLOUT if writes else select.EPOLLIN
        epoll = self.prepare()
        self._watched.extend([None] * (fd + 1 - len(self._watched)))
        if self._watched[fd] is not None:
            epoll.modify(fd, events)
            return
        epoll.register(fd, events)
        self._watched[fd] = socket
        self._count += 1

    def forget(self, fd: int) -> None:
        """Watch a descriptor no longer, which is still open. Idempotent."""
        if self._epoll is not None and fd < len(self._watched) and self._watched[fd] is not None:
            self._epoll.unregister(fd)
            self._watched[fd] = None
            self._count -= 1
        self.rest()

    def rest(self) -> None:
        """Give the descriptor back if nobody is watched. Idempotent."""
        if self._epoll is not None and not self._count:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def _tell(self, epoll: select.epoll) -> None:
        for fd, events in epoll.poll(0, MAX_TOLD):
            socket = self._watched[fd]
            if socket is not None and events & ~select.EPOLLOUT:
                socket.readable()
            if socket is not None and events & select.EPOLLOUT and self._watched[fd] is socket:
                socket.writable()
