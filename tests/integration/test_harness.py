"""The tests' own tools are tested first: a checker that cannot fail proves nothing."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.checker import Delivered, Ledger, Seen, Told, check
from tests.support.gateway_process import parse_metrics
from tests.support.proxy import proxied
from tests.support.raw_client import ProtocolError, Stream
from tests.support.valkey import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Connect
    from tests.support.valkey import Valkey

ROOT = Path(__file__).parents[2]
CHANNELS = ("a", "b")
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@contextmanager
def answering(*parts: bytes) -> Iterator[tuple[str, int]]:
    """Serve one connection: read the request, send the parts, close."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65_536)
            for part in parts:
                connection.sendall(part)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()
    finally:
        thread.join(5)
        listener.close()


def history() -> tuple[Ledger, list[Seen]]:
    """Build a ledger of two channels and the view of a client that got everything."""
    ledger = Ledger()
    for number in range(20):
        ledger.message(CHANNELS[number % 2])
    return ledger, [Delivered(data) for _, data in ledger.entries]


def chunk(data: bytes) -> bytes:
    """Encode one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


# -- the checker


def test_the_checker_accepts_a_complete_view() -> None:
    """A client that got everything once and in order has no problem."""
    ledger, seen = history()

    assert check(ledger, seen, CHANNELS) == []


@pytest.mark.parametrize("place", range(20))
def test_the_checker_finds_every_dropped_event(place: int) -> None:
    """An event that is missing without a gap is a problem, wherever it lies."""
    ledger, seen = history()
    del seen[place]

    assert check(ledger, seen, CHANNELS)


@pytest.mark.parametrize("place", range(20))
def test_the_checker_finds_every_repeated_event(place: int) -> None:
    """An event that came twice is a problem, wherever it lies."""
    ledger, seen = history()
    seen.insert(random.Random(place).randint(place, 20), seen[place])

    assert check(ledger, seen, CHANNELS)


@pytest.mark.parametrize("place", range(19))
def test_the_checker_finds_every_swap(place: int) -> None:
    """Two events out of order are a problem, also when they are of different channels."""
    ledger, seen = history()
    seen[place], seen[place + 1] = seen[place + 1], seen[place]

    assert check(ledger, seen, CHANNELS)


def test_the_checker_accepts_a_hole_that_is_told() -> None:
    """A hole behind a gap of its channel with the exact count is no problem."""
    ledger, seen = history()
    seen[4] = Told("overflow", ("a",), 2)
    del seen[6]

    assert check(ledger, seen, CHANNELS) == []


def test_the_checker_knows_prefixes() -> None:
    """A gap may name a prefix: it stands for all channels so named."""
    ledger, seen = history()
    seen[4:6] = [Told("overflow", ("*",), 2)]

    assert check(ledger, seen, CHANNELS) == []


@pytest.mark.parametrize("turned", [False, True])
def test_the_checker_adds_gaps_up(turned: bool) -> None:
    """Two gaps before one event share its hole; one of them may not know its number."""
    ledger, seen = history()
    gaps: list[Seen] = [Told("source", ("a",), None), Told("window", ("a",), 2)]
    numbered: list[Seen] = [Told("overflow", ("a",), 1), Told("window", ("a",), 2)]
    rest = [*seen[:4], seen[5], seen[7], seen[9], *seen[11:]]

    for told in (gaps, numbered):
        view = [*rest[:4], *(reversed(told) if turned else told), *rest[4:]]
        assert bool(check(ledger, view, CHANNELS)) is (told is numbered)


def test_the_checker_accepts_a_hole_at_the_end_that_is_told() -> None:
    """Events missing at the end are no problem behind a gap."""
    ledger, seen = history()
    seen[-2:] = [Told("source", CHANNELS, None)]

    assert check(ledger, seen, CHANNELS) == []


@pytest.mark.parametrize(
    "gap",
    [
        Told("overflow", ("b",), 1),
        Told("overflow", ("a",), 2),
        Told("overflow", ("a",), 0),
        Told("overflow", ("a", "c"), 1),
    ],
    ids=["of another channel", "with a wrong count", "of nothing", "of a channel nobody follows"],
)
def test_the_checker_finds_a_wrong_gap(gap: Told) -> None:
    """A gap that does not say what is missing is a problem."""
    ledger, seen = history()
    seen[4] = gap

    assert check(ledger, seen, CHANNELS)


def test_the_checker_finds_a_gap_that_comes_too_late() -> None:
    """A gap behind the next event of its channel is a problem."""
    ledger, seen = history()
    seen[4:7] = [seen[5], seen[6], Told("overflow", ("a",), 1)]

    assert check(ledger, seen, CHANNELS)


def test_the_checker_allows_superseded_events_only_where_it_is_told_so() -> None:
    """A hole without a word is allowed on channels with the policy `latest`, and only there."""
    ledger, seen = history()
    del seen[4]

    assert check(ledger, seen, CHANNELS, skips=["a"]) == []
    assert check(ledger, seen, CHANNELS, skips=["b"])


def test_the_checker_starts_where_the_client_did() -> None:
    """What was published before the client's position is not missed by it, and not its own."""
    ledger, seen = history()

    assert check(ledger, seen[6:], CHANNELS, since=6) == []
    assert check(ledger, seen[5:], CHANNELS, since=6)


