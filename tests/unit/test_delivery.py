from __future__ import annotations

import pytest

from sse_gateway.delivery import CHUNKS, SETTLED_BYTES
from sse_gateway.outbox import CHUNK_BYTES
from sse_gateway.reader import Phase
from sse_gateway.reasons import CloseReason, GapReason, Policy, Replay
from sse_gateway.replay import SCAN
from tests.support.core import HEAD, Client, Core, parse_blocks, rule, unchunk

LARGE = "x" * (CHUNK_BYTES // 2 + 1)
"""Data of an event that shares no chunk."""


def numbers(count: int, size: int = 0) -> list[str]:
    """So many payloads."""
    return [f"{number:03}" + "x" * size for number in range(count)]


def short(client: Client) -> list[str]:
    """What a client was told, without the padding."""
    return [told.rstrip("x") for told in client.told()]


def test_seam() -> None:
    """An event published at any moment of a replay comes once, in its place (I3)."""
    for room in range(0, 6 * CHUNK_BYTES, CHUNK_BYTES // 2):
        core = Core(rule())
        cursor = core.cursor
        core.publish("a", *numbers(10, len(LARGE)))
        client = core.connect("channel=a", cursor, room=room)
        core.publish("a", "live")
        core.publish("a", "later")

        client.read()
        core.publish("a", "last")

        assert short(client) == [*numbers(10), "live", "later", "last"]
        assert client.reader.phase is Phase.LIVE


@pytest.mark.parametrize("chunked", [True, False])
def test_every_cut_of_a_write(*, chunked: bool) -> None:
    """Wherever a socket stops in its first bytes, what it has begun is sent to its end."""
    for room in range(-len(HEAD), 300, 7):
        core = Core(rule())
        cursor = core.cursor
        core.publish("a", "1", "2")
        client = core.connect("channel=a", cursor, room=room, chunked=chunked)
        core.publish("a", "3")

        client.read()

        assert client.told() == ["1", "2", "3"]
        assert core.hub.tally.queue_bytes == 0


def test_identity_coding() -> None:
    """Without chunked coding the body is the blocks themselves."""
    core = Core(rule())
    client = core.connect("channel=a", chunked=False)
    core.publish("a", "1")

    assert client.sock.taken.startswith(HEAD + b"event: gateway.open\n")
    assert client.told() == ["1"]


def test_others_have_their_turn() -> None:
    """One stream writes some chunks at a time, then others do (I4)."""
    core = Core(rule())
    cursor = core.cursor
    core.publish("a", *numbers(3 * CHUNKS, len(LARGE)))
    one, other = (core.connect("channel=a", cursor, run=False) for _ in range(2))
    head_and_chunks = [len(short(client)) for client in (one, other)]

    core.hub.step(core.now)
    after_a_step = [len(short(client)) for client in (one, other)]
    core.run()

    assert head_and_chunks == [CHUNKS - 1, CHUNKS - 1]
    assert after_a_step == [CHUNKS, 0]
    assert not core.hub.lagging


def test_search_has_more_to_do() -> None:
    """A stream whose search or replay has to pass over more asks for another turn, with nothing written."""
    core = Core(rule(events=10 * SCAN))
    cursor = core.cursor
    core.publish("x", *(["-"] * (3 * SCAN)))
    client = core.connect("channel=a*&replay=1", run=False)
    replaying = core.connect("channel=a*", cursor, run=False)

    assert core.hub.advance(client.reader, core.now)
    assert client.sock.taken == HEAD
    assert core.hub.advance(replaying.reader, core.now)
    assert not core.hub.advance(replaying.reader, core.now)


@pytest.mark.parametrize(
    ("failure", "reason"), [(BrokenPipeError, CloseReason.CLIENT), (TimeoutError, CloseReason.TIMEOUT)]
)
def test_client_that_left(failure: type[OSError], reason: CloseReason) -> None:
    """A client that has gone ends its stream, at its head, in its replay, or behind (I8)."""
    core = Core(rule())
    cursor = core.cursor
    core.publish("a", *numbers(4, CHUNK_BYTES))
    clients = [core.connect("channel=a", cursor, room=room) for room in (-1, 5, 2 * CHUNK_BYTES)]

    for client in clients:
        client.sock.is_gone = True
        client.sock.failure = failure
        client.read()

    assert [client.sock.aborted for client in clients] == [reason] * 3
    assert (core.hub.readers, len(core.hub.lagging), core.hub.tally.queue_bytes) == (0, 0, 0)
    assert core.hub.tally.closed[reason] == 3


def test_stalled_stream() -> None:
    """A stream whose socket takes nothing waits for it, and is known to lag."""
    core = Core(rule())
    core.now = 7.0
    client = core.connect("channel=a", room=10)

    assert list(core.hub.lagging) == [client.reader]
    assert client.sock.waits == 1
    assert client.reader.outbox is not None
    assert core.hub.tally.queue_bytes == len(client.reader.outbox.chunk) > 0
    assert client.reader.progress_at == 7.0


def test_progress() -> None:
    """Every byte that a socket takes is progress; without one there is none."""
    core = Core(rule())
    client = core.connect("channel=a", room=10)
    core.now = 5.0
    client.sock.room = 0
    core.hub.advance(client.reader, core.now)
    stalled = client.reader.progress_at

    client.sock.room = 1
    core.hub.advance(client.reader, core.now)

    assert (stalled, client.reader.progress_at) == (0.0, 5.0)


def test_caught_up() -> None:
    """A stream that has taken everything is writable again, and costs nothing that waits."""
    core = Core(rule())
    client = core.connect("channel=a", room=0)
    core.publish("a", "1")

    client.read()

    assert client.reader.outbox is None
    assert (len(core.hub.lagging), core.hub.tally.queue_bytes) == (0, 0)
    assert client.told() == ["1"]


def test_what_waited_comes_in_chunks() -> None:
    """What has waited goes out chunk by chunk, in order, and live events behind it."""
    core = Core(rule())
    client = core.connect("channel=a", room=0)
    for payload in numbers(3 * CHUNKS, len(LARGE)):
        core.publish("a", payload)
    client.sock.room = 10**9
    has_more = core.hub.advance(client.reader, core.now)
    core.publish("a", "last")

    client.read()

    assert has_more
    assert short(client) == [*numbers(3 * CHUNKS), "last"]


def test_overflow_is_told_first() -> None:
    """The gap of a drain comes before everything that is still queued, with its channels and count (I2)."""
    core = Core(rule(queue=2))
    client = core.connect("channel=a&channel=b&channel=c", room=0)
    for payload in numbers(6):
        core.publish("a", payload)
        core.publish("b", payload)

    client.read()
    opening, gap, *events = client.blocks()

    assert gap.json() == {"reason": "overflow", "channels": ["a", "b"], "missed": 9}
    assert opening.type == "gateway.open"
    assert [block.data for block in events] == ["004", "005", "005"]
    assert core.hub.tally.dropped[Policy.DROP_OLDEST] == client.reader.dropped == 9


def test_cut_after_a_drain() -> None:
    """A client that comes back with the id of a gap or of an event behind it goes on right there (I1)."""
    core = Core(rule(queue=2))
    client = core.connect("channel=a", room=0)
    for payload in numbers(6):
        core.publish("a", payload)
    client.read()
    _, gap, *events = client.blocks()

    assert [block.data for block in events] == ["003", "004", "005"]
    assert core.connect("channel=a", gap.id).told() == ["003", "004", "005"]
    assert core.connect("channel=a", events[0].id).told() == ["004", "005"]


def test_queued_break() -> None:
    """A break that has waited is told, and counted like one that has not (I6)."""
    core = Core(rule())
    client = core.connect("channel=a", room=0)
    core.publish("a", "1")
    core.begin_epoch()
    core.publish("a", "2")

    client.read()

    assert client.told() == ["1", "source:None", "2"]
    assert core.hub.tally.gaps[GapReason.SOURCE] == 1


def test_counters() -> None:
    """Events, bytes and gaps are counted, of the stream and of all, for replays and for what has waited."""
    core = Core(rule("a*", events=2), rule("*"))
    cursor = core.cursor
    core.publish("a", *numbers(3))
    client = core.connect("channel=a", cursor)
    slow = core.connect("channel=a", cursor, room=0)
    core.publish("a", "live")
    slow.read()
    tally = core.hub.tally

    for each in (client, slow):
        core.hub.leave(each.reader, CloseReason.CLIENT)

    assert [each.reader.events for each in (client, slow)] == [3, 3]
    assert [each.reader.bytes for each in (client, slow)] == [sum_of_blocks(client), sum_of_blocks(slow)]
    assert (tally.deliveries, tally.bytes) == (6, sum_of_blocks(client) + sum_of_blocks(slow))
    assert (tally.replays[Replay.GAP], tally.gaps[GapReason.WINDOW]) == (2, 2)
    assert sum(tally.latency.counts) == 2


def sum_of_blocks(client: Client) -> int:
    """Bytes of the blocks that a client got."""
    return len(unchunk(client.sock.taken[len(HEAD) :]))


def test_unverified_cursor_is_counted() -> None:
    """The gap behind an opening is counted with the others."""
    core = Core(rule())

    core.connect("channel=a", "garbage")

    assert core.hub.tally.gaps[GapReason.CURSOR] == 1
    assert core.hub.tally.replays[Replay.GAP] == 1


def test_held_stream_gets_its_head() -> None:
    """A stream whose cursor is ahead gets its headers at once and nothing else until that is reached."""
    source, core = Core(rule()), Core(rule())
    cursor = source.publish("a", "1", "2")
    client = core.connect("channel=a", cursor)
    held = client.reader.phase, client.sock.taken, client.reader.outbox

    core.publish("a", "1", "2", "3")

    assert held == (Phase.HELD, HEAD, None)
    assert client.told() == ["3"]


def test_held_stream_that_stalls() -> None:
    """A stream that was held may find its socket full once it goes on."""
    source, core = Core(rule()), Core(rule())
    cursor = source.publish("a", "1", "2")
    client = core.connect("channel=a", cursor, room=0)
    core.publish("a", "1", "2", "3")
    stalled = client.sock.taken, list(core.hub.lagging)

    client.read()

    assert stalled == (HEAD, [client.reader])
    assert client.told() == ["3"]


def test_too_slow_for_its_replay() -> None:
    """Under `disconnect` a stream ends when the window loses what its replay needs, unless it has not been opened yet."""
    core = Core(rule(events=3, policy=Policy.DISCONNECT))
    cursor = core.cursor
    core.publish("a", *numbers(3, CHUNK_BYTES))
    replaying, unopened = (core.connect("channel=a", cursor, room=room) for room in (0, -1))
    core.publish("a", *numbers(3))

    for client in (replaying, unopened):
        client.read()

    assert [client.sock.aborted for client in (replaying, unopened)] == [CloseReason.SLOW, None]
    assert unopened.told() == ["window:3", *numbers(3)]
    assert core.hub.tally.queue_bytes == 0


def positions_at_each_end(core: Core, client: Client) -> list[str]:
    """What a stream that ends now gives as its last id."""
    word = core.hub.farewell(client.reader, CloseReason.DRAIN)
    taken = client.sock.taken[len(HEAD) :] + word
    return [block.id for block in parse_blocks(unchunk(taken))]


@pytest.mark.parametrize("room", [0, 3 * CHUNK_BYTES // 2, 10 * CHUNK_BYTES])
def test_position(room: int) -> None:
    """A stream that ends has told everything up to its last id, and a new one goes on behind it (I1)."""
    core = Core(rule())
    cursor = core.cursor
    core.publish("a", *numbers(5, CHUNK_BYTES))
    client = core.connect("channel=a", cursor, room=room)
    core.publish("a", "live")

    *ids, last = positions_at_each_end(core, client)

    got = len(ids) - 1
    assert ids[-1] == last
    assert short(core.connect("channel=a", last)) == [*numbers(5), "live"][got:]


def test_position_of_a_quiet_stream() -> None:
    """A stream that waits for nothing is at the head, though all of it was other channels'."""
    core = Core(rule())
    client = core.connect("channel=a")
    core.publish("x", "1", "2")

    assert positions_at_each_end(core, client)[-1] == core.cursor


def test_queue_memory() -> None:
    """At the memory of all queues the fullest stream ends, and no more streams than need be (I5)."""
    core = Core(rule(), queue_bytes=100_000)
    fast = core.connect("channel=a")
    slow = [core.connect(f"channel={name}", room=0) for name in ("a", "a&channel=b", "a&channel=b&channel=c")]
    core.publish("c", "x" * 30_000)
    core.publish("b", "x" * 20_000)
    within = [client.sock.aborted for client in slow]

    core.publish("a", "x" * 10_000)

    assert within == [None, None, None]
    assert [client.sock.aborted for client in slow] == [None, None, CloseReason.MEMORY]
    assert core.hub.tally.queue_bytes <= 100_000
    assert core.hub.tally.closed[CloseReason.MEMORY] == 1
    assert len(fast.told()) == 1


def test_queue_memory_for_nobody() -> None:
    """A limit that no queue fits ends every stream that lags, and none that does not."""
    core = Core(rule(), queue_bytes=1)
    fast = core.connect("channel=a")
    slow = core.connect("channel=a", room=0)

    core.publish("a", "1")

    assert slow.sock.aborted is CloseReason.MEMORY
    assert fast.told() == ["1"]
    assert core.hub.tally.queue_bytes == 0


def test_queue_memory_holds_for_replays() -> None:
    """Chunks of stalled replays count towards the memory of all queues, too (I5)."""
    core = Core(rule(), queue_bytes=100_000)
    cursor = core.cursor
    core.publish("a", *numbers(10, CHUNK_BYTES - 100))

    clients = [core.connect("channel=a", cursor, room=0) for _ in range(5)]

    assert sum(client.sock.aborted is CloseReason.MEMORY for client in clients) == 2
    assert core.hub.tally.queue_bytes <= 100_000


def test_nothing_is_left() -> None:
    """When all streams have ended the gauges are at zero (I8)."""
    core = Core(rule(events=5, queue=3))
    cursor = core.cursor
    clients = [
        core.connect(query, resume, room=room)
        for query in ("channel=a", "channel=a*", "channel=a&wrap=1")
        for resume in (None, cursor)
        for room in (-1, 0, 50, 10**9)
    ]
    core.publish("a", *numbers(20, 3000))
    core.tick(16)

    for client in clients:
        core.hub.leave(client.reader, CloseReason.CLIENT)
        core.hub.leave(client.reader, CloseReason.DRAIN)

    tally = core.hub.tally
    assert (core.hub.readers, core.hub.audiences, len(core.hub.lagging)) == (0, 0, 0)
    assert (tally.queue_bytes, tally.pass_bytes) == (0, 0)
    assert (tally.closed[CloseReason.CLIENT], tally.closed[CloseReason.DRAIN]) == (len(clients), 0)
    assert tally.opened == len(clients)


def test_what_a_prefix_replay_remembers_counts_as_queue_memory() -> None:
    """Under a prefix every channel needs a place while the reader catches up; it is charged, and given back (I5)."""
    core = Core(rule())
    for number in range(500):
        core.publish(f"c{number}", "x" * 200)
    client = core.connect("channel=c*&replay=1", room=0)
    held = core.hub.tally.queue_bytes

    assert held >= SETTLED_BYTES * 500

    core.hub.leave(client.reader, CloseReason.CLIENT)

    assert core.hub.tally.queue_bytes == 0


@pytest.mark.parametrize("room", [10**9, 0, 40])
def test_gap_in_the_middle_of_a_stream(room: int) -> None:
    """A stream whose place has become void is told so before it gets anything more, and counted once (I2)."""
    core, peer = Core(rule()), Core(rule(), is_begun=False)
    peer.hub.begin_epoch("f0reign00001", GapReason.SOURCE, 0.0)
    base = peer.cursor
    client = core.connect("channel=a", room=room)
    peer.publish("a", "1")

    core.take_over(peer)
    client.read()
    opening, gap, event = client.blocks()

    assert (opening.type, event.data, event.id) == ("gateway.open", "1", peer.cursor)
    assert (gap.type, gap.id, gap.json()) == (
        "gateway.gap",
        base,
        {"reason": "source", "channels": ["a"], "missed": None},
    )
    assert core.hub.tally.gaps[GapReason.SOURCE] == 1
