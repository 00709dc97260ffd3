from __future__ import annotations

import pytest

from sse_gateway.channels import QueueBounds
from sse_gateway.frames import gap_frame
from sse_gateway.outbox import CHUNK_BYTES, KEPT_BYTES, NAMED, Loss, Outbox
from sse_gateway.reasons import GapReason, Policy
from sse_gateway.window import Event, Window
from tests.support.core import rule

A, B, C = (Window(name, rule(), -1, 0.0) for name in "abc")
SIZE = 20


def event(position: int, window: Window = A, size: int = SIZE) -> Event:
    """An event whose frame has so many bytes."""
    return Event(
        position, window, b"id: %d\ndata: " % position + b"x" * (size - 13 - len(str(position))) + b"\n\n", 0.0
    )


def break_(position: int, reason: GapReason = GapReason.SOURCE) -> Event:
    """A gap that stands among events."""
    return Event(position, None, gap_frame(str(position), reason, ["a"], None), 0.0, type=reason.value)


def outbox(policy: Policy = Policy.DROP_OLDEST, events: int = 100, size: int = 1_000_000, chunk: bytes = b"") -> Outbox:
    """An empty outbox."""
    return Outbox(QueueBounds(events, size, policy), 0, chunk)


def positions(events: list[Event]) -> list[int]:
    """Where events stand."""
    return [event.position for event in events]


def loss(position: int, reason: GapReason, missed: int | None, *windows: Window) -> Loss:
    """A loss."""
    return Loss(position, str(position), reason, missed, windows)


@pytest.mark.parametrize(
    ("first", "second", "merged"),
    [
        (GapReason.OVERFLOW, GapReason.OVERFLOW, GapReason.OVERFLOW),
        (GapReason.OVERFLOW, GapReason.WINDOW, GapReason.WINDOW),
        (GapReason.OVERFLOW, GapReason.SOURCE, GapReason.SOURCE),
        (GapReason.SOURCE, GapReason.OVERFLOW, GapReason.SOURCE),
        (GapReason.EPOCH, GapReason.OVERFLOW, GapReason.EPOCH),
        (GapReason.EPOCH, GapReason.SOURCE, GapReason.SOURCE),
        (GapReason.WINDOW, GapReason.EPOCH, GapReason.EPOCH),
        (GapReason.WINDOW, GapReason.OVERFLOW, GapReason.WINDOW),
    ],
)
def test_merged_reason(first: GapReason, second: GapReason, merged: GapReason) -> None:
    """Gaps that merge keep `source` and `epoch` over `overflow`."""
    whole = loss(1, first, 1, A)

    whole.merge(loss(2, second, 1, A))

    assert whole.reason is merged


def test_merged_loss() -> None:
    """Gaps that merge stand where the later one stood, name all channels, and add up."""
    whole = loss(1, GapReason.OVERFLOW, 2, A)

    whole.merge(loss(5, GapReason.OVERFLOW, 3, B, A))

    assert (whole.position, whole.cursor, whole.missed, list(whole.windows)) == (5, "5", 5, [A, B])


def test_merged_unknowns() -> None:
    """What nobody can count, or lies on all channels, stays so."""
    for first, second in [(None, 1), (1, None), (None, None)]:
        whole = loss(1, GapReason.OVERFLOW, first, A)
        whole.merge(loss(2, GapReason.OVERFLOW, second, A))
        assert whole.missed is None

    for left, right in [((), (A,)), ((A,), ()), ((), ())]:
        whole = loss(1, GapReason.SOURCE, None, *left)
        whole.merge(loss(2, GapReason.SOURCE, None, *right))
        assert not whole.windows


def test_take_in_order() -> None:
    """What waits is taken in order, and moves the position."""
    box = outbox()
    box.offer([event(1), event(2, B)])
    box.offer([event(5)])

    assert (box.count, box.bytes, len(box)) == (3, 3 * SIZE, 3 * SIZE)
    lost, taken = box.take()

    assert lost is None
    assert positions(taken) == [1, 2, 5]
    assert (box.count, box.bytes, box.position) == (0, 0, 5)


def test_take_nothing() -> None:
    """An empty outbox gives nothing and stays where it is."""
    box = outbox(chunk=b"rest")

    assert box.take() == (None, [])
    assert (box.position, len(box), box.fill) == (0, 4, 0.0)


