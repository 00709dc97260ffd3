from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sse_gateway.errors import StoreError
from sse_gateway.log import Verdict
from sse_gateway.reasons import Format
from sse_gateway.stored import BLOCK, Row, State, encode
from tests.support.core import Core, rule
from tests.support.keyspace import KEYS, SEAL, Keyspace
from tests.unit.test_mirror import EPOCH, changed, mirror_of, state_of, write


def stored(core: Core) -> Keyspace:
    """What a core stores."""
    store = Keyspace()
    write(mirror_of(core), core, store)
    return store


def cold(core: Core, store: Keyspace, *, after_s: float = 0.0) -> Core:
    """A node that starts when all are gone: what is stored, and a new epoch."""
    heir = Core(*core.rules.rules, is_begun=False)
    heir.now = core.now + after_s
    found = store.load(heir.now, rules=len(core.rules.rules))
    assert found is not None
    found.restore(heir.hub.log, heir.hub.history, heir.now)
    heir.epochs = 1000
    heir.begin_epoch()
    return heir


def put_state(store: Keyspace, state: State) -> None:
    """Store another state, well sealed."""
    key = KEYS.state(EPOCH)
    store.values[key] = SEAL.at(key).seal(b"", encode(state))


def put_row(store: Keyspace, name: str, row: Row) -> None:
    """Store another row, well sealed."""
    key = KEYS.channels(EPOCH)
    store.mapping(key)[name.encode()] = SEAL.at(key).seal(name.encode(), encode(row))


def test_events_keep_their_ids_and_everything_else() -> None:
    """Type, kind of data, data with CR, age and idempotency keys."""
    core = Core(rule("a*"), rule("j*", format_=Format.JSON))
    core.publish("a", "one\rtwo")
    core.publish("j", '{"data":{"x":1},"event":"t","id":"k1"}')
    core.tick(10)
    heir = cold(core, stored(core), after_s=5)
    for name in "aj":
        (before,), (after,) = (c.hub.history.windows[name].after(-1, 9) for c in (core, heir))
        for field in ("frame", "type", "is_text", "raw", "cursor", "key", "received_at"):
            assert getattr(after, field) == getattr(before, field)
        assert after.window is heir.hub.history.windows[name]
    heir.publish("j", '{"data":{"x":1},"event":"t","id":"k1"}')
    assert heir.hub.tally.duplicates == [0, 1]


def test_a_client_comes_back() -> None:
    """What is behind its cursor, one gap, and then live."""
    core = Core(rule())
    cursor = core.publish("a", "d1")
    core.publish("a", "d2")
    core.publish("b", "d3")
    heir = cold(core, stored(core))
    client = heir.connect("channel=a&channel=b", cursor)
    heir.publish("a", "d4")
    assert client.told() == ["d2", "d3", "source:None", "d4"]
    assert heir.connect("channel=b", core.cursor).told() == ["source:None"]


def test_a_cursor_beyond_what_was_stored_is_told_so() -> None:
    """Its owner has had what nobody here knows."""
    core = Core(rule())
    core.publish("a", "d1")
    store = stored(core)
    cursor = core.publish("a", "d2")
    assert cold(core, store).connect("channel=a", cursor).told() == ["epoch:None"]


def test_older_epochs_are_known_by_name() -> None:
    """A client from there gets all that is stored, behind a gap."""
    core = Core(rule())
    cursor = core.publish("a", "d1")
    core.begin_epoch()
    core.publish("a", "d2")
    core.begin_epoch()
    core.publish("a", "d3")
    heir = cold(core, stored(core))
    assert [epoch.name for epoch in heir.hub.log.epochs] == [*(f"epoch{n:07}" for n in (1, 2, 3, 1001))]
    assert heir.hub.log.locate(cursor)[0] is Verdict.STALE
    assert heir.connect("channel=a", cursor).told() == ["window:None", "d3", "source:None"]


def test_losses_are_told_where_they_lie() -> None:
    """To followers of a channel and of a prefix; nobody knows how many there were."""
    core = Core(rule(events=2))
    start = core.cursor
    core.publish("a", "d1", "d2", "d3", "d4")
    heir = cold(core, stored(core))
    for query in ("channel=a", "channel=a*"):
        assert heir.connect(query, start).told() == ["window:None", "d3", "d4", "source:None"]


