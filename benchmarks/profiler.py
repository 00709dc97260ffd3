"""Looks at a server's Python while it works: py-spy, in a round of its own, which is not measured."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.parts import Part

TOP = 15
"""Functions that are named."""

LEAST = 0.01
"""Share of the samples below which a function is not named."""

RATE_HZ = 250

IDLE = re.compile(r"Condition\.wait|epoll_p?wait")
"""Threads that wait, and the loop when there is nothing to do, do not cost anything."""


class Profiler:
    """Does nothing: what a measured round has."""

    def begin(self, part: Part, seconds: float) -> None:
        """Called when the part begins with what is measured."""

    @property
    def is_at_work(self) -> bool:
        """Whether it still looks."""
        return False


class PySpy(Profiler):
    """Samples the first worker of a part, once. It stops the worker for each sample: nothing else is to be read then."""

    def __init__(self, directory: Path) -> None:
        self._stacks = directory / "profile.folded"
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self, part: Part, seconds: float) -> None:
        """Sample for so long, less what its own start takes."""
        pid = (part.workers() or [part.pid])[0]
        command = [str(find_py_spy()), "record", "--pid", str(pid), "--duration", str(max(1, round(seconds) - 1))]
        command += ["--rate", str(RATE_HZ), "--native", "--format", "raw", "--output", str(self._stacks)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    @property
    def is_at_work(self) -> bool:
        """Whether it still looks."""
        return self._process is not None and self._process.poll() is None

    def lines(self) -> list[str]:
        """Return the functions in which most samples ended, with their share; none if there are no samples."""
        if self._process is None:
            return []
        self._process.wait(60)
        return top_functions(self._stacks.read_text()) if self._stacks.is_file() else []


def find_py_spy() -> str | None:
    """Return the program, beside this interpreter or in the path."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.is_file() else shutil.which("py-spy")


def top_functions(folded: str) -> list[str]:
    """Count the ends of folded stacks, ``a;b;c N``: a function of Python, and the native one it was in."""
    ends: Counter[str] = Counter()
    for line in folded.splitlines():
        stack, _, count = line.rpartition(" ")
        if not IDLE.search(stack):
            ends[_end(stack.split(";"))] += int(count)
    total = ends.total() or 1
    return [f"{count / total:.0%} {name}" for name, count in ends.most_common(TOP) if count / total >= LEAST]


def _end(stack: list[str]) -> str:
    """Name the last function of ours, and what of others' it called."""
    python = next((name for name in reversed(stack) if ".py:" in name), "")
    leaf = re.sub(r"^0x\w+ ", "", stack[-1])
    where = re.sub(r":\d+\)$", ")", python)
    return (where if leaf == python or not where else f"{where} > {leaf}") or "nobody knows where"
