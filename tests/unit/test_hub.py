from __future__ import annotations

import pytest

from sse_gateway.errors import SnapshotError
from sse_gateway.frames import LAST_CHUNK
from sse_gateway.hold import HOLD_S
from sse_gateway.outbox import CHUNK_BYTES
from sse_gateway.reader import Phase
from sse_gateway.reasons import CloseReason, GapReason, Policy, RejectReason, Replay
from tests.support.core import HEAD, LIMITS, RETRY_MS, Client, Core, parse_blocks, rule, unchunk

LARGE = "x" * CHUNK_BYTES


def beats(client: Client) -> list[bool]:
    """The heartbeats since the last call: whether the source was live."""
    return [block.json()["live"] for block in client.blocks() if block.type == "gateway.heartbeat"]


# Publishing.


def test_event_reaches_its_audiences() -> None:
    """An event goes to whoever follows its channel, by name or by prefix, once, and to nobody else (I11)."""
    core = Core(rule())
    clients = [core.connect(query) for query in ("channel=ab", "channel=a*", "channel=ab&channel=b*", "channel=b")]

    core.publish("ab", "1")

    assert [client.told() for client in clients] == [["1"], ["1"], ["1"], []]


def test_nothing_before_the_end_of_the_batch() -> None:
    """Events go out at the end of a read batch, joined, each once."""
    core = Core(rule())
    client = core.connect("channel=a")
    core.put("a", "1")
    core.put("a", "2")
    before = client.told(), core.hub.is_busy

    core.run()

    assert before == ([], False)
    assert client.told() == ["1", "2"]


def test_rejected_message() -> None:
    """A message that is rejected is told to the caller with its rule, and counted; nobody gets anything."""
    core = Core(rule())
    client = core.connect("channel=a")

    rejected = core.hub.publish(b"*", b"a", b"\xff", core.now, core.now)
    core.run()

    assert rejected is not None
    assert (rejected[0].pattern, rejected[1].reason) == ("*", RejectReason.ENCODING)
    assert client.told() == []


def test_one_pass_for_several_batches() -> None:
    """Batches that wait are merged into one pass, and an audience is served once for them (I5)."""
    core = Core(rule())
    client = core.connect("channel=a")
    for number in range(3):
        core.put("a", str(number))
        core.hub.flush(core.now)

    core.hub.step(core.now)

    assert client.told() == ["0", "1", "2"]
    assert not core.hub.is_busy


def test_wrapped() -> None:
    """A wrapped stream gets channel and type in the data, encoded once for all; gaps stay as they are."""
    core = Core(rule())
    clients = [core.connect(f"channel={name}&wrap=1") for name in ("a", "a*", "a")]
    core.publish("a", "1\r2")
    core.begin_epoch()

    for client in clients:
        assert client.told() == ['{"channel":"a","event":"message","data":"1\\r2"}', "source:None"]


def test_full() -> None:
    """More bytes in passes than the bound ask the source to pause (I5)."""
    core = Core(rule(), pass_bytes=1000)
    core.connect("channel=a")
    core.put("a", "x" * 900)
    core.hub.flush(core.now)
    full = [core.hub.is_full]
    core.put("a", "x" * 900)
    core.hub.flush(core.now)
    full.append(core.hub.is_full)

    core.run()

    assert [*full, core.hub.is_full] == [False, True, False]
    assert core.hub.tally.pass_bytes == 0


# Epochs.


def test_new_epoch() -> None:
    """A new epoch is told to every stream with one gap, in log order (I2)."""
    core = Core(rule())
    client = core.connect("channel=a")
    core.put("a", "1")

    core.begin_epoch(GapReason.EPOCH)
    core.publish("a", "2")

    assert client.told() == ["1", "epoch:None", "2"]
    assert core.hub.tally.gaps[GapReason.EPOCH] == 1


def test_unknown_epoch() -> None:
    """A cursor of an unknown epoch gets a gap, and all that is held of this one."""
    core = Core(rule())
    core.publish("a", "1")
    core.begin_epoch()
    core.publish("a", "2")

    client = core.connect("channel=a", "zzzzzzzzzzzz-5-000000000000")

    assert client.told() == ["epoch:None", "2"]


# Where a stream begins.


def test_fresh_stream() -> None:
    """Without a cursor a stream begins at the head, or with what its rule or itself says."""
    core = Core(rule(replay=1))
    core.publish("a", "1", "2", "3")

    told = [core.connect(f"channel=a{more}").told() for more in ("", "&replay=0", "&replay=2", "&replay=all")]

    assert told == [["3"], [], ["2", "3"], ["1", "2", "3"]]


