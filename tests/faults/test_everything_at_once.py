"""Clients of every kind under random faults: whatever happens, what each got and was told is one whole."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests.support.checker import Ledger, check, observe
from tests.support.gateway_process import AUDIENCES, CONNECTIONS, configuration, rule

if TYPE_CHECKING:
    from tests.conftest import Connect
    from tests.support.gateway_process import GatewayProcess, Gateways
    from tests.support.raw_client import Block, Stream
    from tests.support.valkey import Valkey

NAMES = ["big:a", "big:b", "small:a", "small:b", "disc:a"]
ROUNDS = 150


@dataclass(slots=True)
class Client:
    """One client over all its connections.

    Attributes:
        target: What it asks for.
        names: The channels that stand behind it.
        request: Keywords of its requests.
        stalled: Rounds for which it does not read.
        blocks: What it got on the connections before this one.
    """

    target: str
    names: list[str]
    request: dict[str, str | int]
    stream: Stream
    stalled: int = 0
    blocks: list[Block] = field(default_factory=list)

    @property
    def seen(self) -> list[Block]:
        """Return all it ever got."""
        return [*self.blocks, *self.stream.blocks]

    def cursor(self) -> str:
        """Return what it resumes from."""
        ids = [block.id for block in self.seen if block.id is not None]
        return ids[-1] if ids else ""


def targets(channel: str) -> list[tuple[str, list[str], dict[str, str | int]]]:
    """Build requests of every kind over channels of this test's own."""
    names = [f"{name}{channel}" for name in NAMES]
    several = "&".join(f"channel={name}" for name in names)
    tight: dict[str, str | int] = {"receive_buffer": 4_096}
    return [
        (f"/events/{names[0]}", names[:1], {}),
        (f"/events/{names[2]}", names[2:3], {"version": "1.0"}),
        (f"/events/{names[2]}", names[2:3], tight),
        (f"/events/{names[4]}", names[4:], tight),
        (f"/events?{several}", names, {}),
        (f"/events?{several}&wrap=1", names, {"version": "1.0"}),
        (f"/events?channel={names[0]}&channel={names[2]}", [names[0], names[2]], tight),
        (f"/events?channel={names[1]}&channel={names[3]}&wrap=1", [names[1], names[3]], tight),
        ("/events/big:*", names[:2], {}),
        ("/events/small:*", names[2:4], tight),
    ]


def reconnect(client: Client, connect: Connect, gateway: GatewayProcess) -> None:
    """Open a stream from where the client was, as often as it takes."""
    client.blocks += client.stream.blocks
    client.stream.close()
    while True:
        headers = {"Last-Event-ID": client.cursor()}
        client.stream = connect(gateway, client.target, headers=headers, **client.request)
        client.stream.wait_for(lambda s: s.blocks or s.eof, what="first block")
        if client.stream.blocks and client.stream.blocks[0].type == "gateway.open":
            return
        client.stream.close()
        gateway.wait_ready()


def act(client: Client, chance: random.Random, connect: Connect, gateway: GatewayProcess) -> None:
    """Let a client do what clients do: mostly read, sometimes stall, sometimes go and come again."""
    if client.stalled:
        client.stalled -= 1
        return
    client.stream.read_available()
    what = chance.random()
    if client.stream.eof or what < 0.08:
        if what < 0.04:
            client.stream.reset()
        reconnect(client, connect, gateway)
    elif what < 0.16:
        client.stalled = chance.randint(1, 12)


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_ever_lost_without_a_word(
    gateways: Gateways, own_valkey: Valkey, connect: Connect, channel: str, seed: int
) -> None:
    """I1, I2: random bursts, stalls, resets and lost links leave no silent hole, repetition or disorder."""
    chance = random.Random(seed)
    queue = {"max_events": 60}
    config = configuration(
        own_valkey.url,
        rule("sse:small:*", window={"max_events": 40}, queue={"max_events": 30}),
        rule("sse:disc:*", queue={"max_events": 60, "policy": "disconnect"}),
        rule("sse:*", queue=queue, window={"max_events": 3_000}),
        stream={"send_buffer": "16KiB", "heartbeat": "50ms"},
    )
    gateway = gateways.start(config)
    ledger = Ledger()
    clients = []
    for target, names, request in targets(channel):
        clients.append(Client(target, names, request, connect(gateway, target, **request)))
        clients[-1].stream.wait_open()
    names = [f"{name}{channel}" for name in NAMES]
    for _ in range(ROUNDS):
        batch = [
            ledger.message(chance.choice(names), chance.choice([0, 50, 1_500])) for _ in range(chance.randint(0, 60))
        ]
        messages = [(f"sse:{name}", data) for name, data in batch]
        (own_valkey.publish_at_once if chance.random() < 0.3 and messages else own_valkey.publish_many)(messages)
        for client in clients:
            act(client, chance, connect, gateway)
        if chance.random() < 0.03:
            own_valkey.kill_subscribers()
    gateway.wait_until(lambda: own_valkey.patterns() >= 3, 10, "subscription")
    gateway.wait_ready()
    last = {name: ledger.message(name)[1] for name in names}
    own_valkey.publish_many([(f"sse:{name}", data) for name, data in last.items()])
    for client in clients:
        settle(client, last[client.names[-1]], connect, gateway)

    for client in clients:
        view = observe(client.seen, wrapped="wrap=1" in client.target)
        assert check(ledger, view, client.names, from_cursor=["window"]) == [], client.target
    for client in clients:
        client.stream.close()
    gateway.wait_metric(CONNECTIONS, 0)
    gateway.wait_metric(AUDIENCES, 0)


def settle(client: Client, last: str, connect: Connect, gateway: GatewayProcess) -> None:
    """Read, and come again where the gateway ends the stream, until the last event has come."""
    while not any(last in block.data for block in client.stream.events):
        client.stream.wait_for(
            lambda s: s.eof or any(last in block.data for block in s.events[-8:]), what="the last event"
        )
        if client.stream.eof:
            reconnect(client, connect, gateway)
