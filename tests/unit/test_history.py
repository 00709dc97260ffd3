from __future__ import annotations

from typing import TYPE_CHECKING

from sse_gateway.cut import Cut
from sse_gateway.history import EVENT_BYTES, KEY_BYTES, LOST_BYTES, MAX_KEYS, REMEMBER_S, History
from sse_gateway.log import Log
from sse_gateway.reasons import GapReason
from sse_gateway.snapshot import Held, Snapshot
from sse_gateway.timeline import Mark
from sse_gateway.window import MAX_LOST, Event, Window
from tests.support.core import rule

if TYPE_CHECKING:
    from collections.abc import Callable

    from sse_gateway.channels import Rule

FRAME = 100  # bytes


class Clock:
    """A history and the log that fills it, one event per second."""

    def __init__(self, *rules: Rule, channels: int = 1000, memory: int = 10_000_000) -> None:
        self.rules = rules or (rule(),)
        self.history = History(self.rules, channels, memory)
        self.head = 0

    def append(self, name: str, count: int = 1, *, raw: bytes | None = None, by: int = 0) -> Window:
        """Hold events of 100 bytes in a channel of the rule at index `by`."""
        for _ in range(count):
            self.head += 1
            window = self.history.window(name, self.rules[by], self.head)
            event = Event(self.head, window, b"x" * FRAME, self.head, raw=raw)
            self.history.append(event, window, self.head)
        return self.history.windows[name]

    def attach(self, name: str) -> Window:
        """Give a channel of the first rule a reader."""
        return self.history.attach(name, self.rules[0], self.head)

    def held(self, by: int = 0) -> list[int]:
        """Places of the events under a rule."""
        return [entry.position for entry in self.history.timeline(self.rules[by]).after(-1) if isinstance(entry, Event)]

    def marked(self, by: int = 0) -> list[int]:
        """Places of the newest losses under a rule."""
        return [entry.position for entry in self.history.timeline(self.rules[by]).after(-1) if isinstance(entry, Mark)]

    def install(
        self, *channels: Held, marks: tuple[int, ...] = (-1,), abandoned: tuple[list[int], ...] = ([],)
    ) -> None:
        """Take over what a peer has; under further rules it has lost nothing."""
        more = len(self.rules) - 1
        self.history.install(channels, [*marks, *[-1] * more][: more + 1], [*abandoned, *[[]] * more], self.head)

    def memory(self) -> int:
        """What should be charged, counted from scratch."""
        windows = list(self.history.windows.values())
        events = sum(len(window) for window in windows) * (EVENT_BYTES + FRAME)
        keys = sum(KEY_BYTES + len(key) for window in windows for key in window.keys)
        return events + keys + LOST_BYTES * sum(len(window.lost) for window in windows)


def held(
    name: str,
    *positions: int,
    lost: tuple[int, ...] = (),
    newest_loss: int = -1,
    forgotten: int = -1,
    keys: tuple[str, ...] = (),
    used_at: float | None = None,
    by: int = 0,
) -> Held:
    """A channel of a peer, one event per second."""
    events = [Event(position, None, b"x" * FRAME, position) for position in positions]
    used_at = max(positions, default=0) if used_at is None else used_at
    return Held(name, by, used_at, max(newest_loss, *lost, -1), forgotten, list(lost), list(keys), events)


def cut_of(history: History) -> Cut:
    """A snapshot of a history, being taken."""
    log = Log(b"key")
    log.begin_epoch("epoch0000001", GapReason.SOURCE)
    return Cut(b"key", "token", log, history, "-", [], 0.0)


def read(cut: Cut) -> dict[str, tuple[list[int], list[str]]]:
    """A snapshot's channels, with the places of their events and their keys."""
    snapshot = Snapshot(b"key", "token", 1, 0.0, max_bytes=1 << 20)
    for block in cut:
        snapshot.add(block)
    return {found.name: ([event.position for event in found.events], found.keys) for found in snapshot.held(0)}