def test_verified_cursor() -> None:
    """A cursor that verifies is resumed from (I10)."""
    core = Core(rule())
    cursor = core.publish("a", "1")
    core.publish("a", "2", "3")

    assert core.connect("channel=a", cursor).told() == ["2", "3"]


@pytest.mark.parametrize("cursor", ["0-0-0", "garbage", "epoch0000001-1-000000000000"])
def test_invalid_cursor(cursor: str) -> None:
    """A cursor that is not one of ours, or forged, gets a gap and then what a fresh stream gets (I10)."""
    core = Core(rule(replay=1))
    core.publish("a", "1", "2")

    client = core.connect("channel=a", cursor)

    assert client.told() == ["cursor:None", "2"]
    assert core.hub.tally.replays[Replay.GAP] == 1


def test_stale_cursor() -> None:
    """A cursor older than the ring gets a gap that counts nothing."""
    core = Core(rule(events=1), ring_size=4096)
    cursor = core.cursor
    for _ in range(5000):
        core.put("a", "1")

    assert core.connect("channel=a", cursor).told() == ["window:None", "window:903", "1"]


def test_cursor_ahead_is_waited_for() -> None:
    """A cursor ahead of the log gets its head at once, and the rest once the log is there (I10)."""
    ahead, core = Core(rule()), Core(rule())
    cursor = ahead.publish("a", "1", "2")
    client = core.connect("channel=a", cursor)
    core.publish("a", "1")
    held = client.reader.phase, client.sock.taken

    core.publish("a", "2", "3")

    assert held == (Phase.HELD, HEAD)
    assert client.told() == ["3"]


def test_cursor_ahead_for_too_long() -> None:
    """A log that does not get there ends in a gap, after a while and no sooner."""
    ahead, core = Core(rule()), Core(rule())
    cursor = ahead.publish("a", "1", "2")
    client = core.connect("channel=a", cursor)
    core.tick(HOLD_S - 0.1)
    held = client.reader.phase

    core.tick(0.1)

    assert held is Phase.HELD
    assert client.told() == ["cursor:None"]


def test_cursor_ahead_of_an_epoch_that_ended() -> None:
    """A new epoch ends the wait of whoever was ahead of the old one: others have seen more of that than we."""
    ahead, core = Core(rule()), Core(rule())
    client = core.connect("channel=a", ahead.publish("a", "1"))

    core.begin_epoch()

    assert client.told() == ["epoch:None"]


def test_very_many_are_ahead() -> None:
    """Thousands that wait for one position go on one by one, not in one call of the source (I4)."""
    ahead, core = Core(rule()), Core(rule())
    cursor = ahead.publish("a", "1", "2")
    clients = [core.connect("channel=a", cursor) for _ in range(2000)]
    core.put("a", "1")
    core.put("a", "2")
    core.put("a", "3")

    core.hub.flush(core.now)
    written = sum(client.sock.taken != HEAD for client in clients)
    core.run()

    assert written == 0
    assert all(client.told() == ["3"] for client in clients)


def test_long_replay_takes_turns() -> None:
    """A replay that its socket takes at once still goes on in slices, which `step` drives (I4)."""
    core = Core(rule())
    cursor = core.cursor
    core.publish("a", *[LARGE] * 12)

    client = core.connect("channel=a", cursor, run=False)
    first = len(client.sock.taken) // CHUNK_BYTES
    core.hub.step(core.now)
    second = len(client.sock.taken) // CHUNK_BYTES
    core.run()

    assert first < second < 12
    assert len(client.told()) == 12


def test_stream_that_ends_while_its_turn_comes() -> None:
    """A stream that has left meanwhile gets no turn."""
    core = Core(rule())
    cursor = core.cursor
    core.publish("a", *[LARGE] * 12)
    client = core.connect("channel=a", cursor, run=False)
    core.hub.leave(client.reader, CloseReason.CLIENT)
    taken = len(client.sock.taken)

    core.run()

    assert len(client.sock.taken) == taken


# Passes.


def test_pass_in_slices() -> None:
    """A slice is so many writes, of however many audiences; a pass goes on before another audience has its turn (I4)."""
    core = Core(rule(), writes_per_step=2)
    many = [core.connect("channel=a") for _ in range(3)]
    other = core.connect("channel=a&channel=b")
    core.put("a", "1")
    core.hub.flush(core.now)

    order = []
    for _ in range(2):
        core.hub.step(core.now)
        order.append([len(client.told()) for client in [*many, other]])

    assert order == [[1, 0, 0, 1], [0, 1, 1, 0]]


