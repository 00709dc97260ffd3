from __future__ import annotations

from sse_gateway.reasons import CloseReason, GapReason, Policy, Refusal, RejectReason, Replay
from sse_gateway.tally import LATENCY_BOUNDS_S, Histogram, Tally


def test_histogram() -> None:
    """A value is counted in the first bucket whose bound it does not exceed, many at once."""
    histogram = Histogram((1.0, 2.0))

    for value, count in [(0.5, 1), (1.0, 2), (1.5, 4), (2.0, 8), (9.0, 16)]:
        histogram.add(value, count)

    assert histogram.counts == [3, 12, 16]
    assert histogram.sum == 0.5 + 2 * 1.0 + 4 * 1.5 + 8 * 2.0 + 16 * 9.0


def test_latency_bounds() -> None:
    """Latencies have ascending buckets, and one for what is beyond them."""
    histogram = Histogram()

    assert list(histogram.bounds) == sorted(set(LATENCY_BOUNDS_S))
    assert len(histogram.counts) == len(LATENCY_BOUNDS_S) + 1


def test_every_label_begins_at_zero() -> None:
    """Every label of the closed sets is there from the start, so that a metric never appears late."""
    tally = Tally(2)

    assert [tally.messages, tally.events, tally.duplicates] == [[0, 0]] * 3
    for counters, labels in [
        (tally.rejected, RejectReason),
        (tally.dropped, Policy),
        (tally.gaps, GapReason),
        (tally.replays, Replay),
        (tally.closed, CloseReason),
        (tally.refused, Refusal),
    ]:
        assert counters == dict.fromkeys(labels, 0)
