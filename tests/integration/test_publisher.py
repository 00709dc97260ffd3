"""What upstream publishes: the two formats, what is refused, and that a refused message harms only itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.support.gateway_process import configuration, rule
from tests.support.streams import deliver, follow

if TYPE_CHECKING:
    from tests.conftest import Connect
    from tests.support.gateway_process import GatewayProcess, Gateways
    from tests.support.valkey import Valkey


@pytest.fixture(scope="module")
def gateway(valkey: Valkey, module_gateways: Gateways) -> GatewayProcess:
    """Run one gateway for this module."""
    return module_gateways.start(
        configuration(
            valkey.url,
            rule("sse:json:*", format="json", window={"max_events": 5_000}),
            rule("sse:*", window={"max_events": 20_000}),
            limits={"message_size": "64KiB"},
        )
    )


# -- data is what was published


INTEGRITY = {
    "a forged event after LF": "a\nevent: x\ndata: y",
    "a forged event after CR": "a\revent: x\rdata: y",
    "a forged event after CRLF": "a\r\nevent: x\r\ndata: y",
    "a forged id": "a\nid: 0-0-0\n\nevent: gateway.close\ndata: {}\n\n",
    "a forged retry": "\nretry: 1\n",
    "LF CR": "a\n\rb",
    "CR CR LF": "a\r\r\nb",
    "only line ends": "\n\r\n\r\n\n\r",
    "one LF": "\n",
    "one CR": "\r",
    "vertical tab and form feed": "a\x0bb\x0cc",
    "separators of ASCII": "a\x1cb\x1dc\x1ed",
    "NEL": "a\x85b",
    "line and paragraph separators": "a\u2028b\u2029c",
    "a leading space": " a",
    "leading spaces": "   a\n  b\n c",
    "a leading tab": "\ta",
    "a leading colon": ": a\n: b",
    "a leading BOM": "\ufeffa\n\ufeffb",
    "nothing": "",
    "a NUL": "a\0b",
    "controls": "".join(map(chr, [*range(1, 10), 11, 12, *range(14, 32), 127])),
    "C1 controls": "".join(map(chr, range(0x80, 0xA0))),
    "a field name alone": "data",
    "a field": "data: x",
    "the widest characters": "\U0001f600\U0010ffff\ue000\ufffd\uffff",
    "many lines": "\n" * 2_000,
    "spaces at the end": "a  \n b ",
    "chunk syntax": "0\r\n\r\n",
    "JSON": '{"data": "x"}',
}


@pytest.mark.parametrize("text", INTEGRITY.values(), ids=INTEGRITY.keys())
def test_text_arrives_as_published(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str, text: str
) -> None:
    """I7: whatever the payload, the client gets one event with that data, line ends as LF, live and replayed."""
    stream = follow(connect, gateway, f"/{channel}")
    expected = text.replace("\r\n", "\n").replace("\r", "\n")

    assert deliver(valkey, stream, channel, text) == [expected]
    replayed = connect(gateway, f"/events/{channel}?replay=all", version="1.0")
    replayed.wait_events(2)
    assert [(block.type, block.data) for block in replayed.events[:1]] == [("message", expected)]
    assert replayed.events[0].raw == stream.events[0].raw


@pytest.mark.parametrize("text", INTEGRITY.values(), ids=INTEGRITY.keys())
def test_envelope_strings_arrive_as_published(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str, text: str
) -> None:
    """I7: a string in an envelope is sent as is, whatever it holds, escaped or not."""
    name = f"json:{channel}"
    stream = follow(connect, gateway, f"/{name}")
    expected = text.replace("\r\n", "\n").replace("\r", "\n")
    payloads = [json.dumps({"data": text}), json.dumps({"data": text}, ensure_ascii=False)]

    assert deliver(valkey, stream, name, *payloads) == [expected] * 2


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1}',
        '{ "a" : 1 , "b":[ ] }',
        "[1,2.50,1e3,-0,-0.0]",
        "null",
        "true",
        "0",
        "1e400",
        "123456789012345678901234567890",
        "0.1000000000000000055511151231257827",
        '{"a":"\\u00e9\\/\\n"}',
        '{"b":1,"a":2}',
        '["\u2028", "é"]',
    ],
)
def test_json_values_are_not_re_encoded(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str, text: str
) -> None:
    """Anything but a string is sent as the JSON text that was published, character for character."""
    name = f"json:{channel}"
    stream = follow(connect, gateway, f"/{name}")

    assert deliver(valkey, stream, name, f'{{"data":  {text}  ,"x":1}}', f'{{"event":"t","data":{text}}}') == [text] * 2


def test_json_over_several_lines_is_rejoined(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """Line ends between the tokens of a value arrive as LF."""
    name = f"json:{channel}"
    stream = follow(connect, gateway, f"/{name}")
    value = '{\r\n  "a": 1,\r  "b": [\n]}'

    assert deliver(valkey, stream, name, f'{{"data": {value}}}') == ['{\n  "a": 1,\n  "b": [\n]}']


def test_unknown_keys_are_ignored(gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str) -> None:
    """An envelope may carry more than the gateway knows, in any order, with any space around it."""
    name = f"json:{channel}"
    stream = follow(connect, gateway, f"/{name}")
    payloads = [
        '{"x":{"data":"no"},"data":"a","y":[1]}',
        ' \n\t{ "data" : "b" } \r\n',
        '{"Data":"no","data":"c","DATA":1}',
        '{"d\\u0061ta":"d"}',
    ]

    assert deliver(valkey, stream, name, *payloads) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("event_type", ["t", "é" * 64, "a" * 128, "a b", ":", "data", "gatewa", "gateway", "Gateway.x"])
def test_event_types_pass(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str, event_type: str
) -> None:
    """A type is 1 to 128 bytes without controls, and arrives as it is."""
    name = f"json:{channel}"
    stream = follow(connect, gateway, f"/{name}")
    deliver(valkey, stream, name, json.dumps({"data": 1, "event": event_type}, ensure_ascii=False))

    assert [block.type for block in stream.events] == [event_type, "message"]


@pytest.mark.parametrize("ts", ["1700000000", "1700000000.5", "0", "-1", "1e300", "99999999999999999999", str(2**63)])
def test_a_clock_that_is_off_is_ignored(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str, ts: str
) -> None:
    """A timestamp far off is no reason to refuse an event."""
    name = f"json:{channel}"
    stream = follow(connect, gateway, f"/{name}")

    assert deliver(valkey, stream, name, f'{{"data":"a","ts":{ts}}}') == ["a"]


# -- idempotency keys


def keyed(data: str, key: str) -> str:
    """Build an envelope with an idempotency key."""
    return json.dumps({"data": data, "id": key})


def test_a_repeated_key_is_delivered_once(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """The same key is delivered once per channel, the first time, and a repetition is no gap."""
    name = f"json:{channel}"
    stream = follow(connect, gateway, f"/{name}")
    other = follow(connect, gateway, f"/{name}other")
    payloads = [keyed("a", "1"), keyed("a again", "1"), keyed("b", "2"), keyed("a still", "1"), keyed("é", "é" * 64)]

    assert deliver(valkey, stream, name, *payloads, '{"data":"no key"}', '{"data":"no key"}') == [
        "a",
        "b",
        "é",
        "no key",
        "no key",
    ]
    assert deliver(valkey, other, f"{name}other", keyed("a", "1")) == ["a"]


def test_a_repeated_key_is_not_replayed(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """A resume sees the same events as a live stream did: the repetition is in neither."""
    name = f"json:{channel}"
    stream = follow(connect, gateway, f"/{name}")
    deliver(valkey, stream, name, keyed("a", "1"), keyed("again", "1"), keyed("b", "2"))
    resumed = connect(gateway, f"/events/{name}", headers={"Last-Event-ID": stream.blocks[0].id or ""})
    resumed.wait_events(3)

    assert [block.raw for block in resumed.events] == [block.raw for block in stream.events]


@pytest.mark.parametrize(("others", "again"), [(998, False), (1_001, True)])
def test_keys_are_remembered_over_a_thousand_events(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str, others: int, again: bool
) -> None:
    """A key is remembered among the last 1,000 keyed events of its channel, and not much longer."""
    name = f"json:{channel}"
    stream = follow(connect, gateway, f"/{name}")
    between = [keyed("x", f"other{number}") for number in range(others)] + ['{"data":"x"}'] * 1_500
    data = deliver(valkey, stream, name, keyed("first", "key"), *between, keyed("second", "key"))

    assert ("second" in data) is again
    assert len(data) == 1 + len(between) + again


def test_a_rejected_message_does_not_use_up_its_key(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """A message that was rejected was not delivered: the same key may come again and is."""
    name = f"json:{channel}"
    stream = follow(connect, gateway, f"/{name}")
    bad = json.dumps({"data": "bad", "id": "k", "event": "gateway.x"})

    assert deliver(valkey, stream, name, bad, keyed("good", "k")) == ["good"]