def test_who_joins_between_events() -> None:
    """A stream that joins while events are due gets those from then on; nobody waits longer than a round (I3, I4)."""
    core = Core(rule(), writes_per_step=1)
    first, other = core.connect("channel=a"), core.connect("channel=a&channel=b")
    core.put("a", "1")
    core.hub.flush(core.now)
    late = core.connect("channel=a", run=False)
    core.put("a", "2")
    core.hub.flush(core.now)

    order = []
    for _ in range(5):
        core.hub.step(core.now)
        order.append([client.told() for client in (first, other, late)])

    assert order == [[["1"], [], []], [[], [], []], [[], ["1", "2"], []], [["2"], [], []], [[], [], ["2"]]]


def test_what_is_not_spread_is_not_claimed() -> None:
    """The last block of a stream stands for nothing that is published but not yet in a pass (I1)."""
    core = Core(rule())
    client = core.connect("channel=a")
    before = core.publish("a", "1")
    core.put("a", "2")

    last = core.hub.farewell(client.reader, CloseReason.DRAIN)

    assert b"id: " + before.encode() in last


def test_same_batch_for_all_audiences() -> None:
    """Audiences that get the same are written the same bytes, and it waits once for all of them (I5)."""
    core = Core(rule())
    clients = [core.connect(f"channel=all&channel={name}") for name in "abc"]
    core.put("all", "1")
    core.put("b", "2")
    core.hub.flush(core.now)

    assert core.hub.tally.pass_bytes == sum(batch.size for batch in core.held())
    assert [len(batch.events) for batch in core.held()] == [1, 1]
    core.run()
    assert [client.told() for client in clients] == [["1"], ["1", "2"], ["1"]]
    assert core.hub.tally.pass_bytes == 0


def test_last_member_leaves_between_passes() -> None:
    """What waited for an audience that is gone is dropped with it (I5)."""
    core = Core(rule())
    client = core.connect("channel=a")
    core.put("a", "1")
    core.hub.flush(core.now)
    core.put("a", "2")

    core.hub.leave(client.reader, CloseReason.CLIENT)
    core.run()

    assert (core.hub.tally.pass_bytes, core.hub.audiences, core.hub.is_busy) == (0, 0, False)


def test_last_member_goes_in_its_pass() -> None:
    """A client that is found gone in a pass ends; the audience goes with it, and is not served again."""
    core = Core(rule())
    client = core.connect("channel=a")
    client.sock.is_gone = True

    core.publish("a", "1")

    assert client.sock.aborted is CloseReason.CLIENT
    assert (core.hub.tally.pass_bytes, core.hub.audiences, core.hub.readers) == (0, 0, 0)


def test_deliveries_are_counted() -> None:
    """What went out is counted with the clock read after it, events and gaps apart."""
    core = Core(rule())
    clients = [core.connect("channel=a") for _ in range(3)]
    before = core.hub.tally.bytes
    core.put("a", "1")
    core.hub.flush(core.now)
    core.hub.step(core.now)
    core.hub.observe(core.now + 0.2)
    core.hub.observe(core.now + 9.0)  # nothing new

    tally = core.hub.tally
    assert tally.deliveries == 3
    assert tally.latency.sum == pytest.approx(0.6)
    assert tally.bytes - before == sum(len(b"id: %b\ndata: 1\n\n" % core.cursor.encode()) for _ in clients)


def test_nobody_served() -> None:
    """A pass that nobody could take is not counted as delivered."""
    core = Core(rule())
    core.connect("channel=a").sock.room = 0

    core.publish("a", "1")

    assert core.hub.tally.deliveries == 0


# Slow clients.


def test_queue_memory() -> None:
    """At the memory of all queues the fullest stream is aborted, however it got so full (I5)."""
    core = Core(rule(), queue_bytes=150_000)
    slow, slower = (core.connect("channel=a", room=room) for room in (10_000, 0))

    core.publish("a", *["x" * 10_000] * 9)

    assert [client.sock.aborted for client in (slow, slower)] == [None, CloseReason.MEMORY]
    assert core.hub.tally.queue_bytes <= 150_000


def test_queue_memory_of_replays() -> None:
    """Chunks that replays have begun are part of that memory (I5)."""
    core = Core(rule(), queue_bytes=100_000)
    cursor = core.cursor
    core.publish("a", *[LARGE] * 3)

    clients = [core.connect("channel=a", cursor, room=1000) for _ in range(5)]

    assert sum(client.sock.aborted is CloseReason.MEMORY for client in clients) == 2


