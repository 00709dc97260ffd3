"""Runs the benchmarks: ``python -m benchmarks.run [SCENARIO | single | cluster]…``.

Servers alternate within a round and the order turns from round to round: a machine that is shared, or slows
down as it warms up, harms all alike. Exit code 0 if every target that was measured is met, 1 if not, 70 if a
measurement could not be made.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import cluster, single
from benchmarks.cores import Patience, choose_cores
from benchmarks.errors import BenchmarkError
from benchmarks.parts import compile_c
from benchmarks.report import Section, facts, write
from benchmarks.selftest import check_load_clients
from benchmarks.servers import Stage, start_redis

if TYPE_CHECKING:
    from benchmarks.measure import Row
    from benchmarks.scenario import Scenario

RESULTS = Path(__file__).with_name("results")

PATIENCE_S = 300
"""How long a run waits for a quiet machine, all its measurements together. Spoiled measurements are made again
while it lasts; after it they are taken as they are, and pointed out."""

SCENARIOS = single.SCENARIOS | cluster.SCENARIOS

GROUPS = {"single": tuple(single.SCENARIOS), "cluster": tuple(cluster.SCENARIOS)}
"""Scenarios that can be asked for together."""

SERVERS = sorted({server.split()[0] for scenario in SCENARIOS.values() for server in scenario.servers})


def say(text: str) -> None:
    """Show progress."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def _tell(label: str, text: str) -> None:
    say(f"{label}: {text}")


def run_scenario(stage: Stage, name: str, scenario: Scenario, rounds: int, patience: Patience, rows: list[Row]) -> None:
    """Measure every server in every round, the order turned by one each time; append to `rows`."""
    for number in range(rounds):
        turn = number % max(1, len(scenario.servers))
        for server in scenario.servers[turn:] + scenario.servers[:turn]:
            tell = partial(_tell, f"{name} {number + 1}/{rounds} {server}")
            row = scenario.measure(stage, scenario, server, patience, tell)
            rows.append(row | {"server": server, "round": number + 1})


def section_of(name: str, scenario: Scenario, rows: list[Row]) -> Section:
    """Judge what was measured of a scenario."""
    rows.sort(key=lambda row: (scenario.servers.index(row["server"]), row["round"]))
    judged = scenario.judge(rows)
    return Section(name, scenario.title, rows, scenario.columns, scenario.right, judged, scenario.notes(rows))


def choose(args: argparse.Namespace) -> dict[str, Scenario]:
    """Return the scenarios that were asked for, changed as asked."""
    chosen = {}
    asked = [name for word in args.scenarios or list(SCENARIOS) for name in GROUPS.get(word, (word,))]
    for name in asked:
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
    names = [*SCENARIOS, *GROUPS]
    parser.add_argument("scenarios", nargs="*", metavar="scenario", help=f"of {', '.join(names)}; default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--servers", type=lambda text: text.split(","), help=f"of {','.join(SERVERS)}; default: all")
    parser.add_argument("--streams", type=int, help="instead of the scenario's")
    parser.add_argument("--rate", type=float, help="events per second, instead of the scenario's")
    parser.add_argument("--window", type=float, help="seconds of the steady window, instead of the scenario's")
    parser.add_argument(
        "--patience", type=float, default=PATIENCE_S, help="seconds to wait for a quiet machine, default %(default)s"
    )
    args = parser.parse_args(arguments)
    if unknown := {*args.scenarios} - {*names} | {*(args.servers or [])} - {*SERVERS}:
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
        check_load_clients(cores.load, directory)
        say("load clients: see loss, duplicates, disorder, gaps")
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
