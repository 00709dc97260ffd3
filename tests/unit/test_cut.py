from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

from sse_gateway.cut import SLICE_BYTES, SLICE_CHANNELS, Cut
from sse_gateway.history import MAX_KEYS, History
from sse_gateway.log import Log
from sse_gateway.reasons import GapReason
from sse_gateway.snapshot import Head, Held, Snapshot
from sse_gateway.window import Event, Window
from tests.support.core import rule

if TYPE_CHECKING:
    from collections.abc import Iterable

RULES = [rule("a*", 0, events=3, age_s=50.0), rule("b*", 1, events=10_000, age_s=1e6, size=1 << 30)]
KEY = b"key"
JOIN = "token0000001"
BLOCK = 4096


class Node:
    """A log and its windows, one event per second."""

    def __init__(self, channels: int = 10_000) -> None:
        self.log = Log(KEY)
        self.history = History(RULES, channels, 1 << 30)
        self._names = (f"epoch{number:07}" for number in count(1))
        self.begin_epoch()

    @property
    def now(self) -> float:
        """Seconds: the log's head."""
        return float(self.log.head)

    @property
    def cursor(self) -> str:
        """Of the head."""
        return self.log.cursor(self.log.head)

    def begin_epoch(self, reason: GapReason = GapReason.SOURCE) -> None:
        """Let a BREAK stand in the log."""
        self.log.begin_epoch(next(self._names), reason)

    def append(self, *names: str, frame: bytes = b"x" * 10) -> None:
        """Hold an event in each of some channels."""
        for name in names:
            self.log.append(name.encode(), frame)
            window = self.window(name)
            self.history.append(Event(self.log.head, window, frame, self.now), window, self.now)

    def window(self, name: str) -> Window:
        """A channel's."""
        return self.history.window(name, RULES[name.startswith("b")], self.now)

    def cut(self, have: str = "-", *, claims: Iterable[str] = ()) -> Cut:
        """Cut, here and now."""
        return Cut(KEY, JOIN, self.log, self.history, have, claims, self.now)


def received(blocks: Iterable[bytes], cut_at: float = 0.0) -> Snapshot:
    """Put blocks together; the end proves them."""
    snapshot = Snapshot(KEY, JOIN, len(RULES), cut_at, max_bytes=1 << 30)
    for block in blocks:
        if block:
            snapshot.add(block)
    assert snapshot.is_complete
    return snapshot


def head_of(snapshot: Snapshot) -> Head:
    """Its head, which is there."""
    assert snapshot.head is not None
    return snapshot.head


def held_by(snapshot: Snapshot) -> dict[str, Held]:
    """Its channels, by name."""
    return {held.name: held for held in snapshot.held(0)}


def positions(held: Held) -> list[int]:
    """Where a channel's events stand."""
    return [event.position for event in held.events]


def told(cut: Cut) -> dict[str, list[int]]:
    """All channels of a cut, and where their events stand."""
    return {name: positions(held) for name, held in held_by(received(cut)).items()}


def test_whole() -> None:
    """Whoever has nothing of the log gets all of it: epochs, hashes, claims, windows, losses and keys."""
    node = Node()
    node.append("a", "a", "b", "a", "a")
    node.history.remember_key(node.window("a"), "k")
    node.begin_epoch(GapReason.EPOCH)

    snapshot = received(node.cut(claims=["claimed00001"]), cut_at=100.0)

    head = head_of(snapshot)
    assert (head.have, head.begin, head.head, head.first, head.claims) == ("", -1, 6, 0, ["claimed00001"])
    assert head.epochs == [("epoch0000001", 0, GapReason.SOURCE), ("epoch0000002", 6, GapReason.EPOCH)]
    assert (head.marks, head.abandoned) == ([-1, -1], [[], []])
    assert snapshot.hashes == node.log.hashes_after(-1)[1]
    held = held_by(snapshot)
    assert (positions(held["a"]), held["a"].lost, held["a"].newest_loss, held["a"].forgotten) == ([2, 4, 5], [1], 1, -1)
    assert (positions(held["b"]), held["b"].keys, held["a"].keys) == ([3], [], ["k"])
    assert [event.received_at for event in held["a"].events] == [96.0, 98.0, 99.0]
    assert (held["a"].used_at, held["b"].used_at) == (99.0, 97.0)


