"""Scenarios of size: idle streams, payloads, how cost grows, workers, more streams than a process has descriptors."""

from __future__ import annotations

import statistics
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import jwt

from benchmarks.idle import hold, idle
from benchmarks.measure import Timing
from benchmarks.report import Column, everything_arrived, ratio, target, trusted
from benchmarks.scenario import Scenario, kind, measure_delivery, note_disturbance, note_ratios, undisturbed
from benchmarks.servers import Load

if TYPE_CHECKING:
    from benchmarks.cores import Patience
    from benchmarks.measure import Row
    from benchmarks.report import Target
    from benchmarks.scenario import Say
    from benchmarks.servers import Stage

EACH = "gateway (a channel each)"
EVERYTHING = "gateway (everything on)"
PEERS = ("nchan", "aiohttp-sse", "aiohttp", "sse-starlette", "fastapi")

ONE_WORKER, TWO_WORKERS = "gateway (1 worker)", "gateway (2 workers)"

HELD = 40_000
WORKERS = 3
"""For 40,000 streams: a process may have 20,000 descriptors, and the kernel spreads them by chance."""

PAYLOADS = {"20 B": (20, 100.0), "1 KB": (1_000, 100.0), "64 KB": (65_536, 4.0)}
"""Bytes, and events a second."""

MEMORY_COLUMNS = (
    Column("bytes_per_stream", "resident bytes per stream", digits=0),
    Column("kernel_bytes_per_stream", "kernel, both ends", digits=0),
    Column("cpu_per_10k", "CPU per 10,000 streams, % of a core", 100, 2),
    Column("cpu_alone", "without streams", 100, 2),
    Column("heartbeats", "heartbeats in 16 s", digits=0),
    Column("rss_before", "before, MiB", 2**-20),
    Column("rss_after", "after, MiB", 2**-20),
    Column("rss_left", "when they have left, MiB", 2**-20),
    Column("opened_s", "opened in, s"),
)

HOLD_COLUMNS = (
    Column("max_ms", "the last has an event after, ms"),
    Column("p50_ms", "half, ms"),
    Column("p99_ms", "99 %, ms"),
    Column("received", "streams that have it", digits=0),
    Column("load_core_busy", "load core, %", 100, 0),
    Column("opened_s", "opened in, s"),
    Column("bytes_per_stream", "resident bytes per stream", digits=0),
    Column("kernel_bytes_per_stream", "kernel, both ends", digits=0),
    Column("cpu_per_10k", "CPU per 10,000 streams, % of a core", 100, 2),
    Column("cpu_alone", "without streams", 100, 2),
)

GROWTH_COLUMNS = (
    Column("cpu_us_per_delivery", "server CPU, us per delivery", digits=2),
    Column("deliveries_per_s", "deliveries, k/s", 1e-3),
    Column("p50_ms", "p50, ms"),
    Column("p99_ms", "p99, ms"),
    Column("rss_bytes", "resident, MiB", 2**-20),
    Column("server_cpu_share", "server CPU, %", 100, 0),
    Column("client_cpu_share", "client CPU, %", 100, 0),
    Column("load_core_busy", "its core, %", 100, 0),
)


def _values(rows: list[Row], server: str, key: str) -> list[float]:
    return [row[key] for row in trusted(rows) if row["server"] == server]


def measure_idle(stage: Stage, scenario: Scenario, server: str, patience: Patience, say: Say) -> Row:
    """Measure memory and heartbeats."""
    load = scenario.load_of(server)
    row = undisturbed(stage, lambda: idle(stage, kind(server), load, say), 25, patience, say)
    say(f"{row['bytes_per_stream']:,.0f} bytes per stream, {row['cpu_per_10k']:.2%} of a core per 10,000")
    return row


def measure_hold(stage: Stage, scenario: Scenario, server: str, patience: Patience, say: Say) -> Row:
    """Measure 40,000 streams."""
    load = scenario.load_of(server)
    row = undisturbed(stage, lambda: hold(stage, kind(server), load, say), 45, patience, say)
    say(f"one event reached {row['received']:,} of {load.streams:,}, the last after {row['max_ms']:.0f} ms")
    return row


