"""The bytes of the stream: events, the gateway's own blocks, HTTP chunks. The only encoder.

Rules:
    - Every block is complete and ends in a blank line; LF only, no byte order mark.
    - No value can end its line (I7): data is split at CR, LF and CRLF, one ``data:`` per line;
      everything else that is not of our own making passes through a JSON encoder, which escapes
      line ends, or is an event type that the decoder has checked.
    - Data is otherwise untouched: the standard ends a line at CR, LF and CRLF and nowhere else, so
      ``str.splitlines``, which knows eight more line ends, is not for it.
    - Every block but ``gateway.unavailable`` carries an ``id:``.

Source: WHATWG HTML 9.2.5 and 9.2.6; RFC 9112 section 7.1 for chunks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sse_gateway.events import Publication
    from sse_gateway.reasons import CloseReason, GapReason, Replay, Unavailable

DEFAULT_TYPE = "message"
"""The standard's own: sent as a block without ``event:``."""

LAST_CHUNK = b"0\r\n\r\n"
"""Ends a chunked response cleanly."""

_to_json = msgspec.json.Encoder().encode


def event_frame(cursor: str, publication: Publication) -> bytes:
    """Encode one event.

    Args:
        cursor: Its position, without line ends.
        publication: As decoded; its type has no control character.
    """
    head = f"id: {cursor}\n" if publication.type == DEFAULT_TYPE else f"id: {cursor}\nevent: {publication.type}\n"
    data = publication.data
    if b"\n" in data or b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\ndata: ")
    return b"%bdata: %b\n\n" % (head.encode(), data)


def frame_data(frame: bytes) -> bytes:
    """The data of an `event_frame`, its lines joined with LF: what a client makes of it."""
    start = frame.index(b"\n") + 1
    if frame.startswith(b"event: ", start):  # a type may itself hold ``data: ``
        start = frame.index(b"\n", start) + 1
    return frame[start + len(b"data: ") : -2].replace(b"\ndata: ", b"\n")


def wrapped_frame(cursor: str, channel: str, type_: str, data: bytes, *, is_text: bool) -> bytes:
    """Encode one event for a client that asked for its channel and type inside the data.

    Args:
        cursor: Its position, without line ends.
        channel: The client's name of its channel.
        type_: Event type.
        data: UTF-8.
        is_text: `data` is a string; else it is JSON text, and stays as it is but for its line
            ends, which can only be insignificant whitespace and become spaces.
    """
    value = _to_json(data.decode()) if is_text else data.replace(b"\r", b" ").replace(b"\n", b" ")
    body = _to_json({"channel": channel, "event": type_, "data": msgspec.Raw(value)})
    return b"id: %b\ndata: %b\n\n" % (cursor.encode(), body)


def open_frame(cursor: str, channels: Sequence[str], replay: Replay, retry_ms: int) -> bytes:
    """The first block of a stream: what it follows, where it resumes, when to come back."""
    body = _to_json({"channels": channels, "replay": replay})
    return b"event: gateway.open\nretry: %d\nid: %b\ndata: %b\n\n" % (retry_ms, cursor.encode(), body)


def heartbeat_frame(cursor: str, *, live: bool) -> bytes:
    """A sign of life on a silent stream; `live` is False while the source is away."""
    return b"event: gateway.heartbeat\nid: %b\ndata: %b\n\n" % (cursor.encode(), _to_json({"live": live}))


def gap_frame(cursor: str, reason: GapReason, channels: Sequence[str], missed: int | None) -> bytes:
    """Tell that events of `channels` are missing here: how many, or None where that is unknown."""
    body = _to_json({"reason": reason, "channels": channels, "missed": missed})
    return b"event: gateway.gap\nid: %b\ndata: %b\n\n" % (cursor.encode(), body)


def close_frame(cursor: str, reason: CloseReason, retry_ms: int) -> bytes:
    """The last block of a stream that the gateway ends."""
    body = _to_json({"reason": reason})
    return b"event: gateway.close\nretry: %d\nid: %b\ndata: %b\n\n" % (retry_ms, cursor.encode(), body)


def unavailable_frame(reason: Unavailable, retry_ms: int) -> bytes:
    """The only block of a response that cannot be a stream now; no ``id:``, so the client keeps its own."""
    return b"event: gateway.unavailable\nretry: %d\ndata: %b\n\n" % (retry_ms, _to_json({"reason": reason}))


def chunk(data: bytes) -> bytes:
    """One HTTP/1.1 chunk; nothing for nothing, as an empty chunk would end the response."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
