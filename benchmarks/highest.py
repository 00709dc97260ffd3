"""The highest rate that a server carries: so many events a second to all, with p99 below a bound."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from benchmarks.measure import Row, publish, publisher_of, running, sample, sleep_until, streams, window

if TYPE_CHECKING:
    from benchmarks.parts import Part
    from benchmarks.scenario import Say
    from benchmarks.servers import Load, Server, Stage

P99_MS = 50.0
"""A rate is carried if 99 % of its deliveries come within this."""

FACTOR = 1.25
"""Between one rate and the next."""

FAR = 10
"""A p99 so many times the bound says that the rate is far too high: the next is half of it."""

STEPS = 9
"""Rates tried, at most."""

WARMUP_S, WINDOW_S = 0.6, 2.0

LEAD_S = 0.1

BACKLOG_S = 20.0
"""How long a rate that is too high may leave events waiting; beyond it the search ends."""

LEAST = 3.0
"""Events per second below which nothing is tried: the window must have some."""

FAULTS = ("lost", "duplicate", "disorder", "malformed", "gaps", "closed")


class Ladder:
    """Tries one rate after the other on the same streams.

    Call order: `step`, any number of times. Events are numbered on through all steps.
    """

    def __init__(self, stage: Stage, server: Server, load: Load, client: Part, publisher: Part) -> None:
        self._stage = stage
        self._server = server
        self._load = load
        self._client = client
        self._publisher = publisher
        self._next = 1
        self._faults = 0
        self.is_drained = True

    def step(self, rate: float) -> Row:
        """Publish at a rate; return what was seen, and whether it was carried."""
        count = round(rate * (WARMUP_S + WINDOW_S))
        start_ns = time.monotonic_ns() + int(LEAD_S * 1e9)
        publish(self._publisher, start_ns, self._next, count, rate)
        self._next += count
        parts = [self._client, self._stage.redis, *([] if self._server.is_floor else [self._publisher])]
        sleep_until(start_ns, WARMUP_S)
        before = sample(self._stage, self._server.part, parts)
        sleep_until(start_ns, WARMUP_S + WINDOW_S)
        row = window(self._stage, before, sample(self._stage, self._server.part, parts))
        self._publisher.hear(90)
        state = self._drain()
        faults = sum(state[key] for key in FAULTS)
        # What is late in the window's end shows only after it: the deliveries must have kept up, too.
        kept_up = row["deliveries"] >= 0.97 * rate * WINDOW_S * self._load.streams
        row |= {"rate": rate, "faults": faults - self._faults}
        row["is_carried"] = row["p99_ms"] <= P99_MS and kept_up and not row["faults"] and self.is_drained
        self._faults = faults
        return row

    def _drain(self) -> Row:
        """Wait until every stream has the last event."""
        deadline = time.monotonic() + BACKLOG_S
        while True:
            state = self._client.ask(f"finish {self._next - 1}", 60)
            self.is_drained = state["complete"] == self._load.streams
            if self.is_drained or time.monotonic() > deadline:
                return state
            time.sleep(0.1)


def highest(stage: Stage, name: str, load: Load, say: Say) -> Row:
    """Climb from `load.rate` until a rate is not carried, or down until one is; return the highest that was.

    If none was, it is the lowest that was tried, with `is_carried` false.
    """
    with (
        running(stage, name, load) as server,
        streams(stage, server, load) as client,
        publisher_of(stage, server, load) as publisher,
    ):
        ladder = Ladder(stage, server, load, client, publisher)
        rate, carried, refused = load.rate, Row(), Row()
        for _ in range(STEPS):
            row = ladder.step(rate)
            say(f"{rate:,.0f}/s: p99 {row['p99_ms']:.1f} ms, {'carried' if row['is_carried'] else 'too much'}")
            if row["is_carried"]:
                carried, rate = row, rate * FACTOR
            else:
                refused, rate = row, rate / (2 if row["p99_ms"] > FAR * P99_MS else FACTOR)
            is_found = carried and refused and not carried["rate"] < rate < 0.99 * refused["rate"]
            if is_found or rate < LEAST or not ladder.is_drained:
                break
    return (carried or refused) | {"server": name, "is_right": True}