# -- the client


def test_the_client_reads_chunks_cut_anywhere(connect: Connect) -> None:
    """Blocks are the same however chunks cut them, and a last chunk ends the body."""
    body = b"event: gateway.open\nid: e-1-a\nretry: 5\ndata: {}\n\nid: e-2-b\ndata: a\ndata: b\n\n"
    parts = [chunk(body[place : place + 1]) for place in range(len(body))]
    with answering(STREAM_HEAD, *parts, b"0\r\n\r\n") as address:
        stream = connect(address, "/").wait_end()

    assert stream.ended
    assert [(b.type, b.id, b.retry, b.data) for b in stream.blocks] == [
        ("gateway.open", "e-1-a", 5, "{}"),
        ("message", "e-2-b", None, "a\nb"),
    ]
    assert stream.last_id == "e-2-b"


def test_the_client_tells_a_cut_from_an_end(connect: Connect) -> None:
    """A chunked body without its last chunk has not ended, though the connection has."""
    with answering(STREAM_HEAD, chunk(b"id: e-1-a\ndata: a\n\n")) as address:
        stream = connect(address, "/").wait_end()

    assert stream.data == ["a"]
    assert not stream.ended


@pytest.mark.parametrize(
    "sent",
    [
        b"zz\r\n",
        b"5;x=y\r\nabcde\r\n",
        b"2\r\nabc\r\n",
        b"0\r\n\r\nmore",
        chunk(b"data: a\r\n\n\n"),
        chunk(b"\n\n\n"),
        chunk(b"\xef\xbb\xbfdata: a\n\n"),
        chunk(b": comment\n\n"),
        chunk(b"id: e-1-a\n\n"),
        chunk(b"id: e-1-a\nid: e-2-a\ndata: a\n\n"),
        chunk(b"id: e-1-a\0\ndata: a\n\n"),
        chunk(b"evil: 1\ndata: a\n\n"),
        chunk(b"data: a\n\n"),
        chunk(b"id: 1\ndata: a\n\n"),
        chunk(b"id: e-1-a\ndata: a\n\nid: e-1-a\ndata: b\n\n"),
        chunk(b"id: e-2-a\ndata: a\n\nid: e-1-a\ndata: b\n\n"),
        chunk(b"id: e-1-a\ndata: a\n\nid: f-1-a\ndata: b\n\nid: e-2-a\ndata: c\n\n"),
    ],
)
def test_the_client_is_strict(connect: Connect, sent: bytes) -> None:
    """What a server must not send fails at once."""
    with answering(STREAM_HEAD, sent) as address:
        stream = connect(address, "/")
        with pytest.raises(ProtocolError):
            stream.wait_end()


