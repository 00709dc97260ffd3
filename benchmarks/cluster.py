"""Scenarios of one log over several processes: its price, and what the end or the coming of one costs."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from benchmarks.join import join
from benchmarks.measure import Timing
from benchmarks.relink import relink
from benchmarks.report import Column, everything_arrived, ratio, target, trusted
from benchmarks.resume import resume
from benchmarks.scenario import Scenario, measure_delivery, note_disturbance, note_ratios, undisturbed
from benchmarks.servers import Load

if TYPE_CHECKING:
    from benchmarks.cores import Patience
    from benchmarks.measure import Row
    from benchmarks.report import Target
    from benchmarks.scenario import Say
    from benchmarks.servers import Stage

LOAD_COLUMNS = (
    Column("others_share", "other work, % of a core", 100, 0),
    Column("server_core_busy", "server core, %", 100, 0),
    Column("load_core_busy", "load core, %", 100, 0),
)

RESUME_COLUMNS = (
    Column("p99_ms", "p99 of the cost of a break, ms", digits=0),
    Column("p50_ms", "p50, ms", digits=0),
    Column("max_ms", "max, ms", digits=0),
    Column("breaks", "breaks", digits=0),
    Column("back_s", "a worker is back after, s", digits=2),
    Column("unavailables", "told to come later", digits=0),
    Column("client_cpu_share", "client CPU, %", 100, 0),
    *LOAD_COLUMNS,
)

JOIN_COLUMNS = (
    Column("join_s", "link up to log held, s", digits=2),
    Column("ready_s", "start to ready, s", digits=2),
    Column("held_mb", "held, MB", digits=0),
    Column("p50_ms_before", "peer before: p50, ms", digits=2),
    Column("p99_ms_before", "p99, ms", digits=2),
    Column("max_ms_before", "max, ms", digits=1),
    Column("p50_ms", "meanwhile: p50, ms", digits=2),
    Column("p99_ms", "p99, ms", digits=2),
    Column("max_ms", "max, ms", digits=1),
    *LOAD_COLUMNS,
)

RELINK_COLUMNS = (
    Column("current_s", "current again after, worst, s", digits=2),
    Column("away_s", "link lost to log held, worst, s", digits=2),
    Column("max_ms_before", "worst latency before, ms", digits=1),
    *LOAD_COLUMNS,
)


def judge_log(rows: list[Row]) -> list[Target]:
    """Judge the price of the common log."""
    key = "cpu_us_per_delivery"
    found = [(name, ratio(trusted(rows), key, name, "plain-log")) for name in ("replicated-log", "two-nodes")]
    return [
        *(target(f"{name} / plain-log, CPU per delivery, at most 1.1", values, at_most=1.1) for name, values in found),
        *(everything_arrived(rows, name) for name, _ in found),
    ]


def note_log(rows: list[Row]) -> list[str]:
    """Return warnings."""
    return note_ratios(rows, (("two-nodes", "replicated-log"),)) + note_disturbance(rows)


def _values(rows: list[Row], server: str, key: str) -> list[float]:
    return [row[key] for row in trusted(rows) if row["server"] == server]


def judge_resume(rows: list[Row]) -> list[Target]:
    """Judge the end of a worker."""
    costs = _values(rows, "workers", "p99_ms")
    text = "a worker killed: p99 from the break to the next event, less the client's retry, in ms, at most 1000"
    return [target(text, costs, at_most=1000), everything_arrived(rows, "workers")]


def judge_join(rows: list[Row]) -> list[Target]:
    """Judge the coming of a node or worker."""
    judged = []
    for name in ("nodes", "workers"):
        judged += [
            target(f"{name}: link up to log held, in s, at most 2", _values(rows, name, "join_s"), at_most=2),
            target(f"{name}: peer's p99, meanwhile / before, below 2", _values(rows, name, "p99_ratio"), at_most=1.99),
            everything_arrived(rows, name),
        ]
    held, worst = _values(rows, "nodes", "held_ms"), _values(rows, "workers", "max_ms")
    return [
        *judged,
        target("nodes: peer's loop held meanwhile, at most, in ms, below 20", held, at_most=19.99),
        target("workers: peer's worst delivery meanwhile, in ms, below 20", worst, at_most=19.99),
    ]


def note_join(rows: list[Row]) -> list[str]:
    """Say what of the longest hold was work."""
    lines = ["the worst delivery bounds the time for which a peer's loop was held: events came every few ms"]
    if held := _values(rows, "nodes", "held_cpu_ms"):
        lines.append(f"nodes: the most that the peer worked between two turns of its loop: {max(held):.1f} ms of CPU")
    return lines + note_disturbance(rows)


def judge_relink(rows: list[Row]) -> list[Target]:
    """Judge the loss of a link."""
    worst = _values(rows, "nodes", "current_s")
    text = "a link cut: the node's clients are current again, in s, at most 2"
    return [target(text, worst, at_most=2), everything_arrived(rows, "nodes")]


def note_relink(rows: list[Row]) -> list[str]:
    """Return the single cuts."""
    each = [value for row in rows for value in row["each_s"]]
    return [f"{len(each)} cuts, current again after {statistics.median(each):.2f} s (median)", *note_disturbance(rows)]


def measure_resume(stage: Stage, scenario: Scenario, _server: str, patience: Patience, say: Say) -> Row:
    """Measure the end of workers."""
    row = undisturbed(stage, lambda: resume(stage, scenario.load, say), 45, patience, say)
    say(f"{row['breaks']} breaks, cost p50 {row['p50_ms']:.0f} ms, p99 {row['p99_ms']:.0f} ms; {_right(row)}")
    return row


def measure_join(stage: Stage, scenario: Scenario, server: str, patience: Patience, say: Say) -> Row:
    """Measure the coming of a node or worker."""
    row = undisturbed(stage, lambda: join(stage, scenario.load, server, say), 40, patience, say)
    say(
        f"joined in {row['join_s']:.2f} s, ready after {row['ready_s']:.2f} s; peer's p99 {row['p99_ms_before']:.1f} "
        f"before, {row['p99_ms']:.1f} ms meanwhile, worst {row['max_ms']:.1f} ms; {_right(row)}"
    )
    return row


def measure_relink(stage: Stage, scenario: Scenario, _server: str, patience: Patience, say: Say) -> Row:
    """Measure the loss of a link."""
    row = undisturbed(stage, lambda: relink(stage, scenario.load, say), 35, patience, say)
    say(f"current again after {', '.join(f'{value:.2f}' for value in row['each_s'])} s; {_right(row)}")
    return row


def _right(row: Row) -> str:
    return "every event once, in order" if row["is_right"] else "EVENTS WRONG"


SCENARIOS = {
    "log": Scenario(
        "price of the common log: CPU per delivery, 1,000 streams, 100 events/s of 100 bytes",
        Load(streams=1000, rate=100, payload_bytes=100, max_seconds=120),
        ("plain-log", "replicated-log", "two-nodes"),
        measure_delivery,
        judge_log,
        note_log,
        Timing(warmup_s=2, window_s=10),
    ),
    "resume": Scenario(
        "workers killed under load: 2 workers, 200 streams, retry 1 s, 100 events/s of 100 bytes",
        Load(streams=200, rate=100, payload_bytes=100, max_seconds=120),
        ("workers",),
        measure_resume,
        judge_resume,
        note_disturbance,
        columns=RESUME_COLUMNS,
    ),
    "join": Scenario(
        "joining 100 MB: 10,000 channels of 10 events of 1,000 bytes; 200 streams on the peer, 300 events/s of 100 bytes",
        Load(streams=200, rate=300, payload_bytes=100, max_seconds=180),
        ("nodes", "workers"),
        measure_join,
        judge_join,
        note_join,
        columns=JOIN_COLUMNS,
    ),
    "link": Scenario(
        "a node's link to Redis cut under load, a peer alive: 200 streams, 300 events/s of 100 bytes",
        Load(streams=200, rate=300, payload_bytes=100, max_seconds=120),
        ("nodes",),
        measure_relink,
        judge_relink,
        note_relink,
        columns=RELINK_COLUMNS,
    ),
}
