"""Log lines: a constant event name and fields, one line each, never in the way of the loop.

Rules:
    - A caller never waits for the place logs go to. Lines are formatted where they arise and
      put into a bounded queue; one thread writes. When nobody reads (a full pipe, a stuck
      journal) new lines are dropped and counted, and the count is told once there is room.
    - No value can end its line or start a field of its own (I7): controls, line separators and
      direction overrides are escaped in both formats.
    - The queue is bounded in lines and in bytes (I5).
    - One handler, at the root: libraries' records take the same way.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import select
import sys
import threading
import traceback
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO

from aiohttp.http_exceptions import HttpProcessingError

if TYPE_CHECKING:
    from collections.abc import Callable

    _Facts = dict[str, object]

MAX_RECORDS = 10_000
"""Lines that wait for the writer; beyond, new ones are dropped: the oldest tell how it began."""

MAX_SIZE = 8 * 1024 * 1024
"""Characters that wait for the writer; beyond, new lines are dropped."""

MAX_VALUE = 16 * 1024
"""Characters of one string value; of a longer one, both ends are kept."""

_MAX_WRITE = 64 * 1024
"""Characters of one write: as much as an empty pipe takes at once."""

_BARE = re.compile(r"[!#-<>-\[\]-~]+", re.ASCII)
"""A text value that needs no quotes: printable ASCII but space, quote, equals, backslash."""


def log_event(
    logger: logging.Logger, level: int, event: str, *, exc: BaseException | None = None, **fields: object
) -> None:
    """Log one event: a constant name, and facts as fields.

    Cheap when the level is off. Never blocks, never raises.

    Args:
        logger: The module's own, ``sse_gateway.<module>``.
        level: ``logging.INFO`` and so on.
        event: Constant name, ``noun.verb`` (``stream.closed``).
        exc: Its traceback becomes the field ``exception``.
        fields: Numbers, strings, booleans, None, or sequences of them. No payloads, tokens or
            query strings.
    """
    if logger.isEnabledFor(level):
        logger.log(level, event, extra={"fields": fields}, exc_info=exc)


def configure_logging(
    level: str, format_: str, stream: TextIO | None = None, *, fields: Mapping[str, object] | None = None
) -> LogHandle:
    """Send every log record of the process to one stream, and start the writer.

    Replaces the root logger's handlers.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        format_: ``json`` or ``text``.
        stream: Where lines go; the standard error by default. A stream with a descriptor is
            written past its Python buffer, whose lock could stop the interpreter's exit.
        fields: What every line of this process says besides.
    """
    encode = _encoder(format_, fields or {})
    lines = _Lines(_sink(stream or sys.stderr), encode)
    handler = _Handler(lines, encode)
    root = logging.getLogger()
    before = (root.level, tuple(root.handlers))
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    # Lines per request, with query strings: ours are written by the stream, at its end.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.server").addFilter(_is_no_request)
    return LogHandle(lines, handler, before)


def change_logging(level: str, format_: str) -> None:
    """Go on with another level and format, as after a reload; nothing happens where logging is not configured."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Handler):
            handler.encode = handler.lines.encode = _encoder(format_, {})
            logging.getLogger().setLevel(level.upper())


def dropped_records() -> int:
    """Count the lines dropped by the handler in force; 0 when logging is not configured."""
    return sum(handler.lines.dropped for handler in logging.getLogger().handlers if isinstance(handler, _Handler))


class LogHandle:
    """What `configure_logging` started."""

    def __init__(self, lines: _Lines, handler: _Handler, before: tuple[int, tuple[logging.Handler, ...]]) -> None:
        self._lines = lines
        self._handler = handler
        self._before = before

    @property
    def dropped(self) -> int:
        """Lines dropped since the start: nobody read, or the write failed."""
        return self._lines.dropped

    def close(self, timeout_s: float) -> bool:
        """Write what waits, then stop, and give the root logger back its former handlers.

        Idempotent. What cannot be written by the deadline is counted as dropped.

        Args:
            timeout_s: Longest wait, in seconds.

        Returns:
            True when everything was written.
        """
        root = logging.getLogger()
        if self._handler in root.handlers:
            root.handlers[:] = self._before[1]
            root.setLevel(self._before[0])
            logging.captureWarnings(capture=False)
        return self._lines.close(timeout_s)


