"""Every node is gone, and some start: they go on from what is stored, and tell the rest."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import SERVER
from tests.support.cluster_gateways import STORED, await_node, epochs, node, start_nodes, wait_stored
from tests.support.cluster_load import Client, loaded
from tests.support.gateway_process import configuration, poll, rule
from tests.support.streams import follow
from tests.support.valkey import running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Connect
    from tests.support.gateway_process import Config, GatewayProcess, Gateways
    from tests.support.valkey import Valkey

WRITER = "sse_gateway_persistence_writer"
STORING: Config = {"mode": "redis"}

ROUNDS = int(os.environ.get("SSE_GATEWAY_TEST_ROUNDS", "1"))
"""How many times as often as usual all nodes are killed."""

NAMES = ["news:a", "news:b", "talk:a", "talk:b"]


@pytest.fixture
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Run a server that finds its memory again when it is started again."""
    options = ("--appendonly", "yes", "--appendfsync", "always")
    with running(tmp_path_factory.mktemp("lasting"), kind=SERVER, options=options) as server:
        yield server


def config_for(server: Valkey, **sections: Any) -> Config:
    """Build a configuration that stores the log."""
    return configuration(server.url, rule("sse:*"), **{"persistence": STORING} | sections)


def seen_and_stored(server: Valkey, gateway: GatewayProcess, connect: Connect, channel: str) -> str:
    """Publish three events that a client sees, and two that it misses, all stored; returns the client's last id."""
    stream = follow(connect, gateway, f"/{channel}")
    for number in range(3):
        server.publish(f"sse:{channel}", f"seen {number}")
    stream.wait_data("seen 2")
    stream.close()
    for number in range(2):
        server.publish(f"sse:{channel}", f"stored {number}")
    wait_stored(gateway)
    cursor = stream.events[-1].id
    assert cursor is not None
    return cursor


def told(connect: Connect, server: Valkey, gateway: GatewayProcess, channel: str, cursor: str) -> list[str]:
    """What a client that comes back is told, up to what is published then: data, or the reason of a gap."""
    server.publish(f"sse:{channel}", "live")
    resumed = follow(connect, gateway, f"/{channel}", cursor)
    resumed.wait_data("live")
    blocks = [block for block in resumed.blocks if block.type in {"message", "gateway.gap"}]
    return [block.json()["reason"] if block.own else block.data for block in blocks]


# -- one node


def test_a_client_that_comes_back_gets_what_was_stored_one_gap_and_goes_on(
    own_valkey: Valkey, gateways: Gateways, connect: Connect, channel: str
) -> None:
    """What the windows held after its cursor, then one gap for what was published while nobody listened, then live."""
    gateway = gateways.start(config_for(own_valkey))
    cursor = seen_and_stored(own_valkey, gateway, connect, channel)
    gateway.kill()
    for number in range(2):
        assert own_valkey.publish(f"sse:{channel}", f"lost {number}") == 0
    gateway.start()
    assert told(connect, own_valkey, gateway, channel, cursor) == ["stored 0", "stored 1", "source", "live"]
    (loaded_,) = gateway.wait_log("store.loaded")
    assert (loaded_["events"], loaded_["channels"], loaded_["channels_lost"]) == (5, 1, 0)


def test_without_a_store_it_is_told_that_the_log_began_anew(
    own_valkey: Valkey, gateways: Gateways, connect: Connect, channel: str
) -> None:
    """And nothing is written anywhere."""
    gateway = gateways.start(config_for(own_valkey, persistence={"mode": "none"}))
    stream = follow(connect, gateway, f"/{channel}")
    own_valkey.publish(f"sse:{channel}", "seen")
    stream.wait_data("seen")
    gateway.kill()
    gateway.start()
    assert told(connect, own_valkey, gateway, channel, stream.events[-1].id or "") == ["epoch", "live"]
    assert own_valkey.link.call("KEYS", "*") == []


