from __future__ import annotations

import pytest

from sse_gateway.outbox import CHUNK_BYTES
from sse_gateway.reasons import GapReason, Policy
from sse_gateway.replay import SCAN
from tests.support.core import RETRY_MS, Block, Client, Core, rule

BLOCK = 4096
"""Positions in a block of the log's ring."""


def opening(client: Client) -> Block:
    """The first block of a stream."""
    first = client.blocks()[0]
    assert first.type == "gateway.open"
    return first


def said(client: Client) -> str:
    """What a stream is told of its replay."""
    replay: str = opening(client).json()["replay"]
    return replay


def test_first_block() -> None:
    """A stream begins with what it follows, when to come back, and where it is."""
    core = Core(rule())
    core.publish("a", "1")
    client = core.connect("channel=b*&channel=a", chunked=False)

    assert b"retry: %d\n" % RETRY_MS in client.sock.taken
    first = opening(client)
    assert first.json() == {"channels": ["a", "b*"], "replay": "none"}
    assert first.id == core.cursor


def test_fresh_stream_begins_at_the_head() -> None:
    """Without a cursor and without anything to replay a stream begins at the head."""
    core = Core(rule(replay=5))
    core.publish("x", "1")

    first = opening(core.connect("channel=a"))

    assert (first.id, first.json()["replay"]) == (core.cursor, "complete")


def test_fresh_stream_begins_before_its_first_event() -> None:
    """With events to replay it begins right before the first of them, so that a cut at once loses none (I1)."""
    core = Core(rule())
    core.publish("a", "0")
    before = core.publish("x", "-")
    core.publish("a", "1", "2")
    core.publish("b", "3")

    client = core.connect("channel=a&channel=b&replay=2")
    first, *events = client.blocks()

    assert (first.id, first.json()["replay"]) == (before, "complete")
    assert [block.data for block in events] == ["1", "2", "3"]
    assert core.connect("channel=a&channel=b", first.id).told() == ["1", "2", "3"]


def test_fresh_stream_over_a_break() -> None:
    """A replay that crosses a break has a gap, and says so."""
    core = Core(rule())
    core.publish("a", "1")
    core.begin_epoch()

    client = core.connect("channel=a&replay=1")

    assert opening(client).json()["replay"] == "gap"


def test_fresh_prefix() -> None:
    """Under a prefix a fresh stream begins before the first of its channels' newest events."""
    core = Core(rule())
    core.publish("a1", "0")
    before = core.publish("x", "-")
    core.publish("a1", "1")
    core.publish("a2", "2")

    first, *events = core.connect("channel=a*&replay=1").blocks()

    assert (first.id, first.json()["replay"]) == (before, "complete")
    assert [block.data for block in events] == ["1", "2"]


def test_fresh_prefix_without_events() -> None:
    """A prefix without any event begins at the head."""
    core = Core(rule())
    core.publish("x", "-")

    assert opening(core.connect("channel=a*&replay=all")).id == core.cursor


def test_fresh_prefix_and_a_name() -> None:
    """With prefixes and names the earliest event of either counts."""
    core = Core(rule())
    before = core.cursor
    core.publish("b", "1")
    core.publish("a1", "2")

    assert opening(core.connect("channel=a*&channel=b&replay=1")).id == before
    assert opening(core.connect("channel=b*&channel=a1&replay=1")).id == before


def test_fresh_prefix_search_goes_on() -> None:
    """The search under a prefix goes on where it stopped; nothing is said before it ends (I4)."""
    core = Core(rule(events=10 * SCAN))
    core.publish("x", *(["-"] * (2 * SCAN)))
    core.publish("a", "1")
    client = core.connect("channel=a*&replay=1", run=False)
    at_once = client.blocks()
    core.publish("a", "2")

    core.run()

    assert at_once == []
    assert [block.data for block in client.blocks()[1:]] == ["1", "2"]


def test_resumed() -> None:
    """A stream that resumes carries its verified cursor; nothing is missing, so its replay is complete (I10)."""
    core = Core(rule())
    cursor = core.publish("a", "1")
    core.publish("a", "2")

    for query in ("channel=a", "channel=a*"):
        first = opening(core.connect(query, cursor))
        assert (first.id, first.json()["replay"]) == (cursor, "complete")


