from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING
from weakref import ref

import pytest

from sse_gateway.checkpoints import CHECKPOINT_S
from sse_gateway.control import Ignored, Kind
from sse_gateway.decisions import How, Synced
from sse_gateway.joining import BUFFER_ENTRIES, ECHO_S
from sse_gateway.log import Verdict
from sse_gateway.offers import MAX_CUTS
from sse_gateway.reader import Phase
from sse_gateway.reasons import GapReason
from sse_gateway.replica import (
    AWAY_S,
    BESIDE_S,
    JOIN_S,
    MAX_CLAIMS,
    PROGRESS_S,
    REJOIN_S,
    VETO_S,
)
from sse_gateway.role import Role
from tests.support.core import Core, rule
from tests.support.keyspace import Keyspace
from tests.support.nodes import FINGERPRINT, STEP_S, Bus, Node
from tests.unit.test_mirror import mirror_of, write

if TYPE_CHECKING:
    from sse_gateway.recollection import Recollection

OLD, FIRST, SECOND = "000000000000", "ep0ch0000001", "ep0ch0000002"
STRANGER = "n0de00000001"


def cluster(count: int) -> tuple[Bus, list[Node]]:
    """So many nodes that share a log."""
    bus = Bus()
    for number in range(count):
        bus.node(chance=number / count)
        bus.settle()
        bus.wait(2.0)
    assert all(node.replica.is_synced for node in bus.nodes)
    bus.said.clear()
    return bus, bus.nodes[:]


def agree(*nodes: Node) -> bool:
    """Whether all are synced, at one place of one log."""
    return all(node.replica.is_synced for node in nodes) and len({node.head for node in nodes}) == 1


def waiting(bus: Bus) -> Node:
    """A node that has its JOIN back, and that nobody answers; the others have not read anything."""
    bus.listeners = 1
    node = bus.node()
    node.read()
    assert node.replica.role is Role.BUFFERING
    return node


def cuts(*nodes: Node) -> int:
    """Snapshots that windows are kept for."""
    return sum(len(node.core.hub.history.cuts) for node in nodes)


# Nobody holds the log.


@pytest.mark.parametrize("is_answered_first", [True, False])
def test_alone(*, is_answered_first: bool) -> None:
    """A node that Redis says is alone begins the log at once, whichever comes first, the answer or its own copy."""
    bus = Bus()
    node = bus.node(is_up=False)
    node.is_answered_first = is_answered_first

    node.connect()
    joining = node.replica.is_joining, node.replica.is_synced
    bus.settle()

    assert joining == (True, False)
    assert (node.replica.is_joining, node.replica.is_synced) == (False, True)
    assert [text.split(" ")[1] for text in bus.said] == [Kind.JOIN, Kind.CLAIM, Kind.CONFIRM]
    assert node.synced == [Synced(node.epoch, How.CLAIMED)]
    assert node.replica.joins == 1


def test_alone_with_copies() -> None:
    """A node whose own rules match the control channel knows how many of the copies are its own."""
    bus = Bus()

    node = bus.node(copies=2)
    bus.settle()

    assert node.replica.is_synced


def test_not_known_to_be_alone() -> None:
    """Where somebody else is subscribed a node waits for an offer, then for an objection, and no longer."""
    bus = Bus()
    bus.listeners = 1
    node = bus.node()
    bus.settle()

    bus.wait(JOIN_S - STEP_S)
    before_claim = bus.kinds()["CLAIM"]
    bus.wait(2 * STEP_S)
    claimed = bus.kinds()["CLAIM"], node.replica.is_synced
    bus.wait(VETO_S - 2 * STEP_S)
    before_confirm = node.replica.is_synced
    bus.wait(3 * STEP_S)

    assert (before_claim, claimed, before_confirm, node.replica.is_synced) == (0, (1, False), False, True)


def test_late_answer_is_of_no_use() -> None:
    """An answer that comes when the log is there changes nothing, nor does one to another message."""
    bus, (node,) = cluster(1)
    node.say(Kind.CLAIM, FIRST)
    bus.settle()

    assert bus.kinds() == {"CLAIM": 1, "VETO": 1}


@pytest.mark.parametrize("chances", [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0)])
def test_two_cold_starters(chances: tuple[float, float]) -> None:
    """Nodes that start together begin one epoch, at one place, whoever is quicker."""
    bus = Bus()
    nodes = [bus.node(chance=chance) for chance in chances]

    bus.settle()
    bus.wait(3.0)
    bus.publish("a", "1")
    bus.settle()

    assert agree(*nodes)
    assert all(node.core.hub.log.begun == 1 for node in nodes)


@pytest.mark.parametrize("place", range(4))
def test_second_starter_comes_in_between(place: int) -> None:
    """Wherever a second node subscribes while the first begins the log, both end in one epoch."""
    bus = Bus()
    first = bus.node()
    for _ in range(2 * place):
        first.read(1)

    second = bus.node()
    bus.settle()
    bus.wait(3.0)
    bus.publish("a", "1")
    bus.settle()

    assert agree(first, second)


@pytest.mark.parametrize("order", [*permutations(range(3))])
def test_three_claims(order: tuple[int, ...]) -> None:
    """Of several claims the one that is confirmed first is in force, for everybody; the others are void."""
    bus = Bus()
    nodes = [waiting(bus) for _ in range(3)]
    for node in nodes:
        node.say(Kind.CLAIM, f"ep0ch000000{node.name[-1]}")
    for index in order:
        nodes[index].say(Kind.CONFIRM, f"ep0ch000000{nodes[index].name[-1]}")

    bus.settle()

    assert agree(*nodes)
    assert nodes[0].epoch == f"ep0ch000000{nodes[order[0]].name[-1]}"