def test_what_others_have_lost_is_told_once() -> None:
    """Channels that appeared after others had been forgotten share one mark, also for prefixes."""
    core, store = Core(rule(), channels=2), Keyspace()
    start, mirror = core.cursor, mirror_of(core)
    for names in ("ab", "cd"):
        for name in names:
            core.publish(name, f"of {name}")
        write(mirror, core, store)
    for name in "ab":
        core.publish(name, f"of {name} again")
    write(mirror, core, store)
    heir = cold(core, store)
    assert heir.connect("channel=a", start).told() == ["window:None", "of a again", "source:None"]
    told = heir.connect("channel=*", start).told()
    assert told == ["window:None", "of a again", "of b again", "source:None"]
    assert heir.connect("channel=c", start).told() == ["source:None"]


def test_what_has_aged_is_lost() -> None:
    """Ages go by the wall clock; one that was set back makes nothing younger than new."""
    core = Core(rule(age_s=60.0))
    start = core.cursor
    core.publish("a", "old")
    core.tick(30)
    core.publish("a", "new")
    store = stored(core)
    heir = cold(core, store, after_s=40)
    heir.tick(0)
    assert heir.connect("channel=a", start).told() == ["window:1", "new", "source:None"]
    assert cold(core, store, after_s=-500).hub.history.windows["a"].newest is not None


def test_a_channel_that_redis_has_evicted_is_lost() -> None:
    """All of it; or, if the writer went on, all up to there."""
    core, store = Core(rule()), Keyspace()
    start, mirror = core.cursor, mirror_of(core)
    core.publish("a", "d1")
    core.publish("b", "d2")
    write(mirror, core, store)
    store.values.pop(KEYS.window(EPOCH, "a"))
    found = store.load(core.now)
    assert found is not None
    assert (found.events, found.lost) == (1, 1)
    assert cold(core, store).connect("channel=a&channel=b", start).told() == ["d2", "source:None"]
    core.publish("a", "d3")
    write(mirror, core, store)
    told = cold(core, store).connect("channel=a&channel=b", start).told()
    assert told == ["window:None", "d2", "d3", "source:None"]


def test_of_a_ring_with_a_hole_the_rest_is_good() -> None:
    """Older cursors cannot be proved."""
    core, store = Core(rule()), Keyspace()
    old = core.publish("a", "d1")
    for number in range(BLOCK):
        core.put("b", f"{number}")
    young = core.publish("a", "d2")
    core.publish("a", "d3")
    store = stored(core)
    store.values.pop(KEYS.ring(EPOCH, 0))
    heir = cold(core, store)
    assert heir.hub.log.locate(old)[0] is Verdict.STALE
    assert heir.connect("channel=a", young).told() == ["d3", "source:None"]
    store.values.pop(KEYS.ring(EPOCH, 1))
    with pytest.raises(StoreError, match="hashes are missing"):
        store.load(core.now)


def flipped(value: bytes, at: int) -> bytes:
    """A value with another byte."""
    return value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]


def test_every_key_that_is_damaged_has_all_refused() -> None:
    """Whichever byte of whichever value; nothing is used by half."""
    core = Core(rule())
    core.publish("a", "d1", "d2")
    core.publish("b", "d3")
    store = stored(core)
    assert store.load(core.now) is not None
    for key, value in store.values.items():
        if key == KEYS.epochs:
            continue
        for at in (0, 1, 8, 9, -1):
            damaged = store.copy()
            if isinstance(value, bytes):
                damaged.values[key] = flipped(value, at)
            else:
                name, inner = next(iter(value.items()))
                mapping = damaged.values[key]
                assert isinstance(mapping, dict)
                if isinstance(inner, bytes):
                    damaged.mapping(key)[name] = flipped(inner, at)
                else:
                    damaged.scores(key)[flipped(name, at)] = damaged.scores(key).pop(name)
            with pytest.raises(StoreError):
                damaged.load(core.now)


def test_what_is_missing_has_all_refused() -> None:
    """A channel's row, an event in the middle, the newest event."""
    core = Core(rule())
    core.publish("a", "d1", "d2", "d3")
    store = stored(core)
    damaged = store.copy()
    damaged.mapping(KEYS.channels(EPOCH)).pop(b"a")
    with pytest.raises(StoreError, match="channels are missing"):
        damaged.load(core.now)
    members = [member for member, _ in store.members(KEYS.window(EPOCH, "a"))]
    for member, text in ((members[1], "an event is missing"), (members[2], "the newest event is missing")):
        damaged = store.copy()
        damaged.scores(KEYS.window(EPOCH, "a")).pop(member)
        with pytest.raises(StoreError, match=text):
            damaged.load(core.now)
    damaged = store.copy()
    damaged.scores(KEYS.window(EPOCH, "a")).pop(members[0])  # as if evicted, and written again
    assert damaged.load(core.now) is not None


