"""Builds the adapters, or says which tool is missing."""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import shutil
import subprocess
from typing import TYPE_CHECKING

from tests.clients.table import BUILD, HERE, Tool

if TYPE_CHECKING:
    from pathlib import Path

_MODULES = ("httpx_sse", "sseclient", "ld_eventsource", "aiohttp_sse_client2", "requests")


class BuildError(Exception):
    """A tool is there, but the adapters cannot be built with it."""


@functools.cache
def missing(tool: Tool) -> str:
    """Make the adapters of a tool ready; return why that is impossible here, or "".

    Raises:
        BuildError: With what the tool said.
    """
    absent = [program for program in _programs(tool) if shutil.which(program) is None]
    if absent:
        return f"{' and '.join(absent)} not on PATH"
    BUILD.mkdir(exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes may want the same
        return _prepare(tool)


def _programs(tool: Tool) -> tuple[str, ...]:
    match tool:
        case Tool.NODE:
            return ("node", "npm")
        case Tool.JAVA:
            return ("java", "mvn")
        case Tool.GO | Tool.CURL:
            return (tool.value,)
        case Tool.PYTHON:
            return ()


def _prepare(tool: Tool) -> str:
    match tool:
        case Tool.NODE:
            return _prepare_node()
        case Tool.JAVA:
            _unless_newer(BUILD / "java.stamp", HERE / "java", "mvn", "--quiet", "--batch-mode", "compile")
        case Tool.GO:
            _run(HERE / "go", "go", "build", "-o", f"{BUILD / 'go'}/", "./r3labs", "./tmaxmax")
        case Tool.PYTHON:
            absent = [name for name in _MODULES if importlib.util.find_spec(name) is None]
            return f"no module {', '.join(absent)}: install the dependency group `clients`" if absent else ""
        case Tool.CURL:
            pass
    return ""


def _prepare_node() -> str:
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    major, minor = (int(part) for part in version.removeprefix("v").split(".")[:2])
    if (major, minor) < (20, 18):
        return f"node {version} is older than 20.18"
    _unless_newer(BUILD / "node.stamp", HERE / "package-lock.json", "npm", "ci", "--ignore-scripts", "--no-audit")
    return ""


def _unless_newer(stamp: Path, sources: Path, *command: str) -> None:
    """Run a command in the directory of its sources, unless it has been since they changed."""
    files = [path for path in sources.rglob("*") if path.is_file()] if sources.is_dir() else [sources]
    if not stamp.exists() or stamp.stat().st_mtime < max(path.stat().st_mtime for path in files):
        _run(sources if sources.is_dir() else sources.parent, *command)
        stamp.touch()


def _run(directory: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}: {(done.stdout + done.stderr)[-2_000:]}")
