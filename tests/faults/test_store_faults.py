"""The store is slow, full, refuses, or is emptied: streams do not notice, and what it holds is true in the end."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from sse_gateway.control import fingerprint
from sse_gateway.member import log_key
from sse_gateway.persistence import Persistence
from sse_gateway.primary import open_link
from sse_gateway.settings import Settings
from tests.conftest import SERVER
from tests.support.cluster_gateways import node, start_nodes
from tests.support.cluster_load import Client, loaded
from tests.support.core import Core, rule
from tests.support.gateway_process import poll
from tests.support.streams import follow
from tests.support.valkey import running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sse_gateway.recollection import Recollection
    from tests.conftest import Connect
    from tests.support.cluster_load import Load
    from tests.support.gateway_process import GatewayProcess, Gateways
    from tests.support.valkey import Valkey

NAMES = [f"c{number}" for number in range(10)]
EVENTS = "sse_gateway_events_total"
STORED = "sse_gateway_persistence_events_total"
LAG = "sse_gateway_persistence_lag_seconds"
ERRORS = "sse_gateway_persistence_errors_total"
SKIPPED = "sse_gateway_persistence_skipped_events_total"
WINDOW = {"max_events": 2_000, "max_age": "5m", "max_bytes": "64MiB"}


@pytest.fixture(scope="module")
def module_source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Run a source for several tests."""
    with running(tmp_path_factory.mktemp("source"), kind=SERVER) as server:
        yield server


@pytest.fixture(scope="module")
def module_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Run a store for several tests."""
    with running(tmp_path_factory.mktemp("store"), kind=SERVER) as server:
        yield server


@pytest.fixture(scope="module")
def module_node(module_gateways: Gateways, module_source: Valkey, module_store: Valkey) -> GatewayProcess:
    """Run a node for several tests."""
    return start(module_gateways, module_source, module_store)


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Run a second server, for the store alone."""
    with running(tmp_path_factory.mktemp("store"), kind=SERVER) as server:
        yield server


def start(gateways: Gateways, source: Valkey, store: Valkey, **persistence: Any) -> GatewayProcess:
    """Start a node that stores the log elsewhere."""
    config = node(source, persistence={"mode": "redis", "url": store.url} | persistence)
    config["channels"][0]["window"] = WINDOW
    return start_nodes(gateways, config)[0]


def clients_of(gateway: GatewayProcess) -> list[Client]:
    """One that stays, and one that comes and goes."""
    places = [gateway.address]
    return [Client("/events/c0", NAMES[:1], places), Client("/events/c1", NAMES[1:2], places, seed=1, stay=300)]


def wait_stored(gateway: GatewayProcess) -> None:
    """Wait until everything is stored, or given up."""

    def is_stored() -> bool:
        metrics = gateway.metrics()
        return metrics.value("sse_gateway_persistence_writer") == 1 and metrics.value(LAG) == 0

    poll(is_stored, timeout_s=20, what="a store that is current")


def cold_start(load: Load, gateway: GatewayProcess) -> None:
    """Kill it, start it again, and hold everybody to what is told."""
    gateway.kill()
    gateway.start()
    load.wait_current()


def test_a_store_that_stands_still_for_three_seconds(own_valkey: Valkey, store: Valkey, gateways: Gateways) -> None:
    """I4: at 5,000 events a second nobody notices; what has left the windows meanwhile is marked."""
    gateway = start(gateways, own_valkey, store)
    clients = clients_of(gateway)
    with loaded(own_valkey, NAMES, clients, rate=5_000) as load:
        load.wait_published(5_000)
        store.freeze()
        frozen_at = gateway.metric(STORED)
        load.wait_published(15_000)
        assert gateway.metric(LAG) > 1.0
        assert gateway.metric(STORED) - frozen_at <= 1_000
        assert [client.reasons for client in clients] == [[], []]
        store.thaw()
        poll(lambda: gateway.metric(LAG) < 0.5, timeout_s=20, what="a store that is current")
        assert [client.reasons for client in clients] == [[], []]
        cold_start(load, gateway)
    assert load.judge() == []
    assert all(set(client.reasons) <= {"source", "epoch", "window"} for client in clients)
    assert gateway.records("store.loaded")
    assert max(load.delay(client) for client in clients[:1]) < 20  # of its restart


def refuse(store: Valkey, refusal: str) -> None:
    """Have it take nothing more."""
    match refusal:
        case "OOM":
            store.config_set("maxmemory", 1)
        case "READONLY":
            store.link.call("REPLICAOF", "127.0.0.1", "1")
        case "MISCONF":
            store.fail_to_save()
        case _:
            store.kill()


