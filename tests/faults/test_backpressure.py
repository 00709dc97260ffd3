"""Redis brings more than the sockets can be given: the source is not read for a while, and nothing is lost unsaid."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.checker import Ledger, check, observe
from tests.support.gateway_process import CONNECTIONS, GAPS, MARKER, RECEIVED, configuration, poll, rule

if TYPE_CHECKING:
    from tests.conftest import Connect
    from tests.support.gateway_process import GatewayProcess, Gateways
    from tests.support.valkey import Valkey

KIB = 1_024
MIB = 1_024 * KIB

STREAMS = 200
EVENTS = 2_400
QUEUE = {"max_events": 100, "max_bytes": "1MiB"}
PAUSED = MARKER + "source_paused_seconds_total"
PASS_BYTES = MARKER + "pass_bytes"


def peak_memory(gateway: GatewayProcess) -> int:
    """Most resident memory that the worker has had, in bytes."""
    status = Path(f"/proc/{gateway.worker_pid}/status").read_text(encoding="ascii")
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) * KIB


def test_fan_out_slower_than_ingest_pauses_the_source(
    own_valkey: Valkey, gateways: Gateways, connect: Connect, channel: str
) -> None:
    """I2, I4, I5: when fan-out falls behind, the source pauses and goes on; memory is bounded, every loss is told.

    Every stream is an audience of its own, and events are large.
    """
    own_valkey.config_set("client-output-buffer-limit", "pubsub 0 0 0")  # Redis holds what we do not read
    config = configuration(own_valkey.url, rule("sse:*", queue=QUEUE, window={"max_bytes": "2MiB"}))
    config["limits"] = {"message_size": "64KiB"}
    config["stream"]["write_timeout"] = "5m"  # nobody reads until all has come, which takes a slow machine its time
    gateway = gateways.start(config)
    targets = [f"/events?channel={channel}&channel={channel}{number}" for number in range(STREAMS)]
    streams = [connect(gateway, target, receive_buffer=8 * KIB) for target in targets]
    for stream in streams:
        stream.wait_open()
    before = peak_memory(gateway)
    ledger = Ledger()
    batch = ledger.messages(channel, EVENTS, padding=20 * KIB)
    publisher = threading.Thread(
        target=own_valkey.publish_at_once, args=([(f"sse:{name}", data) for name, data in batch],)
    )
    publisher.start()
    seen: list[float] = []

    def all_received() -> bool:
        metrics = gateway.metrics()
        seen.append(metrics.value(PASS_BYTES))
        return metrics.value(RECEIVED) == EVENTS

    poll(all_received, timeout_s=60, what="end of the burst")
    publisher.join(10)
    gateway.wait_metric(PASS_BYTES, 0, timeout_s=20)

    paused_s = gateway.metric(PAUSED)
    assert paused_s > 0
    assert gateway.metric(MARKER + "queue_bytes") <= STREAMS * 2 * MIB  # bounds, and one batch
    assert peak_memory(gateway) - before < 300 * MIB
    assert max(seen) < 8 * MIB + STREAMS * MIB // 2  # and of one more read, which has been taken anyway
    assert gateway.metric(CONNECTIONS) == STREAMS
    last = ledger.messages(channel, 1)
    own_valkey.publish_many([(f"sse:{name}", data) for name, data in last])
    for number, stream in enumerate(streams):
        stream.wait_data(last[0][1], timeout_s=20)
        assert check(ledger, observe(stream.blocks), [channel, f"{channel}{number}"]) == []
    assert gateway.metric(GAPS, reason="source") == 0
    assert gateway.metric(MARKER + "source_losses_total") == 0
    assert gateway.metric(PAUSED) - paused_s < 1


def test_what_redis_will_not_hold_is_told(
    own_valkey: Valkey, gateways: Gateways, connect: Connect, channel: str
) -> None:
    """While the source pauses Redis' output buffer is the bound: being cut there is one gap, `source`, and then on."""
    own_valkey.config_set("client-output-buffer-limit", f"pubsub {2 * MIB} 0 0")
    config = configuration(own_valkey.url, rule("sse:*", queue=QUEUE, window={"max_bytes": "2MiB"}))
    config["limits"] = {"message_size": "64KiB"}
    config["stream"]["write_timeout"] = "5m"
    gateway = gateways.start(config)
    streams = [
        connect(gateway, f"/events?channel={channel}&channel={channel}{n}", receive_buffer=8 * KIB)
        for n in range(STREAMS)
    ]
    for stream in streams:
        stream.wait_open()
    ledger = Ledger()
    burst = ledger.messages(channel, 2_400, padding=20 * KIB)
    own_valkey.publish_at_once([(f"sse:{name}", data) for name, data in burst])
    gateway.wait_log("source.lost", timeout_s=20)
    gateway.wait_ready()
    last = ledger.messages(channel, 1)
    own_valkey.publish_many([(f"sse:{name}", data) for name, data in last])

    for number, stream in enumerate(streams):
        stream.wait_data(last[0][1], timeout_s=20)
        assert check(ledger, observe(stream.blocks), [channel, f"{channel}{number}"]) == []
        assert "source" in {block.json()["reason"] for block in stream.gaps}