def test_take_whole_chunks() -> None:
    """At most a chunk of whole frames is taken at a time."""
    box = outbox()
    third = CHUNK_BYTES // 3
    box.offer([event(position, size=third) for position in range(1, 8)])

    taken = [positions(box.take()[1]) for _ in range(4)]

    assert taken == [[1, 2, 3], [4, 5, 6], [7], []]


def test_take_large_frames() -> None:
    """A frame larger than a chunk goes alone (a large event never waits for ever)."""
    box = outbox()
    box.offer([event(1), event(2, size=3 * CHUNK_BYTES), event(3)])

    assert [positions(box.take()[1]) for _ in range(3)] == [[1], [2], [3]]


def test_a_batch_is_never_refused() -> None:
    """The bounds are judged when the next batch arrives, never on the batch just offered."""
    box = outbox(events=2)

    dropped = box.offer([event(position) for position in range(1, 11)])

    assert dropped == 0
    assert box.is_over
    assert box.fill == 5.0
    assert positions(box.take()[1]) == list(range(1, 11))


@pytest.mark.parametrize(("events", "size"), [(3, 1_000_000), (1_000_000, 3 * SIZE)])
def test_drop_oldest(events: int, size: int) -> None:
    """Beyond the bounds the oldest go; one gap with an exact count stands where they were (I2, I5)."""
    box = outbox(events=events, size=size)

    dropped = [
        box.offer([event(1), event(2, B), event(3)]),
        box.offer([event(4)]),
        box.offer([event(5), event(6)]),
        box.offer([event(7)]),
    ]
    fill = box.fill
    lost, taken = box.take()

    assert dropped == [0, 0, 1, 2]
    assert fill == pytest.approx(4 / 3)
    assert lost is not None
    assert (lost.position, lost.cursor, lost.reason, lost.missed) == (3, "3", GapReason.OVERFLOW, 3)
    assert list(lost.windows) == [A, B]
    assert positions(taken) == [4, 5, 6, 7]


@pytest.mark.parametrize("size", [9 * SIZE - 1, 9 * SIZE, 9 * SIZE + 1, 90 * SIZE])
def test_an_event_about_as_large_as_the_queue(size: int) -> None:
    """An event about as large as the queue is queued, and dropped with a gap once it is in the way."""
    box = outbox(size=9 * SIZE)

    box.offer([event(1), event(2, size=size)])
    is_over = box.is_over
    dropped = box.offer([event(3)])
    lost, taken = box.take()

    assert is_over
    assert positions(taken) == ([3] if size > 9 * SIZE else [2, 3])
    assert lost is not None
    assert lost.missed == dropped == 3 - len(taken)


def test_a_drain_tells_one_gap() -> None:
    """The gap grows until it is taken; the next drain has none, unless more is dropped."""
    box = outbox(events=1)
    for position in range(1, 5):
        box.offer([event(position)])

    first = box.take()[0]
    second = box.take()[0]

    assert first is not None
    assert (first.missed, first.position) == (2, 2)
    assert second is None


def test_a_gap_alone() -> None:
    """If everything was dropped the gap alone is taken, and moves the position."""
    box = outbox(size=SIZE - 1)
    box.offer([event(1)])
    box.offer([])

    lost, taken = box.take()

    assert lost is not None
    assert (lost.position, taken, box.position) == (1, [], 1)


def test_break_is_queued() -> None:
    """A gap that stands among events is queued and taken like one."""
    box = outbox()
    box.offer([event(1), break_(2), event(3)])

    assert positions(box.take()[1]) == [1, 2, 3]


def test_break_is_dropped_into_the_gap() -> None:
    """A dropped break makes the gap that stands there one of all channels, of its reason, without a count (I2)."""
    box = outbox(events=1)
    box.offer([event(1), break_(2), event(3)])

    dropped = box.offer([event(4)])
    lost, taken = box.take()

    assert dropped == 1
    assert lost is not None
    assert (lost.position, lost.reason, lost.missed, dict(lost.windows)) == (2, GapReason.SOURCE, None, {})
    assert positions(taken) == [3, 4]