def test_events_as_they_are() -> None:
    """An event is handed over byte for byte, with all that a reader may ask for."""
    node = Node()
    node.append("b")
    window = node.window("b")
    event = Event(2, window, b"id: 2\n\n", 0.0, type="tick", is_text=False, raw=b"1\r2", ts=7.0)
    node.history.append(event, window, 0.0)

    (held,) = received(node.cut()).held(0)

    taken = held.events[1]
    assert (taken.position, taken.frame, taken.type, taken.is_text, taken.raw, taken.ts, taken.window) == (
        (2, b"id: 2\n\n", "tick", False, b"1\r2", None, None)
    )


def test_hashes_in_parts() -> None:
    """The ring goes in blocks of its own."""
    node = Node()
    for _ in range(BLOCK):
        node.log.append(b"", b"")

    kinds = [block[:1] for block in node.cut()]

    assert kinds == [b"H", b"R", b"R", b"E"]


def test_later_changes_are_not_seen() -> None:
    """Whatever happens to a channel before its turn, it is read as it was at the cut (rules 1 and 2)."""
    node = Node(channels=4)
    for name in ("a1", "a2", "b1", "b2"):
        node.append(name)
    node.history.remember_key(node.window("b2"), "k")
    cut = node.cut()
    blocks = [next(cut)]

    node.append("a1", "a1", "a1", "a1")
    node.history.expire(60.0)
    node.history.remember_key(node.window("b2"), "another")
    node.history.remember_key(node.window("b1"), "new")
    node.append("b3", "b4", "b5")
    blocks += cut

    snapshot = received(blocks)
    held = held_by(snapshot)
    assert {name: positions(found) for name, found in held.items()} == {"a1": [1], "a2": [2], "b1": [3], "b2": [4]}
    assert {name: found.keys for name, found in held.items() if found.keys} == {"b2": ["k"]}
    assert {found.newest_loss for found in held.values()} == {-1}
    assert (head_of(snapshot).head, head_of(snapshot).marks) == (4, [-1, -1])


def test_changes_after_its_turn() -> None:
    """A channel that has been read is not read again, and others are as they were."""
    node = Node()
    node.append(*(f"b{number}" for number in range(SLICE_CHANNELS + 1)))
    cut = node.cut()
    blocks = [next(cut), next(cut), next(cut)]
    (left,) = cut._pending

    node.append(*(f"b{number}" for number in range(SLICE_CHANNELS + 1)))
    blocks += cut

    assert [len(held.events) for held in received(blocks).held(0)] == [1] * (SLICE_CHANNELS + 1)
    assert len(left) == 2


def test_two_cuts() -> None:
    """Each cut is of its own moment."""
    node = Node()
    node.append("a")
    first = node.cut()
    node.append("a")
    second = node.cut()
    node.append("a")

    assert [told(cut) for cut in (second, first)] == [{"a": [1, 2]}, {"a": [1]}]


def test_delta() -> None:
    """Whoever knows the log up to some place gets what lies after it, and no channel that has not changed."""
    node = Node()
    node.append("a1", "a1", "a1", "a2", "b1", "b2")
    begin, have = node.log.head, node.cursor
    node.append("a1", "b2")
    node.begin_epoch()
    node.append("a1", "a1", "a1")

    snapshot = received(node.cut(have))

    head = head_of(snapshot)
    assert (head.have, head.begin, head.head, head.first) == (have, begin, begin + 6, begin + 1)
    assert head.epochs == [("epoch0000002", begin + 3, GapReason.SOURCE)]
    assert [len(part) for part in snapshot.hashes] == [6]
    held = held_by(snapshot)
    assert {name: positions(found) for name, found in held.items()} == {"a1": [10, 11, 12], "b2": [8]}
    assert (held["a1"].lost, held["a1"].newest_loss) == ([7], 7)