def test_window_is_found_again() -> None:
    """A channel has one window."""
    clock = Clock()

    assert clock.append("a") is clock.append("a")
    assert clock.append("b") is not clock.append("a")
    assert list(clock.history.windows) == ["a", "b"]


def test_counts() -> None:
    """Events, their bytes, and the memory charged for them, raw data included."""
    clock = Clock()

    clock.append("a")
    clock.append("b", raw=b"y" * 7)

    assert (clock.history.events, clock.history.bytes) == (2, 2 * FRAME)
    assert clock.history.memory == 2 * (EVENT_BYTES + FRAME) + 7
    assert clock.held() == [1, 2]


def test_window_bounds() -> None:
    """What no longer fits a window is lost, and stays as a mark where it was (I2)."""
    clock = Clock(rule(events=2))

    window = clock.append("a", 5)

    assert clock.held() == [4, 5]
    assert clock.marked() == [3]
    assert (window.newest_loss, window.missed_after(0)) == (3, 3)
    assert (clock.history.newest_losses, clock.history.marks) == ([3], [-1])
    assert clock.history.serial == window.loss_serial == 3
    assert clock.history.memory == 2 * (EVENT_BYTES + FRAME) + 3 * LOST_BYTES


def test_lost_events_keep_their_frames() -> None:
    """A pass or an outbox that holds an event can still send it after the window has lost it (I2)."""
    clock = Clock(rule(events=1))
    window = clock.append("a")
    event = window.newest
    assert event is not None

    clock.append("a", 3)

    assert event.frame == b"x" * FRAME


def test_age_on_append() -> None:
    """An event that has reached its age is lost when the next one comes, if no tick was faster."""
    clock = Clock(rule(age_s=3))

    clock.append("a", 5)

    assert clock.held() == [3, 4, 5]


def test_remembered_losses() -> None:
    """A channel remembers its newest losses one by one; beyond them the count is unknown."""
    clock = Clock(rule(events=1))

    window = clock.append("a", MAX_LOST + 3)

    assert (window.missed_after(1), window.missed_after(2)) == (None, MAX_LOST)
    assert clock.history.memory == EVENT_BYTES + FRAME + MAX_LOST * LOST_BYTES


def test_expire() -> None:
    """Events of every rule are lost at their age, and not before."""
    clock = Clock(rule("a*", 0, age_s=10), rule("b*", 1, age_s=20))
    clock.append("a", 2)
    clock.append("b", 2, by=1)

    clock.history.expire(11.9)
    first = clock.held(0), clock.held(1)
    clock.history.expire(23)

    assert first == ([2], [3, 4])
    assert (clock.held(0), clock.held(1)) == ([], [4])
    assert clock.history.newest_losses == [2, 3]


def test_oldest() -> None:
    """The oldest event is the oldest under any rule."""
    clock = Clock(rule("a*", 0, events=1), rule("b*", 1))
    nothing = clock.history.oldest()
    clock.append("a")
    clock.append("b", by=1)
    clock.append("a")

    oldest = clock.history.oldest()

    assert nothing is None
    assert oldest is not None
    assert oldest.position == 2


def test_keys() -> None:
    """A key is new once among the last keyed events of its channel, and charged while it is known."""
    clock = Clock()
    window, other = clock.append("a"), clock.append("b")
    before = clock.history.memory

    assert clock.history.remember_key(window, "k")
    assert not clock.history.remember_key(window, "k")
    assert clock.history.remember_key(other, "k")
    assert clock.history.memory == before + 2 * (KEY_BYTES + 1)


def test_oldest_key_is_forgotten() -> None:
    """Beyond the keys remembered the oldest is forgotten, with what it was charged."""
    clock = Clock()
    window = clock.append("a")
    before = clock.history.memory
    clock.history.remember_key(window, "a long key")

    for number in range(MAX_KEYS):
        assert clock.history.remember_key(window, f"{number:04}")

    assert clock.history.memory == before + MAX_KEYS * (KEY_BYTES + 4)
    assert not clock.history.remember_key(window, "0000")
    assert clock.history.remember_key(window, "a long key")
    assert clock.history.remember_key(window, "0000")


