"""Every node is gone, and one starts: it goes on from what is stored, and tells the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.gateway_process import configuration, rule
from tests.support.streams import follow

if TYPE_CHECKING:
    from tests.conftest import Connect
    from tests.support.gateway_process import Config, GatewayProcess, Gateways
    from tests.support.valkey import Valkey

STORED = "sse_gateway_persistence_events_total"


def config_for(server: Valkey, **sections: Config) -> Config:
    """Build a configuration that stores the log."""
    return configuration(server.url, rule("sse:*"), persistence={"mode": "redis"}, **sections)


def wait_stored(gateway: GatewayProcess, count: int) -> None:
    """Wait until so many events are stored."""
    gateway.wait_metric(STORED, count)


def test_a_client_that_comes_back_gets_what_was_stored_one_gap_and_goes_on(
    own_valkey: Valkey, gateways: Gateways, connect: Connect, channel: str
) -> None:
    """What the windows held after its cursor, then one gap for what was published while nobody listened, then live."""
    gateway = gateways.start(config_for(own_valkey))
    stream = follow(connect, gateway, f"/{channel}")
    for number in range(3):
        own_valkey.publish(f"sse:{channel}", f"seen {number}")
    stream.wait_data("seen 2")
    cursor = stream.events[-1].id
    stream.close()
    for number in range(2):
        own_valkey.publish(f"sse:{channel}", f"stored {number}")
    wait_stored(gateway, 5)
    gateway.kill()
    for number in range(2):
        assert own_valkey.publish(f"sse:{channel}", f"lost {number}") == 0
    gateway.start()
    own_valkey.publish(f"sse:{channel}", "live")
    resumed = follow(connect, gateway, f"/{channel}", cursor)
    resumed.wait_data("live")
    assert [block.data for block in resumed.blocks[1:3]] == ["stored 0", "stored 1"]
    assert [block.type for block in resumed.blocks[1:]] == ["message", "message", "gateway.gap", "message"]
    assert resumed.gaps[0].json() == {"reason": "source", "channels": [channel], "missed": None}
