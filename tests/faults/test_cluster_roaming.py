"""Clients that roam over workers and nodes, while these die: nothing is missing, nothing comes twice, no gap."""

from __future__ import annotations

import os
import random
import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.cluster_gateways import kill_node, kill_worker, links, node, start_nodes, wait_links
from tests.support.cluster_load import Client, loaded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.support.cluster_load import Load
    from tests.support.gateway_process import GatewayProcess, Gateways
    from tests.support.raw_client import Address
    from tests.support.valkey import Valkey

ROUNDS = int(os.environ.get("SSE_GATEWAY_TEST_ROUNDS", "1"))
"""How many times as long as usual."""

NAMES = ["news:a", "news:b", "news:c", "news:d", "talk:a", "talk:b", "talk:c", "talk:d"]
BUSY = [*NAMES, *4 * NAMES[:1]]
"""Who follows one channel alone comes and goes as often as the others."""


@pytest.fixture(scope="module")
def nodes(valkey: Valkey, module_gateways: Gateways) -> list[GatewayProcess]:
    """Run two nodes, the first with two workers."""
    cluster = {"name": "roaming"}
    return start_nodes(module_gateways, node(valkey, workers=2, cluster=cluster), node(valkey, cluster=cluster))


def roaming(places: Sequence[Address], stay: int) -> list[Client]:
    """Clients of every kind that stay for a few blocks and come back anywhere."""
    several = "&".join(f"channel={name}" for name in NAMES[2:6])
    return [
        Client("/events/news:a", NAMES[:1], places, seed=1, stay=stay),
        Client(f"/events?{several}", NAMES[2:6], places, seed=2, stay=stay),
        Client("/events/talk:*", NAMES[4:], places, seed=3, stay=stay),
    ]


def test_a_client_that_comes_back_a_thousand_times_anywhere_misses_nothing(
    valkey: Valkey, nodes: list[GatewayProcess]
) -> None:
    """I1, I2: 1,000 reconnects at random to two workers and another node, at 1,000 events a second."""
    clients = roaming([started.address for started in nodes], stay=2)
    with loaded(valkey, BUSY, clients) as load:
        load.wait(lambda: min(client.visits for client in clients) >= 1_000 * ROUNDS, 100 * ROUNDS, "reconnects")

    assert load.judge() == []
    assert [client.reasons for client in clients] == [[], [], []]


def cut_link(valkey: Valkey, nodes: list[GatewayProcess], dice: random.Random) -> None:
    """Cut one worker's link to Redis."""
    before = links(valkey)
    valkey.link.call("CLIENT", "KILL", "ID", dice.choice(before))
    wait_links(valkey, len(before))
    for gateway in nodes:
        gateway.wait_ready()


def stand_still(gateway: GatewayProcess, load: Load, dice: random.Random) -> None:
    """Stop one worker for a while."""
    worker = dice.choice(gateway.worker_pids())
    os.kill(worker, signal.SIGSTOP)
    load.wait_published(dice.randint(100, 3_000))
    os.kill(worker, signal.SIGCONT)
    gateway.wait_ready()


def reload(gateway: GatewayProcess) -> None:
    """Replace a node's workers."""
    done, old = len(gateway.records("reload.done")), set(gateway.worker_pids())
    gateway.reload()
    gateway.wait_log("reload.done", count=done + 1, timeout_s=60)
    gateway.wait_until(lambda: not old & set(gateway.worker_pids()), 20, "end of the old workers")


def test_workers_and_nodes_that_die_again_and_again_change_nothing_in_that(
    valkey: Valkey, nodes: list[GatewayProcess]
) -> None:
    """I1, I2, I6: as long as one of them has the log, `kill -9` of workers and nodes is no gap.

    In longer runs whatever else can befall one of them, too.
    """
    dice = random.Random(ROUNDS)
    places = [started.address for started in nodes]
    clients = [*roaming(places, stay=40), Client("/events/news:*", NAMES[:4], places, seed=4)]
    with loaded(valkey, BUSY, clients) as load:
        faults: list[Callable[[], None]] = [
            lambda: kill_worker(nodes[0], dice),
            lambda: kill_node(nodes[1]),
            lambda: kill_node(nodes[0]),
            lambda: cut_link(valkey, nodes, dice),
            lambda: stand_still(dice.choice(nodes), load, dice),
            lambda: reload(dice.choice(nodes)),
        ]
        for fault in faults[:3] + dice.choices(faults, k=6 * (ROUNDS - 1)):
            fault()
            load.wait_current()
            assert [client.reasons for client in clients] == [[], [], [], []]

    assert load.judge() == []
    assert clients[-1].visits > 1