def judge_memory(rows: list[Row]) -> list[Target]:
    """Judge resident memory, in the cheap case and in the dear ones, and heartbeats."""
    judged = []
    for name in ("gateway", EACH, EVERYTHING):
        values = _values(rows, name, "bytes_per_stream")
        judged.append(target(f"{name}, resident bytes per idle stream, at most 3072", values, at_most=3072))
    for name in ("gateway", EACH, EVERYTHING):
        shares = [100 * value for value in _values(rows, name, "cpu_per_10k")]
        judged.append(target(f"{name}, % of a core per 10,000 idle streams, at most 1", shares, at_most=1))
    return judged


def note_memory(rows: list[Row]) -> list[str]:
    """Return the ratios to peers, and what the supervisor takes."""
    lines = note_ratios(rows, tuple((peer, "gateway") for peer in PEERS), "bytes_per_stream")
    if aside := [row["rss_aside"] / 2**20 for row in rows if row["rss_aside"]]:
        lines.append(f"the gateway's supervisor, whatever the number of streams: {statistics.median(aside):.0f} MiB")
    return lines + note_disturbance(rows)


def judge_payload(rows: list[Row]) -> list[Target]:
    """Judge completeness."""
    return [everything_arrived(rows, f"gateway ({size})") for size in PAYLOADS]


def note_payload(rows: list[Row]) -> list[str]:
    """Return the ratios to the floor and to nchan."""
    pairs = [(f"gateway ({size})", f"{other} ({size})") for size in PAYLOADS for other in ("floor-c", "nchan")]
    return note_ratios(rows, tuple(pairs)) + note_disturbance(rows)


STREAMS = tuple(f"gateway ({count:,} streams)" for count in (1_000, 2_000, 4_000, 8_000))
CHANNELS = tuple(f"gateway ({count:,} channels)" for count in (1_000, 4_000, 10_000))
WINDOWS = tuple(f"gateway (windows of {count:,})" for count in (10, 100, 1_000))


FEW = 20
"""Channels that windows are compared on: 10,000 events/s have filled those of 1,000 events before it is measured."""


def judge_growth(rows: list[Row]) -> list[Target]:
    """Judge that CPU and memory grow no faster than streams."""
    key = "cpu_us_per_delivery"
    cpu = ratio(trusted(rows), key, STREAMS[-1], STREAMS[0])
    resident = [_values(rows, name, "rss_bytes") for name in STREAMS]
    slopes = []
    if all(resident):
        one, _two, four, eight = (statistics.median(values) for values in resident)
        slopes = [((eight - four) / 4_000) / ((four - one) / 3_000)]
    text = "memory: each of the streams 4,001 to 8,000 against each of 1,001 to 4,000, at most 1.25"
    return [
        target("CPU per delivery at 8,000 streams / at 1,000, at most 1.25", cpu, at_most=1.25),
        target(text, slopes, at_most=1.25),
        *(everything_arrived(rows, name) for name in (*STREAMS, *CHANNELS, *WINDOWS)),
    ]


def note_growth(rows: list[Row]) -> list[str]:
    """Return how cost grows with channels and windows."""
    pairs = ((CHANNELS[-1], CHANNELS[0]), (WINDOWS[-1], WINDOWS[0]))
    return note_ratios(rows, pairs) + note_disturbance(rows)


def judge_workers(rows: list[Row]) -> list[Target]:
    """Judge two workers by their work: this machine's cores are not enough to let them run beside the client."""
    values = ratio(trusted(rows), "cpu_us_per_delivery", TWO_WORKERS, ONE_WORKER)
    text = "two workers / one, CPU per delivery, at most 1.11 (two cores then carry 1.8 times what one does)"
    return [target(text, values, at_most=1 / 0.9), everything_arrived(rows, TWO_WORKERS)]


def judge_hold(rows: list[Row]) -> list[Target]:
    """Judge that all are held, and reached."""
    name = f"gateway ({WORKERS} workers)"
    held = [row["received"] for row in rows if row["server"] == name]
    return [
        target(f"streams held, that an event reached, at least {HELD:,}", held, at_least=HELD),
        everything_arrived(rows, name),
    ]


def _growth_loads() -> dict[str, Load]:
    base = Load(streams=1_000, rate=100, payload_bytes=100, max_seconds=120)
    loads = {
        name: replace(base, streams=count, rate=100_000 / count)
        for name, count in zip(STREAMS, (1_000, 2_000, 4_000, 8_000), strict=True)
    }
    for name, count in zip(CHANNELS, (1_000, 4_000, 10_000), strict=True):
        loads[name] = replace(base, streams=count, spread=count, rate=10_000, path="/events/load-{}")
    few = replace(loads[CHANNELS[0]], streams=FEW, spread=FEW)
    for name, count in zip(WINDOWS, (10, 100, 1_000), strict=True):
        loads[name] = replace(few, config={"channels": [_rule(window={"max_events": count})]})
    return loads