def accept(store: Valkey, refusal: str) -> None:
    """Undo that."""
    match refusal:
        case "OOM":
            store.config_set("maxmemory", 0)
        case "READONLY":
            store.link.call("REPLICAOF", "NO", "ONE")
        case "MISCONF":
            store.config_set("stop-writes-on-bgsave-error", "no")
        case _:
            store.start()


def test_a_store_that_refuses(own_valkey: Valkey, store: Valkey, gateways: Gateways, connect: Connect) -> None:
    """I4: it is said and counted, streams go on; once it takes again, all that the windows hold is stored."""
    gateway = start(gateways, own_valkey, store)
    stream = follow(connect, gateway, "/c0")
    for refusal in ("OOM", "READONLY", "", "MISCONF"):
        own_valkey.publish("sse:c0", f"before {refusal}")
        stream.wait_data(f"before {refusal}")
        wait_stored(gateway)
        stored, failures = gateway.metric(STORED), gateway.metric(ERRORS)
        refuse(store, refusal)
        own_valkey.publish_many([("sse:c0", f"{refusal} {number}") for number in range(100)])
        stream.wait_data(f"{refusal} 99")
        wait_failure(gateway, failures)
        assert gateway.metric(STORED) == stored
        assert gateway.metric(LAG) > 0
        accept(store, refusal)
        wait_stored(gateway)
    assert "OOM" in gateway.records("store.failed")[0]["reason"]
    assert not stream.gaps
    gateway.kill()
    gateway.start()
    resumed = follow(connect, gateway, "/c0", stream.events[0].id)
    resumed.wait_type("gateway.gap")
    assert resumed.data == stream.data[1:]
    assert [gap.json()["reason"] for gap in resumed.gaps] == ["source"]


def wait_failure(gateway: GatewayProcess, failures: float) -> None:
    """Wait for one more."""
    poll(lambda: gateway.metric(ERRORS) > failures, timeout_s=15, what="a failure")


def unforeseen(error: BaseException) -> None:
    """Nothing may fail for a reason that nobody foresaw."""
    raise AssertionError(error)


def stored_by(gateway: GatewayProcess) -> Recollection | None:
    """What a node that starts now would find."""
    settings = Settings.model_validate(gateway.config)
    key = log_key(settings)
    url = gateway.config["persistence"]["url"]

    async def load() -> Recollection | None:
        persistence = Persistence(
            settings,
            Core(rule()).hub,
            partial(open_link, url, timeout_s=5.0),
            node="n0de00000001",
            fingerprint=fingerprint(settings.rules, settings.limits.message_bytes, key),
            key=key,
            is_live=lambda: False,
            failed=unforeseen,
        )
        return await persistence.load()

    return asyncio.run(load())


@pytest.mark.parametrize("lost", ["", "channels", "ring:0", "state", "epochs", "lease", "window:c0"], ids=repr)
def test_a_store_that_loses_keys_is_written_anew(
    module_node: GatewayProcess, module_store: Valkey, module_source: Valkey, connect: Connect, lost: str
) -> None:
    """By eviction, or all of it; events that are lost for good are lost, and no more than they."""
    gateway, store, source = module_node, module_store, module_source
    stream = follow(connect, gateway, "/c0")
    source.publish_many([("sse:c0", f"early {lost} {number}") for number in range(3)])
    stream.wait_data(f"early {lost} 2")
    wait_stored(gateway)
    before = stored_by(gateway)
    keys = store.link.call("KEYS", f"*:{lost}")
    assert before is not None
    assert isinstance(keys, list)
    store.link.pipeline([("DEL", key) for key in keys] or [("FLUSHALL",)])
    source.publish_many([("sse:c0", f"late {lost} {number}") for number in range(3)])
    stream.wait_data(f"late {lost} 2")
    wait_stored(gateway)
    after = stored_by(gateway)
    assert after is not None
    assert after.state.head == before.state.head + 3
    assert after.events == (3 if lost == "window:c0" else before.events + 3)


def test_a_store_that_evicts_is_no_worse(own_valkey: Valkey, store: Valkey, gateways: Gateways) -> None:
    """I2: with less memory than the windows have, Redis throws away what it likes, and all of that is told."""
    used = store.link.call("INFO", "memory")
    assert isinstance(used, bytes)
    memory = int(used.split(b"used_memory:")[1].split()[0])
    store.config_set("maxmemory-policy", "allkeys-random")
    store.config_set("maxmemory", memory + (2 << 20))
    gateway = start(gateways, own_valkey, store)
    clients = clients_of(gateway)
    with loaded(own_valkey, NAMES, clients, rate=2_000, padding=300) as load:
        for _ in range(2):
            load.wait_published(8_000)
            cold_start(load, gateway)
    assert load.judge() == []
