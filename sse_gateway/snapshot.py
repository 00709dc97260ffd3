"""What one log hands over to another: the form of its blocks, and putting them together again.

A snapshot is a row of blocks, each a letter and a body in MessagePack:

    H   one `Head`: what the log is at the cut
    R   hashes of the ring, in order, from `Head.first` on, 8 bytes each (not MessagePack)
    W   a list of `Piece`: channels, each with some of its events; the first of a channel says the rest
    E   the end: a keyed hash over the token and all blocks before it

Rules:
    1. Positions are the sender's. Whoever takes them in shifts them to its own (`Snapshot.shift`).
    2. With a `have` the snapshot is a *delta*: what lies after that cursor, and nothing before.
    3. Nothing is taken in before the end has proved the whole (I10).
"""

from __future__ import annotations

import hashlib
import hmac
import sys
from array import array
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from sse_gateway.errors import SnapshotError
from sse_gateway.reasons import GapReason  # noqa: TC001 - msgspec reads it
from sse_gateway.window import Event

MIN_SNAPSHOT = 1 << 30
"""Bytes of a snapshot that are always taken: a peer's windows may be larger than ours."""

HEAD, RING, WINDOWS, END = b"H", b"R", b"W", b"E"

T = TypeVar("T")


class Head(msgspec.Struct, array_like=True, frozen=True):
    """The log at the cut.

    Attributes:
        have: Cursor after which the delta begins; empty if the snapshot is whole.
        begin: Position of that cursor, -1 if the snapshot is whole.
        head: Position of the newest entry.
        first: Position of the first hash.
        epochs: Name, position and reason of each, oldest first.
        claims: Epochs claimed, and neither vetoed nor confirmed yet.
        marks: Per rule, the highest loss of forgotten channels.
        abandoned: Per rule, where such losses lie.
        byte_order: Of the hashes: the sender's own, as in `sys.byteorder`.
        beside: Another log ran beside when the newest epoch began, or since.
    """

    have: str
    begin: int
    head: int
    first: int
    epochs: list[tuple[str, int, GapReason]]
    claims: list[str]
    marks: list[int]
    abandoned: list[list[int]]
    byte_order: str
    beside: bool = False


class Piece(msgspec.Struct, array_like=True, frozen=True):
    """A channel at the cut, or more of its events.

    Attributes:
        name: As clients know it.
        rule: Index of its rule.
        unused_s: Seconds since it was last used.
        newest_loss: Position of the newest lost event, -1 for none.
        forgotten: Up to here the number of lost events is unknown, -1 for none.
        lost: Lost positions that are remembered.
        keys: Idempotency keys, oldest first.
        events: Position, age in seconds, type, whether the data is text, frame, raw data.
    """

    name: str
    rule: int
    unused_s: float
    newest_loss: int
    forgotten: int
    lost: list[int]
    keys: list[str]
    events: list[tuple[int, float, str, bool, bytes, bytes | None]]


@dataclass(slots=True)
class Held:
    """A channel as it is taken in, at positions of the log that takes it.

    Attributes:
        name: As clients know it.
        rule: Index of its rule.
        used_at: Seconds.
        newest_loss: As in `Piece`.
        forgotten: As in `Piece`.
        lost: As in `Piece`.
        keys: As in `Piece`.
        events: Events, without a window yet.
    """

    name: str
    rule: int
    used_at: float
    newest_loss: int
    forgotten: int
    lost: list[int]
    keys: list[str]
    events: list[Event] = field(default_factory=list)


class Seal:
    """The running hash over a snapshot's blocks, bound to one transfer."""

    def __init__(self, key: bytes, token: str) -> None:
        """Begin.

        Args:
            key: The log's key, at most 64 bytes.
            token: Of the JOIN that the snapshot answers.
        """
        self._hash = hashlib.blake2b(token.encode(), digest_size=32, key=key, person=b"snapshot")

    def add(self, block: bytes) -> None:
        """Take in the next block."""
        self._hash.update(b"%d:" % len(block))
        self._hash.update(block)

    def end(self) -> bytes:
        """The last block."""
        return END + self._hash.digest()


