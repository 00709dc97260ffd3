"""Servers that cannot carry the promise: told apart at connect, and followed only if `redis.unordered` says so."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.conftest import SERVER
from tests.support.checker import Ledger, check, observe
from tests.support.cluster_gateways import START_S
from tests.support.gateway_process import configuration, poll
from tests.support.proxy import FaultProxy, proxied
from tests.support.valkey import Valkey, free_port, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Connect
    from tests.support.gateway_process import Config, GatewayProcess, Gateways

_SPARE_FIELD = b"redis_git_sha1:00000000"
"""Of INFO; as long as what takes its place."""

DISGUISES = {
    "'acmedb'": {b"$6\r\nvalkey\r\n": b"$6\r\nacmedb\r\n", b"$5\r\nredis\r\n": b"$6\r\nacmedb\r\n"},
    "Dragonfly": {_SPARE_FIELD: b"dragonfly_version:v1.40", b"run_id:": b"no_run:"},
    "Garnet": {_SPARE_FIELD: b"garnet_version:1.0.0.00"},
    "Kvrocks": {_SPARE_FIELD: b"kvrocks_version:2.9.000"},
    "KeyDB": {_SPARE_FIELD: b"mvcc_depth:000000000000"},
    "Redis Enterprise": {_SPARE_FIELD: b"rlec_version:7.4.2-0129"},
    "run id": {b"run_id:": b"no_run:"},
    "cluster mode": {b"_mode:standalone": b"_mode:cluster\r\n:"},
}
"""What betrays a server, and what makes a real one look like it: the fields its INFO or HELLO is known by.

Whom HELLO gives away comes first: when another follows, in the midst of a handshake, its INFO is still to be read.
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Run a server for this file."""
    with running(tmp_path_factory.mktemp("server"), kind=SERVER) as started:
        yield started


@pytest.fixture
def proxy(server: Valkey) -> Iterator[FaultProxy]:
    """Run a proxy in front of it, for disguises."""
    with proxied(("127.0.0.1", server.port)) as running_proxy:
        yield running_proxy


def config_for(port: int, *, unordered: bool = False, name: str = "lookalikes") -> Config:
    """Configure a gateway for a server on a port."""
    redis = {"unordered": unordered, "liveness_timeout": "5s"}
    return configuration(f"redis://127.0.0.1:{port}", redis=redis, cluster={"name": name})


def check_readyz(gateway: GatewayProcess) -> None:
    """`/readyz` says yes, and what it costs."""
    status, _, body = gateway.admin("/readyz")
    assert status == 200
    assert json.loads(body) == {"ready": True, "reasons": [], "unordered": True}


def test_a_server_without_one_order_is_not_followed(proxy: FaultProxy, gateways: Gateways) -> None:
    """Each kind is not ready, with a sentence that says what is missing and the way out; as itself it will do."""
    disguises = iter(DISGUISES.items())
    told, proxy.to_client.rewrite = next(disguises)
    gateway = gateways.start(config_for(proxy.port), ready=False)
    while True:
        gateway.wait_until(
            lambda name=told: any(name in r["reason"] for r in gateway.records("source.unavailable")),  # type: ignore[misc] # the loop's own
            START_S,
            told,
        )
        assert gateway.unready_reasons() == ["source"]
        if (another := next(disguises, None)) is None:
            break
        told, proxy.to_client.rewrite = another
    assert all("redis.unordered: true" in record["reason"] for record in gateway.records("source.unavailable"))

    proxy.to_client.rewrite = {}
    gateway.wait_ready()
    assert "unordered" not in gateway.admin("/readyz")[2]


@pytest.mark.parametrize("told", ["Dragonfly", "'acmedb'"])
def test_an_unordered_server_is_followed_if_it_is_wanted(
    proxy: FaultProxy, server: Valkey, gateways: Gateways, connect: Connect, channel: str, told: str
) -> None:
    """I6: with `redis.unordered` its events come; each connection is a new epoch, and told as a gap."""
    proxy.to_client.rewrite = DISGUISES[told]
    gateway = gateways.start(config_for(proxy.port, unordered=True))
    check_readyz(gateway)
    assert gateway.records("source.unordered")
    assert gateway.records("gateway.started", unordered=True)
    ledger = Ledger()
    stream = connect(gateway, f"/events/{channel}")
    stream.wait_open()
    for epochs in (2, 3):
        messages = ledger.messages(channel, 3)
        server.publish_many([(f"sse:{name}", data) for name, data in messages])
        stream.wait_data(messages[-1][1])
        proxy.reset_all()
        gateway.wait_log("log.synced", count=epochs)
        stream.wait_type("gateway.gap", count=epochs - 1)
    messages = ledger.messages(channel, 3)
    server.publish_many([(f"sse:{name}", data) for name, data in messages])
    stream.wait_data(messages[-1][1])

    assert check(ledger, observe(stream.blocks), [channel]) == []
    assert [block.json()["reason"] for block in stream.gaps] == ["source", "source"]
    assert len({record["epoch"] for record in gateway.records("log.synced")}) == 3


def test_unordered_nodes_share_nothing(proxy: FaultProxy, server: Valkey, gateways: Gateways, connect: Connect) -> None:
    """A client that moves from one to the other is told an `epoch` gap: there is no log in common."""
    nodes = [gateways.start(config_for(proxy.port, unordered=True, name="apart")) for _ in range(2)]
    first = connect(nodes[0], "/events/apart")
    first.wait_open()
    server.publish("sse:apart", "one")
    first.wait_data("one")
    second = connect(nodes[1], "/events/apart", headers={"Last-Event-ID": first.events[-1].id})
    second.wait_type("gateway.gap")

    assert [block.json()["reason"] for block in second.gaps] == ["epoch"]
    assert [node.metric("sse_gateway_control_ignored_total") for node in nodes] == [0, 0]
    assert [node.metric("sse_gateway_snapshots_served_total") for node in nodes] == [0, 0]


def test_an_unordered_cluster_is_followed(
    tmp_path_factory: pytest.TempPathFactory, gateways: Gateways, connect: Connect
) -> None:
    """Plain PUBLISH goes through a Cluster's bus: what is published at any node of it comes."""

    def options() -> list[str]:
        return ["--cluster-enabled", "yes", "--cluster-port", str(free_port())]

    bus = options()
    with (
        running(tmp_path_factory.mktemp("c"), options=options()) as near,
        running(tmp_path_factory.mktemp("c"), options=bus) as far,
    ):
        near.link.call("CLUSTER", "MEET", "127.0.0.1", far.port, bus[-1])
        gateway = gateways.start(config_for(near.port, unordered=True))
        stream = connect(gateway, "/events/a")
        stream.wait_open()
        near.publish("sse:a", "near")
        stream.wait_data("near")

        def has_come() -> bool:
            far.publish("sse:a", "far")
            stream.read_available()
            return "far" in stream.data

        poll(has_come, timeout_s=30, what="the bus")
        check_readyz(gateway)


def test_a_replica_is_refused_however_unordered(server: Valkey, gateways: Gateways, tmp_path: Path) -> None:
    """It would lose messages in a live connection, without a word: that is no question of order."""
    with running(tmp_path, kind=SERVER) as replica:
        replica.link.call("REPLICAOF", "127.0.0.1", server.port)
        gateway = gateways.start(config_for(replica.port, unordered=True), ready=False)
        gateway.wait_until(
            lambda: any("replica" in record["reason"] for record in gateway.records("source.unavailable")),
            START_S,
            "a reason",
        )

        assert gateway.unready_reasons() == ["source"]
