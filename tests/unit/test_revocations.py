"""What was revoked."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from sse_gateway.revocations import MAX_HOLD_S, WORD, Revocations, marks_of, subject_mark, token_mark

NOW = 1_800_000_000.0
UNTIL = int(NOW) + 60
KEY = b"k" * 32
ANN = subject_mark(KEY, "ann")


def test_marks_stand_for_subjects_and_tokens() -> None:
    """Nobody reads one off, and none is taken for the other."""
    assert marks_of(KEY, "ann", "t1") == (subject_mark(KEY, "ann"), token_mark(KEY, "t1"))
    assert marks_of(KEY, "ann", "") == (ANN,)
    assert marks_of(KEY, "", "t1") == (token_mark(KEY, "t1"),)
    assert marks_of(KEY, "", "") == ()
    assert len({ANN, token_mark(KEY, "ann"), subject_mark(b"other" * 8, "ann"), subject_mark(KEY, "Ann")}) == 4
    assert "ann" not in ANN


@pytest.mark.parametrize("secret", [b"", b"a secret of the cluster"])
def test_a_revocation_holds_until_its_end(secret: bytes) -> None:
    """From whoever shares the secret, or from anybody where there is none."""
    text = Revocations(secret).write(ANN, UNTIL)
    assert text.startswith(WORD)
    revocations = Revocations(secret)

    assert revocations.take(text, NOW)
    assert revocations.covers([token_mark(KEY, "t"), ANN], NOW)
    assert revocations.covers([ANN], UNTIL - 0.1)
    assert not revocations.covers([ANN], UNTIL)
    assert not revocations.covers([subject_mark(KEY, "bob")], NOW)
    assert not revocations.covers([], NOW)
    assert list(revocations.texts()) == [(UNTIL, text)]


def test_it_may_come_often_and_in_any_order() -> None:
    """The latest end counts, and only what says more is news."""
    revocations = Revocations()
    assert revocations.take(revocations.write(ANN, UNTIL), NOW)
    assert not revocations.take(revocations.write(ANN, UNTIL), NOW)
    assert not revocations.take(revocations.write(ANN, UNTIL - 30), NOW)
    assert revocations.take(revocations.write(ANN, UNTIL + 30), NOW)
    assert revocations.covers([ANN], UNTIL + 29)
    assert not revocations.take(revocations.write(subject_mark(KEY, "late"), int(NOW)), NOW)
    assert (len(revocations), revocations.ignored) == (1, 0)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"revoke ",
        b"revoke 2 " + ANN.encode() + b" 1800000060",
        b"revoke 1 ann 1800000060",
        b"revoke 1 x" + ANN[1:].encode() + b" 1800000060",
        b"revoke 1 " + ANN.encode() + b" soon",
        b"revoke 1 " + ANN.encode() + b" 1800000060 ",
        b"revoke 1 " + ANN.encode() + b" 1800000060 0123456789abcdef0123456789abcdef",
        b"revoke 1 " + ANN.encode() + b" %d" % (NOW + MAX_HOLD_S + 1),
        b"revoke 1 " + ANN.encode() + b" 999999999999",
    ],
)
def test_what_is_none_is_ignored(payload: bytes) -> None:
    """And counted."""
    revocations = Revocations()
    assert not revocations.take(payload, NOW)
    assert (len(revocations), revocations.ignored) == (0, 1)


def test_what_does_not_verify_is_ignored() -> None:
    """Without the secret, nobody revokes; and what was written with it cannot be changed."""
    revocations = Revocations(b"the right secret")
    good = revocations.write(ANN, UNTIL)
    bad = (
        Revocations().write(ANN, UNTIL),
        Revocations(b"another secret").write(ANN, UNTIL),
        good.replace(b"60 ", b"61 "),
    )
    for payload in bad:
        assert not revocations.take(payload, NOW)
    assert revocations.ignored == 3
    assert not Revocations().take(good, NOW)


@given(st.binary(max_size=200))
def test_anything_may_come(payload: bytes) -> None:
    """Nothing raises."""
    for secret in (b"", b"secret"):
        assert not Revocations(secret).take(WORD + payload, NOW)


def test_what_has_ended_is_forgotten() -> None:
    """When somebody looks."""
    revocations = Revocations()
    revocations.take(revocations.write(ANN, UNTIL), NOW)
    revocations.expire(UNTIL - 1)
    assert len(revocations) == 1
    revocations.expire(UNTIL)
    assert len(revocations) == 0


def test_a_full_list_lets_go_of_what_ends_first() -> None:
    """What has ended goes before anything else, unmissed (I5)."""
    revocations = Revocations(most=200)
    for number in range(200):
        revocations.take(revocations.write(subject_mark(KEY, str(number)), UNTIL + number), NOW)
    assert revocations.take(revocations.write(ANN, UNTIL + 500), UNTIL + 0.5)  # the first has just ended
    assert (len(revocations), revocations.displaced) == (200, 0)
    revocations.take(revocations.write(subject_mark(KEY, "one more"), UNTIL + 500), UNTIL + 0.5)
    assert (len(revocations), revocations.displaced) == (198, 3)
    assert not revocations.covers([subject_mark(KEY, "1")], UNTIL + 0.6)
    assert revocations.covers([ANN], UNTIL + 0.6)
    assert revocations.covers([subject_mark(KEY, "199")], UNTIL + 0.6)
