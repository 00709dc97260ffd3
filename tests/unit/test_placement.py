from __future__ import annotations

import pytest

from sse_gateway.hold import HOLD_S
from sse_gateway.outbox import CHUNK_BYTES
from sse_gateway.reader import Phase
from sse_gateway.reasons import GapReason, Policy
from tests.support.core import HEAD, Client, Core, rule

FOREIGN = "f0reign00001"
NEWER = "zzzzzzzzzzzz"


def core_with(*payloads: str, epoch: str = "", events: int = 100, policy: Policy = Policy.DROP_OLDEST) -> Core:
    """A core with a log of its own or the usual one, and these events in channel a."""
    core = Core(rule(events=events, policy=policy), is_begun=not epoch)
    if epoch:
        core.hub.begin_epoch(epoch, GapReason.SOURCE, core.now)
    core.publish("a", *payloads)
    return core


def phase(client: Client) -> Phase:
    """Where a stream stands."""
    return client.reader.phase


# Where a stream begins.


def test_no_cursor() -> None:
    """Without a cursor a stream begins at the head."""
    core = core_with("1")
    client = core.connect("channel=a")

    core.publish("a", "2")

    assert client.told() == ["2"]


def test_verified() -> None:
    """A cursor that verifies is resumed from (I10)."""
    core = core_with("1")
    cursor = core.cursor
    core.publish("a", "2")

    assert core.connect("channel=a", cursor).told() == ["2"]


@pytest.mark.parametrize("cursor", ["garbage", "epoch0000001-1-000000000000"])
def test_invalid(cursor: str) -> None:
    """A cursor that is not ours gets a gap, and is not resumed from (I10)."""
    assert core_with("1").connect("channel=a", cursor).told() == ["cursor:None"]


def test_unknown_epoch() -> None:
    """A cursor of an unknown epoch that is older than ours gets a gap at once, and all of the current epoch."""
    core = core_with("1")
    core.hub.placement.horizon = "~"

    assert core.connect("channel=a", "aaaaaaaaaaaa-5-000000000000").told() == ["epoch:None", "1"]


def test_beyond_what_is_known_of_an_epoch() -> None:
    """A cursor from where we lost its epoch gets a gap, and all that came after that."""
    core, peer = core_with("1"), core_with("1", "2")
    core.begin_epoch()
    core.publish("a", "3")
    core.begin_epoch()
    core.publish("a", "4")

    assert core.connect("channel=a", peer.cursor).told() == ["epoch:None", "3", "source:None", "4"]


def test_newer_epoch_without_peers() -> None:
    """A cursor of a newer epoch gets its gap at once where nobody could be ahead."""
    assert core_with("1").connect("channel=a", f"{NEWER}-5-000000000000").told() == ["epoch:None", "1"]


def test_newer_epoch_with_peers() -> None:
    """With peers it is waited for, at most as long as a cursor that is ahead; then it is told."""
    core = core_with("1")
    core.hub.placement.horizon = "~"
    client = core.connect("channel=a", f"{NEWER}-5-000000000000")
    core.tick(HOLD_S - 0.1)
    held = phase(client), client.sock.taken

    core.tick(0.1)

    assert held == (Phase.HELD, HEAD)
    assert client.told() == ["epoch:None"]


def test_newer_epoch_that_begins() -> None:
    """When that epoch begins here, too, the stream waits for its place in it, and resumes without a gap (I10)."""
    core, ahead = core_with("1"), core_with("1")
    core.hub.placement.horizon = "~"
    ahead.hub.begin_epoch(NEWER, GapReason.SOURCE, 0.0)
    cursor = ahead.publish("a", "2", "3")
    client = core.connect("channel=a", cursor)

    core.hub.begin_epoch(NEWER, GapReason.SOURCE, core.now)
    core.publish("a", "2")
    waits = phase(client)
    core.publish("a", "3", "4")

    assert waits is Phase.HELD
    assert client.told() == ["4"]


def test_newer_epoch_that_is_not_the_one() -> None:
    """When another epoch begins the stream waits on, with its own deadline: it may still come."""
    core = core_with("1")
    core.hub.placement.horizon = "~"
    client = core.connect("channel=a", f"{NEWER}-5-000000000000")
    core.tick(HOLD_S - 1.0)

    core.begin_epoch()
    waits = phase(client)
    core.tick(1.0)

    assert waits is Phase.HELD
    assert client.told() == ["epoch:None"]


def test_ahead() -> None:
    """A cursor ahead of us is waited for; when its place is reached the stream resumes behind it (I10)."""
    core, ahead = core_with("1"), core_with("1", "2", "3")
    client = core.connect("channel=a", ahead.cursor)
    core.publish("a", "2")
    waits = phase(client)

    core.publish("a", "3", "4")

    assert waits is Phase.HELD
    assert client.told() == ["4"]


