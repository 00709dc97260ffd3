"""From a response's bytes to the blocks of its stream, strict at every byte."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.eventsource import EventSourceParser
from tests.support.world import ensure

if TYPE_CHECKING:
    from collections.abc import Iterable

_FIELDS = frozenset({b"id", b"event", b"retry", b"data"})


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a stream, as the reference parser dispatched it."""

    type: str
    data: str
    id: str
    size: int


class Unframer:
    """Takes HTTP's framing and the stream's blocks apart; strict, and at every byte.

    Attributes:
        ended: The last chunk has come.
    """

    def __init__(self, head: bytes, *, chunked: bool) -> None:
        self.ended = False
        self._head = head
        self._chunked = chunked
        self._buffer = b""

    def feed(self, data: bytes) -> list[Block]:
        """Take the next bytes; return the blocks they complete."""
        if self._head:
            ensure(self._head.startswith(data[: len(self._head)]), "the head was cut or repeated")
            taken = min(len(self._head), len(data))
            self._head, data = self._head[taken:], data[taken:]
        ensure(not (self.ended and data), "bytes after the last chunk:", data[:40])
        self._buffer += data
        blocks: list[Block] = []
        while (raw := self._next()) is not None:
            *whole, rest = raw.split(b"\n\n")
            ensure(not rest, "a chunk that ends within a block:", raw[-60:])
            blocks += [_block(block) for block in whole]
        return blocks

    def _next(self) -> bytes | None:
        if not self._chunked:
            whole, separator, rest = self._buffer.partition(b"\n\n")
            if separator:
                self._buffer = rest
            return whole + separator if separator else None
        line, separator, rest = self._buffer.partition(b"\r\n")
        ensure(re.fullmatch(rb"[0-9a-f]{0,8}\r?", line), "not a chunk's size:", line[:40])
        if not separator or len(rest) < int(line, 16) + 2:
            return None
        size = int(line, 16)
        ensure(rest[size : size + 2] == b"\r\n", "a chunk longer than it says")
        self._buffer = rest[size + 2 :]
        if size == 0:
            self.ended = True
            ensure(not self._buffer, "bytes after the last chunk:", self._buffer[:40])
            return None
        return rest[:size]


def _block(raw: bytes) -> Block:
    fields = [line.partition(b":")[0] for line in raw.split(b"\n")]
    ensure(b"\r" not in raw and raw and not raw.startswith(b"\n"), "not a block of LF lines:", raw[:80])
    ensure(_FIELDS.issuperset(fields), "fields that are not ours:", raw[:80])
    ensure(fields.count(b"id") == 1 and b"data" in fields, "a block without id or data:", raw[:80])
    dispatched = EventSourceParser().feed(raw + b"\n\n")
    ensure(len(dispatched) == 1 and dispatched[0].data is not None, "not one event:", raw[:80])
    event = dispatched[0]
    return Block(event.type, event.data or "", event.last_event_id, len(raw) + 2)


def count(blocks: Iterable[Block]) -> tuple[int, int, Counter[str]]:
    """Events, bytes, and gaps by reason among some blocks."""
    events = size = 0
    gaps: Counter[str] = Counter()
    for block in blocks:
        size += block.size
        events += not block.type.startswith("gateway.")
        if block.type == "gateway.gap":
            gaps[json.loads(block.data)["reason"]] += 1
    return events, size, gaps
