"""A stored epoch, put together again, for a log that has none yet.

Rules:
    1. What does not fit together is refused as a whole; nothing of it is used (I10).
    2. Two losses are foreseen, because Redis may evict keys: the oldest events of a channel, or all of them; and of the
       ring all before the last hole.
    3. The stored epoch never goes on: what was published after its head, nobody knows. A new one has to begin, and its
       BREAK tells all channels; so a loss has a mark of its own only where the channel has an event behind it.
    4. Its events keep their ids. Positions begin anew; epochs before it keep their place, and have nothing left.
"""

from __future__ import annotations

import struct
from array import array
from typing import TYPE_CHECKING

from sse_gateway.cursor import CHECK_LENGTH
from sse_gateway.errors import StoreError
from sse_gateway.history import EVENT_BYTES
from sse_gateway.log import Epoch
from sse_gateway.snapshot import Held
from sse_gateway.stored import BLOCK, HASH_BYTES, Member, Row, State, decode
from sse_gateway.window import Event

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sse_gateway.history import History
    from sse_gateway.log import Log
    from sse_gateway.stored import Keys, Seal


def read_state(keys: Keys, seal: Seal, epoch: str, value: bytes) -> State:
    """Read the state of an epoch.

    Raises:
        StoreError: It is damaged, or of another version.
    """
    state = decode(seal.at(keys.state(epoch)).open(b"", value), State)
    if state.epoch != epoch:
        raise StoreError("damaged: the state of another epoch")
    return state


def read_rows(keys: Keys, seal: Seal, epoch: str, fields: Mapping[bytes, bytes]) -> dict[str, Row]:
    """Read the rows of an epoch's channels.

    Raises:
        StoreError: One is damaged, or of another version.
    """
    place = seal.at(keys.channels(epoch))
    try:
        return {name.decode(): decode(place.open(name, value), Row) for name, value in fields.items()}
    except UnicodeDecodeError:
        raise StoreError("damaged: the name of a channel") from None


