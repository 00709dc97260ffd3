from __future__ import annotations

from sse_gateway.timeline import BLOCK, Mark, Timeline
from sse_gateway.window import Event, Window
from tests.support.core import rule

WINDOW = Window("a", rule(), -1, 0.0)


def timeline_with(count: int) -> Timeline:
    """A timeline with events at 0, 10, 20 …."""
    timeline = Timeline()
    for index in range(count):
        timeline.append(Event(index * 10, WINDOW, b"", 0.0))
    return timeline


def positions(timeline: Timeline, after: int = -1) -> list[int]:
    """Where entries stand."""
    return [entry.position for entry in timeline.after(after)]


def test_empty() -> None:
    """Nothing is found where there is nothing."""
    timeline = Timeline()

    assert positions(timeline) == []
    assert timeline.oldest() is None


def test_walk() -> None:
    """A walk gives every entry after a position in order, over all blocks."""
    count = 2 * BLOCK + 5
    timeline = timeline_with(count)

    for after in (-1, 0, 1, BLOCK * 10 - 1, BLOCK * 10, BLOCK * 10 + 1, count * 10):
        assert positions(timeline, after) == [place for place in range(0, count * 10, 10) if place > after]


def test_discard() -> None:
    """Entries leave from anywhere, and blocks with them."""
    count = 3 * BLOCK
    timeline = timeline_with(count)
    left = list(range(0, count * 10, 10))

    for place in [*range(0, BLOCK * 10, 10), *range(BLOCK * 20, BLOCK * 30, 30), (BLOCK + 7) * 10]:
        timeline.discard(place)
        left.remove(place)

    assert positions(timeline) == left
    timeline.append(Event(count * 10, WINDOW, b"", 0.0))
    assert positions(timeline) == [*left, count * 10]


def test_small_neighbours_are_joined() -> None:
    """Few entries out of many blocks are walked in order, whichever order the others left in."""
    blocks = 20
    places = [index * 10 for index in range(blocks * BLOCK) if index % BLOCK]
    for order in (places, places[::-1], places[::2] + places[1::2]):
        timeline = timeline_with(blocks * BLOCK)

        for place in order:
            timeline.discard(place)

        assert positions(timeline) == [index * BLOCK * 10 for index in range(blocks)]
        assert positions(timeline, BLOCK * 10) == [index * BLOCK * 10 for index in range(2, blocks)]


def test_discard_everything() -> None:
    """An emptied timeline takes entries again."""
    timeline = timeline_with(3)
    for place in (20, 0, 10):
        timeline.discard(place)
    emptied = positions(timeline)

    timeline.append(Event(30, WINDOW, b"", 0.0))

    assert emptied == []
    assert positions(timeline) == [30]


def test_mark() -> None:
    """A mark stands where its event stood."""
    timeline = timeline_with(3)

    timeline.mark(Mark(10, WINDOW))

    entries = list(timeline.after(-1))
    assert [type(entry) for entry in entries] == [Event, Mark, Event]
    assert [entry.position for entry in entries] == [0, 10, 20]
    assert entries[1].window is WINDOW


def test_abandon() -> None:
    """A mark whose window is forgotten stays, without its window."""
    timeline = timeline_with(3)
    timeline.mark(Mark(10, WINDOW))

    timeline.abandon(10)

    assert positions(timeline) == [0, 10, 20]
    assert [entry.window for entry in timeline.after(5)] == [None, WINDOW]


def test_neighbouring_abandoned_marks() -> None:
    """Of abandoned marks with nothing between them the newest is enough, whichever was abandoned first (I5)."""
    for order in ([10, 20, 30], [30, 20, 10], [10, 30, 20], [20, 10, 30]):
        timeline = timeline_with(5)

        for place in order:
            timeline.abandon(place)

        assert positions(timeline) == [0, 30, 40]


def test_abandoned_marks_become_neighbours() -> None:
    """Abandoned marks merge once what lay between them has left."""
    timeline = timeline_with(4)
    timeline.abandon(0)
    timeline.abandon(20)
    apart = positions(timeline)

    timeline.discard(10)

    assert apart == [0, 10, 20, 30]
    assert positions(timeline) == [20, 30]


def test_abandoned_marks_do_not_pile_up() -> None:
    """However many channels come and go, what is left of them stays small, over all blocks (I5)."""
    timeline = Timeline()
    for burst in range(10):
        places = [burst * 10_000 + index for index in range(BLOCK + 10)]
        for place in places:
            timeline.append(Event(place, WINDOW, b"", 0.0))
        for place in places:
            timeline.abandon(place)

    assert len(positions(timeline)) <= 3


def test_oldest() -> None:
    """The oldest event is found past marks and vacant places, and again after more have come."""
    timeline = timeline_with(3)
    found = []

    for place in (0, 10, 20):
        oldest = timeline.oldest()
        found.append(oldest and oldest.position)
        timeline.mark(Mark(place, WINDOW))
    nothing = timeline.oldest()
    timeline.discard(20)
    timeline.append(Event(40, WINDOW, b"", 0.0))
    newer = timeline.oldest()

    assert found == [0, 10, 20]
    assert nothing is None
    assert newer is not None
    assert newer.position == 40


def test_abandoned_is_told() -> None:
    """A timeline knows where its abandoned marks stand, however they came and went."""
    timeline = timeline_with(5)
    for place in (30, 0, 10):
        timeline.abandon(place)
    apart = set(timeline.abandoned)

    timeline.discard(20)

    assert apart == {10, 30}
    assert timeline.abandoned == {30}
    assert positions(timeline) == [30, 40]


def test_appended_marks() -> None:
    """Marks that are appended merge like those that were abandoned here (I5)."""
    timeline = timeline_with(1)
    window = Mark(10, WINDOW)

    for entry in (window, Mark(20, None), Mark(30, None), Event(40, WINDOW, b"", 0.0), Mark(50, None)):
        timeline.append(entry)

    assert positions(timeline) == [0, 10, 30, 40, 50]
    assert timeline.abandoned == {30, 50}
