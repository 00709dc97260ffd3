"""The judge of clusters is judged: whatever is done to a view, and whatever a broken node does, it notices."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.support.checker import Ledger, check_ids
from tests.support.cluster_gateways import links, node, start_again, start_nodes
from tests.support.cluster_load import Client, judge, loaded
from tests.support.raw_client import Block

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.gateway_process import Gateways
    from tests.support.valkey import Valkey

NAMES = ["a", "b"]
EVENTS = 20


def block(type_: str, offset: int, data: str, epoch: str = "e00000000001") -> Block:
    """Build a block at a place in the log."""
    return Block(type_, data, f"{epoch}-{offset}-0123456789ab", None, b"")


def history() -> tuple[Ledger, Client]:
    """Build a ledger, and a client that got everything on two connections."""
    ledger = Ledger()
    client = Client("/events?channel=a&channel=b", NAMES, [])
    client.blocks.append(block("gateway.open", 0, "{}"))
    for number in range(EVENTS):
        _, data = ledger.message(NAMES[number % 2])
        client.blocks.append(block("message", number + 1, data))
        if number == EVENTS // 2:
            client.blocks += [block("gateway.heartbeat", number + 1, "{}"), block("gateway.open", number + 1, "{}")]
    return ledger, client


def other_channel(view: list[Block]) -> list[Block]:
    """The same ids, with another's events."""
    return [replace(item, data=item.data + "'") if item.id == view[5].id else item for item in view]


MUTATIONS: dict[str, Callable[[list[Block]], list[Block]]] = {
    "an event is missing": lambda view: view[:7] + view[8:],
    "an event is missing at a reconnect": lambda view: view[:14] + view[15:],
    "the last event is missing": lambda view: view[:-1],
    "an event comes twice": lambda view: [*view[:8], view[7], *view[8:]],
    "an event comes again after a reconnect": lambda view: [*view[:14], view[11], *view[14:]],
    "events are swapped": lambda view: [*view[:5], view[6], view[5], *view[7:]],
    "ids are swapped": lambda view: [
        *view[:5],
        replace(view[5], id=view[6].id),
        replace(view[6], id=view[5].id),
        *view[7:],
    ],
    "a position goes back": lambda view: [*view[:-1], block("gateway.heartbeat", 3, "{}"), view[-1]],
    "an epoch comes back": lambda view: [*view[:9], block("gateway.open", 1, "{}", "e00000000002"), *view[9:]],
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_judge_finds_what_is_done_to_a_view(mutation: str) -> None:
    """A whole view is accepted; whatever is dropped, repeated, swapped or renumbered is a problem."""
    ledger, client = history()
    assert judge(ledger, [client]) == []

    client.blocks = MUTATIONS[mutation](client.blocks)

    assert judge(ledger, [client])


def test_an_id_stands_for_one_event_over_all_clients() -> None:
    """Two clients that got different events under one id are a problem, though each view is whole by itself."""
    _, one = history()
    _, other = history()
    assert check_ids([one.blocks, other.blocks]) == []

    other.blocks = [replace(item, data=item.data + "'") for item in other.blocks]

    assert check_ids([other.blocks]) == []
    assert check_ids([one.blocks, other.blocks])


def test_after_another_logs_gap_a_view_begins_anew_and_only_then() -> None:
    """Events that come again behind a gap `epoch` are a problem, unless the other log knew nothing of the client."""
    ledger, client = history()
    gap = block("gateway.gap", 0, '{"reason":"epoch","channels":["a","b"],"missed":null}', "e00000000002")
    again = [replace(item, id=f"e00000000002-{number}-0") for number, item in enumerate(client.blocks[5:12], 1)]
    rest = [replace(item, id=f"e00000000002-{number}-0") for number, item in enumerate(client.blocks[14:], 8)]
    client.blocks = [*client.blocks[:12], gap, *again, *rest]

    assert judge(ledger, [client], anew=True) == []
    assert judge(ledger, [client])
    client.blocks.remove(again[4])
    assert judge(ledger, [client], anew=True)


# -- broken nodes

REPAIR_SKIPPED = """
from sse_gateway.placement import Placement
Placement.rewind = lambda self, reader, audience: None
"""

SNAPSHOT_AS_OF_NOW = """
from sse_gateway.offers import Offers
prepare, make = Offers.prepare, Offers.make
late = []

def make_late(self, now):
    while late and now > late[0][0] + 0.2:
        prepare(self, *late.pop(0)[1:], now)
    make(self, now)

Offers.prepare = lambda self, join, claims, now: late.append((now, join, list(claims)))
Offers.make = make_late
"""


def broken(directory: Path, code: str) -> Path:
    """Write what breaks a node."""
    (directory / "sitecustomize.py").write_text(code)
    return directory


def test_a_node_that_does_not_repair_its_streams_is_found_out(
    own_valkey: Valkey, gateways: Gateways, tmp_path: Path
) -> None:
    """I2: streams that stay where they were when their node takes over what it missed have a silent hole."""
    (sound,) = start_nodes(gateways, node(own_valkey))
    (unsound,) = start_nodes(gateways, node(own_valkey), patch=broken(tmp_path, REPAIR_SKIPPED))
    clients = [Client("/events/a", ["a"], [sound.address]), Client("/events/b", ["b"], [unsound.address])]
    with loaded(own_valkey, NAMES, clients) as load:
        load.wait_published(200)
        own_valkey.link.call("CLIENT", "KILL", "ID", links(own_valkey)[-1])
        load.wait_current()

    assert judge(load.publisher.ledger, clients[:1]) == []
    assert any("silent hole" in problem for problem in load.judge())


def test_a_snapshot_that_is_cut_too_late_is_found_out(own_valkey: Valkey, gateways: Gateways, tmp_path: Path) -> None:
    """I10: a node that counts again what its snapshot has counted is found out by hashes: gaps that nothing justifies."""
    patch = broken(tmp_path, SNAPSHOT_AS_OF_NOW)
    cut_late, joiner = start_nodes(gateways, node(own_valkey), node(own_valkey), patch=patch)
    joiner.kill()
    places = [cut_late.address]
    clients = [Client("/events/a", ["a"], places), Client("/events/b", ["b"], places)]
    with loaded(own_valkey, NAMES, clients) as load:
        load.wait_published(200)
        start_again(joiner)
        places[:] = [joiner.address]
        for client in clients:
            client.move()
        load.wait(lambda: [client.visits for client in clients] == [2, 2], 20, "clients that have moved")
        load.wait_current()

    assert load.judge() != [] or all(client.gaps for client in clients)
