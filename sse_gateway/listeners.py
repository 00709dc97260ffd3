"""Sockets that are listened on: bound by one process, accepted from by itself or by others.

Rules:
    1. On TCP each worker has a socket of its own for each address, in one `SO_REUSEPORT` group: the
       kernel deals connections out evenly, where one shared socket favours whoever wakes first. A
       Unix socket knows no such group and is shared.
    2. A socket stays open while its address is in service: what waits in the backlog of one that is
       closed would be reset. With fewer workers the surplus is dealt out among those that remain.
    3. Whoever accepts from a row may do so beside another: rows of a worker that is away are taken
       care of by those that are there, until it is back.
    4. Bound is not yet listening: a socket joins its group, and begins to collect connections, only
       when somebody is there to accept them.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from aiohttp import web

from sse_gateway.acceptor import BACKLOG, Acceptor
from sse_gateway.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from contextlib import AsyncExitStack
    from pathlib import Path

    from sse_gateway.settings import AdminSettings, ListenSettings

    Place = ListenSettings | AdminSettings

SHUTDOWN_S = 0.5
"""How long a client may take, twice, for an answer that has begun when the server ends."""

IDLE_S = 75.0
"""How long a connection of the admin listener may be idle, also before its first request: longer than scrapes are apart."""

Resolved = tuple[int, Any]
"""A family, and an address as `bind` takes it."""


class Sockets:
    """The listening sockets of one place.

    Attributes:
        place: The settings they were bound for.
    """

    def __init__(self, place: Place, key: str) -> None:
        """Empty until `bind`.

        Args:
            place: Where to listen.
            key: Of the settings; named by errors.
        """
        self.place = place
        self._key = key
        self._addresses: list[Resolved] = []
        self._rows: list[list[socket.socket]] = []
        self._inode: tuple[int, int] | None = None

    async def bind(self, rows: int = 1, own_ports: Collection[int] = ()) -> None:
        """Bind so many rows: a row has one socket for each address. Again with more of them: bind the rest.

        Args:
            rows: Workers.
            own_ports: Ports that this process holds already for another host.

        Raises:
            ConfigError: The address cannot be bound; then nothing has changed.
        """
        before = len(self._rows)
        try:
            if self.place.unix is not None:
                if not self._rows:
                    self._rows.append([self._bind_unix(self.place.unix)])
            else:
                await self._bind_tcp(rows, own_ports)
        except OSError as error:
            self._close(self._rows[before:])
            del self._rows[before:]
            reason = error.strerror or str(error)
            where = f"{self._key}: cannot listen on {address_of(self.place)}: {reason}"
            raise ConfigError([f"{where}; choose another with {self._key}.{self._remedy(error)}"]) from error

    def _remedy(self, error: OSError) -> str:
        """Which key of the section would help."""
        if self.place.unix is not None:
            return "unix"
        return "port" if error.errno in {errno.EADDRINUSE, errno.EACCES} else "host"

    async def _bind_tcp(self, rows: int, own_ports: Collection[int]) -> None:
        if not self._addresses:
            self._addresses = await _resolve(self.place.host, self.place.port)
            if self.place.port not in own_ports:
                self._close([[_bind(address, shared=False) for address in self._addresses]])  # refuses what is taken
        for _ in range(len(self._rows), rows):
            row: list[socket.socket] = []
            self._rows.append(row)
            row.extend(_bind(address, shared=True) for address in self._addresses)

    def _bind_unix(self, path: Path) -> socket.socket:
        _clear_path(path)
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.bind(str(path))
        except OSError:
            sock.close()
            raise
        self._inode = _inode(path)
        return sock

    def listen(self) -> None:
        """Collect connections from now on. Idempotent."""
        for row in self._rows:
            for sock in row:
                sock.listen(BACKLOG)

    @property
    def rows(self) -> Sequence[Sequence[socket.socket]]:
        """All of them, row by row."""
        return self._rows

    def deal(self, slots: int) -> list[list[int]]:
        """Which rows each of so many workers accepts from: none is left over."""
        if self.place.unix is not None:
            return [[0] for _ in range(slots)]
        return [list(range(slot, len(self._rows), slots)) for slot in range(slots)]

    def close(self) -> None:
        """Stop listening, and remove what is still our Unix socket. Idempotent."""
        self._close(self._rows)
        self._rows.clear()
        path = self.place.unix
        if path is not None and self._inode is not None:
            with suppress(OSError):
                if _inode(path) == self._inode:
                    path.unlink()
        self._inode = None

    @staticmethod
    def _close(rows: Sequence[Sequence[socket.socket]]) -> None:
        for row in rows:
            for sock in row:
                sock.close()


class Listener:
    """An HTTP server on rows of bound sockets, which it takes over."""

    def __init__(self, runner: web.BaseRunner, rows: Sequence[Sequence[socket.socket]]) -> None:
        self._runner = runner
        self._rows = rows
        self._acceptors: dict[int, list[Acceptor]] = {}

    async def accept(self, wanted: Collection[int]) -> None:
        """Accept from these rows from now on, and from no others. Not twice at a time."""
        if self._runner.server is None:
            await self._runner.setup()
        for row in self._acceptors.keys() - set(wanted):
            self._close(row)
        for row in wanted:
            if row not in self._acceptors:
                self._acceptors[row] = [self._accept_from(sock) for sock in self._rows[row] if sock.fileno() >= 0]

    def _accept_from(self, sock: socket.socket) -> Acceptor:
        """Accept on a duplicate: the acceptor closes what it has."""
        server = self._runner.server
        assert server is not None  # noqa: S101 - it has been set up
        return Acceptor(sock.dup(), server)

    def _close(self, row: int) -> None:
        for acceptor in self._acceptors.pop(row):
            acceptor.close()

    def close(self) -> None:
        """Accept no more, and let go of the sockets; connections stay. Idempotent."""
        for row in list(self._acceptors):
            self._close(row)
        for sockets in self._rows:
            for sock in sockets:
                sock.close()

    async def cleanup(self) -> None:
        """End the connections too."""
        self.close()
        if self._runner.server is not None:
            await self._runner.cleanup()


async def listening(place: Place, key: str, stack: AsyncExitStack) -> Sequence[Sequence[socket.socket]]:
    """Bind and listen, for one process, until the stack is left.

    Raises:
        ConfigError: The address cannot be bound.
    """
    sockets = Sockets(place, key)
    stack.callback(sockets.close)
    await sockets.bind()
    sockets.listen()
    return sockets.rows


async def serve_app(app: web.Application, rows: Sequence[Sequence[socket.socket]], stack: AsyncExitStack) -> None:
    """Serve an application until the stack is left."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S, keepalive_timeout=IDLE_S)
    listener = Listener(runner, rows)
    stack.push_async_callback(listener.cleanup)
    await listener.accept(range(len(rows)))