def test_memory_losses_go_first() -> None:
    """At the memory limit remembered losses go before any event does, but a channel's newest stays (I2)."""
    clock = Clock(rule(events=10), memory=10 * (EVENT_BYTES + FRAME) + 5 * LOST_BYTES)

    window = clock.append("a", 16)

    assert len(clock.held()) == 10
    assert (window.missed_after(0), window.missed_after(5), window.missed_after(6)) == (None, 1, 0)
    assert clock.history.evicted_for_memory == 0


def test_memory_oldest_event_goes() -> None:
    """At the memory limit the oldest event of all channels and rules goes, counted, and is told as lost (I2)."""
    clock = Clock(rule("a*", 0), rule("b*", 1), memory=3 * (EVENT_BYTES + FRAME))
    clock.append("a")
    clock.append("b", 1, by=1)

    window = clock.append("a", 2)

    assert (clock.held(0), clock.held(1)) == ([3, 4], [])
    assert clock.history.evicted_for_memory == 2
    assert clock.history.memory <= 3 * (EVENT_BYTES + FRAME)
    assert window.newest_loss == 1
    assert clock.history.windows["b"].newest_loss == 2


def test_memory_keys_go_with_the_last_event() -> None:
    """Keys of a channel that holds no event go before an event of another channel; others stay."""
    clock = Clock(rule(events=5, age_s=100), memory=5 * (EVENT_BYTES + FRAME) + 300)
    idle = clock.append("idle")
    clock.history.remember_key(idle, "k")
    clock.head += 100
    clock.history.expire(clock.head + 2)
    clock.history.attach("idle", clock.rules[0], clock.head)

    busy = clock.append("busy", 4)
    clock.history.remember_key(busy, "k")
    before = dict(idle.keys)
    clock.append("busy")

    assert (before, idle.keys, busy.keys) == ({"k": None}, {"k": None}, {"k": None})
    clock.history.remember_key(busy, "another")
    clock.append("busy")
    assert (idle.keys, busy.keys) == ({}, {"k": None, "another": None})
    assert len(busy) == 5
    assert clock.history.evicted_for_memory == 0


def test_memory_too_small_for_anything() -> None:
    """A limit below a single event leaves no event and no key, and everything is told as lost (I2, I5)."""
    clock = Clock(memory=10)
    window = clock.history.window("a", clock.rules[0], 0)
    clock.history.remember_key(window, "k")

    clock.append("a", 3)

    assert (len(window), window.keys, window.newest_loss) == (0, {}, 3)
    assert clock.history.memory == LOST_BYTES


def test_memory_that_nothing_can_free() -> None:
    """Each channel's newest loss stays even beyond the limit: it is bounded by the number of channels."""
    clock = Clock(memory=10)

    for name in "abc":
        clock.append(name)

    assert clock.history.memory == 3 * LOST_BYTES
    assert clock.history.events == 0


def test_channel_limit() -> None:
    """At the limit the least recently used channel is forgotten, and its rule remembers its loss (I2)."""
    clock = Clock(rule("a*", 0), rule("b*", 1), channels=2)
    clock.append("a1", 2)
    clock.append("b1", by=1)
    clock.append("a1")

    clock.append("a2")

    assert list(clock.history.windows) == ["a1", "a2"]
    assert (clock.history.marks, clock.history.newest_losses) == ([-1, 3], [-1, 3])
    assert clock.history.forgotten_channels == 1
    assert (clock.held(1), clock.marked(1)) == ([], [3])
    assert clock.history.memory == 4 * (EVENT_BYTES + FRAME)


