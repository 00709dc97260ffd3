"""Redis dies, freezes, forgets us, or lies: every client is told once, and nothing is silently lost."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.checker import Ledger, check, observe
from tests.support.gateway_process import CONNECTIONS, GAPS, configuration, rule
from tests.support.lateness import lateness
from tests.support.raw_client import position
from tests.support.streams import check_source_gap, follow, publish, wait_live
from tests.support.valkey import Valkey, binary, free_port, running

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Connect
    from tests.support.gateway_process import Config, GatewayProcess, Gateways

KIB = 1_024


def config_for(server: Valkey, *, liveness: str = "5s") -> Config:
    """Build a configuration whose Redis is `server`."""
    return configuration(server.url, rule("sse:*", queue={"max_events": 50}), redis={"liveness_timeout": liveness})


def refuses_for_now(connect: Connect, gateway: GatewayProcess) -> bool:
    """Whether a new stream gets the temporary refusal for want of a source."""
    stream = connect(gateway, "/events/x").wait_end()
    return [(block.type, block.json()) for block in stream.blocks] == [("gateway.unavailable", {"reason": "source"})]


# -- the link is cut


def test_a_killed_connection_is_told_once(
    own_server: Valkey, gateways: Gateways, connect: Connect, channel: str
) -> None:
    """I6: after CLIENT KILL every stream gets one gap on all its channels, stays open, and goes on live."""
    gateway = gateways.start(config_for(own_server))
    names = [f"{channel}a", f"{channel}b"]
    ledger = Ledger()
    views = {
        f"/{names[0]}": names[:1],
        f"?channel={names[0]}&channel={names[1]}": names,
    }
    streams = {target: follow(connect, gateway, target) for target in views}
    prefix = follow(connect, gateway, f"/{channel}*")
    last = publish(own_server, [ledger.message(names[number % 2]) for number in range(10)])
    prefix.wait_data(last)
    assert own_server.kill_subscribers() >= 1
    prefix.wait_type("gateway.gap")
    gateway.wait_ready()
    publish(own_server, [ledger.message(names[(number + 1) % 2]) for number in range(10)])

    for target, channels in views.items():
        stream = streams[target]
        stream.wait_data([data for name, data in ledger.entries if name in channels][-1])
        check_source_gap(stream, channels)
        assert check(ledger, observe(stream.blocks), channels) == []
    prefix.wait_data(ledger.entries[-1][1])
    assert prefix.data == [data for _, data in ledger.entries]
    assert [block.json()["reason"] for block in prefix.gaps] == ["source"]
    assert gateway.metric(GAPS, reason="source") == 3


def test_every_hole_is_told_however_often_the_link_is_cut(
    own_valkey: Valkey, gateways: Gateways, connect: Connect, channel: str
) -> None:
    """I2: while the link is cut again and again under load, nothing is lost without a word."""
    gateway = gateways.start(config_for(own_valkey))
    ledger = Ledger()
    stream = follow(connect, gateway, f"/{channel}")
    for _ in range(8):
        for _ in range(10):
            publish(own_valkey, ledger.messages(channel, 10, padding=100))
        own_valkey.kill_subscribers()
        publish(own_valkey, ledger.messages(channel, 100))
        stream.wait_next("gateway.gap")
        gateway.wait_ready()
    last = publish(own_valkey, ledger.messages(channel, 1))
    stream.wait_data(last)

    assert check(ledger, observe(stream.blocks), [channel]) == []
    assert {block.json()["reason"] for block in stream.gaps} == {"source"}
    assert len(stream.gaps) == 8
    epochs = [position(block.id or "")[0] for block in stream.gaps]
    assert len(set(epochs)) == 8


def test_a_burst_beyond_redis_patience_is_told(
    own_server: Valkey, gateways: Gateways, connect: Connect, channel: str
) -> None:
    """A burst over `client-output-buffer-limit` cuts the link: what came is a prefix, the rest a gap."""
    gateway = gateways.start(config_for(own_server))
    ledger = Ledger()
    stream = follow(connect, gateway, f"/{channel}")
    publish(own_server, ledger.messages(channel, 5))
    own_server.config_set("client-output-buffer-limit", f"pubsub {64 * KIB} 0 0")
    burst = ledger.messages(channel, 400, padding=KIB)
    own_server.publish_at_once([(f"sse:{name}", data) for name, data in burst])
    stream.wait_type("gateway.gap")
    gateway.wait_ready()
    stream.wait_data(publish(own_server, ledger.messages(channel, 5)))

    check_source_gap(stream, [channel])
    assert check(ledger, observe(stream.blocks), [channel]) == []


@pytest.mark.redis
def test_a_poison_message_makes_no_loop(tmp_path: Path, gateways: Gateways, connect: Connect, channel: str) -> None:
    """One message too large for Redis' own limit costs one gap each time, and the gateway goes on."""
    if binary("redis") is None:
        pytest.skip("no redis-server on this machine")
    with running(tmp_path, kind="redis") as server:  # Valkey 9 does not count a payload that it need not copy
        gateway = gateways.start(config_for(server))
        ledger = Ledger()
        stream = follow(connect, gateway, f"/{channel}")
        server.config_set("client-output-buffer-limit", f"pubsub {64 * KIB} 0 0")
        for number in range(3):
            server.publish(f"sse:{channel}", b"\xff" * 512 * KIB)
            stream.wait_type("gateway.gap", count=number + 1)
            gateway.wait_ready()
            stream.wait_data(publish(server, ledger.messages(channel, 5)))

        assert len(stream.gaps) == 3
        assert check(ledger, observe(stream.blocks), [channel]) == []
        gateway.stop()


