"""Runs the benchmarks: ``python -m benchmarks.run [cpu] [throughput] [memory]``.

Servers alternate within a round and the order turns from round to round: a machine that is shared, or slows
down as it warms up, harms all alike. Exit code 0 if every target that was measured is met, 1 if not, 70 if a
measurement could not be made.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cores import Patience, choose_cores
from benchmarks.errors import BenchmarkError
from benchmarks.measure import Row, Timing, delivery, memory
from benchmarks.parts import compile_c
from benchmarks.report import (
    DELIVERY_COLUMNS,
    MEMORY_COLUMNS,
    Section,
    Target,
    by_server,
    everything_arrived,
    facts,
    ratio,
    target,
    trusted,
    write,
)
from benchmarks.selftest import check_load_client
from benchmarks.servers import START, Load, Stage, start_redis

if TYPE_CHECKING:
    from collections.abc import Callable

RESULTS = Path(__file__).with_name("results")

IDLE_S = 18
"""Idle time before memory is read: longer than the heartbeat, which must not leave memory behind either."""

OTHERS_SHARE = 0.1
"""Other work on either core beyond this share spoils a measurement: it delays the server, which then does
more at once, which makes its deliveries look cheaper."""

PATIENCE_S = 300
"""How long a run waits for a quiet machine, all its measurements together. Spoiled measurements are made again
while it lasts; after it they are taken as they are, and pointed out."""

MEMORY_PATHS = {"gateway": "/events/load", "gateway (a channel each)": "/events/load-{}", "aiohttp": "/events/load"}


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is measured, of which servers, and the promise.

    Attributes:
        title: One line.
        load: Streams, rate, payload.
        timing: Seconds; None measures memory instead of deliveries.
        servers: In the order of the first round.
        judge: From rows to targets.
        notes: From rows to lines that explain the numbers.
    """

    title: str
    load: Load
    timing: Timing | None
    servers: tuple[str, ...]
    judge: Callable[[list[Row]], list[Target]]
    notes: Callable[[list[Row]], list[str]]


def judge_cpu(rows: list[Row]) -> list[Target]:
    """Judge the price of a delivery."""
    key = "cpu_us_per_delivery"
    return [
        target(
            "gateway / C floor, CPU per delivery, at most 1.5",
            ratio(trusted(rows), key, "gateway", "floor-c"),
            at_most=1.5,
        ),
        target(
            "aiohttp / gateway, CPU per delivery, at least 1.35",
            ratio(trusted(rows), key, "aiohttp", "gateway"),
            at_least=1.35,
        ),
        everything_arrived(rows, "gateway"),
    ]


def judge_throughput(rows: list[Row]) -> list[Target]:
    """Judge latency and completeness under full load."""
    latencies = [row["p99_ms"] for row in trusted(rows) if row["server"] == "gateway"]
    return [target("gateway, p99 in ms, below 100", latencies, at_most=99.999), everything_arrived(rows, "gateway")]


def judge_memory(rows: list[Row]) -> list[Target]:
    """Judge resident memory, in the cheap case and in the dear one."""
    return [
        target(
            f"{name}, resident bytes per idle stream, at most 4096",
            [row["bytes_per_stream"] for row in rows if row["server"] == name],
            at_most=4096,
        )
        for name in MEMORY_PATHS
        if name != "aiohttp"
    ]


def note_ratios(rows: list[Row]) -> list[str]:
    """Return the ratios that are not promised, and warnings about a saturated load core."""
    key = "cpu_us_per_delivery"
    pairs = (("gateway", "floor-python"), ("floor-python", "floor-c"), ("aiohttp", "floor-c"))
    named = [(f"{over} / {under}, CPU per delivery", ratio(trusted(rows), key, over, under)) for over, under in pairs]
    lines = [f"{text}: {statistics.median(values):.2f}" for text, values in named if values]
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


def note_memory(rows: list[Row]) -> list[str]:
    """Return the ratio to the baseline."""
    values = ratio(rows, "bytes_per_stream", "aiohttp", "gateway")
    return [f"aiohttp / gateway, memory per stream: {statistics.median(values):.1f}"] if values else []


SCENARIOS = {
    "cpu": Scenario(
        "server CPU per delivery, 1,000 streams, 100 events/s of 100 bytes",
        Load(streams=1000, rate=100, payload_bytes=100, max_seconds=120),
        Timing(warmup_s=2, window_s=10),
        ("floor-c", "gateway", "aiohttp", "floor-python"),
        judge_cpu,
        note_ratios,
    ),
    "throughput": Scenario(
        "8,000 events/s of 100 bytes to 1,000 streams, server on one core",
        Load(streams=1000, rate=8000, payload_bytes=100, max_seconds=120),
        Timing(warmup_s=3, window_s=10),
        ("floor-c", "gateway"),
        judge_throughput,
        note_ratios,
    ),
    "memory": Scenario(
        "resident memory per idle stream, 10,000 streams",
        Load(streams=10_000, rate=1, payload_bytes=100, max_seconds=180),
        None,
        tuple(MEMORY_PATHS),
        judge_memory,
        note_memory,
    ),
}


