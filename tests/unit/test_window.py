from __future__ import annotations

import pytest

from sse_gateway.events import Publication
from sse_gateway.frames import event_frame, gap_frame
from sse_gateway.reasons import GapReason
from sse_gateway.window import NO_KEYS, NO_LOSS, Event, Window
from tests.support.core import rule


def window_with(*positions: int, mark: int = -1, events: int = 100, size: int = 1_000_000) -> Window:
    """A window that holds events of 10 bytes, received at their positions as seconds."""
    window = Window("a", rule(events=events, size=size), mark, 0.0)
    for position in positions:
        window.append(event_at(position, window))
    return window


def event_at(position: int, window: Window | None = None) -> Event:
    """An event of 10 bytes."""
    return Event(position, window, b"x" * 10, float(position))


def positions(events: list[Event]) -> list[int]:
    """Where events stand."""
    return [event.position for event in events]


@pytest.mark.parametrize("type_", ["message", "id: x"])
def test_cursor_of_an_event(type_: str) -> None:
    """An event's cursor is what its frame says, whatever its type and data."""
    frame = event_frame("epoch0000001-7-0123456789ab", Publication(b"id: no", type_))

    assert Event(7, None, frame, 0.0).cursor == "epoch0000001-7-0123456789ab"


def test_cursor_of_a_gap() -> None:
    """A gap that stands among events has its cursor, too."""
    frame = gap_frame("epoch0000001-0-0123456789ab", GapReason.SOURCE, ["id: x"], None)

    assert Event(7, None, frame, 0.0).cursor == "epoch0000001-0-0123456789ab"


def test_empty() -> None:
    """A new window holds nothing and has lost what its rule's mark says (I2)."""
    window = window_with(mark=7)

    assert len(window) == 0
    assert window.newest is None
    assert not window.is_over(oldest_allowed=1e9)
    assert window.after(0, 10) == []
    assert (window.newest_loss, window.missed_after(6), window.missed_after(7)) == (7, None, 0)


def test_append() -> None:
    """Events are held in order, with their bytes."""
    window = window_with(3, 5)

    assert len(window) == 2
    assert window.bytes == 20
    assert window.newest is not None
    assert window.newest.position == 5


@pytest.mark.parametrize(
    ("events", "size", "oldest_allowed", "is_over"),
    [
        (3, 30, 0.9, False),
        (2, 30, 0.9, True),
        (3, 29, 0.9, True),
        (3, 30, 1.0, True),
    ],
)
def test_bounds(events: int, size: int, oldest_allowed: float, is_over: bool) -> None:
    """A window is bounded by events, bytes and age, each bound inclusive (I5)."""
    window = window_with(1, 2, 3, events=events, size=size)

    assert window.is_over(oldest_allowed) is is_over


def test_evict() -> None:
    """The oldest event is lost, and remembered with its place and the history's count."""
    window = window_with(1, 3)

    event = window.evict(serial=9)

    assert (event.position, event.frame) == (1, b"x" * 10)
    assert (len(window), window.bytes) == (1, 10)
    assert (window.newest_loss, window.loss_serial, list(window.lost)) == (1, 9, [1])


def test_evict_all() -> None:
    """A window that has lost everything is empty, and takes events again."""
    window = window_with(1, 2, 3)
    for serial in range(3):
        window.evict(serial)
    emptied = (len(window), window.bytes, window.newest)

    window.append(event_at(4, window))

    assert emptied == (0, 0, None)
    assert positions(window.after(-1, 10)) == [4]


def test_after() -> None:
    """The oldest events after a position are found, with and without losses before them."""
    window = window_with(1, 3, 5, 7, 9)
    window.evict(1)
    window.evict(2)

    assert positions(window.after(-1, 10)) == [5, 7, 9]
    assert positions(window.after(5, 1)) == [7]
    assert positions(window.after(6, 2)) == [7, 9]
    assert window.after(9, 10) == []


