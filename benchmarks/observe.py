"""What can be seen of a gateway from outside: its log lines, its metrics, its links to Redis."""

from __future__ import annotations

import http.client
import json
import time
from contextlib import closing
from datetime import datetime
from typing import TYPE_CHECKING, Any

from redis import Redis

from benchmarks.cores import busy, read_ticks
from benchmarks.errors import BenchmarkError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.parts import Part
    from benchmarks.servers import Server, Stage

POLL_S = 0.005


class Lines:
    """The log lines of one part."""

    def __init__(self, part: Part, begin: int | None = None) -> None:
        """Begin with those that come from now on, or at a place in what it has written."""
        self._part = part
        self._read = len(part.stderr()) if begin is None else begin

    def wait(self, event: str, timeout_s: float) -> dict[str, Any]:
        """Return the next line of an event; what comes before it is passed over.

        Raises:
            BenchmarkError: It did not come.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            text = self._part.stderr()[self._read :]
            for line in text.splitlines(keepends=True):
                if not line.endswith("\n"):
                    break
                self._read += len(line)
                if f'"event":"{event}"' in line:
                    fields: dict[str, Any] = json.loads(line)
                    return fields
            time.sleep(POLL_S)
        raise self._part.failure(f"did not log {event} within {timeout_s:.0f} s")


def at(line: dict[str, Any]) -> float:
    """Return when a line was logged, Unix seconds; good to a millisecond."""
    return datetime.fromisoformat(line["ts"]).timestamp()


def metric(server: Server, name: str) -> float:
    """Return the sum of a metric's samples, whatever their labels.

    Raises:
        BenchmarkError: There is none.
    """
    values = [value for sample, value in _samples(server) if sample.partition("{")[0] == name]
    if not values:
        raise BenchmarkError(f"{server.part.name}: no metric {name}")
    return sum(values)


def _samples(server: Server) -> Iterable[tuple[str, float]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.admin, timeout=5)
    with closing(connection):
        connection.request("GET", "/metrics")
        for line in connection.getresponse().read().decode().splitlines():
            if line and not line.startswith("#"):
                sample, _, value = line.rpartition(" ")
                yield sample, float(value)


def links(stage: Stage) -> set[str]:
    """Return the ids of the connections that are subscribed."""
    with closing(Redis(port=stage.redis_port)) as redis:
        return {str(one["id"]) for one in redis.client_list(_type="pubsub")}


def cut(stage: Stage, link: str) -> None:
    """Have Redis end a connection."""
    with closing(Redis(port=stage.redis_port)) as redis:
        redis.client_kill_filter(_id=link)


class Others:
    """How much of both cores somebody else takes, from now on."""

    def __init__(self, stage: Stage, parts: Iterable[Part]) -> None:
        """Begin.

        Args:
            stage: The cores.
            parts: All that is ours; none ends before `share`.
        """
        self._stage = stage
        self._parts = tuple(parts)
        self._begin = read_ticks(stage.cores), self._cpu_s(), time.monotonic()

    def shares(self) -> dict[str, float]:
        """Return, of one core, what others took of both together; and how busy each was with everything."""
        ticks, cpu_s, since = self._begin
        now, spent_s = read_ticks(self._stage.cores), self._cpu_s() - cpu_s
        cores = self._stage.cores
        server, load = (busy(ticks, now, core) for core in (cores.server, cores.load))
        others = server + load - spent_s / (time.monotonic() - since)
        return {"others_share": others, "server_core_busy": server, "load_core_busy": load}

    def _cpu_s(self) -> float:
        return sum(part.spent_s() for part in self._parts)


def buckets(server: Server, name: str) -> dict[float, float]:
    """Return a histogram's cumulative counts by upper bound, summed over labels."""
    counts: dict[float, float] = {}
    for sample, value in _samples(server):
        if sample.partition("{")[0] == name:
            bound = float(sample.partition('le="')[2].partition('"')[0])
            counts[bound] = counts.get(bound, 0) + value
    return counts
