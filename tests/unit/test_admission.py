"""Who may have a stream: each limit alone, all together, and everything given back."""

from __future__ import annotations

import pytest

from sse_gateway.admission import NOBODY, Admission, Caller, Place, Quotas
from sse_gateway.census import SECRET_BYTES, alone
from sse_gateway.reasons import Refusal, Unavailable

NOW = 1000.0
ALICE, BOB = Caller("203.0.113.7", "alice"), Caller("203.0.113.8", "bob")


def admission(streams: int = 1000, **quotas: int) -> Admission:
    """An admission of a node with one process."""
    return Admission(Quotas(streams, **quotas), alone(streams, bytes(SECRET_BYTES)))


def enter(to: Admission, caller: Caller = ALICE, now: float = NOW, *, replays: bool = False) -> Place:
    """Enter, which must be possible."""
    place = to.enter(caller, now, replays=replays)
    assert isinstance(place, Place), place
    return place


def refused(to: Admission, caller: Caller = ALICE, now: float = NOW, *, replays: bool = False) -> Refusal:
    """Be refused, which must be so."""
    refusal = to.enter(caller, now, replays=replays)
    assert isinstance(refusal, Refusal), refusal
    return refusal


def test_the_node_takes_so_many_and_no_more() -> None:
    """And takes another once one has left."""
    node = admission(streams=2)
    first, _ = enter(node), enter(node, BOB)
    full = [node.is_full]
    assert refused(node, NOBODY) is Refusal.FULL
    node.leave(first)
    full.append(node.is_full)
    enter(node, NOBODY)
    assert full == [True, False]


@pytest.mark.parametrize(
    ("quotas", "refusal", "same", "other"),
    [
        ({"per_address": 2}, Refusal.ADDRESS, Caller(ALICE.address, "carol"), Caller(BOB.address, "alice")),
        ({"per_subject": 2}, Refusal.SUBJECT, Caller(BOB.address, "alice"), Caller(ALICE.address, "carol")),
    ],
)
def test_each_has_a_limit_of_its_own(quotas: dict[str, int], refusal: Refusal, same: Caller, other: Caller) -> None:
    """Which others do not feel; who has neither address nor subject is not counted."""
    node = admission(**quotas)
    places = [enter(node), enter(node, same)]
    assert [refused(node), refused(node, same)] == [refusal] * 2
    places.extend(enter(node, caller) for caller in (other, NOBODY, NOBODY, NOBODY))
    node.leave(places[0])
    enter(node, same)


def test_who_is_refused_has_taken_nothing() -> None:
    """Neither a stream, nor a place of the address, nor an arrival."""
    node = admission(streams=10, per_address=2, per_subject=1, per_second=3)
    enter(node)
    for _ in range(20):
        assert refused(node) is Refusal.SUBJECT
    enter(node, Caller(ALICE.address, "carol"))
    assert refused(node, Caller(ALICE.address, "dave")) is Refusal.ADDRESS
    enter(node, BOB)
    assert refused(node, Caller("198.51.100.1", "eve")) is Refusal.RATE
    enter(node, Caller("198.51.100.1", "eve"), NOW + 1.1)
    assert not node.is_full


def test_arrivals_are_limited_whoever_comes() -> None:
    """Also those without an address."""
    node = admission(per_second=2)
    enter(node, NOBODY)
    enter(node)
    assert refused(node, BOB) is Refusal.RATE
    enter(node, BOB, NOW + 1.1)


@pytest.mark.parametrize("caller", [ALICE, Caller(None, "alice"), Caller("203.0.113.7", None)])
def test_replay_has_a_budget(caller: Caller) -> None:
    """A replay that has begun is paid for to its end; then no other begins until that has faded."""
    node = admission(replay_bytes=1000)
    place = enter(node, caller, replays=True)
    node.pay(place, 900, NOW)
    other = enter(node, caller, replays=True)
    node.pay(other, 5000, NOW)
    assert refused(node, caller, replays=True) is Refusal.REPLAY
    enter(node, caller, replays=False)
    enter(node, BOB, replays=True)
    assert refused(node, caller, NOW + 60, replays=True) is Refusal.REPLAY
    enter(node, caller, NOW + 120, replays=True)


def test_a_subject_pays_itself_wherever_it_comes_from() -> None:
    """And an address only for those without a subject; one that is called like an address is not that address."""
    node = admission(replay_bytes=1000)
    node.pay(enter(node, ALICE, replays=True), 2000, NOW)
    assert refused(node, Caller("198.51.100.1", "alice"), replays=True) is Refusal.REPLAY
    enter(node, Caller(ALICE.address, None), replays=True)
    enter(node, Caller("alice", None), replays=True)
    node.pay(enter(node, NOBODY, replays=True), 2000, NOW)
    enter(node, NOBODY, replays=True)


def test_whether_anything_is_personal() -> None:
    """Only then is there a need for tables."""
    assert not Quotas(5, per_second=5).are_personal
    assert all(Quotas(5, **{name: 1}).are_personal for name in ("per_address", "per_subject", "replay_bytes"))


def test_clients_are_told_three_reasons() -> None:
    """The log and the metrics know more."""
    told = {refusal: refusal.told for refusal in Refusal}
    assert {told[refusal] for refusal in Refusal} == set(Unavailable)
    assert [refusal for refusal in Refusal if told[refusal] is not Unavailable.FULL] == ["draining", "source"]
