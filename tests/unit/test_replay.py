from __future__ import annotations

import pytest

from sse_gateway.outbox import CHUNK_BYTES
from sse_gateway.reasons import CloseReason, Format, GapReason, Policy
from sse_gateway.replay import SCAN, wrap, wrapped_event
from sse_gateway.window import MAX_LOST, Event
from tests.support.core import Client, Core, rule


def gaps(client: Client) -> list[tuple[str, tuple[str, ...], int | None]]:
    """Reason, channels and count of all gaps since the last call."""
    return [
        (block.json()["reason"], tuple(block.json()["channels"]), block.json()["missed"])
        for block in client.blocks()
        if block.type == "gateway.gap"
    ]


def test_nothing_missed() -> None:
    """A client that missed nothing gets nothing but what comes."""
    core = Core(rule())
    cursor = core.publish("a", "1")
    client = core.connect("channel=a", cursor)

    core.publish("a", "2")

    assert client.told() == ["2"]


def test_missed_events() -> None:
    """A client that resumes gets what it missed of its channels, in log order, once."""
    core = Core(rule())
    cursor = core.publish("a", "1")
    for channel, data in [("a", "2"), ("b", "3"), ("x", "-"), ("a", "4"), ("b", "5")]:
        core.publish(channel, data)

    client = core.connect("channel=b&channel=a", cursor)
    core.publish("a", "6")

    assert client.told() == ["2", "3", "4", "5", "6"]


def test_ids_ascend() -> None:
    """Ids ascend over events and gaps, from the cursor on (I1)."""
    core = Core(rule("a", events=2), rule("*"))
    cursor = core.publish("a", "0")
    for number in range(5):
        core.publish("b", f"b{number}")
        core.publish("a", f"a{number}")

    ids = [int(block.id.split("-")[1]) for block in core.connect("channel=a&channel=b", cursor).blocks()]

    assert ids == [1, 2, 4, 6, 7, 8, 9, 10, 11]


def test_loss_is_told_where_it_lies() -> None:
    """A gap stands after other channels' events up to the newest loss, before its channel's next event (I2)."""
    core = Core(rule("a", events=2), rule("*"))
    cursor = core.publish("a", "0")
    for number in range(4):
        core.publish("b", f"b{number}")
        core.publish("a", f"a{number}")

    client = core.connect("channel=a&channel=b", cursor)

    assert client.told() == ["b0", "b1", "window:2", "b2", "a2", "b3", "a3"]


def test_cut_at_every_block() -> None:
    """Wherever a stream is cut, the next one goes on right there; a gap told is not told again (I1, I2)."""
    core = Core(rule("a", events=2), rule("*"))
    cursor = core.publish("a", "0")
    for number in range(4):
        core.publish("b", f"b{number}")
        core.publish("a", f"a{number}")
    blocks = core.connect("channel=a&channel=b", cursor).blocks()
    ids = [block.id for block in blocks[1:]]

    for index, block in enumerate(blocks):
        again = core.connect("channel=a&channel=b", block.id).blocks()
        assert [other.id for other in again[1:]] == ids[index:]


@pytest.mark.parametrize(
    ("seen", "here", "there"),
    [
        ([], ["b0", "b1", "window:2", "b2", "a2", "b3", "a3"], ["b0", "window:1", "b1", "a1", "b2", "a2", "b3", "a3"]),
        (["b0"], ["b1", "window:2", "b2", "a2", "b3", "a3"], ["window:1", "b1", "a1", "b2", "a2", "b3", "a3"]),
        (["b0", "b1"], ["window:1", "b2", "a2", "b3", "a3"], ["a1", "b2", "a2", "b3", "a3"]),
    ],
)
def test_cut_before_the_gap(seen: list[str], here: list[str], there: list[str]) -> None:
    """Where it goes on, only losses behind the cursor count: where there are none, older ones are never told.

    The one exception to I2, which docs/cluster.md tells: nodes with other windows, a stream of several channels.
    """
    node, other = Core(rule("a", events=2), rule("*")), Core(rule("a", events=3), rule("*"))
    cursor = node.publish("a", "0")
    other.publish("a", "0")
    for number in range(4):
        for core in (node, other):
            core.publish("b", f"b{number}")
            core.publish("a", f"a{number}")
    blocks = node.connect("channel=a&channel=b", cursor).blocks()

    cut = blocks[len(seen)].id

    assert [block.data for block in blocks[1 : len(seen) + 1]] == seen
    assert node.connect("channel=a&channel=b", cut).told() == here
    assert other.connect("channel=a&channel=b", cut).told() == there


