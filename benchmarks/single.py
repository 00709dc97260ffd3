"""Scenarios of one gateway: the price of a delivery, throughput, memory."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from benchmarks.measure import Timing, memory
from benchmarks.report import MEMORY_COLUMNS, everything_arrived, ratio, target, trusted
from benchmarks.scenario import Scenario, measure_delivery, note_disturbance, note_ratios
from benchmarks.servers import Load

if TYPE_CHECKING:
    from benchmarks.cores import Patience
    from benchmarks.measure import Row
    from benchmarks.report import Target
    from benchmarks.scenario import Say
    from benchmarks.servers import Stage

IDLE_S = 18
"""Idle time before memory is read: longer than the heartbeat, which must not leave memory behind either."""

MEMORY_PATHS = {"gateway": "/events/load", "gateway (a channel each)": "/events/load-{}", "aiohttp": "/events/load"}

PAIRS = (("gateway", "floor-python"), ("floor-python", "floor-c"), ("aiohttp", "floor-c"))


def judge_cpu(rows: list[Row]) -> list[Target]:
    """Judge the price of a delivery."""
    key = "cpu_us_per_delivery"
    return [
        target(
            "gateway / C floor, CPU per delivery, at most 1.5",
            ratio(trusted(rows), key, "gateway", "floor-c"),
            at_most=1.5,
        ),
        target(
            "aiohttp / gateway, CPU per delivery, at least 1.35",
            ratio(trusted(rows), key, "aiohttp", "gateway"),
            at_least=1.35,
        ),
        everything_arrived(rows, "gateway"),
    ]


def judge_throughput(rows: list[Row]) -> list[Target]:
    """Judge latency and completeness under full load."""
    latencies = [row["p99_ms"] for row in trusted(rows) if row["server"] == "gateway"]
    return [target("gateway, p99 in ms, below 100", latencies, at_most=99.999), everything_arrived(rows, "gateway")]


def judge_memory(rows: list[Row]) -> list[Target]:
    """Judge resident memory, in the cheap case and in the dear one."""
    return [
        target(
            f"{name}, resident bytes per idle stream, at most 4096",
            [row["bytes_per_stream"] for row in rows if row["server"] == name],
            at_most=4096,
        )
        for name in MEMORY_PATHS
        if name != "aiohttp"
    ]


def note_delivery(rows: list[Row]) -> list[str]:
    """Return the ratios that are not promised, and warnings."""
    return note_ratios(rows, PAIRS) + note_disturbance(rows)


def note_memory(rows: list[Row]) -> list[str]:
    """Return the ratio to the baseline, and what the supervisor takes."""
    values = ratio(rows, "bytes_per_stream", "aiohttp", "gateway")
    lines = [f"aiohttp / gateway, memory per stream: {statistics.median(values):.1f}"] if values else []
    if aside := [row["rss_aside"] / 2**20 for row in rows if row["rss_aside"]]:
        lines.append(f"the gateway's supervisor, whatever the number of streams: {statistics.median(aside):.0f} MiB")
    return lines


def measure_memory(stage: Stage, scenario: Scenario, server: str, _patience: Patience, say: Say) -> Row:
    """Measure resident memory."""
    row = memory(stage, server, scenario.load, IDLE_S, MEMORY_PATHS[server], say)
    say(f"{row['bytes_per_stream']:,.0f} bytes per stream")
    return row


SCENARIOS = {
    "cpu": Scenario(
        "server CPU per delivery, 1,000 streams, 100 events/s of 100 bytes",
        Load(streams=1000, rate=100, payload_bytes=100, max_seconds=120),
        ("floor-c", "gateway", "aiohttp", "floor-python"),
        measure_delivery,
        judge_cpu,
        note_delivery,
        Timing(warmup_s=2, window_s=10),
    ),
    "throughput": Scenario(
        "8,000 events/s of 100 bytes to 1,000 streams, server on one core",
        Load(streams=1000, rate=8000, payload_bytes=100, max_seconds=120),
        ("floor-c", "gateway"),
        measure_delivery,
        judge_throughput,
        note_delivery,
        Timing(warmup_s=3, window_s=10),
    ),
    "memory": Scenario(
        "resident memory per idle stream, 10,000 streams",
        Load(streams=10_000, rate=1, payload_bytes=100, max_seconds=180),
        tuple(MEMORY_PATHS),
        measure_memory,
        judge_memory,
        note_memory,
        columns=MEMORY_COLUMNS,
        right="all stayed open",
    ),
}
