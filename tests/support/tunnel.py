"""TLS for clients that speak none: a loopback port whose connections go on encrypted."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading

_READ = 65_536


class Tunnel:
    """Forwards a loopback port of its own, over TLS.

    A side that stops reading stops the other, as a single connection would.

    Args:
        target: (host, port) of the server.
        context: How to check it.
    """

    def __init__(self, target: tuple[str, int], context: ssl.SSLContext) -> None:
        context.set_alpn_protocols(["http/1.1"])
        self._target = target
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def address(self) -> tuple[str, int]:
        """Where to connect."""
        port: int = self._listener.getsockname()[1]
        return ("127.0.0.1", port)

    def close(self) -> None:
        """Close everything; returns when all threads have ended."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            self._open.add(plain)
            thread = threading.Thread(target=self._serve, args=(plain,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, plain: socket.socket) -> None:
        with plain, contextlib.suppress(OSError):
            raw = socket.create_connection(self._target, timeout=10)
            with self._context.wrap_socket(raw, server_hostname="localhost") as secure:
                _pump(plain, secure)
        self._open.discard(plain)


def _pump(plain: socket.socket, secure: ssl.SSLSocket) -> None:
    """Forward both ways until either side ends. One thread: OpenSSL's objects are for one at a time."""
    while True:
        readable = [secure] if secure.pending() else select.select([plain, secure], [], [])[0]
        for source, sink in ((plain, secure), (secure, plain)):
            if source in readable:
                data = _receive(source)
                if data == b"":
                    return
                sink.settimeout(None)
                sink.sendall(data or b"")


def _receive(source: socket.socket) -> bytes | None:
    """What has come; None where it was TLS's own business."""
    source.settimeout(0)
    try:
        return source.recv(_READ)
    except (ssl.SSLWantReadError, BlockingIOError):
        return None
