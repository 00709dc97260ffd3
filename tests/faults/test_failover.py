"""Sentinel failovers under load, with two nodes: each is one gap for each client, and live in two seconds."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from tests.conftest import SERVER
from tests.support.cluster_gateways import epochs, node, start_nodes, wait_stored
from tests.support.cluster_load import Client, Load, loaded
from tests.support.gateway_process import poll
from tests.support.lateness import lateness
from tests.support.sentinels import SentinelSet, sentinel_set

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.conftest import Connect
    from tests.support.gateway_process import GatewayProcess, Gateways
    from tests.support.raw_client import Address

NAMES = ["a:1", "a:2", "b:1", "b:2"]
ROUNDS = int(os.environ.get("SSE_GATEWAY_TEST_ROUNDS", "1"))
DEAF = """
from sse_gateway.primary import Primary
Primary._move = lambda self, primary: None
"""
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
def places(nodes: list[GatewayProcess]) -> list[Address]:
    """Where clients may connect."""
    return [gateway.address for gateway in nodes]


@pytest.fixture(autouse=True)
def healthy(nodes: list[GatewayProcess], servers: SentinelSet) -> None:
    """Begin with everything well."""
    servers.wait_healthy()
    for gateway in nodes:
        gateway.wait_ready()


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
    """Fail over; returns the seconds from the announcement until all are live on the new primary, less what the machine is late."""
    before = [synced(gateway) for gateway in nodes]
    at = servers.fail(how)
    with lateness() as late:
        load.publisher.move()
        wait_synced(nodes, before)
        return time.monotonic() - at - late.total_s


def wait_synced(nodes: Sequence[GatewayProcess], before: Sequence[int]) -> None:
    """Wait until each node has got the log once more than that."""
    poll(
        lambda: all(synced(gateway) > count for gateway, count in zip(nodes, before, strict=True)),
        timeout_s=40,
        what="the log on the new primary",
    )


def check_gaps(load: Load, count: int) -> None:
    """Hold all clients to a whole view, and to so many gaps, all of them for a lost source."""
    assert load.judge() == []
    for client in load.clients:
        assert set(client.reasons) <= {"source", "epoch"}, (client.target, client.reasons)
        assert len(client.gaps) == count, (client.target, client.reasons)


@pytest.mark.timeout(120 + 60 * ROUNDS)
@pytest.mark.parametrize("how", ["kill", "cut", "freeze"])
def test_a_failover_is_one_gap_and_live_in_two_seconds(
    servers: SentinelSet,
    nodes: list[GatewayProcess],
    places: list[Address],
    how: str,
) -> None:
    """I2, I6: a new primary is a new epoch, agreed on by all; what lies between is told once to each client."""
    seconds = []
    with loaded(servers, NAMES, clients_of(places), rate=500) as load:
        for _ in range(ROUNDS):
            load.wait_published(200)
            seconds.append(fail_over(servers, nodes, load, how))
            load.wait_current()
            assert len(epochs(nodes)) == 1
            servers.mend()
            load.wait_current()

    check_gaps(load, ROUNDS)
    assert max(seconds) < LIVE_S, sorted(seconds)


def test_a_cursor_of_before_the_failover_resumes(
    servers: SentinelSet, nodes: list[GatewayProcess], connect: Connect
) -> None:
    """I10: on either node a client gets the rest of the epoch that has ended, one gap, and then the new one."""
    early = connect(nodes[0], "/events/a:old")
    early.wait_open()
    servers.primary.publish("sse:a:old", *(f"old{number}" for number in range(10)))
    early.wait_data("old9")
    before = [synced(gateway) for gateway in nodes]
    servers.fail("kill")
    wait_synced(nodes, before)
    servers.primary.publish("sse:a:old", "new")
    early.wait_data("new")

    for gateway in nodes:
        late = connect(gateway, "/events/a:old", headers={"Last-Event-ID": early.events[3].id})
        late.wait_data("new")
        told = [block.data if not block.own else block.type for block in late.blocks[1:]]
        assert told == [*(f"old{number}" for number in range(4, 10)), "gateway.gap", "new"]
        assert late.blocks[0].json()["replay"] == "gap"
        assert [gap.json() for gap in late.gaps] == [{"reason": "source", "channels": ["a:old"], "missed": None}]
    servers.mend()


def test_sentinels_that_are_away_are_no_reason_to_leave(
    servers: SentinelSet, nodes: list[GatewayProcess], connect: Connect
) -> None:
    """All of them stand still: it is logged, seen in the metric, and nothing else happens."""
    stream = connect(nodes[0], "/events/a:away")
    stream.wait_open()
    losses = nodes[0].metric("sse_gateway_source_losses_total")
    lost, named = (len(nodes[0].records(event)) for event in ("sentinels.lost", "sentinels.named"))
    nodes[0].wait_metric("sse_gateway_sentinels", 3)
    for sentinel in servers.sentinels:
        sentinel.freeze()
    nodes[0].wait_log("sentinels.lost", count=lost + 1)
    nodes[0].wait_metric("sse_gateway_sentinels", 0)
    nodes[0].wait_ready()
    servers.primary.publish("sse:a:away", "hello")
    stream.wait_data("hello")
    for sentinel in servers.sentinels:
        sentinel.thaw()

    nodes[0].wait_log("sentinels.named", count=named + 1)
    nodes[0].wait_metric("sse_gateway_sentinels", 3)
    assert nodes[0].metric("sse_gateway_source_losses_total") == losses


def test_the_store_goes_on_at_the_new_primary(servers: SentinelSet, gateways: Gateways, connect: Connect) -> None:
    """What was stored before the failover and after it is there when all nodes die later."""
    (storing,) = start_nodes(gateways, node(servers, cluster={"name": "stores"}, persistence={"mode": "redis"}))
    stream = connect(storing, "/events/a:stored")
    stream.wait_open()
    servers.primary.publish("sse:a:stored", "before")
    stream.wait_data("before")
    wait_stored(storing)
    count = synced(storing)
    servers.fail("kill")
    wait_synced([storing], [count])
    servers.primary.publish("sse:a:stored", "first")
    stream.wait_data("first")
    cursor = stream.events[-1].id
    servers.primary.publish("sse:a:stored", "second")
    wait_stored(storing)
    storing.kill()
    servers.primary.publish("sse:a:stored", "lost")
    storing.start()
    servers.primary.publish("sse:a:stored", "live")

    late = connect(storing, "/events/a:stored", headers={"Last-Event-ID": cursor})
    late.wait_data("live")
    told = [block.json()["reason"] if block.own else block.data for block in late.blocks[1:]]
    assert told == ["second", "source", "live"]
    servers.mend()


def test_a_node_deaf_to_the_sentinels_is_found_out(
    servers: SentinelSet, gateways: Gateways, connect: Connect, tmp_path: Path
) -> None:
    """2.3.6: role, run id and markers are all well at a primary that is cut off; only the sentinels know better."""
    (tmp_path / "sitecustomize.py").write_text(DEAF)
    (deaf,) = start_nodes(gateways, node(servers, cluster={"name": "deaf"}), patch=tmp_path)
    stream = connect(deaf, "/events/a:deaf")
    stream.wait_open()
    servers.fail("cut")
    servers.replica.publish("sse:a:deaf", "old")
    stream.wait_data("old")
    servers.primary.publish("sse:a:deaf", "new")
    round_trips = deaf.metric("sse_gateway_source_round_trip_seconds_count")
    deaf.wait_until(lambda: deaf.metric("sse_gateway_source_round_trip_seconds_count") >= round_trips + 3, 30, "checks")

    assert stream.data == ["old"]
    assert deaf.metric("sse_gateway_source_losses_total") == 0
    deaf.wait_ready()
    servers.mend()
    stream.wait_type("gateway.gap")