def test_channel_that_appears_again() -> None:
    """A channel that appears starts with the highest loss its rule has forgotten (I2)."""
    clock = Clock(rule(), channels=1)
    clock.append("a", 3)
    clock.append("b", 2)

    window = clock.append("a")

    assert (window.newest_loss, window.missed_after(2), window.missed_after(3)) == (3, None, 0)
    assert [event.position for event in window.after(-1, 10)] == [6]
    assert clock.history.marks == [5]
    assert clock.append("c").newest_loss == 5


def test_channels_with_readers_stay() -> None:
    """A channel with readers is not forgotten; if all have some, there are more channels than the limit."""
    clock = Clock(channels=1)

    windows = [clock.attach("a"), clock.attach("b")]
    clock.append("c")
    clock.append("d")

    assert [clock.history.windows.get(name) for name in "ab"] == windows
    assert list(clock.history.windows) == ["a", "b", "d"]


def test_attach_keeps_a_channel_at_once() -> None:
    """A channel that was about to be forgotten stays once it is attached, whatever is attached after it."""
    clock = Clock(channels=2)
    old = clock.append("old")
    clock.append("newer")

    windows = [clock.attach("old"), clock.attach("x"), clock.attach("y")]

    assert windows[0] is old
    assert list(clock.history.windows) == ["old", "x", "y"]


def test_detach() -> None:
    """A channel without readers becomes the most recently used of those that may be forgotten."""
    clock = Clock(channels=2)
    window = clock.append("a")
    clock.attach("a")
    clock.append("b")

    clock.history.detach(window, clock.head)
    clock.append("c")

    assert list(clock.history.windows) == ["a", "c"]


def test_detach_unused() -> None:
    """A channel that only ever had readers is forgotten with the last of them."""
    clock = Clock()
    used, unused = clock.append("used"), clock.attach("unused")
    clock.attach("used")

    clock.history.detach(used, 1)
    clock.history.detach(unused, 1)

    assert list(clock.history.windows) == ["used"]


def test_detach_with_losses() -> None:
    """A channel whose losses are remembered keeps them, though its rule has forgotten later ones."""
    clock = Clock(rule(events=1, age_s=1), channels=2)
    window = clock.append("a", 3)
    clock.attach("a")
    clock.append("b", 2)
    clock.append("c")
    clock.append("d")
    clock.history.expire(1000)

    clock.history.detach(window, 1000)

    assert clock.history.marks[0] > window.newest_loss
    assert (clock.history.windows["a"], window.missed_after(0)) == (window, 3)


def test_expired_channel_is_forgotten() -> None:
    """A channel without events and readers is forgotten after a while, its loss and keys with it (I2, I5)."""
    clock = Clock(rule(age_s=100))
    window = clock.append("a")
    clock.history.remember_key(window, "k")

    clock.history.expire(101)
    emptied = len(window), list(clock.history.windows)
    clock.history.expire(200)
    remembered = list(clock.history.windows)
    clock.history.expire(201)

    assert emptied == (0, ["a"])
    assert remembered == ["a"]
    assert clock.history.windows == {}
    assert (clock.history.marks, clock.history.memory) == ([1], 0)


def test_short_ages_are_remembered_longer() -> None:
    """A channel of short-lived events is remembered for at least a minute."""
    clock = Clock(rule(age_s=1))
    clock.append("a")

    clock.history.expire(REMEMBER_S + 0.9)
    remembered = list(clock.history.windows)
    clock.history.expire(REMEMBER_S + 1)

    assert remembered == ["a"]
    assert clock.history.windows == {}


def test_channel_with_readers_does_not_expire() -> None:
    """A channel with readers is remembered, and used again when its events come."""
    clock = Clock(rule(age_s=1))
    window = clock.append("a")
    clock.attach("a")

    clock.history.expire(1000)

    assert list(clock.history.windows) == ["a"]
    assert clock.append("a") is window
    assert window.newest_loss == 1


