"""A TCP proxy that breaks: per direction it can hold bytes back, swallow them, or cut after some.

Two threads per connection, one for each direction; every switch takes effect at the next byte.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_READ = 16_384


@dataclass(slots=True)
class Direction:
    """What happens to bytes that go one way, over all connections.

    Attributes:
        passed: Bytes handed on so far.
        cut_after: Reset each connection after this many bytes of it went this way; None for never.
        swallow: Read bytes and forget them.
        rewrite: What is replaced in what is read at once, by something of the same length.
    """

    passed: int = 0
    cut_after: int | None = None
    swallow: bool = False
    rewrite: dict[bytes, bytes] = field(default_factory=dict)
    _gate: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._gate.set()

    def hold(self) -> None:
        """Keep bytes back until `release`; none is lost."""
        self._gate.clear()

    def release(self) -> None:
        """Hand on what was held."""
        self._gate.set()

    def wait_released(self) -> None:
        """Return as soon as bytes may pass."""
        self._gate.wait()


class FaultProxy:
    """Forwards a loopback port of its own to `target`.

    Args:
        target: (host, port) of the server.
        spares: Connections whose first bytes have this in them keep all of theirs, whatever is swallowed.
    """

    def __init__(self, target: tuple[str, int], *, spares: bytes | None = None) -> None:
        self.to_server = Direction()
        self.to_client = Direction()
        self.accepted = 0
        self._target = target
        self._spares = spares
        self._spared: set[tuple[socket.socket, socket.socket]] = set()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def address(self) -> tuple[str, int]:
        """Where to connect instead of the target."""
        return ("127.0.0.1", self.port)

    def hold(self) -> None:
        """Hold both directions: both ends think the other is only slow."""
        self.to_server.hold()
        self.to_client.hold()

    def release(self) -> None:
        """Release both directions."""
        self.to_server.release()
        self.to_client.release()

    def swallow(self, *, on: bool = True) -> None:
        """Lose everything both ways from now on: a path that vanished without FIN or RST."""
        self.to_server.swallow = self.to_client.swallow = on

    def reset_all(self) -> None:
        """Send RST to both ends of every connection."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
            self._spared.clear()
        for pair in pairs:
            _reset(*pair)

    def close(self) -> None:
        """Stop listening and reset every connection; returns when all threads have ended."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(10)  # whom it has accepted by now is reset with the others, and nobody comes later
        self.release()
        self.reset_all()
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target, timeout=5)
            except OSError:
                _reset(client)
                continue
            server.settimeout(None)
            self._start(client, server)

    def _start(self, client: socket.socket, server: socket.socket) -> None:
        pair = (client, server)
        with self._lock:
            self.accepted += 1
            self._pairs.add(pair)
        for source, sink, direction in ((client, server, self.to_server), (server, client, self.to_client)):
            thread = threading.Thread(target=self._pump, args=(source, sink, direction, pair), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _pump(
        self,
        source: socket.socket,
        sink: socket.socket,
        direction: Direction,
        pair: tuple[socket.socket, socket.socket],
    ) -> None:
        passed = 0
        while data := _receive(source):
            direction.wait_released()
            if not passed and direction is self.to_server and self._spares is not None and self._spares in data:
                self._spared.add(pair)
            if direction.swallow and pair not in self._spared:
                continue
            data = data if direction.cut_after is None else data[: max(0, direction.cut_after - passed)]
            for old, new in direction.rewrite.items():
                data = data.replace(old, new)
            if not _send(sink, data):
                break
            passed += len(data)
            direction.passed += len(data)
            if direction.cut_after is not None and passed >= direction.cut_after:
                self._drop(pair)
                return
        direction.wait_released()
        with contextlib.suppress(OSError):
            if pair in self._pairs and not direction.swallow:  # a path that vanished carries no FIN either
                sink.shutdown(socket.SHUT_WR)

    def _drop(self, pair: tuple[socket.socket, socket.socket]) -> None:
        with self._lock:
            self._pairs.discard(pair)
        _reset(*pair)


def _receive(source: socket.socket) -> bytes:
    try:
        return source.recv(_READ)
    except OSError:
        return b""


def _send(sink: socket.socket, data: bytes) -> bool:
    try:
        sink.sendall(data)
    except OSError:
        return False
    return True


def _reset(*connections: socket.socket) -> None:
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # A reader blocked in recv() keeps the descriptor alive, and the RST unsent.
            connection.shutdown(socket.SHUT_RD)
        connection.close()


@contextlib.contextmanager
def proxied(target: tuple[str, int]) -> Iterator[FaultProxy]:
    """Run a proxy for the length of a ``with`` block."""
    proxy = FaultProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
