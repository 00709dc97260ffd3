"""Checked clients that come back: N event streams from one process, each as a browser would keep it.

A stream that breaks waits for its own announced `retry:`, and asks again with the id it saw last. Every
event is checked as in load_client.c: the first is 1, each next is one more, over all connections of a stream.
For every break the time is kept from there to the next event, less that retry: what the break has cost.

In Python, because some hundred streams are enough here: one read of one event takes some 15 us.

Commands on stdin, one JSON line on stdout for each, as load_client.c:
    mark       counters so far; costs of the breaks that healed since the last mark
    finish N   the same at the end, when every stream must have ended with event N
"""

from __future__ import annotations

import argparse
import heapq
import json
import resource
import selectors
import signal
import socket
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

REQUEST = (
    "GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\nCache-Control: no-cache\r\n"
    "Last-Event-ID: {cursor}\r\n\r\n"
)
"""HTTP/1.0: the body is then the stream as it is, not in chunks."""


@dataclass(slots=True, eq=False)
class Stream:
    """One client's stream, over all its connections.

    Attributes:
        sock: Of the connection under way.
        rest: Read, and not complete yet.
        in_body: The head has been read.
        cursor: Newest id.
        last_seq: Newest event.
        retry_s: As announced last.
        due: Moment of the break that has not healed, plus the retry that was announced before it.
        is_open: A block has come on some connection.
    """

    sock: socket.socket | None = None
    rest: bytes = b""
    in_body: bool = False
    cursor: str = ""
    last_seq: int = 0
    retry_s: float = 1.0
    due: float | None = None
    is_open: bool = False


@dataclass(slots=True)
class Clients:
    """All streams of this process.

    Attributes:
        counts: Faults, and what else happened.
        costs_ms: Of breaks healed since the last mark.
    """

    port: int
    path: str
    payload_bytes: int
    streams: list[Stream]
    counts: Counter[str] = field(default_factory=Counter)
    costs_ms: list[float] = field(default_factory=list)
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    _later: list[tuple[float, int, Stream]] = field(default_factory=list)

    def run(self) -> None:
        """Follow all streams, until the standard input ends."""
        self.selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        for stream in self.streams:
            self._connect(stream)
        is_told = False
        while True:
            ready = self.selector.select(max(0.0, self._later[0][0] - time.monotonic()) if self._later else None)
            for key, _mask in ready:
                if isinstance(key.data, Stream):
                    self._read(key.data)
                elif not self._obey():
                    return
            while self._later and self._later[0][0] <= time.monotonic():
                self._connect(heapq.heappop(self._later)[2])
            if not is_told and all(stream.is_open for stream in self.streams):
                is_told = True
                self.report("open")

    def report(self, what: str, last: int | None = None) -> None:
        """Print the counters."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        state: dict[str, object] = {key: self.counts[key] for key in COUNTERS}
        if last is not None:
            state["complete"] = sum(stream.last_seq == last for stream in self.streams)
            state["never_came"] = sum(max(0, last - stream.last_seq) for stream in self.streams)
        print(
            json.dumps(
                state
                | {
                    "what": what,
                    "now_ns": time.monotonic_ns(),
                    "cpu_s": usage.ru_utime + usage.ru_stime,
                    "open": sum(stream.is_open for stream in self.streams),
                    "broken": sum(stream.due is not None for stream in self.streams),
                    "costs_ms": self.costs_ms,
                }
            ),
            flush=True,
        )

    def _obey(self) -> bool:
        line = sys.stdin.buffer.readline().split()
        if not line:
            return False
        self.report(line[0].decode(), int(line[1]) if len(line) > 1 else None)
        if line[0] == b"mark":
            self.costs_ms = []
        return True

    def _connect(self, stream: Stream) -> None:
        stream.rest, stream.in_body = b"", False
        sock = socket.socket()
        try:
            sock.connect(("127.0.0.1", self.port))  # on the loopback it never waits: the backlog takes it
            sock.sendall(REQUEST.format(path=self.path, cursor=stream.cursor).encode())
        except OSError:
            sock.close()
            self.counts["refused"] += 1
            self._again(stream)
            return
        sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
        stream.sock = sock
        self.selector.register(sock, selectors.EVENT_READ, stream)

    def _again(self, stream: Stream) -> None:
        heapq.heappush(self._later, (time.monotonic() + stream.retry_s, id(stream), stream))

    def _read(self, stream: Stream) -> None:
        assert stream.sock is not None  # noqa: S101 - it is registered
        try:
            data = stream.sock.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._broken(stream)
            return
        self.counts["bytes"] += len(data)
        stream.rest += data
        if not stream.in_body:
            self._read_head(stream)
        if stream.in_body:
            *blocks, stream.rest = stream.rest.split(b"\n\n")
            for block in blocks:
                self._take(stream, block)

    def _read_head(self, stream: Stream) -> None:
        head, separator, body = stream.rest.partition(b"\r\n\r\n")
        if separator:
            stream.in_body, stream.rest = True, body
            if b" 200 " not in head[:16]:
                self.counts["refused"] += 1

    def _broken(self, stream: Stream) -> None:
        assert stream.sock is not None  # noqa: S101 - it was read
        self.selector.unregister(stream.sock)
        stream.sock.close()
        stream.sock = None
        self.counts["breaks"] += 1
        if stream.due is None:
            stream.due = time.monotonic() + stream.retry_s
        self._again(stream)

    def _take(self, stream: Stream, block: bytes) -> None:
        kind, data = "message", b""
        for line in block.split(b"\n"):
            name, _, value = line.partition(b": ")
            if name == b"data":
                data = value
            elif name == b"id":
                stream.cursor = value.decode()
            elif name == b"event":
                kind = value.decode()
            elif name == b"retry":
                stream.retry_s = int(value) / 1000
            elif name and not name.startswith(b":"):
                self.counts["malformed"] += 1
        stream.is_open = True
        if kind != "message":
            self.counts[kind.removeprefix("gateway.") + "s"] += 1
        elif data:
            self._check(stream, data)

    def _check(self, stream: Stream, data: bytes) -> None:
        self.counts["events"] += 1
        if len(data) != self.payload_bytes:
            self.counts["malformed"] += 1
            return
        seq, last = int(data[:16], 16), stream.last_seq
        if seq == last:
            self.counts["duplicate"] += 1
        elif seq < last:
            self.counts["disorder"] += 1
        else:
            self.counts["lost"] += seq - last - 1
            stream.last_seq = seq
        if stream.due is not None:
            self.costs_ms.append((time.monotonic() - stream.due) * 1000)
            stream.due = None


COUNTERS = ("events", "bytes", "lost", "duplicate", "disorder", "malformed", "refused", "gaps", "heartbeats",
            "unavailables", "breaks")  # fmt: skip
"""Those that are told."""


def main() -> None:
    """Parse the command line and follow."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/events/load")
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--payload-bytes", type=int, default=100)
    parser.add_argument("--max-seconds", type=int, default=300)
    args = parser.parse_args()
    signal.alarm(args.max_seconds)
    Clients(args.port, args.path, args.payload_bytes, [Stream() for _ in range(args.streams)]).run()


if __name__ == "__main__":
    main()
