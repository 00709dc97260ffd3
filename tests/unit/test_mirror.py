from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sse_gateway import mirror as mirror_module
from sse_gateway.mirror import BATCH_OFFSETS, MARGIN_S, MAX_BREAKS, Mirror
from sse_gateway.stored import BLOCK, Row, State
from tests.support.core import Core, rule
from tests.support.keyspace import KEYS, SEAL, Keyspace

if TYPE_CHECKING:
    from sse_gateway.mirror import Batch

EPOCH = "epoch0000001"


def mirror_of(core: Core, *, node: str = "n0de00000001") -> Mirror:
    """The mirror of a core, with nothing stored."""
    hub = core.hub
    return Mirror(KEYS, SEAL, hub.log, hub.history, core.rules.rules, node=node, max_lag_s=2.0)


def write(mirror: Mirror, core: Core, store: Keyspace) -> list[Batch]:
    """Write all there is."""
    if not mirror.is_valid:
        assert store.begin(mirror, core)
    batches = []
    while (batch := mirror.batch(core.now, core.now)) is not None:
        rows = len(store.mapping(KEYS.channels(mirror.epoch)))
        assert store.transact(batch.commands, batch.expected)
        batches.append(batch)
        assert rows + batch.created >= len(store.mapping(KEYS.channels(mirror.epoch)))
        if not batch.has_more:
            break
    return batches


def names(batch: Batch) -> list[str]:
    """The names of its commands."""
    return [command[0].decode() for command in batch.commands]


def state_of(store: Keyspace, epoch: str = EPOCH) -> State:
    """What is said to be stored."""
    state, _ = store.known(epoch)
    assert state is not None
    return state


def rows_of(store: Keyspace, epoch: str = EPOCH) -> dict[str, Row]:
    """The channels that are stored."""
    return store.known(epoch)[1]


def offsets(store: Keyspace, name: str) -> list[int]:
    """The events of a channel that are stored."""
    return [int(score) for _, score in store.members(KEYS.window(EPOCH, name))]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of two events, or two channels."""
    monkeypatch.setattr(mirror_module, "BATCH_EVENTS", 2)
    monkeypatch.setattr(mirror_module, "BATCH_ROWS", 2)


def test_what_was_published_is_stored() -> None:
    """Events by channel, rows, ring and state, in one batch; nothing new, no batch."""
    core, store = Core(rule()), Keyspace()
    core.publish("a", "d1", "d2")
    core.publish("b", "d3")
    mirror = mirror_of(core)
    assert not mirror.is_valid
    (batch,) = write(mirror, core, store)
    assert (batch.events, batch.created, mirror.head) == (3, 2, 3)
    assert (offsets(store, "a"), offsets(store, "b")) == ([1, 2], [3])
    assert rows_of(store) == {"a": row(-1, 2), "b": row(-1, 3)}
    state = state_of(store)
    assert (state.head, state.first, state.channels, state.gone, state.breaks) == (3, 0, 2, [-1], [])
    assert (state.writer, state.serial) == ("n0de00000001", 1)
    assert batch.state == store.string(KEYS.state(EPOCH))
    assert mirror.batch(core.now, core.now) is None
    assert store.newest() == EPOCH


def row(floor: int, newest: int, *, is_own: bool = False, index: int = 0) -> Row:
    """A channel's row."""
    return Row(index, floor, is_own, newest)


def test_later_batches_add_to_it() -> None:
    """Redis has to answer that channel and index were there, and the block as long as it was."""
    core, store, mirror = (core := Core(rule())), Keyspace(), mirror_of(core)
    core.publish("a", "d1")
    write(mirror, core, store)
    core.publish("a", "d2")
    (batch,) = write(mirror, core, store)
    assert names(batch)[:2] == ["ZADD", "PEXPIRE"]
    answers = {names(batch)[index]: answer for index, answer in batch.expected.items()}
    assert answers == {"HSET": 0, "SETRANGE": 9 + 8 * 3, "PEXPIRE": 1}
    assert offsets(store, "a") == [1, 2]


