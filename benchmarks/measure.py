"""One measurement of one server: start the parts, wait for the steady window, count, stop."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from benchmarks.cores import Ticks, busy, read_ticks
from benchmarks.parts import Part, python
from benchmarks.servers import START, Load, Server, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

START_DELAY_S = 0.5
"""From the order to publish to the first event: a Python process starts in less."""

DRAIN_S = 20
"""How long the client may still receive after the last event was published; what comes later is lost."""

FIRST_S = 2
"""How long the server may take to free what it needed only for opening the first streams."""

Row = dict[str, Any]
"""What was measured, by name; goes into the JSON report as it is."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds before the window, of the window, and after its end until publishing stops."""

    warmup_s: float
    window_s: float
    cooldown_s: float = 0.5

    def total_s(self) -> float:
        """Return how long publishing lasts."""
        return self.warmup_s + self.window_s + self.cooldown_s


@dataclass(frozen=True, slots=True)
class Sample:
    """Counters at one moment."""

    client: Row
    server_cpu_s: float
    load_cpu_s: float
    cores: Ticks


def delivery(stage: Stage, name: str, load: Load, timing: Timing, say: Callable[[str], None]) -> Row:
    """Publish at a fixed rate to open streams; return CPU per delivery, latency and what was not delivered."""
    with running(stage, name, load) as server, streams(stage, server, load) as client:
        say(f"{load.streams} streams open, publishing {load.rate:g}/s for {timing.total_s():.0f} s")
        count = round(load.rate * timing.total_s())
        start_ns = time.monotonic_ns() + int(START_DELAY_S * 1e9)
        with publishing(stage, server, load, start_ns, count) as publisher:
            sleep_until(start_ns, timing.warmup_s)
            load_parts = [client, stage.redis, *server.others, *([] if server.is_floor else [publisher])]
            before = _sample(stage, server.part, load_parts)
            sleep_until(start_ns, timing.warmup_s + timing.window_s)
            after = _sample(stage, server.part, load_parts)
            published = publisher.hear(timing.cooldown_s + DRAIN_S)
        row: Row = {"server": name, "rss_bytes": server.part.rss_bytes(), "published": published}
        return row | _window(stage, before, after) | verdict(finish(client, load, count), load, count)