def test_missed_after() -> None:
    """Lost events are counted exactly, from any position."""
    window = window_with(*range(0, 20, 2))
    for serial in range(5):
        window.evict(serial)

    assert [window.missed_after(position) for position in (-1, 0, 3, 7, 8, 100)] == [5, 4, 3, 1, 0, 0]


def test_forget() -> None:
    """Beyond what is remembered the count is unknown, up to the newest loss that was forgotten."""
    window = window_with(*range(10))
    for serial in range(6):
        window.evict(serial)

    assert window.forget(keep=6) == 0
    assert window.forget(keep=2) == 4
    assert list(window.lost) == [4, 5]
    assert [window.missed_after(position) for position in (2, 3, 4, 5)] == [None, 2, 1, 0]
    assert window.newest_loss == 5


def test_is_among_newest() -> None:
    """The newest so many at or before a head, and everything after it."""
    window = window_with(1, 3, 5, 7)
    events = window.after(-1, 10)

    assert [window.is_among_newest(event, 2, head=5) for event in events] == [False, True, True, True]
    assert [window.is_among_newest(event, 0, head=4) for event in events] == [False, False, True, True]


def test_nth_newest() -> None:
    """The oldest of the newest so many at or before a head, as far as they are held."""
    window = window_with(1, 3, 5, 7)
    window.evict(1)

    found = [window.nth_newest(count, head) for count, head in [(1, 7), (2, 7), (2, 6), (2**63 - 1, 7), (0, 7), (1, 2)]]

    assert [event and event.position for event in found] == [7, 5, 3, 3, None, None]


def test_clear() -> None:
    """A window that begins anew has nothing, lost nothing and knows no key; its readers stay."""
    window = window_with(1, 3, 5, mark=0)
    window.evict(1)
    window.add_key("k")

    window.clear()

    assert (len(window), window.bytes, window.newest, window.keys) == (0, 0, None, {})
    assert (window.newest_loss, window.forgotten, window.missed_after(-1)) == (-1, -1, 0)
    window.append(event_at(9, window))
    assert positions(window.after(-1, 10)) == [9]


def test_keys() -> None:
    """Keys are remembered in the order in which they came, and forgotten one by one."""
    window = window_with()
    for key in ("b", "a", "c"):
        window.add_key(key)

    window.drop_key("a")

    assert list(window.keys) == ["b", "c"]


def test_losses_from_elsewhere() -> None:
    """They are remembered after those of this window."""
    window = window_with(1, 3)
    window.evict(1)

    window.lose([5, 8], serial=4)

    assert (list(window.lost), window.newest_loss, window.loss_serial) == ([1, 5, 8], 8, 4)
    assert [window.missed_after(position) for position in (0, 1, 5, 8)] == [3, 2, 1, 0]


def test_what_windows_share_stays_empty() -> None:
    """A window that has nothing of a kind shares that with others, and only until it has something (rule 4)."""
    first, second, third = window_with(1), window_with(), window_with()
    assert first.lost is second.lost is third.lost is NO_LOSS
    assert first.keys is second.keys is third.keys is NO_KEYS

    first.evict(1)
    first.add_key("k")
    second.lose([7], serial=2)

    assert (list(first.lost), list(second.lost), list(third.lost)) == ([1], [7], [])
    assert (list(first.keys), list(third.keys)) == (["k"], [])
    for window in (first, second):
        window.clear()
    assert first.lost is second.lost is NO_LOSS
    assert first.keys is NO_KEYS
    assert (len(NO_LOSS), len(NO_KEYS)) == (0, 0)


def test_forget_what_was_unknown_before() -> None:
    """Forgetting losses never makes certain what a peer did not know either: its own losses may lie above ours (I2)."""
    window = window_with(*range(4))
    for serial in range(4):
        window.evict(serial)
    window.forgotten = 2

    window.forget(keep=2)

    assert list(window.lost) == [2, 3]
    assert [window.missed_after(position) for position in (1, 2, 3)] == [None, 1, 0]