def test_channels_are_shown_before_they_change() -> None:
    """Whatever happens to a channel, a snapshot that is being taken has it as it was before (rule 4)."""

    def changed(change: Callable[[Clock, Window], object]) -> dict[str, tuple[list[int], list[str]]]:
        clock = Clock(rule(events=2, age_s=10))
        window = clock.append("a", 2)
        clock.history.remember_key(window, "k")
        cut = cut_of(clock.history)
        change(clock, window)
        return read(cut)

    changes: list[Callable[[Clock, Window], object]] = [
        lambda clock, _: clock.append("a"),
        lambda clock, window: clock.history.remember_key(window, "another"),
        lambda clock, _: clock.history.expire(11.0),
        lambda clock, _: clock.history.expire(1000.0),
        lambda clock, _: clock.install(held("a", 7, keys=("another",))),
        lambda clock, _: clock.install(held("a", lost=(7,))),
        lambda clock, _: clock.install(marks=(7,)),
    ]
    assert [changed(change) for change in changes] == [{"a": ([1, 2], ["k"])}] * len(changes)


def test_an_empty_channel_is_shown_before_it_loses_its_keys() -> None:
    """A channel without events is shown before its losses or keys are forgotten, too (rule 4)."""
    clock = Clock(rule(age_s=10))
    window = clock.append("a")
    clock.history.remember_key(window, "k")
    clock.history.expire(11.0)
    cut = cut_of(clock.history)

    clock.history.expire(1000.0)

    assert clock.history.windows == {}
    assert read(cut) == {"a": ([], ["k"])}


def test_clear() -> None:
    """A history that begins anew holds nothing and has lost nothing, but its readers have their channels."""
    clock = Clock(rule(events=2), channels=2)
    for name in "abc":
        clock.append(name, 3)
    window = clock.attach("b")
    clock.history.remember_key(window, "k")
    cut = cut_of(clock.history)
    unread = [held for held in clock.history.windows.values() if held is not window]
    assert any(map(len, unread))

    clock.history.clear()

    history = clock.history
    assert history.windows == {"b": window}
    assert not any(map(len, unread))  # nothing else would take them and their events apart
    assert (len(window), window.newest_loss, window.keys) == (0, -1, {})
    assert (history.events, history.bytes, history.memory, history.marks, history.newest_losses) == (
        0,
        0,
        0,
        [-1],
        [-1],
    )
    assert (clock.held(), clock.marked(), history.oldest()) == ([], [], None)
    assert (list(cut), history.cuts) == ([], [])
    assert clock.append("b", 4) is window
    assert (clock.held(), clock.marked()) == ([12, 13], [11])


def test_install_into_nothing() -> None:
    """What a peer has is taken over in log order, with its losses, marks and keys, and charged."""
    clock = Clock(rule("a*", 0), rule("b*", 1))

    clock.install(
        held("a1", 5, 9, lost=(2, 4), forgotten=1, keys=("k", "l")),
        held("b", 7, by=1),
        held("a2", 6, 8, newest_loss=3, forgotten=3),
        marks=(3,),
        abandoned=([3],),
    )

    history = clock.history
    assert (clock.held(), clock.marked(), clock.held(1), clock.marked(1)) == ([5, 6, 8, 9], [3, 4], [7], [])
    assert [entry.position for entry in history.timelines[0].after(-1)] == [3, 4, 5, 6, 8, 9]
    first, second = history.windows["a1"], history.windows["a2"]
    assert [event.window for event in first.after(-1, 9)] == [first, first]
    assert [first.missed_after(place) for place in (0, 1, 2, 4)] == [None, 2, 1, 0]
    assert (first.newest_loss, list(first.keys), list(second.keys)) == (4, ["k", "l"], [])
    assert [second.missed_after(place) for place in (2, 3)] == [None, 0]
    assert (history.marks, history.newest_losses, history.timelines[0].abandoned) == ([3, -1], [4, -1], {3})
    assert (history.events, history.bytes) == (5, 5 * FRAME)
    assert history.memory == clock.memory()


