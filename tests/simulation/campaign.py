"""Many schedules on two processes: ``python -m tests.simulation.campaign SCHEDULES [--first SEED]``.

One schedule again, with all that happened in it: ``python -m tests.simulation.campaign --seed SEED``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import starmap

from tests.support.cluster_run import Run, fails

PROCESSES = 2
PORTION = 100
"""Schedules that a process takes at a time."""


def portion(first: int, last: int, profile: str) -> tuple[Counter[str], list[tuple[int, str]]]:
    """Run some schedules; returns what happened, and which failed with what."""
    counts: Counter[str] = Counter()
    failed: list[tuple[int, str]] = []
    for seed in range(first, last):
        error = fails(seed, profile=profile, counts=counts)
        counts["schedules"] += 1
        if error is not None:
            failed.append((seed, f"{type(error).__name__}: {error}"))
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


def campaign(first: int, count: int, profile: str) -> int:
    """Run schedules on all processes and print a summary; returns the exit code."""
    begun = time.monotonic()
    counts: Counter[str] = Counter()
    failed: list[tuple[int, str]] = []
    ends = [(at, min(at + PORTION, first + count), profile) for at in range(first, first + count, PORTION)]
    with ProcessPoolExecutor(PROCESSES) as pool:
        for some, bad in pool.map(portion, *zip(*ends, strict=True)):
            counts += some
            failed += bad
            for seed, why in bad:
                print(f"FAILED {seed}: {why}", flush=True)  # noqa: T201
    happened = ", ".join(starmap("{1} {0}".format, sorted(counts.items())))
    print(f"seeds {first} to {first + count - 1}: {happened}, {time.monotonic() - begun:.0f} s")  # noqa: T201
    print("failed: " + (" ".join(str(seed) for seed, _ in failed) or "none"))  # noqa: T201
    return 1 if failed else 0


def main(arguments: list[str]) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0] if __doc__ else None)
    parser.add_argument("schedules", type=int, nargs="?", default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--profile", default="")
    parser.add_argument("--seed", type=int)
    asked = parser.parse_args(arguments)
    if asked.seed is None:
        return campaign(asked.first, asked.schedules, asked.profile)
    print(story(asked.seed, asked.profile))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
