"""Limits that hold over all clients and channels: who goes at each, what is told, and that nobody else loses."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.support.checker import Ledger, check, observe
from tests.support.gateway_process import (
    CHANNELS,
    CONNECTIONS,
    STREAM_CLOSED,
    STREAMS_CLOSED,
    WINDOW_BYTES,
    configuration,
    rule,
)
from tests.support.streams import KIB, finish, follow, pour, stall

if TYPE_CHECKING:
    from tests.conftest import Connect
    from tests.support.gateway_process import Gateways
    from tests.support.valkey import Valkey

TIGHT = {"send_buffer": "16KiB"}


def test_a_client_that_takes_no_byte_is_dropped(
    gateways: Gateways, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """After `write_timeout` without a byte taken a stream ends as `timeout`; one that reads slowly goes on.

    Of one to whom little is sent, so that the kernel has room for all of it, it is the kernel that gives it up.
    """
    gateway = gateways.start(configuration(valkey.url, stream={**TIGHT, "write_timeout": "2s", "heartbeat": "30s"}))
    dead, slow = stall(connect, gateway, f"/{channel}"), stall(connect, gateway, f"/{channel}")
    little = stall(connect, gateway, f"/{channel}little")
    healthy = follow(connect, gateway, f"/{channel}")
    ledger = Ledger()
    valkey.publish_many([(f"sse:{channel}little", "x" * KIB)] * 8)
    for _ in range(20):
        pour(valkey, ledger, healthy, [channel], rounds=1)
        slow.read_once()
    began = time.monotonic()
    while len(gateway.records(STREAM_CLOSED)) < 2 or time.monotonic() < began + 3:
        assert time.monotonic() < began + 20, "nobody was dropped"
        slow.read_once()
        time.sleep(0.1)  # what is tested is that time passes

    assert [record["reason"] for record in gateway.records(STREAM_CLOSED)] == ["timeout"] * 2
    for stream in (dead, little):
        stream.wait_end()
        assert not stream.ended
    assert not slow.eof
    assert gateway.metric(CONNECTIONS) == 2


def test_the_fullest_stream_goes_at_the_limit_of_queue_memory(
    gateways: Gateways, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """At `queue_memory` the stream with the fullest queue is aborted as `memory`, and the others lose nothing."""
    config = configuration(
        valkey.url,
        rule("sse:*", queue={"max_events": 10_000}),
        limits={"queue_memory": "512KiB", "message_size": "8KiB"},
        stream=TIGHT,
    )
    gateway = gateways.start(config)
    much, little = f"{channel}much", f"{channel}little"
    ledger = Ledger()
    fuller, fuller_not = stall(connect, gateway, f"/{much}"), stall(connect, gateway, f"/{little}")
    healthy = follow(connect, gateway, f"?channel={much}&channel={little}")
    pour(valkey, ledger, healthy, [much, much, much, little], rounds=45)
    gateway.wait_log(STREAM_CLOSED, reason="memory")
    fuller.wait_end()
    finish(valkey, ledger, fuller_not, [little])

    assert [record["reason"] for record in gateway.records(STREAM_CLOSED)] == ["memory"]
    assert not fuller.ended
    assert check(ledger, observe(fuller_not.blocks), [little]) == []
    assert not fuller_not.gaps
    assert gateway.metric(STREAMS_CLOSED, reason="memory") == 1


def test_windows_are_bounded_together(gateways: Gateways, valkey: Valkey, connect: Connect, channel: str) -> None:
    """At `window_memory` the log's oldest events go, whatever their channel, and clients are told."""
    limits = {"window_memory": "256KiB", "message_size": "8KiB"}
    gateway = gateways.start(configuration(valkey.url, limits=limits))
    names = [f"{channel}{number}" for number in range(20)]
    target = "?" + "&".join(f"channel={name}" for name in names)
    ledger = Ledger()
    healthy = follow(connect, gateway, target)
    cursor = healthy.last_id
    pour(valkey, ledger, healthy, names, rounds=60)
    resumed = connect(gateway, f"/events{target}", headers={"Last-Event-ID": cursor or ""})
    resumed.wait_data(ledger.entries[-1][1])

    assert gateway.metric(WINDOW_BYTES) <= 256 * KIB
    assert len(resumed.events) >= 100
    assert {block.json()["reason"] for block in resumed.gaps} == {"window"}
    assert check(ledger, observe(resumed.blocks), names) == []
    assert check(ledger, observe(healthy.blocks), names) == []


def test_the_least_recently_used_channel_is_forgotten_with_its_loss(
    gateways: Gateways, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """At the limit of channels one without readers is forgotten; who still needs it is told, nobody else."""
    gateway = gateways.start(configuration(valkey.url, limits={"channels": 5}))
    names = [f"{channel}{number}" for number in range(20)]
    ledger = Ledger()
    reader = follow(connect, gateway, f"/{names[0]}")
    cursor = reader.last_id or ""
    for name in names:
        entries = [ledger.message(name), ledger.message(names[0])]
        valkey.publish_many([(f"sse:{owner}", data) for owner, data in entries])
    reader.wait_events(21)
    late = connect(gateway, f"/events/{names[1]}", headers={"Last-Event-ID": cursor})
    late.wait_next("gateway.heartbeat")
    current = connect(gateway, f"/events/{names[1]}", headers={"Last-Event-ID": reader.last_id or ""})

    assert gateway.metric(CHANNELS) <= 5
    assert check(ledger, observe(reader.blocks), [names[0]]) == []
    assert not reader.gaps
    assert [block.json()["reason"] for block in late.gaps] == ["window"]
    assert check(ledger, observe(late.blocks), [names[1]]) == []
    assert current.wait_open().json()["replay"] == "complete"
