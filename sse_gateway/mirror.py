"""What of log and windows is stored, and what is to be written next. Pure: commands come out.

Rules:
    1. The windows are the queue: nothing is kept to be written later. A batch is a prefix, in log order, of what
       lies behind the stored head; whoever is slow finds that windows have lost something meanwhile.
    2. A head moves only over events that are stored, or lost *and marked* (I2), by the floor of their channel's
       row, as far as the channel has a later event. So a batch holds all losses that are known before it holds an event.
    3. A batch is applied as a whole or not at all. If nobody knows, `drop` it all and `begin` again from what is stored.
    4. Losses below what is stored are what the store could do without: they are trimmed with the next change.
    5. Once writing is further behind than `max_lag`, and does not catch up, what is older is skipped, and marked.
    6. Only the current epoch is written. Where one ends before it was written, the rest of it is never stored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

from sse_gateway.backlog import Backlog
from sse_gateway.stored import BLOCK, Member, Row, State, encode
from sse_gateway.stored_ring import StoredRing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sse_gateway.channels import Rule
    from sse_gateway.history import History
    from sse_gateway.log import Log
    from sse_gateway.stored import Keys, Seal
    from sse_gateway.window import Event, Window

BATCH_EVENTS = 500
BATCH_BYTES = 512 * 1024
"""Events in one batch, and bytes of their frames, before the last one: some milliseconds of work, here and in Redis."""

BATCH_ROWS = 500
"""Channels whose losses go into one batch."""

BATCH_OFFSETS = 16 * BLOCK
"""Offsets that the head moves at most."""

MARGIN_S = 600.0
"""What is stored lives so much longer than the `max_age` of its rule, or than the longest one."""

MAX_BREAKS = 16
"""Epochs before the stored one that are remembered by name: their cursors are told the gap where it lies."""

Command: TypeAlias = tuple[bytes, ...]


@dataclass(slots=True)
class Batch:
    """What is written at once.

    Attributes:
        commands: Of Redis, in order.
        state: The value of the state that they end in.
        events: Events among them.
        has_more: There is more to write at once.
        created: Channels that are new.
        forgotten: Rows that are removed.
        expected: What Redis has to answer to some of the commands, by their index; else keys have gone.
    """

    commands: list[Command] = field(default_factory=list)
    state: bytes = b""
    events: int = 0
    has_more: bool = False
    created: int = 0
    forgotten: list[Row] = field(default_factory=list)
    expected: dict[int, int] = field(default_factory=dict)

    def add(self, *command: bytes, answer: int | None = None) -> None:
        """Add a command."""
        if answer is not None:
            self.expected[len(self.commands)] = answer
        self.commands.append(command)


class Mirror:
    """The model of what is stored.

    Attributes:
        epoch: Whose store this is; empty before `begin`, and after `drop`.
        head: Newest offset stored, -1 for none.
        skipped: Events that will never be stored: too old once writing had fallen behind, or lost by their window before.
    """

    def __init__(
        self,
        keys: Keys,
        seal: Seal,
        log: Log,
        history: History,
        rules: Sequence[Rule],
        *,
        node: str,
        max_lag_s: float,
    ) -> None:
        """Start without a store.

        Args:
            keys: Names of keys.
            seal: Seals values.
            log: The sequence.
            history: The windows.
            rules: In order of their index.
            node: Who writes.
            max_lag_s: See rule 5.
        """
        self.epoch = ""
        self.head = -1
        self.skipped = 0
        self._keys = keys
        self._seal = seal
        self._log = log
        self._history = history
        self._node = node
        self._max_lag_s = max_lag_s
        self._ages_s = [rule.window.max_age_s for rule in rules]
        self._ttl = _milliseconds(max(self._ages_s) + MARGIN_S)
        self._replaced = -1
        self._serial = 0
        self._clear()

    def _clear(self) -> None:
        self._rows: dict[str, Row] = {}
        self._gone = [-1] * len(self._ages_s)
        self._ring = StoredRing(self._keys, self._seal, self._log, self._ttl)
        self._order = 0
        self._is_blank = True
        self._losses: dict[str, int] = {}
        self._backlog = Backlog(self._history, self._max_lag_s)
        self._refresh_at = 0.0

    # Beginning.

    @property
    def is_valid(self) -> bool:
        """Whether the model stands for the log as it is now; else `begin`."""
        history = self._history
        return (
            bool(self.epoch)
            and self.epoch == self._log.epoch.name
            and self._replaced == history.replaced
            and history.touched is not None
        )

    def begin(self, state: State | None, rows: Mapping[str, Row], order: int, now: float) -> bool:
        """Go on from what is stored, or from nothing if that is not of this log.

        Args:
            state: Of the current epoch.
            rows: Its channels.
            order: Of the epoch among the stored ones.
            now: Seconds.

        Returns:
            False if more is stored than we have counted: come back later.
        """
        log, history = self._log, self._history
        base = log.epoch.base
        self.drop()
        self._order = order
        if state is not None and state.epoch == log.epoch.name and state.head > log.head - base:
            return False
        if state is not None and self._is_ours(state, rows):
            self._is_blank = False
            self.head = state.head
            self._gone = list(state.gone)
            self._rows = dict(rows)
            self._ring.resume(state.first, state.head)
        self.epoch = log.epoch.name
        self._replaced = history.replaced
        self._refresh_at = now
        history.touched, written = {}, base + self.head
        for name, window in history.windows.items():
            if window.newest_loss > written:
                self._losses[name] = -1
        self._losses.update((name, -1) for name in self._rows if name not in history.windows)
        return True

    def drop(self) -> None:
        """Forget what is stored: nobody knows, or somebody else writes. Idempotent."""
        self.epoch = ""
        self.head = -1
        self._history.touched = None
        self._clear()

    def _is_ours(self, state: State, rows: Mapping[str, Row]) -> bool:
        """Whether it is a beginning of the current epoch, whole."""
        log = self._log
        position = log.epoch.base + state.head
        if (state.epoch, len(rows), len(state.gone)) != (log.epoch.name, state.channels, len(self._gone)):
            return False
        first, parts = log.hashes_after(position - 1)
        return first == position and parts[0][0] == state.check

    # What is written.

    def batch(self, now: float, wall: float) -> Batch | None:
        """Take what is to be written next; None if there is nothing.

        Args:
            now: Seconds; the model is valid.
            wall: The same moment, Unix seconds.
        """
        self._note_losses()
        self._give_up(now)
        batch = Batch()
        changed: dict[str, Row] = {}
        if self._is_blank:
            batch.add(b"DEL", self._keys.channels(self.epoch))
        self._mark(batch, changed)
        head = self.head
        if not self._losses:
            head = self._add(batch, changed, now, wall)
        is_due = now >= self._refresh_at
        if head == self.head and not changed and not batch.commands and not is_due:
            return None
        self._add_rows(batch, changed)
        for command, answer in self._ring.advance(head):
            batch.add(*command, answer=answer)
        self.head = head
        batch.has_more = bool(self._losses) or head < self._log.head - self._log.epoch.base
        if is_due:
            self._refresh_at = now + MARGIN_S / 3
            for key in self._ring.blocks():
                batch.add(b"PEXPIRE", key, self._ttl)
        for row in batch.forgotten:
            self._gone[row.rule] = max(self._gone[row.rule], row.floor, row.newest)
        self._add_state(batch)
        self._is_blank = False
        return batch

    def keep(self) -> Batch:
        """What keeps the store alive while there is nothing to write, and finds out whether it is there."""
        batch = Batch()
        batch.add(b"PEXPIRE", self._keys.state(self.epoch), self._ttl, answer=1)
        self._keep_index(batch)
        return batch

    def _keep_index(self, batch: Batch) -> None:
        batch.add(b"PEXPIRE", self._keys.epochs, self._ttl, answer=1)
        batch.add(b"PEXPIRE", self._keys.channels(self.epoch), self._ttl, answer=int(bool(self._rows)))

    def _note_losses(self) -> None:
        """Take what the windows have lost since the last batch."""
        history = self._history
        assert history.touched is not None  # noqa: S101 - the model is valid
        touched, history.touched = history.touched, {}
        base = self._log.epoch.base
        for name in touched:
            self._losses.setdefault(name, -1)
            if (window := history.windows.get(name)) is not None:
                floor = row.floor if (row := self._rows.get(name)) is not None else -1
                self.skipped += window.missed_after(max(base + self.head, base + floor, self._backlog.given_up)) or 0

    def _give_up(self, now: float) -> None:
        """Take what is too old for lost, if writing does not catch up."""
        base = self._log.epoch.base
        for event in self._backlog.give_up(base + self.head, now):
            assert event.window is not None  # noqa: S101 - entries of a timeline have one
            self._losses[event.window.name] = event.position - base
            self.skipped += 1

    def _mark(self, batch: Batch, changed: dict[str, Row]) -> None:
        """Add what was lost, as far as a batch goes."""
        base = self._log.epoch.base
        for name in list(islice(self._losses, BATCH_ROWS)):
            floor = self._losses.pop(name)
            window = self._history.windows.get(name)
            if window is None:
                self._forget(name, batch)
            elif floor > window.newest_loss - base:
                self._raise_floor(window, floor, batch, changed, is_own=True)
            else:
                self._raise_floor(window, window.newest_loss - base, batch, changed, is_own=bool(window.lost))

    def _forget(self, name: str, batch: Batch) -> None:
        row = self._rows.pop(name, None)
        if row is not None:
            batch.forgotten.append(row)
            batch.add(b"HDEL", self._keys.channels(self.epoch), name.encode())
            batch.add(b"DEL", self._keys.window(self.epoch, name))

    def _raise_floor(self, window: Window, floor: int, batch: Batch, changed: dict[str, Row], *, is_own: bool) -> None:
        row = self._rows.get(window.name)
        if row is None:
            if floor >= 0:
                self._make_row(window, floor, batch, changed, is_own=is_own)
        elif floor > row.floor:
            if row.newest > row.floor:
                key = self._keys.window(self.epoch, window.name)
                batch.add(b"ZREMRANGEBYSCORE", key, b"-inf", b"%d" % floor)
            row.floor, row.is_own = floor, is_own
            changed[window.name] = row

    def _make_row(self, window: Window, floor: int, batch: Batch, changed: dict[str, Row], *, is_own: bool) -> Row:
        """Begin a channel. It may have been stored, and removed, or lost by another writer: up to where, `gone` says."""
        gone = self._gone[window.rule.index]
        row = Row(window.rule.index, max(floor, gone, -1), is_own and floor > gone, -1)
        self._rows[window.name] = changed[window.name] = row
        batch.created += 1
        batch.add(b"DEL", self._keys.window(self.epoch, window.name))
        return row

    def _add(self, batch: Batch, changed: dict[str, Row], now: float, wall: float) -> int:
        """Add the next events; returns the new head."""
        base = self._log.epoch.base
        events, head = self._next()
        by_window: dict[Window, list[Event]] = {}
        for event in events:
            assert event.window is not None  # noqa: S101 - entries of a timeline have one
            by_window.setdefault(event.window, []).append(event)
        for window, found in by_window.items():
            row = self._rows.get(window.name)
            if row is None:
                row = self._make_row(window, window.newest_loss - base, batch, changed, is_own=bool(window.lost))
            key = self._keys.window(self.epoch, window.name)
            place = self._seal.at(key)
            command = [b"ZADD", key]
            for event in found:
                offset = event.position - base
                score = b"%d" % offset
                command += score, place.seal(score, encode(_member(event, row.newest, now, wall)))
                row.newest = offset
            changed[window.name] = row
            batch.add(*command)
            ttl_s = self._ages_s[window.rule.index] + MARGIN_S
            batch.add(b"PEXPIRE", key, _milliseconds(ttl_s))
        batch.events = len(events)
        return head

    def _next(self) -> tuple[list[Event], int]:
        """Find the next events, as far as a batch goes, and the head that they lead to."""
        base = self._log.epoch.base
        limit = min(self._log.head, base + self.head + BATCH_OFFSETS)
        events: list[Event] = []
        size = 0
        for event in self._backlog.after(base + self.head):
            if event.position > limit:
                break
            if len(events) >= BATCH_EVENTS or size >= BATCH_BYTES:
                limit = events[-1].position
                break
            events.append(event)
            size += len(event.frame)
        return events, limit - base

    # The other parts of a batch.

    def _add_rows(self, batch: Batch, changed: dict[str, Row]) -> None:
        if changed:
            key = self._keys.channels(self.epoch)
            place = self._seal.at(key)
            command = [b"HSET", key]
            for name, row in changed.items():
                word = name.encode()
                command += word, place.seal(word, encode(row))
            batch.add(*command, answer=batch.created)

    def _add_state(self, batch: Batch) -> None:
        keys, epochs = self._keys, self._log.epochs
        self._serial += 1
        before = epochs[-1 - MAX_BREAKS : -1]
        ends = [epoch.base for epoch in epochs[-len(before) :]]
        state = State(
            epoch=self.epoch,
            reason=epochs[-1].reason,
            head=self.head,
            check=self._ring.check,
            first=self._ring.first,
            channels=len(self._rows),
            gone=[
                max(gone, mark - epochs[-1].base) for gone, mark in zip(self._gone, self._history.marks, strict=True)
            ],
            breaks=[(epoch.name, epoch.reason, end - epoch.base) for epoch, end in zip(before, ends, strict=False)],
            writer=self._node,
            serial=self._serial,
        )
        key = keys.state(self.epoch)
        batch.state = self._seal.at(key).seal(b"", encode(state))
        batch.add(b"ZADD", keys.epochs, b"%d" % self._order, self.epoch.encode())
        batch.add(b"ZREMRANGEBYRANK", keys.epochs, b"0", b"%d" % (-1 - MAX_BREAKS))
        batch.add(b"SET", key, batch.state, b"PX", self._ttl)
        self._keep_index(batch)


def _member(event: Event, before: int, now: float, wall: float) -> Member:
    received = wall - max(0.0, now - event.received_at)
    return Member(before, received, event.type, event.is_text, event.key, event.frame, event.raw)


def _milliseconds(seconds: float) -> bytes:
    return b"%d" % round(seconds * 1000)
