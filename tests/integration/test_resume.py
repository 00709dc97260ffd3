"""A client that resumes gets exactly what it missed, in order, once, or is told what it may have missed."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.checker import Ledger, check, observe
from tests.support.eventsource import EventSourceParser
from tests.support.gateway_process import configuration, rule
from tests.support.proxy import proxied
from tests.support.raw_client import position
from tests.support.streams import head, kinds, publish, resume, settle

if TYPE_CHECKING:
    from tests.conftest import Connect
    from tests.support.gateway_process import GatewayProcess, Gateways
    from tests.support.raw_client import Block, Stream
    from tests.support.valkey import Valkey

SMALL = 10
"""Events in a window of the rule ``sse:small:*``."""


@pytest.fixture(scope="module")
def gateway(valkey: Valkey, module_gateways: Gateways) -> GatewayProcess:
    """Run one gateway for this module."""
    return module_gateways.start(
        configuration(
            valkey.url,
            rule("sse:small:json:*", format="json", window={"max_events": SMALL}),
            rule("sse:small:*", window={"max_events": SMALL}),
            rule("sse:aged:*", window={"max_age": "200ms"}),
            rule("sse:thin:*", window={"max_bytes": "4KiB"}),
            rule("sse:*"),
            limits={"message_size": "2KiB"},
        )
    )


# -- exactly what was missed


@pytest.mark.parametrize("missed", [0, 1, 2, 100])
def test_a_resume_gives_exactly_what_was_missed(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str, missed: int
) -> None:
    """What was published while the client was away comes first, then live events, nothing twice."""
    ledger = Ledger()
    stream = connect(gateway, f"/events/{channel}")
    stream.wait_open()
    publish(valkey, ledger.messages(channel, 5))
    stream.wait_events(5)
    stream.close()
    publish(valkey, ledger.messages(channel, missed))
    settle(valkey, gateway)
    resumed = resume(connect, gateway, f"/{channel}", stream.last_id)
    first = resumed.wait_open()
    resumed.wait_events(missed)
    publish(valkey, ledger.messages(channel, 5))
    resumed.wait_data(ledger.entries[-1][1])

    assert first.json()["replay"] == "complete"
    assert first.id == stream.last_id
    assert check(ledger, observe([*stream.blocks, *resumed.blocks]), [channel]) == []
    assert not resumed.gaps


@pytest.mark.parametrize("where", ["header", "last_event_id", "lastEventId"])
def test_the_cursor_comes_from_the_header_or_the_query(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str, where: str
) -> None:
    """A cursor is taken from wherever it can come."""
    cursor = head(connect, gateway, channel)
    valkey.publish(f"sse:{channel}", "missed")
    stream = (
        resume(connect, gateway, f"/{channel}", cursor)
        if where == "header"
        else connect(gateway, f"/events/{channel}?{where}={cursor}")
    )

    assert stream.wait_open().id == cursor
    assert stream.wait_data("missed").type == "message"


@pytest.mark.parametrize(
    ("header", "snake", "camel", "expected"),
    [
        (2, 1, 0, 2),
        (2, None, 0, 2),
        (None, 1, 0, 1),
        ("", 1, 0, 1),
        ("", "", 0, 0),
        (None, "", 0, 0),
        (None, None, 0, 0),
        (1, "", "", 1),
    ],
)
def test_cursors_have_an_order_of_precedence(
    gateway: GatewayProcess,
    valkey: Valkey,
    connect: Connect,
    channel: str,
    header: int | str | None,
    snake: int | str | None,
    camel: int | str | None,
    expected: int,
) -> None:
    """The header goes before `last_event_id`, that before `lastEventId`, and an empty one is none."""
    valkey.publish_many([(f"sse:{channel}", str(number)) for number in range(4)])
    settle(valkey, gateway)
    cursors = [block.id or "" for block in connect(gateway, f"/events/{channel}?replay=all").wait_events(4)]

    def text(which: int | str) -> str:
        return which if isinstance(which, str) else cursors[which]

    query = [f"last_event_id={text(snake)}"] if snake is not None else []
    query += [f"lastEventId={text(camel)}"] if camel is not None else []
    headers = {} if header is None else {"Last-Event-ID": text(header)}
    stream = connect(gateway, f"/events/{channel}?{'&'.join(query)}", headers=headers)

    assert stream.wait_open().id == cursors[expected]
    stream.wait_data("3")
    assert stream.data == [str(number) for number in range(expected + 1, 4)]


def test_empty_cursors_are_none(gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str) -> None:
    """A client whose cursors are all empty is a client without one."""
    valkey.publish(f"sse:{channel}", "before")
    settle(valkey, gateway)
    stream = connect(gateway, f"/events/{channel}?last_event_id=&lastEventId=&replay=1", headers={"Last-Event-ID": ""})

    assert stream.wait_data("before").type == "message"
    assert stream.blocks[0].id != "0-0-0"
    assert not stream.gaps


@pytest.mark.parametrize("block_type", ["gateway.open", "gateway.heartbeat", "message"])
def test_every_id_of_a_stream_resumes(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str, block_type: str
) -> None:
    """The id of the open block and of a heartbeat resumes as the id of an event does."""
    stream = connect(gateway, f"/events/{channel}")
    stream.wait_open()
    valkey.publish(f"sse:{channel}", "seen")
    stream.wait_data("seen")
    stream.wait_next("gateway.heartbeat")
    valkey.publish(f"sse:{channel}", "missed")
    settle(valkey, gateway)
    resumed = resume(connect, gateway, f"/{channel}", stream.of_type(block_type)[-1].id)
    resumed.wait_data("missed")

    assert resumed.blocks[0].json()["replay"] == "complete"
    assert resumed.data == (["seen"] if block_type == "gateway.open" else []) + ["missed"]


def test_several_channels_resume_in_log_order(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """A replay of several channels is in the order Redis took the events, and goes on live without a seam."""
    names = [f"{channel}{letter}" for letter in "abc"]
    target = "?" + "&".join(f"channel={name}" for name in names)
    ledger = Ledger()
    cursor = head(connect, gateway, channel)
    publish(valkey, [ledger.message(names[number * number % 3]) for number in range(200)])
    stream = resume(connect, gateway, target, cursor)
    stream.wait_open()
    publish(valkey, [ledger.message(names[number % 3]) for number in range(200)])
    stream.wait_data(ledger.entries[-1][1])

    assert stream.data == [data for _, data in ledger.entries]


def test_one_cursor_covers_any_set_of_channels(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """A cursor from one set of channels resumes another set: it is a position in the one log."""
    cursor = head(connect, gateway, f"{channel}a")
    valkey.publish_many([(f"sse:{channel}{name}", name) for name in "abcab"])
    settle(valkey, gateway)
    stream = resume(connect, gateway, f"?channel={channel}b&channel={channel}c", cursor)
    stream.wait_events(3)

    assert stream.data == ["b", "c", "b"]
    assert stream.blocks[0].json()["replay"] == "complete"


def test_a_resume_while_events_pour_in_has_no_seam(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """I3: between the replay and the live stream nothing is lost, repeated or out of order."""
    ledger = Ledger()
    cursor = head(connect, gateway, channel)
    streams = []
    for _ in range(20):
        publish(valkey, ledger.messages(channel, 20))
        streams.append(resume(connect, gateway, f"/{channel}", cursor))
        publish(valkey, ledger.messages(channel, 20))
    for stream in streams:
        stream.wait_data(ledger.entries[-1][1])

        assert check(ledger, observe(stream.blocks), [channel]) == []
        assert not stream.gaps


# -- a cut at any byte


def body_of_a_stream(gateway: GatewayProcess, valkey: Valkey, connect: Connect, ledger: Ledger, channel: str) -> bytes:
    """Record a stream that has an open block, a gap, several events and a heartbeat."""
    old = head(connect, gateway, channel)
    publish(valkey, ledger.messages(f"small:{channel}", SMALL + 3))
    publish(valkey, [ledger.message(channel), ledger.message(f"small:{channel}")])
    settle(valkey, gateway)
    stream = resume(connect, gateway, f"?channel={channel}&channel=small:{channel}", old)
    stream.wait_data(ledger.entries[-1][1])
    stream.wait_type("gateway.heartbeat")
    stream.close()
    return stream.body


def test_a_resume_over_a_cut_at_any_byte_is_right(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """I1, I2: wherever the connection was cut, what the client keeps and what the resume brings are one whole."""
    ledger = Ledger()
    names = [channel, f"small:{channel}"]
    body = body_of_a_stream(gateway, valkey, connect, ledger, channel)
    target = f"?channel={names[0]}&channel={names[1]}"
    resumed: dict[str, Stream] = {}
    views = []
    for cut in range(len(body) + 1):
        parser = EventSourceParser()
        kept = parser.feed(body[:cut])
        if cursor := parser.last_event_id:
            views.append((cut, kept, cursor))
            resumed[cursor] = resumed.get(cursor) or resume(connect, gateway, target, cursor)
    for stream in resumed.values():
        stream.wait_type("gateway.heartbeat")  # which says that nothing waits any more

    for cut, kept, cursor in views:
        before = [event.data for event in kept if event.type == "message"]
        gaps = [event for event in kept if event.type == "gateway.gap"]
        assert [*before, *resumed[cursor].data] == [data for _, data in ledger.entries][4:], f"cut at byte {cut}"
        assert len(gaps) + len(resumed[cursor].gaps) == 1, f"cut at byte {cut}"
        assert not before or gaps, f"the gap was told too late, cut at byte {cut}"
    assert len(resumed) > SMALL


def test_a_connection_that_is_really_cut_resumes(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """Cut by a reset after ever so many bytes, a client that reconnects by itself ends with one whole."""
    ledger = Ledger()
    cursor: str | None = head(connect, gateway, channel)
    publish(valkey, ledger.messages(channel, 300, padding=20))
    blocks: list[Block] = []
    assert isinstance(gateway.address, tuple)
    with ExitStack() as stack:
        proxy = stack.enter_context(proxied(gateway.address))
        for cut in range(600, 3_000, 171):
            proxy.to_client.cut_after = cut
            stream = connect(proxy.address, f"/events/{channel}", headers={"Last-Event-ID": cursor or ""}).wait_end()
            blocks += stream.blocks
            cursor = stream.last_id or cursor
    last = resume(connect, gateway, f"/{channel}", cursor)
    last.wait_open()
    publish(valkey, ledger.messages(channel, 1))
    last.wait_data(ledger.entries[-1][1])

    assert check(ledger, observe([*blocks, *last.blocks]), [channel]) == []


# -- lost from the window


@pytest.mark.parametrize("target", ["/small:{}", "/small:{}*", "/small:{}?wrap=1", "?channel=small:{0}&channel={0}"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_burst_larger_than_the_window_reaches_a_live_client_whole(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str, target: str, version: str
) -> None:
    """I2: the window bounds what a resume can bring, not what a client that reads gets."""
    ledger = Ledger()
    name = f"small:{channel}"
    stream = connect(gateway, f"/events{target.format(channel)}", version=version)
    stream.wait_open()
    burst = ledger.messages(name, SMALL * 50)
    valkey.publish_at_once([(f"sse:{name}", data) for name, data in burst])
    stream.wait_for(lambda s: s.events and burst[-1][1] in s.events[-1].data, what="the end of the burst")

    assert check(ledger, observe(stream.blocks, wrapped="wrap=1" in target), [name]) == []
    assert not stream.gaps


@pytest.mark.parametrize("lost", [1, 2, 20, 1_000])
def test_what_the_window_lost_is_told_with_its_exact_count(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str, lost: int
) -> None:
    """Events pushed out of the window are told as one gap with their number, then the rest follows."""
    name = f"small:{channel}"
    ledger = Ledger()
    cursor = head(connect, gateway, name)
    publish(valkey, ledger.messages(name, lost + SMALL))
    settle(valkey, gateway)
    stream = resume(connect, gateway, f"/{name}", cursor)
    stream.wait_data(ledger.entries[-1][1])

    first = stream.blocks[0]
    assert first.json()["replay"] == "gap"
    assert first.id == cursor
    assert [block.json() for block in stream.gaps] == [{"reason": "window", "channels": [name], "missed": lost}]
    assert stream.blocks[1].type == "gateway.gap"
    assert check(ledger, observe(stream.blocks), [name]) == []


def test_a_window_that_still_holds_everything_has_no_gap(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """Exactly as many events as the window holds are no loss."""
    name = f"small:{channel}"
    cursor = head(connect, gateway, name)
    publish(valkey, Ledger().messages(name, SMALL))
    settle(valkey, gateway)
    stream = resume(connect, gateway, f"/{name}", cursor)
    stream.wait_events(SMALL)

    assert stream.blocks[0].json()["replay"] == "complete"
    assert not stream.gaps


def test_a_loss_before_the_cursor_is_no_gap(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """What a client already had may leave the window: nothing is told of it."""
    name = f"small:{channel}"
    stream = connect(gateway, f"/events/{name}")
    stream.wait_open()
    ledger = Ledger()
    publish(valkey, ledger.messages(name, 50))
    stream.wait_events(50)
    publish(valkey, ledger.messages(name, SMALL))
    settle(valkey, gateway)
    resumed = resume(connect, gateway, f"/{name}", stream.events[49].id)
    resumed.wait_events(SMALL)

    assert resumed.blocks[0].json()["replay"] == "complete"
    assert check(ledger, observe([*stream.events[:50], *resumed.blocks]), [name]) == []


def test_more_lost_events_than_are_remembered_are_told_without_a_number(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """Beyond what is remembered of lost events the number is right or absent, never wrong."""
    name = f"small:{channel}"
    ledger = Ledger()
    cursor = head(connect, gateway, name)
    publish(valkey, ledger.messages(name, 20_000))
    settle(valkey, gateway)
    stream = resume(connect, gateway, f"/{name}", cursor)
    stream.wait_data(ledger.entries[-1][1])

    (gap,) = stream.gaps
    assert gap.json()["reason"] == "window"
    assert gap.json()["missed"] in {None, 20_000 - SMALL}
    assert check(ledger, observe(stream.blocks), [name]) == []


def test_only_deliverable_events_are_missed(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """Rejected messages and repetitions of an idempotency key are not counted as missed."""
    name = f"small:json:{channel}"
    cursor = head(connect, gateway, name)
    for number in range(5 + SMALL):
        valkey.publish_many([(f"sse:{name}", f'{{"data": {number}, "id": "key{number}"}}')] * 2)
        valkey.publish_many([(f"sse:{name}", "not an envelope"), (f"sse:{name}", b"\xff")])
    settle(valkey, gateway)
    stream = resume(connect, gateway, f"/{name}", cursor)
    stream.wait_data(str(5 + SMALL - 1))

    assert [block.json()["missed"] for block in stream.gaps] == [5]
    assert stream.data == [str(number) for number in range(5, 5 + SMALL)]


def test_a_gap_stands_at_the_newest_loss(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """Other channels' events from before the newest loss come before the gap, later ones behind it."""
    small, big = f"small:{channel}", f"{channel}"
    ledger = Ledger()
    cursor = head(connect, gateway, big)
    pattern = [small, big, small, small, big, *[small] * SMALL, big]
    messages = [ledger.message(name) for name in pattern]
    publish(valkey, messages)
    settle(valkey, gateway)
    stream = resume(connect, gateway, f"?channel={small}&channel={big}", cursor)
    stream.wait_data(messages[-1][1])

    data = [text for _, text in messages]
    assert kinds(stream) == ["gateway.open", data[1], "gateway.gap", data[4], *data[5:]]
    assert [block.json() for block in stream.gaps] == [{"reason": "window", "channels": [small], "missed": 3}]
    places = [position(block.id or "") for block in stream.blocks if block.type != "gateway.heartbeat"]
    assert places == sorted(places)
    assert len(set(places)) == len(places)


