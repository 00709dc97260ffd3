"""What honest clients notice of hostile ones: a tenth that stalls, dribbles, or connects again and again."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks.measure import Timing, delivery
from benchmarks.parts import Part, python
from benchmarks.report import everything_arrived, ratio, target, trusted
from benchmarks.scenario import Scenario, note_disturbance, undisturbed
from benchmarks.servers import Load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.cores import Patience
    from benchmarks.measure import Row
    from benchmarks.report import Target
    from benchmarks.scenario import Say
    from benchmarks.servers import Server, Stage

HOSTILE = "gateway (10 % hostile)"
ALONE = "gateway (honest alone)"

CLIENTS = 100
PER_SECOND = 200
"""Connections that a third of them make: each six a second, which is what a browser's bug, or a loop of curl, does."""

LOAD = Load(streams=900, rate=100, payload_bytes=100, max_seconds=120)
TIMING = Timing(warmup_s=4, window_s=8)


def measure(stage: Stage, scenario: Scenario, server: str, patience: Patience, say: Say) -> Row:
    """Measure deliveries to the honest ones, with the others or without."""
    beside = hostile if server == HOSTILE else None

    def once() -> Row:
        return delivery(stage, "gateway", scenario.load, TIMING, say, beside)

    return undisturbed(stage, once, TIMING.total_s(), patience, say) | {"server": server}


@contextlib.contextmanager
def hostile(stage: Stage, server: Server) -> Iterator[Part]:
    """Run them, on the clients' core, for as long as it takes."""
    arguments = [server.port, TIMING.total_s() + 30, "load", CLIENTS, PER_SECOND]
    part = Part(
        "hostile-clients",
        python("benchmarks.hostile_clients", *arguments),
        core=stage.cores.load,
        directory=stage.directory,
    )
    try:
        part.hear(20)
        yield part
    finally:
        part.stop()


def judge(rows: list[Row]) -> list[Target]:
    """Judge what the honest ones notice."""
    values = ratio(trusted(rows), "p99_ms", HOSTILE, ALONE)
    return [
        target("10 % hostile: p99 of the others / without, at most 2", values, at_most=2.0),
        everything_arrived(rows, HOSTILE),
    ]


SCENARIOS = {
    "hostile": Scenario(
        "900 clients, 100 events/s of 100 bytes, and 100 more that stall, dribble, or connect again and again",
        replace(LOAD, config={"limits": {"connections_per_second": 2_000}}),
        (ALONE, HOSTILE),
        measure,
        judge,
        note_disturbance,
        TIMING,
    ),
}
