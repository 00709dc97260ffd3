"""What a scenario is, and how deliveries are measured until other work has not disturbed them."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from benchmarks.measure import delivery
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


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is measured, of which servers, and the promise.

    Attributes:
        title: One line.
        load: Streams, rate, payload.
        servers: In the order of the first round.
        measure: Measures one of them once, and shows it.
        judge: From rows to targets.
        notes: From rows to lines that explain the numbers.
        timing: Seconds, where deliveries over a steady window are measured.
        columns: Of the table.
        right: Heading of the column that says whether all went well.
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
    load, timing = scenario.load, scenario.timing
    assert timing is not None  # noqa: S101 - it is such a scenario
    row = undisturbed(stage, lambda: delivery(stage, server, load, timing, say), timing.total_s(), patience, say)
    say(
        f"{row['cpu_us_per_delivery']:.2f} us per delivery, p50 {row['p50_ms']:.1f} ms, p99 {row['p99_ms']:.1f} ms, "
        f"server {row['server_cpu_share']:.0%}, client {row['client_cpu_share']:.0%}, "
        f"{'every event once, in order' if row['is_right'] else 'EVENTS WRONG'}"
    )
    return row


def note_ratios(rows: list[Row], pairs: tuple[tuple[str, str], ...]) -> list[str]:
    """Return ratios that are not promised, by name of the servers."""
    key = "cpu_us_per_delivery"
    named = [(f"{over} / {under}, CPU per delivery", ratio(trusted(rows), key, over, under)) for over, under in pairs]
    return [f"{text}: {statistics.median(values):.2f}" for text, values in named if values]


def note_disturbance(rows: list[Row]) -> list[str]:
    """Return warnings about other work, and about a saturated load core."""
    lines = []
    for name, group in by_server(rows).items():
        disturbed = [row for row in group if row["is_disturbed"]]
        if len(disturbed) == len(group):
            lines.append(f"{name}: DISTURBED by other work in every round: not to be trusted")
        elif disturbed:
            lines.append(f"{name}: {len(disturbed)} of {len(group)} rounds were disturbed by other work and left out")
        load = max(row["load_core_busy"] for row in trusted(group))
        if load > 0.95:
            lines.append(f"{name}: the load core was up to {load:.0%} busy: this latency includes the client's")
    return lines
