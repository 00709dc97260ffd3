"""What a client sees on an open stream: the response, the first block, events, heartbeats, the end."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from tests.support.gateway_process import CONNECTIONS, STREAM_CLOSED, STREAMS_CLOSED, configuration, rule
from tests.support.lateness import lateness
from tests.support.raw_client import position
from tests.support.streams import settle

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Connect
    from tests.support.gateway_process import GatewayProcess, Gateways
    from tests.support.valkey import Valkey

RESPONSE_HEADERS = {
    "content-type": "text/event-stream",
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
    "connection": "close",
}
INCIDENTAL_HEADERS = {"date", "server", "vary"}


@pytest.fixture(scope="module")
def gateway(valkey: Valkey, module_gateways: Gateways) -> GatewayProcess:
    """Run one gateway for this module."""
    return module_gateways.start(configuration(valkey.url, rule("sse:json:*", format="json"), rule("sse:*")))


@pytest.fixture(scope="module")
def short_lived(valkey: Valkey, module_gateways: Gateways) -> GatewayProcess:
    """Run a gateway whose streams end after a second."""
    return module_gateways.start(configuration(valkey.url, stream={"max_age": "1s"}))


# -- the response


def test_the_response_has_exactly_its_headers(gateway: GatewayProcess, connect: Connect, channel: str) -> None:
    """Every header that keeps proxies and caches out of the way is there once, and no other."""
    stream = connect(gateway, f"/events/{channel}").wait_head()

    assert (stream.status, stream.reason) == (200, "OK")
    assert {name: stream.headers.get(name) for name in RESPONSE_HEADERS} == RESPONSE_HEADERS
    assert stream.headers.get("Transfer-Encoding") == "chunked"
    assert stream.headers.names() - INCIDENTAL_HEADERS == {*RESPONSE_HEADERS, "transfer-encoding"}


def test_http_1_0_gets_an_identity_body(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """A client of HTTP/1.0 gets the same blocks without a transfer coding and without a length."""
    stream = connect(gateway, f"/events/{channel}", version="1.0")
    stream.wait_open()
    valkey.publish(f"sse:{channel}", "a\nb")
    stream.wait_events(1)

    assert {name: stream.headers.get(name) for name in RESPONSE_HEADERS} == RESPONSE_HEADERS
    assert stream.headers.names() - INCIDENTAL_HEADERS == set(RESPONSE_HEADERS)
    assert stream.data == ["a\nb"]


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_head_gets_the_headers_and_the_end(
    gateway: GatewayProcess, connect: Connect, channel: str, version: str
) -> None:
    """HEAD is answered with the headers of GET, no body, and the end of the connection."""
    stream = connect(gateway, f"/events/{channel}", method="HEAD", version=version).wait_end()

    assert stream.status == 200
    assert {name: stream.headers.get(name) for name in RESPONSE_HEADERS} == RESPONSE_HEADERS
    assert stream.body == b""
    assert not stream.was_reset


@pytest.mark.parametrize("target", ["/events/{}", "/events?channel={}", "/events"])
def test_options_gets_204(gateway: GatewayProcess, connect: Connect, channel: str, target: str) -> None:
    """OPTIONS is answered with 204 and nothing else."""
    stream = connect(gateway, target.format(channel), method="OPTIONS").wait_head()

    assert stream.status == 204
    assert stream.body == b""


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("target", ["/events/{}", "/events?channel={}"])
def test_other_methods_get_405(
    gateway: GatewayProcess, connect: Connect, channel: str, method: str, target: str
) -> None:
    """Every other method is refused, with the list of those allowed."""
    stream = connect(gateway, target.format(channel), method=method, headers={"Content-Length": "0"}).wait_head()

    assert stream.status == 405
    assert {part.strip() for part in (stream.headers.get("Allow") or "").split(",")} == {"GET", "HEAD", "OPTIONS"}


def test_a_unix_socket_serves_as_well(
    gateways: Gateways, valkey: Valkey, connect: Connect, channel: str, tmp_path: Path
) -> None:
    """A gateway that listens on a Unix socket serves streams there."""
    gateway = gateways.start(configuration(valkey.url, listen={"unix": str(tmp_path / "gw.sock")}))
    stream = connect(gateway, f"/events/{channel}")
    stream.wait_open()
    valkey.publish(f"sse:{channel}", "hello")
    stream.wait_events(1)

    assert stream.data == ["hello"]


def test_the_environment_overrides_a_key(gateways: Gateways, valkey: Valkey, connect: Connect, channel: str) -> None:
    """A key of the file gives way to the variable of its name."""
    gateway = gateways.start(configuration(valkey.url), environment={"SSE_GATEWAY__STREAM__RETRY": "100s"})
    block = connect(gateway, f"/events/{channel}").wait_open()

    assert block.retry is not None
    assert 50_000 <= block.retry <= 150_000


# -- the first block


def test_open_is_first_and_says_what_the_stream_is(gateway: GatewayProcess, connect: Connect, channel: str) -> None:
    """The first block names the channels, the replay, a cursor and a retry, and nothing else."""
    block = connect(gateway, f"/events?channel={channel}a&channel={channel}b").wait_open()
    told = block.json()

    assert set(told) == {"channels", "replay"}
    assert sorted(told["channels"]) == [f"{channel}a", f"{channel}b"]
    assert told["replay"] == "none"
    assert block.id is not None
    assert position(block.id)


def test_retry_is_drawn_for_each_connection(gateway: GatewayProcess, connect: Connect, channel: str) -> None:
    """The retry is within half of the configured 3 s, and not the same for all."""
    retries = [connect(gateway, f"/events/{channel}").wait_open().retry for _ in range(20)]

    assert all(retry is not None and 1_500 <= retry <= 4_500 for retry in retries)
    assert len(set(retries)) > 1


def test_open_without_a_cursor_carries_the_head(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """Without a cursor a stream starts behind everything published before it."""
    valkey.publish(f"sse:{channel}", "before")
    settle(valkey, gateway)
    seen = connect(gateway, f"/events/{channel}?replay=1").wait_events(1)[0]
    block = connect(gateway, f"/events/{channel}").wait_open()

    assert seen.id is not None
    assert block.id is not None
    assert position(block.id) >= position(seen.id)
    resumed = connect(gateway, f"/events/{channel}", headers={"Last-Event-ID": block.id})
    valkey.publish(f"sse:{channel}", "after")
    assert [b.data for b in resumed.wait_events(1)] == ["after"]


def test_open_comes_before_anything_is_published(gateway: GatewayProcess, connect: Connect, channel: str) -> None:
    """Headers and the open block come at once, on a channel nobody has ever used."""
    with lateness() as late:
        began = time.monotonic()
        connect(gateway, f"/events/{channel}").wait_open()

        assert time.monotonic() - began < 2 + late.total_s


# -- events


def test_events_come_in_the_order_they_were_published(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """Events of one channel come once, in order, with ids that ascend in one epoch."""
    stream = connect(gateway, f"/events/{channel}")
    first = stream.wait_open()
    published = [f"{number}" for number in range(1_000)]
    valkey.publish_many([(f"sse:{channel}", data) for data in published])
    events = stream.wait_events(1_000)

    places = [position(block.id or "") for block in [first, *events]]
    assert stream.data == published
    assert len({epoch for epoch, _ in places}) == 1
    assert all(before < after for before, after in pairwise(places))


def test_an_event_has_one_id_for_all(gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str) -> None:
    """Streams of different sets, framings and versions see an event under one and the same id."""
    streams = [
        connect(gateway, f"/events/{channel}x"),
        connect(gateway, f"/events/{channel}x", version="1.0"),
        connect(gateway, f"/events/{channel}*"),
        connect(gateway, f"/events?channel={channel}x&channel={channel}y&wrap=1"),
    ]
    for stream in streams:
        stream.wait_open()
    valkey.publish(f"sse:{channel}x", "hello")

    assert len({stream.wait_events(1)[0].id for stream in streams}) == 1


def test_plain_events_are_of_the_default_type(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """An event of the default type has no event line; one with a type has."""
    stream = connect(gateway, f"/events/json:{channel}")
    stream.wait_open()
    name = f"sse:json:{channel}"
    valkey.publish_many([(name, '{"data":"a"}'), (name, '{"data":"b","event":"message"}')])
    valkey.publish(name, '{"data":"c","event":"tick"}')
    events = stream.wait_events(3)

    assert [block.type for block in events] == ["message", "message", "tick"]
    assert [b"event:" in block.raw for block in events] == [False, False, True]


def test_several_channels_come_in_log_order(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """A stream of several channels sees their events in the order Redis took them."""
    stream = connect(gateway, f"/events?channel={channel}a&channel={channel}b&channel={channel}c")
    stream.wait_open()
    published = [(f"{channel}{'abc'[number % 7 % 3]}", str(number)) for number in range(300)]
    valkey.publish_many([(f"sse:{name}", data) for name, data in published])
    stream.wait_events(300)

    assert stream.data == [data for _, data in published]


def test_a_stream_gets_its_own_channels_only(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """Names that only look alike are other channels."""
    stream = connect(gateway, f"/events/{channel}a")
    stream.wait_open()
    others = [f"{channel}", f"{channel}A", f"{channel}aa", f"{channel}a ", f" {channel}a", f"sse:{channel}a"]
    valkey.publish_many([(f"sse:{name}", "not mine") for name in others])
    valkey.publish(f"{channel}a", "not under the pattern")
    valkey.publish(f"sse:{channel}a", "mine")
    stream.wait_data("mine")

    assert stream.data == ["mine"]


def test_duplicates_merge(gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str) -> None:
    """A channel that is asked for twice, or by name and by prefix, is followed once."""
    twice = connect(gateway, f"/events?channel={channel}&channel={channel}")
    both = connect(gateway, f"/events?channel={channel}&channel={channel}*")
    assert twice.wait_open().json()["channels"] == [channel]
    both.wait_open()
    valkey.publish_many([(f"sse:{channel}", "one"), (f"sse:{channel}", "two")])

    for stream in (twice, both):
        stream.wait_data("two")
        assert stream.data == ["one", "two"]


# -- heartbeats


def test_silence_is_filled_with_heartbeats(gateway: GatewayProcess, connect: Connect, channel: str) -> None:
    """On a quiet stream a heartbeat with an id and the live flag comes at the latest after the time configured."""
    stream = connect(gateway, f"/events/{channel}")
    stream.wait_open()
    with lateness() as late:
        began = time.monotonic()
        stream.wait_type("gateway.heartbeat", count=3)
        took = time.monotonic() - began

    assert took < 3 * 0.3 + 1.0 + late.total_s
    for block in stream.of_type("gateway.heartbeat"):
        assert block.json() == {"live": True}
        assert position(block.id or "")


def test_a_heartbeat_carries_the_position_past_other_channels(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """On a quiet stream the cursor follows the log, so that a quiet client does not grow old."""
    stream = connect(gateway, f"/events/{channel}quiet")
    first = stream.wait_open()
    valkey.publish_many([(f"sse:{channel}busy", "x")] * 100)
    moved = stream.wait_for(
        lambda s: next((b for b in s.of_type("gateway.heartbeat") if b.id != first.id), None), what="a later cursor"
    )

    assert position(moved.id or "") > position(first.id or "")
    resumed = connect(gateway, f"/events/{channel}quiet", headers={"Last-Event-ID": moved.id or ""})
    assert resumed.wait_open().json()["replay"] == "complete"


# -- the end


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_stream_of_maximal_age_ends_cleanly(
    short_lived: GatewayProcess, connect: Connect, channel: str, version: str
) -> None:
    """The last block says why, with a retry and a cursor; then the body and the connection end well."""
    stream = connect(short_lived, f"/events/{channel}", version=version).wait_end()
    last = stream.blocks[-1]

    assert stream.ended
    assert not stream.was_reset
    assert stream.describe().endswith("then b''")
    assert last.type == "gateway.close"
    assert last.json() == {"reason": "max_age"}
    assert last.retry is not None
    assert 1_500 <= last.retry <= 4_500
    assert position(last.id or "")


def test_the_cursor_of_the_close_block_resumes(
    short_lived: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """A client that was ended goes on exactly where it was."""
    stream = connect(short_lived, f"/events/{channel}")
    stream.wait_open()
    valkey.publish(f"sse:{channel}", "one")
    stream.wait_end()
    valkey.publish(f"sse:{channel}", "two")
    resumed = connect(short_lived, f"/events/{channel}", headers={"Last-Event-ID": stream.last_id or ""})
    resumed.wait_data("two")

    assert [*stream.data, *resumed.data] == ["one", "two"]  # the first may have ended before it had anything
    assert resumed.blocks[0].json()["replay"] == "complete"


def test_ends_by_age_are_spread(short_lived: GatewayProcess, connect: Connect, channel: str) -> None:
    """Streams end spread over 80 to 100 percent of the maximal age."""
    short_lived.wait_metric(CONNECTIONS, 0)
    before = int(short_lived.metric(STREAMS_CLOSED, reason="max_age"))
    short_lived.wait_log(STREAM_CLOSED, count=before, reason="max_age")
    with lateness() as late:
        for _ in range(8):
            connect(short_lived, f"/events/{channel}").wait_open()
        records = short_lived.wait_log(STREAM_CLOSED, count=before + 8, reason="max_age")[before:]
    ages = [value for record in records for key, value in record.items() if key.startswith("duration")]

    assert all(0.75 <= age <= 1.5 + late.total_s for age in ages), ages
    assert max(ages) - min(ages) > 0.01


def test_the_gateway_closes_even_if_the_client_does_not(
    short_lived: GatewayProcess, connect: Connect, channel: str
) -> None:
    """A client that keeps its side open for ever is gone from the books within a second or so."""
    stream = connect(short_lived, f"/events/{channel}")
    stream.wait_open()
    with lateness() as late:
        opened = time.monotonic()
        short_lived.wait_metric(CONNECTIONS, 0)
        assert time.monotonic() - opened < 4 + late.total_s
    stream.wait_end()

    assert stream.ended


@pytest.mark.parametrize("way", ["close", "reset", "half_close"])
def test_a_client_that_leaves_is_noticed(gateway: GatewayProcess, connect: Connect, channel: str, way: str) -> None:
    """However a client leaves, its stream ends once, with one reason, and the gauge returns."""
    gateway.wait_metric(CONNECTIONS, 0)
    ended = int(gateway.metric(STREAMS_CLOSED))
    gateway.wait_log(STREAM_CLOSED, count=ended)  # of the streams before
    stream = connect(gateway, f"/events/{channel}")
    stream.wait_open()
    gateway.wait_metric(CONNECTIONS, 1)
    getattr(stream, way)()

    gateway.wait_metric(CONNECTIONS, 0)
    gateway.wait_log(STREAM_CLOSED, count=ended + 1)
    assert [record["reason"] for record in gateway.records(STREAM_CLOSED)[ended:]] == ["client"]
