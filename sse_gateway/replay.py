"""What a reader still has to get, pulled from the windows in log order.

Rules:
    1. Events, losses, marks and BREAKs of all channels are merged by position; a reader's position
       moves over them one by one, so a cut at any byte resumes right (I1).
    2. A channel's loss is told at its newest lost offset: after other channels' events up to
       there, before its own next event (I2). Channels that share the offset share the gap.
    3. Losses are looked up when the walk gets there, so what the windows lose during a replay is
       found the same way; then the reader was too slow, and its policy decides.
    4. Every pull is bounded in bytes and in entries looked at.
"""

from __future__ import annotations

from heapq import merge
from operator import attrgetter
from typing import TYPE_CHECKING, TypeAlias

from sse_gateway.frames import frame_data, gap_frame, wrapped_frame
from sse_gateway.outbox import CHUNK_BYTES, Loss
from sse_gateway.reader import names_of
from sse_gateway.reasons import GapReason, Policy
from sse_gateway.window import Event

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sse_gateway.audience import Audience
    from sse_gateway.channels import Rule
    from sse_gateway.history import History
    from sse_gateway.log import Log
    from sse_gateway.reader import Catchup, Reader
    from sse_gateway.window import Window

SCAN = 2000
"""Entries that one pull looks at, a millisecond's worth at most."""

_READ = 256  # events fetched from a window at a time
_BY_POSITION = attrgetter("position")


class Passed:
    """A stretch of other channels' entries, up to `position`."""

    __slots__ = ("position",)

    def __init__(self, position: int) -> None:
        self.position = position


Entry: TypeAlias = Event | Loss | Passed


class Pulled:
    """The yield of one pull.

    Attributes:
        frames: Blocks, in order.
        size: Their bytes.
        events: Events among them.
        gaps: Reasons of the gap blocks among them.
        loss: Taken, but not told yet: more channels may share its position.
        is_at_head: Nothing is left; the reader joins its audience now.
        is_too_slow: The windows lost what a `disconnect` reader still needed.
    """

    __slots__ = ("events", "frames", "gaps", "is_at_head", "is_too_slow", "loss", "size")

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.size = 0
        self.events: list[Event] = []
        self.gaps: list[GapReason] = []
        self.loss: Loss | None = None
        self.is_at_head = False
        self.is_too_slow = False

    def add(self, frame: bytes) -> None:
        """Add a block."""
        self.frames.append(frame)
        self.size += len(frame)

    def tell_loss(self, reader: Reader) -> None:
        """Add the block that tells the loss taken, if any."""
        if self.loss is not None:
            loss, self.loss = self.loss, None
            self.add(gap_frame(loss.cursor, loss.reason, names_of(reader.follow, list(loss.windows)), loss.missed))
            self.gaps.append(loss.reason)


def pull(reader: Reader, audience: Audience, catchup: Catchup, log: Log, history: History) -> Pulled:
    """Take the reader's next blocks, at most `CHUNK_BYTES` of them or one larger block.

    Moves the reader's position over what was taken.
    """
    pulled = Pulled()
    for looked_at, entry in enumerate(_entries(audience, reader.position, log, history)):
        # Entries at one position belong together: the next pull begins after it.
        if (looked_at >= SCAN or pulled.size > CHUNK_BYTES) and entry.position != reader.position:
            break
        if not _take(pulled, entry, reader, catchup):
            break
        reader.position = entry.position
        if isinstance(entry, Passed):
            break
    else:
        reader.position = log.head
        pulled.is_at_head = True
    pulled.tell_loss(reader)
    return pulled


def _take(pulled: Pulled, entry: Entry, reader: Reader, catchup: Catchup) -> bool:
    """Take in the next entry; False if the pull ends before it."""
    if pulled.loss is not None and entry.position != pulled.loss.position:
        pulled.tell_loss(reader)
    if isinstance(entry, Event):
        return not is_wanted(entry, reader, catchup) or _take_event(pulled, entry, reader, catchup)
    if isinstance(entry, Loss) and not _is_silent(entry, reader, catchup) and not _is_unasked(entry, catchup):
        return _take_loss(pulled, entry, reader, catchup)
    return True


def _take_event(pulled: Pulled, event: Event, reader: Reader, catchup: Catchup) -> bool:
    frame = wrap(event) if reader.framing.wrapped else event.frame
    if pulled.frames and pulled.size + len(frame) > CHUNK_BYTES:
        return False
    pulled.add(frame)
    pulled.events.append(event)
    assert event.window is not None  # noqa: S101 - entries of a window have one
    catchup.settled[event.window] = event.position
    return True


