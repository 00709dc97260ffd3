"""What a client can ask for: names, prefixes, a replay, wrapped events."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.gateway_process import configuration, rule
from tests.support.streams import settle

if TYPE_CHECKING:
    from tests.conftest import Connect
    from tests.support.gateway_process import GatewayProcess, Gateways
    from tests.support.raw_client import Block, Stream
    from tests.support.valkey import Valkey


@pytest.fixture(scope="module")
def gateway(valkey: Valkey, module_gateways: Gateways) -> GatewayProcess:
    """Run one gateway for this module."""
    return module_gateways.start(
        configuration(
            valkey.url,
            rule("sse:json:*", format="json"),
            rule("sse:noprefix:*", prefix=False),
            rule("sse:greet:*", replay_on_connect=2),
            rule("sse:*", prefix=True),
        )
    )


def opened(stream: Stream) -> Any:
    """Return what the open block says."""
    return stream.wait_open().json()


def wrapped(block: Block) -> Any:
    """Return a wrapped event, which is of one line and of the default type."""
    assert block.type == "message"
    assert block.raw.count(b"data:") == 1
    return json.loads(block.data)


# -- names


@pytest.mark.parametrize(
    ("escaped", "name"),
    [
        ("a+b", "a+b"),
        ("a%20b", "a b"),
        ("a%2Bb", "a+b"),
        ("a%252Fb", "a%2Fb"),
        ("a%2Fb", "a/b"),
        ("..%2f..%2fb", "../../b"),
        ("%C3%A9%E2%82%AC", "é€"),
        ("%5Ba-z%5D", "[a-z]"),
        ("a%3Fb", "a?b"),
        ("a*b", "a*b"),
        ("a%5Cb", "a\\b"),
        ("a%3Bb", "a;b"),
        ("a%7C%22%3Cb%3E", 'a|"<b>'),
        ("%EF%BB%BFa", "\ufeffa"),
    ],
)
def test_a_name_in_the_path_is_decoded_once(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str, escaped: str, name: str
) -> None:
    """A channel in the path is percent-decoded once, `+` is itself, and nothing is a glob."""
    stream = connect(gateway, f"/events/{channel}{escaped}")
    assert opened(stream)["channels"] == [channel + name]
    valkey.publish_many([(f"sse:{channel}b", "glob"), (f"sse:{channel}axb", "glob"), (f"sse:{channel}{name}", "mine")])
    stream.wait_data("mine")

    assert stream.data == ["mine"]


@pytest.mark.parametrize(
    ("escaped", "name"), [("a+b", "a b"), ("a%2Bb", "a+b"), ("a%20b", "a b"), ("a%252Fb", "a%2Fb"), ("a%26b", "a&b")]
)
def test_a_plus_in_the_query_is_a_space(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str, escaped: str, name: str
) -> None:
    """A channel in the query is decoded once as a form is."""
    stream = connect(gateway, f"/events?channel={channel}{escaped}")
    assert opened(stream)["channels"] == [channel + name]
    valkey.publish(f"sse:{channel}{name}", "mine")

    assert stream.wait_data("mine").type == "message"


# -- prefixes


@pytest.mark.parametrize("target", ["/events/{}n*", "/events/{}n%2A", "/events?channel={}n*", "/events?channel={}n%2a"])
def test_a_prefix_follows_what_exists_and_what_appears(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str, target: str
) -> None:
    """A name that ends in a star follows every channel so named, also one that appears later."""
    valkey.publish(f"sse:{channel}n1", "before")
    settle(valkey, gateway)
    stream = connect(gateway, target.format(channel))
    assert opened(stream)["channels"] == [f"{channel}n*"]
    published = [(f"{channel}n1", "old"), (f"{channel}x", "other"), (f"{channel}n2", "new"), (f"{channel}n", "bare")]
    valkey.publish_many([(f"sse:{name}", data) for name, data in [*published, (f"{channel}n1", "last")]])
    stream.wait_data("last")

    assert stream.data == ["old", "new", "bare", "last"]


def test_a_prefix_replays_its_channels_in_log_order(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """A replay over a prefix is in log order, whatever the channels."""
    published = [(f"sse:{channel}{number % 5}", str(number)) for number in range(50)]
    valkey.publish_many([*published, (f"sse:{channel[:-1]}", "not so named")])
    settle(valkey, gateway)
    stream = connect(gateway, f"/events/{channel}*?replay=all")
    stream.wait_events(50)
    valkey.publish(f"sse:{channel}new", "live")
    stream.wait_data("live")

    assert stream.data == [data for _, data in published] + ["live"]


def test_a_rule_without_prefix_is_not_reached_by_one(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """I11: where the rule forbids prefixes, a wider prefix does not reach its channels, live or by replay."""
    name = f"noprefix:{channel}"
    valkey.publish(f"sse:{name}", "before")
    for prefix in (f"{name}*", "nopre*", "noprefix:*"):
        stream = connect(gateway, f"/events?channel={prefix}&channel={channel}&replay=all")
        if stream.wait_head().status == 200:
            stream.wait_open()
            valkey.publish_many([(f"sse:{name}", "secret"), (f"sse:{channel}", prefix)])
            stream.wait_data(prefix)

        assert not {"before", "secret"} & set(stream.data)


def test_a_rule_without_prefix_is_followed_by_name(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """A rule that forbids prefixes still serves its channels by name."""
    stream = connect(gateway, f"/events/noprefix:{channel}")
    stream.wait_open()
    valkey.publish(f"sse:noprefix:{channel}", "mine")

    assert stream.wait_data("mine").type == "message"


# -- replay on request


def test_replay_gives_the_newest_of_each_channel(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """`?replay=N` gives the newest N events of each channel, merged in log order, and then goes on live."""
    names = "aabbbabaab"
    valkey.publish_many([(f"sse:{channel}{name}", f"{name}{number}") for number, name in enumerate(names)])
    settle(valkey, gateway)
    stream = connect(gateway, f"/events?channel={channel}a&channel={channel}b&replay=2")
    stream.wait_events(4)
    valkey.publish(f"sse:{channel}a", "live")
    stream.wait_data("live")

    assert stream.data == ["b6", "a7", "a8", "b9", "live"]
    assert not stream.gaps


def test_open_of_a_replay_stands_before_its_first_event(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """A stream cut right behind its open block resumes with the same replay."""
    valkey.publish_many([(f"sse:{channel}", str(number)) for number in range(10)])
    settle(valkey, gateway)
    first = connect(gateway, f"/events/{channel}?replay=3").wait_open()
    resumed = connect(gateway, f"/events/{channel}?replay=3", headers={"Last-Event-ID": first.id or ""})
    resumed.wait_data("9")

    assert resumed.data == ["7", "8", "9"]
    assert resumed.blocks[0].json()["replay"] == "complete"


@pytest.mark.parametrize(("asked", "expected"), [("all", 10), ("1000", 10), ("10", 10), ("1", 1), ("0", 0)])
def test_replay_gives_at_most_what_there_is(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str, asked: str, expected: int
) -> None:
    """`all`, or more than there is, gives all; 0 gives nothing."""
    valkey.publish_many([(f"sse:{channel}", str(number)) for number in range(10)])
    settle(valkey, gateway)
    stream = connect(gateway, f"/events/{channel}?replay={asked}")
    stream.wait_open()
    valkey.publish(f"sse:{channel}", "live")
    stream.wait_data("live")

    assert stream.data == [*(str(number) for number in range(10 - expected, 10)), "live"]


def test_a_cursor_goes_before_replay(gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str) -> None:
    """`?replay` is for clients without a cursor; with one, exactly what was missed is sent."""
    valkey.publish_many([(f"sse:{channel}", str(number)) for number in range(10)])
    settle(valkey, gateway)
    seen = connect(gateway, f"/events/{channel}?replay=all").wait_data("7")
    stream = connect(gateway, f"/events/{channel}?replay=5", headers={"Last-Event-ID": seen.id or ""})
    stream.wait_data("9")

    assert stream.data == ["8", "9"]


def test_a_rule_greets_clients_without_a_cursor(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """`replay_on_connect` sends that many events to a client without a cursor, and to no other."""
    name = f"greet:{channel}"
    valkey.publish_many([(f"sse:{name}", str(number)) for number in range(5)])
    settle(valkey, gateway)
    fresh = connect(gateway, f"/events/{name}")
    fresh.wait_data("4")
    resumed = connect(gateway, f"/events/{name}", headers={"Last-Event-ID": fresh.last_id or ""})
    resumed.wait_open()
    valkey.publish(f"sse:{name}", "live")

    assert fresh.data == ["3", "4"]
    resumed.wait_data("live")
    assert resumed.data == ["live"]


def test_each_rule_greets_by_its_own_number(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """On a stream of several rules each channel is greeted as its own rule says."""
    valkey.publish_many([(f"sse:greet:{channel}", "old"), (f"sse:{channel}", "old"), (f"sse:greet:{channel}", "new")])
    settle(valkey, gateway)
    stream = connect(gateway, f"/events?channel={channel}&channel=greet:{channel}&wrap=1")
    stream.wait_open()
    valkey.publish(f"sse:{channel}", "live")
    stream.wait_events(3)

    told = [(value["channel"], value["data"]) for value in map(wrapped, stream.events)]
    assert told == [(f"greet:{channel}", "old"), (f"greet:{channel}", "new"), (channel, "live")]


# -- wrap


def test_wrapped_text_is_a_string(gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str) -> None:
    """Under a `text` rule a wrapped event carries channel, type and the data as a string, on one line."""
    texts = ["plain", "", "a\nb\rc\r\nd", '{"x": 1}', 'quote " and \\ back', "\u2028\u0085\x0b\x00é\U0001f600", " lead"]
    stream = connect(gateway, f"/events/{channel}?wrap=1")
    assert stream.wait_open().type == "gateway.open"
    valkey.publish_many([(f"sse:{channel}", text) for text in texts])
    events = stream.wait_events(len(texts))

    assert [wrapped(block) for block in events] == [
        {"channel": channel, "event": "message", "data": text} for text in texts
    ]


def test_wrapped_json_is_the_value(gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str) -> None:
    """Under a `json` rule a wrapped event carries the JSON value and the event's type, on one line."""
    name = f"json:{channel}"
    envelopes = [
        '{"data": {"a": [1, 2.50, null, true]}, "event": "tick"}',
        '{"data": "text\\nwith lines"}',
        '{"data": [\n  1,\r\n  {"b":\t"c"}\n]}',
        '{"data": null}',
        '{"data": 12345678901234567890123}',
        '{"data": ""}',
    ]
    stream = connect(gateway, f"/events/{name}?wrap=1")
    stream.wait_open()
    valkey.publish_many([(f"sse:{name}", envelope) for envelope in envelopes])
    events = stream.wait_events(len(envelopes))

    expected = [{"event": "message"} | json.loads(envelope) | {"channel": name} for envelope in envelopes]
    assert [wrapped(block) for block in events] == expected


def test_wrapped_replay_is_as_wrapped_live(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """An event is the same bytes when it is replayed as when it was live, wrapped or not."""
    targets = [f"/events/json:{channel}", f"/events/json:{channel}?wrap=1"]
    live = [connect(gateway, target) for target in targets]
    cursors = [stream.wait_open().id or "" for stream in live]
    valkey.publish_many([(f"sse:json:{channel}", f'{{"data": ["{n}", "é"], "event": "t{n}"}}') for n in range(20)])
    for target, stream, cursor in zip(targets, live, cursors, strict=True):
        replayed = connect(gateway, target, headers={"Last-Event-ID": cursor})

        expected = [block.raw for block in stream.wait_events(20)]
        assert [block.raw for block in replayed.wait_events(20)] == expected
