from __future__ import annotations

from typing import TYPE_CHECKING

from sse_gateway.history import EVENT_BYTES, KEY_BYTES, LOST_BYTES, MAX_KEYS, REMEMBER_S, History
from sse_gateway.timeline import Mark
from sse_gateway.window import MAX_LOST, Event, Window
from tests.support.core import rule

if TYPE_CHECKING:
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
