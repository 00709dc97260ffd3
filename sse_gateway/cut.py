"""Log and windows at one moment, to be handed over while they go on changing.

Rules:
    1. The cut is made in one step, when a JOIN is dequeued: it is the state of exactly that place in
       the log, whenever it is read.
    2. Channels are read in slices. One that is about to change before its turn is copied first
       (`save`, called by `History`), so that a cut never sees a later state.
    3. A slice is bounded in bytes and in channels looked at, about a millisecond of work.
    4. A cut holds on to what the windows lose meanwhile, at most once their contents; whoever made it
       lets go of it when it is done (`close`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from sse_gateway.log import Verdict
from sse_gateway.snapshot import HEAD, RING, WINDOWS, Head, Piece, Seal

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterable, Iterator

    from sse_gateway.history import History
    from sse_gateway.log import Log
    from sse_gateway.window import Event, Window

SLICE_BYTES = 128 * 1024
"""Frames in one block; a larger frame goes alone."""

SLICE_CHANNELS = 500
"""Channels looked at for one block."""

SLICE_EVENTS = 500
"""Events in one block."""

_encode = msgspec.msgpack.Encoder().encode


class Saved:
    """A channel as it was at the cut."""

    __slots__ = ("events", "forgotten", "keys", "lost", "newest_loss", "used_at", "window")

    def __init__(self, window: Window, begin: int) -> None:
        self.window = window
        self.events = window.after(begin, len(window))
        self.lost: array[int] = window.lost[:]
        self.newest_loss = window.newest_loss
        self.forgotten = window.forgotten
        self.keys = list(window.keys)
        self.used_at = window.used_at

    def is_changed_since(self, begin: int) -> bool:
        """Whether there is anything to tell of it to somebody who knows all up to `begin`."""
        return bool(self.events) or self.newest_loss > begin or (begin < 0 and bool(self.keys))


class Cut:
    """One snapshot that is being taken; an iterator of its blocks.

    A block may be empty: nothing to send, but the loop should have a turn.
    """

    def __init__(
        self, key: bytes, token: str, log: Log, history: History, have: str, claims: Iterable[str], now: float
    ) -> None:
        """Cut, here and now.

        Args:
            key: The log's key.
            token: Of the JOIN that is answered.
            log: The sequence; it has an epoch.
            history: The windows; it saves for this cut until `close`.
            have: Cursor of the joiner's head; if it verifies, only what lies after it is sent.
            claims: Epochs claimed and undecided.
            now: Seconds.
        """
        verdict, position = log.locate(have)
        self._begin = position if verdict is Verdict.VERIFIED else -1
        first, self._hashes = log.hashes_after(self._begin)
        timelines = history.timelines
        self._head = Head(
            have=have if verdict is Verdict.VERIFIED else "",
            begin=self._begin,
            head=log.head,
            first=first,
            epochs=[(epoch.name, epoch.base, epoch.reason) for epoch in log.epochs if epoch.base > self._begin],
            claims=list(claims),
            marks=list(history.marks),
            abandoned=[sorted(p for p in timeline.abandoned if p > self._begin) for timeline in timelines],
        )
        self._seal = Seal(key, token)
        self._history = history
        self._now = now
        self._pending = dict.fromkeys(history.windows.values())
        self._saved: list[Saved] = []
        self._blocks = self._read()
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
        """Let go of the windows. Idempotent."""
        self._pending.clear()
        self._saved.clear()
        if self in self._history.cuts:
            self._history.cuts.remove(self)

    def _read(self) -> Iterator[bytes]:
        yield HEAD + _encode(self._head)
        for part in self._hashes:
            yield RING + _encode(part.tolist())
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
            if not saved.is_changed_since(self._begin):
                continue
            events, size = self._fitting(saved, size)
            pieces.append(self._piece(saved, events))
            if size >= SLICE_BYTES:
                break
        return WINDOWS + _encode(pieces) if pieces else b""

    def _next(self) -> Saved | None:
        if self._saved:
            return self._saved.pop()
        if self._pending:
            return Saved(self._pending.popitem()[0], self._begin)
        return None

    def _fitting(self, saved: Saved, size: int) -> tuple[list[Event], int]:
        """Take as many of a channel's events as fit, at least one; put the rest back."""
        taken: list[Event] = []
        for event in saved.events:
            if taken and (size >= SLICE_BYTES or len(taken) >= SLICE_EVENTS):
                saved.events = saved.events[len(taken) :]
                self._saved.append(saved)
                return taken, SLICE_BYTES
            taken.append(event)
            size += len(event.frame)
        return taken, size

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
