from __future__ import annotations

import sys
from array import array
from typing import TYPE_CHECKING

import msgspec
import pytest

from sse_gateway.errors import SnapshotError
from sse_gateway.reasons import GapReason
from sse_gateway.snapshot import Head, Piece, Seal, Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable

KEY = b"key"
JOIN = "token0000001"
HASHES = [1, 2**64 - 1, 2**63]
OTHER_ORDER = {"little": "big", "big": "little"}[sys.byteorder]

encode = msgspec.msgpack.encode


def head(**fields: object) -> Head:
    """A head of two rules and three positions."""
    whole = Head(
        have="",
        begin=-1,
        head=12,
        first=10,
        epochs=[("epoch0000001", 0, GapReason.SOURCE), ("epoch0000002", 11, GapReason.EPOCH)],
        claims=["claimed00001"],
        marks=[-1, 5],
        abandoned=[[], [4, 5]],
        byte_order=sys.byteorder,
    )
    return msgspec.structs.replace(whole, **fields)


def piece(name: str = "a", **fields: object) -> Piece:
    """A channel with a loss and an event."""
    whole = Piece(name, 0, 3.0, 6, 2, [3, 6], ["k"], [(12, 1.5, "message", True, b"id: 12\n\n", None)])
    return msgspec.structs.replace(whole, **fields)


def ring(*hashes: int) -> bytes:
    """A block of hashes."""
    return b"R" + array("Q", hashes).tobytes()


def blocks_of(*pieces: Piece, head_: Head | None = None) -> list[bytes]:
    """Blocks, without the end."""
    return [b"H" + encode(head_ or head()), ring(*HASHES), b"W" + encode(pieces)]


def ended(blocks: Iterable[bytes], key: bytes = KEY, token: str = JOIN) -> list[bytes]:
    """Blocks and the end that proves them."""
    seal = Seal(key, token)
    blocks = list(blocks)
    for block in blocks:
        seal.add(block)
    return [*blocks, seal.end()]


def taken(blocks: Iterable[bytes], *, max_bytes: int = 1 << 20) -> Snapshot:
    """Take blocks in, as they come."""
    snapshot = Snapshot(KEY, JOIN, 2, 100.0, max_bytes=max_bytes)
    for block in blocks:
        snapshot.add(block)
    return snapshot


def is_refused(blocks: Iterable[bytes]) -> bool:
    """Whether blocks are refused or at least not taken for a whole; anything else than `SnapshotError` is raised."""
    try:
        return not taken(blocks).is_complete
    except SnapshotError:
        return True


WHOLE = ended(blocks_of(piece("a"), piece("b", rule=1)))


def test_put_together() -> None:
    """A snapshot is whole when its end has proved it; ages count from when it was cut."""
    blocks = ended(blocks_of(piece()))

    partial, whole = taken(blocks[:-1]), taken(blocks)

    assert (partial.is_complete, whole.is_complete) == (False, True)
    assert whole.head == head()
    assert [list(part) for part in whole.hashes] == [HASHES]
    assert whole.received_bytes == sum(map(len, blocks))
    (held,) = whole.held(0)
    assert (held.name, held.rule, held.used_at, held.newest_loss, held.forgotten) == ("a", 0, 97.0, 6, 2)
    assert (held.lost, held.keys) == ([3, 6], ["k"])
    (event,) = held.events
    assert (event.position, event.frame, event.received_at, event.window) == (12, b"id: 12\n\n", 98.5, None)
    assert (event.type, event.is_text, event.raw, event.ts) == ("message", True, None, None)


def test_shifted() -> None:
    """A whole snapshot is taken in at positions of ours: all of it is moved, but for what there is not (rule 1)."""
    snapshot = taken(ended(blocks_of(piece(), piece("b", newest_loss=-1, forgotten=-1, lost=[]))))

    first, second = snapshot.held(100)

    assert (first.newest_loss, first.forgotten, first.lost) == (106, 102, [103, 106])
    assert [event.position for event in first.events] == [112]
    assert (second.newest_loss, second.forgotten, second.lost) == (-1, -1, [])
    assert (snapshot.marks(100), snapshot.abandoned(100)) == ([-1, 105], [[], [104, 105]])


def test_delta() -> None:
    """Of a delta nothing counts that does not lie after its begin (rule 2)."""
    later = head(have="cursor", begin=9, marks=[9, 11], abandoned=[[9], [9, 11]])
    channels = [
        piece(newest_loss=9, forgotten=4, lost=[3, 9]),
        piece("b", newest_loss=11, forgotten=10, lost=[8, 10, 11]),
    ]

    snapshot = taken(ended(blocks_of(*channels, head_=later)))

    first, second = snapshot.held(-7)
    assert (first.newest_loss, first.forgotten, first.lost) == (-1, -1, [])
    assert (second.newest_loss, second.forgotten, second.lost) == (4, 3, [3, 4])
    assert [event.position for event in first.events] == [5]
    assert (snapshot.marks(-7), snapshot.abandoned(-7)) == ([-1, 4], [[], [4]])


def test_a_channel_in_parts() -> None:
    """The first part of a channel says what else there is of it; the others bring more of its events."""
    more = piece(newest_loss=-1, lost=[], keys=[], events=[(13, 0.0, "message", True, b"", b"raw")])

    (held,) = taken(ended([*blocks_of(piece()), b"W" + encode([more])])).held(0)

    assert (held.newest_loss, held.lost, held.keys) == (6, [3, 6], ["k"])
    assert [(event.position, event.raw) for event in held.events] == [(12, None), (13, b"raw")]