# -- Redis dies or freezes


def test_redis_killed_and_started_again(own_server: Valkey, gateways: Gateways, connect: Connect, channel: str) -> None:
    """While Redis is away streams beat with `live: false` and new ones are refused for now; then one gap, and on."""
    gateway = gateways.start(config_for(own_server))
    ledger = Ledger()
    stream = follow(connect, gateway, f"/{channel}")
    stream.wait_data(publish(own_server, ledger.messages(channel, 5)))
    wait_live(stream, live=True)
    own_server.kill()
    gateway.wait_not_ready()
    wait_live(stream, live=False)
    assert refuses_for_now(connect, gateway)
    assert gateway.admin_status("/healthz") == 200
    assert json.loads(gateway.admin("/readyz")[2])

    own_server.start()
    gateway.wait_ready()
    stream.wait_data(publish(own_server, ledger.messages(channel, 5)))
    wait_live(stream, live=True)
    check_source_gap(stream, [channel])
    assert check(ledger, observe(stream.blocks), [channel]) == []
    follow(connect, gateway, f"/{channel}")


def test_redis_restarted_at_once_is_a_new_epoch(
    own_valkey: Valkey, gateways: Gateways, connect: Connect, channel: str
) -> None:
    """A Redis that is back before anybody looks is still another one: one gap, another epoch."""
    gateway = gateways.start(config_for(own_valkey))
    stream = follow(connect, gateway, f"/{channel}")
    ledger = Ledger()
    stream.wait_data(publish(own_valkey, ledger.messages(channel, 5)))
    own_valkey.restart()
    stream.wait_type("gateway.gap")
    gateway.wait_ready()
    stream.wait_data(publish(own_valkey, ledger.messages(channel, 5)))

    check_source_gap(stream, [channel])
    assert check(ledger, observe(stream.blocks), [channel]) == []


def test_a_frozen_redis_is_noticed(own_server: Valkey, gateways: Gateways, connect: Connect, channel: str) -> None:
    """A Redis that keeps its connections and says nothing is dead after `liveness_timeout`."""
    gateway = gateways.start(config_for(own_server, liveness="1s"))
    ledger = Ledger()
    stream = follow(connect, gateway, f"/{channel}")
    stream.wait_data(publish(own_server, ledger.messages(channel, 5)))
    with lateness() as late:
        began = time.monotonic()
        own_server.freeze()
        gateway.wait_not_ready()
        took_s = time.monotonic() - began
    assert took_s < 3 + late.total_s
    wait_live(stream, live=False)
    assert refuses_for_now(connect, gateway)

    own_server.thaw()
    gateway.wait_ready()
    stream.wait_data(publish(own_server, ledger.messages(channel, 5)))
    check_source_gap(stream, [channel])
    assert check(ledger, observe(stream.blocks), [channel]) == []