def test_fullest() -> None:
    """The fill of the fullest queue is told against its own bounds."""
    core = Core(rule(queue=4))
    empty = core.hub.fullest()
    for room in (0, 10_000):
        core.connect("channel=a").sock.room = room

    core.publish("a", "1", "2")

    assert (empty, core.hub.fullest()) == (0.0, 0.5)


def test_write_timeout() -> None:
    """A client that takes no byte for so long is aborted, one that takes some is not."""
    core = Core(rule())
    dead, slow = core.connect("channel=a"), core.connect("channel=a")
    dead.sock.room = slow.sock.room = 10
    core.tick(100.0)
    core.publish("a", LARGE)
    core.tick(LIMITS.write_timeout_s)
    slow.read(10)

    core.tick(1.0)

    assert [client.sock.aborted for client in (dead, slow)] == [CloseReason.TIMEOUT, None]


def test_slow_from_the_first_byte() -> None:
    """The time of a client that does not even take its head runs from there (I4)."""
    core = Core(rule())
    core.tick(1000.0)
    client = core.connect("channel=a", room=-len(HEAD))
    core.tick(LIMITS.write_timeout_s)
    before = client.sock.aborted

    core.tick(0.1)

    assert (before, client.sock.aborted) == (None, CloseReason.TIMEOUT)


# Heartbeats.


def test_heartbeat() -> None:
    """A stream that got nothing for so long gets a heartbeat at the head; whoever got something waits."""
    core = Core(rule())
    quiet, busy = core.connect("channel=a"), core.connect("channel=b")
    core.tick(10.0)
    core.publish("b", "1")

    core.tick(5.0)
    first = [beats(client) for client in (quiet, busy)]
    core.tick(10.0, live=False)
    second = [beats(client) for client in (quiet, busy)]
    core.tick(5.0, live=False)

    assert (first, second) == ([[True], []], [[], [False]])
    (block,) = quiet.blocks()
    assert (block.id, block.json()) == (core.cursor, {"live": False})


def test_heartbeat_does_not_overtake() -> None:
    """A heartbeat comes after the events of a batch that has not ended (I1)."""
    core = Core(rule())
    client = core.connect("channel=a")
    core.put("a", "1")

    core.tick(LIMITS.heartbeat_s)

    assert [block.type for block in client.blocks()] == ["gateway.open", "message"]


def test_no_heartbeat_before_the_replay() -> None:
    """A stream that still catches up gets none, nor one whose pass is under way (I1)."""
    core = Core(rule())
    waiting = core.connect("channel=b", room=-1)
    served = core.connect("channel=a")
    core.put("a", "1")
    core.hub.flush(core.now)

    core.tick(LIMITS.heartbeat_s)
    waiting.read()

    assert [beats(client) for client in (waiting, served)] == [[], []]


def test_no_clients_no_heartbeats() -> None:
    """Time passes where nothing is, even before the first epoch."""
    core = Core(rule())

    core.tick(1000.0)

    assert not core.hub.is_busy


# Ends.


def test_farewell() -> None:
    """A stream ends with its position, the reason and when to come back, and a clean last chunk (I1)."""
    core = Core(rule())
    client = core.connect("channel=a")
    core.publish("a", "1")

    word = core.hub.farewell(client.reader, CloseReason.DRAIN)

    assert word.endswith(LAST_CHUNK)
    (block,) = parse_blocks(unchunk(word.removesuffix(LAST_CHUNK)))
    assert (block.type, block.id, block.json()) == ("gateway.close", core.cursor, {"reason": "drain"})
    assert b"retry: %d\n" % RETRY_MS in word


def test_farewell_completes_what_has_begun() -> None:
    """The chunk that the socket has begun to take comes first; what is queued behind it does not come (I1)."""
    core = Core(rule())
    client = core.connect("channel=a", chunked=False)
    before = core.cursor
    client.sock.room = 5
    core.publish("a", "1")
    first = core.cursor
    core.publish("a", "2")

    client.sock.taken += core.hub.farewell(client.reader, CloseReason.MAX_AGE)

    assert [block.id for block in client.blocks()] == [before, first, first]
    assert core.hub.tally.queue_bytes == 0


def test_farewell_within_a_batch() -> None:
    """Events of a batch that has not ended are not claimed (I1)."""
    core = Core(rule())
    client = core.connect("channel=a", chunked=False)
    before = core.cursor
    core.put("a", "1")

    word = core.hub.farewell(client.reader, CloseReason.DRAIN)

    assert parse_blocks(word)[0].id == before


