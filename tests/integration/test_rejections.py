"""Messages that are refused: each is counted by its reason, harms only itself, and cannot shout in the log."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.gateway_process import EVENTS, RECEIVED, REJECTED, configuration, rule
from tests.support.streams import deliver, follow

if TYPE_CHECKING:
    from tests.conftest import Connect
    from tests.support.gateway_process import GatewayProcess, Gateways
    from tests.support.valkey import Valkey

MESSAGE_SIZE = 64 * 1024


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


def rejected(gateway: GatewayProcess, reason: str | None = None) -> float:
    """Return how many messages have been rejected."""
    return gateway.metric(REJECTED) if reason is None else gateway.metric(REJECTED, reason=reason)


NOT_UTF8 = {
    "a lone continuation byte": b"\x80",
    "Latin-1": "café".encode("latin-1"),
    "an overlong slash": b"\xc0\xaf",
    "a surrogate": b"\xed\xa0\x80",
    "truncated": b"abc\xe2\x82",
    "above U+10FFFF": b"\xf4\x90\x80\x80",
    "UTF-16": "\ufeffhello".encode("utf-16-le"),
    "zlib": b"\x78\x9c\xcbH\xcd\xc9\xc9\x07\x00\x06,\x02\x15",
}


@pytest.mark.parametrize("payload", NOT_UTF8.values(), ids=NOT_UTF8.keys())
@pytest.mark.parametrize("prefix", ["", "json:"])
def test_what_is_not_utf8_is_rejected(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str, payload: bytes, prefix: str
) -> None:
    """A payload that is not UTF-8 is rejected as `encoding` under both formats, and the next one arrives."""
    name = prefix + channel
    stream = follow(connect, gateway, f"/{name}")
    before = rejected(gateway, "encoding"), rejected(gateway)
    payloads = [payload, b'{"data":"x","y":"' + payload + b'"}']

    assert deliver(valkey, stream, name, *payloads) == []
    assert (rejected(gateway, "encoding"), rejected(gateway)) == (before[0] + 2, before[1] + 2)


NOT_ENVELOPES = {
    "nothing": "",
    "a word": "hello",
    "a number": "17",
    "a string": '"data"',
    "null": "null",
    "an array": '[{"data":1}]',
    "an empty object": "{}",
    "no data": '{"event":"x"}',
    "half an object": '{"data":1',
    "two objects": '{"data":1}{"data":2}',
    "something behind": '{"data":1} x',
    "a BOM": '\ufeff{"data":1}',
    "single quotes": "{'data':1}",
    "a comment": '{"data":1/**/}',
    "a comma too many": '{"data":1,}',
    "NaN": '{"data":NaN}',
    "Infinity": '{"data":-Infinity}',
    "a leading zero": '{"data":01}',
    "a raw LF in a string": '{"data":"a\nb"}',
    "a bad escape": '{"data":"\\x41"}',
    "a lone surrogate": '{"data":"\\ud800"}',
    "a lone surrogate in the type": '{"data":1,"event":"\\udfff"}',
    "data twice": '{"data":1,"data":1}',
    "data twice, once escaped": '{"data":1,"d\\u0061ta":2}',
    "event twice": '{"data":1,"event":"a","event":"b"}',
    "an unknown key twice": '{"data":1,"x":1,"x":1}',
    "a number for a type": '{"data":1,"event":1}',
    "null for a type": '{"data":1,"event":null}',
    "a list for a type": '{"data":1,"event":["a"]}',
    "a number for an id": '{"data":1,"id":1}',
    "null for an id": '{"data":1,"id":null}',
    "a string for a clock": '{"data":1,"ts":"now"}',
    "true for a clock": '{"data":1,"ts":true}',
}


@pytest.mark.parametrize("payload", NOT_ENVELOPES.values(), ids=NOT_ENVELOPES.keys())
def test_what_is_not_the_envelope_is_rejected(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str, payload: str
) -> None:
    """Under a `json` rule what is not the envelope is rejected once, and the next one arrives."""
    name = f"json:{channel}"
    stream = follow(connect, gateway, f"/{name}")
    before = rejected(gateway)

    assert deliver(valkey, stream, name, payload) == []
    assert rejected(gateway) == before + 1


@pytest.mark.parametrize("payload", ["hello", "[]", '{"data":1,"data":2}', '{"data":1} x', "{}"])
def test_envelopes_are_counted_as_such(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str, payload: str
) -> None:
    """What is not the envelope has the reason `envelope`."""
    name = f"json:{channel}"
    stream = follow(connect, gateway, f"/{name}")
    before = rejected(gateway, "envelope")
    deliver(valkey, stream, name, payload)

    assert rejected(gateway, "envelope") == before + 1


@pytest.mark.parametrize(
    "event_type",
    ["gateway.open", "gateway.", "gateway.x", "", "a" * 129, "é" * 65, "a\nb", "a\rb", "\0", "a\x1fb", "\x7f", "\x80"],
)
def test_types_that_are_reserved_or_ill_formed_are_rejected(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str, event_type: str
) -> None:
    """I7: a type that is reserved, empty, too long or has a control in it is rejected as `type`."""
    name = f"json:{channel}"
    stream = follow(connect, gateway, f"/{name}")
    before = rejected(gateway, "type")

    assert deliver(valkey, stream, name, json.dumps({"data": 1, "event": event_type})) == []
    assert rejected(gateway, "type") == before + 1


@pytest.mark.parametrize("key", ["", "a" * 129, "é" * 65, "a\nb", "\0", "\x7f", "a\x85b"])
def test_ids_that_are_ill_formed_are_rejected(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str, key: str
) -> None:
    """An idempotency key that is empty, too long or has a control in it is rejected."""
    name = f"json:{channel}"
    stream = follow(connect, gateway, f"/{name}")
    before = rejected(gateway)

    assert deliver(valkey, stream, name, json.dumps({"data": 1, "id": key})) == []
    assert rejected(gateway) == before + 1


SIZES = {
    "one byte more than allowed": "a" * (MESSAGE_SIZE + 1),
    "exactly what is allowed, and no room for a frame": "a" * MESSAGE_SIZE,
    "ten times": "a" * MESSAGE_SIZE * 10,
    "lines that grow when framed": "\n" * (MESSAGE_SIZE // 4),
}


@pytest.mark.parametrize("payload", SIZES.values(), ids=SIZES.keys())
def test_what_is_too_large_is_rejected(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str, payload: str
) -> None:
    """A message too large as payload or as frame is rejected as `size`, with no gap, and the next one arrives."""
    stream = follow(connect, gateway, f"/{channel}")
    before = rejected(gateway, "size")

    assert deliver(valkey, stream, channel, payload) == []
    assert rejected(gateway, "size") == before + 1


def test_what_just_fits_arrives(gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str) -> None:
    """A payload close to the limit whose frame fits is delivered."""
    stream = follow(connect, gateway, f"/{channel}")
    large = "a" * (MESSAGE_SIZE - 200)

    assert deliver(valkey, stream, channel, large) == [large]


@pytest.mark.parametrize(
    "name",
    [
        b"star*",
        b"*",
        b"nul\0",
        b"lf\n",
        b"esc\x1b",
        b"c1\xc2\x85",
        b"latin\xe9",
        b"long" + b"x" * 253,
        b"",
    ],
)
def test_channels_nobody_could_ask_for_are_rejected(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str, name: bytes
) -> None:
    """A channel whose name no client could ask for is rejected as `channel`, and reaches no prefix."""
    own = b"" if name in {b"", b"*"} else channel.encode()
    stream = follow(connect, gateway, f"/{channel}*")
    before = rejected(gateway, "channel")
    valkey.publish(b"sse:" + own + name, "never")
    deliver(valkey, stream, channel, "next")

    assert stream.data[0] == "next"
    assert rejected(gateway, "channel") == before + 1


def test_deep_nesting_harms_nobody(gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str) -> None:
    """I9: nesting as deep as a message allows is delivered or rejected, and the next one arrives."""
    name = f"json:{channel}"
    stream = follow(connect, gateway, f"/{name}")
    depth = 20_000
    payloads = [
        '{"data":' + "[" * depth + "]" * depth + "}",
        '{"data":1,"x":' + '{"x":' * 10_000 + "1" + "}" * 10_000 + "}",
        "[" * depth,
        '{"data":' + "[" * depth,
    ]
    arrived = deliver(valkey, stream, name, *payloads)

    assert all(data in {"[" * depth + "]" * depth, "1"} for data in arrived)


def test_ten_thousand_malformed_messages_harm_nobody(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """Malformed messages are all counted, logged at most once a second per rule, and tell no gap."""
    name = f"json:{channel}"
    stream = follow(connect, gateway, f"/{name}")
    before = rejected(gateway)
    began = time.monotonic()
    kinds: list[str | bytes] = ["not json", b"\xff\xfe", '{"data":1,"event":"gateway.x"}', '{"data":1,"data":2}', "{}"]

    assert deliver(valkey, stream, name, *kinds * 2_000) == []
    took = time.monotonic() - began
    assert rejected(gateway) == before + 10_000
    assert len(gateway.records("message.rejected", channel=f"sse:{name}")) <= took + 1
    resumed = connect(gateway, f"/events/{name}", headers={"Last-Event-ID": stream.blocks[0].id or ""})
    resumed.wait_events(1)
    assert resumed.blocks[0].json()["replay"] == "complete"


def test_a_rejection_is_logged_with_its_channel_and_escaped(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """The log names the channel and the first 80 bytes at most, and no payload can forge a line of it."""
    stream = follow(connect, gateway, f"/{channel}")
    payload = b'\x1b[31m\n{"event":"forged.line"}\n\xff' + b"z" * 500

    def logged() -> bool:
        deliver(valkey, stream, channel, payload)
        return any(channel in str(record.values()) for record in gateway.logs)

    gateway.wait_until(logged, 5.0, "log line of the rejection")
    (record,) = [record for record in gateway.logs if channel in str(record.values()) and "reason" in record][:1]
    assert record["reason"] == "encoding"
    assert "z" * 81 not in str(record)
    assert not gateway.records("forged.line")
    assert not gateway.stray_output


def test_what_comes_in_is_counted(gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str) -> None:
    """Every message is counted as received; those that become events are counted as events."""
    stream = follow(connect, gateway, f"/{channel}")
    before = gateway.metrics()
    deliver(valkey, stream, channel, "a", "b", b"\xff")
    after = gateway.metrics()

    assert after.value(RECEIVED) - before.value(RECEIVED) == 4
    assert after.value(EVENTS) - before.value(EVENTS) == 3
    assert after.value(REJECTED) - before.value(REJECTED) == 1
