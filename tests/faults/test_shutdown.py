"""How the gateway stops, and what it writes down of every stream it had."""

from __future__ import annotations

import signal
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.checker import Ledger
from tests.support.gateway_process import (
    AUDIENCES,
    CONNECTIONS,
    STREAM_CLOSED,
    STREAMS_CLOSED,
    STREAMS_OPENED,
    configuration,
    poll,
)
from tests.support.raw_client import Stream, position
from tests.support.streams import KIB, follow
from tests.support.valkey import free_port

if TYPE_CHECKING:
    from tests.conftest import Connect
    from tests.support.gateway_process import GatewayProcess, Gateways, LogRecord
    from tests.support.valkey import Valkey


def has_ended(stream: Stream) -> bool:
    """Whether the connection has ended."""
    stream.read_available()
    return stream.eof


def wait_ends(streams: list[Stream]) -> None:
    """Read all streams to their ends."""
    poll(lambda: sum(map(has_ended, streams)) == len(streams), timeout_s=30, what="end of all streams")


def times(gateway: GatewayProcess, event: str) -> list[float]:
    """When the gateway says that something happened: it may stand still less than we, who have more to do."""
    return [datetime.fromisoformat(record["ts"]).timestamp() for record in gateway.records(event)]


def field(record: LogRecord, name: str) -> float:
    """Return a numeric field, whether or not its name carries a unit."""
    (value,) = [value for key, value in record.items() if key == name or key.startswith(f"{name}_")]
    return float(value)


# -- draining


def test_a_drain_ends_streams_one_by_one(gateways: Gateways, valkey: Valkey, connect: Connect, channel: str) -> None:
    """SIGTERM: not ready at once, new streams told to come again, open ones ended over `drain`, exit 0."""
    gateway = gateways.start(configuration(valkey.url, shutdown={"drain": "3s"}))
    streams = [follow(connect, gateway, f"/{channel}") for _ in range(30)]
    ledger = Ledger()
    gateway.signal(signal.SIGTERM)
    gateway.wait_not_ready(1)
    refused = connect(gateway, f"/events/{channel}").wait_end()
    others = connect(gateway, f"/events/{channel}", headers={"Accept": "*/*"}).wait_head()
    valkey.publish_many([(f"sse:{name}", data) for name, data in ledger.messages(channel, 5)])
    still_open = sum(1 for stream in streams if not has_ended(stream))
    wait_ends(streams)
    code = gateway.wait_exit()
    (began,), ended = times(gateway, "worker.draining"), times(gateway, STREAM_CLOSED)

    assert code == 0
    assert [(block.type, block.json(), block.id) for block in refused.blocks] == [
        ("gateway.unavailable", {"reason": "draining"}, None)
    ]
    assert refused.ended
    assert others.status == 503
    assert (others.headers.get("Retry-After") or "").isdigit()
    assert max(ended) - began <= 3 + 1
    assert max(ended) - min(ended) >= 1.5
    busiest = max(sum(1 for other in ended if moment <= other < moment + 0.3) for moment in ended)
    assert busiest <= 12, "the ends are not spread"
    got_all = 0
    for stream in streams:
        last = stream.blocks[-1]
        assert stream.ended
        assert not stream.was_reset
        assert (last.type, last.json()) == ("gateway.close", {"reason": "drain"})
        assert last.retry is not None
        assert 1_500 <= last.retry <= 4_500
        assert position(last.id or "") >= position(stream.blocks[-2].id or "")
        assert stream.data == [data for _, data in ledger.entries[: len(stream.events)]]
        got_all += len(stream.events) == 5
    assert got_all >= still_open - 3, "streams that are still open are still served"
    assert still_open > 3
    assert {record["reason"] for record in gateway.records(STREAM_CLOSED)} == {"drain"}
    assert len(gateway.records(STREAM_CLOSED)) == 30
    gateway.check_clean()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_gateway_stops_at_once(gateways: Gateways, valkey: Valkey, number: signal.Signals) -> None:
    """Without streams there is nothing to wait for."""
    gateway = gateways.start(configuration(valkey.url, shutdown={"drain": "60s"}))
    gateway.signal(number)

    assert gateway.wait_exit(20) == 0
    gateway.check_clean()


def test_a_second_signal_stops_at_once(gateways: Gateways, valkey: Valkey, connect: Connect, channel: str) -> None:
    """A second SIGTERM does not wait for the drain, and loses no stream's log line."""
    gateway = gateways.start(configuration(valkey.url, shutdown={"drain": "60s"}))
    streams = [follow(connect, gateway, f"/{channel}") for _ in range(10)]
    gateway.signal(signal.SIGTERM)
    gateway.wait_not_ready(1)
    gateway.signal(signal.SIGTERM)
    gateway.wait_exit(20)

    wait_ends(streams)
    assert len(gateway.records(STREAM_CLOSED)) == 10
    gateway.check_clean()