def test_farewell_before_a_gap_is_told() -> None:
    """A stream whose log was replaced, and that has not been told yet, ends where it was: it is told when it is back."""
    core, peer = Core(rule()), Core(rule(), is_begun=False)
    peer.hub.begin_epoch("an0therep0ch", GapReason.SOURCE, peer.now)
    client = core.connect("channel=a")
    asked = core.cursor
    core.take_over(peer)

    word = core.hub.farewell(client.reader, CloseReason.DRAIN)

    assert core.cursor != asked
    assert f"id: {asked}\n".encode() in word


@pytest.mark.parametrize("chunked", [True, False])
def test_farewell_without_a_word(*, chunked: bool) -> None:
    """A stream that has not been opened has no position to tell; it ends cleanly all the same."""
    ahead, core = Core(rule()), Core(rule())
    client = core.connect("channel=a", ahead.publish("a", "1"), chunked=chunked)

    word = core.hub.farewell(client.reader, CloseReason.DRAIN)

    assert word == (LAST_CHUNK if chunked else b"")
    assert core.hub.readers == 0


def test_leave_once() -> None:
    """A stream ends once, with its first reason, and gives back all it had (I8)."""
    core = Core(rule(policy=Policy.DROP_OLDEST))
    client = core.connect("channel=a")
    client.sock.room = 3
    core.publish("a", "1")
    core.publish("a", "2")

    core.hub.leave(client.reader, CloseReason.CLIENT)
    core.hub.leave(client.reader, CloseReason.ERROR)

    tally = core.hub.tally
    assert {reason: count for reason, count in tally.closed.items() if count} == {CloseReason.CLIENT: 1}
    assert (core.hub.readers, core.hub.audiences, tally.queue_bytes, tally.pass_bytes) == (0, 0, 0, 0)
    assert not core.hub.lagging
    assert (tally.opened, client.reader.phase, client.reader.events) == (1, Phase.ENDED, 1)


def test_an_audience_lives_while_one_is_left() -> None:
    """Who leaves takes nobody along, be it before it was live (I4)."""
    core = Core(rule())
    client, replaying = core.connect("channel=a"), core.connect("channel=a", room=-1)

    core.hub.leave(replaying.reader, CloseReason.CLIENT)
    core.publish("a", "1")

    assert client.told() == ["1"]
    assert core.hub.audiences == 1


# What comes from a peer.


def test_first_log() -> None:
    """A core without a log takes over a peer's, and its streams begin there."""
    peer, core = Core(rule()), Core(rule(), is_begun=False)
    cursor = peer.publish("a", "1")
    peer.publish("a", "2")

    core.take_over(peer)

    assert core.cursor == peer.cursor
    assert core.connect("channel=a", cursor).told() == ["2"]


def test_snapshot_that_continues_another_log() -> None:
    """A snapshot that does not begin where our log ends changes nothing, nor does one that is not whole."""
    peer, core = Core(rule()), Core(rule())
    client = core.connect("channel=a")
    cut = peer.hub.cut("t0ken0000001", core.cursor, [], 0.0)
    snapshot = core.hub.receive("t0ken0000001", 0.0)
    for block in cut:
        with pytest.raises(SnapshotError):
            core.hub.install(snapshot, 0.0)
        snapshot.add(block)
    core.publish("a", "1")

    with pytest.raises(SnapshotError):
        core.hub.install(snapshot, 0.0)

    assert (client.told(), client.reader.phase) == (["1"], Phase.LIVE)


def test_goes_on_from_a_snapshot() -> None:
    """Streams get what a snapshot has beyond their places, be they live, behind, or held; and go on from there (I3)."""
    core, peer, further = Core(rule()), Core(rule()), Core(rule())
    live, slow = core.connect("channel=a"), core.connect("channel=a", room=0)
    held = core.connect("channel=a", further.publish("a", "1", "2"))
    core.put("a", "1")
    peer.publish("a", "1", "2", "3")

    core.take_over(peer)
    core.run()
    slow.read()

    assert [client.told() for client in (live, slow, held)] == [["1", "2", "3"], ["1", "2", "3"], ["3"]]
    assert (core.hub.tally.queue_bytes, core.hub.tally.pass_bytes) == (0, 0)


def test_goes_on_from_another_log() -> None:
    """Where a snapshot does not continue our log, streams are told, once (I2)."""
    core, peer = Core(rule()), Core(rule(), is_begun=False)
    peer.hub.begin_epoch("f0reign00001", GapReason.SOURCE, 0.0)
    client = core.connect("channel=a")
    core.publish("a", "1")
    peer.publish("a", "2")

    core.take_over(peer)
    core.run()

    assert client.told() == ["1", "source:None", "2"]
    assert core.cursor == peer.cursor