def test_resumed_with_losses() -> None:
    """A stream whose channels have lost events after its cursor is told so in its first block."""
    core = Core(rule("a*", events=1), rule("b*"))
    cursor = core.cursor
    core.publish("a1", "1", "2")
    core.publish("b1", "1", "2")
    core.publish("a3", "1")

    assert said(core.connect("channel=a1", cursor)) == "gap"
    assert said(core.connect("channel=a*", cursor)) == "gap"
    assert said(core.connect("channel=a2", cursor)) == "complete"
    assert said(core.connect("channel=a2*", cursor)) == "complete"
    assert said(core.connect("channel=a3*", cursor)) == "complete"
    assert said(core.connect("channel=b*", cursor)) == "complete"
    assert said(core.connect("channel=b*&channel=a1", cursor)) == "gap"
    assert said(core.connect("channel=a*", core.cursor)) == "complete"


def test_resumed_prefix_search_goes_on() -> None:
    """The search for losses under a prefix goes on where it stopped, and finds what lies far away."""
    core = Core(rule(events=2 * SCAN))
    cursor = core.cursor
    core.publish("x", *(["-"] * (2 * SCAN + 1)))
    core.publish("a1", *(["-"] * (2 * SCAN + 1)))

    clients = [core.connect(query, cursor, run=False) for query in ("channel=a*", "channel=b*")]
    at_once = [client.blocks() for client in clients]
    core.run()

    assert at_once == [[], []]
    assert [said(client) for client in clients] == ["gap", "complete"]


def test_resumed_over_a_break() -> None:
    """A break after the cursor is a gap."""
    core = Core(rule())
    cursor = core.publish("a", "1")
    core.begin_epoch()

    first = opening(core.connect("channel=a", cursor))

    assert (first.id, first.json()["replay"]) == (cursor, "gap")


def test_latest_does_not_tell_the_windows_losses() -> None:
    """Under `latest` a window's losses are no gap."""
    core = Core(rule(events=1, policy=Policy.LATEST))
    cursor = core.cursor
    core.publish("a", "1", "2")

    assert said(core.connect("channel=a", cursor)) == "complete"


@pytest.mark.parametrize(
    "cursor",
    [
        "0-0-0",
        "garbage",
        "-1",
        "0",
        "\u00e4\r\nevent: x",
        "x" * 1_000_000,
        f"epoch0000001-{2**64}-0123456789ab",
        "epoch0000001-01-0123456789ab",
        "epoch0000001-1-0123456789ab",
    ],
)
def test_cursor_that_is_none_of_ours(cursor: str) -> None:
    """A cursor that does not verify is told as such, first; then all is as without a cursor (I10)."""
    core = Core(rule(replay=1))
    before = core.publish("a", "1")
    core.publish("a", "2")

    first, gap, *events = core.connect("channel=a", cursor).blocks()

    assert (first.id, first.json()["replay"]) == ("0-0-0", "gap")
    assert (gap.type, gap.id) == ("gateway.gap", before)
    assert gap.json() == {"reason": "cursor", "channels": ["a"], "missed": None}
    assert [block.data for block in events] == ["2"]
    assert core.hub.tally.gaps[GapReason.CURSOR] == 1


def test_cursor_of_another_log() -> None:
    """A cursor of an epoch unknown here gets everything the windows hold of the current one (I10)."""
    core = Core(rule())
    core.publish("a", "old")
    core.begin_epoch()
    begin = core.cursor
    core.publish("a", "1", "2")

    first, gap, *events = core.connect("channel=a", "another00000-5-0123456789ab").blocks()

    assert (first.id, gap.id) == ("0-0-0", begin)
    assert gap.json() == {"reason": "epoch", "channels": ["a"], "missed": None}
    assert [block.data for block in events] == ["1", "2"]


def test_cursor_older_than_the_ring() -> None:
    """A cursor older than the ring is a gap of unknown size; what the windows hold since then follows (I10)."""
    core = Core(rule("a"), rule("*", events=1), ring_size=BLOCK)
    cursor = core.publish("a", "1")
    core.publish("x", *(["-"] * BLOCK))
    core.publish("a", "2")

    first, gap, *events = core.connect("channel=a", cursor).blocks()

    assert (first.id, first.json()["replay"]) == ("0-0-0", "gap")
    assert gap.json() == {"reason": "window", "channels": ["a"], "missed": None}
    assert [block.data for block in events] == ["2"]


def test_open_waits_for_the_socket() -> None:
    """A stream whose socket takes nothing yet counts its newest events as of its beginning."""
    core = Core(rule())
    core.publish("a", "1", "2")
    client = core.connect("channel=a&replay=1", room=-1)
    core.publish("a", "3")

    client.read()

    assert [block.data for block in client.blocks()[1:]] == ["2", "3"]


def test_large_first_event() -> None:
    """The first event may be larger than a chunk; it follows its opening all the same."""
    core = Core(rule())
    core.publish("a", "x" * CHUNK_BYTES)

    first, event = core.connect("channel=a&replay=1").blocks()

    assert (first.type, len(event.data)) == ("gateway.open", CHUNK_BYTES)