def test_confirmed_in_time() -> None:
    """What is published comes back, however late: a claim is not confirmed before the others had their time."""
    bus, (holder,) = cluster(1)
    joiner = waiting(bus)
    bus.moves_snapshots = False
    bus.now += JOIN_S
    joiner.tick()

    bus.now += ECHO_S - STEP_S  # Redis stands still
    joiner.tick()
    bus.settle()

    assert bus.kinds()["CLAIM"] == 1
    assert bus.kinds()["CONFIRM"] == 0
    assert (holder.core.hub.log.begun, bus.kinds()["VETO"]) == (1, 1)


def test_join_that_is_late() -> None:
    """A JOIN is not repeated because it is late: the next one would only come behind it."""
    bus = Bus()
    bus.listeners = 1
    node = bus.node()
    bus.now += ECHO_S - STEP_S
    node.tick()
    once = node.replica.joins

    bus.now += STEP_S
    node.tick()

    assert (once, node.replica.joins) == (1, 2)


@pytest.mark.parametrize("kind", [Kind.CLAIM, Kind.CONFIRM])
def test_claim_that_never_comes_back(kind: Kind) -> None:
    """A node whose own message never comes back, though its link lives, asks anew in the end."""
    bus = Bus()
    bus.listeners = 1
    node = waiting(bus)
    bus.now += JOIN_S
    node.tick()
    if kind is Kind.CONFIRM:
        node.read()
        bus.now += VETO_S
        node.tick()
    node.inbox.clear()

    bus.now += ECHO_S
    node.tick()

    assert (node.replica.role, node.replica.joins) == (Role.JOINING, 2)
    assert bus.kinds()[kind] == 1


def test_own_claim_after_all() -> None:
    """A claim of ours that comes back when we hold the log is void like anybody's."""
    bus, (holder,) = cluster(1)
    joiner = waiting(bus)
    bus.now += JOIN_S
    joiner.tick()
    joiner.inbox.clear()
    joiner.say(Kind.CLAIM, FIRST)

    bus.settle()
    bus.wait(2.0)

    assert agree(holder, joiner)
    assert holder.core.hub.log.begun == 1


# Joining a node that holds the log.


def test_joins_a_peer() -> None:
    """A node without anything gets the whole log and all windows, and its clients resume there (I10)."""
    bus, (holder,) = cluster(1)
    bus.publish("a", "1", "2")
    bus.settle()
    cursor = holder.head
    bus.publish("a", "3")

    joiner = bus.node()
    bus.settle()
    bus.wait(0.2)

    assert agree(holder, joiner)
    assert joiner.core.connect("channel=a", cursor).told() == ["3"]
    assert joiner.core.connect("channel=a&replay=all").told() == ["1", "2", "3"]
    assert joiner.synced == [Synced(holder.epoch, How.JOINED)]
    assert (holder.replica.offers.served, cuts(holder)) == (1, 0)


def test_neighbour_joins() -> None:
    """A node of the same host is offered the log at once."""
    bus = Bus()
    holder = bus.node(local=True)
    bus.settle()

    joiner = bus.node()
    bus.settle()

    assert agree(holder, joiner)


def test_comes_back() -> None:
    """A node that had the log gets only what it missed, and its clients see a pause."""
    bus, (holder, node) = cluster(2)
    client = node.core.connect("channel=a")
    bus.publish("a", "1" + "x" * 100_000)
    bus.settle()
    node.disconnect()
    bus.publish("a", "2")

    node.connect()
    bus.settle()
    bus.now += 0.2
    holder.tick()
    holder.read()
    node.read()
    order = holder.serves[next(iter(node.fetches))]
    size = sum(map(len, list(order.blocks)))
    node.replica.tick(bus.now + PROGRESS_S)
    node.carry_out()
    bus.settle()
    bus.wait(0.2)

    assert size < 10_000
    assert agree(holder, node)
    assert [text[0] for text in client.told()] == ["1", "2"]


def test_comes_back_with_more_of_an_epoch_that_has_ended() -> None:
    """Who left the old primary later keeps what he has read there: a delta, and one gap, for clients of either."""
    bus, (first, last) = cluster(2)
    clients = [node.core.connect("channel=a") for node in (first, last)]
    bus.publish("a", "1" + "x" * 100_000)
    bus.settle()
    first.disconnect()
    bus.publish("a", "2")
    bus.settle()
    more = last.head
    last.disconnect()

    first.connect()
    bus.settle()
    bus.publish("a", "3")
    last.connect()
    bus.settle()
    bus.now += 0.2
    first.tick()
    bus.moves_snapshots = False
    bus.settle()
    order = first.serves[next(iter(last.fetches))]
    blocks = list(order.blocks)
    for block in blocks:
        last.block(order.token, block)
    bus.publish("a", "4")
    bus.settle()

    assert sum(map(len, blocks)) < 10_000
    assert agree(first, last)
    assert [[text[0] for text in client.told()] for client in clients] == [
        ["1", "s", "3", "4"],
        ["1", "2", "s", "3", "4"],
    ]
    assert last.core.hub.log.locate(more)[0] is Verdict.VERIFIED
    assert first.core.hub.log.locate(more)[0] is Verdict.UNKNOWN_EPOCH


def test_buffer() -> None:
    """What comes between the cut and the snapshot is kept and applied after it: in order, nothing twice or missing."""
    bus, (holder, node) = cluster(2)
    client = node.core.connect("channel=a")
    node.disconnect()
    bus.publish("a", "1")
    bus.moves_snapshots = False

    node.connect()
    bus.publish("a", "2")
    bus.settle()
    bus.publish("a", "3")
    bus.wait(0.2)
    bus.move(1)
    bus.publish("a", "4")
    bus.settle()
    none_yet = client.told()
    bus.moves_snapshots = True
    bus.settle()
    bus.publish("a", "5")
    bus.settle()

    assert none_yet == []
    assert client.told() == ["1", "2", "3", "4", "5"]
    assert agree(holder, node)


