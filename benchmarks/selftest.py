"""Shows that the load clients would notice: a scripted server plays every fault, cut at every byte.

Run before each measurement: a checker that cannot fail proves nothing.
"""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

from benchmarks.errors import BenchmarkError
from benchmarks.parts import Part, python
from benchmarks.payload import payload

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SIZE = 100

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
PLAIN_HEAD = b"HTTP/1.0 200 OK\r\n\r\n"


def _frame(seq: int, size: int = SIZE) -> bytes:
    return b"id: e-%d-0\ndata: %b\n\n" % (seq, payload(seq, time.monotonic_ns(), size))


def _crlf(seq: int) -> bytes:
    return _frame(seq).replace(b"\n", b"\r\n")


def _reserved(kind: bytes) -> bytes:
    # Long enough that a line feed may stand where a payload's would.
    return b'event: gateway.%b\nid: e-0-0\ndata: {"a":"%b"}\n\n' % (kind, b"b" * 40)


SCRIPTS: dict[str, tuple[Iterable[int | bytes], dict[str, int]]] = {
    "in order": ((1, 2, 3, 4), {}),
    "with heartbeats": ((1, _reserved(b"heartbeat"), 2, b":\n\n", 3, 4), {"heartbeats": 1}),
    "loss": ((1, 2, 4), {"lost": 1}),
    "loss of the first": ((2, 3, 4), {"lost": 1}),
    "loss of the last": ((1, 2, 3), {"never_came": 1}),
    "duplicate": ((1, 2, 2, 3, 4), {"duplicate": 1}),
    "disorder": ((1, 3, 2, 4), {"lost": 1, "disorder": 1}),
    "gap": ((1, 2, _reserved(b"gap"), 4), {"lost": 1, "gaps": 1}),
    "short data": ((1, 2, 3, b"data: 4\n\n", 4), {"malformed": 1}),
    "half an event": ((1, 2, 3, 4, _frame(5)[:-1]), {}),
    "no field": ((1, 2, 3, b"oops\n", 4), {"malformed": 1}),
}
"""What the server sends (a number is that event), and the counters that must not be zero."""

PEERS_SCRIPTS: dict[str, tuple[Iterable[int | bytes], dict[str, int]]] = {
    "lines that end in CRLF": ((_crlf(1), b": ping\r\n\r\n", _crlf(2), _crlf(3), _crlf(4)), {}),
    "CRLF and loss": ((_crlf(1), _crlf(2), _crlf(4)), {"lost": 1}),
}
"""What peers send; only the client in C meets them."""

SIZES = (20, 65_536)
"""Other payloads, for the client in C: the compact form, and lines that no read holds."""

SIZED = ("in order", "loss", "duplicate", "gap")

COUNTERS = ("lost", "duplicate", "disorder", "malformed", "gaps", "heartbeats", "never_came", "closed")


def _body(script: Iterable[int | bytes], size: int = SIZE) -> bytes:
    return b"retry: 3000\n\n" + b"".join(_frame(item, size) if isinstance(item, int) else item for item in script)


def _chunks(body: bytes, step: int) -> bytes:
    pieces = (body[at : at + step] for at in range(0, len(body), step))
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


def _play(listener: socket.socket, body: bytes, step: int, done: threading.Event) -> None:
    """Answer one request in chunks of `step` bytes, or as it is, in writes of about twice that."""
    stream, _address = listener.accept()
    with stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        is_chunked = b"HTTP/1.1" in stream.recv(4096)
        stream.sendall(HEAD if is_chunked else PLAIN_HEAD)
        data = _chunks(body, step) if is_chunked else body
        for at in range(0, len(data), 2 * step + 1):
            stream.sendall(data[at : at + 2 * step + 1])
        done.wait(10)


def _counts(command: list[str], body: bytes, step: int, core: int, directory: Path) -> dict[str, int]:
    """Play a body to a client; return its counters."""
    done = threading.Event()
    is_chunked = command[0].endswith("load_client")
    size = len(HEAD) + len(_chunks(body, step)) if is_chunked else len(PLAIN_HEAD) + len(body)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = threading.Thread(target=_play, args=(listener, body, step, done), daemon=True)
        server.start()
        options = ["--port", str(port), "--streams", "1", "--max-seconds", "20"]
        part = Part("selftest", [*command, *options], core=core, directory=directory)
        try:
            part.hear(10)
            # The server's writes are all in the client's socket once it has seen as many bytes.
            while (state := part.ask("finish 4"))["bytes"] < size:
                time.sleep(0.005)
        finally:
            done.set()
            part.stop()
            server.join()
    return {key: state[key] for key in COUNTERS if state.get(key)}


def check_load_clients(core: int, directory: Path) -> None:
    """Play every script to both clients, in large and in small pieces.

    Raises:
        BenchmarkError: A client counted something else than what was played.
    """
    in_c, in_python = [str(directory / "load_client")], python("benchmarks.resuming_client")
    plays = [
        (command, f"{name}, {step} bytes at a time", _body(script), step, expected)
        for command, scripts in ((in_c, SCRIPTS | PEERS_SCRIPTS), (in_python, SCRIPTS))
        for step in (1 << 20, 7)
        for name, (script, expected) in scripts.items()
    ]
    for size in SIZES:
        for name in SIZED:
            script, expected = SCRIPTS[name]
            command = [*in_c, "--payload-bytes", str(size)]
            plays.append((command, f"{name}, payloads of {size} bytes", _body(script, size), size // 3, expected))
    for command, name, body, step, expected in plays:
        counts = _counts(command, body, step, core, directory)
        if counts != expected:
            raise BenchmarkError(f"{command[0]}, {name}: expected {expected}, got {counts}")
