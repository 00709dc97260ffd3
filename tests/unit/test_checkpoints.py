from __future__ import annotations

import pytest

from sse_gateway.checkpoints import CHECKPOINT_S, DIVERGENCE_S, DIVERGENCES, Checkpoints
from sse_gateway.log import Log
from sse_gateway.reasons import GapReason

FIRST, SECOND, THIRD = "ep0ch0000001", "ep0ch0000002", "ep0ch0000003"
NO_HASH = "0" * 12


def log_of(*epochs: str, count: int = 3) -> Log:
    """A log with so many messages in each epoch."""
    log = Log(b"key")
    for name in epochs:
        log.begin_epoch(name, GapReason.EPOCH)
        for number in range(count):
            log.append(b"a", b"%d" % number)
    return log


def checkpoints(log: Log, *, chance: float = 0.0) -> Checkpoints:
    """What compares a log that is live since second 100."""
    made = Checkpoints(log, lambda: chance)
    made.begin(100.0)
    return made


def last(*epochs: str, count: int = 3) -> str:
    """Where another node stands."""
    log = log_of(*epochs, count=count)
    return log.cursor(log.head)


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_due(chance: float) -> None:
    """A checkpoint is due half a second after the last one of anybody, spread by a quarter; it is said once."""
    wait_s = CHECKPOINT_S * (1 + chance / 4)
    compared = checkpoints(log_of(FIRST), chance=chance)

    assert not compared.is_due(100.0 + wait_s - 0.01)
    assert compared.is_due(100.0 + wait_s)
    assert not compared.is_due(100.0 + wait_s)
    compared.contested(last(FIRST), 100.0 + 2 * wait_s - 0.01)
    assert not compared.is_due(100.0 + 2 * wait_s)
    assert compared.is_due(100.0 + 3 * wait_s - 0.01)


def test_due_though_others_speak() -> None:
    """Who counts another epoch keeps nobody from saying where it stands: else two logs might never meet."""
    compared = checkpoints(log_of(FIRST, SECOND))

    compared.contested(last(FIRST), 100.0 + CHECKPOINT_S - 0.01)

    assert compared.is_due(100.0 + CHECKPOINT_S)


@pytest.mark.parametrize("count", range(4))
def test_agreement(count: int) -> None:
    """Nodes that count the same agree, at the head and behind it."""
    assert checkpoints(log_of(FIRST)).contested(last(FIRST, count=count), 1000.0) == []


@pytest.mark.parametrize("now", [100.0, 1000.0])
@pytest.mark.parametrize("cursor", [f"{FIRST}-2-{NO_HASH}", last(FIRST, count=4)])
def test_disagreement(cursor: str, now: float) -> None:
    """Another hash in our epoch, or a place ahead of ours, which the order of the log rules out, is a divergence."""
    assert checkpoints(log_of(FIRST)).contested(cursor, now) == [FIRST]


@pytest.mark.parametrize("cursor", [last(FIRST), last(FIRST, count=1)])
def test_of_an_epoch_that_has_ended(cursor: str) -> None:
    """What agrees with an epoch that we have left was sent before, however late it comes."""
    assert checkpoints(log_of(FIRST, SECOND)).contested(cursor, 1000.0) == []


@pytest.mark.parametrize(
    "cursor",
    [f"{FIRST}-2-{NO_HASH}", last(FIRST, count=4), last("aaaaaaaaaaaa")],
    ids=["another hash", "more of it", "an unknown one"],
)
def test_of_an_older_epoch(cursor: str) -> None:
    """A node that counts an older epoch is slow, or its words are old ones repeated: it will hear of ours."""
    assert checkpoints(log_of(FIRST, SECOND)).contested(cursor, 100.0) == []


def test_of_a_younger_epoch() -> None:
    """A node that counts a younger epoch than we saw begin has seen what we have missed."""
    assert checkpoints(log_of(FIRST, SECOND)).contested(last(THIRD), 100.0) == [SECOND, THIRD]


def test_older_than_the_ring() -> None:
    """What the ring no longer covers is not judged."""
    log = Log(b"key", 4096)
    log.begin_epoch(FIRST, GapReason.SOURCE)
    for _ in range(3 * 4096):
        log.append(b"a", b"")

    assert checkpoints(log).contested(f"{FIRST}-7-{NO_HASH}", 1000.0) == []


def test_one_too_many() -> None:
    """The third divergence within five minutes is one too many; then it is counted anew."""
    compared = checkpoints(log_of(FIRST))

    told = [compared.took_part(float(now)) for now in (0, 1, 2, 3, 4, 5)]

    assert told == [False, False, True, False, False, True]
    assert compared.divergences == 6


def test_few_and_far_between() -> None:
    """Divergences further apart are only counted."""
    compared = checkpoints(log_of(FIRST))
    step_s = DIVERGENCE_S / (DIVERGENCES - 1)

    assert not any(compared.took_part(number * step_s) for number in range(10))
