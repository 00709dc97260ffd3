"""Sentinel failovers under load, with two nodes: each is one gap for each client, and live in two seconds."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from tests.conftest import SERVER
from tests.support.cluster_gateways import epochs, node, start_nodes
from tests.support.cluster_load import Client, Load, loaded
from tests.support.gateway_process import poll
from tests.support.sentinels import SentinelSet, sentinel_set

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.support.gateway_process import GatewayProcess, Gateways
    from tests.support.raw_client import Address

NAMES = ["a:1", "a:2", "b:1", "b:2"]
ROUNDS = int(os.environ.get("SSE_GATEWAY_TEST_ROUNDS", "1"))
LIVE_S = 2.0
"""From the announcement of a primary to a log that is live on it."""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelSet]:
    """Run a set for this file, which the tests may break."""
    with sentinel_set(tmp_path_factory.mktemp("s"), kind=SERVER) as started:
        yield started


@pytest.fixture(scope="module")
def nodes(servers: SentinelSet, module_gateways: Gateways) -> list[GatewayProcess]:
    """Run two nodes that know the sentinels."""
    redis = {"liveness_timeout": "5s", "connect_timeout": "5s"}
    return start_nodes(module_gateways, node(servers, redis=redis), node(servers, redis=redis))


@pytest.fixture
def places(nodes: list[GatewayProcess], servers: SentinelSet) -> list[Address]:
    """Where clients may connect; all is well."""
    servers.wait_healthy()
    for gateway in nodes:
        gateway.wait_ready()
    return [gateway.address for gateway in nodes]


def clients_of(places: list[Address]) -> list[Client]:
    """One client that stays on each node, and two that roam."""
    return [
        *(Client("/events/a:*", NAMES[:2], [place]) for place in places),
        Client("/events?channel=a:1&channel=b:2", [NAMES[0], NAMES[3]], places, seed=1, stay=20),
        Client("/events/b:*", NAMES[2:], places, seed=2, stay=40),
    ]


def synced(gateway: GatewayProcess) -> int:
    """How often a node got the log."""
    return len(gateway.records("log.synced"))


def fail_over(servers: SentinelSet, nodes: Sequence[GatewayProcess], load: Load, how: str) -> float:
    """Fail over; returns the seconds from the announcement until all nodes are live on the new primary."""
    before = [synced(gateway) for gateway in nodes]
    at = servers.fail(how)
    load.publisher.move()
    poll(
        lambda: all(synced(gateway) > count for gateway, count in zip(nodes, before, strict=True)),
        timeout_s=20,
        what="the log on the new primary",
    )
    return time.monotonic() - at


def check_gaps(load: Load, count: int) -> None:
    """Hold all clients to a whole view, and to so many gaps, all of them for a lost source."""
    assert load.judge() == []
    for client in load.clients:
        assert set(client.reasons) <= {"source", "epoch"}, (client.target, client.reasons)
        assert len(client.gaps) == count, (client.target, client.reasons)


@pytest.mark.parametrize("how", ["kill", "cut", "freeze"])
def test_a_failover_is_one_gap_and_live_in_two_seconds(
    servers: SentinelSet, nodes: list[GatewayProcess], places: list[Address], how: str
) -> None:
    """I2, I6: a new primary is a new epoch, agreed on by all; what lies between is told once to each client."""
    with loaded(servers, NAMES, clients_of(places)) as load:
        load.wait_published(300)
        seconds = fail_over(servers, nodes, load, how)
        assert seconds < LIVE_S
        load.wait_current()
        assert len(epochs(nodes)) == 1
        servers.mend()
        load.wait_current()

    check_gaps(load, 1)
