"""One connection to Redis: the same messages however its bytes are cut, and one end with one reason."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from sse_gateway.errors import SourceError
from sse_gateway.link import Link
from sse_gateway.primary import open_link
from tests.support.resp3_server import Recorder, Resp3Server, bulk, message, push, resp3_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CONTROL = "__sse_gateway:test"
MESSAGES = [
    ("sse:*", "sse:a", "one"),
    ("sse:*", "sse:é", ""),
    ("sse:*", "sse:a", "two\r\nlines\r\n"),
    ("*", "x", "$3\r\nabc\r\n>4\r\n"),
    ("sse:*", "sse:a", "last"),
]


@pytest.fixture
async def server() -> AsyncIterator[Resp3Server]:
    """Run a scripted server."""
    async with resp3_server() as running:
        yield running


async def connect(server: Resp3Server, recorder: Recorder) -> Link:
    """Open a link to a scripted server."""
    return await open_link(server.url, lambda: Link(recorder, CONTROL.encode(), b"token"), timeout_s=5)


def expected() -> list[tuple[bytes, bytes, bytes]]:
    """What a listener must get of `MESSAGES`."""
    return [(pattern.encode(), channel.encode(), payload.encode()) for pattern, channel, payload in MESSAGES]


async def begun() -> tuple[Link, Recorder]:
    """Make a link without a connection that has begun; its bytes are fed by hand."""
    recorder = Recorder()
    link = Link(recorder, CONTROL.encode(), b"token")
    beginning = asyncio.create_task(link.begin())
    await asyncio.sleep(0)
    link.data_received(message(CONTROL, CONTROL, "1 MARK token:1") + b":1\r\n")
    await beginning
    return link, recorder


async def test_the_bytes_may_be_cut_anywhere() -> None:
    """Cut in two at every byte, what Redis says gives the same messages in the same order."""
    data = b"".join(message(*parts) for parts in MESSAGES)
    for place in range(len(data) + 1):
        link, recorder = await begun()
        link.data_received(data[:place])
        link.data_received(data[place:])

        assert recorder.messages == expected(), place
        assert not link.lost.is_set()


async def test_the_bytes_may_come_one_by_one(server: Resp3Server) -> None:
    """A server that sends byte by byte is understood, from the first command on."""
    server.is_one_by_one = True
    recorder = Recorder()
    link = await connect(server, recorder)
    assert await link.call(b"PSUBSCRIBE", b"sse:*", CONTROL.encode(), pushes=2) is None
    await link.begin()
    for parts in MESSAGES:
        await server.send(message(*parts))
    await recorder.until(lambda r: len(r.messages) == len(MESSAGES))

    assert recorder.messages == expected()
    link.close()


async def test_a_read_is_flushed_once() -> None:
    """What came in one read is handed over message by message, and then flushed once."""
    link, recorder = await begun()
    recorder.calls.clear()
    link.data_received(message("sse:*", "sse:a", "one") + message("sse:*", "sse:a", "two"))

    assert recorder.calls == ["one", "two", "flush"]


async def test_nothing_counts_before_our_first_marker() -> None:
    """A run of messages begins where our own marker comes back, not where others' do."""
    recorder = Recorder()
    link = Link(recorder, CONTROL.encode(), b"token")
    beginning = asyncio.create_task(link.begin())
    await asyncio.sleep(0)
    link.data_received(message("sse:*", "sse:a", "early"))
    link.data_received(message(CONTROL, CONTROL, "1 MARK other:1"))
    link.data_received(message("sse:*", CONTROL, "1 MARK token:1"))
    assert recorder.messages == []
    assert not link.began.is_set()
    link.data_received(
        message("sse:*", "sse:a", "still early")
        + message(CONTROL, CONTROL, "1 MARK token:1")
        + message("sse:*", "sse:a", "mine")
        + b":1\r\n"
    )
    await beginning

    assert [payload for _, _, payload in recorder.messages] == [b"mine"]
    assert recorder.calls.count("began") == 1
    assert len(recorder.round_trips) == 1