def test_a_short_freeze_is_no_loss(own_valkey: Valkey, gateways: Gateways, connect: Connect, channel: str) -> None:
    """A stall shorter than `liveness_timeout` ends no epoch and tells no gap."""
    gateway = gateways.start(config_for(own_valkey, liveness="10s"))
    ledger = Ledger()
    stream = follow(connect, gateway, f"/{channel}")
    stream.wait_data(publish(own_valkey, ledger.messages(channel, 5)))
    own_valkey.freeze()
    stream.wait_type("gateway.heartbeat", count=len(stream.of_type("gateway.heartbeat")) + 5)
    own_valkey.thaw()
    stream.wait_data(publish(own_valkey, ledger.messages(channel, 5)))
    wait_live(stream, live=True)

    assert not stream.gaps
    assert check(ledger, observe(stream.blocks), [channel]) == []
    assert len({position(block.id or "")[0] for block in stream.blocks}) == 1


def test_a_gateway_starts_without_redis_and_waits(
    own_valkey: Valkey, gateways: Gateways, connect: Connect, channel: str
) -> None:
    """Started while Redis is away the gateway is alive, not ready, and serves as soon as Redis is there."""
    own_valkey.kill()
    gateway = gateways.start(config_for(own_valkey), ready=False)
    assert gateway.admin_status("/readyz") == 503
    assert refuses_for_now(connect, gateway)
    own_valkey.start()
    gateway.wait_ready()
    stream = follow(connect, gateway, f"/{channel}")
    own_valkey.publish(f"sse:{channel}", "hello")

    assert stream.wait_data("hello").type == "message"


def test_a_source_that_says_nothing_is_not_ready(own_valkey: Valkey, gateways: Gateways, connect: Connect) -> None:
    """A Redis that accepts connections and never answers leaves the gateway alive and not ready."""
    own_valkey.freeze()
    gateway = gateways.start(config_for(own_valkey), ready=False)
    assert gateway.admin_status("/readyz") == 503
    assert refuses_for_now(connect, gateway)
    own_valkey.thaw()
    gateway.wait_ready()

    assert gateway.admin_status("/healthz") == 200


# -- the wrong Redis


def test_a_replica_is_no_source(own_valkey: Valkey, gateways: Gateways, connect: Connect, channel: str) -> None:
    """A replica is not served from; a primary that is demoted is left, and streams are told when one is back."""
    own_valkey.link.call("REPLICAOF", "127.0.0.1", 1)
    gateway = gateways.start(config_for(own_valkey), ready=False)
    assert gateway.admin_status("/readyz") == 503
    own_valkey.link.call("REPLICAOF", "NO", "ONE")
    gateway.wait_ready()
    stream = follow(connect, gateway, f"/{channel}")

    own_valkey.link.call("REPLICAOF", "127.0.0.1", 1)
    gateway.wait_not_ready()
    wait_live(stream, live=False)
    own_valkey.link.call("REPLICAOF", "NO", "ONE")
    gateway.wait_ready()
    stream.wait_type("gateway.gap")
    own_valkey.publish(f"sse:{channel}", "hello")
    stream.wait_data("hello")
    check_source_gap(stream, [channel])


def test_a_cluster_is_refused_for_good(gateways: Gateways, tmp_path: Path) -> None:
    """Redis Cluster has no one order: the gateway ends with 78 and says so."""
    # By itself it is the port and 10,000, which may be beyond 65,535.
    with running(tmp_path, options=["--cluster-enabled", "yes", "--cluster-port", str(free_port())]) as server:
        gateway = gateways.start(config_for(server), alive=False)

        assert gateway.wait_exit() == 78
        assert "cluster" in (gateway.output_tail()).lower()


# -- again and again


def test_streams_survive_long_absences(own_valkey: Valkey, gateways: Gateways, connect: Connect, channel: str) -> None:
    """Redis away, back, away again: streams stay open, and clients that leave meanwhile are noticed."""
    gateway = gateways.start(config_for(own_valkey))
    streams = [follow(connect, gateway, f"/{channel}{number}") for number in range(10)]
    own_valkey.kill()
    wait_live(streams[0], live=False)
    for stream in streams[5:]:
        stream.close()
    gateway.wait_metric(CONNECTIONS, 5)
    own_valkey.start()
    gateway.wait_ready()
    own_valkey.kill()
    gateway.wait_not_ready()
    own_valkey.start()
    gateway.wait_ready()
    for number, stream in enumerate(streams[:5]):
        own_valkey.publish(f"sse:{channel}{number}", "hello")
        stream.wait_data("hello")

        assert {block.json()["reason"] for block in stream.gaps} == {"source"}
        assert not stream.eof
