"""Redis and the links to it fail under two nodes: as long as one node has the log there is no gap, else one."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.conftest import SERVER
from tests.support.cluster_gateways import links, node, start_nodes, wait_links
from tests.support.cluster_load import Client, loaded
from tests.support.gateway_process import poll
from tests.support.lateness import lateness
from tests.support.streams import settle
from tests.support.valkey import Valkey, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.cluster_load import Load
    from tests.support.gateway_process import GatewayProcess, Gateways
    from tests.support.raw_client import Address

NAMES = ["a:1", "a:2", "b:1", "b:2"]
LIVENESS_S = 2
MIB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Run a server for this file, which the tests may break."""
    with running(tmp_path_factory.mktemp("server"), kind=SERVER) as started:
        yield started


@pytest.fixture(scope="module")
def nodes(server: Valkey, module_gateways: Gateways) -> list[GatewayProcess]:
    """Run two nodes that notice soon when Redis is dead."""
    redis = {"liveness_timeout": f"{LIVENESS_S}s"}
    return start_nodes(module_gateways, node(server, redis=redis), node(server, redis=redis))


@pytest.fixture
def places(nodes: list[GatewayProcess]) -> list[Address]:
    """Where clients may connect; both nodes are ready."""
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


@contextmanager
def frozen(server: Valkey) -> Iterator[None]:
    """Freeze the server for the length of a ``with`` block."""
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


def heartbeats(client: Client) -> int:
    """Count a client's heartbeats."""
    return sum(block.type == "gateway.heartbeat" for block in client.blocks)


def check_gaps(load: Load, at_least: int, at_most: int) -> None:
    """Hold all clients to a whole view, and to so many gaps for the lost link."""
    assert load.judge() == []
    for client in load.clients:
        assert at_least <= len(client.gaps) <= at_most, (client.target, client.reasons)
        assert set(client.reasons) <= {"source", "epoch"}


# -- links


def test_all_links_killed_are_one_gap_each_time(server: Valkey, places: list[Address]) -> None:
    """I2, I6: when nobody has the log any more each client is told once, and is current again."""
    with loaded(server, NAMES, clients_of(places)) as load:
        for _ in range(3):
            assert server.kill_subscribers() == 2
            wait_links(server, 2)
            load.wait_current()

    check_gaps(load, 3, 3)


def test_one_link_killed_is_no_gap(server: Valkey, places: list[Address]) -> None:
    """I6: what one node missed it gets from the other, and its clients are current in two seconds."""
    with lateness() as late, loaded(server, NAMES, clients_of(places)) as load:
        for victim in (0, 1):
            server.link.call("CLIENT", "KILL", "ID", wait_links(server, 2)[victim])
            load.wait_current()
            load.wait_published(500)

    check_gaps(load, 0, 0)
    assert max(load.delay(client) for client in load.clients) < 2 + late.total_s


def test_a_node_that_redis_cuts_for_not_reading_is_no_gap(
    server: Valkey, nodes: list[GatewayProcess], places: list[Address]
) -> None:
    """I2, I6: a stopped worker is cut at the output buffer's limit; woken, it makes up for it from its peer."""
    worker = nodes[1].worker_pid
    server.config_set("client-output-buffer-limit", f"pubsub {4 * MIB} 0 0")
    try:
        with loaded(server, NAMES, clients_of(places)) as load:
            load.wait_published(200)
            before = links(server)
            os.kill(worker, signal.SIGSTOP)
            while links(server) == before:
                server.publish_many([("sse:bulk", "x" * 8 * 1024)] * 128)
                settle(server, nodes[0])  # that one keeps up
            os.kill(worker, signal.SIGCONT)
            wait_links(server, 2)
            load.wait_current()
    finally:
        server.config_set("client-output-buffer-limit", f"pubsub {32 * MIB} {8 * MIB} 60")

    check_gaps(load, 0, 0)


# -- the server


def test_a_frozen_redis_is_one_gap(server: Valkey, nodes: list[GatewayProcess], places: list[Address]) -> None:
    """I2: all nodes give up a Redis that is silent for longer than they wait; each client is told once."""
    with loaded(server, NAMES, clients_of(places)) as load:
        load.wait_published(200)
        with frozen(server):
            for gateway in nodes:
                gateway.wait_not_ready()
        load.wait_current()

    check_gaps(load, 1, 1)


def test_a_redis_that_is_frozen_for_less_is_no_gap(server: Valkey, places: list[Address]) -> None:
    """A stall below `liveness_timeout` is only a delay."""
    with loaded(server, NAMES, clients_of(places)) as load:
        load.wait_published(200)
        with frozen(server):
            before = sum(map(heartbeats, load.clients))
            load.wait(lambda: sum(map(heartbeats, load.clients)) > before, LIVENESS_S, "a heartbeat")
        load.wait_current()

    check_gaps(load, 0, 0)


def test_a_redis_that_dies_is_one_gap(server: Valkey, places: list[Address]) -> None:
    """I2: a Redis that is killed and comes back begins anew; each client is told once."""
    with loaded(server, NAMES, clients_of(places)) as load:
        load.wait_published(500)
        server.restart()
        wait_links(server, 2)
        load.wait_current()

    check_gaps(load, 1, 1)


# -- the nodes


def test_clients_that_come_to_a_node_that_stood_still_see_no_gap(
    server: Valkey, nodes: list[GatewayProcess], places: list[Address]
) -> None:
    """I10: a cursor ahead of a node is held until the node has come as far."""
    worker = nodes[1].worker_pid
    where = [places[0]]
    clients = [Client(f"/events/{name}", [name], where) for name in NAMES]
    with loaded(server, NAMES, clients) as load:
        load.wait_published(500)
        os.kill(worker, signal.SIGSTOP)
        load.wait_published(500)
        where[:] = [places[1]]
        for client in clients:
            client.move()
        load.wait_published(1_500)
        os.kill(worker, signal.SIGCONT)
        load.wait_current()

    check_gaps(load, 0, 0)
    assert [client.visits for client in clients] == [2, 2, 2, 2]


def test_a_node_that_stood_still_makes_up_for_it(
    server: Valkey, nodes: list[GatewayProcess], places: list[Address]
) -> None:
    """A stopped process reads what has come meanwhile: a delay, and neither a gap nor a lost link."""
    losses = nodes[0].metric("sse_gateway_source_losses_total")
    with loaded(server, NAMES, clients_of(places)) as load:
        load.wait_published(200)
        os.kill(nodes[0].worker_pid, signal.SIGSTOP)
        load.wait_published(2_000)
        os.kill(nodes[0].worker_pid, signal.SIGCONT)
        load.wait_current()

    check_gaps(load, 0, 0)
    poll(lambda: nodes[0].metric("sse_gateway_source_losses_total") == losses, timeout_s=5, what="the same link")
