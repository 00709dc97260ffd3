"""One part of a measurement: a child process pinned to a core, that speaks lines of JSON, or nothing.

Rules:
    - A part inherits its core at birth, so no thread of it ever runs elsewhere.
    - A part dies with the driver (setpriv --pdeathsig, where there is one) and is stopped by `stop`.
    - CPU and memory are those of the workers where a part has such, else of the process and its descendants. A supervisor
      does nothing for a delivery, and costs the same for one stream and for all: it is shown aside.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchmarkError

ROOT = Path(__file__).resolve().parent.parent
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

WORKER = b"sse_gateway.worker"
"""The module that a worker process runs."""


class Part:
    """A running child. Lines it prints are read with a time limit; stderr goes to a file."""

    def __init__(self, name: str, command: list[str], *, core: int, directory: Path, is_last: bool = False) -> None:
        """Start the child.

        Args:
            name: For errors; also of the file that its stderr goes to.
            command: What to run.
            core: Where it runs.
            directory: For that file.
            is_last: It runs only while nobody else on its core wants to.
        """
        self.name = name
        self._errors = directory / f"{name}.stderr"
        self._buffer = b""
        if setpriv := shutil.which("setpriv"):
            command = [setpriv, "--pdeathsig", "TERM", *command]
        if is_last:
            command = ["chrt", "--idle", "0", *command]
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {core})
        try:
            with self._errors.open("wb") as errors:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT
                )
        finally:
            os.sched_setaffinity(0, before)
        assert self._process.stdin is not None  # noqa: S101 - for the type checker
        assert self._process.stdout is not None  # noqa: S101 - for the type checker
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._stdout, selectors.EVENT_READ)

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def tell(self, line: str) -> None:
        """Send one command.

        Raises:
            BenchmarkError: It has ended.
        """
        try:
            self._stdin.write(line.encode() + b"\n")
            self._stdin.flush()
        except BrokenPipeError:
            raise self.failure("ended") from None

    def hear(self, timeout_s: float) -> dict[str, Any]:
        """Return the next line of JSON that the child prints.

        Raises:
            BenchmarkError: It ended, or said nothing in time; with the end of its stderr.
        """
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not self._selector.select(left):
                raise self.failure(f"said nothing for {timeout_s:.0f} s")
            data = os.read(self._stdout.fileno(), 1 << 16)
            if not data:
                raise self.failure("ended")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        fields: dict[str, Any] = json.loads(line)
        return fields

    def ask(self, line: str, timeout_s: float = 30) -> dict[str, Any]:
        """Send a command and return its answer."""
        self.tell(line)
        return self.hear(timeout_s)

    def failure(self, what: str) -> BenchmarkError:
        """Return an error that names this part and quotes the end of its stderr."""
        code = self._process.poll()
        status = "" if code is None else f" (exit code {code})"
        return BenchmarkError(f"{self.name} {what}{status}\n{self.stderr()[-2000:]}")

    def stderr(self) -> str:
        """Return what the child has written to stderr."""
        return self._errors.read_text(errors="replace")

    def ended(self) -> bool:
        """Tell whether the child has ended."""
        return self._process.poll() is not None

    def workers(self) -> list[int]:
        """Return the gateway's worker processes among its descendants, in the order of their start."""
        return sorted((pid for pid in family(self.pid) if WORKER in _command(pid)), key=_started)

    def cpu_s(self) -> float:
        """Return user and system time so far, in seconds."""
        return sum(_ticks(pid) for pid in self._measured()) / TICKS_PER_S

    def fine_cpu_s(self) -> float:
        """Return the same from the scheduler's own count, which is finer by far, without that of threads that have ended."""
        return sum(_run_ns(pid) for pid in self._measured()) / 1e9 or self.cpu_s()  # a kernel that does not tell

    def spent_s(self) -> float:
        """Return the same of all its processes, and of those that have ended."""
        return sum(_ticks(pid, with_ended=True) for pid in family(self.pid)) / TICKS_PER_S

    def rss_bytes(self) -> int:
        """Return the resident memory."""
        return sum(_rss(pid) for pid in self._measured())

    def aside_bytes(self) -> int:
        """Return the resident memory of what is not measured: the supervisor."""
        return sum(_rss(pid) for pid in family(self.pid)) - self.rss_bytes()

    def _measured(self) -> list[int]:
        return self.workers() or family(self.pid)

    def stop(self) -> None:
        """End the child: SIGTERM, and SIGKILL after 3 s. Idempotent."""
        self._selector.close()
        with contextlib.suppress(BrokenPipeError):  # what was told to one that had ended
            self._stdin.close()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(3)
            except subprocess.TimeoutExpired:
                for pid in reversed(family(self.pid)):
                    os.kill(pid, signal.SIGKILL)
                self._process.wait()
        self._stdout.close()


def python(module: str, *arguments: object) -> list[str]:
    """Return the command that runs a module with this interpreter."""
    return [sys.executable, "-m", module, *map(str, arguments)]


def compile_c(name: str, directory: Path) -> str:
    """Compile one of the C programs beside this file; return the executable.

    Raises:
        BenchmarkError: No compiler, or it failed.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise BenchmarkError("needs a C compiler for the load client (Debian: apt install gcc libc6-dev), or set CC")
    source, target = Path(__file__).with_name(f"{name}.c"), directory / name
    command = [compiler, "-O2", "-Wall", "-Wextra", "-o", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise BenchmarkError(f"{' '.join(command)} failed:\n{done.stderr}")
    return str(target)


def family(pid: int) -> list[int]:
    """Return `pid` and all its descendants, parents first."""
    found = [pid]
    for parent in found:  # the list grows while it is walked
        with contextlib.suppress(OSError):  # it has ended meanwhile
            for task in Path(f"/proc/{parent}/task").glob("*/children"):
                found += map(int, task.read_text().split())
    return found


def _command(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _stat(pid: int) -> list[str]:
    # What comes after the parenthesis that ends the command's name: the first is field 3.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _started(pid: int) -> int:
    return int(_stat(pid)[19])


def _ticks(pid: int, *, with_ended: bool = False) -> int:
    """User and system time, with that of children that have ended and were waited for."""
    try:
        return sum(map(int, _stat(pid)[11 : 15 if with_ended else 13]))
    except FileNotFoundError:
        return 0


def _run_ns(pid: int) -> int:
    with contextlib.suppress(OSError):  # it has ended meanwhile
        return sum(int(file.read_text().split()[0]) for file in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return 0


def parent(pid: int) -> int:
    """Return the process that started another."""
    return int(_stat(pid)[1])


def _rss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0
