"""Clients that read too slowly: what each policy does to them, what they are told, and that nobody else notices."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.support.checker import Ledger, check, observe
from tests.support.gateway_process import (
    CONNECTIONS,
    DROPPED,
    GAPS,
    STREAM_CLOSED,
    STREAMS_CLOSED,
    configuration,
    rule,
)
from tests.support.streams import BATCH, KIB, finish, follow, pour, settle, stall

if TYPE_CHECKING:
    from tests.conftest import Connect
    from tests.support.gateway_process import GatewayProcess, Gateways
    from tests.support.valkey import Valkey

QUEUE = 50
"""Events in a stream's queue under every rule but ``sse:bytes:*``."""

TIGHT = {"send_buffer": "16KiB"}
QUEUES = {"max_events": QUEUE}


@pytest.fixture(scope="module")
def gateway(valkey: Valkey, module_gateways: Gateways) -> GatewayProcess:
    """Run one gateway with a rule for every policy."""
    return module_gateways.start(
        configuration(
            valkey.url,
            rule("sse:disc:small:*", queue={**QUEUES, "policy": "disconnect"}, window={"max_events": 200}),
            rule("sse:disc:*", queue={**QUEUES, "policy": "disconnect"}),
            rule("sse:latest:*", queue={**QUEUES, "policy": "latest"}, window={"max_events": 5}),
            rule("sse:bytes:*", queue={"max_events": 10_000, "max_bytes": "32KiB"}),
            rule("sse:small:*", queue=QUEUES, window={"max_events": 200}),
            rule("sse:*", queue=QUEUES, window={"max_events": 5_000}),
            limits={"message_size": "8KiB"},
            stream=TIGHT,
        )
    )


def wait_closed(gateway: GatewayProcess, before: int, reason: str) -> None:
    """Wait until one more stream has ended for this reason."""
    gateway.wait_log(STREAM_CLOSED, count=before + 1, reason=reason)


# -- drop_oldest


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_drop_oldest_tells_exactly_what_went(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str, version: str
) -> None:
    """I2: one gap with the exact number stands where the oldest events were; the newest are kept; others get all."""
    ledger = Ledger()
    healthy = follow(connect, gateway, f"/{channel}")
    slow = stall(connect, gateway, f"/{channel}", version=version)
    before = gateway.metrics()
    pour(valkey, ledger, healthy, [channel])
    finish(valkey, ledger, slow, [channel])

    (gap,) = slow.gaps
    told = gap.json()
    missed = len(ledger) - len(slow.events)
    assert told == {"reason": "overflow", "channels": [channel], "missed": missed}
    assert check(ledger, observe(slow.blocks), [channel]) == []
    behind = [block for block in slow.blocks[slow.blocks.index(gap) :] if not block.own]
    assert QUEUE - BATCH <= len(behind) <= QUEUE + BATCH + 1
    healthy.wait_events(len(ledger))
    assert check(ledger, observe(healthy.blocks), [channel]) == []
    assert not healthy.gaps
    after = gateway.metrics()
    assert after.value(DROPPED, policy="drop_oldest") - before.value(DROPPED, policy="drop_oldest") == missed
    assert after.value(GAPS, reason="overflow") - before.value(GAPS, reason="overflow") == 1


