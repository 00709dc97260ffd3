"""Metrics of several processes as one: every series with a `worker` label, complete and monotone.

Rules:
    1. A worker's series live with its slot, not with its process: what a process that has gone had
       counted stays in its slot as a base, on which its successor counts on.
    2. Of processes that share a slot (one drains while the next serves) counters and histograms add
       up, and so do the gauges of what is held or used; every other gauge is the newest's.
    3. Gauges of a process go with it.
    4. What a process said last stands until it says something else, or goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client.core import Metric

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

WORKER = "worker"
"""The label."""

Sample = tuple[str, dict[str, str], float]
"""Name of the series, its labels, its value."""

_Series = tuple[str, tuple[tuple[str, str], ...]]
_Values = dict[_Series, float]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric of one process, at one moment, as it travels between processes.

    Attributes:
        name: Without the suffix of its series.
        kind: ``counter``, ``gauge`` or ``histogram``.
        text: The help.
        samples: Its series; a histogram's in the order of its buckets.
    """

    name: str
    kind: str
    text: str
    samples: list[Sample]


def snapshot(metrics: Iterable[Metric]) -> list[Family]:
    """What a collector shows, as values."""
    return [
        Family(
            metric.name, metric.type, metric.documentation, [(s.name, dict(s.labels), s.value) for s in metric.samples]
        )
        for metric in metrics
    ]


def shown(family: Family) -> Metric:
    """As a registry wants it."""
    metric = Metric(family.name, family.text, family.kind)
    for series, labels, value in family.samples:
        metric.add_sample(series, labels, value)
    return metric


class News:
    """What the other end has not been told yet."""

    def __init__(self) -> None:
        self._told: dict[str, Family] = {}

    def of(self, families: Iterable[Family]) -> list[Family]:
        """Those that are not as they were the last time; from now on they are told."""
        fresh = [family for family in families if self._told.get(family.name) != family]
        self._told.update((family.name, family) for family in fresh)
        return fresh


class _Process:
    """What one process said last of each metric."""

    __slots__ = ("families", "values")

    def __init__(self) -> None:
        self.families: dict[str, Family] = {}
        self.values: dict[str, _Values] = {}

    def take(self, family: Family) -> None:
        self.families[family.name] = family
        self.values[family.name] = {(name, tuple(labels.items())): value for name, labels, value in family.samples}


class Aggregate:
    """The metrics of all workers; a collector for a registry."""

    def __init__(self, additive: Collection[str]) -> None:
        """Start empty.

        Args:
            additive: Names of the gauges that add up.
        """
        self._additive = frozenset(additive)
        self._bases: dict[int, dict[str, _Values]] = {}
        self._live: dict[int, dict[int, _Process]] = {}
        self._families: dict[str, Family] = {}

    def take(self, slot: int, process: int, families: Iterable[Family]) -> None:
        """Take what a process says now; of metrics that it does not mention its former word stands.

        Args:
            slot: The worker's place.
            process: Which of those that had or have it; a later one is larger.
            families: All its metrics, or some.
        """
        said = self._live.setdefault(slot, {}).setdefault(process, _Process())
        for family in families:
            self._families[family.name] = family
            said.take(family)

    def end(self, slot: int, process: int) -> None:
        """A process has gone: what it counted stays. Idempotent."""
        said = self._live.get(slot, {}).pop(process, None)
        if said is None:
            return
        base = self._bases.setdefault(slot, {})
        for name, values in said.values.items():
            if said.families[name].kind != "gauge":
                base[name] = _added(said.families[name].kind, [base.get(name, {}), values])

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        for name, family in self._families.items():
            metric = Metric(name, family.text, family.kind)
            for slot in sorted(self._bases.keys() | self._live.keys()):
                for (series, labels), value in self._values(slot, family).items():
                    metric.add_sample(series, {**dict(labels), WORKER: str(slot)}, value)
            if metric.samples:
                yield metric

    def _values(self, slot: int, family: Family) -> _Values:
        live = self._live.get(slot, {})
        said = [live[process].values[family.name] for process in sorted(live) if family.name in live[process].values]
        if family.kind == "gauge" and family.name not in self._additive:
            return said[-1] if said else {}
        return _added(family.kind, [self._bases.get(slot, {}).get(family.name, {}), *said])


def _added(kind: str, parts: Iterable[_Values]) -> _Values:
    """The sum, series by series, in the order of the latest.

    A histogram whose buckets are others than before (another version's) cannot be added to: it begins anew.
    """
    total: _Values = {}
    for values in parts:
        if kind == "histogram" and total.keys() != values.keys():
            total = {}
        total = values | {series: value + values.get(series, 0.0) for series, value in total.items()}
    return total
