"""An SSE client that hides nothing: a raw socket, strict HTTP, and every block as it came.

It reads only while a test waits for something, so a client that is not waited for is a client
that has stopped reading. Anything a server must not send (a chunk without its end, a CR in a
block, a block without an event, an id
that does not ascend) fails the test at once as `ProtocolError`.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from tests.support.eventsource import EventSourceParser

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

Address = tuple[str, int] | str
"""(host, port), or the path of a Unix socket."""

T = TypeVar("T")

DEADLINE_S = 30.0
"""How long a test waits for what must come: at once, but for a machine that stands still for a while."""

_MAX_READ = 65_536

# Blocks that may stand where the stream already was: they tell its position and move nothing.
_STANDING = {"gateway.heartbeat", "gateway.close"}


class ProtocolError(AssertionError):
    """The server sent what the protocol does not allow."""


@dataclass(frozen=True, slots=True)
class Block:
    """One block of the stream, as the reference parser dispatched it.

    Attributes:
        type: Event type; ``message`` if the block names none.
        data: Data, lines joined with LF.
        id: The ``id:`` in this very block, or None.
        retry: The ``retry:`` in this very block, in milliseconds, or None.
        raw: The block's bytes without its blank line.
    """

    type: str
    data: str
    id: str | None
    retry: int | None
    raw: bytes

    @property
    def own(self) -> bool:
        """Whether the block is the gateway's own and not an event."""
        return self.type.startswith("gateway.")

    def json(self) -> Any:
        """Parse the data as JSON."""
        return json.loads(self.data)


class Headers:
    """Header fields in the order they came; names compare case-insensitively."""

    def __init__(self, fields: Sequence[tuple[str, str]]) -> None:
        self.fields = tuple(fields)

    def all(self, name: str) -> list[str]:
        """Return every value of a field."""
        return [value for field, value in self.fields if field.lower() == name.lower()]

    def get(self, name: str) -> str | None:
        """Return the value of a field that comes at most once."""
        values = self.all(name)
        if len(values) > 1:
            raise ProtocolError(f"{name} came {len(values)} times")
        return values[0] if values else None

    def names(self) -> set[str]:
        """Return all names in lower case."""
        return {field.lower() for field, _ in self.fields}


class _Identity:
    """A body that ends with the connection, or after `length` bytes."""

    def __init__(self, length: int | None) -> None:
        self.ended = length == 0
        self._left = length

    def feed(self, data: bytes) -> bytes:
        if self._left is None:
            return data
        if len(data) > self._left:
            raise ProtocolError(f"{len(data) - self._left} bytes after the body")
        self._left -= len(data)
        self.ended = self._left == 0
        return data

    def end_of_file(self) -> None:
        self.ended = self.ended or self._left is None


class _Chunked:
    """A chunked body (RFC 9112, section 7.1): no extensions, no trailers."""

    _SIZE = re.compile(rb"[0-9A-Fa-f]{1,8}")

    def __init__(self) -> None:
        self.ended = False
        self._buffer = b""

    def feed(self, data: bytes) -> bytes:
        self._buffer += data
        out: list[bytes] = []
        while not self.ended and (chunk := self._next()) is not None:
            out.append(chunk)
        if self.ended and self._buffer:
            raise ProtocolError(f"bytes after the last chunk: {self._buffer[:40]!r}")
        return b"".join(out)

    def _next(self) -> bytes | None:
        line, separator, rest = self._buffer.partition(b"\r\n")
        if not separator:
            if len(line) > 10:
                raise ProtocolError(f"not a chunk: {line[:40]!r}")
            return None
        if not self._SIZE.fullmatch(line):
            raise ProtocolError(f"not a chunk's size: {line[:40]!r}")
        size = int(line, 16)
        if len(rest) < size + 2:
            return None
        if rest[size : size + 2] != b"\r\n":
            raise ProtocolError("a chunk is longer than it says")
        self._buffer = rest[size + 2 :]
        self.ended = size == 0
        return rest[:size]

    def end_of_file(self) -> None:
        """Leave `ended` as it is: without its last chunk the body has been cut."""


