from __future__ import annotations

from sse_gateway.channels import QueueBounds
from sse_gateway.lagging import LOOK, RANK_BYTES, Lagging
from sse_gateway.outbox import Outbox
from sse_gateway.reader import Catchup, Follow, Framing, Reader
from sse_gateway.reasons import Policy
from tests.support.sockets import FakeSocket

BOUNDS = QueueBounds(10, 1_000_000, Policy.DROP_OLDEST)
FOLLOW = Follow(("a",), (), (), BOUNDS)


def behind(lagging: Lagging, size: int) -> Reader:
    """A reader for which so many bytes wait."""
    reader = Reader(FakeSocket(3, 0), FOLLOW, Framing(chunked=True, wrapped=False), 3000)
    reader.outbox = Outbox(BOUNDS, 0, b"x" * size)
    lagging.put(reader)
    return reader


def resize(reader: Reader, size: int) -> None:
    """Change what waits."""
    reader.outbox = Outbox(BOUNDS, 0, b"x" * size)


def test_members() -> None:
    """Who is behind is listed once, in the order in which it fell behind, until it is dropped."""
    lagging = Lagging()
    first, second = behind(lagging, 10), behind(lagging, 9 * RANK_BYTES)
    resize(first, 5 * RANK_BYTES)
    lagging.put(first)
    lagging.put(first)

    assert (list(lagging), len(lagging), first in lagging) == ([first, second], 2, True)
    for _ in range(2):
        lagging.drop(first)
    assert (list(lagging), first in lagging) == ([second], False)
    lagging.drop(second)
    assert (len(lagging), lagging.fullest(), lagging._by_rank) == (0, None, {})


def test_fullest() -> None:
    """The fullest is found to the byte among few, and by rank among many."""
    lagging = Lagging()
    readers = [behind(lagging, 100 + number) for number in range(LOOK)]
    assert lagging.fullest() is readers[-1]

    fuller = behind(lagging, 3 * RANK_BYTES)
    assert lagging.fullest() is fuller
    for reader in (fuller, readers.pop()):
        lagging.drop(reader)
    assert lagging.fullest() is readers[-1]


def test_who_has_drained() -> None:
    """What was full and has drained since is not taken for full."""
    lagging = Lagging()
    drained, other = behind(lagging, 9 * RANK_BYTES), behind(lagging, 2 * RANK_BYTES)
    drained.outbox = None

    assert lagging.fullest() is other


def test_what_a_replay_remembers() -> None:
    """What a reader that catches up remembers of its channels counts as well."""
    lagging = Lagging()
    behind(lagging, 5 * RANK_BYTES)
    reader = behind(lagging, 0)
    reader.catchup = Catchup(head=0, newest=None)
    reader.catchup.charged = 9 * RANK_BYTES
    lagging.put(reader)

    assert lagging.fullest() is reader