def address_of(place: Place) -> str:
    """A place as operators write it."""
    return f"unix:{place.unix}" if place.unix is not None else f"{place.host}:{place.port}"


async def _resolve(host: str, port: int) -> list[Resolved]:
    """All addresses of a host, each once, those of families that this kernel knows."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = dict.fromkeys((int(family), address) for family, _, _, _, address in found)
    known = [(family, address) for family, address in addresses if _is_known(family)]
    if not known:
        raise OSError(errno.EAFNOSUPPORT, "no address of a family that this host knows")
    return known


def _is_known(family: int) -> bool:
    try:
        socket.socket(family).close()
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:
            raise
        return False
    return True


def _bind(resolved: Resolved, *, shared: bool) -> socket.socket:
    """Bind one socket.

    Args:
        resolved: Family and address.
        shared: Into a group, which anybody of this user may join. Without, only what is free:
            another gateway would otherwise get half of the connections without a word.
    """
    family, address = resolved
    sock = socket.socket(family)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def _clear_path(path: Path) -> None:
    """Remove a socket that nobody listens on.

    Raises:
        OSError: Somebody does, and would go deaf without a word; or it is no socket.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise OSError(errno.EADDRINUSE, "there is a file that is no socket")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(0)  # a full backlog would hold us up
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
                return
            except BlockingIOError:
                pass
        raise OSError(errno.EADDRINUSE, "another process listens there")


def _inode(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino
