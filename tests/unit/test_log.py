from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import pytest

from sse_gateway.cursor import parse_cursor
from sse_gateway.log import MAX_EPOCHS, Epoch, Log, Verdict
from sse_gateway.reasons import GapReason

if TYPE_CHECKING:
    from array import array

FIRST = "epoch0000001"
SECOND = "epoch0000002"
BLOCK = 4096


def log_with(*sizes: int, ring_size: int = BLOCK) -> Log:
    """A log with one epoch per size, of so many messages each."""
    log = Log(b"key", ring_size)
    for number, size in enumerate(sizes, 1):
        log.begin_epoch(f"epoch{number:07}", GapReason.SOURCE)
        for message in range(size):
            log.append(b"channel", b"%d" % message)
    return log


def taken_over(other: Log, log: Log, after: int = -1) -> None:
    """Extend a log by what another has counted after a position, as a snapshot does."""
    first, hashes = other.hashes_after(after)
    shift = log.head + 1 - first
    log.extend([Epoch(e.name, e.base + shift, e.reason) for e in other.epochs if e.base > after], hashes)


def flat(parts: list[array[int]]) -> list[int]:
    """All hashes of some parts."""
    return list(chain(*parts))


def test_break() -> None:
    """A BREAK takes the next position and is offset 0 of its epoch."""
    log = log_with(2)

    epoch = log.begin_epoch(SECOND, GapReason.EPOCH)

    assert (epoch.name, epoch.base, epoch.reason) == (SECOND, 3, GapReason.EPOCH)
    assert (log.head, log.epoch, log.begun) == (3, epoch, 2)
    assert log.cursor(3).startswith(f"{SECOND}-0-")


def test_append_counts() -> None:
    """Every message takes the next place, and gets the cursor of that place (I1)."""
    log = log_with(0)

    cursors = [log.append(b"a", b"1"), log.append(b"a", b"1")]

    assert log.head == 2
    assert cursors == [log.cursor(1), log.cursor(2)]
    assert [cursor[: len(FIRST) + 3] for cursor in cursors] == [f"{FIRST}-1-", f"{FIRST}-2-"]
    assert cursors[0][-12:] != cursors[1][-12:]


def test_positions_are_never_reused() -> None:
    """Positions ascend over all epochs, offsets begin again in each (I1)."""
    log = log_with(2, 2)

    assert [log.cursor(position).rsplit("-", 1)[0] for position in range(6)] == [
        f"{FIRST}-0",
        f"{FIRST}-1",
        f"{FIRST}-2",
        f"{SECOND}-0",
        f"{SECOND}-1",
        f"{SECOND}-2",
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([(b"a", b"1")], [(b"a", b"2")]),
        ([(b"a", b"1")], [(b"b", b"1")]),
        ([(b"ab", b"c")], [(b"a", b"bc")]),
        ([(b"1", b":x")], [(b"", b"1:x")]),
        ([(b"a", b"1"), (b"a", b"2")], [(b"a", b"2"), (b"a", b"1")]),
        ([(b"a", b"1"), (b"a", b"")], [(b"a", b""), (b"a", b"1")]),
    ],
)
def test_different_histories(one: list[tuple[bytes, bytes]], other: list[tuple[bytes, bytes]]) -> None:
    """A cursor never stands for two different histories (I1)."""
    cursors = []
    for messages in (one, other):
        log = log_with(0)
        for channel, payload in messages:
            log.append(channel, payload)
        cursors.append(log.cursor(log.head))

    assert cursors[0] != cursors[1]


def test_epoch_and_key_enter_the_check() -> None:
    """The same messages in another epoch, or under another key, have other checks."""
    checks = set()
    for key, name in [(b"key", FIRST), (b"key", SECOND), (b"other", FIRST)]:
        log = Log(key)
        log.begin_epoch(name, GapReason.SOURCE)
        checks |= {log.cursor(0)[-12:], log.append(b"a", b"1")[-12:]}

    assert len(checks) == 6


def test_nodes_agree() -> None:
    """Two nodes that see the same messages verify each other's cursors."""
    one, other = log_with(5, 3), log_with(5, 3)

    assert [other.locate(one.cursor(position)) for position in range(one.head + 1)] == [
        (Verdict.VERIFIED, position) for position in range(one.head + 1)
    ]


def test_other_message() -> None:
    """A cursor is refused once one message before it was another (I10)."""
    one, other = Log(b"key"), Log(b"key")
    for log in (one, other):
        log.begin_epoch(FIRST, GapReason.SOURCE)
    one.append(b"a", b"1")
    other.append(b"a", b"2")
    cursor = one.append(b"a", b"3")
    other.append(b"a", b"3")

    assert other.locate(cursor) == (Verdict.INVALID, 2)


