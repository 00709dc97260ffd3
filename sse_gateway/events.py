"""One type per stage of an event's way: Message → Publication → Event."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Publication:
    """A decoded message, without a position yet.

    Attributes:
        data: What clients get as data, UTF-8, byte for byte as published: the payload under
            `text`, the string or the JSON text of ``data`` under `json`.
        type: Event type; "message" is the default type of the standard.
        is_text: `data` is a string, not JSON text.
        id: Publisher's idempotency key, or None.
        ts: Publisher's clock, Unix seconds, or None.
    """

    data: bytes
    type: str = "message"
    is_text: bool = True
    id: str | None = None
    ts: float | None = None
