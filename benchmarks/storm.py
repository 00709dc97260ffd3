"""All clients come back at once, each with a cursor and events to replay; or without, for comparison."""

from __future__ import annotations

import http.client
import time
from contextlib import closing
from typing import TYPE_CHECKING

from benchmarks.errors import BenchmarkError
from benchmarks.measure import Row, await_open, finish, launch_client, publish, publisher_of, running, verdict
from benchmarks.observe import Others, buckets

if TYPE_CHECKING:
    from benchmarks.parts import Part
    from benchmarks.scenario import Say
    from benchmarks.servers import Load, Server, Stage

MISSED = 100
"""Events that a client has missed."""

LIVE = 14
"""Events published from the beginning of the storm on."""

LIVE_RATE = 2.0
"""A tenth of a core, once all are there: the storm is what is measured."""

ALL = MISSED + LIVE + 1

LAG = "sse_gateway_loop_lag_seconds_bucket"


def storm(stage: Stage, name: str, load: Load, *, with_replay: bool, say: Say) -> Row:
    """Connect all clients at once while events go on; return when all are current, and how late the loop was."""
    with running(stage, name, load) as server, publisher_of(stage, server, load) as publisher:
        cursor = _cursor(server, load.path)
        publish(publisher, time.monotonic_ns(), 1, MISSED, 1000)
        publisher.hear(10)
        others, lag, cpu_s = (
            Others(stage, (server.part, stage.redis, publisher)),
            buckets(server, LAG),
            server.part.cpu_s(),
        )
        stage.profiler.begin(server.part, 3)
        options = ("--current", MISSED, "--last-event-id", cursor) if with_replay else ("--current", 0, "--join")
        client = launch_client(stage, server, load, None, "load-client", "--inflight", load.streams, *options)
        try:
            publish(publisher, time.monotonic_ns(), MISSED + 1, LIVE, LIVE_RATE)
            row = _times(client, load)
            row |= {"server_cpu_s": server.part.cpu_s() - cpu_s, "lag_p99_ms": quantile_ms(lag, buckets(server, LAG))}
            publisher.hear(LIVE / LIVE_RATE + 10)
            publish(publisher, time.monotonic_ns(), ALL, 1, 1)  # so that whoever came last has one to show, too
            publisher.hear(10)
            state = finish(client, load, ALL)
            shares = others.shares() | {"others_share": others.shares()["others_share"] - _share(state, row)}
        finally:
            client.stop()
    if not with_replay:  # what came before a client did is not owed to it
        state["events"] = load.streams * ALL if state["complete"] == load.streams else 0
    say(f"all current after {row['last_s']:.2f} s, loop lag p99 below {row['lag_p99_ms']:g} ms")
    return row | shares | verdict(state, load, ALL) | {"server": name}


def _times(client: Part, load: Load) -> Row:
    await_open(client, load, 60)
    current = client.hear(60)
    return {key: current[key] for key in ("p50_s", "p99_s", "last_s", "again")}


def _share(state: Row, row: Row) -> float:
    """Return the client's share of a core; it is started after the others are watched."""
    return float(state["cpu_s"] / (row["last_s"] + LIVE / LIVE_RATE))


def _cursor(server: Server, path: str) -> str:
    """Return the cursor of the log's head, as a client is given it.

    Raises:
        BenchmarkError: There was none.
    """
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    with closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        while line := response.readline():
            if line.startswith(b"id: "):
                return line[4:].decode().strip()
    raise BenchmarkError("the gateway gave no cursor")


def quantile_ms(before: dict[float, float], after: dict[float, float], share: float = 0.99) -> float:
    """Return the upper bound of the bucket in which a quantile lies."""
    counts = {bound: after[bound] - before.get(bound, 0) for bound in sorted(after)}
    total = max(counts.values())
    return next((bound * 1000 for bound, count in counts.items() if count >= share * total), float("inf"))