def test_ahead_of_another_history() -> None:
    """When its place is reached and the hash is another, the stream is told (I10)."""
    core, ahead = core_with("1"), core_with("1", "2", "3")
    client = core.connect("channel=a", ahead.cursor)

    core.publish("a", "2", "other")
    core.publish("a", "4")

    assert client.told() == ["cursor:None", "4"]


def test_ahead_for_too_long() -> None:
    """A cursor that we do not reach is told as a gap, and the stream begins at the head."""
    core, ahead = core_with("1"), core_with("1", "2", "3")
    client = core.connect("channel=a", ahead.cursor)

    core.tick(HOLD_S)
    core.publish("a", "2")

    assert client.told() == ["cursor:None", "2"]


# After a peer has filled in what we missed.


def test_rewound() -> None:
    """A live stream pulls what the peer filled in from its own place on, and is live again."""
    core, peer = core_with("1"), core_with("1", "2", "3")
    client = core.connect("channel=a")

    core.take_over(peer)
    rewound = phase(client)
    core.run()

    assert (rewound, phase(client)) == (Phase.REPLAY, Phase.LIVE)
    assert client.told() == ["2", "3"]


@pytest.mark.parametrize("policy", Policy)
def test_rewound_with_a_queue(policy: Policy) -> None:
    """What was queued is pulled from the windows instead, and its memory given back (I5)."""
    core, peer = core_with("1", policy=policy), core_with("1", "2", "3", "4", policy=policy)
    client = core.connect("channel=a", room=0)
    core.publish("a", "2", "3")
    queued = core.hub.tally.queue_bytes

    core.take_over(peer)
    waiting = core.hub.tally.queue_bytes
    client.read()

    assert client.reader.outbox is None
    assert waiting < queued
    assert core.hub.tally.queue_bytes == 0
    assert client.told() == (["4"] if policy is Policy.LATEST else ["2", "3", "4"])


def test_uprooted() -> None:
    """When our log is replaced by one that does not know it, an open stream is told so, once, with all there is."""
    core, peer = core_with("1", "2"), core_with("3", "4", epoch=FOREIGN)
    client = core.connect("channel=a")

    core.take_over(peer)
    core.run()
    core.publish("a", "5")

    assert client.told() == ["source:None", "3", "4", "5"]


def test_uprooted_into_the_same_log() -> None:
    """When the log that replaces ours knows the stream's place, it goes on without a gap (I10)."""
    core, peer = core_with("1"), core_with("1", "2")
    client = core.connect("channel=a", room=0)
    core.begin_epoch()  # the peer knows nothing of it, so it sends all it has

    core.take_over(peer)
    client.read()
    core.publish("a", "3")

    assert client.told() == ["2", "3"]


def test_uprooted_while_it_is_held() -> None:
    """A stream that is held resumes from the peer's log, if that knows its cursor, without a gap (I10)."""
    core, peer = core_with("1", epoch="aaaaaaaaaaaa"), core_with("1", epoch=FOREIGN)
    cursor = peer.cursor
    peer.publish("a", "2")
    core.hub.placement.horizon = "~"
    client = core.connect("channel=a", cursor)
    held = phase(client)

    core.take_over(peer)
    core.run()

    assert held is Phase.HELD
    assert client.told() == ["2"]


def test_uprooted_while_it_searches() -> None:
    """A stream without a cursor that is not open yet begins where the new log is."""
    core, peer = core_with("1"), core_with("2", "3", epoch=FOREIGN)
    client = core.connect("channel=a", room=-len(HEAD))

    core.take_over(peer)
    client.read()
    core.publish("a", "4")

    assert client.told() == ["4"]


def test_uprooted_older_than_the_ring() -> None:
    """A stream that the peer's ring does not reach any more is told what its window has lost."""
    core, peer = (Core(rule(events=1), ring_size=4096) for _ in range(2))
    client = core.connect("channel=a")
    for _ in range(5000):
        peer.put("a", "1")

    core.take_over(peer)
    core.run()

    assert client.told() == ["window:None", "window:903", "1"]


def test_uprooted_twice() -> None:
    """A stream that was not told yet that its place is void is told, though its log is replaced again (I2)."""
    core, peer = core_with("1"), core_with("2", epoch=FOREIGN)
    client = core.connect("channel=a", room=0)
    core.take_over(peer)
    core.hub.begin_epoch("y00000000001", GapReason.EPOCH, core.now)
    core.publish("a", "3")

    core.take_over(peer)
    client.read()

    assert client.told() == ["source:None", "2"]


def test_uprooted_with_a_lot_to_remember() -> None:
    """What a replay under a prefix remembered is given back with its place (I5)."""
    core, peer = Core(rule()), core_with("1", epoch=FOREIGN)
    for number in range(500):
        core.publish(f"c{number}", "x" * 200)
    client = core.connect("channel=c*&replay=1", room=CHUNK_BYTES // 2)
    charged = core.hub.tally.queue_bytes

    core.take_over(peer)
    client.read()

    assert charged > CHUNK_BYTES // 2
    assert core.hub.tally.queue_bytes == 0
