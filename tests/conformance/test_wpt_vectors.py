"""What web-platform-tests asks of an `EventSource`'s parser, asked of every parser and encoder here.

Each vector puts the question of the file of that name in ``eventsource/`` with bytes of its own.
The answers are those of the standard: WHATWG HTML 9.2.5 and 9.2.6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from sse_gateway.events import Publication
from sse_gateway.frames import event_frame, wrapped_frame
from sse_gateway.tail import StreamParser
from tests.support.eventsource import EventSourceParser

if TYPE_CHECKING:
    from collections.abc import Callable

LONG = b"y" * 2_100
"""A comment longer than a buffer of 2 KiB."""

MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Event:
    """What a page is told: type, data, and the last event ID at that moment."""

    data: str
    type: str = "message"
    id: str = ""


@dataclass(frozen=True, slots=True)
class Vector:
    """A whole response, and what becomes of it.

    Attributes:
        name: The file of web-platform-tests that puts the question.
        stream: The body.
        events: What is dispatched.
        id: What a reconnect would send, "" for nothing.
        retry: Reconnection time in milliseconds, None as long as none was set.
    """

    name: str
    stream: bytes
    events: tuple[Event, ...]
    id: str = ""
    retry: int | None = None


VECTORS = (
    # One byte order mark is skipped, at the very start; another makes the name of an unknown field.
    Vector("format-bom", MARK + b"data:a\n\n" + MARK + b"data:b\n\ndata:c\n\n", (Event("a"), Event("c"))),
    Vector("format-bom-2", MARK + MARK + b"data:a\n\ndata:b\n\n", (Event("b"),)),
    Vector(
        "format-comments",
        b"data:a\r:\0\n:\r\ndata:b\n:" + LONG + b"\rdata:c\n:data:no\r:" + LONG + b"\ndata:d\n\n",
        (Event("a\nb\nc\nd"),),
    ),
    Vector("format-comments, a lone one", b": hello\n\n:\n\n", ()),
    Vector("format-data-before-final-empty-line", b"retry:500\ndata:a\n\nid:x\ndata:b", (Event("a"),), retry=500),
    Vector("format-data-before-final-empty-line, its line ended", b"data:a\n\nid:x\ndata:b\n", (Event("a"),)),
    Vector("format-field-data", b"data:\n\ndata\ndata\n\ndata:a\n\n", (Event(""), Event("\n"), Event("a"))),
    Vector("format-field-event", b"event:tick\ndata:a\n\ndata:b\n\n", (Event("a", "tick"), Event("b"))),
    Vector("format-field-event, without data", b"event:tick\n\ndata:a\n\n", (Event("a"),)),
    Vector("format-field-event, the last of two", b"event:x\nevent:y\ndata:a\n\n", (Event("a", "y"),)),
    Vector("format-field-event-empty", b"event: \ndata:a\n\n", (Event("a"),)),
    Vector("format-field-event-empty, after one", b"event:x\nevent\ndata:a\n\n", (Event("a"),)),
    Vector("format-field-id", "id:…é\ndata:a\n\n".encode(), (Event("a", id="…é"),), id="…é"),
    Vector("format-field-id, without data", b"id:7\n\n", (), id="7"),
    Vector("format-field-id-2", b"id:1\ndata:a\n\ndata:b\n\n", (Event("a", id="1"), Event("b", id="1")), id="1"),
    Vector(
        "format-field-id-3, changes",
        b"id:1\ndata:a\n\nid: 2\ndata:b\n\ndata:c\n\n",
        (Event("a", id="1"), Event("b", id="2"), Event("c", id="2")),
        id="2",
    ),
    Vector(
        "format-field-id-3, resets",
        b"id:1\ndata:a\n\nid\ndata:b\n\ndata:c\n\n",
        (Event("a", id="1"), Event("b"), Event("c")),
    ),
    Vector("format-field-id-null", b"id:\0\0\ndata:a\n\n", (Event("a"),)),
    Vector("format-field-id-null, after one", b"id:1\nid:2\0\ndata:a\n\n", (Event("a", id="1"),), id="1"),
    Vector(
        "format-field-parsing",
        b"data:\0\ndata:  b\rData:no\ndata\0:no\ndata:c\r\0data:no\nda-ta:no\rdata_no\ndata:d\rdata:\r\n data:no\ndata:e\n\n",
        (Event("\0\n b\nc\nd\n\ne"),),
    ),
    Vector("format-field-retry", b"retry:02500\n\ndata:a\n\n", (Event("a"),), retry=2_500),
    Vector("format-field-retry, within an event", b"data:a\nretry: 40\n\n", (Event("a"),), retry=40),
    Vector("format-field-retry-bogus", b"retry:2500\nretry:900x\ndata:a\n\n", (Event("a"),), retry=2_500),
    Vector("format-field-retry-bogus, signs", b"retry:-1\nretry:+1\nretry:1.5\nretry:1e3\n\n", ()),
    Vector("format-field-retry-bogus, other digits", "retry:٣\nretry:²\n\n".encode(), ()),
    Vector("format-field-retry-empty", b"retry:70\n\nretry\nretry:\nretry: \ndata:a\n\n", (Event("a"),), retry=70),
    Vector(
        "format-field-unknown",
        b"data:a\n data\ndata\nother:no\nnothing but text\n:data:no\ndata:b\n\n",
        (Event("a\n\nb"),),
    ),
    Vector("format-leading-space", b"data:\ta\rdata: \ndata:b\rdata:  c\n\n", (Event("\ta\n\nb\n c"),)),
    Vector("format-newlines", b"data:a\r\ndata\ndata:b\r\n\r", (Event("a\n\nb"),)),
    Vector("format-newlines, CR alone", b"data:a\r\rdata:b\r\r", (Event("a"), Event("b"))),
    Vector("format-newlines, LF CR", b"data:a\n\rdata:b\n\r", (Event("a"), Event("b"))),
    Vector(
        "format-newlines, no others", "data:a\x0bb\x0cc\x85d\u2028e\n\n".encode(), (Event("a\x0bb\x0cc\x85d\u2028e"),)
    ),
    Vector("format-null-character", b"data:\0\n\n\n\n", (Event("\0"),)),
    Vector("format-utf-8", "data:ok…👩\u200d🚀\n\n".encode(), (Event("ok…👩\u200d🚀"),)),
    Vector("format-utf-8, not", b"data:\xff\xe2\x80|\xed\xa0\x80\n\n", (Event("\ufffd\ufffd|\ufffd\ufffd\ufffd"),)),
    Vector("format-utf-8, cut by a line end", b"data:\xe2\x80\ndata:\xa6\n\n", (Event("\ufffd\n\ufffd"),)),
)

Outcome = tuple[tuple[Event, ...], str, int | None]


def by_reference(pieces: list[bytes]) -> Outcome:
    """Interpret a response with the parser that tests rely on."""
    parser = EventSourceParser()
    events = [event for piece in pieces for event in parser.feed(piece)]
    told = tuple(Event(event.data, event.type, event.last_event_id) for event in events if event.data is not None)
    return told, parser.last_event_id, parser.reconnection_time


def by_tail(pieces: list[bytes]) -> Outcome:
    """Interpret a response with the parser of ``sse-gateway tail``."""
    parser = StreamParser()
    events = [Event(block.data, block.type, parser.last_event_id) for piece in pieces for block in parser.feed(piece)]
    return tuple(events), parser.last_event_id, None if parser.retry_s is None else round(parser.retry_s * 1_000)


@pytest.fixture(params=[by_reference, by_tail], ids=["reference", "tail"])
def interpret(request: pytest.FixtureRequest) -> Callable[[list[bytes]], Outcome]:
    """Take one parser after the other."""
    chosen: Callable[[list[bytes]], Outcome] = request.param
    return chosen


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1_000, 1_000_000])
@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_a_stream_means_what_the_standard_says(
    vector: Vector, size: int, interpret: Callable[[list[bytes]], Outcome]
) -> None:
    """The same events, id and reconnection time come of it, in whatever pieces it arrives."""
    pieces = [vector.stream[at : at + size] for at in range(0, len(vector.stream), size)]

    assert interpret(pieces) == (vector.events, vector.id, vector.retry)


@pytest.mark.parametrize("vector", [vector for vector in VECTORS if vector.events], ids=lambda vector: vector.name)
def test_an_event_encoded_here_means_the_same(vector: Vector, interpret: Callable[[list[bytes]], Outcome]) -> None:
    """What a vector dispatches can be published, and is dispatched again; no vector's trick is used for it."""
    frames = [
        event_frame(f"c-{n}", Publication(event.data.encode(), event.type)) for n, event in enumerate(vector.events)
    ]
    expected = tuple(Event(event.data, event.type, f"c-{n}") for n, event in enumerate(vector.events))

    assert interpret(frames) == (expected, expected[-1].id, None)
    assert not any(b"\r" in frame or frame.startswith(MARK) for frame in frames)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_a_stream_published_as_data_stays_data(vector: Vector, interpret: Callable[[list[bytes]], Outcome]) -> None:
    """I7: whatever a vector does to a parser, as the data of an event it does nothing."""
    text = vector.stream.decode(errors="replace")
    plain = event_frame("c-1", Publication(text.encode()))
    wrapped = wrapped_frame("c-2", "a", "t", text.encode(), is_text=True)
    events, last, retry = interpret([plain, wrapped])

    assert [(event.type, event.id) for event in events] == [("message", "c-1"), ("message", "c-2")]
    assert events[0].data == text.replace("\r\n", "\n").replace("\r", "\n")
    assert (last, retry) == ("c-2", None)
