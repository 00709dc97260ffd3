"""Scenarios side by side with the floor and with peers: price of a delivery, one event to many, highest rate."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks.highest import P99_MS
from benchmarks.measure import Timing
from benchmarks.report import DELIVERY_COLUMNS, Column, everything_arrived, ratio, target, trusted
from benchmarks.scenario import (
    Scenario,
    measure_delivery,
    measure_highest,
    measure_pulses,
    note_disturbance,
    note_ratios,
)
from benchmarks.servers import Load

if TYPE_CHECKING:
    from benchmarks.measure import Row
    from benchmarks.report import Target

PEERS = ("nchan", "aiohttp-sse", "aiohttp", "sse-starlette", "fastapi")

SIZES = (1_000, 5_000, 10_000, 15_000)
"""Streams that one event goes to."""

PULSE_COLUMNS = (
    Column("p99_ms", "99 % have it after, ms"),
    Column("p50_ms", "half, ms"),
    Column("max_ms", "the last, ms"),
    Column("cpu_us_per_delivery", "server CPU, us per delivery", digits=2),
    Column("pulses", "events", digits=0),
    Column("client_cpu_share", "client CPU, %", 100, 0),
    Column("load_core_busy", "its core, %", 100, 0),
)

RATE_COLUMNS = (
    Column("rate", "events/s", digits=0),
    Column("deliveries_per_s", "deliveries, k/s", 1e-3),
    *DELIVERY_COLUMNS[2:5],
    Column("cpu_us_per_delivery", "server CPU, us per delivery", digits=2),
    *DELIVERY_COLUMNS[6:],
)

FIRST_RATES = {"floor-c": 12_500, "nchan": 100, "aiohttp-sse": 30, "aiohttp": 80, "sse-starlette": 12, "fastapi": 4}
"""Where the search for the highest rate begins; it ends where it must, whatever it begins with."""

CPU_LOAD = Load(streams=1000, rate=100, payload_bytes=100, max_seconds=120)
PULSE_LOAD = Load(streams=10_000, rate=1, payload_bytes=100, max_seconds=300)
RATE_LOAD = Load(streams=1000, rate=8_000, payload_bytes=100, max_seconds=180)


def compared(rows: list[Row], key: str, over: str, under: str, at_most: float, what: str) -> Target:
    """Judge a ratio of two servers."""
    values = ratio(trusted(rows), key, over, under)
    return target(f"{over} / {under}, {what}, at most {at_most:g}", values, at_most=at_most)


def judge_cpu(rows: list[Row]) -> list[Target]:
    """Judge the price of a delivery."""
    key, what = "cpu_us_per_delivery", "CPU per delivery"
    return [
        compared(rows, key, "gateway", "floor-c", 1.3, what),
        compared(rows, key, "gateway", "nchan", 0.75, what),
        compared(rows, key, "gateway", "aiohttp-sse", 0.6, what),
        everything_arrived(rows, "gateway"),
    ]


def note_cpu(rows: list[Row]) -> list[str]:
    """Return the ratios that are not promised, and warnings."""
    pairs = (("floor-python", "floor-c"), ("gateway", "floor-python"), *((peer, "gateway") for peer in PEERS))
    return ["stretch target, gateway / floor-c: 1.20", *note_ratios(rows, pairs), *note_disturbance(rows)]


def sized(server: str, streams: int) -> str:
    """Return the name of a server's variant."""
    return f"{server} ({streams:,})"


def judge_fanout(rows: list[Row]) -> list[Target]:
    """Judge the way of one event to 10,000 streams."""
    ours = sized("gateway", 10_000)
    return [
        compared(rows, "p99_ms", ours, sized("floor-c", 10_000), 1.25, "p99"),
        compared(rows, "p99_ms", ours, sized("nchan", 10_000), 0.75, "p99"),
        *(everything_arrived(rows, sized("gateway", size)) for size in SIZES),
    ]


def note_fanout(rows: list[Row]) -> list[str]:
    """Return the ratios at other sizes, and of other peers."""
    floors = tuple((sized("gateway", size), sized("floor-c", size)) for size in SIZES if size != 10_000)
    peers = tuple((sized(peer, 10_000), sized("gateway", 10_000)) for peer in PEERS)
    return note_ratios(rows, floors + peers, "p99_ms") + note_disturbance(rows)


def judge_rate(rows: list[Row]) -> list[Target]:
    """Judge the highest rate. If the gateway carried none, that is 0; if nchan carried none, it counts as if it had carried the lowest."""
    counted = [
        row | {"rate": 0.0} if row["server"] == "gateway" and not row["is_carried"] else row for row in trusted(rows)
    ]
    rates = [row["rate"] for row in counted if row["server"] == "gateway"]
    times = ratio(counted, "rate", "gateway", "nchan")
    return [
        target("gateway, events/s to 1,000 streams with p99 below 50 ms, at least 8000", rates, at_least=8000),
        target("gateway / nchan, that rate, at least 10", times, at_least=10),
    ]


def note_rate(rows: list[Row]) -> list[str]:
    """Say how fine the search is, and what peers carry."""
    pairs = (("gateway", "floor-c"), *(("gateway", peer) for peer in PEERS))
    note = f"rates were tried in steps of a quarter; carried: p99 below {P99_MS:g} ms, and every event once, in order"
    none = sorted({row["server"] for row in rows if not row["is_carried"]})
    notes = [f"{name}: carried none of the rates tried; shown is the lowest" for name in none]
    carried = [row for row in rows if row["is_carried"]]
    return [note, *notes, *note_ratios(carried, pairs, "rate"), *note_disturbance(rows)]


def _fanout_servers() -> tuple[str, ...]:
    names = [sized(server, size) for server in ("floor-c", "gateway", "nchan") for size in SIZES]
    return (*names, *(sized(peer, size) for peer in PEERS[1:] for size in (1_000, 10_000)))


FANOUT = _fanout_servers()

SCENARIOS = {
    "cpu": Scenario(
        "a: server CPU per delivery, 1,000 streams, 100 events/s of 100 bytes",
        CPU_LOAD,
        ("floor-c", "gateway", *PEERS, "floor-python"),
        measure_delivery,
        judge_cpu,
        note_cpu,
        Timing(warmup_s=1.5, window_s=4),
        asides=frozenset({"floor-python", "aiohttp", "sse-starlette", "fastapi"}),
    ),
    "fanout": Scenario(
        "b: one event of 100 bytes to 1,000, 5,000, 10,000, 15,000 streams",
        PULSE_LOAD,
        FANOUT,
        measure_pulses,
        judge_fanout,
        note_fanout,
        columns=PULSE_COLUMNS,
        loads={
            name: replace(PULSE_LOAD, streams=int(name.rpartition("(")[2][:-1].replace(",", ""))) for name in FANOUT
        },
        asides=frozenset(FANOUT) - {sized(server, 10_000) for server in ("floor-c", "gateway", "nchan")},
    ),
    "rate": Scenario(
        "c: highest rate of events of 100 bytes to 1,000 streams with p99 below 50 ms, server on one core",
        RATE_LOAD,
        ("floor-c", "gateway", *PEERS),
        measure_highest,
        judge_rate,
        note_rate,
        columns=RATE_COLUMNS,
        loads={name: replace(RATE_LOAD, rate=rate) for name, rate in FIRST_RATES.items()},
        asides=frozenset({"floor-c", *PEERS[1:]}),
    ),
}