def test_channels_that_share_a_loss() -> None:
    """Channels that appeared after the same forgotten loss share its gap."""
    core = Core(rule(age_s=1))
    cursor = core.cursor
    core.publish("x", "x")
    core.tick(1000)
    core.publish("a", "a")
    core.publish("b", "b")

    assert gaps(core.connect("channel=a&channel=b&channel=c", cursor)) == [("window", ("a", "b", "c"), None)]
    assert core.connect("channel=a&channel=b", cursor).told() == ["window:None", "a", "b"]


def test_missed_is_counted_while_remembered() -> None:
    """`missed` is exact while the lost offsets are remembered, else null."""
    core = Core(rule(events=1))
    cursors = [core.publish("a", str(number)) for number in range(MAX_LOST + 3)]

    assert core.connect("channel=a", cursors[1]).told()[0] == f"window:{MAX_LOST}"
    assert core.connect("channel=a", cursors[0]).told()[0] == "window:None"


def test_replay_is_pulled_in_chunks() -> None:
    """A replay goes out chunk by chunk, as its socket takes it; the windows are its only queue (I5)."""
    core = Core(rule())
    cursor = core.publish("a", "0")
    payloads = [str(number) + "x" * 5000 for number in range(30)]
    core.publish("a", *payloads)

    client = core.connect("channel=a", cursor, room=1)
    waiting = core.hub.tally.queue_bytes
    client.read()

    assert waiting <= CHUNK_BYTES
    assert client.told() == payloads


def test_large_event_goes_alone() -> None:
    """An event larger than a chunk is pulled alone."""
    core = Core(rule())
    cursor = core.publish("a", "0")
    payloads = ["1", "2" * 2 * CHUNK_BYTES, "3"]
    core.publish("a", *payloads)

    assert core.connect("channel=a", cursor).told() == payloads


def test_break_is_told_on_the_way() -> None:
    """A cursor of an older, remembered epoch gets the rest of that epoch, one gap, then the next (I6)."""
    core = Core(rule())
    cursor = core.publish("a", "1")
    core.publish("a", "2")
    core.begin_epoch()
    core.publish("a", "3")

    client = core.connect("channel=a&channel=b", cursor)

    assert client.told() == ["2", "source:None", "3"]


def test_many_breaks() -> None:
    """Every break lies where it lies, on all channels of the stream."""
    core = Core(rule())
    cursor = core.cursor
    core.begin_epoch()
    core.begin_epoch(GapReason.EPOCH)

    assert gaps(core.connect("channel=a&channel=b*", cursor)) == [
        ("source", ("a", "b*"), None),
        ("epoch", ("a", "b*"), None),
    ]


def test_prefix() -> None:
    """A prefix gets what its channels have missed, in log order, and nothing of others (I11)."""
    core = Core(rule("x*"), rule("*"))
    cursor = core.cursor
    for channel, data in [("xa1", "1"), ("xb1", "-"), ("xa2", "2"), ("b", "3"), ("xa1", "4"), ("c", "-")]:
        core.publish(channel, data)

    client = core.connect("channel=xa*&channel=b", cursor)
    core.publish("xa3", "5")

    assert client.told() == ["1", "2", "3", "4", "5"]


