"""Metrics of several processes as one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from sse_gateway.aggregate import Aggregate, Family, News, shown as shown_family, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from prometheus_client.core import Metric

PARSE: Callable[[str], Iterable[Metric]] = parse_openmetrics
ADDITIVE = ["open"]


def counter(value: float, **labels: str) -> Family:
    """What a process says of the counter `sent`."""
    return Family("sent", "counter", "Sent.", [("sent_total", labels, value)])


def gauge(name: str, value: float) -> Family:
    """What a process says of a gauge."""
    return Family(name, "gauge", "A gauge.", [(name, {}, value)])


def histogram(*counts: float, bounds: Sequence[str] = ("0.1", "+Inf")) -> Family:
    """What a process says of the histogram `lag`."""
    buckets = list(zip(bounds, counts, strict=True))
    return snapshot([HistogramMetricFamily("lag", "Lag.", buckets=buckets, sum_value=1.0)])[0]


def shown(aggregate: Aggregate, series: str) -> dict[str, float]:
    """The values of a series, by worker, with its other labels."""
    return {
        ",".join(sample.labels[key] for key in ("worker", *sorted(sample.labels.keys() - {"worker"}))): sample.value
        for metric in aggregate.collect()
        for sample in metric.samples
        if sample.name == series
    }


def test_each_worker_has_its_series() -> None:
    """The label is the slot's number as text."""
    aggregate = Aggregate(ADDITIVE)
    for slot in (1, 0):
        aggregate.take(slot, 10 + slot, [counter(slot + 5, rule="a"), gauge("open", slot)])
    assert shown(aggregate, "sent_total") == {"0,a": 5, "1,a": 6}
    assert list(shown(aggregate, "open").items()) == [("0", 0), ("1", 1)]


def test_what_was_said_last_stands() -> None:
    """A report that leaves something out takes nothing back."""
    aggregate = Aggregate(ADDITIVE)
    aggregate.take(0, 1, [counter(5), gauge("open", 3)])
    aggregate.take(0, 1, [counter(7)])
    assert shown(aggregate, "sent_total") == {"0": 7}
    assert shown(aggregate, "open") == {"0": 3}


def test_only_news_is_told() -> None:
    """What has not changed since the last time is left out, whatever else has."""
    news = News()

    told = [
        news.of(families) for families in ([counter(5), gauge("open", 3)], [counter(5), gauge("open", 4)], [counter(5)])
    ]

    assert told == [[counter(5), gauge("open", 3)], [gauge("open", 4)], []]


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.booleans()), max_size=20))
def test_news_add_up_to_everything(steps: list[tuple[int, bool, bool]]) -> None:
    """Whoever is told the news only, and everything now and then, knows of a process that dies what it had counted."""
    aggregate, news, sent = Aggregate(ADDITIVE), News(), 0
    for more, is_asked, is_told in steps:
        sent += more
        if is_asked:
            aggregate.take(0, 1, [counter(sent)])
        if is_told:
            aggregate.take(0, 1, news.of([counter(sent)]))
            assert shown(aggregate, "sent_total") == {"0": sent}
    aggregate.take(0, 1, news.of([counter(sent)]))
    aggregate.end(0, 1)

    assert shown(aggregate, "sent_total") == {"0": sent}


def test_family_is_shown_as_it_was() -> None:
    """From a registry and back nothing is lost."""
    families = [counter(5, rule="a"), gauge("open", 3), histogram(1, 4)]

    assert snapshot(map(shown_family, families)) == families


def test_what_a_dead_process_counted_stays() -> None:
    """Its successor counts on from there; gauges go with it."""
    aggregate = Aggregate(ADDITIVE)
    aggregate.take(0, 1, [counter(5, rule="a"), histogram(1, 4), gauge("open", 3)])
    aggregate.end(0, 1)
    assert shown(aggregate, "sent_total") == {"0,a": 5}
    assert shown(aggregate, "open") == {}
    aggregate.take(0, 2, [counter(2, rule="a"), counter(1, rule="b"), histogram(1, 1), gauge("open", 0)])
    aggregate.end(0, 2)
    aggregate.end(0, 2)
    aggregate.end(0, 3)
    aggregate.take(0, 4, [histogram(0, 1)])
    assert shown(aggregate, "lag_bucket") == {"0,0.1": 2, "0,+Inf": 6}
    assert shown(aggregate, "lag_count") == {"0": 6}
    assert shown(aggregate, "lag_sum") == {"0": 3}