def test_before_the_join() -> None:
    """What comes before a node's own JOIN is none of its own: the snapshot has it."""
    bus, (holder,) = cluster(1)
    joiner = bus.node(is_up=False)
    joiner.is_connected = True
    bus.publish("a", "1")
    joiner.connect()
    bus.publish("a", "2")

    bus.wait(0.2)

    assert agree(holder, joiner)
    assert joiner.core.connect("channel=a&replay=all").told() == ["1", "2"]


@pytest.mark.parametrize("is_message", [True, False])
def test_too_much_to_keep(*, is_message: bool) -> None:
    """A node that cannot keep all that comes until its snapshot is there asks anew (I5)."""
    bus, (holder,) = cluster(1)
    joiner = waiting(bus)
    holder.read()
    for _ in range(BUFFER_ENTRIES):
        joiner.replica.message(b"*", b"a", b"", bus.now, bus.now)
    before = joiner.replica.joins

    if is_message:
        joiner.replica.message(b"*", b"a", b"", bus.now, bus.now)
    else:
        joiner.replica.entry(holder.control.write(Kind.CLAIM, FIRST), bus.now)
    joiner.carry_out()
    joined = joiner.replica.joins
    bus.wait(0.2)

    assert (before, joined) == (1, 2)
    assert agree(holder, joiner)


def test_first_offer_wins() -> None:
    """Of several that could hand over, the one whose OFFER comes first does; the others let go of their cuts."""
    bus, holders = cluster(3)
    bus.publish("a", "1")
    bus.settle()
    joiner = waiting(bus)
    bus.moves_snapshots = False
    for node in holders:
        node.read()
    held = cuts(*holders)
    bus.now += 0.02
    for node in holders:
        node.tick()  # each offers before it sees the others' OFFERs
    bus.settle()
    serving = [len(node.serves) for node in holders], cuts(*holders)

    bus.moves_snapshots = True
    bus.settle()

    assert held == 3
    assert serving == ([1, 0, 0], 1)
    assert agree(joiner, *holders)
    assert (joiner.replica.joins, cuts(*holders)) == (1, 0)


def test_many_join() -> None:
    """A node hands over to some at a time; the others ask again, and nobody gets an epoch of his own."""
    bus, (holder,) = cluster(1)
    joiners = [waiting(bus) for _ in range(MAX_CUTS + 2)]
    holder.read()
    held = cuts(holder)

    bus.settle()
    bus.wait(5.0)

    assert held == MAX_CUTS
    assert agree(holder, *joiners)
    assert bus.kinds()["CLAIM"] == 0
    assert holder.core.hub.log.begun == 1


def test_no_progress() -> None:
    """A node asks somebody else when the blocks stop coming, and wants no more of what it was to get."""
    bus, (holder, other) = cluster(2)
    bus.publish("a", "1")
    bus.settle()
    bus.moves_snapshots = False
    joiner = bus.node()
    bus.wait(0.2)
    bus.move(1)
    bus.wait(PROGRESS_S - STEP_S)
    waits = joiner.replica.joins
    token = next(iter(joiner.fetches))
    bus.wait(2 * STEP_S)
    is_stopped = token not in joiner.fetches

    bus.moves_snapshots = True
    bus.settle()
    bus.wait(0.2)

    assert (waits, joiner.replica.joins, is_stopped) == (1, 2, True)
    assert not joiner.block(token, b"late")
    assert agree(holder, other, joiner)
    assert cuts(holder, other) == 0


def test_damaged() -> None:
    """A snapshot that does not prove itself is not taken in; the node asks anew (I10)."""
    bus, (holder,) = cluster(1)
    bus.moves_snapshots = False
    joiner = bus.node()
    bus.wait(0.2)
    token = next(iter(joiner.fetches))

    is_wanted = joiner.block(token, b"Hgarbage")
    bus.moves_snapshots = True
    bus.wait(0.2)

    assert not is_wanted
    assert joiner.replica.joins == 2
    assert agree(holder, joiner)


def test_a_snapshot_of_another_begin() -> None:
    """A snapshot that begins where our log does not end is not taken in; the node asks anew."""
    bus, (holder,) = cluster(1)
    begin = holder.head
    bus.publish("a", "1")
    bus.settle()
    bus.moves_snapshots = False
    joiner = bus.node()
    bus.wait(0.2)
    token = next(iter(joiner.fetches))

    wanted = [joiner.block(token, block) for block in holder.core.hub.cut(token, begin, (), bus.now) if block]
    bus.moves_snapshots = True
    bus.wait(2.0)

    assert wanted[-1] is False
    assert joiner.replica.joins == 2
    assert agree(holder, joiner)


@pytest.mark.parametrize("is_whole", [True, False])
def test_blocks_overtake_the_log(*, is_whole: bool) -> None:
    """On one host a snapshot may come before our own JOIN does; it is taken in when that is there."""
    bus, (holder,) = cluster(1)
    bus.publish("a", "1")
    bus.settle()
    bus.moves_snapshots = False
    joiner = bus.node()
    bus.publish("a", "2")
    holder.read()
    bus.now += 0.1
    holder.tick()
    holder.read()
    token = next(iter(holder.serves))

    for block in [*holder.serves[token].blocks][: None if is_whole else 1]:
        assert joiner.block(token, block) is not block.startswith(b"E")
    early = joiner.replica.role
    joiner.read()
    bus.moves_snapshots = True
    bus.wait(PROGRESS_S + 0.2)

    assert early is Role.JOINING
    assert joiner.replica.joins == (1 if is_whole else 2)
    assert agree(holder, joiner)


def test_overtaken_by_a_part() -> None:
    """A snapshot that has begun before our JOIN is back goes on afterwards."""
    bus, (holder,) = cluster(1)
    bus.moves_snapshots = False
    joiner = bus.node()
    holder.read()
    bus.now += 0.1
    holder.tick()
    holder.read()
    token = next(iter(holder.serves))
    blocks = [*holder.serves[token].blocks]

    assert joiner.block(token, blocks[0])
    joiner.read()
    for block in blocks[1:]:
        joiner.block(token, block)

    assert agree(holder, joiner)
    assert joiner.fetches == {}
    assert joiner.replica.joins == 1


