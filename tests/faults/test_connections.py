"""Connections that ask for nothing, or not to the end: bounded in time, in number and in size, and at nobody's cost."""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sse_gateway.connections import MAX_REQUEST, MIN_WAITING, REQUEST_S
from tests.support.gateway_process import CONNECTIONS, MARKER, configuration, poll

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Connect
    from tests.support.gateway_process import GatewayProcess, Gateways
    from tests.support.valkey import Valkey

DROPPED = MARKER + "connections_dropped_total"
WAITING = MARKER + "connections_waiting"
WHOLE = b"OPTIONS /events/a HTTP/1.1\r\nHost: x\r\n\r\n"


class Crowd:
    """Plain connections to a gateway, closed with the test."""

    def __init__(self) -> None:
        self.all: list[socket.socket] = []

    def join(self, gateway: GatewayProcess, sent: bytes = b"") -> socket.socket:
        """Connect, and send something."""
        assert isinstance(gateway.address, tuple)
        self.all.append(socket.create_connection(gateway.address, 5))
        self.all[-1].sendall(sent)
        return self.all[-1]


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    """Connect as often as one likes."""
    found = Crowd()
    yield found
    for connection in found.all:
        connection.close()


def has_ended(connection: socket.socket) -> bool:
    """Whether the other end has closed; what it said before is thrown away."""
    connection.settimeout(0)
    try:
        while connection.recv(65_536):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


def answer(connection: socket.socket) -> bytes:
    """The head of the next answer."""
    connection.settimeout(5)
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65_536)
        assert part, f"the connection ended after {data!r}"
        data += part
    return data


def dribble(connection: socket.socket, stop: threading.Event) -> None:
    """Send a header that never ends, byte by byte."""
    connection.settimeout(5)
    with contextlib.suppress(OSError):
        connection.sendall(b"GET /events/a HTTP/1.1\r\nX: ")
        while not stop.wait(0.5):
            connection.sendall(b"x")


def test_a_request_has_a_deadline(gateways: Gateways, valkey: Valkey, connect: Connect, crowd: Crowd) -> None:
    """From the connection, or from the first byte of a later request; streams and idle connections are not affected."""
    gateway = gateways.start(configuration(valkey.url))
    stop = threading.Event()
    stream = connect(gateway, "/events/a")
    stream.wait_open()
    idle = crowd.join(gateway, WHOLE)
    again = crowd.join(gateway, WHOLE)
    more = crowd.join(gateway, WHOLE + WHOLE[:20])
    begun = time.monotonic()
    slow = [crowd.join(gateway), crowd.join(gateway, b"GET"), crowd.join(gateway, WHOLE[:-2]), crowd.join(gateway)]
    dribbler = threading.Thread(target=dribble, args=(slow[-1], stop))
    dribbler.start()
    for connection in (idle, again, more):
        assert answer(connection).startswith(b"HTTP/1.1 204")
    again.sendall(WHOLE[:5])
    try:
        poll(lambda: all(map(has_ended, [*slow, again, more])), timeout_s=REQUEST_S + 10, what="ends")
    finally:
        stop.set()
        dribbler.join()

    assert time.monotonic() - begun >= REQUEST_S - 0.5
    assert not has_ended(idle)
    idle.sendall(WHOLE)
    assert answer(idle).startswith(b"HTTP/1.1 204")
    stream.wait_next("gateway.heartbeat")
    assert gateway.metric(DROPPED, reason="deadline") == 6
    assert gateway.metric(WAITING) == 1
    lines = gateway.records("connection.dropped", reason="deadline")
    assert lines
    assert all(line.keys() >= {"count", "waiting"} for line in lines)


def test_a_crowd_that_asks_for_nothing_keeps_nobody_out(
    gateways: Gateways, valkey: Valkey, connect: Connect, crowd: Crowd, channel: str
) -> None:
    """Descriptors are short: who has waited longest goes, whoever asks gets a stream, and events flow."""
    gateway = gateways.start(configuration(valkey.url), open_files=200)
    first = connect(gateway, f"/events/{channel}")
    first.wait_open()
    crowd_before = [crowd.join(gateway, b"GET /events/a HTT"[: number % 17]) for number in range(400)]
    streams = [connect(gateway, f"/events/{channel}") for _ in range(30)]
    for stream in streams:
        stream.wait_open()
    poll(lambda: sum(map(has_ended, crowd_before)) >= 250, timeout_s=20, what="shedding")
    valkey.publish(f"sse:{channel}", "hello")
    for stream in [first, *streams]:
        stream.wait_data("hello")

    assert gateway.metric(WAITING) <= 200 - 64 - 30
    assert gateway.metric(MARKER + "open_descriptors") < 200
    assert gateway.metric(DROPPED, reason="crowd") > 0
    assert gateway.metric(CONNECTIONS) == 31


