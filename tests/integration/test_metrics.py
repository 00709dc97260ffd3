"""What /metrics says is well-formed, closed, true, and costs the streams nothing."""

from __future__ import annotations

import contextlib
import math
import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from sse_gateway.control import Ignored
from sse_gateway.reasons import (
    AccessFailure,
    CloseReason,
    DropReason,
    GapReason,
    Policy,
    Refusal,
    RejectReason,
    Replay,
)
from tests.support.gateway_process import (
    AUDIENCES,
    CONNECTIONS,
    DELIVERIES,
    MARKER,
    STREAM_CLOSED,
    STREAMS_CLOSED,
    STREAMS_OPENED,
    configuration,
    rule,
)
from tests.support.lateness import lateness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client.metrics_core import Metric

    from tests.conftest import Connect
    from tests.support.gateway_process import GatewayProcess, Gateways, Metrics
    from tests.support.raw_client import Stream
    from tests.support.valkey import Valkey

KIB = 1_024
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
FORMATS: dict[str, Callable[[str], Iterable[Metric]]] = {"*/*": parse_text, OPENMETRICS: parse_openmetrics}
PATTERNS = ["sse:json:*", 'sse:odd"\\\\{label="x"}*', "sse:*"]
LABELS = {
    "rule": set(PATTERNS),
    "policy": {policy.value for policy in Policy},
    "worker": {"0"},
}
OUTCOMES = {
    "replays": {outcome.value for outcome in Replay},
    "reloads": {"ok", "failed"},
    "access_checks": {"new", "remembered"},
    "callback_answers": {"ok", "refused", "failed"},
    "jwks_fetches": {"ok", "failed"},
}
REASONS = {
    "streams_closed": CloseReason,
    "streams_refused": Refusal,
    "connections_dropped": DropReason,
    "access_refused": AccessFailure,
    "messages_rejected": RejectReason,
    "gaps": GapReason,
    "control_ignored": Ignored,
}
LIBRARY = ("sse_gateway_process_", "sse_gateway_supervisor_process_")
"""The client library's own metrics, which keep their names so that everybody's dashboards find them."""

LATENCY = MARKER + "delivery_latency_seconds"
PUBLISH_LATENCY = MARKER + "publish_latency_seconds"
QUEUE_GAUGES = [MARKER + name for name in ("queue_bytes", "queue_fill_ratio", "pass_bytes", "streams_lagging")]


@pytest.fixture(scope="module")
def gateway(valkey: Valkey, module_gateways: Gateways) -> GatewayProcess:
    """Run one gateway for this module, with a pattern that wants escaping."""
    first, odd, last = PATTERNS
    rules = [rule(first, format="json"), rule(odd), rule(last, queue={"max_events": 50})]
    return module_gateways.start(configuration(valkey.url, *rules, stream={"send_buffer": "16KiB"}))


@pytest.fixture
def busy(gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str) -> GatewayProcess:
    """Have a little of everything counted."""
    stream = connect(gateway, f"/events?channel={channel}&channel=json:{channel}")
    stream.wait_open()
    valkey.publish_many(
        [
            (f"sse:{channel}", "x"),
            (f"sse:{channel}", b"\xff"),
            (f"sse:json:{channel}", f'{{"data": 1, "ts": {time.time()}}}'),  # noqa: TID251 - a publisher's clock
            (f"sse:json:{channel}", "no envelope"),
        ]
    )
    stream.wait_events(2)
    connect(gateway, f"/events/{channel}", headers={"Last-Event-ID": "garbage"}).wait_type("gateway.gap")
    return gateway


def histograms(families: Iterable[Metric]) -> list[Metric]:
    """Pick the histograms."""
    return [family for family in families if family.type == "histogram"]


@pytest.mark.parametrize("accept", FORMATS)
def test_both_formats_parse(busy: GatewayProcess, accept: str) -> None:
    """Text and OpenMetrics are taken by the library's own parsers, every family with a help and a type."""
    families = list(FORMATS[accept](busy.admin("/metrics", accept=accept)[2]))

    assert len(families) > 30
    assert [family.name for family in families if not family.documentation or family.type == "unknown"] == []
    assert len({family.name for family in families}) == len(families)


@pytest.mark.parametrize("accept", FORMATS)
def test_histograms_add_up(busy: GatewayProcess, accept: str) -> None:
    """Buckets are cumulative, the last one is the count, and no value is negative."""
    found = histograms(FORMATS[accept](busy.admin("/metrics", accept=accept)[2]))
    assert {family.name for family in found} >= {LATENCY, PUBLISH_LATENCY, MARKER + "source_round_trip_seconds"}
    for family in found:
        buckets = [(float(s.labels["le"]), s.value) for s in family.samples if s.name.endswith("_bucket")]
        values = {s.name.removeprefix(family.name): s.value for s in family.samples if "le" not in s.labels}

        assert buckets == sorted(buckets), family.name
        assert [count for _, count in buckets] == sorted(count for _, count in buckets), family.name
        assert buckets[-1] == (math.inf, values["_count"])
        assert values["_sum"] >= 0