def test_overtaken_by_far() -> None:
    """A snapshot that is there waits for our JOIN as long as that takes."""
    bus, (holder,) = cluster(1)
    joiner = bus.node()
    holder.read()
    bus.now += 0.125
    holder.tick()
    holder.read()
    for block in next(iter(holder.serves.values())).blocks:
        joiner.block(joiner.replica._joining.token, block)

    bus.now += 2 * PROGRESS_S
    joiner.tick()
    joiner.read()

    assert agree(holder, joiner)
    assert joiner.replica.joins == 1


def test_blocks_of_others() -> None:
    """Blocks of another attempt, or when nothing is wanted, are not taken."""
    bus, (holder,) = cluster(1)
    joiner = waiting(bus)

    assert not joiner.block("0ther0000000", b"H")
    assert not holder.block("0ther0000000", b"H")


# Claims and objections.


def test_veto() -> None:
    """A node whose claim is vetoed asks anew, each time more patiently, up to a bound."""
    bus = Bus()
    bus.listeners = 1
    node = bus.node()
    node.read()
    voice = bus.node(is_up=False)
    waits = []

    for _ in range(6):
        began = bus.now
        while bus.kinds()["CLAIM"] == 0:
            bus.now += STEP_S
            node.tick()
        waits.append(round(bus.now - began, 3))
        epoch = next(text for text in bus.said if " CLAIM " in text).split(" ")[5]
        bus.said.clear()
        voice.say(Kind.VETO, epoch)
        node.read()

    assert waits == pytest.approx([JOIN_S, 1.0, 2.0, 4.0, REJOIN_S, REJOIN_S], abs=2 * STEP_S)
    assert node.replica.joins == 7


@pytest.mark.parametrize("kind", [Kind.OFFER, Kind.VETO, Kind.CHECKPOINT])
def test_somebody_holds_it(kind: Kind) -> None:
    """A node that hears somebody who holds the log claims nothing: it asks again, and waits longer."""
    bus = Bus()
    joiner = waiting(bus)
    voice = bus.node(is_up=False)
    fields = {
        Kind.OFFER: ("t0ken0000009", STRANGER, "list"),
        Kind.VETO: (FIRST,),
        Kind.CHECKPOINT: (f"{FIRST}-5-0123456789ab",),
    }

    voice.say(kind, *fields[kind])
    bus.wait(JOIN_S)
    asked = bus.kinds()["JOIN"], bus.kinds()["CLAIM"]
    bus.wait(2 * JOIN_S)
    waited = bus.kinds()["JOIN"], bus.kinds()["CLAIM"]
    bus.wait(VETO_S + STEP_S)

    assert (asked, waited) == ((2, 0), (2, 1))
    assert joiner.replica.is_synced


def test_patience_is_of_one_link() -> None:
    """After a new connection nobody has vetoed anything yet."""
    bus, (holder,) = cluster(1)
    node = waiting(bus)
    bus.now += JOIN_S
    node.tick()
    holder.say(Kind.VETO, bus.said[-1].split(" ")[5])
    node.read()
    node.disconnect()
    node.connect()
    node.read()

    bus.now += JOIN_S
    node.tick()

    assert bus.kinds()["CLAIM"] == 2


def test_veto_of_others() -> None:
    """A claim that was vetoed is void for whoever waits for the log, too."""
    bus = Bus()
    nodes = [waiting(bus) for _ in range(2)]
    nodes[0].say(Kind.CLAIM, FIRST)
    nodes[1].say(Kind.VETO, FIRST)
    nodes[0].say(Kind.CONFIRM, FIRST)

    for node in nodes:
        node.read()

    assert [(node.replica.is_synced, node.replica.joins) for node in nodes] == [(False, 2)] * 2


def test_holder_objects() -> None:
    """Whoever holds the log vetoes a claim, and nothing begins."""
    bus, (holder, other) = cluster(2)

    bus.nodes[1].say(Kind.CLAIM, FIRST)
    bus.settle()
    other.say(Kind.CONFIRM, FIRST)
    bus.settle()

    assert bus.kinds()["VETO"] == 2
    assert agree(holder, other)
    assert holder.core.hub.log.begun == 1


def test_holder_is_too_slow() -> None:
    """A claim that is confirmed before the holder has objected is in force for it, too: its clients are told."""
    bus, (holder,) = cluster(1)
    client = holder.core.connect("channel=a")
    bus.publish("a", "1")
    joiner = waiting(bus)
    bus.publish("a", "2")
    bus.now += JOIN_S
    joiner.tick()
    joiner.read()
    bus.now += VETO_S
    joiner.tick()
    bus.publish("a", "3")

    bus.settle()

    assert agree(holder, joiner)
    assert client.told() == ["1", "2", "epoch:None", "3"]
    assert holder.synced[-1] == Synced(joiner.epoch, How.SWITCHED)
    assert joiner.synced == [Synced(joiner.epoch, How.CLAIMED)]


def test_holder_is_too_slow_for_two() -> None:
    """Of two claims that a slow holder finds confirmed, the first is in force for it, and the other void."""
    bus, (holder,) = cluster(1)
    joiners = [waiting(bus) for _ in range(2)]
    for joiner, epoch in zip(joiners, (FIRST, SECOND), strict=True):
        joiner.say(Kind.CLAIM, epoch)
    for joiner, epoch in zip(joiners, (FIRST, SECOND), strict=True):
        joiner.say(Kind.CONFIRM, epoch)

    bus.settle()

    assert agree(holder, *joiners)
    assert holder.epoch == FIRST


