from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sse_gateway.log import Log
from sse_gateway.reasons import GapReason
from sse_gateway.stored import BLOCK
from sse_gateway.stored_ring import StoredRing
from tests.support.keyspace import KEYS, SEAL, Keyspace

if TYPE_CHECKING:
    from collections.abc import Iterator

EPOCH = "epoch0000001"


def log_of(count: int, *, before: int = 0, ring_size: int = 1 << 20) -> Log:
    """A log of so many messages behind its BREAK, and so many before."""
    log = Log(b"key", ring_size)
    if before:
        log.begin_epoch("epoch0000000", GapReason.SOURCE)
        extend(log, before)
    log.begin_epoch(EPOCH, GapReason.SOURCE)
    extend(log, count)
    return log


def extend(log: Log, count: int) -> None:
    """Count more messages."""
    for number in range(count):
        log.append(b"c", b"%d" % number)


def ring_of(log: Log) -> StoredRing:
    """A ring of which nothing is stored."""
    return StoredRing(KEYS, SEAL, log, b"1000")


def advance(ring: StoredRing, store: Keyspace, head: int) -> list[str]:
    """Write up to a head; returns the names of the commands."""
    told = list(ring.advance(head))
    store.transact(command for command, _ in told)
    for command, answer in told:
        if command[0] == b"SETRANGE" and command[2] != b"0":
            assert answer == len(store.string(command[1]) or b"")
    return [command[0].decode() for command, _ in told]


def hashes(store: Keyspace, blocks: Iterator[int] | range) -> bytes:
    """What is stored, one block after the other, each proved."""
    found = b""
    for block in blocks:
        key = KEYS.ring(EPOCH, block)
        found += SEAL.at(key).open(b"", store.string(key) or b"")
    return found


def known(log: Log, first: int = 0) -> bytes:
    """The hashes of the current epoch that the log knows."""
    _, parts = log.hashes_after(log.epoch.base + first - 1)
    return b"".join(number.to_bytes(8, "big") for part in parts for number in part)


@pytest.mark.parametrize("before", [0, 10])
def test_a_ring_grows_by_parts_of_blocks(before: int) -> None:
    """What is stored is what the log knows; a block that has begun is only added to."""
    log, store = log_of(10, before=before), Keyspace()
    ring = ring_of(log)
    assert (ring.head, ring.check) == (-1, 0)
    assert advance(ring, store, 4) == ["SET"]
    assert advance(ring, store, 10) == ["SETRANGE", "SETRANGE"]
    assert advance(ring, store, 10) == []
    assert hashes(store, range(1)) == known(log)
    extend(log, 2 * BLOCK)
    assert advance(ring, store, 2 * BLOCK + 10) == ["SETRANGE", "SETRANGE", "SET", "SET"]
    assert hashes(store, range(3)) == known(log)
    assert ring.check == int.from_bytes(known(log)[-8:], "big")
    assert ring.blocks() == [KEYS.ring(EPOCH, block) for block in range(3)]


def test_who_goes_on_writes_the_last_block_anew() -> None:
    """From its own log, whatever is there."""
    log, store = log_of(BLOCK + 10), Keyspace()
    advance(ring_of(log), store, BLOCK + 5)
    store.values[KEYS.ring(EPOCH, 1)] = b"damaged"
    ring = ring_of(log)
    ring.resume(0, BLOCK + 5)
    assert ring.check == int.from_bytes(known(log)[8 * (BLOCK + 5) :][:8], "big")
    assert advance(ring, store, BLOCK + 10) == ["SET"]
    assert hashes(store, range(2)) == known(log)


def test_what_the_log_has_forgotten_is_let_go_of() -> None:
    """Whole blocks are removed; in between there are zeros, where nobody looks."""
    log, store = log_of(10, before=100, ring_size=2 * BLOCK), Keyspace()
    ring = ring_of(log)
    advance(ring, store, 10)
    extend(log, 3 * BLOCK)
    assert log.floor > log.epoch.base + BLOCK
    assert "DEL" in advance(ring, store, 3 * BLOCK + 10)
    first = log.floor - log.epoch.base
    assert ring.first == first
    assert store.string(KEYS.ring(EPOCH, 0)) is None
    assert hashes(store, range(first // BLOCK, 4))[8 * (first % BLOCK) :] == known(log, first)
    assert advance(ring, store, 3 * BLOCK + 10) == []


def test_blocks_that_nobody_knows_any_more_are_not_written() -> None:
    """A writer that comes late begins where its log begins."""
    log, store = log_of(4 * BLOCK, ring_size=BLOCK), Keyspace()
    ring = ring_of(log)
    advance(ring, store, 4 * BLOCK)
    first = log.floor
    assert sorted(store.values) == [KEYS.ring(EPOCH, block) for block in range(first // BLOCK, 5)]
    assert hashes(store, range(first // BLOCK, 5))[8 * (first % BLOCK) :] == known(log, first)


def test_who_goes_on_and_knows_less_begins_there() -> None:
    """The last block has to be whole from its first offset on."""
    log = log_of(2 * BLOCK, before=100, ring_size=2 * BLOCK)
    ring = ring_of(log)
    ring.resume(0, BLOCK + 50)
    assert ring.first == 0
    extend(log, BLOCK)
    ring.resume(0, BLOCK + 50)
    assert ring.first == log.floor - log.epoch.base
