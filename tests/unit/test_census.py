"""Counting together: what each process writes down, and what the sum of it says."""

from __future__ import annotations

import math

import pytest

from sse_gateway.census import (
    BUCKET_ROWS,
    FADE_S,
    SECRET_BYTES,
    SLICE_S,
    Census,
    Register,
    Shape,
    alone,
    lay_out,
)

SECRET = bytes(range(SECRET_BYTES))
NOW = 1000.0


def workers(count: int, streams: int = 100) -> list[Register]:
    """The registers of some processes, all in one memory."""
    shape = Shape.of(count, streams)
    memory = memoryview(bytearray(shape.size))
    lay_out(memory, shape, SECRET)
    censuses = [Census(memory) for _ in range(count)]
    assert all(census.shape == shape and census.secret == SECRET for census in censuses)
    return [
        Register(census.section(slot), [each for at, each in enumerate(census.sections()) if at != slot], census.secret)
        for slot, census in enumerate(censuses)
    ]


@pytest.mark.parametrize(("streams", "rows"), [(0, 64), (1, 64), (16, 64), (17, 128), (50_000, 262_144)])
def test_a_quarter_of_the_rows_is_in_use_at_most(streams: int, rows: int) -> None:
    """Rows are a power of two, and sections begin where pages do."""
    shape = Shape.of(3, streams)
    assert shape.rows == rows
    assert [shape.begin(slot) % 65_536 for slot in range(4)] == [0] * 4
    assert shape.size == shape.begin(3)


def test_all_streams_of_a_node_are_one_number() -> None:
    """Whoever has them; the last place is given once."""
    first, second = workers(2)
    assert [first.take_stream(3), second.take_stream(3), first.take_stream(3)] == [True] * 3
    assert not first.take_stream(3)
    assert not second.take_stream(3)
    assert (first.streams, second.streams) == (3, 3)
    first.leave_stream()
    assert second.streams == 2
    assert second.take_stream(3)


def test_streams_of_a_key_are_one_number() -> None:
    """By key and by table, whichever process has them."""
    first, second = workers(2)
    mine, other = first.key("203.0.113.7"), first.key("203.0.113.8")
    assert second.key("203.0.113.7") == mine
    assert first.take(0, mine, 2)
    assert second.take(0, mine, 2)
    assert not first.take(0, mine, 2)
    assert not second.take(0, mine, 2)
    assert first.take(0, other, 1)
    assert second.take(1, mine, 1)
    second.leave(0, mine)
    assert first.take(0, mine, 2)


def test_a_row_is_free_when_its_last_stream_has_gone() -> None:
    """As many keys as one likes, one after the other; the memory does not grow."""
    (only,) = workers(1, streams=16)
    for number in range(10_000):
        key = only.key(str(number))
        assert only.take(0, key, 1)
        only.leave(0, key)


def test_a_full_bucket_refuses() -> None:
    """Nobody goes uncounted: who finds no row is refused for now."""
    (only,) = workers(1, streams=1)
    in_bucket = [key for number in range(1000) if (key := only.key(str(number)))[-1] % 2 == 0][: BUCKET_ROWS + 1]
    assert [only.take(0, key, 9) for key in in_bucket] == [True] * BUCKET_ROWS + [False]
    only.leave(0, in_bucket[0])
    assert only.take(0, in_bucket[-1], 9)


def test_a_key_across_two_rows_is_not_that_key() -> None:
    """The end of one and the begin of the next are no key, wherever they lie in their bucket."""
    (only,) = workers(1, streams=1)
    rows = [bytes([0] * 3 + [n] * 4 + [0]) for n in (1, 2, 3)]
    across = rows[0][4:] + rows[1][:4]
    for key in rows:
        assert only.take(0, key, 1)
    assert only.take(0, across, 1)
    assert not only.take(0, across, 1)
    only.leave(0, rows[0])
    assert only.take(0, rows[0], 1)


