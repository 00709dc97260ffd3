from __future__ import annotations

from typing import TYPE_CHECKING

from sse_gateway.hold import HOLD_S, Hold
from sse_gateway.reader import Phase, Reader
from tests.support.core import Core, rule

if TYPE_CHECKING:
    from collections.abc import Callable


def readers(count: int) -> list[Reader]:
    """Some readers that the hold alone moves."""
    core = Core(rule())
    return [core.connect("channel=a").reader for _ in range(count)]


def test_reached() -> None:
    """Readers come out in the order of their positions, once the log is there, each once."""
    hold = Hold()
    far, near, same = held = readers(3)
    for reader, position in zip(held, (9, 5, 5), strict=True):
        hold.put(reader, position, 0.0)

    assert [reader.phase for reader in held] == [Phase.HELD] * 3
    assert hold.reached(4) == []
    assert hold.reached(6) == [near, same]
    assert hold.reached(9) == [far]
    assert hold.reached(9) == []


def test_expired() -> None:
    """Readers come out when they have waited long enough, whoever is left waits on."""
    hold = Hold()
    first, second = held = readers(2)
    for reader, now in zip(held, (0.0, 1.0), strict=True):
        hold.put(reader, 100 - int(now), now)

    assert hold.expired(HOLD_S - 0.1) == []
    assert hold.expired(HOLD_S) == [first]
    assert hold.reached(100) == [second]
    assert hold.expired(HOLD_S + 1.0) == []


def test_all() -> None:
    """All come out at once, and later nobody does."""
    hold = Hold()
    held = readers(2)
    for reader in held:
        hold.put(reader, 5, 0.0)

    assert hold.all() == held
    assert (hold.reached(5), hold.expired(HOLD_S), hold.all()) == ([], [], [])


def test_held_again() -> None:
    """Whoever is put back keeps the time that he has waited: what goes on around him does not hold him longer."""
    hold = Hold()
    (reader,) = readers(1)
    hold.put(reader, 5, 0.0)
    for put_back in hold.all():
        hold.put(put_back, 9, HOLD_S - 1.0)

    assert hold.expired(HOLD_S) == [reader]
    assert hold.expired(2 * HOLD_S) == []


def test_gone_meanwhile() -> None:
    """Whoever has left does not come out, and is not kept for ever, however far its cursor was ahead (I5, I8)."""
    takes: list[Callable[[Hold], list[Reader]]] = [
        lambda hold: hold.reached(2**62),
        lambda hold: hold.expired(HOLD_S),
        lambda hold: hold.all(),
    ]
    for take in takes:
        hold = Hold()
        (reader,) = readers(1)
        hold.put(reader, 2**62, 0.0)
        reader.phase = Phase.ENDED

        assert take(hold) == []
        assert not hold._by_position
