"""From a message's payload to a publication; the only code that knows the JSON envelope.

Rules:
    - A payload that is refused harms only itself (I9): `decode` returns or raises `MessageError`.
    - The outcome depends on nothing but the arguments. All nodes read the same log, and an event
      that one node delivers and another refuses would be a silent hole for a client that moves
      between them. Hence the fixed bound on nesting, well below the parser's own, which varies
      with the depth of the caller's stack.
    - Data is byte-identical to what was published: a string's characters, anything else's JSON text.

Source: RFC 8259; msgspec checks the whole text strictly, also what it hands over as `Raw`.
"""

from __future__ import annotations

import re
from itertools import accumulate
from typing import TYPE_CHECKING

import msgspec

from sse_gateway.errors import MessageError
from sse_gateway.events import Publication
from sse_gateway.reasons import Format, RejectReason

if TYPE_CHECKING:
    from collections.abc import Mapping

RESERVED_TYPE = "gateway."
"""What the gateway's own event types begin with."""

MAX_FIELD_BYTES = 128
"""UTF-8 bytes of an event type or id; a longer one is ill-formed."""

MAX_NESTING = 512
"""Levels of arrays and objects in an envelope. msgspec ends at 1,000 less the Python frames above it."""

_CONTROLS = re.compile("[\\x00-\\x1f\\x7f-\\x9f]")

_envelope = msgspec.json.Decoder(dict[str, msgspec.Raw])
_string = msgspec.json.Decoder(str)
_number = msgspec.json.Decoder(float)

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"')
_KEY = re.compile(rb'[ \t\r\n]*"(?:[^"\\]|\\.)*+"[ \t\r\n]*:[ \t\r\n]*')
_NEXT = re.compile(rb"[ \t\r\n]*[,}]")

_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_LEVELS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # +1 and -1 as signed bytes


def decode(payload: bytes, format_: Format, max_bytes: int) -> Publication:
    """Decode one payload.

    Args:
        payload: As published.
        format_: How its rule reads payloads.
        max_bytes: The longest payload taken.

    Raises:
        MessageError: With the reason for which the payload is refused.
    """
    if len(payload) > max_bytes:
        raise MessageError(RejectReason.SIZE, f"{len(payload)} bytes")
    try:
        payload.decode()
    except UnicodeDecodeError as error:
        raise MessageError(RejectReason.ENCODING, f"not UTF-8 at byte {error.start}") from None
    if format_ is Format.TEXT:
        return Publication(payload)
    try:
        return _open(payload)
    except MessageError:
        raise
    except msgspec.DecodeError as error:
        raise MessageError(RejectReason.ENVELOPE, str(error)) from None
    except Exception as error:  # one message must not end every node that reads it (I9)
        raise MessageError(RejectReason.INTERNAL, repr(error)) from error


def _open(payload: bytes) -> Publication:
    """Open the envelope; a library's exceptions pass."""
    envelope = _envelope.decode(payload)
    if payload.count(b"[") + payload.count(b"{") > MAX_NESTING and _nesting(payload) > MAX_NESTING:
        raise MessageError(RejectReason.INTERNAL, f"nested deeper than {MAX_NESTING} levels")
    if "data" not in envelope:
        raise MessageError(RejectReason.ENVELOPE, "no data")
    if _has_room(payload, envelope) and _has_duplicates(payload, envelope):
        raise MessageError(RejectReason.ENVELOPE, "duplicate key")
    data = bytes(envelope["data"])
    is_text = data.startswith(b'"')
    return Publication(
        _characters(data) if is_text else data,
        _event_type(envelope["event"]) if "event" in envelope else "message",
        is_text,
        _field(envelope["id"]) if "id" in envelope else None,
        _number.decode(envelope["ts"]) if "ts" in envelope else None,
    )


def _characters(text: bytes) -> bytes:
    """What a JSON string says, as UTF-8."""
    return _string.decode(text).encode() if b"\\" in text else text[1:-1]


def _event_type(raw: msgspec.Raw) -> str:
    """An event type that publishers may use."""
    event_type = _field(raw)
    if event_type.startswith(RESERVED_TYPE):
        raise MessageError(RejectReason.TYPE, "reserved event type")
    return event_type


def _field(raw: msgspec.Raw) -> str:
    """An event type or id: 1 to 128 bytes without a control character (I7)."""
    value = _string.decode(raw)
    if not 0 < len(value.encode()) <= MAX_FIELD_BYTES or _CONTROLS.search(value):
        raise MessageError(RejectReason.TYPE, "ill-formed event type or id")
    return value


def _has_room(payload: bytes, envelope: Mapping[str, msgspec.Raw]) -> bool:
    """Whether the payload is long enough to hold a key twice; spares most of them the exact answer.

    A member takes its key and value, two quotes, a colon and a comma; a second one of the shortest
    key with a value of one byte would need five bytes more than that key has. Spaces and escapes
    only lengthen the payload, so that little text leaves no room.
    """
    spare = len(payload) - 1 - 4 * len(envelope)
    for key, raw in envelope.items():
        spare -= (len(key) if key.isascii() else len(key.encode())) + len(memoryview(raw))
    return spare >= 5 + min(map(len, envelope))


def _has_duplicates(payload: bytes, envelope: Mapping[str, msgspec.Raw]) -> bool:
    """Whether the payload, valid as JSON, names a key twice.

    Walks payload and envelope side by side. The envelope has each key once, in order of its first
    appearance, with its last value: with a duplicate, values disagree or text is left over.
    """
    at = payload.index(b"{") + 1
    for raw in envelope.values():
        key = _KEY.match(payload, at)
        end = key.end() + len(memoryview(raw)) if key else at
        following = _NEXT.match(payload, end)
        if not key or not following or payload[key.end() : end] != bytes(raw):
            return True
        at = following.end()
    return payload[at - 1] != ord("}")


def _nesting(payload: bytes) -> int:
    """Levels of arrays and objects in a JSON text; linear in its length."""
    levels = _STRING.sub(b"", payload).translate(_LEVELS, _NOT_BRACKETS)
    return max(accumulate(memoryview(levels).cast("b")))
