"""Clients that resume, replay or lag over a break in the log: what lies before it, one gap, what lies behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.checker import Ledger, check, observe
from tests.support.gateway_process import configuration, rule
from tests.support.streams import KIB, follow, publish, stall

if TYPE_CHECKING:
    from tests.conftest import Connect
    from tests.support.gateway_process import Config, Gateways
    from tests.support.valkey import Valkey


def config_for(server: Valkey) -> Config:
    """Build a configuration with short queues."""
    return configuration(server.url, rule("sse:*", queue={"max_events": 50}), stream={"send_buffer": "16KiB"})


def test_a_cursor_of_an_older_epoch_resumes_through_the_break(
    own_valkey: Valkey, gateways: Gateways, connect: Connect, channel: str
) -> None:
    """A cursor from before a lost link gets the rest of its epoch, one gap, and then the next epoch."""
    gateway = gateways.start(config_for(own_valkey))
    ledger = Ledger()
    stream = follow(connect, gateway, f"/{channel}")
    stream.wait_data(publish(own_valkey, ledger.messages(channel, 5)))
    own_valkey.kill_subscribers()
    stream.wait_type("gateway.gap")
    gateway.wait_ready()
    stream.wait_data(publish(own_valkey, ledger.messages(channel, 5)))
    cursor = stream.events[1].id
    resumed = follow(connect, gateway, f"/{channel}", cursor)
    resumed.wait_data(ledger.entries[-1][1])

    assert (resumed.blocks[0].id, resumed.blocks[0].json()["replay"]) == (cursor, "gap")
    assert [block.data for block in resumed.blocks[1:4] if not block.own] == stream.data[2:5]
    assert resumed.blocks[4].type == "gateway.gap"
    assert resumed.gaps[0].json()["reason"] in {"source", "epoch"}
    assert len(resumed.gaps) == 1
    assert resumed.data == stream.data[2:]
    after = follow(connect, gateway, f"/{channel}", resumed.gaps[0].id)
    after.wait_data(ledger.entries[-1][1])
    assert after.blocks[0].json()["replay"] == "complete"
    assert after.data == stream.data[5:]


def test_a_cursor_resumes_over_several_breaks(
    own_valkey: Valkey, gateways: Gateways, connect: Connect, channel: str
) -> None:
    """Every epoch that is still remembered is replayed, each break told, whatever the client's place."""
    gateway = gateways.start(config_for(own_valkey))
    names = [f"{channel}{letter}" for letter in "ab"]
    target = f"?channel={names[0]}&channel={names[1]}"
    ledger = Ledger()
    stream = follow(connect, gateway, target)
    for number in range(3):
        stream.wait_data(publish(own_valkey, [ledger.message(names[place % 2]) for place in range(7)]))
        own_valkey.kill_subscribers()
        stream.wait_type("gateway.gap", count=number + 1)
        gateway.wait_ready()
    stream.wait_data(publish(own_valkey, ledger.messages(names[0], 1)))
    cursors = [block for block in stream.blocks if block.type in {"message", "gateway.gap", "gateway.open"}]
    for place, block in enumerate(cursors):
        resumed = follow(connect, gateway, target, block.id)
        if resumed.blocks[0].id != stream.last_id:
            resumed.wait_for(lambda s: s.data[-1:] == [ledger.entries[-1][1]] or s.of_type("gateway.heartbeat"))
        rest = [later.data for later in cursors[place + 1 :] if not later.own]

        assert resumed.data == rest, f"from {block}"
        assert check(ledger, observe([*cursors[: place + 1], *resumed.blocks]), names) == []


def test_a_fresh_stream_after_a_break(own_valkey: Valkey, gateways: Gateways, connect: Connect, channel: str) -> None:
    """A client that is new after a break has missed nothing; one that asks for a replay is told where the break lies."""
    gateway = gateways.start(config_for(own_valkey))
    ledger = Ledger()
    stream = follow(connect, gateway, f"/{channel}")
    stream.wait_data(publish(own_valkey, ledger.messages(channel, 5)))
    own_valkey.kill_subscribers()
    stream.wait_type("gateway.gap")
    gateway.wait_ready()
    stream.wait_data(publish(own_valkey, ledger.messages(channel, 5)))
    fresh = follow(connect, gateway, f"/{channel}")
    replayed = follow(connect, gateway, f"/{channel}?replay=all")
    newest = follow(connect, gateway, f"/{channel}?replay=3")
    last = publish(own_valkey, ledger.messages(channel, 1))
    for each in (fresh, replayed, newest):
        each.wait_data(last)

    published = [data for _, data in ledger.entries]
    assert (fresh.data, fresh.gaps) == ([last], [])
    assert (newest.data, newest.gaps) == (published[-4:], [])
    assert replayed.data == published[len(published) - len(replayed.data) :]
    assert len(replayed.gaps) == (1 if len(replayed.data) > 6 else 0)
    assert check(ledger, observe(replayed.blocks), [channel], since=len(published) - len(replayed.data)) == []


def test_a_cursor_from_before_a_restart_of_the_gateway(
    valkey: Valkey, gateways: Gateways, connect: Connect, channel: str
) -> None:
    """When nobody holds the log any more, a client is told `epoch` and gets what there is of the new one."""
    config = config_for(valkey)
    first = gateways.start(config)
    stream = follow(connect, first, f"/{channel}")
    valkey.publish(f"sse:{channel}", "old")
    stream.wait_data("old")
    cursor = stream.last_id
    stream.close()
    assert first.stop() == 0
    valkey.publish(f"sse:{channel}", "lost")
    second = gateways.start(config)
    valkey.publish_many([(f"sse:{channel}", "new"), (f"sse:{channel}", "newer")])
    resumed = follow(connect, second, f"/{channel}", cursor)
    resumed.wait_data("newer")

    assert (resumed.blocks[0].id, resumed.blocks[0].json()["replay"]) == ("0-0-0", "gap")
    assert [block.json() for block in resumed.gaps] == [{"reason": "epoch", "channels": [channel], "missed": None}]
    assert resumed.blocks[1].type == "gateway.gap"
    assert resumed.data == ["new", "newer"]


def test_a_stalled_client_is_told_of_the_break(
    own_valkey: Valkey, gateways: Gateways, connect: Connect, channel: str
) -> None:
    """Overflow before and after a break merge with it: one gap, `source`, without a number."""
    gateway = gateways.start(config_for(own_valkey))
    ledger = Ledger()
    slow = stall(connect, gateway, f"/{channel}")
    healthy = follow(connect, gateway, f"/{channel}")

    def pour() -> None:
        for _ in range(20):
            healthy.wait_data(publish(own_valkey, ledger.messages(channel, 20, padding=KIB)))

    pour()
    own_valkey.kill_subscribers()
    healthy.wait_type("gateway.gap")
    gateway.wait_ready()
    pour()
    last = publish(own_valkey, ledger.messages(channel, 1))
    slow.wait_data(last)
    healthy.wait_data(last)

    assert [(block.json()["reason"], block.json()["missed"]) for block in slow.gaps] == [("source", None)]
    assert check(ledger, observe(slow.blocks), [channel]) == []
    assert check(ledger, observe(healthy.blocks), [channel]) == []
