"""What `/metrics` shows: the core's plain counters, read when somebody asks.

Nothing is observed on the path of an event but additions to numbers; a scrape reads them in one go,
so that one that stalls costs the streams nothing. Labels come from closed sets: the rules' patterns
and the members of `reasons`. `docs/metrics.md` is held to this module by a test.
"""

from __future__ import annotations

import time
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.process_collector import ProcessCollector

from sse_gateway import __version__
from sse_gateway.aggregate import Family, shown
from sse_gateway.logs import dropped_records
from sse_gateway.tally import AccessCounts, Histogram

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from prometheus_client.core import Metric

    from sse_gateway.aggregate import Sample
    from sse_gateway.authority import Authority
    from sse_gateway.channels import Rule
    from sse_gateway.connections import Connections
    from sse_gateway.hub import Hub
    from sse_gateway.member import Member
    from sse_gateway.source import Source
    from sse_gateway.streams import Streams

PREFIX = "sse_gateway_"

ADDITIVE = frozenset(
    PREFIX + name
    for name in (
        "connections",
        "connections_waiting",
        "streams_lagging",
        "streams_writable",
        "audiences",
        "queue_bytes",
        "pass_bytes",
        "window_events",
        "window_bytes",
        "window_memory_bytes",
        "open_descriptors",
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
    )
)
"""Gauges of what is held or used: two processes in one place hold the sum."""

Label = TypeVar("Label", bound=str)

