"""Scenarios of clients that come at once, and of clients that are slow."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks.measure import Timing
from benchmarks.report import Column, everything_arrived, ratio, target, trusted
from benchmarks.scenario import Scenario, kind, measure_delivery, note_disturbance, note_ratios, undisturbed
from benchmarks.servers import Load
from benchmarks.storm import storm

if TYPE_CHECKING:
    from benchmarks.cores import Patience
    from benchmarks.measure import Row
    from benchmarks.report import Target
    from benchmarks.scenario import Say
    from benchmarks.servers import Stage

REPLAY = "gateway (100 events to replay)"
PLAIN = "gateway (nothing to replay)"

POLICIES = ("drop_oldest", "disconnect", "latest")
NONE = "gateway (none stalled)"

STORM_COLUMNS = (
    Column("last_s", "all current after, s", digits=2),
    Column("p50_s", "half, s", digits=2),
    Column("p99_s", "99 %, s", digits=2),
    Column("lag_p99_ms", "loop lag p99, ms at most", digits=0),
    Column("again", "connections cut by a full queue", digits=0),
    Column("server_cpu_s", "server CPU, s", digits=2),
    Column("server_core_busy", "server core, %", 100, 0),
    Column("load_core_busy", "load core, %", 100, 0),
)

STORM_LOAD = Load(streams=10_000, rate=1, payload_bytes=100, max_seconds=180)
SLOW_LOAD = Load(streams=900, rate=2_000, payload_bytes=100, max_seconds=120)


def stalled(policy: str) -> str:
    """Return the name of a policy's variant."""
    return f"gateway ({policy})"


def slow_load(policy: str) -> Load:
    """Return the load with a tenth of the clients stalled, under a policy and else the defaults."""
    rule = {"pattern": "bench:*", "strip_prefix": "bench:", "format": "text", "queue": {"policy": policy}}
    return replace(SLOW_LOAD, stalled=100, config={"channels": [rule]})


def measure_storm(stage: Stage, scenario: Scenario, server: str, patience: Patience, say: Say) -> Row:
    """Measure a storm."""
    load = scenario.load_of(server)
    measure = lambda: storm(stage, kind(server), load, with_replay=server == REPLAY, say=say)  # noqa: E731 - as above
    return undisturbed(stage, measure, 12, patience, say)


def judge_storm(rows: list[Row]) -> list[Target]:
    """Judge the storm against the same without replay."""
    lags = [row["lag_p99_ms"] for row in trusted(rows) if row["server"] == REPLAY]
    times = ratio(trusted(rows), "last_s", REPLAY, PLAIN)
    return [
        target("100 events to replay / none, time until all 10,000 are current, at most 1.5", times, at_most=1.5),
        target("100 events to replay: loop lag p99 in ms, at most 50 (bound of its bucket)", lags, at_most=50.001),
        everything_arrived(rows, REPLAY),
        everything_arrived(rows, PLAIN),
    ]


def note_storm(rows: list[Row]) -> list[str]:
    """Return what replay costs the server: in the time it hides behind that for which the kernel has clients wait."""
    return note_ratios(rows, ((REPLAY, PLAIN),), "server_cpu_s") + note_disturbance(rows)


def judge_slow(rows: list[Row]) -> list[Target]:
    """Judge what honest clients notice of stalled ones."""
    judged = []
    for policy in POLICIES:
        values = ratio(trusted(rows), "p99_ms", stalled(policy), NONE)
        judged.append(
            target(f"{stalled(policy)}, 10 % stalled: p99 of the others / without, at most 1.3", values, at_most=1.3)
        )
        judged.append(everything_arrived(rows, stalled(policy)))
    return judged


def note_slow(rows: list[Row]) -> list[str]:
    """Say what shows that the policy was at work."""
    lines = []
    for policy in POLICIES:
        found = [row for row in rows if row["server"] == stalled(policy)]
        if found:
            worked = ", ".join(f"{row['overflowed']:,.0f}" for row in found)
            lines.append(
                f"{policy}: what the policy did to the stalled 100 (events dropped or streams ended): {worked}"
            )
    return lines + note_disturbance(rows)


SCENARIOS = {
    "storm": Scenario(
        "g: 10,000 clients reconnect at once, with Last-Event-ID and 100 events to replay, 2 events/s going on",
        STORM_LOAD,
        (REPLAY, PLAIN),
        measure_storm,
        judge_storm,
        note_storm,
        columns=STORM_COLUMNS,
    ),
    "slow": Scenario(
        "h: 900 clients, 2,000 events/s of 100 bytes, and 100 more that read nothing, under each policy",
        SLOW_LOAD,
        (NONE, *(stalled(policy) for policy in POLICIES)),
        measure_delivery,
        judge_slow,
        note_slow,
        Timing(warmup_s=3.5, window_s=3),
        loads={stalled(policy): slow_load(policy) for policy in POLICIES},
    ),
}
