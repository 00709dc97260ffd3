"""The network between us and Redis loses, holds or cuts: every client is told once, and nothing is silently lost."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.support.checker import Ledger, check, observe
from tests.support.gateway_process import configuration, rule
from tests.support.proxy import proxied
from tests.support.streams import check_source_gap, follow, publish, wait_live

if TYPE_CHECKING:
    from tests.conftest import Connect
    from tests.support.gateway_process import Config, Gateways
    from tests.support.proxy import FaultProxy
    from tests.support.raw_client import Stream
    from tests.support.valkey import Valkey

KIB = 1_024


def config_for(proxy: FaultProxy, *, liveness: str = "5s") -> Config:
    """Build a configuration whose Redis is behind a proxy."""
    url = f"redis://127.0.0.1:{proxy.port}"
    return configuration(url, rule("sse:*", queue={"max_events": 50}), redis={"liveness_timeout": liveness})


def heal(proxy: FaultProxy) -> None:
    """Lose nothing any more; what was lost on old connections stays lost."""
    proxy.reset_all()
    proxy.swallow(on=False)


def check_one_gap(server: Valkey, stream: Stream, ledger: Ledger, channel: str) -> None:
    """Hold a stream to going on after one gap for the lost link, with every event as it was published."""
    stream.wait_data(publish(server, ledger.messages(channel, 5)))
    check_source_gap(stream, [channel])
    assert check(ledger, observe(stream.blocks), [channel]) == []


@pytest.mark.parametrize("lost", ["both ways", "what Redis says", "what we say"])
def test_a_half_open_link_is_noticed(
    own_valkey: Valkey, gateways: Gateways, connect: Connect, channel: str, lost: str
) -> None:
    """I6: a path that loses bytes without a FIN is given up after `liveness_timeout`, and every client is told."""
    with proxied(("127.0.0.1", own_valkey.port)) as proxy:
        gateway = gateways.start(config_for(proxy, liveness="1s"))
        ledger = Ledger()
        stream = follow(connect, gateway, f"/{channel}")
        stream.wait_data(publish(own_valkey, ledger.messages(channel, 5)))
        proxy.to_client.swallow = lost != "what we say"
        proxy.to_server.swallow = lost != "what Redis says"
        gateway.wait_not_ready()
        publish(own_valkey, ledger.messages(channel, 5))
        wait_live(stream, live=False)
        heal(proxy)
        gateway.wait_ready()
        check_one_gap(own_valkey, stream, ledger, channel)
        gateway.stop()


def test_a_link_that_only_listens_is_given_up(
    own_valkey: Valkey, gateways: Gateways, connect: Connect, channel: str
) -> None:
    """Messages alone prove nothing: when our own marker stays away the link is given up, and every client is told."""
    with proxied(("127.0.0.1", own_valkey.port)) as proxy:
        gateway = gateways.start(config_for(proxy, liveness="1s"))
        ledger = Ledger()
        stream = follow(connect, gateway, f"/{channel}")
        proxy.to_server.swallow = True
        deadline = time.monotonic() + 30
        while gateway.admin_status("/readyz") != 503:
            assert time.monotonic() < deadline, "the link was not given up"
            publish(own_valkey, ledger.messages(channel, 1))
            stream.read_available()
        heal(proxy)
        gateway.wait_ready()
        check_one_gap(own_valkey, stream, ledger, channel)
        gateway.stop()


def test_a_short_hold_is_no_loss(own_valkey: Valkey, gateways: Gateways, connect: Connect, channel: str) -> None:
    """Bytes that come late, but come, are no loss."""
    with proxied(("127.0.0.1", own_valkey.port)) as proxy:
        gateway = gateways.start(config_for(proxy, liveness="10s"))
        ledger = Ledger()
        stream = follow(connect, gateway, f"/{channel}")
        proxy.hold()
        last = publish(own_valkey, ledger.messages(channel, 200, padding=KIB))
        stream.wait_type("gateway.heartbeat", count=3)
        assert not stream.events
        proxy.release()
        stream.wait_data(last)

        assert not stream.gaps
        assert check(ledger, observe(stream.blocks), [channel]) == []
        gateway.stop()


@pytest.mark.parametrize("cut", [1, 100, 1_000, 5_003, 20_011])
def test_a_link_cut_inside_a_message_is_told(
    own_valkey: Valkey, gateways: Gateways, connect: Connect, channel: str, cut: int
) -> None:
    """Half a message is no message: what came whole is delivered, the rest is told."""
    with proxied(("127.0.0.1", own_valkey.port)) as proxy:
        gateway = gateways.start(config_for(proxy))
        ledger = Ledger()
        stream = follow(connect, gateway, f"/{channel}")
        proxy.to_client.hold()
        proxy.to_client.cut_after = proxy.to_client.passed + cut
        publish(own_valkey, ledger.messages(channel, 50, padding=KIB))
        proxy.to_client.release()
        gateway.wait_log("source.lost")
        proxy.to_client.cut_after = None
        stream.wait_type("gateway.gap")
        gateway.wait_ready()
        stream.wait_data(publish(own_valkey, ledger.messages(channel, 5)))

        assert check(ledger, observe(stream.blocks), [channel]) == []
        assert {block.json()["reason"] for block in stream.gaps} == {"source"}
        gateway.stop()
