"""Following a stream: the parser, what a person reads, and when it resumes or ends."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from sse_gateway.tail import MAX_BLOCK, Block, Scribe, StreamParser, TailError, Tone, check_url, follow
from tests.support.valkey import free_port

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

TOKEN = "t0ken"  # noqa: S105 - looked for in what is shown

STREAM = (
    b"\xef\xbb\xbfevent: gateway.open\r\nretry: 1500\r\nid: e-1\r\ndata: {}\r\n\r\n"
    b": comment\rid: e-2\rdata: one\rdata:two\rdata\r\r"
    b"event: price\nid: e-3\ndata:  spaced \xe2\x82\xac\x85\xe2\x80\xa8\n\n"
    b"retry: soon\nid: bad\0id\nnonsense: 1\n\n"
    b"id: e-4\nevent: nothing\n\n"
    b"data: cut off"
)

BLOCKS = [
    Block("gateway.open", "{}"),
    Block("message", "one\ntwo\n"),
    Block("price", " spaced €\ufffd\u2028"),
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, len(STREAM)])
def test_blocks_are_the_same_however_the_stream_is_cut(size: int) -> None:
    """Line ends, characters and the byte order mark may be cut anywhere."""
    parser = StreamParser("e-0")
    blocks = [block for at in range(0, len(STREAM), size) for block in parser.feed(STREAM[at : at + size])]
    assert blocks == BLOCKS
    assert parser.last_event_id == "e-4"
    assert parser.retry_s == 1.5


def test_an_id_counts_only_when_its_block_is_complete() -> None:
    """A cut before the blank line resumes before that event, and a block without id keeps the last."""
    parser = StreamParser("e-0")
    assert list(parser.feed(b"data: a\n\nid: e-1\ndata: b\n")) == [Block("message", "a")]
    assert parser.last_event_id == "e-0"
    assert list(parser.feed(b"\n")) == [Block("message", "b")]
    assert parser.last_event_id == "e-1"


def test_a_block_without_end_is_refused() -> None:
    """What the parser holds is bounded, for one long line and for many short ones."""
    with pytest.raises(TailError, match="without an end"):
        list(StreamParser().feed(b"data: " + b"x" * MAX_BLOCK))
    with pytest.raises(TailError, match="without an end"):
        list(StreamParser().feed(b"data: xxxxxxxxxx\n" * (MAX_BLOCK // 10 + 1)))


class Paper:
    """Keeps the lines written."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, Tone]] = []

    def __call__(self, line: str, tone: Tone) -> None:
        """Take one line."""
        self.lines.append((line, tone))

    def of(self, tone: Tone) -> list[str]:
        """The lines of one tone."""
        return [line for line, its_tone in self.lines if its_tone is tone]


def written(*blocks: Block) -> Paper:
    """Write blocks down at a fixed time of day."""
    paper = Paper()
    scribe = Scribe(paper, lambda: datetime(2026, 1, 2, 3, 4, 5, 678_900, tzinfo=UTC))
    for block in blocks:
        scribe.write(block, 2.5)
    return paper


def test_an_event_is_time_type_and_data() -> None:
    """Further lines of data stand below the first."""
    paper = written(Block("price", "ACME 1\nand more"))
    assert paper.of(Tone.EVENT) == [
        "03:04:05.678  price         ACME 1",
        "                            and more",
    ]


def test_nothing_can_steer_the_terminal() -> None:
    """I7: escapes, controls and direction overrides are shown, not obeyed."""
    paper = written(
        Block("a\x1b[2J", "b\x1b]0;owned\x07\u202e\ud800\tc"),
        Block("gateway.gap", '{"reason":"\\u001b[2J","channels":["\\u202e"],"missed":1}'),
    )
    assert all(line.isprintable() for line, _ in paper.lines)
    assert paper.of(Tone.EVENT) == ["03:04:05.678  a\\x1b[2J      b\\x1b]0;owned\\x07\\u202e\\ud800 c"]


