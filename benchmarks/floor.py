"""The floor in plain Python: `os.write` in a loop, no event loop. Same protocol and same bytes as floor.c.

What is between the two floors is the price of a system call from Python; what is above this one is the gateway's.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress

from benchmarks.payload import intended_ns, payload

CHUNK_MAX = 32 * 1024

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache, no-transform\r\n"
    b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\nd\r\nretry: 3000\n\n\r\n"
)


def say(**fields: str | int) -> None:
    """Print one line of JSON for the driver."""
    print(json.dumps(fields), flush=True)


def answer(client: socket.socket) -> None:
    """Read a request and send the head of the response."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 256 * 1024)  # as the gateway's default send_buffer
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    request = b""
    while b"\r\n\r\n" not in request:
        request += client.recv(4096)
    client.sendall(HEAD)
    client.setblocking(False)  # noqa: FBT003 - the standard library's signature


def write_rest(fd: int, rest: bytes) -> None:
    """Wait for a full socket: the floor loses nothing."""
    while rest:
        select.select([], [fd], [], 1.0)
        with suppress(BlockingIOError):
            rest = rest[os.write(fd, rest) :]


def encode(seq: int, due_ns: int, size: int) -> bytes:
    """Return one frame of the gateway's size, its id of the same form."""
    check = seq * 2654435761 & 0xFFFFFFFFFFFF
    data = payload(seq, due_ns, size)
    return b"id: floor0000000-%d-%012x\ndata: %b\n\n" % (seq, check, data)


def publish(fds: list[int], order: tuple[int, int, int, float], size: int) -> int:
    """Write every event to every descriptor; return the number of writes."""
    start_ns, first, count, rate = order
    number, writes, per_chunk = 0, 0, max(1, CHUNK_MAX // (size + 64))
    while number < count:
        due, now = intended_ns(number, start_ns, rate), time.monotonic_ns()
        if now < due:
            time.sleep((due - now) / 1e9)
            now = time.monotonic_ns()
        end = max(number + 1, min(count, 1 + int((now - start_ns) * rate / 1e9), number + per_chunk))
        frames = b"".join([encode(first + k, intended_ns(k, start_ns, rate), size) for k in range(number, end)])
        number = end
        chunk = b"%x\r\n%b\r\n" % (len(frames), frames)
        whole, write = len(chunk), os.write
        for fd in fds:
            try:
                written = write(fd, chunk)
            except BlockingIOError:
                written = 0
            if written != whole:
                write_rest(fd, chunk[written:])
        writes += len(fds)
    return writes


def main() -> None:
    """Accept the streams, then obey ``start T FIRST COUNT RATE`` lines until the end of stdin."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--payload-bytes", type=int, default=100)
    parser.add_argument("--max-seconds", type=int, default=300)
    args = parser.parse_args()
    signal.alarm(args.max_seconds)
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    say(what="listening", port=listener.getsockname()[1])
    clients = []
    for _ in range(args.streams):
        client, _address = listener.accept()
        answer(client)
        clients.append(client)
    fds = [client.fileno() for client in clients]
    for line in sys.stdin:
        _verb, start, first, count, rate = line.split()
        writes = publish(fds, (int(start), int(first), int(count), float(rate)), args.payload_bytes)
        say(what="published", count=int(count), sends=writes)


if __name__ == "__main__":
    main()