@pytest.mark.parametrize("stalls", [True, False])
def test_offer_behind_our_own_claim(*, stalls: bool) -> None:
    """Once a snapshot is on its way our claim is none any more: neither confirmed, nor is its veto of any meaning."""
    bus, (holder,) = cluster(1)
    joiner = waiting(bus)
    bus.now += JOIN_S
    joiner.tick()
    holder.read(1)  # the JOIN
    bus.now += STEP_S
    holder.tick()
    joiner.read()
    bus.moves_snapshots = False
    bus.settle()
    joins = joiner.replica.joins

    if stalls:
        bus.wait(PROGRESS_S + STEP_S)
    bus.moves_snapshots = True
    bus.wait(1.0)

    assert (joins, joiner.replica.joins) == (1, 2 if stalls else 1)
    assert bus.kinds()["VETO"] >= 1
    assert bus.kinds()["CONFIRM"] == 0
    assert agree(holder, joiner)


def test_waiting_clients_are_told() -> None:
    """When a claim comes into force the clients of a node that had lost the log are told that its source was away."""
    bus, (node,) = cluster(1)
    client = node.core.connect("channel=a")
    node.disconnect()
    node.connect()
    bus.settle()
    bus.publish("a", "1")
    bus.settle()

    assert client.told() == ["source:None", "1"]


def test_claim_in_force_during_a_snapshot() -> None:
    """A claim that comes into force while a snapshot is on its way ends that: the epoch begins here, too."""
    bus, (holder,) = cluster(1)
    bus.moves_snapshots = False
    joiner = bus.node()
    bus.wait(0.2)
    token = next(iter(joiner.fetches))
    holder.say(Kind.CLAIM, FIRST)
    holder.say(Kind.CONFIRM, FIRST)

    bus.settle()

    assert agree(holder, joiner)
    assert (joiner.epoch, joiner.fetches) == (FIRST, {})
    assert not joiner.block(token, b"H")


def test_pending_claims_are_in_the_snapshot() -> None:
    """A claim from before our JOIN is in force for us, too, when it is confirmed behind it."""
    bus, (holder,) = cluster(1)
    holder.say(Kind.CLAIM, FIRST)
    joiner = bus.node()
    bus.moves_snapshots = False
    holder.read(1)  # the claim; its veto comes behind what follows
    joiner.read()
    holder.read(1)  # the JOIN
    bus.now += 0.1
    holder.tick()
    holder.say(Kind.CONFIRM, FIRST)
    joiner.read()
    bus.moves_snapshots = True

    bus.settle()

    assert agree(holder, joiner)


@pytest.mark.parametrize("is_confirmed_late", [True, False])
def test_confirmation_of_a_claim_from_before(*, is_confirmed_late: bool) -> None:
    """A CONFIRM of what we know nothing of ends no snapshot under way, which knows; without one we ask anew."""
    bus, (holder,) = cluster(1)
    bus.moves_snapshots = False
    holder.say(Kind.CLAIM, FIRST)
    joiner = bus.node()
    if is_confirmed_late:
        holder.inbox.clear()
        joiner_join = bus.said[-1].encode()
        holder.replica.entry(bus.said[0].encode(), bus.now)
        holder.replica.entry(joiner_join, bus.now)
        holder.replica.decisions.clear()  # it objects too late
        joiner.read()
        bus.now += 0.1
        holder.tick()
        bus.settle()
    holder.say(Kind.CONFIRM, FIRST)
    joiner.read()
    joins = joiner.replica.joins
    bus.moves_snapshots = True
    bus.settle()
    bus.wait(0.2)

    assert joins == (1 if is_confirmed_late else 2)
    assert agree(holder, joiner)
    assert holder.epoch == FIRST if is_confirmed_late else OLD


def test_any_confirmation_ends_the_claims_that_a_joiner_knows() -> None:
    """A joiner cannot tell whether a CONFIRM was in force, so afterwards it believes in no earlier claim."""
    bus = Bus()
    joiner = waiting(bus)
    voice = bus.node(is_up=False)
    joiner.replica.entry(voice.control.write(Kind.CLAIM, FIRST), bus.now)
    bus.moves_snapshots = False
    joiner.carry_out()
    token = bus.said[0].split(" ")[5]
    joiner.replica.entry(voice.control.write(Kind.OFFER, token, joiner.name, "list"), bus.now)

    joiner.replica.entry(voice.control.write(Kind.CONFIRM, SECOND), bus.now)
    joiner.replica.entry(voice.control.write(Kind.CONFIRM, FIRST), bus.now)

    assert joiner.replica.role is Role.BUFFERING


def test_claims_are_bounded() -> None:
    """Of very many claims that nobody decides the oldest are forgotten (I5)."""
    bus, (holder,) = cluster(1)
    for number in range(MAX_CLAIMS + 1):
        holder.replica.entry(holder.control.write(Kind.CLAIM, f"ep0ch{number:07}"), bus.now)
    holder.replica.decisions.clear()

    holder.replica.entry(holder.control.write(Kind.CONFIRM, "ep0ch0000000"), bus.now)
    before = holder.epoch
    holder.replica.entry(holder.control.write(Kind.CONFIRM, "ep0ch0000001"), bus.now)

    assert before not in {"ep0ch0000000", "ep0ch0000001"}
    assert holder.epoch == "ep0ch0000001"


def test_claim_survives_a_divergence() -> None:
    """That the log has begun anew decides no claim: it is in force for those who had it and for those who wait."""
    bus, (holder, other) = cluster(2)
    joiner = waiting(bus)
    joiner.say(Kind.CLAIM, FIRST)
    other.say(Kind.DIVERGED, holder.epoch, SECOND, STRANGER)
    joiner.say(Kind.CONFIRM, FIRST)

    bus.settle()

    assert agree(holder, other, joiner)
    assert holder.epoch == FIRST


