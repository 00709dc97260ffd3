"""What it takes to join the log of a peer that holds much, and what the peer's clients notice of it.

The joiner runs on the load core, behind everything else there: on the peer's core it would compete with it, as no
node on another host would; and the client, whose clock it is, must not wait for it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from redis import Redis

from benchmarks.errors import BenchmarkError
from benchmarks.measure import DRAIN_S, START_DELAY_S, Row, finish, publishing, sleep_until, streams
from benchmarks.observe import Lines, Others, at, metric
from benchmarks.parts import family, parent
from benchmarks.payload import payload
from benchmarks.servers import launch_gateway, start_gateway

if TYPE_CHECKING:
    from benchmarks.parts import Part
    from benchmarks.scenario import Say
    from benchmarks.servers import Load, Server, Stage

CHANNELS = 10_000
EVENTS = 10
EVENT_BYTES = 1000
"""Of each channel: 100 MB in all."""

BATCH = 500
"""Messages that the filling publisher has under way."""

FILL_S = 60.0
"""Within this the peer must hold them."""

SUPERVISED = ("sse_gateway", "serve")
WATCHED = ("benchmarks.one_process", "--log", "replicated", "--watch")
"""The peer that is a node, in one process that tells how long its loop was held."""

WARMUP_S = 2.0
BEFORE_S = 8.0
JOIN_S = 30.0
"""Within this the node must have joined."""

PUBLISHING_S = WARMUP_S + BEFORE_S + 8.0
"""A join is over long before the end."""

CHANGES = {
    "log": {"level": "info", "format": "json"},
    "shutdown": {"drain": "60s"},  # the streams of a worker that is replaced stay while they are looked at
}


def join(stage: Stage, load: Load, server: str, say: Say) -> Row:
    """Let a second node, or a second worker, join under load."""
    with contextlib.ExitStack() as stack:
        entry = WATCHED if server == "nodes" else SUPERVISED
        peer = start_gateway(stage, "peer", load.max_seconds, CHANGES, entry=entry)
        stack.callback(peer.stop)
        fill(stage, peer)
        row: Row = {"held_mb": metric(peer, "sse_gateway_window_bytes") / 1e6}
        client = stack.enter_context(streams(stage, peer, load))
        count = round(load.rate * PUBLISHING_S)
        start_ns = time.monotonic_ns() + int(START_DELAY_S * 1e9)
        publisher = stack.enter_context(publishing(stage, peer, load, start_ns, count))
        say(f"{row['held_mb']:.0f} MB held, {load.streams} streams open, publishing {load.rate:g}/s")
        sleep_until(start_ns, WARMUP_S)
        client.ask("mark")
        others = Others(stage, (peer.part, client, stage.redis, publisher))
        sleep_until(start_ns, WARMUP_S + BEFORE_S)
        row |= others.shares()  # before the join, which moves work to and fro
        before = client.ask("mark")
        row |= {f"{key}_before": before[key] for key in ("p50_ms", "p99_ms", "max_ms")}
        row |= _join(stage, load, server, peer, client, stack)
        row["p99_ratio"] = row["p99_ms"] / before["p99_ms"]
        publisher.hear(PUBLISHING_S + DRAIN_S)
        return row | _verdict(client, count, load, is_replaced=server == "workers")


def _join(stage: Stage, load: Load, server: str, peer: Server, client: Part, stack: contextlib.ExitStack) -> Row:
    began = datetime.now(UTC).timestamp()
    if server == "workers":
        lines = Lines(peer.part)
        _second_worker(stage, peer)
        return _watch(client, lines, began)
    _held(peer)
    joiner = _second_node(stage, load, stack)
    row = _watch(client, Lines(joiner.part, 0), began) | _held(peer)
    row["joined_mb"] = metric(joiner, "sse_gateway_window_bytes") / 1e6
    return row


def _held(peer: Server) -> Row:
    """Return the longest time for which the peer's loop did not turn since the last call."""
    os.kill(family(peer.part.pid)[-1], signal.SIGUSR1)
    told = peer.part.hear(5)
    return {key: told[key] for key in ("held_ms", "held_cpu_ms")}


def fill(stage: Stage, peer: Server) -> None:
    """Publish until the peer holds what it has to.

    A share at a time: a subscriber that is far behind is cut by Redis.
    """
    data = payload(0, 0, EVENT_BYTES)
    with contextlib.closing(Redis(port=stage.redis_port)) as redis:
        for number in range(1, EVENTS + 1):
            for first in range(0, CHANNELS, BATCH):
                pipeline = redis.pipeline(transaction=False)
                for channel in range(first, first + BATCH):
                    pipeline.publish(f"bench:held-{channel}", data)
                pipeline.execute()
            _await_held(peer, number * CHANNELS)


def _await_held(peer: Server, events: int) -> None:
    deadline = time.monotonic() + FILL_S
    while (held := metric(peer, "sse_gateway_window_events")) < events:
        if time.monotonic() > deadline:
            raise BenchmarkError(f"{peer.part.name} holds {held:.0f} events of {events}")
        time.sleep(0.02)


def _second_node(stage: Stage, load: Load, stack: contextlib.ExitStack) -> Server:
    joiner = launch_gateway(stage, "joiner", load.max_seconds, CHANGES, core=stage.cores.load, is_last=True)
    stack.callback(joiner.stop)
    return joiner


def _second_worker(stage: Stage, peer: Server) -> None:
    """Have the supervisor start a worker beside the one it has, by a reload."""
    supervisor = parent(peer.part.workers()[0])
    os.sched_setaffinity(supervisor, {stage.cores.load})  # which its next worker inherits
    os.sched_setscheduler(supervisor, os.SCHED_IDLE, os.sched_param(0))
    os.kill(supervisor, signal.SIGHUP)


def _watch(client: Part, lines: Lines, began: float) -> Row:
    """Wait until the joiner has the log; returns the times, and the latencies while it was at it."""
    lines.wait("worker.started", JOIN_S)
    client.ask("mark")
    connected = at(lines.wait("source.connected", JOIN_S))
    synced = at(lines.wait("log.synced", JOIN_S))
    during = client.ask("mark")
    row: Row = {key: during[key] for key in ("p50_ms", "p99_ms", "max_ms")}
    return row | {"join_s": synced - connected, "ready_s": synced - began, "during_events": during["latency_count"]}


def _verdict(client: Part, count: int, load: Load, *, is_replaced: bool) -> Row:
    """Return what went wrong; the streams of a worker that was replaced may end before the last event."""
    state = finish(client, replace(load, streams=0) if is_replaced else load, count)
    faults = ["lost", "duplicate", "disorder", "malformed", "gaps"] + ([] if is_replaced else ["closed", "never_came"])
    row = {key: state[key] for key in faults}
    return row | {"is_right": not any(row.values())}
