"""Scenarios of the stored log: what it costs while it is written, and how long it takes to be read."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks.errors import BenchmarkError
from benchmarks.join import fill
from benchmarks.measure import Timing
from benchmarks.observe import Lines, Others, metric
from benchmarks.parts import family
from benchmarks.report import Column, everything_arrived, ratio, target, trusted
from benchmarks.scenario import Scenario, measure_delivery, note_disturbance, undisturbed
from benchmarks.servers import Load, start_gateway

if TYPE_CHECKING:
    from benchmarks.cores import Patience
    from benchmarks.measure import Row
    from benchmarks.report import Target
    from benchmarks.scenario import Say
    from benchmarks.servers import Server, Stage

STORING = "gateway (storing)"
STORED = {"persistence": {"mode": "redis"}}
CHANGES = {"persistence": {"mode": "redis", "max_lag": "60s"}, "log": {"level": "info", "format": "json"}}
"""The windows are filled faster than anybody publishes; nothing of it is to be skipped."""

STORE_S = 120.0
"""Within this everything must be stored."""

COLUMNS = (
    Column("load_s", "read in, s", digits=2),
    Column("ready_s", "start to ready, s", digits=2),
    Column("held_mb", "held, MB", digits=0),
    Column("events", "events", digits=0),
)


def judge_price(rows: list[Row]) -> list[Target]:
    """Judge what writing costs."""
    found = trusted(rows)
    cpu, p99 = (ratio(found, key, STORING, "gateway") for key in ("cpu_us_per_delivery", "p99_ms"))
    return [
        target("storing / not storing, CPU per delivery, at most 1.25", cpu, at_most=1.25),
        target("storing / not storing, p99, at most 1.2", p99, at_most=1.2),
        everything_arrived(rows, STORING),
    ]


def judge_cold(rows: list[Row]) -> list[Target]:
    """Judge how long reading takes."""
    return [target("100 MB of windows read, in s, at most 5", [row["load_s"] for row in trusted(rows)], at_most=5)]


def cold(stage: Stage, load: Load, say: Say) -> Row:
    """Fill windows, kill everything, start again."""
    with contextlib.ExitStack() as stack:
        first = start_gateway(stage, "before", load.max_seconds, CHANGES)
        stack.callback(first.stop)
        fill(stage, first)
        _await_stored(first)
        held_mb = metric(first, "sse_gateway_window_bytes") / 1e6
        say(f"{held_mb:.0f} MB held and stored")
        for pid in family(first.part.pid):
            os.kill(pid, signal.SIGKILL)
        first.stop()
        began, others = time.monotonic(), Others(stage, (stage.redis,))
        second = start_gateway(stage, "after", load.max_seconds, CHANGES)
        stack.callback(second.stop)
        ready_s = time.monotonic() - began
        shares = others.shares()
        shares["others_share"] -= second.part.spent_s() / ready_s  # it was not there when the count began
        loaded = Lines(second.part, 0).wait("store.loaded", 5)
        events = metric(second, "sse_gateway_window_events")
        is_right = events == loaded["events"]
        row: Row = {"load_s": loaded["duration_s"], "ready_s": ready_s, "held_mb": held_mb, "events": events}
        return row | shares | {"is_right": is_right}


def _await_stored(server: Server) -> None:
    deadline = time.monotonic() + STORE_S
    while metric(server, "sse_gateway_persistence_events_total") < metric(server, "sse_gateway_events_total"):
        if time.monotonic() > deadline:
            raise BenchmarkError("the windows are not stored in time")
        time.sleep(0.1)


def measure_cold(stage: Stage, scenario: Scenario, _server: str, patience: Patience, say: Say) -> Row:
    """Measure reading what is stored."""
    row = undisturbed(stage, lambda: cold(stage, scenario.load, say), 60, patience, say)
    say(f"read in {row['load_s']:.2f} s, ready {row['ready_s']:.2f} s after the start")
    return row


LOAD = Load(streams=1000, rate=100, payload_bytes=100, max_seconds=120)

SCENARIOS = {
    "persistence": Scenario(
        "price of the stored log: 1,000 streams, 100 events/s of 100 bytes",
        LOAD,
        ("gateway", STORING),
        measure_delivery,
        judge_price,
        note_disturbance,
        Timing(warmup_s=2, window_s=10),
        loads={STORING: replace(LOAD, config=STORED)},
    ),
    "cold": Scenario(
        "cold start from 100 MB: 10,000 channels of 10 events of 1,000 bytes",
        Load(streams=1, rate=1, payload_bytes=100, max_seconds=300),
        ("gateway",),
        measure_cold,
        judge_cold,
        note_disturbance,
        columns=COLUMNS,
        rounds=3,
    ),
}