def memory(stage: Stage, name: str, load: Load, settle_s: float, path: str, say: Callable[[str], None]) -> Row:
    """Open idle streams; return the growth of resident memory per stream.

    The first streams fill what the start has left free in the heap, and are not counted: without them the
    first megabyte would look free of charge.
    """
    kind, _, _variant = name.partition(" ")
    first = replace(load, streams=max(1, load.streams // 10))
    with (
        running(stage, kind, load) as server,
        streams(stage, server, first, path=path.replace("load", "first"), name="first-client"),
    ):
        time.sleep(FIRST_S)
        before = server.part.rss_bytes()
        begun = time.monotonic()
        with streams(stage, server, load, path=path) as client:
            opened_s = time.monotonic() - begun
            say(f"{load.streams} streams open after {opened_s:.1f} s, idle for {settle_s:.0f} s")
            time.sleep(settle_s)
            after, aside = server.part.rss_bytes(), server.part.aside_bytes()
            state = client.ask("mark")
    return {
        "server": name,
        "rss_before": before,
        "rss_after": after,
        "rss_aside": aside,
        "bytes_per_stream": (after - before) / load.streams,
        "opened_s": opened_s,
        "closed": state["closed"],
        "is_right": state["closed"] == 0,
    }


@contextlib.contextmanager
def running(stage: Stage, name: str, load: Load) -> Iterator[Server]:
    """Run a server, by its name in reports."""
    server = START[name](stage, load)
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def streams(
    stage: Stage, server: Server, load: Load, path: str = "/events/load", name: str = "load-client"
) -> Iterator[Part]:
    """Run the load client; yields it when all streams are open."""
    command = [str(stage.directory / "load_client"), "--port", str(server.port), "--path", path]
    command += ["--streams", str(load.streams), "--payload-bytes", str(load.payload_bytes)]
    command += ["--max-seconds", str(load.max_seconds)]
    client = Part(name, command, core=stage.cores.load, directory=stage.directory)
    try:
        state = client.hear(60)
        if state["open"] != load.streams or state["closed"]:
            raise client.failure(f"opened {state['open'] - state['closed']} of {load.streams} streams")
        yield client
    finally:
        client.stop()


@contextlib.contextmanager
def publishing(stage: Stage, server: Server, load: Load, start_ns: int, count: int) -> Iterator[Part]:
    """Publish; yields who will say so when it is done."""
    if server.is_floor:
        server.part.tell(f"start {start_ns} {count}")
        yield server.part
        return
    options = ("--redis-port", stage.redis_port, "--channel", "bench:load", "--rate", load.rate, "--count", count)
    command = python("benchmarks.publisher", *options, "--start", start_ns, "--payload-bytes", load.payload_bytes)
    publisher = Part("publisher", command, core=stage.cores.load, directory=stage.directory)
    try:
        yield publisher
    finally:
        publisher.stop()


def sleep_until(start_ns: int, after_s: float) -> None:
    """Sleep until so long after a moment of the monotonic clock."""
    time.sleep(max(0.0, (start_ns - time.monotonic_ns()) / 1e9 + after_s))


def _sample(stage: Stage, server: Part, load_parts: list[Part]) -> Sample:
    """Read all counters; the load client is the first of the parts on the load core."""
    mark = load_parts[0].ask("mark")
    return Sample(mark, server.cpu_s(), sum(part.cpu_s() for part in load_parts), read_ticks(stage.cores))


def _window(stage: Stage, before: Sample, after: Sample) -> Row:
    """Return the differences over the steady window."""
    seconds = (after.client["now_ns"] - before.client["now_ns"]) / 1e9
    deliveries = after.client["events"] - before.client["events"]
    reads = after.client["reads"] - before.client["reads"]
    cpu_s = after.server_cpu_s - before.server_cpu_s
    server_busy, load_busy = (busy(before.cores, after.cores, core) for core in (stage.cores.server, stage.cores.load))
    load_share = (after.load_cpu_s - before.load_cpu_s) / seconds
    return {
        "window_s": seconds,
        "deliveries": deliveries,
        "deliveries_per_s": deliveries / seconds,
        "server_cpu_s": cpu_s,
        "cpu_us_per_delivery": cpu_s / deliveries * 1e6 if deliveries else float("nan"),
        "server_cpu_share": cpu_s / seconds,
        "client_cpu_share": (after.client["cpu_s"] - before.client["cpu_s"]) / seconds,
        "server_core_busy": server_busy,
        "load_core_busy": load_busy,
        "others_share": max(server_busy - cpu_s / seconds, load_busy - load_share),
        "events_per_read": deliveries / reads if reads else 0.0,
        "megabytes_per_s": (after.client["bytes"] - before.client["bytes"]) / seconds / 1e6,
        **{key: after.client[key] for key in ("p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms")},
    }


def finish(client: Part, load: Load, count: int) -> Row:
    """Wait until every stream has the last event, or for `DRAIN_S`."""
    deadline = time.monotonic() + DRAIN_S
    while True:
        state = client.ask(f"finish {count}")
        if state["complete"] >= load.streams or time.monotonic() > deadline:
            return state
        time.sleep(0.2)


def verdict(state: Row, load: Load, count: int) -> Row:
    """Return what went wrong with any event of the whole run, not only of the window."""
    faults = ("lost", "duplicate", "disorder", "malformed", "gaps", "closed", "never_came", "other_reserved")
    row = {key: state[key] for key in faults}
    row["is_right"] = state["events"] == load.streams * count and not any(row.values())
    return row