class Snapshot:
    """A snapshot that is being received.

    Attributes:
        head: The log at the cut, once it has come.
        hashes: Of the ring, in parts.
        is_complete: The end has come, and proved the whole.
        received_bytes: So far.
    """

    def __init__(self, key: bytes, token: str, rules: int, cut_at: float, *, max_bytes: int) -> None:
        """Start empty.

        Args:
            key: The log's key.
            token: Of our JOIN.
            rules: Number of rules.
            cut_at: When our JOIN came back, which is when the cut was made: ages count from here, seconds.
            max_bytes: What is taken at most.
        """
        self.head: Head | None = None
        self.hashes: list[array[int]] = []
        self.is_complete = False
        self.received_bytes = 0
        self._seal = Seal(key, token)
        self._rules = rules
        self._cut_at = cut_at
        self._max_bytes = max_bytes
        self._held: dict[str, Held] = {}

    def add(self, block: bytes) -> None:
        """Take the next block.

        Raises:
            SnapshotError: It is damaged, forged, or too large.
        """
        self.received_bytes += len(block)
        if self.received_bytes > self._max_bytes:
            raise SnapshotError(f"the snapshot is larger than {self._max_bytes} bytes")
        kind, body = block[:1], memoryview(block)[1:]
        if self.is_complete or (self.head is None) is not (kind == HEAD):
            raise SnapshotError("a block where none belongs")
        if kind == HEAD:
            self.head = self._checked(_decode(body, Head))
        elif kind == RING:
            self._add_hashes(body)
        elif kind == WINDOWS:
            for piece in _decode(body, list[Piece]):
                self._add_piece(piece)
        else:
            self._finish(block)
            return
        self._seal.add(block)

    def held(self, shift: int) -> list[Held]:
        """The channels, at positions shifted to ours; to be called once."""
        assert self.head is not None  # noqa: S101 - complete
        begin = self.head.begin
        for held in self._held.values():
            held.newest_loss = _shifted(held.newest_loss, begin, shift)
            held.forgotten = _shifted(held.forgotten, begin, shift)
            held.lost = [position + shift for position in held.lost if position > begin]
            for event in held.events:
                event.position += shift
        return list(self._held.values())

    def marks(self, shift: int) -> list[int]:
        """Per rule the highest loss of forgotten channels, shifted likewise."""
        assert self.head is not None  # noqa: S101 - complete
        return [_shifted(mark, self.head.begin, shift) for mark in self.head.marks]

    def abandoned(self, shift: int) -> list[list[int]]:
        """Per rule where such losses lie, shifted likewise."""
        assert self.head is not None  # noqa: S101 - complete
        begin = self.head.begin
        return [[position + shift for position in found if position > begin] for found in self.head.abandoned]

    def _checked(self, head: Head) -> Head:
        if len(head.marks) != self._rules or len(head.abandoned) != self._rules or not -1 <= head.begin < head.first:
            raise SnapshotError("a head of other rules")
        return head

    def _add_hashes(self, body: memoryview) -> None:
        assert self.head is not None  # noqa: S101 - checked by the caller
        hashes = array("Q")
        if not body or len(body) % hashes.itemsize:
            raise SnapshotError("hashes that are not whole")
        hashes.frombytes(body)
        if self.head.byte_order != sys.byteorder:
            hashes.byteswap()
        self.hashes.append(hashes)

    def _add_piece(self, piece: Piece) -> None:
        if not 0 <= piece.rule < self._rules:
            raise SnapshotError("a rule out of range")
        held = self._held.get(piece.name)
        if held is None:
            held = self._held[piece.name] = Held(
                piece.name,
                piece.rule,
                self._cut_at - piece.unused_s,
                piece.newest_loss,
                piece.forgotten,
                piece.lost,
                piece.keys,
            )
        held.events.extend(
            Event(position, None, frame, self._cut_at - age_s, type=type_, is_text=is_text, raw=raw)
            for position, age_s, type_, is_text, frame, raw in piece.events
        )

    def _finish(self, block: bytes) -> None:
        assert self.head is not None  # noqa: S101 - checked by the caller
        if not hmac.compare_digest(block, self._seal.end()):
            raise SnapshotError("the end does not prove the blocks before it")
        if sum(map(len, self.hashes)) != self.head.head + 1 - self.head.first:
            raise SnapshotError("hashes are missing")
        self.is_complete = True


def _shifted(position: int, begin: int, shift: int) -> int:
    return position + shift if position > begin else -1


def _decode(body: memoryview, shape: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(body, type=shape)
    # msgspec lets through what the text is not UTF-8 for, and what lies too deep in a part that it skips.
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SnapshotError(f"a damaged block: {error}") from None
