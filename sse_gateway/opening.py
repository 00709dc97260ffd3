"""The first block of a stream: from where it resumes, and whether anything is missing.

`gateway.open` says what nobody can take back, so it waits until the answer is known. For channels
given by name that is at once; under a prefix the log-ordered index is searched, a stretch at a time.
"""

from __future__ import annotations

from heapq import merge
from operator import attrgetter
from typing import TYPE_CHECKING

from sse_gateway.cursor import UNVERIFIABLE
from sse_gateway.frames import gap_frame, open_frame
from sse_gateway.outbox import Loss
from sse_gateway.reasons import Policy, Replay
from sse_gateway.replay import Passed, is_wanted, prefix_entries
from sse_gateway.window import Event

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sse_gateway.audience import Audience
    from sse_gateway.history import History
    from sse_gateway.log import Log
    from sse_gateway.reader import Catchup, Reader
    from sse_gateway.replay import Entry

_BY_POSITION = attrgetter("position")


def open_stream(reader: Reader, catchup: Catchup, audience: Audience, log: Log, history: History) -> bytes:
    """Make `gateway.open`, and the gap behind it if the cursor could not be resumed from.

    Moves the position of a reader without a cursor before the first event it gets.

    Returns:
        The blocks; empty if the search has to go on, in another call.
    """
    if catchup.has_cursor:
        replay = _resumed(reader, catchup, audience, log, history)
    else:
        replay = _fresh(reader, catchup, audience, log, history)
    if replay is None:
        return b""
    reader.replay = replay if catchup.gap is None else Replay.GAP
    catchup.is_open = True
    catchup.serial = history.serial
    here = log.cursor(reader.position)
    if catchup.gap is None:
        # The client's own cursor has verified, though by now it may be older than the ring.
        verified = catchup.asked if catchup.has_cursor and catchup.asked else here
        return open_frame(verified, reader.follow.asked, replay, reader.retry_ms)
    opening = open_frame(UNVERIFIABLE, reader.follow.asked, Replay.GAP, reader.retry_ms)
    return opening + gap_frame(here, catchup.gap, reader.follow.asked, None)


def _resumed(reader: Reader, catchup: Catchup, audience: Audience, log: Log, history: History) -> Replay | None:
    if catchup.gap is not None or log.breaks_after(reader.position):
        return Replay.GAP
    if reader.follow.bounds.policy is Policy.LATEST:
        return Replay.COMPLETE
    if any(window.newest_loss > reader.position for window in audience.windows):
        return Replay.GAP
    rules = {rule for _, rules in reader.follow.prefixes for rule in rules}
    if all(history.newest_losses[rule.index] <= reader.position for rule in rules):
        return Replay.COMPLETE
    found = _has_losses(reader, catchup, history)
    return None if found is None else Replay.GAP if found else Replay.COMPLETE


def _fresh(reader: Reader, catchup: Catchup, audience: Audience, log: Log, history: History) -> Replay | None:
    """Find where a client without a cursor begins: before the newest events it asked for."""
    rules = [window.rule for window in audience.windows]
    rules += [rule for _, owners in reader.follow.prefixes for rule in owners]
    counts = {rule: rule.replay_on_connect if catchup.newest is None else catchup.newest for rule in rules}
    if not any(counts.values()):
        return Replay.NONE
    if not _find_newest(reader, catchup, history):
        return None
    for window in audience.windows:
        first = window.nth_newest(counts[window.rule], catchup.head)
        catchup.settled[window] = catchup.head if first is None else first.position - 1
        reader.position = min(reader.position, catchup.settled[window])
    return Replay.GAP if log.breaks_after(reader.position) else Replay.COMPLETE


def _has_losses(reader: Reader, catchup: Catchup, history: History) -> bool | None:
    """Look for a loss under the reader's prefixes; None if the search has to go on."""
    for entry in _walk(reader, catchup, history, reader.position):
        if isinstance(entry, Passed):
            return None
        if isinstance(entry, Loss):
            return True
    return False


def _find_newest(reader: Reader, catchup: Catchup, history: History) -> bool:
    """Settle where each channel under the reader's prefixes begins; False if the search has to go on."""
    for entry in _walk(reader, catchup, history, -1):
        if isinstance(entry, Passed):
            return False
        if entry.position > catchup.head:
            break
        if isinstance(entry, Event) and is_wanted(entry, reader, catchup):
            assert entry.window is not None  # noqa: S101 - entries of a timeline have one
            catchup.settled.setdefault(entry.window, entry.position - 1)
            reader.position = min(reader.position, entry.position - 1)
    return True


def _walk(reader: Reader, catchup: Catchup, history: History, start: int) -> Iterator[Entry]:
    """Walk under the reader's prefixes, from where the search has stopped; a `Passed` stops it again."""
    after = start if catchup.scanned is None else catchup.scanned
    for entry in merge(*prefix_entries(reader.follow.prefixes, after, history), key=_BY_POSITION):
        if isinstance(entry, Passed):
            catchup.scanned = entry.position
        yield entry
