"""Scenarios of many channels: a stream each, several of its own, one of its own and one that all share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.against_peers import PULSE_COLUMNS, compared
from benchmarks.measure import Timing
from benchmarks.report import everything_arrived, target, trusted
from benchmarks.scenario import Scenario, measure_delivery, measure_pulses, note_disturbance, note_ratios
from benchmarks.servers import Load

if TYPE_CHECKING:
    from benchmarks.measure import Row
    from benchmarks.report import Target

OWN = "gateway (own channel and a shared one)"
ONE = "gateway (the shared one)"

SEVERAL = "gateway (10 channels each)"
SINGLE = "gateway (1 channel each)"

SEVERAL_PATH = "/events?" + "&".join(f"channel=load-{{}}-{number}" for number in range(10))


def judge_channels(rows: list[Row]) -> list[Target]:
    """Judge 10,000 channels."""
    latencies = [row["p99_ms"] for row in trusted(rows) if row["server"] == "gateway"]
    rates = [row["deliveries_per_s"] for row in trusted(rows) if row["server"] == "gateway"]
    return [
        target("gateway, 10,000 channels: events/s, at least 10,000 (within a hundredth)", rates, at_least=9_900),
        target("gateway, 10,000 channels: p99 in ms, at most 50", latencies, at_most=50),
        everything_arrived(rows, "gateway"),
    ]


def judge_several(rows: list[Row]) -> list[Target]:
    """Judge completeness and order over the channels of a stream."""
    return [everything_arrived(rows, SEVERAL)]


def note_several(rows: list[Row]) -> list[str]:
    """Return what the further channels cost."""
    return note_ratios(rows, ((SEVERAL, SINGLE),)) + note_disturbance(rows)


def judge_shared(rows: list[Row]) -> list[Target]:
    """Judge an event that 10,000 audiences share."""
    return [
        compared(rows, "p99_ms", OWN, ONE, 1.25, "p99"),
        compared(rows, "cpu_us_per_delivery", OWN, ONE, 1.25, "CPU per delivery"),
        everything_arrived(rows, OWN),
    ]


DEALT = Load(
    streams=10_000, rate=10_000, payload_bytes=100, max_seconds=180, path="/events/load-{}", spread=10_000, per_stream=1
)
SEVERAL_LOAD = Load(
    streams=1_000, rate=10_000, payload_bytes=100, max_seconds=180, path=SEVERAL_PATH, spread=1_000, per_stream=10
)
SINGLE_LOAD = Load(
    streams=1_000, rate=10_000, payload_bytes=100, max_seconds=180, path="/events/load-{}", spread=1_000, per_stream=1
)
OWN_LOAD = Load(streams=10_000, rate=1, payload_bytes=100, max_seconds=180, path="/events?channel=own-{}&channel=load")
ONE_LOAD = Load(streams=10_000, rate=1, payload_bytes=100, max_seconds=180)

SCENARIOS = {
    "channels": Scenario(
        "d: 10,000 channels, a stream each, 10,000 events/s of 100 bytes in all",
        DEALT,
        ("gateway", "nchan"),
        measure_delivery,
        judge_channels,
        note_disturbance,
        Timing(warmup_s=2, window_s=4),
        asides=frozenset({"nchan"}),
    ),
    "several": Scenario(
        "e: 1,000 streams that follow 10 channels of their own each, 10,000 events/s of 100 bytes in all",
        SEVERAL_LOAD,
        (SEVERAL, SINGLE),
        measure_delivery,
        judge_several,
        note_several,
        Timing(warmup_s=2, window_s=4),
        loads={SEVERAL: SEVERAL_LOAD, SINGLE: SINGLE_LOAD},
        rounds=3,
    ),
    "shared": Scenario(
        "e': one event of 100 bytes to 10,000 streams, each with a channel of its own and the shared one",
        OWN_LOAD,
        (OWN, ONE),
        measure_pulses,
        judge_shared,
        note_disturbance,
        columns=PULSE_COLUMNS,
        loads={OWN: OWN_LOAD, ONE: ONE_LOAD},
    ),
}
