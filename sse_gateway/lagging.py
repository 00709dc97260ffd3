"""Who is behind, and which of them has most waiting.

At the memory of all queues the fullest stream is ended, and the next, as fast as others fill. To find it among
all that are behind, each time, would hold the loop for seconds where they are very many (10,000 stalled streams: 60 ms
for each event). So they are filed by rank, which changes once in `RANK_BYTES`.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sse_gateway.reader import Reader

RANK_BYTES = 4096
"""Streams that differ by less may have one rank."""

LOOK = 64
"""Of one rank, so many are compared: among so few that are behind, the fullest is found to the byte."""


class Lagging:
    """The readers that are not writable, in the order in which they fell behind."""

    __slots__ = ("_by_rank", "_ranks")

    def __init__(self) -> None:
        self._ranks: dict[Reader, int] = {}
        self._by_rank: dict[int, dict[Reader, None]] = {}

    def __len__(self) -> int:
        return len(self._ranks)

    def __iter__(self) -> Iterator[Reader]:
        return iter(self._ranks)

    def __contains__(self, reader: Reader) -> bool:
        return reader in self._ranks

    def put(self, reader: Reader) -> None:
        """Note that a reader is behind, or has more waiting now; that it has less is found out later."""
        rank = _waiting(reader) // RANK_BYTES
        before = self._ranks.get(reader)
        if rank == before:
            return
        if before is not None:
            self._unfile(reader, before)
        self._ranks[reader] = rank
        self._by_rank.setdefault(rank, {})[reader] = None

    def drop(self, reader: Reader) -> None:
        """Note that a reader is writable, or has ended. Idempotent."""
        rank = self._ranks.pop(reader, None)
        if rank is not None:
            self._unfile(reader, rank)

    def fullest(self) -> Reader | None:
        """Find the one that has most waiting, to `RANK_BYTES`."""
        while self._by_rank:
            rank = max(self._by_rank)
            looked_at = tuple(islice(self._by_rank[rank], LOOK))
            for reader in looked_at:
                self.put(reader)  # it may have drained since
            found = [reader for reader in looked_at if self._ranks[reader] == rank]
            if found:
                return max(found, key=_waiting)
        return None

    def _unfile(self, reader: Reader, rank: int) -> None:
        same = self._by_rank[rank]
        del same[reader]
        if not same:
            del self._by_rank[rank]


def _waiting(reader: Reader) -> int:
    charged = 0 if reader.catchup is None else reader.catchup.charged
    return charged + (0 if reader.outbox is None else len(reader.outbox))