def test_each_channel_has_its_own_gap_in_its_own_place(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """Two channels that lost events are told apart, each before its own next event."""
    one, two = f"small:{channel}1", f"small:{channel}2"
    ledger = Ledger()
    cursor = head(connect, gateway, one)
    publish(valkey, ledger.messages(one, SMALL + 4) + ledger.messages(two, SMALL + 7))
    settle(valkey, gateway)
    stream = resume(connect, gateway, f"?channel={one}&channel={two}", cursor)
    stream.wait_data(ledger.entries[-1][1])

    told = {block.json()["channels"][0]: block.json()["missed"] for block in stream.gaps}
    assert told == {one: 4, two: 7}
    assert check(ledger, observe(stream.blocks), [one, two]) == []


def test_a_gap_told_is_not_repeated(gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str) -> None:
    """A resume from a gap's own id gets exactly what came behind it, and not the gap again."""
    small, big = f"small:{channel}", f"{channel}"
    ledger = Ledger()
    cursor = head(connect, gateway, big)
    publish(valkey, [ledger.message(name) for name in [big, *[small] * (SMALL + 5), big]])
    target = f"?channel={small}&channel={big}"
    settle(valkey, gateway)
    stream = resume(connect, gateway, target, cursor)
    stream.wait_data(ledger.entries[-1][1])
    (gap,) = stream.gaps
    resumed = resume(connect, gateway, target, gap.id)
    resumed.wait_data(ledger.entries[-1][1])

    assert resumed.blocks[0].json()["replay"] == "complete"
    assert not resumed.gaps
    behind = stream.blocks[stream.blocks.index(gap) + 1 :]
    assert resumed.data == [block.data for block in behind if not block.own]


def test_aged_events_are_told(gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str) -> None:
    """Events older than the window's age are not sent any more, and told as a gap of the window."""
    name = f"aged:{channel}"
    stream = connect(gateway, f"/events/{name}")
    first = stream.wait_open()
    valkey.publish_many([(f"sse:{name}", str(number)) for number in range(7)])
    stream.wait_events(7)
    began = time.monotonic()
    stream.wait_for(lambda _: time.monotonic() > began + 0.5, what="heartbeats over half a second")
    resumed = resume(connect, gateway, f"/{name}", first.id)
    resumed.wait_type("gateway.gap")
    valkey.publish(f"sse:{name}", "live")
    resumed.wait_data("live")

    assert [block.json() for block in resumed.gaps] == [{"reason": "window", "channels": [name], "missed": 7}]
    assert resumed.data == ["live"]


def test_a_window_is_bounded_in_bytes(gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str) -> None:
    """What does not fit into the window's bytes is lost from its old end, and told with its number."""
    name = f"thin:{channel}"
    ledger = Ledger()
    cursor = head(connect, gateway, name)
    publish(valkey, ledger.messages(name, 50, padding=500))
    settle(valkey, gateway)
    stream = resume(connect, gateway, f"/{name}", cursor)
    stream.wait_data(ledger.entries[-1][1])

    assert 4 <= len(stream.events) <= 8
    assert check(ledger, observe(stream.blocks), [name]) == []
    assert [block.json()["missed"] for block in stream.gaps] == [50 - len(stream.events)]


# -- prefixes


def test_prefixes_resume_too(gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str) -> None:
    """A stream over a prefix resumes over channels that appeared while the client was away."""
    cursor = head(connect, gateway, channel)
    ledger = Ledger()
    names = [f"{channel}{number}" for number in range(10)]
    publish(valkey, [ledger.message(name) for name in names * 3])
    settle(valkey, gateway)
    stream = resume(connect, gateway, f"/{channel}*", cursor)
    stream.wait_data(ledger.entries[-1][1])

    assert stream.data == [data for _, data in ledger.entries]
    assert stream.blocks[0].json()["replay"] == "complete"


def test_a_loss_under_a_prefix_names_the_channel_or_the_prefix(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """A gap on a stream over a prefix names what the client can recognise, before that channel's next event."""
    cursor = head(connect, gateway, channel)
    ledger = Ledger()
    name = f"small:{channel}x"
    publish(valkey, ledger.messages(name, SMALL + 5))
    settle(valkey, gateway)
    stream = resume(connect, gateway, f"/small:{channel}*", cursor)
    stream.wait_data(ledger.entries[-1][1])

    (gap,) = stream.gaps
    told: Any = gap.json()
    assert told["reason"] == "window"
    assert told["channels"] in ([name], [f"small:{channel}*"])
    assert told["missed"] == 5
    assert kinds(stream)[:2] == ["gateway.open", "gateway.gap"]