class Recollection:
    """What is read of a stored epoch.

    Attributes:
        state: How far it goes.
        rows: Its channels.
        events: Events read so far.
        lost: Channels whose events are gone.
    """

    def __init__(
        self, keys: Keys, seal: Seal, state: State, rows: dict[str, Row], *, rules: int, max_bytes: int
    ) -> None:
        """Begin with what says what there is.

        Args:
            keys: Names of keys.
            seal: Proves values.
            state: Of the newest epoch.
            rows: All of its channels.
            rules: Number of rules.
            max_bytes: What events may cost in memory.

        Raises:
            StoreError: They do not fit together.
        """
        is_sound = len(state.gone) == rules and all(0 <= row.rule < rules for row in rows.values())
        if state.channels != len(rows) or not is_sound or not 0 <= state.first <= state.head:
            raise StoreError("damaged: channels are missing")
        self.state = state
        self.rows = rows
        self.events = 0
        self.lost = 0
        self._keys = keys
        self._seal = seal
        self._max_bytes = max_bytes
        self._bytes = 0
        self._first = state.first
        self._hashes = array("Q")
        self._held: list[Held] = []
        self._abandoned: list[set[int]] = [set() for _ in range(rules)]
        self._base = sum(length for _, _, length in state.breaks)

    def blocks(self) -> range:
        """The numbers of the ring's blocks."""
        return range(self.state.first // BLOCK, self.state.head // BLOCK + 1)

    def add_ring(self, values: Sequence[bytes | None]) -> None:
        """Take all blocks of the ring, None for one that is gone.

        Raises:
            StoreError: One is damaged, or does not lead to the state.
        """
        state = self.state
        start = self.blocks().start * BLOCK
        for block, value in zip(self.blocks(), values, strict=True):
            if value is None:
                self._hashes = array("Q")
                start = self._first = (block + 1) * BLOCK
            else:
                place = self._seal.at(self._keys.ring(state.epoch, block))
                self._hashes.extend(_hashes(place.open(b"", value)))
        if len(self._hashes) != state.head + 1 - start or self._hashes[-1:] != array("Q", [state.check]):
            raise StoreError("damaged: hashes are missing")
        del self._hashes[: self._first - start]

    def add_window(self, name: str, members: Iterable[tuple[bytes, float]], now: float, wall: float) -> None:
        """Take the events of a channel; the ring is there.

        Args:
            name: Of a channel that has a row.
            members: Values and scores, in order; none if they are gone.
            now: Seconds.
            wall: The same moment, Unix seconds.

        Raises:
            StoreError: They are damaged, or too much.
        """
        row = self.rows[name]
        floor, is_own, before = row.floor, row.is_own, -1
        events: list[Event] = []
        keys: list[str] = []
        place = self._seal.at(self._keys.window(self.state.epoch, name))
        for value, score in members:
            offset = int(score)
            member = decode(place.open(b"%d" % offset, value), Member)
            if offset <= row.floor:
                continue
            if not events and member.before > floor:  # Redis has evicted the key, and then it was written again
                floor, is_own = member.before, True
            if (events and member.before != before) or not before < offset <= self.state.head:
                raise StoreError("damaged: an event is missing")
            before = offset
            events.append(self._event(member, offset, now - max(0.0, wall - member.wall)))
            if member.key is not None:
                keys.append(member.key)
        if events and before != row.newest:
            raise StoreError("damaged: the newest event is missing")
        if not events:
            self.lost += row.newest > row.floor
            return
        mark = self._base + floor if floor >= 0 else -1
        lost = [mark] if floor >= 0 and is_own else []
        if floor >= 0 and not is_own:
            self._abandoned[row.rule].add(mark)
        self._held.append(Held(name, row.rule, events[-1].received_at, mark, mark, lost, keys, events))

    def restore(self, log: Log, history: History, now: float) -> None:
        """Put it into a log that has no epoch and windows that hold nothing; a new epoch has to begin then."""
        state, base, position = self.state, self._base, 0
        epochs = []
        for name, reason, length in state.breaks:
            epochs.append(Epoch(name, position, reason))
            position += length
        epochs.append(Epoch(state.epoch, base, state.reason))
        log.restart(base + self._first - 1)
        log.extend(epochs, [self._hashes])
        history.install(self._held, [-1] * len(state.gone), self._free_marks(), now)
        self._held = []

    def _free_marks(self) -> list[set[int]]:
        """Per rule, where losses of forgotten channels are told to followers of a prefix.

        A place that is another channel's cannot be such a loss: the one before may be.
        """
        taken: list[set[int]] = [set() for _ in self._abandoned]
        for held in self._held:
            if self._abandoned[held.rule]:
                taken[held.rule].update(held.lost)
                taken[held.rule].update(event.position for event in held.events)
        return [{_free(mark, places) for mark in marks} for marks, places in zip(self._abandoned, taken, strict=True)]

    def _event(self, member: Member, offset: int, received_at: float) -> Event:
        event = Event(
            self._base + offset,
            None,
            member.frame,
            received_at,
            type=member.type,
            is_text=member.is_text,
            raw=member.raw,
            key=member.key,
        )
        self.events += 1
        self._bytes += EVENT_BYTES + len(member.frame) + len(member.raw or b"")
        if self._bytes > self._max_bytes:
            raise StoreError(f"too large: its events need more than {self._max_bytes} bytes of memory")
        if offset >= self._first and not member.frame.startswith(self._id_line(offset)):
            raise StoreError("damaged: an event that the ring does not know")
        return event

    def _id_line(self, offset: int) -> bytes:
        """How the block of an event begins."""
        check = f"{self._hashes[offset - self._first]:016x}"[:CHECK_LENGTH]
        return f"id: {self.state.epoch}-{offset}-{check}\n".encode()


def _free(mark: int, taken: set[int]) -> int:
    while mark in taken:
        mark -= 1
    return mark


def _hashes(body: bytes) -> tuple[int, ...]:
    if not body or len(body) % HASH_BYTES:
        raise StoreError("damaged: hashes that are not whole")
    return struct.unpack(f">{len(body) // HASH_BYTES}Q", body)
