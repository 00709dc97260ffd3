"""Log and windows at one moment, to be handed over while they go on changing.

Rules:
    1. The cut is made in one step, when a JOIN is dequeued: it is the state of exactly that place in
       the log, whenever it is read.
    2. Channels are read in slices. One that is about to change before its turn is copied first
       (`save`, called by `History`), so that a cut never sees a later state.
    3. A slice is bounded by what it costs and in channels looked at, about a millisecond of work.
    4. A cut holds on to what the windows lose meanwhile, at most once their contents; whoever made it
       lets go of it when it is done (`close`).
    5. A cut that was closed before its end has no end: nobody takes it for a whole one.
    6. Who has read more of an ended epoch than we (on a primary that we left first) keeps what is
       his: the delta begins where that epoch has ended here. Both have its beginning in common.
    7. A delta tells what changed after its begin. Under a rule that has forgotten channels since, it
       names all that are left: whoever takes it in learns that the others may have lost something.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING

import msgspec

from sse_gateway.log import Verdict
from sse_gateway.snapshot import HEAD, RING, WINDOWS, Head, Piece, Seal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sse_gateway.history import History
    from sse_gateway.log import Log
    from sse_gateway.window import Event, Window

SLICE_BYTES = 128 * 1024
"""Bytes of frames, losses and keys in one block; a larger frame is not split."""

SLICE_CHANNELS = 250
"""Channels looked at for one block."""

ITEM_BYTES = 100
"""What an event's other fields count for; about the work that they make."""

KEY_BYTES = 8
"""What an idempotency key counts for beside its characters, likewise."""

_encode = msgspec.msgpack.Encoder().encode


class Saved:
    """A channel as it was at the cut, as far as it lies after the begin."""

    __slots__ = ("events", "forgotten", "keys", "lost", "newest_loss", "used_at", "window")

    def __init__(self, window: Window, begin: int) -> None:
        self.window = window
        self.events = window.after(begin, len(window))
        self.lost: array[int] = window.lost[bisect_right(window.lost, begin) :]
        self.newest_loss = window.newest_loss
        self.forgotten = window.forgotten
        self.keys = list(window.keys)
        self.used_at = window.used_at

    @property
    def size(self) -> int:
        """What all but its events counts for in a block."""
        return self.lost.itemsize * len(self.lost) + sum(KEY_BYTES + len(key) for key in self.keys)

    def is_changed_since(self, begin: int) -> bool:
        """Whether there is anything to tell of it to somebody who knows all up to `begin`."""
        return bool(self.events) or self.newest_loss > begin

    def drop(self, count: int) -> None:
        """Leave out what has been told: all but its events, and so many of these."""
        self.events = self.events[count:]
        self.lost = array("q")
        self.keys = []


class Cut:
    """One snapshot that is being taken; an iterator of its blocks.

    A block may be empty: nothing to send, but the loop should have a turn.
    """

    def __init__(
        self,
        key: bytes,
        token: str,
        log: Log,
        history: History,
        have: str,
        claims: Iterable[str],
        now: float,
        *,
        beside: bool = False,
    ) -> None:
        """Cut, here and now.

        Args:
            key: The log's key.
            token: Of the JOIN that is answered.
            log: The sequence; it has an epoch.
            history: The windows; it saves for this cut until `close`.
            have: Cursor of the joiner's head; if we can tell what lies after it, only that is sent.
            claims: Epochs claimed and undecided.
            now: Seconds.
            beside: As in `Head`.
        """
        self._begin = _begin_of(log, have)
        first, self._hashes = log.hashes_after(self._begin)
        timelines = history.timelines
        self._head = Head(
            have=have if self._begin >= 0 else "",
            begin=self._begin,
            head=log.head,
            first=first,
            epochs=[(epoch.name, epoch.base, epoch.reason) for epoch in log.epochs if epoch.base > self._begin],
            claims=list(claims),
            marks=list(history.marks),
            abandoned=[sorted(p for p in timeline.abandoned if p > self._begin) for timeline in timelines],
            byte_order=sys.byteorder,
            beside=beside,
        )
        self._has_forgotten = [mark > self._begin for mark in history.marks]
        self._seal = Seal(key, token)
        self._history = history
        self._now = now
        self._pending = dict.fromkeys(history.windows.values())
        self._saved: list[Saved] = []
        self._blocks: Iterator[bytes] = self._read()
        history.cuts.append(self)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        block = next(self._blocks)
        if block:
            self._seal.add(block)
        return block

    def save(self, window: Window) -> None:
        """Copy a channel that is about to change, if it has not been read yet."""
        if window in self._pending:
            del self._pending[window]
            self._saved.append(Saved(window, self._begin))

    def close(self) -> None:
        """Let go of the windows; nothing more comes. Idempotent."""
        self._blocks = iter(())
        self._pending.clear()
        self._saved.clear()
        if self in self._history.cuts:
            self._history.cuts.remove(self)

    def _read(self) -> Iterator[bytes]:
        yield HEAD + _encode(self._head)
        for part in self._hashes:
            yield RING + part.tobytes()
        while self._pending or self._saved:
            yield self._windows()
        self.close()
        yield self._seal.end()

    def _windows(self) -> bytes:
        """Read the next channels, as far as a slice goes."""
        pieces: list[Piece] = []
        size = 0
        for _ in range(SLICE_CHANNELS):
            saved = self._next()
            if saved is None:
                break
            if not (self._has_forgotten[saved.window.rule.index] or saved.is_changed_since(self._begin)):
                continue
            size += saved.size
            events, size = _fitting(saved.events, size)
            pieces.append(self._piece(saved, events))
            if len(events) < len(saved.events):
                saved.drop(len(events))
                self._saved.append(saved)
            if size >= SLICE_BYTES:
                break
        return WINDOWS + _encode(pieces) if pieces else b""

    def _next(self) -> Saved | None:
        if self._saved:
            return self._saved.pop()
        if self._pending:
            return Saved(self._pending.popitem()[0], self._begin)
        return None

    def _piece(self, saved: Saved, events: list[Event]) -> Piece:
        window, now = saved.window, self._now
        return Piece(
            window.name,
            window.rule.index,
            now - saved.used_at,
            saved.newest_loss,
            saved.forgotten,
            saved.lost.tolist(),
            saved.keys,
            [(e.position, now - e.received_at, e.type, e.is_text, e.frame, e.raw) for e in events],
        )


def _begin_of(log: Log, have: str) -> int:
    """Where a delta begins for somebody who has the log up to a cursor; -1 if only the whole will do."""
    verdict, position = log.locate(have)
    if verdict is Verdict.VERIFIED:
        return position
    is_end = verdict is Verdict.UNKNOWN_EPOCH and log.knows(have.partition("-")[0])
    return position - 1 if is_end and position >= log.floor else -1


def _fitting(events: list[Event], size: int) -> tuple[list[Event], int]:
    """Take as many events as fit beside what is there already, at least one."""
    for count, event in enumerate(events):
        if count and size >= SLICE_BYTES:
            return events[:count], size
        size += ITEM_BYTES + len(event.frame) + len(event.raw or b"")
    return events, size