@pytest.mark.parametrize(
    ("block", "line", "tone"),
    [
        (
            Block("gateway.open", '{"channels":["a","b"],"replay":"complete"}'),
            "--- open: channels a, b, replay complete ---",
            Tone.NOTICE,
        ),
        (
            Block("gateway.gap", '{"reason":"overflow","channels":["a"],"missed":3}'),
            "--- gap: overflow, channel a, missed 3 ---",
            Tone.GAP,
        ),
        (
            Block("gateway.gap", '{"reason":"source","channels":["a","b*"],"missed":null}'),
            "--- gap: source, channels a, b*, missed an unknown number ---",
            Tone.GAP,
        ),
        (Block("gateway.gap", "["), "--- gap: None, channels unknown, missed an unknown number ---", Tone.GAP),
        (
            Block("gateway.close", '{"reason":"drain"}'),
            "--- closed by the gateway: drain, back in 2.5 s ---",
            Tone.NOTICE,
        ),
        (
            Block("gateway.unavailable", '{"reason":"full"}'),
            "--- unavailable for now: full, again in 2.5 s ---",
            Tone.NOTICE,
        ),
    ],
)
def test_gateway_blocks_are_told_in_words(block: Block, line: str, tone: Tone) -> None:
    """What the gateway says of the stream itself is one line of its own kind."""
    assert written(block).lines == [(line, tone)]


def test_heartbeats_are_silent_until_the_source_changes() -> None:
    """Only the source's going away and its return are told, once each."""
    beat = '{"live":%s}'
    blocks = [Block("gateway.heartbeat", beat % live) for live in ("true", "false", "false", "true", "true")]
    assert written(*blocks).of(Tone.NOTICE) == [
        "--- the source is away, events are delayed ---",
        "--- the source is back ---",
    ]


class Script:
    """A server that answers one prepared response per request, then 204.

    Attributes:
        requests: Headers of each request.
        waits: What the follower waited between connections.
    """

    def __init__(self, *answers: Handler) -> None:
        self._answers = list(answers)
        self.requests: list[dict[str, str]] = []
        self.waits: list[float] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer the next request."""
        self.requests.append(dict(request.headers))
        if not self._answers:
            return web.Response(status=204)
        return await self._answers.pop(0)(request)

    async def wait(self, wait_s: float) -> None:
        """Note the wait, and do not wait."""
        self.waits.append(wait_s)

    async def followed(self, *, last_event_id: str = "", token: str | None = None, silence_s: float = 60) -> Paper:
        """Follow the script to its end."""
        application = web.Application()
        application.router.add_get("/events/a", self.answer)
        paper = Paper()
        async with TestServer(application, host="127.0.0.1") as server:
            url = str(server.make_url("/events/a")) + "?secret=hidden"
            await follow(url, paper, last_event_id=last_event_id, token=token, silence_s=silence_s, sleep=self.wait)
        return paper


def stream(*pieces: bytes, broken: bool = False) -> Handler:
    """Answer with a stream, cleanly ended or cut off."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
        if broken:
            assert request.transport is not None
            request.transport.abort()
        return response

    return answer


def refusal(status: int, **response: str | dict[str, str]) -> Handler:
    """Answer with a status."""

    async def answer(_: web.Request) -> web.StreamResponse:
        headers = response.get("headers")
        text = response.get("text")
        assert not isinstance(headers, str)
        assert not isinstance(text, dict)
        return web.Response(status=status, headers=headers, text=text)

    return answer


async def test_resumes_from_the_last_id_and_waits_as_told() -> None:
    """Each connection sends the last complete id, after the reconnection time of the server."""
    script = Script(
        stream(b"retry: 700\nid: e-1\ndata: a\n\n", b"id: e-2\nda", b"ta: b\n\nid: e-3\ndata: half", broken=True),
        stream(b'event: gateway.unavailable\nretry: 9000\ndata: {"reason":"full"}\n\n'),
        stream(b"retry: 0\nid: e-4\ndata: c\n\n"),
    )
    paper = await script.followed(last_event_id="e-0", token=TOKEN)
    assert [request.get("Last-Event-ID") for request in script.requests] == ["e-0", "e-2", "e-2", "e-4"]
    assert {request["Authorization"] for request in script.requests} == {f"Bearer {TOKEN}"}
    assert {request["Accept"] for request in script.requests} == {"text/event-stream"}
    assert script.waits == [0.7, 9.0, 0.1]
    assert [line.split()[-1] for line in paper.of(Tone.EVENT)] == ["a", "b", "c"]
    assert [line.split(":")[0] for line in paper.of(Tone.NOTICE)] == [
        "--- the connection broke",
        "--- unavailable for now",
        "--- the stream ended, back in 0.1 s ---",
        "--- the server has nothing more to say (204) ---",
    ]


