"""Whatever is published, an independent parser reads exactly that back."""

from __future__ import annotations

import json
import re

from hypothesis import given, strategies as st

from sse_gateway.decoder import decode
from sse_gateway.errors import MessageError
from sse_gateway.events import Publication
from sse_gateway.frames import chunk, event_frame, frame_data, gap_frame, open_frame, wrapped_frame
from sse_gateway.reasons import Format, GapReason, Replay
from tests.support.eventsource import Dispatched, EventSourceParser

CURSORS = st.from_regex(r"[0-9a-z]{12}-[0-9]{1,19}-[0-9a-f]{12}", fullmatch=True)
HOSTILE = st.sampled_from(
    [
        "\r",
        "\n",
        "\r\n",
        "\n\r",
        ":",
        " ",
        "data: ",
        "id: 1",
        "event: x",
        "retry: 1",
        "\ufeff",
        "\u2028",
        "\x85",
        "\0",
        "é",
    ]
)
TEXTS = st.text() | st.lists(HOSTILE | st.text(max_size=3)).map("".join)
TYPES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=30) | st.sampled_from(
    ["message", "data: ", "event: x", " lead", ":"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=10,
)


def with_lf(text: str) -> str:
    """What a client makes of line ends."""
    return re.sub("\r\n|\r", "\n", text)


def parse(stream: bytes, cuts: list[int]) -> list[Dispatched]:
    """Parse a stream that arrives in pieces."""
    parser = EventSourceParser()
    events = []
    start = 0
    for cut in [*sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]:
        events += parser.feed(stream[start:cut])
        start = cut
    return events


@given(cursor=CURSORS, text=TEXTS, type_=TYPES, cuts=st.lists(st.integers(0, 1 << 20), max_size=5))
def test_an_event_comes_back_as_it_was_published(cursor: str, text: str, type_: str, cuts: list[int]) -> None:
    """Exactly one event, with its type, its id and its data with LF for every line end (I7, X1, X2, X4)."""
    frame = event_frame(cursor, Publication(text.encode(), type_))
    assert parse(frame, cuts) == [Dispatched(type_, with_lf(text), cursor)]
    assert frame_data(frame).decode() == with_lf(text)
    assert b"\r" not in frame


@given(
    events=st.lists(st.tuples(CURSORS, TEXTS, TYPES), max_size=5), cuts=st.lists(st.integers(0, 1 << 20), max_size=9)
)
def test_frames_in_a_row_are_as_many_events(events: list[tuple[str, str, str]], cuts: list[int]) -> None:
    """No frame leaks into the next, wherever the stream is cut."""
    stream = b"".join(event_frame(cursor, Publication(text.encode(), type_)) for cursor, text, type_ in events)
    assert parse(stream, cuts) == [Dispatched(type_, with_lf(text), cursor) for cursor, text, type_ in events]


@given(cursor=CURSORS, channel=TEXTS, type_=TYPES, text=TEXTS)
def test_wrapped_text_comes_back_whole(cursor: str, channel: str, type_: str, text: str) -> None:
    """Line ends survive as they were published, since JSON escapes them."""
    frame = wrapped_frame(cursor, channel, type_, text.encode(), is_text=True)
    (event,) = parse(frame, [])
    assert event.data is not None
    assert (event.type, event.last_event_id, frame.count(b"\n")) == ("message", cursor, 3)
    assert json.loads(event.data) == {"channel": channel, "event": type_, "data": text}


@given(cursor=CURSORS, value=VALUES, indent=st.sampled_from([None, 0, 2]), type_=TYPES)
def test_wrapped_json_comes_back_as_the_same_value(cursor: str, value: object, indent: int | None, type_: str) -> None:
    """Published with any white space, told in one line."""
    text = json.dumps(value, indent=indent, ensure_ascii=False).replace("\n", "\r\n")
    (event,) = parse(wrapped_frame(cursor, "a", type_, text.encode(), is_text=False), [])
    assert event.data is not None
    assert json.loads(event.data) == {"channel": "a", "event": type_, "data": value}


@given(cursor=CURSORS, channels=st.lists(TEXTS, max_size=4), missed=st.none() | st.integers(0))
def test_the_gateways_own_blocks_are_one_event_each(cursor: str, channels: list[str], missed: int | None) -> None:
    """Whatever the channels are called (I7, X7)."""
    stream = open_frame(cursor, channels, Replay.GAP, 1) + gap_frame(cursor, GapReason.WINDOW, channels, missed)
    first, second = parse(stream, [])
    assert (first.type, second.type) == ("gateway.open", "gateway.gap")
    assert json.loads(first.data or "") == {"channels": channels, "replay": "gap"}
    assert json.loads(second.data or "") == {"reason": "window", "channels": channels, "missed": missed}


@given(value=VALUES, event=TYPES, indent=st.sampled_from([None, 1]), ascii_only=st.booleans())
def test_an_envelope_gives_what_was_put_in(value: object, event: str, indent: int | None, ascii_only: bool) -> None:
    """Strings by their characters, anything else by its JSON text, however the envelope is spelled."""
    members = {"data": value, "event": "x" + event, "id": event, "other": value}
    payload = json.dumps(members, indent=indent, ensure_ascii=ascii_only).encode()
    publication = decode(payload, Format.JSON, len(payload))
    assert publication.is_text is isinstance(value, str)
    assert (publication.type, publication.id) == ("x" + event, event)
    assert (publication.data.decode() if publication.is_text else json.loads(publication.data)) == value


@given(
    pairs=st.lists(st.tuples(st.sampled_from(["data", "a", "", "é"]), VALUES), min_size=1, max_size=6),
    colon=st.sampled_from([":", " : ", ": "]),
    comma=st.sampled_from([",", ", ", "\n,"]),
)
def test_an_envelope_is_taken_just_when_no_key_comes_twice(
    pairs: list[tuple[str, object]], colon: str, comma: str
) -> None:
    """Whatever the spacing; and it needs its data."""
    payload = "{" + comma.join(json.dumps(key) + colon + json.dumps(value) for key, value in pairs) + "}"
    keys = [key for key, _ in pairs]
    try:
        decode(payload.encode(), Format.JSON, len(payload))
    except MessageError:
        assert len(set(keys)) < len(keys) or "data" not in keys
    else:
        assert len(set(keys)) == len(keys)


@given(payload=st.binary() | TEXTS.map(str.encode), format_=st.sampled_from(Format))
def test_a_payload_is_decoded_or_refused(payload: bytes, format_: Format) -> None:
    """Never anything else, whatever the bytes (I9)."""
    try:
        publication = decode(payload, format_, 1 << 20)
    except MessageError:
        return
    publication.data.decode()


@given(blocks=st.lists(st.binary(min_size=1), max_size=4))
def test_chunks_hold_what_was_put_in(blocks: list[bytes]) -> None:
    """Lengths are in hexadecimal, each chunk ends in CRLF."""
    body = b"".join(map(chunk, blocks))
    for block in blocks:
        size, _, rest = body.partition(b"\r\n")
        assert rest[: int(size, 16)] == block
        assert rest[len(block) :].startswith(b"\r\n")
        body = rest[len(block) + 2 :]
    assert not body