def test_two_prefixes_under_one_rule() -> None:
    """Several prefixes under one rule are walked together."""
    core = Core(rule())
    cursor = core.cursor
    for channel in ("a1", "b1", "c1", "a2", "b2"):
        core.publish(channel, channel)

    assert core.connect("channel=a*&channel=b*", cursor).told() == ["a1", "b1", "a2", "b2"]


def test_prefix_loss() -> None:
    """Under a prefix each channel's loss is told where it lies, others' not at all (I2)."""
    core = Core(rule(events=2))
    cursor = core.cursor
    for number in range(4):
        for channel in ("a1", "a2", "x"):
            core.publish(channel, f"{channel}{number}")

    client = core.connect("channel=a*", cursor)

    assert client.told() == ["window:2", "window:2", "a12", "a22", "a13", "a23"]
    assert gaps(core.connect("channel=a*", cursor)) == [("window", ("a1",), 2), ("window", ("a2",), 2)]


def test_prefix_with_forgotten_channels() -> None:
    """What a forgotten channel may have lost is told on all the stream's channels (I2)."""
    core = Core(rule(), channels=2)
    cursor = core.cursor
    for channel in ("a1", "a2", "a3"):
        core.publish(channel, channel)

    client = core.connect("channel=a*", cursor)

    assert client.told() == ["window:None", "a2", "a3"]


def test_prefix_with_a_channel_that_came_back() -> None:
    """A forgotten channel's loss is told before its later events, though more was forgotten since (I2)."""
    core = Core(rule(), channels=2)
    cursor = core.cursor
    for number, channel in enumerate("abcacad"):  # a is forgotten and comes back; then c is forgotten
        core.publish(channel, str(number))

    assert core.connect("channel=*", cursor).told() == ["window:None", "3", "window:None", "5", "6"]


def test_channel_forgotten_during_a_fresh_replay() -> None:
    """A fresh client, too, is told when a channel is forgotten before it has got what it asked for (I2)."""
    core = Core(rule(), channels=2)
    core.publish("a", "0", "x" * CHUNK_BYTES, "2")
    client = core.connect("channel=*&replay=all", room=0)
    for channel in "bc":
        core.publish(channel, channel)

    client.read()

    assert [told[:6] for told in client.told()] == ["0", "window", "b", "c"]


def test_prefix_among_many_others() -> None:
    """A pull passes over a bounded number of other channels' entries; the replay goes on until it is done (I4)."""
    core = Core(rule(events=10 * SCAN))
    cursor = core.publish("a1", "0")
    core.publish("x", *(["-"] * (2 * SCAN + 7)))
    core.publish("a1", "1")

    client = core.connect("channel=a*", cursor, run=False)
    at_once = client.told()
    core.run()

    assert at_once == []
    assert client.told() == ["1"]


def test_very_many_gaps() -> None:
    """Gaps count towards the size of a chunk as events do (I5)."""
    core = Core(rule(events=1))
    cursor = core.cursor
    for number in range(1000):
        core.publish(f"a{number // 2}", "1")

    client = core.connect("channel=a*", cursor, chunked=False, room=CHUNK_BYTES, run=False)

    assert client.reader.outbox is not None
    assert len(client.reader.outbox.chunk) < 1000
    client.read()
    assert len(client.told()) == 1000


def test_unwanted_events_are_passed_over_in_steps() -> None:
    """A pull looks at a bounded number of events, also where it wants none of them (I4)."""
    core = Core(rule(events=10 * SCAN, policy=Policy.LATEST))
    cursor = core.publish("a", "0")
    core.publish("b", "b")
    core.publish("a", *map(str, range(3 * SCAN)))

    client = core.connect("channel=a&channel=b", cursor, run=False)
    at_once = client.told()
    core.run()

    assert at_once == ["b"]
    assert client.told() == [str(3 * SCAN - 1)]