def test_delta_of_losses() -> None:
    """A channel that has only lost events since is told; losses from before are not."""
    node = Node()
    node.append("a1", "a2", "a3")
    have = node.cursor
    node.append("a1")
    node.history.expire(60.0)

    held = held_by(received(node.cut(have)))

    assert {name: (found.events, found.lost) for name, found in held.items()} == {"a1": ([], [4])}


def test_delta_for_who_has_read_more() -> None:
    """Whoever has more of an epoch that has ended gets what came after it, and keeps what is his (rule 6)."""
    node, other = Node(), Node()
    for each in (node, other):
        each.append("a", "a")
    other.append("a", "b")
    node.begin_epoch()
    node.append("b", "a")

    snapshot = received(node.cut(other.cursor))

    head = head_of(snapshot)
    assert (head.have, head.begin, head.first, head.head) == (other.cursor, 2, 3, 5)
    assert head.epochs == [("epoch0000002", 3, GapReason.SOURCE)]
    assert {name: positions(found) for name, found in held_by(snapshot).items()} == {"b": [4], "a": [5]}


def test_delta_after_an_end_that_is_forgotten() -> None:
    """Without the hashes from there on, only the whole will do."""
    node, other = Node(), Node()
    node.log = Log(KEY, ring_size=4096)
    node.log.begin_epoch("epoch0000001", GapReason.SOURCE)
    node.log.begin_epoch("epoch0000002", GapReason.SOURCE)
    other.append("a", "a")
    assert head_of(received(node.cut(other.cursor))).begin == 0
    for _ in range(2 * 4096):
        node.log.append(b"a", b"x")
    assert node.log.floor > 1

    assert head_of(received(node.cut(other.cursor))).begin == -1


def test_delta_of_nothing() -> None:
    """Whoever has missed nothing gets nothing."""
    node = Node()
    node.append("a1", "b1")

    blocks = list(node.cut(node.cursor))

    assert [block[:1] for block in blocks] == [b"H", b"", b"E"]
    assert received(blocks).hashes == []


def test_cursors_that_do_not_verify() -> None:
    """Whatever else somebody says that he has, he gets the whole (I10)."""
    node = Node()
    node.append("a")
    epoch, offset, check = node.cursor.split("-")

    for have in ("-", "", "0-0-0", f"{epoch}-{offset}-000000000000", f"{epoch}-9-{check}", f"other0000001-1-{check}"):
        head = head_of(received(node.cut(have)))
        assert (head.have, head.begin, head.first) == ("", -1, 0)


def test_forgotten_channels() -> None:
    """What is known of forgotten channels is told: each rule's mark, and where their losses lie."""
    node = Node(channels=2)
    node.append("a1", "b1", "a2")
    have = node.cursor
    node.append("b2", "a3")

    whole, delta = head_of(received(node.cut())), head_of(received(node.cut(have)))
    node.append("a4", "a5")
    later = head_of(received(node.cut(have)))

    assert whole.marks == delta.marks == [3, 2]
    assert (whole.abandoned, delta.abandoned) == ([[3], [2]], [[], []])
    assert (later.marks, later.abandoned) == ([5, 4], [[5], [4]])


def test_delta_under_a_rule_that_forgot() -> None:
    """If channels were forgotten since, those that are left are named: so it is known which may have lost (rule 7)."""
    node = Node(channels=3)
    node.append("b1", "a1", "a2")
    have = node.cursor
    node.append("a3")
    node.history.attach("a2", RULES[0], node.now)
    node.append("a3", "a4")

    held = held_by(received(node.cut(have)))

    assert sorted(node.history.windows) == ["a2", "a3", "a4"]
    assert {name: positions(found) for name, found in held.items()} == {"a3": [4, 5], "a4": [6]}
    node.append("a5")
    held = held_by(received(node.cut(have)))
    assert head_of(received(node.cut(have))).marks == [5, 1]
    assert {name: (positions(found), found.lost) for name, found in held.items()} == {
        "a2": ([], []),
        "a4": ([6], []),
        "a5": ([7], []),
    }