@pytest.mark.parametrize("offset", [3, 2**31, 2**53, 2**53 + 1, 2**63])
def test_ahead(offset: int) -> None:
    """A cursor of the current epoch beyond the head is ahead, however large."""
    assert log_with(2).locate(f"{FIRST}-{offset}-0123456789ab") == (Verdict.AHEAD, offset)


@pytest.mark.parametrize("offset", [3, 2**63])
def test_beyond_an_older_epoch(offset: int) -> None:
    """Whoever has seen more of an older epoch than we has seen nothing yet of the next one."""
    assert log_with(2, 2, 2).locate(f"{FIRST}-{offset}-0123456789ab") == (Verdict.UNKNOWN_EPOCH, 3)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0-0-0",
        "0",
        f"{FIRST}-1",
        f"{FIRST}-01-0123456789ab",
        f"{FIRST}--1-0123456789ab",
        f"{FIRST}-{2**64}-0123456789ab",
        f"{FIRST}-1-0123456789ab",
        f"{FIRST}-0-0123456789ab",
        f"{FIRST}-1-0123456789ab\n",
        f"{FIRST}-\u0661-0123456789ab",
        "\u00e4" * 45,
        "x" * 1_000_000,
    ],
)
def test_garbage(text: str) -> None:
    """Whatever is not one of ours is judged, not raised (I10)."""
    assert log_with(2).locate(text) == (Verdict.INVALID, 2)


def test_unknown_epoch() -> None:
    """A cursor of a log unknown here is placed where the current epoch begins: its owner has nothing of that."""
    log = log_with(2, 2)

    assert log.locate("epoch0000000-1-0123456789ab") == (Verdict.UNKNOWN_EPOCH, 3)
    assert log.locate("epoch0000003-1-0123456789ab") == (Verdict.NEWER_EPOCH, 3)


def test_ring() -> None:
    """The ring drops its oldest block; cursors from before are stale, those after verify (I10)."""
    log = log_with(BLOCK - 1)
    cursors = [log.cursor(position) for position in (0, 1, BLOCK - 1)]
    floor_when_full = log.floor

    newest = log.append(b"channel", b"one more")

    assert (floor_when_full, log.floor) == (0, BLOCK)
    assert [log.locate(cursor) for cursor in cursors] == [(Verdict.STALE, BLOCK)] * 3
    assert log.locate(newest) == (Verdict.VERIFIED, BLOCK)


def test_ring_of_several_blocks() -> None:
    """A larger ring keeps more blocks; one smaller than a block keeps one."""
    assert log_with(2 * BLOCK - 1, ring_size=2 * BLOCK).floor == 0
    assert log_with(2 * BLOCK, ring_size=2 * BLOCK).floor == BLOCK
    assert log_with(BLOCK - 1, ring_size=1).floor == 0


def test_cursor_older_than_the_ring() -> None:
    """A position older than the ring gets a cursor of its own offset, from which nobody is resumed (I10)."""
    log = log_with(2 * BLOCK)
    texts = [log.cursor(position) for position in (0, 7, log.floor - 1)]

    assert [cursor.offset for text in texts if (cursor := parse_cursor(text))] == [0, 7, log.floor - 1]
    assert [log.locate(text)[0] for text in texts] == [Verdict.STALE] * 3


def test_ring_over_epochs() -> None:
    """Cursors of an older epoch verify as long as the ring holds them."""
    log = log_with(BLOCK - 2, 0, 0)

    assert log.floor == BLOCK
    assert log.locate(log.cursor(BLOCK - 1))[0] is Verdict.STALE
    assert log.locate(log.cursor(BLOCK)) == (Verdict.VERIFIED, BLOCK)


def test_breaks_after() -> None:
    """The epochs that began after a position are given oldest first."""
    log = log_with(2, 2, 2)

    assert [epoch.base for epoch in log.breaks_after(0)] == [3, 6]
    assert [epoch.base for epoch in log.breaks_after(2)] == [3, 6]
    assert [epoch.base for epoch in log.breaks_after(3)] == [6]
    assert log.breaks_after(log.head) == []


def test_forgotten_epoch() -> None:
    """Of many epochs the oldest is forgotten: its cursors are of an unknown log, its positions have none."""
    log = log_with(*([1] * MAX_EPOCHS))
    oldest = log.cursor(1)

    log.begin_epoch(f"epoch{MAX_EPOCHS + 1:07}", GapReason.SOURCE)

    assert len(log.epochs) == MAX_EPOCHS
    assert log.begun == MAX_EPOCHS + 1
    assert log.locate(oldest)[0] is Verdict.UNKNOWN_EPOCH
    assert log.cursor(1) == "0-0-0"
    assert log.locate(log.cursor(2)) == (Verdict.VERIFIED, 2)