@pytest.mark.parametrize("role", [Role.SYNCED, Role.BUFFERING])
def test_epoch_that_was_had_before(role: Role) -> None:
    """Nobody begins an epoch again that he has had: what was recorded can be played again (I1)."""
    bus, (node, other) = cluster(2)
    voice = bus.node(is_up=False)
    old = node.epoch
    node.say(Kind.DIVERGED, old, FIRST, STRANGER)
    bus.settle()
    if role is Role.BUFFERING:
        other.disconnect()
        node.disconnect()
        bus.listeners = 1
        node.connect()
        node.read()
    assert node.replica.role is role
    head = node.head

    entries = [(Kind.CLAIM, (old,)), (Kind.CONFIRM, (old,)), (Kind.DIVERGED, (FIRST, old, STRANGER))]
    for kind, fields in entries:
        node.replica.entry(voice.control.write(kind, *fields), bus.now)

    assert node.head == head


# Do the nodes count the same?


def test_checkpoints() -> None:
    """Twice a second one node says where it stands, and the others are content."""
    bus, nodes = cluster(3)
    bus.publish("a", "1")
    bus.settle()

    bus.wait(10 * CHECKPOINT_S)

    assert 8 <= len(bus.said) <= 10
    assert all(" CHECKPOINT " in text for text in bus.said)
    assert agree(*nodes)


@pytest.mark.parametrize("has_more", [True, False])
def test_hole(*, has_more: bool) -> None:
    """A node that has missed something, or has got too much, is found out; all begin anew, and tell (I2)."""
    bus, nodes = cluster(3)
    clients = [node.core.connect("channel=a") for node in nodes]
    for node in nodes:
        if (node is nodes[1]) is has_more:
            node.replica.message(b"*", b"a", b"not everywhere", bus.now, bus.now)
    bus.publish("a", "1")
    bus.settle()

    bus.wait(2.0)
    bus.publish("a", "2")
    bus.settle()

    assert agree(*nodes)
    assert [client.told()[-2:] for client in clients] == [["epoch:None", "2"]] * 3
    assert all(node.core.hub.log.begun == 2 for node in nodes)
    assert sum(node.replica.checkpoints.divergences for node in nodes) == 2


def test_two_accusers() -> None:
    """Two that find the same out at once begin one epoch: the first DIVERGED ends what the second speaks of."""
    bus, (one, other) = cluster(2)
    one.replica.message(b"*", b"a", b"only here", bus.now, bus.now)
    other.replica.message(b"*", b"a", b"only there", bus.now, bus.now)
    one.say(Kind.CHECKPOINT, one.head)
    other.say(Kind.CHECKPOINT, other.head)
    one.read()
    other.read()

    bus.settle()

    assert bus.kinds()["DIVERGED"] == 2
    assert agree(one, other)
    assert [node.replica.checkpoints.divergences for node in (one, other)] == [1, 1]


def test_late_checkpoint_of_the_diverged() -> None:
    """What a diverged node still says before it has read that the epoch has ended begins no further one."""
    bus, (one, other) = cluster(2)
    other.replica.message(b"*", b"a", b"only here", bus.now, bus.now)
    one.say(Kind.DIVERGED, one.epoch, FIRST, other.name)
    other.say(Kind.CHECKPOINT, other.head)

    bus.settle()
    bus.wait(2.0)

    assert bus.kinds()["DIVERGED"] == 1
    assert agree(one, other)


def test_two_logs() -> None:
    """Nodes that count different epochs, whatever has led there, find it out after a while and come together."""
    bus, (one, other) = cluster(2)
    clients = [node.core.connect("channel=a") for node in (one, other)]
    other.replica.entry(one.control.write(Kind.CLAIM, FIRST), bus.now)
    other.replica.entry(one.control.write(Kind.CONFIRM, FIRST), bus.now)
    other.replica.decisions.clear()
    apart = one.epoch, other.epoch

    bus.wait(2.0)
    bus.publish("a", "1")
    bus.settle()

    assert apart[0] != apart[1]
    assert agree(one, other)
    assert [client.told() for client in clients] == [["epoch:None", "1"], ["epoch:None", "epoch:None", "1"]]


def test_diverged_elsewhere() -> None:
    """A divergence of epochs that are not ours is none of ours."""
    bus, (node,) = cluster(1)
    head = node.head

    node.say(Kind.DIVERGED, f"{FIRST},{SECOND}", "ep0ch0000003", node.name)
    bus.settle()

    assert (node.head, node.replica.checkpoints.divergences) == (head, 0)


def test_third_divergence() -> None:
    """A node that diverges for the third time in a while leaves: it does nothing any more, until it is told to join."""
    bus, (node, other, third) = cluster(3)
    joiner = waiting(bus)
    node.read()
    for number in range(3):
        other.say(Kind.DIVERGED, node.epoch, f"div0rced000{number}", third.name)
        third.read()
        third.core.run()
        node.read()
    bus.said.clear()
    client = third.core.connect("channel=a")
    head = third.head

    joiner.say(Kind.JOIN, "t0ken0000009", "-")
    joiner.say(Kind.CLAIM, FIRST)
    other.say(Kind.DIVERGED, third.epoch, SECOND, third.name)
    bus.publish("a", "1")
    third.read()
    third.tick()
    third.served("t0ken0000009")

    assert third.left_s == [pytest.approx(AWAY_S[0] + 2 / 3 * (AWAY_S[1] - AWAY_S[0]))]
    assert (third.replica.role, third.head, client.told()) == (Role.LEFT, head, [])
    assert (third.replica.is_synced, third.replica.is_joining, cuts(third)) == (False, False, 0)
    assert not third.block("t0ken0000009", b"H")
    assert not [text for text in bus.said if f" {third.name} " in text]


def test_comes_back_after_it_has_left() -> None:
    """A node that has left stays away over the loss of its link, and joins with the next one."""
    bus, (node, other) = cluster(2)
    for number in range(3):
        node.say(Kind.DIVERGED, node.epoch, f"div0rced000{number}", STRANGER)
        bus.settle()
    left = node.replica.role, other.replica.role
    node.disconnect()
    away = node.replica.role

    node.connect()
    bus.settle()
    bus.wait(0.2)

    assert (left, away) == ((Role.LEFT, Role.SYNCED), Role.LEFT)
    assert agree(node, other)


