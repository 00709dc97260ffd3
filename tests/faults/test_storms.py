"""Many hostile clients at once: honest ones do not notice, and afterwards everything is as it was before."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sse_gateway.connections import REQUEST_S
from tests.support.gateway_process import CHANNELS, CONNECTIONS, MARKER, STREAM_CLOSED, configuration, poll
from tests.support.streams import follow

if TYPE_CHECKING:
    from tests.conftest import Connect
    from tests.support.gateway_process import Gateways
    from tests.support.raw_client import Stream
    from tests.support.valkey import Valkey

SECONDS = 6.0 * int(os.environ.get("SSE_GATEWAY_TEST_ROUNDS", "1"))
"""How long; ten rounds are a minute."""

PER_SECOND = 100
HONEST = 10

NOISE_S = 0.05 if SECONDS >= 60 else 0.25
"""What a busy machine adds to any latency: below it nothing is compared. The long form wants a quiet one."""


def descriptors(pid: int) -> int:
    """Descriptors that a process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def p99_s(valkey: Valkey, groups: dict[str, list[Stream]], bulk: str, seconds: float) -> list[float]:
    """Publish to one channel after the other, and see how late the last of its streams gets it."""
    taken: dict[str, list[float]] = {channel: [] for channel in groups}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        valkey.publish(f"sse:{bulk}", "x" * 4000)
        for channel, streams in groups.items():
            begun = time.monotonic()
            data = f"{begun}"
            valkey.publish(f"sse:{channel}", data)
            for stream in streams:
                stream.wait_data(data)
            taken[channel].append(time.monotonic() - begun)
            time.sleep(max(0.0, 0.01 - taken[channel][-1]))
    return [statistics.quantiles(each, n=100)[98] for each in taken.values()]


def test_honest_clients_do_not_notice_a_storm(
    gateways: Gateways, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """Aborted connections, endless headers, streams that are not read or opened in a loop: bounded, cleaned up, told."""
    config = configuration(
        valkey.url,
        limits={"connections_per_second": PER_SECOND},
        stream={"heartbeat": "300ms", "write_timeout": "2s", "send_buffer": "16KiB"},
    )
    gateway = gateways.start(config)
    calm = gateways.start(configuration(valkey.url))  # on the same machine, which is busy with the hostile ones
    streams = [follow(connect, gateway, f"/{channel}") for _ in range(HONEST)]
    groups = {channel: streams, f"{channel}calm": [follow(connect, calm, f"/{channel}calm") for _ in range(HONEST)]}
    before = descriptors(gateway.worker_pid)
    assert isinstance(gateway.address, tuple)
    command = [
        sys.executable,
        "-m",
        "benchmarks.hostile_clients",
        str(gateway.address[1]),
        str(SECONDS),
        f"{channel}bulk",
    ]
    begun = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as hostile:
        stormy_s, calm_s = p99_s(valkey, groups, f"{channel}bulk", SECONDS)
        gateway.wait_ready()
        counts = json.loads(hostile.communicate(timeout=60)[0].splitlines()[-1])
    seconds = time.monotonic() - begun
    lines = [record for record in gateway.logs if record["event"] != STREAM_CLOSED]
    closed = gateway.records(STREAM_CLOSED)
    gateway.wait_metric(CONNECTIONS, HONEST)
    gateway.wait_metric(MARKER + "connections_waiting", 0, timeout_s=REQUEST_S + 10)
    gateway.wait_metric(MARKER + "queue_bytes", 0)

    told = f"p99 beside it {calm_s * 1000:.1f} ms, in the storm {stormy_s * 1000:.1f} ms"
    print(f"{told}; {counts}; {len(closed)} streams")  # noqa: T201
    assert min(counts.values()) > 0
    assert stormy_s <= 2 * max(calm_s, NOISE_S)
    assert len(closed) <= PER_SECOND * (seconds / 0.9 + 1)
    assert len(lines) <= 20 + 5 * (seconds + 1)
    poll(lambda: descriptors(gateway.worker_pid) <= before + 1, timeout_s=20, what="as few descriptors as before")
    assert gateway.metric(MARKER + "streams_refused_total", reason="rate") > 0
    for stream in streams:
        assert not stream.gaps
        stream.wait_next("gateway.heartbeat")


def test_names_that_nobody_publishes_to_leave_nothing_behind(
    gateways: Gateways, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """Streams on thousands of new names, that come and go: remembered while they are followed, and no longer."""
    gateway = gateways.start(configuration(valkey.url, limits={"channels": 100_000}))
    kept = follow(connect, gateway, f"/{channel}")
    series = len(gateway.metrics().samples)
    for number in range(100):
        names = "&".join(f"channel={channel}{number}.{name}" for name in range(64))
        stream = connect(gateway, f"/events?{names}")
        stream.wait_open()
        stream.close()
    gateway.wait_metric(CONNECTIONS, 1)

    assert gateway.metric(CHANNELS) <= 1
    assert gateway.metric(MARKER + "audiences") == 1
    assert len(gateway.metrics().samples) == series
    valkey.publish(f"sse:{channel}", "hello")
    kept.wait_data("hello")