def test_two_processes_in_one_place_add_up() -> None:
    """One drains while the next serves: counters and what is held are both's, all else is the newest's."""
    aggregate = Aggregate(ADDITIVE)
    aggregate.take(0, 2, [counter(1), gauge("open", 10), gauge("ready", 1)])
    aggregate.take(0, 1, [counter(5), gauge("open", 3), gauge("ready", 0), gauge("old", 7)])
    assert shown(aggregate, "sent_total") == {"0": 6}
    assert shown(aggregate, "open") == {"0": 13}
    assert shown(aggregate, "ready") == {"0": 1}
    assert shown(aggregate, "old") == {"0": 7}
    aggregate.end(0, 1)
    assert shown(aggregate, "sent_total") == {"0": 6}
    assert shown(aggregate, "open") == {"0": 10}


def test_a_place_that_is_no_more_keeps_its_count() -> None:
    """After a reload with fewer workers the sum over all does not go back."""
    aggregate = Aggregate(ADDITIVE)
    aggregate.take(0, 1, [counter(5)])
    aggregate.take(1, 2, [counter(6)])
    aggregate.end(1, 2)
    assert shown(aggregate, "sent_total") == {"0": 5, "1": 6}


def test_histograms_with_other_buckets_are_not_added() -> None:
    """Another version's: the newer begins anew."""
    aggregate = Aggregate(ADDITIVE)
    aggregate.take(0, 1, [histogram(1, 4)])
    aggregate.end(0, 1)
    aggregate.take(0, 2, [histogram(1, 2, 3, bounds=["0.2", "0.3", "+Inf"])])
    assert shown(aggregate, "lag_bucket") == {"0,0.2": 1, "0,0.3": 2, "0,+Inf": 3}


STEPS = st.lists(st.tuples(st.sampled_from(["count", "report", "kill", "overlap"]), st.integers(0, 2)), max_size=60)


@given(STEPS)
def test_nothing_ever_goes_back(steps: list[tuple[str, int]]) -> None:
    """Whatever is killed when: each series ascends, and what was reported before an end is never lost."""
    aggregate = Aggregate(ADDITIVE)
    live: dict[int, dict[int, int]] = {slot: {} for slot in range(3)}
    reported: dict[tuple[int, int], int] = {}
    before: dict[str, float] = {}
    for number, (step, slot) in enumerate(steps):
        match step:
            case "overlap":
                live[slot][number] = 0
            case "count":
                live[slot] = {process: count + 1 for process, count in live[slot].items()}
            case "report":
                for process, count in live[slot].items():
                    aggregate.take(slot, process, [counter(count), histogram(count, count)])
                    reported[slot, process] = count
            case _ if live[slot]:  # kill
                process = min(live[slot])
                del live[slot][process]
                aggregate.end(slot, process)
            case _:
                pass
        now = shown(aggregate, "sent_total")
        assert all(now[worker] >= value for worker, value in before.items())
        before = now
    for slot in range(3):
        assert before.get(str(slot), 0) == sum(count for (place, _), count in reported.items() if place == slot)


def test_what_collectors_show_is_taken_as_it_is() -> None:
    """Through snapshot and aggregate it comes out as valid OpenMetrics, every series of a histogram together."""
    sent = CounterMetricFamily("sent", "Sent.", labels=["rule"])
    sent.add_metric(['odd"\\{'], 3)
    lag = HistogramMetricFamily("lag", "Lag.", buckets=[("0.1", 1), ("+Inf", 2)], sum_value=0.5)
    aggregate = Aggregate(ADDITIVE)
    for slot in range(2):
        aggregate.take(slot, slot, snapshot([sent, lag, GaugeMetricFamily("open", "Open.", 4)]))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(aggregate)
    encode, _ = choose_encoder("application/openmetrics-text; version=1.0.0")
    families = {family.name: family for family in PARSE(encode(registry).decode())}
    assert families.keys() == {"sent", "lag", "open"}
    assert [sample.labels["worker"] for sample in families["lag"].samples] == ["0"] * 4 + ["1"] * 4
    assert {sample.labels["rule"] for sample in families["sent"].samples} == {'odd"\\{'}
    assert {family.documentation for family in families.values()} == {"Sent.", "Lag.", "Open."}