class Stream:
    """One request and what comes back, read only while somebody waits.

    Args:
        address: Where to connect.
        target: Request target, as it goes onto the wire.
        headers: Request header fields.
        method: Request method.
        version: HTTP version, ``1.1`` or ``1.0``.
        receive_buffer: SO_RCVBUF in bytes, for a client that stops reading soon.
        raw: Bytes to send instead of a request.
    """

    def __init__(
        self,
        address: Address,
        target: str,
        *,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        method: str = "GET",
        version: str = "1.1",
        receive_buffer: int | None = None,
        raw: bytes | None = None,
    ) -> None:
        self.method = method
        self.target = target
        self.status = 0
        self.reason = ""
        self.headers = Headers(())
        self.blocks: list[Block] = []
        self.body = b""
        self.eof = False
        self.was_reset = False
        self._head = b""
        self._decoder: _Identity | _Chunked | None = None
        self._rest = b""
        self._parser = EventSourceParser()
        self._epoch = ""
        self._offsets: dict[str, int] = {}
        self._socket = _connect(address, receive_buffer)
        try:
            self.send(_request(method, target, version, headers) if raw is None else raw)
        except OSError:
            self.close()
            raise

    # -- what has come

    @property
    def ended(self) -> bool:
        """Whether the body is complete: its last chunk or its last byte has come."""
        return self._decoder is not None and self._decoder.ended

    @property
    def events(self) -> list[Block]:
        """The blocks that are events."""
        return [block for block in self.blocks if not block.own]

    @property
    def data(self) -> list[str]:
        """The data of every event."""
        return [block.data for block in self.events]

    def of_type(self, event_type: str) -> list[Block]:
        """Return the blocks of a type."""
        return [block for block in self.blocks if block.type == event_type]

    @property
    def gaps(self) -> list[Block]:
        """The gap blocks."""
        return self.of_type("gateway.gap")

    @property
    def last_id(self) -> str | None:
        """What an EventSource would send as Last-Event-ID now."""
        ids = [block.id for block in self.blocks if block.id is not None]
        return ids[-1] if ids else None

    # -- waiting

    def wait_for(self, predicate: Callable[[Stream], T | None], *, timeout_s: float = DEADLINE_S, what: str = "") -> T:
        """Read until `predicate` of this stream is true, and return what it said."""
        deadline = time.monotonic() + timeout_s
        while not (answer := predicate(self)):
            if self.eof:
                raise AssertionError(f"the connection ended before {what or 'what was waited for'}: {self.describe()}")
            if not self._read_until(deadline):
                raise AssertionError(f"no {what or 'such thing'} within {timeout_s} s: {self.describe()}")
        return answer

    def wait_head(self, *, timeout_s: float = DEADLINE_S) -> Stream:
        """Read until the header section is complete."""
        self.wait_for(lambda s: s.status, timeout_s=timeout_s, what="header section")
        return self

    def wait_open(self, *, timeout_s: float = DEADLINE_S) -> Block:
        """Read until the first block, which must be ``gateway.open``, and return it."""
        self.wait_for(lambda s: s.blocks, timeout_s=timeout_s, what="open block")
        first = self.blocks[0]
        assert first.type == "gateway.open", f"the first block is {first}"
        return first

    def wait_events(self, count: int, *, timeout_s: float = DEADLINE_S) -> list[Block]:
        """Read until `count` events have come, and return all."""
        self.wait_for(lambda s: len(s.events) >= count, timeout_s=timeout_s, what=f"{count} events")
        return self.events

    def wait_data(self, data: str, *, timeout_s: float = DEADLINE_S) -> Block:
        """Read until an event with this data has come."""
        return self.wait_for(
            lambda s: next((block for block in s.blocks if not block.own and block.data == data), None),
            timeout_s=timeout_s,
            what=f"event {data[:60]!r}",
        )

    def wait_type(self, event_type: str, *, count: int = 1, timeout_s: float = DEADLINE_S) -> Block:
        """Read until `count` blocks of a type have come, and return the newest."""
        self.wait_for(lambda s: len(s.of_type(event_type)) >= count, timeout_s=timeout_s, what=event_type)
        return self.of_type(event_type)[-1]

    def wait_next(self, event_type: str, *, timeout_s: float = DEADLINE_S) -> Block:
        """Read until a block of a type comes that has not been read yet."""
        return self.wait_type(event_type, count=len(self.of_type(event_type)) + 1, timeout_s=timeout_s)

    def wait_end(self, *, timeout_s: float = DEADLINE_S) -> Stream:
        """Read until the connection ends, well or badly."""
        self.wait_for(lambda s: s.eof, timeout_s=timeout_s, what="end of the connection")
        return self

    def read_available(self) -> int:
        """Read what is there now without waiting; return how many bytes."""
        before = len(self._head) + len(self.body)
        while not self.eof and self._read_until(time.monotonic()):
            pass
        return len(self._head) + len(self.body) - before

    def read_once(self) -> None:
        """Read what is there now, as much as one call gives."""
        self._read_until(time.monotonic())

    def describe(self) -> str:
        """Tell what has come, for a failure's message."""
        tail = [f"{block.type}({block.id}) {block.data[:60]!r}" for block in self.blocks[-6:]]
        how = "reset" if self.was_reset else "ended" if self.ended else "EOF" if self.eof else "open"
        return f"{self.status} {how}, {len(self.blocks)} blocks, the last {tail}, then {self._rest[:120]!r}"

    # -- acting

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._socket.settimeout(DEADLINE_S)
        self._socket.sendall(data)

    def half_close(self) -> None:
        """Send FIN and keep the other direction."""
        self._socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with RST."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """Close. Idempotent."""
        self._socket.close()

    # -- reading

    def _read_until(self, deadline: float) -> bool:
        """Read once; False if nothing came by the deadline."""
        self._socket.settimeout(max(0.0, deadline - time.monotonic()))
        try:
            data = self._socket.recv(_MAX_READ)
        except (TimeoutError, BlockingIOError):
            return False
        except ConnectionResetError:
            self.eof = self.was_reset = True
            return True
        if data:
            self._feed(data)
        else:
            self._end_of_file()
        return True

    def _end_of_file(self) -> None:
        self.eof = True
        if self._decoder is not None:
            self._decoder.end_of_file()

    def _feed(self, data: bytes) -> None:
        if self._decoder is None:
            self._head += data
            head, separator, data = self._head.partition(b"\r\n\r\n")
            if not separator:
                return
            self._take_head(head)
        assert self._decoder is not None
        if body := self._decoder.feed(data):
            self.body += body
            self._take_body(body)

    def _take_head(self, head: bytes) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        match = re.fullmatch(r"HTTP/1\.[01] ([1-5][0-9]{2}) ?(.*)", first)
        if match is None:
            raise ProtocolError(f"not a status line: {first!r}")
        self.status, self.reason = int(match[1]), match[2]
        self.headers = Headers([_field(line) for line in lines])
        self._decoder = self._choose_decoder()

    def _choose_decoder(self) -> _Identity | _Chunked:
        coding, length = self.headers.get("Transfer-Encoding"), self.headers.get("Content-Length")
        if self.method == "HEAD" or self.status in {204, 304}:
            return _Identity(0)
        if coding is not None:
            if coding.lower() != "chunked" or length is not None:
                raise ProtocolError(f"Transfer-Encoding {coding}, Content-Length {length}")
            return _Chunked()
        return _Identity(None if length is None else int(length))

    def _take_body(self, body: bytes) -> None:
        if self.status != 200 or not (self.headers.get("Content-Type") or "").startswith("text/event-stream"):
            return
        *blocks, self._rest = (self._rest + body).split(b"\n\n")
        self.blocks += [self._parse(raw) for raw in blocks]

    def _parse(self, raw: bytes) -> Block:
        """Parse one block, and hold its bytes to what the contract says of every block."""
        if b"\r" in raw or raw.startswith((b"\xef\xbb\xbf", b"\n")) or not raw:
            raise ProtocolError(f"not a block of LF lines: {raw[:200]!r}")
        fields = [_line(line) for line in raw.split(b"\n")]
        dispatched = self._parser.feed(raw + b"\n\n")
        if len(dispatched) != 1:
            raise ProtocolError(f"{len(dispatched)} events in one block: {raw[:200]!r}")
        (event,) = dispatched
        assert event.data is not None
        identifier, retry = _single(fields, "id"), _single(fields, "retry")
        if identifier is not None and event.last_event_id != identifier:
            raise ProtocolError(f"an EventSource would not keep the id of {raw[:200]!r}")
        self._check_position(event.type, identifier)
        return Block(event.type, event.data, identifier, None if retry is None else int(retry), raw)

    def _check_position(self, event_type: str, identifier: str | None) -> None:
        """Hold the ids of a stream to ascending, within epochs that do not come back."""
        if identifier is None:
            if event_type != "gateway.unavailable":
                raise ProtocolError(f"{event_type} without an id")
            return
        epoch, offset = position(identifier)
        newest, may_stay = self._offsets.get(epoch), event_type in _STANDING
        if newest is not None and (epoch != self._epoch or offset < newest or (offset == newest and not may_stay)):
            raise ProtocolError(f"{event_type} at {identifier} behind {self._epoch} {newest}")
        self._epoch = epoch
        self._offsets[epoch] = offset


def _connect(address: Address, receive_buffer: int | None) -> socket.socket:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(DEADLINE_S)
        connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection


def _request(method: str, target: str, version: str, headers: Mapping[str, str] | Iterable[tuple[str, str]]) -> bytes:
    fields = list(headers.items()) if hasattr(headers, "items") else list(headers)
    names = {name.lower() for name, _ in fields}
    if "host" not in names:
        fields.insert(0, ("Host", "gateway.test"))
    if "accept" not in names:
        fields.append(("Accept", "text/event-stream"))
    lines = [f"{method} {target} HTTP/{version}", *(f"{name}: {value}" for name, value in fields)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")


def _field(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
        raise ProtocolError(f"not a header field: {line!r}")
    return name, value.strip(" \t")


def _line(line: bytes) -> tuple[str, str]:
    name, _, value = line.decode("utf-8").partition(":")
    if name not in {"id", "event", "retry", "data"}:
        raise ProtocolError(f"not a field of ours: {line[:80]!r}")
    return name, value.removeprefix(" ")


def _single(fields: Sequence[tuple[str, str]], name: str) -> str | None:
    values = [value for field, value in fields if field == name]
    if len(values) > 1:
        raise ProtocolError(f"{len(values)} {name} lines in one block")
    return values[0] if values else None


def position(cursor: str) -> tuple[str, int]:
    """Split a cursor into its epoch and its offset."""
    match = re.fullmatch(r"([0-9a-z]+)-([0-9]+)-([0-9a-z]+)", cursor)
    if match is None or len(cursor) > 48:
        raise ProtocolError(f"not a cursor: {cursor!r}")
    return match[1], int(match[2])
