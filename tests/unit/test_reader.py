from __future__ import annotations

from sse_gateway.channels import QueueBounds
from sse_gateway.reader import Catchup, Follow, Framing, Phase, Reader, framing_of, names_of, smallest_bounds
from sse_gateway.reasons import Policy, Replay
from sse_gateway.window import Window
from tests.support.core import rule
from tests.support.sockets import Network

BOUNDS = QueueBounds(1, 1, Policy.LATEST)


def windows(count: int) -> list[Window]:
    """So many channels, newest name first."""
    return [Window(f"c{number:03}", rule(), -1, 0.0) for number in reversed(range(count))]


def test_smallest_bounds() -> None:
    """A stream under several rules takes the smallest bounds and the policy that loses least."""
    rules = [
        rule(queue=10, queue_size=300, policy=Policy.LATEST),
        rule(queue=30, queue_size=100, policy=Policy.DISCONNECT),
        rule(queue=20, queue_size=200, policy=Policy.DROP_OLDEST),
    ]

    assert smallest_bounds(rules) == QueueBounds(10, 100, Policy.DISCONNECT)
    assert smallest_bounds([rules[0], rules[2]]).policy is Policy.DROP_OLDEST
    assert smallest_bounds([rules[0]]) is smallest_bounds([rules[0], rules[0]]) is rules[0].queue


def test_framings() -> None:
    """There is one of each kind, whoever asks."""
    kinds = [(chunked, wrapped) for chunked in (False, True) for wrapped in (False, True)]

    framings = [framing_of(chunked=chunked, wrapped=wrapped) for chunked, wrapped in kinds]

    assert framings == [Framing(*kind) for kind in kinds]
    assert framings[0] is framing_of(chunked=False, wrapped=False)


def test_names_of() -> None:
    """A gap names the channels that lost events, in order; without any, or beyond 64, all that were asked for."""
    follow = Follow(("b", "c*"), (), (), BOUNDS)

    assert names_of(follow, windows(2)) == ["c000", "c001"]
    assert names_of(follow, []) == ["b", "c*"]
    assert len(names_of(follow, windows(64))) == 64
    assert names_of(follow, windows(65)) == ["b", "c*"]


def test_settled() -> None:
    """What has been delivered or told of a channel counts from there, of others from the beginning."""
    one, other = windows(2)
    catchup = Catchup(head=5, newest=None)

    catchup.settled[one] = 9

    assert (catchup.settled_on(one), catchup.settled_on(other)) == (9, 5)


def test_new_reader() -> None:
    """A new reader waits to be attached: nothing queued, nothing counted."""
    sock = Network().open()

    reader = Reader(sock, Follow(("a",), (), (), BOUNDS), Framing(chunked=True, wrapped=False), 3000)

    assert (reader.sink, reader.phase, reader.position, reader.replay) == (sock, Phase.REPLAY, -1, Replay.NONE)
    assert (reader.catchup, reader.outbox, reader.audience) == (None, None, None)
    assert (reader.events, reader.bytes, reader.dropped, reader.retry_ms) == (0, 0, 0, 3000)