def test_promtool_has_nothing_to_say(busy: GatewayProcess) -> None:
    """Prometheus' own linter accepts names, units and types."""
    if shutil.which("promtool") is None:
        pytest.skip("no promtool on this machine: the names and units of the metrics are NOT checked")
    body = busy.admin("/metrics")[2]
    checked = subprocess.run(["promtool", "check", "metrics"], input=body, capture_output=True, text=True, check=False)

    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_names_and_labels_are_closed_sets(busy: GatewayProcess) -> None:
    """Every label is known, and its value comes from the configuration or from an enum."""
    for family in parse_text(busy.admin("/metrics")[2]):
        if family.name.startswith(LIBRARY):
            continue
        assert family.name.startswith(MARKER)
        for sample in family.samples:
            labels = {key: value for key, value in sample.labels.items() if key != "le"}
            assert len(labels.keys() - {"worker"}) <= 1
            for key, value in labels.items():
                name = family.name.removeprefix(MARKER)
                if key == "reason":
                    assert value in {member.value for member in REASONS[name]}
                elif key == "outcome":
                    assert value in OUTCOMES[name]
                elif key != "version":
                    assert value in LABELS[key], sample


def test_every_reason_is_there_from_the_start(gateways: Gateways, valkey: Valkey) -> None:
    """A counter that has not counted yet is there with zero, so that rates and alerts see its first step."""
    metrics = gateways.start(configuration(valkey.url)).metrics()

    for name, members in REASONS.items():
        told = {s.labels["reason"]: s.value for s in metrics.samples if s.name == f"{MARKER}{name}_total"}
        assert told == {member.value: 0.0 for member in members}


