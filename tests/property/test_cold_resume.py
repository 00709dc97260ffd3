"""What a cold resume delivers, and what it tells, is together what was published.

Each run plays a schedule on two nodes of one log, with windows of their own bounds: publishing, time, writing by
either of them, answers that are lost, transactions that break off, writers that are too slow, keys that Redis
evicts, a Redis that goes back to an older state, epochs that end. Then all nodes are gone, and one starts
from what is stored. Whoever comes back to it, with any cursor ever given, gets each later event of his channels or is told
that it may be missing, before the next one.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import Phase, given, settings, strategies as st

from sse_gateway import mirror as writing
from sse_gateway.backlog import Backlog
from sse_gateway.cursor import parse_cursor
from sse_gateway.errors import StoreError
from sse_gateway.mirror import Mirror
from sse_gateway.reasons import CloseReason
from tests.support.core import Core, rule
from tests.support.keyspace import KEYS, SEAL, Keyspace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sse_gateway.mirror import Batch
    from sse_gateway.stored import Row, State
    from sse_gateway.window import Event, Window
    from tests.support.core import Block

NAMES = ["a0", "a1", "a2", "b0", "b1"]
MAX_LAG_S = 2.0


@pytest.fixture(autouse=True, scope="module")
def small_batches() -> Iterator[None]:
    """Make batches so small that writers fall behind, and losses need several."""
    usual = writing.BATCH_EVENTS, writing.BATCH_ROWS
    writing.BATCH_EVENTS, writing.BATCH_ROWS = 3, 2
    yield
    writing.BATCH_EVENTS, writing.BATCH_ROWS = usual


class Node:
    """A node that may write."""

    def __init__(self, number: int, events: int, channels: int) -> None:
        rules = rule("a*", events=events, age_s=40.0), rule("b*", events=2 * events, age_s=90.0)
        self.core = Core(*rules, channels=channels, is_begun=False)
        self.is_blank = False
        hub = self.core.hub
        self.mirror = Mirror(
            KEYS, SEAL, hub.log, hub.history, self.core.rules.rules, node=f"n0de{number:08}", max_lag_s=MAX_LAG_S
        )

    def batch(self, store: Keyspace) -> Batch | None:
        """What it would write now."""
        if not self.mirror.is_valid and not store.begin(self.mirror, self.core, is_blank=self.is_blank):
            return None
        self.is_blank = False
        return self.mirror.batch(self.core.now, self.core.now)


class World:
    """Two nodes, what was published, and what is stored.

    Attributes:
        truth: Per epoch and channel, offsets and data of what was published.
        cursors: All that were given.
    """

    def __init__(self, bounds: tuple[int, int], channels: tuple[int, int]) -> None:
        self.nodes = [Node(number, bounds[number], channels[number]) for number in range(2)]
        self.store = Keyspace()
        self.older = self.store.copy()
        self.truth: dict[str, dict[str, list[tuple[int, str]]]] = defaultdict(lambda: defaultdict(list))
        self.cursors: list[str] = []
        self.count = 0
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """The nodes have lost their links, and nobody the log."""
        for node in self.nodes:
            node.core.begin_epoch()
        self.cursors.append(self.nodes[0].core.cursor)

    def publish(self, name: str, count: int) -> None:
        """Both count it."""
        for _ in range(count):
            self.count += 1
            data = f"d{self.count}"
            for node in self.nodes:
                node.core.publish(name, data)
            cursor = self.nodes[0].core.cursor
            place = parse_cursor(cursor)
            assert place is not None
            self.truth[place.epoch][name].append((place.offset, data))
            self.cursors.append(cursor)

    def wait(self, seconds: float) -> None:
        """Time passes."""
        for node in self.nodes:
            node.core.tick(seconds)
        self.store.wait(self.nodes[0].core.now)

    def switch(self) -> None:
        """The writer has lost the lease to the other node."""
        self.nodes[0].mirror.drop()
        self.nodes.reverse()

    def write(self, outcome: str) -> None:
        """A node writes."""
        node = self.nodes[0]
        batch = node.batch(self.store)
        if batch is None:
            return
        if outcome != "broken":  # MULTI without EXEC is nothing
            node.is_blank = not self.store.transact(batch.commands, batch.expected)
        if node.is_blank or outcome != "good":
            node.mirror.drop()

    def tear(self, part: float) -> None:
        """A node writes, and of its transaction only the first commands are there: no server does that."""
        batch = self.nodes[0].batch(self.store)
        if batch is not None:
            self.store.transact(batch.commands[: int(part * len(batch.commands))])
            self.nodes[0].mirror.drop()

    def keep(self) -> None:
        """Redis takes note of its state, to which it may go back."""
        self.older = self.store.copy()

    def go_back(self) -> None:
        """Redis has lost what was not on its disk yet."""
        self.store = self.older.copy()
        self.store.wait(self.nodes[0].core.now)
        for node in self.nodes:
            node.mirror.drop()

    def evict(self, place: float) -> None:
        """Redis evicts a key."""
        if keys := sorted(self.store.values):
            del self.store.values[keys[int(place * len(keys))]]

    def cold(self) -> Core:
        """A node that starts when all are gone."""
        core = Core(*(self.nodes[0].core.rules.rules), is_begun=False)
        core.now = self.nodes[0].core.now
        try:
            found = self.store.load(core.now, rules=2)
        except (StoreError, AssertionError):  # refused; or without a state
            found = None
        if found is not None:
            found.restore(core.hub.log, core.hub.history, core.now)
        core.epochs = 1000
        core.begin_epoch()
        return core


PUBLISH = st.tuples(st.just("publish"), st.sampled_from(NAMES), st.sampled_from([1, 1, 2, 5, 12]))
WAIT = st.tuples(st.just("wait"), st.sampled_from([0.1, 0.1, 0.1, 1.5, 3.0, 3.0, 25.0, 60.0, 200.0]))
WRITE = st.tuples(st.just("write"), st.sampled_from(["good"] * 9 + ["lost", "broken"]))
TEAR = st.tuples(st.just("tear"), st.floats(0, 1))
RARE = st.one_of(
    st.tuples(st.just("keep")),
    st.tuples(st.just("go_back")),
    st.tuples(st.just("evict"), st.floats(0, 0.999)),
    st.tuples(st.just("switch")),
    st.tuples(st.just("switch")),
    TEAR,
    st.tuples(st.just("begin_epoch")),
)
STEPS = st.lists(st.one_of(PUBLISH, PUBLISH, WAIT, WRITE, WRITE, WRITE), min_size=3, max_size=25)
SCHEDULE = st.lists(st.one_of(STEPS, STEPS, STEPS, RARE.map(lambda step: [step])), min_size=1, max_size=6).map(
    lambda parts: [step for part in parts for step in part]
)


def play(schedule: list[tuple[Any, ...]], bounds: tuple[int, int], channels: tuple[int, int]) -> World:
    """Play a schedule."""
    world = World(bounds, channels)
    for name, *arguments in schedule:
        getattr(world, name)(*arguments)
    return world


def judge(world: World, core: Core, cursor: str, names: list[str], query: str) -> None:
    """Let a client come back, and hold what it gets against what was published."""
    client = core.connect(query, cursor)
    blocks = [block for block in client.blocks() if block.type != "gateway.open"]
    core.hub.leave(client.reader, CloseReason.CLIENT)
    assert [block.type for block in blocks].count("gateway.gap") >= 1, "the end of all nodes is told"
    asked = parse_cursor(cursor)
    assert asked is not None
    for name in names:
        of_channel = [b for b in blocks if b.type != "gateway.gap" or name in covered(b, names)]
        judge_channel(world, asked.epoch, asked.offset, name, of_channel)


def covered(block: Block, names: list[str]) -> list[str]:
    """The channels that a gap is told on."""
    told = block.json()["channels"]
    return [name for name in names if any(name == t or (t.endswith("*") and name.startswith(t[:-1])) for t in told)]


def judge_channel(world: World, epoch: str, offset: int, name: str, blocks: list[Block]) -> None:
    """Of one channel: every event is delivered, or a gap is told before the next one, at or behind its place."""
    truth = world.truth
    published = truth[epoch][name]
    at = bisect_left(published, (offset + 1, ""))
    for block in blocks:
        place = parse_cursor(block.id)
        assert place is not None
        if block.type == "gateway.gap":
            if place.epoch != epoch:  # all that the client's epoch still had
                if place.epoch not in truth:
                    return
                epoch, at = place.epoch, 0
                published = truth[epoch][name]
            at = max(at, bisect_left(published, (place.offset + 1, "")))
        elif block.data in {data for _, data in published}:
            assert (place.offset, block.data) == published[at], f"after {published[:at]}"
            at += 1
    assert not [b for b in blocks if b.type != "gateway.gap" and place_of(b) not in truth], "an event of nowhere"
    raise AssertionError("the new epoch was not told")


def place_of(block: Block) -> str:
    """The epoch of a block."""
    place = parse_cursor(block.id)
    assert place is not None
    return place.epoch


def judge_all(world: World) -> None:
    """Let clients come back with all cursors."""
    core = world.cold()
    for cursor in world.cursors[:: 1 + len(world.cursors) // 40]:
        for name in NAMES:
            judge(world, core, cursor, [name], f"channel={name}")
        judge(world, core, cursor, ["a0", "b1"], "channel=a0&channel=b1")
        judge(world, core, cursor, ["a0", "a1", "a2"], "channel=a*")


def run(examples: int) -> None:
    """Judge so many schedules."""

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
    @given(SCHEDULE, st.sampled_from([(2, 2), (5, 2), (50, 5), (50, 50)]), st.sampled_from([(9, 9), (2, 9), (1, 3)]))
    def judged(schedule: list[tuple[Any, ...]], bounds: tuple[int, int], channels: tuple[int, int]) -> None:
        judge_all(play(schedule, bounds, channels))

    judged()


def test_what_is_delivered_and_told_is_what_was_published() -> None:
    """Whatever happened before."""
    run(int(os.environ.get("SSE_GATEWAY_TEST_SCHEDULES", "250")))


def no_losses(self: Mirror) -> None:
    """A writer that does not mark what the windows have lost."""
    self._history.touched = {}


def no_gone(self: Mirror, state: State | None, rows: Mapping[str, Row], order: int, now: float) -> bool:
    """A writer that takes over, and does not heed what the other has forgotten."""
    done = begin(self, state, rows, order, now)
    self._gone = [-1] * len(self._gone)
    return done


def no_floor(
    self: Mirror, window: Window, _floor: int, _batch: Batch, changed: dict[str, Row], **_is_own: bool
) -> None:
    """A writer that trims, and does not say so."""
    if (row := self._rows.get(window.name)) is not None:
        changed[window.name] = row


def no_skip_marks(self: Backlog, position: int, now: float) -> list[Event]:
    """A writer that skips what is too old, and does not mark it."""
    give_up(self, position, now)
    return []


def no_scan(self: Mirror, state: State | None, rows: Mapping[str, Row], order: int, now: float) -> bool:
    """A writer that takes over, and does not look at what was lost before."""
    done = begin(self, state, rows, order, now)
    self._losses.clear()
    return done


give_up, begin = Backlog.give_up, Mirror.begin

OVERFLOW = [("publish", "a0", 2), ("write", "good"), ("publish", "a0", 5), ("write", "good")]
SLOW = [
    ("publish", "a0", 12),
    ("wait", 3.0),
    ("write", "good"),
    ("wait", 3.0),
    *[("write", "good")] * 4,
    ("publish", "a0", 1),
]
SLOW += [("write", "good")]
CROWD = [("publish", "a0", 1), ("write", "good"), ("publish", "a1", 1), *[("write", "good")] * 3, ("switch",)]
CROWD += [("publish", "a0", 1), *[("write", "good")] * 3]
TAKEN = [("publish", "a0", 2), ("write", "lost"), ("publish", "a0", 5), ("write", "good")]


@pytest.mark.parametrize(
    ("schedule", "owner", "name", "fault"),
    [
        (OVERFLOW, Mirror, "_note_losses", no_losses),
        (OVERFLOW, Mirror, "_raise_floor", no_floor),
        (TAKEN, Mirror, "begin", no_scan),
        (CROWD, Mirror, "begin", no_gone),
        (SLOW, Backlog, "give_up", no_skip_marks),
    ],
)
def test_a_writer_that_leaves_out_a_mark_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
    schedule: list[tuple[Any, ...]],
    owner: type,
    name: str,
    fault: Callable[..., object],
) -> None:
    """Each safety is needed: without it there is a silent hole, or nothing is left."""
    bounds, channels = ((2, 2), (1, 9)) if schedule is not SLOW else ((50, 50), (9, 9))
    judge_all(play(schedule, bounds, channels))
    monkeypatch.setattr(owner, name, fault)
    with pytest.raises(AssertionError):
        judge_all(play(schedule, bounds, channels))


def test_all_that_was_stored_is_delivered() -> None:
    """Where nothing was lost, nothing but the end of all nodes is told."""
    world = World((50, 50), (9, 9))
    for name in NAMES:
        world.publish(name, 4)
        world.write("good")
        world.write("good")
    core = world.cold()
    client = core.connect("channel=a*&channel=b*", world.cursors[0])
    assert client.told() == [*(f"d{number}" for number in range(1, 21)), "source:None"]