def test_everything_lives_longer_than_it_is_needed() -> None:
    """Windows as long as their rule says, all else as long as the longest, and a while."""
    core, store = Core(rule("a*", age_s=10.0), rule("b*", age_s=100.0)), Keyspace()
    core.publish("a", "d1")
    core.publish("b", "d2")
    mirror = mirror_of(core)
    write(mirror, core, store)
    assert store.expiry.pop(KEYS.window(EPOCH, "a")) == 10.0 + MARGIN_S
    assert set(store.expiry) == set(store.values) - {KEYS.window(EPOCH, "a")}
    assert set(store.expiry.values()) == {100.0 + MARGIN_S}
    core.tick(MARGIN_S / 3)
    store.wait(core.now)
    (batch,) = write(mirror, core, store)
    assert batch.events == 0
    assert store.expiry[KEYS.ring(EPOCH, 0)] == core.now + 100.0 + MARGIN_S


def test_while_there_is_nothing_to_write_the_index_is_kept_and_looked_for() -> None:
    """Redis may evict a key of a log that is silent: the answer says so, and it is written anew before it is needed."""
    core, store = Core(rule()), Keyspace()
    mirror = mirror_of(core)
    write(mirror, core, store)
    assert store.transact(mirror.keep().commands, mirror.keep().expected)  # no channel, so no key for them
    core.publish("a", "d1")
    write(mirror, core, store)
    store.wait(mirror_ends := store.expiry[KEYS.state(EPOCH)] - 1.0)
    assert store.transact(mirror.keep().commands, mirror.keep().expected)
    index = (KEYS.state(EPOCH), KEYS.channels(EPOCH), KEYS.epochs)
    assert all(store.expiry[key] > mirror_ends + MARGIN_S for key in index)
    for key in index:
        torn = store.copy()
        torn.values.pop(key)
        assert not torn.transact(mirror.keep().commands, mirror.keep().expected)


def test_what_a_window_loses_is_trimmed() -> None:
    """The floor says up to where; it is the channel's own loss."""
    core, store = (core := Core(rule(events=3))), Keyspace()
    mirror = mirror_of(core)
    core.publish("a", "d1", "d2", "d3")
    write(mirror, core, store)
    core.publish("a", "d4", "d5")
    write(mirror, core, store)
    assert offsets(store, "a") == [3, 4, 5]
    assert rows_of(store) == {"a": row(2, 5, is_own=True)}
    assert mirror.skipped == 0
    core.tick(400)
    write(mirror, core, store)
    assert (offsets(store, "a"), rows_of(store)["a"].floor) == ([], 5)
    core.publish("a", "d6")
    core.tick(400)
    (batch,) = write(mirror, core, store)
    assert (rows_of(store)["a"].floor, "ZREMRANGEBYSCORE" in names(batch)) == (6, False)


def test_what_a_window_loses_before_it_is_written_is_marked() -> None:
    """And counted, once."""
    core, store = (core := Core(rule(events=2))), Keyspace()
    mirror = mirror_of(core)
    write(mirror, core, store)
    core.publish("a", "d1", "d2", "d3", "d4")
    write(mirror, core, store)
    assert (offsets(store, "a"), rows_of(store)) == ([3, 4], {"a": row(2, 4, is_own=True)})
    assert mirror.skipped == 2
    core.publish("a", "d5")
    write(mirror, core, store)
    assert mirror.skipped == 2


@pytest.mark.usefixtures("small")
def test_a_batch_is_bounded_and_losses_come_first() -> None:
    """The head does not move before all of them are marked."""
    core, store = (core := Core(rule(events=1))), Keyspace()
    mirror = mirror_of(core)
    write(mirror, core, store)
    for name in "abc":
        core.publish(name, "lost", "held")
    batches = write(mirror, core, store)
    assert [(batch.events, batch.has_more) for batch in batches] == [(0, True), (2, True), (1, False)]
    assert state_of(store).head == 6
    assert {name: r.floor for name, r in rows_of(store).items()} == {"a": 1, "b": 3, "c": 5}


