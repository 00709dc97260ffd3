from __future__ import annotations

from sse_gateway.batch import JOINED_BYTES, Batch, Blob, Gathered, Joiner, batch_of
from sse_gateway.outbox import CHUNK_BYTES
from sse_gateway.reasons import GapReason
from sse_gateway.window import Event, Window
from tests.support.core import parse_blocks, rule, unchunk

WINDOW = Window("a", rule(), -1, 0.0)


def event(position: int, size: int = 0) -> Event:
    """An event whose frame has at least so many bytes."""
    return Event(position, WINDOW, (b"id: %d\ndata: x" % position).ljust(size - 2, b"x") + b"\n\n", 0.0)


def gather(first: Batch, *others: Batch) -> Gathered:
    """Batches as they came."""
    gathered: Gathered = first, None
    for batch in others:
        gathered = batch, gathered
    return gathered


def break_(position: int) -> Event:
    """A gap that stands among events."""
    return Event(position, None, b"id: %d\nx\n\n" % position, 0.0, type=GapReason.SOURCE.value)


def test_frames_are_joined() -> None:
    """Frames become one blob, in chunks of whole frames."""
    third = b"x" * (CHUNK_BYTES // 3)
    frames = [third, third, third, b"aa", b"b" * CHUNK_BYTES, b"c", b"d"]

    plain, chunked = Blob(frames, chunked=False), Blob(frames, chunked=True)

    assert plain.data == unchunk(chunked.data) == b"".join(frames)
    assert [events for _, events in plain.cuts] == [events for _, events in chunked.cuts] == [4, 5, 7]
    assert [end for end, _ in plain.cuts] == [CHUNK_BYTES, 2 * CHUNK_BYTES, len(plain.data)]
    assert chunked.cuts[-1][0] == len(chunked.data)
    assert chunked.data.startswith(b"8000\r\n")


def test_rest_of_a_blob() -> None:
    """Wherever a socket stops, the chunk it has begun is sent to its end, and what comes after it is queued."""
    blob = Blob([b"x" * CHUNK_BYTES, b"ab", b"cd"], chunked=True)
    (first, _), (last, _) = blob.cuts

    assert blob.rest_after(0) == (b"", 0)
    assert blob.rest_after(1) == (blob.data[1:first], 1)
    assert blob.rest_after(first - 1) == (b"\n", 1)
    assert blob.rest_after(first) == (b"", 1)
    assert blob.rest_after(first + 1) == (blob.data[first + 1 :], 3)
    assert blob.rest_after(last) == (b"", 3)


def test_batch_of_events() -> None:
    """A batch knows its bytes, its events without the gaps among them, and its last position."""
    batch = batch_of([event(4), break_(6), event(7)])

    assert (batch.count, batch.position) == (2, 7)
    assert batch.size == len(batch.blob(False).data) == len(event(4).frame + break_(6).frame + event(7).frame)


def test_bytes_are_made_once() -> None:
    """Whoever gets a batch gets the same object, in each framing (rule 2)."""
    batch = Batch((), [b"abc"], 9)

    assert batch.blob(True) is batch.blob(True)
    assert batch.blob(False) is batch.blob(False)
    assert (batch.blob(True).data, batch.blob(False).data) == (b"3\r\nabc\r\n", b"abc")


def test_released_with_the_last_hold() -> None:
    """It waits as long as anything holds it, and is charged once (rule 3)."""
    batch = batch_of([event(1)])

    assert [batch.hold(), batch.hold()] == [batch.size, 0]
    assert [batch.release(), batch.release()] == [0, batch.size]


def test_joined_in_log_order() -> None:
    """Batches of several channels become one, once for all that need it (rule 1)."""
    one, other, joiner = batch_of([event(1), event(5)]), batch_of([event(2), event(7)]), Joiner()

    gathered = gather(one, other)
    joined = joiner.join(gathered)

    assert [[found.position for found in batch.events] for batch in joined] == [[1, 2, 5, 7]]
    assert joiner.join(gathered) is joined
    assert joiner.join(gather(one)) == (one,)
    assert joiner.made == list(joined)
    assert [found.position for found in one.events] == [1, 5]


def test_joined_up_to_a_bound() -> None:
    """Batches are cut where they have so many bytes: what is joined is copied, and a queue judges batch by batch."""
    batches = (batch_of([event(position, JOINED_BYTES // 2 - 1)]) for position in range(1, 6))

    joined = Joiner().join(gather(*batches))

    assert [batch.count for batch in joined] == [3, 2]


def test_wrapped_once() -> None:
    """Wrapped audiences share their batches too, and each event is wrapped once, in however many batches it is."""
    one, joiner = batch_of([event(1), break_(2)]), Joiner()
    (more,) = joiner.join(gather(one, batch_of([event(3)])))

    wrapped, again = joiner.wrap(one), joiner.wrap(more)

    assert joiner.wrap(one) is wrapped
    assert again.events[0] is wrapped.events[0]
    assert [block.type for block in parse_blocks(wrapped.blob(False).data[: -len(break_(2).frame)])] == ["message"]
    assert again.events[1] is one.events[1]