@pytest.mark.parametrize(
    "fields",
    [
        {"gone": [-1, -1]},
        {"head": -1},
        {"first": 9},
        {"check": 1},
        {"head": 1},
        {"epoch": "epoch0000009"},
        {"channels": 2},
    ],
    ids=str,
)
def test_a_state_that_does_not_fit_is_refused(fields: dict[str, Any]) -> None:
    """Though it is well sealed."""
    core = Core(rule())
    core.publish("a", "d1", "d2")
    store = stored(core)
    put_state(store, changed(state_of(store), **fields))
    with pytest.raises(StoreError):
        store.load(core.now)


def test_a_channel_of_a_rule_that_is_none_is_refused() -> None:
    """Though it is well sealed."""
    core = Core(rule())
    core.publish("a", "d1")
    store = stored(core)
    put_row(store, "a", Row(7, -1, is_own=False, newest=1))
    with pytest.raises(StoreError):
        store.load(core.now)


def test_a_name_that_is_no_text_is_refused() -> None:
    """Though it is well sealed."""
    core = Core(rule())
    core.publish("a", "d1")
    store = stored(core)
    key = KEYS.channels(EPOCH)
    store.mapping(key)[b"\xff"] = SEAL.at(key).seal(b"\xff", encode(Row(0, -1, is_own=False, newest=1)))
    with pytest.raises(StoreError, match="name of a channel"):
        store.load(core.now)


def test_an_event_of_another_history_is_refused() -> None:
    """Its id is not what the ring says."""
    core, other = Core(rule()), Core(rule())
    core.publish("a", "d1", "d2")
    other.publish("a", "x1", "x2")
    store, foreign = stored(core), stored(other)
    key = KEYS.window(EPOCH, "a")
    store.values[key] = foreign.values[key]
    with pytest.raises(StoreError, match="the ring does not know"):
        store.load(core.now)


def test_a_ring_that_is_not_whole_is_refused() -> None:
    """Though it is well sealed."""
    core = Core(rule())
    core.publish("a", "d1", "d2")
    for body in (b"", b"1234567"):
        store, key = stored(core), KEYS.ring(EPOCH, 0)
        store.values[key] = SEAL.at(key).seal(b"", body)
        with pytest.raises(StoreError, match="not whole"):
            store.load(core.now)


def test_memory_is_bounded() -> None:
    """What is larger is refused."""
    core = Core(rule())
    core.publish("a", "d1" * 100, "d2" * 100)
    store = stored(core)
    assert store.load(core.now, max_bytes=1200) is not None
    with pytest.raises(StoreError, match="too large"):
        store.load(core.now, max_bytes=500)


def test_what_lies_below_the_floor_is_not_used() -> None:
    """It is lost, trimmed or not."""
    core = Core(rule())
    start = core.cursor
    core.publish("a", "d1", "d2", "d3")
    store = stored(core)
    put_row(store, "a", Row(0, 2, is_own=True, newest=3))
    assert cold(core, store).connect("channel=a", start).told() == ["window:None", "d3", "source:None"]


def test_bounds_of_the_node_that_starts_apply() -> None:
    """What does not fit is lost, and told."""
    core = Core(rule())
    start = core.cursor
    core.publish("a", "d1", "d2", "d3")
    store = stored(core)
    heir = cold(Core(replace(core.rules.rules[0], window=replace(core.rules.rules[0].window, max_events=1))), store)
    assert heir.connect("channel=a", start).told() == ["window:2", "d3", "source:None"]


def test_a_loss_of_nobody_lies_where_nothing_else_does() -> None:
    """Where a channel has an event, no forgotten one can have lost one: the loss of those is told before it."""
    core = Core(rule())
    core.publish("c", "d1")
    start = core.cursor
    core.publish("a", "d2")
    core.publish("b", "d3")
    core.publish("c", "d4")
    store = stored(core)
    put_row(store, "c", Row(0, 3, is_own=False, newest=4))
    heir = cold(core, store)
    assert [timeline.abandoned for timeline in heir.hub.history.timelines] == [{1}]
    assert heir.connect("channel=c", start).told() == ["window:None", "d4", "source:None"]
    assert heir.connect("channel=*", start).told() == ["d2", "d3", "d4", "source:None"]
