"""What an idle stream takes: memory of the process and of the kernel, CPU of its heartbeats."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import Row, await_open, launch_client, publish, publisher_of, running, streams
from benchmarks.observe import Others

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.parts import Part
    from benchmarks.scenario import Say
    from benchmarks.servers import Load, Server, Stage

IDLE_S = 16
"""Idle time before memory is read: longer than the heartbeat, which must not leave memory behind either. In it every
stream has a heartbeat, and hardly any has two."""

ALONE_S = 4
"""How long a server without streams is watched: what it does then is not its heartbeats'."""

LEFT_S = 3
"""How long the server may take to notice that all have left, before it is seen what memory it has given back."""

FIRST_S = 2
"""How long the server may take to free what it needed only for opening streams."""


def idle(stage: Stage, name: str, load: Load, say: Say) -> Row:
    """Open idle streams; return the growth of memory per stream, and what the server does for them.

    The first streams fill what the start has left free in the heap, and are not counted: without them the
    first megabyte would look free of charge.
    """
    first = replace(load, streams=max(1, load.streams // 10), path=load.path.replace("load", "first"))
    with running(stage, name, load) as server, contextlib.ExitStack() as stack:
        alone = _share(server.part, ALONE_S)
        first_client = stack.enter_context(streams(stage, server, first, None, "first-client"))
        time.sleep(FIRST_S)
        before, kernel_before, begun = server.part.rss_bytes(), kernel_bytes(), time.monotonic()
        with streams(stage, server, load) as client:
            opened_s = time.monotonic() - begun
            say(f"{load.streams} streams open after {opened_s:.1f} s, idle for {IDLE_S} s")
            row = heartbeats(stage, server, (client, first_client), load.streams + first.streams, alone)
            after, kernel_after = server.part.rss_bytes(), kernel_bytes()
        time.sleep(LEFT_S)
        left = server.part.rss_bytes()
    return row | {
        "server": name,
        "rss_before": before,
        "rss_after": after,
        "rss_left": left,
        "bytes_per_stream": (after - before) / load.streams,
        "kernel_bytes_per_stream": (kernel_after - kernel_before) / load.streams,
        "opened_s": opened_s,
    }


def _share(part: Part, seconds: float) -> float:
    """Return what share of a core a part takes."""
    cpu_s, begun = part.fine_cpu_s(), time.monotonic()
    time.sleep(seconds)
    return (part.fine_cpu_s() - cpu_s) / (time.monotonic() - begun)


def heartbeats(stage: Stage, server: Server, clients: tuple[Part, ...], count: int, alone: float) -> Row:
    """Watch idle streams for a heartbeat's time; return the share of a core per 10,000 of them, less that without them."""
    time.sleep(FIRST_S)
    others = Others(stage, (server.part, stage.redis, *clients))
    marks = [client.ask("mark") for client in clients]
    share = _share(server.part, IDLE_S)
    after = [client.ask("mark") for client in clients]
    closed = sum(one["closed"] for one in after)
    return others.shares() | {
        "cpu_per_10k": (share - alone) * 10_000 / count,
        "cpu_alone": alone,
        "heartbeats": sum(new["heartbeats"] - old["heartbeats"] for new, old in zip(after, marks, strict=True)),
        "closed": closed,
        "rss_aside": server.part.aside_bytes(),
        "is_right": closed == 0,
    }


def kernel_bytes() -> int:
    """Return what the kernel holds in its slabs and socket buffers, of the whole machine: both ends of every stream."""
    slab = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("Slab:"))
    words = next(
        line for line in Path("/proc/net/sockstat").read_text().splitlines() if line.startswith("TCP:")
    ).split()
    return int(slab.split()[1]) * 1024 + int(words[words.index("mem") + 1]) * 4096


def hold(stage: Stage, name: str, load: Load, say: Say) -> Row:
    """Hold more streams than one process has descriptors, on several loopback addresses; one event to all."""
    with running(stage, name, load) as server:
        alone = _share(server.part, ALONE_S)
        before, kernel_before = server.part.rss_bytes(), kernel_bytes()
        begun = time.monotonic()
        with _many(stage, server, load) as parts:
            opened_s = time.monotonic() - begun
            say(f"{load.streams} streams open after {opened_s:.1f} s, idle for {IDLE_S} s")
            row = heartbeats(stage, server, parts, load.streams, alone)
            rss, kernel = server.part.rss_bytes() - before, kernel_bytes() - kernel_before
            row |= _one_event(stage, server, load, parts)
    per_stream = {"bytes_per_stream": rss / load.streams, "kernel_bytes_per_stream": kernel / load.streams}
    row["is_right"] = row["is_right"] and row["received"] == load.streams
    return row | per_stream | {"server": name, "opened_s": opened_s}


@contextlib.contextmanager
def _many(stage: Stage, server: Server, load: Load) -> Iterator[tuple[Part, ...]]:
    """Open the streams in several processes, each from an address of its own."""
    with contextlib.ExitStack() as stack:
        parts, first = [], 0
        for number in range(load.processes):
            share = replace(load, streams=(load.streams - first) // (load.processes - number))
            options = ("--source", f"127.0.0.{number + 2}", "--first", first)
            part = launch_client(stage, server, share, None, f"load-client-{number}", *options)
            stack.callback(part.stop)
            parts.append((part, share))
            first += share.streams
        for part, share in parts:
            await_open(part, share, 120)
        yield tuple(part for part, _share in parts)


def _one_event(stage: Stage, server: Server, load: Load, parts: tuple[Part, ...]) -> Row:
    """Publish one event; return when it reached half, 99 % and the last of the slowest client's streams, and how many."""
    for part in parts:
        part.ask("mark")
    with publisher_of(stage, server, load) as publisher:
        publish(publisher, time.monotonic_ns() + 20_000_000, 1, 1, 1)
        publisher.hear(10)
        deadline = time.monotonic() + 20
        while True:
            states = [part.ask("finish 1") for part in parts]
            received = sum(state["complete"] for state in states)
            if received == load.streams or time.monotonic() > deadline:
                break
            time.sleep(0.1)
    return {"received": received} | {key: max(state[key] for state in states) for key in ("p50_ms", "p99_ms", "max_ms")}