def test_slices_of_channels() -> None:
    """A block looks at so many channels, also where there is nothing to tell of them (rule 3)."""
    node = Node()
    node.append(*(f"b{number}" for number in range(3 * SLICE_CHANNELS)))
    have = node.cursor
    node.append("b0")

    whole, delta = list(node.cut()), list(node.cut(have))

    assert [bool(block) for block in whole] == [True] * 6
    assert [block[:1] for block in delta] == [b"H", b"R", b"", b"", b"W", b"E"]
    assert len(received(whole).held(0)) == 3 * SLICE_CHANNELS


def test_slices_of_frames() -> None:
    """A block holds so many bytes of frames; a channel may take several, and a large frame is not split."""
    node = Node()
    node.append("b1", "b1", "b1", "b1", frame=b"x" * (SLICE_BYTES // 3))
    node.append("b1", "b2", frame=b"y" * (2 * SLICE_BYTES))
    node.append("b1", "b1", "b3")

    blocks = list(node.cut())

    assert told_in(blocks) == {"b1": [1, 2, 3, 4, 5, 7, 8], "b2": [6], "b3": [9]}
    assert max(map(len, blocks)) < 3.5 * SLICE_BYTES
    assert sum(len(block) > 1.5 * SLICE_BYTES for block in blocks) == 2
    assert [block[:1] for block in blocks].count(b"W") == 4


def told_in(blocks: list[bytes]) -> dict[str, list[int]]:
    """All channels of some blocks, and where their events stand."""
    return {name: positions(held) for name, held in held_by(received(blocks)).items()}


def test_slices_of_small_things() -> None:
    """Many small events, keys and losses fill a block as well as large frames (rule 3)."""
    node = Node()
    for number in range(4):
        node.append(f"b{number}", *["a"] * 400)
        for key in range(MAX_KEYS):
            node.history.remember_key(node.window(f"b{number}"), f"{key:0128}")
    node.append(*["b4"] * 3000)

    blocks = list(node.cut())
    held = held_by(received(blocks))

    assert max(map(len, blocks)) < 2 * SLICE_BYTES
    assert len(held["b3"].keys) == MAX_KEYS
    assert (len(held["b4"].events), len(held["a"].lost)) == (3000, 1000)
    assert [block[:1] for block in blocks].count(b"W") > 2


def test_a_channel_in_parts() -> None:
    """What else there is of a channel is told once, with its first events, and nothing of it changes on the way."""
    node = Node()
    node.append(*["b"] * 3, frame=b"x" * SLICE_BYTES)
    window = node.window("b")
    node.history.remember_key(window, "only-once")
    cut = node.cut()
    blocks = [next(cut), next(cut), next(cut)]

    node.append("b")
    node.history.remember_key(window, "too-late")
    blocks += cut

    held = held_by(received(blocks))["b"]
    assert (positions(held), held.keys) == ([1, 2, 3], ["only-once"])
    assert sum(b"only-once" in block for block in blocks) == 1


def test_close() -> None:
    """A cut that is closed holds nothing, and has no end that would prove it (rules 4 and 5)."""
    node = Node()
    node.append("a", "b")
    cut = node.cut()
    next(cut)
    node.append("a")

    cut.close()
    cut.close()

    assert list(cut) == []
    assert node.history.cuts == []
    assert (cut._pending, cut._saved) == ({}, [])


def test_close_of_one_of_two() -> None:
    """The other one goes on."""
    node = Node()
    node.append("a")
    first, second = node.cut(), node.cut()

    first.close()
    node.append("a")

    assert told(second) == {"a": [1]}


def test_end() -> None:
    """A cut that was read to its end has let go by itself, and gives nothing more."""
    node = Node()
    node.append("a")
    cut = node.cut()

    last = list(cut)[-1]

    assert last[:1] == b"E"
    assert node.history.cuts == []
    assert list(cut) == []
    cut.close()
