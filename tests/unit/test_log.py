from __future__ import annotations

import pytest

from sse_gateway.cursor import parse_cursor
from sse_gateway.log import MAX_EPOCHS, Log, Verdict
from sse_gateway.reasons import GapReason

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


def test_beyond_an_older_epoch() -> None:
    """A cursor beyond the end of an older epoch never was one."""
    assert log_with(2, 2).locate(f"{FIRST}-3-0123456789ab") == (Verdict.INVALID, 5)


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
    """A well-formed cursor of an epoch that is not remembered is of a log unknown here."""
    assert log_with(2).locate(f"{SECOND}-1-0123456789ab") == (Verdict.UNKNOWN_EPOCH, 2)


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

    log.begin_epoch("another00001", GapReason.SOURCE)

    assert len(log.epochs) == MAX_EPOCHS
    assert log.begun == MAX_EPOCHS + 1
    assert log.locate(oldest)[0] is Verdict.UNKNOWN_EPOCH
    assert log.cursor(1) == "0-0-0"
    assert log.locate(log.cursor(2)) == (Verdict.VERIFIED, 2)
