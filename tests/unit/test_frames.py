from __future__ import annotations

import json

import pytest

from sse_gateway.events import Publication
from sse_gateway.frames import (
    LAST_CHUNK,
    chunk,
    close_frame,
    event_frame,
    frame_data,
    gap_frame,
    heartbeat_frame,
    open_frame,
    unavailable_frame,
    wrapped_frame,
)
from sse_gateway.reasons import CloseReason, GapReason, Replay, Unavailable
from tests.support.eventsource import Dispatched, EventSourceParser

CURSOR = "0123456789ab-7-00000000ffff"


def parse(frame: bytes) -> list[Dispatched]:
    """What a page makes of a frame."""
    return EventSourceParser().feed(frame)


def test_an_event_is_id_type_and_data() -> None:
    """In this order, LF only, ending in a blank line."""
    assert event_frame("c", Publication(b"hi", "price")) == b"id: c\nevent: price\ndata: hi\n\n"


def test_the_default_type_is_not_named() -> None:
    """An event of type `message` has no ``event:`` line."""
    assert event_frame("c", Publication(b"hi")) == b"id: c\ndata: hi\n\n"


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_every_line_end_starts_a_new_data_line(end: bytes) -> None:
    """Text that looks like fields stays data: one event, no new type, id or retry (I7, X1)."""
    frame = event_frame("c", Publication(end.join([b"a", b"event: x", b"data: y", b"id: 9", b"retry: 1", b": z"])))
    assert frame == (b"id: c\ndata: a\ndata: event: x\ndata: data: y\ndata: id: 9\ndata: retry: 1\ndata: : z\n\n")
    parser = EventSourceParser()
    assert parser.feed(frame) == [Dispatched("message", "a\nevent: x\ndata: y\nid: 9\nretry: 1\n: z", "c")]
    assert parser.reconnection_time is None


@pytest.mark.parametrize(
    ("data", "lines"),
    [(b"a\n\rb", 3), (b"a\r\r\nb", 3), (b"\n", 2), (b"\r\n\r\n", 3), (b"\n\nevent: x\n\n", 5), (b"a\n", 2)],
)
def test_mixed_and_repeated_line_ends_are_each_counted_once(data: bytes, lines: int) -> None:
    """No blank line arises inside a block (X1)."""
    frame = event_frame("c", Publication(data))
    assert frame.count(b"data: ") == lines
    assert frame.count(b"\n\n") == 1
    assert len(parse(frame)) == 1


def test_what_only_unicode_calls_a_line_end_is_data() -> None:
    """Vertical tab, form feed, separators, NEL, U+2028 and U+2029 stay where they are (X2)."""
    text = "a\x0bb\x0cc\x1cd\x1de\x1ef\x85g\u2028h\u2029i\0"
    assert event_frame("c", Publication(text.encode())) == f"id: c\ndata: {text}\n\n".encode()


@pytest.mark.parametrize("text", ["", " ", "  x", ":", ": x", "\ufeffx", "data: x"])
def test_how_data_begins_does_not_matter(text: str) -> None:
    """A leading space survives, and empty data is still an event (X4)."""
    assert parse(event_frame("c", Publication(text.encode()))) == [Dispatched("message", text, "c")]


@pytest.mark.parametrize("type_", ["message", "x", "data: y", "event: data: "])
@pytest.mark.parametrize("data", [b"", b"a", b"a\nb", b"\r\n", b"data: x\rdata: y", b"event: x", b"x\n\ndata: \n"])
def test_the_data_of_a_frame_can_be_had_back(type_: str, data: bytes) -> None:
    """Joined with LF, as a client would, whatever the type is called."""
    joined = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    assert frame_data(event_frame(CURSOR, Publication(data, type_))) == joined


def test_a_wrapped_event_holds_channel_type_and_text_in_one_line() -> None:
    """Text becomes a JSON string, its line ends escaped."""
    frame = wrapped_frame("c", "a", "price", b'x"\r\ny', is_text=True)
    assert frame == b'id: c\ndata: {"channel":"a","event":"price","data":"x\\"\\r\\ny"}\n\n'


def test_a_wrapped_json_value_is_spliced_in() -> None:
    """Its text stays as published; line ends, which can only be white space, become spaces."""
    frame = wrapped_frame("c", "a", "message", b'{"x":\r\n[1.50,\n2]}', is_text=False)
    assert frame == b'id: c\ndata: {"channel":"a","event":"message","data":{"x":  [1.50, 2]}}\n\n'


@pytest.mark.parametrize("channel", ["a\nid: 1", 'q"\\', "\u2028", "ä\x7f", "a\r"])
def test_no_name_can_end_its_line(channel: str) -> None:
    """Names pass through a JSON encoder wherever they are told (I7, X7)."""
    frames = (
        wrapped_frame(CURSOR, channel, "t", b"x", is_text=True),
        open_frame(CURSOR, [channel], Replay.NONE, 1),
        gap_frame(CURSOR, GapReason.SOURCE, (channel,), None),
    )
    for frame in frames:
        (event,) = parse(frame)
        assert event.data is not None
        told = json.loads(event.data)
        assert told.get("channel") == channel or told["channels"] == [channel]
        assert event.last_event_id == CURSOR


def test_open_tells_channels_replay_and_when_to_come_back() -> None:
    """Fields in the documented order, compact JSON in one line."""
    assert open_frame("c", ["a", "b*"], Replay.COMPLETE, 3000) == (
        b'event: gateway.open\nretry: 3000\nid: c\ndata: {"channels":["a","b*"],"replay":"complete"}\n\n'
    )


@pytest.mark.parametrize(("live", "word"), [(True, b"true"), (False, b"false")])
def test_a_heartbeat_is_an_event_that_carries_the_cursor(live: bool, word: bytes) -> None:
    """Not a comment: some browsers keep an id only when they dispatch an event."""
    assert heartbeat_frame("c", live=live) == b'event: gateway.heartbeat\nid: c\ndata: {"live":%b}\n\n' % word


@pytest.mark.parametrize(("missed", "word"), [(None, b"null"), (0, b"0"), (12, b"12")])
def test_a_gap_tells_reason_channels_and_count(missed: int | None, word: bytes) -> None:
    """An unknown count is null."""
    assert gap_frame("c", GapReason.OVERFLOW, ("a",), missed) == (
        b'event: gateway.gap\nid: c\ndata: {"reason":"overflow","channels":["a"],"missed":%b}\n\n' % word
    )


def test_close_is_told_with_a_time_to_come_back() -> None:
    """The reason is the word of its set."""
    frame = close_frame("c", CloseReason.MAX_AGE, 1500)
    assert frame == b'event: gateway.close\nretry: 1500\nid: c\ndata: {"reason":"max_age"}\n\n'


def test_unavailable_leaves_the_clients_cursor_alone() -> None:
    """It has no id: the client must still resume from where it was."""
    frame = unavailable_frame(Unavailable.DRAINING, 15000)
    assert frame == b'event: gateway.unavailable\nretry: 15000\ndata: {"reason":"draining"}\n\n'
    parser = EventSourceParser(last_event_id="old")
    parser.feed(frame)
    assert (parser.last_event_id, parser.reconnection_time) == ("old", 15000)


def test_a_chunk_is_its_length_in_hex_and_its_bytes() -> None:
    """Nothing is no chunk: an empty one would end the response."""
    assert chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"
    assert chunk(b"") == b""
    assert LAST_CHUNK == b"0\r\n\r\n"
