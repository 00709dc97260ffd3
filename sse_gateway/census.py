"""Who has how many streams on this node, though several processes serve it: a table in memory they share.

Each process has a section of its own, writes there and nowhere else, and reads all of them. So there is
no lock to die with, nobody to ask and nobody to wait for; and a process that is killed leaves behind one
section, which whoever keeps the processes clears.

Rules:
    1. Claim, then count: a place is written down before the sections are summed, and taken back if the
       sum is over the limit. Two processes at once may both refuse the last place; they cannot both give it.
    2. Amounts that fade do so exponentially, because then the sum of what each process remembers is the
       same as if one remembered all of it.
    3. Keys are keyed hashes of 8 bytes: an address or a subject is in no memory that outlives its stream,
       and nobody can choose keys that meet in one bucket.
    4. A bucket that is full refuses: nobody goes uncounted. With a quarter of the rows in use, which is
       the most, that is once in 10**10.
    5. A word of 8 bytes is read and written whole. A row that changes hands while another process reads
       it may be read wrong once, which is one refusal for now, or one stream too many for a moment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BUCKET_ROWS = 32
"""Rows among which a key is looked for."""

ROWS_PER_STREAM = 4
"""Rows of each table for one stream that a section may hold: a bucket of 32 then has 8 in use at most, on average."""

FADE_S = 60.0
"""What was spent counts for a minute: 37 % of it is left after that."""

SLICE_S = 0.1
"""Arrivals are counted in slices; a second is this one and the nine before."""

SLICES = 10

KEY_BYTES = 8
SECRET_BYTES = 16

_WORD = 8
_HEAD_WORDS = 2 + SECRET_BYTES // _WORD  # sections, rows, secret
_PAGE_BYTES = 65_536  # the largest of any kernel: sections share none, so that one can be given back
_RING = 16  # slices remembered; more than SLICES, so that one that is begun is not one that is read
_SECTION_WORDS = 1 + 2 * _RING  # streams, and of each slice its number and its count
_TABLES = 3


@dataclass(frozen=True, slots=True)
class Shape:
    """The measures of a census.

    Attributes:
        sections: Processes.
        rows: Rows of each table of a section; a power of two.
    """

    sections: int
    rows: int

    @classmethod
    def of(cls, sections: int, streams: int) -> Shape:
        """The shape for so many processes with so many streams each."""
        return cls(sections, 1 << max(BUCKET_ROWS, ROWS_PER_STREAM * streams - 1).bit_length())

    @property
    def section_bytes(self) -> int:
        """Of one section; what is never written costs nothing."""
        size = _WORD * (_SECTION_WORDS + 3 * _TABLES * self.rows)
        return -(-size // _PAGE_BYTES) * _PAGE_BYTES

    @property
    def size(self) -> int:
        """Bytes of the whole."""
        return self.begin(self.sections)

    def begin(self, slot: int) -> int:
        """Where a section begins."""
        return _PAGE_BYTES + slot * self.section_bytes


class Census:
    """The sections of one generation of processes, in one stretch of memory.

    Attributes:
        shape: Its measures.
        secret: Of the keys.
    """

    def __init__(self, memory: memoryview) -> None:
        """Read what `lay_out` wrote."""
        head = memory[: 2 * _WORD].cast("Q")
        self.shape = Shape(head[0], head[1])
        self.secret = bytes(memory[2 * _WORD : _HEAD_WORDS * _WORD])
        self._memory = memory

    def section(self, slot: int) -> Section:
        """The section of one process."""
        return Section(self._memory[self.shape.begin(slot) : self.shape.begin(slot + 1)], self.shape.rows)

    def sections(self) -> list[Section]:
        """All of them."""
        return [self.section(slot) for slot in range(self.shape.sections)]


def lay_out(memory: memoryview, shape: Shape, secret: bytes) -> Census:
    """Begin a census in memory that is zero."""
    head = memory[: 2 * _WORD].cast("Q")
    head[0], head[1] = shape.sections, shape.rows
    memory[2 * _WORD : _HEAD_WORDS * _WORD] = secret
    return Census(memory)


def alone(streams: int, secret: bytes) -> Register:
    """The register of a process that shares with nobody."""
    shape = Shape.of(1, streams)
    census = lay_out(memoryview(bytearray(shape.size)), shape, secret)
    return Register(census.section(0), [], secret)


class Section:
    """What one process writes down.

    Attributes:
        tables: Streams by address, streams by subject, bytes spent.
    """

    def __init__(self, memory: memoryview, rows: int) -> None:
        self._words = memory[: _SECTION_WORDS * _WORD].cast("d")
        rest = memory[_SECTION_WORDS * _WORD :]
        size = 3 * rows * _WORD
        self.tables = [Table(rest[at * size : (at + 1) * size], rows) for at in range(_TABLES)]

    @property
    def streams(self) -> int:
        """Streams that the process has."""
        return int(self._words[0])

    def add_stream(self, count: int) -> None:
        """One more, or one less. Only for its own process."""
        self._words[0] += count

    def arrivals(self, now: float) -> int:
        """New streams within the last second."""
        newest = int(now / SLICE_S)
        slices = range(1, 1 + 2 * _RING, 2)
        return sum(int(self._words[at + 1]) for at in slices if newest - SLICES < self._words[at] <= newest)

    def add_arrival(self, now: float, count: int) -> None:
        """One more, or one that did not come after all. Only for its own process."""
        number = int(now / SLICE_S)
        at = 1 + 2 * (number % _RING)
        if self._words[at] != number:
            self._words[at + 1] = 0.0
            self._words[at] = number
        self._words[at + 1] += count


class Table:
    """Amounts by key, in buckets."""

    def __init__(self, memory: memoryview, rows: int) -> None:
        self._keys = memory[: rows * _WORD]
        self._amounts = memory[rows * _WORD : 2 * rows * _WORD].cast("d")
        self._moments = memory[2 * rows * _WORD : 3 * rows * _WORD].cast("d")
        self._mask = rows // BUCKET_ROWS - 1

    def amount(self, key: bytes) -> float:
        """What is written down for a key; 0 if nothing is."""
        row = self._find(key)
        return 0.0 if row is None else self._amounts[row]

    def faded(self, key: bytes, now: float) -> float:
        """What is left by now of an amount that fades."""
        row = self._find(key)
        return 0.0 if row is None else self._left(row, now)

    def add(self, key: bytes, amount: float) -> bool:
        """Add to a key's amount; False if there is no row for it. At zero the row is free again."""
        row = self._find(key)
        if row is None:
            row = next((row for row in self._bucket(key) if not self._amounts[row]), None)
            if row is None:
                return False
            self._moments[row] = 0.0
            self._keys[row * _WORD : (row + 1) * _WORD] = key
        self._amounts[row] += amount
        return True

    def spend(self, key: bytes, amount: float, now: float) -> None:
        """Add to a key's amount, which fades; where there is no row, the key that has least gives its own up."""
        row = self._find(key)
        left = 0.0 if row is None else self._left(row, now)
        if row is None:
            row = min(self._bucket(key), key=lambda row: self._left(row, now))
            self._keys[row * _WORD : (row + 1) * _WORD] = key
        self._moments[row] = now
        self._amounts[row] = left + amount

    def _left(self, row: int, now: float) -> float:
        amount = self._amounts[row]
        return amount and amount * math.exp(min(0.0, self._moments[row] - now) / FADE_S)

    def _bucket(self, key: bytes) -> range:
        first = (int.from_bytes(key) & self._mask) * BUCKET_ROWS
        return range(first, first + BUCKET_ROWS)

    def _find(self, key: bytes) -> int | None:
        first = (int.from_bytes(key) & self._mask) * BUCKET_ROWS
        keys = bytes(self._keys[first * _WORD : (first + BUCKET_ROWS) * _WORD])
        at = keys.find(key)
        while at % _WORD and at > 0:  # the end of one key and the begin of the next
            at = keys.find(key, at + 1)
        return None if at < 0 else first + at // _WORD