@pytest.mark.parametrize("size", [KEPT_BYTES, KEPT_BYTES + 1, 10 * KEPT_BYTES])
def test_dropped_frames_are_not_kept(size: int) -> None:
    """Until the gap is told there is no more of a dropped frame than its cursor needs (I5)."""
    box = outbox(events=1)
    cursor = f"{'0' * 12}-{2**63}-{'0' * 12}"
    large_break = Event(
        2, None, gap_frame(cursor, GapReason.EPOCH, ["a" * size], None), 0.0, type=GapReason.EPOCH.value
    )
    box.offer([event(1, size=size), large_break])

    box.offer([event(3)])
    kept = held(box)
    told = box.loss
    box.offer([event(4)])
    kept_break = held(box)
    told_break = box.loss

    assert max(kept, kept_break) <= KEPT_BYTES
    assert told is not None
    assert (told.position, told.cursor, told.missed) == (1, "1", 1)
    assert told_break is not None
    assert (told_break.cursor, told_break.reason, told_break.missed) == (cursor, GapReason.EPOCH, None)


def held(box: Outbox) -> int:
    """Bytes of the frame that an outbox keeps of what it has dropped."""
    assert box.dropped is not None
    return len(box.dropped.newest.frame)


def test_dropped_channels_have_a_bound() -> None:
    """A stream of a prefix may lose on very many channels while it is stalled: no more are remembered than can be named."""
    box = outbox(events=1)
    for position in range(1, 1000):
        box.offer([event(position, Window(str(position), rule(), -1, 0.0))])

    lost, _ = box.take()

    assert lost is not None
    assert (lost.missed, len(lost.windows)) == (997, NAMED + 1)


def test_latest() -> None:
    """Under `latest` a newer event replaces the queued one of its channel, counted, without a gap."""
    box = outbox(Policy.LATEST)

    dropped = [box.offer([event(1), event(2, B), event(3)]), box.offer([event(4), event(5, C)])]
    size = box.count, box.bytes
    lost, taken = box.take()

    assert dropped == [1, 1]
    assert size == (3, 3 * SIZE)
    assert lost is None
    assert positions(taken) == [2, 4, 5]
    assert (box.count, box.bytes, box.position) == (0, 0, 5)


def test_latest_after_a_drain() -> None:
    """What has been taken is not superseded any more."""
    box = outbox(Policy.LATEST)
    box.offer([event(1)])
    box.take()

    assert box.offer([event(2)]) == 0
    assert positions(box.take()[1]) == [2]


def test_latest_keeps_breaks() -> None:
    """A break is not superseded by events nor by another break (I2)."""
    box = outbox(Policy.LATEST)

    dropped = box.offer([event(1), break_(2), event(3), break_(4)])

    assert dropped == 1
    assert positions(box.take()[1]) == [2, 3, 4]


def test_latest_beyond_the_bounds() -> None:
    """Under `latest`, too, the oldest go beyond the bounds, with a gap that counts them alone (I5)."""
    box = outbox(Policy.LATEST, events=1)
    box.offer([event(1), event(2, B), event(3), event(4, C)])

    dropped = box.offer([event(5, C)])
    lost, taken = box.take()

    assert dropped == 3
    assert lost is not None
    assert (lost.reason, lost.missed, lost.position, list(lost.windows)) == (GapReason.OVERFLOW, 2, 3, [B, A])
    assert positions(taken) == [5]


def test_latest_does_not_grow() -> None:
    """However often a channel is superseded, what stands in the queue stays bounded (I5)."""
    box = outbox(Policy.LATEST)
    box.offer([event(1, B)])

    for position in range(2, 2000):
        box.offer([event(position)])

    assert len(box.events) <= 2 * box.count + 16
    assert positions(box.take()[1]) == [1, 1999]


@pytest.mark.parametrize("policy", [Policy.DROP_OLDEST, Policy.LATEST])
def test_rewind(policy: Policy) -> None:
    """What is queued and not told is forgotten, what the socket has begun to take is not (rule 4)."""
    box = outbox(policy, events=1, chunk=b"rest")
    box.offer([event(1), event(2, B)])
    box.offer([event(3)])
    had_loss = box.loss is not None

    box.rewind()

    assert had_loss
    assert (box.chunk, len(box), box.count, box.bytes, box.position) == (b"rest", 4, 0, 0, 0)
    assert box.take() == (None, [])
    assert box.offer([event(1), event(2, B)]) == 0
    assert positions(box.take()[1]) == [1, 2]
