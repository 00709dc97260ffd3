"""Accepts connections, a few in each turn of the loop.

The loop's own server accepts all that wait at once. When 10,000 clients come back together that held everything else for 0.5 s:
a thousand connections in one turn, and in the next their requests. So few are let in at a time; the others wait
in the kernel, which costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from sse_gateway.logs import log_event

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

BACKLOG = 4096
"""Connections that wait to be accepted; beyond, a Unix socket refuses at once, and a proxy says 502."""

PER_TURN = 16
"""Connections accepted in one turn: until they are streams they take half a millisecond each."""

PAUSE_S = 0.1
"""How long none is accepted when there are no descriptors or no memory for one."""

_log = logging.getLogger(__name__)


class Acceptor:
    """Accepts from one socket."""

    def __init__(self, sock: socket.socket, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        """Begin; needs a running loop.

        Args:
            sock: Bound; its own from now on.
            factory: Makes the protocol of a connection.
        """
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._factory = factory
        self._beginning: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        sock.settimeout(0)
        sock.listen(BACKLOG)
        self._resume()

    def close(self) -> None:
        """Accept no more; connections stay. Idempotent."""
        if self._sock.fileno() < 0:
            return
        if self._pause is not None:
            self._pause.cancel()
        else:
            self._loop.remove_reader(self._sock.fileno())
        self._sock.close()

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._sock.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(PER_TURN):
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError):  # no more, or it has left again
                return
            except OSError as error:
                log_event(_log, logging.WARNING, "listener.paused", reason=str(error))
                self._loop.remove_reader(self._sock.fileno())
                self._pause = self._loop.call_later(PAUSE_S, self._resume)
                return
            sock.settimeout(0)
            task = self._loop.create_task(self._begin(sock))
            self._beginning.add(task)
            task.add_done_callback(self._beginning.discard)

    async def _begin(self, sock: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._factory, sock)
        except OSError:  # it has left again
            sock.close()