class _Lines:
    """The bounded queue, and the thread that empties it."""

    def __init__(self, sink: Callable[[str], None], encode: Callable[[_Facts], str]) -> None:
        self.dropped = 0
        self._sink = sink
        self.encode = encode
        self._waiting: deque[str] = deque()
        self._size = 0  # characters waiting
        self._writing = 0  # lines handed to the sink, not yet written
        self._closing = False
        # Its lock is re-entrant: a finaliser may log while this very thread puts a line.
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._write, name="log-writer", daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        """Queue one line, or drop and count it; never waits for the sink."""
        with self._changed:
            if self._closing or len(self._waiting) >= MAX_RECORDS or self._size + len(line) > MAX_SIZE:
                self.dropped += 1
                return
            self._waiting.append(line)
            self._size += len(line)
            self._changed.notify()

    def drop(self) -> None:
        """Count a line that could not even be formatted."""
        with self._changed:
            self.dropped += 1

    def close(self, timeout_s: float) -> bool:
        """Let the writer finish, but not beyond the deadline."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        with self._changed:
            self.dropped += len(self._waiting) + self._writing
            self._waiting.clear()
            self._writing = 0
        return not self._thread.is_alive()

    def _write(self) -> None:
        told = 0
        while lines := self._take():
            if self.dropped > told:
                told = self.dropped
                lines.append(self._dropped_line(told))
            try:
                self._sink("".join(lines))
            except (OSError, ValueError):  # no space, no reader, closed: logging must not end us
                with self._changed:
                    self.dropped += self._writing

    def _take(self) -> list[str]:
        """Wait for lines; none when closing and all are taken."""
        with self._changed:
            self._writing = 0
            while not self._waiting and not self._closing:
                self._changed.wait()
            lines: list[str] = []
            size = 0
            while self._waiting and (not lines or size + len(self._waiting[0]) <= _MAX_WRITE):
                lines.append(self._waiting.popleft())
                size += len(lines[-1])
            self._size -= size
            self._writing = len(lines)
            return lines

    def _dropped_line(self, dropped: int) -> str:
        record = logging.LogRecord(__name__, logging.WARNING, "", 0, "logs.dropped", None, None)
        return self.encode(_facts(record) | {"event": "logs.dropped", "total": dropped})


class _Handler(logging.Handler):
    """The root handler. A subclass because `logging` knows no other way in."""

    def __init__(self, lines: _Lines, encode: Callable[[_Facts], str]) -> None:
        super().__init__()
        self.lines = lines
        self.encode = encode

    def emit(self, record: logging.LogRecord) -> None:
        """Format and queue; a record that cannot be formatted is counted, and harms nobody."""
        try:
            self.lines.put(self.encode(_facts(record)))
        except Exception:  # noqa: BLE001 - any `__str__` may run here; I4 over one log line
            self.lines.drop()


def _is_no_request(record: logging.LogRecord) -> bool:
    """Leave out what a library says of a request that it could not parse: it quotes it, with whatever token is in there."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def _facts(record: logging.LogRecord) -> _Facts:
    """Order a record's facts: ours have fields, a library's has its text as ``message``."""
    facts: _Facts = {
        "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "logger": record.name,
    }
    fields = getattr(record, "fields", None)
    if isinstance(fields, Mapping):
        facts["event"] = record.msg
        facts |= {str(name): value for name, value in fields.items() if name not in facts}
    else:
        facts |= {"event": "log.message", "message": record.getMessage()}
    if record.exc_info and record.exc_info[1] is not None:
        facts["exception"] = "".join(traceback.format_exception(record.exc_info[1]))
    if record.stack_info:
        facts["stack"] = record.stack_info
    return facts


def _encoder(format_: str, fields: Mapping[str, object]) -> Callable[[_Facts], str]:
    encode = _FORMATS[format_]
    return lambda facts: encode({**facts, **fields})


def _encode_json(facts: _Facts) -> str:
    text = json.dumps(_plain(facts), separators=(",", ":"))
    return text.replace("\x7f", "\\u007f") + "\n"


def _encode_text(facts: _Facts) -> str:
    head = [_word(facts.pop(name)) for name in ("ts", "level", "logger", "event")]
    return " ".join(head + [f"{_word(name)}={_word(value)}" for name, value in facts.items()]) + "\n"


def _word(value: object) -> str:
    """Write a value so that it is one word of a text line, and readable where it can be."""
    plain = _plain(value)
    if isinstance(plain, str) and _BARE.fullmatch(plain):
        return plain
    text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"))
    if not isinstance(plain, str) and " " in text:
        text = json.dumps(text, ensure_ascii=False)
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    return json.dumps(char)[1:-1] if char != "\x7f" else "\\u007f"


def _plain(value: object) -> object:
    """Reduce a value to what JSON has; whatever else, to its text."""
    match value:
        case None | bool() | int():
            return value
        case float():
            return round(value, 6) if math.isfinite(value) else str(value)
        case Mapping():
            return {_bounded(str(key)): _plain(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(item) for item in value]
        case _:
            return _bounded(str(value))


def _bounded(text: str) -> str:
    if len(text) <= MAX_VALUE:
        return text
    return f"{text[: MAX_VALUE // 2]} … {text[-MAX_VALUE // 2 :]}"


def _sink(stream: TextIO) -> Callable[[str], None]:
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError, AttributeError):
        return lambda text: _write_stream(stream, text)
    return lambda text: _write_descriptor(descriptor, text.encode("utf-8", "backslashreplace"))


def _write_stream(stream: TextIO, text: str) -> None:
    stream.write(text)
    stream.flush()


def _write_descriptor(descriptor: int, data: bytes) -> None:
    """Write all of it, also where someone made the descriptor non-blocking.

    Whole lines at a time, as many as a pipe takes in one piece: several processes share it, and what is longer
    could be torn by another's line. (A single line that is longer still can be, while nobody reads.)

    Source: write(2) and pipe(7), PIPE_BUF.
    """
    begin = 0
    while begin < len(data):
        end = data.rfind(b"\n", begin, begin + select.PIPE_BUF) + 1 or data.find(b"\n", begin) + 1 or len(data)
        _write_whole(descriptor, memoryview(data)[begin:end])
        begin = end


def _write_whole(descriptor: int, rest: memoryview) -> None:
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            poller = select.poll()
            poller.register(descriptor, select.POLLOUT)
            poller.poll()


_FORMATS: dict[str, Callable[[_Facts], str]] = {"json": _encode_json, "text": _encode_text}