def test_hashes_after() -> None:
    """What the ring holds after a position is given in parts, from any position on."""
    log = log_with(BLOCK + 5, ring_size=2 * BLOCK)
    first, whole = log.hashes_after(-1)

    assert (first, [len(part) for part in whole]) == (0, [BLOCK, 6])
    for position in (0, 7, BLOCK - 2, BLOCK - 1, BLOCK, BLOCK + 4, BLOCK + 5):
        first, parts = log.hashes_after(position)
        assert (first, flat(parts)) == (position + 1, flat(whole)[position + 1 :])
        assert all(parts)


def test_hashes_after_a_full_block() -> None:
    """After the last position there is nothing, also where a block has just become full."""
    log = log_with(BLOCK - 1)

    assert log.hashes_after(log.head) == (BLOCK, [])


def test_hashes_older_than_the_ring() -> None:
    """Older positions than the ring holds are left out."""
    log = log_with(BLOCK)

    first, parts = log.hashes_after(5)

    assert (first, [len(part) for part in parts]) == (BLOCK, [1])


def test_hashes_are_of_one_moment() -> None:
    """What was read does not change while the log goes on, over the end of a block and of the ring."""
    log = log_with(BLOCK - 3, ring_size=2 * BLOCK)
    wholes = [log.hashes_after(-1), log.hashes_after(4)]
    before = [(first, flat(parts)) for first, parts in wholes]

    for message in range(3 * BLOCK):
        log.append(b"other", b"%d" % message)

    assert [(first, flat(parts)) for first, parts in wholes] == before


@pytest.mark.parametrize("sizes", [(5,), (5, 0, 3), (BLOCK,), (2 * BLOCK + 9, 4)])
@pytest.mark.parametrize("ring_size", [BLOCK, 4 * BLOCK])
def test_taken_over(sizes: tuple[int, ...], ring_size: int) -> None:
    """A log that takes over another verifies its cursors as far as its own ring goes, and counts on alike (I10)."""
    other = log_with(*sizes, ring_size=4 * BLOCK)
    log = Log(b"key", ring_size)

    taken_over(other, log)

    assert (log.head, log.epochs, log.begun) == (other.head, other.epochs, len(sizes))
    for position in range(other.head + 1):
        verdict = log.locate(other.cursor(position))
        assert verdict == ((Verdict.VERIFIED, position) if position >= log.floor else (Verdict.STALE, log.floor))
    assert log.floor == log_with(*sizes, ring_size=ring_size).floor
    assert log.append(b"a", b"1") == other.append(b"a", b"1")


def test_taken_over_in_part() -> None:
    """A log that lagged behind is extended by what it has missed: the rest of its epoch, and new ones (I10)."""
    behind, other = log_with(3), log_with(5, 2)

    taken_over(other, behind, after=behind.head)

    assert behind.epochs == other.epochs
    assert [behind.cursor(position) for position in range(9)] == [other.cursor(position) for position in range(9)]
    assert behind.append(b"a", b"1") == other.append(b"a", b"1")


def test_nothing_taken_over() -> None:
    """A log that has missed nothing goes on as it was."""
    log, other = log_with(3), log_with(3)

    taken_over(other, log, after=log.head)

    assert log.append(b"a", b"1") == other.append(b"a", b"1")


def test_restart() -> None:
    """A log that is begun from another forgets its own cursors, and uses none of its positions again (I1, I10)."""
    log, other = log_with(7, 2), Log(b"key", BLOCK)
    other.begin_epoch("other0000001", GapReason.SOURCE)
    for message in range(BLOCK + 5):
        other.append(b"channel", b"%d" % message)
    own = [log.cursor(position) for position in range(log.head + 1)]
    used = log.head + 1

    log.restart(used + other.floor - 1)
    taken_over(other, log)

    assert (log.head, log.floor, log.epoch.base) == (used + other.head, used + other.floor, used)
    assert [log.locate(cursor)[0] for cursor in own] == [Verdict.UNKNOWN_EPOCH] * len(own)
    assert [log.locate(other.cursor(position)) for position in (other.floor, other.head)] == [
        (Verdict.VERIFIED, log.floor),
        (Verdict.VERIFIED, log.head),
    ]
    assert log.locate(other.cursor(3)) == (Verdict.STALE, log.floor)
    assert log.append(b"a", b"1") == other.append(b"a", b"1")


def test_known_epochs() -> None:
    """A log knows the names of the epochs that it remembers."""
    log = log_with(1, 1)

    assert (log.knows(FIRST), log.knows(SECOND), log.knows("epoch0000009")) == (True, True, False)