def test_byte_order() -> None:
    """Hashes of a machine of the other byte order are the same hashes."""
    swapped = array("Q", HASHES)
    swapped.byteswap()
    blocks = [b"H" + encode(head(byte_order=OTHER_ORDER)), b"R" + swapped.tobytes()]

    assert [list(part) for part in taken(ended(blocks)).hashes] == [HASHES]


def test_nothing_to_tell() -> None:
    """A delta of nothing is whole with its head and its end."""
    assert taken(ended([b"H" + encode(head(begin=12, first=13))])).is_complete


def test_every_truncation() -> None:
    """A snapshot that breaks off anywhere, also within a block, is not taken for a whole (rule 3)."""
    for index, block in enumerate(WHOLE):
        for size in range(len(block)):
            assert is_refused([*WHOLE[:index], block[:size]])
            assert is_refused([*WHOLE[:index], block[:size], *WHOLE[index + 1 :]])


def test_every_bit() -> None:
    """No bit of a snapshot can change (rule 3, I10)."""
    for index, block in enumerate(WHOLE):
        for bit in range(8 * len(block)):
            damaged = bytearray(block)
            damaged[bit // 8] ^= 1 << bit % 8
            assert is_refused([*WHOLE[:index], bytes(damaged), *WHOLE[index + 1 :]])


def test_every_order() -> None:
    """Blocks that are missing, doubled or swapped are refused (rule 3)."""
    blocks = ended([*blocks_of(piece()), b"W" + encode([piece("b")]), b"W" + encode([piece("c")])])
    assert not is_refused(blocks)
    for index, block in enumerate(blocks):
        assert is_refused([*blocks[:index], *blocks[index + 1 :]])
        assert is_refused([*blocks[:index], block, *blocks[index:]])
        for other in range(index):
            swapped = list(blocks)
            swapped[index], swapped[other] = swapped[other], swapped[index]
            assert is_refused(swapped)


def test_joined_and_split_blocks() -> None:
    """Where a block ends is part of what the end proves."""
    seal = Seal(KEY, JOIN)
    for block in (b"ab", b"c"):
        seal.add(block)
    other = Seal(KEY, JOIN)
    for block in (b"a", b"bc"):
        other.add(block)

    assert seal.end() != other.end()


@pytest.mark.parametrize(("key", "token"), [(b"other", JOIN), (b"", JOIN), (KEY, "token0000002"), (KEY, "")])
def test_ends_of_others(key: bytes, token: str) -> None:
    """An end that was made with another key, or for another JOIN, proves nothing (I10)."""
    assert is_refused(ended(blocks_of(piece()), key, token))


def test_blocks_of_others() -> None:
    """A block of another transfer is not taken for one of this."""
    others = [b"H" + encode(head(claims=[])), ring(4, 5, 6), b"W" + encode([piece(keys=["other"])])]
    for index, block in enumerate(ended(others, KEY, "token0000002")):
        assert is_refused([*WHOLE[:index], block, *WHOLE[index + 1 :]])


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"H",
        b"R",
        b"W",
        b"E",
        b"X",
        b"R" + b"\0" * 9,
        b"W\xc1",
        b"W\xdd\xff\xff\xff\xff",
        b"W\x91\x98\xa2\xff\xfe\x00",  # a name that is not UTF-8
        b"W\x91" + encode(piece())[:-1],
        b"W\x91\x99" + encode(piece())[1:] + b"\x91" * 100_000 + b"\x90",  # one element too many, and deep
        b"W" + encode([piece(rule=2)]),
        b"W" + encode([piece(rule=-1)]),
        b"W" + encode([{"name": "a"}]),
        b"W" + encode([piece(lost=["3"])]),
        b"W" + encode([piece(events=[(1, 2)])]),
        b"H" + encode(head()),
    ],
)
def test_damaged_blocks(damaged: bytes) -> None:
    """Whatever else comes is refused at once, and never raises anything else (I10)."""
    snapshot = taken(WHOLE[:2])

    with pytest.raises(SnapshotError):
        snapshot.add(damaged)

    assert not snapshot.is_complete


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        ring(*HASHES),
        b"W\x90",
        Seal(KEY, JOIN).end(),
        b"H" + encode(head(marks=[1])),
        b"H" + encode(head(abandoned=[[], [], []])),
        b"H" + encode(head(begin=-2)),
        b"H" + encode(head(begin=10)),
        b"H" + encode(head(epochs=[("epoch0000001", 0, "unheard of")])),
    ],
)
def test_damaged_heads(damaged: bytes) -> None:
    """A snapshot begins with a head that fits our rules, and with nothing else."""
    with pytest.raises(SnapshotError):
        taken([damaged])


def test_hashes_are_missing() -> None:
    """A snapshot has a hash for every position after its begin that its ring holds, and no more."""
    blocks = blocks_of(piece())

    for hashes in ([], [ring(1), ring(2)], [ring(1, 2, 3, 4)]):
        with pytest.raises(SnapshotError, match="hashes"):
            taken(ended([blocks[0], *hashes, blocks[2]]))
    assert taken(ended([blocks[0], ring(1), blocks[2], ring(2, 3)])).is_complete


def test_after_the_end() -> None:
    """What comes after the end is refused."""
    for block in WHOLE:
        with pytest.raises(SnapshotError):
            taken([*WHOLE, block])


def test_too_large() -> None:
    """A snapshot is taken up to so many bytes (I5)."""
    size = sum(map(len, WHOLE))

    assert taken(WHOLE, max_bytes=size).is_complete
    with pytest.raises(SnapshotError, match="larger"):
        taken(WHOLE, max_bytes=size - 1)
