from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from sse_gateway.frames import LAST_CHUNK
from sse_gateway.outbox import CHUNK_BYTES
from sse_gateway.reader import Phase
from sse_gateway.reasons import CloseReason, GapReason, Policy
from tests.support.core import HEAD, Client, Core, rule, unchunk

if TYPE_CHECKING:
    from sse_gateway.channels import Rule


class Pair:
    """A core that has lost its link for a while, and a peer that has not.

    Attributes:
        core: Has streams.
        peer: Has everything.
    """

    def __init__(self, *rules: Rule, is_shared: bool = True) -> None:
        self.core = Core(*rules)
        self.peer = Core(*rules, is_begun=is_shared)
        if not is_shared:
            self.peer.hub.begin_epoch("f0reign00001", GapReason.SOURCE, 0.0)

    def publish(self, *payloads: str, channel: str = "a") -> None:
        """Publish to both."""
        self.core.publish(channel, *payloads)
        self.peer.publish(channel, *payloads)

    def repair(self, *missed: str, channel: str = "a") -> None:
        """Let the core miss some events, and get them from its peer."""
        self.peer.publish(channel, *missed)
        self.core.take_over(self.peer)

    def check(self) -> None:
        """What is charged is what is there."""
        core = self.core
        readers = [reader for audience in core.hub._audiences for reader in (*audience.members(), *audience.waiting)]
        charged = sum(reader.catchup.charged for reader in readers if reader.catchup is not None)
        queued = sum(len(reader.outbox) for reader in readers if reader.outbox is not None)
        assert core.hub.tally.queue_bytes == charged + queued
        assert core.hub.tally.pass_bytes == sum(batch.size for batch in core.held())
        assert core.hub.log.cursor(core.hub.log.head) == self.peer.hub.log.cursor(self.peer.hub.log.head)


def blocks_of(client: Client) -> bytes:
    """All blocks that a client got, as bytes."""
    body = client.sock.taken[len(HEAD) :]
    return unchunk(body) if client.reader.framing.chunked else body


