"""What the end of a worker costs its clients: from the break to the next event, less their own retry."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING

from benchmarks.measure import DRAIN_S, START_DELAY_S, Row, publishing, sleep_until
from benchmarks.observe import Lines, Others, at
from benchmarks.parts import Part, python
from benchmarks.servers import start_gateway

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.scenario import Say
    from benchmarks.servers import Load, Server, Stage

KILLS = 6

INTERVAL_S = 6.0
"""Between two kills. They hit the workers by turns, and a worker that lived for 10 s is started again without a
back-off; the clients' retry is 1.5 s at most."""

BACK_S = 30.0
"""Within this the worker must be back."""

WARMUP_S = 2.0

CHANGES = {
    "workers": 2,
    "stream": {"retry": "1s"},
    "log": {"level": "info", "format": "json"},
}


def resume(stage: Stage, load: Load, say: Say) -> Row:
    """Kill workers under load, by turns."""
    with contextlib.ExitStack() as stack:
        server = start_gateway(stage, "workers", load.max_seconds, CHANGES)
        stack.callback(server.stop)
        client = stack.enter_context(_clients(stage, server, load))
        total_s = WARMUP_S + KILLS * INTERVAL_S
        count = round(load.rate * total_s)
        start_ns = time.monotonic_ns() + int(START_DELAY_S * 1e9)
        publisher = stack.enter_context(publishing(stage, server, load, start_ns, count))
        say(f"{load.streams} streams open, publishing {load.rate:g}/s for {total_s:.0f} s")
        sleep_until(start_ns, WARMUP_S)
        before = client.ask("mark")
        others = Others(stage, (server.part, client, stage.redis, publisher))
        back_s = [_kill(server, number, start_ns) for number in range(KILLS)]
        shares = others.shares()
        after = client.ask("mark")
        publisher.hear(DRAIN_S)
        seconds = (after["now_ns"] - before["now_ns"]) / 1e9
        row: Row = {
            "client_cpu_share": (after["cpu_s"] - before["cpu_s"]) / seconds,
            "back_s": max(back_s),
            "costs_ms": after["costs_ms"],
        }
        return row | shares | _costs(after["costs_ms"]) | _verdict(client, load, count)


@contextlib.contextmanager
def _clients(stage: Stage, server: Server, load: Load) -> Iterator[Part]:
    options = ("--port", server.port, "--streams", load.streams, "--payload-bytes", load.payload_bytes)
    command = python("benchmarks.resuming_client", *options, "--max-seconds", load.max_seconds)
    client = Part("resuming-client", command, core=stage.cores.load, directory=stage.directory)
    try:
        client.hear(30)
        yield client
    finally:
        client.stop()


def _kill(server: Server, number: int, start_ns: int) -> float:
    """Kill the worker that has lived longest; returns the seconds until there is another that has the log."""
    lines = Lines(server.part)
    os.kill(server.part.workers()[0], signal.SIGKILL)
    died = at(lines.wait("worker.died", 5))
    back = at(lines.wait("log.synced", BACK_S))
    sleep_until(start_ns, WARMUP_S + (number + 1) * INTERVAL_S)
    return back - died


def _costs(costs_ms: list[float]) -> Row:
    ordered = sorted(costs_ms) or [float("nan")]
    last = len(ordered) - 1
    ranks = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99, "max_ms": 1.0}
    return {"breaks": len(costs_ms)} | {key: ordered[round(last * rank)] for key, rank in ranks.items()}


def _verdict(client: Part, load: Load, count: int) -> Row:
    deadline = time.monotonic() + DRAIN_S
    while (state := client.ask(f"finish {count}"))["complete"] < load.streams and time.monotonic() < deadline:
        time.sleep(0.2)
    row = {key: state[key] for key in ("lost", "duplicate", "disorder", "malformed", "gaps", "refused", "never_came")}
    is_right = state["events"] == load.streams * count and not any(row.values()) and state["breaks"] > 0
    return row | {"unavailables": state["unavailables"], "is_right": is_right}
