"""What is due at a time of its own."""

from __future__ import annotations

from hypothesis import given, strategies as st

from sse_gateway.deadlines import SLOT_S, Deadlines


def test_nothing_comes_early_and_nothing_much_later() -> None:
    """An item comes up within a slot after its time, once."""
    deadlines = Deadlines[str]()
    deadlines.add("a", 10.0)
    deadlines.add("b", 10.2)

    assert deadlines.due(10.0) == []
    assert deadlines.due(10.0 + SLOT_S) == ["a"]
    assert deadlines.due(10.2 + SLOT_S) == ["b"]
    assert deadlines.due(99.0) == []


def test_a_place_may_be_wider() -> None:
    """Then more share it, and come that much later."""
    deadlines = Deadlines[str](4.0)
    deadlines.add("a", 9.0)
    deadlines.add("b", 11.0)
    deadlines.add("c", 10.0)
    deadlines.discard("c", 10.0)

    assert len(deadlines._slots) == 1
    assert deadlines.due(11.9) == []
    assert deadlines.due(12.0) == ["a", "b"]


def test_the_clock_may_jump() -> None:
    """Forward, and all that was passed over comes up, the earliest first; back, and nothing comes up twice."""
    deadlines = Deadlines[str]()
    deadlines.add("late", 500.0)
    deadlines.add("soon", 10.0)

    assert deadlines.due(1000.0) == ["soon", "late"]
    assert deadlines.due(0.0) == []
    assert len(deadlines) == 0


def test_what_was_discarded_does_not_come_up() -> None:
    """Be it the only one of its time or not; what is not there can be discarded as well."""
    deadlines = Deadlines[str]()
    deadlines.add("a", 10.0)
    deadlines.add("b", 10.0)
    deadlines.discard("a", 10.0)
    deadlines.discard("a", 10.0)
    deadlines.discard("c", 20.0)
    assert deadlines.due(11.0) == ["b"]
    deadlines.add("a", 10.0)
    deadlines.discard("a", 10.0)
    deadlines.add("b", 10.0)
    assert deadlines.due(11.0) == ["b"]


def test_places_of_what_has_gone_are_given_back() -> None:
    """Streams that come and go, each with a time of its own, leave nothing behind (I5)."""
    deadlines = Deadlines[int]()
    deadlines.add(-1, 1.0)
    for number in range(5000):
        deadlines.add(number, 10.0 + number)
        deadlines.discard(number, 10.0 + number)
    assert len(deadlines._order) < 2000
    assert deadlines.due(2.0) == [-1]


@given(st.lists(st.tuples(st.integers(0, 20), st.floats(0, 100), st.booleans()), max_size=50), st.floats(0, 120))
def test_every_item_comes_up_exactly_once(steps: list[tuple[int, float, bool]], now: float) -> None:
    """Whatever was added and discarded before."""
    deadlines = Deadlines[int]()
    times: dict[int, float] = {}
    for item, at, keep in steps:
        if item in times:
            deadlines.discard(item, times.pop(item))
        if keep:
            deadlines.add(item, at)
            times[item] = at
    first = deadlines.due(now)
    assert {item for item, at in times.items() if at <= now - SLOT_S} <= set(first)
    assert all(times[item] <= now for item in first)
    assert sorted(first + deadlines.due(1000.0)) == sorted(times)