def test_arrivals_are_counted_over_a_second() -> None:
    """Not from one full second to the next; and by the node."""
    first, second = workers(2)
    assert [first.arrive(3, NOW), second.arrive(3, NOW + 0.55), first.arrive(3, NOW + 0.85)] == [True] * 3
    assert not second.arrive(3, NOW + 0.95)
    assert second.arrive(3, NOW + 1.05)
    assert not first.arrive(3, NOW + 1.1)
    assert first.arrive(3, NOW + 1.6)
    assert first.arrive(3, NOW + 100.0)


def test_no_second_has_more_arrivals_than_it_may() -> None:
    """Whatever the times: within one second, less a slice, there are never more than the limit."""
    (only,) = workers(1)
    times = [NOW + number * 0.013 for number in range(1000)]
    taken = [now for now in times if only.arrive(20, now)]
    for begin in taken:
        assert sum(begin <= now < begin + 1 - SLICE_S for now in taken) <= 20
    assert len(taken) >= 20 * 12


def test_what_was_spent_fades() -> None:
    """The sum over the processes is what one would remember."""
    first, second = workers(2)
    key = first.key("alice")
    first.spend(2, key, 600.0, NOW)
    second.spend(2, key, 400.0, NOW + 30)
    first.spend(2, key, 100.0, NOW + 60)
    expected = 600 * math.exp(-60 / FADE_S) + 400 * math.exp(-30 / FADE_S) + 100
    assert first.spent(2, key, NOW + 60) == second.spent(2, key, NOW + 60) == pytest.approx(expected)
    assert first.spent(2, first.key("bob"), NOW) == 0
    assert first.spent(2, key, NOW + 3600) < 1


def test_who_has_spent_least_makes_room() -> None:
    """Rows for what fades do not run out, and who spends most is remembered longest."""
    (only,) = workers(1, streams=1)
    in_bucket = [key for number in range(1000) if (key := only.key(str(number)))[-1] % 2 == 0][: BUCKET_ROWS + 1]
    for size, key in enumerate(in_bucket[:-1], 100):
        only.spend(2, key, size, NOW)
    only.spend(2, in_bucket[-1], 5.0, NOW)
    assert only.spent(2, in_bucket[0], NOW) == 0
    assert [only.spent(2, key, NOW) for key in in_bucket[1:]] == [*range(101, 100 + BUCKET_ROWS), 5.0]


def test_a_clock_that_seems_to_go_back_makes_nothing_more() -> None:
    """Another process may have read it a little later."""
    first, second = workers(2)
    key = first.key("alice")
    first.spend(2, key, 100.0, NOW + 1)
    assert second.spent(2, key, NOW) == 100.0


def test_keys_are_hashed_with_a_secret() -> None:
    """Two nodes know a subject by different keys, and none is the key of a free row."""
    assert alone(1, bytes(SECRET_BYTES)).key("alice") != alone(1, SECRET).key("alice")
    assert alone(1, SECRET).key("\ud800")
    assert any(alone(1, SECRET).key(""))


def test_no_key_is_that_of_a_free_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one whose hash is zero."""

    class Zero:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def digest(self) -> bytes:
            return bytes(8)

    monkeypatch.setattr("sse_gateway.census.blake2b", Zero)
    assert alone(1, SECRET).key("x") == b"\1" * 8


def test_those_who_are_replaced_count_until_they_are_gone() -> None:
    """For limits; but not for whether there is room, or nobody who has all streams could ever be replaced."""
    (old,) = workers(1)
    shape = Shape.of(1, 100)
    census = lay_out(memoryview(bytearray(shape.size)), shape, SECRET)
    new = Register(census.section(0), [], SECRET, [old._own])
    assert old.take_stream(1)
    assert (new.streams, new.streams_of_generation) == (1, 0)
    assert not new.take_stream(1)
    assert old.take(0, old.key("a"), 1)
    assert not new.take(0, new.key("a"), 1)
    old.leave_stream()
    assert new.take_stream(1)
    assert new.streams_of_generation == 1