def test_a_gateway_with_few_descriptors_sheds_and_goes_on(
    gateways: Gateways, own_valkey: Valkey, connect: Connect, crowd: Crowd
) -> None:
    """While connections pour in it does not spin, is scraped, finds its Redis again, and takes streams up to its limit."""
    gateway = gateways.start(configuration(own_valkey.url), open_files=200)
    worker = gateway.worker_pid
    stop = threading.Event()
    pourers = [threading.Thread(target=pour, args=(gateway, stop)) for _ in range(2)]
    streams = [connect(gateway, "/events/a") for _ in range(72)]
    for stream in streams:
        stream.wait_open()
    refused = connect(gateway, "/events/a", headers={"Accept": "text/event-stream"})
    refused.wait_end()
    for pourer in pourers:
        pourer.start()
    try:
        own_valkey.restart()
        gateway.wait_log("source.lost")
        gateway.wait_log("log.synced", count=2)
    finally:
        stop.set()
        for pourer in pourers:
            pourer.join()
    for connection in [crowd.join(gateway) for _ in range(300)]:
        connection.settimeout(0.1)
    poll(lambda: busy(worker) < 0.5, timeout_s=20, what="rest, though descriptors are short")

    assert refused.blocks[0].json() == {"reason": "full"}
    assert gateway.metric(CONNECTIONS) == 72
    assert gateway.metric(WAITING) <= MIN_WAITING + 1
    streams[0].wait_next("gateway.heartbeat")


def pour(gateway: GatewayProcess, stop: threading.Event) -> None:
    """Connect, and never ask, as fast as it goes; keep the newest hundred."""
    assert isinstance(gateway.address, tuple)
    kept: list[socket.socket] = []
    while not stop.is_set():
        with contextlib.suppress(OSError):
            kept.append(socket.create_connection(gateway.address, 1))
        if len(kept) > 100:
            kept.pop(0).close()
    for connection in kept:
        connection.close()


def busy(pid: int) -> float:
    """The part of the time that a process runs, for a while."""
    before, begun = cpu_s(pid), time.monotonic()
    time.sleep(0.5)  # what is measured
    return (cpu_s(pid) - before) / (time.monotonic() - begun)


def cpu_s(pid: int) -> float:
    """CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_many_fields_are_bounded_together(gateways: Gateways, valkey: Valkey, connect: Connect, crowd: Crowd) -> None:
    """Each may be long, all of them may not; and memory does not grow with those that try."""
    gateway = gateways.start(configuration(valkey.url))
    before = resident_kib(gateway.worker_pid)
    field = b"X: " + b"a" * 15_000 + b"\r\n"
    for _ in range(60):
        connection = crowd.join(gateway)
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"GET /events/a HTTP/1.1\r\nHost: x\r\n" + field * 20)
        poll(lambda: has_ended(connection), timeout_s=20, what="refusal")  # noqa: B023 - called at once
    told = connect(gateway, "", raw=b"GET /events/a HTTP/1.1\r\nHost: x\r\n" + field * 3)
    for _ in range(3):
        with contextlib.suppress(ConnectionError):
            told.send(field)
    told.wait_end()

    assert told.status in {0, 431}  # what was not read may cost the answer
    assert gateway.metric(DROPPED, reason="size") >= 60
    assert resident_kib(gateway.worker_pid) - before < 20_000
    allowed = connect(gateway, "/events/a", headers={f"X-{n}": "a" * 15_000 for n in range(MAX_REQUEST // 16_000)})
    assert allowed.wait_open().type == "gateway.open"


def resident_kib(pid: int) -> int:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() // 1024


def test_requests_that_pile_up_behind_one_are_bounded(gateways: Gateways, valkey: Valkey, crowd: Crowd) -> None:
    """While a request waits for the log, a client that goes on sending is ended."""
    gateway = gateways.start(configuration(valkey.url), ready=True)
    gateway.signal_worker(signal.SIGSTOP)
    connection = crowd.join(gateway)
    connection.settimeout(2)
    with contextlib.suppress(OSError):
        connection.sendall(b"POST /events/a HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n" + b"x" * 500_000)
    gateway.signal_worker(signal.SIGCONT)
    poll(lambda: has_ended(connection), timeout_s=20, what="end")

    gateway.wait_metric(WAITING, 0)
