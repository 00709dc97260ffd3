"""The form in which log and windows are kept in Redis: names of keys, and values that can be read again.

Keys begin with prefix, cluster and fingerprint; those of an epoch go on with its name:

    lease                   string      which node writes
    epochs                  sorted set  names of stored epochs, by the order in which their storing began
    EPOCH:state             string      one `State`: what of all the following is valid
    EPOCH:channels          hash        one `Row` for each channel
    EPOCH:ring:N            string      hashes of the offsets from 4,096 times N on, 8 bytes each, behind a seal
    EPOCH:window:CHANNEL    sorted set  one `Member` for each event, by its offset

Rules:
    1. A value is a version byte, a keyed hash over its key and all that follows, and a body. What does not
       verify, or is of another version, raises; nothing is guessed (I10).
    2. Events of a channel are a chain: each names the offset of the one stored before it, the row names
       the last one. So an event that is missing is noticed.
    3. Positions are not stored, but offsets within the epoch; -1 is none.
    4. Another meaning of a field, or another form, is another version.
"""

from __future__ import annotations

import hashlib
from typing import TypeVar

import msgspec

from sse_gateway.errors import StoreError
from sse_gateway.reasons import GapReason  # noqa: TC001 - msgspec reads it

VERSION = 1

BLOCK = 4096
"""Hashes in one key of the ring."""

SEAL_BYTES = 9
"""The version and the hash, in front of every body."""

HASH_BYTES = 8
"""Of one position of the log."""

T = TypeVar("T")


class State(msgspec.Struct, array_like=True, frozen=True):
    """An epoch as far as it is stored; written last, or with all the rest at once.

    Attributes:
        epoch: Its name.
        reason: Why the one before it ended.
        head: Newest offset stored: events up to here are stored, or lost and marked.
        check: The log's hash there.
        first: Oldest offset whose hash is stored.
        channels: Number of rows.
        gone: Per rule, the newest offset of channels that the writer has forgotten; those that appear may have
            lost all up to there.
        breaks: Name, reason and length of the epochs before this one, oldest first.
        writer: The node that wrote it.
        serial: Of its writes.
    """

    epoch: str
    reason: GapReason
    head: int
    check: int
    first: int
    channels: int
    gone: list[int]
    breaks: list[tuple[str, GapReason, int]]
    writer: str
    serial: int


class Row(msgspec.Struct, array_like=True):
    """A channel.

    Attributes:
        rule: Index of its rule.
        floor: Up to this offset everything of it may be lost, -1 for nothing.
        is_own: An event of this channel was lost there; else one of a channel that was forgotten.
        newest: Offset of the newest event stored.
    """

    rule: int
    floor: int
    is_own: bool
    newest: int


class Member(msgspec.Struct, array_like=True, frozen=True):
    """An event.

    Attributes:
        before: Offset of the event of its channel that was stored before.
        wall: When it came from Redis, Unix seconds.
        type: Event type.
        is_text: The data is a string, not JSON text.
        key: Idempotency key.
        frame: The encoded block.
        raw: The data as published, where the frame cannot give it back.
    """

    before: int
    wall: float
    type: str
    is_text: bool
    key: str | None
    frame: bytes
    raw: bytes | None


class Keys:
    """The names of all keys.

    Attributes:
        base: What all of them begin with.
        lease: Which node writes.
        epochs: Stored epochs.
    """

    def __init__(self, prefix: str, cluster: str, fingerprint: str) -> None:
        """Name them.

        Args:
            prefix: Of the configuration.
            cluster: Name of the log.
            fingerprint: Of all that decides what an event is, and of the log's key.
        """
        self.base = f"{prefix}:{cluster}:{fingerprint}:".encode()
        self.lease = self.base + b"lease"
        self.epochs = self.base + b"epochs"

    def state(self, epoch: str) -> bytes:
        """Where an epoch's `State` is."""
        return b"%b%b:state" % (self.base, epoch.encode())

    def channels(self, epoch: str) -> bytes:
        """Where its rows are."""
        return b"%b%b:channels" % (self.base, epoch.encode())

    def ring(self, epoch: str, block: int) -> bytes:
        """Where the hashes from `BLOCK` times `block` on are."""
        return b"%b%b:ring:%d" % (self.base, epoch.encode(), block)

    def window(self, epoch: str, channel: str) -> bytes:
        """Where the events of a channel are."""
        return b"%b%b:window:%b" % (self.base, epoch.encode(), channel.encode())


class Seal:
    """Puts the seal on values, and proves it."""

    def __init__(self, key: bytes) -> None:
        """Prepare.

        Args:
            key: The log's key, at most 64 bytes.
        """
        self._keyed = hashlib.blake2b(digest_size=SEAL_BYTES - 1, key=key, person=b"sse-gateway copy")

    def at(self, key: bytes) -> Place:
        """Where values are sealed."""
        keyed = self._keyed.copy()
        keyed.update(b"%d:%b" % (len(key), key))
        return Place(keyed)


class Place:
    """One key of Redis, for sealing what is in it. A field of a hash, or a score, goes into the seal, too."""

    def __init__(self, keyed: hashlib.blake2b) -> None:
        self._keyed = keyed

    def seal(self, field: bytes, body: bytes) -> bytes:
        """Put version and hash in front of a body."""
        return self.head(field, body) + body

    def head(self, field: bytes, body: bytes | bytearray) -> bytes:
        """Only what goes in front."""
        keyed = self._keyed.copy()
        keyed.update(b"%d:%b" % (len(field), field))
        keyed.update(body)
        return b"\x01" + keyed.digest()

    def open(self, field: bytes, value: bytes) -> bytes:
        """Take the body out again.

        Raises:
            StoreError: It is damaged, or of another version.
        """
        if value[:1] != b"\x01":
            raise StoreError(f"of version {value[0]}, not {VERSION}" if value else "damaged: an empty value")
        body = value[SEAL_BYTES:]
        if self.head(field, body) != value[:SEAL_BYTES]:
            raise StoreError("damaged, or not written by this log")
        return body


encode = msgspec.msgpack.Encoder().encode


def decode(body: bytes, shape: type[T]) -> T:
    """Read a body.

    Raises:
        StoreError: It is not of this shape.
    """
    try:
        return msgspec.msgpack.decode(body, type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise StoreError(f"damaged: {error}") from None
