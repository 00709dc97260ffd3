from __future__ import annotations

import pytest

from sse_gateway.control import Kind, Message
from sse_gateway.decisions import Serve, Stop
from sse_gateway.offers import MAX_CUTS, OFFER_S, Offers
from tests.support.core import Core, rule

JOINER, OTHER = "j0iner000001", "an0ther00001"


def token(number: int = 1) -> str:
    """Names of JOINs."""
    return f"t0ken{number:07}"


def join(number: int = 1, joiner: str = JOINER) -> Message:
    """A JOIN of a node that knows nothing."""
    return Message(Kind.JOIN, joiner, number, (token(number), "-"))


def offer(number: int = 1) -> Message:
    """Somebody's OFFER."""
    return Message(Kind.OFFER, "n0de00000002", number, (token(number), JOINER, "list"))


class Desk:
    """Offers, and what they have said and decided."""

    def __init__(self, *, is_local: bool = False, chance: float = 0.0) -> None:
        self.core = Core(rule())
        self.core.publish("a", "1", "2")
        self.said: list[tuple[str, ...]] = []
        self.decided: list[object] = []
        self.offers = Offers(
            self.core.hub,
            publish=lambda *words: self.said.append(words),
            decide=self.decided.append,
            random=lambda: chance,
            is_local=lambda _: is_local,
        )

    @property
    def cuts(self) -> int:
        """Snapshots that the windows are kept for."""
        return len(self.core.hub.history.cuts)

    def win(self, number: int = 1) -> Serve:
        """Have our offer come back first."""
        self.offers.settle(offer(number), is_ours=True)
        order = self.decided[-1]
        assert isinstance(order, Serve)
        return order


def test_neighbour_offers_at_once() -> None:
    """A node on the joiner's host cuts and offers in the same call, through its socket."""
    desk = Desk(is_local=True)

    desk.offers.prepare(join(), [], 5.0)

    assert desk.said == [(Kind.OFFER, token(), JOINER, "unix")]
    assert desk.cuts == 1


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_others_wait(chance: float) -> None:
    """A node on another host cuts at once and offers a little later, once, through a list."""
    desk = Desk(chance=chance)
    due = 5.0 + OFFER_S[int(chance)]

    desk.offers.prepare(join(), [], 5.0)
    desk.offers.make(due - 0.01)
    before = desk.said[:], desk.cuts, desk.offers.is_waiting
    desk.offers.make(due)
    desk.offers.make(due + 1.0)

    assert before == ([], 1, True)
    assert not desk.offers.is_waiting
    assert desk.said == [(Kind.OFFER, token(), JOINER, "list")]


def test_first_offer_serves() -> None:
    """The node whose OFFER comes first hands over what was there at the JOIN, and what was claimed."""
    desk = Desk(is_local=True)
    desk.offers.prepare(join(), ["ep0ch0000009"], desk.core.now)
    cursor = desk.core.cursor
    desk.core.publish("a", "3")

    order = desk.win()
    taken = desk.core.hub.receive(token(), 0.0)
    for block in order.blocks:
        taken.add(block)

    assert (order.token, order.joiner, order.via) == (token(), JOINER, "unix")
    assert taken.is_complete
    assert taken.head is not None
    assert (taken.head.claims, desk.core.hub.log.cursor(taken.head.head)) == (["ep0ch0000009"], cursor)
    assert [len(held.events) for held in taken.held(0)] == [2]
    assert desk.offers.served == 1


def test_later_offers_find_nothing() -> None:
    """Whoever sees another's OFFER first lets go of its cut, made or not, and its own OFFER is void."""
    for is_local in (True, False):
        desk = Desk(is_local=is_local)
        desk.offers.prepare(join(), [], 5.0)

        desk.offers.settle(offer(), is_ours=False)
        desk.offers.make(10.0)
        desk.offers.settle(offer(), is_ours=True)

        assert (desk.cuts, desk.offers.served, desk.decided) == (0, 0, [])
        assert len(desk.said) == int(is_local)


def test_another_offer_behind_ours() -> None:
    """An OFFER that was on its way when ours won does not end what is being served."""
    desk = Desk(is_local=True)
    desk.offers.prepare(join(), [], 5.0)
    order = desk.win()

    desk.offers.settle(offer(), is_ours=False)

    assert desk.cuts == 1
    assert [block[:1] for block in order.blocks] == [b"H", b"R", b"W", b"E"]


def test_few_at_a_time() -> None:
    """Cuts are bounded; whoever joins beyond gets none until one has ended (I5)."""
    desk = Desk(is_local=True)
    for number in range(1, MAX_CUTS + 2):
        desk.offers.prepare(join(number, f"j0iner{number:06}"), [], 5.0)
    full = desk.cuts, len(desk.said)

    desk.offers.end(token(1))
    desk.offers.end(token(1))
    desk.offers.prepare(join(9, OTHER), [], 5.0)

    assert full == (MAX_CUTS, MAX_CUTS)
    assert (desk.cuts, desk.said[-1][1]) == (MAX_CUTS, token(9))


@pytest.mark.parametrize("anew", [join(2), join(1, OTHER)], ids=["same joiner", "same token"])
def test_asked_anew(anew: Message) -> None:
    """A joiner that asks anew has given up on what it was to get: that is stopped, and nothing of it is kept."""
    desk = Desk(is_local=True)
    desk.offers.prepare(join(1), [], 5.0)
    desk.win()

    desk.offers.prepare(anew, [], 6.0)

    assert desk.decided[-1] == Stop(token(1))
    assert desk.cuts == 1
    assert desk.said[-1] == (Kind.OFFER, anew.fields[0], anew.node, "unix")


def test_flapping_joiner() -> None:
    """A joiner that asks again and again does not use up what others need."""
    desk = Desk()
    for number in range(1, 10):
        desk.offers.prepare(join(number), [], 5.0)

    desk.offers.prepare(join(10, OTHER), [], 5.0)

    assert desk.cuts == 2


def test_drop() -> None:
    """All are let go of at once, and what is served stops."""
    desk = Desk(is_local=True)
    desk.offers.prepare(join(1), [], 5.0)
    desk.offers.prepare(join(2, OTHER), [], 5.0)
    desk.win(2)
    desk.decided.clear()

    desk.offers.drop()
    desk.offers.drop()

    assert desk.decided == [Stop(token(1)), Stop(token(2))]
    assert desk.cuts == 0