def _rule(**changes: Any) -> dict[str, Any]:  # noqa: ANN401 - a section of the configuration
    return {"pattern": "bench:*", "strip_prefix": "bench:", "format": "text"} | changes


def _token() -> str:
    """Return a field with a token that lets every client in, for a day."""
    claims = {"sub": "benchmarks", "channels": ["load*", "first*"], "exp": int(datetime.now(UTC).timestamp()) + 86_400}
    return f"Authorization: Bearer {jwt.encode(claims, SECRET, 'HS256')}"


MEMORY_LOAD = Load(streams=10_000, rate=1, payload_bytes=100, max_seconds=180)
SECRET = "a secret of the benchmarks, which is none"  # noqa: S105 - so it says

EVERYTHING_ON = {
    "auth": {"mode": "jwt", "secret": SECRET},
    "stream": {"max_age": "1h"},
    "limits": {
        "connections_per_address": 50_000,
        "connections_per_subject": 50_000,
        "connections_per_second": 50_000,
        "replay_per_subject": "1GiB",
    },
}
"""What may be switched on for each stream besides the defaults; the limits are above what the scenario asks."""

ON_LOAD = replace(MEMORY_LOAD, path="/events?channel=load-{}&channel=load", config=EVERYTHING_ON, header=_token())
PAYLOAD_LOADS = {
    f"{server} ({name})": Load(streams=1_000, rate=rate, payload_bytes=size, max_seconds=120)
    for server in ("floor-c", "gateway", "nchan")
    for name, (size, rate) in PAYLOADS.items()
}
GROWTH_LOADS = _growth_loads()
WORKER_LOADS = {
    name: Load(streams=1_000, rate=100, payload_bytes=100, max_seconds=120, config={"workers": count})
    for name, count in ((ONE_WORKER, 1), (TWO_WORKERS, 2))
}
HOLD_LOAD = Load(
    streams=HELD, rate=1, payload_bytes=100, max_seconds=240, processes=WORKERS, config={"workers": WORKERS}
)

SCENARIOS = {
    "memory": Scenario(
        "f: memory and CPU of 10,000 idle streams, heartbeats every 15 s",
        MEMORY_LOAD,
        ("gateway", EACH, EVERYTHING, *PEERS),
        measure_idle,
        judge_memory,
        note_memory,
        columns=MEMORY_COLUMNS,
        right="all stayed open",
        loads={EACH: replace(MEMORY_LOAD, path="/events/load-{}"), EVERYTHING: ON_LOAD},
        asides=frozenset(PEERS),
    ),
    "payload": Scenario(
        "i: payloads of 20 bytes, 1 KB and 64 KB to 1,000 streams; 100, 100 and 4 events/s",
        PAYLOAD_LOADS["gateway (20 B)"],
        tuple(PAYLOAD_LOADS),
        measure_delivery,
        judge_payload,
        note_payload,
        Timing(warmup_s=1, window_s=4),
        loads=PAYLOAD_LOADS,
        rounds=3,
    ),
    "growth": Scenario(
        "j: how cost grows with streams (100,000 deliveries/s), channels and windows (10,000 deliveries/s)",
        GROWTH_LOADS[STREAMS[0]],
        tuple(GROWTH_LOADS),
        measure_delivery,
        judge_growth,
        note_growth,
        Timing(warmup_s=2.5, window_s=4),
        GROWTH_COLUMNS,
        loads=GROWTH_LOADS,
        asides=frozenset({STREAMS[1], *CHANNELS, *WINDOWS}),
    ),
    "workers": Scenario(
        "j: two workers against one on the same core, 1,000 streams, 100 events/s of 100 bytes",
        WORKER_LOADS[ONE_WORKER],
        (ONE_WORKER, TWO_WORKERS),
        measure_delivery,
        judge_workers,
        note_disturbance,
        Timing(warmup_s=1.5, window_s=4),
        loads=WORKER_LOADS,
    ),
    "hold": Scenario(
        f"k: {HELD:,} idle streams on {WORKERS} workers, from {WORKERS} loopback addresses, and one event to all",
        HOLD_LOAD,
        (f"gateway ({WORKERS} workers)",),
        measure_hold,
        judge_hold,
        note_disturbance,
        columns=HOLD_COLUMNS,
        right="all stayed open",
    ),
}