def _take_loss(pulled: Pulled, loss: Loss, reader: Reader, catchup: Catchup) -> bool:
    if _is_late(loss, catchup):
        if reader.follow.bounds.policy is Policy.DISCONNECT:
            pulled.is_too_slow = True
            return False
        loss.reason = GapReason.OVERFLOW
    for window in loss.windows:
        loss.missed = window.missed_after(catchup.settled_on(window))
        catchup.settled[window] = loss.position
    if pulled.loss is None:
        pulled.loss = loss
    else:
        pulled.loss.merge(loss)
    return True


def wrap(event: Event) -> bytes:
    """Encode an event for a reader that wants its channel and type inside the data."""
    assert event.window is not None  # noqa: S101 - gaps are not wrapped
    data = frame_data(event.frame) if event.raw is None else event.raw
    return wrapped_frame(event.cursor, event.window.name, event.type, data, is_text=event.is_text)


def wrapped_event(event: Event, done: dict[int, Event]) -> Event:
    """Make the event that wrapped audiences get, once per event."""
    if event.window is None:
        return event
    if event.position not in done:
        done[event.position] = Event(event.position, event.window, wrap(event), event.received_at, ts=event.ts)
    return done[event.position]


def is_wanted(event: Event, reader: Reader, catchup: Catchup) -> bool:
    """Whether a reader that catches up gets an event of its channels."""
    window = event.window
    assert window is not None  # noqa: S101 - entries of a window have one
    if not catchup.has_cursor and event.position <= catchup.head:
        newest = window.rule.replay_on_connect if catchup.newest is None else catchup.newest
        return window.is_among_newest(event, newest, catchup.head)
    return reader.follow.bounds.policy is not Policy.LATEST or window.newest is event


def _entries(audience: Audience, after: int, log: Log, history: History) -> Iterator[Entry]:
    sources = [_window_entries(window, after, log) for window in audience.windows]
    sources.extend(prefix_entries(audience.follow.prefixes, after, history, log))
    if breaks := log.breaks_after(after):
        sources.append(iter([Loss(epoch.base, log.cursor(epoch.base), epoch.reason, None) for epoch in breaks]))
    return sources[0] if len(sources) == 1 else merge(*sources, key=_BY_POSITION)


def _window_entries(window: Window, after: int, log: Log) -> Iterator[Entry]:
    if window.newest_loss > after:
        yield Loss(window.newest_loss, log.cursor(window.newest_loss), GapReason.WINDOW, 0, [window])
    while events := window.after(after, _READ):
        yield from events
        after = events[-1].position


def prefix_entries(
    prefixes: tuple[tuple[str, tuple[Rule, ...]], ...], after: int, history: History, log: Log | None = None
) -> list[Iterator[Entry]]:
    """Make one walk per rule that could own a channel of the prefixes."""
    heads: dict[Rule, tuple[str, ...]] = {}
    for prefix, rules in prefixes:
        for rule in rules:
            heads[rule] = (*heads.get(rule, ()), prefix)
    return [_timeline_entries(history, rule, starts, after, log) for rule, starts in heads.items()]


def _timeline_entries(
    history: History, rule: Rule, starts: tuple[str, ...], after: int, log: Log | None
) -> Iterator[Entry]:
    for passed, entry in enumerate(history.timeline(rule).after(after), start=1):
        window = entry.window
        if window is None:
            yield Loss(entry.position, _text(log, entry.position), GapReason.WINDOW, None)
        elif window.name.startswith(starts):
            if isinstance(entry, Event):
                yield entry
            else:
                yield Loss(entry.position, _text(log, entry.position), GapReason.WINDOW, 0, [window])
        if passed >= SCAN:
            yield Passed(entry.position)


def _text(log: Log | None, position: int) -> str:
    return "" if log is None else log.cursor(position)


def _is_silent(loss: Loss, reader: Reader, catchup: Catchup) -> bool:
    """Under `latest` only a channel's newest event counts: what else the window lost is not told."""
    if loss.reason is not GapReason.WINDOW or reader.follow.bounds.policy is not Policy.LATEST:
        return False
    return not (_is_late(loss, catchup) and any(window.newest is None for window in loss.windows))


def _is_unasked(loss: Loss, catchup: Catchup) -> bool:
    """A client without a cursor asks for the newest events; what was lost before is none of its own.

    When a channel was forgotten, nobody knows any more: it is told.
    """
    return (
        not catchup.has_cursor
        and loss.reason is GapReason.WINDOW
        and bool(loss.windows)
        and loss.position <= catchup.head
        and not _is_late(loss, catchup)
    )


def _is_late(loss: Loss, catchup: Catchup) -> bool:
    """Whether a loss came after the stream had begun, of events that it still had to get."""
    return any(
        window.loss_serial > catchup.serial and loss.position > catchup.settled_on(window) for window in loss.windows
    )
