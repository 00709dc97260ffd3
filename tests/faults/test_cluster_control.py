"""What nodes say to each other: two cold starts agree on one log, and whoever has not the secret is not heard."""

from __future__ import annotations

import os
import random
from contextlib import closing
from datetime import datetime
from typing import TYPE_CHECKING

from sse_gateway.control import Control, Kind
from tests.support.cluster_gateways import await_node, epochs, node, start_nodes
from tests.support.cluster_load import Client, loaded
from tests.support.lateness import lateness
from tests.support.raw_client import Stream, position
from tests.support.valkey import Link

if TYPE_CHECKING:
    from tests.support.gateway_process import GatewayProcess, Gateways
    from tests.support.valkey import Valkey

ROUNDS = int(os.environ.get("SSE_GATEWAY_TEST_ROUNDS", "1"))
"""How many times as often as usual."""

IGNORED = "sse_gateway_control_ignored_total"
NAMES = ["a:1", "a:2", "b:1"]
AGREE_S = 3.0
FLOOD = 500
MIB = 1 << 20


# -- cold starts


def test_nodes_that_start_at_the_same_moment_agree_on_one_log(own_valkey: Valkey, gateways: Gateways) -> None:
    """Two nodes with two workers each, and nobody who has the log: one epoch for all, within three seconds."""
    with lateness() as late:
        nodes = start_nodes(gateways, node(own_valkey, workers=2), node(own_valkey, workers=2))
    check_agreement(nodes, [0, 0], late.total_s)
    for _ in range(ROUNDS - 1):
        for gateway in nodes:
            gateway.kill()
        before = [len(gateway.logs) for gateway in nodes]
        with lateness() as late:
            for gateway in nodes:
                gateway.start(alive=False)
            for gateway, lines in zip(nodes, before, strict=True):
                await_node(gateway, lines)
        check_agreement(nodes, before, late.total_s)


def check_agreement(nodes: list[GatewayProcess], before: list[int], late_s: float) -> None:
    """Hold all workers of these nodes to one epoch, in time; `before` are the log lines that are older."""
    (epoch,) = epochs(nodes)
    lines = [line for gateway, first in zip(nodes, before, strict=True) for line in gateway.logs[first:]]
    times = {
        event: max(datetime.fromisoformat(line["ts"]) for line in lines if line["event"] == event)
        for event in ("source.connected", "log.synced")
    }
    assert (times["log.synced"] - times["source.connected"]).total_seconds() < AGREE_S + late_s
    for gateway in nodes * 4:
        stream = Stream(gateway.address, "/events/a")
        opened = stream.wait_open()
        stream.close()
        assert opened.id is not None
        assert position(opened.id)[0] == epoch


# -- forged


def overheard(link: Link) -> list[bytes]:
    """What nodes have said on a channel that this connection is subscribed to, up to a checkpoint."""
    said: list[bytes] = []
    while not said or b" CHECKPOINT " not in said[-1]:
        reply = link.read()
        assert isinstance(reply, list)
        said.append(reply[2])
    return said


def forgeries(checkpoint: bytes, writer: Control) -> list[bytes]:
    """Everything that `writer` can say of the log that a node's CHECKPOINT is of."""
    _, _, _, victim, _, cursor, _ = checkpoint.decode().split()
    epoch, offset, check = cursor.split("-")
    other = "zzzzzzzzzzzz"
    return [
        writer.write(Kind.CLAIM, other),
        writer.write(Kind.CONFIRM, other),
        writer.write(Kind.CONFIRM, epoch),
        writer.write(Kind.VETO, other),
        writer.write(Kind.DIVERGED, epoch, other, victim),
        writer.write(Kind.CHECKPOINT, f"{epoch}-{int(offset) + 1_000_000}-{check}"),
        writer.write(Kind.CHECKPOINT, f"{epoch}-{offset}-{check[::-1]}"),
        writer.write(Kind.CHECKPOINT, f"{other}-1-{check}"),
        writer.write(Kind.JOIN, other, "-"),
        writer.write(Kind.OFFER, other, victim, "list"),
    ]


def test_who_has_not_the_secret_is_not_heard(own_valkey: Valkey, gateways: Gateways) -> None:
    """Floods of forged, recorded and garbled messages change nothing on the streams, and are counted."""
    cluster = {"name": "guarded", "secret": "a secret of more than sixteen"}
    channel = "__sse_gateway:guarded"
    with closing(Link(own_valkey.port)) as spy:
        spy.call("SUBSCRIBE", channel)
        nodes = start_nodes(gateways, node(own_valkey, cluster=cluster), node(own_valkey, cluster=cluster))
        recorded = overheard(spy) + overheard(spy)
    checkpoint = recorded[-1]
    mark = checkpoint.split()[2].decode()
    dice = random.Random(0)
    forged = [
        message
        for secret in (b"", b"not that secret, but another")
        for message in forgeries(checkpoint, Control("mallory00001", mark, secret))
    ]
    garbage = [dice.randbytes(dice.randint(0, 300)) for _ in range(FLOOD)] + [b"1 " + b"x" * MIB, b"\0" * MIB, b""]
    clients = [
        Client("/events/a:*", NAMES[:2], [nodes[0].address]),
        Client("/events/b:1", NAMES[2:], [nodes[1].address]),
    ]
    clients += [Client(f"/events/{name}", [name], [n.address for n in nodes], seed=1, stay=30) for name in NAMES]
    known = epochs(nodes)
    with loaded(own_valkey, NAMES, clients) as load:
        for _ in range(FLOOD // len(forged)):
            own_valkey.publish_many([(channel, message) for message in [*forged, *recorded]])
            load.wait_published(10)
        own_valkey.publish_many([(channel, message) for message in garbage])
        load.wait_published(1_000)
        load.wait_current()

    assert load.judge() == []
    assert [client.reasons for client in clients] == [[]] * len(clients)
    assert epochs(nodes) == known
    for gateway in nodes:
        assert gateway.metric(IGNORED, reason="forged") >= FLOOD
        assert gateway.metric(IGNORED, reason="malformed") >= FLOOD
        assert gateway.metric(IGNORED, reason="stale") > 0


def test_without_a_secret_a_forger_costs_gaps_and_never_a_silent_hole(own_valkey: Valkey, gateways: Gateways) -> None:
    """I2: who can speak for a node makes all begin anew; every client is told, and goes on."""
    cluster = {"name": "open"}
    channel = "__sse_gateway:open"
    nodes = start_nodes(gateways, node(own_valkey, cluster=cluster), node(own_valkey, cluster=cluster))
    clients = [Client(f"/events/{name}", [name], [n.address for n in nodes], seed=1, stay=30) for name in NAMES]
    clients.append(Client("/events/a:*", NAMES[:2], [nodes[0].address]))
    known = epochs(nodes)
    with closing(Link(own_valkey.port)) as spy, loaded(own_valkey, NAMES, clients) as load:
        spy.call("SUBSCRIBE", channel)
        load.wait_published(200)
        checkpoint = overheard(spy)[-1]
        mark = checkpoint.split()[2].decode()
        for message in forgeries(checkpoint + b" -", Control("zzzzzz000001", mark)):  # in the place of a MAC
            own_valkey.publish_many([(channel, message)])
            load.wait_published(20)
        load.wait_current()

    assert load.judge(anew=True) == []
    assert {reason for client in clients for reason in client.reasons} == {"epoch"}
    assert epochs(nodes) != known
    assert [gateway.metric(IGNORED, reason="forged") for gateway in nodes] == [0, 0]
