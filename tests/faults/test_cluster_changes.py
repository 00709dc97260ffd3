"""Nodes come, go, and change their configuration under load: at most one reconnect, and no gap but where it must be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.cluster_gateways import node, start_again, start_nodes
from tests.support.cluster_load import Client, loaded

if TYPE_CHECKING:
    from tests.support.gateway_process import GatewayProcess, Gateways
    from tests.support.raw_client import Address
    from tests.support.valkey import Valkey

IGNORED = "sse_gateway_control_ignored_total"
NAMES = ["a:1", "a:2", "b:1", "b:2"]
MANY = [f"{head}:{number}" for head in "abcde" for number in range(200)]


@pytest.fixture(scope="module")
def nodes(valkey: Valkey, module_gateways: Gateways) -> list[GatewayProcess]:
    """Run two nodes, the first with two workers; tests leave both ready."""
    cluster = {"name": "changes"}
    return start_nodes(module_gateways, node(valkey, workers=2, cluster=cluster), node(valkey, cluster=cluster))


def clients_of(places: list[Address]) -> list[Client]:
    """Clients of every kind that stay where they are."""
    return [
        *(Client(f"/events/{name}", [name], places, seed=number) for number, name in enumerate(NAMES)),
        Client("/events?channel=a:1&channel=b:2", [NAMES[0], NAMES[3]], places, seed=5),
        Client("/events/b:*", NAMES[2:], places, seed=6),
    ]


def visits(clients: list[Client]) -> list[int]:
    """How many connections each of them has had."""
    return [client.visits for client in clients]


def kinds_of_gaps(clients: list[Client]) -> set[tuple[str, ...]]:
    """The reasons of the gaps of one client, for all clients."""
    return {tuple(client.reasons) for client in clients}


# -- nodes


def test_a_node_that_joins_under_load_takes_over_at_once(valkey: Valkey, nodes: list[GatewayProcess]) -> None:
    """I1, I2: at 5,000 events/s over 1,000 channels a node joins, gets the other's clients, and the other is killed."""
    old, new = nodes
    new.kill()
    places = [old.address]
    clients = [
        Client("/events/a:*", MANY[:200], places),
        Client("/events/e:*", MANY[800:], places, seed=1, stay=200),
        Client("/events?" + "&".join(f"channel={name}" for name in MANY[390:410]), MANY[390:410], places),
    ]
    with loaded(valkey, MANY, clients, rate=5_000) as load:
        load.wait_published(2_000)
        start_again(new)
        places[:] = [new.address]
        for client in clients:
            client.move()
        old.kill()
        load.wait_current()
        load.wait_published(2_000)
    start_again(old)

    assert load.judge() == []
    assert kinds_of_gaps(clients) == {()}


def test_a_node_that_is_stopped_sends_its_clients_to_the_other(valkey: Valkey, nodes: list[GatewayProcess]) -> None:
    """SIGTERM of one of two nodes ends its streams one by one; they go on elsewhere without a gap."""
    leaving, staying = nodes
    clients = clients_of([leaving.address, staying.address])
    with loaded(valkey, NAMES, clients) as load:
        load.wait_published(200)
        assert leaving.stop() == 0
        load.wait_current()
    start_again(leaving)

    assert load.judge() == []
    assert kinds_of_gaps(clients) == {()}
    assert sum(visits(clients)) > len(clients)


def test_nodes_of_another_fingerprint_are_another_log(
    valkey: Valkey, nodes: list[GatewayProcess], gateways: Gateways
) -> None:
    """Two logs with one name go on beside each other; what the nodes of one say, those of the other ignore."""
    cluster, limits = {"name": "changes"}, {"message_size": "512KiB"}
    (other,) = start_nodes(gateways, node(valkey, cluster=cluster, limits=limits))
    clients = [*clients_of([nodes[0].address, nodes[1].address]), *clients_of([other.address])]
    with loaded(valkey, NAMES, clients) as load:
        load.wait_published(300)
        other.kill()
        load.wait_published(200)
        start_again(other)
        load.wait_current()

    assert load.judge(anew=True) == []
    assert kinds_of_gaps(clients[:6]) == {()}
    assert kinds_of_gaps(clients[6:]) == {("epoch",)}
    for gateway in (*nodes, other):
        assert gateway.metric(IGNORED, reason="foreign") > 0


# -- reload


def reloaded(gateway: GatewayProcess, event: str) -> None:
    """Reload, and wait until a log line says how that went."""
    before, old = len(gateway.records(event)), set(gateway.worker_pids())
    gateway.reload()
    gateway.wait_log(event, count=before + 1, timeout_s=60)
    if event == "reload.done":
        gateway.wait_until(lambda: not old & set(gateway.worker_pids()), 20, "end of the old workers")


def test_a_reload_under_load_is_one_reconnect(valkey: Valkey, nodes: list[GatewayProcess]) -> None:
    """New workers take the log over from the old ones; a client reconnects once, and sees no gap."""
    gateway = nodes[0]
    clients = clients_of([gateway.address])
    with loaded(valkey, NAMES, clients) as load:
        load.wait_published(200)
        gateway.config["stream"]["heartbeat"] = "250ms"
        reloaded(gateway, "reload.done")
        load.wait_current()

    assert load.judge() == []
    assert kinds_of_gaps(clients) == {()}
    assert visits(clients) == [2] * len(clients)
    assert len(gateway.worker_pids()) == 2


def test_a_reload_of_an_invalid_configuration_changes_nothing(valkey: Valkey, nodes: list[GatewayProcess]) -> None:
    """What is wrong is logged, and everything stays as it was."""
    gateway = nodes[0]
    clients = clients_of([gateway.address])
    old = gateway.worker_pids()
    with loaded(valkey, NAMES, clients) as load:
        load.wait_published(200)
        gateway.config["stream"]["heartbeet"] = "1s"
        reloaded(gateway, "reload.failed")
        del gateway.config["stream"]["heartbeet"]
        load.wait_current()

    assert load.judge() == []
    assert visits(clients) == [1] * len(clients)
    assert gateway.worker_pids() == old
    assert "heartbeet" in str(gateway.records("reload.failed")[-1]["problems"])


def test_a_reload_that_changes_what_an_event_is_is_one_gap(valkey: Valkey, gateways: Gateways) -> None:
    """With one worker and nobody else: a reload is no gap; with another `message_size` it is one, `epoch`."""
    (gateway,) = start_nodes(gateways, node(valkey))
    clients = clients_of([gateway.address])
    with loaded(valkey, NAMES, clients) as load:
        load.wait_published(200)
        reloaded(gateway, "reload.done")
        load.wait_current()
        assert kinds_of_gaps(clients) == {()}
        gateway.config["limits"] = {"message_size": "512KiB"}
        reloaded(gateway, "reload.done")
        load.wait_current()

    assert visits(clients) == [3] * len(clients)
    assert kinds_of_gaps(clients) == {("epoch",)}
    assert load.judge() == []
