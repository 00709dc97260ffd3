"""One measurement of one server: start the parts, wait for the steady window, count, stop."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.cores import Ticks, busy, read_ticks
from benchmarks.observe import metric
from benchmarks.parts import Part, python
from benchmarks.servers import START, Load, Server, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

START_DELAY_S = 0.5
"""From the order to publish to the first event: a Python process starts in less."""

OPEN_S = 200
"""How long a server may take to open all streams; FastAPI needs half a minute for 10,000 on a quiet machine."""

DRAIN_S = 20
"""How long the client may still receive after the last event was published; what comes later is lost."""

PUBLISHING_S = 90
"""How long a publisher may lag behind: a peer that is posted to answers each event when it has sent it."""

BEHIND_S = 1
"""The same for a peer: what is behind after it stays so for minutes, and is shown as never come."""

ACTIONS = ("dropped_events", "streams_closed")
"""What a gateway's policies do to the stalled; its metrics."""

OURS = ("floor", "gateway")
"""How the names of servers begin that must deliver everything."""

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


def delivery(
    stage: Stage,
    name: str,
    load: Load,
    timing: Timing,
    say: Callable[[str], None],
    beside: Callable[[Stage, Server], contextlib.AbstractContextManager[Part]] | None = None,
) -> Row:
    """Publish at a fixed rate to open streams; return CPU per delivery, latency and what was not delivered.

    Args:
        stage: The cores.
        name: Of the server.
        load: What is asked of it.
        timing: For how long.
        say: Told how it goes.
        beside: Whoever else is there, on the load core, once the streams are open.
    """
    with contextlib.ExitStack() as parts:
        server = parts.enter_context(running(stage, name, load))
        client = parts.enter_context(streams(stage, server, load))
        others = [] if beside is None else [parts.enter_context(beside(stage, server))]
        say(f"{load.streams} streams open, publishing {load.rate:g}/s for {timing.total_s():.0f} s")
        count = load.whole(timing.total_s())
        start_ns = time.monotonic_ns() + int(START_DELAY_S * 1e9)
        with publishing(stage, server, load, start_ns, count) as publisher:
            sleep_until(start_ns, timing.warmup_s)
            load_parts = [client, stage.redis, *server.others, *others, *([] if server.is_floor else [publisher])]
            before = sample(stage, server.part, load_parts)
            stage.profiler.begin(server.part, timing.window_s)
            sleep_until(start_ns, timing.warmup_s + timing.window_s)
            after = sample(stage, server.part, load_parts)
            published = publisher.hear(timing.cooldown_s + PUBLISHING_S)
        drain_s = DRAIN_S if name.startswith(OURS) else BEHIND_S
        row: Row = {"server": name, "rss_bytes": server.part.rss_bytes(), "published": published}
        if load.stalled:
            row["overflowed"] = sum(metric(server, f"sse_gateway_{what}_total") for what in ACTIONS)
        return row | window(stage, before, after) | verdict(finish(client, load, count, drain_s), load, count)


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
    stage: Stage, server: Server, load: Load, path: str | None = None, name: str = "load-client", *options: object
) -> Iterator[Part]:
    """Run the load client; yields it when all streams are open."""
    client = launch_client(stage, server, load, path, name, *options)
    try:
        await_open(client, load, OPEN_S)
        yield client
    finally:
        client.stop()


def launch_client(
    stage: Stage, server: Server, load: Load, path: str | None = None, name: str = "load-client", *options: object
) -> Part:
    """Start the load client, and do not wait until its streams are open."""
    command = [str(stage.directory / "load_client"), "--port", str(server.port), "--path", path or load.path]
    command += ["--streams", str(load.streams + load.stalled), "--stalled", str(load.stalled)]
    command += ["--header", load.header] if load.header else []
    command += ["--payload-bytes", str(load.payload_bytes), "--max-seconds", str(load.max_seconds)]
    return Part(name, [*command, *map(str, options)], core=stage.cores.load, directory=stage.directory)


def await_open(client: Part, load: Load, timeout_s: float) -> None:
    """Wait until all streams are open.

    Raises:
        BenchmarkError: Not all are.
    """
    state = client.hear(timeout_s)
    if state["open"] != load.streams + load.stalled or state["closed"]:
        why = ", ".join(f"{key} {state[key]}" for key in ("closed", "refused", "unavailable", "closes") if state[key])
        raise client.failure(
            f"opened {state['open'] - state['closed']} of {load.streams + load.stalled} streams ({why})"
        )


@contextlib.contextmanager
def publishing(stage: Stage, server: Server, load: Load, start_ns: int, count: int) -> Iterator[Part]:
    """Publish; yields who will say so when it is done."""
    with publisher_of(stage, server, load) as publisher:
        publish(publisher, start_ns, 1, count, load.rate)
        yield publisher


def publish(publisher: Part, start_ns: int, first: int, count: int, rate: float) -> None:
    """Have events published from a moment on; the publisher says so when it is done."""
    publisher.tell(f"start {start_ns} {first} {count} {rate:.6f}")


@contextlib.contextmanager
def publisher_of(stage: Stage, server: Server, load: Load) -> Iterator[Part]:
    """Run who publishes to a server; it obeys `publish`."""
    if server.is_floor:
        yield server.part
        return
    options = ["--port", server.port, "--http"] if server.is_posted_to else ["--port", stage.redis_port]
    options += ["--spread", load.spread, "--per-stream", load.per_stream, "--payload-bytes", load.payload_bytes]
    command = python("benchmarks.publisher", *options)
    publisher = Part("publisher", command, core=stage.cores.load, directory=stage.directory)
    try:
        publisher.hear(20)
        yield publisher
    finally:
        publisher.stop()


def sleep_until(start_ns: int, after_s: float) -> None:
    """Sleep until so long after a moment of the monotonic clock."""
    time.sleep(max(0.0, (start_ns - time.monotonic_ns()) / 1e9 + after_s))


def sample(stage: Stage, server: Part, load_parts: list[Part]) -> Sample:
    """Read all counters; the load client is the first of the parts on the load core."""
    mark = load_parts[0].ask("mark")
    return Sample(mark, server.fine_cpu_s(), sum(part.cpu_s() for part in load_parts), read_ticks(stage.cores))


def window(stage: Stage, before: Sample, after: Sample) -> Row:
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


def finish(client: Part, load: Load, count: int, drain_s: float = DRAIN_S) -> Row:
    """Wait until every stream has the last event, but not longer."""
    deadline = time.monotonic() + drain_s
    while True:
        state = client.ask(f"finish {load.each(count)}")
        if state["complete"] >= load.streams or time.monotonic() > deadline:
            return state
        time.sleep(0.2)


def verdict(state: Row, load: Load, count: int) -> Row:
    """Return what went wrong with any event of the whole run, not only of the window."""
    faults = ("lost", "duplicate", "disorder", "malformed", "gaps", "closed", "never_came", "other_reserved")
    row = {key: state[key] for key in faults}
    stalled_get_some = state["events"] >= load.streams * load.each(count) and load.stalled > 0
    is_complete = state["events"] == load.streams * load.each(count) or stalled_get_some
    row["is_right"] = is_complete and not any(row.values())
    return row