QUERIES = ["channel=a", "channel=a&channel=b", "channel=a*", "channel=*", "channel=a&wrap=1", "channel=a*&wrap=1"]


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("room", [10**9, 0, 40, 3 * CHUNK_BYTES // 2])
def test_repaired(query: str, room: int, *, chunked: bool) -> None:
    """A stream that lost its source gets what it missed from the peer, in order, once, without a gap (I1, I2).

    Wherever its socket has stopped: in nothing, in a block, or in a later chunk.
    """
    pair = Pair(rule())
    client = pair.core.connect(query, room=room, chunked=chunked)
    pair.publish("0", "1" + "x" * CHUNK_BYTES, "2")
    pair.repair("3", "4")
    pair.check()
    pair.publish("5")
    pair.check()

    client.read()
    pair.publish("6")

    told = client.told()
    data = [json.loads(text)["data"] for text in told] if "wrap" in query else told
    assert [text.rstrip("x") for text in data] == list("0123456")
    pair.check()
    assert pair.core.hub.tally.queue_bytes == 0
    pair.core.hub.leave(client.reader, CloseReason.CLIENT)
    assert client.reader.events == pair.core.hub.tally.deliveries == 7
    assert client.reader.bytes == pair.core.hub.tally.bytes == len(blocks_of(client))


def test_repaired_in_a_replay() -> None:
    """A stream that still catches up goes on, over the place where its node had stopped (I3)."""
    pair = Pair(rule())
    cursor = pair.core.cursor
    pair.publish(*["x" * CHUNK_BYTES] * 3)
    client = pair.core.connect("channel=a", cursor, room=CHUNK_BYTES)

    pair.repair("3", "4")
    pair.check()
    client.read()

    assert [text.rstrip("x") for text in client.told()] == ["", "", "", "3", "4"]


def test_repaired_while_held() -> None:
    """A stream whose cursor was ahead of a node resumes when the peer has brought it there (I10)."""
    pair = Pair(rule())
    pair.peer.publish("a", "1", "2")
    client = pair.core.connect("channel=a", pair.peer.cursor)
    held = client.reader.phase

    pair.repair("3")
    pair.core.run()
    further = pair.core.connect("channel=a", pair.peer.publish("a", "4"))
    pair.repair()
    pair.publish("5")

    assert held is Phase.HELD
    assert client.told() == ["3", "4", "5"]
    assert further.told() == ["5"]


def test_repaired_while_held_for_an_epoch() -> None:
    """A stream that waits for an epoch resumes as soon as the peer has brought it (I10)."""
    pair = Pair(rule())
    pair.peer.begin_epoch()
    pair.core.hub.placement.horizon = "~"
    client = pair.core.connect("channel=a", pair.peer.publish("a", "1"))
    held = client.reader.phase

    pair.repair("2")
    pair.core.run()

    assert held is Phase.HELD
    assert client.told() == ["2"]


def test_held_for_longer_than_the_repair() -> None:
    """A stream that is ahead of the peer, too, is held on."""
    pair = Pair(rule())
    further = Core(rule())
    client = pair.core.connect("channel=a", further.publish("a", "1", "2"))

    pair.repair("1")
    waits = client.reader.phase
    pair.publish("2", "3")

    assert waits is Phase.HELD
    assert client.told() == ["3"]


def test_repaired_under_latest() -> None:
    """Under `latest` a stream gets the newest of each channel that it missed."""
    pair = Pair(rule(policy=Policy.LATEST))
    quick, slow = pair.core.connect("channel=a&channel=b"), pair.core.connect("channel=a&channel=b&channel=c", room=0)
    pair.publish("a1", "a2")
    pair.publish("b1", channel="b")

    pair.repair("a3", "a4")
    pair.check()
    slow.read()
    pair.core.run()

    assert [quick.told(), slow.told()] == [["a1", "a2", "b1", "a4"], ["b1", "a4"]]


def test_repaired_under_disconnect() -> None:
    """A stream under `disconnect` is not aborted for what its node missed; what is lost is told as the window's."""
    pair = Pair(rule(events=3, policy=Policy.DISCONNECT))
    quick, slow = pair.core.connect("channel=a"), pair.core.connect("channel=a&channel=b", room=0)
    pair.publish("1")

    pair.repair("2", "3", "4", "5")
    slow.read()
    pair.core.run()

    assert quick.told() == ["1", "window:1", "3", "4", "5"]
    assert slow.told() == ["window:2", "3", "4", "5"]


def test_repaired_under_disconnect_in_a_replay() -> None:
    """Nor is a stream that still catches up aborted as too slow for what the peer has lost."""
    pair = Pair(rule(events=3, policy=Policy.DISCONNECT))
    cursor = pair.core.cursor
    pair.publish("1", *["x" * CHUNK_BYTES] * 2)
    client = pair.core.connect("channel=a", cursor, room=CHUNK_BYTES // 2)

    pair.repair("4", "5", "6", "7")
    client.read()

    assert client.sock.aborted is None
    assert [text.rstrip("x") for text in client.told()] == ["1", "", "window:2", "5", "6", "7"]


def test_repaired_after_an_overflow() -> None:
    """What a queue has dropped and not told yet is pulled from the windows: it is no loss any more."""
    pair = Pair(rule(queue=2))
    client = pair.core.connect("channel=a", room=0)
    for number in range(6):
        pair.publish(str(number))

    pair.repair("6")
    pair.check()
    client.read()

    assert client.told() == list("0123456")


def test_repaired_in_the_middle_of_a_pass() -> None:
    """Members that a pass has served, not yet, or that joined since, each go on from their own places (I3)."""
    pair = Pair(rule())
    pair.core = Core(rule(), writes_per_step=1)
    clients = [pair.core.connect("channel=a") for _ in range(3)]
    pair.peer.publish("a", "1", "2")
    pair.core.put("a", "1")
    pair.core.hub.flush(pair.core.now)
    pair.core.hub.step(pair.core.now)
    clients.append(pair.core.connect("channel=a", run=False))
    pair.core.put("a", "2")
    pair.core.hub.flush(pair.core.now)
    pair.core.hub.step(pair.core.now)
    pair.core.hub.observe(pair.core.now)
    served = [len(client.told()) for client in clients]

    pair.repair("3")
    pair.check()
    pair.core.run()

    assert served == [1, 1, 0, 0]
    assert [client.told() for client in clients] == [["2", "3"], ["2", "3"], ["1", "2", "3"], ["2", "3"]]
    for client in clients:
        pair.core.hub.leave(client.reader, CloseReason.CLIENT)
    pair.core.run()
    assert [client.reader.events for client in clients] == [3, 3, 3, 2]
    assert [client.reader.bytes for client in clients] == [len(blocks_of(client)) for client in clients]
    assert (pair.core.hub.tally.queue_bytes, pair.core.hub.tally.pass_bytes) == (0, 0)


def test_repaired_over_an_epoch() -> None:
    """What the peer has of the epochs that began meanwhile is told with their gaps, in order (I2)."""
    pair = Pair(rule())
    client = pair.core.connect("channel=a")
    pair.publish("1")
    pair.peer.publish("a", "2")
    pair.peer.begin_epoch(GapReason.EPOCH)

    pair.repair("3")
    pair.core.run()

    assert client.told() == ["1", "2", "epoch:None", "3"]


def test_repaired_twice() -> None:
    """A link that is lost again before the streams were current changes nothing in what they get."""
    pair = Pair(rule())
    quick, slow = pair.core.connect("channel=a"), pair.core.connect("channel=a", room=30)
    pair.publish("1")

    pair.repair("2")
    pair.repair("3")
    pair.check()
    slow.read()

    assert [quick.told(), slow.told()] == [["1", "2", "3"]] * 2


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("room", [10**9, 0, 40])
def test_replaced(query: str, room: int) -> None:
    """A log that does not know ours is told to every stream with one gap, and then all that the windows hold of it."""
    pair = Pair(rule(), is_shared=False)
    pair.peer.publish("a", "3")
    client = pair.core.connect(query, room=room)
    pair.core.publish("a", "1", "2")

    pair.repair("4")
    pair.check()
    client.read()
    pair.publish("5")

    told = client.told()
    assert [text for text in told if ":None" in text] == ["source:None"]
    data = [json.loads(text)["data"] if "wrap" in query else text for text in told if ":None" not in text]
    assert data in (list("12345"), list("1345"), list("345"))
    assert data == list("12345") or room < 10**9
    assert pair.core.hub.tally.gaps[GapReason.SOURCE] == 1
    pair.check()


def test_replaced_and_resumed() -> None:
    """Ids after a replacement resume right, from the gap on (I1)."""
    pair = Pair(rule(), is_shared=False)
    pair.peer.publish("a", "3")
    client = pair.core.connect("channel=a")
    pair.core.publish("a", "1")

    pair.repair("4")
    pair.core.run()
    _, first, gap, *events = client.blocks()

    assert [block.data for block in (first, *events)] == ["1", "3", "4"]
    assert pair.core.connect("channel=a", gap.id).told() == ["3", "4"]
    assert pair.core.connect("channel=a", events[0].id).told() == ["4"]
    assert pair.core.connect("channel=a", first.id).told() == ["epoch:None", "3", "4"]


@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("room", [0, 40, 10**9])
def test_farewell_after_a_repair(room: int, *, is_shared: bool) -> None:
    """A stream that ends before it is current again gives an id from which nothing is missing untold (I1, I2)."""
    pair = Pair(rule(), is_shared=is_shared)
    client = pair.core.connect("channel=a", room=room)
    pair.core.publish("a", "1")
    if is_shared:
        pair.peer.publish("a", "1")

    pair.repair("2")
    client.sock.taken += pair.core.hub.farewell(client.reader, CloseReason.DRAIN).removesuffix(LAST_CHUNK)
    told = client.blocks()
    again = pair.core.connect("channel=a", told[-1].id).told()

    got = [block.data for block in told if block.type == "message"]
    assert got + again == (["1", "2"] if is_shared else [*got, "epoch:None", "2"])
