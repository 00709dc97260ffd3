"""What a scenario is, and how deliveries are measured until other work has not disturbed them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from benchmarks.highest import highest
from benchmarks.measure import delivery
from benchmarks.pulse import pulses
from benchmarks.report import DELIVERY_COLUMNS, by_server, ratio, trusted

if TYPE_CHECKING:
    from benchmarks.cores import Patience
    from benchmarks.measure import Row, Timing
    from benchmarks.report import Column, Target
    from benchmarks.servers import Load, Stage

Say: TypeAlias = Callable[[str], None]
"""Shows progress."""

OTHERS_SHARE = 0.1
"""Other work on either core beyond this share spoils a measurement: it delays the server, which then does
more at once, which makes its deliveries look cheaper."""

ASIDE_ROUNDS = 1
"""Rounds of a server to which no target compares."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is measured, of which servers, and the promise.

    Attributes:
        title: One line.
        load: Streams, rate, payload.
        servers: In the order of the first round; a name may have a variant in parentheses.
        measure: Measures one of them once, and shows it.
        judge: From rows to targets.
        notes: From rows to lines that explain the numbers.
        timing: Seconds, where deliveries over a steady window are measured.
        columns: Of the table.
        right: Heading of the column that says whether all went well.
        loads: Of servers or variants whose load is another.
        asides: Servers of the first rounds only: they are shown, and no target compares to them.
        rounds: At most so many.
    """

    title: str
    load: Load
    servers: tuple[str, ...]
    measure: Callable[[Stage, Scenario, str, Patience, Say], Row]
    judge: Callable[[list[Row]], list[Target]]
    notes: Callable[[list[Row]], list[str]]
    timing: Timing | None = None
    columns: tuple[Column, ...] = DELIVERY_COLUMNS
    right: str = "every event"
    loads: Mapping[str, Load] = field(default_factory=dict)
    asides: frozenset[str] = frozenset()
    rounds: int = 100

    def load_of(self, server: str) -> Load:
        """Return what is asked of a server."""
        return self.loads.get(server, self.load)

    def servers_of(self, number: int) -> tuple[str, ...]:
        """Return the servers of a round (from 0), the order turned by one each time."""
        if number >= self.rounds:
            return ()
        chosen = tuple(name for name in self.servers if number < ASIDE_ROUNDS or name not in self.asides)
        turn = number % max(1, len(chosen))
        return chosen[turn:] + chosen[:turn]


def kind(server: str) -> str:
    """Return the server without its variant."""
    return server.partition(" (")[0]


def undisturbed(stage: Stage, measure: Callable[[], Row], seconds: float, patience: Patience, say: Say) -> Row:
    """Measure on a machine that does nothing else, as far as it can be had.

    What was not delivered right is never measured again: no disturbance excuses it.

    Args:
        stage: The cores.
        measure: Measures once; its row tells `others_share` and `is_right`.
        seconds: How long that takes.
        patience: For waiting, and for measuring again.
        say: Told why it takes so long.
    """
    while True:
        patience.await_quiet(stage.cores, say)
        row = measure()
        row["is_disturbed"] = row["others_share"] > OTHERS_SHARE
        if not row["is_disturbed"] or not row["is_right"] or patience.is_over:
            return row
        say(f"other work took {row['others_share']:.0%} of a core: once more")
        patience.spend(seconds)


def measure_delivery(stage: Stage, scenario: Scenario, server: str, patience: Patience, say: Say) -> Row:
    """Measure CPU per delivery and latency."""
    load, timing = scenario.load_of(server), scenario.timing
    assert timing is not None  # noqa: S101 - it is such a scenario
    measure = lambda: delivery(stage, kind(server), load, timing, say)  # noqa: E731 - measured until undisturbed
    row = undisturbed(stage, measure, timing.total_s(), patience, say)
    say(
        f"{row['cpu_us_per_delivery']:.2f} us per delivery, p50 {row['p50_ms']:.1f} ms, p99 {row['p99_ms']:.1f} ms, "
        f"server {row['server_cpu_share']:.0%}, client {row['client_cpu_share']:.0%}, "
        f"{'every event once, in order' if row['is_right'] else 'EVENTS WRONG'}"
    )
    return row


def measure_pulses(stage: Stage, scenario: Scenario, server: str, patience: Patience, say: Say) -> Row:
    """Measure how long single events take to reach everybody."""
    load = scenario.load_of(server)
    row = undisturbed(stage, lambda: pulses(stage, kind(server), load, say), 8, patience, say)
    say(
        f"p50 {row['p50_ms']:.1f} ms, p99 {row['p99_ms']:.1f} ms, last {row['max_ms']:.1f} ms, "
        f"{row['cpu_us_per_delivery']:.2f} us per delivery, {row['pulses']} events"
    )
    return row


def measure_highest(stage: Stage, scenario: Scenario, server: str, patience: Patience, say: Say) -> Row:
    """Search the highest rate that a server carries."""
    load = scenario.load_of(server)
    row = undisturbed(stage, lambda: highest(stage, kind(server), load, say), 20, patience, say)
    what = "carries" if row["is_carried"] else "does not carry even"
    say(f"{what} {row['rate']:,.0f} events/s: p99 {row['p99_ms']:.1f} ms")
    return row


def note_ratios(rows: list[Row], pairs: tuple[tuple[str, str], ...], key: str = "cpu_us_per_delivery") -> list[str]:
    """Return ratios that are not promised, by name of the servers."""
    what = {
        "cpu_us_per_delivery": "CPU per delivery",
        "p99_ms": "p99",
        "rate": "rate",
        "server_cpu_s": "server CPU",
    }.get(key, key)
    named = [(f"{over} / {under}, {what}", ratio(trusted(rows), key, over, under)) for over, under in pairs]
    return [f"{text}: {statistics.median(values):.2f}" for text, values in named if values]


def note_disturbance(rows: list[Row]) -> list[str]:
    """Return warnings about other work, and about a saturated load core."""
    always, some, full = [], [], []
    for name, group in by_server(rows).items():
        disturbed = [row for row in group if row["is_disturbed"]]
        if len(disturbed) == len(group):
            always.append(name)
        elif disturbed:
            some.append(f"{name} {len(disturbed)} of {len(group)}")
        if max(row["load_core_busy"] for row in trusted(group)) > 0.95:
            full.append(name)
    texts = (
        ("DISTURBED by other work in every round, not to be trusted", always),
        ("rounds that were disturbed by other work and left out", some),
        ("the load core was more than 95 % busy, so the latency includes the client's", full),
    )
    return [f"{text}: {', '.join(names)}" for text, names in texts if names]