def test_leaves_while_it_makes_up() -> None:
    """A node that finds in its buffer that it has to leave does so, and takes no more of it in."""
    bus, (node, other) = cluster(2)
    for number in range(2):
        node.say(Kind.DIVERGED, node.epoch, f"div0rced000{number}", STRANGER)
        bus.settle()
    node.disconnect()
    bus.moves_snapshots = False
    node.connect()
    bus.settle()
    bus.wait(0.2)
    other.say(Kind.DIVERGED, other.epoch, SECOND, node.name)
    bus.publish("a", "1")
    other.say(Kind.DIVERGED, SECOND, FIRST, STRANGER)
    node.read()
    bus.moves_snapshots = True
    bus.settle()

    assert (node.replica.role, node.epoch, node.left_s) == (Role.LEFT, SECOND, [AWAY_S[0]])
    assert other.epoch == FIRST


# What is no part of the conversation.


def test_ignored() -> None:
    """Stale, forged, foreign and malformed entries change nothing, and are counted."""
    bus = Bus()
    node = bus.node(secret=b"secret")
    bus.settle()
    said = node.control.write(Kind.CLAIM, FIRST)
    node.replica.entry(said, bus.now)
    node.replica.decisions.clear()
    head = node.head
    confirm = f"CONFIRM {FINGERPRINT} {STRANGER} 5 {FIRST}".encode()
    foreign = bus.node(fingerprint="fedcba9876543210", secret=b"secret", is_up=False)

    for payload in (said, b"1 " + confirm + b" 0", b"2 " + confirm, b"garbage"):
        node.replica.entry(payload, bus.now)
    node.replica.entry(foreign.control.write(Kind.CONFIRM, FIRST), bus.now)

    assert (node.head, node.replica.decisions) == (head, [])
    assert node.control.ignored == dict.fromkeys(Ignored, 1) | {Ignored.MALFORMED: 1}


OLDER = "000000000001-5-000000000000"
"""A cursor of an epoch before all others."""


def test_another_log_beside() -> None:
    """Who comes from a log that runs beside may have had what our windows hold: the gap, and what comes from now on."""
    bus, (node, other) = cluster(2)
    foreign = bus.node(fingerprint="fedcba9876543210", is_up=False)
    bus.publish("a", "1")
    bus.settle()
    before = node.core.connect("channel=a", OLDER).told()

    foreign.say(Kind.VETO, FIRST)
    bus.settle()
    joined = bus.node()
    bus.wait(1.0)
    after = [one.core.connect("channel=a", OLDER) for one in (node, other, joined)]
    bus.publish("a", "2")
    bus.settle()

    assert before == ["epoch:None", "1"]
    assert [client.told() for client in after] == [["epoch:None", "2"]] * 3


def test_another_log_beside_when_an_epoch_begins() -> None:
    """A log that was heard just before our epoch began runs beside it; one that was not heard for long does not."""
    bus, (node,) = cluster(1)
    foreign = bus.node(fingerprint="fedcba9876543210", is_up=False)
    foreign.say(Kind.VETO, FIRST)
    bus.settle()
    node.replica.entry(node.control.write(Kind.DIVERGED, node.epoch, "ep0ch9999991", STRANGER), bus.now)
    soon = node.core.hub.placement.beside
    node.replica.entry(node.control.write(Kind.DIVERGED, "ep0ch9999991", "ep0ch9999992", STRANGER), bus.now + BESIDE_S)

    assert (soon, node.core.hub.placement.beside) == (True, False)


def test_kinds_that_mean_nothing_here() -> None:
    """Messages that do not concern a node where it stands change nothing."""
    bus, (holder,) = cluster(1)
    joiner = waiting(bus)
    voice = bus.node(is_up=False)
    entries = [
        (Kind.OFFER, ("t0ken0000009", STRANGER, "list")),
        (Kind.JOIN, ("t0ken0000009", "-")),
        (Kind.CHECKPOINT, (f"{FIRST}-5-0123456789ab",)),
        (Kind.DIVERGED, (FIRST, SECOND, STRANGER)),
        (Kind.VETO, (FIRST,)),
    ]
    holder.inbox.clear()

    for kind, fields in entries:
        joiner.replica.entry(voice.control.write(kind, *fields), bus.now)
    holder.replica.entry(holder.control.write(Kind.JOIN, "t0ken0000008", "-"), bus.now)
    holder.replica.entry(holder.control.write(Kind.CONFIRM, FIRST), bus.now)

    assert (joiner.replica.role, joiner.replica.decisions) == (Role.BUFFERING, [])
    assert (holder.replica.decisions, cuts(holder)) == ([], 0)


def test_horizon() -> None:
    """A cursor of an epoch that may have begun elsewhere since ours is waited for; one of the future is not."""
    bus, (node,) = cluster(1)
    node.tick()
    held = node.core.connect("channel=a", "zzzzzzzzzzzz-5-000000000000").reader.phase
    bus.horizon = node.epoch
    node.tick()
    told = node.core.connect("channel=a", "zzzzzzzzzzzz-5-000000000000").reader.phase

    assert (held, told) == (Phase.HELD, Phase.LIVE)


# The link.


def test_lost_when_synced() -> None:
    """Without its link a node counts nothing any more (I6), and hands nothing over."""
    bus, (node,) = cluster(1)
    joiner = waiting(bus)
    bus.moves_snapshots = False
    node.read()
    bus.now += 0.1
    node.tick()
    node.read()
    head, serving = node.head, len(node.serves)

    node.disconnect()
    node.replica.message(b"*", b"a", b"1", bus.now, bus.now)
    node.replica.entry(joiner.control.write(Kind.CLAIM, FIRST), bus.now)
    node.tick()

    assert (serving, node.serves, cuts(node)) == (1, {}, 0)
    assert (node.replica.role, node.head, node.replica.decisions) == (Role.OFFLINE, head, [])


