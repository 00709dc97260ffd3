"""What has been counted: plain numbers that the core adds up and the metrics read.

Labels are closed sets (rule, reason, policy), never a channel, a client or a cursor.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from sse_gateway.reasons import AccessFailure, CloseReason, GapReason, Policy, Refusal, RejectReason, Replay

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Label = TypeVar("Label")

LATENCY_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of latency buckets, seconds."""


class Histogram:
    """Counts values in buckets, many at once.

    Attributes:
        bounds: Upper bounds, ascending; one more bucket holds what is beyond the last.
        counts: Values per bucket, not cumulative.
        sum: Sum of all values.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float] = LATENCY_BOUNDS_S) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, count: int) -> None:
        """Count the same value `count` times."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.sum += value * count


class Tally:
    """The gateway's counters since it started; only ever added to, but for the two gauges.

    Attributes:
        messages: Messages counted in the log, per rule index.
        events: Events made of them, per rule index.
        duplicates: Messages dropped for a known idempotency key, per rule index.
        rejected: Messages rejected, per reason.
        deliveries: Events handed to sockets.
        bytes: Bytes of blocks handed to sockets.
        dropped: Events that a stream's policy dropped.
        gaps: Gap blocks told, per reason.
        replays: Streams opened, per outcome of their replay.
        opened: Streams opened.
        closed: Streams ended, per reason.
        refused: Temporary refusals, per reason.
        latency: From Redis' bytes to the socket, every delivery.
        publish_latency: From the publisher's `ts` to the socket, every delivery that has one.
        round_trip: Our marker through Redis and back.
        queue_bytes: Gauge: bytes waiting in all outboxes.
        pass_bytes: Gauge: bytes waiting in passes.
    """

    def __init__(self, rules: int) -> None:
        self.messages = [0] * rules
        self.events = [0] * rules
        self.duplicates = [0] * rules
        self.rejected = _zero(RejectReason)
        self.deliveries = 0
        self.bytes = 0
        self.dropped = _zero(Policy)
        self.gaps = _zero(GapReason)
        self.replays = _zero(Replay)
        self.opened = 0
        self.closed = _zero(CloseReason)
        self.refused = _zero(Refusal)
        self.latency = Histogram()
        self.publish_latency = Histogram()
        self.round_trip = Histogram()
        self.queue_bytes = 0
        self.pass_bytes = 0


def _zero(labels: Iterable[Label]) -> dict[Label, int]:
    return dict.fromkeys(labels, 0)


@dataclass(frozen=True, slots=True)
class AccessCounts:
    """Who was let in, and who was not, so far; all zero where nobody is asked for anything.

    Attributes:
        refused: Requests not let in, by reason.
        new: Credentials that were judged.
        remembered: Credentials that had been judged before.
        answers: Questions to the application, by outcome.
        fetches: Fetches of published keys, by outcome.
        keys: Published keys that are usable.
        revocations: That hold.
        displaced: Revocations that a full list has let go of.
        ignored: Revocations that did not verify.
    """

    refused: Mapping[AccessFailure, int] = field(default_factory=lambda: dict.fromkeys(AccessFailure, 0))
    new: int = 0
    remembered: int = 0
    answers: Mapping[str, int] = field(default_factory=lambda: {"ok": 0, "refused": 0, "failed": 0})
    fetches: Mapping[str, int] = field(default_factory=lambda: {"ok": 0, "failed": 0})
    keys: int = 0
    revocations: int = 0
    displaced: int = 0
    ignored: int = 0
