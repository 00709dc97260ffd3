"""The gateway's one sequence: positions, epochs and the running keyed hash.

Rules:
    1. Every PUBLISH received under its canonical pattern takes the next place, before anything
       is known of its content: what is counted depends on nothing but the log (I1).
    2. An epoch is one unbroken run of offsets. Where it ends, nobody knows what was missed, so a
       BREAK stands there: offset 0 of the next epoch, an entry on every channel.
    3. Inside the process a place is one integer, the *position*, ascending over all epochs; only
       cursors know of epochs and offsets. A position is never reused.
    4. A cursor is verified against the ring of hashes, never trusted (I10).
    5. What another log has counted is taken over at its end, never in between (`extend`).

The ring holds the hashes of the newest positions, at most `ring_size` (8 bytes each). An older
cursor cannot be verified; it is STALE, and whoever resumes from it is told so.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_right
from dataclasses import dataclass
from enum import Enum, auto
from operator import attrgetter
from typing import TYPE_CHECKING

from sse_gateway.cursor import CHECK_LENGTH, UNVERIFIABLE, Cursor, parse_cursor

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sse_gateway.reasons import GapReason

RING_SIZE = 4_000_000
"""Positions whose hash is remembered: 32 MB when full. Beyond it the oldest block goes."""

MAX_EPOCHS = 256
"""Epochs remembered; a link that fails more often loses the oldest, told as `epoch`."""

_BLOCK = 4096  # positions dropped at a time
_NO_CHECK = "0" * CHECK_LENGTH
_BY_BASE = attrgetter("base")


@dataclass(frozen=True, slots=True)
class Epoch:
    """One unbroken run of offsets.

    Attributes:
        name: 12 base-36 digits, drawn by the caller; names ascend with the time they are drawn.
        base: Position of offset 0, which is the BREAK that began the epoch.
        reason: Why the epoch before it ended.
    """

    name: str
    base: int
    reason: GapReason


class Verdict(Enum):
    """What the log says of a cursor."""

    VERIFIED = auto()
    AHEAD = auto()
    """Of the current epoch, but beyond the head."""
    STALE = auto()
    """Of a known epoch, but older than the ring."""
    UNKNOWN_EPOCH = auto()
    """Of an epoch unknown here, or beyond what is known of an older one."""
    NEWER_EPOCH = auto()
    """Of an epoch unknown here, whose name was drawn after the current one's."""
    INVALID = auto()
    """Not one of ours, or the hash differs."""