def test_live_deliveries_are_all_in_the_histogram(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """Every live delivery is one observation: to many streams, wrapped or not, quick or slow; a replay is none."""
    targets = [f"/events/{channel}", f"/events/{channel}?wrap=1", f"/events/{channel}*"]
    streams = [connect(gateway, target) for target in targets * 20]
    for stream in streams:
        stream.wait_open()
    before = gateway.metrics()
    for number in range(20):
        valkey.publish_many([(f"sse:{channel}", f"{number} {part}") for part in range(5)])
    for stream in streams:
        stream.wait_events(100)
    gateway.wait_metric(DELIVERIES, before.value(DELIVERIES) + 6_000)
    after = gateway.metrics()
    replayed = connect(gateway, f"/events/{channel}?replay=all")
    replayed.wait_events(100)
    gateway.wait_metric(DELIVERIES, after.value(DELIVERIES) + 100)

    assert after.value(f"{LATENCY}_count") - before.value(f"{LATENCY}_count") == 6_000
    assert gateway.metric(f"{LATENCY}_count") == after.value(f"{LATENCY}_count")
    assert 0 < after.value(f"{LATENCY}_sum") - before.value(f"{LATENCY}_sum") < 6_000
    assert after.value(f"{PUBLISH_LATENCY}_count") == before.value(f"{PUBLISH_LATENCY}_count")


def test_late_deliveries_are_in_the_histogram_too(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """What waited for a slow client is observed when it is handed over; what was dropped for it is not."""
    slow = connect(gateway, f"/events/{channel}", receive_buffer=4 * KIB)
    slow.wait_open()
    before = gateway.metrics()
    for number in range(400):
        valkey.publish(f"sse:{channel}", f"{number}:" + "x" * KIB)
    gateway.wait_until(lambda: gateway.metric(MARKER + "streams_lagging") == 1, 20, "stalled stream")
    slow.wait_for(lambda s: s.data and s.data[-1].startswith("399:"))
    gateway.wait_metric(MARKER + "streams_lagging", 0)
    after = gateway.metrics()

    assert slow.gaps
    assert after.value(DELIVERIES) - before.value(DELIVERIES) == len(slow.events)
    assert after.value(f"{LATENCY}_count") - before.value(f"{LATENCY}_count") == len(slow.events)


def test_a_publishers_clock_is_observed(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """Of an envelope with a plausible `ts` the time since then is observed, once per delivery."""
    streams = [connect(gateway, f"/events/json:{channel}") for _ in range(3)]
    for stream in streams:
        stream.wait_open()
    before = gateway.metrics()
    now = time.time()  # noqa: TID251 - a publisher's clock
    stamps = ["", f', "ts": {now - 7}', f', "ts": {now - 7}', f', "ts": {now - 200_000}', f', "ts": {now + 60}']
    valkey.publish_many([(f"sse:json:{channel}", f'{{"data": 1{stamp}}}') for stamp in stamps])
    for stream in streams:
        stream.wait_events(5)
    gateway.wait_metric(DELIVERIES, before.value(DELIVERIES) + 15)
    after = gateway.metrics()

    assert after.value(f"{PUBLISH_LATENCY}_count") - before.value(f"{PUBLISH_LATENCY}_count") == 9
    assert 42 <= after.value(f"{PUBLISH_LATENCY}_sum") - before.value(f"{PUBLISH_LATENCY}_sum") < 72


def test_the_clock_and_the_link_are_observed_while_nothing_happens(gateway: GatewayProcess) -> None:
    """Loop lag and round trips go on without a stream and without a message."""
    for name in ("loop_lag_seconds_count", "source_round_trip_seconds_count"):
        before = gateway.metric(MARKER + name)
        gateway.wait_until(lambda name=name, before=before: gateway.metric(MARKER + name) > before, 20, name)  # type: ignore[misc] # mypy cannot infer a lambda with defaults

    assert gateway.metric(MARKER + "source_live") == 1
    assert gateway.metric(MARKER + "ready") == 1
    assert gateway.metric(MARKER + "build_info") == 1


def stall(connect: Connect, gateway: GatewayProcess, target: str) -> Stream:
    """Open a stream that nobody reads."""
    stream = connect(gateway, target, receive_buffer=4 * KIB)
    stream.wait_open()
    return stream


def test_gauges_of_queues_return_to_zero(gateways: Gateways, valkey: Valkey, connect: Connect, channel: str) -> None:
    """I8: after stalled streams have ended in every way, nothing is left on the books, and every end was counted."""
    config = configuration(
        valkey.url,
        rule("sse:disc:*", queue={"max_events": 20, "policy": "disconnect"}),
        rule("sse:latest:*", queue={"max_events": 20, "policy": "latest"}),
        rule("sse:*", prefix=True, queue={"max_events": 50}),
        stream={"send_buffer": "16KiB", "write_timeout": "4s"},
    )
    gateway = gateways.start(config)
    names = [f"disc:{channel}", f"latest:{channel}", channel]
    ways = ["close", "reset", "half_close", "describe"]  # the last one does nothing: `write_timeout` ends it
    streams = [(stall(connect, gateway, f"/events/{name}"), way) for name in names for way in ways]
    streams += [(stall(connect, gateway, f"/events/{channel}*?wrap=1"), way) for way in ways]
    for number in range(100):
        valkey.publish_many([(f"sse:{name}", f"{number}:" + "x" * 4 * KIB) for name in names])
    gateway.wait_until(lambda: gateway.metric(MARKER + "queue_bytes") > 0, 20, "queue")
    for stream, way in streams:
        with contextlib.suppress(OSError):  # the gateway may have been faster
            getattr(stream, way)()
    gateway.wait_metric(CONNECTIONS, 0)
    metrics = gateway.metrics()

    assert {name: metrics.value(name) for name in QUEUE_GAUGES} == dict.fromkeys(QUEUE_GAUGES, 0.0)
    assert metrics.value(AUDIENCES) == 0
    assert metrics.value(STREAMS_OPENED) == metrics.value(STREAMS_CLOSED) == len(streams)
    ended = gateway.wait_log(STREAM_CLOSED, count=len(streams))
    assert by_reason(metrics) == {r: sum(e["reason"] == r for e in ended) for r in {e["reason"] for e in ended}}
    assert set(by_reason(metrics)) >= {"client", "slow", "timeout"}


def by_reason(metrics: Metrics) -> dict[str, int]:
    """Ends of streams, those that have happened only."""
    return {s.labels["reason"]: int(s.value) for s in metrics.samples if s.name == STREAMS_CLOSED and s.value}


def test_scrapes_that_stall_cost_the_streams_nothing(
    gateways: Gateways, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """I4: scrapers that ask and never read, and those that never finish asking, delay neither events nor the end."""
    gateway = gateways.start(configuration(valkey.url))
    admin = (gateway.config["admin"]["host"], gateway.config["admin"]["port"])
    request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    stalled: list[socket.socket] = []
    try:
        for asked in [request * 200, request * 200, request, request[:20], b""]:
            connection = socket.socket()
            stalled.append(connection)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * KIB)
            connection.connect(admin)
            connection.sendall(asked)
        stream = connect(gateway, f"/events/{channel}")
        stream.wait_open()
        with lateness() as late:
            for number in range(50):
                began = time.monotonic()
                valkey.publish(f"sse:{channel}", str(number))
                stream.wait_data(str(number))
                assert time.monotonic() - began < 2 + late.total_s
        assert gateway.admin_status("/readyz") == 200
        with lateness() as late:
            began = time.monotonic()
            assert gateway.stop() == 0
            assert time.monotonic() - began < 5 + late.total_s
    finally:
        for connection in stalled:
            connection.close()