def test_the_cursor_of_an_overflow_gap_resumes_behind_it(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """A gap told is not repeated: its id resumes with what came behind it."""
    ledger = Ledger()
    healthy, slow = follow(connect, gateway, f"/{channel}"), stall(connect, gateway, f"/{channel}")
    pour(valkey, ledger, healthy, [channel])
    finish(valkey, ledger, slow, [channel])
    (gap,) = slow.gaps
    resumed = connect(gateway, f"/events/{channel}", headers={"Last-Event-ID": gap.id or ""})
    resumed.wait_data(ledger.entries[-1][1])

    assert not resumed.gaps
    assert resumed.data == [block.data for block in slow.blocks[slow.blocks.index(gap) :] if not block.own]


def test_a_client_cut_before_its_gap_resumes_from_the_window(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """What was dropped for a slow client is not lost to it: a resume from before the gap gets all of it."""
    ledger = Ledger()
    healthy, slow = follow(connect, gateway, f"/{channel}"), stall(connect, gateway, f"/{channel}")
    pour(valkey, ledger, healthy, [channel])
    slow.wait_events(1)
    slow.reset()
    kept = [block for block in slow.blocks if block.type != "gateway.gap"]
    resumed = connect(gateway, f"/events/{channel}", headers={"Last-Event-ID": kept[-1].id or ""})
    resumed.wait_data(ledger.entries[-1][1])

    assert check(ledger, observe([*kept, *resumed.blocks]), [channel]) == []
    assert not resumed.gaps


def test_a_slow_client_that_recovers_and_stalls_again_is_told_each_time(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """Every overflow has its own gap with its own number."""
    ledger = Ledger()
    healthy, slow = follow(connect, gateway, f"/{channel}"), stall(connect, gateway, f"/{channel}")
    for _ in range(3):
        pour(valkey, ledger, healthy, [channel])
        finish(valkey, ledger, slow, [channel])

    assert len(slow.gaps) == 3
    assert check(ledger, observe(slow.blocks), [channel]) == []


def test_a_gap_names_the_channels_that_lost_events(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """On a stream of several channels a gap names those that lost events, with their sum, and order holds."""
    names = [f"{channel}{letter}" for letter in "abc"]
    target = "?" + "&".join(f"channel={name}" for name in [*names, f"{channel}quiet"])
    ledger = Ledger()
    healthy, slow = follow(connect, gateway, target), stall(connect, gateway, target)
    pour(valkey, ledger, healthy, names)
    finish(valkey, ledger, slow, names)

    (gap,) = slow.gaps
    assert sorted(gap.json()["channels"]) == names
    assert check(ledger, observe(slow.blocks), names) == []


def test_a_queue_is_bounded_in_bytes(gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str) -> None:
    """A queue overflows by its bytes as it does by its events."""
    name = f"bytes:{channel}"
    ledger = Ledger()
    healthy, slow = follow(connect, gateway, f"/{name}"), stall(connect, gateway, f"/{name}")
    pour(valkey, ledger, healthy, [name])
    finish(valkey, ledger, slow, [name])

    (gap,) = slow.gaps
    behind = [block for block in slow.blocks[slow.blocks.index(gap) :] if not block.own]
    assert 10 <= len(behind) <= 32 + BATCH + 1
    assert check(ledger, observe(slow.blocks), [name]) == []


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("wrap", ["", "?wrap=1"])
def test_large_events_are_never_torn(
    gateways: Gateways, valkey: Valkey, connect: Connect, channel: str, version: str, wrap: str
) -> None:
    """An event larger than any buffer reaches a client that stalled in the middle of it whole, and then the gap."""
    gateway = gateways.start(configuration(valkey.url, rule("sse:*", queue={"max_events": 3}), stream=TIGHT))
    target = f"/{channel}{wrap}"
    ledger = Ledger()
    healthy, slow = follow(connect, gateway, target), stall(connect, gateway, target, version=version)
    for number in range(12):
        name, data = ledger.message(channel, padding=200 * KIB)
        valkey.publish(f"sse:{name}", data)
        healthy.wait_events(number + 1)
        slow.read_once()
    slow.wait_for(lambda s: s.events and ledger.entries[-1][1] in s.events[-1].data, what="last event")
    (gap,) = slow.gaps

    assert gap.json() == {"reason": "overflow", "channels": [channel], "missed": 12 - len(slow.events)}
    if not wrap:
        assert check(ledger, observe(slow.blocks), [channel]) == []


def test_one_batch_is_never_dropped_on_arrival(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """A queue is judged when the next batch comes: a burst larger than the queue reaches a client that reads."""
    ledger = Ledger()
    stream = follow(connect, gateway, f"/{channel}")
    burst = ledger.messages(channel, QUEUE * 4, padding=100)
    valkey.publish_at_once([(f"sse:{name}", data) for name, data in burst])
    stream.wait_data(burst[-1][1])

    assert check(ledger, observe(stream.blocks), [channel]) == []


# -- disconnect


def test_disconnect_aborts_and_the_client_resumes_without_loss(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """Under `disconnect` a slow client is cut off, and gets the rest from the window when it comes back."""
    name = f"disc:{channel}"
    ledger = Ledger()
    healthy, slow = follow(connect, gateway, f"/{name}"), stall(connect, gateway, f"/{name}")
    before, closed = len(gateway.records(STREAM_CLOSED, reason="slow")), gateway.metric(STREAMS_CLOSED, reason="slow")
    pour(valkey, ledger, healthy, [name])
    wait_closed(gateway, before, "slow")
    slow.wait_end()
    resumed = connect(gateway, f"/events/{name}", headers={"Last-Event-ID": slow.last_id or ""})
    finish(valkey, ledger, resumed, [name])

    assert not slow.ended
    assert not slow.gaps
    assert not slow.of_type("gateway.close")
    assert check(ledger, observe([*slow.blocks, *resumed.blocks]), [name]) == []
    assert not resumed.gaps
    assert gateway.metric(STREAMS_CLOSED, reason="slow") == closed + 1
    assert not healthy.eof


@pytest.mark.parametrize(
    "target", ["?channel=disc:{0}&channel={0}", "?channel={0}&channel=latest:{0}&channel=disc:{0}"]
)
def test_a_stream_of_several_rules_loses_least(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str, target: str
) -> None:
    """With one `disconnect` channel among others the whole stream is under `disconnect`."""
    ledger = Ledger()
    healthy = follow(connect, gateway, f"/{channel}")
    before = len(gateway.records(STREAM_CLOSED, reason="slow"))
    slow = stall(connect, gateway, target.format(channel))
    pour(valkey, ledger, healthy, [channel])
    wait_closed(gateway, before, "slow")
    slow.wait_end()

    assert not slow.gaps


def test_a_prefix_is_under_every_rule_it_could_reach(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """A prefix that could reach a `disconnect` channel is under `disconnect`, though none has appeared yet."""
    name = f"dis{channel}"
    ledger = Ledger()
    healthy = follow(connect, gateway, f"/{name}")
    before = len(gateway.records(STREAM_CLOSED, reason="slow"))
    slow = stall(connect, gateway, "/dis*")
    pour(valkey, ledger, healthy, [name])
    wait_closed(gateway, before, "slow")
    slow.wait_end()

    assert not slow.gaps


# -- latest


def test_latest_keeps_the_newest_of_each_channel(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """Under `latest` a slow client skips to the newest event of each channel, in order, without a gap."""
    names = [f"latest:{channel}{letter}" for letter in "abc"]
    target = "?" + "&".join(f"channel={name}" for name in names)
    ledger = Ledger()
    healthy, slow = follow(connect, gateway, f"?channel={channel}"), stall(connect, gateway, target)
    before = gateway.metric(DROPPED, policy="latest")
    for _ in range(40):
        valkey.publish_many([(f"sse:{name}", data) for name, data in [ledger.message(n, KIB) for n in names * 7]])
        valkey.publish(f"sse:{channel}", "beat")
        healthy.wait_events(len(healthy.events) + 1)
    newest = [data for _, data in ledger.entries[-3:]]
    slow.wait_data(newest[-1], timeout_s=20)
    slow.wait_next("gateway.heartbeat")

    assert slow.data[-3:] == newest
    assert not slow.gaps
    assert len(slow.data) < len(ledger) / 2
    assert check(ledger, observe(slow.blocks), names, skips=names) == []
    assert gateway.metric(DROPPED, policy="latest") - before == len(ledger) - len(slow.data)


def test_latest_resumes_with_the_newest_only(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """A resume under `latest` gets the newest event of each channel after the cursor, also from behind the window."""
    names = [f"latest:{channel}{letter}" for letter in "abc"]
    target = "?" + "&".join(f"channel={name}" for name in names)
    cursor = follow(connect, gateway, target).last_id
    published = [(names[number % 2], str(number)) for number in range(40)]
    valkey.publish_many([(f"sse:{name}", data) for name, data in published])
    settle(valkey, gateway)
    resumed = connect(gateway, f"/events{target}", headers={"Last-Event-ID": cursor or ""})
    resumed.wait_data("39")
    valkey.publish(f"sse:{names[2]}", "live")
    resumed.wait_data("live")

    assert resumed.data == ["38", "39", "live"]
    assert not resumed.gaps


def test_latest_beyond_its_bounds_tells_a_gap(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """With more channels than the queue holds events even `latest` loses some, and says so."""
    names = [f"latest:{channel}{number}" for number in range(64)]
    target = "?" + "&".join(f"channel={name}" for name in names)
    ledger = Ledger()
    healthy, slow = follow(connect, gateway, f"/{channel}"), stall(connect, gateway, target)
    for _ in range(10):
        for start in range(0, 64, 16):
            batch = [ledger.message(name, KIB) for name in names[start : start + 16]]
            valkey.publish_many([(f"sse:{name}", data) for name, data in batch])
            valkey.publish(f"sse:{channel}", "beat")
            healthy.wait_events(len(healthy.events) + 1)
    slow.wait_data(ledger.entries[-1][1], timeout_s=20)

    assert {block.json()["reason"] for block in slow.gaps} == {"overflow"}
    got = set(slow.data)
    named = {name for block in slow.gaps for name in block.json()["channels"]}
    newest = dict(ledger.entries)
    assert {name for name, data in newest.items() if data not in got} <= named


# -- slow during a replay


def missed_many(connect: Connect, gateway: GatewayProcess, valkey: Valkey, ledger: Ledger, name: str) -> str:
    """Return a cursor behind which exactly a whole small window has been published."""
    healthy = follow(connect, gateway, f"/{name}")
    cursor = healthy.last_id
    pour(valkey, ledger, healthy, [name], rounds=200 // BATCH)
    healthy.close()
    assert cursor is not None
    return cursor


def test_a_replay_that_the_window_outruns_tells_overflow(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """During a replay the window is the queue: what it loses meanwhile is told as `overflow`, exactly."""
    name = f"small:{channel}"
    ledger = Ledger()
    cursor = missed_many(connect, gateway, valkey, ledger, name)
    slow, healthy = stall(connect, gateway, f"/{name}", cursor), follow(connect, gateway, f"/{name}")
    pour(valkey, ledger, healthy, [name])
    finish(valkey, ledger, slow, [name])

    assert slow.blocks[0].json()["replay"] == "complete"
    assert {block.json()["reason"] for block in slow.gaps} == {"overflow"}
    assert sum(block.json()["missed"] for block in slow.gaps) == len(ledger) - len(slow.events)
    assert check(ledger, observe(slow.blocks), [name]) == []


def test_a_replay_that_the_window_outruns_disconnects(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """Under `disconnect` a replay that has lost what it still needed is aborted."""
    name = f"disc:small:{channel}"
    ledger = Ledger()
    cursor = missed_many(connect, gateway, valkey, ledger, name)
    before = len(gateway.records(STREAM_CLOSED, reason="slow"))
    slow, healthy = stall(connect, gateway, f"/{name}", cursor), follow(connect, gateway, f"/{name}")
    pour(valkey, ledger, healthy, [name])
    slow.wait_end()
    wait_closed(gateway, before, "slow")

    assert not slow.gaps
    assert check(ledger, observe(slow.blocks), [name])[0].startswith("a silent hole"), "it ends, and resumes elsewhere"
    assert slow.data == [data for _, data in ledger.entries[: len(slow.data)]]


def test_a_slow_replay_of_a_window_that_holds_is_complete(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """A replay much larger than the queue is pulled as the client reads: slow is not lost."""
    ledger = Ledger()
    healthy = follow(connect, gateway, f"/{channel}")
    cursor = healthy.last_id
    pour(valkey, ledger, healthy, [channel])
    slow = stall(connect, gateway, f"/{channel}", cursor)
    pour(valkey, ledger, healthy, [channel])
    finish(valkey, ledger, slow, [channel])

    assert slow.data == [data for _, data in ledger.entries]
    assert not slow.gaps


# -- everybody else


def test_many_stalled_clients_delay_nobody(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """I4: with fifty stalled clients on its channel a healthy one, new ones and the metrics are as prompt as ever."""
    ledger = Ledger()
    for _ in range(50):
        stall(connect, gateway, f"/{channel}")
    healthy = follow(connect, gateway, f"/{channel}")
    pour(valkey, ledger, healthy, [channel])
    began = time.monotonic()
    fresh = follow(connect, gateway, f"/{channel}")
    assert gateway.metric(CONNECTIONS) >= 52
    valkey.publish(f"sse:{channel}", "live")
    fresh.wait_data("live")

    assert time.monotonic() - began < 5  # who waited for one of them would wait for `write_timeout`
    assert healthy.wait_data("live").type == "message"


def test_stalled_clients_leave_when_they_reset(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """I8: a stalled client that goes away with a full queue is gone from the books at once."""
    gateway.wait_metric(CONNECTIONS, 0)
    healthy = follow(connect, gateway, f"/{channel}")
    stalled = [stall(connect, gateway, f"/{channel}") for _ in range(10)]
    pour(valkey, Ledger(), healthy, [channel], rounds=10)
    gateway.wait_metric(CONNECTIONS, 11)
    for stream in stalled:
        stream.reset()

    gateway.wait_metric(CONNECTIONS, 1)