def test_the_client_follows_identity_bodies(connect: Connect) -> None:
    """Without a coding and a length a body ends with the connection."""
    with answering(b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\nid: e-1-a\ndata: a\n\n") as address:
        stream = connect(address, "/", version="1.0").wait_end()

    assert stream.data == ["a"]
    assert stream.ended


# -- the proxy


@contextmanager
def echo_server() -> Iterator[tuple[str, int]]:
    """Serve connections that get back what they send."""
    listener = socket.create_server(("127.0.0.1", 0))

    def echo(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65_536):
                    connection.sendall(data)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=echo, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def test_the_proxy_passes_bytes_and_ends() -> None:
    """Bytes go through both ways, and so does the end of file."""
    with echo_server() as target, proxied(target) as proxy, socket.create_connection(proxy.address, 5) as client:
        client.sendall(b"hello")
        client.shutdown(socket.SHUT_WR)

        assert client.recv(5, socket.MSG_WAITALL) == b"hello"
        assert client.recv(1) == b""


def test_the_proxy_cuts_after_an_exact_count() -> None:
    """A client gets exactly so many bytes, and then a reset."""
    with echo_server() as target, proxied(target) as proxy, socket.create_connection(proxy.address, 5) as client:
        proxy.to_client.cut_after = 7
        client.sendall(b"0123456789")

        assert client.recv(7, socket.MSG_WAITALL) == b"0123456"
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_the_proxy_holds_and_swallows() -> None:
    """Held bytes come later, swallowed bytes never."""
    with echo_server() as target, proxied(target) as proxy, socket.create_connection(proxy.address, 5) as client:
        proxy.hold()
        client.sendall(b"held")
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(1)
        proxy.release()
        client.settimeout(5)
        assert client.recv(4, socket.MSG_WAITALL) == b"held"

        proxy.swallow()
        client.sendall(b"lost")
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(1)


def test_the_proxy_resets_both_ends() -> None:
    """`reset_all` ends every connection with RST."""
    with echo_server() as target, proxied(target) as proxy, socket.create_connection(proxy.address, 5) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        proxy.reset_all()
        with pytest.raises(ConnectionResetError):
            client.recv(1)


# -- the server and the scrape


def test_a_port_is_given_once() -> None:
    """Nobody has bound it yet, in this process or in another, and no other test gets it."""
    script = "from tests.support.valkey import free_port\nprint(*(free_port() for _ in range(2_000)))"
    ours = [free_port() for _ in range(500)]
    other = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)

    assert len(set(ours)) == 500
    assert not set(ours) & set(map(int, other.stdout.split()))


def test_a_server_survives_its_faults(own_server: Valkey) -> None:
    """A server counts subscribers, freezes, thaws, and comes back on its port."""
    own_server.publish_many([("c", "d")] * 2_500)
    own_server.freeze()
    own_server.thaw()
    port = own_server.port
    own_server.restart()

    assert own_server.publish("c", b"d") == 0
    assert own_server.patterns() == 0
    assert own_server.port == port


def test_metrics_sum_over_labels() -> None:
    """A value is the sum over the samples that carry the labels asked for."""
    metrics = parse_metrics('# TYPE a counter\na_total{x="1",y="1"} 2\na_total{x="1",y="2"} 3\n')

    assert metrics.value("a_total", x="1") == 5
    assert metrics.value("a_total", y="2") == 3
    assert metrics.value("b") == 0


def test_a_client_may_reset(connect: Connect) -> None:
    """A client can leave with RST."""
    with answering(STREAM_HEAD) as address:
        stream: Stream = connect(address, "/").wait_head()
        stream.reset()

        assert stream.status == 200
