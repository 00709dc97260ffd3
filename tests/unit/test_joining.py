from __future__ import annotations

from itertools import product

import pytest

from sse_gateway.control import Kind, Message
from sse_gateway.decisions import Publish
from sse_gateway.joining import BUFFER_BYTES, BUFFER_ENTRIES, Joining, Publication
from tests.support.core import Core, rule

HANDOVER = "t0ken0000001"
MESSAGE = Message(Kind.VETO, "n0de00000001", 1, ("ep0ch0000001",))


def publication(size: int) -> Publication:
    """A message of so many bytes."""
    return Publication(b"*", b"ab", bytes(size - 2), 1.0, 2.0)


def test_what_is_kept_comes_out_in_order() -> None:
    """Publications and control messages are kept together, in the order of the log."""
    joining = Joining(HANDOVER, 5.0)
    entries: list[Publication | Message] = [publication(10), MESSAGE, publication(20)]

    assert all(joining.keep(entry) for entry in entries)
    assert list(joining.buffer) == entries
    assert joining.bytes == 30
    assert (joining.token, joining.deadline, joining.seen_at, joining.snapshot) == (HANDOVER, 5.0, None, None)


def test_bound_in_bytes() -> None:
    """The buffer is bounded in bytes of channels and payloads (I5)."""
    joining = Joining(HANDOVER, 5.0)

    assert joining.keep(publication(BUFFER_BYTES))
    assert joining.keep(MESSAGE)
    assert not joining.keep(publication(2))


def test_bound_in_entries() -> None:
    """The buffer is bounded in entries, too, of any kind (I5)."""
    joining = Joining(HANDOVER, 5.0)

    assert all(joining.keep(MESSAGE) for _ in range(BUFFER_ENTRIES))
    assert not joining.keep(MESSAGE)


@pytest.mark.parametrize(("got_join", "got_claim"), [*product([False, True], repeat=2)])
def test_unopposed(*, got_join: bool, got_claim: bool) -> None:
    """Nobody is waited for if nobody else got the JOIN; nor, once the claim is back, if nobody got that."""
    joining = Joining(HANDOVER, 5.0)
    joining.join, joining.claim = Publish(Kind.JOIN, b"1"), Publish(Kind.CLAIM, b"2")
    if got_join:
        joining.note_alone(joining.join)
    if got_claim:
        joining.note_alone(joining.claim)

    before = joining.is_unopposed
    joining.claimed = "ep0ch0000001"
    claimed = joining.is_unopposed
    joining.is_claim_seen = True

    assert (before, claimed, joining.is_unopposed) == (got_join, False, got_claim)


@pytest.mark.parametrize(("kind", "speaks"), [(kind, kind in {"OFFER", "VETO", "CHECKPOINT"}) for kind in Kind])
def test_may_claim(kind: Kind, *, speaks: bool) -> None:
    """What nobody offers may be claimed, once, unless somebody has spoken who holds it."""
    joining = Joining(HANDOVER, 5.0)
    early = joining.may_claim
    joining.seen_at = 1.0
    joining.keep(publication(10))
    before = joining.may_claim

    joining.keep(Message(kind, "n0de00000001", 1, ()))
    after = joining.may_claim
    joining.claimed = "ep0ch0000001"

    assert (early, before, after, joining.may_claim) == (False, True, not speaks, False)


def test_answers_to_others() -> None:
    """That nobody got another message, of an earlier attempt, says nothing of this one."""
    joining = Joining(HANDOVER, 5.0)
    joining.join = Publish(Kind.JOIN, b"2")

    joining.note_alone(Publish(Kind.JOIN, b"1"))

    assert not joining.is_unopposed


def test_opposed_by_a_snapshot() -> None:
    """Once a snapshot is on its way, somebody holds the log."""
    joining = Joining(HANDOVER, 5.0)
    joining.join = Publish(Kind.JOIN, b"1")
    joining.note_alone(joining.join)

    joining.seen_at = 1.0
    joining.snapshot = Core(rule()).hub.receive(HANDOVER, 1.0)

    assert (joining.is_unopposed, joining.may_claim) == (False, False)
