"""A reference parser for event streams, written from the standard's text alone.

Source: WHATWG HTML 9.2.5 (the grammar) and 9.2.6 (interpreting an event stream).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\n|\r")
_ASCII_DIGITS = re.compile(r"[0-9]+")


@dataclass(frozen=True, slots=True)
class Dispatched:
    """What a page gets: one dispatched event.

    Attributes:
        type: "message" unless the block named another.
        data: Its data lines, joined with LF; None for a block without data, which no page sees.
        last_event_id: The last event ID string at that moment.
    """

    type: str
    data: str | None
    last_event_id: str


class EventSourceParser:
    """Interprets a stream of bytes, cut anywhere, as an `EventSource` does.

    A new connection takes a new parser; only `last_event_id` goes with it, by hand. A block that
    no blank line has ended is never dispatched.

    Attributes:
        last_event_id: The last event ID string: what a reconnect would send.
        reconnection_time: Milliseconds from the last valid ``retry``, or None.
    """

    def __init__(self, *, last_event_id: str = "", report_empty: bool = False) -> None:
        """Start a connection.

        Args:
            last_event_id: From the connection before.
            report_empty: Also report blocks that have fields but no data.
        """
        self.last_event_id = last_event_id
        self.reconnection_time: int | None = None
        self._report_empty = report_empty
        self._pending = b""
        self._at_start = True
        self._after_cr = False
        self._id_buffer = last_event_id
        self._start_block()

    def feed(self, data: bytes) -> list[Dispatched]:
        """Take the next bytes; return what they make complete."""
        self._pending += data
        if not data or (self._at_start and not self._skip_mark()):
            return []
        if self._after_cr:
            self._pending = self._pending.removeprefix(b"\n")
            self._after_cr = False
        return [event for line in self._lines() if (event := self._take_line(line)) is not None]

    def _skip_mark(self) -> bool:
        """Skip one byte order mark; False while its bytes may still be on their way."""
        if len(self._pending) < len(_BYTE_ORDER_MARK) and _BYTE_ORDER_MARK.startswith(self._pending):
            return False
        self._pending = self._pending.removeprefix(_BYTE_ORDER_MARK)
        self._at_start = False
        return True

    def _lines(self) -> list[str]:
        """Take the complete lines; a CR ends one at once, though its LF may come later."""
        *lines, rest = _LINE_END.split(self._pending)
        self._after_cr = self._pending.endswith(b"\r")
        self._pending = rest
        return [line.decode(errors="replace") for line in lines]

    def _take_line(self, line: str) -> Dispatched | None:
        """Interpret one line, without its end."""
        if not line:
            return self._dispatch()
        if not line.startswith(":"):
            field, _, value = line.partition(":")
            self._take_field(field, value.removeprefix(" "))
        return None

    def _take_field(self, field: str, value: str) -> None:
        """Process one field."""
        self._has_fields = True
        if field == "event":
            self._type_buffer = value
        elif field == "data":
            self._data_buffer += value + "\n"
        elif field == "id":
            if "\0" not in value:
                self._id_buffer = value
        elif field == "retry" and _ASCII_DIGITS.fullmatch(value):
            self.reconnection_time = int(value)

    def _dispatch(self) -> Dispatched | None:
        """End a block; the ID buffer is the one thing that outlives it."""
        self.last_event_id = self._id_buffer
        data = self._data_buffer.removesuffix("\n") if self._data_buffer else None
        event = Dispatched(self._type_buffer or "message", data, self.last_event_id)
        reported = data is not None or (self._report_empty and self._has_fields)
        self._start_block()
        return event if reported else None

    def _start_block(self) -> None:
        """Empty the buffers of a block."""
        self._type_buffer = ""
        self._data_buffer = ""
        self._has_fields = False
