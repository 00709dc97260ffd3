"""One event to many streams: how long until half of them, 99 % and the last have it."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from benchmarks.errors import BenchmarkError
from benchmarks.measure import Row, finish, publish, publisher_of, running, sample, streams, verdict, window

if TYPE_CHECKING:
    from benchmarks.parts import Part
    from benchmarks.scenario import Say
    from benchmarks.servers import Load, Stage

SETTLE_S = 0.5
"""After the streams were opened, before the first event."""

LEAD_NS = 20_000_000
"""From the order to publish to the moment at which it is due: the order's own way is not to count."""

PAUSE_S = 0.05
"""After everybody has an event."""

PULSES = 12
"""Events of one measurement; the first two warm up."""

BUDGET_S = 8.0
"""A server for which these events take longer is given fewer: at least one, after one to warm up."""

LIMIT_S = 20.0
"""An event that not everybody has after so long counts as not delivered."""


def pulses(stage: Stage, name: str, load: Load, say: Say) -> Row:
    """Publish single events, the next when everybody has the last one; return medians over the events."""
    with (
        running(stage, name, load) as server,
        streams(stage, server, load) as client,
        publisher_of(stage, server, load) as publisher,
    ):
        say(f"{load.streams} streams open, one event at a time")
        time.sleep(SETTLE_S)
        begun, count, times = time.monotonic(), 1, list[Row]()
        _pulse(client, publisher, load, 1)
        if time.monotonic() - begun < BUDGET_S / PULSES:
            count += 1
            _pulse(client, publisher, load, 2)
        parts = [client, stage.redis, *([] if server.is_floor else [publisher])]
        before = sample(stage, server.part, parts)
        stage.profiler.begin(server.part, 4)
        while (count < PULSES or stage.profiler.is_at_work) and (not times or time.monotonic() - begun < BUDGET_S):
            count += 1
            times.append(_pulse(client, publisher, load, count))
        after = sample(stage, server.part, parts)
        row = window(stage, before, after) | {"server": name, "pulses": len(times)}
        row |= verdict(finish(client, load, count, 1), load, count)
    for key in ("p50_ms", "p99_ms", "max_ms"):
        row[key] = statistics.median(one[key] for one in times)
    # Deliveries were counted pulse by pulse; the window has none left between its marks' own.
    return row | {"cpu_us_per_delivery": row["server_cpu_s"] / (len(times) * load.streams) * 1e6}


def _pulse(client: Part, publisher: Part, load: Load, seq: int) -> Row:
    """Publish event `seq`; return its latencies once everybody has it."""
    client.tell(f"await {load.streams}")
    publish(publisher, time.monotonic_ns() + LEAD_NS, seq, 1, 1)
    try:
        times = client.hear(LIMIT_S)
    except BenchmarkError:
        times = client.ask("mark")
    publisher.hear(LIMIT_S)
    time.sleep(PAUSE_S)
    return times
