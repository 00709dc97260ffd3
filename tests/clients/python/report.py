"""What an adapter tells the test: one JSON object per line of standard output."""

from __future__ import annotations

import json
import sys
from urllib.parse import quote


def event(type_: str, data: str, cursor: str | None) -> None:
    """Tell that the client delivered an event."""
    _say({"kind": "event", "type": type_, "data": data, "id": cursor or ""})


def error(trouble: object) -> None:
    """Tell that the client spoke of trouble; it may go on by itself."""
    _say({"kind": "error", "text": _text(trouble)})


def end(why: object = "") -> None:
    """Tell that the client has given up, or is done: nothing will come any more."""
    _say({"kind": "end", "text": _text(why)})


def arguments() -> tuple[str, str]:
    """Return the URL to connect to and the cursor to resume from, "" for none."""
    url, cursor = sys.argv[1:3]
    return url, cursor


def headers(cursor: str) -> dict[str, str]:
    """Build the header that carries a cursor, for clients that leave it to their user."""
    return {"Last-Event-ID": cursor} if cursor else {}


def url_with_cursor(url: str, cursor: str) -> str:
    """Put the cursor into the query, for a client that offers no other way to begin with one."""
    return f"{url}?last_event_id={quote(cursor)}" if cursor else url


def _text(trouble: object) -> str:
    return f"{type(trouble).__name__}: {trouble}" if isinstance(trouble, BaseException) else str(trouble)


def _say(report: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(report) + "\n")
    sys.stdout.flush()