def test_install_more() -> None:
    """What a peer has had since goes behind what is held here; its keys are in force."""
    clock = Clock(rule(events=4))
    window = clock.append("a", 3)
    other = clock.append("b")
    clock.history.remember_key(window, "old")
    clock.history.remember_key(other, "mine")

    clock.install(held("a", 6, 8, keys=("old", "new")))

    assert (clock.held(), clock.marked()) == ([2, 3, 4, 6, 8], [1])
    assert (list(window.keys), list(other.keys)) == (["old", "new"], ["mine"])
    assert [window.missed_after(place) for place in (0, 1)] == [1, 0]
    assert (window.used_at, other.used_at) == (8, 4)
    assert clock.history.memory == clock.memory()


def test_install_losses() -> None:
    """What a peer has lost since lies after everything here: that is lost, too, and counted on (I2)."""
    clock = Clock(rule(events=2))
    window = clock.append("a", 3)
    serial = clock.history.serial

    clock.install(held("a", 9, lost=(6, 7)))

    assert (clock.held(), clock.marked()) == ([9], [7])
    assert [window.missed_after(place) for place in (0, 1, 3, 6, 7)] == [5, 4, 2, 1, 0]
    assert window.loss_serial == clock.history.serial > serial
    assert clock.history.newest_losses == [7]
    assert clock.history.memory == clock.memory()


def test_install_losses_that_cannot_be_counted() -> None:
    """Where the peer has forgotten losses, the count is unknown here, too, whatever is forgotten later (I2)."""
    clock = Clock(rule(events=1), memory=EVENT_BYTES + FRAME + 5 * LOST_BYTES)
    window = clock.append("a", 3)

    clock.install(held("a", lost=(7, 8), forgotten=6))
    before = [window.missed_after(place) for place in (2, 5, 6, 7)]
    clock.head = 8
    clock.append("b", 3)

    assert before == [None, None, 2, 1]
    assert list(window.lost) == [8]
    assert [window.missed_after(place) for place in (2, 6, 7, 8)] == [None, None, 1, 0]


def test_install_a_channel_that_was_forgotten_there() -> None:
    """A channel that the peer has forgotten since, and that has appeared again, may have lost anything (I2)."""
    clock = Clock(rule(events=2))
    window, other = clock.append("a", 3), clock.append("b")
    serial = clock.history.serial

    clock.install(held("a", 9, newest_loss=7, forgotten=7), held("b", 10), marks=(7,), abandoned=([8],))

    assert clock.held() == [4, 9, 10]
    assert (window.newest_loss, list(window.lost), window.loss_serial > serial) == (7, [], True)
    assert [window.missed_after(place) for place in (3, 6, 7)] == [None, None, 0]
    assert (clock.history.timelines[0].abandoned, clock.marked()) == ({3, 8}, [3, 8])
    assert (other.newest_loss, clock.history.marks) == (-1, [7])
    assert clock.history.memory == clock.memory()


def test_install_without_a_channel() -> None:
    """A channel that the peer does not have any more is one of those that it has forgotten since (I2)."""
    clock = Clock(rule("a*", 0), rule("b*", 1))
    gone, read_by_somebody = clock.append("a1", 2), clock.append("a2")
    kept = clock.append("b", 1, by=1)
    clock.attach("a2")
    for window in (gone, read_by_somebody, kept):
        clock.history.remember_key(window, "k")

    clock.install(marks=(7,), abandoned=([7],))

    assert (clock.held(), clock.held(1)) == ([], [4])
    assert [(window.newest_loss, window.missed_after(6)) for window in (gone, read_by_somebody)] == [(7, None)] * 2
    assert [dict(window.keys) for window in (gone, read_by_somebody, kept)] == [{}, {}, {"k": None}]
    assert (kept.newest_loss, clock.history.marks, clock.history.newest_losses) == (-1, [7, -1], [7, -1])
    assert clock.history.memory == clock.memory()
    assert clock.append("a3").newest_loss == 7


def test_install_where_nothing_was_forgotten() -> None:
    """A channel of which the peer says nothing has not changed, if the peer has forgotten none."""
    clock = Clock()
    window = clock.append("a", 2)

    clock.install(held("b", 5))

    assert (clock.held(), window.newest_loss) == ([1, 2, 5], -1)