async def test_messages_of_the_control_channel_are_never_handed_over() -> None:
    """What comes under the control pattern is control, whoever sent it and whatever it says."""
    link, recorder = await begun()
    for payload in ("", "1 MARK", "1 MARK token:1", "1 MARK token:99", "2 JOIN x", "\xff"):
        link.data_received(message(CONTROL, CONTROL, payload))

    assert recorder.messages == []
    assert not link.lost.is_set()


@pytest.mark.parametrize(
    "garbage", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0\0\0\0", b"*-5\r\n", b"$abc\r\n", b"\x15\x03\x01"]
)
async def test_what_is_no_resp_ends_the_link(garbage: bytes) -> None:
    """A server that speaks something else is left, with a reason."""
    link, recorder = await begun()
    link.data_received(garbage + b"\r\n")

    assert link.lost.is_set()
    assert link.why.startswith("not RESP")
    assert recorder.failures == []


async def test_unknown_pushes_and_answers_are_ignored() -> None:
    """What nobody asked for does no harm."""
    link, recorder = await begun()
    link.data_received(
        push("punsubscribe", "x", 0) + push("invalidate", "x") + b":1\r\n" + b"-ERR what\r\n" + bulk("x")
    )
    link.data_received(push("psubscribe", "x", 1) + message("sse:*", "sse:a", "mine"))

    assert [payload for _, _, payload in recorder.messages] == [b"mine"]


async def test_an_exception_in_the_listener_is_reported() -> None:
    """I9: an unexpected exception while a message is handled ends the link and is passed on, not only logged."""
    link, recorder = await begun()
    recorder.poison = b"poison"
    link.data_received(message("sse:*", "sse:a", "poison"))

    assert [type(error) for error in recorder.failures] == [ZeroDivisionError]
    assert link.lost.is_set()


async def test_a_link_ends_once(server: Resp3Server) -> None:
    """The first reason counts, and whoever waits is told."""
    del server.answers["PING"]
    recorder = Recorder()
    link = await connect(server, recorder)
    waiting = asyncio.create_task(link.call(b"PING"))
    await server.until(lambda s: s.names() == ["PING"])
    link.drop("the first reason")
    link.drop("the second")

    with pytest.raises(SourceError, match="the first reason"):
        await waiting
    assert link.why == "the first reason"


async def test_a_lost_link_answers_no_call(server: Resp3Server) -> None:
    """A call on a link that has ended fails at once instead of waiting for ever."""
    server.closes_after = {"PING"}
    link = await connect(server, Recorder())
    await link.call(b"PING")
    await link.lost.wait()

    with pytest.raises(SourceError, match="closed the connection"):
        await asyncio.wait_for(link.call(b"PSUBSCRIBE", b"x", pushes=1), 10)


async def test_a_link_lost_while_it_begins_says_so(server: Resp3Server) -> None:
    """A connection that ends between our marker and its return is not waited for."""
    server.answers["PUBLISH"] = b":1\r\n"
    server.closes_after = {"PUBLISH"}
    link = await connect(server, Recorder())

    with pytest.raises(SourceError, match="closed the connection"):
        await asyncio.wait_for(link.begin(), 10)


async def test_errors_are_answers(server: Resp3Server) -> None:
    """An error is raised where the command was sent, in order with other answers."""
    server.answers["ROLE"] = b"-NOPERM no\r\n"
    link = await connect(server, Recorder())
    first, second, third = (asyncio.create_task(link.call(name)) for name in (b"PING", b"ROLE", b"PING"))

    assert await first == await third
    with pytest.raises(SourceError, match="NOPERM no"):
        await second
    link.close()


async def test_a_paused_link_reads_nothing(server: Resp3Server) -> None:
    """While it is paused a link takes no message; afterwards it takes all; the time is counted."""
    recorder = Recorder()
    link = await connect(server, recorder)
    await link.call(b"PSUBSCRIBE", b"sse:*", CONTROL.encode(), pushes=2)
    await link.begin()
    link.pause()
    link.pause()
    await server.send(message("sse:*", "sse:a", "held"))
    with pytest.raises(TimeoutError):
        await recorder.until(lambda r: bool(r.messages), timeout_s=0.2)
    link.resume()
    link.resume()
    await recorder.until(lambda r: bool(r.messages))

    assert 0.2 <= link.paused_s < 5
    assert not link.is_paused
    link.close()
