"""Publishes to Redis at a fixed rate, open loop: event k is due at start + (k-1)/rate.

A late tick publishes all that is due, with the intended times: lateness becomes latency, never a lower rate.
Prints one line of JSON at the end, and ends by itself.
"""

from __future__ import annotations

import argparse
import json
import resource
import socket
import time

from benchmarks.payload import intended_ns, payload

TICK_S = 0.002
"""Events of one tick go out in one write. Well below the latencies of interest, and 500 wake-ups a second are cheap."""


class Publisher:
    """Pipelined PUBLISH on one raw connection; replies are counted, not awaited one by one."""

    def __init__(self, redis_port: int, channel: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", redis_port), timeout=10)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        name = channel.encode()
        self._head = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%s\r\n" % (len(name), name)
        self._awaited = 0
        self.unheard = 0

    def publish(self, payloads: list[bytes]) -> None:
        """Send one pipeline, and take whatever replies are already there."""
        head = self._head
        self._socket.sendall(b"".join([b"%s$%d\r\n%s\r\n" % (head, len(data), data) for data in payloads]))
        self._awaited += len(payloads)
        self._take(until=10_000)

    def finish(self) -> None:
        """Take the remaining replies."""
        self._take(until=0)

    def _take(self, until: int) -> None:
        """Read until at most `until` replies are owed."""
        while self._awaited > until:
            self._count(self._socket.recv(1 << 16))
        while self._awaited:
            try:
                self._count(self._socket.recv(1 << 16, socket.MSG_DONTWAIT))
            except BlockingIOError:
                return

    def _count(self, replies: bytes) -> None:
        if not replies:
            raise ConnectionError("Redis closed the connection")
        # A cut before ":0" moves at most one count to the next read's; the check is for "nobody listens at all".
        self._awaited -= replies.count(b"\n")
        self.unheard += replies.count(b":0\r")


def run(publisher: Publisher, *, start_ns: int, count: int, rate: float, size: int) -> int:
    """Publish `count` events; return the largest lateness in nanoseconds."""
    seq, latest = 1, 0
    while seq <= count:
        due = intended_ns(seq, start_ns, rate)
        now = time.monotonic_ns()
        if now < due:
            time.sleep(max((due - now) / 1e9, TICK_S if rate * TICK_S > 1 else 0))
            now = time.monotonic_ns()
        latest = max(latest, now - due)
        last = min(count, 1 + int((now - start_ns) * rate / 1e9))
        publisher.publish([payload(k, intended_ns(k, start_ns, rate), size) for k in range(seq, last + 1)])
        seq = last + 1
    publisher.finish()
    return latest


def main() -> None:
    """Parse the command line, publish, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--redis-port", type=int, required=True)
    parser.add_argument("--channel", required=True)
    parser.add_argument("--rate", type=float, required=True, help="events per second")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--start", type=int, required=True, help="CLOCK_MONOTONIC, nanoseconds")
    parser.add_argument("--payload-bytes", type=int, default=100)
    args = parser.parse_args()
    publisher = Publisher(args.redis_port, args.channel)
    latest = run(publisher, start_ns=args.start, count=args.count, rate=args.rate, size=args.payload_bytes)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "what": "published",
                "count": args.count,
                "unheard": publisher.unheard,
                "late_max_ms": latest / 1e6,
                "cpu_s": usage.ru_utime + usage.ru_stime,
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