def test_a_stalled_client_does_not_hold_the_end_up(
    gateways: Gateways, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """A client that reads nothing is ended with the others when the drain is over."""
    gateway = gateways.start(configuration(valkey.url, stream={"send_buffer": "16KiB"}, shutdown={"drain": "1s"}))
    stalled = connect(gateway, f"/events/{channel}", receive_buffer=4 * KIB)
    stalled.wait_open()
    healthy = follow(connect, gateway, f"/{channel}")
    ledger = Ledger()
    for _ in range(10):
        batch = ledger.messages(channel, 20, padding=KIB)
        valkey.publish_many([(f"sse:{name}", data) for name, data in batch])
        healthy.wait_data(batch[-1][1])
    gateway.signal(signal.SIGTERM)

    assert gateway.wait_exit() == 0
    assert gateway.records("worker.killed") == [], "it ends by itself"
    assert len(gateway.records(STREAM_CLOSED)) == 2
    gateway.check_clean()


def test_a_drain_does_not_wait_for_clients_that_left(
    gateways: Gateways, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """When the last client has left by itself, the drain is over."""
    gateway = gateways.start(configuration(valkey.url, shutdown={"drain": "60s"}))
    streams = [follow(connect, gateway, f"/{channel}") for _ in range(3)]
    gateway.signal(signal.SIGTERM)
    gateway.wait_not_ready(1)
    for stream in streams:
        stream.close()

    assert gateway.wait_exit(20) == 0


def test_a_gateway_stops_while_redis_is_away(gateways: Gateways, own_valkey: Valkey, connect: Connect) -> None:
    """SIGTERM during an outage ends streams and the process as ever."""
    gateway = gateways.start(configuration(own_valkey.url))
    stream = follow(connect, gateway, "/a")
    own_valkey.kill()
    gateway.wait_not_ready()
    gateway.signal(signal.SIGTERM)
    stream.wait_end()

    assert gateway.wait_exit() == 0
    assert gateway.records("worker.killed") == []
    assert stream.blocks[-1].json() == {"reason": "drain"}
    gateway.check_clean()


def test_a_gateway_stops_before_it_was_ever_ready(gateways: Gateways) -> None:
    """SIGTERM while the first connection to Redis is still being tried ends the process."""
    gateway = gateways.start(configuration(f"redis://127.0.0.1:{free_port()}"), ready=False)
    gateway.wait_log("source.unavailable", timeout_s=40)

    assert gateway.stop() == 0
    assert gateway.records("worker.killed") == []
    gateway.check_clean()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_up_to_the_end_leave_it_clean(gateways: Gateways, valkey: Valkey, number: signal.Signals) -> None:
    """Whoever asks again and again gets exit code 0, also in the moment between the last worker and the exit."""
    gateway = gateways.start(configuration(valkey.url))

    def ended() -> bool:
        if gateway.running:
            gateway.signal(number)
        return not gateway.running

    poll(ended, timeout_s=20, what="end")
    assert gateway.wait_exit() == 0
    gateway.check_clean()


def test_signals_wait_while_the_program_loads(gateways: Gateways, valkey: Valkey) -> None:
    """Before there are handlers SIGHUP would end it, and SIGTERM with another exit code."""
    gateway = gateways.start(configuration(valkey.url), alive=False)
    for _ in range(10):
        poll(lambda: _signals(gateway.pid, "SigBlk", "SigCgt"), timeout_s=20, what="signals that wait")
        if _signals(gateway.pid, "SigBlk"):
            break
        gateway.stop()  # it was faster than we could look
        gateway.start(alive=False)
    else:
        pytest.fail("no signal was ever seen to wait")
    gateway.signal(signal.SIGHUP)
    gateway.wait_ready()
    gateway.wait_log("reload.started")
    assert gateway.stop() == 0


def _signals(pid: int, *masks: str) -> bool:
    """Whether SIGHUP is in one of these masks of a process: it waits, or is handled."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return any(int(status.partition(f"{mask}:")[2].split()[0], 16) >> (signal.SIGHUP - 1) & 1 for mask in masks)


def test_a_gateway_stops_while_a_cursor_is_held(
    gateways: Gateways, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """A stream that still waits for its answer is ended as well."""
    gateway = gateways.start(configuration(valkey.url))
    epoch, offset, digest = (follow(connect, gateway, f"/{channel}").last_id or "").split("-")
    ahead = f"{epoch}-{int(offset) + 1_000}-{digest}"
    held = connect(gateway, f"/events/{channel}", headers={"Last-Event-ID": ahead}).wait_head()
    gateway.signal(signal.SIGTERM)

    assert gateway.wait_exit() == 0
    assert gateway.records("worker.killed") == []
    held.wait_end()
    assert not held.events
    gateway.check_clean()


def test_a_gateway_stops_while_events_pour_in(
    gateways: Gateways, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """What a stream got before its close block is a prefix of what was published."""
    gateway = gateways.start(configuration(valkey.url, shutdown={"drain": "1s"}))
    streams = [follow(connect, gateway, f"/{channel}") for _ in range(10)]
    ledger = Ledger()
    gateway.signal(signal.SIGTERM)
    while gateway.running:
        valkey.publish_many([(f"sse:{name}", data) for name, data in ledger.messages(channel, 20)])
        for stream in streams:
            stream.read_available()
    wait_ends(streams)

    assert gateway.wait_exit() == 0
    published = [data for _, data in ledger.entries]
    for stream in streams:
        assert stream.data == published[: len(stream.events)]
        assert stream.blocks[-1].json() == {"reason": "drain"}


# -- the books


def test_every_stream_has_one_log_line(gateways: Gateways, valkey: Valkey, connect: Connect, channel: str) -> None:
    """I8: one line at a stream's end says why, how long, how much, and how it began."""
    gateway = gateways.start(configuration(valkey.url))
    stream = follow(connect, gateway, f"/{channel}")
    valkey.publish_many([(f"sse:{channel}", f"{number}") for number in range(7)])
    stream.wait_events(7)
    stream.close()
    gateway.wait_log(STREAM_CLOSED, count=1)
    resumed = connect(gateway, f"/events/{channel}", headers={"Last-Event-ID": stream.events[3].id or ""})
    resumed.wait_events(3)
    resumed.close()
    fresh = connect(gateway, f"/events/{channel}", headers={"Last-Event-ID": "garbage"})
    fresh.wait_type("gateway.gap")
    fresh.close()
    first, second, third = gateway.wait_log(STREAM_CLOSED, count=3)

    assert [record["reason"] for record in (first, second, third)] == ["client"] * 3
    assert [record["replay"] for record in (first, second, third)] == ["none", "complete", "gap"]
    assert [field(record, "events") for record in (first, second, third)] == [7, 3, 0]
    assert [field(record, "dropped") for record in (first, second, third)] == [0, 0, 0]
    assert field(first, "bytes") >= sum(len(block.raw) for block in stream.events)
    assert 0 <= field(first, "duration") < 10
    gateway.stop()
    assert len(gateway.records(STREAM_CLOSED)) == 3


def test_dropped_events_are_in_the_log_line(gateways: Gateways, valkey: Valkey, connect: Connect, channel: str) -> None:
    """The line of a slow client says how many events were dropped for it."""
    config = configuration(valkey.url, stream={"send_buffer": "16KiB"})
    config["channels"][0]["queue"] = {"max_events": 20}
    gateway = gateways.start(config)
    slow = connect(gateway, f"/events/{channel}", receive_buffer=4 * KIB)
    slow.wait_open()
    healthy = follow(connect, gateway, f"/{channel}")
    ledger = Ledger()
    for _ in range(20):
        batch = ledger.messages(channel, 20, padding=KIB)
        valkey.publish_many([(f"sse:{name}", data) for name, data in batch])
        healthy.wait_data(batch[-1][1])
    slow.wait_data(ledger.entries[-1][1])
    (gap,) = slow.gaps
    slow.close()
    (record,) = gateway.wait_log(STREAM_CLOSED)

    assert field(record, "dropped") == gap.json()["missed"]
    assert field(record, "events") == len(slow.events)


def test_gauges_return_to_zero_after_churn(gateways: Gateways, valkey: Valkey, connect: Connect, channel: str) -> None:
    """I8: after streams of every kind have come and gone in every way, nothing is left on the books."""
    gateway = gateways.start(configuration(valkey.url))
    for number in range(120):
        target = [f"/{channel}{number}", f"/{channel}*", f"?channel={channel}a&channel={channel}{number}&wrap=1"]
        stream = connect(gateway, f"/events{target[number % 3]}", version=["1.1", "1.0"][number % 2])
        if number % 4:
            stream.wait_open()
        valkey.publish(f"sse:{channel}{number}", "x")
        [stream.close, stream.reset, stream.half_close][number % 3]()
    gateway.wait_metric(CONNECTIONS, 0)
    gateway.wait_metric(AUDIENCES, 0)
    metrics = gateway.metrics()

    assert metrics.value(STREAMS_OPENED) == metrics.value(STREAMS_CLOSED)
    assert metrics.value(STREAMS_CLOSED) == len(
        gateway.wait_log(STREAM_CLOSED, count=int(metrics.value(STREAMS_CLOSED)))
    )


def test_no_secret_reaches_the_log(gateways: Gateways, valkey: Valkey, connect: Connect, channel: str) -> None:
    """Neither payloads nor query strings nor cursors nor headers are ever logged, at any level."""
    gateway = gateways.start(configuration(valkey.url, log={"level": "debug"}))
    canaries = {name: f"canary{name}" for name in ("query", "payload", "cursor", "header", "cookie")}
    headers = {
        "Last-Event-ID": canaries["cursor"],
        "Authorization": f"Bearer {canaries['header']}",
        "Cookie": f"session={canaries['cookie']}",
    }
    stream = connect(gateway, f"/events/{channel}?token={canaries['query']}", headers=headers)
    stream.wait_type("gateway.gap")
    valkey.publish(f"sse:{channel}", canaries["payload"])
    stream.wait_data(canaries["payload"])
    stream.close()
    connect(gateway, f"/events/?token={canaries['query']}", headers=headers).wait_head()
    gateway.wait_log(STREAM_CLOSED)
    assert gateway.stop() == 0

    written = "".join(map(str, gateway.logs)) + "".join(gateway.stray_output)
    assert [name for name, canary in canaries.items() if canary in written] == []