def test_a_batch_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A larger event goes alone."""
    monkeypatch.setattr(mirror_module, "BATCH_BYTES", 100)
    core, store = (core := Core(rule())), Keyspace()
    core.publish("a", "x" * 200, "y" * 200, "z")
    assert [batch.events for batch in write(mirror_of(core), core, store)] == [1, 1, 1]


def test_a_batch_is_bounded_in_offsets() -> None:
    """Where hardly anything is held, the ring is all there is to write."""
    core, store = (core := Core(rule("a*"))), Keyspace()
    for number in range(BATCH_OFFSETS + 10):
        core.hub.log.append(b"a", b"%d" % number)
    core.publish("a", "held")
    first, second = write(mirror_of(core), core, store)
    assert (first.events, second.events) == (0, 1)
    assert names(first).count("SET") == BATCH_OFFSETS // BLOCK + 1


def test_who_takes_over_goes_on() -> None:
    """It writes what the other has not, and marks what neither has."""
    core, store = Core(rule(events=2)), Keyspace()
    core.publish("a", "d1", "d2")
    write(mirror_of(core), core, store)
    core.publish("a", "d3", "d4", "d5")
    core.publish("b", "d6")
    heir = mirror_of(core, node="n0de00000002")
    write(heir, core, store)
    assert (offsets(store, "a"), offsets(store, "b")) == ([4, 5], [6])
    assert rows_of(store) == {"a": row(3, 5, is_own=True), "b": row(-1, 6)}
    assert state_of(store).writer == "n0de00000002"


def test_who_holds_more_raises_no_floor() -> None:
    """What the other has trimmed is gone, and stays marked."""
    small, large, store = Core(rule(events=1)), Core(rule(events=3)), Keyspace()
    for core in (small, large):
        core.publish("a", "d1", "d2", "d3")
    write(mirror_of(small), small, store)
    mirror = mirror_of(large)
    write(mirror, large, store)
    large.publish("a", "d4")
    write(mirror, large, store)
    assert (offsets(store, "a"), rows_of(store)["a"].floor) == ([3, 4], 2)


def test_who_knows_less_than_is_stored_waits() -> None:
    """It is behind, and will get there."""
    core, store = Core(rule()), Keyspace()
    core.publish("a", "d1", "d2")
    write(mirror_of(core), core, store)
    slow = Core(rule())
    slow.publish("a", "d1")
    mirror = mirror_of(slow)
    assert not store.begin(mirror, slow)
    assert not mirror.is_valid
    assert slow.hub.history.touched is None
    slow.publish("a", "d2")
    assert store.begin(mirror, slow)


def test_what_does_not_fit_is_written_anew() -> None:
    """Rows that are missing, other rules, or another history of the same name: all from memory."""
    core, store = Core(rule()), Keyspace()
    core.publish("a", "d1")
    core.publish("b", "d2")
    write(mirror_of(core), core, store)
    for damage in (lost_row, other_rules, other_history):
        damaged = store.copy()
        state, rows = damage(state_of(damaged), rows_of(damaged))
        mirror = mirror_of(core)
        assert mirror.begin(state, rows, 1, core.now)
        assert mirror.head == -1
        batch = mirror.batch(core.now, core.now)
        assert batch is not None
        assert names(batch)[0] == "DEL"
        damaged.transact(batch.commands)
        assert (offsets(damaged, "a"), offsets(damaged, "b")) == ([1], [2])
        assert damaged.load(core.now) is not None


def lost_row(state: State, rows: dict[str, Row]) -> tuple[State, dict[str, Row]]:
    """Redis has evicted something."""
    return state, {"a": rows["a"]}


def other_rules(state: State, rows: dict[str, Row]) -> tuple[State, dict[str, Row]]:
    """Not ours."""
    return changed(state, gone=[-1, -1]), rows


def other_history(state: State, rows: dict[str, Row]) -> tuple[State, dict[str, Row]]:
    """Something else was counted."""
    return changed(state, check=1), rows


def changed(state: State, **fields: Any) -> State:
    """A state with other values."""
    return State(**{name: getattr(state, name) for name in state.__struct_fields__} | fields)


def test_a_channel_that_is_forgotten_is_removed() -> None:
    """If it comes back, everything of it up to there is lost; the loss is not its own."""
    core, store = Core(rule(), channels=1), Keyspace()
    mirror = mirror_of(core)
    core.publish("a", "d1")
    write(mirror, core, store)
    core.publish("b", "d2")
    write(mirror, core, store)
    assert (rows_of(store), offsets(store, "a")) == ({"b": row(-1, 2)}, [])
    assert state_of(store).gone == [1]
    core.publish("a", "d3")
    write(mirror, core, store)
    assert rows_of(store) == {"a": row(1, 3)}
    assert state_of(store).gone == [2]


def test_a_channel_that_was_never_stored_is_forgotten_without_a_trace() -> None:
    """It had nothing after its loss, and the end of the epoch tells all channels."""
    core, store = Core(rule(), channels=1), Keyspace()
    mirror = mirror_of(core)
    write(mirror, core, store)
    core.publish("a", "d1")
    core.publish("b", "d2")
    (batch,) = write(mirror, core, store)
    assert "HDEL" not in names(batch)
    assert rows_of(store).keys() == {"b"}


def test_who_takes_over_removes_channels_that_it_does_not_know() -> None:
    """And a channel that it knows, but the other had removed, begins where it was."""
    wide, narrow, store = Core(rule()), Core(rule(), channels=1), Keyspace()
    for core in (wide, narrow):
        core.publish("a", "d1")
    write(mirror_of(wide), wide, store)
    for core in (wide, narrow):
        core.publish("b", "d2")
    write(mirror_of(narrow), narrow, store)
    assert rows_of(store).keys() == {"b"}
    for core in (wide, narrow):
        core.publish("a", "d3")
    write(mirror_of(wide), wide, store)
    assert rows_of(store)["a"] == row(1, 3)


def test_losses_of_older_epochs_are_none_of_this_one() -> None:
    """Neither they nor its events are stored."""
    core, store = Core(rule(events=1)), Keyspace()
    core.publish("a", "d1", "d2")
    core.begin_epoch()
    mirror = mirror_of(core)
    write(mirror, core, store)
    assert rows_of(store, "epoch0000002") == {}
    core.publish("a", "d3")
    write(mirror, core, store)
    assert rows_of(store, "epoch0000002") == {"a": row(-1, 1)}


def test_older_epochs_are_remembered_by_name() -> None:
    """With their lengths, the newest of them."""
    core, store = Core(rule()), Keyspace()
    for _ in range(MAX_BREAKS + 3):
        core.publish("a", "d")
        core.begin_epoch()
    write(mirror_of(core), core, store)
    state = state_of(store, core.hub.log.epoch.name)
    assert len(state.breaks) == MAX_BREAKS
    assert state.breaks[-1][0] == f"epoch{MAX_BREAKS + 3:07}"
    assert {length for _, _, length in state.breaks} == {2}


def test_a_model_is_void_when_the_log_is_replaced() -> None:
    """By another epoch, by a peer's windows, or because too much has changed to be noted."""
    core, store = Core(rule(), channels=2), Keyspace()
    mirror = mirror_of(core)
    write(mirror, core, store)
    core.begin_epoch()
    assert not mirror.is_valid
    write(mirror, core, store)
    peer = Core(rule())
    core.take_over(peer)
    assert not mirror.is_valid
    write(mirror, core, store)
    for number in range(10):
        core.publish(f"c{number}", "d")
    assert not mirror.is_valid
    write(mirror, core, store)
    mirror.drop()
    assert not mirror.is_valid
    assert core.hub.history.touched is None


@pytest.mark.usefixtures("small")
def test_what_cannot_be_written_in_time_is_skipped_and_marked() -> None:
    """Writing is too slow, and gets slower: what is too old is marked first, then passed over."""
    core, store = Core(rule()), Keyspace()
    mirror = mirror_of(core)
    for number in range(8):
        core.publish("a", f"d{number}")
        core.tick(1)
    assert store.begin(mirror, core)
    first = mirror.batch(core.now, core.now)  # eight seconds behind, since now
    assert first is not None
    store.transact(first.commands)
    for number in range(8, 16):
        core.publish("a", f"d{number}")
        core.tick(1)
    second = mirror.batch(core.now, core.now)  # it has got worse
    assert second is not None
    assert (second.events, second.has_more) == (2, False)
    store.transact(second.commands)
    assert mirror.skipped == 12
    write(mirror, core, store)
    assert offsets(store, "a") == [15, 16]
    assert rows_of(store)["a"] == row(14, 16, is_own=True)
