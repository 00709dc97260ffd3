"""What the stream relies on when it takes its socket from the HTTP server, on either event loop.

Everything goes through the public API of aiohttp and asyncio; if a new version of either changes
what they promise, this is where it shows.
"""

from __future__ import annotations

import asyncio
import logging
import random
import resource
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from tests.support.gateway_process import poll
from tests.support.inprocess import InProcess, descriptors, in_process
from tests.support.raw_client import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


KIB = 1_024
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.SelectorEventLoop,
}
VERSIONS = ["1.1", "1.0"]
REQUEST = b"GET /events/a HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n"
OPTIONS = b"OPTIONS /events/a HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(params=LOOPS)
def new_loop(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    """Make loops of one kind."""
    return LOOPS[request.param]


@pytest.fixture(params=["tcp", "unix"])
def server(
    request: pytest.FixtureRequest,
    new_loop: Callable[[], asyncio.AbstractEventLoop],
    tmp_path_factory: pytest.TempPathFactory,
    caplog: pytest.LogCaptureFixture,
) -> Iterator[InProcess]:
    """Run a listener; at its end nothing may be left, and neither aiohttp nor asyncio may have complained."""
    caplog.set_level(logging.DEBUG)
    uvloop.run(asyncio.sleep(0))  # libuv keeps a pipe for signals, once per process
    before = descriptors()
    directory = tmp_path_factory.mktemp("s")
    with in_process(new_loop, directory, is_unix=request.param == "unix", stream={"send_buffer": "32KiB"}) as running:
        yield running
        running.wait_quiet()
    poll(lambda: descriptors() <= before, timeout_s=20, what="return of all descriptors")
    assert running.complaints == []
    libraries = [record for record in caplog.records if record.name.partition(".")[0] in {"aiohttp", "asyncio"}]
    assert [record.getMessage() for record in libraries if record.levelno > logging.DEBUG] == []


@pytest.fixture
def follow(server: InProcess) -> Iterator[Callable[..., Stream]]:
    """Open streams of the listener that are closed before it ends."""
    opened: list[Stream] = []

    def open_stream(target: str = "/events/a", **request: Any) -> Stream:
        opened.append(Stream(server.address, target, **request))
        return opened[-1]

    yield open_stream
    for stream in opened:
        stream.close()


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_of_the_stream_is_left_with_the_server(
    server: InProcess, follow: Callable[..., Stream], version: str
) -> None:
    """A stream costs the HTTP server no connection, no handler and no task, and gets its events all the same."""
    streams = [follow(version=version) for _ in range(20)]
    for stream in streams:
        stream.wait_open()
    poll(lambda: server.call(lambda: not server.server.connections), timeout_s=20, what="server without connections")

    assert server.tasks() == 1
    assert server.call(lambda: len(server.streams.open_streams)) == 20
    server.publish("a", b"hello")
    for stream in streams:
        stream.wait_data("hello")


@pytest.mark.parametrize(
    "behind",
    [REQUEST, REQUEST * 20, OPTIONS, b"GET", b"\r\n", b"x" * 30 * KIB],
    ids=["one request", "twenty", "another method", "part of one", "an empty line", "30 KiB"],
)
@pytest.mark.parametrize("segments", [1, 2])
def test_what_is_pipelined_behind_the_request_is_never_answered(
    server: InProcess, follow: Callable[..., Stream], behind: bytes, segments: int
) -> None:
    """Bytes behind the request, in its segment or later, get no answer and do the stream no harm."""
    first = REQUEST if segments == 2 else REQUEST + (behind if behind[:1] in {b"G", b"O", b"\r"} else b"")
    stream = follow("", raw=first)
    stream.wait_open()
    stream.send(behind)
    server.publish("a", b"one")
    stream.wait_data("one")
    server.publish("a", b"two")
    stream.wait_data("two")

    assert [block.type for block in stream.blocks] == ["gateway.open", "message", "message"]
    assert server.call(lambda: server.gateway.hub.tally.opened) == 1


def test_garbage_in_the_segment_of_the_request_does_no_harm(follow: Callable[..., Stream]) -> None:
    """A request with something behind it that is no HTTP is answered once, with a stream or with a refusal."""
    stream = follow("", raw=REQUEST + b"\0\xff garbage\r\n\r\n")
    stream.wait_head()

    assert stream.status in {200, 400}
    assert follow().wait_open().type == "gateway.open"


@pytest.mark.parametrize("how", ["reset", "close", "half_close"])
@pytest.mark.parametrize("when", ["before", "between"])
def test_a_client_that_is_gone_before_its_first_byte(
    server: InProcess, follow: Callable[..., Stream], when: str, how: str
) -> None:
    """A client that leaves while its request is handled, before its socket is taken or right after, leaves nothing."""
    gate = server.streams.before if when == "before" else server.streams.between
    gate.close()
    stream = follow()
    assert gate.reached.wait(20)
    getattr(stream, how)()
    gate.open()
    server.wait_quiet()

    opened = server.call(lambda: server.gateway.hub.tally.opened)
    assert server.closed() == ({"client": opened} if opened else {})


@pytest.mark.parametrize("spare", [0, 1])
def test_the_first_stream_finds_no_descriptor(server: InProcess, follow: Callable[..., Stream], spare: int) -> None:
    """It needs two, as the watcher of all has one of its own: with fewer it is refused for now, and is not cut."""
    server.streams.before.close()
    stream = follow()
    assert server.streams.before.reached.wait(20)
    with few_descriptors(spare):
        server.streams.before.open()
        stream.wait_end()

    assert (stream.status, b"gateway.unavailable" in stream.body, stream.was_reset) == (200, True, False)
    assert follow().wait_open().type == "gateway.open"


@contextmanager
def few_descriptors(spare: int) -> Iterator[None]:
    """Leave this process so many, and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = (number for number in count() if not Path(f"/proc/self/fd/{number}").is_symlink())
    limit = next(islice(free, spare, None))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("how", ["reset", "close", "half_close"])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_that_leaves_after_the_head(
    server: InProcess, follow: Callable[..., Stream], how: str, version: str
) -> None:
    """However a client leaves, its stream ends once, as left by the client."""
    stream = follow(version=version)
    stream.wait_open()
    getattr(stream, how)()
    server.wait_quiet()

    assert server.closed() == {"client": 1}


@pytest.mark.parametrize("how", ["reset", "close", "half_close"])
def test_a_client_that_leaves_in_the_middle_of_a_block(
    server: InProcess, follow: Callable[..., Stream], how: str
) -> None:
    """A client that leaves while half a block is in its socket ends its own stream only."""
    stream, healthy = follow(receive_buffer=4 * KIB), follow()
    stream.wait_open()
    healthy.wait_open()
    server.publish("a", b"x" * 900 * KIB)
    healthy.wait_events(1)
    poll(lambda: server.call(lambda: len(server.gateway.hub.lagging) == 1), timeout_s=20, what="stalled stream")
    getattr(stream, how)()
    poll(lambda: server.closed() == {"client": 1}, timeout_s=20, what="end of the stream")
    server.publish("a", b"after")

    healthy.wait_data("after")


def test_a_client_that_sends_a_little_is_left_alone(server: InProcess, follow: Callable[..., Stream]) -> None:
    """What a client sends on its stream is read and dropped, up to a bound."""
    stream = follow()
    stream.wait_open()
    for _ in range(60):
        stream.send(b"x" * KIB)
    server.publish("a", b"hello")

    stream.wait_data("hello")
    assert server.closed() == {}


def test_a_client_that_keeps_sending_is_dropped(server: InProcess, follow: Callable[..., Stream]) -> None:
    """Beyond the bound a client that talks on a stream that only we write is reset."""
    stream = follow()
    stream.wait_open()
    try:
        for _ in range(1_000):
            stream.send(b"x" * KIB)
    except OSError:
        pass
    stream.wait_end()

    assert server.closed() == {"protocol": 1}


@pytest.mark.parametrize("method", ["OPTIONS", "GET"])
def test_what_is_no_stream_keeps_its_connection(server: InProcess, follow: Callable[..., Stream], method: str) -> None:
    """Answers that are no streams leave the connection open, and a stream may be its last request."""
    target, status = ("/events/a", b"204") if method == "OPTIONS" else ("/nothing", b"404")
    request = f"{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    stream = follow("", raw=b"")
    for _ in range(3):
        stream.send(request)
        assert read_response(stream).startswith(b"HTTP/1.1 " + status)
    assert len(server.call(lambda: server.server.connections)) == 1
    stream.send(REQUEST)

    assert stream.wait_open().type == "gateway.open"


def read_response(stream: Stream) -> bytes:
    """Read one response with a length, byte by byte, so that what follows stays in the socket."""
    connection = stream._socket
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    length = [line.partition(b":")[2] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    return head + b"".join(connection.recv(1) for _ in range(int(length[0]) if length else 0))


def test_an_answer_before_the_stream_is_not_lost(server: InProcess, follow: Callable[..., Stream]) -> None:
    """A stream asked for in one segment behind another request begins behind that request's answer."""
    stream = follow("", raw=OPTIONS + b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n" + REQUEST)

    assert read_response(stream).startswith(b"HTTP/1.1 204")
    assert read_response(stream).startswith(b"HTTP/1.1 404")
    assert stream.wait_open().type == "gateway.open"
    server.publish("a", b"hello")
    stream.wait_data("hello")


@pytest.mark.parametrize("version", VERSIONS)
def test_head_ends_its_connection(server: InProcess, follow: Callable[..., Stream], version: str) -> None:
    """HEAD is answered by the server itself, whole, with the end of the connection."""
    stream = follow(method="HEAD", version=version).wait_end()

    assert (stream.status, stream.body, stream.was_reset) == (200, b"", False)
    assert server.call(lambda: server.gateway.hub.tally.opened) == 0


def test_a_request_that_comes_byte_by_byte(server: InProcess, follow: Callable[..., Stream]) -> None:
    """Senders of slow headers wait without harm to others, and get their stream in the end."""
    slow = [follow("", raw=REQUEST[:place]) for place in range(1, len(REQUEST))]
    quick = follow()
    quick.wait_open()
    server.publish("a", b"early")
    quick.wait_data("early")
    for place, stream in enumerate(slow, 1):
        for byte in REQUEST[place:]:
            stream.send(bytes([byte]))
        stream.wait_open()
    server.publish("a", b"late")

    for stream in [quick, *slow]:
        stream.wait_data("late")


def test_a_descriptor_used_again_gets_nothing_of_its_former_stream(
    server: InProcess, follow: Callable[..., Stream]
) -> None:
    """I11: while streams of one channel are cut and streams of another opened in their place, nothing crosses over."""
    randomness = random.Random(1)
    mine = [follow("/events/mine") for _ in range(150)]
    other: list[Stream] = []
    for stream in mine:
        stream.wait_open()
    former = set(server.call(lambda: list(server.streams.descriptors)))
    while len(mine) > 5:
        for _ in range(3):
            gone = mine.pop(randomness.randrange(len(mine)))
            gone.reset() if len(mine) % 2 else gone.close()
        server.publish("mine", b"mine " + b"x" * 2 * KIB)
        other += [follow("/events/other") for _ in range(6)]
        server.publish("mine", b"mine")
    while not former & set(server.call(lambda: server.streams.descriptors[150:])):
        assert len(other) < 1_000, "no descriptor is used again: the test tests nothing"
        burst = [follow("/events/other") for _ in range(randomness.randrange(1, 9))]  # numbers go to both ends, mixed
        for stream in burst:
            stream.wait_open()
        other += burst
        server.publish("mine", b"mine")
    for stream in other:
        stream.wait_open()
    server.publish("other", b"other")
    for stream in [*other, follow("/events/other?replay=1")]:
        stream.wait_data("other")
        assert stream.data == ["other"]
    for stream in mine:
        stream.wait_data("mine")
        assert {data[:4] for data in stream.data} == {"mine"}


def test_ten_thousand_streams_leave_no_descriptor(server: InProcess, follow: Callable[..., Stream]) -> None:
    """After very many opens and closes, by either side, not one descriptor, task or connection is left."""
    rounds = 200 if isinstance(server.address, tuple) else 10
    follow().wait_open()
    server.call(lambda: None)
    before = descriptors()
    for number in range(rounds):
        streams = [follow("", raw=REQUEST) for _ in range(50)]
        if number % 2:
            for stream in streams:
                stream.wait_open()
        for stream in streams:
            stream.reset() if number % 4 == 0 else stream.close()
    poll(lambda: server.call(lambda: len(server.streams.open_streams) == 1), timeout_s=20, what="end of all but one")
    poll(lambda: descriptors() <= before, timeout_s=20, what="return of all descriptors")

    assert server.tasks() == 1
