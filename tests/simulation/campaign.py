"""Many schedules: ``python -m tests.simulation.campaign SCHEDULES [--first SEED] [--processes N]``.

What has happened so far is printed after every 2,000 of them, and when SIGTERM or SIGINT ends it early.
One schedule again, with all that happened in it: ``python -m tests.simulation.campaign --seed SEED``.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from itertools import islice, starmap
from typing import TYPE_CHECKING, TypeAlias

from tests.support.cluster_run import Run, fails, uncollected

if TYPE_CHECKING:
    from concurrent.futures import Future

PROCESSES = 2
PORTION = 20
"""Schedules that a process takes at a time: a second, so long it may take to stop."""

TOLD = 2000
"""Schedules after which it is told what has happened so far."""

LOOK_S = 0.5
"""Time between two looks at whether it is stopped."""

Portion: TypeAlias = "tuple[Counter[str], list[tuple[int, str]]]"


def portion(first: int, last: int, profile: str) -> Portion:
    """Run some schedules; returns what happened, and which failed with what."""
    counts: Counter[str] = Counter()
    failed: list[tuple[int, str]] = []
    with uncollected() as tidy:
        for seed in range(first, last):
            error = fails(seed, profile=profile, counts=counts)
            counts["schedules"] += 1
            if error is not None:
                failed.append((seed, f"{type(error).__name__}: {error}"))
            tidy()
    return counts, failed


def story(seed: int, profile: str = "", lines: int = 10**9) -> str:
    """Run one schedule and tell it: its last lines, and how it ended."""
    run = Run(seed, profile=profile, tracing=True)
    end = "all is well"
    try:
        run.play()
    except Exception as error:  # noqa: BLE001 - that is what is asked for
        end = f"{type(error).__name__}: {error}"
    again = f"again: python -m tests.simulation.campaign --seed {seed}"
    return "\n".join([*(run.lines or [])[-lines:], f"seed {seed} ({run.profile}): {end}", again])


class Campaign:
    """Many schedules, on all processes.

    Attributes:
        counts: What has happened so far.
        failed: Seeds so far, and with what.
        is_stopped: Begin nothing more.
    """

    def __init__(self, first: int, count: int, profile: str, processes: int = PROCESSES) -> None:
        """Begin with nothing.

        Args:
            first: The first seed.
            count: Schedules.
            profile: Of all of them; empty where each draws its own.
            processes: So many at the same time.
        """
        self.counts: Counter[str] = Counter()
        self.failed: list[tuple[int, str]] = []
        self.is_stopped = False
        self._first = first
        self._profile = profile
        self._processes = processes
        self._begun = time.monotonic()
        self._portions = (
            (at, min(at + PORTION, first + count), profile) for at in range(first, first + count, PORTION)
        )

    def run(self) -> int:
        """Run to the end, or until it is stopped; what is under way then is counted too. Returns the exit code."""
        told = 0
        with ProcessPoolExecutor(self._processes, initializer=_leave_signals) as pool:
            waiting = self._submit(pool, 2 * self._processes)
            while waiting:
                done, waiting = wait(waiting, LOOK_S, FIRST_COMPLETED)
                if self.is_stopped:
                    waiting = {future for future in waiting if not future.cancel()}
                else:
                    waiting |= self._submit(pool, len(done))
                for future in done:
                    self._take(*future.result())
                if self.counts["schedules"] - told >= TOLD:
                    told = self.counts["schedules"]
                    print(f"so far: {self}", flush=True)  # noqa: T201
        print(f"stopped: {self}" if self.is_stopped else self, flush=True)  # noqa: T201
        print("failed: " + (" ".join(str(seed) for seed, _ in sorted(self.failed)) or "none"), flush=True)  # noqa: T201
        return 1 if self.failed or self.is_stopped else 0

    def stop(self, *_: object) -> None:
        """Come to an end; for signals."""
        self.is_stopped = True

    def __str__(self) -> str:
        happened = ", ".join(starmap("{1} {0}".format, sorted(self.counts.items())))
        last = self._first + self.counts["schedules"] - 1
        return f"seeds {self._first} to {last}: {happened}, {time.monotonic() - self._begun:.0f} s"

    def _submit(self, pool: ProcessPoolExecutor, count: int) -> set[Future[Portion]]:
        return {pool.submit(portion, *some) for some in islice(self._portions, count)}

    def _take(self, counts: Counter[str], failed: list[tuple[int, str]]) -> None:
        self.counts += counts
        self.failed += failed
        for seed, why in failed:
            print(f"FAILED {seed}: {why}", flush=True)  # noqa: T201


def _leave_signals() -> None:
    """In the processes of the pool: a portion under way is ended, whatever the terminal sends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def main(arguments: list[str]) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0] if __doc__ else None)
    parser.add_argument("schedules", type=int, nargs="?", default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--profile", default="")
    parser.add_argument("--processes", type=int, default=PROCESSES)
    parser.add_argument("--seed", type=int)
    asked = parser.parse_args(arguments)
    if asked.seed is None:
        campaign = Campaign(asked.first, asked.schedules, asked.profile, asked.processes)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, campaign.stop)
        return campaign.run()
    print(story(asked.seed, asked.profile))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
