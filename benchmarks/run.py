"""Runs the benchmarks: ``python -m benchmarks.run [SCENARIO | GROUP]…``.

Servers alternate within a round and the order turns from round to round: a machine that is shared, or slows
down as it warms up, harms all alike. Exit code 0 if every target that was measured is met, 1 if not, 70 if a
measurement could not be made.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import resource
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.catalogue import GROUPS, SCENARIOS, SERVERS, section_of
from benchmarks.cores import Patience, choose_cores
from benchmarks.errors import BenchmarkError
from benchmarks.parts import compile_c
from benchmarks.profiler import PySpy, find_py_spy
from benchmarks.report import facts, new_stem
from benchmarks.scenario import kind
from benchmarks.section import save, write
from benchmarks.selftest import check_load_clients
from benchmarks.servers import Stage, missing, start_redis

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.measure import Row
    from benchmarks.scenario import Scenario
    from benchmarks.servers import Load

PATIENCE_S = 300
"""How long a run waits for a quiet machine, all its measurements together. Spoiled measurements are made again
while it lasts; after it they are taken as they are, and pointed out."""


@dataclass(frozen=True, slots=True)
class Found:
    """What was measured of a scenario, what could not be, and where the gateway's time went if a target is missed."""

    rows: list[Row] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    profile: list[str] = field(default_factory=list)


def say(text: str) -> None:
    """Show progress."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def _tell(label: str, text: str) -> None:
    say(f"{label}: {text}")


def run_round(stage: Stage, name: str, scenario: Scenario, number: int, patience: Patience, found: Found) -> None:
    """Measure every server of a round (from 0); what could not be measured does not keep the rest from it."""
    for server in scenario.servers_of(number):
        if lacking := missing(kind(server)):
            say(f"{name} {server}: SKIPPED: needs {lacking} (scripts/benchmarks installs it)")
            continue
        tell = partial(_tell, f"{name}, round {number + 1}, {server}")
        try:
            row = scenario.measure(stage, scenario, server, patience, tell)
        except (BenchmarkError, OSError, http.client.HTTPException) as error:
            tell(f"FAILED: {error}")
            found.failures.append(f"{server}, round {number + 1}: {str(error).partition(chr(10))[0]}")
            continue
        found.rows.append(row | {"server": server, "round": number + 1})


def profile(stage: Stage, scenario: Scenario, rows: list[Row]) -> list[str]:
    """Where a target is missed, look at the gateway in a round of its own; return what it does."""
    missed = [one.text for one in scenario.judge(rows) if one.is_met is False]
    ours = [server for server in scenario.servers if kind(server) == "gateway"]
    if not missed or not ours or find_py_spy() is None:
        return []
    longest_first = sorted(ours, key=len, reverse=True)
    server = next((name for text in missed for name in longest_first if name in text), ours[0])
    say(f"{server} missed a target: profiling it, in a round that is not counted")
    spy = PySpy(stage.directory)
    with contextlib.suppress(
        BenchmarkError, OSError, http.client.HTTPException
    ):  # the numbers are there; only what explains them is missing
        scenario.measure(
            replace(stage, profiler=spy), scenario, server, Patience(0), partial(_tell, f"profile {server}")
        )
    return [f"{server}, {scenario.title}", *lines] if (lines := spy.lines()) else []


def _changed(load: Load, streams: int | None, rate: float | None) -> Load:
    count = streams or load.streams
    return replace(load, streams=count, rate=rate or load.rate, spread=count if load.spread > 1 else 1)


def choose(args: argparse.Namespace) -> dict[str, Scenario]:
    """Return the scenarios that were asked for, changed as asked."""
    chosen = {}
    asked = [name for word in args.scenarios or list(SCENARIOS) for name in GROUPS.get(word, (word,))]
    for name in asked:
        scenario = SCENARIOS[name]
        servers = tuple(s for s in scenario.servers if args.servers is None or kind(s) in args.servers)
        timing, change = scenario.timing, partial(_changed, streams=args.streams, rate=args.rate)
        if args.window and timing:
            timing = replace(timing, window_s=args.window)
        title = scenario.title + (" (changed)" if args.streams or args.rate else "")
        loads = {server: change(load) for server, load in scenario.loads.items()}
        chosen[name] = replace(
            scenario, title=title, load=change(scenario.load), loads=loads, timing=timing, servers=servers
        )
    return chosen


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    names = [*SCENARIOS, *GROUPS]
    parser.add_argument("scenarios", nargs="*", metavar="scenario", help=f"of {', '.join(names)}; default: all")
    parser.add_argument("--rounds", type=int, default=5, help="default %(default)s; some scenarios need fewer")
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
    loads = [load for scenario in scenarios.values() for load in (scenario.load, *scenario.loads.values())]
    need = max((load.streams + load.stalled) * 11 // 10 // load.processes for load in loads) + 512
    if hard != resource.RLIM_INFINITY and hard < need:
        raise BenchmarkError(f"needs {need} descriptors, allowed are {hard} (soft limit {soft}): ulimit -n")


def run(
    scenarios: dict[str, Scenario], rounds: int, patience: Patience, found: dict[str, Found], keep: Callable[[], None]
) -> None:
    """Run all scenarios on one Redis.

    Args:
        scenarios: What to run, by name.
        rounds: Of each, at most.
        patience: With other work on the machine.
        found: Where what is found goes: it outlives an error.
        keep: Called after each round, and each profile: what it writes outlives the process.

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
                one = found.setdefault(name, Found())
                for number in range(min(rounds, scenario.rounds)):
                    run_round(stage, name, scenario, number, patience, one)
                    keep()
                one.profile.extend(profile(stage, scenario, one.rows))
                keep()
        finally:
            redis.stop()


def _heed_signals() -> None:
    """Take the end of the terminal, and SIGTERM, as Ctrl-C, so that the parts are stopped and the report is written."""
    for one in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(one) is not signal.SIG_IGN:  # nohup
            signal.signal(one, signal.default_int_handler)


def main(arguments: list[str]) -> int:
    """Run, report, and return the exit code."""
    args = parse(arguments)
    _heed_signals()
    scenarios = choose(args)
    known, stem = facts(arguments), new_stem()
    found: dict[str, Found] = {}
    failure: BenchmarkError | None = None
    try:
        run(scenarios, args.rounds, Patience(args.patience), found, partial(save, found, known, stem))
    except BenchmarkError as error:
        failure = error
    except KeyboardInterrupt:
        failure = BenchmarkError("interrupted")
    sections = [
        section_of(name, scenarios[name], one.rows, known, one.profile, one.failures)
        for name, one in found.items()
        if one.rows
    ]
    if sections:
        report = write(sections, known, stem)
        print("\n" + report.read_text())
        say(f"written: {os.path.relpath(report)} (and .json)")
    failures = [f"{name}: {text}" for name, one in found.items() for text in one.failures]
    if failure is not None:
        failures.append(str(failure))
    if failures:
        print("benchmarks: could not be measured:", *failures, sep="\n  ", file=sys.stderr)
        return 70
    return 1 if any(one.is_met is False for section in sections for one in section.targets) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