def test_latest_resumes_with_the_newest() -> None:
    """Under `latest` a client resumes with each channel's newest event, and is told of no window's loss."""
    core = Core(rule(policy=Policy.LATEST, events=2))
    cursor = core.cursor
    core.publish("a", "a1", "a2", "a3")
    core.publish("b", "b1", "b2")

    assert core.connect("channel=a&channel=b", cursor).told() == ["a3", "b2"]
    assert core.connect("channel=*", cursor).told() == ["a3", "b2"]


def test_latest_passes_a_break() -> None:
    """A break is told under `latest`, too (I2)."""
    core = Core(rule(policy=Policy.LATEST))
    cursor = core.publish("a", "1")
    core.publish("a", "2")
    core.begin_epoch()

    assert core.connect("channel=a", cursor).told() == ["2", "source:None"]


def slow_replay(policy: Policy, query: str = "channel=a", *, with_cursor: bool = True) -> tuple[Core, Client]:
    """A client whose replay of 20 large events stalls in its first chunk, in a window of 20."""
    core = Core(rule(events=20, policy=policy))
    cursor = core.cursor
    core.publish("a", *(f"{number:02}" + "x" * 8000 for number in range(20)))
    return core, core.connect(query, cursor if with_cursor else None, room=10_000)


@pytest.mark.parametrize("query", ["channel=a", "channel=a*"])
def test_window_loses_what_a_replay_needs(query: str) -> None:
    """During a replay the window is the queue: what it loses is told as overflow, counted exactly (I2)."""
    core, client = slow_replay(Policy.DROP_OLDEST, query)

    core.publish("a", *(f"{number:02}" for number in range(20, 30)))
    client.read()

    assert [told[:13] for told in client.told()] == [
        *(f"{number:02}xxxxxxxxxxx" for number in range(4)),
        "overflow:6",
        *(f"{number:02}xxxxxxxxxxx" for number in range(10, 20)),
        *(f"{number:02}" for number in range(20, 30)),
    ]


def test_disconnect_policy_during_a_replay() -> None:
    """Under `disconnect` a stream ends when the window loses what it still needs."""
    core, client = slow_replay(Policy.DISCONNECT)
    core.publish("a", "20")
    lost_nothing_it_needs = client.sock.aborted
    core.publish("a", *map(str, range(21, 30)))

    client.read()

    assert lost_nothing_it_needs is None
    assert client.sock.aborted is CloseReason.SLOW


def test_disconnect_policy_does_not_mind_older_losses() -> None:
    """Under `disconnect`, too, what was lost before the stream began is told as the window's."""
    core = Core(rule(events=2, policy=Policy.DISCONNECT))
    cursor = core.cursor
    core.publish("a", "1", "2", "3")

    assert core.connect("channel=a", cursor).told() == ["window:1", "2", "3"]


def test_latest_loses_its_newest_during_a_replay() -> None:
    """Under `latest` a loss is told if the window has nothing newer to send in its place (I2)."""
    core = Core(rule(policy=Policy.LATEST, age_s=10))
    cursor = core.cursor
    core.publish("b", "1" * CHUNK_BYTES)
    core.publish("a", "2", "3")
    slow = core.connect("channel=a&channel=b", cursor, room=0)
    core.tick(11)
    core.publish("b", "4")

    slow.read()

    assert slow.told()[1:] == ["overflow:2", "4"]


def test_without_cursor() -> None:
    """A client without a cursor gets the newest events it asks for, the rule's number, or none."""
    core = Core(rule("a*", replay=2), rule("*"))
    for number in range(4):
        core.publish("a", f"a{number}")
        core.publish("b", f"b{number}")

    assert core.connect("channel=a&channel=b").told() == ["a2", "a3"]
    assert core.connect("channel=a&channel=b&replay=1").told() == ["a3", "b3"]
    assert core.connect("channel=a&channel=b&replay=0").told() == []
    assert core.connect("channel=a*&channel=b&replay=3").told() == ["a1", "b1", "a2", "b2", "a3", "b3"]
    assert len(core.connect("channel=a&channel=b&replay=all").told()) == 8