async def test_without_an_id_none_is_sent() -> None:
    """A first connection without a cursor sends no header for it, and no token that is not there."""
    script = Script()
    await script.followed()
    assert not {"Last-Event-ID", "Authorization"} & set(script.requests[0])


async def test_a_refusal_ends_with_the_servers_sentence() -> None:
    """4xx will not change by waiting; the detail of problem+json is for the person."""
    script = Script(refusal(404, text='{"title":"Not found","detail":"no rule matches \\u001b[2J"}'))
    with pytest.raises(TailError, match=r"/events/a: 404 no rule matches \\x1b\[2J") as refused:
        await script.followed(token=TOKEN)
    assert "hidden" not in str(refused.value)
    assert TOKEN not in str(refused.value)
    with pytest.raises(TailError, match="403 Forbidden"):
        await Script(refusal(403, text="[" * 100_000)).followed()


async def test_another_kind_of_answer_ends() -> None:
    """A page in place of a stream means the URL is wrong."""
    with pytest.raises(TailError, match="not an event stream, but text/plain"):
        await Script(refusal(200, text="hello")).followed()


async def test_backs_off_while_the_server_cannot() -> None:
    """5xx and 429 are waited out: as long as Retry-After says, else longer and longer; success resets."""
    script = Script(
        refusal(503, headers={"Retry-After": "7"}),
        refusal(429),
        refusal(502),
        stream(b"data: a\n\n"),
        refusal(500),
        refusal(500, headers={"Retry-After": "0"}),
    )
    await script.followed()
    said, second, third, after_stream, first, zero = script.waits
    assert said == 7
    assert 3 <= second <= 6 <= third <= 12
    assert after_stream == 3
    assert 1.5 <= first <= 3
    assert zero == 0.1


async def test_waits_for_a_server_that_is_not_there() -> None:
    """Without a server the wait grows to 30 s and stays there."""
    waits: list[float] = []
    paper = Paper()

    async def wait(wait_s: float) -> None:
        waits.append(wait_s)
        if len(waits) == 20:
            raise StopIteration

    port = free_port()
    with pytest.raises(RuntimeError):  # StopIteration, as coroutines pass it on
        await follow(f"http://user:secret@127.0.0.1:{port}/a?key=hidden", paper, sleep=wait)
    assert 1.5 <= waits[0] <= 3
    assert all(15 <= wait_s <= 30 for wait_s in waits[5:])
    text = "\n".join(line for line, _ in paper.lines)
    assert f"cannot reach http://127.0.0.1:{port}/a: " in text
    assert "secret" not in text
    assert "hidden" not in text


@pytest.mark.parametrize("url", ["", "http://", "http://[::1", "ftp://127.0.0.1/a", "127.0.0.1:8080/events/a"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    """A malformed URL is refused before anything is sent, and not quoted."""
    with pytest.raises(ValueError, match="must begin with http:// or https:// and name a host"):
        check_url(url)


async def test_a_silent_stream_is_left() -> None:
    """A stream without a sign of life is dead, also where the connection never says so."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"id: e-1\ndata: a\n\n")
        await asyncio.Event().wait()
        return response

    script = Script(answer)
    paper = await script.followed(silence_s=1)
    assert "--- no sign of life for 1 s, back in 3.0 s ---" in paper.of(Tone.NOTICE)
    assert script.requests[1]["Last-Event-ID"] == "e-1"


async def test_a_redirect_to_elsewhere_ends() -> None:
    """What no connection could be made to is an error at once, not something to wait for."""
    with pytest.raises(TailError, match="check the URL"):
        await Script(refusal(307, headers={"Location": "ftp://127.0.0.1/a"})).followed()