class Log:
    """Counts messages and verifies cursors. Holds no events.

    Attributes:
        head: Position of the newest entry; -1 before the first epoch.
        begun: Epochs begun so far.
        epochs: Remembered epochs, oldest first; the last one is current.
    """

    def __init__(self, key: bytes, ring_size: int = RING_SIZE) -> None:
        """Start without an epoch; `begin_epoch` comes before the first `append`.

        Args:
            key: Key of the hash, at most 64 bytes. Nodes that share a log share it.
            ring_size: Positions remembered, at least one block of 4,096.
        """
        self.head = -1
        self.begun = 0
        self.epochs: list[Epoch] = []
        self._keyed = hashlib.blake2b(digest_size=8, key=key)
        self._chain = b""
        self._prefix = ""
        self._base = 0
        self._blocks: list[array[int]] = [array("Q")]
        self._floor = 0
        self._max_blocks = max(1, ring_size // _BLOCK)

    @property
    def epoch(self) -> Epoch:
        """The current epoch."""
        return self.epochs[-1]

    @property
    def floor(self) -> int:
        """Oldest position whose hash is still known."""
        return self._floor

    def begin_epoch(self, name: str, reason: GapReason) -> Epoch:
        """Put a BREAK at the next position and begin a new epoch there."""
        keyed = self._keyed.copy()
        keyed.update(name.encode())
        self._chain = keyed.digest()
        self.head += 1
        self._remember()
        epoch = Epoch(name, self.head, reason)
        self._enter(epoch)
        return epoch

    def append(self, channel: bytes, payload: bytes) -> str:
        """Count one message; afterwards `head` is its position.

        Args:
            channel: Redis channel, any length.
            payload: As published.

        Returns:
            The text of its cursor.
        """
        keyed = self._keyed.copy()
        keyed.update(b"%b%d:%b%b" % (self._chain, len(channel), channel, payload))
        self._chain = chain = keyed.digest()
        self.head = head = self.head + 1
        self._remember()
        return f"{self._prefix}{head - self._base}-{chain.hex()[:CHECK_LENGTH]}"

    def hashes_after(self, position: int) -> tuple[int, list[array[int]]]:
        """Return what the ring holds after a position, as it is at this moment.

        Returns:
            The position of the first hash, and the hashes in parts of at most 4,096.
        """
        first = max(position + 1, self._floor)
        index, start = divmod(first - self._floor, _BLOCK)
        parts = self._blocks[index:]
        if parts:
            # The others are full, or copied: only the last block still grows.
            parts[0] = parts[0][start:]
            parts[-1] = parts[-1][:]
        return first, [part for part in parts if part]

    def extend(self, epochs: Sequence[Epoch], hashes: Iterable[array[int]]) -> None:
        """Take over what another log has counted after our head.

        Args:
            epochs: Those that began after it, oldest first, at positions of this log.
            hashes: Of all positions after it, in order.
        """
        for part in hashes:
            self._take_over(part)
        for epoch in epochs:
            self._enter(epoch)

    def restart(self, head: int) -> None:
        """Forget everything; the next position is the one after `head`, not below any used before."""
        self.epochs.clear()
        self._blocks = [array("Q")]
        self.head = head
        self._floor = head + 1

    def knows(self, epoch: str) -> bool:
        """Whether an epoch of this name is remembered."""
        return any(epoch == known.name for known in self.epochs)

    def cursor(self, position: int) -> str:
        """Return the text of the cursor at a position.

        A position older than the ring gets a check that says nothing, one of a forgotten epoch
        `0-0-0`: a client that returns with it is told a gap rather than resumed somewhere else.
        """
        epoch = self._epoch_at(position)
        if position < epoch.base:
            return UNVERIFIABLE
        check = self._check_at(position) if position >= self._floor else _NO_CHECK
        return f"{epoch.name}-{position - epoch.base}-{check}"

    def locate(self, text: str) -> tuple[Verdict, int]:
        """Verify a cursor.

        Returns:
            The verdict, and a position: the cursor's own when VERIFIED or AHEAD, the ring's
            floor when STALE, where the first epoch begins of which its owner has nothing when
            UNKNOWN_EPOCH or NEWER_EPOCH, the head otherwise.
        """
        cursor = parse_cursor(text)
        if cursor is None:
            return Verdict.INVALID, self.head
        index = next((i for i, epoch in enumerate(self.epochs) if epoch.name == cursor.epoch), None)
        if index is None:
            is_newer = cursor.epoch > self.epoch.name
            return Verdict.NEWER_EPOCH if is_newer else Verdict.UNKNOWN_EPOCH, self.epoch.base
        position = self.epochs[index].base + cursor.offset
        if index == len(self.epochs) - 1:
            return (Verdict.AHEAD, position) if position > self.head else self._verify(cursor, position)
        end = self.epochs[index + 1].base
        # Beyond what we know of it: others have seen more of that epoch than we.
        return (Verdict.UNKNOWN_EPOCH, end) if position >= end else self._verify(cursor, position)

    def breaks_after(self, position: int) -> list[Epoch]:
        """Return the epochs that began after a position, oldest first."""
        return self.epochs[bisect_right(self.epochs, position, key=_BY_BASE) :]

    def _enter(self, epoch: Epoch) -> None:
        self._base = epoch.base
        self._prefix = f"{epoch.name}-"
        self.epochs.append(epoch)
        self.begun += 1
        if len(self.epochs) > MAX_EPOCHS:
            del self.epochs[0]

    def _take_over(self, hashes: array[int]) -> None:
        start = 0
        while start < len(hashes):
            room = _BLOCK - len(self._last_block())
            self._blocks[-1].extend(hashes[start : start + room])
            start += room
        self.head += len(hashes)
        self._chain = hashes[-1].to_bytes(8, "big")

    def _verify(self, cursor: Cursor, position: int) -> tuple[Verdict, int]:
        if position < self._floor:
            return Verdict.STALE, self._floor
        if cursor.check != self._check_at(position):
            return Verdict.INVALID, self.head
        return Verdict.VERIFIED, position

    def _epoch_at(self, position: int) -> Epoch:
        if position >= self._base:
            return self.epochs[-1]
        return self.epochs[max(0, bisect_right(self.epochs, position, key=_BY_BASE) - 1)]

    def _check_at(self, position: int) -> str:
        block, index = divmod(position - self._floor, _BLOCK)
        return self._blocks[block][index].to_bytes(8, "big").hex()[:CHECK_LENGTH]

    def _remember(self) -> None:
        self._last_block().append(int.from_bytes(self._chain, "big"))

    def _last_block(self) -> array[int]:
        """The block that has room; the oldest may have to go for it."""
        block = self._blocks[-1]
        if len(block) < _BLOCK:
            return block
        block = array("Q")
        self._blocks.append(block)
        if len(self._blocks) > self._max_blocks:
            del self._blocks[0]
            self._floor += _BLOCK
        return block
