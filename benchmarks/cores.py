"""The two cores of a measurement, and who else uses them."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from benchmarks.errors import BenchmarkError

if TYPE_CHECKING:
    from collections.abc import Callable

QUIET_SHARE = 0.1
"""A core that is busier than this before anything of ours runs is not quiet."""

Ticks: TypeAlias = dict[int, tuple[int, int]]
"""For each core, ticks it was busy and ticks in all."""


@dataclass(frozen=True, slots=True)
class Cores:
    """One core for the server under test, one for everything else."""

    server: int
    load: int


def choose_cores() -> Cores:
    """Return the first two cores this process may use.

    Raises:
        BenchmarkError: There is only one: client and server would measure each other.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise BenchmarkError("needs two cores: one for the server, one for the load client, Redis and the publisher")
    return Cores(cores[0], cores[1])


def read_ticks(cores: Cores) -> Ticks:
    """Return what both cores have done since the machine started; time stolen by the hypervisor counts as busy."""
    ticks = {}
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        for core in (cores.server, cores.load):
            if name == f"cpu{core}":
                numbers = [int(field) for field in fields[:8]]
                ticks[core] = (sum(numbers) - numbers[3] - numbers[4], sum(numbers))
    return ticks


def busy(before: Ticks, after: Ticks, core: int) -> float:
    """Return the share of the time between two readings that a core was busy."""
    (busy_0, all_0), (busy_1, all_1) = before[core], after[core]
    return (busy_1 - busy_0) / max(1, all_1 - all_0)


class Patience:
    """How long a whole run may still wait for a quiet machine; shared by its measurements."""

    def __init__(self, seconds: float) -> None:
        self._left_s = seconds

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to wait with."""
        return self._left_s <= 0

    def spend(self, seconds: float) -> None:
        """Count time that was lost."""
        self._left_s -= seconds

    def await_quiet(self, cores: Cores, say: Callable[[str], None]) -> None:
        """Wait until both cores have been quiet for a second, or until patience is over."""
        is_told = False
        while not self.is_over:
            before = read_ticks(cores)
            time.sleep(1)
            after = read_ticks(cores)
            shares = [busy(before, after, core) for core in (cores.server, cores.load)]
            if max(shares) < QUIET_SHARE:
                return
            self.spend(1)
            if not is_told:
                say(f"waiting for other work to end (cores {shares[0]:.0%} and {shares[1]:.0%} busy)")
                is_told = True
