"""The admin listener: metrics in both formats with closed labels, liveness, readiness."""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING

import pytest

from tests.support.gateway_process import DELIVERIES, MARKER, STREAMS_OPENED, configuration, rule

if TYPE_CHECKING:
    from tests.conftest import Connect
    from tests.support.gateway_process import GatewayProcess, Gateways
    from tests.support.valkey import Valkey

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


@pytest.fixture(scope="module")
def gateway(valkey: Valkey, module_gateways: Gateways) -> GatewayProcess:
    """Run one gateway for this module."""
    return module_gateways.start(configuration(valkey.url, rule("sse:json:*", format="json"), rule("sse:*")))


def test_metrics_come_as_text(gateway: GatewayProcess) -> None:
    """A scraper that asks for nothing gets the text format."""
    status, content_type, body = gateway.admin("/metrics")

    assert status == 200
    assert content_type.startswith("text/plain")
    assert STREAMS_OPENED in body


def test_metrics_come_as_openmetrics(gateway: GatewayProcess) -> None:
    """A scraper that asks for OpenMetrics gets it."""
    status, content_type, body = gateway.admin("/metrics", accept=OPENMETRICS)

    assert status == 200
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith("# EOF\n")


def test_metrics_have_our_names_and_closed_labels(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """Every name begins with ours but those every Python program has, and no label ever holds a channel, a client or a cursor."""
    stream = connect(gateway, f"/events/{channel}")
    stream.wait_open()
    valkey.publish(f"sse:{channel}", "x")
    stream.wait_events(1)
    metrics = gateway.metrics()

    names = {sample.name for sample in metrics.samples}
    assert {name for name in names if not name.startswith(MARKER)} == set()
    assert channel not in gateway.admin("/metrics")[2]
    values = {value for sample in metrics.samples for key, value in sample.labels.items() if key != "le"}
    assert all(re.fullmatch(r"[a-z0-9_.:*+-]{1,40}", value) for value in values), values


def test_metrics_do_not_grow_with_channels(
    gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str
) -> None:
    """The number of series is the same after a thousand channels as before."""
    stream = connect(gateway, f"/events/{channel}*")
    stream.wait_open()
    valkey.publish(f"sse:{channel}", "x")
    stream.wait_events(1)
    before = len(gateway.metrics().samples)
    valkey.publish_many([(f"sse:{channel}{number}", "x") for number in range(1_000)])
    stream.wait_events(1_001)

    assert len(gateway.metrics().samples) == before


def test_deliveries_are_counted(gateway: GatewayProcess, valkey: Valkey, connect: Connect, channel: str) -> None:
    """Every event handed to a stream counts."""
    streams = [connect(gateway, f"/events/{channel}") for _ in range(3)]
    for stream in streams:
        stream.wait_open()
    before = gateway.metric(DELIVERIES)
    valkey.publish_many([(f"sse:{channel}", "x")] * 5)
    for stream in streams:
        stream.wait_events(5)

    gateway.wait_metric(DELIVERIES, before + 15)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_the_admin_listener_answers(gateway: GatewayProcess, path: str) -> None:
    """A gateway in service is alive, ready, and can be scraped."""
    assert gateway.admin_status(path) == 200


@pytest.mark.parametrize("path", ["/events/a", "/events?channel=a", "/nothing"])
def test_the_admin_listener_serves_no_streams(gateway: GatewayProcess, path: str) -> None:
    """Streams belong to the public listener."""
    assert gateway.admin_status(path) == 404


# -- the token

TOKEN = "t0ken-" * 4
OTHER = "0ther-" * 4


@pytest.fixture(scope="module")
def guarded(valkey: Valkey, module_gateways: Gateways) -> GatewayProcess:
    """Run a gateway whose admin listener asks for a token."""
    return module_gateways.start(configuration(valkey.url, admin={"token": TOKEN}))


@pytest.mark.parametrize("path", ["/metrics", "/", "/api/x", "/nothing", "/healthz/", "//healthz", "/%2568ealthz"])
@pytest.mark.parametrize(
    "given", ["", "Bearer", f"Bearer {OTHER}", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN, "Bearer \xe9"]
)
def test_without_the_token_nothing_but_health_is_told(guarded: GatewayProcess, path: str, given: str) -> None:
    """Whatever exists and whatever does not; and the answer says what is missing, not what was sent."""
    status, content_type, body = guarded.admin(path, headers={"Authorization": given} if given else {})

    assert (status, content_type) == (401, "application/problem+json; charset=utf-8")
    assert TOKEN not in body
    assert OTHER not in body


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_the_token_opens_the_admin_listener(guarded: GatewayProcess, scheme: str) -> None:
    """As Prometheus sends it."""
    assert guarded.admin("/metrics", headers={"Authorization": f"{scheme} {TOKEN}"})[0] == 200
    assert guarded.admin("/nothing", headers={"Authorization": f"{scheme} {TOKEN}"})[0] == 404


def test_health_asks_for_no_token(guarded: GatewayProcess) -> None:
    """Whoever checks it has none."""
    assert [guarded.admin_status(path) for path in ("/healthz", "/readyz")] == [200, 200]


@pytest.mark.parametrize(
    "line", [f"Authorization: Bearer {TOKEN}\x01", f"Authorization : Bearer {TOKEN}", f"{TOKEN}\xff: x"]
)
def test_a_request_that_cannot_be_read_is_not_quoted_in_the_log(gateways: Gateways, valkey: Valkey, line: str) -> None:
    """It may hold the token."""
    gateway = gateways.start(configuration(valkey.url, admin={"token": TOKEN}))
    admin = gateway.config["admin"]
    with socket.create_connection((admin["host"], admin["port"]), 5) as connection:
        connection.sendall(f"GET /metrics HTTP/1.1\r\nHost: x\r\n{line}\r\n\r\n".encode("latin-1"))
        assert connection.recv(12) == b"HTTP/1.0 400"
    gateway.stop()
    assert TOKEN not in str(gateway.logs)
    assert not [record for record in gateway.logs if record["level"] == "error"]


def test_a_reload_changes_the_token(gateways: Gateways, valkey: Valkey) -> None:
    """On the same address; the former one is good for nothing then, and neither is in the log."""
    gateway = gateways.start(configuration(valkey.url, admin={"token": TOKEN}))
    gateway.config["admin"]["token"] = OTHER
    gateway.reload()
    gateway.wait_log("reload.done")

    def status(token: str) -> int:
        return gateway.admin("/metrics", headers={"Authorization": f"Bearer {token}"})[0]

    assert [status(OTHER), status(TOKEN)] == [200, 401]
    assert not any(token in str(gateway.logs) for token in (TOKEN, OTHER))