@pytest.mark.parametrize("role", [Role.OFFLINE, Role.JOINING, Role.BUFFERING])
def test_lost_before(role: Role) -> None:
    """A link that is lost before the log is there leaves nothing behind, and the next one begins anew."""
    bus, (holder,) = cluster(1)
    bus.moves_snapshots = False
    node = bus.node(is_up=role is not Role.OFFLINE)
    if role is Role.BUFFERING:
        bus.wait(0.2)
    fetching = len(node.fetches)

    node.disconnect()
    lost = node.replica.role, node.fetches
    bus.moves_snapshots = True
    node.connect()
    bus.wait(0.2)

    assert (fetching, lost) == (int(role is Role.BUFFERING), (Role.OFFLINE, {}))
    assert agree(holder, node)


def test_claims_of_an_earlier_link() -> None:
    """A claim that was heard on one link is not in force on the next: a veto may have come in between (I6)."""
    bus, (node,) = cluster(1)
    voice = bus.node(is_up=False)
    node.replica.entry(voice.control.write(Kind.CLAIM, FIRST), bus.now)
    node.disconnect()
    bus.listeners = 1
    node.connect()
    node.read()

    voice.say(Kind.CONFIRM, FIRST)
    node.read()

    assert (node.replica.is_synced, node.replica.joins) == (False, 3)


def test_everybody_lost_it() -> None:
    """When all links are lost at once nobody knows what was missed: a new epoch begins, and all are told once (I2)."""
    bus, nodes = cluster(3)
    clients = [node.core.connect("channel=a") for node in nodes]
    bus.publish("a", "1")
    bus.settle()
    for node in nodes:
        node.disconnect()

    for node in nodes:
        node.connect()
    bus.wait(3.0)
    bus.publish("a", "2")
    bus.settle()

    assert agree(*nodes)
    assert all(client.told() == ["1", f"{GapReason.SOURCE}:None", "2"] for client in clients)


def test_different_windows() -> None:
    """Nodes that hold different amounts share one log; each tells what it has lost itself."""
    bus = Bus()
    large, small = bus.node(rule(events=10)), bus.node(rule(events=2))
    bus.wait(3.0)
    cursor = large.head
    bus.publish("a", "1", "2", "3", "4")
    bus.settle()

    assert agree(large, small)
    assert large.core.connect("channel=a", cursor).told() == ["1", "2", "3", "4"]
    assert small.core.connect("channel=a", cursor).told() == ["window:2", "3", "4"]


def stored_log(*payloads: str) -> tuple[Recollection, str]:
    """What is stored of a log in which these were published, and the cursor before the last."""
    core, store = Core(rule()), Keyspace()
    cursor = core.cursor
    for payload in payloads:
        cursor = core.cursor
        core.publish("a", payload)
    write(mirror_of(core), core, store)
    found = store.load(100.0)
    assert found is not None
    return found, cursor


def test_nobody_claims_before_it_has_looked_for_a_stored_log() -> None:
    """However long that takes; what was found comes before the new epoch."""
    bus = Bus()
    bus.has_store = True
    node = bus.node()
    bus.wait(5.0)
    assert (node.loads, node.replica.is_synced) == (1, False)
    found, cursor = stored_log("1", "2")
    node.replica.loaded(found, bus.now)
    node.carry_out()
    bus.wait(1.0)
    assert node.replica.is_synced
    bus.publish("a", "3")
    bus.settle()
    assert node.core.connect("channel=a", cursor).told() == ["2", "source:None", "3"]


def test_a_node_that_has_not_looked_yet_joins_whoever_has() -> None:
    """It begins no epoch without what is stored."""
    bus = Bus()
    bus.has_store = True
    first, second = bus.node(chance=0.0), bus.node(chance=1.0)
    bus.wait(3.0)
    assert (first.loads, second.loads) == (1, 1)
    found, cursor = stored_log("1", "2")
    first.replica.loaded(found, bus.now)
    first.carry_out()
    bus.wait(3.0)
    assert agree(first, second)
    assert second.core.connect("channel=a", cursor).told() == ["2", "source:None"]
    second.replica.loaded(None, bus.now)
    second.carry_out()
    assert agree(first, second)


def test_who_has_looked_and_gets_the_log_from_a_peer_keeps_nothing_of_it() -> None:
    """What it has found is as large as the windows."""
    bus, (first,) = cluster(1)
    bus.has_store = True
    second = waiting(bus)
    second.replica.tick(bus.now + 2 * JOIN_S)
    second.carry_out()
    assert second.loads == 1
    found, _ = stored_log("1", "2")
    second.replica.loaded(found, bus.now)
    gone = ref(found)
    del found
    assert gone() is not None
    second.carry_out()
    bus.wait(3.0)
    assert agree(first, second)
    assert gone() is None


def test_two_nodes_that_have_looked_begin_together() -> None:
    """Whoever claims: both have what is stored."""
    bus = Bus()
    bus.has_store = True
    nodes = [bus.node(chance=0.0), bus.node(chance=1.0)]
    bus.wait(3.0)
    cursor = ""
    for node in nodes:
        found, cursor = stored_log("1", "2")
        node.replica.loaded(found, bus.now)
        node.carry_out()
    bus.wait(3.0)
    assert agree(*nodes)
    for node in nodes:
        assert node.core.connect("channel=a", cursor).told() == ["2", "source:None"]


def test_whoever_has_a_log_does_not_look() -> None:
    """What it has is newer."""
    bus = Bus()
    bus.has_store = True
    node = bus.node()
    bus.wait(1.0)
    node.replica.loaded(None, bus.now)
    node.carry_out()
    bus.wait(1.0)
    node.disconnect()
    node.connect()
    bus.wait(3.0)
    assert (node.loads, node.replica.is_synced) == (1, True)