def say(text: str) -> None:
    """Show progress."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def measure(stage: Stage, scenario: Scenario, server: str, patience: Patience, label: str) -> Row:
    """Measure one server once, and show it."""

    def progress(text: str) -> None:
        say(f"{label}: {text}")

    if scenario.timing is None:
        row = memory(stage, server, scenario.load, IDLE_S, MEMORY_PATHS[server], progress)
        progress(f"{row['bytes_per_stream']:,.0f} bytes per stream")
        return row
    row = undisturbed(stage, server, scenario.load, scenario.timing, patience, progress)
    progress(
        f"{row['cpu_us_per_delivery']:.2f} us per delivery, p50 {row['p50_ms']:.1f} ms, p99 {row['p99_ms']:.1f} ms, "
        f"server {row['server_cpu_share']:.0%}, client {row['client_cpu_share']:.0%}, "
        f"{'every event once, in order' if row['is_right'] else 'EVENTS WRONG'}"
    )
    return row


def undisturbed(
    stage: Stage, server: str, load: Load, timing: Timing, patience: Patience, progress: Callable[[str], None]
) -> Row:
    """Measure a delivery on a machine that does nothing else, as far as it can be had.

    What was not delivered right is never measured again: no disturbance excuses it.
    """
    while True:
        patience.await_quiet(stage.cores, progress)
        row = delivery(stage, server, load, timing, progress)
        row["is_disturbed"] = row["others_share"] > OTHERS_SHARE
        if not row["is_disturbed"] or not row["is_right"] or patience.is_over:
            return row
        progress(f"other work took {row['others_share']:.0%} of a core: once more")
        patience.spend(timing.total_s())


def run_scenario(stage: Stage, name: str, scenario: Scenario, rounds: int, patience: Patience, rows: list[Row]) -> None:
    """Measure every server in every round, the order turned by one each time; append to `rows`."""
    for number in range(rounds):
        turn = number % max(1, len(scenario.servers))
        for server in scenario.servers[turn:] + scenario.servers[:turn]:
            row = measure(stage, scenario, server, patience, f"{name} {number + 1}/{rounds} {server}")
            rows.append(row | {"round": number + 1})


def section_of(name: str, scenario: Scenario, rows: list[Row]) -> Section:
    """Judge what was measured of a scenario."""
    rows.sort(key=lambda row: (scenario.servers.index(row["server"]), row["round"]))
    columns = DELIVERY_COLUMNS if scenario.timing else MEMORY_COLUMNS
    return Section(name, scenario.title, rows, columns, scenario.judge(rows), scenario.notes(rows))


def choose(args: argparse.Namespace) -> dict[str, Scenario]:
    """Return the scenarios that were asked for, changed as asked."""
    chosen = {}
    for name in args.scenarios or list(SCENARIOS):
        scenario = SCENARIOS[name]
        servers = tuple(s for s in scenario.servers if args.servers is None or s.split()[0] in args.servers)
        load, timing = scenario.load, scenario.timing
        if args.streams or args.rate:
            load = replace(load, streams=args.streams or load.streams, rate=args.rate or load.rate)
        if args.window and timing:
            timing = replace(timing, window_s=args.window)
        title = (
            scenario.title if load == scenario.load else f"{load.streams:,} streams, {load.rate:g} events/s (changed)"
        )
        chosen[name] = replace(scenario, title=title, load=load, timing=timing, servers=servers)
    return chosen


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="scenario", help=f"of {', '.join(SCENARIOS)}; default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--servers", type=lambda text: text.split(","), help=f"of {','.join(START)}; default: all")
    parser.add_argument("--streams", type=int, help="instead of the scenario's")
    parser.add_argument("--rate", type=float, help="events per second, instead of the scenario's")
    parser.add_argument("--window", type=float, help="seconds of the steady window, instead of the scenario's")
    parser.add_argument(
        "--patience", type=float, default=PATIENCE_S, help="seconds to wait for a quiet machine, default %(default)s"
    )
    args = parser.parse_args(arguments)
    if unknown := {*args.scenarios} - {*SCENARIOS} | {*(args.servers or [])} - {*START}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return args


def check_descriptors(scenarios: dict[str, Scenario]) -> None:
    """Raise this process's limit, which the parts inherit, as far as allowed.

    Raises:
        BenchmarkError: A scenario needs more.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    need = max(scenario.load.streams * 11 // 10 for scenario in scenarios.values()) + 512
    if hard != resource.RLIM_INFINITY and hard < need:
        raise BenchmarkError(f"needs {need} descriptors, allowed are {hard} (soft limit {soft}): ulimit -n")


def run(scenarios: dict[str, Scenario], rounds: int, patience: Patience, rows: dict[str, list[Row]]) -> None:
    """Run all scenarios on one Redis; put the rows where they outlive an error.

    Raises:
        BenchmarkError: A measurement could not be made.
    """
    check_descriptors(scenarios)
    cores = choose_cores()
    with tempfile.TemporaryDirectory(prefix="sse-benchmarks-") as temporary:
        directory = Path(temporary)
        for program in ("load_client", "floor"):
            compile_c(program, directory)
        check_load_client(cores.load, directory)
        say("load client: sees loss, duplicates, disorder, gaps")
        redis, port = start_redis(cores, directory)
        try:
            stage = Stage(cores, directory, redis, port)
            for name, scenario in scenarios.items():
                run_scenario(stage, name, scenario, rounds, patience, rows.setdefault(name, []))
        finally:
            redis.stop()


def main(arguments: list[str]) -> int:
    """Run, report, and return the exit code."""
    args = parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the parts are stopped
    scenarios = choose(args)
    rows: dict[str, list[Row]] = {}
    failure: BenchmarkError | None = None
    try:
        run(scenarios, args.rounds, Patience(args.patience), rows)
    except BenchmarkError as error:
        failure = error
    except KeyboardInterrupt:
        failure = BenchmarkError("interrupted")
    sections = [section_of(name, scenarios[name], found) for name, found in rows.items() if found]
    if sections:
        report = write(sections, facts(arguments), RESULTS)
        print("\n" + report.read_text())
        say(f"written: {os.path.relpath(report)} (and .json)")
    if failure is not None:
        print(f"benchmarks: {failure}", file=sys.stderr)
        return 70
    return 1 if any(one.is_met is False for section in sections for one in section.targets) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