LOOP_LAG_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper bounds of loop lag buckets, seconds."""


class Observed(Protocol):
    """What is looked at."""

    hub: Hub
    member: Member
    source: Source
    streams: Streams
    connections: Connections
    authority: Authority | None
    max_descriptors: int

    def unready(self) -> list[str]:
        """Why new streams would not be served."""


class Metrics:
    """All metrics of one gateway.

    Attributes:
        registry: For the admin listener.
        loop_lag: How late the loop's timers come.
    """

    def __init__(self, gateway: Observed, rules: Sequence[Rule]) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.loop_lag = Histogram(LOOP_LAG_BOUNDS_S)
        self._gateway = gateway
        self._rules = [rule.pattern for rule in rules]
        self._counted = (
            self._streams,
            self._access,
            self._messages,
            self._deliveries,
            self._windows,
            self._latency,
            self._source,
        )
        ProcessCollector(namespace=PREFIX.removesuffix("_"), registry=self.registry)
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        for group in (*self._counted, self._process):
            yield from map(shown, group())

    def counters(self) -> Iterator[Family]:
        """What must not be lost if this process dies: cheap enough to be told every second.

        Left out is what has to be read from the kernel, which is slow with many descriptors.
        """
        yield from (family for group in self._counted for family in group() if family.kind != "gauge")

    def _streams(self) -> Iterator[Family]:
        gateway, tally = self._gateway, self._gateway.hub.tally
        lagging = len(gateway.hub.lagging)
        yield _gauge("connections", "Open streams.", len(gateway.streams.open_streams))
        yield _gauge("connections_limit", "Streams this process takes at most.", gateway.streams.limit)
        yield _counter("streams_opened", "Streams opened.", tally.opened)
        yield _counters("streams_closed", "Streams ended.", "reason", tally.closed)
        yield _counters("streams_refused", "Temporary refusals of new streams.", "reason", tally.refused)
        yield _gauge("connections_waiting", "Connections without a stream.", len(gateway.connections))
        yield _counters("connections_dropped", "Of these, ended by us.", "reason", gateway.connections.dropped)
        yield _counters("replays", "Streams opened, by what they were told of their replay.", "outcome", tally.replays)
        yield _gauge("streams_lagging", "Streams whose socket takes no more at the moment.", lagging)
        yield _gauge(
            "streams_writable", "Streams whose socket takes bytes.", len(gateway.streams.open_streams) - lagging
        )
        yield _gauge("audiences", "Sets of streams that follow the same channels.", gateway.hub.audiences)

    def _access(self) -> Iterator[Family]:
        authority = self._gateway.authority
        counts = AccessCounts() if authority is None else authority.counts()
        checks = {"new": counts.new, "remembered": counts.remembered}
        yield _counters("access_refused", "Requests that were not let in.", "reason", counts.refused)
        yield _counters("access_checks", "Credentials that were judged, or had been.", "outcome", checks)
        yield _counters("callback_answers", "Questions to the application.", "outcome", counts.answers)
        yield _counters("jwks_fetches", "Fetches of published keys.", "outcome", counts.fetches)
        yield _gauge("jwks_keys", "Published keys that are usable.", counts.keys)
        yield _gauge("revocations", "Revocations that hold.", counts.revocations)
        yield _counter("revocations_displaced", "Revocations that a full list has let go of.", counts.displaced)
        yield _counter("revocations_ignored", "Revocations that did not verify.", counts.ignored)

    def _messages(self) -> Iterator[Family]:
        tally = self._gateway.hub.tally
        yield _counters("messages_received", "Messages counted in the log.", "rule", self._by_rule(tally.messages))
        yield _counters("events", "Events made of messages.", "rule", self._by_rule(tally.events))
        yield _counters(
            "messages_duplicate",
            "Messages dropped because their id was known.",
            "rule",
            self._by_rule(tally.duplicates),
        )
        yield _counters("messages_rejected", "Messages rejected.", "reason", tally.rejected)

    def _deliveries(self) -> Iterator[Family]:
        hub = self._gateway.hub
        tally = hub.tally
        yield _counter("deliveries", "Events handed to a socket.", tally.deliveries)
        yield _counter("sent_bytes", "Bytes of stream blocks handed to sockets.", tally.bytes)
        yield _counters("dropped_events", "Queued events that a stream's policy dropped.", "policy", tally.dropped)
        yield _counters("gaps", "Gap blocks told.", "reason", tally.gaps)
        yield _gauge("queue_bytes", "Bytes that wait for slow streams.", tally.queue_bytes)
        yield _gauge("queue_limit_bytes", "At most; then the fullest stream is aborted.", hub.limits.queue_bytes)
        yield _gauge("queue_fill_ratio", "Fill of the fullest stream's queue, against its bounds.", hub.fullest())
        yield _gauge("pass_bytes", "Bytes of events on their way through the audiences.", tally.pass_bytes)

    def _windows(self) -> Iterator[Family]:
        hub = self._gateway.hub
        history = hub.history
        oldest = history.oldest()
        age_s = 0.0 if oldest is None else time.monotonic() - oldest.received_at
        yield _gauge("channels", "Channels remembered.", len(history.windows))
        yield _gauge("channels_limit", "At most; then the least recently used is forgotten.", hub.limits.channels)
        yield _counter("channels_forgotten", "Channels forgotten at the limit.", history.forgotten_channels)
        yield _gauge("window_events", "Events held for replay.", history.events)
        yield _gauge("window_bytes", "Bytes of their frames.", history.bytes)
        yield _gauge("window_seconds", "Age of the oldest event held.", age_s)
        yield _gauge("window_memory_bytes", "Memory charged for windows.", history.memory)
        yield _gauge("window_memory_limit_bytes", "At most; then losses, then events go.", hub.limits.window_bytes)
        yield _counter("window_evictions", "Events lost at the memory limit.", history.evicted_for_memory)

    def _latency(self) -> Iterator[Family]:
        tally = self._gateway.hub.tally
        yield _histogram(
            "delivery_latency_seconds", "From Redis' bytes to the socket, every live delivery.", tally.latency
        )
        yield _histogram(
            "publish_latency_seconds", "From the publisher's ts to the socket, likewise.", tally.publish_latency
        )
        yield _histogram("source_round_trip_seconds", "A marker to Redis and back.", tally.round_trip)
        yield _histogram("loop_lag_seconds", "How late the loop's timers come.", self.loop_lag)

    def _source(self) -> Iterator[Family]:
        gateway, source = self._gateway, self._gateway.source
        yield _gauge("source_live", "Whether messages are flowing.", float(source.live))
        yield _counter("source_attempts", "Attempts to connect to Redis.", source.attempts)
        yield _counter("source_losses", "Live links to Redis that were lost.", source.losses)
        sentinels = source.primary.sentinels
        yield _gauge("sentinels", "Sentinels that answer and see a majority.", sentinels.heard if sentinels else 0)
        yield _counter("failovers", "Times the sentinels named another primary.", sentinels.moves if sentinels else 0)
        yield _counter("source_paused_seconds", "Time in which Redis was not read.", source.paused_s)
        yield _counter("epochs", "Epochs begun.", gateway.hub.log.begun)
        yield from self._cluster()
        yield _gauge("ready", "Whether /readyz says yes.", float(not gateway.unready()))

    def _cluster(self) -> Iterator[Family]:
        member = self._gateway.member
        replica, handover = member.replica, member.handover
        yield _counters("control_ignored", "Control messages not heeded.", "reason", member.control.ignored)
        yield _counter("joins", "Attempts to get the log from a peer, or to begin it.", replica.joins)
        yield _counter("snapshots_served", "Snapshots whose hand-over to a peer began.", replica.offers.served)
        yield _counter("snapshot_sent_bytes", "Bytes of snapshots handed over.", handover.sent_bytes)
        yield _counter("snapshot_received_bytes", "Bytes of snapshots received.", handover.received_bytes)
        yield _counter("handover_failures", "Hand-overs that failed on this side.", handover.failures)
        yield _counter("divergences", "Divergences that this node took part in.", replica.checkpoints.divergences)
        yield from self._persistence()

    def _persistence(self) -> Iterator[Family]:
        store = self._gateway.member.persistence
        lag_s = store.lag_s(time.monotonic())
        yield _gauge("persistence_writer", "Whether this process writes the stored log.", float(store.is_writer))
        yield _gauge("persistence_lag_seconds", "Age of the oldest event not stored yet, at the writer.", lag_s)
        yield _counter("persistence_batches", "Transactions that stored something.", store.batches)
        yield _counter("persistence_events", "Events stored.", store.events)
        yield _counter("persistence_skipped_events", "Events marked as lost instead.", store.mirror.skipped)
        yield _counter("persistence_errors", "Failures to read or write the store.", store.errors)
        yield _counter("persistence_loaded_events", "Events found in the store at the start.", store.loaded_events)

    def _process(self) -> Iterator[Family]:
        yield _gauge("open_descriptors", "Descriptors in use.", self._open_descriptors())
        yield _gauge("descriptors_limit", "Descriptors this process may have.", self._gateway.max_descriptors)
        yield _counter("log_records_dropped", "Log records that found no room.", dropped_records())
        name = PREFIX + "build_info"
        yield Family(name, "gauge", "Always 1; the version is a label.", [(name, {"version": __version__}, 1)])

    def _open_descriptors(self) -> int:
        try:
            return sum(1 for _ in Path("/proc/self/fd").iterdir())
        except OSError:  # there is none left to look with
            return self._gateway.max_descriptors

    def _by_rule(self, counts: Sequence[int]) -> dict[str, int]:
        return dict(zip(self._rules, counts, strict=True))


class Supervised(Protocol):
    """What a supervisor counts."""

    @property
    def running(self) -> int:
        """Workers in service."""

    @property
    def restarts(self) -> int:
        """Workers started again, so far."""

    reloads: dict[str, int]


class SupervisorMetrics:
    """The supervisor's own metrics; a collector for a registry."""

    def __init__(self, supervisor: Supervised) -> None:
        self._supervisor = supervisor

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        yield from map(shown, self._families())

    def _families(self) -> Iterator[Family]:
        supervisor = self._supervisor
        yield _gauge("workers", "Workers in service.", supervisor.running)
        yield _counter("worker_restarts", "Workers started again, because they had ended unasked.", supervisor.restarts)
        yield _counters("reloads", "Reloads of the configuration.", "outcome", supervisor.reloads)


def _gauge(name: str, text: str, value: float) -> Family:
    return Family(PREFIX + name, "gauge", text, [(PREFIX + name, {}, value)])


def _counter(name: str, text: str, value: float) -> Family:
    return Family(PREFIX + name, "counter", text, [(f"{PREFIX}{name}_total", {}, value)])


def _counters(name: str, text: str, label: str, counts: Mapping[Label, int]) -> Family:
    series = f"{PREFIX}{name}_total"
    return Family(PREFIX + name, "counter", text, [(series, {label: value}, count) for value, count in counts.items()])


def _histogram(name: str, text: str, histogram: Histogram) -> Family:
    series = PREFIX + name
    bounds = [*map(str, histogram.bounds), "+Inf"]
    totals = list(map(float, accumulate(histogram.counts)))
    samples: list[Sample] = [
        (f"{series}_bucket", {"le": bound}, total) for bound, total in zip(bounds, totals, strict=True)
    ]
    return Family(
        series, "histogram", text, [*samples, (f"{series}_count", {}, totals[-1]), (f"{series}_sum", {}, histogram.sum)]
    )