def test_install_a_channel_that_was_forgotten_here() -> None:
    """A channel that was forgotten here keeps that loss, whatever the peer still knows (I2)."""
    clock = Clock(channels=1)
    clock.append("a", 3)
    clock.append("b")
    mark = clock.history.marks[0]

    clock.install(held("a", 9))

    window = clock.history.windows["a"]
    assert (mark, window.newest_loss, window.missed_after(2), window.missed_after(3)) == (3, 3, None, 0)


def test_install_within_bounds() -> None:
    """What is taken over fits our own bounds: events, ages, remembered losses (I5)."""
    clock = Clock(rule("a*", 0, events=2), rule("b*", 1, age_s=10))
    clock.head = 5000

    clock.install(
        held("a1", *range(4990, 4995)),
        held("a2", lost=tuple(range(100, 100 + MAX_LOST + 5))),
        held("b", 4985, 4989, 4991, by=1),
    )

    assert (clock.held(), clock.held(1)) == ([4993, 4994], [4991])
    assert (clock.marked(), clock.marked(1)) == ([104 + MAX_LOST, 4992], [4989])
    window = clock.history.windows["a2"]
    assert (len(window.lost), window.missed_after(103), window.missed_after(104)) == (MAX_LOST, None, MAX_LOST)
    assert clock.history.memory == clock.memory()


def test_install_within_memory() -> None:
    """At the memory limit losses and keys of channels without events go first, then the oldest events (I5)."""
    clock = Clock(memory=2 * (EVENT_BYTES + FRAME) + LOST_BYTES)

    clock.install(
        held("a", lost=(1, 2, 3), keys=("k",)), held("b", 4, keys=("l",)), held("c", keys=("m",)), held("d", 5)
    )

    windows = clock.history.windows
    assert (clock.held(), clock.history.evicted_for_memory) == ([5], 1)
    assert [list(windows[name].lost) for name in "abcd"] == [[3], [4], [], []]
    assert [window.keys for window in windows.values()] == [{}] * 4
    assert clock.history.memory == clock.memory()


def test_install_within_the_channel_limit() -> None:
    """At the channel limit the least recently used go, whichever came first, here or there (I5)."""
    clock = Clock(channels=3)
    clock.append("own", 4)
    clock.attach("read")

    clock.install(held("new", 8), held("old", 2), held("newer", 9), held("older", 1))
    first, marks = list(clock.history.windows), list(clock.history.marks)
    clock.append("next")

    assert (first, marks) == (["read", "new", "newer"], [4])
    assert list(clock.history.windows) == ["read", "newer", "next"]


def test_installed_channels_expire_in_order() -> None:
    """Channels without events that were taken over are forgotten when their time has come (I5)."""
    clock = Clock(rule(age_s=1))

    clock.install(held("b", lost=(2,), used_at=50.0), held("a", lost=(1,), used_at=10.0))
    clock.history.expire(10 + REMEMBER_S)
    left = list(clock.history.windows)
    clock.history.expire(50 + REMEMBER_S)

    assert left == ["b"]
    assert clock.history.windows == {}


def test_channels_that_lose_something_are_named_to_whoever_asks() -> None:
    """An event, or everything; too many are none at all, and nobody asks is nobody told."""
    clock = Clock(rule(events=1), channels=2)
    history = clock.history
    clock.append("a")
    clock.append("a")
    assert history.touched is None
    history.touched = {}
    clock.append("b")
    assert history.touched == {}
    clock.append("b")
    assert list(history.touched) == ["b"]
    clock.append("c")
    assert list(history.touched) == ["b", "a"]
    for name in "defg":
        clock.append(name)
    assert history.touched is None


def test_that_all_was_replaced_is_counted() -> None:
    """Cleared, or taken over from elsewhere."""
    clock = Clock(rule())
    clock.history.clear()
    clock.install(held("a", 1))
    assert clock.history.replaced == 2