def test_without_cursor_older_losses_are_nobodys() -> None:
    """Who asks for the newest events is not told what was lost before them."""
    core = Core(rule(events=2))
    core.publish("old", "0")
    for channel in ("a", "a2"):
        core.publish(channel, "1", "2", "3")

    assert core.connect("channel=old&channel=a&replay=all").told() == ["0", "2", "3"]
    assert core.connect("channel=a*&replay=all").told() == ["2", "3", "2", "3"]


def test_without_cursor_a_slow_client() -> None:
    """What the window loses of the newest events while they are sent is counted, and what was not asked for is not."""
    core = Core(rule(events=20))
    core.publish("z", "0")
    core.publish("a", *(f"{number:02}" + "x" * 8000 for number in range(20)))
    client = core.connect("channel=a&channel=z&replay=10", room=0)

    core.publish("a", *(["-"] * 5))
    core.publish("a", *(["-"] * 12))
    client.read()

    told = client.told()
    assert told[5] == "overflow:3"
    assert [text[:3] for text in told] == [
        *("0", "10x", "11x", "12x", "13x"),
        "ove",
        *("17x", "18x", "19x"),
        *["-"] * 17,
    ]


def test_without_cursor_unasked_losses_end_no_stream() -> None:
    """Under `disconnect` a stream without a cursor is not ended for losses that it did not ask for."""
    core = Core(rule(events=20, policy=Policy.DISCONNECT))
    core.publish("z", "0")
    core.publish("a", *(f"{number:02}" for number in range(20)))
    client = core.connect("channel=a&channel=z&replay=2", room=0)

    core.publish("a", *(["-"] * 5))
    client.read()

    assert client.told() == ["0", "18", "19", *["-"] * 5]


@pytest.mark.parametrize(("replay", "missed"), [("all", "overflow:4"), ("15", "overflow:4"), ("11", None)])
def test_prefix_without_cursor_a_slow_client(replay: str, missed: str | None) -> None:
    """Under a prefix, too, what a slow client asked for and lost is counted, and nothing else is."""
    core, client = slow_replay(Policy.DROP_OLDEST, f"channel=a*&replay={replay}", with_cursor=False)
    first = {"all": 0, "15": 5, "11": 9}[replay]

    core.publish("a", *(["-"] * (min(first, 5) + 8)))
    client.read()

    told = client.told()
    assert [text[:2] for text in told[:4]] == [f"{first + number:02}" for number in range(4)]
    assert told[4][:10] == (missed or "13" + "x" * 8)


def test_wrapped() -> None:
    """A wrapped replay has the data as published: a string, JSON, and one whose line ends the frame has lost."""
    core = Core(rule("t*"), rule("j*", format_=Format.JSON))
    cursor = core.cursor
    core.publish("t", "a\nb", "c\r\nd")
    core.publish("j", '{"data": {"x": [1, 2]}, "event": "e"}', '{"data": "s"}')

    client = core.connect("channel=t&channel=j&wrap=1", cursor)

    assert [block.json() for block in client.blocks()[1:]] == [
        {"channel": "t", "event": "message", "data": "a\nb"},
        {"channel": "t", "event": "message", "data": "c\r\nd"},
        {"channel": "j", "event": "e", "data": {"x": [1, 2]}},
        {"channel": "j", "event": "message", "data": "s"},
    ]


def test_wrapped_once() -> None:
    """Each event is wrapped once for all audiences; a gap on all channels is no event, and stays."""
    core = Core(rule())
    core.publish("a", "1")
    (event,) = core.hub.history.windows["a"].after(-1, 9)
    gap = Event(5, None, b"id: x\n\n", 0.0)
    done: dict[int, Event] = {}

    wrapped = wrapped_event(event, done)

    assert wrapped.frame == wrap(event)
    assert wrapped_event(event, done) is wrapped
    assert wrapped_event(gap, done) is gap
