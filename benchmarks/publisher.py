"""Publishes at a fixed rate, open loop, to Redis or by HTTP: event k of a run is due at start + k/rate.

A late tick publishes all that is due, with the intended times: lateness becomes latency, never a lower rate.

Protocol: prints {"what":"ready"}; on the line ``start T FIRST COUNT RATE`` on stdin publishes COUNT events from number FIRST on,
and prints one line of JSON; ends at the end of stdin. FIRST counts what a stream gets: with ``--spread S`` the events are dealt
to S streams in turn, each with a sequence of its own, and with ``--per-stream M`` by turns on M channels of each.
"""

from __future__ import annotations

import argparse
import json
import resource
import socket
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass

from benchmarks.payload import intended_ns, payload

TICK_S = 0.002
"""Events of one tick go out in one write. Well below the latencies of interest, and 500 wake-ups a second are cheap."""

OWED_MAX = 10_000
"""Replies that may be owed before the publisher waits for them."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Who gets which event.

    Attributes:
        streams: They are dealt to so many streams in turn; 1: every event to all.
        per_stream: Channels of each.
    """

    streams: int = 1
    per_stream: int = 1

    def channel(self, number: int) -> str:
        """Return the channel of an event (numbers from 0)."""
        turn, stream = divmod(number, self.streams)
        if self.streams == 1:
            return "load"
        return f"load-{stream}" if self.per_stream == 1 else f"load-{stream}-{turn % self.per_stream}"

    def sequence(self, number: int) -> int:
        """Return its number among those that the same streams get, from 1."""
        return number // self.streams + 1


class Publisher(ABC):
    """Pipelined requests on one raw connection; replies are counted, not awaited one by one."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._owed = 0
        self.unheard = 0

    def publish(self, events: list[tuple[str, bytes]]) -> None:
        """Send one pipeline, and take whatever replies are already there."""
        self._socket.sendall(b"".join([self.encode(channel, data) for channel, data in events]))
        self._owed += len(events)
        self._take(until=OWED_MAX)

    def finish(self) -> None:
        """Take the remaining replies."""
        self._take(until=0)

    @abstractmethod
    def encode(self, channel: str, data: bytes) -> bytes:
        """Return one request."""

    @abstractmethod
    def count(self, replies: bytes) -> int:
        """Return how many replies end in what was read."""

    def _take(self, until: int) -> None:
        """Read until at most `until` replies are owed."""
        while self._owed > until:
            self._read(self._socket.recv(1 << 16))
        while self._owed:
            try:
                self._read(self._socket.recv(1 << 16, socket.MSG_DONTWAIT))
            except BlockingIOError:
                return

    def _read(self, replies: bytes) -> None:
        if not replies:
            raise ConnectionError("the server closed the connection")
        self._owed -= self.count(replies)


class RedisPublisher(Publisher):
    """PUBLISH, to channels ``bench:…``."""

    def encode(self, channel: str, data: bytes) -> bytes:
        """Return one PUBLISH."""
        name = f"bench:{channel}".encode()
        return b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(name), name, len(data), data)

    def count(self, replies: bytes) -> int:
        """Count lines; each is a number of receivers."""
        # A cut before ":0" moves at most one count to the next read's; the check is for "nobody listens at all".
        self.unheard += replies.count(b":0\r")
        return replies.count(b"\n")


class HttpPublisher(Publisher):
    """POST, to ``/pub/…``."""

    _rest = b""

    def encode(self, channel: str, data: bytes) -> bytes:
        """Return one POST."""
        return b"POST /pub/%b HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (channel.encode(), len(data), data)

    def count(self, replies: bytes) -> int:
        """Count status lines; one that is cut counts with the next read."""
        text = self._rest + replies
        if b"HTTP/1.1 4" in text or b"HTTP/1.1 5" in text:
            raise ConnectionError(f"the server refused: {text[:300]!r}")
        self._rest = text[-9:]
        return text.count(b"HTTP/1.1 2")


def run(publisher: Publisher, spread: Spread, order: tuple[int, int, int, float], size: int) -> int:
    """Publish what was ordered; return the largest lateness in nanoseconds."""
    start_ns, first, count, rate = order
    offset = (first - 1) * spread.streams
    number, latest = 0, 0
    while number < count:
        due = intended_ns(number, start_ns, rate)
        now = time.monotonic_ns()
        if now < due:
            time.sleep(max((due - now) / 1e9, TICK_S if rate * TICK_S > 1 else 0))
            now = time.monotonic_ns()
        latest = max(latest, now - due)
        last = max(number, min(count - 1, int((now - start_ns) * rate / 1e9)))
        # A backlog of large events is not to be one write of gigabytes.
        last = min(last, number + max(1, (4 << 20) // size))
        publisher.publish(
            [
                (spread.channel(k + offset), payload(spread.sequence(k + offset), intended_ns(k, start_ns, rate), size))
                for k in range(number, last + 1)
            ]
        )
        number = last + 1
    publisher.finish()
    return latest


def obey(publisher: Publisher, spread: Spread, size: int) -> None:
    """Obey orders until the end of stdin."""
    print(json.dumps({"what": "ready"}), flush=True)
    for line in sys.stdin:
        _verb, start, first, count, rate = line.split()
        latest = run(publisher, spread, (int(start), int(first), int(count), float(rate)), size)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        fields = {"what": "published", "count": int(count), "unheard": publisher.unheard, "late_max_ms": latest / 1e6}
        print(json.dumps(fields | {"cpu_s": usage.ru_utime + usage.ru_stime}), flush=True)


def main() -> None:
    """Parse the command line and obey."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--http", action="store_true", help="POST instead of PUBLISH")
    parser.add_argument("--spread", type=int, default=1)
    parser.add_argument("--per-stream", type=int, default=1)
    parser.add_argument("--payload-bytes", type=int, default=100)
    args = parser.parse_args()
    publisher = (HttpPublisher if args.http else RedisPublisher)(args.port)
    obey(publisher, Spread(args.spread, args.per_stream), args.payload_bytes)


if __name__ == "__main__":
    main()