def test_who_has_seen_more_than_was_stored_is_told_so(
    own_valkey: Valkey, gateways: Gateways, connect: Connect, channel: str
) -> None:
    """Its cursor is of a part of the log that nobody knows any more."""
    gateway = gateways.start(config_for(own_valkey))
    seen_and_stored(own_valkey, gateway, connect, channel)
    own_valkey.link.call("ACL", "SETUSER", "default", "-multi")
    stream = follow(connect, gateway, f"/{channel}")
    own_valkey.publish(f"sse:{channel}", "not stored")
    stream.wait_data("not stored")
    gateway.wait_log("store.failed")
    gateway.kill()
    own_valkey.link.call("ACL", "SETUSER", "default", "+multi")
    gateway.start()
    assert told(connect, own_valkey, gateway, channel, stream.events[-1].id or "") == ["epoch", "live"]


def test_a_node_that_is_stopped_stores_everything(
    own_valkey: Valkey, gateways: Gateways, connect: Connect, channel: str
) -> None:
    """Whatever came up to its end; the next one need not wait for its lease."""
    gateway = gateways.start(config_for(own_valkey))
    stream = follow(connect, gateway, f"/{channel}")
    own_valkey.publish(f"sse:{channel}", "0")
    stream.wait_data("0")
    own_valkey.publish_many([(f"sse:{channel}", str(number)) for number in range(1, 700)])
    stream.wait_data("699")
    assert gateway.stop() == 0
    assert own_valkey.link.call("KEYS", "*:lease") == []
    gateway.start()
    expected = [*map(str, range(1, 700)), "source", "live"]
    assert told(connect, own_valkey, gateway, channel, stream.events[0].id or "") == expected


def test_a_redis_that_comes_back_with_its_memory(
    lasting: Valkey, gateways: Gateways, connect: Connect, channel: str
) -> None:
    """Redis and all nodes were down: what was stored is there; without it, it is told that the log began anew."""
    gateway = gateways.start(config_for(lasting))
    cursor = seen_and_stored(lasting, gateway, connect, channel)
    gateway.kill()
    lasting.restart()
    gateway.start()
    assert told(connect, lasting, gateway, channel, cursor) == ["stored 0", "stored 1", "source", "live"]
    gateway.kill()
    lasting.link.call("FLUSHALL")
    gateway.start()
    assert told(connect, lasting, gateway, channel, cursor) == ["epoch", "live"]
    assert gateway.records("store.empty")


# -- stores that are of no use


def keys_of(server: Valkey) -> dict[bytes, object]:
    """All of an epoch's keys, with what is in them."""
    found = server.link.call("KEYS", "sse-gateway:*:*:*:*")
    assert isinstance(found, list)
    return {key: server.link.call("DUMP", key) for key in found}


def damage(server: Valkey, kind: str) -> None:
    """Damage a key of the newest epoch."""
    epochs_ = server.link.call("KEYS", "*:epochs")
    assert isinstance(epochs_, list)
    newest = server.link.call("ZREVRANGE", epochs_[0], 0, 0)
    assert isinstance(newest, list)
    key = epochs_[0].removesuffix(b"epochs") + newest[0] + b":" + kind.encode()
    match kind:
        case "state":
            server.link.call("SETRANGE", key, 0, b"\x02")
        case "ring:0":
            server.link.call("SETRANGE", key, 30, b"\xff\xff")
        case "channels":
            server.link.call("HSET", key, "c", b"\x01damaged")
        case _:
            server.link.call("ZADD", key, 2, b"\x01damaged")


def test_a_store_that_is_damaged_or_newer_is_refused_and_left_alone(
    own_valkey: Valkey, gateways: Gateways, connect: Connect
) -> None:
    """With a line that says so; clients are told, and nothing of it is used or deleted."""
    gateway = gateways.start(config_for(own_valkey))
    for count, kind in enumerate(["state", "ring:0", "channels", "window:c"], start=1):
        cursor = seen_and_stored(own_valkey, gateway, connect, "c")
        gateway.kill()
        damage(own_valkey, kind)
        before = keys_of(own_valkey)
        gateway.start()
        refused = gateway.wait_log("store.refused", count=count)[-1]
        assert ("of version 2" if kind == "state" else "damaged") in refused["reason"]
        assert told(connect, own_valkey, gateway, "c", cursor) == ["epoch", "live"]
        wait_stored(gateway)
        assert before.items() <= keys_of(own_valkey).items()


