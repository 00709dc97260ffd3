"""The log's hashes in the store: blocks of 4,096 offsets, the last of which grows.

Rules:
    1. A block is sealed as a whole; with each part that is appended its seal is written anew.
    2. Offsets whose hash the log no longer knows are zeros, and lie before `first`, where nobody looks.
    3. Whoever goes on writes the last block anew, from its own log.
"""

from __future__ import annotations

import struct
from itertools import chain, islice
from typing import TYPE_CHECKING

from sse_gateway.stored import BLOCK, HASH_BYTES, SEAL_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sse_gateway.log import Log
    from sse_gateway.stored import Keys, Seal


class StoredRing:
    """The current epoch's hashes, as far as they are stored.

    Attributes:
        first: Oldest offset whose hash is stored.
        head: Newest one, -1 for none.
    """

    def __init__(self, keys: Keys, seal: Seal, log: Log, ttl: bytes) -> None:
        """Start with nothing stored.

        Args:
            keys: Names of keys.
            seal: Seals blocks.
            log: What knows the hashes.
            ttl: How long a block lives, milliseconds.
        """
        self.first = 0
        self.head = -1
        self._keys = keys
        self._seal = seal
        self._log = log
        self._ttl = ttl
        self._block = bytearray()  # the last one
        self._is_written = False

    @property
    def check(self) -> int:
        """The hash at the head; 0 for none."""
        return int.from_bytes(self._block[-HASH_BYTES:], "big")

    def resume(self, first: int, head: int) -> None:
        """Go on where others have stopped."""
        start = head // BLOCK * BLOCK
        self.head = head
        self.first = first
        self._block = self._hashes(start, head)
        if (floor := self._log.floor - self._log.epoch.base) > start:
            self.first = max(first, floor)

    def advance(self, head: int) -> Iterator[tuple[tuple[bytes, ...], int | None]]:
        """Move the head.

        Returns:
            The commands that write what lies between, and let go of what the log has forgotten; each with the answer
            that it has to get, None for any.
        """
        epoch = self._log.epoch
        first = max(self.first, self._log.floor - epoch.base)
        for block in range(self.first // BLOCK, min(first // BLOCK, self.head // BLOCK + 1)):
            yield (b"DEL", self._keys.ring(epoch.name, block)), None
        self.first = first
        while self.head < head:
            yield from self._extend(min(head, (self.head + 1) // BLOCK * BLOCK + BLOCK - 1))

    def blocks(self) -> list[bytes]:
        """The keys of all blocks."""
        blocks = range(self.first // BLOCK, self.head // BLOCK + 1)
        return [self._keys.ring(self._log.epoch.name, block) for block in blocks]

    def _extend(self, last: int) -> Iterator[tuple[tuple[bytes, ...], int | None]]:
        """Move the head within one block."""
        offset = self.head + 1
        self.head = last
        if offset % BLOCK == 0:
            self._block = bytearray()
            self._is_written = False
        part = self._hashes(offset, last)
        start = len(self._block)
        self._block += part
        if last < self.first:
            return
        key = self._keys.ring(self._log.epoch.name, offset // BLOCK)
        head = self._seal.at(key).head(b"", self._block)
        if self._is_written:
            at = SEAL_BYTES + start
            yield (b"SETRANGE", key, b"0", head), at
            yield (b"SETRANGE", key, b"%d" % at, bytes(part)), at + len(part)
        else:
            yield (b"SET", key, head + self._block, b"PX", self._ttl), None
            self._is_written = True

    def _hashes(self, offset: int, last: int) -> bytearray:
        """The hashes of some offsets, 8 bytes each, the highest byte first."""
        position, end = self._log.epoch.base + offset, self._log.epoch.base + last + 1
        first, parts = self._log.hashes_after(position - 1)
        count = max(0, end - first)
        missing = bytes(HASH_BYTES * (last + 1 - offset - count))
        hashes = list(islice(chain.from_iterable(parts), count))
        return bytearray(missing + struct.pack(f">{count}Q", *hashes))