class Register:
    """One process's view: its own section, those of the others, and those of the generation that they take over from."""

    def __init__(self, own: Section, others: Sequence[Section], secret: bytes, former: Sequence[Section] = ()) -> None:
        self._own = own
        self._generation = (own, *others)
        self._all = (own, *others, *former)
        self._secret = secret

    def key(self, text: str) -> bytes:
        """The key of an address or a subject; never zero, which is a free row."""
        digest = blake2b(text.encode(errors="surrogatepass"), digest_size=KEY_BYTES, key=self._secret).digest()
        return digest if any(digest) else b"\1" * KEY_BYTES

    @property
    def streams(self) -> int:
        """Streams of the node."""
        return sum(section.streams for section in self._all)

    @property
    def streams_of_generation(self) -> int:
        """Of these, such as will not soon be gone."""
        return sum(section.streams for section in self._generation)

    def take_stream(self, limit: int) -> bool:
        """Count one more stream of the node; False if it would be one too many."""
        self._own.add_stream(1)
        if self.streams > limit:
            self._own.add_stream(-1)
            return False
        return True

    def leave_stream(self) -> None:
        """Count one less."""
        self._own.add_stream(-1)

    def take(self, table: int, key: bytes, limit: int) -> bool:
        """Count one more stream of a key; False if it would be one too many."""
        if not self._own.tables[table].add(key, 1.0):
            return False
        if sum(each.amount(key) for each in self._tables(table)) > limit:
            self._own.tables[table].add(key, -1.0)
            return False
        return True

    def leave(self, table: int, key: bytes) -> None:
        """Count one less."""
        self._own.tables[table].add(key, -1.0)

    def arrive(self, limit: int, now: float) -> bool:
        """Count one more arrival within this second; False if it would be one too many."""
        self._own.add_arrival(now, 1)
        if sum(section.arrivals(now) for section in self._all) > limit:
            self._own.add_arrival(now, -1)
            return False
        return True

    def spent(self, table: int, key: bytes, now: float) -> float:
        """What a key has spent, as far as it still counts."""
        return sum(each.faded(key, now) for each in self._tables(table))

    def spend(self, table: int, key: bytes, amount: float, now: float) -> None:
        """Count what a key spends."""
        self._own.tables[table].spend(key, amount, now)

    def _tables(self, table: int) -> Iterator[Table]:
        return (section.tables[table] for section in self._all)