def test_a_store_of_another_log_is_not_seen(
    own_valkey: Valkey, gateways: Gateways, connect: Connect, channel: str
) -> None:
    """Another cluster, another secret, other rules: each has its own."""
    config = config_for(own_valkey)
    gateway = gateways.start(config)
    cursor = seen_and_stored(own_valkey, gateway, connect, channel)
    gateway.kill()
    gateway.config = config | {"cluster": config["cluster"] | {"secret": "a secret of this log"}}
    gateway.start()
    gateway.wait_log("store.empty")
    assert told(connect, own_valkey, gateway, channel, cursor) == ["epoch", "live"]
    gateway.kill()
    gateway.config = config
    gateway.start()
    assert told(connect, own_valkey, gateway, channel, cursor) == ["stored 0", "stored 1", "source", "live"]


# -- several nodes


def test_another_node_writes_when_the_writer_is_gone(
    own_valkey: Valkey, gateways: Gateways, connect: Connect, channel: str
) -> None:
    """And what was published meanwhile is stored from its memory."""
    nodes = start_nodes(gateways, *(node(own_valkey, persistence=STORING) for _ in range(2)))
    poll(lambda: sum(gateway.metric(WRITER) for gateway in nodes) == 1, timeout_s=20, what="one writer")
    writer, other = sorted(nodes, key=lambda gateway: -gateway.metric(WRITER))
    cursor = seen_and_stored(own_valkey, writer, connect, channel)
    writer.kill()
    own_valkey.publish(f"sse:{channel}", "after it")
    other.wait_log("store.writing")
    poll(lambda: other.metric(STORED) == 1, timeout_s=30, what="the event that is stored")
    other.kill()
    other.start()
    expected = ["stored 0", "stored 1", "after it", "source", "live"]
    assert told(connect, own_valkey, other, channel, cursor) == expected


@pytest.mark.parametrize("between", ["nothing", "emptied", "restarted"])
def test_all_nodes_killed_under_load(lasting: Valkey, gateways: Gateways, between: str) -> None:
    """I1, I2: `kill -9` of two nodes at once, again and again; Redis is kept, emptied, or restarted in between."""
    cluster = {"name": between}
    configs = [node(lasting, persistence=STORING, cluster=cluster, workers=count) for count in (2, 1)]
    nodes = start_nodes(gateways, *configs)
    places = [gateway.address for gateway in nodes]
    clients = [
        Client("/events/news:*", NAMES[:2], places),
        Client("/events/talk:a", NAMES[2:3], places, seed=1, stay=20),
        Client("/events?channel=news:a&channel=talk:b", ["news:a", "talk:b"], places, seed=2, stay=60),
    ]
    with loaded(lasting, NAMES, clients, rate=500) as load:
        for _ in range(ROUNDS):
            before = [len(gateway.logs) for gateway in nodes]
            for gateway in nodes:
                gateway.kill()
            if between == "emptied":
                lasting.link.call("FLUSHALL")
            elif between == "restarted":
                lasting.restart()
            for gateway in nodes:
                gateway.start(alive=False)
            for gateway, count in zip(nodes, before, strict=True):
                await_node(gateway, count)
            load.wait_current()
            assert len(epochs(nodes)) == 1

    assert load.judge() == []
    for client in clients:
        assert set(client.reasons) <= {"source", "epoch"}
        assert ROUNDS <= len(client.reasons) <= 2 * ROUNDS
    events = ["store.empty" if between == "emptied" else "store.loaded" for _ in range(ROUNDS)]
    assert [r for gateway in nodes for r in gateway.logs if r.get("event") in events]
    assert not [r for gateway in nodes for r in gateway.records("store.refused")]
